//! The `sheep-overlay` binary against the real kernel. The numbers in test names (`p08_…`) are those of the list of
//! overlay pitfalls that each test shows to be handled.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "cli/harness.rs"]
mod harness;

#[path = "cli/apply.rs"]
mod apply;
#[path = "cli/copies.rs"]
mod copies;
#[path = "cli/crash.rs"]
mod crash;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/export.rs"]
mod export;
#[path = "cli/filesystems.rs"]
mod filesystems;
#[path = "cli/helper.rs"]
mod helper;
#[path = "cli/kept.rs"]
mod kept;
#[path = "cli/look.rs"]
mod look;
#[path = "cli/names.rs"]
mod names;
#[path = "cli/overlays.rs"]
mod overlays;
#[path = "cli/pitfalls.rs"]
mod pitfalls;
#[path = "cli/power.rs"]
mod power;
#[path = "cli/removal.rs"]
mod removal;
#[path = "cli/rootless.rs"]
mod rootless;
#[path = "cli/snapshots.rs"]
mod snapshots;
#[path = "cli/visible.rs"]
mod visible;
#[path = "cli/whole.rs"]
mod whole;
