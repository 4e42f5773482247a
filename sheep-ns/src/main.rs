//! `sheep-ns`: processes in namespaces.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = sheep_ns::cli::Cli::parse();
    match sheep_ns::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            sheep_ns::exit::warn("sheep-ns", &format!("{error:#}"));
            ExitCode::from(sheep_ns::exit::code(&error, false))
        }
    }
}
