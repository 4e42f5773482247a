//! `mount`: a stack of directories shown as one writable tree.
//!
//! A new overlay counts once it is mounted and recorded (see [`record`]); one that was kept is mounted again in its place. Whatever fails on the way, or Ctrl-C, undoes the steps before it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::backend::copy::{self, Summary};
use crate::backend::kernel::{self, Stack};
use crate::cli::{self, BackendChoice};
use crate::doc::{self, Backend, DocPath, Document, Overlay};
use crate::layer::Marks;
use crate::lowers::{self, Lower};
use crate::record::{self, Building};
use crate::state::{self, DataRoot};
use crate::{PROGRAM, exit, mountpoint, stacked, sys, take_up, umount, upper};

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    /// `--backend`; `None` where it was not given.
    pub backend: Option<BackendChoice>,
    /// `--read-only`
    pub read_only: bool,
    /// `--volatile`
    pub volatile: bool,
    /// The lowers, bottom first; may be empty for an overlay that exists.
    pub lowers: Vec<PathBuf>,
}

/// Mounts, and prints the document. If even that fails the mount is undone: nobody knows of it.
pub fn run(root: &DataRoot, args: &cli::Mount) -> Result<()> {
    let mut document = read_document(args)?;
    let (id, lowers) = what(root, args, &document)?;
    let request =
        Request { backend: args.backend, read_only: args.read_only, volatile: args.volatile, lowers: lowers.clone() };
    check_request(&request)?;
    record::reap(root)?;
    let named = id.as_deref().map_or_else(|| first_of(&lowers), |id| id.to_owned());
    let mounted = match &id {
        Some(id) if record::exists(root, id.as_ref()) => take_up::run(root, id, &request),
        _ => create(root, id, &request),
    };
    let (overlay, undo) = mounted.map_err(interruption).with_context(|| format!("mount {named}"))?;
    let told = document
        .set("overlay", &overlay)
        .and_then(|()| if sys::interrupted() { Err(anyhow!("interrupted")) } else { Ok(()) })
        .and_then(|()| document.print("overlay", args.print.as_deref()));
    if let Err(error) = told {
        undo_all(root, &overlay, undo);
        return Err(interruption(error));
    }
    Ok(())
}

/// How to go back behind a mount.
#[derive(Debug)]
pub enum Undo {
    /// It was made just now: it goes altogether.
    Remove,
    /// It was taken up: it is kept, with the record it had.
    Restore(Box<Overlay>),
}

fn undo_all(root: &DataRoot, overlay: &Overlay, undo: Undo) {
    let undone = match undo {
        Undo::Remove => umount::drop_overlay(root, &overlay.id),
        Undo::Restore(before) => umount::keep_overlay(root, &overlay.id)
            .and_then(|_| record::write(&record::dir(root, &overlay.id), &before)),
    };
    if let Err(error) = undone {
        exit::print_line(PROGRAM, &error.context("undo"));
    }
}

/// An error while a signal waits: everything is undone, so it may end the program now.
fn interruption(error: anyhow::Error) -> anyhow::Error {
    sys::die_of_interrupt();
    error
}

fn first_of(lowers: &[PathBuf]) -> String {
    lowers.last().map(|lower| lower.display().to_string()).unwrap_or_default()
}

fn read_document(args: &cli::Mount) -> Result<Document> {
    match (&args.from, args.lowers.as_slice()) {
        (Some(source), _) => doc::read_document(source),
        (None, [only]) if only == "-" => doc::read_document(only),
        (None, lowers) if lowers.iter().any(|lower| lower == "-") => {
            Err(exit::usage("'-' (a document) stands alone; a directory of that name is './-'"))
        }
        _ => Ok(Document::default()),
    }
}

#[derive(Deserialize)]
struct Image {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    path: Option<DocPath>,
}

/// The id (if it is given) and the lowers that the command line and the document ask for. A document that has an overlay
/// of this data directory means that one; another is made on the layers of its image.
fn what(root: &DataRoot, args: &cli::Mount, document: &Document) -> Result<(Option<String>, Vec<PathBuf>)> {
    if let Some(id) = &args.id {
        state::check_name(id)?;
    }
    let named: Vec<&OsString> = args.lowers.iter().filter(|lower| *lower != "-").collect();
    if !named.is_empty() {
        return Ok((args.id.clone(), named.into_iter().map(PathBuf::from).collect()));
    }
    if document.0.is_empty() && args.from.is_none() && args.lowers.is_empty() {
        return Ok((args.id.clone(), Vec::new()));
    }
    let overlay: Option<Overlay> = document.get("overlay")?;
    let mut id = args.id.clone();
    if let (None, Some(overlay)) = (&id, &overlay) {
        state::check_name(&overlay.id)?;
        let dir = record::dir(root, &overlay.id);
        if *overlay.merged == dir.join("merged") && record::exists(root, overlay.id.as_ref()) {
            id = Some(overlay.id.clone());
        }
    }
    let image: Option<Image> = document.get("image")?;
    let lowers = match (image, overlay) {
        (Some(image), _) => layers_of(image)?,
        (None, Some(overlay)) => overlay.lower.into_iter().map(|lower| lower.0).collect(),
        (None, None) => {
            let wanted = "the document has neither 'image' nor 'overlay'; 'sheep-images unpack' makes one that fits";
            return Err(exit::usage(wanted));
        }
    };
    if let Some(lower) = lowers.iter().find(|lower| !lower.is_absolute()) {
        return Err(exit::usage(format!("the document's layer {} is not an absolute path", lower.display())));
    }
    Ok((id, lowers))
}

fn layers_of(image: Image) -> Result<Vec<PathBuf>> {
    let paths: Option<Vec<PathBuf>> = image.layers.into_iter().map(|layer| layer.path.map(|path| path.0)).collect();
    match paths {
        Some(paths) if !paths.is_empty() => Ok(paths),
        _ => Err(exit::usage("the document's layers are not unpacked (no 'path'); 'sheep-images unpack' does that")),
    }
}

/// What can be refused before anything is touched.
fn check_request(request: &Request) -> Result<()> {
    let copy = request.backend == Some(BackendChoice::Copy);
    if !copy && request.lowers.len() > kernel::MAX_LOWERS {
        return Err(exit::usage(format!(
            "{} lowers, and the kernel stacks {} at most; merge some of them, or use --backend copy",
            request.lowers.len(),
            kernel::MAX_LOWERS
        )));
    }
    if copy && request.read_only && !rustix::process::geteuid().is_root() {
        return Err(exit::usage(
            "--read-only with --backend copy needs root: a plain user's copy is the user's to write",
        ));
    }
    if request.read_only && request.volatile {
        return Err(exit::usage("--read-only and --volatile exclude each other: nothing is written"));
    }
    Ok(())
}

fn create(root: &DataRoot, id: Option<String>, request: &Request) -> Result<(Overlay, Undo)> {
    if request.lowers.is_empty()
        && let Some(id) = &id
    {
        return Err(exit::not_found(format!("{id}: no such overlay to take up; to make it, name its LOWERs")));
    }
    let id = match id {
        Some(id) => id,
        None => state::new_id()?,
    };
    let dir = record::dir(root, &id);
    // Until the record names them, no layer is removed.
    let _layers = root.lock_layers_for_use()?;
    let lowers = lowers::open(root, Some(&dir), &request.lowers)?;
    sys::catch_interrupts()?;
    let building = Building::begin(root, &id)?;
    if let Some(top) = lowers.last() {
        upper::take_attributes(top, &building.dir().join("upper"))?;
    }
    let mut overlay = Overlay::new(&id, &dir);
    overlay.lower = lowers.iter().map(|lower| lower.path.clone().into()).collect();
    overlay.read_only = request.read_only;
    overlay.volatile = request.volatile;
    overlay.user_xattrs = Marks::of_this_process() == Marks::User;
    overlay.boot_id = Some(state::boot_id()?);
    fill(&mut overlay, building.dir(), &lowers, request.backend)?;
    if overlay.backend == Backend::Kernel {
        stacked::note_use(root, &overlay.id, &lowers)?;
    }
    record::write_first(building.dir(), &overlay)?;
    building.finish()?;
    Ok((overlay, Undo::Remove))
}

/// Makes the merged view of a new overlay in `dir`, and notes how in `overlay`.
fn fill(overlay: &mut Overlay, dir: &Path, lowers: &[Lower], choice: Option<BackendChoice>) -> Result<()> {
    let choice = choice.unwrap_or(BackendChoice::Auto);
    let refused = if choice == BackendChoice::Copy {
        "asked for with --backend copy".to_owned()
    } else {
        match mount_kernel(overlay, dir, lowers) {
            Ok(()) => return Ok(()),
            Err(refused) if choice == BackendChoice::Kernel || !refused.a_copy_may_do() => {
                return Err(fault(refused, lowers));
            }
            Err(refused) => format!("OverlayFS cannot be had: {refused}"),
        }
    };
    if overlay.read_only && !rustix::process::geteuid().is_root() {
        return Err(anyhow!("{refused}; and --read-only needs root with a copy"));
    }
    let merged = dir.join("merged");
    let paths: Vec<PathBuf> = lowers.iter().map(|lower| lower.path.clone()).collect();
    let summary = copy::copy_stack(&paths, &merged)?;
    overlay.backend = Backend::Copy;
    overlay.backend_reason = refused;
    overlay.volatile = false;
    if overlay.read_only {
        mountpoint::bind_read_only(&merged)?;
        overlay.mount_id = mountpoint::at(&merged)?.and_then(|mount| mount.id);
    }
    if let Some(line) = copy_line(choice, &overlay.backend_reason, &summary) {
        exit::warn(PROGRAM, &format!("mount: {line}"));
    }
    Ok(())
}

/// An error of the kernel backend, with its exit code.
pub fn fault(refused: kernel::Refused, lowers: &[Lower]) -> anyhow::Error {
    match lowers::nested(lowers) {
        Some((inner, outer)) if refused.is_loop() => {
            exit::usage(format!("lower {} lies inside lower {}", inner.display(), outer.display()))
        }
        _ => refused.into(),
    }
}

/// Mounts by OverlayFS what `overlay` says, in `dir`, and notes the mount.
pub fn mount_kernel(overlay: &mut Overlay, dir: &Path, lowers: &[Lower]) -> Result<(), kernel::Refused> {
    let (upper, work, merged) = (dir.join("upper"), dir.join("work"), dir.join("merged"));
    let stack = Stack {
        lowers,
        upper: &upper,
        work: &work,
        merged: &merged,
        read_only: overlay.read_only,
        volatile: overlay.volatile,
        user_namespace: kernel::in_user_namespace(),
    };
    let mount = kernel::mount(&stack)?;
    overlay.mount_id = mount.and_then(|mount| mount.id);
    overlay.backend = Backend::Kernel;
    overlay.backend_reason = "OverlayFS is to be had".to_owned();
    Ok(())
}

/// The line for stderr: always where the user did not ask for a copy, else only where it is not a faithful one.
fn copy_line(choice: BackendChoice, reason: &str, summary: &Summary) -> Option<String> {
    let mut losses = Vec::new();
    if summary.owners_lost > 0 {
        losses.push(format!("{} owners not kept", summary.owners_lost));
    }
    if summary.xattrs_lost > 0 {
        losses.push(format!("{} extended attributes not kept", summary.xattrs_lost));
    }
    if summary.devices_left_out > 0 {
        losses.push(format!("{} devices left out", summary.devices_left_out));
    }
    let losses = losses.join(", ");
    match (choice, losses.is_empty()) {
        (BackendChoice::Copy, true) => None,
        (BackendChoice::Copy, false) => Some(format!("the copy is not complete without root: {losses}")),
        (_, true) => Some(format!("the lowers were copied ({reason})")),
        (_, false) => Some(format!("the lowers were copied ({reason}); without root: {losses}")),
    }
}
