//! `mount`: a stack of directories shown as one writable tree.
//!
//! A new overlay counts once it is mounted and recorded (see [`record`]); one that was kept is mounted again in its place. Whatever fails on the way, or Ctrl-C, undoes the steps before it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::applied::known::Known;
use crate::backend::kernel;
use crate::branch::{self, Base};
use crate::cli::{self, BackendChoice, FreezeWay};
use crate::doc::{self, Backend, DocPath, Document, Overlay};
use crate::layer::Marks;
use crate::lowers;
use crate::record::{self, Building};
use crate::state::{self, DataRoot};
use crate::{PROGRAM, choose, exit, freeze, idmap, parts, stacked, sys, take_up, tmpfs, umount};

/// What was asked for.
#[derive(Debug, Default)]
pub struct Request {
    /// `--backend`; `None` where it was not given.
    pub backend: Option<BackendChoice>,
    /// `--visible`
    pub visible: bool,
    /// `--read-only`
    pub read_only: bool,
    /// `--volatile`
    pub volatile: bool,
    /// `--tmpfs`: bytes, 0 for the kernel's default.
    pub tmpfs: Option<u64>,
    /// `--size` in bytes.
    pub size: Option<u64>,
    /// `--at`: an existing directory, absolute.
    pub at: Option<PathBuf>,
    /// `--hide`
    pub hide: Vec<PathBuf>,
    /// `--idmap`
    pub idmap: Option<String>,
    /// `--freeze`
    pub freeze: Option<FreezeWay>,
    /// The lowers are the layers of an image, from a document: the next program of the pipe is to see the view.
    pub of_image: bool,
    /// `--branch`
    pub branch: Option<Base>,
    /// Not `--no-recursive`.
    pub recursive: bool,
    /// The lowers, bottom first; may be empty for an overlay that exists.
    pub lowers: Vec<PathBuf>,
}

impl Request {
    fn of(args: &cli::Mount, lowers: &[PathBuf]) -> Result<Self> {
        let tmpfs = match &args.tmpfs {
            None => None,
            Some(None) => Some(0),
            Some(Some(text)) => Some(tmpfs::size(text, "--tmpfs=")?),
        };
        let at = match &args.at {
            None => None,
            Some(dir) => Some(directory(dir)?),
        };
        Ok(Request {
            backend: args.backend,
            visible: args.visible,
            read_only: args.read_only,
            volatile: args.volatile,
            tmpfs,
            size: args.size.as_ref().map(|text| tmpfs::size(text, "--size=")).transpose()?,
            at,
            hide: args.hide.clone(),
            idmap: args.idmap.clone(),
            freeze: args.freeze,
            of_image: false,
            branch: None,
            recursive: !args.no_recursive,
            lowers: lowers.to_vec(),
        })
    }
}

/// A directory to mount on: absolute, without links.
fn directory(dir: &Path) -> Result<PathBuf> {
    let full = std::fs::canonicalize(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => exit::not_found(format!("--at {}: no such directory", dir.display())),
        _ => anyhow::Error::new(e).context(format!("--at {}", dir.display())),
    })?;
    if !full.is_dir() {
        return Err(exit::usage(format!("--at {}: not a directory", dir.display())));
    }
    Ok(full)
}

/// Mounts, and prints the document. If even that fails the mount is undone: nobody knows of it.
pub fn run(root: &DataRoot, args: &cli::Mount) -> Result<()> {
    let mut document = read_document(args)?;
    let base = args.branch.as_deref().map(|base| branch::base(root, base)).transpose()?;
    let (id, lowers) = match &base {
        Some(base) => (new_name(args)?, base.overlay.lower.iter().map(|lower| lower.0.clone()).collect()),
        None => what(root, args, &document)?,
    };
    let mut request = Request::of(args, &lowers)?;
    request.of_image = document.0.contains_key("image");
    if base.is_some() {
        branch::check(&request)?;
        request.branch = base;
    }
    check_request(root, &request)?;
    record::reap(root)?;
    let named = id.as_deref().map_or_else(|| first_of(&lowers), |id| id.to_owned());
    let mounted = match &id {
        Some(id) if request.branch.is_none() && record::exists(root, id.as_ref()) => take_up::run(root, id, &request),
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

/// The name of an overlay that is not to be there yet.
fn new_name(args: &cli::Mount) -> Result<Option<String>> {
    args.id.as_deref().map_or(Ok(()), state::check_name)?;
    Ok(args.id.clone())
}

fn layers_of(image: Image) -> Result<Vec<PathBuf>> {
    let paths: Option<Vec<PathBuf>> = image.layers.into_iter().map(|layer| layer.path.map(|path| path.0)).collect();
    match paths {
        Some(paths) if !paths.is_empty() => Ok(paths),
        _ => Err(exit::usage("the document's layers are not unpacked (no 'path'); 'sheep-images unpack' does that")),
    }
}

/// What can be refused before anything is touched.
fn check_request(root: &DataRoot, request: &Request) -> Result<()> {
    let copy = matches!(request.backend, Some(BackendChoice::Btrfs | BackendChoice::Reflink | BackendChoice::Copy));
    let root_user = rustix::process::geteuid().is_root();
    if !copy && request.lowers.len() > kernel::MAX_LOWERS {
        return Err(exit::usage(format!(
            "{} lowers, and the kernel stacks {} at most; merge some of them, or use --backend copy",
            request.lowers.len(),
            kernel::MAX_LOWERS
        )));
    }
    if copy && request.read_only && !root_user {
        return Err(exit::usage(
            "--read-only with --backend copy needs root: a plain user's copy is the user's to write",
        ));
    }
    if request.read_only && request.volatile {
        return Err(exit::usage("--read-only and --volatile exclude each other: nothing is written"));
    }
    let only_overlayfs = [
        ("--freeze", request.freeze.is_some()),
        ("--tmpfs", request.tmpfs.is_some()),
        ("--size", request.size.is_some()),
        ("--hide", !request.hide.is_empty()),
        ("--idmap", request.idmap.is_some()),
    ];
    if let (true, Some((option, _))) = (copy, only_overlayfs.iter().find(|(_, given)| *given)) {
        return Err(exit::usage(format!("{option} is for OverlayFS, and a copy is none; leave --backend out")));
    }
    if request.visible && request.backend.is_some_and(|backend| backend != BackendChoice::Auto) {
        return Err(exit::usage("--visible chooses the backend itself; leave --backend out"));
    }
    if request.backend == Some(BackendChoice::Fuse) || (request.visible && !root_user) {
        let no_kernel = [
            ("--tmpfs", request.tmpfs.is_some()),
            ("--size", request.size.is_some()),
            ("--hide", !request.hide.is_empty()),
            ("--idmap", request.idmap.is_some()),
            ("--at", request.at.is_some()),
        ];
        if let Some((option, _)) = no_kernel.iter().find(|(_, given)| *given) {
            return Err(exit::usage(format!(
                "{option} is not to be had with fuse-overlayfs (--visible, --backend fuse)"
            )));
        }
    }
    if let Some(map) = &request.idmap {
        idmap::parse(map)?;
        if !root_user {
            return Err(exit::usage("--idmap needs root: a user namespace may not map the files of others"));
        }
    }
    if request.size.is_some() && !root_user {
        return Err(exit::usage("--size needs root, who sets quotas; --tmpfs=SIZE does not"));
    }
    if let Some(hidden) = request.hide.iter().find(|path| parts::relative(path).as_os_str().is_empty()) {
        return Err(exit::usage(format!("--hide {}: the whole view cannot be hidden", hidden.display())));
    }
    if let Some(at) = &request.at {
        if at == Path::new("/") {
            return Err(exit::usage(
                "--at /: nothing may be mounted over the root; 'exec' shows an overlay of / as the root",
            ));
        }
        if at.starts_with(root.path()) || root.path().starts_with(at) && root_user {
            return Err(exit::usage(format!(
                "--at {}: it would cover the data directory {}",
                at.display(),
                root.path().display()
            )));
        }
        if copy && !root_user {
            return Err(exit::usage("--at with a copy needs root; the copy is a directory like any other"));
        }
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
    let mut overlay = Overlay::new(&id, &dir);
    overlay.lower = lowers.iter().map(|lower| lower.path.clone().into()).collect();
    overlay.read_only = request.read_only;
    overlay.volatile = request.volatile || request.tmpfs.is_some();
    overlay.user_xattrs = Marks::of_this_process() == Marks::User;
    overlay.boot_id = Some(state::boot_id()?);
    overlay.tmpfs = request.tmpfs;
    overlay.size = request.size;
    overlay.at = request.at.clone().map(DocPath);
    overlay.hide = request.hide.iter().map(|path| DocPath(path.clone())).collect();
    overlay.idmap = request.idmap.clone();
    if let Some(base) = &request.branch {
        branch::begin(&mut overlay, base);
    }
    record::place(&mut overlay, &dir);
    if overlay.at.is_some() {
        // A mount outside of the overlay's directory must be known before it is there.
        record::write_first(building.dir(), &overlay)?;
    }
    let base = match &request.branch {
        Some(base) => {
            Known::read(&record::dir(root, &base.overlay.id)).write(building.dir())?;
            if overlay.held.is_empty() { lowers } else { take_up::base_of(root, &dir, &overlay)? }
        }
        None => freeze::freeze(root, &mut overlay, building.dir(), lowers, request)?,
    };
    choose::fill(root, &mut overlay, &base, request)?;
    if matches!(overlay.backend, Backend::Kernel | Backend::Fuse) {
        stacked::note_use(root, &overlay.id, &base)?;
    }
    branch::claim(root, &overlay)?;
    match overlay.at {
        Some(_) => record::write(building.dir(), &overlay)?,
        None => record::write_first(building.dir(), &overlay)?,
    }
    building.finish()?;
    Ok((overlay, Undo::Remove))
}
