//! The table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)): which mounts there are below a directory.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id, which another mount gets when this one is gone.
    pub id: u64,
    /// The device of its file system: major and minor number.
    pub device: (u32, u32),
    /// Where it is, from this process's root on.
    pub point: PathBuf,
    /// The type of its file system (`ext4`, `tmpfs`, `fuse.sshfs`).
    pub fs_type: String,
    /// The options of its file system, as the kernel shows them.
    pub options: Vec<u8>,
}

impl Entry {
    /// Whether it is an overlay with this upper directory.
    pub fn has_upper(&self, upper: &Path) -> bool {
        let wanted = [b"upperdir=", upper.as_os_str().as_bytes()].concat();
        self.options.split(|byte| *byte == b',').any(|option| option == wanted)
    }
}

/// All mounts, in the order of the table: a mount stands after the one it is mounted on.
pub fn read() -> Result<Vec<Entry>> {
    read_of(Path::new("/proc/self/mountinfo"))
}

/// All mounts that the process behind a file in /proc sees.
pub fn read_of(file: &Path) -> Result<Vec<Entry>> {
    let table = std::fs::read(file).with_context(|| file.display().to_string())?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The mounts below `dir` that can be seen, `dir` itself not among them: what lies under another mount is left out.
pub fn below(table: &[Entry], dir: &Path) -> Vec<Entry> {
    let seen = |entry: &&Entry| {
        let found = statx(CWD, &entry.point, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID);
        // What cannot be looked at (in a directory closed to this user) is in the view nevertheless.
        found.map_or(true, |found| found.stx_mnt_id == entry.id)
    };
    let inside = table.iter().filter(|entry| entry.point != dir && entry.point.starts_with(dir));
    inside.filter(seen).cloned().collect()
}

fn parse(line: &[u8]) -> Option<Entry> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let device = (device.0.parse().ok()?, device.1.parse().ok()?);
    let point = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
    let options = unescape(rest.nth(1)?);
    Some(Entry { id, device, point: OsString::from_vec(point).into(), fs_type, options })
}

/// A field: space, tab, newline and backslash stand as three octal digits.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => out.push(*first),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_unescaped() {
        for (raw, want) in [
            (&b"/plain"[..], &b"/plain"[..]),
            (b"/a\\040b", b"/a b"),
            (b"/new\\012line", b"/new\nline"),
            (b"/back\\134slash", b"/back\\slash"),
            (b"/no\\9", b"/no\\9"),
            (b"/\xff", b"/\xff"),
        ] {
            assert_eq!(unescape(raw), want);
        }
    }

    #[test]
    fn lines_with_any_number_of_optional_fields() {
        for optional in ["", "shared:1 ", "shared:1 master:2 "] {
            let line = format!("36 35 98:0 /root /mnt\\0402 rw,noatime {optional}- fuse.sshfs host:/x rw,user_id=0");
            let entry = parse(line.as_bytes()).unwrap();
            assert_eq!((entry.id, entry.device, entry.point.to_str()), (36, (98, 0), Some("/mnt 2")));
            assert_eq!((&*entry.fs_type, &*entry.options), ("fuse.sshfs", &b"rw,user_id=0"[..]));
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 /root"), None);
    }
}
