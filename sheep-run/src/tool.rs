//! Starting a sibling: a document in, a document out, its error passed on as one line, its exit code kept.
//!
//! This is the only way from here to the other three programs' work. What is started is a [`Step`], plain data, so that
//! `explain` prints what `run` does from the same lines of code.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use sheep_overlay::exit;

use crate::signals::{Interrupted, Signals};

/// `sheep-images`
pub const IMAGES: &str = "sheep-images";
/// `sheep-overlay`
pub const OVERLAY: &str = "sheep-overlay";
/// `sheep-ns`
pub const NS: &str = "sheep-ns";

/// A command line of a sibling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The program's name.
    pub tool: &'static str,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Step {
    /// A step from its words; more can be pushed onto `args`.
    pub fn new<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(tool: &'static str, args: I) -> Self {
        Step { tool, args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect() }
    }

    /// The step as a command to be spawned; everything but the arguments is as std has it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(find(self.tool));
        command.args(&self.args);
        command
    }
}

/// Where a sibling is: in `$SHEEP_BIN_DIR`, else beside this program, else left to `$PATH`.
pub fn find(tool: &str) -> PathBuf {
    let named = env::var_os("SHEEP_BIN_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let beside = || env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let is_there = |dir: PathBuf| Some(dir.join(tool)).filter(|file| file.is_file());
    named.and_then(is_there).or_else(|| beside().and_then(is_there)).unwrap_or_else(|| tool.into())
}

/// A sibling that failed: its code, and its own words.
#[derive(Debug)]
pub struct ToolError {
    /// Which.
    pub tool: &'static str,
    /// Its exit code, 128+N for signal N.
    pub code: i32,
    /// Its line, without its name.
    pub message: String,
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ToolError {}

/// The exit code of the sibling that this error came from, if it did.
pub fn code_of(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| cause.downcast_ref::<ToolError>()).map(|error| error.code)
}

/// Runs a step that is part of making something: `input` is its stdin, what it prints is returned. It stays in our
/// process group, so that Ctrl-C ends it too; a signal to us alone is passed on, and is an [`Interrupted`] error.
pub fn make(step: &Step, input: Option<&[u8]>, signals: &Signals) -> Result<Vec<u8>> {
    let (child, out) = gather(step, step.command(), input, Some(signals))?;
    signals.check()?;
    judge(step, child, &out.errors)?;
    Ok(out.data)
}

/// [`make`] for a step that takes its time: on a terminal it shows there how far it is, and says there itself what goes wrong.
pub fn make_shown(step: &Step, signals: &Signals) -> Result<Vec<u8>> {
    if !std::io::stderr().is_terminal() {
        return make(step, None, signals);
    }
    let mut command = step.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let (child, out) = watch(step, command, Some(signals))?;
    signals.check()?;
    if !child.success() {
        return Err(failure(step.tool, child, Some("the image could not be had")).into());
    }
    Ok(out.data)
}

/// Runs a step that looks at something or takes something away: no Ctrl-C from the terminal reaches it, for what has
/// begun to be undone is undone to the end.
pub fn settle(step: &Step) -> Result<Vec<u8>> {
    let mut command = step.command();
    command.process_group(0);
    let (child, out) = gather(step, command, None, None)?;
    judge(step, child, &out.errors)?;
    Ok(out.data)
}

/// What a child printed.
struct Gathered {
    data: Vec<u8>,
    errors: Vec<u8>,
}

fn gather(
    step: &Step,
    mut command: Command,
    input: Option<&[u8]>,
    signals: Option<&Signals>,
) -> Result<(ExitStatus, Gathered)> {
    command.stdin(match input {
        Some(bytes) => Stdio::from(in_memory(bytes)?),
        None => Stdio::null(),
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    watch(step, command, signals)
}

/// Starts a command, and takes in what it prints to its pipes.
fn watch(step: &Step, mut command: Command, signals: Option<&Signals>) -> Result<(ExitStatus, Gathered)> {
    let mut child = spawn(step.tool, &mut command)?;
    let mut out = Gathered { data: Vec::new(), errors: Vec::new() };
    let mut interrupted = None;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    while stdout.is_some() || stderr.is_some() {
        let fds = [
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
            signals.map(AsFd::as_fd).filter(|_| interrupted.is_none()),
        ];
        let [data, errors, signal] = wait_for(fds)?;
        if data && !read_some(&mut stdout, &mut out.data) {
            stdout = None;
        }
        if errors && !read_some(&mut stderr, &mut out.errors) {
            stderr = None;
        }
        if signal && let Some(caught) = signals.and_then(Signals::next_ending) {
            interrupted = Some(caught.signal);
            if !caught.from_terminal {
                send(&child, caught.signal);
            }
        }
    }
    let status = child.wait().with_context(|| step.tool.to_owned())?;
    match interrupted {
        Some(signal) => Err(Interrupted(signal).into()),
        None => Ok((status, out)),
    }
}

/// Starts a program; that it is not there is said with what to do about it.
pub fn spawn(tool: &str, command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow!("{tool} is neither in $SHEEP_BIN_DIR, nor beside sheep-run, nor on PATH; install the four together")
        }
        _ => anyhow::Error::new(error).context(format!("start {tool}")),
    })
}

/// Sends a signal to a child that has not been waited for: its process id is still its own.
pub fn send(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // A child that has ended already needs no signal.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Which of the descriptors have something to read, or have come to their end. Waits for the first.
pub fn wait_for<const N: usize>(fds: [Option<BorrowedFd<'_>>; N]) -> Result<[bool; N]> {
    wait_with(fds, |polled| poll(polled, None))
}

/// [`wait_for`] with another way to poll.
pub fn wait_with<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    poll: impl Fn(&mut [PollFd<'_>]) -> rustix::io::Result<usize>,
) -> Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut polled) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
    let mut results = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|fd| fd.is_some() && results.next().unwrap_or(false)))
}

fn read_some(from: &mut Option<impl Read>, to: &mut Vec<u8>) -> bool {
    let Some(from) = from else { return false };
    let mut buffer = [0; 8192];
    match from.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(n) => {
            to.extend_from_slice(&buffer[..n]);
            true
        }
    }
}

/// Bytes as a file to read: unlike a pipe it takes any size at once, so nobody has to stand by and feed it.
pub fn in_memory(bytes: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create("sheep-document", MemfdFlags::CLOEXEC).context("memfd_create")?);
    file.write_all(bytes).and_then(|()| file.seek(SeekFrom::Start(0))).context("document in memory")?;
    Ok(file)
}

/// Passes on what a sibling said: its warnings as they are; of a failure the last line is the error.
fn judge(step: &Step, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(stderr);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let error = if status.success() { None } else { Some(failure(step.tool, status, lines.pop())) };
    for line in lines {
        let (program, message) = line.split_once(": ").unwrap_or((step.tool, line));
        exit::warn(program, message);
    }
    error.map_or(Ok(()), |error| Err(error.into()))
}

/// The error of a sibling that ended with `status`, whose last line on stderr was `line`.
pub fn failure(tool: &'static str, status: ExitStatus, line: Option<&str>) -> ToolError {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let message = match (status.signal(), line) {
        (Some(signal), _) => format!("{tool} was killed by signal {signal}"),
        (None, Some(line)) => shorten(tool, line).to_owned(),
        (None, None) => format!("{tool} ended with exit code {code} and no word"),
    };
    ToolError { tool, code, message }
}

/// A sibling's error as part of ours: without its name, and without the verb and the object where ours says as much.
fn shorten<'a>(tool: &str, line: &'a str) -> &'a str {
    let line = line.strip_prefix(tool).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(line);
    if let Some((_, reason)) = line.strip_prefix("unpack ").and_then(|rest| rest.split_once(": ")) {
        return reason;
    }
    let verbs = ["run: ", "exec: ", "spec: ", "create: ", "start: "];
    verbs.iter().find_map(|verb| line.strip_prefix(verb)).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_passed_on_in_one_line() {
        let table = [
            ("sheep-images", "sheep-images: unpack nosuch: no such image", "no such image"),
            ("sheep-ns", "sheep-ns: run: memory limit: no controller", "memory limit: no controller"),
            ("sheep-overlay", "sheep-overlay: mount /a: upper is in use", "mount /a: upper is in use"),
            ("sheep-ns", "something else", "something else"),
        ];
        for (tool, line, want) in table {
            let error = failure(tool, ExitStatus::from_raw(3 << 8), Some(line));
            assert_eq!((error.code, error.message.as_str()), (3, want));
        }
        assert_eq!(failure("sheep-ns", ExitStatus::from_raw(9), None).message, "sheep-ns was killed by signal 9");
    }

    #[test]
    fn a_document_larger_than_a_pipe_goes_in_and_comes_out() {
        let big = vec![b'x'; 300_000];
        let step = Step::new("cat", [] as [&str; 0]);
        let (status, out) = gather(&step, step.command(), Some(&big), None).unwrap();
        assert!(status.success());
        assert_eq!(out.data, big);
    }
}
