//! The binary as a user, an engine, an attacker and an unlucky administrator use it. Everything runs on the real kernel;
//! every test has its own busybox root, bundle and state directory.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod control;
mod engine;
mod escape;
mod harness;
mod hooks;
mod isolate;
mod join;
mod leak;
mod life;
mod once;
mod rootless;
mod seccomp;
mod settings;
mod terminal;
