//! `sheep-run`: containers from the other three tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(sheep_run::main(std::env::args_os().collect()))
}
