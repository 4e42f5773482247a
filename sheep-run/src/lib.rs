//! The container lifecycle: the other three tools run as processes, and the record is kept.
//!
//! The library exists for the `sheep-run` binary and for what is made from its command line ([`cli`]). Every verb is a
//! file of its name under `cmd/`; the order of the steps of a `run` is in `cmd/run.rs`.

pub mod cli;
pub mod cmd;
pub mod foreground;
pub mod locks;
pub mod log;
pub mod monitor;
pub mod record;
pub mod repair;
pub mod signals;
pub mod steps;
pub mod tool;

mod sys;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::Parser;
use clap::error::ErrorKind;
use sheep_overlay::exit::{self, Kind};

use cli::{Cli, Explained, Verb};
use record::Home;
use signals::Interrupted;
use tool::NS;

/// The name before our lines on stderr.
pub const PROGRAM: &str = "sheep-run";

/// The whole program: one command line, the program's name included; gives the exit code.
pub fn main(words: Vec<OsString>) -> u8 {
    if words.get(1).is_some_and(|word| word == monitor::VERB) {
        return monitor::main(&words[2..]);
    }
    let runs_program = runs_program(&words);
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, runs_program),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let code = code_for(&error, runs_program);
            // A signal is no news to whoever sent it, and a reader of stdout that left is none to anybody.
            if code != 0 && !error.chain().any(|cause| cause.is::<Interrupted>()) {
                exit::print_line(PROGRAM, &error);
            }
            code
        }
    }
}

/// Runs one command line; gives the exit code.
pub fn run(cli: Cli) -> Result<u8> {
    let home = Home::open(cli.root.as_deref())?;
    match cli.verb {
        Verb::Run(flags) => cmd::run::run(&home, &flags).with_context(|| about("run", &flags.making)),
        Verb::Create(flags) => cmd::create::create(&home, &flags).with_context(|| about("create", &flags.making)),
        Verb::Start(flags) => cmd::start::start(&home, &flags),
        Verb::Stop(flags) => cmd::stop::stop(&home, &flags),
        Verb::Kill(flags) => cmd::kill::kill(&home, &flags),
        Verb::Wait(flags) => cmd::wait::wait(&home, &flags),
        Verb::Rm(flags) => cmd::rm::rm(&home, &flags),
        Verb::Ps(flags) => cmd::ps::ps(&home, &flags),
        Verb::Inspect(flags) => cmd::inspect::inspect(&home, &flags),
        Verb::Logs(flags) => cmd::logs::logs(&home, &flags).with_context(|| format!("logs {}", flags.name)),
        Verb::Exec(flags) => cmd::exec::exec(&home, &flags),
        Verb::Explain(flags) => {
            let Explained::Run(flags) = flags.verb;
            cmd::explain::explain(&home, &flags).with_context(|| about("explain run", &flags.making))
        }
        Verb::Record(flags) => cmd::record::record(&home, &flags).context("record"),
        Verb::Tee(flags) => cmd::tee::tee(&home, &flags).context("tee"),
    }
}

fn about(verb: &str, making: &cli::Making) -> String {
    let image = making.image_and_command.first().map(|image| image.to_string_lossy()).unwrap_or_default();
    format!("{verb} {image}")
}

/// Whether the command line is one whose exit code is the program's own: the verb is its first word that is no flag.
fn runs_program(words: &[OsString]) -> bool {
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--root" {
            words.next();
        } else if !word.to_string_lossy().starts_with('-') {
            return ["run", "exec", "tee"].iter().any(|verb| word == verb);
        }
    }
    false
}

/// The exit code for an error, by the table in cli.rs.
fn code_for(error: &anyhow::Error, runs_program: bool) -> u8 {
    if let Some(Interrupted(signal)) = error.chain().find_map(|cause| cause.downcast_ref()) {
        return u8::try_from(128 + *signal as i32).unwrap_or(128);
    }
    if is_broken_pipe(error) {
        return 0;
    }
    let tool = error.chain().find_map(|cause| cause.downcast_ref::<tool::ToolError>());
    match (tool, exit::kind(error)) {
        (Some(tool), _) if runs_program => match tool.code {
            126 | 127 if tool.tool == NS => tool.code as u8,
            _ => 125,
        },
        (None, _) if runs_program => 125,
        (Some(tool), _) => u8::try_from(tool.code).ok().filter(|code| (1..=4).contains(code)).unwrap_or(1),
        (None, None) => 1,
        (None, Some(Kind::Usage)) => 2,
        (None, Some(Kind::NotFound)) => 3,
        (None, Some(Kind::Busy)) => 4,
        (None, Some(Kind::NotRun(code))) => code,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Says in one line what is wrong with a command line; help and version go to stdout.
fn usage(error: &clap::Error, runs_program: bool) -> u8 {
    if !error.use_stderr() {
        // A reader that left is a quiet end.
        let _ = error.print();
        return 0;
    }
    let text = error.to_string();
    let message = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a verb is missing".to_owned()
        }
        // The first paragraph is the error; usage and hints follow.
        _ => text.split("\n\n").next().unwrap_or(&text).split_whitespace().collect::<Vec<_>>().join(" "),
    };
    exit::warn(PROGRAM, &format!("{}; see --help", message.trim_start_matches("error: ")));
    if runs_program { 125 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use tool::ToolError;

    #[test]
    fn codes_follow_the_table() {
        let failed = |tool, code| anyhow::Error::new(ToolError { tool, code, message: "x".into() }).context("run x");
        let table = [
            (failed("sheep-images", 3), 3, 125),
            (failed("sheep-ns", 127), 1, 127),
            (failed("sheep-ns", 125), 1, 125),
            (failed("sheep-overlay", 127), 1, 125),
            (exit::usage("u"), 2, 125),
            (exit::not_found("n"), 3, 125),
            (exit::busy("b"), 4, 125),
            (anyhow::anyhow!("plain"), 1, 125),
            (Interrupted(Signal::SIGINT).into(), 130, 130),
        ];
        for (error, plain, program) in table {
            assert_eq!((code_for(&error, false), code_for(&error, true)), (plain, program), "{error:#}");
        }
    }

    #[test]
    fn the_verb_is_found() {
        let is = |line: &str| runs_program(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is("sheep-run run x") && is("sheep-run --root run run") && is("sheep-run --root=/x exec a b"));
        assert!(!is("sheep-run rm run") && !is("sheep-run --root run ps") && !is("sheep-run --help"));
    }
}
