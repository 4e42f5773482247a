//! The snapshots of an overlay and how they lie on each other; `ID@N` and `ID@N..ID@M` on the command line.
//!
//! A snapshot is the upper of a moment, put aside: a layer that says what changed since the snapshot before it. So what
//! the overlay was then is the lowers and all layers from the first snapshot of its line up to it. Number 0 is what the
//! overlay began with: the lowers, or of a branch the snapshot that it began with.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::doc::{Layer, Overlay, Snapshot};
use crate::{exit, record};

/// The directory in an overlay's, or in its tmpfs, that has a directory for each snapshot.
pub const SNAPSHOTS: &str = "snapshots";

/// A state of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The lowers, nothing changed.
    Lowers,
    /// What it was when this snapshot was made; 0 is what it began with.
    Snapshot(u32),
    /// What it is.
    Now,
}

/// Two states to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Before.
    pub from: Point,
    /// After.
    pub to: Point,
}

impl Span {
    /// All that was ever changed.
    pub const WHOLE: Span = Span { from: Point::Lowers, to: Point::Now };
}

/// A snapshot by its number. Errors with not found (3).
pub fn find(overlay: &Overlay, number: u32) -> Result<&Snapshot> {
    overlay.snapshots.iter().find(|snapshot| snapshot.number == number).ok_or_else(|| {
        exit::not_found(format!(
            "{0} has no snapshot {number}; 'sheep-overlay log {0}' shows what there is",
            overlay.id
        ))
    })
}

/// Makes sure that there is such a snapshot; 0 is always there. Errors with not found (3).
pub fn check(overlay: &Overlay, number: u32) -> Result<()> {
    if number == 0 { Ok(()) } else { find(overlay, number).map(drop) }
}

/// The snapshots from the first one up to `number`, in that order; none for 0.
pub fn line(overlay: &Overlay, number: u32) -> Vec<&Snapshot> {
    let mut line = Vec::new();
    let mut at = number;
    // A parent is always older, so that this ends.
    while let Some(snapshot) = overlay.snapshots.iter().find(|snapshot| snapshot.number == at) {
        line.push(snapshot);
        if snapshot.parent >= at {
            break;
        }
        at = snapshot.parent;
    }
    line.reverse();
    line
}

/// The number of the next snapshot.
pub fn next_number(overlay: &Overlay) -> u32 {
    overlay.snapshots.iter().map(|snapshot| snapshot.number).max().unwrap_or(0) + 1
}

/// Where the snapshots of an overlay are.
pub fn place(overlay: &Overlay) -> PathBuf {
    overlay.upper.parent().unwrap_or(Path::new("/")).join(SNAPSHOTS)
}

/// The directories of the layers that lie on the lowers where `number` is the head, bottom first.
pub fn layers(overlay: &Overlay, number: u32) -> Vec<PathBuf> {
    let overlays = record::dir_of(overlay).parent().unwrap_or(Path::new("/"));
    let before = overlay.branch.iter().flat_map(|branch| &branch.layers);
    let before = before.map(|layer| overlays.join(&layer.overlay).join(SNAPSHOTS).join(&layer.layer));
    let own = place(overlay);
    before.chain(line(overlay, number).into_iter().map(|snapshot| own.join(&snapshot.layer))).collect()
}

/// The same as a branch that begins with the snapshot records them.
pub fn named_layers(overlay: &Overlay, number: u32) -> Vec<Layer> {
    let before = overlay.branch.iter().flat_map(|branch| branch.layers.iter().cloned());
    let own = line(overlay, number).into_iter();
    let own = own.map(|snapshot| Layer { overlay: overlay.id.clone(), layer: snapshot.layer.clone() });
    before.chain(own).collect()
}

/// An argument that may name a state of an overlay, or two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What names the overlay.
    pub overlay: OsString,
    /// The number after its `@`; absent without one.
    pub at: Option<u32>,
    /// What stands after `..`.
    pub to: Option<Point>,
}

impl Named {
    /// The states that `diff` is to compare.
    pub fn span(&self) -> Span {
        match (self.at, self.to) {
            (None, _) => Span::WHOLE,
            (Some(at), None) => Span { from: Point::Lowers, to: Point::Snapshot(at) },
            (Some(at), Some(to)) => Span { from: Point::Snapshot(at), to },
        }
    }
}

/// Takes an argument apart: `ID`, `ID@N`, `ID@N..`, `ID@N..M` or `ID@N..ID@M`. Anything else, a path for instance, is all
/// name. Errors with usage (2) where the two states are those of two overlays.
pub fn parse(argument: &OsStr) -> Result<Named> {
    let whole = || Named { overlay: argument.to_owned(), at: None, to: None };
    let Some((overlay, rest)) = argument.to_str().and_then(|text| text.split_once('@')) else { return Ok(whole()) };
    if overlay.is_empty() || overlay.contains('/') {
        return Ok(whole());
    }
    let (first, last) = match rest.split_once("..") {
        Some((first, last)) => (first, Some(last)),
        None => (rest, None),
    };
    let Ok(at) = first.parse::<u32>() else {
        return Err(exit::usage(format!(
            "{}: no snapshot; write ID@N or ID@N..ID@M, where N and M are numbers that 'sheep-overlay log' shows",
            argument.display()
        )));
    };
    let to = match last {
        None => None,
        Some("") => Some(Point::Now),
        Some(last) => {
            let number = match last.split_once('@') {
                Some((other, number)) if other == overlay || other.is_empty() => number,
                Some(_) => {
                    return Err(exit::usage(format!(
                        "{}: the two snapshots are of two overlays; give two of the same",
                        argument.display()
                    )));
                }
                None => last,
            };
            let number = number.parse().map_err(|_| {
                exit::usage(format!("{}: {last:?} is no snapshot; write ID@N..ID@M", argument.display()))
            })?;
            Some(Point::Snapshot(number))
        }
    };
    Ok(Named { overlay: OsString::from(overlay), at: Some(at), to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(number: u32, parent: u32) -> Snapshot {
        let created = String::new();
        Snapshot { number, parent, created, message: None, layer: number.to_string() }
    }

    #[test]
    fn arguments_are_taken_apart() {
        let now = Some(Point::Now);
        let two = Some(Point::Snapshot(2));
        let table = [
            ("ov", "ov", None, None),
            ("ov@1", "ov", Some(1), None),
            ("ov@1..", "ov", Some(1), now),
            ("ov@0..2", "ov", Some(0), two),
            ("ov@1..ov@2", "ov", Some(1), two),
            ("ov@1..@2", "ov", Some(1), two),
            ("/a@b/merged", "/a@b/merged", None, None),
            ("./x@1", "./x@1", None, None),
        ];
        for (argument, overlay, at, to) in table {
            let want = Named { overlay: overlay.into(), at, to };
            assert_eq!(parse(argument.as_ref()).unwrap(), want, "{argument}");
        }
        for bad in ["ov@", "ov@x", "ov@-1", "ov@1..x", "ov@1..other@2", "ov@1.2", "ov@1..2..3"] {
            assert_eq!(exit::kind(&parse(bad.as_ref()).unwrap_err()), Some(exit::Kind::Usage), "{bad}");
        }
    }

    #[test]
    fn a_line_leads_from_the_first_to_the_head() {
        let mut overlay = Overlay::new("ov", Path::new("/data/overlay/ov"));
        overlay.snapshots = vec![snapshot(1, 0), snapshot(2, 1), snapshot(3, 1), snapshot(4, 3)];
        let numbers = |head| line(&overlay, head).into_iter().map(|snapshot| snapshot.number).collect::<Vec<_>>();
        assert_eq!(numbers(0), [0u32; 0]);
        assert_eq!(numbers(2), [1, 2]);
        assert_eq!(numbers(4), [1, 3, 4]);
        assert_eq!(next_number(&overlay), 5);
        let paths = layers(&overlay, 3);
        assert_eq!(paths, [Path::new("/data/overlay/ov/snapshots/1"), Path::new("/data/overlay/ov/snapshots/3")]);
    }
}
