//! `sheep-overlay`: copy-on-write directories.

use std::process::ExitCode;

use clap::Parser;
use sheep_overlay::{PROGRAM, cli, exit, mount_helper, run};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.next().is_some_and(|name| mount_helper::is_meant(&name)) {
        return mount_helper::run(args);
    }
    exit::report(PROGRAM, run(cli::Cli::parse()))
}
