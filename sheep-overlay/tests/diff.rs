//! `diff` against the real kernel: the same random deeds on an overlay and on a copy of the same lowers give the same
//! changes, and they are those that two pictures of the tree, before and after, give.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "trees/mod.rs"]
mod trees;

#[path = "diff/cases.rs"]
mod cases;
#[path = "diff/exported.rs"]
mod exported;
#[path = "diff/history.rs"]
mod history;
#[path = "diff/random.rs"]
mod random;

use std::fs;
use std::path::{Path, PathBuf};

use sheep_overlay::backend::copy::copy_stack;
use sheep_overlay::diff::{Aspect, Change, Kind, changes};
use sheep_overlay::doc::{Backend, Overlay};
use trees::Scratch;

/// An overlay and a copy of the same lowers, each in a directory like those in the data directory.
struct Both {
    kernel: Overlay,
    copy: Overlay,
}

impl Both {
    /// Mounts the one and makes the other below `dir`. `lowers` are bottom first.
    fn new(scratch: &mut Scratch, dir: &Path, lowers: &[PathBuf]) -> Both {
        let [kernel, copy] = ["kernel", "copy"].map(|backend| {
            let dir = dir.join(backend);
            for sub in ["upper", "work", "merged"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            dir
        });
        let top = lowers.last().unwrap();
        // The root of the merged view is the upper itself: it gets what the topmost lower has, as mount does it.
        let (from, to) = (top.display(), kernel.display());
        trees::sh(&format!(
            "cd {to}; cp -a --attributes-only {from} root; find root -mindepth 1 -delete; touch -r {from} root; \
             rmdir upper; mv root upper"
        ));
        copy_stack(lowers, &copy.join("merged"), false).unwrap();
        scratch.overlay(lowers, &kernel);
        Both { kernel: overlay(&kernel, Backend::Kernel, lowers), copy: overlay(&copy, Backend::Copy, lowers) }
    }
}

fn overlay(dir: &Path, backend: Backend, lowers: &[PathBuf]) -> Overlay {
    let mut overlay = Overlay::new(backend.name(), dir);
    overlay.lower = lowers.iter().map(|lower| lower.clone().into()).collect();
    overlay.backend = backend;
    overlay.volatile = true;
    overlay
}

/// The changes as lines.
fn lines(overlay: &Overlay) -> Vec<String> {
    let line = |change: &Change| {
        let from = change.from.as_ref().map_or_else(String::new, |from| format!("{} -> ", from.display()));
        format!("{} {from}{}", change.kind.letter(), change.path.display())
    };
    changes(overlay).unwrap().iter().map(line).collect()
}

/// The changes as two pictures of the tree tell them, which see neither where a file came from nor that a directory is
/// another one: what was renamed is deleted and added, and links are not counted.
fn plain_lines(overlay: &Overlay) -> Vec<String> {
    plain(changes(overlay).unwrap())
}

fn plain(changes: Vec<Change>) -> Vec<String> {
    let mut plain = Vec::new();
    for change in changes {
        let letter = match change.kind {
            Kind::Modified if change.what == [Aspect::Links] => continue,
            Kind::Opaque if change.what.is_empty() => continue,
            Kind::Opaque | Kind::Type => 'M',
            Kind::Renamed => 'A',
            kind => kind.letter(),
        };
        plain.extend(change.from.map(|from| (from, 'D')));
        plain.push((change.path, letter));
    }
    plain.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    plain.iter().map(|(path, letter)| format!("{letter} {}", path.display())).collect()
}
