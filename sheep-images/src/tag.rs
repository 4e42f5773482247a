//! `tag`: another name for an image.

use anyhow::{Context, Result};

use crate::cli::Tag;
use crate::interrupt;
use crate::reference::Name;
use crate::store::{self, LoadedImage, Store};

/// Runs the verb.
pub fn run(store: &Store, args: &Tag) -> Result<()> {
    let image = tag(store, args).with_context(|| format!("tag {}", args.reference))?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

fn tag(store: &Store, args: &Tag) -> Result<LoadedImage> {
    let name = Name::parse(&args.name)?;
    let _commit = interrupt::commit();
    let _lock = store.lock()?;
    let mut index = store.index()?;
    let mut descriptor = index.manifests[store::position(&index, &args.reference)?].clone();
    // A damaged image gets no second name.
    store.load(&descriptor)?;
    store::set_name(&mut index, descriptor.clone(), &name);
    store.write_index(&index)?;
    descriptor.set_ref_name(Some(&name.familiar()));
    store.load(&descriptor)
}
