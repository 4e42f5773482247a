//! An image's unpacked layers while they are read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sheep_overlay::exit;

use super::{LeftOut, ensure};
use crate::cli::{LimitArgs, ProgressMode};
use crate::progress::Progress;
use crate::store::{LoadedImage, Store};

/// Where an image's layers are, all of them unpacked.
#[derive(Debug)]
pub struct Layers {
    /// Bottom first.
    pub paths: Vec<PathBuf>,
    inodes: Vec<Inode>,
}

impl Layers {
    /// Unpacks those that are not, and gives also what of them could not be kept.
    pub fn of(store: &Store, image: &LoadedImage, limits: LimitArgs, how: ProgressMode) -> Result<(Self, LeftOut)> {
        let left_out = ensure(store, image, limits, &Progress::start(how))?;
        let paths: Option<Vec<PathBuf>> = store.layer_paths(image).collect::<Result<_>>()?;
        let paths = paths.ok_or_else(removed)?;
        let inodes = paths.iter().map(|path| inode(path).with_context(|| path.display().to_string()));
        let inodes = inodes.collect::<Result<_>>()?;
        Ok((Layers { paths, inodes }, left_out))
    }

    /// Errors where one was removed since. A layer is renamed before anything in it is deleted: whoever has read them all, and
    /// finds them in their places then, has read them whole. So no lock keeps others waiting for a slow reader.
    pub fn are_there(&self) -> Result<()> {
        let still =
            self.paths.iter().zip(&self.inodes).all(|(path, before)| inode(path).is_ok_and(|now| now == *before));
        if still { Ok(()) } else { Err(removed()) }
    }
}

fn removed() -> anyhow::Error {
    exit::not_found("the image was removed meanwhile")
}

/// Device, number, and when it changed last, for a number is given again.
type Inode = (u64, u64, (i64, i64));

fn inode(path: &Path) -> std::io::Result<Inode> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino(), (found.ctime(), found.ctime_nsec())))
}
