//! `sheep-run` itself, with the real siblings: each test in a world of its own.

// A test that cannot go on says where by panicking; the helpers in harness.rs are tests too, which clippy cannot know.
#![allow(clippy::unwrap_used)]

#[path = "cli/harness.rs"]
mod harness;

#[path = "cli/crash.rs"]
mod crash;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/lifecycle.rs"]
mod lifecycle;
#[path = "cli/logs.rs"]
mod logs;
#[path = "cli/pull.rs"]
mod pull;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/signals.rs"]
mod signals;
