//! `diff`: what differs between what two images show.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use sheep_overlay::diff::{Change, Depth, changes_of_stacks, document, line};
use sheep_overlay::layer::Marks;
use sheep_overlay::paths::{inside, split};
use sheep_overlay::stack::Stack;
use sheep_overlay::{doc, exit};

use crate::cli::Diff;
use crate::store::Store;

/// Runs the verb. That there are differences is no failure.
pub fn run(store: &Store, args: &Diff) -> Result<()> {
    let work = || -> Result<Vec<Change>> {
        let layers = |reference: &str| -> Result<Vec<PathBuf>> {
            store.find(reference).and_then(|image| store.unpacked(&image)).with_context(|| reference.to_owned())
        };
        let (old, new) = (layers(&args.old)?, layers(&args.new)?);
        let marks = Marks::of_this_process();
        let wanted = args.paths.iter().map(|path| inner(path)).collect::<Result<Vec<_>>>()?;
        for path in &wanted {
            if !has(&old, path, marks)? && !has(&new, path, marks)? {
                return Err(exit::not_found(format!("neither has /{}", OsStr::from_bytes(path).display())));
            }
        }
        let depth = if args.json { Depth::Everything } else { Depth::Kinds };
        let mut changes = changes_of_stacks(&old, &new, marks, depth)?;
        let is_in = |path: &Path, dir: &[u8]| inside(&path.as_os_str().as_bytes()[1..], dir).is_some();
        let is_wanted = |path: &Path| wanted.is_empty() || wanted.iter().any(|dir| is_in(path, dir));
        changes.retain(|change| is_wanted(&change.path) || change.from.as_deref().is_some_and(is_wanted));
        Ok(changes)
    };
    let changes = work().with_context(|| format!("diff {} {}", args.old, args.new))?;
    let mut out = Vec::new();
    for change in &changes {
        out.extend(if args.json { document(change).to_string() } else { line(change) }.into_bytes());
        out.push(b'\n');
    }
    doc::write_out(&out)
}

/// A path from the root on, without a slash at its beginning.
fn inner(path: &Path) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.as_bytes()),
            Component::ParentDir => {
                return Err(exit::usage(format!("{}: a path in an image has no '..'", path.display())));
            }
            _ => {}
        }
    }
    Ok(parts.join(&b'/'))
}

/// Whether a stack of layers shows something at a path.
fn has(layers: &[PathBuf], path: &[u8], marks: Marks) -> Result<bool> {
    let stack = Stack::open(layers, marks, None)?;
    let (parent, name) = split(path);
    if name.is_empty() {
        return Ok(true);
    }
    let dir = stack.find(parent)?;
    Ok(stack.lookup(&dir, &CString::new(name)?, parent)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_from_the_root() {
        for (path, want) in [("/", ""), ("etc", "etc"), ("/etc/./ssl/", "etc/ssl"), ("", "")] {
            assert_eq!(inner(Path::new(path)).unwrap(), want.as_bytes(), "{path}");
        }
        assert!(inner(Path::new("/a/../b")).is_err());
    }
}
