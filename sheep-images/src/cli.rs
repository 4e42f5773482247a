//! The command line.

// The doc comments are the help texts, where NAME[:TAG] is no link.
#![allow(rustdoc::broken_intra_doc_links)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::unpack::resolve::DEPTH_MAX;

/// Container images: get them in, unpack them into shared layer directories.
#[derive(Debug, Parser)]
#[command(name = "sheep-images", version, about, propagate_version = true)]
pub struct Cli {
    /// The data directory [default: $SHEEP_DATA_DIR, else /var/lib/sheep or $XDG_DATA_HOME/sheep]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an image from this host's own shell and utilities, with the libraries they need
    Bootstrap(Bootstrap),
    /// Get an image in: an OCI layout, what 'docker save' made, or a root file system, in an archive or a directory
    Import(Import),
    /// Get an image from a registry, layers in parallel, each unpacked while it comes; what breaks off is gone on with
    Pull(Pull),
    /// Send an image to a registry, as it is: what is there already is not sent
    Push(Push),
    /// Note a name and a password for a registry, after trying them there
    Login(Login),
    /// Forget them
    Logout(Logout),
    /// List the tags of a repository in a registry
    LsRemote(LsRemote),
    /// Make an image of a document's image and the changes in its overlay
    Commit(Commit),
    /// Send images out: as an OCI layout, as 'docker save' does, or as a tar of the files in one
    Export(Export),
    /// List the blobs this store has, for another one's 'send'
    Have(Have),
    /// Send images to another store, without what it has already
    Send(Send),
    /// Take in what 'send' sends, while it comes
    Receive(Receive),
    /// Unpack an image's layers, where that is not done yet, and print its document
    Unpack(Unpack),
    /// List the images
    Ls(Ls),
    /// Print an image's document
    Inspect(Inspect),
    /// List the steps in which an image was made, newest first, each with its layer
    History(History),
    /// List what each layer of an image has at each path: what it adds, changes, deletes, and what of it is hidden
    Tree(Tree),
    /// List what differs between what two images show
    Diff(Diff),
    /// List how much disk the images take, what of it they share, and what removing one would free
    Du(Du),
    /// Check that everything in the store is what it should be, and mend what can be mended
    Verify(Verify),
    /// Delete what no image needs: blobs, unpacked layers, what crashes left
    Gc(Gc),
    /// Give an image another name
    Tag(Tag),
    /// Remove images, or names of them
    Rm(Rm),
    /// Wait until unpacked layers are on the disk (run by the others, when they have ended)
    #[command(hide = true)]
    Settle,
}

/// `bootstrap`
#[derive(Debug, Args)]
pub struct Bootstrap {
    /// The image's name
    #[arg(default_value = "minimal")]
    pub name: String,
    /// Add this program, and what it needs, at the same path (a name without '/' is looked up in $PATH)
    #[arg(long, value_name = "PATH")]
    pub bin: Vec<PathBuf>,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `import`
#[derive(Debug, Args)]
pub struct Import {
    /// The image's name
    pub name: String,
    /// The archive, or - for stdin, or a directory: an OCI layout, or the files of the image; what it is, and how compressed, is
    /// found by its content
    pub file: OsString,
    /// Which image, where there are several: the name that it has there
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,
    /// Which image, of one for several platforms [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Take it for this
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "auto")]
    pub format: ImportFormat,
    /// How much is too much.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How far it is.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `pull`
#[derive(Debug, Args)]
#[command(
    after_help = "What is there already costs one request. What a command that failed or was killed got of a layer is kept for a day, \
and the next one goes on from there."
)]
pub struct Pull {
    /// The image: [REGISTRY/]NAME[:TAG][@DIGEST]; without REGISTRY, docker.io
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The image's name here [default: the one that it has there; by a digest alone, none]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Which image, of one for several platforms [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Only store it: what is in the layers is checked when somebody unpacks it
    #[arg(long)]
    pub no_unpack: bool,
    /// The registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// How much is too much.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How far it is.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `push`
#[derive(Debug, Args)]
#[command(
    after_help = "With --compress, layers that are compressed so already, at whatever level, go as they are; the others get other digests, and so does \
the image, which is what is printed. The same layers give the same digests again. Docker's format has no zstd: such an image goes in OCI's."
)]
pub struct Push {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where to: REGISTRY/NAME[:TAG] [default: the image's own name]
    #[arg(value_name = "TO")]
    pub to: Option<String>,
    /// Compress the layers so on their way [default: they go as they are stored]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub compress: Option<Compress>,
    /// How much: 1 to 9 for gzip [default: 6], 1 to 19 for zstd [default: 3]
    #[arg(long, value_name = "N", requires = "compress")]
    pub level: Option<i32>,
    /// The registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// How far it is.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `push --compress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// What every tool reads
    Gzip,
    /// Smaller, and quicker to unpack; for podman, skopeo, containerd and docker from version 23 on
    Zstd,
}

/// `login`
#[derive(Debug, Args)]
#[command(
    after_help = "They are noted in podman's file: $REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json, else (root) \
/run/containers/0/auth.json. Looked up they are there, in ~/.config/containers/auth.json and in docker's config.json, with the credential helpers \
that these name."
)]
pub struct Login {
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    pub server: String,
    /// The user's name [default: asked for]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Read the password from stdin [default: asked for, on the terminal]
    #[arg(long)]
    pub password_stdin: bool,
    /// The registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `logout`
#[derive(Debug, Args)]
pub struct Logout {
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    pub server: String,
}

/// `ls-remote`
#[derive(Debug, Args)]
pub struct LsRemote {
    /// The repository: [REGISTRY/]NAME; without REGISTRY, docker.io
    #[arg(value_name = "REPOSITORY")]
    pub repository: String,
    /// Print a JSON document a line
    #[arg(long)]
    pub json: bool,
    /// The registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `commit`
#[derive(Debug, Args)]
#[command(
    after_help = "The document is one with an image and an overlay on it: sheep-images unpack IMAGE | sheep-overlay mount - \
prints one, and so does sheep-run inspect."
)]
pub struct Commit {
    /// The new image's name
    pub name: String,
    /// Read the document from FILE [default: stdin]
    #[arg(long, value_name = "FILE")]
    pub from: Option<OsString>,
    /// A remark in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Who made it
    #[arg(long, value_name = "TEXT")]
    pub author: Option<String>,
    /// Set a variable of its environment (may be given several times)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Set a label (may be given several times)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// What a container runs before its command: a JSON list of words, or a line for the shell; empty, nothing
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// What a container runs by default, likewise
    #[arg(long, value_name = "COMMAND")]
    pub cmd: Option<String>,
    /// Where it runs
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// As whom it runs
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `export`
#[derive(Debug, Args)]
pub struct Export {
    /// The images: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits; several in one, but for rootfs
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
    /// In which form
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "oci")]
    pub format: ExportFormat,
    /// Write to PATH, whole or not at all [default: stdout]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Replace the file that is there
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// `have`
#[derive(Debug, Args)]
#[command(
    after_help = "A line of JSON for each blob that is there and as long as it should be, and one with the version before them. What came of an image \
that was not received whole is always in it: sheep-images have | ssh HOST sheep-images send REF --have - | sheep-images receive."
)]
pub struct Have {
    /// Only what these images have [default: all]
    #[arg(value_name = "REF")]
    pub references: Vec<String>,
}

/// `send`
#[derive(Debug, Args)]
#[command(
    after_help = "The stream is an archive of an OCI layout, for 'receive' or 'import'; without --have, or where the other store has none of the layers, \
it is what 'export' prints, for every tool. Each blob is checked on its way, and one that is damaged ends the stream before its end."
)]
pub struct Send {
    /// The images: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
    /// Leave out the layers in this list of 'sheep-images have', or - for one on stdin
    #[arg(long, value_name = "FILE")]
    pub have: Option<OsString>,
}

/// `receive`
#[derive(Debug, Args)]
#[command(
    after_help = "All images of the stream are there at the end, or none. Of a stream that is cut, the layers that came whole are kept: 'have' \
lists them, so the same again moves only the rest. 'gc' deletes them after a week, 'gc --partial' at once."
)]
pub struct Receive {
    /// The image's name [default: as in the stream]
    pub name: Option<String>,
    /// The file with the stream [default: stdin, also as -]
    pub file: Option<OsString>,
    /// How much is too much.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How far it is.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `export --format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// An archive of an OCI layout, for podman, skopeo, umoci, containerd
    Oci,
    /// An OCI layout in a directory; one that is there gets the images added
    OciDir,
    /// What 'docker save' makes, for docker load
    Docker,
    /// A tar of the files that a container sees
    Rootfs,
}

/// `--format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImportFormat {
    /// What it looks like
    Auto,
    /// An image: an OCI layout, or what 'docker save' made
    Image,
    /// A root file system
    Rootfs,
}

/// `unpack`
#[derive(Debug, Args)]
pub struct Unpack {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Make a plain directory of all that a container sees, whole or not at all; nothing is there, or an empty directory
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// As an ordinary user, keep the owners: root's files are yours, others' belong to your subordinate ids, as with podman unshare
    #[arg(long, requires = "to")]
    pub userns: bool,
    /// How much is too much.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How far it is.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// Print one document a line
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
// What says how a registry is spoken with means nothing where none is.
#[command(mut_group("RegistryArgs", |group| group.requires("remote")))]
pub struct Inspect {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Print the very bytes of the image's manifest, or of its configuration, in the place of the document
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "manifest",
        conflicts_with = "print"
    )]
    pub raw: Option<Raw>,
    /// Look at the image in its registry, without getting it
    #[arg(long)]
    pub remote: bool,
    /// Which image there, of one for several platforms [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", requires = "remote")]
    pub platform: Option<String>,
    /// The registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `--raw`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Raw {
    /// The manifest, whose digest is the image's
    Manifest,
    /// The configuration
    Config,
}

/// `history`
#[derive(Debug, Args)]
pub struct History {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Print a JSON document a line
    #[arg(long)]
    pub json: bool,
}

/// `tree`
#[derive(Debug, Args)]
#[command(
    after_help = "Layers are numbered from 1, at the bottom. The marks are those of 'diff': A added, M modified, T of another type, D deleted \
(a whiteout), O a directory that hides the one below it; = the same again. What has a hiddenBy is in the image for nothing: \
sheep-images tree app --json | jq -s 'map(select(.hiddenBy).size) | add'."
)]
pub struct Tree {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Only this path, and what is below it
    pub path: Option<PathBuf>,
    /// Only this layer: its number, from 1 at the bottom, or its digest or diffID, or the beginning of one
    #[arg(long, value_name = "N|DIGEST")]
    pub layer: Option<String>,
    /// Print a JSON document a line
    #[arg(long)]
    pub json: bool,
}

/// `diff`
#[derive(Debug, Args)]
#[command(
    after_help = "A added, M modified, T of another type, D deleted, R renamed; as 'sheep-overlay diff' has them. \
The exit code is 0 also where they differ."
)]
pub struct Diff {
    /// The image that it is from
    #[arg(value_name = "OLD")]
    pub old: String,
    /// The image that it is to
    #[arg(value_name = "NEW")]
    pub new: String,
    /// Only these paths, and what is below them
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print a JSON document a line, with what differs
    #[arg(long)]
    pub json: bool,
}

/// `du`
#[derive(Debug, Args)]
#[command(
    after_help = "Bytes on the disk, as du(1) counts them. STORED are the archives that came in, UNPACKED the directories; SHARED of both is what other \
images have too, OWN what 'rm' would free. Without REF, the total is all of the data directory: du -sxB1."
)]
pub struct Du {
    /// The images [default: all]
    #[arg(value_name = "REF")]
    pub references: Vec<String>,
    /// Print a document a line, with the key du, and one with the key total
    #[arg(long)]
    pub json: bool,
}

/// `verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Manifests, configurations and blobs are compared with their digests and sizes, each unpacked layer with what its blob unpacks to, \
in all that can be kept. Each problem is a line; the exit code is 1 where one is left, and 4 where an overlay is in the way."
)]
pub struct Verify {
    /// The images [default: all, and what no image needs]
    #[arg(value_name = "REF")]
    pub references: Vec<String>,
    /// Unpack damaged layers anew, take damaged blobs of layers out of the way of the next import, drop images without a manifest
    #[arg(long)]
    pub repair: bool,
    /// Print a JSON document a line
    #[arg(long)]
    pub json: bool,
}

/// `gc`
#[derive(Debug, Args)]
#[command(
    after_help = "Layers that an overlay uses, mounted or kept, stay. Other processes of this program may work meanwhile; other programs that \
write into the store (skopeo, umoci) may not, for what they have put there already no image needs yet."
)]
pub struct Gc {
    /// Only say what would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Delete also what came less than a week ago of images that were not received whole
    #[arg(long)]
    pub partial: bool,
    /// Print a JSON document a line
    #[arg(long)]
    pub json: bool,
}

/// `tag`
#[derive(Debug, Args)]
pub struct Tag {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The new name; an image that has it already keeps its digest only
    #[arg(value_name = "NEWNAME")]
    pub name: String,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
}

/// `rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// The images; the last name of an image takes the image with it
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
}

/// What a command that makes something prints.
#[derive(Debug, Args)]
pub struct Print {
    /// Print one field of the document, raw (digest, reference, image.config.config.Env, …)
    #[arg(long, value_name = "FIELD")]
    pub print: Option<String>,
}

/// How registries are spoken with.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// Trust the certificates in FILE (PEM), too; also speaks TLS with a registry on this very machine, which is spoken with in
    /// the clear otherwise
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Speak plain HTTP with the registry, wherever it is: what is sent and what comes can be read and changed on the way
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// Ask this mirror of docker.io first [default: $SHEEP_IMAGES_MIRROR]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub mirror: Option<String>,
    /// Break off, and try again, where nothing comes for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Args)]
pub struct ProgressArgs {
    /// Show how far it is
    #[arg(long, value_name = "HOW", value_enum, default_value = "auto")]
    pub progress: ProgressMode,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar for each layer, where stderr is a terminal
    Auto,
    /// Lines of JSON on stderr
    Json,
    /// Not at all
    None,
}

/// Limits on an archive. They are far above what real images hold, and below what fills a machine unnoticed.
#[derive(Debug, Clone, Copy, Args)]
pub struct LimitArgs {
    /// Refuse a layer with more entries than this
    #[arg(long, value_name = "N", default_value_t = Self::DEFAULT.max_entries)]
    pub max_entries: u64,
    /// Refuse a layer with more bytes of file content than this
    #[arg(long, value_name = "BYTES", default_value_t = Self::DEFAULT.max_bytes)]
    pub max_bytes: u64,
    /// Refuse a layer with an entry deeper than this: parts of its path below the layer's root, symbolic links followed
    #[arg(long, value_name = "N", default_value_t = Self::DEFAULT.max_depth, value_parser = clap::value_parser!(u32).range(1..=i64::from(DEPTH_MAX)))]
    pub max_depth: u32,
    /// Refuse a layer of more than 1 GiB that is more than N times as long as its compressed archive
    #[arg(long, value_name = "N", default_value_t = Self::DEFAULT.max_ratio)]
    pub max_ratio: u64,
}

impl LimitArgs {
    /// What holds where nothing is said.
    const DEFAULT: LimitArgs =
        LimitArgs { max_entries: 10_000_000, max_bytes: 1 << 40, max_depth: DEPTH_MAX, max_ratio: 200 };
    /// For what this host's own trees are made of.
    pub const NONE: LimitArgs =
        LimitArgs { max_entries: u64::MAX, max_bytes: u64::MAX, max_depth: DEPTH_MAX, max_ratio: u64::MAX };
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The command line's definition, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}
