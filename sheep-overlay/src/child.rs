//! Work done in a child process, in other namespaces than ours, and its answer.
//!
//! A process cannot come back from a user namespace, so what is to be done in one is done in a child, which sends its
//! result (or error, with all that a caller makes a difference of) through a pipe. Nothing is executed: the child is this
//! program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::kernel::Refused;
use crate::doc::UserNamespace;
use crate::{exit, holder, sys};

/// Where a child does its work.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In a new user namespace; with a new mount namespace too where this is true.
    New(&'a UserNamespace, bool),
    /// In a new mount namespace.
    Mounts,
    /// In the user namespace of the process behind a pidfd; in its mount namespace too where this is true.
    Of(&'a OwnedFd, bool),
}

/// What becomes of the child when its work is done.
#[derive(Debug, Clone, Copy)]
pub enum After<'a> {
    /// It ends.
    End,
    /// It stays, to keep its namespaces, in a session of its own, and holds the lock on this file (see [`holder`]).
    Hold(&'a Path),
}

#[derive(Serialize, Deserialize)]
enum Answer<T> {
    Done(T),
    Refused(i32, String, String),
    Failed(Option<exit::Kind>, String),
    BrokenPipe,
}

/// Does `act` in a child at `place`, and gives its result and the child's pid. An error of the kernel backend stays one
/// ([`Refused`]), and an error keeps its kind; for the rest it is words.
pub fn run<T: Serialize + DeserializeOwned>(
    place: Place<'_>,
    after: After<'_>,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, Pid)> {
    let (answer, answer_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ready, ready_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let (mapped, mapped_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(child) = sys::fork().context("fork")? else {
        drop((answer, ready, mapped_to));
        let done = go(place, after, ready_to, mapped).and_then(|()| act());
        let hold = done.is_ok();
        if send(answer_to, &to_answer(done)).is_err() || !hold {
            sys::exit_child(1);
        }
        match after {
            After::End => sys::exit_child(0),
            After::Hold(_) => keep(),
        }
    };
    drop((answer_to, ready_to, mapped));
    let maps = write_maps(place, child, ready, mapped_to);
    let mut bytes = Vec::new();
    // A signal that is noted interrupts nothing here: the child got it too, undoes what it did, and answers.
    let read = File::from(answer).read_to_end(&mut bytes);
    let held = matches!(after, After::Hold(_)) && bytes.starts_with(b"{\"Done\"");
    if !held {
        // What it had to say it has said; how it ended tells no more.
        let _ = waitpid(child, None);
    }
    maps?;
    read.context("the answer of a child process")?;
    if bytes.is_empty() {
        bail!("a child process ended without an answer (was it killed?)");
    }
    let answer = serde_json::from_slice(&bytes).context("the answer of a child process")?;
    from_answer(answer).map(|done| (done, child))
}

/// What is said where there is no user namespace.
pub const ADVICE: &str = "'sheep-overlay doctor' says more";

/// The step of a [`Refused`] where subordinate ids could not be mapped.
const MAP_IDS: &str = "map the subordinate ids";

/// Whether an error is that subordinate ids could not be mapped: a namespace without them may do.
pub fn is_unmapped(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.parts().1 == MAP_IDS)
}

/// The parent's part of the maps: a single user maps himself, newuidmap maps the others.
fn write_maps(place: Place<'_>, child: Pid, ready: OwnedFd, mapped: OwnedFd) -> Result<()> {
    let Place::New(namespace, _) = place else { return Ok(()) };
    if namespace.is_single() {
        return Ok(());
    }
    let mut byte = [0u8; 1];
    if File::from(ready).read(&mut byte)? == 0 {
        // It failed before, and says so in its answer.
        return Ok(());
    }
    if let Err(error) = namespace.write_for(child) {
        return Err(Refused::new(Errno::PERM, MAP_IDS, format!("{error:#}")).into());
    }
    // If the child is gone by now, there is no answer, which is noticed.
    let _ = File::from(mapped).write_all(b"m");
    Ok(())
}

/// The child's way into its namespaces.
fn go(place: Place<'_>, after: After<'_>, ready: OwnedFd, mapped: OwnedFd) -> Result<()> {
    if let After::Hold(_) = after {
        setsid().context("setsid")?;
        std::env::set_current_dir("/").context("chdir /")?;
    }
    match place {
        Place::Of(process, mounts) => {
            let mut kinds = CloneFlags::CLONE_NEWUSER;
            kinds.set(CloneFlags::CLONE_NEWNS, mounts);
            setns(process.as_fd(), kinds).context("join the namespaces of the overlay")?;
        }
        Place::Mounts => unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?,
        Place::New(namespace, mounts) => {
            let mut kinds = CloneFlags::CLONE_NEWUSER;
            kinds.set(CloneFlags::CLONE_NEWNS, mounts);
            unshare(kinds).map_err(|e| {
                let errno = Errno::from_raw_os_error(e as i32);
                Refused::new(errno, "a user namespace", ADVICE)
            })?;
            if namespace.is_single() {
                namespace.write_own()?;
            } else {
                File::from(ready).write_all(b"r")?;
                if File::from(mapped).read(&mut [0u8; 1])? == 0 {
                    bail!("the ids of the user namespace were not mapped");
                }
            }
        }
    }
    // Who changes his rights is closed to others; but this is still the user's own process, as he is to see.
    nix::sys::prctl::set_dumpable(true).context("PR_SET_DUMPABLE")?;
    match after {
        After::Hold(file) => holder::take(file),
        After::End => Ok(()),
    }
}

/// Keeps the namespaces until killed. Of what this process had open nothing stays but the lock.
fn keep() -> ! {
    let quiet = || -> Result<()> {
        holder::keep_only_the_lock()?;
        for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
            sys::ignore(ignored)?;
        }
        sys::by_default(Signal::SIGTERM)?;
        SigSet::all().thread_unblock()?;
        let _ = nix::sys::prctl::set_name(holder::NAME);
        Ok(())
    };
    if quiet().is_err() {
        sys::exit_child(1);
    }
    sys::wait_without_code()
}

fn send<T: Serialize>(to: OwnedFd, answer: &Answer<T>) -> Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    Ok(File::from(to).write_all(&bytes)?)
}

fn to_answer<T>(done: Result<T>) -> Answer<T> {
    match done {
        Ok(done) => Answer::Done(done),
        Err(error) if exit::is_broken_pipe(&error) => Answer::BrokenPipe,
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(refused) => {
                let (errno, step, reason) = refused.parts();
                Answer::Refused(errno.raw_os_error(), step.to_owned(), reason.to_owned())
            }
            None => Answer::Failed(exit::kind(&error), format!("{error:#}")),
        },
    }
}

fn from_answer<T>(answer: Answer<T>) -> Result<T> {
    match answer {
        Answer::Done(done) => Ok(done),
        Answer::Refused(errno, step, reason) => Err(Refused::new(Errno::from_raw_os_error(errno), step, reason).into()),
        Answer::Failed(kind, message) => Err(exit::of_kind(kind, message)),
        Answer::BrokenPipe => Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
    }
}
