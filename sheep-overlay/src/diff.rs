//! `diff`: what changed in an overlay against its lowers.
//!
//! What counts as a change is the same for both backends, so that the same deeds give the same output:
//!
//! - `A`: the lowers have no such path. An added directory is listed, and everything in it.
//! - `D`: the lowers have it, the overlay has not. A deleted directory is one line.
//! - `M`: another type, or another mode, owner, content, link target, device number, or set of xattrs (ACLs and
//!   capabilities among them); for what is no directory, another modification time too. A directory whose entries changed
//!   is not a change itself. A file that was copied up and is as before is none either: opening it for writing does that.
//!
//! Hard links: the copy backend keeps them, so a write through one name changes them all; OverlayFS breaks them
//! (`index=off`). There the two differ, as what they show differs.
//!
//! In lines, control characters and bytes that are not UTF-8 are escaped (`\n`, `\t`, `\u{1b}`, `\xff`) and a backslash
//! is `\\`, so that a line is a change and a terminal is safe. `--json` has the exact bytes.

mod compare;
mod tree;

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use crate::cli;
use crate::doc::{Overlay, name_to_json, write_out};

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the merged directory, beginning with `/`.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: Kind,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not in the lowers.
    Added,
    /// It differs from what the lowers have.
    Modified,
    /// The lowers have it, the merged view has not.
    Deleted,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Modified => 'M',
            Kind::Deleted => 'D',
        }
    }

    /// The word for it in documents.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Modified => "modified",
            Kind::Deleted => "deleted",
        }
    }
}

/// The changes of an overlay, mounted or kept, sorted by the bytes of their paths. What is changed meanwhile may or may
/// not be among them.
pub fn changes(overlay: &Overlay) -> Result<Vec<Change>> {
    let mut changes = tree::changes(overlay)?;
    changes.sort_unstable_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    Ok(changes)
}

/// Prints the changes: `A /path` lines, or with `json` a document a line: `{"path": "/path", "change": "added"}`.
pub fn run(overlay: &Overlay, args: &cli::Diff) -> Result<()> {
    let mut out = String::new();
    for Change { path, kind } in changes(overlay)? {
        if args.json {
            out.push_str(&json!({"path": name_to_json(path.as_os_str()), "change": kind.name()}).to_string());
        } else {
            out.push(kind.letter());
            out.push(' ');
            push_escaped(&mut out, path.as_os_str().as_bytes());
        }
        out.push('\n');
    }
    write_out(out.as_bytes())
}

fn push_escaped(line: &mut String, path: &[u8]) {
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' { line.extend(c.escape_default()) } else { line.push(c) }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_line_and_harmless() {
        let table: [(&[u8], &str); 5] = [
            (b"/plain name", "/plain name"),
            ("/übel".as_bytes(), "/übel"),
            (b"/a\nD /b\t", "/a\\nD /b\\t"),
            (b"/back\\slash\x1b[2J", "/back\\\\slash\\u{1b}[2J"),
            (b"/\xff\xc2\x9b", "/\\xff\\u{9b}"),
        ];
        for (path, want) in table {
            let mut line = String::new();
            push_escaped(&mut line, path);
            assert_eq!(line, want);
        }
    }
}
