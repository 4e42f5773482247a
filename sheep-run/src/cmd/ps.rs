//! `sheep-run ps`: the containers, as a table or as documents.

use anyhow::Result;
use jiff::Timestamp;
use sheep_overlay::doc::write_out;
use sheep_overlay::exit;

use crate::PROGRAM;
use crate::cli::Ps;
use crate::record::{self, Container, Home, Record, Status};
use crate::repair;

/// Lists the running containers, or all; newest first. A corrupt record is named on stderr and the others are listed.
pub fn ps(home: &Home, flags: &Ps) -> Result<u8> {
    record::sweep(home)?;
    let mut failed = false;
    let mut records = Vec::new();
    for dir in record::dirs(home)? {
        match repair::view(home, &dir) {
            Ok(record) => records.extend(record.filter(|record| flags.all || record.container.is_running())),
            Err(error) => {
                exit::print_line(PROGRAM, &error.context("ps"));
                failed = true;
            }
        }
    }
    records.sort_by(|a, b| b.container.created.cmp(&a.container.created));
    let mut out = Vec::new();
    if flags.json {
        for record in &records {
            out.extend(record.to_document()?.to_line());
        }
    } else {
        out = table(&records, Timestamp::now()).into_bytes();
    }
    write_out(&out)?;
    Ok(u8::from(failed))
}

fn table(records: &[Record], now: Timestamp) -> String {
    let header = ["CONTAINER ID", "NAME", "IMAGE", "COMMAND", "STATUS", "CREATED"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(records.iter().map(|record| row(record, now))).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn row(record: &Record, now: Timestamp) -> [String; 6] {
    let container = &record.container;
    let image = record.document.0.get("image").and_then(|image| image["reference"].as_str()).unwrap_or("-");
    [
        container.id.clone(),
        container.name.clone(),
        image.to_owned(),
        shortened(&container.command.join(" ")),
        status(container, now),
        ago(&container.created, now),
    ]
}

/// A command as a cell: on one line, and not wider than a screen has room for.
fn shortened(command: &str) -> String {
    let mut shown: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.chars().count() > 30 {
        shown = shown.chars().take(29).collect();
        shown.push('…');
    }
    shown
}

fn status(container: &Container, now: Timestamp) -> String {
    let since = |time: &Option<String>| time.as_deref().and_then(|time| age(time, now));
    match container.status {
        Status::Creating => "Creating".to_owned(),
        Status::Created => "Created".to_owned(),
        Status::Running => since(&container.started).map_or("Up".to_owned(), |age| format!("Up {age}")),
        Status::Stopped => {
            let code = container.exit_code.map_or("?".to_owned(), |code| code.to_string());
            let oom = if container.oom_killed { ", out of memory" } else { "" };
            let when = since(&container.finished).map_or(String::new(), |age| format!(" {age} ago"));
            format!("Exited ({code}{oom}){when}")
        }
    }
}

fn ago(time: &str, now: Timestamp) -> String {
    age(time, now).map_or("-".to_owned(), |age| format!("{age} ago"))
}

/// How long ago a time was, in its largest unit: `3 s`, `5 min`, `2 h`, `4 d`.
fn age(time: &str, now: Timestamp) -> Option<String> {
    let time: Timestamp = time.parse().ok()?;
    let seconds = (now.as_second() - time.as_second()).max(0);
    Some(match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let table = [
            ("2026-11-24T11:59:57.5Z", "3 s"),
            ("2026-11-24T11:54:10Z", "5 min"),
            ("2026-11-24T10:00:00Z", "2 h"),
            ("2026-11-20T11:00:00Z", "4 d"),
            ("2026-11-24T12:00:05Z", "0 s"),
        ];
        for (time, want) in table {
            assert_eq!(age(time, now).as_deref(), Some(want), "{time}");
        }
        assert_eq!(age("yesterday", now), None);
    }

    #[test]
    fn commands_stay_on_their_line() {
        assert_eq!(shortened("sh -c a\nb"), "sh -c a b");
        assert_eq!(shortened(&"x".repeat(40)).chars().count(), 30);
    }
}
