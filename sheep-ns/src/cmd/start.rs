//! `start`: the program of a created container begins.

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::state_root;
use crate::cli::{Global, Id};
use crate::exit;
use crate::hooks;
use crate::init::channel::{Channel, Message};
use crate::oci::Status;
use crate::state::{Record, wait_for_end};
use crate::sys;

/// `start`
pub fn run(global: &Global, args: &Id) -> Result<u8> {
    let root = state_root(global)?;
    let (dir, record) = root.lock(&args.id)?;
    match root.status(&record)? {
        Status::Created => {}
        status => {
            let status = status.name();
            return Err(exit::busy(format!("container {} is {status}; only a created one is started", args.id)));
        }
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(dir.start_socket()).context("start socket")?;
    if let Err(error) = connect(&socket, &address) {
        if error == Errno::CONNREFUSED {
            // A `start` that died has done it, all but this.
            dir.started()?;
            return Err(exit::busy(format!("container {} is running; only a created one is started", args.id)));
        }
        return Err(error).with_context(|| format!("container {}", args.id));
    }
    let channel = Channel::from(socket);
    match channel.receive()? {
        Message::Closed => {}
        Message::Failed(error) => {
            dir.started()?;
            return Err(error);
        }
        other => bail!("unexpected {other:?}"),
    }
    dir.started()?;
    let hooked = root.config(&args.id).and_then(|config| match &config.hooks {
        Some(hooks) => hooks::poststart(Some(hooks), &root.state(&record)?),
        None => Ok(()),
    });
    if let Err(error) = hooked {
        stop(&record)?;
        return Err(error);
    }
    Ok(0)
}

/// Ends a container that is not to go on. It is stopped then, and `delete` does the rest.
fn stop(record: &Record) -> Result<()> {
    match record.process.as_ref().map(|process| process.open()).transpose()?.flatten() {
        Some(pidfd) => match sys::pidfd_send(&pidfd, libc::SIGKILL) {
            Err(e) if Errno::from_io_error(&e) != Some(Errno::SRCH) => Err(e).context("kill the program"),
            _ => wait_for_end(&pidfd),
        },
        None => Ok(()),
    }
}
