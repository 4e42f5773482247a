//! `rm`: removes names, and with the last one the image.

use anyhow::{Context, Result};
use sheep_overlay::exit;

use crate::cli::Rm;
use crate::interrupt;
use crate::oci::{Descriptor, Digest};
use crate::reference::Reference;
use crate::scratch::Scratch;
use crate::store::stage::{Candidates, Stage};
use crate::store::{self, Store, users};

/// Runs the verb. After an error it goes on with the next image; the first error decides the exit code.
pub fn run(store: &Store, args: &Rm) -> Result<()> {
    let mut first = None;
    for reference in &args.references {
        let Err(error) = remove(store, reference).with_context(|| format!("rm {reference}")) else { continue };
        match &first {
            None => first = Some(error),
            Some(_) => exit::print_line("sheep-images", &error),
        }
    }
    first.map_or(Ok(()), Err)
}

fn remove(store: &Store, reference: &str) -> Result<()> {
    // Deleting big layers takes a while. Once they are renamed nobody can see them, and no lock is needed.
    for doomed in unlink(store, reference)? {
        doomed.delete()?;
    }
    Ok(())
}

/// Takes an image out of the store; its unpacked layers that nobody else needs are renamed, and returned to be deleted.
fn unlink(store: &Store, reference: &str) -> Result<Vec<Scratch>> {
    let _commit = interrupt::commit();
    let _lock = store.lock()?;
    let mut index = store.index()?;
    let at = store::position(&index, reference)?;
    let image = index.manifests[at].clone();
    check_names(&index.manifests, &image, reference)?;
    index.manifests.remove(at);

    let old = store.uses_as_far_as_readable(&image)?;
    let new = store.uses(&index.manifests)?;
    let blobs: Vec<Digest> = old.blobs.difference(&new.blobs).cloned().collect();
    let layers = old.layers.difference(&new.layers).cloned().collect();
    let _removal = store.data().lock_layers_for_removal()?;
    let users = users::overlays_using(store, &layers)?;
    if !users.is_empty() {
        let in_use = users::named(&users);
        return Err(exit::busy(format!("{in_use}; 'sheep-overlay umount' (or 'sheep-run rm') first")));
    }

    let stage = Stage::new(store)?;
    stage.set_candidates(&Candidates { blobs: blobs.clone(), layers: layers.iter().cloned().collect() })?;
    store.write_index(&index)?;
    for blob in &blobs {
        store.delete_blob(blob)?;
    }
    layers.iter().filter_map(|diff_id| store.take_away(diff_id).transpose()).collect()
}

/// A digest names the image and not one of its names: with several of them it does not say which is meant.
fn check_names(manifests: &[Descriptor], image: &Descriptor, reference: &str) -> Result<()> {
    let names: Vec<String> = manifests
        .iter()
        .filter(|d| d.digest == image.digest)
        .filter_map(|d| d.ref_name().map(store::familiar))
        .collect();
    let by_name = match Reference::parse(reference)? {
        Reference::Name(_) => true,
        Reference::Digest(_) => false,
        Reference::Prefix { name, .. } => name.is_some_and(|name| names.contains(&name.familiar())),
    };
    if by_name || names.len() < 2 {
        return Ok(());
    }
    Err(exit::busy(format!("it has the names {}; remove these", names.join(", "))))
}
