//! The changes between two states of an overlay, each a stack of layers on the same lowers.
//!
//! What both stacks have in common is not looked at: a name can differ only where one of the layers that they do not
//! share has it, or where a directory merges with other shared layers in the one than in the other (an opaque directory, a
//! whiteout). Which layers merge into a directory each stack says itself. So the time goes with the changes.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Stat};

use super::compare::{Compare, Entry};
use super::tree::{Found, found};
use super::{Aspect, Depth, Kind, rename};
use crate::inode::Inode;
use crate::layer::Marks;
use crate::paths::join;
use crate::stack::{Dir, Stack};

/// A directory that is still to be looked at, and which layers merge into it before and now; before, perhaps none.
struct Visit {
    path: Vec<u8>,
    old: Vec<usize>,
    new: Vec<usize>,
}

/// Something in a directory: its layer, and its attributes.
type There = (usize, Stat);

struct Between<'a> {
    old: &'a Stack,
    new: &'a Stack,
    compare: Compare<'a>,
    /// How many layers at the bottom are in both stacks.
    shared: usize,
    listing: Vec<MaybeUninit<u8>>,
    visits: Vec<Visit>,
    found: Vec<Found>,
    /// How many names are seen of each file that has several: a layer above may hide some of them.
    names: HashMap<(u64, u64), u64>,
}

/// The changes of a tree from `old` to `new`, which are layers on `lowers` (bottom first), in no order, with the old stack.
pub(super) fn changes(
    marks: Marks,
    lowers: &[PathBuf],
    old: &[PathBuf],
    new: &[PathBuf],
    depth: Depth,
) -> Result<(Vec<Found>, Stack)> {
    let open = |layers: &[PathBuf]| Stack::open(&[lowers, layers].concat(), marks, None);
    let (before, after) = (open(old)?, open(new)?);
    let shared = lowers.len() + old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let mut between = Between {
        old: &before,
        new: &after,
        compare: Compare::new(&before, None, false, depth),
        shared,
        listing: vec![MaybeUninit::uninit(); 32 << 10],
        visits: Vec::new(),
        found: Vec::new(),
        names: HashMap::new(),
    };
    between.run()?;
    between.forget_hidden_links();
    let Between { mut compare, mut found, .. } = between;
    let places = rename::Places { old: &before, new: rename::New::View(&after), name: "" };
    rename::pair_up(places, &mut compare, rename::Identity::Origin(marks), &mut found)?;
    Ok((found, before))
}

impl Between<'_> {
    fn run(&mut self) -> Result<()> {
        let (old, new) = (self.old.root()?, self.new.root()?);
        self.directory(b"", &old, &new)?;
        // The last first: so those that wait are few.
        while let Some(visit) = self.visits.pop() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let old = self.old.reopen(&visit.old, &visit.path)?;
            let new = self.new.reopen(&visit.new, &visit.path)?;
            self.directory(&visit.path, &old, &new)?;
        }
        Ok(())
    }

    /// Takes back what seems to have more hard links than before, and has them where they are hidden.
    fn forget_hidden_links(&mut self) {
        let names = &self.names;
        self.found.retain(|found| {
            let (Some(old), Some(new)) = (&found.old, &found.new) else { return true };
            let seen = names.get(&(new.st_dev, new.st_ino)).copied().unwrap_or(1);
            found.what != [Aspect::Links] || seen > old.st_nlink
        });
    }

    /// Those of a directory's layers that both stacks have, counted from the bottom.
    fn shared_of(&self, stack: &Stack, dir: &Dir) -> Vec<usize> {
        let from_bottom = dir.lowers().into_iter().map(|lower| stack.height() - 1 - lower);
        from_bottom.filter(|layer| *layer < self.shared).collect()
    }

    /// The names at which a directory can differ.
    fn names(&mut self, path: &[u8], old: &Dir, new: &Dir) -> Result<BTreeSet<CString>> {
        let same = self.shared_of(self.old, old) == self.shared_of(self.new, new);
        let mut names = BTreeSet::new();
        for (stack, dir) in [(self.old, old), (self.new, new)] {
            let wanted = |lower: usize| !same || stack.height() - 1 - lower >= self.shared;
            names.extend(stack.names_in(dir, path, wanted, &mut self.listing)?);
        }
        Ok(names)
    }

    /// Looks at a directory that there is now; before, there may have been none.
    fn directory(&mut self, path: &[u8], old: &Dir, new: &Dir) -> Result<()> {
        if let (Some(old_fd), Some(old_stat), Some(new_fd), Some(new_stat)) =
            (old.top(), old.stat(), new.top(), new.stat())
        {
            let (lower, layer) = (old.lowers()[0], new.lowers()[0]);
            if self.is_same(lower, layer) {
                // It is the very directory.
            } else {
                let (what, _) = self
                    .compare
                    .directories(Inode::Open(old_fd), old_stat, Inode::Open(new_fd), new_stat)
                    .with_context(|| String::from_utf8_lossy(path).into_owned())?;
                let (were, are) = (self.shared_of(self.old, old), self.shared_of(self.new, new));
                let anew = !path.is_empty() && !were.iter().any(|layer| are.contains(layer));
                if anew || !what.is_empty() {
                    let mut found =
                        found(path.to_vec(), if anew { Kind::Opaque } else { Kind::Modified }, FileType::Directory);
                    (found.what, found.lower, found.layer) = (what, Some(lower), layer);
                    self.found.push(found);
                }
            }
        }
        for name in self.names(path, old, new)? {
            self.name(path, &name, old, new).with_context(|| self.new.describe(new, 0, path, &name))?;
        }
        Ok(())
    }

    /// Whether a layer of the old stack and one of the new are one layer.
    fn is_same(&self, old: usize, new: usize) -> bool {
        let (old, new) = (self.old.height() - 1 - old, self.new.height() - 1 - new);
        old == new && old < self.shared
    }

    fn name(&mut self, path: &[u8], name: &CStr, old: &Dir, new: &Dir) -> Result<()> {
        let before = self.old.lookup(old, name, path)?;
        let now = self.new.lookup(new, name, path)?;
        let full = join(path, name.to_bytes());
        let (Some((layer, stat)), before) = (now, before) else {
            if let Some((layer, stat)) = before {
                let mut found = found(full, Kind::Deleted, FileType::from_raw_mode(stat.st_mode));
                found.lower = Some(old.lower_of(layer));
                found.old = Some(Box::new(stat));
                self.found.push(found);
            }
            return Ok(());
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let was_directory = before.is_some_and(|(_, old)| FileType::from_raw_mode(old.st_mode) == FileType::Directory);
        if kind == FileType::Directory && was_directory {
            let (was, is) = (self.old.child(old, name, path)?, self.new.child(new, name, path)?);
            let differs = was.lowers().len() != is.lowers().len()
                || was.lowers().into_iter().zip(is.lowers()).any(|(was, is)| !self.is_same(was, is));
            if differs {
                self.visits.push(Visit { path: full, old: was.lowers(), new: is.lowers() });
            }
            return Ok(());
        }
        self.entry(full.clone(), name, (old, before), (new, (layer, stat)))?;
        if kind == FileType::Directory {
            let is = self.new.child(new, name, path)?;
            self.visits.push(Visit { path: full, old: Vec::new(), new: is.lowers() });
        }
        Ok(())
    }

    /// What became of something that is not a directory both before and now.
    fn entry(
        &mut self,
        path: Vec<u8>,
        name: &CStr,
        (old, before): (&Dir, Option<There>),
        (new, (layer, stat)): (&Dir, There),
    ) -> Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_nlink > 1 && kind != FileType::Directory {
            *self.names.entry((stat.st_dev, stat.st_ino)).or_default() += 1;
        }
        let mut found = found(path, Kind::Added, kind);
        found.layer = new.lower_of(layer);
        found.new = Some(Box::new(stat));
        if let Some((old_layer, old_stat)) = before {
            if self.is_same(old.lower_of(old_layer), new.lower_of(layer)) {
                return Ok(());
            }
            found.lower = Some(old.lower_of(old_layer));
            found.old = Some(Box::new(old_stat));
            found.kind = Kind::Type;
            if FileType::from_raw_mode(old_stat.st_mode) == kind {
                let before = Entry { dir: old.layer(old_layer), name, stat: &old_stat };
                found.what = self.compare.entries(before, Entry { dir: new.layer(layer), name, stat: &stat })?;
                found.kind = Kind::Modified;
                if found.what.is_empty() {
                    return Ok(());
                }
            }
        }
        self.found.push(found);
        Ok(())
    }
}
