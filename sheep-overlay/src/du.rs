//! `du`: how much disk the changes of an overlay take, those that are put aside in its snapshots among them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, fstat, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::diff::{escaped, human};
use crate::doc::{Overlay, write_out};
use crate::find::{self, Target};
use crate::paths::join;
use crate::stack::open_within;
use crate::state::DataRoot;
use crate::{access, cli, history, parts, record, rotate, trees};

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    /// Bytes on the disk, holes not counted. What is shared with a lower by reflink is, for the file system does not say.
    pub bytes: u64,
    /// Bytes that the files have.
    pub apparent: u64,
    /// Files of all types, directories and whiteouts among them; one with several names once.
    pub files: u64,
}

/// Prints what the changes of each overlay take: a table, or a document a line with the key `du`. After an error it goes
/// on with the others; the first error is the result.
pub fn run(root: &DataRoot, args: &cli::Du) -> Result<()> {
    let targets = find::targets(root, &args.targets.overlays, args.targets.from.as_deref())?;
    let mut rows = String::new();
    let done = crate::for_each(targets, "du", |target| {
        let line = one(root, target, args.json)?;
        rows.push_str(&line);
        Ok(())
    });
    if !args.json && !rows.is_empty() {
        rows.insert_str(0, &row("DISK", "APPARENT", "FILES", "ID"));
    }
    write_out(rows.as_bytes())?;
    done
}

fn one(root: &DataRoot, target: Target, json: bool) -> Result<String> {
    let id = target.id?;
    let overlay = rotate::read(root, &id)?;
    let state = record::state(&overlay)?;
    let used = access::with(&overlay, of).with_context(|| id.clone())?;
    if !json {
        return Ok(row(&human(used.bytes), &human(used.apparent), &used.files.to_string(), &id));
    }
    let mut document = target.document;
    document.set("overlay", &record::as_seen(overlay, state))?;
    document.set("du", &used)?;
    Ok(String::from_utf8_lossy(&document.to_line()).into_owned())
}

fn row(bytes: &str, apparent: &str, files: &str, id: &str) -> String {
    format!("{bytes:>10}  {apparent:>10}  {files:>8}  {id}\n")
}

/// What the changes of an overlay take: its uppers and its snapshots, or the copy. The roots themselves are not counted.
pub fn of(overlay: &Overlay) -> Result<Used> {
    let mut sum = Sum::default();
    if record::is_copy(overlay) {
        sum.tree(&record::dir_of(overlay).join("merged"))?;
    } else {
        for tree in trees::of(overlay) {
            sum.tree(&tree.upper)?;
        }
        for snapshot in &overlay.snapshots {
            sum.layer(overlay, &snapshot.layer)?;
        }
        for copy in overlay
            .mounts
            .iter()
            .filter(|mount| mount.how == crate::doc::How::File)
            .filter_map(|mount| mount.upper.as_ref())
        {
            sum.add(&rustix::fs::stat(&**copy).with_context(|| copy.display().to_string())?);
        }
    }
    Ok(sum.used)
}

/// How many bytes on disk a directory and all below it take.
pub fn of_tree(top: &Path) -> Result<u64> {
    let mut sum = Sum::default();
    sum.tree(top)?;
    Ok(sum.used.bytes)
}

/// What a snapshot takes.
pub fn of_layer(overlay: &Overlay, layer: &str) -> Result<Used> {
    let mut sum = Sum::default();
    sum.layer(overlay, layer)?;
    Ok(sum.used)
}

/// What several trees take together: a file with several names counts once.
#[derive(Debug, Default)]
pub struct Sum {
    /// So far.
    pub used: Used,
    /// Directories that may not be read are no error.
    pass_closed: bool,
    /// So many of them there were.
    pub closed: u64,
    /// Files with several names that were counted.
    seen: HashSet<(u64, u64)>,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Sum {
    /// Nothing yet. Directories that may not be read will be passed over, and only counted in `closed`.
    pub fn of_what_is_open() -> Self {
        Sum { pass_closed: true, ..Sum::default() }
    }

    /// Adds all that is in a directory, not the directory itself. What is mounted there is no part of it, and no symbolic link is
    /// followed.
    pub fn tree(&mut self, top: &Path) -> Result<()> {
        self.tree_without(top, &[])
    }

    /// The same, but does not enter these directories, which are named from `top` on.
    pub fn tree_without(&mut self, top: &Path, left_out: &[&str]) -> Result<()> {
        let place = |path: &[u8]| top.join(OsStr::from_bytes(path)).display().to_string();
        let root = match openat(CWD, top, DIRECTORY, Mode::empty()) {
            Err(Errno::ACCESS) if self.pass_closed => {
                self.closed += 1;
                return Ok(());
            }
            opened => opened.with_context(|| place(b""))?,
        };
        let device = fstat(&root)?.st_dev;
        // Opened one at a time and from the top, so that a tree of any depth takes two descriptors.
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let dir = match open_within(&root, &path) {
                Ok(dir) if fstat(&dir)?.st_dev == device => dir,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(Errno::ACCESS) if self.pass_closed => {
                    self.closed += 1;
                    continue;
                }
                Err(e) => return Err(e).with_context(|| place(&path)),
            };
            let below = self.entries(dir.as_fd()).with_context(|| place(&path))?;
            let below = below.into_iter().map(|name| join(&path, name.to_bytes()));
            pending.extend(below.filter(|path| !left_out.iter().any(|out| out.as_bytes() == path)));
        }
        Ok(())
    }

    /// The trees of a snapshot, and its copies of files.
    fn layer(&mut self, overlay: &Overlay, layer: &str) -> Result<()> {
        let layer = history::place(overlay).join(layer);
        let parts = (0..overlay.mounts.len()).map(|number| parts::part_dir(&layer, number));
        for place in std::iter::once(layer.clone()).chain(parts) {
            let upper = place.join("upper");
            // A part that OverlayFS did not take has none.
            if upper.exists() {
                self.tree(&upper)?;
            }
            if let Ok(copy) = rustix::fs::stat(place.join("file")) {
                self.add(&copy);
            }
        }
        Ok(())
    }

    /// Counts the entries of a directory, and gives the directories among them.
    fn entries(&mut self, dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>, Errno> {
        let mut buffer = vec![MaybeUninit::<u8>::uninit(); 16 << 10];
        let mut dirs = Vec::new();
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                Ok(stat) => {
                    self.add(&stat);
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        dirs.push(name.to_owned());
                    }
                }
                // Deleted since.
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(dirs)
    }

    /// Adds one file or directory.
    pub fn add(&mut self, stat: &rustix::fs::Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.used.files += 1;
        self.used.bytes += stat.st_blocks as u64 * 512;
        if !directory {
            self.used.apparent += stat.st_size as u64;
        }
    }
}

/// The line that names a path, as `du` and `why` print it.
pub fn name_of(path: &Path) -> String {
    escaped(path.as_os_str().as_bytes())
}
