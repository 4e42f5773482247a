//! Several layers made one: what lies on the same lowers with the one as with the several shows the same tree.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, openat};
use rustix::io::Errno;

use crate::carry::{Carrier, attributes};
use crate::doc::Overlay;
use crate::inode::Inode;
use crate::layer::{self, Marks};
use crate::paths::join;
use crate::shown;
use crate::stack::{Dir, Stack, open_beneath};

struct Merge<'a> {
    /// All layers: those to be merged over what they lie on.
    full: Stack,
    /// What they lie on.
    under: Stack,
    /// How many are merged: the topmost ones.
    count: usize,
    /// The merged layers, top first, where a file of theirs may get another name: where the layer is deleted when all is done.
    /// (The stacks have private clones of mounts, and no file has names in two mounts.)
    linked: Vec<Option<OwnedFd>>,
    /// What cannot get another name is copied.
    carrier: Carrier<'a>,
    listing: Vec<MaybeUninit<u8>>,
    /// Scratch space.
    names: Vec<u8>,
}

/// The directory of the layers that is looked at, opened for making links.
type Near = HashMap<usize, OwnedFd>;
/// Where something comes, and what its links are made from.
type To<'a> = (&'a OwnedFd, &'a mut Near);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Merges `layers`, which lie on `under` (both bottom first), into the new directory `to`.
pub fn merge(overlay: &Overlay, under: &[PathBuf], layers: &[PathBuf], may_link: &[bool], to: &Path) -> Result<()> {
    let marks = Marks::of(overlay);
    let full = Stack::open(&[under, layers].concat(), marks, None)?;
    let under = Stack::open(under, marks, None)?;
    rustix::fs::mkdir(to, Mode::RWXU).with_context(|| to.display().to_string())?;
    let top = openat(CWD, to, DIRECTORY, Mode::empty()).with_context(|| to.display().to_string())?;
    let open = |(layer, may_link): (&PathBuf, &bool)| -> Result<Option<OwnedFd>> {
        let opened = may_link.then(|| openat(CWD, layer, DIRECTORY, Mode::empty())).transpose();
        opened.with_context(|| layer.display().to_string())
    };
    let linked = layers.iter().zip(may_link).rev().map(open).collect::<Result<_>>()?;
    let listing = vec![MaybeUninit::uninit(); 32 << 10];
    let count = layers.len();
    let carrier = Carrier::new(top.as_fd());
    let mut merge = Merge { full, under, count, linked, carrier, listing, names: Vec::new() };
    let (root, below) = (merge.full.root()?, merge.under.root()?);
    merge.directory(b"", &root, &below, &top)
}

impl Merge<'_> {
    /// Fills a directory, and gives it its attributes at last.
    fn directory(&mut self, path: &[u8], from: &Dir, under: &Dir, to: &OwnedFd) -> Result<()> {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let count = self.count;
        let mut near = Near::new();
        for name in self.full.names_in(from, path, |layer| layer < count, &mut self.listing)? {
            self.entry(path, &name, from, under, (to, &mut near))
                .with_context(|| self.full.describe(from, 0, path, &name))?;
        }
        let (Some(fd), Some(stat)) = (from.top(), from.stat()) else { return Ok(()) };
        let done = attributes(Inode::Open(fd), Inode::Open(to.as_fd()), stat, &mut self.names);
        done.with_context(|| self.full.describe(from, 0, path, c""))
    }

    /// Whether what lies below the merged layers is seen in a directory.
    fn is_merged_with_below(&self, dir: &Dir) -> bool {
        dir.lowers().iter().any(|layer| *layer >= self.count)
    }

    fn entry(&mut self, path: &[u8], name: &CStr, from: &Dir, under: &Dir, (to, near): To<'_>) -> Result<()> {
        let below = if self.is_merged_with_below(from) { self.under.lookup(under, name, path)? } else { None };
        let Some((at, stat)) = self.full.lookup(from, name, path)? else {
            // It hides what is below, if there is something; in a directory that hides all of it, nothing is to be hidden.
            if below.is_some() {
                layer::make_whiteout(to, name)?;
            }
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let layer = from.lower_of(at);
            if let Some(Some(top)) = self.linked.get(layer) {
                if let Entry::Vacant(place) = near.entry(layer) {
                    place.insert(open_beneath(top, path)?);
                }
                match linkat(&near[&layer], name, to, name, AtFlags::empty()) {
                    Ok(()) => return Ok(()),
                    // One that may not have more names (chattr +i), or has as many as there can be.
                    Err(Errno::PERM | Errno::MLINK) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            let entry = shown::Entry { dir: from.layer(at).try_clone_to_owned()?, name: name.to_owned(), stat };
            return self.carrier.put(&entry, to.as_fd(), name, &join(path, name.to_bytes()));
        }
        let child = self.full.child(from, name, path)?;
        let child_under = self.under.child(under, name, path)?;
        mkdirat(to, name, Mode::RWXU)?;
        let made = openat(to, name, DIRECTORY, Mode::empty())?;
        let hides = below.is_some_and(|(_, stat)| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if hides && !self.is_merged_with_below(&child) {
            layer::set_opaque(&made)?;
        }
        self.directory(&join(path, name.to_bytes()), &child, &child_under, &made)
    }
}
