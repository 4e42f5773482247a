//! The channel between the two sides of the clone: a pair of sockets that keep message boundaries, close-on-exec. That it
//! closes in the child without an error message means: the program runs.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};

use crate::exit::{self, Kind};

/// What one side tells the other.
#[derive(Debug)]
pub enum Message {
    /// Parent: the id maps are written.
    Mapped,
    /// Parent: the network devices are in the child's network.
    Moved,
    /// Child: its mounts are made, and it waits for [`Message::Hooked`].
    Filled,
    /// Parent: the hooks that run outside have run; with the child's process id as it is outside.
    Hooked(i32),
    /// Child: set up, and waiting for [`Message::Commit`].
    Ready,
    /// Parent: the container is on record; it may outlive its maker.
    Commit,
    /// Child: nothing ties it to its maker any more.
    Detached,
    /// Child: the terminal's master end.
    Terminal(OwnedFd),
    /// Child: failed.
    Failed(anyhow::Error),
    /// The other end is closed.
    Closed,
}

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// An error message is cut at this many bytes.
const LONGEST: usize = 4096;

/// Both ends of a new channel.
pub fn pair() -> Result<(Channel, Channel)> {
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("socketpair")?;
    Ok((Channel { socket: a }, Channel { socket: b }))
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Channel { socket }
    }
}

impl Channel {
    /// Sends a message. That the other end is gone is an error (EPIPE), never a signal.
    pub fn send(&self, message: &Message) -> Result<()> {
        let bytes = match message {
            Message::Mapped => b"M".to_vec(),
            Message::Moved => b"N".to_vec(),
            Message::Filled => b"F".to_vec(),
            Message::Hooked(pid) => format!("H{pid}").into_bytes(),
            Message::Ready => b"R".to_vec(),
            Message::Commit => b"C".to_vec(),
            Message::Detached => b"D".to_vec(),
            Message::Terminal(master) => return send_fd(self.as_fd(), b"T", master.as_fd()),
            Message::Failed(error) => failure(error),
            Message::Closed => return Ok(()),
        };
        send(&self.socket, &bytes, SendFlags::NOSIGNAL).context("tell the other side of the clone")?;
        Ok(())
    }

    /// Waits for the next message.
    pub fn receive(&self) -> Result<Message> {
        self.take(RecvFlags::empty())?.context("no message")
    }

    /// The next message where one is there already.
    pub fn try_receive(&self) -> Result<Option<Message>> {
        self.take(RecvFlags::DONTWAIT)
    }

    fn take(&self, flags: RecvFlags) -> Result<Option<Message>> {
        let mut bytes = [0u8; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let buffers = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, buffers, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Ok(Some(Message::Closed)),
                done => break done.context("hear from the other side of the clone")?,
            }
        };
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let text = bytes.get(..received.bytes).unwrap_or_default();
        Ok(Some(match (text, fd) {
            ([], _) => Message::Closed,
            (b"M", _) => Message::Mapped,
            (b"N", _) => Message::Moved,
            (b"F", _) => Message::Filled,
            (b"R", _) => Message::Ready,
            (b"C", _) => Message::Commit,
            (b"D", _) => Message::Detached,
            (b"T", Some(fd)) => Message::Terminal(fd),
            ([b'H', pid @ ..], _) => Message::Hooked(
                std::str::from_utf8(pid).ok().and_then(|pid| pid.parse().ok()).context("no process id")?,
            ),
            ([b'E', kind, text @ ..], _) => Message::Failed(failed(*kind, text)),
            _ => bail!("the other side of the clone sent what nobody expects"),
        }))
    }
}

/// Connects to a socket whose path may be longer than a socket's address can be. `what` asks for it, for messages.
pub fn connect(path: &Path, what: &str) -> Result<UnixStream> {
    let name = || format!("{what} {}", path.display());
    let dir = File::open(path.parent().unwrap_or(Path::new("/"))).with_context(name)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    UnixStream::connect(short.join(path.file_name().unwrap_or_default())).with_context(name)
}

/// Sends a descriptor with a few bytes.
pub fn send_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        bail!("no room for a descriptor in a message");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).context("send a descriptor")?;
    Ok(())
}

const KINDS: [(u8, Kind); 5] = [
    (b'u', Kind::Usage),
    (b'n', Kind::NotFound),
    (b'b', Kind::Busy),
    (b'x', Kind::CannotExecute),
    (b'p', Kind::NoProgram),
];

fn failure(error: &anyhow::Error) -> Vec<u8> {
    let kind = exit::kind(error).and_then(|kind| KINDS.iter().find(|(_, k)| *k == kind)).map_or(b'-', |(c, _)| *c);
    let mut bytes = vec![b'E', kind];
    bytes.extend_from_slice(format!("{error:#}").as_bytes());
    bytes.truncate(LONGEST);
    bytes
}

fn failed(kind: u8, text: &[u8]) -> anyhow::Error {
    let text = String::from_utf8_lossy(text).into_owned();
    match KINDS.iter().find(|(c, _)| *c == kind) {
        Some((_, kind)) => exit::fault(*kind, text),
        None => anyhow!(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_left() {
        let (a, b) = pair().unwrap();
        assert!(b.try_receive().unwrap().is_none());
        a.send(&Message::Ready).unwrap();
        a.send(&Message::Failed(exit::fault(Kind::NoProgram, "exec x: no such file or directory"))).unwrap();
        let (end, _) = rustix::pipe::pipe().unwrap();
        a.send(&Message::Terminal(end)).unwrap();
        a.send(&Message::Hooked(4711)).unwrap();
        drop(a);
        assert!(matches!(b.receive().unwrap(), Message::Ready));
        match b.receive().unwrap() {
            Message::Failed(error) => {
                assert_eq!(exit::kind(&error), Some(Kind::NoProgram));
                assert_eq!(error.to_string(), "exec x: no such file or directory");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(b.receive().unwrap(), Message::Terminal(_)));
        assert!(matches!(b.receive().unwrap(), Message::Hooked(4711)));
        assert!(matches!(b.receive().unwrap(), Message::Closed));
    }
}
