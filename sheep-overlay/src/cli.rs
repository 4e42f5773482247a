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
    /// Say which layer supplies a path, and what hides it below
    Why(Why),
    /// Say how much disk the changes take
    Du(Du),
    /// Say whether the lower was changed by others since the overlay was made
    Status(Status),
    /// Print the changes as others take them (an OCI layer, a layer directory, a patch), or all of it as a tar
    Export(Export),
    /// Make the changes to the lower too, or to another directory; all of them or none
    Apply(Apply),
    /// Put what changed aside as a layer, at once however much it is, and go on in an empty one
    Snapshot(Snapshot),
    /// List the snapshots of an overlay
    Log(Log),
    /// Go back to a snapshot: what changed since is thrown away
    Reset(Reset),
    /// Make one snapshot of the head and all that it lies on
    Squash(Squash),
    /// Run a command in an overlay: the overlay is seen in the place of its lower
    Exec(Exec),
    /// Start a shell in an overlay, as 'exec' does
    Enter(Enter),
    /// Delete what killed commands and restarts left behind
    Gc(Gc),
    /// Try every backend here, and say what works, why not, and what to do
    Doctor(Doctor),
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
    /// Go on from snapshot N of the overlay ID, in a new overlay [default for N: its head]
    #[arg(long, value_name = "ID@N", conflicts_with_all = ["lowers", "from"])]
    pub branch: Option<OsString>,
    /// Name the overlay; one that was kept is taken up again, with its changes [default: random]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// How the merged view is made [default: auto]
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub backend: Option<BackendChoice>,
    /// Make it visible to every process of yours, also without being root (by fuse-overlayfs)
    #[arg(long)]
    pub visible: bool,
    /// Refuse writes in the merged view
    #[arg(long)]
    pub read_only: bool,
    /// Never sync the changes: faster, and lost if the machine goes down
    #[arg(long, visible_alias = "scratch")]
    pub volatile: bool,
    /// Keep the changes in memory, SIZE of it at most (512m, 2g) [default size: half the memory]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true)]
    pub tmpfs: Option<Option<String>>,
    /// Let the changes take SIZE of disk at most (512m, 2g); needs a file system with project quotas
    #[arg(long, value_name = "SIZE", conflicts_with = "tmpfs")]
    pub size: Option<String>,
    /// Show the merged view in DIR, which may be the lower itself
    #[arg(long, value_name = "DIR")]
    pub at: Option<PathBuf>,
    /// Leave PATH out of the view (from its top; may be given several times)
    #[arg(long, value_name = "PATH")]
    pub hide: Vec<PathBuf>,
    /// Show the lowers' owners by a map, as in mount(8): [b:|u:|g:]ON-DISK:SHOWN:COUNT
    #[arg(long, value_name = "MAP")]
    pub idmap: Option<String>,
    /// Make sure of a lower that others change: lie on a copy of it, or list what it has [default: the best to be had]
    #[arg(long, value_name = "WAY", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub freeze: Option<FreezeWay>,
    /// Leave out what is mounted below a lower: an empty directory is seen in its place
    #[arg(long)]
    pub no_recursive: bool,
    /// Print one field (merged, id, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `--backend`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// OverlayFS; where it cannot be had, a copy
    Auto,
    /// OverlayFS or nothing; for an ordinary user in a user namespace
    Kernel,
    /// fuse-overlayfs
    Fuse,
    /// A snapshot of a lower that is a btrfs subvolume
    Btrfs,
    /// A copy that shares all content with the lowers (reflink)
    Reflink,
    /// A faithful copy
    Copy,
}

/// `--freeze`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FreezeWay {
    /// The first of the others that is to be had
    Auto,
    /// A btrfs snapshot, of a lower that is a subvolume
    Btrfs,
    /// A copy that shares all content (reflink)
    Reflink,
    /// No copy, but a list by which 'status' and 'apply' tell what was changed
    Listing,
}

/// The overlays that a command is for.
#[derive(Debug, Args)]
pub struct Targets {
    /// Overlays: ids, unique prefixes of ids, or paths in the merged directory; '-' reads documents from stdin
    #[arg(value_name = "ID|PATH", required_unless_present = "from")]
    pub overlays: Vec<OsString>,
    /// Read the documents from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "overlays")]
    pub from: Option<OsString>,
}

/// `umount`
#[derive(Debug, Args)]
pub struct Umount {
    /// The overlays
    #[command(flatten)]
    pub targets: Targets,
    /// Keep the changes, and print the document of what is kept; 'mount --id ID' takes them up again
    #[arg(long)]
    pub keep: bool,
    /// Do not wait for its users: it is out of sight at once, and deleted by 'gc' when the last of them is gone
    #[arg(long)]
    pub lazy: bool,
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
    /// The overlays
    #[command(flatten)]
    pub targets: Targets,
    /// Print one field (merged, id, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory; '-' reads a document from stdin. ID@N is what
    /// it was at a snapshot, ID@N..ID@M (or ID@N..M) what changed between two, ID@N.. what changed since
    #[arg(value_name = "ID|PATH", required_unless_present = "from")]
    pub overlay: Option<OsString>,
    /// Read the document from FILE ('-' is stdin)
    #[arg(long, value_name = "FILE", conflicts_with = "overlay")]
    pub from: Option<OsString>,
    /// Print a JSON document a line instead of 'A /path' lines
    #[arg(long, group = "form")]
    pub json: bool,
    /// Print what was changed and by how many bytes, and the sums
    #[arg(long, group = "form")]
    pub stat: bool,
    /// Print the paths alone
    #[arg(long, group = "form")]
    pub name_only: bool,
    /// End each path with a NUL and escape nothing (with --name-only)
    #[arg(short = 'z', long = "null", requires = "name_only")]
    pub null: bool,
    /// Print a unified diff of text files, as 'git apply' takes it
    #[arg(long, group = "form")]
    pub patch: bool,
}

/// `snapshot`
#[derive(Debug, Args)]
#[command(
    after_help = "A mounted overlay goes on without a moment in which it is not there, where the kernel can (Linux 6.5), else it is \
unmounted and mounted again; of one that is kept, the next mount has it. The document's snapshot.live says which: beneath, remounted, \
nextMount. Nobody may use the overlay meanwhile."
)]
pub struct Snapshot {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// Say what it is
    #[arg(short = 'm', long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Print one field (number, live, overlay.id, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `log`
#[derive(Debug, Args)]
pub struct Log {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// Print a document a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `reset`
#[derive(Debug, Args)]
pub struct Reset {
    /// The overlay, and the number of the snapshot to go back to; 0 is what the overlay began with [default: the head]
    #[arg(value_name = "ID[@N]")]
    pub overlay: OsString,
    /// Print one field (merged, head, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `squash`
#[derive(Debug, Args)]
pub struct Squash {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// Print one field (merged, head, upper, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `why`
#[derive(Debug, Args)]
pub struct Why {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// The path, from the merged directory on
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Print a JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `du`
#[derive(Debug, Args)]
pub struct Du {
    /// The overlays
    #[command(flatten)]
    pub targets: Targets,
    /// Print a document a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `status`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 1 where something was changed. Without 'mount --freeze', changes are known by the ctime \
of files; what was deleted is not."
)]
pub struct Status {
    /// The overlays
    #[command(flatten)]
    pub targets: Targets,
    /// Print a JSON document a line instead of 'M /path' lines
    #[arg(long)]
    pub json: bool,
}

/// `export`
#[derive(Debug, Args)]
#[command(
    after_help = "No time in a tar is later than $SOURCE_DATE_EPOCH, where that is set: the same changes give the same bytes. \
A layer is read back and compared with the overlay before anything is printed. What a form cannot carry is an error that \
names it."
)]
pub struct Export {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// The form
    #[arg(long = "as", value_name = "FORM", value_enum, default_value = "oci")]
    pub form: ExportForm,
    /// Make the directory DIR (with --as dir), new or empty before
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// `--as`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// The changes as a layer of an OCI image: a tar, not compressed
    Oci,
    /// All that the overlay shows, changes and lowers in one, as a tar
    Tar,
    /// The changes as a directory that can be a lower over the old ones; its path is printed
    Dir,
    /// The changes of text files as 'git apply' takes them, as 'diff --patch'
    Patch,
}

/// `apply`
#[derive(Debug, Args)]
#[command(
    after_help = "What was changed there since the overlay was made is a conflict: it is printed as a document, and nothing is \
changed unless --ours or --theirs decides. What was there before is kept, for --undo, until 'gc' deletes it. Exit code: 1 \
for conflicts."
)]
pub struct Apply {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory; with --undo or --list also the id of
    /// what was applied, or nothing
    #[arg(value_name = "ID", required_unless_present_any = ["undo", "list"])]
    pub overlay: Option<OsString>,
    /// Only these paths and what is below them, as 'diff' prints them [default: all]
    #[arg(value_name = "PATH", conflicts_with_all = ["undo", "list"])]
    pub paths: Vec<PathBuf>,
    /// Only exactly the paths in FILE ('-' is stdin), each ended by a NUL, as 'diff --name-only -z' prints them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "undo", "list"])]
    pub paths_from: Option<PathBuf>,
    /// Make the changes to DIR instead of the lower
    #[arg(long, value_name = "DIR", conflicts_with_all = ["undo", "list"])]
    pub to: Option<PathBuf>,
    /// Print what would be done, conflicts as 'C /path', and do nothing
    #[arg(long, conflicts_with_all = ["undo", "list"])]
    pub dry_run: bool,
    /// Ask for each change; of a text, also hunk by hunk
    #[arg(short, long, conflicts_with_all = ["undo", "list", "dry_run"])]
    pub interactive: bool,
    /// In conflicts, take the overlay's side
    #[arg(long, conflicts_with = "theirs")]
    pub ours: bool,
    /// In conflicts, leave what is there as it is
    #[arg(long)]
    pub theirs: bool,
    /// Put back what was there before the last COUNT times
    #[arg(long, value_name = "COUNT", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub undo: Option<usize>,
    /// List what can be undone
    #[arg(long, conflicts_with_all = ["undo", "ours", "theirs", "print"])]
    pub list: bool,
    /// Print JSON documents (with --dry-run and --list)
    #[arg(long)]
    pub json: bool,
    /// Print one field (id, changes, ...) instead of the document
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// `exec`
#[derive(Debug, Args)]
#[command(
    after_help = "The overlay is seen in the place of its lower, and the working directory is kept where it is in \
it; else it is the top of the merged view. Exit code: that of the command, 125 for an error of our own, 126 where it cannot be \
executed, 127 where it is not found."
)]
pub struct Exec {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// Start in DIR
    #[arg(short = 'C', long, value_name = "DIR")]
    pub chdir: Option<PathBuf>,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// `enter`
#[derive(Debug, Args)]
pub struct Enter {
    /// The overlay: its id, a unique prefix of it, or a path in the merged directory
    #[arg(value_name = "ID")]
    pub overlay: OsString,
    /// Start in DIR
    #[arg(short = 'C', long, value_name = "DIR")]
    pub chdir: Option<PathBuf>,
}

/// `gc`
#[derive(Debug, Args)]
pub struct Gc {
    /// Also delete stale overlays with their changes: those that a restart or a kill unmounted
    #[arg(long)]
    pub stale: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Delete what 'apply --undo' would need and is older than AGE (12h, 30d)
    #[arg(long, value_name = "AGE", default_value = "30d")]
    pub undo_age: String,
    /// Delete the oldest of it until it takes SIZE at most (512m, 2g)
    #[arg(long, value_name = "SIZE")]
    pub undo_size: Option<String>,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print a JSON document a line instead of a table
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
