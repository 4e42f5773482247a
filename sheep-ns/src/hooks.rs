//! Hooks: programs that config.json has called in a container's life, with its state on stdin.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.1/config.md#posix-platform-hooks>
//!
//! | kind | when | where | a failure |
//! |---|---|---|---|
//! | prestart, createRuntime | `create`: mounts are made, the root is not changed yet | outside | undoes the container |
//! | createContainer | right after them | in the container's namespaces, with the host's files | undoes the container |
//! | startContainer | `start`: before the program | inside, as the container's user | ends the container |
//! | poststart | `start`: the program runs | outside | ends the container |
//! | poststop | `delete`, or an undone `create`: all of the container is gone but its record | outside | is a warning |
//!
//! Whoever clears away what a killed command left behind calls poststop too, so it may be called twice for a container,
//! and for one that never ran.

use std::ffi::CString;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};

use crate::exit;
use crate::oci::{self, Hook, State, Status};
use crate::process;
use crate::sys::{self, Side};

/// What a failed hook said last is told, this much of it.
const WORDS: usize = 1000;

/// The hooks of a container, and its state but for the status and the process.
#[derive(Debug, Clone)]
pub struct Hooks {
    /// By kind.
    pub lists: oci::Hooks,
    /// The container's state.
    pub state: State,
}

impl Hooks {
    /// Calls those of `create` that run outside.
    pub fn create_runtime(&self, pid: i32) -> Result<()> {
        let state = State { pid, status: Status::Creating, ..self.state.clone() };
        run("prestart", &self.lists.prestart, &state)?;
        run("createRuntime", &self.lists.create_runtime, &state)
    }

    /// Calls those of `create` that run in the container's namespaces. In the container's first process.
    pub fn create_container(&self, pid: i32) -> Result<()> {
        let state = State { pid, status: Status::Creating, ..self.state.clone() };
        run("createContainer", &self.lists.create_container, &state)
    }

    /// Calls those of `start` that run inside. In the container's first process.
    pub fn start_container(&self, pid: i32) -> Result<()> {
        let state = State { pid, status: Status::Created, ..self.state.clone() };
        run("startContainer", &self.lists.start_container, &state)
    }

    /// Calls those of a program that runs now.
    pub fn poststart(&self, pid: i32) -> Result<()> {
        let state = State { pid, status: Status::Running, ..self.state.clone() };
        run("poststart", &self.lists.poststart, &state)
    }

    /// Calls those of a container that is gone. A failure is a warning, and the others are called all the same.
    pub fn poststop(&self) {
        let state = State { pid: 0, status: Status::Stopped, ..self.state.clone() };
        for hook in &self.lists.poststop {
            if let Err(error) = call(hook, &state) {
                exit::warn("sheep-ns", &format!("container {}: hooks.poststop: {error:#}", state.id));
            }
        }
    }
}

/// Checks all hooks of a configuration: an absolute path, a timeout above 0. Pure.
pub fn check(hooks: &oci::Hooks) -> Result<()> {
    for (kind, list) in hooks.kinds() {
        for hook in list {
            let path = hook.path.as_path();
            let wrong = |what: &str| exit::usage(format!("hooks.{kind}: {}: {what}", path.display()));
            if !path.is_absolute() {
                return Err(wrong("the path must be absolute"));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(wrong("the timeout must be above 0 seconds"));
            }
            strings(hook).map_err(|_| wrong("has a NUL byte"))?;
        }
    }
    Ok(())
}

/// Calls them in their order; the first that fails ends it.
fn run(kind: &str, hooks: &[Hook], state: &State) -> Result<()> {
    hooks.iter().try_for_each(|hook| call(hook, state).with_context(|| format!("hooks.{kind}")))
}

struct Strings {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn strings(hook: &Hook) -> Result<Strings, std::ffi::NulError> {
    let all =
        |names: &[oci::Name]| names.iter().map(|name| CString::new(name.as_bytes())).collect::<Result<Vec<_>, _>>();
    let path = CString::new(hook.path.as_bytes())?;
    let args = all(&hook.args)?;
    let args = if args.is_empty() { vec![path.clone()] } else { args };
    Ok(Strings { path, args, env: all(&hook.env)? })
}

/// Calls one and waits for its end. What it writes is not ours to print: stdout may be the container's already. The end
/// of it is told when the hook fails.
fn call(hook: &Hook, state: &State) -> Result<()> {
    let name = || hook.path.to_string_lossy().into_owned();
    let strings = strings(hook).with_context(name)?;
    let stdin = state_file(state).with_context(name)?;
    let (said, says) = pipe_with(PipeFlags::CLOEXEC).with_context(name)?;
    fcntl_setfl(&said, OFlags::NONBLOCK).with_context(name)?;
    let pidfd = match sys::clone3(0, None).with_context(name)? {
        Side::Child => become_hook(&strings, &stdin, &says),
        Side::Parent(_, pidfd) => pidfd,
    };
    drop(says);
    let mut words = Vec::new();
    let in_time = attend(&pidfd, &said, hook.timeout, &mut words).with_context(name)?;
    let status = process::wait(&pidfd).context("wait for it").with_context(name)?;
    let how = match (in_time, status.exit_status(), status.terminating_signal()) {
        (true, Some(0), _) => return Ok(()),
        (false, ..) => format!("did not end in {} seconds", hook.timeout.unwrap_or_default()),
        (true, Some(code), _) => format!("ended with {code}"),
        (true, None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    };
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    Err(if words.is_empty() { anyhow!("{}: {how}", name()) } else { anyhow!("{}: {how}: {words}", name()) })
}

/// The state as a file: a hook that does not read it blocks nobody.
fn state_file(state: &State) -> Result<std::fs::File> {
    let mut file = std::fs::File::from(memfd_create(c"state", MemfdFlags::CLOEXEC).context("memfd")?);
    serde_json::to_writer(&file, state).context("state")?;
    file.write_all(b"\n").and_then(|()| file.rewind()).context("state")?;
    Ok(file)
}

/// The hook's side of the clone.
fn become_hook(strings: &Strings, stdin: &std::fs::File, says: &OwnedFd) -> ! {
    let ready = || -> io::Result<()> {
        // It does not outlive a `create` that is killed.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Numbers above 2 first, for the pipe may have any.
        let says = says.as_fd().try_clone_to_owned()?;
        sys::dup_to(stdin.as_fd(), 0, false)?;
        sys::dup_to(says.as_fd(), 1, false)?;
        sys::dup_to(says.as_fd(), 2, false)?;
        sys::close_range(3, u32::MAX)?;
        // Closed with the rest.
        std::mem::forget(says);
        sys::default_signals();
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    let error = match ready() {
        Ok(()) => sys::execve(&strings.path, &strings.args, &strings.env),
        Err(error) => error,
    };
    let why = match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => "cannot be executed: no such file or directory",
        Some(Errno::ACCESS) => "cannot be executed: permission denied",
        Some(Errno::NOEXEC) => "cannot be executed: exec format error",
        _ => "cannot be executed",
    };
    // Nobody is left to tell when this fails.
    let _ = io::stderr().write_all(why.as_bytes());
    sys::exit_now(127)
}

/// Gathers the last of what it says until it ends; kills it when its time is up, and gives `false` then. A child that it
/// leaves behind with the pipe open is not waited for.
fn attend(pidfd: &OwnedFd, said: &OwnedFd, timeout: Option<i64>, words: &mut Vec<u8>) -> Result<bool> {
    let seconds = timeout.and_then(|seconds| u64::try_from(seconds).ok());
    let end = seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let mut in_time = true;
    let mut open = true;
    loop {
        let left = end.filter(|_| in_time).map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        if open {
            fds.push(PollFd::new(said, PollFlags::IN));
        }
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e).context("poll"),
            Ok(0) => {
                in_time = false;
                match pidfd_send_signal(pidfd, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => continue,
                    Err(e) => return Err(e).context("kill it, for its time is up"),
                }
            }
            Ok(_) => {}
        }
        let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        if open {
            open = drain(said, words);
        }
        if ended {
            return Ok(in_time);
        }
    }
}

/// Reads what is there; `false` at its end.
fn drain(said: &OwnedFd, words: &mut Vec<u8>) -> bool {
    let mut bytes = [0u8; 4096];
    // A writer that never stops is looked at again after the next poll.
    for _ in 0..16 {
        match rustix::io::read(said, &mut bytes) {
            Ok(0) => return false,
            Ok(n) => {
                words.extend_from_slice(bytes.get(..n).unwrap_or_default());
                words.drain(..words.len().saturating_sub(WORDS));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(oci::Name::from).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into()], timeout }
    }

    fn state() -> State {
        State { pid: 7, ..State::new(Status::Creating, "c1", "/b".into(), Default::default()) }
    }

    #[test]
    fn its_end_is_ours() {
        let table = [
            (hook("exit 0", None), None),
            (hook("exit 3", None), Some("/bin/sh: ended with 3")),
            (hook("kill -9 $$", None), Some("/bin/sh: was ended by signal 9")),
            (hook("echo out; echo why >&2; exit 1", None), Some("/bin/sh: ended with 1: out\nwhy")),
            (hook("exec sleep 100", Some(1)), Some("/bin/sh: did not end in 1 seconds")),
            // Its state, its whole environment, no descriptor but three; what it leaves behind is not waited for.
            (
                hook("grep -q '\"pid\":7' && test \"$A$HOME\" = b && test $(ls /proc/self/fd | wc -l) = 4", Some(60)),
                None,
            ),
            (hook("sleep 100 & exit 0", Some(60)), None),
            (hook("head -c 300000 /dev/zero; exit 1", Some(60)), Some("/bin/sh: ended with 1: \0")),
        ];
        for (hook, want) in table {
            let begin = Instant::now();
            let ended = call(&hook, &state());
            assert!(begin.elapsed() < Duration::from_secs(30), "{hook:?}");
            match want {
                None => ended.unwrap(),
                Some(want) => {
                    let error = ended.unwrap_err().to_string();
                    assert!(error.starts_with(want) && error.len() < 1100, "{error}");
                }
            }
        }
        let absent = Hook { path: "/nosuch".into(), ..Hook::default() };
        let error = call(&absent, &state()).unwrap_err().to_string();
        assert!(error.contains("/nosuch: ended with 127: cannot be executed: no such file"), "{error}");
    }
}
