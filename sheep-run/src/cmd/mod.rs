//! The verbs, one file each.

pub mod create;
pub mod exec;
pub mod explain;
pub mod inspect;
pub mod kill;
pub mod logs;
pub mod ps;
pub mod record;
pub mod rm;
pub mod run;
pub mod start;
pub mod stop;
pub mod tee;
pub mod wait;

use anyhow::{Context, Result};
use sheep_overlay::exit;

use crate::{PROGRAM, code_for};

/// Does a thing to each of several containers, as `verb` says in errors. After an error the others still have their
/// turn; gives the exit code for the first error. A signal ends it at once.
pub fn each(verb: &str, names: &[String], mut act: impl FnMut(&str) -> Result<()>) -> Result<u8> {
    let mut first = 0;
    for name in names {
        let Err(error) = act(name).with_context(|| format!("{verb} {name}")) else { continue };
        let code = code_for(&error, false);
        if code == 0 || code > 4 {
            return Err(error);
        }
        exit::print_line(PROGRAM, &error);
        first = if first == 0 { code } else { first };
    }
    Ok(first)
}
