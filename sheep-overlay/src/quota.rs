//! `--size`: how much disk the changes may take, by a project quota of the file system (quotactl(2); ext4 with the feature
//! `project` and XFS, mounted with `prjquota`).

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode, OFlags, mkdir, openat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys;

/// Puts the directories (upper and work), and those of the parts to come, into a project of their own, and limits it.
pub fn limit(dir: &Path, dirs: &[&Path], bytes: u64) -> Result<()> {
    let place = open(dir)?;
    let project = free_project(&place).map_err(|e| refusal(e, dir))?;
    sys::limit_project(&place, project, bytes).map_err(|e| refusal(e, dir))?;
    let mounts = dir.join("mounts");
    mkdir(&mounts, Mode::RWXU).with_context(|| format!("mkdir {}", mounts.display()))?;
    for member in dirs.iter().copied().chain([&*mounts]) {
        sys::set_project(&open(member)?, project).with_context(|| format!("{}: set its project", member.display()))?;
    }
    Ok(())
}

/// Puts more directories into the project of `like`.
pub fn extend(like: &Path, dirs: &[&Path]) -> Result<()> {
    let project = sys::project_of(&open(like)?).map_err(|e| refusal(e, like))?;
    for member in dirs {
        sys::set_project(&open(member)?, project).with_context(|| format!("{}: set its project", member.display()))?;
    }
    Ok(())
}

/// Sets another limit for an overlay that has one.
pub fn change(dir: &Path, bytes: u64) -> Result<()> {
    let project = sys::project_of(&open(&dir.join("upper"))?).map_err(|e| refusal(e, dir))?;
    sys::limit_project(&open(dir)?, project, bytes).map_err(|e| refusal(e, dir))
}

/// Takes the limit away again, so that the project's number is free. What cannot be done harms nobody.
pub fn release(dir: &Path) {
    let release = || -> Result<()> {
        let project = sys::project_of(&open(&dir.join("upper"))?)?;
        if project != 0 {
            sys::limit_project(&open(dir)?, project, 0)?;
        }
        Ok(())
    };
    // Nothing depends on it: a project without files uses nothing.
    let _ = release();
}

fn open(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, dir, flags, Mode::empty()).with_context(|| dir.display().to_string())
}

/// A project that nobody uses: without files and without a limit.
fn free_project(place: &OwnedFd) -> Result<u32, Errno> {
    for _ in 0..64 {
        let mut bytes = [0u8; 4];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        // High numbers: the low ones are those that administrators give by hand.
        let project = u32::from_ne_bytes(bytes) & 0x3FFF_FFFF | 0x4000_0000;
        let found = sys::project_use(place, project)?;
        if found.limit == 0 && found.used == 0 {
            return Ok(project);
        }
    }
    Err(Errno::BUSY)
}

fn refusal(errno: Errno, dir: &Path) -> anyhow::Error {
    match errno {
        Errno::SRCH | Errno::NOTSUP | Errno::NOSYS | Errno::NOTTY | Errno::INVAL => anyhow!(
            "--size: the file system of {} has no project quotas switched on (mount it with prjquota; ext4 needs the feature 'project' \
             too), or use --tmpfs=SIZE",
            dir.display()
        ),
        Errno::PERM | Errno::ACCESS => anyhow!("--size: setting a quota needs root; --tmpfs=SIZE does not"),
        e => anyhow::Error::from(e).context(format!("--size: the quota of {}", dir.display())),
    }
}

/// Whether quotas can be set on the file system of `dir`; else the reason, in words.
pub fn available(dir: &Path) -> Result<()> {
    let place = open(dir)?;
    match sys::project_use(&place, 0x4000_0000) {
        Ok(_) => Ok(()),
        Err(e) => bail!(refusal(e, dir)),
    }
}
