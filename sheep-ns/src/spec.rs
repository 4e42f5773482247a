//! Flags and a document become a config.json.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What runs, and how: shared by `spec` and `exec`.
#[derive(Debug, Clone, Default, Args)]
pub struct SpecFlags {
    /// The root directory of the container
    #[arg(long, value_name = "DIR", conflicts_with = "from")]
    pub rootfs: Option<PathBuf>,
    /// Read the root directory and the image's defaults from a document: a file, or - for stdin
    #[arg(long, value_name = "FILE|-")]
    pub from: Option<OsString>,
    /// Set a variable of the environment; NAME alone takes its value from this program's (repeatable)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Mount a host file or directory inside (repeatable)
    #[arg(long, short, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<OsString>,
    /// Working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    pub cwd: Option<OsString>,
    /// User, and group, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Make the root directory read-only
    #[arg(long)]
    pub read_only: bool,
    /// none: a network of its own, with nothing in it; host: this host's
    #[arg(long, value_name = "MODE", default_value = "none")]
    pub network: Network,
    /// Most memory in bytes; k, m, g may follow
    #[arg(long, short, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Processor time in each period
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// The period of --cpu-quota [default: 100000]
    #[arg(long, value_name = "USEC")]
    pub cpu_period: Option<u64>,
    /// Relative weight against other groups, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Most tasks at once; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// The control group, a path in the cgroup2 tree [default: /sheep/ID]
    #[arg(long, value_name = "PATH")]
    pub cgroups_path: Option<String>,
    /// Annotate the container (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Leave out the image's entrypoint
    #[arg(long)]
    pub no_entrypoint: bool,
    /// Resource limit of the process, nofile=1024:4096 (repeatable)
    #[arg(long, value_name = "TYPE=SOFT[:HARD]")]
    pub rlimit: Vec<String>,
}

/// Which network the container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A new network namespace with only a loopback device.
    #[default]
    None,
    /// The host's.
    Host,
}
