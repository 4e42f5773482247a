//! The command line: clap's definitions and nothing else, so that man pages and completions can be made from them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// Copy-on-write directories: mount a stack of layers, look at the changes, keep or drop them.
#[derive(Debug, Parser)]
#[command(name = "sheep-overlay", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// The data directory [default: $SHEEP_DATA_DIR, else /var/lib/sheep or $XDG_DATA_HOME/sheep]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists or busy.";

/// The verbs, one file each.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show a stack of directories as one writable tree, and print its document
    Mount(Mount),
    /// Unmount overlays and throw their changes away (or keep them)
    Umount(Umount),
    /// List the overlays
    Ls(Ls),
    /// Print the document of an overlay
    Inspect(Inspect),
    /// List what changed against the lowers: 'A /new', 'M /modified', 'D /deleted'
    Diff(Diff),
}

/// `mount`
#[derive(Debug, Args)]
#[command(after_help = "LOWERs are named bottom first: the last one hides the others. With '-' or --from, the lowers \
are the layers of the document's image, and the rest of the document passes through.")]
pub struct Mount {
    /// The directories to stack, bottom first; '-' alone reads a document from stdin
    #[arg(value_name = "LOWER")]
    pub lowers: Vec<OsString>,
    /// Read the document from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "lowers")]
    pub from: Option<OsString>,
    /// Name the overlay; one that was kept is taken up again, with its changes [default: random]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// How the merged view is made [default: auto]
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub backend: Option<BackendChoice>,
    /// Refuse writes in the merged view
    #[arg(long)]
    pub read_only: bool,
    /// Never sync the changes: faster, and lost if the machine goes down
    #[arg(long)]
    pub volatile: bool,
    /// Print one field (merged, id, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `--backend`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// OverlayFS; where it cannot be had, a copy
    Auto,
    /// OverlayFS or nothing
    Kernel,
    /// A faithful copy
    Copy,
}

/// `umount`
#[derive(Debug, Args)]
pub struct Umount {
    /// Overlays: ids, unique prefixes of ids, or paths in the merged directory; '-' reads documents from stdin
    #[arg(value_name = "ID|PATH", required_unless_present = "from")]
    pub overlays: Vec<OsString>,
    /// Read the documents from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "overlays")]
    pub from: Option<OsString>,
    /// Keep the changes, and print the document of what is kept; 'mount --id ID' takes them up again
    #[arg(long)]
    pub keep: bool,
}

/// `ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// Print a document a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Overlays: ids, unique prefixes of ids, or paths in the merged directory; '-' reads documents from stdin
    #[arg(value_name = "ID|PATH", required_unless_present = "from")]
    pub overlays: Vec<OsString>,
    /// Read the documents from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "overlays")]
    pub from: Option<OsString>,
    /// Print one field (merged, id, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory; '-' reads a document from stdin
    #[arg(value_name = "ID|PATH", required_unless_present = "from")]
    pub overlay: Option<OsString>,
    /// Read the document from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "overlay")]
    pub from: Option<OsString>,
    /// Print a JSON document a line instead of 'A /path' lines
    #[arg(long)]
    pub json: bool,
}

/// The whole command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_hold() {
        super::command().debug_assert();
    }
}
