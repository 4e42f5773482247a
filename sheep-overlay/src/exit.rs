//! Exit codes, and the one line on stderr that goes with them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage |
//! | 3 | not found |
//! | 4 | exists already, or busy |

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Why a command failed, where a caller (or the exit code) makes a difference of it. Everything else is plain
/// `anyhow` and exits with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The command line or a value on it is wrong: exit code 2.
    Usage,
    /// The thing that was named does not exist: exit code 3.
    NotFound,
    /// The thing exists already, or somebody uses it: exit code 4.
    Busy,
    /// A command that was to be run with our help was not: 125 for an error of our own, 126 where it cannot be executed,
    /// 127 where it is not found.
    NotRun(u8),
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

/// An error that exits with 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Fault { kind: Kind::Usage, message: message.into() }.into()
}

/// An error that exits with 3.
pub fn not_found(message: impl Into<String>) -> anyhow::Error {
    Fault { kind: Kind::NotFound, message: message.into() }.into()
}

/// An error that exits with 4.
pub fn busy(message: impl Into<String>) -> anyhow::Error {
    Fault { kind: Kind::Busy, message: message.into() }.into()
}

/// An error of a kind that was kept beside its message.
pub fn of_kind(kind: Option<Kind>, message: String) -> anyhow::Error {
    match kind {
        Some(kind) => Fault { kind, message }.into(),
        None => anyhow::Error::msg(message),
    }
}

/// An error of a command that runs another one, which exits with this code (125, 126 or 127).
pub fn not_run(code: u8, message: impl Into<String>) -> anyhow::Error {
    Fault { kind: Kind::NotRun(code), message: message.into() }.into()
}

/// The kind of an error, wherever in its chain it was given; `None` for a plain failure.
pub fn kind(error: &anyhow::Error) -> Option<Kind> {
    error.chain().find_map(|cause| cause.downcast_ref::<Fault>()).map(|fault| fault.kind)
}

/// Ends a program: prints the error, if any, as `PROGRAM: MESSAGE` on one line of stderr and gives the exit code of
/// the table above. A broken pipe on stdout is a quiet end (exit code 0), as `head` expects of what it reads from.
pub fn report(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    print_line(program, &error);
    ExitCode::from(match kind(&error) {
        None => 1,
        Some(Kind::Usage) => 2,
        Some(Kind::NotFound) => 3,
        Some(Kind::Busy) => 4,
        Some(Kind::NotRun(code)) => code,
    })
}

/// Prints an error as one line of stderr; control characters that a name may carry are escaped, so that a hostile file
/// name can neither start a second line nor drive the terminal.
pub fn print_line(program: &str, error: &anyhow::Error) {
    warn(program, &format!("{error:#}"));
}

/// Characters of a message that are printed. What it quotes of a hostile document may have megabytes.
const MESSAGE_MAX: usize = 16_384;

/// Prints `PROGRAM: MESSAGE` as one line of stderr, control characters escaped. A closed stderr is no error.
pub fn warn(program: &str, message: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = io::stderr().write_all(one_line(program, message).as_bytes());
}

fn one_line(program: &str, message: &str) -> String {
    let mut line = String::with_capacity(program.len() + message.len() + 3);
    line.push_str(program);
    line.push_str(": ");
    for (at, c) in message.chars().enumerate() {
        if at == MESSAGE_MAX {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.push('\n');
    line
}

/// What came of several things, each of which is done whatever becomes of the others. The first error is the result, so that it
/// sets the exit code; later ones are printed at once.
#[derive(Debug)]
pub struct Several {
    program: &'static str,
    first: anyhow::Result<()>,
}

impl Several {
    /// Nothing yet, of a program.
    pub fn of(program: &'static str) -> Self {
        Several { program, first: Ok(()) }
    }

    /// One more.
    pub fn add(&mut self, done: anyhow::Result<()>) {
        match (done, &self.first) {
            (Ok(()), _) => {}
            (Err(error), Ok(())) => self.first = Err(error),
            (Err(error), Err(_)) => print_line(self.program, &error),
        }
    }

    /// The first error.
    pub fn result(self) -> anyhow::Result<()> {
        self.first
    }
}

/// Whether an error says that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_kind_survives_context() {
        let error = Err::<(), _>(busy("upper is in use by 3f2a")).context("mount /a/b").unwrap_err();
        assert_eq!(kind(&error), Some(Kind::Busy));
        assert_eq!(format!("{error:#}"), "mount /a/b: upper is in use by 3f2a");
        assert_eq!(kind(&anyhow::anyhow!("plain")), None);
    }

    #[test]
    fn a_message_is_one_line_with_an_end() {
        assert_eq!(one_line("p", "a\n\x1b[2J\u{9b}ä"), "p: a\\n\\u{1b}[2J\\u{9b}ä\n");
        let long = one_line("p", &"ä".repeat(1 << 20));
        assert_eq!((long.chars().count(), long.lines().count()), (MESSAGE_MAX + 5, 1));
        assert!(long.ends_with("…\n"));
    }
}
