//! The AppArmor profile of a program (`process.apparmorProfile`), for the kernel to put in force when the program is executed.
//!
//! A process tells the profile through a file of its own in /proc, and the kernel takes it only from the program that opened the file.
//! So it is opened while /proc is still the host's, where nothing of the container can lie (CVE-2019-16884, CVE-2025-52881), and written
//! when this process is in the container. The hooks of `startContainer` have the profile as well, as with runc.
//! <https://docs.kernel.org/admin-guide/LSM/apparmor.html>, aa_change_onexec(3)

use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::exit;

/// Absent where AppArmor is not in force, also with another of these modules in force.
const FILE: &str = "/proc/self/attr/apparmor/exec";
/// Of a program that has no profile.
const NONE: &str = "unconfined";

/// A profile by its name.
#[derive(Debug)]
pub struct Profile {
    name: String,
    file: RefCell<Option<OwnedFd>>,
}

impl Profile {
    /// The profile of a process; an empty name is none. Usage (2) for a name with a NUL byte or a line break.
    pub fn new(name: Option<&str>) -> Result<Option<Profile>> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        if name.contains(['\0', '\n']) {
            return Err(exit::usage(format!("process.apparmorProfile {name:?}: no name of a profile")));
        }
        Ok(Some(Profile { name: name.to_owned(), file: RefCell::default() }))
    }

    /// Opens the way to the kernel, while /proc is still the host's.
    pub fn open(&self) -> Result<()> {
        match open(FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => {
                self.file.replace(Some(file));
                Ok(())
            }
            // No profile at all is what the program gets then.
            Err(Errno::NOENT) if self.name == NONE => Ok(()),
            Err(Errno::NOENT) => Err(self.error("AppArmor is not in force on this host (take it out of config.json)")),
            Err(e) => Err(e).with_context(|| self.context()),
        }
    }

    /// The descriptor that stays open until [`Profile::tell`].
    pub fn file(&self) -> Option<RawFd> {
        self.file.borrow().as_ref().map(super::program::raw)
    }

    /// Tells the kernel, for the next execve.
    pub fn tell(&self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        match rustix::io::write(file, format!("exec {}", self.name).as_bytes()) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Err(self.error("no such profile is loaded here (aa-status lists them)")),
            Err(e) => Err(e).with_context(|| self.context()),
        }
    }

    fn context(&self) -> String {
        format!("process.apparmorProfile {}", self.name)
    }

    fn error(&self, why: &str) -> anyhow::Error {
        anyhow!("{}: {why}", self.context())
    }
}
