//! A container's log: JSON lines `{"time", "stream", "log"}`.
//!
//! `log` has the line's own newline in it. A piece without one (the end of a line that is longer than 16 KiB is still to
//! come, or the container ended without a newline) says `"partial": true`. Bytes that are not UTF-8 take the form that
//! names have in documents: `{"base64": "…"}`.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use sheep_overlay::doc::{name_from_json, name_to_json};
use sheep_overlay::state;

/// The longest piece of a line that is kept in memory and written as one entry.
const LONGEST: usize = 16 * 1024;

/// One of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output; of a container with a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    file: File,
    unfinished: [Vec<u8>; 2],
}

impl Log {
    /// Opens a log to append to; made where absent.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Ok(Log { file: file.with_context(|| path.display().to_string())?, unfinished: [Vec::new(), Vec::new()] })
    }

    /// Takes what came from a stream. Whole lines are written, the rest waits for its end.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        let rest = &mut self.unfinished[stream as usize];
        let mut entries = Vec::new();
        let time = state::now();
        while !bytes.is_empty() {
            let room = &bytes[..bytes.len().min(LONGEST - rest.len())];
            let taken = room.iter().position(|&b| b == b'\n').map_or(room.len(), |newline| newline + 1);
            rest.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if rest.ends_with(b"\n") || rest.len() == LONGEST {
                append(&mut entries, &time, stream, rest);
                rest.clear();
            }
        }
        if rest.is_empty() {
            // Most of the time nothing is held back, and a monitor is to be small for years.
            *rest = Vec::new();
        }
        put(&mut self.file, &entries);
    }

    /// Writes what is left at the end of a stream.
    pub fn end(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.unfinished[stream as usize]);
        if !rest.is_empty() {
            let mut entries = Vec::new();
            append(&mut entries, &state::now(), stream, &rest);
            put(&mut self.file, &entries);
        }
    }
}

fn put(file: &mut File, entries: &[u8]) {
    // A full disk costs lines of the log; it must neither stop the container nor lose its exit code.
    let _: io::Result<()> = file.write_all(entries);
}

fn append(entries: &mut Vec<u8>, time: &str, stream: Stream, bytes: &[u8]) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let log = name_to_json(OsStr::from_bytes(bytes));
    let partial = if bytes.ends_with(b"\n") { "" } else { r#","partial":true"# };
    entries.extend_from_slice(format!(r#"{{"time":"{time}","stream":"{stream}","log":{log}{partial}}}"#).as_bytes());
    entries.push(b'\n');
}

/// An entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, RFC 3339 UTC.
    pub time: String,
    /// Where it came from.
    pub stream: Stream,
    /// What was written.
    pub bytes: Vec<u8>,
}

/// Reads one line of a log; `None` where it is corrupt.
pub fn parse(line: &[u8]) -> Option<Entry> {
    #[derive(Deserialize)]
    struct Line {
        time: String,
        stream: Stream,
        log: Value,
    }
    let Line { time, stream, log } = serde_json::from_slice(line).ok()?;
    Some(Entry { time, stream, bytes: name_from_json(&log)?.into_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went_in() {
        let path = std::env::temp_dir().join(format!("sheep-run-log-{}", state::new_id().unwrap()));
        let mut log = Log::open(&path).unwrap();
        let long = [b"x".repeat(40_000), b"\n".to_vec()].concat();
        for piece in [&b"one\ntw"[..], b"o\n\xff\x00\"\\\n", &long, b"tail"] {
            log.write(Stream::Stdout, piece);
        }
        log.write(Stream::Stderr, b"err\n");
        log.end(Stream::Stdout);
        log.end(Stream::Stderr);
        let text = std::fs::read(&path).unwrap();
        let lines: Vec<&[u8]> = text.split_inclusive(|&b| b == b'\n').collect();
        assert!(lines.iter().all(|line| line.ends_with(b"\n") && line.len() < 6 * LONGEST));
        let entries: Vec<Entry> = lines.iter().map(|line| parse(line).unwrap()).collect();
        let of = |stream| -> Vec<u8> {
            entries.iter().filter(|entry| entry.stream == stream).flat_map(|entry| entry.bytes.clone()).collect()
        };
        assert_eq!(of(Stream::Stdout), [&b"one\ntwo\n\xff\x00\"\\\n"[..], &long, b"tail"].concat());
        assert_eq!(of(Stream::Stderr), b"err\n");
        let partial = lines.iter().filter(|line| String::from_utf8_lossy(line).contains(r#""partial":true"#)).count();
        assert_eq!(partial, 3, "two pieces of the long line, and the tail");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn corrupt_lines_are_seen() {
        for bad in [&b""[..], b"{", b"{}", b"\0\0\0", br#"{"time":"t","stream":"stdin","log":"x"}"#] {
            assert_eq!(parse(bad), None);
        }
    }
}
