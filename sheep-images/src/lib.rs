//! Container images: get them in, unpack them into shared layer directories, send them out.
//!
//! The library exists for the `sheep-images` binary, and for the type of the document's `image` key ([`doc::Image`]).

pub mod bootstrap;
pub mod cli;
pub mod codec;
pub mod commit;
pub mod diff;
pub mod doc;
pub mod du;
pub mod export;
pub mod gc;
pub mod have;
pub mod history;
pub mod import;
pub mod incoming;
pub mod inspect;
pub mod interrupt;
pub mod login;
pub mod ls;
pub mod ls_remote;
pub mod not_sent;
pub mod oci;
pub mod parallel;
pub mod place;
pub mod progress;
pub mod pull;
pub mod push;
pub mod receive;
pub mod reference;
pub mod registry;
pub mod regular;
pub mod rm;
pub mod scratch;
pub mod send;
pub mod store;
pub mod stream;
pub mod tag;
pub mod tree;
pub mod unpack;
pub mod verify;

use anyhow::Result;

use cli::{Cli, Verb};
use store::Store;

/// Runs a parsed command line.
pub fn run(cli: Cli) -> Result<()> {
    // What is between us and a registry, or about the disk, needs no store.
    match &cli.verb {
        Verb::Settle => return store::settle::run(),
        Verb::Login(args) => return login::run(args),
        Verb::Logout(args) => return login::out(args),
        Verb::LsRemote(args) => return ls_remote::run(args),
        Verb::Inspect(args) if args.remote => return inspect::remote(args),
        _ => {}
    }
    let store = match &cli.verb {
        // These tell what a crash left.
        Verb::Gc(_) | Verb::Verify(_) => Store::open_as_it_is(cli.root.as_deref())?,
        _ => Store::open(cli.root.as_deref())?,
    };
    let done = match &cli.verb {
        Verb::Bootstrap(args) => bootstrap::run(&store, args),
        Verb::Import(args) => import::run(&store, args),
        Verb::Pull(args) => pull::run(&store, args),
        Verb::Push(args) => push::run(&store, args),
        Verb::Commit(args) => commit::run(&store, args),
        Verb::Export(args) => export::run(&store, args),
        Verb::Have(args) => have::run(&store, args),
        Verb::Send(args) => send::run(&store, args),
        Verb::Receive(args) => receive::run(&store, args),
        Verb::Unpack(args) => unpack::run(&store, args),
        Verb::Ls(args) => ls::run(&store, args),
        Verb::Inspect(args) => inspect::run(&store, args),
        Verb::History(args) => history::run(&store, args),
        Verb::Tree(args) => tree::run(&store, args),
        Verb::Diff(args) => diff::run(&store, args),
        Verb::Du(args) => du::run(&store, args),
        Verb::Verify(args) => verify::run(&store, args),
        Verb::Gc(args) => gc::run(&store, args),
        Verb::Tag(args) => tag::run(&store, args),
        Verb::Rm(args) => rm::run(&store, args),
        Verb::Settle | Verb::Login(_) | Verb::Logout(_) | Verb::LsRemote(_) => Ok(()),
    };
    store.settle_later();
    done
}
