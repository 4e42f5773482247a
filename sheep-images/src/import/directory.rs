//! A plain directory as the archive of a layer: sorted, so that the same files give the same bytes.
//!
//! Everything is read beneath the directory's descriptor, through no symbolic link, and nothing is taken that is mounted in it:
//! a root file system that was prepared by hand often has /proc or the host's /dev there, and an image of those is never
//! meant. As root, what lies below a mount is read instead, from a clone of the mount that has none on it; an ordinary user
//! gets an empty directory. That is said, as all is that a layer cannot have; what would mean something else in a layer is an error.

use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};
use rustix::io::Errno;
use sheep_overlay::backend::kernel;
use sheep_overlay::export::archive::{Archive, Style};
use sheep_overlay::export::{Found, fits_a_tar};
use sheep_overlay::paths::{join, split};
use sheep_overlay::walk::names_in;
use sheep_overlay::{exit, inode, layer, mountinfo, stack};

use crate::store::Store;

/// Holes are left out of files in which they are this many bytes together. A layer with such a file is taken by all tools, but
/// podman, which puts a layer together again to send it on, then finds another digest; so only where it matters.
const SPARSE: u64 = 1 << 20;
/// So many mounts are named.
const NAMED: usize = 5;

/// What a directory has and an image of it has not.
#[derive(Debug, Default)]
pub struct NotTaken {
    sockets: u64,
    mounts: Vec<PathBuf>,
    store: Option<PathBuf>,
}

/// Writes the archive of what is in `dir`, and gives what is not in it. No time is later than `latest`, in seconds. What changes
/// while it is read is an error.
pub fn pack(store: &Store, dir: &Path, latest: Option<i64>, out: impl Write) -> Result<NotTaken> {
    let (top, alone) = stack::open_alone(dir)?;
    let data = fs::metadata(store.data().path()).context("the data directory")?;
    let mut packing = Packing {
        dir,
        top,
        alone,
        data: (data.dev(), data.ino()),
        nobody: if kernel::in_user_namespace() { overflow_ids() } else { (None, None) },
        archive: Archive::new(out, Style { latest, sparse: Some(SPARSE) }),
        xattrs: Vec::new(),
        not_taken: NotTaken::default(),
    };
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        // The last one is taken next.
        pending.extend(packing.directory(&path)?.into_iter().rev());
    }
    packing.archive.finish()?.flush()?;
    let mut not_taken = packing.not_taken;
    if alone {
        let mounts = mountinfo::below(&mountinfo::read()?, &dir.canonicalize()?);
        not_taken.mounts = mounts.into_iter().map(|mount| mount.point).collect();
    }
    Ok(not_taken)
}

struct Packing<'a, W: Write> {
    dir: &'a Path,
    top: OwnedFd,
    /// Nothing is mounted on anything in it.
    alone: bool,
    /// The data directory, which would be packed into itself.
    data: (u64, u64),
    /// Who stands for users and groups that are not known here.
    nobody: (Option<u32>, Option<u32>),
    archive: Archive<W>,
    xattrs: Vec<u8>,
    not_taken: NotTaken,
}

impl<W: Write> Packing<'_, W> {
    /// Packs a directory and what is in it but for the directories, whose paths it gives, sorted.
    fn directory(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let shown = self.shown(path);
        let context = || shown.display().to_string();
        let fd = match stack::open_within(&self.top, path) {
            Err(Errno::XDEV) if !self.alone => {
                let (parent, name) = split(path);
                let parent = stack::open_within(&self.top, parent).with_context(context)?;
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).with_context(context)?;
                self.not_taken.mounts.push(shown.clone());
                let name = std::ffi::CString::new(name)?;
                self.put(&Found { path, dir: parent.as_fd(), name: &name, stat }).with_context(context)?;
                return Ok(Vec::new());
            }
            opened => opened.with_context(context)?,
        };
        let stat = fstat(&fd).with_context(context)?;
        self.put(&Found { path, dir: fd.as_fd(), name: c".", stat }).with_context(context)?;
        if (stat.st_dev, stat.st_ino) == self.data {
            if path.is_empty() {
                bail!("it is the data directory of this very program");
            }
            self.not_taken.store = Some(shown);
            return Ok(Vec::new());
        }
        let mut names = names_in(&fd, &mut vec![MaybeUninit::uninit(); 32 << 10]).with_context(context)?;
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut directories = Vec::new();
        for (name, kind) in names {
            let path = join(path, name.to_bytes());
            let mut entry = || -> Result<()> {
                if name.to_bytes().starts_with(b".wh.") {
                    bail!("in a layer a name that begins with .wh. deletes a file; rename it");
                }
                if kind == FileType::Directory {
                    directories.push(path.clone());
                    return Ok(());
                }
                let stat = match statat(&fd, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => bail!("changed while it was read; import again"),
                    stat => stat?,
                };
                if layer::is_device_whiteout(&stat) {
                    bail!(
                        "a character device 0/0, by which OverlayFS means that a file is deleted; an image cannot have one"
                    );
                }
                if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
                    self.not_taken.sockets += 1;
                    return Ok(());
                }
                self.put(&Found { path: &path, dir: fd.as_fd(), name: &name, stat })
            };
            entry().with_context(|| self.shown(&path).display().to_string())?;
        }
        if inode::changed(&fstat(&fd).with_context(context)?) != inode::changed(&stat) {
            bail!("{}: changed while it was read; import again", shown.display());
        }
        Ok(directories)
    }

    fn put(&mut self, found: &Found<'_>) -> Result<()> {
        let Stat { st_uid, st_gid, .. } = found.stat;
        if self.nobody.0 == Some(st_uid) || self.nobody.1 == Some(st_gid) {
            bail!("its owner is not known here, for your user namespace does not map him");
        }
        fits_a_tar(found, &mut self.xattrs)?;
        self.archive.put(found)
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.dir.to_path_buf() } else { self.dir.join(std::ffi::OsStr::from_bytes(path)) }
    }
}

fn overflow_ids() -> (Option<u32>, Option<u32>) {
    let read = |file: &str| fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    (read("/proc/sys/kernel/overflowuid"), read("/proc/sys/kernel/overflowgid"))
}

/// Says in one line, which begins with `what`, what an image has not of its directory.
pub fn tell(what: &str, not_taken: &NotTaken) {
    let mut parts = Vec::new();
    match not_taken.sockets {
        0 => {}
        1 => parts.push("1 socket".to_owned()),
        many => parts.push(format!("{many} sockets")),
    }
    if !not_taken.mounts.is_empty() {
        let named: Vec<String> = not_taken.mounts.iter().take(NAMED).map(|mount| mount.display().to_string()).collect();
        let more = not_taken.mounts.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        parts.push(format!(
            "what is mounted on {}{more} (tar -C DIR -c . | sheep-images import NAME - takes that too)",
            named.join(", ")
        ));
    }
    if let Some(store) = &not_taken.store {
        parts.push(format!("the images and containers in {}", store.display()));
    }
    if !parts.is_empty() {
        exit::warn("sheep-images", &format!("{what}: not in the image: {}", parts.join("; ")));
    }
}
