//! A program in the foreground: it gets the signals we get, and its output may go into a log on the way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags};

use crate::log::{Log, Stream};
use crate::signals::Signals;
use crate::tool;

/// Runs a program to its end. Without `interactive` its stdin is /dev/null. With a log its output is copied to it and
/// to our own; without, it has our stdout and stderr themselves. Signals sent to us are passed on; those that come from
/// the terminal it has got already.
pub fn run(
    name: &str,
    mut command: Command,
    interactive: bool,
    log: Option<Log>,
    signals: &Signals,
) -> Result<ExitStatus> {
    command.stdin(if interactive { Stdio::inherit() } else { Stdio::null() });
    if log.is_some() {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = tool::spawn(name, &mut command)?;
    let (out, err) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    let mut tee = Tee { log, out: readable(out)?, err: readable(err)? };
    let ended = pidfd(&child)?;
    loop {
        let fds = [
            tee.out.as_ref().map(AsFd::as_fd),
            tee.err.as_ref().map(AsFd::as_fd),
            Some(signals.as_fd()),
            Some(ended.as_fd()),
        ];
        let [_, _, signal, ended] = tool::wait_for(fds)?;
        if signal {
            while let Some(caught) = signals.next() {
                if !caught.from_terminal {
                    tool::send(&child, caught.signal);
                }
            }
        }
        tee.copy();
        if ended {
            break;
        }
    }
    tee.copy();
    if let Some(log) = &mut tee.log {
        log.end(Stream::Stdout);
        log.end(Stream::Stderr);
    }
    child.wait().context("wait")
}

fn readable(end: Option<OwnedFd>) -> Result<Option<File>> {
    let Some(end) = end else { return Ok(None) };
    fcntl_setfl(&end, OFlags::NONBLOCK).context("pipe")?;
    Ok(Some(File::from(end)))
}

fn pidfd(child: &Child) -> Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("process id")?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")
}

struct Tee {
    log: Option<Log>,
    out: Option<File>,
    err: Option<File>,
}

impl Tee {
    /// Copies all there is now.
    fn copy(&mut self) {
        let Some(log) = &mut self.log else { return };
        copy(&mut self.out, &mut io::stdout().lock(), log, Stream::Stdout);
        copy(&mut self.err, &mut io::stderr().lock(), log, Stream::Stderr);
    }
}

fn copy(from: &mut Option<File>, to: &mut impl Write, log: &mut Log, stream: Stream) {
    let mut buffer = [0; 16384];
    while let Some(file) = from {
        match file.read(&mut buffer) {
            Ok(0) => *from = None,
            Ok(n) => {
                log.write(stream, &buffer[..n]);
                // Our reader has gone: close our end too, so that the program notices as it would without us.
                if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
                    *from = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => *from = None,
        }
    }
}
