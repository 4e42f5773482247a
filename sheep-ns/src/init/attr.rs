//! What the kernel's security modules are told of a program: its AppArmor profile (`process.apparmorProfile`) and its SELinux label
//! (`process.selinuxLabel`), which are in force when the program is executed.
//!
//! A process tells them through files of its own in /proc, and the kernel takes it only from the program that opened the file. So they
//! are opened while /proc is still the host's, where nothing of the container can lie (CVE-2019-16884, CVE-2025-52881), and written when
//! this process is in the container. The hooks of `startContainer` have the profile and the label as well, as with runc.
//! <https://docs.kernel.org/admin-guide/LSM/apparmor.html>, aa_change_onexec(3), setexeccon(3), setkeycreatecon(3)

use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::oci;
use crate::selinux::{self, Label};

/// Absent where AppArmor is not in force, also with another of these modules in force.
const PROFILE: &str = "/proc/self/attr/apparmor/exec";
/// A program that has no profile.
const NO_PROFILE: &str = "unconfined";
/// SELinux has these where no other module has them.
const LABEL: &str = "/proc/self/attr/exec";
const KEY_LABEL: &str = "/proc/self/attr/keycreate";

/// What is told of one program.
#[derive(Debug)]
pub struct Attributes {
    /// Of the program.
    program: Vec<Attribute>,
    /// Of keys that this process makes, which the program is to have.
    keys: Option<Attribute>,
}

/// A file and what is written to it.
#[derive(Debug)]
struct Attribute {
    /// The part of config.json that wants it, with its value.
    asked: String,
    path: &'static str,
    text: String,
    /// That the file is absent changes nothing.
    may_be_absent: bool,
    /// The error of what the kernel does not know, and what to do about it.
    unknown: (Errno, &'static str),
    file: RefCell<Option<OwnedFd>>,
}

impl Attributes {
    /// Those of a process. An empty name is none; any label is an error where SELinux is not in force.
    pub fn new(process: &oci::Process) -> Result<Attributes> {
        let mut program = Vec::new();
        if let Some(name) = process.apparmor_profile.as_deref().filter(|name| !name.is_empty()) {
            program.push(Attribute {
                asked: format!("process.apparmorProfile {name}"),
                path: PROFILE,
                text: format!("exec {name}"),
                may_be_absent: name == NO_PROFILE,
                unknown: (Errno::NOENT, "no such profile is loaded here (aa-status lists them)"),
                file: RefCell::default(),
            });
        }
        let label = Label::new("process.selinuxLabel", process.selinux_label.as_deref())?;
        program.extend(label.as_ref().map(|label| Attribute::label(label, LABEL)));
        Ok(Attributes { program, keys: label.as_ref().map(|label| Attribute::label(label, KEY_LABEL)) })
    }

    /// Opens the ways to the kernel, while /proc is still the host's.
    pub fn open(&self) -> Result<()> {
        self.program.iter().chain(&self.keys).try_for_each(Attribute::open)
    }

    /// Tells what keys made from now on are to have.
    pub fn tell_of_keys(&self) -> Result<()> {
        self.keys.iter().try_for_each(Attribute::tell)
    }

    /// The descriptors that stay open until [`Attributes::tell`].
    pub fn files(&self) -> impl Iterator<Item = RawFd> {
        self.program.iter().filter_map(|attribute| attribute.file.borrow().as_ref().map(super::program::raw))
    }

    /// Tells the kernel, for the next execve.
    pub fn tell(&self) -> Result<()> {
        self.program.iter().try_for_each(Attribute::tell)
    }
}

impl Attribute {
    fn label(label: &Label, path: &'static str) -> Attribute {
        Attribute {
            asked: format!("process.selinuxLabel {}", label.text()),
            path,
            text: label.text().to_owned(),
            may_be_absent: false,
            unknown: (Errno::INVAL, selinux::UNKNOWN),
            file: RefCell::default(),
        }
    }

    fn open(&self) -> Result<()> {
        match open(self.path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => {
                self.file.replace(Some(file));
                Ok(())
            }
            Err(Errno::NOENT) if self.may_be_absent => Ok(()),
            Err(Errno::NOENT) if self.path == PROFILE => {
                Err(anyhow!("{}: AppArmor is not in force on this host (take it out of config.json)", self.asked))
            }
            Err(e) => Err(e).with_context(|| format!("{}: {}", self.asked, self.path)),
        }
    }

    fn tell(&self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        match rustix::io::write(file, self.text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(e) if e == self.unknown.0 => Err(anyhow!("{}: {}", self.asked, self.unknown.1)),
            Err(e) => Err(e).with_context(|| self.asked.clone()),
        }
    }
}
