//! `ls`: the overlays there are.

use anyhow::{Result, anyhow};

use crate::doc::{self, Document, Overlay};
use crate::record::{self, Found, State};
use crate::state::DataRoot;
use crate::{PROGRAM, cli, exit, rotate};

/// Lists the overlays, as a table or a document a line. A record that cannot be read is reported on stderr, and makes
/// the exit code 1, but does not hide the others.
pub fn run(root: &DataRoot, args: &cli::Ls) -> Result<()> {
    record::reap(root)?;
    let mut rows = Vec::new();
    let mut out = Vec::new();
    let mut unreadable = 0;
    for id in record::ids(root)? {
        match read(root, &id) {
            // Another process is making or removing it.
            Ok(None) => {}
            Ok(Some((overlay, state))) if args.json => {
                let mut document = Document::default();
                document.set("overlay", &record::as_seen(overlay, state))?;
                out.extend(document.to_line());
            }
            Ok(Some((overlay, state))) => rows.push(row(&overlay, state)),
            Err(error) => {
                exit::print_line(PROGRAM, &error.context("ls"));
                unreadable += 1;
            }
        }
    }
    if !args.json {
        out = table(&rows);
    }
    doc::write_out(&out)?;
    match unreadable {
        0 => Ok(()),
        1 => Err(anyhow!("ls: one overlay could not be read")),
        n => Err(anyhow!("ls: {n} overlays could not be read")),
    }
}

fn read(root: &DataRoot, id: &str) -> Result<Option<(Overlay, State)>> {
    let overlay = match record::look(root, id)? {
        Found::Whole(overlay) if overlay.pending.is_some() => rotate::read(root, id)?,
        Found::Whole(overlay) => *overlay,
        Found::Missing if record::exists(root, id.as_ref()) => {
            return Err(anyhow!(
                "{}: no overlay.json, perhaps lost with the power; its upper may hold changes, 'sheep-overlay umount {id}' deletes it",
                record::dir(root, id).display()
            ));
        }
        Found::Missing | Found::Unfinished => return Ok(None),
    };
    let state = record::state(&overlay)?;
    Ok(Some((overlay, state)))
}

const HEAD: [&str; 6] = ["ID", "STATE", "BACKEND", "LOWERS", "CREATED", "MERGED"];

fn row(overlay: &Overlay, state: State) -> [String; 6] {
    let created = overlay.created.split('.').next().unwrap_or_default().trim_end_matches('Z');
    [
        overlay.id.clone(),
        state.name().to_owned(),
        overlay.backend.name().to_owned(),
        overlay.lower.len().to_string(),
        format!("{created}Z"),
        // A table is for people: control characters would garble it.
        overlay.merged.to_string_lossy().chars().flat_map(|c| c.escape_debug()).collect(),
    ]
}

fn table(rows: &[[String; 6]]) -> Vec<u8> {
    let mut widths = HEAD.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: [&str; 6]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(HEAD);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_space_trails() {
        let cells = |id: &str| [id, "kept", "copy", "12", "2026-01-01T00:00:00Z", "/m"].map(str::to_owned);
        let text = String::from_utf8(table(&[cells("a"), cells("a-long-id")])).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let column = lines[0].find("STATE").unwrap();
        assert!(lines[1..].iter().all(|line| line[column..].starts_with("kept")), "{text}");
        assert!(lines.iter().all(|line| line.trim_end() == *line), "{text}");
    }
}
