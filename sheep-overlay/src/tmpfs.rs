//! `--tmpfs`: the changes in memory.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, mkdir};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};

use crate::{exit, mountpoint};

/// Mounts a tmpfs of `size` bytes (0: half of the memory) in an overlay's directory, and makes upper and work in it.
pub fn mount(dir: &Path, size: u64) -> Result<()> {
    let point = dir.join("tmpfs");
    match mkdir(&point, Mode::RWXU) {
        Err(e) if e != rustix::io::Errno::EXIST => return Err(e).with_context(|| format!("mkdir {}", point.display())),
        _ => {}
    }
    let mount = || -> rustix::io::Result<()> {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "mode", "0700")?;
        if size > 0 {
            fsconfig_set_string(&fs, "size", size.to_string())?;
        }
        fsconfig_create(&fs)?;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(&mount, "", rustix::fs::CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    mount().with_context(|| format!("mount a tmpfs on {}", point.display()))?;
    let filled = mountpoint::make_private(&point).and_then(|()| {
        for name in ["upper", "work"] {
            mkdir(point.join(name), Mode::RWXU).with_context(|| point.join(name).display().to_string())?;
        }
        Ok(())
    });
    if filled.is_err() {
        let _ = unmount(dir);
    }
    filled
}

/// Unmounts it, and so ends what is in it; that it is not mounted is no error.
pub fn unmount(dir: &Path) -> Result<()> {
    let point = dir.join("tmpfs");
    match mountpoint::at(&point)? {
        Some(_) => mountpoint::unmount(&point).map_err(anyhow::Error::from),
        None => Ok(()),
    }
}

/// The size that an option is given; `option` is all that stands before it (`--size=`). Errors with usage (2).
pub fn size(text: &str, option: &str) -> Result<u64> {
    parse_size(text).ok_or_else(|| {
        exit::usage(format!("{option}{text} is no size; write bytes, or a number with k, m, g or t: 512m"))
    })
}

/// A size as people write it: bytes, or with k, m, g, t (of 1024); `None` where it is none.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches(['b', 'B']).trim_end_matches('i');
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit.to_ascii_lowercase()),
        _ => (text, ' '),
    };
    let shift = match unit {
        ' ' => 0,
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("512m", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("1GiB", Some(1 << 30)),
            ("1mb", Some(1 << 20)),
            ("0", None),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("99999999999t", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_size(text), want, "{text}");
        }
    }
}
