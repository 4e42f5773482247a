//! The ways to make a merged view.

pub mod btrfs;
pub mod copy;
pub mod fuse;
pub mod kernel;
