//! The directories of a layer that is being unpacked: they get their attributes when everything is in them, and until then
//! these are kept in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use anyhow::{Result, bail};
use rustix::fs::{Timespec, Timestamps};

use super::archive::{Member, Xattr};

/// Bytes that they may take: some millions of directories of a common length. An archive that is a few megabytes compressed
/// can name more than any machine has memory for.
const KEPT_MAX: usize = 512 << 20;
/// What a directory, or an extended attribute of it, takes besides its bytes.
const OVERHEAD: usize = 128;

/// What is set on an entry after it was made.
#[derive(Debug)]
pub struct Attributes {
    /// Mode bits, the lower twelve.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
    /// No member says so.
    pub implied: bool,
}

impl Attributes {
    /// Those that a member names.
    pub fn of(member: &Member) -> Self {
        let Member { mode, uid, gid, mtime, ref xattrs, .. } = *member;
        Attributes { mode, uid, gid, mtime, xattrs: xattrs.clone(), implied: false }
    }

    /// Those of a directory that no member names.
    pub fn of_implied_directory() -> Self {
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new(), implied: true }
    }

    /// The times to set.
    pub fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Directories by their real path, parents before what is in them; and how much memory that takes.
#[derive(Debug, Default)]
pub struct Directories {
    by_path: BTreeMap<Vec<u8>, Attributes>,
    kept: usize,
}

impl Directories {
    /// Adds one, or changes one that is there. Errors where they become too many.
    pub fn insert(&mut self, path: Vec<u8>, attributes: Attributes) -> Result<()> {
        self.keep(cost(&path, &attributes))?;
        let length = path.len();
        if let Some(old) = self.by_path.insert(path, attributes) {
            self.kept -= cost_of(length, &old);
        }
        Ok(())
    }

    /// Notes that something else takes so many bytes until the end.
    pub fn keep(&mut self, bytes: usize) -> Result<()> {
        self.kept += bytes;
        if self.kept > KEPT_MAX {
            bail!("what has to be kept in mind of the archive's directories and links is more than {KEPT_MAX} bytes");
        }
        Ok(())
    }

    /// Forgets the one at `path`, and all below it.
    pub fn remove(&mut self, path: &[u8]) {
        if let Some(old) = self.by_path.remove(path) {
            self.kept -= cost(path, &old);
        }
        // They stand together: only as many are looked at as go.
        let below = [path, b"/"].concat();
        let is_below = |other: &Vec<u8>| other.starts_with(&below);
        while let Some((next, _)) =
            self.by_path.range::<[u8], _>((Bound::Included(&below[..]), Bound::Unbounded)).next()
            && is_below(next)
        {
            let next = next.clone();
            if let Some(old) = self.by_path.remove(&next) {
                self.kept -= cost(&next, &old);
            }
        }
    }

    /// All of them, parents before what is in them.
    pub fn take(&mut self) -> BTreeMap<Vec<u8>, Attributes> {
        self.kept = 0;
        std::mem::take(&mut self.by_path)
    }
}

fn cost(path: &[u8], attributes: &Attributes) -> usize {
    cost_of(path.len(), attributes)
}

fn cost_of(length: usize, attributes: &Attributes) -> usize {
    let xattr = |(name, value): &Xattr| OVERHEAD + name.len() + value.as_ref().map_or(0, Vec::len);
    OVERHEAD + length + attributes.xattrs.iter().map(xattr).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[&str]) -> Directories {
        let mut directories = Directories::default();
        for path in paths {
            directories.insert(path.as_bytes().to_vec(), Attributes::of_implied_directory()).unwrap();
        }
        directories
    }

    #[test]
    fn one_goes_with_all_below_it() {
        let mut directories = of(&["", "a", "a-", "a/b", "a/b/c", "a0", "b/a"]);
        directories.remove(b"a");
        assert_eq!(directories.kept, of(&["", "a-", "a0", "b/a"]).kept);
        let left: Vec<_> = directories.take().into_keys().collect();
        assert_eq!(left, [&b""[..], b"a-", b"a0", b"b/a"]);
        assert_eq!(directories.kept, 0);
    }

    #[test]
    fn what_is_kept_is_counted() {
        let mut directories = of(&["a"]);
        let one = directories.kept;
        let big = || Attributes {
            xattrs: vec![(b"user.x".to_vec(), Some(vec![0; 60_000]))],
            ..Attributes::of_implied_directory()
        };
        directories.insert(b"a".to_vec(), big()).unwrap();
        directories.insert(b"a".to_vec(), big()).unwrap();
        assert!((60_000..61_000).contains(&(directories.kept - one)), "{}", directories.kept);
        directories.remove(b"a");
        assert_eq!(directories.kept, 0);
        let mut added = 0;
        let error = loop {
            match directories.insert(format!("d{added}").into_bytes(), big()) {
                Ok(()) => added += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("kept in mind"), "{error}");
        assert!((8_000..9_000).contains(&added), "{added}");
    }
}
