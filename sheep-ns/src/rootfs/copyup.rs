//! `tmpcopyup`: a tmpfs that begins with a copy of the directory it hides.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, mkdirat, mknodat,
    openat, readlinkat, sendfile, statat, symlinkat, utimensat,
};

/// Copies what is in `from` to `to`: files, directories, links, nodes, with owners, modes and times. A name that comes
/// up as something else when it is opened (the container may be changing it) is an error, never followed.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, c".", flags, Mode::empty())?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let shown = || name.to_string_lossy().into_owned();
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).with_context(shown)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, mode).with_context(shown)?;
                let below = openat(&from, name, flags | OFlags::NOFOLLOW, Mode::empty()).with_context(shown)?;
                let made = openat(to, name, flags | OFlags::NOFOLLOW, Mode::empty()).with_context(shown)?;
                copy(below.as_fd(), made.as_fd()).with_context(shown)?;
            }
            FileType::RegularFile => {
                let input = openat(
                    &from,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
                    Mode::empty(),
                )
                .with_context(shown)?;
                let output = openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, mode)
                    .with_context(shown)?;
                while sendfile(&output, &input, None, 1 << 24).with_context(shown)? > 0 {}
            }
            FileType::Symlink => {
                let aim = readlinkat(&from, name, Vec::new()).with_context(shown)?;
                symlinkat(aim.as_c_str(), to, name).with_context(shown)?;
            }
            kind => mknodat(to, name, kind, mode, stat.st_rdev).with_context(shown)?,
        }
        attributes(to, name, &stat).with_context(shown)?;
    }
    Ok(())
}

fn attributes(to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<()> {
    chownat(to, name, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // chown takes setuid and setgid bits away.
        chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let time = |sec, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
