//! `sheep-run logs`: what a container wrote, each stream to ours.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use sheep_overlay::exit;

use crate::PROGRAM;
use crate::cli::Logs;
use crate::locks::{self, Supervision};
use crate::log::{self, Stream};
use crate::record::Home;
use crate::repair;

/// How often `-f` looks whether the container has ended; what is written is seen at once.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Prints a container's log. With `--follow`, until it has ended.
pub fn logs(home: &Home, flags: &Logs) -> Result<u8> {
    let record = repair::look_up(home, &flags.name)?;
    let Some(path) = &record.container.log else {
        bail!("it keeps no log; 'run' in the foreground keeps none with --rm or -t");
    };
    let mut printer = Printer { timestamps: flags.timestamps, in_line: [false; 2], is_corrupt: false };
    // A container that has not been started yet has written nothing.
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !flags.follow => return Ok(0),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    if !flags.follow {
        printer.print_all(&mut reader, &mut line)?;
        return Ok(0);
    }
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).context("inotify")?;
    inotify::add_watch(&watch, path.as_ref() as &Path, inotify::WatchFlags::MODIFY).context("inotify")?;
    loop {
        // Asked before reading: what was written before the end is then read after it.
        let is_written = matches!(locks::supervision(&record.dir)?, Supervision::Supervised(_));
        printer.print_all(&mut reader, &mut line)?;
        if !is_written {
            return Ok(0);
        }
        let mut polled = [PollFd::new(&watch, PollFlags::IN)];
        if poll(&mut polled, Some(&LOOK)).is_ok_and(|ready| ready > 0) {
            let mut events = [0; 4096];
            // Which events they are does not matter; that there are some does.
            let _ = rustix::io::read(&watch, &mut events);
        }
    }
}

struct Printer {
    timestamps: bool,
    /// For each stream: whether the last thing printed was a piece without a newline.
    in_line: [bool; 2],
    is_corrupt: bool,
}

impl Printer {
    /// Prints the entries that are whole. `line` carries the beginning of one that is still being written.
    fn print_all(&mut self, reader: &mut impl BufRead, line: &mut Vec<u8>) -> Result<()> {
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        while reader.read_until(b'\n', line).context("log")? > 0 && line.ends_with(b"\n") {
            match log::parse(line) {
                Some(entry) => {
                    let to: &mut dyn Write = if entry.stream == Stream::Stdout { &mut out } else { &mut err };
                    self.print(&entry, to).context("stdout")?;
                }
                None if !self.is_corrupt => {
                    self.is_corrupt = true;
                    exit::warn(PROGRAM, "logs: lines that are no log entries are left out");
                }
                None => {}
            }
            line.clear();
        }
        out.flush().context("stdout")
    }

    fn print(&mut self, entry: &log::Entry, to: &mut dyn Write) -> io::Result<()> {
        let in_line = &mut self.in_line[entry.stream as usize];
        if self.timestamps && !*in_line {
            write!(to, "{} ", entry.time)?;
        }
        *in_line = !entry.bytes.ends_with(b"\n");
        to.write_all(&entry.bytes)
    }
}
