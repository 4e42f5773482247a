//! `events`: what a container uses, again and again, and who was killed because memory was out. One JSON object a line, as runc
//! prints them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{group_of, print, state_root};
use crate::cgroup::Cgroup;
use crate::cli::{Events, Global};
use crate::exit;

/// `events`. Ends with the container's first process; with `--stats` at once.
pub fn run(global: &Global, args: &Events) -> Result<u8> {
    let interval = duration(&args.interval)?;
    let root = state_root(global)?;
    let record = root.read(&args.id)?;
    let stopped = || exit::busy(format!("container {} is stopped; nothing is used any more", args.id));
    let process = record.process.as_ref().ok_or_else(stopped)?.open()?.ok_or_else(stopped)?;
    let group = group_of(&record, "events")?;
    if args.stats {
        say(&args.id, "stats", Some(group.stats()?))?;
        return Ok(0);
    }
    stream(&args.id, &group, &process, interval)?;
    Ok(0)
}

fn stream(id: &str, group: &Cgroup, process: &OwnedFd, interval: Duration) -> Result<()> {
    let memory = group.memory_events()?;
    let mut killed = group.oom_kills()?.unwrap_or(0);
    let mut next = Instant::now() + interval;
    loop {
        let mut fds = vec![PollFd::new(process, PollFlags::IN)];
        fds.extend(memory.as_ref().map(|memory| PollFd::new(memory, PollFlags::PRI)));
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            polled => polled.context("poll")?,
        };
        let ended = !fds[0].revents().is_empty();
        // The end of the first process may be what is to be told, so this comes before it.
        let now = group.oom_kills()?.unwrap_or(killed);
        if now > killed {
            say(id, "oom", None)?;
            killed = now;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            say(id, "stats", Some(group.stats()?))?;
            next = Instant::now() + interval;
        }
    }
}

fn say(id: &str, kind: &str, data: Option<Value>) -> Result<()> {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data;
    }
    print(format!("{event}\n").as_bytes())
}

/// `5s`, `100ms`, `1.5m`, `1h`. Usage (2) for what is none, or nothing.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || exit::usage(format!("--interval {text:?}: not a time like 5s, 100ms or 1m"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number = digits.parse::<f64>().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).ok().filter(|time| *time >= Duration::from_millis(1)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, millis) in [("5s", 5000), ("100ms", 100), ("1.5m", 90_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "5", "0s", "-1s", "s", "5x", "1e999s", "nans", "infs", "0.1ms"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
