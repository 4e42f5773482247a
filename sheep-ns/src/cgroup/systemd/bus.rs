//! A connection to systemd itself, by its own socket: no bus daemon is in between, and none need run.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::wire::{self, Call, FIXED, Incoming, Writer};

/// Longer nothing takes here, also on a busy machine: systemd's own limit for a call is 25 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first words (D-Bus specification, "Authentication Protocol"): who we are the kernel says. No name is given, for within a user
/// namespace it would be another one than systemd sees.
const HELLO: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
/// A line of an answer to them is not longer.
const LINE_MAX: usize = 512;

const NAME: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A refusal by systemd.
#[derive(Debug)]
pub struct Refused {
    /// The error's name: `org.freedesktop.systemd1.UnitExists`.
    pub name: String,
    /// Its words.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "systemd: {}", if self.message.is_empty() { &self.name } else { &self.message })
    }
}

impl std::error::Error for Refused {}

/// A connection to a service manager.
#[derive(Debug)]
pub struct Bus {
    socket: UnixStream,
    serial: u32,
    /// Jobs that ended while something else was waited for: each with its result.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Begins to talk on a connection to a manager's private socket.
    pub fn begin(socket: UnixStream) -> Result<Bus> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Bus { socket, serial: 0, ended: Vec::new() };
        bus.socket.write_all(HELLO)?;
        loop {
            let line = bus.line()?;
            match line.split(' ').next() {
                Some("OK") => return Ok(bus),
                Some("DATA") => {}
                _ => bail!("systemd does not let us in: {line:?}"),
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.socket.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > LINE_MAX {
                bail!("systemd does not speak D-Bus");
            }
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Calls a method of the manager; gives its answer, where that is text. [`Refused`] where it says no.
    pub fn call(&mut self, member: &str, signature: &str, write: impl FnOnce(&mut Writer)) -> Result<String> {
        let mut body = Writer::default();
        write(&mut body);
        self.serial += 1;
        let call = Call { destination: NAME, path: OBJECT, interface: MANAGER, member, signature, body };
        self.socket.write_all(&call.message(self.serial)).context("systemd")?;
        loop {
            match self.next()? {
                Incoming::Return(serial, text) if serial == self.serial => return Ok(text),
                Incoming::Error(serial, name, message) if serial == self.serial => {
                    return Err(Refused { name, message }.into());
                }
                other => self.note(other),
            }
        }
    }

    /// Waits for the end of a job that a call began, which is to end well.
    pub fn wait_for(&mut self, job: &str) -> Result<()> {
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                return if result == "done" { Ok(()) } else { Err(anyhow!("systemd: the job ended with {result:?}")) };
            }
            let message = self.next()?;
            self.note(message);
        }
    }

    fn note(&mut self, message: Incoming) {
        if let Incoming::Signal(name, Some([job, _, result])) = message
            && name == "JobRemoved"
        {
            self.ended.push((job, result));
        }
    }

    fn next(&mut self) -> Result<Incoming> {
        let mut fixed = [0; FIXED];
        self.socket.read_exact(&mut fixed).context("systemd does not answer")?;
        let mut message = fixed.to_vec();
        message.resize(wire::message_length(&fixed).context("systemd")?, 0);
        self.socket.read_exact(&mut message[FIXED..]).context("systemd does not answer")?;
        wire::parse(&message).context("systemd")
    }
}
