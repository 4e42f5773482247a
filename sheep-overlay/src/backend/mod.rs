//! The ways to make a merged view.

pub mod copy;
pub mod kernel;
