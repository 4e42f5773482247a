//! The tests of the real binaries, as pipelines where a user would pipe; one program, a module a subject.

mod bad_input;
mod crash;
mod foreign;
mod harness;
mod lifecycle;
mod original;
mod pipes;
mod power;
mod scripts;
mod sharing;
mod unprivileged;
