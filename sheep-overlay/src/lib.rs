//! Copy-on-write directories: a stack of read-only lower directories under a writable upper, shown as one merged tree.
//!
//! The library exists for the `sheep-overlay` binary and for two things its siblings share: the document that travels
//! on pipes ([`doc`]) and the state on disk ([`state`]), with the exit codes all four programs keep ([`exit`]).

pub mod doc;
pub mod exit;
pub mod state;
