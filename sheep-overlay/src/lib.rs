//! Copy-on-write directories: a stack of read-only lower directories under a writable upper, shown as one merged tree.
//!
//! The library exists for the `sheep-overlay` binary and for two things its siblings share: the document that travels
//! on pipes ([`doc`]) and the state on disk ([`state`]), with the exit codes all four programs keep ([`exit`]).

pub mod access;
pub mod applied;
pub mod apply;
pub mod assemble;
pub mod backend;
pub mod branch;
pub mod busy;
pub mod carry;
pub mod child;
pub mod choose;
pub mod cli;
pub mod cover;
pub mod diff;
pub mod doc;
pub mod doctor;
pub mod du;
pub mod enter;
pub mod exit;
pub mod export;
pub mod find;
pub mod freeze;
pub mod gc;
pub mod history;
pub mod holder;
pub mod idmap;
pub mod inode;
pub mod inspect;
pub mod layer;
pub mod listing;
pub mod log;
pub mod lowers;
pub mod ls;
pub mod mount;
pub mod mount_helper;
pub mod mountinfo;
pub mod mountpoint;
pub mod namespace;
pub mod parts;
pub mod paths;
pub mod quota;
pub mod record;
pub mod remove;
pub mod reset;
pub mod rotate;
pub mod shown;
pub mod snapshot;
pub mod squash;
pub mod stack;
pub mod stacked;
pub mod state;
pub mod status;
pub mod switch;
pub mod sys;
pub mod take_up;
pub mod tmpfs;
pub mod trees;
pub mod turn;
pub mod umount;
pub mod unmapped;
pub mod unsynced;
pub mod upper;
pub mod view;
pub mod walk;
pub mod why;

use anyhow::{Context, Result};

/// The program's name, as its messages begin.
pub const PROGRAM: &str = "sheep-overlay";

/// Does what the command line says.
pub fn run(cli: cli::Cli) -> Result<()> {
    let root = state::DataRoot::open(cli.root.as_deref())?;
    match &cli.verb {
        cli::Verb::Mount(args) => mount::run(&root, args),
        cli::Verb::Umount(args) => umount::run(&root, args),
        cli::Verb::Ls(args) => ls::run(&root, args),
        cli::Verb::Inspect(args) => inspect::run(&root, args),
        cli::Verb::Diff(args) => {
            let named = args.overlay.as_deref().map(history::parse).transpose()?;
            let span = named.as_ref().map_or(history::Span::WHOLE, history::Named::span);
            let names: Vec<_> = named.into_iter().map(|named| named.overlay).collect();
            let targets = find::targets(&root, &names, args.from.as_deref())?;
            for_each(targets, "diff", |target| {
                let overlay = rotate::read(&root, &target.id?)?;
                access::with(&overlay, |overlay| diff::run(overlay, span, args))
            })
        }
        cli::Verb::Why(args) => why::run(&root, args),
        cli::Verb::Du(args) => du::run(&root, args),
        cli::Verb::Status(args) => status::run(&root, args),
        cli::Verb::Export(args) => export::run(&root, args),
        cli::Verb::Apply(args) => apply::run(&root, args),
        cli::Verb::Snapshot(args) => snapshot::run(&root, args),
        cli::Verb::Log(args) => log::run(&root, args),
        cli::Verb::Reset(args) => reset::run(&root, args),
        cli::Verb::Squash(args) => squash::run(&root, args),
        cli::Verb::Exec(args) => enter::exec(&root, args),
        cli::Verb::Enter(args) => enter::enter(&root, args),
        cli::Verb::Gc(args) => gc::run(&root, args),
        cli::Verb::Doctor(args) => doctor::run(&root, args),
    }
}

/// Does the same for several overlays.
fn for_each(targets: Vec<find::Target>, verb: &str, mut act: impl FnMut(find::Target) -> Result<()>) -> Result<()> {
    let mut several = exit::Several::of(PROGRAM);
    for target in targets {
        several.add(act(target).with_context(|| verb.to_owned()));
    }
    several.result()
}
