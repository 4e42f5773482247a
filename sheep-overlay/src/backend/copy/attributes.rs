//! Owner, permissions, xattrs and times of a copied inode, in the order that keeps them: a change of owner takes away
//! set-id bits and capabilities, a mode without `w` refuses user xattrs, and everything sets times.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::Summary;
use super::note::Note;
use crate::inode::{Inode, xattr_names};
use crate::layer;

/// The attributes that new inodes in the destination get by themselves.
pub(super) struct Defaults {
    pub uid: u32,
    pub gid: u32,
    /// The permission bits that they do not get.
    pub umask: u32,
}

/// What could not be kept, so far.
#[derive(Default)]
pub(super) struct Losses {
    names: Mutex<Names>,
    owners: AtomicU64,
    xattrs: AtomicU64,
}

/// Ids and xattrs that could not be kept.
#[derive(Default)]
pub(super) struct Names {
    pub uids: BTreeSet<u32>,
    pub gids: BTreeSet<u32>,
    pub xattrs: BTreeSet<String>,
}

impl Losses {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            owners_lost: self.owners.load(Ordering::Relaxed),
            xattrs_lost: self.xattrs.load(Ordering::Relaxed),
            ..Summary::default()
        }
    }

    pub(super) fn into_names(self) -> Names {
        self.names.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `to` the attributes of `from`: those in `stat`, and the xattrs whose names are in `list`. `mode` is what it
    /// was made with; `None` leaves it (a symbolic link has none). Calls that would change nothing are not made. Gives the
    /// mode that is right for the owner it could be given.
    pub(super) fn apply(
        &self,
        defaults: &Defaults,
        from: Inode<'_>,
        to: Inode<'_>,
        stat: &Stat,
        list: &[u8],
        mode: Option<u32>,
    ) -> Result<u32> {
        let mut wanted = stat.st_mode & 0o7777;
        if (stat.st_uid, stat.st_gid) != (defaults.uid, defaults.gid) {
            wanted = self.chown(defaults, to, stat).context("chown")?;
        }
        let xattrs = self.copy_xattrs(from, to, list)?;
        if let Some(mode) = mode
            && (xattrs || wanted != mode & !defaults.umask)
        {
            to.chmod(wanted).context("chmod")?;
        }
        to.set_times(stat).context("utimensat")?;
        Ok(wanted)
    }

    /// Sets the owner as far as we may, and gives the mode that is right for what came of it.
    fn chown(&self, defaults: &Defaults, to: Inode<'_>, stat: &Stat) -> std::io::Result<u32> {
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        let (uid_known, gid_known) = {
            let names = self.names();
            (names.uids.contains(&uid), names.gids.contains(&gid))
        };
        let wanted_uid = (uid != defaults.uid && !uid_known).then_some(uid);
        let wanted_gid = (gid != defaults.gid && !gid_known).then_some(gid);
        let refused = |e: &std::io::Error| {
            matches!(Errno::from_io_error(e), Some(Errno::PERM | Errno::INVAL | Errno::NOTSUP | Errno::OVERFLOW))
        };
        let one = |uid: Option<u32>, gid: Option<u32>| {
            if uid.is_none() && gid.is_none() {
                return Ok(true);
            }
            match to.chown(uid, gid) {
                Ok(()) => Ok(true),
                Err(e) if refused(&e) => Ok(false),
                Err(e) => Err(e),
            }
        };
        // Both at once; where that is refused, one of them may still be allowed.
        let (uid_kept, gid_kept) = match one(wanted_uid, wanted_gid)? {
            true => (true, true),
            false => (one(wanted_uid, None)?, one(None, wanted_gid)?),
        };
        let (uid_kept, gid_kept) = (uid_kept && !uid_known, gid_kept && !gid_known);
        if uid_kept && gid_kept {
            return Ok(stat.st_mode & 0o7777);
        }
        self.owners.fetch_add(1, Ordering::Relaxed);
        let mut lost = Note { uid: defaults.uid, gid: defaults.gid, ..Note::default() };
        let mut names = self.names();
        if !uid_kept {
            names.uids.insert(uid);
            lost.lost_uids.insert(uid);
        }
        if !gid_kept {
            names.gids.insert(gid);
            lost.lost_gids.insert(gid);
        }
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(lost.as_copied(uid, gid, stat.st_mode, is_dir).2)
    }

    /// Copies all xattrs but OverlayFS's own; true if there were any.
    fn copy_xattrs(&self, from: Inode<'_>, to: Inode<'_>, list: &[u8]) -> Result<bool> {
        let mut any = false;
        let mut value = Vec::new();
        for name in xattr_names(list).filter(|name| !layer::is_overlay_xattr(name.to_bytes())) {
            any = true;
            let shown = || format!("xattr {}", name.to_string_lossy());
            from.get_xattr(name, &mut value).with_context(shown)?;
            match to.set_xattr(name, &value) {
                Ok(()) => {}
                Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::NOTSUP | Errno::ACCESS)) => {
                    self.xattrs.fetch_add(1, Ordering::Relaxed);
                    self.names().xattrs.insert(name.to_string_lossy().into_owned());
                }
                Err(e) => return Err(e).with_context(shown),
            }
        }
        Ok(any)
    }
}
