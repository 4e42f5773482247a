//! Processes in namespaces: an OCI runtime at its core, and one-shot isolation for a command.
//!
//! The library exists for the `sheep-ns` binary, its tests, and the types others read ([`cli`], [`oci`]). Every verb is a
//! file of its name under `cmd/`; what happens between clone and exec is in [`init`] and [`rootfs`].

pub mod caps;
pub mod cgroup;
pub mod cli;
pub mod cmd;
pub mod doc;
pub mod exit;
pub mod hooks;
pub mod init;
pub mod log;
pub mod oci;
pub mod process;
pub mod protect;
pub mod refuse;
pub mod rootfs;
pub mod seccomp;
pub mod selinux;
pub mod spec;
pub mod state;
pub mod supervise;
mod sys;
pub mod tty;
pub mod userns;

pub use sys::Arena;

use cli::Verb;

/// Runs one command line; gives the exit code.
pub fn run(cli: cli::Cli) -> anyhow::Result<u8> {
    let global = &cli.global;
    match cli.verb {
        Verb::Exec(args) => cmd::exec::run(global, *args),
        Verb::Spec(args) => cmd::spec::run(*args),
        Verb::Create(args) => cmd::create::run(global, args),
        Verb::Start(args) => cmd::start::run(global, &args),
        Verb::Run(args) => cmd::run::run(global, args),
        Verb::State(args) => cmd::state::run(global, &args),
        Verb::Kill(args) => cmd::kill::run(global, &args),
        Verb::Delete(args) => cmd::delete::run(global, &args),
        Verb::List(args) => cmd::list::run(global, &args),
        Verb::Pause(args) => cmd::pause::run(global, &args),
        Verb::Resume(args) => cmd::resume::run(global, &args),
        Verb::Ps(args) => cmd::ps::run(global, &args),
        Verb::Update(args) => cmd::update::run(global, &args),
        Verb::Events(args) => cmd::events::run(global, &args),
        Verb::Features => cmd::features::run(),
    }
}
