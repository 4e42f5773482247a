//! Loading a filter; and the agent that answers for `SCMP_ACT_NOTIFY`: it gets the descriptor of the questions over the
//! socket of `listenerPath`, with the container process state of the specification
//! (<https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#containerprocessstate>).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use serde_json::{Map, json};

use super::{Filter, Listener};
use crate::exit;
use crate::init::channel::{self, send_fd};
use crate::oci::{self, State};
use crate::sys;

/// An agent, connected before the container is made: nothing inside leads to its socket.
#[derive(Debug)]
pub struct Agent {
    socket: OwnedFd,
    listener: Listener,
    state: State,
    /// The process, as this host sees it.
    pid: Cell<i32>,
}

/// Connects to the agent of a filter; `None` where it asks nobody. `state` is what the agent is told of the container; its
/// `pid` is filled in later.
pub fn connect(filter: &Filter, state: State) -> Result<Option<Agent>> {
    let Some(listener) = filter.listener.clone() else { return Ok(None) };
    let socket = channel::connect(Path::new(&listener.path), "linux.seccomp: listenerPath")?.into();
    Ok(Some(Agent { socket, listener, state, pid: Cell::new(0) }))
}

impl Agent {
    /// Notes this process's id while /proc is still the host's.
    pub fn note_pid(&self) -> Result<()> {
        let link = std::fs::read_link("/proc/self").context("/proc/self")?;
        let pid = link.to_str().and_then(|pid| pid.parse().ok()).context("/proc/self: no process id")?;
        self.pid.set(pid);
        Ok(())
    }

    /// Its socket, which stays open until the filter is loaded.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn message(&self) -> Vec<u8> {
        let pid = self.pid.get();
        let mut message = Map::from_iter([
            ("ociVersion".to_owned(), oci::VERSION.into()),
            ("fds".to_owned(), json!(["seccompFd"])),
            ("pid".to_owned(), pid.into()),
        ]);
        if let Some(metadata) = &self.listener.metadata {
            message.insert("metadata".to_owned(), metadata.as_str().into());
        }
        message.insert("state".to_owned(), json!(State { pid, ..self.state.clone() }));
        serde_json::to_vec(&message).unwrap_or_default()
    }
}

/// Loads the filter for this process, which has one thread. It is in force when this returns.
pub fn load(filter: &Filter, agent: Option<&Agent>) -> Result<()> {
    match (&filter.listener, agent) {
        (None, _) => load_only(filter).map(drop),
        (Some(_), Some(agent)) => load_and_tell(filter, agent),
        (Some(_), None) => bail!("linux.seccomp: SCMP_ACT_NOTIFY: nobody is there to answer"),
    }
}

fn load_only(filter: &Filter) -> Result<Option<OwnedFd>> {
    sys::load_seccomp(&filter.program, filter.flags).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::ACCESS) => {
            anyhow!("linux.seccomp: needs process.noNewPrivileges, or CAP_SYS_ADMIN in the container's user namespace")
        }
        Some(Errno::INVAL) => anyhow!("linux.seccomp: this kernel does not take the filter; are its flags too new?"),
        Some(Errno::BUSY) => anyhow!("linux.seccomp: another filter that is in force here has a listener already"),
        _ => anyhow::Error::from(error).context("linux.seccomp: load the filter"),
    })
}

/// From the load on this thread may do nothing the filter asks about, sending the descriptor included. Another thread,
/// which the filter is not for, does it; the two speak through memory alone.
fn load_and_tell(filter: &Filter, agent: &Agent) -> Result<()> {
    let socket = agent.socket.try_clone().context("linux.seccomp: listenerPath")?;
    let (message, path) = (agent.message(), agent.listener.path.clone());
    let questions: Arc<OnceLock<OwnedFd>> = Arc::default();
    let told: Arc<OnceLock<()>> = Arc::default();
    let (from_here, to_here) = (Arc::clone(&questions), Arc::clone(&told));
    let sender = std::thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(move || {
            let fd = loop {
                match from_here.get() {
                    Some(fd) => break fd,
                    None => std::thread::sleep(Duration::from_micros(20)),
                }
            };
            // The end of the message is told apart from the socket's, of which our parent has a copy.
            let sent = send_fd(socket.as_fd(), &message, fd.as_fd())
                .and_then(|()| shutdown(&socket, Shutdown::Write).context("shutdown"));
            if let Err(error) = sent {
                // The other thread could only tell with calls that somebody who is not there must allow.
                exit::warn("sheep-ns", &format!("linux.seccomp: listenerPath {path}: {error:#}"));
                sys::exit_now(125);
            }
            let _ = to_here.set(());
        })
        .context("linux.seccomp: a thread to send the descriptor")?;
    // Never waited for: that would be a system call.
    drop(sender);
    let fd = load_only(filter)?.ok_or_else(|| io::Error::other("no listener")).context("linux.seccomp")?;
    let _ = questions.set(fd);
    while told.get().is_none() {
        std::hint::spin_loop();
    }
    // The descriptor is closed by execve; a close here could be asked about.
    std::mem::forget(questions);
    Ok(())
}
