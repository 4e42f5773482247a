//! The forms in which `diff` prints changes.
//!
//! In lines, control characters and bytes that are not UTF-8 are escaped (`\n`, `\t`, `\u{1b}`, `\xff`) and a backslash
//! is `\\`, so that a line is a change and a terminal is safe. `--json` and `--name-only -z` have the exact bytes.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value};

use super::{Change, Depth, Kind, bytes, changes_between};
use crate::cli;
use crate::doc::{Overlay, name_to_json, write_out};
use crate::history::Span;

/// Prints the changes of an overlay between two states in the form that is asked for.
pub fn run(overlay: &Overlay, span: Span, args: &cli::Diff) -> Result<()> {
    if args.patch {
        return super::patch::between(overlay, span);
    }
    let everything = args.json || args.stat;
    let changes = changes_between(overlay, span, if everything { Depth::Everything } else { Depth::Kinds })?;
    let mut out = Vec::new();
    for change in &changes {
        if args.stat {
            out.extend(format!("{:>11}  {}", grown(change), line(change)).into_bytes());
        } else if args.json {
            out.extend(document(change).to_string().into_bytes());
        } else if args.null {
            out.extend_from_slice(bytes(&change.path));
        } else if args.name_only {
            out.extend(escaped(bytes(&change.path)).into_bytes());
        } else {
            out.extend(line(change).into_bytes());
        }
        out.push(if args.null { 0 } else { b'\n' });
    }
    if args.stat {
        out.extend(sums(&changes).into_bytes());
    }
    write_out(&out)
}

/// By how many bytes a path grew or shrank; nothing for what has no size.
fn grown(change: &Change) -> String {
    let (old, new) = (change.old_size.unwrap_or(0), change.size.unwrap_or(0));
    match (change.old_size.or(change.size), new >= old) {
        (None, _) => String::new(),
        (_, true) => format!("+{}", human(new - old)),
        (_, false) => format!("-{}", human(old - new)),
    }
}

/// The last line of `--stat`: how many changes of each kind, and what they come to.
fn sums(changes: &[Change]) -> String {
    let counts: Vec<String> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, changes.iter().filter(|change| change.kind == kind).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{count} {}", kind.name()))
        .collect();
    let grew = |more: bool| -> u64 {
        let by = |change: &Change| {
            let (old, new) = (change.old_size.unwrap_or(0), change.size.unwrap_or(0));
            if more { new.saturating_sub(old) } else { old.saturating_sub(new) }
        };
        changes.iter().map(by).sum()
    };
    let counts = if counts.is_empty() { "no changes".to_owned() } else { counts.join(", ") };
    format!("{counts}; +{} -{}\n", human(grew(true)), human(grew(false)))
}

/// `A /path`; `R /old -> /new` of what was renamed.
pub fn line(change: &Change) -> String {
    let mut line = String::from(change.kind.letter());
    line.push(' ');
    if let Some(from) = &change.from {
        push_escaped(&mut line, bytes(from));
        line.push_str(" -> ");
    }
    push_escaped(&mut line, bytes(&change.path));
    line
}

/// The change as a JSON document.
pub fn document(change: &Change) -> Value {
    let path = |path: &Path| name_to_json(path.as_os_str());
    let mut document = Map::new();
    document.insert("path".to_owned(), path(&change.path));
    document.insert("change".to_owned(), change.kind.name().into());
    if !change.what.is_empty() || matches!(change.kind, Kind::Modified) {
        document.insert("what".to_owned(), change.what.iter().map(|aspect| aspect.name()).collect());
    }
    for (key, value) in [("from", &change.from), ("layer", &change.layer)] {
        if let Some(value) = value {
            document.insert(key.to_owned(), path(value));
        }
    }
    for (key, value) in [("oldSize", change.old_size), ("size", change.size)] {
        if let Some(value) = value {
            document.insert(key.to_owned(), value.into());
        }
    }
    Value::Object(document)
}

/// A path as it stands in a line.
pub fn escaped(path: &[u8]) -> String {
    let mut line = String::new();
    push_escaped(&mut line, path);
    line
}

/// A number of bytes for people.
pub fn human(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if amount < 1023.95 || unit == "TiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    unreachable!("the last unit takes everything")
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
    fn sums_of_sizes() {
        let change = |kind, old_size, size| Change {
            path: "/a".into(),
            kind,
            what: Vec::new(),
            from: None,
            layer: None,
            old_size,
            size,
            file_type: rustix::fs::FileType::RegularFile,
        };
        let changes = [
            change(Kind::Added, None, Some(2048)),
            change(Kind::Modified, Some(10), Some(4)),
            change(Kind::Deleted, Some(5), None),
            change(Kind::Added, None, None),
        ];
        let grown: Vec<String> = changes.iter().map(grown).collect();
        assert_eq!(grown, ["+2.0 KiB", "-6 B", "-5 B", ""]);
        assert_eq!(sums(&changes), "2 added, 1 modified, 1 deleted; +2.0 KiB -11 B\n");
        assert_eq!(sums(&[]), "no changes; +0 B -0 B\n");
    }

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
            assert_eq!(escaped(path), want);
        }
    }
}
