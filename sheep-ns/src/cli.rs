//! The command line of `sheep-ns`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::spec::SpecFlags;

/// What `--version` prints after the program's name; engines read the first line and the `spec:` line.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// Run processes in namespaces: a command in a root directory, or a container from an OCI bundle
#[derive(Debug, Parser)]
#[command(name = "sheep-ns", version = VERSION, arg_required_else_help = true)]
pub struct Cli {
    /// Options before the verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options every verb takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directory for the containers' state [default: $SHEEP_RUN_DIR/ns, else /run/sheep/ns or the user's own]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// Also write errors to this file
    #[arg(long, value_name = "FILE", global = true)]
    pub log: Option<PathBuf>,
    /// How errors are written to --log
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Also log what is done to --log
    #[arg(long, global = true)]
    pub debug: bool,
    /// Who makes the control group: cgroupfs (this program), systemd, or disabled (nobody)
    #[arg(long, value_name = "MANAGER", default_value = "cgroupfs", global = true)]
    pub cgroup_manager: CgroupManager,
    /// The same as --cgroup-manager=systemd
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
}

/// The form of the lines in `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `TIME LEVEL MESSAGE`
    Text,
    /// One JSON object a line, with `level`, `msg` and `time`.
    Json,
}

/// Who makes the control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    /// This program, in the cgroup2 file system.
    Cgroupfs,
    /// systemd gives a scope, and this program makes the group in it.
    Systemd,
    /// Nobody: the container stays in the caller's group; a limit is then an error.
    Disabled,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command in new namespaces (with --rootfs or --from), or in a running container
    Exec(Box<Exec>),
    /// Print the config.json for a command
    Spec(Box<Spec>),
    /// Make a container from a bundle; its program waits for `start`
    Create(Create),
    /// Start the program of a created container
    Start(Id),
    /// Make and start a container, wait for its end, delete it
    Run(Run),
    /// Print a container's state
    State(Id),
    /// Send a signal to a container's first process
    Kill(Kill),
    /// Delete a stopped container
    Delete(Delete),
    /// List the containers
    #[command(visible_alias = "ls")]
    List(List),
    /// Stop every process of a running container where it is
    Pause(Id),
    /// Let a paused container go on
    Resume(Id),
    /// List the processes of a container
    Ps(Ps),
    /// Change the limits of a container that runs: all that are given, or none
    Update(Update),
    /// Print what a container uses, and when memory was out, as lines of JSON
    Events(Events),
    /// Print what this runtime can do, as JSON
    Features,
}

/// `exec`
#[derive(Debug, Args)]
pub struct Exec {
    /// What runs, and how.
    #[command(flatten)]
    pub spec: SpecFlags,
    /// Running container: do not wait for the command's end
    #[arg(long, short)]
    pub detach: bool,
    /// Write the process id to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Running container: the process as OCI JSON
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Send the terminal's master end to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Running container: one more capability (repeatable)
    #[arg(long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Running container: additional group ids
    #[arg(long, value_name = "GID", value_delimiter = ',')]
    pub additional_gids: Vec<u32>,
    /// Running container: set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Running container: also when it is paused; the command waits then
    #[arg(long)]
    pub ignore_paused: bool,
    /// Running container: the control group, a path in the container's own
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Send a pidfd of the process to this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// End, and the command with it, when the program that called this one ends
    #[arg(long)]
    pub die_with_parent: bool,
    /// Write to this descriptor: a JSON object with child-pid when the command begins, one with exit-code when it has ended
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub json_status_fd: Option<i32>,
    /// Pass N more file descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The command; without --rootfs and --from, the container's id before it
    #[arg(value_name = "[ID] COMMAND", trailing_var_arg = true)]
    pub args: Vec<OsString>,
}

impl Exec {
    /// Whether the command gets namespaces of its own, and is not to join a container.
    pub fn is_one_shot(&self) -> bool {
        self.spec.rootfs.is_some() || self.spec.from.is_some()
    }
}

/// `spec`
#[derive(Debug, Args)]
pub struct Spec {
    /// What runs, and how.
    #[command(flatten)]
    pub spec: SpecFlags,
    /// Do not print it: write it to config.json in this directory, where there must be none yet
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// The command; without one, the image's
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub args: Vec<OsString>,
}

/// What `create` and `run` share.
#[derive(Debug, Clone, Args)]
pub struct Bundle {
    /// The directory with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Read this file instead of the bundle's config.json
    #[arg(long, short = 'f', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the process id to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the terminal's master end to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Send a pidfd of the container's first process to this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Pass N more file descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Not supported: the root is always changed by pivot_root
    #[arg(long)]
    pub no_pivot: bool,
    /// The container's id
    pub id: String,
}

/// `create`
#[derive(Debug, Args)]
pub struct Create {
    /// The bundle and how to make it.
    #[command(flatten)]
    pub bundle: Bundle,
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// Return when the program has started; the container stays until `delete`
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete the container after its end
    #[arg(long)]
    pub keep: bool,
    /// The bundle and how to make it.
    #[command(flatten)]
    pub bundle: Bundle,
}

/// A container's id.
#[derive(Debug, Args)]
pub struct Id {
    /// The container's id
    pub id: String,
}

/// `kill`
#[derive(Debug, Args)]
pub struct Kill {
    /// Send it to every process of the container
    #[arg(long, short)]
    pub all: bool,
    /// The container's id
    pub id: String,
    /// A name or a number: TERM, SIGTERM, 15
    #[arg(default_value = "TERM", allow_hyphen_values = true)]
    pub signal: String,
}

/// `delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// Kill what still runs; an absent container is no error
    #[arg(long, short)]
    pub force: bool,
    /// The containers' ids
    #[arg(required = true)]
    pub id: Vec<String>,
}

/// `list`
#[derive(Debug, Args)]
pub struct List {
    /// Ids only
    #[arg(long, short)]
    pub quiet: bool,
    /// Form of the list
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
}

/// The form of `list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// One JSON array, as other runtimes print it.
    Json,
}

/// `ps`
#[derive(Debug, Args)]
pub struct Ps {
    /// Form of the list; json is an array of process ids
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
    /// The container's id
    pub id: String,
    /// Options for ps(1), which makes the table [default: -ef]
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
}

/// `update`. What is not given, or zero, stays as it is; -1 is no limit.
#[derive(Debug, Default, PartialEq, Args)]
pub struct Update {
    /// Read the limits from this file, or - for stdin: the object `resources` of an OCI config.json
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory in bytes, or like 64m
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory it keeps when the host runs short
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Number of tasks
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Processor time in each period, microseconds
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// The period of the quota, microseconds
    #[arg(long, value_name = "TIME")]
    pub cpu_period: Option<u64>,
    /// Weight against others, 2 to 262144
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Processor time saved up from idle periods, microseconds
    #[arg(long, value_name = "TIME")]
    pub cpu_burst: Option<u64>,
    /// 1: runs only when nothing else wants to; 0: as others
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// Which processors, like 0-2,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Which memory nodes
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Weight in block device access, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// The container's id
    pub id: String,
}

/// `events`
#[derive(Debug, Args)]
pub struct Events {
    /// Print once what it uses now
    #[arg(long)]
    pub stats: bool,
    /// Time between two prints
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// The container's id
    pub id: String,
}

/// Parses a command line. Options of `exec` may also stand between the container's id and the command, as engines and
/// people put them; what follows the command's first word is the command's.
pub fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(words)?;
    let Verb::Exec(exec) = &cli.verb else { return Ok(cli) };
    let [id, first, ..] = exec.args.as_slice() else { return Ok(cli) };
    if exec.is_one_shot() || first == "--" || !first.as_encoded_bytes().starts_with(b"-") {
        return Ok(cli);
    }
    // The id, and all behind it, are the last words there are.
    let (before, after) = words.split_at(words.len().saturating_sub(exec.args.len()));
    let without_id: Vec<OsString> = before.iter().chain(after.iter().skip(1)).cloned().collect();
    let mut again = Cli::try_parse_from(without_id)?;
    if let Verb::Exec(exec) = &mut again.verb {
        exec.args.insert(0, id.clone());
    }
    Ok(again)
}

/// The whole command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_behind_the_command_are_the_commands() {
        let parse = |line: &str| super::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let args = |line: &str| match parse(line).map(|cli| cli.verb) {
            Ok(Verb::Exec(exec)) => {
                Ok(exec.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        let table = [
            ("sheep-ns exec --rootfs r -t -- ls -l --root x -- y", "ls -l --root x -- y"),
            ("sheep-ns exec --rootfs r ls -l --log x", "ls -l --log x"),
            ("sheep-ns exec --rootfs r -- -odd", "-odd"),
            ("sheep-ns exec -u 1 c1 ls -u --tty", "c1 ls -u --tty"),
            ("sheep-ns exec c1 ls -u --tty", "c1 ls -u --tty"),
            ("sheep-ns exec c1 -- ls -u", "c1 -- ls -u"),
            ("sheep-ns exec c1 --user 1 -t ls -u --tty", "c1 ls -u --tty"),
            ("sheep-ns exec -t c1 --user 1 -- -odd", "c1 -odd"),
            ("sheep-ns exec c1 --process f", "c1"),
        ];
        for (line, want) in table {
            assert_eq!(args(line).unwrap(), want, "{line}");
        }
        assert!(args("sheep-ns exec --bogus c1 ls").is_err());
        assert!(args("sheep-ns exec c1 --bogus ls").is_err());
        assert!(args("sheep-ns exec --rootfs r --bogus ls").is_err());
    }
}
