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
    /// Get an image in: an OCI layout, what 'docker save' made, or the archive of a root file system
    Import(Import),
    /// Make an image of a document's image and the changes in its overlay
    Commit(Commit),
    /// Print an image as an archive of an OCI layout, which skopeo, podman, docker and umoci take
    Export(Export),
    /// Unpack an image's layers, where that is not done yet, and print its document
    Unpack(Unpack),
    /// List the images
    Ls(Ls),
    /// Print an image's document
    Inspect(Inspect),
    /// Give an image another name
    Tag(Tag),
    /// Remove images, or names of them
    Rm(Rm),
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
    /// The archive, or - for stdin, or a directory that is an OCI layout; what it is, and how compressed, is found by its
    /// content
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
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
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
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
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
    /// How much is too much.
    #[command(flatten)]
    pub limits: LimitArgs,
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
pub struct Inspect {
    /// The image: NAME[:TAG], a digest, or a unique prefix of its hexadecimal digits
    #[arg(value_name = "REF")]
    pub reference: String,
    /// What is printed.
    #[command(flatten)]
    pub print: Print,
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
}

impl LimitArgs {
    /// What holds where nothing is said.
    const DEFAULT: LimitArgs = LimitArgs { max_entries: 10_000_000, max_bytes: 1 << 40, max_depth: DEPTH_MAX };
    /// For what this host's own trees are made of.
    pub const NONE: LimitArgs = LimitArgs { max_entries: u64::MAX, max_bytes: u64::MAX, max_depth: DEPTH_MAX };
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
