//! `sheep-overlay`: copy-on-write directories.

use std::process::ExitCode;

use clap::Parser;
use sheep_overlay::{PROGRAM, cli, exit, run};

fn main() -> ExitCode {
    exit::report(PROGRAM, run(cli::Cli::parse()))
}
