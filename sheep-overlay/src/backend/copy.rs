//! The copy backend: a faithful copy of the stack, where OverlayFS cannot be had.
//!
//! What is kept: content with its holes (shared by reflink where the file system can), hard links, symbolic links,
//! devices, FIFOs and sockets, owners, modes, times to the nanosecond (of directories, links and the root too), and all
//! xattrs with the ACLs and file capabilities among them. What is not: OverlayFS's own xattrs, `chattr` flags, and mounts
//! below a lower, which OverlayFS does not show either. Without root, what only root can make is left out and counted.
//!
//! It ends early with an error once [`crate::sys::interrupted`] says so (checked between entries and between the pieces
//! of a big file), so that Ctrl-C can be followed by removing what was copied.

mod attributes;
pub(crate) mod data;
mod links;
pub mod note;
mod queue;
mod tree;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, fchmod, fchown, fremovexattr, fstat, openat, unlinkat};
use rustix::io::Errno;

use crate::inode::Inode;
use crate::layer::Marks;
use crate::stack::{Stack, open_beneath};
use crate::walk::Walk;
use attributes::{Defaults, Losses};
use links::Links;
use note::Note;
use queue::Queue;
use tree::{Task, Worker};

/// What a copy could not carry over, for the one line on stderr.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Files whose owner could not be kept.
    pub owners_lost: u64,
    /// Devices that could not be made.
    pub devices_left_out: u64,
    /// Extended attributes that could not be kept.
    pub xattrs_lost: u64,
    /// Whether file contents are shared with the lowers (reflink).
    pub reflinked: bool,
}

/// What the threads of a copy share.
struct Job {
    walk: Walk,
    queue: Queue<Task>,
    links: Links,
    defaults: Defaults,
    losses: Losses,
    devices_left_out: AtomicU64,
    reflinked: AtomicBool,
    only_shared: bool,
    /// The second part of the note: inode numbers of directories.
    directories: Mutex<Vec<u8>>,
    /// Directories that their owner may not search or write: their modes are set when all is done.
    late_modes: Mutex<Vec<(Vec<u8>, u32)>>,
}

/// Copies what `lowers` (bottom first) show as one tree into the empty directory `destination`, and leaves a note for
/// `diff` beside it (`copied`). Until it is done, only its owner gets into `destination`. On failure the caller removes
/// what is there; the error names the file. With `only_shared`, content that cannot be shared with a lower (reflink) is an error.
pub fn copy_stack(lowers: &[PathBuf], destination: &Path, only_shared: bool) -> Result<Summary> {
    let name = destination.display().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, destination, flags, Mode::empty()).with_context(|| name.clone())?;
    let (defaults, from) = prepare(&root).with_context(|| name.clone())?;

    let stack = Stack::open(lowers, Marks::of_this_process(), destination.parent())?;
    let walk = Walk::new(stack, root, name)?;
    let first = Task::Directory(walk.root_pending());
    let job = Job {
        walk,
        queue: Queue::new(first),
        links: Links::default(),
        losses: Losses::default(),
        defaults,
        devices_left_out: AtomicU64::new(0),
        reflinked: AtomicBool::new(false),
        only_shared,
        directories: Mutex::default(),
        late_modes: Mutex::default(),
    };
    // Two at least: one may wait for the journal while the other copies.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| Worker::new(&job).run());
        }
        Worker::new(&job).run();
    });
    job.finish(destination, from)
}

/// Makes the destination's root a place where new inodes get no more than the usual attributes, and finds out which
/// those are. Also gives the `ctime` that the copy begins at.
fn prepare(root: &OwnedFd) -> Result<(Defaults, note::Time)> {
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match fremovexattr(root, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e).context(acl),
        }
    }
    // Without set-group-id, which new inodes would inherit.
    fchmod(root, Mode::RWXU)?;
    let name = c".sheep-probe";
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let probe = openat(root, name, flags, Mode::from_raw_mode(0o777))?;
    let stat = fstat(&probe)?;
    unlinkat(root, name, AtFlags::empty())?;
    // The root may have inherited another group; it is to start as everything below it does.
    fchown(root, None, Some(Gid::from_raw(stat.st_gid)))?;
    let defaults = Defaults { uid: stat.st_uid, gid: stat.st_gid, umask: !stat.st_mode & 0o777 };
    Ok((defaults, note::time(&stat)))
}

impl Job {
    /// After the threads: modes that would have been in the way, then the root, then the note.
    fn finish(self, destination: &Path, from: note::Time) -> Result<Summary> {
        self.queue.result()?;
        let root = &self.walk.root;
        let mut late = self.late_modes.into_inner().unwrap_or_default();
        // The deepest first: above it the way is still free.
        late.sort_by(|a, b| b.0.cmp(&a.0));
        for (path, mode) in late {
            let name = || self.walk.describe_real(&path);
            let dir = open_beneath(&root.real, &path).with_context(name)?;
            Inode::Open(dir.as_fd()).chmod(mode).with_context(name)?;
        }

        let mut directories = self.directories.into_inner().unwrap_or_default();
        let Some(stat) = root.lower.stat() else { bail!("{}: the lowers have no root", self.walk.real_name) };
        let (top, real) = (root.lower.top(), Inode::Open(root.real.as_fd()));
        if let Some(top) = top {
            let mut list = Vec::new();
            Inode::Open(top).list_xattrs(&mut list).with_context(|| self.walk.real_name.clone())?;
            self.losses
                .apply(&self.defaults, Inode::Open(top), real, stat, &list, Some(0o700))
                .with_context(|| self.walk.real_name.clone())?;
        }
        let done = fstat(&root.real).with_context(|| self.walk.real_name.clone())?;
        note::add_directory(&mut directories, b"", done.st_ino);

        let devices_left_out = self.devices_left_out.into_inner();
        let mut summary = self.losses.summary();
        summary.devices_left_out = devices_left_out;
        summary.reflinked = self.reflinked.load(Ordering::Relaxed);
        let lost = self.losses.into_names();
        let note = Note {
            from,
            to: note::time(&done),
            uid: self.defaults.uid,
            gid: self.defaults.gid,
            lost_uids: lost.uids,
            lost_gids: lost.gids,
            lost_xattrs: lost.xattrs,
            devices_left_out: devices_left_out > 0,
        };
        note.write(destination, &directories)?;
        Ok(summary)
    }
}

/// Ends a copy that was interrupted.
fn interruptible() -> Result<()> {
    if crate::sys::interrupted() { bail!("interrupted") } else { Ok(()) }
}
