//! `send`: images for another store, without what that one has already.
//!
//! The stream is what `export` prints, an archive of an OCI layout, with layers left out that are in the list of the other store's
//! [`have`](crate::have); a member of it says which ([`not_sent`](crate::not_sent)). Where none is left out it is the same, byte for byte.

use anyhow::{Context, Result};

use crate::cli::Send;
use crate::export;
use crate::have::Have;
use crate::store::Store;

/// Runs the verb.
pub fn run(store: &Store, args: &Send) -> Result<()> {
    let send = || -> Result<()> {
        let wanted = export::wanted(store, &args.references)?;
        let have = args.have.as_deref().map(Have::read).transpose()?;
        export::write(None, false, |out| export::layout::archive(store, &wanted, have.as_ref(), out))
    };
    send().with_context(|| format!("send {}", args.references.join(" ")))
}
