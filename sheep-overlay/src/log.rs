//! `log`: the snapshots of an overlay, and which of them work goes on from.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::diff::{escaped, human};
use crate::doc::{Document, Overlay, Snapshot, write_out};
use crate::du::{self, Used};
use crate::state::DataRoot;
use crate::{access, cli, find, rotate};

/// The document's key `snapshot`, as `log` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Logged {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Whether work goes on from it.
    pub head: bool,
    /// What it takes beside the snapshots that it lies on.
    pub used: Used,
}

/// Prints the snapshots of an overlay, the newest last: a table, or a document a line.
pub fn run(root: &DataRoot, args: &cli::Log) -> Result<()> {
    let id = find::by_name(root, &args.overlay)?;
    let overlay = rotate::read(root, &id)?;
    let logged = access::with(&overlay, logged).with_context(|| format!("log {id}"))?;
    if !args.json {
        return write_out(table(&logged).as_bytes());
    }
    let mut out = Vec::new();
    for one in logged {
        let mut document = Document::default();
        document.set("overlay", &serde_json::json!({ "id": id }))?;
        document.set("snapshot", &one)?;
        out.extend(document.to_line());
    }
    write_out(&out)
}

fn logged(overlay: &Overlay) -> Result<Vec<Logged>> {
    let one = |snapshot: &Snapshot| {
        let used = du::of_layer(overlay, &snapshot.layer)?;
        Ok(Logged { snapshot: snapshot.clone(), head: snapshot.number == overlay.head, used })
    };
    overlay.snapshots.iter().map(one).collect()
}

fn table(logged: &[Logged]) -> String {
    let mut text = String::new();
    if !logged.is_empty() {
        text.push_str(&row(["", "NUMBER", "PARENT", "CREATED", "DISK", "FILES"], "MESSAGE"));
    }
    for one in logged {
        let created = one.snapshot.created.split('.').next().unwrap_or_default().trim_end_matches('Z');
        let (number, parent) = (one.snapshot.number.to_string(), one.snapshot.parent.to_string());
        let (bytes, files) = (human(one.used.bytes), one.used.files.to_string());
        let mark = if one.head { "*" } else { "" };
        let message = one.snapshot.message.as_deref().unwrap_or_default();
        text.push_str(&row(
            [mark, &number, &parent, &format!("{created}Z"), &bytes, &files],
            &escaped(message.as_bytes()),
        ));
    }
    text
}

fn row([mark, number, parent, created, bytes, files]: [&str; 6], message: &str) -> String {
    let line = format!("{mark:1} {number:>6}  {parent:>6}  {created:<20}  {bytes:>10}  {files:>8}  {message}");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_marked_and_a_message_is_one_line() {
        let snapshot = Snapshot {
            number: 2,
            parent: 1,
            created: "2026-01-02T03:04:05.678Z".to_owned(),
            message: Some("two\nlines".to_owned()),
            layer: "2".to_owned(),
        };
        let text = table(&[Logged { snapshot, head: true, used: Used::default() }]);
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("*      2       1  2026-01-02T03:04:05Z "), "{text}");
        assert!(line.ends_with("  two\\nlines"), "{text}");
        assert_eq!(table(&[]), "");
    }
}
