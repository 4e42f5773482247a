//! `--log`: errors as lines of a file, for the engine that called; and the time as text.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::cli::LogFormat;

/// Appends one line to the log: a JSON object, or text. That the log cannot be written is said on stderr: the message
/// itself was or will be there too.
pub fn write(file: Option<&Path>, format: LogFormat, level: &str, message: &str) {
    let Some(file) = file else { return };
    let time = now();
    let line = match format {
        LogFormat::Json => format!("{}\n", json!({"msg": message, "level": level, "time": time})),
        LogFormat::Text => format!("{time} {level} {}\n", message.escape_debug().to_string().replace("\\\"", "\"")),
    };
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if let Err(error) = written {
        crate::exit::warn("sheep-ns", &format!("--log {}: {error}", file.display()));
    }
}

/// The time now, RFC 3339, UTC, with microseconds.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_micros())
}

fn rfc3339(seconds: u64, micros: u32) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days to a date, by eras of 400 years that begin on 1 March (the leap day comes last).
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        let table = [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000007Z"),
            (1_795_305_599, "2026-11-21T23:59:59.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
        ];
        for (seconds, want) in table {
            assert_eq!(super::rfc3339(seconds, 7), want);
        }
    }
}
