//! How far a command is: bars on a terminal, or lines of JSON on stderr; on a pipe nothing.
//!
//! Who reads only counts bytes; a thread of its own looks at the counts now and then and shows them.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::ProgressMode;

/// Before this nothing is shown: most commands are done by then.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often the counts are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What is being read, and how it is shown. Dropped, the bars are gone, and the last counts are told.
pub struct Progress {
    parts: Arc<Mutex<Vec<Part>>>,
    /// Dropped, it ends the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Something that is read.
struct Part {
    name: String,
    /// How many bytes it has, where that is known.
    total: Option<u64>,
    came: Arc<AtomicU64>,
    /// What was shown last.
    shown: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins to show what is added.
    pub fn start(mode: ProgressMode) -> Self {
        let parts = Arc::new(Mutex::new(Vec::new()));
        let json = mode == ProgressMode::Json;
        if mode == ProgressMode::None || (!json && !io::stderr().is_terminal()) {
            return Progress { parts, end: None, thread: None };
        }
        let (end, ended) = channel();
        let shared = Arc::clone(&parts);
        let thread = thread::spawn(move || if json { tell(&shared, &ended) } else { draw(&shared, &ended) });
        Progress { parts, end: Some(end), thread: Some(thread) }
    }

    /// Something that is read from now on: its name, how many bytes it has, where that is known. Gives where they are counted.
    pub fn add(&self, name: &str, total: Option<u64>) -> Arc<AtomicU64> {
        let came = Arc::new(AtomicU64::new(0));
        let part = Part { name: name.to_owned(), total, came: Arc::clone(&came), shown: None, bar: None };
        lock(&self.parts).push(part);
        came
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It only shows; a panic there is none of the command's.
            let _ = thread.join();
        }
    }
}

fn lock(parts: &Mutex<Vec<Part>>) -> std::sync::MutexGuard<'_, Vec<Part>> {
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(ended: &Receiver<()>, wait: Duration) -> bool {
    ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
}

/// Prints a line for each part that went on, and at the end for all.
fn tell(parts: &Mutex<Vec<Part>>, ended: &Receiver<()>) {
    loop {
        let over = is_over(ended, TICK);
        for part in lock(parts).iter_mut() {
            let came = part.came.load(Ordering::Relaxed);
            if part.shown != Some(came) {
                part.shown = Some(came);
                let line = json!({ "progress": { "name": part.name, "bytes": came, "total": part.total } });
                // Nobody who reads it is no reason to end.
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
        if over {
            return;
        }
    }
}

fn draw(parts: &Mutex<Vec<Part>>, ended: &Receiver<()>) {
    if is_over(ended, PATIENCE) {
        return;
    }
    let bars = MultiProgress::new();
    while !is_over(ended, TICK) {
        for part in lock(parts).iter_mut() {
            let came = part.came.load(Ordering::Relaxed);
            let bar = part.bar.get_or_insert_with(|| bars.add(bar(&part.name, part.total)));
            bar.set_position(came);
            if Some(came) == part.total {
                bar.finish_and_clear();
            }
        }
    }
    // What the command has to say is to stand alone.
    let _ = bars.clear();
}

fn bar(name: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix:20} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}",
        ),
        None => (ProgressBar::no_length(), "{prefix:20} {spinner} {bytes:>10} {bytes_per_sec:>12}"),
    };
    let short = name.strip_prefix("sha256:").map_or(name, |hex| &hex[..hex.len().min(12)]);
    bar.with_prefix(short.to_owned())
        .with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
