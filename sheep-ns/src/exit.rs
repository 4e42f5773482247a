//! Exit codes, and the one line on stderr that goes with them. These are the codes all four programs keep; the lines
//! are repeated here so that this crate can be audited alone.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage |
//! | 3 | not found |
//! | 4 | exists already, or busy (also: in the wrong state) |
//!
//! `exec` and `run` end as the program they ran: its own code, 128+N for signal N; 125 when they failed themselves, 126
//! when the program cannot be executed, 127 when it is not found.

use std::fmt;
use std::io::{self, Write};

/// Why a command failed, where the exit code makes a difference of it. Everything else is plain `anyhow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line or a value on it is wrong.
    Usage,
    /// The container that was named does not exist.
    NotFound,
    /// The container exists already, is in use, or is not in the state the command needs.
    Busy,
    /// The program to run was found and cannot be executed.
    CannotExecute,
    /// The program to run was not found.
    NoProgram,
}

/// An error with a [`Kind`]; the message names the object and what to do.
#[derive(Debug)]
pub struct Fault {
    kind: Kind,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// An error of that kind.
pub fn fault(kind: Kind, message: impl Into<String>) -> anyhow::Error {
    Fault { kind, message: message.into() }.into()
}

/// An error that exits with 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    fault(Kind::Usage, message)
}

/// An error that exits with 3.
pub fn not_found(message: impl Into<String>) -> anyhow::Error {
    fault(Kind::NotFound, message)
}

/// An error that exits with 4.
pub fn busy(message: impl Into<String>) -> anyhow::Error {
    fault(Kind::Busy, message)
}

/// The kind of an error, wherever in its chain it was given; `None` for a plain failure.
pub fn kind(error: &anyhow::Error) -> Option<Kind> {
    error.chain().find_map(|cause| cause.downcast_ref::<Fault>()).map(|fault| fault.kind)
}

/// The exit code for an error. `runs_program` is true for the verbs that end as the program they ran would.
pub fn code(error: &anyhow::Error, runs_program: bool) -> u8 {
    match (kind(error), runs_program) {
        (Some(Kind::CannotExecute), true) => 126,
        (Some(Kind::NoProgram), true) => 127,
        (Some(Kind::Usage), false) => 2,
        (Some(Kind::NotFound), false) => 3,
        (Some(Kind::Busy), false) => 4,
        (_, true) => 125,
        (_, false) => 1,
    }
}

/// Prints `PROGRAM: MESSAGE` as one line of stderr, control characters escaped, so that a hostile name can neither
/// start a second line nor drive the terminal. A closed stderr is no error.
pub fn warn(program: &str, message: &str) {
    let mut line = String::with_capacity(program.len() + message.len() + 3);
    line.push_str(program);
    line.push_str(": ");
    for c in message.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.push('\n');
    // Nobody is left to tell when stderr is gone.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Whether the error is a reader of our stdout that went away: a quiet end.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_follow_the_table() {
        let table = [
            (fault(Kind::Usage, "u"), 2, 125),
            (fault(Kind::NotFound, "n"), 3, 125),
            (fault(Kind::Busy, "b"), 4, 125),
            (fault(Kind::CannotExecute, "x"), 1, 126),
            (fault(Kind::NoProgram, "p"), 1, 127),
            (anyhow::anyhow!("plain"), 1, 125),
        ];
        for (error, plain, program) in table {
            let error = Err::<(), _>(error).context("create c1").unwrap_err();
            assert_eq!((code(&error, false), code(&error, true)), (plain, program), "{error:#}");
        }
    }
}
