//! The trials: a merged view made by each backend, and what must hold in it.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::backend::kernel::{self, Refused, Stack};
use crate::backend::{btrfs, copy, fuse};
use crate::child::{self, After};
use crate::doc::UserNamespace;
use crate::lowers::{self, Lower};
use crate::mountpoint;
use crate::state::DataRoot;
use crate::{remove, sys};

/// A backend that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// OverlayFS, by root.
    Kernel,
    /// OverlayFS in a user namespace.
    UserNamespace,
    /// fuse-overlayfs.
    Fuse,
    /// A btrfs snapshot.
    Btrfs,
    /// A copy that shares content.
    Reflink,
    /// A copy.
    Copy,
}

impl Trial {
    /// All of them, in the order in which `mount` prefers them.
    pub const ALL: [Trial; 6] =
        [Trial::Kernel, Trial::UserNamespace, Trial::Fuse, Trial::Btrfs, Trial::Reflink, Trial::Copy];

    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Trial::Kernel => "kernel",
            Trial::UserNamespace => "kernel, userns",
            Trial::Fuse => "fuse",
            Trial::Btrfs => "btrfs",
            Trial::Reflink => "reflink",
            Trial::Copy => "copy",
        }
    }

    /// Whether `mount` takes it of itself, whatever the lower is.
    pub fn may_be_default(self) -> bool {
        !matches!(self, Trial::Fuse | Trial::Btrfs | Trial::Reflink)
    }

    /// Tries it in an empty directory.
    pub fn run(self, dir: &Path) -> Result<()> {
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.join(name)).with_context(|| dir.join(name).display().to_string())?;
        }
        match self {
            Trial::Kernel if !rustix::process::geteuid().is_root() => bail!("only root mounts for all to see"),
            Trial::Kernel => by_overlayfs(dir, kernel::in_user_namespace()),
            Trial::UserNamespace => {
                let namespace = UserNamespace::of_this_user();
                let tried = in_namespace(dir, &namespace);
                match tried {
                    Err(error) if child::is_unmapped(&error) => {
                        in_namespace(dir, &UserNamespace::only_self())?;
                        Err(error).context("it works without subordinate ids, which cannot be mapped")
                    }
                    tried => tried,
                }
            }
            Trial::Fuse => by_fuse(dir),
            Trial::Btrfs => by_snapshot(dir),
            Trial::Reflink | Trial::Copy => {
                let (lower, merged) = (dir.join("lower"), dir.join("merged"));
                fill(&lower)?;
                copy::copy_stack(std::slice::from_ref(&lower), &merged, self == Trial::Reflink)?;
                exercise(&lower, &merged)
            }
        }
    }
}

fn in_namespace(dir: &Path, namespace: &UserNamespace) -> Result<()> {
    let tried = || by_overlayfs(dir, true);
    child::run(child::Place::New(namespace, true), After::End, tried).map(drop)
}

fn by_overlayfs(dir: &Path, user_namespace: bool) -> Result<()> {
    let (lower, merged) = (dir.join("lower"), dir.join("merged"));
    fill(&lower)?;
    let opened: Lower = lowers::open_one(&lower)?;
    kernel::mount(&Stack {
        lowers: &[&opened],
        upper: &dir.join("upper"),
        work: &dir.join("work"),
        merged: &merged,
        read_only: false,
        volatile: false,
        propagate: false,
        user_namespace,
    })?;
    let done = exercise(&lower, &merged);
    let unmounted = mountpoint::unmount(&merged).map_err(anyhow::Error::from);
    done.and(unmounted)
}

fn by_fuse(dir: &Path) -> Result<()> {
    let (lower, merged) = (dir.join("lower"), dir.join("merged"));
    fill(&lower)?;
    let stack = fuse::Stack {
        lowers: std::slice::from_ref(&lower),
        upper: &dir.join("upper"),
        work: &dir.join("work"),
        merged: &merged,
        read_only: false,
        volatile: false,
    };
    fuse::mount(&stack, &dir.join("links"))?;
    let done = exercise(&lower, &merged);
    let unmounted = fuse::unmount(&merged).map_err(anyhow::Error::from);
    done.and(unmounted)
}

fn by_snapshot(dir: &Path) -> Result<()> {
    let (lower, merged) = (dir.join("lower"), dir.join("merged"));
    fs::remove_dir(&lower)?;
    let place = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if let Err(errno) = sys::btrfs_create(&place, c"lower") {
        return Err(Refused::new(errno, "make a btrfs subvolume", "").into());
    }
    fill(&lower)?;
    btrfs::snapshot(&lower, dir, c"merged")?;
    let done = exercise(&lower, &merged);
    for name in [c"lower", c"merged"] {
        // Or they are deleted with all the rest, file by file.
        let _ = btrfs::delete(dir, name);
    }
    done
}

/// Makes a lower with one thing of each kind that is going to be changed.
fn fill(lower: &Path) -> Result<()> {
    let make = || -> std::io::Result<()> {
        fs::create_dir(lower.join("dir"))?;
        // As much as takes a block of its own: less is often kept in the inode, and shared by nothing.
        fs::write(lower.join("changed"), vec![b'.'; 8192])?;
        for name in ["deleted", "moved", "dir/inside"] {
            fs::write(lower.join(name), "as it was")?;
        }
        Ok(())
    };
    make().with_context(|| lower.display().to_string())
}

/// Changes the view, and looks whether it shows that, and the lower does not.
fn exercise(lower: &Path, merged: &Path) -> Result<()> {
    let at = |name: &str| merged.join(name);
    let step = |what: &'static str| move || format!("mounted, but {what} fails");
    fs::OpenOptions::new()
        .append(true)
        .open(at("changed"))
        .and_then(|mut file| file.write_all(b"more"))
        .with_context(step("writing to a file"))?;
    fs::remove_file(at("deleted")).with_context(step("deleting a file"))?;
    fs::rename(at("moved"), at("moved-here")).with_context(step("renaming a file"))?;
    fs::remove_dir_all(at("dir")).with_context(step("deleting a directory"))?;
    fs::create_dir(at("dir")).with_context(step("making a directory anew"))?;
    let seen = |name: &str| at(name).symlink_metadata().is_ok();
    if seen("deleted") || seen("moved") || seen("dir/inside") || !seen("moved-here") {
        return Err(anyhow!("mounted, but what was deleted or renamed is seen as before"));
    }
    let untouched = fs::read(lower.join("changed")).is_ok_and(|content| content.len() == 8192)
        && ["deleted", "moved", "dir/inside"].iter().all(|name| lower.join(name).exists());
    if untouched { Ok(()) } else { Err(anyhow!("mounted, but changes reach the lower")) }
}

/// The directory of the trials, which goes with this value.
#[derive(Debug)]
pub struct Place {
    parent: PathBuf,
    name: CString,
}

impl Place {
    /// Makes it in the data directory.
    pub fn make(root: &DataRoot) -> Result<Self> {
        sys::catch_interrupts()?;
        let name = super::scratch_name()?;
        let dir = root.path().join(&name);
        crate::state::make_private_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Place { parent: root.path().to_path_buf(), name: CString::new(name)? })
    }

    /// An error's words without the name of this directory, which means nothing to anybody, and without the error's number.
    pub fn without_its_name(&self, words: &str) -> String {
        let dir = format!("{}/{}/trial/", self.parent.display(), self.name.to_string_lossy());
        let words = words.replace(&dir, "");
        let words = words.replace(&format!(" ({})", child::ADVICE), "");
        words.split(" (os error").next().unwrap_or_default().to_owned()
    }

    /// Lets `act` work in it, and empties it again.
    pub fn with(&self, act: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if sys::interrupted() {
            bail!("interrupted");
        }
        let dir = self.parent.join(std::ffi::OsStr::from_bytes(self.name.to_bytes()));
        fs::create_dir(dir.join("trial")).with_context(|| dir.display().to_string())?;
        let done = act(&dir.join("trial"));
        let removed = remove::tree(&dir, c"trial");
        done.and(removed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = remove::tree(&self.parent, &self.name) {
            crate::exit::print_line(crate::PROGRAM, &error.context("doctor"));
        }
    }
}
