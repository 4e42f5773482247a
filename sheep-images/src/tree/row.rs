//! A line of `tree`: what one layer has at one path.

use std::ffi::OsStr;
use std::io::{BufWriter, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use rustix::fs::{FileType, Stat, major, minor};
use serde_json::{Map, Value};
use sheep_overlay::diff::{Aspect, Kind, escaped};
use sheep_overlay::doc::name_to_json;

use crate::ls::human_size;

/// What one layer has at one path.
pub(super) struct Row {
    /// From 0 at the bottom; people count from 1.
    pub layer: usize,
    /// What it does; `None` where it has the same as the layers below.
    pub change: Option<Kind>,
    pub what: Vec<Aspect>,
    /// Absent of a whiteout.
    pub stat: Option<Stat>,
    /// Where a symbolic link leads.
    pub target: Option<Vec<u8>>,
    /// The layer that hides it.
    pub hidden: Option<usize>,
}

/// How lines are written.
pub(super) struct Writer {
    pub out: BufWriter<StdoutLock<'static>>,
    pub json: bool,
    /// Of the layers, bottom first.
    pub diff_ids: Vec<String>,
}

impl Writer {
    /// The headings of the table.
    pub(super) fn head(&mut self) -> Result<()> {
        match self.json {
            true => Ok(()),
            false => self.out.write_all(b"       SIZE  LAYER  PATH\n").context("stdout"),
        }
    }

    /// Appends the line of a row.
    pub(super) fn line(&self, path: &[u8], row: &Row, lines: &mut Vec<u8>) -> Result<()> {
        let path = [b"/", path].concat();
        if self.json {
            serde_json::to_writer(&mut *lines, &self.document(&path, row))?;
            lines.push(b'\n');
            return Ok(());
        }
        let mark = row.change.map_or('=', Kind::letter);
        let size = row.stat.as_ref().and_then(size).map_or_else(String::new, human_size);
        write!(lines, "{mark} {size:>9}  {:>5}  {}", row.layer + 1, escaped(&path))?;
        if let Some(target) = &row.target {
            write!(lines, " -> {}", escaped(target))?;
        }
        if let Some(by) = row.hidden {
            write!(lines, "  (hidden by {})", by + 1)?;
        }
        lines.push(b'\n');
        Ok(())
    }

    fn document(&self, path: &[u8], row: &Row) -> Value {
        let name = |bytes: &[u8]| name_to_json(OsStr::from_bytes(bytes));
        let mut document = Map::new();
        let mut set = |key: &str, value: Value| drop(document.insert(key.to_owned(), value));
        set("path", name(path));
        set("layer", (row.layer + 1).into());
        set("diffId", self.diff_ids[row.layer].as_str().into());
        set("change", row.change.map_or("same", Kind::name).into());
        if !row.what.is_empty() {
            set("what", row.what.iter().map(|aspect| aspect.name()).collect());
        }
        if let Some(stat) = &row.stat {
            let kind = FileType::from_raw_mode(stat.st_mode);
            set("type", type_name(kind).into());
            set("mode", format!("{:04o}", stat.st_mode & 0o7777).into());
            set("uid", stat.st_uid.into());
            set("gid", stat.st_gid.into());
            if let Some(size) = size(stat) {
                set("size", size.into());
            }
            set("mtime", time(stat).into());
            if kind != FileType::Directory && stat.st_nlink > 1 {
                set("links", stat.st_nlink.into());
            }
            if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                set("device", format!("{}:{}", major(stat.st_rdev), minor(stat.st_rdev)).into());
            }
        }
        if let Some(target) = &row.target {
            set("target", name(target));
        }
        if let Some(by) = row.hidden {
            set("hiddenBy", (by + 1).into());
        }
        Value::Object(document)
    }
}

/// Of what has one: files and symbolic links.
fn size(stat: &Stat) -> Option<u64> {
    let has = matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink);
    has.then(|| stat.st_size.try_into().unwrap_or_default())
}

/// RFC 3339; a time outside of what that can say, in seconds since 1970.
fn time(stat: &Stat) -> String {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    jiff::Timestamp::new(stat.st_mtime, nanoseconds)
        .map_or_else(|_| format!("@{}", stat.st_mtime), |time| time.to_string())
}

/// The type of a file in documents.
pub(super) fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharacterDevice => "charDevice",
        FileType::BlockDevice => "blockDevice",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Unknown => "unknown",
    }
}
