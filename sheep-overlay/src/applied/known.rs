//! Which inodes `apply` and `--undo` left in the lower of an overlay: what they changed is no change of somebody else.
//!
//! What somebody else had changed before, and `--ours` overruled, does not become ours by being put back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::{Stat, fstat};
use serde::{Deserialize, Serialize};

use super::Journal;
use super::steps::{Work, stat};
use crate::doc::DocPath;
use crate::inode::changed;
use crate::listing::Seen;
use crate::paths::{join, split};
use crate::record;
use crate::state::{self, DataRoot, Durability};

/// The inodes, by their paths from the merged directory on (without a leading slash); number 0 where there is nothing.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<Vec<u8>, Inode>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Inode {
    path: DocPath,
    number: u64,
    changed: (i64, i64),
}

const FILE: &str = "applied.json";

impl Known {
    /// What is known in the directory of an overlay. It is not synced: where it is lost with the power, there are conflicts that are
    /// none.
    pub fn read(dir: &Path) -> Self {
        let inodes: Option<Vec<Inode>> = state::read_json(&dir.join(FILE)).ok().flatten();
        let bytes = |path: &DocPath| path.0.as_os_str().as_bytes().to_vec();
        Known(inodes.unwrap_or_default().into_iter().map(|inode| (bytes(&inode.path), inode)).collect())
    }

    /// Writes it there.
    pub fn write(&self, dir: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let inodes: Vec<&Inode> = self.0.values().collect();
        state::write_json(&dir.join(FILE), &inodes, Durability::Rebuildable)
    }

    /// Whether nothing was left at a path.
    pub fn is_gone(&self, path: &[u8]) -> bool {
        self.0.get(path).is_some_and(|inode| inode.number == 0)
    }

    /// Whether a listed inode is what was left there.
    pub fn has_seen(&self, path: &[u8], seen: &Seen) -> bool {
        self.0.get(path).is_some_and(|inode| (inode.number, inode.changed) == (seen.ino, seen.changed))
    }

    /// Notes what is at a path now.
    pub fn note(&mut self, path: &[u8], stat: Option<&Stat>) {
        let (number, changed) = stat.map_or((0, (0, 0)), |stat| (stat.st_ino, changed(stat)));
        let inode = Inode { path: PathBuf::from(OsStr::from_bytes(path)).into(), number, changed };
        self.0.insert(path.to_vec(), inode);
    }

    /// Whether what is at a path is what was left there.
    pub fn has(&self, path: &[u8], stat: &Stat) -> bool {
        self.0.get(path).is_some_and(|inode| (inode.number, inode.changed) == (stat.st_ino, changed(stat)))
    }
}

/// Notes what is in the lower of the overlay now that a transaction was undone or rolled back. `dir` is the transaction's.
pub fn note_back(root: &DataRoot, dir: &Path, journal: &Journal) -> Result<()> {
    let own = record::dir(root, &journal.overlay);
    if !journal.own || !own.join("overlay.json").exists() {
        return Ok(());
    }
    let mut known = Known::read(&own);
    let mut work = Work::open(dir, journal)?;
    let full = |place: usize, path: &[u8]| join(journal.places[place].prefix.0.as_os_str().as_bytes(), path);
    for step in journal.steps.iter().filter(|step| !step.overruled) {
        let path = step.path.0.as_os_str().as_bytes();
        let (above, name) = split(path);
        let Ok(above) = work.dir(step.place, above) else { continue };
        let there = stat(above.as_fd(), &std::ffi::CString::new(name)?)?;
        known.note(&full(step.place, path), there.filter(|there| Some(there.st_ino) == step.old).as_ref());
    }
    for directory in journal.directories.iter().filter(|directory| !directory.anothers) {
        let path = directory.path.0.as_os_str().as_bytes();
        let Ok(opened) = work.dir(directory.place, path) else { continue };
        known.note(&full(directory.place, path), Some(&fstat(&opened)?));
    }
    known.write(&own)
}
