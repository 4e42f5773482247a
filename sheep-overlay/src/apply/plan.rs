//! From changes to steps: which names change places, and what is to be made for them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Stat};

use super::target::{Target, There};
use crate::diff::{Change, Kind, escaped};
use crate::paths::{above, bare, split};

/// A name that is to change.
pub struct Planned {
    /// Its path in the merged view, without a leading slash.
    pub path: Vec<u8>,
    /// What is there now.
    pub old: Option<Stat>,
    /// What is to be there: paths of the merged view, parents first, this one's own the first. Nothing, to delete it.
    pub contents: Vec<Vec<u8>>,
    /// Somebody else's change is overruled.
    pub overruled: bool,
}

/// All that is to be done.
#[derive(Default)]
pub struct Plan {
    /// The names, no two of them one in the other.
    pub steps: Vec<Planned>,
    /// The directories that stay, and in which something changes, by their paths in the merged view: whether their owner, mode and
    /// extended attributes change too.
    pub directories: BTreeMap<Vec<u8>, bool>,
    /// Directories that are made, and the step that makes them.
    made: HashMap<Vec<u8>, usize>,
    /// Whether the change that is being planned overrules somebody else's.
    overrules: bool,
}

impl Plan {
    /// A plan for changes, which are sorted by their paths and stand against nothing, or overrule it.
    pub fn new(changes: &[&Change], overruled: &HashSet<&Path>, target: &Target) -> Result<Self> {
        let mut plan = Plan::default();
        for change in changes {
            let path = bare(&change.path);
            plan.overrules = overruled.contains(change.path.as_path());
            plan.add(change, &path, target).with_context(|| format!("/{}", escaped(&path)))?;
        }
        Ok(plan)
    }

    /// Whether a directory is one of those that are made.
    pub fn is_made(&self, path: &[u8]) -> bool {
        self.made.contains_key(path)
    }

    fn add(&mut self, change: &Change, path: &[u8], target: &Target) -> Result<()> {
        let is_dir = change.file_type == FileType::Directory;
        match change.kind {
            Kind::Deleted => self.take(path, target),
            Kind::Renamed => {
                if let Some(from) = &change.from {
                    self.take(&bare(from), target)?;
                }
                self.put(path, is_dir, target)
            }
            Kind::Modified | Kind::Opaque if is_dir => {
                if matches!(target.look(path)?, There::Entry(_)) {
                    self.directories.insert(path.to_vec(), true);
                    return Ok(());
                }
                self.put(path, is_dir, target)
            }
            Kind::Added | Kind::Modified | Kind::Opaque | Kind::Type => self.put(path, is_dir, target),
        }
    }

    /// Something is to be at a path.
    fn put(&mut self, path: &[u8], is_dir: bool, target: &Target) -> Result<()> {
        // Where its directory is missing, that is made as well, as it is in the overlay.
        let is_known = self.directories.contains_key(split(path).0);
        for dir in above(path).take_while(|_| !is_known) {
            if !self.made.contains_key(dir)
                && let There::Nothing | There::NoDirectory(rustix::io::Errno::NOENT) = target.look(dir)?
            {
                self.put_one(dir, true, target)?;
            }
        }
        self.put_one(path, is_dir, target)
    }

    fn put_one(&mut self, path: &[u8], is_dir: bool, target: &Target) -> Result<()> {
        if let Some(&step) = self.made.get(split(path).0) {
            self.steps[step].contents.push(path.to_vec());
            if is_dir {
                self.made.insert(path.to_vec(), step);
            }
            return Ok(());
        }
        let old = match target.look(path)? {
            There::Nothing => None,
            There::NoDirectory(why) => return Err(why.into()),
            There::Entry(there) => {
                if is_dir && FileType::from_raw_mode(there.stat.st_mode) == FileType::Directory {
                    self.directories.insert(path.to_vec(), true);
                    return Ok(());
                }
                Some(there.stat)
            }
        };
        if path.is_empty() {
            bail!("the top of the target cannot be replaced");
        }
        if is_dir {
            self.made.insert(path.to_vec(), self.steps.len());
        }
        self.step(path, old, vec![path.to_vec()]);
        Ok(())
    }

    /// Nothing is to be at a path any more.
    fn take(&mut self, path: &[u8], target: &Target) -> Result<()> {
        if let There::Entry(there) = target.look(path)? {
            self.step(path, Some(there.stat), Vec::new());
        }
        Ok(())
    }

    fn step(&mut self, path: &[u8], old: Option<Stat>, contents: Vec<Vec<u8>>) {
        self.directories.entry(split(path).0.to_vec()).or_insert(false);
        self.steps.push(Planned { path: path.to_vec(), old, contents, overruled: self.overrules });
    }
}
