//! From config.json to a running program: both sides of the clone.
//!
//! [`plan`] checks everything that can be checked before; [`parent`] clones; [`child`] sets up from the inside and ends in
//! [`program`]'s execve. They talk over a [`channel`].

mod attr;
pub mod channel;
pub mod child;
pub mod join;
pub mod netdev;
pub mod parent;
pub mod plan;
pub mod program;
pub mod tuning;

pub use parent::{Child, spawn};
pub use plan::Plan;
