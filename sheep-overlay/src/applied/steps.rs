//! What a transaction does to its target, step by step, and how each step is taken back.
//!
//! A step is one rename: what is in the slot and what is at the path change places, or one of them moves where the other
//! has nothing. Which of the two it was before is told by the inode numbers, so that a step is never done twice, and what
//! somebody else put at the path meanwhile is never taken for ours.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, fremovexattr, fstat, futimens, openat,
    renameat_with, statat, syncfs, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Journal, open_dir, open_slots, open_target};
use crate::diff::escaped;
use crate::doc::DocPath;
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::paths::split;
use crate::stack::open_within;

/// One rename. Its slot is its number in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which of the journal's places.
    pub place: usize,
    /// From the place's target on, without a leading slash.
    pub path: DocPath,
    /// The inode number of what is there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<u64>,
    /// That of what is there afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<u64>,
    /// The times of a directory that is there before: some file systems take a move for a change of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_times: Option<Times>,
    /// Those of a directory that is there afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_times: Option<Times>,
    /// Somebody else's change was overruled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overruled: bool,
}

/// The times of a directory, each in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Of the last access.
    pub accessed: (i64, u64),
    /// Of the last modification.
    pub modified: (i64, u64),
}

impl Times {
    fn of(stat: &Stat) -> Self {
        Times { accessed: (stat.st_atime, stat.st_atime_nsec), modified: (stat.st_mtime, stat.st_mtime_nsec) }
    }

    /// Those of a directory; none for anything else.
    pub fn of_directory(stat: &Stat) -> Option<Self> {
        (FileType::from_raw_mode(stat.st_mode) == FileType::Directory).then(|| Times::of(stat))
    }

    fn stamps(self) -> Timestamps {
        let time = |(seconds, nanoseconds): (i64, u64)| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
        Timestamps { last_access: time(self.accessed), last_modification: time(self.modified) }
    }
}

/// A directory that stays, with other attributes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Which of the journal's places.
    pub place: usize,
    /// From the place's target on; empty for the target itself.
    pub path: DocPath,
    /// Its attributes before.
    pub old: Attributes,
    /// Its attributes afterwards.
    pub new: Attributes,
    /// Somebody else had changed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anothers: bool,
}

/// The attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    /// The permission bits.
    pub mode: u32,
    /// The user and the group.
    pub owner: (u32, u32),
    /// Its times.
    #[serde(flatten)]
    pub times: Times,
    /// The extended attributes, in base64, sorted.
    pub xattrs: Vec<(String, String)>,
}

impl Attributes {
    /// Those of an open directory.
    pub fn of(dir: BorrowedFd<'_>) -> Result<Self> {
        let stat = fstat(dir)?;
        let inode = Inode::Open(dir);
        let (mut names, mut value, mut xattrs) = (Vec::new(), Vec::new(), Vec::new());
        inode.list_xattrs(&mut names)?;
        for name in xattr_names(&names).filter(|name| counts(name.to_bytes())) {
            inode.get_xattr(name, &mut value)?;
            xattrs.push((encode(name.to_bytes()), encode(&value)));
        }
        xattrs.sort();
        Ok(Attributes {
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            times: Times::of(&stat),
            xattrs,
        })
    }

    /// Sets them on an open directory, as far as they differ.
    fn set(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let now = Attributes::of(dir)?;
        let inode = Inode::Open(dir);
        if now.owner != self.owner {
            inode.chown(Some(self.owner.0), Some(self.owner.1)).context("chown")?;
        }
        for (name, _) in now.xattrs.iter().filter(|(name, _)| !self.xattrs.iter().any(|(kept, _)| kept == name)) {
            fremovexattr(dir, &*CString::new(decode(name)?)?).context("remove an xattr")?;
        }
        for (name, value) in self.xattrs.iter().filter(|xattr| !now.xattrs.contains(xattr)) {
            inode.set_xattr(&CString::new(decode(name)?)?, &decode(value)?).context("set an xattr")?;
        }
        // The owner, and an ACL, may have changed it.
        if fstat(dir)?.st_mode & 0o7777 != self.mode {
            inode.chmod(self.mode).context("chmod")?;
        }
        Ok(futimens(dir, &self.times.stamps())?)
    }
}

fn counts(name: &[u8]) -> bool {
    !layer::is_overlay_xattr(name) && !name.starts_with(b"security.")
}

fn encode(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn decode(text: &str) -> Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).context("the journal's base64")
}

/// The places of a transaction, opened.
pub struct Work {
    places: Vec<Open>,
}

struct Open {
    target: OwnedFd,
    slots: OwnedFd,
    /// The directory that was used last.
    near: Option<(Vec<u8>, OwnedFd)>,
}

impl Work {
    /// Opens targets and slots. `dir` is the transaction's.
    pub fn open(dir: &Path, journal: &Journal) -> Result<Self> {
        let open =
            |place: &super::Place| Ok(Open { target: open_target(place)?, slots: open_slots(dir, place)?, near: None });
        Ok(Work { places: journal.places.iter().map(open).collect::<Result<_>>()? })
    }

    /// Does all of it. On an error some steps are done, and are to be taken back with [`Work::backward`]. `seen` has
    /// for each step what was at its path when it was planned.
    pub fn forward(&mut self, journal: &Journal, seen: &[Option<Stat>]) -> Result<()> {
        self.open_up(journal)?;
        for (number, step) in journal.steps.iter().enumerate() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let path = step.path.0.as_os_str().as_bytes();
            let shown = || format!("/{}", escaped(path));
            let (at, slot, dir, name) = self.find(step, number).with_context(shown)?;
            if (at, slot) != (step.old, step.new) {
                bail!("{}: changed while the changes were applied", shown());
            }
            let slots = self.places[step.place].slots.as_fd();
            rename(dir.as_fd(), &name, slots, number, at.is_some(), slot.is_some()).with_context(shown)?;
            let displaced = stat(slots, &slot_name(number))?;
            let matter = |stat: &Stat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_mode);
            if displaced.as_ref().map(matter) != seen.get(number).and_then(|seen| seen.as_ref()).map(matter) {
                // Whoever it was was quicker: it is his.
                rename(dir.as_fd(), &name, slots, number, slot.is_some(), displaced.is_some()).with_context(shown)?;
                bail!("{}: changed while the changes were applied", shown());
            }
        }
        self.set_times(journal, |step| (step.new, step.new_times))?;
        // The deepest first: above it the way is still free.
        for directory in journal.directories.iter().rev() {
            let dir = self.directory(directory)?;
            directory.new.set(dir.as_fd()).with_context(|| directory.path.display().to_string())?;
        }
        Ok(())
    }

    /// Takes back what is done of it, and gives the paths that were left as they are because somebody else has changed
    /// them. The steps in `keep` are left as they are, too.
    pub fn backward(&mut self, journal: &Journal, keep: &[usize]) -> Result<Vec<String>> {
        self.open_up(journal)?;
        let mut left = Vec::new();
        for (number, step) in journal.steps.iter().enumerate().rev().filter(|(number, _)| !keep.contains(number)) {
            let path = step.path.0.as_os_str().as_bytes();
            let shown = || format!("/{}", escaped(path));
            let (at, slot, dir, name) = match self.find(step, number) {
                Ok(found) => found,
                Err(error) if is_no_directory(&error) => {
                    left.push(shown());
                    continue;
                }
                Err(error) => return Err(error.context(shown())),
            };
            // The slot alone tells whether the step was done.
            if slot == step.new {
                continue;
            }
            if (at, slot) != (step.new, step.old) {
                left.push(shown());
                continue;
            }
            let slots = self.places[step.place].slots.as_fd();
            rename(dir.as_fd(), &name, slots, number, at.is_some(), slot.is_some()).with_context(shown)?;
        }
        self.set_times(journal, |step| (step.old, step.old_times))?;
        for directory in journal.directories.iter().rev() {
            match self.directory(directory) {
                Ok(dir) => directory.old.set(dir.as_fd()).with_context(|| directory.path.display().to_string())?,
                // Somebody else has deleted it.
                Err(error) if is_no_directory(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Sets the times of directories that have moved to where they are to be: `wanted` says which and what.
    fn set_times(&mut self, journal: &Journal, wanted: impl Fn(&Step) -> (Option<u64>, Option<Times>)) -> Result<()> {
        for (number, step) in journal.steps.iter().enumerate() {
            let (ino, Some(times)) = wanted(step) else { continue };
            let Ok((at, _, dir, name)) = self.find(step, number) else { continue };
            if at != ino {
                continue;
            }
            utimensat(&dir, &*name, &times.stamps(), AtFlags::SYMLINK_NOFOLLOW)
                .with_context(|| format!("/{}", escaped(step.path.0.as_os_str().as_bytes())))?;
        }
        Ok(())
    }

    /// Puts back what one slot holds, whatever is at its path now, which goes into the slot.
    pub fn force_back(&mut self, step: &Step, number: usize) -> Result<()> {
        let (at, slot, dir, name) = self.find(step, number)?;
        let slots = self.places[step.place].slots.as_fd();
        match (at, slot) {
            (None, None) => Ok(()),
            (at, slot) => Ok(rename(dir.as_fd(), &name, slots, number, at.is_some(), slot.is_some())?),
        }
    }

    /// Makes what was done in the targets durable.
    pub fn sync(&self) -> Result<()> {
        let mut done = HashSet::new();
        for place in &self.places {
            if done.insert(fstat(&place.target)?.st_dev) {
                syncfs(&place.target)?;
            }
        }
        Ok(())
    }

    /// The inode numbers at a step's path and in its slot, the directory of the path, and the name in it.
    #[allow(clippy::type_complexity)]
    pub fn find(&mut self, step: &Step, number: usize) -> Result<(Option<u64>, Option<u64>, OwnedFd, CString)> {
        let (dir, name) = split(step.path.0.as_os_str().as_bytes());
        let dir = self.dir(step.place, dir)?;
        let name = CString::new(name).context("a name with a NUL")?;
        let at = stat(dir.as_fd(), &name)?.map(|stat| stat.st_ino);
        let slot = stat(self.places[step.place].slots.as_fd(), &slot_name(number))?.map(|stat| stat.st_ino);
        Ok((at, slot, dir, name))
    }

    /// A directory that its owner may not be able to read yet.
    fn openable(&mut self, directory: &Directory) -> Result<OwnedFd> {
        let (above, name) = split(directory.path.0.as_os_str().as_bytes());
        let above = self.dir(directory.place, above)?;
        let name = CString::new(if name.is_empty() { b"." } else { name })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&above, &*name, flags, Mode::empty())?)
    }

    fn directory(&mut self, directory: &Directory) -> Result<OwnedFd> {
        self.dir(directory.place, directory.path.0.as_os_str().as_bytes())
            .with_context(|| format!("/{}", escaped(directory.path.0.as_os_str().as_bytes())))
    }

    /// Opens a directory of a target.
    pub fn dir(&mut self, place: usize, path: &[u8]) -> Result<OwnedFd> {
        let place = &mut self.places[place];
        if let Some((near, dir)) = &place.near
            && near == path
        {
            return Ok(dir.try_clone()?);
        }
        let dir = open_within(place.target.as_fd(), path)?;
        place.near = Some((path.to_vec(), dir.try_clone()?));
        Ok(dir)
    }

    /// Lets their owner, who is not root, write into all directories that are to be changed. What they were stands in
    /// the journal.
    fn open_up(&mut self, journal: &Journal) -> Result<()> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        // Parents come first.
        for directory in &journal.directories {
            let Ok(dir) = self.openable(directory) else { continue };
            let mode = fstat(&dir)?.st_mode;
            if mode & 0o700 != 0o700 {
                // The descriptor names a directory and no more: /proc makes a path of it.
                rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::from_raw_mode(mode | 0o700))?;
            }
        }
        Ok(())
    }
}

fn is_no_directory(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Errno>(), Some(&(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)))
}

/// The name of a slot.
pub fn slot_name(number: usize) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}

/// What a name in a directory is; `None` where there is nothing.
pub fn stat(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The one rename of a step. `here` and `there` say whether there is something at the path, and in the slot.
fn rename(
    dir: BorrowedFd<'_>,
    name: &CString,
    slots: BorrowedFd<'_>,
    number: usize,
    here: bool,
    there: bool,
) -> Result<()> {
    let slot = slot_name(number);
    let done = match (here, there) {
        (true, true) => renameat_with(slots, &*slot, dir, &**name, RenameFlags::EXCHANGE),
        (true, false) => renameat_with(dir, &**name, slots, &*slot, RenameFlags::NOREPLACE),
        (false, true) => renameat_with(slots, &*slot, dir, &**name, RenameFlags::NOREPLACE),
        (false, false) => return Ok(()),
    };
    done.map_err(|e| match e {
        Errno::INVAL => anyhow::anyhow!("this file system cannot exchange two names (RENAME_EXCHANGE)"),
        Errno::BUSY => anyhow::anyhow!("something is mounted there"),
        e => anyhow::Error::from(e).context("rename"),
    })
}

/// Does something in a directory that is to leave no trace in its times.
pub fn keeping_times(dir: &Path, act: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    let opened = open_dir(dir)?;
    let before = fstat(&opened)?;
    act()?;
    // Who may not set them may not change the directory either.
    let _ = Inode::Open(opened.as_fd()).set_times(&before);
    Ok(())
}
