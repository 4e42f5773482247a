//! Access to the layers of an overlay: what an ordinary user's overlay holds may belong to his subordinate ids, or be closed to
//! himself, so it is looked at in its user namespace, where he has the rights over both.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Result;
use rustix::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::child::{self, After, Place};
use crate::doc::{DocPath, Overlay};
use crate::record::{self, State};
use crate::{holder, mountpoint, namespace, view};

/// Does `act` where the layers of `overlay` can be read and written. It gets the overlay with paths that hold there.
pub fn with<T: Serialize + DeserializeOwned>(overlay: &Overlay, act: impl FnOnce(&Overlay) -> Result<T>) -> Result<T> {
    let dir = record::dir_of(overlay).to_path_buf();
    let overlay = view::from_here(overlay, &dir)?;
    let Some(namespace) = overlay.user_namespace.clone() else { return beside(&overlay, act) };
    let holder = holder::find(&dir)?;
    let overlay = reached(&overlay, holder.as_ref());
    let own = namespace::inode_of("/proc/self".as_ref(), "user");
    if rustix::process::geteuid().is_root()
        || (own.is_some() && own == overlay.holder.map(|holder| holder.user_namespace))
    {
        return act(&overlay);
    }
    let place = match &holder {
        Some((_, process)) => Place::Of(process, false),
        None => Place::New(&namespace, false),
    };
    child::run(place, After::End, || act(&overlay)).map(|(done, _)| done)
}

/// An overlay that is mounted over its own lower hides it: that is looked at where the overlay is not mounted.
fn beside<T: Serialize + DeserializeOwned>(overlay: &Overlay, act: impl FnOnce(&Overlay) -> Result<T>) -> Result<T> {
    let hides = |at: &DocPath| overlay.lower.iter().any(|lower| lower.starts_with(&**at));
    if !overlay.at.as_ref().is_some_and(hides) || record::state(overlay)? != State::Mounted {
        return act(overlay);
    }
    let apart = || {
        view::cut_off()?;
        mountpoint::detach(&overlay.merged)?;
        act(overlay)
    };
    child::run(Place::Mounts, After::End, apart).map(|(done, _)| done)
}

/// Changes that are in memory are seen in the holder's mount namespace alone; /proc leads there. Who runs in the overlay sees
/// them himself, and may not look at the holder.
fn reached(overlay: &Overlay, holder: Option<&(Pid, OwnedFd)>) -> Overlay {
    let mut overlay = overlay.clone();
    if let (Some((pid, _)), Some(_), false) = (holder, overlay.tmpfs, overlay.upper.is_dir()) {
        let there = |path: &DocPath| {
            let inside = path.strip_prefix("/").unwrap_or(path);
            DocPath(PathBuf::from(format!("/proc/{}/root", pid.as_raw_nonzero())).join(inside))
        };
        overlay.upper = there(&overlay.upper);
        overlay.work = there(&overlay.work);
        for mount in &mut overlay.mounts {
            mount.upper = mount.upper.as_ref().map(there);
            mount.work = mount.work.as_ref().map(there);
        }
    }
    overlay
}
