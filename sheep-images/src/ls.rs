//! `ls`: the images there are.

use anyhow::{Context, Result, anyhow};
use sheep_overlay::{doc, exit};

use crate::cli::Ls;
use crate::store::Store;

/// Runs the verb. An image that is damaged is named on stderr, the others are listed, and the exit code is 1.
pub fn run(store: &Store, args: &Ls) -> Result<()> {
    let index = store.index().context("ls")?;
    let mut rows = vec![["REFERENCE", "DIGEST", "SIZE", "CREATED"].map(str::to_owned)];
    let mut out = Vec::new();
    let mut damaged = None;
    for descriptor in &index.manifests {
        let image = match store.load(descriptor) {
            Ok(image) => image,
            Err(error) => {
                let error =
                    error.context(format!("ls: {}", descriptor.ref_name().unwrap_or(descriptor.digest.as_str())));
                if let Some(earlier) = damaged.replace(error) {
                    exit::print_line("sheep-images", &earlier);
                }
                continue;
            }
        };
        if args.json {
            out.extend(store.document(&image)?.to_line());
            continue;
        }
        rows.push([
            image.reference.as_deref().map_or_else(|| "<none>".to_owned(), plain),
            image.digest.hex()[..12].to_owned(),
            human_size(image.layers().map(|(layer, _)| layer.size).sum()),
            image.created().map_or_else(|| "-".to_owned(), minute),
        ]);
    }
    if !args.json {
        out = table(&rows).into_bytes();
    }
    doc::write_out(&out)?;
    damaged.map_or(Ok(()), |error| Err(anyhow!("{error:#}")))
}

/// Text that others wrote, for a terminal: control characters escaped, as they would drive it.
fn plain(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Columns as wide as what is in them, two blanks between.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size for people: `12.3 MB`, in powers of 1000 as docker shows it.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 100.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A time of RFC 3339 to the minute, in UTC; as it stands where it is none.
pub fn minute(created: &str) -> String {
    match created.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => plain(created),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345, "12.3 kB"),
            (123_456, "123 kB"),
            (999_999, "1.0 MB"),
            (7_654_321_000, "7.7 GB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(minute("2026-11-24T02:03:04.5+01:00"), "2026-11-24 01:03");
        assert_eq!(minute("yesterday"), "yesterday");
        assert_eq!(minute("\x1b[2J\u{9b}1m\n"), "\\u{1b}[2J\\u{9b}1m\\n");
        assert_eq!(table(&[["a", "b"].map(str::to_owned), ["long", ""].map(str::to_owned)]), "a     b\nlong\n");
    }
}
