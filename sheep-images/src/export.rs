//! `export`: images for other tools, in the form that they take.
//!
//! - `oci`: an archive of an OCI layout (image-layout.md).
//! - `oci-dir`: the layout itself, in a directory.
//! - `docker`: an archive as `docker save` makes it.
//! - `rootfs`: the files of one image, in a tar.
//!
//! The same images give the same bytes. What is damaged ends an archive before its end, which every reader sees; where it
//! goes to a file, there is none.

mod docker;
pub mod layout;
mod members;
mod rootfs;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sheep_overlay::exit;

use crate::cli::{Export, ExportFormat};
use crate::oci::Descriptor;
use crate::place::{self, NewFile};
use crate::store::{LoadedImage, Store, position};
use crate::unpack::owner;

/// An image that is to be exported, as the index has it; of one for several platforms, what is for this machine is loaded.
#[derive(Debug)]
pub struct Wanted {
    descriptor: Descriptor,
    image: LoadedImage,
}

/// Runs the verb.
pub fn run(store: &Store, args: &Export) -> Result<()> {
    let what = format!("export {}", args.references.join(" "));
    export(store, args, &what).context(what)
}

fn export(store: &Store, args: &Export, what: &str) -> Result<()> {
    let output = args.output.as_deref();
    match args.format {
        ExportFormat::Oci => {
            let wanted = wanted(store, &args.references)?;
            write(output, args.force, |out| layout::archive(store, &wanted, None, out))
        }
        ExportFormat::Docker => {
            let wanted = wanted(store, &args.references)?;
            write(output, args.force, |out| docker::archive(store, &wanted, out))
        }
        ExportFormat::OciDir => {
            let Some(to) = output else {
                return Err(exit::usage("--format oci-dir makes a directory: say which with --output DIR"));
            };
            layout::directory(store, &wanted(store, &args.references)?, to)
        }
        ExportFormat::Rootfs => {
            let [_] = &args.references[..] else {
                return Err(exit::usage("--format rootfs is of one image"));
            };
            let [wanted] = &wanted(store, &args.references)?[..] else { return Ok(()) };
            if let Some(to) = file(output) {
                place::check_writable(to)?;
            }
            owner::over_modes(|| write(output, args.force, |out| rootfs::archive(store, &wanted.image, what, out)))
        }
    }
}

/// The images that were named, each name of one once. Errors with not found (3).
pub fn wanted(store: &Store, references: &[String]) -> Result<Vec<Wanted>> {
    let index = store.index()?;
    let mut all: Vec<Wanted> = Vec::new();
    for reference in references {
        let find = || -> Result<Wanted> {
            let descriptor = index.manifests[position(&index, reference)?].clone();
            let image = store.load(&descriptor)?;
            Ok(Wanted { descriptor, image })
        };
        let found = match references.len() {
            1 => find(),
            _ => find().with_context(|| reference.clone()),
        }?;
        if !all.iter().any(|other| other.descriptor == found.descriptor) {
            all.push(found);
        }
    }
    Ok(all)
}

/// The file that is named; `-` is stdout.
fn file(output: Option<&Path>) -> Option<&Path> {
    output.filter(|path| *path != "-")
}

/// Writes an archive to a file, or to stdout where none is named. Errors with usage (2) where that is a terminal.
pub fn write(output: Option<&Path>, replace: bool, archive: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    match file(output) {
        Some(path) => {
            let new = NewFile::begin(path, replace)?;
            let mut out = BufWriter::with_capacity(1 << 20, new.file());
            archive(&mut out)?;
            out.flush().with_context(|| path.display().to_string())?;
            drop(out);
            new.finish()
        }
        None => {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                let advice = "stdout is a terminal; an archive would be written there: --output FILE, or a pipe";
                return Err(exit::usage(advice));
            }
            let mut out = BufWriter::with_capacity(1 << 20, stdout.lock());
            archive(&mut out)?;
            out.flush().context("stdout")
        }
    }
}
