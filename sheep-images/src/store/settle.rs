//! A layer in its place, and on the disk later: what can be unpacked again is not waited for (see [`sheep_overlay::unsynced`]).
//!
//! A process of its own, `sheep-images settle`, waits for the disk when the command has ended, and takes the marks away; so the time
//! in which a power cut leaves a layer to be unpacked anew is short.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use sheep_overlay::{record, unsynced};

use super::{Store, users};
use crate::oci::Digest;
use crate::scratch::Scratch;

impl Store {
    /// Puts a freshly unpacked layer in its place. The caller holds the lock.
    pub(super) fn place(&self, scratch: Scratch, digest: &Digest) -> Result<()> {
        let layers = self.layers_dir()?;
        if unsynced::mark(layers.as_fd(), digest.hex().as_ref())? {
            self.unsettled.store(true, Ordering::Relaxed);
        } else {
            rustix::fs::syncfs(scratch.fd()).context("sync")?;
        }
        scratch.move_to(&self.layer_dir(digest))
    }

    fn layers_dir(&self) -> Result<File> {
        File::open(self.layers()).with_context(|| self.layers().display().to_string())
    }

    /// Starts the process that waits for the disk, where layers were put in their place. Where it cannot be started, the
    /// marks stay until another does. For the program alone: it starts itself.
    pub fn settle_later(&self) {
        if !self.unsettled.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(program), Ok(layers)) = (std::env::current_exe(), self.layers_dir()) else { return };
        let mut command = Command::new(program);
        command.arg("settle").stdin(layers).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for the command, and not for what comes after it.
        let _ = command.current_dir("/").process_group(0).spawn();
    }

    /// Takes a layer away: it is renamed, and returned to be deleted; `None` where it is not there. The caller holds the lock, and
    /// knows that nobody needs it.
    pub fn take_away(&self, digest: &Digest) -> Result<Option<Scratch>> {
        let taken = Scratch::take_over(&self.layer_dir(digest))?;
        unsynced::forget(self.layers_dir()?.as_fd(), digest.hex().as_ref())?;
        Ok(taken)
    }

    /// Deletes layers that a power cut may have left torn; they are unpacked again when somebody wants them. What a mounted
    /// overlay uses stays.
    pub(super) fn delete_torn(&self) -> Result<()> {
        let layers = self.layers_dir()?;
        let torn = unsynced::torn(layers.as_fd())?;
        if torn.is_empty() {
            return Ok(());
        }
        let mut doomed = Vec::new();
        {
            let _lock = self.lock()?;
            let _removal = self.root.lock_layers_for_removal()?;
            for name in torn {
                let layer = self.layers().join(&name);
                if !unsynced::is_torn(&layer)? || self.is_mounted(&layer)? {
                    continue;
                }
                doomed.extend(Scratch::take_over(&layer)?);
                unsynced::forget(layers.as_fd(), &name)?;
            }
        }
        // Nobody can see them any more: that takes a while, and needs no lock.
        doomed.into_iter().try_for_each(Scratch::delete)
    }

    fn is_mounted(&self, layer: &Path) -> Result<bool> {
        for id in users::overlays_on(self, &[layer.to_path_buf()])? {
            let overlay = record::read(&record::dir(&self.root, &id))?;
            if overlay.is_some_and(|overlay| record::state(&overlay).ok() != Some(record::State::Kept)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The verb: stdin is the directory with the layers.
pub fn run() -> Result<()> {
    unsynced::settle(io::stdin().as_fd()).context("settle: stdin must be the directory of the layers")
}
