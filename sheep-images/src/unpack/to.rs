//! `unpack --to`: all of an image in one plain directory, as a container sees it.
//!
//! It is copied from the unpacked layers, by the code that copies a stack where OverlayFS cannot be had. To lay the archives one
//! over the other in one directory would be another reading of whiteouts, opaque directories and links to what is below, with
//! results of its own (an entry in a directory that is a symbolic link below would go where that leads); this has what a mount
//! of the layers has. And it is quicker: nothing is decompressed, directories are copied several at once, and the file system
//! shares content where it can.
//!
//! With `--userns` an ordinary user keeps the owners: in the user namespace in which he is root, the archives are unpacked
//! anew beside the directory, since the store's layers all belong to him, and copied from there.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use sheep_overlay::backend::copy::{self, Summary};
use sheep_overlay::doc::{DocPath, UserNamespace};
use sheep_overlay::exit;

use super::{Layers, LeftOut, Received, implied, owner, receive, tell_left_out, tell_owners};
use crate::cli::{LimitArgs, ProgressMode};
use crate::place::{self, NewDirectory};
use crate::progress::Progress;
use crate::store::{LoadedImage, Store, content};
use crate::stream::{Intake, Known, Stream};

/// How layers are to be unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// How much is too much.
    pub limits: LimitArgs,
    /// How it is told how far that is: begun only when there may be threads.
    pub progress: ProgressMode,
}

/// Unpacks an image into `to`, where nothing is or an empty directory, whole or not at all, and gives the absolute path. What
/// could not be kept is said in one line that begins with `what`. With `mapped` an ordinary user keeps the owners. To be called
/// before this process has threads.
pub fn unpack_to(
    store: &Store,
    image: &LoadedImage,
    to: &Path,
    mapped: bool,
    asked: Asked,
    what: &str,
) -> Result<DocPath> {
    place::check_writable(to)?;
    let from_store = || from_store(store, image, to, asked, what);
    // A user namespace does not know the group, and in it nothing that has the group can be changed.
    let group = place::hands_on_its_group(to)?;
    if !mapped || rustix::process::geteuid().is_root() {
        return if group { from_store() } else { owner::over_modes(from_store) };
    }
    if group {
        return Err(exit::usage(
            "--userns: the directory hands on its group (chmod g+s), which your user namespace does not know",
        ));
    }
    let namespace = UserNamespace::as_root().ok_or_else(|| {
        exit::usage(
            "--userns needs ids for you in /etc/subuid and /etc/subgid, and newuidmap (Debian: uidmap); root can add them: \
             usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        )
    })?;
    owner::inside(&namespace, || from_archives(store, image, to, asked, what))
}

fn from_store(store: &Store, image: &LoadedImage, to: &Path, asked: Asked, what: &str) -> Result<DocPath> {
    let new = NewDirectory::begin(to)?;
    let (layers, mut left_out) = Layers::of(store, image, asked.limits, asked.progress)?;
    let copied = copy(&layers.paths, &new.path());
    // What is deleted under a reader shows itself in many ways.
    left_out += copied.map_err(|error| layers.are_there().err().unwrap_or(error))?;
    layers.are_there()?;
    let place = new.finish()?;
    tell_owners(what, left_out);
    Ok(DocPath(place))
}

fn from_archives(store: &Store, image: &LoadedImage, to: &Path, asked: Asked, what: &str) -> Result<DocPath> {
    let new = NewDirectory::begin(to)?;
    let (layers, mut left_out) = unpack_beside(store, image, new.scratch().path(), asked)?;
    left_out += copy(&layers, &new.path())?;
    let place = new.finish()?;
    tell_left_out(what, left_out);
    Ok(DocPath(place))
}

/// Unpacks an image's layers in `dir`, with the owners that this process may give; their paths, bottom first.
fn unpack_beside(store: &Store, image: &LoadedImage, dir: &Path, asked: Asked) -> Result<(Vec<PathBuf>, LeftOut)> {
    let mut left_out = LeftOut::default();
    let mut layers: Vec<PathBuf> = Vec::new();
    let progress = Progress::start(asked.progress);
    for (number, (descriptor, diff_id)) in image.layers().enumerate() {
        let mut one = || -> Result<PathBuf> {
            let path = dir.join(format!("layer{number}"));
            DirBuilder::new().mode(0o700).create(&path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let root = rustix::fs::open(&path, flags, Mode::empty())?;
            let source = store.open_blob(&descriptor.digest)?;
            let came = progress.add(descriptor.digest.as_str(), Some(descriptor.size));
            let known = content::known(&source, diff_id).unwrap_or(Known::Nothing);
            let intake = Intake { came, ..Intake::of_the_store(known, asked.limits.max_ratio) };
            let Received { summary, left_out: lost, implied } =
                receive(Stream::start(source, intake), root.as_fd(), asked.limits)?;
            if summary.digest != descriptor.digest || summary.diff_id != *diff_id {
                bail!("what is stored has the digest {}; import or fetch the image again", summary.digest);
            }
            left_out += lost;
            implied::complete(root.as_fd(), &implied, &layers)?;
            Ok(path)
        };
        layers.push(one().with_context(|| format!("layer {}", descriptor.digest))?);
    }
    Ok((layers, left_out))
}

/// Copies what a stack of layers (bottom first) shows into an empty directory.
fn copy(layers: &[PathBuf], to: &Path) -> Result<LeftOut> {
    if layers.is_empty() {
        // An image of nothing has a root all the same.
        fs::set_permissions(to, Permissions::from_mode(0o755)).with_context(|| to.display().to_string())?;
        return Ok(LeftOut::default());
    }
    let Summary { owners_lost, devices_left_out, xattrs_lost, .. } = copy::copy_stack(layers, to, false)?;
    Ok(LeftOut { owners: owners_lost, devices: devices_left_out, xattrs: xattrs_lost })
}
