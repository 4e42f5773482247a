//! The monitor: one small process for each container in the background. It is the container's parent, keeps its log,
//! waits for its end, and puts away what the container leaves.
//!
//! It is this program again, started with `monitor DATA STATES ID LOCK SUPERVISOR READY` (the last three are numbers of
//! inherited descriptors) and the container's document on stdin. It reads these few words itself: what the command line
//! parser would touch stays in memory for as long as the container lives.
//!
//! No threads and nothing to configure. Signals that end other programs are held back: a monitor ends when its container
//! has ended. If it is killed all the same, the container runs on, and the next command sees to it (repair.rs).

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use sheep_overlay::doc::Document;
use sheep_overlay::state::{self, DataRoot};

use crate::locks;
use crate::log::{Log, Stream};
use crate::record::{self, Home, KEY, Record, Status};
use crate::repair::{self, End};
use crate::steps;
use crate::sys;
use crate::tool::{self, NS, ToolError};

/// After how long without anything to do a monitor makes itself small.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The first word of a monitor's command line.
pub const VERB: &str = "monitor";

/// Starts a monitor for a container whose bundle is ready, and returns when the container's program runs. The monitor
/// takes over both locks. On an error nothing of `sheep-ns` is left; the mount is the caller's to undo.
pub fn launch(home: &Home, record: &Record, lock: &File, supervisor: &File) -> Result<()> {
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
    for fd in [lock.as_fd(), tell.as_fd()] {
        fcntl_setfd(fd, FdFlags::empty()).context("descriptor for the monitor")?;
    }
    let mut command = Command::new(env::current_exe().context("this program's path")?);
    command.arg(VERB).arg(home.data.path()).arg(&home.states).arg(&record.container.id);
    command.args([lock.as_raw_fd(), supervisor.as_raw_fd(), tell.as_raw_fd()].map(|fd| fd.to_string()));
    command.stdin(tool::in_memory(&record.to_document()?.to_line())?).stdout(Stdio::null()).stderr(Stdio::null());
    // It outlives us and is never waited for.
    tool::spawn("sheep-run", &mut command)?;
    drop(tell);
    fcntl_setfd(lock.as_fd(), FdFlags::CLOEXEC).context("descriptor for the monitor")?;
    let mut answer = String::new();
    File::from(ready).read_to_string(&mut answer).context("the monitor's answer")?;
    match answer.trim_end().split_once(' ') {
        None if answer == "ready\n" => Ok(()),
        Some((code, message)) => {
            Err(ToolError { tool: NS, code: code.parse().unwrap_or(1), message: message.to_owned() }.into())
        }
        None => {
            if home.has_state(&record.container.id) {
                tool::settle(&steps::delete(home, &record.container.id))?;
            }
            bail!("the monitor died before the container ran")
        }
    }
}

/// The monitor's whole life. `words` is what follows its verb.
pub fn main(words: &[OsString]) -> u8 {
    let [data, states, id, lock, supervisor, ready] = words else { return 2 };
    let number = |word: &OsStr| word.to_str().and_then(|word| word.parse::<RawFd>().ok()).filter(|&fd| fd > 2);
    let (Some(lock), Some(supervisor), Some(ready), Some(id)) =
        (number(lock), number(supervisor), number(ready), id.to_str())
    else {
        return 2;
    };
    if sys::close_all_but(&mut [lock, supervisor, ready]).is_err() {
        return 1;
    }
    let (lock, _supervisor, mut ready) = (sys::inherited(lock), sys::inherited(supervisor), sys::inherited(ready));
    let started = detach().and_then(|()| {
        // The siblings inherit the supervisor's lock and the ready pipe: if we are killed, neither the next command nor
        // the client takes us for gone while one of them is still at work.
        fcntl_setfd(lock.as_fd(), FdFlags::CLOEXEC).context("lock")?;
        let home = Home { data: DataRoot::open(Some(Path::new(data)))?, states: PathBuf::from(states) };
        let dir = home.bundle(id);
        let parked = start(&home, &dir).inspect_err(|_| {
            // The error that matters is the one already held.
            let _ = if home.has_state(id) { tool::settle(&steps::delete(&home, id)).map(|_| ()) } else { Ok(()) };
        })?;
        Ok((home, dir, parked))
    });
    let (home, dir, parked) = match started {
        Ok(started) => started,
        Err(error) => {
            let message = format!("{error:#}").replace('\n', " ");
            // If nobody listens any more, the next command finds what is left.
            let _ = writeln!(ready, "{} {message}", tool::code_of(&error).unwrap_or(1));
            return 1;
        }
    };
    // A client that was killed meanwhile changes nothing: the container runs and is recorded.
    let _ = ready.write_all(b"ready\n");
    drop((ready, lock));
    let end = parked.watch(id);
    // Whatever fails from here on leaves the supervisor file behind: the next command tries again, and says why not.
    let finished = locks::lock(&dir).and_then(|lock| repair::finish(&home, &dir, &lock, end));
    u8::from(finished.is_err())
}

/// Leaves the caller's session, terminal and directory.
fn detach() -> Result<()> {
    rustix::process::setsid().context("setsid")?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP] {
        mask.add(signal);
    }
    // Blocked rather than ignored: the siblings, and so the container, start with nothing of it.
    mask.thread_block().context("block signals")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("become a subreaper")?;
    env::set_current_dir("/").context("/")
}

/// What a monitor holds while its container runs.
#[derive(Debug)]
struct Parked {
    pid: Pid,
    pidfd: OwnedFd,
    out: Option<File>,
    err: Option<File>,
    /// Open, so that the container's stdin has no end.
    _stdin: Option<OwnedFd>,
    log: Log,
}

fn start(home: &Home, dir: &Path) -> Result<Parked> {
    let mut record = read_document(dir)?;
    let id = record.container.id.clone();
    let log = Log::open(&dir.join("log"))?;
    let (err, err_end) = pipe().context("pipe")?;
    let mut stdin = None;
    let mut console = None;
    let mut create;
    let out = if record.container.terminal {
        let socket = console_socket(dir)?;
        let at_socket = format!("/proc/{}/fd/{}/console", std::process::id(), socket.dir.as_raw_fd());
        create = steps::create(home, dir, &id, Some(Path::new(&at_socket))).command();
        create.stdin(Stdio::null()).stdout(Stdio::null());
        console = Some(socket);
        None
    } else {
        create = steps::create(home, dir, &id, None).command();
        let (out, out_end) = pipe().context("pipe")?;
        create.stdout(out_end);
        if record.container.interactive {
            let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
            create.stdin(read_end);
            stdin = Some(write_end);
        } else {
            create.stdin(Stdio::null());
        }
        Some(out)
    };
    create.stderr(err_end);
    // A leftover of another life must not be taken for this one's.
    let _ = fs::remove_file(dir.join("pid"));
    let mut child = tool::spawn(NS, &mut create)?;
    // The container holds the other ends now; ours must go, or the streams never end.
    drop(create);
    let status = child.wait().context(NS)?;
    if !status.success() {
        let mut said = Vec::new();
        // Up to what is there now: the other end may be held by somebody still.
        let _ = (&err).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let mut error = tool::failure(NS, status, said.lines().last());
        error.code = code_for_program(&error.message).unwrap_or(error.code);
        return Err(error.into());
    }
    let pid = record::read_pid(dir).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let pid = pid.ok_or_else(|| anyhow!("{NS} create wrote no process id"))?;
    // Before it starts: a container may end at once.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let out = match console {
        Some(socket) => Some(socket.receive(dir)?),
        None => out,
    };
    tool::settle(&steps::start(home, &id))?;
    let container = &mut record.container;
    container.status = Status::Running;
    container.pid = u32::try_from(pid.as_raw_nonzero().get()).ok();
    (container.exit_code, container.signal, container.oom_killed) = (None, None, false);
    (container.started, container.finished) = (Some(state::now()), None);
    record.save()?;
    Ok(Parked { pid, pidfd, out, err: Some(err), _stdin: stdin, log })
}

/// The exit code that `run` has for a program that is not there or cannot be executed. An OCI runtime's `create` has no
/// codes for that; engines go by the words, which are the same in all runtimes.
fn code_for_program(message: &str) -> Option<i32> {
    let endings = [("no such file or directory", 127), ("permission denied", 126)];
    let of_program = message.contains("exec ");
    endings.iter().find(|(words, _)| of_program && message.to_lowercase().contains(words)).map(|(_, code)| *code)
}

/// The container's record, from the document on stdin; stdin is /dev/null afterwards.
fn read_document(dir: &Path) -> Result<Record> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).context("stdin")?;
    let null = File::open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("/dev/null")?;
    let document = Document::parse(&text)?;
    let container = document.require(KEY, "sheep-run")?;
    Ok(Record { dir: dir.to_path_buf(), document, container })
}

/// A pipe whose reading end never blocks.
fn pipe() -> io::Result<(File, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    Ok((File::from(reader), writer))
}

/// The socket on which `sheep-ns` hands over a terminal's master end.
struct ConsoleSocket {
    listener: OwnedFd,
    /// The directory it is in. A socket's path must be short, which the way through this descriptor always is.
    dir: OwnedFd,
}

fn console_socket(dir: &Path) -> Result<ConsoleSocket> {
    let _ = fs::remove_file(dir.join("console"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir_fd = rustix::fs::open(dir, flags, Mode::empty()).with_context(|| dir.display().to_string())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/console", dir_fd.as_raw_fd())).context("socket")?;
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
    let listener = rustix::net::socket_with(kind.0, kind.1, kind.2, None).context("socket")?;
    rustix::net::bind(&listener, &address).context("bind the console socket")?;
    rustix::net::listen(&listener, 1).context("listen on the console socket")?;
    Ok(ConsoleSocket { listener, dir: dir_fd })
}

impl ConsoleSocket {
    /// Takes the master end, which has been sent by now, and closes the socket.
    fn receive(self, dir: &Path) -> Result<File> {
        fcntl_setfl(&self.listener, OFlags::NONBLOCK).context("console socket")?;
        let connection = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC)
            .with_context(|| format!("{NS} create sent no terminal"))?;
        let _ = fs::remove_file(dir.join("console"));
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 256];
        let mut buffers = [io::IoSliceMut::new(&mut data)];
        rustix::net::recvmsg(&connection, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .context("console socket")?;
        let rights = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = rights.ok_or_else(|| anyhow!("{NS} create sent no terminal"))?;
        fcntl_setfl(&master, OFlags::NONBLOCK).context("terminal")?;
        Ok(File::from(master))
    }
}

impl Parked {
    /// Keeps the log until the container's first process has ended, and tells how it did.
    fn watch(mut self, id: &str) -> End {
        let text = sys::Text::find();
        // What starting took is not needed again, whether the container is quiet or not.
        text.let_go();
        let wait = |polled: &mut [PollFd<'_>]| match poll(polled, Some(&QUIET)) {
            Ok(0) => text.poll_without(polled),
            ready => ready,
        };
        loop {
            let fds =
                [self.out.as_ref().map(AsFd::as_fd), self.err.as_ref().map(AsFd::as_fd), Some(self.pidfd.as_fd())];
            // Nothing can be done about a poll that fails but to wait for the end.
            let [out, err, ended] = tool::wait_with(fds, wait).unwrap_or([false, false, true]);
            if out {
                copy(&mut self.out, Stream::Stdout, &mut self.log, !ended);
            }
            if err {
                copy(&mut self.err, Stream::Stderr, &mut self.log, !ended);
            }
            if ended {
                break;
            }
        }
        // With its first process all others of the container are dead: what is in the pipes now is all there will be.
        copy(&mut self.out, Stream::Stdout, &mut self.log, false);
        copy(&mut self.err, Stream::Stderr, &mut self.log, false);
        self.log.end(Stream::Stdout);
        self.log.end(Stream::Stderr);
        let mut end = reap(self.pid);
        end.oom_killed = repair::oom_killed(id);
        end
    }
}

/// Copies what a stream has into the log: once, or until there is nothing more. At the stream's end it is closed.
fn copy(from: &mut Option<File>, stream: Stream, log: &mut Log, once: bool) {
    let mut buffer = [0; 4096];
    while let Some(file) = from {
        match file.read(&mut buffer) {
            Ok(n) if n > 0 => log.write(stream, &buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal whose last user has gone gives EIO.
            _ => *from = None,
        }
        if once {
            return;
        }
    }
}

/// Takes the exit status of the container's first process, whose parent we became when `sheep-ns create` ended.
fn reap(pid: Pid) -> End {
    match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
        Ok(Some((_, status))) => {
            let signal = status.terminating_signal();
            End { code: status.exit_status().or(signal.map(|signal| 128 + signal)), signal, oom_killed: false }
        }
        _ => End::default(),
    }
}
