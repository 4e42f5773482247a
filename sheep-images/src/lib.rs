//! Container images: get them in, unpack them into shared layer directories, send them out.
//!
//! The library exists for the `sheep-images` binary, and for the type of the document's `image` key ([`doc::Image`]).

pub mod bootstrap;
pub mod cli;
pub mod codec;
pub mod commit;
pub mod doc;
pub mod export;
pub mod import;
pub mod inspect;
pub mod interrupt;
pub mod ls;
pub mod oci;
pub mod parallel;
pub mod reference;
pub mod regular;
pub mod rm;
pub mod scratch;
pub mod store;
pub mod stream;
pub mod tag;
pub mod unpack;

use anyhow::Result;

use cli::{Cli, Verb};
use store::Store;

/// Runs a parsed command line.
pub fn run(cli: Cli) -> Result<()> {
    let store = Store::open(cli.root.as_deref())?;
    match &cli.verb {
        Verb::Bootstrap(args) => bootstrap::run(&store, args),
        Verb::Import(args) => import::run(&store, args),
        Verb::Commit(args) => commit::run(&store, args),
        Verb::Export(args) => export::run(&store, args),
        Verb::Unpack(args) => unpack::run(&store, args),
        Verb::Ls(args) => ls::run(&store, args),
        Verb::Inspect(args) => inspect::run(&store, args),
        Verb::Tag(args) => tag::run(&store, args),
        Verb::Rm(args) => rm::run(&store, args),
    }
}
