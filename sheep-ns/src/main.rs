//! `sheep-ns`: processes in namespaces.

use std::process::ExitCode;

use sheep_ns::cli::{self, Verb};
use sheep_ns::{exit, log, protect};

#[global_allocator]
static MEMORY: sheep_ns::Arena = sheep_ns::Arena::new();
/// What a command takes that starts a program, of which the most is for its command line.
const MEMORY_OF_A_START: usize = 288 * 1024;

fn main() -> ExitCode {
    let runs = protect::is_needed(std::env::args_os().skip(1));
    if runs && let Err(error) = protect::protect() {
        exit::warn("sheep-ns", &format!("{error:#}"));
        return ExitCode::from(exit::code(&error, true));
    }
    if runs {
        MEMORY.populate(MEMORY_OF_A_START);
    }
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match cli::parse(&words) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when the output is gone.
            let _ = error.print();
            let failed = error.exit_code() != 0;
            // 2 could be the program's own code, where a program was to be run.
            return ExitCode::from(if failed && runs { 125 } else { u8::from(failed) * 2 });
        }
    };
    let (global, verb) = (cli.global.clone(), verb(&cli.verb));
    if global.debug {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        log::write(global.log.as_deref(), global.log_format, "debug", &words.join(" "));
    }
    match sheep_ns::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{verb}: {error:#}");
            log::write(global.log.as_deref(), global.log_format, "error", &message);
            exit::warn("sheep-ns", &message);
            ExitCode::from(exit::code(&error, matches!(verb, "exec" | "run")))
        }
    }
}

fn verb(verb: &Verb) -> &'static str {
    match verb {
        Verb::Exec(_) => "exec",
        Verb::Spec(_) => "spec",
        Verb::Create(_) => "create",
        Verb::Start(_) => "start",
        Verb::Run(_) => "run",
        Verb::State(_) => "state",
        Verb::Kill(_) => "kill",
        Verb::Delete(_) => "delete",
        Verb::List(_) => "list",
        Verb::Pause(_) => "pause",
        Verb::Resume(_) => "resume",
        Verb::Ps(_) => "ps",
        Verb::Update(_) => "update",
        Verb::Events(_) => "events",
        Verb::Features => "features",
    }
}
