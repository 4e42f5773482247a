//! The note beside a copy, `overlay/<id>/copied`: what `diff` must know about it.
//!
//! The kernel stamps every change of an inode with its `ctime`, which no program can set. An inode of the copy that was
//! last changed in the time of the copying is as it was copied; only the others need be compared with the lowers. That
//! holds for the place of an inode too, as a rename stamps it, but for directories above it: hence the note keeps the
//! inode number of each directory.
//!
//! The file is one line of JSON, then for each directory its inode number, a space, its path, and a NUL.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use crate::state::{Durability, write_atomic};

/// Seconds and nanoseconds of a `ctime`.
pub type Time = (i64, i64);

/// What is kept about a copy.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The `ctime` of the first inode that was made.
    pub from: Time,
    /// The `ctime` of the last one.
    pub to: Time,
    /// The user that everything belongs to whose owner could not be kept.
    pub uid: u32,
    /// Likewise the group.
    pub gid: u32,
    /// The users of the lowers that could not be kept.
    pub lost_uids: BTreeSet<u32>,
    /// Likewise the groups.
    pub lost_gids: BTreeSet<u32>,
    /// The names of xattrs that could not be kept.
    pub lost_xattrs: BTreeSet<String>,
    /// Whether devices could not be made.
    pub devices_left_out: bool,
}

/// The inode numbers of the directories as they were copied, by path.
pub type Directories = HashMap<Vec<u8>, u64>;

impl Note {
    /// Whether an inode was not touched since it was copied. A time before the copying is that of a clock set back, and
    /// the very last time may be that of a change made at once: both are looked into.
    pub fn is_untouched(&self, stat: &Stat) -> bool {
        let changed = time(stat);
        self.from <= changed && changed < self.to
    }

    /// What owner and permissions of a lower inode became in the copy. Set-id bits go with the owner they stood for, as
    /// POSIX has it for `cp -p`; for a directory they mean something else.
    pub fn as_copied(&self, uid: u32, gid: u32, mode: u32, is_dir: bool) -> (u32, u32, u32) {
        let mut copied = (uid, gid, mode & 0o7777);
        if self.lost_uids.contains(&uid) && uid != self.uid {
            copied.0 = self.uid;
            copied.2 &= if is_dir { !0 } else { !0o4000 };
        }
        if self.lost_gids.contains(&gid) && gid != self.gid {
            copied.1 = self.gid;
            copied.2 &= if is_dir { !0 } else { !0o2000 };
        }
        copied
    }

    /// Writes the note for the copy at `destination`; `directories` is the second part of the file as it is to stand.
    pub(super) fn write(&self, destination: &Path, directories: &[u8]) -> Result<()> {
        let file = file_of(destination);
        let mut bytes = serde_json::to_vec(self).with_context(|| file.display().to_string())?;
        bytes.push(b'\n');
        bytes.extend_from_slice(directories);
        write_atomic(&file, &bytes, Durability::Rebuildable).with_context(|| format!("write {}", file.display()))
    }

    /// Reads the note of the copy at `destination`.
    pub fn read(destination: &Path) -> Result<(Note, Directories)> {
        let file = file_of(destination);
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        parse(&bytes).with_context(|| format!("state file {} is corrupt", file.display()))
    }
}

/// The line of a directory in the note.
pub(super) fn add_directory(list: &mut Vec<u8>, path: &[u8], inode: u64) {
    list.extend_from_slice(inode.to_string().as_bytes());
    list.push(b' ');
    list.extend_from_slice(path);
    list.push(0);
}

/// An inode's `ctime`.
pub(super) fn time(stat: &Stat) -> Time {
    (stat.st_ctime as _, stat.st_ctime_nsec as _)
}

fn file_of(destination: &Path) -> PathBuf {
    destination.with_file_name("copied")
}

fn parse(bytes: &[u8]) -> Result<(Note, Directories)> {
    let end = bytes.iter().position(|byte| *byte == b'\n').context("it has no first line")?;
    let note = serde_json::from_slice(&bytes[..end])?;
    let mut directories = Directories::new();
    let Some(rest) = bytes[end + 1..].strip_suffix(b"\0") else {
        return if bytes.len() == end + 1 { Ok((note, directories)) } else { bail!("it is cut short") };
    };
    for line in rest.split(|byte| *byte == 0) {
        let space = line.iter().position(|byte| *byte == b' ').context("a line without a path")?;
        let inode = std::str::from_utf8(&line[..space])?.parse()?;
        directories.insert(line[space + 1..].to_vec(), inode);
    }
    Ok((note, directories))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let note = Note { to: (3, 4), lost_uids: [0, 33].into(), ..Note::default() };
        let mut bytes = serde_json::to_vec(&note).unwrap();
        bytes.push(b'\n');
        assert_eq!(parse(&bytes).unwrap(), (note.clone(), Directories::new()));
        for (path, inode) in [(&b""[..], 2), (b"a b/c\nd", u64::MAX), (b"\xff", 12)] {
            add_directory(&mut bytes, path, inode);
        }
        let (read, directories) = parse(&bytes).unwrap();
        assert_eq!(read, note);
        assert_eq!(directories.len(), 3);
        assert_eq!(directories[&b"a b/c\nd"[..]], u64::MAX);
        assert!(parse(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn owners_that_are_lost_take_their_set_id_bits_along() {
        let note = Note { uid: 1000, gid: 1000, lost_uids: [0].into(), lost_gids: [8].into(), ..Note::default() };
        assert_eq!(note.as_copied(0, 1000, 0o106755, false), (1000, 1000, 0o2755));
        assert_eq!(note.as_copied(1000, 8, 0o106755, false), (1000, 1000, 0o4755));
        assert_eq!(note.as_copied(0, 8, 0o42775, true), (1000, 1000, 0o2775));
        assert_eq!(note.as_copied(7, 7, 0o6755, false), (7, 7, 0o6755));
    }
}
