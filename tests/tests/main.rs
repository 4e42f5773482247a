//! The tests of the real binaries; one program, a module a subject.
mod harness;
