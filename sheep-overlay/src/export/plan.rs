//! What a layer has in it, so that over the same lowers it shows what the overlay shows.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use rustix::fs::{FileType, Stat};

use super::merged::{Cursor, Merged, Scope};
use crate::diff::{self, Change, Depth, Kind};
use crate::doc::Overlay;
use crate::paths::{above, bare, is_below};

/// What stands at a path of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// What the overlay has there.
    Real,
    /// A directory that the overlay has there, and that hides the one below.
    Opaque,
    /// Nothing; the layer hides what is below.
    Gone,
}

/// A layer: its entries by their paths, without a leading slash; the root is the empty path.
type Layer = BTreeMap<Vec<u8>, Item>;

/// The layer of an overlay's changes: a directory, all that is in it, and only then what comes after it. (By the bytes of
/// their paths, `d.old` would come between `d` and `d/x`, and GNU tar takes a directory for done when it sees another.)
pub fn layer(overlay: &Overlay, merged: &Merged) -> Result<Vec<(Vec<u8>, Item)>> {
    let mut layer = of_changes(&diff::changes_to(overlay, Depth::Exact)?);
    // In a directory that hides the one below, all must be in the layer: also what is as it was.
    let opaque: Vec<Vec<u8>> = paths(&layer, Item::Opaque);
    for dir in &opaque {
        let (part, inside) = merged.part_of(dir)?;
        merged.parts[part].walk(inside, Scope::Everything, &mut |found| {
            layer.entry(found.path.to_vec()).or_insert(Item::Real);
            Ok(())
        })?;
    }
    complete_links(&mut layer, merged)?;
    add_parents(&mut layer);
    let mut ordered: Vec<(Vec<u8>, Item)> = layer.into_iter().collect();
    ordered.sort_by(|(a, _), (b, _)| parts(a).cmp(parts(b)));
    Ok(ordered)
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

/// The paths that are in a layer as one thing.
fn paths(layer: &Layer, item: Item) -> Vec<Vec<u8>> {
    layer.iter().filter(|(_, is)| **is == item).map(|(path, _)| path.clone()).collect()
}

/// The entries of a layer that makes these changes.
fn of_changes(changes: &[Change]) -> Layer {
    let mut layer = Layer::new();
    let mut anew: Vec<Vec<u8>> = Vec::new();
    for change in changes {
        let path = bare(&change.path);
        match change.kind {
            // In a directory that hides the one below there is nothing to be hidden.
            Kind::Deleted if anew.iter().any(|dir| is_below(&path, dir)) => {}
            Kind::Deleted => {
                layer.insert(path, Item::Gone);
            }
            Kind::Renamed => {
                if let Some(from) = change.from.as_deref().map(bare)
                    && !anew.iter().any(|dir| is_below(&from, dir))
                {
                    layer.insert(from, Item::Gone);
                }
                layer.insert(path, Item::Real);
            }
            Kind::Opaque => {
                layer.insert(path.clone(), Item::Opaque);
                anew.push(path);
            }
            Kind::Added | Kind::Modified | Kind::Type => {
                layer.insert(path, Item::Real);
            }
        }
    }
    // What was renamed may have been listed before the directory that it was in.
    layer.retain(|path, item| *item != Item::Gone || !anew.iter().any(|dir| is_below(path, dir)));
    layer
}

/// A file that got another name is in the layer under all of its names: under one alone it would come to be two files.
fn complete_links(layer: &mut Layer, merged: &Merged) -> Result<()> {
    // How many names of a file the layer has, of how many.
    let mut files: HashMap<(u64, u64), (_, _)> = HashMap::new();
    let mut cursors: Vec<Cursor<'_>> = merged.parts.iter().map(|part| Cursor::new(&part.view)).collect();
    for path in layer.iter().filter(|(path, item)| **item == Item::Real && !path.is_empty()).map(|(path, _)| path) {
        let (part, inside) = merged.part_of(path)?;
        if inside.is_empty() {
            continue;
        }
        if let Some((_, _, stat)) = cursors[part].entry(inside)?
            && has_names(&stat)
        {
            files.entry((stat.st_dev, stat.st_ino)).or_insert((0, stat.st_nlink)).0 += 1;
        }
    }
    files.retain(|_, (has, all)| has < all);
    if files.is_empty() {
        return Ok(());
    }
    for part in merged.parts.iter().filter(|part| part.lower.is_some()) {
        part.walk(b"", Scope::Changed, &mut |found| {
            if has_names(&found.stat) && files.contains_key(&(found.stat.st_dev, found.stat.st_ino)) {
                layer.entry(found.path.to_vec()).or_insert(Item::Real);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn has_names(stat: &Stat) -> bool {
    stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
}

/// The directories on the way have the attributes that they have in the overlay, the root among them.
fn add_parents(layer: &mut Layer) {
    let parents = layer.keys().flat_map(|path| std::iter::once(&b""[..]).chain(above(path)));
    let parents: Vec<Vec<u8>> = parents.map(<[u8]>::to_vec).collect();
    for parent in parents {
        layer.entry(parent).or_insert(Item::Real);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: Kind, path: &str, from: Option<&str>) -> Change {
        let from = from.map(std::path::PathBuf::from);
        Change {
            path: path.into(),
            kind,
            what: Vec::new(),
            from,
            layer: None,
            old_size: None,
            size: None,
            file_type: FileType::RegularFile,
        }
    }

    #[test]
    fn a_layer_of_changes() {
        let changes = [
            change(Kind::Renamed, "/a/moved", Some("/d/was")),
            change(Kind::Added, "/a/new", None),
            change(Kind::Deleted, "/a/old", None),
            change(Kind::Opaque, "/d", None),
            change(Kind::Deleted, "/d/gone", None),
            change(Kind::Renamed, "/x", Some("/y/z")),
        ];
        let mut layer = of_changes(&changes);
        add_parents(&mut layer);
        let entries: Vec<String> =
            layer.iter().map(|(path, item)| format!("{item:?} {}", String::from_utf8_lossy(path))).collect();
        let want =
            ["Real ", "Real a", "Real a/moved", "Real a/new", "Gone a/old", "Opaque d", "Real x", "Real y", "Gone y/z"];
        assert_eq!(entries, want);
    }
}
