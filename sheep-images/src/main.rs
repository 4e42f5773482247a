//! `sheep-images`: see the library.

use std::process::ExitCode;

use clap::Parser;
use sheep_images::cli::Cli;
use sheep_images::interrupt;
use sheep_overlay::exit;

fn main() -> ExitCode {
    // One line for what is wrong with the command line, too; help and version are clap's own.
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    interrupt::clean_up_on_signals();
    let result = sheep_images::run(cli);
    // What failed because a signal is clearing up under it is nothing to report.
    let _commit = interrupt::commit();
    exit::report("sheep-images", result)
}
