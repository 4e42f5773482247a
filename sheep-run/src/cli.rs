//! The command line: clap's definitions and nothing else, so that man pages and completions can be made from them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// Containers on copy-on-write layers: run, stop and start them again, and keep the record.
#[derive(Debug, Parser)]
#[command(name = "sheep-run", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// The data directory [default: $SHEEP_DATA_DIR, else /var/lib/sheep or $XDG_DATA_HOME/sheep]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists or busy. run and exec: the \
program's own, 128+N for signal N, 127 not found, 126 cannot be executed, 125 sheep-run itself failed.";

/// The verbs, one file each.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command in a new container
    Run(Run),
    /// Make a container without starting it, and print its id
    Create(Create),
    /// Start stopped containers; they have the changes they made before
    Start(Start),
    /// Stop containers: SIGTERM, then SIGKILL
    Stop(Stop),
    /// Send a signal to containers
    Kill(Kill),
    /// Wait until containers end, and print their exit codes
    Wait(Names),
    /// Remove containers and their changes
    Rm(Rm),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(Ps),
    /// Print the documents of containers
    Inspect(Inspect),
    /// Print what a container wrote to stdout and stderr
    Logs(Logs),
    /// Run one more command in a running container
    Exec(Exec),
    /// Print a 'run' as a shell script of the commands it is made of
    Explain(Explain),
    /// For 'explain': claim an id and a name, or put a document into a container's record
    #[command(hide = true)]
    Record(Record),
    /// For 'explain': run a command and copy its output into a container's log
    #[command(hide = true)]
    Tee(Tee),
}

/// What a container is made of: shared by `run` and `create`.
#[derive(Debug, Clone, Args)]
pub struct Making {
    /// Name the container [default: its id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Get the image from its registry: where it is not here, in any case, or never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "missing")]
    pub pull: Pull,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Keep stdin open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Set a variable of the environment; NAME alone takes its value from here (repeatable)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Read variables from a file: NAME=VALUE or NAME a line, '#' starts a comment (repeatable)
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Show a file or directory of this host inside (repeatable)
    #[arg(long, short, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<OsString>,
    /// Working directory inside
    #[arg(long, short = 'w', value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// User, and group, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Host name inside [default: the container's id]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Most memory, in bytes; k, m, g may follow
    #[arg(long, short, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Processors at most, 1.5 for one and a half
    #[arg(long, value_name = "N", allow_hyphen_values = true, conflicts_with = "cpu_quota")]
    pub cpus: Option<String>,
    /// Processor time in each 100 ms, in microseconds
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Relative weight against other containers, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Most processes and threads at once
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Make the root directory read-only
    #[arg(long)]
    pub read_only: bool,
    /// Label the container (repeatable)
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// none: a network of its own with nothing in it; host: this host's
    #[arg(long, value_name = "MODE", value_enum)]
    pub network: Option<Network>,
    /// Filter of system calls: unconfined, or a profile's file as docker and podman take it [default: default, their own]
    #[arg(long, value_name = "default|unconfined|FILE")]
    pub seccomp: Option<OsString>,
    /// How the root directory is made [default: auto]
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub backend: Option<Backend>,
    /// The image, then the command and its arguments [default: the image's own]
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    pub image_and_command: Vec<OsString>,
}

/// `--pull`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// Where it is not here: from docker.io, where its name has no registry, as docker does; not 'minimal', which 'sheep-images
    /// bootstrap' makes, and not a digest without a name
    Missing,
    /// In any case: what is here already costs one request
    Always,
    /// Never
    Never,
}

/// `--network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A new network namespace with only a loopback device
    None,
    /// The host's
    Host,
}

/// `--backend`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// OverlayFS; where it cannot be had, a copy
    Auto,
    /// OverlayFS or nothing
    Kernel,
    /// A faithful copy
    Copy,
}

/// `run`
#[derive(Debug, Clone, Args)]
#[command(override_usage = "sheep-run run [OPTIONS] IMAGE [COMMAND [ARG]...]")]
#[command(after_help = "Options after IMAGE belong to the command.")]
pub struct Run {
    /// Run in the background, and print the container's id
    #[arg(long, short)]
    pub detach: bool,
    /// With -d: print the document instead of the id
    #[arg(long, requires = "detach")]
    pub json: bool,
    /// What the container is made of.
    #[command(flatten)]
    pub making: Making,
}

/// `create`
#[derive(Debug, Args)]
#[command(override_usage = "sheep-run create [OPTIONS] IMAGE [COMMAND [ARG]...]")]
#[command(after_help = "Options after IMAGE belong to the command.")]
pub struct Create {
    /// Print the document instead of the id
    #[arg(long)]
    pub json: bool,
    /// What the container is made of.
    #[command(flatten)]
    pub making: Making,
}

/// `start`
#[derive(Debug, Args)]
pub struct Start {
    /// Print the documents
    #[arg(long)]
    pub json: bool,
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `stop`
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds between SIGTERM and SIGKILL
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    pub time: u64,
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `kill`
#[derive(Debug, Args)]
pub struct Kill {
    /// A name or a number: KILL, SIGHUP, 15
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// Containers by name.
#[derive(Debug, Args)]
pub struct Names {
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(long, short)]
    pub force: bool,
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `ps`
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(long, short)]
    pub all: bool,
    /// Print a document a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Print one field (status, exitCode, overlay.merged, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
    /// Containers: names, ids, or unique prefixes of ids
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the container ends
    #[arg(long, short)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(long)]
    pub timestamps: bool,
    /// The container: its name, its id, or a unique prefix of the id
    pub name: String,
}

/// `exec`
#[derive(Debug, Args)]
#[command(override_usage = "sheep-run exec [OPTIONS] NAME COMMAND [ARG]...")]
#[command(after_help = "Options after NAME belong to the command.")]
pub struct Exec {
    /// Keep stdin open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Do not wait for the command's end
    #[arg(long, short)]
    pub detach: bool,
    /// Set a variable of the environment; NAME alone takes its value from here (repeatable)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// User, and group, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory inside
    #[arg(long, short = 'w', value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// The container (its name, its id, or a unique prefix of the id), then the command and its arguments
    #[arg(value_names = ["NAME", "COMMAND"], required = true, num_args = 2.., trailing_var_arg = true)]
    pub name_and_command: Vec<OsString>,
}

/// `explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// What to explain.
    #[command(subcommand)]
    pub verb: Explained,
}

/// What can be explained.
#[derive(Debug, Subcommand)]
pub enum Explained {
    /// Print 'run' as a shell script that does the same
    Run(Run),
}

/// `record`
#[derive(Debug, Args)]
pub struct Record {
    /// Put this document's keys and the bundle's config.json into the record of ID
    #[arg(long, value_name = "FILE|-", requires = "id")]
    pub from: Option<OsString>,
    /// Record that the container ID ended, with this exit code
    #[arg(long, value_name = "CODE", requires = "id", conflicts_with = "from")]
    pub ended: Option<i32>,
    /// New: the container's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// New: remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// New: keep stdin open
    #[arg(long)]
    pub interactive: bool,
    /// New: keep no log
    #[arg(long)]
    pub no_log: bool,
    /// New: label the container
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// The container's id; without one, a new container is recorded and its id printed
    pub id: Option<String>,
}

/// `tee`
#[derive(Debug, Args)]
pub struct Tee {
    /// The container whose log it is
    pub id: String,
    /// The command
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// The whole command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(line: &str) -> Run {
        match Cli::try_parse_from(line.split(' ')).unwrap().verb {
            Verb::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_hold() {
        super::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let run = run_of("sheep-run run -d --name x minimal ls -d --name y -- -e");
        assert!(run.detach);
        assert_eq!(run.making.name.as_deref(), Some("x"));
        assert_eq!(run.making.image_and_command, ["minimal", "ls", "-d", "--name", "y", "--", "-e"]);
        assert_eq!(run_of("sheep-run run minimal --help").making.image_and_command, ["minimal", "--help"]);
        assert_eq!(run_of("sheep-run run minimal -- x").making.image_and_command, ["minimal", "--", "x"]);
        assert!(Cli::try_parse_from(["sheep-run", "run", "--nosuch", "minimal"]).is_err());
        assert!(Cli::try_parse_from(["sheep-run", "run"]).is_err());
    }

    #[test]
    fn flags_join() {
        let run = run_of("sheep-run run -it -eA=b -w/tmp -m32m minimal");
        assert!(run.making.interactive && run.making.tty);
        assert_eq!(run.making.env, ["A=b"]);
        assert_eq!(run.making.memory.as_deref(), Some("32m"));
    }
}
