//! `start`: the program of a created container begins.

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::state_root;
use crate::cli::{Global, Id};
use crate::exit;
use crate::init::channel::{Channel, Message};
use crate::oci::Status;

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
    let hooked = root.hooks(&record).and_then(|hooks| match hooks {
        Some(hooks) => hooks.poststart(root.state(&record)?.pid),
        None => Ok(()),
    });
    if let (Err(_), Some(process)) = (&hooked, &record.process) {
        // It is not to go on. It is stopped then, and `delete` does the rest.
        process.kill()?;
    }
    hooked.map(|()| 0)
}
