//! The files of an image as a container sees them: the layers as one, in a tar.

use std::io::Write;

use anyhow::Result;
use sheep_overlay::export;

use crate::cli::{LimitArgs, ProgressMode};
use crate::store::{LoadedImage, Store};
use crate::unpack;

/// Writes the tar. It is read from the unpacked layers, so that it has what a mount of them has.
pub fn archive(store: &Store, image: &LoadedImage, what: &str, out: &mut dyn Write) -> Result<()> {
    let (layers, left_out) = unpack::Layers::of(store, image, LimitArgs::default(), ProgressMode::Auto)?;
    unpack::tell_owners(what, left_out);
    let written = export::stack(&layers.paths, export::source_date_epoch()?, out, || layers.are_there());
    // What is deleted under a reader shows itself in many ways.
    written.map_err(|error| layers.are_there().err().unwrap_or(error))
}
