//! `list`: the containers.

use anyhow::{Context, Result};
use serde_json::json;

use super::{print, state_root};
use crate::cli::{Global, List, ListFormat};

/// `list`
pub fn run(global: &Global, args: &List) -> Result<u8> {
    let root = state_root(global)?;
    let mut rows = Vec::new();
    for record in root.all()? {
        rows.push((root.state(&record)?, record));
    }
    let text = match (args.quiet, args.format) {
        (true, _) => rows.iter().map(|(state, _)| format!("{}\n", state.id)).collect(),
        (false, ListFormat::Json) => {
            let list: Vec<_> = rows
                .iter()
                .map(|(state, record)| {
                    json!({"ociVersion": state.oci_version, "id": state.id, "pid": state.pid,
                        "status": state.status.name(), "bundle": state.bundle, "created": record.created,
                        "owner": owner(record.owner)})
                })
                .collect();
            format!("{}\n", serde_json::to_string_pretty(&list).context("list")?)
        }
        (false, ListFormat::Table) => {
            let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let cells = rows.iter().map(|(state, record)| {
                [
                    state.id.clone(),
                    state.pid.to_string(),
                    state.status.name().to_owned(),
                    state.bundle.to_string_lossy().escape_debug().to_string(),
                    record.created.clone(),
                    owner(record.owner),
                ]
            });
            table(std::iter::once(header).chain(cells).collect())
        }
    };
    print(text.as_bytes())?;
    Ok(0)
}

/// A user's name by this host's /etc/passwd, else the number.
fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let wanted = uid.to_string();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == wanted).then(|| name.to_owned())
    });
    name.unwrap_or(wanted)
}

fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}
