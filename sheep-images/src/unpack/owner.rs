//! Work that an ordinary user does as the owner of his files: in a user namespace he may read what is his whatever its mode is,
//! as root may. Many images have files of mode 0.

use anyhow::{Context, Result};
use rustix::process::{Signal, geteuid, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sheep_overlay::backend::kernel::Refused;
use sheep_overlay::child::{self, After, Place};
use sheep_overlay::doc::UserNamespace;

/// Does `act`, for an ordinary user in a namespace of his own; where that cannot be had, here. To be called before this process
/// has threads, or anything that is to be cleaned up on a signal: the child does that for itself.
pub fn over_modes<T: Serialize + DeserializeOwned>(act: impl Fn() -> Result<T>) -> Result<T> {
    if geteuid().is_root() {
        return act();
    }
    match inside(&UserNamespace::only_self(), &act) {
        Err(error) if error.downcast_ref::<Refused>().is_some() => act(),
        done => done,
    }
}

/// Does `act` in a child in a new user namespace; likewise.
pub fn inside<T: Serialize + DeserializeOwned>(
    namespace: &UserNamespace,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let work = || {
        // Ended by a signal, its parent would leave it at work.
        set_parent_process_death_signal(Some(Signal::TERM)).context("PR_SET_PDEATHSIG")?;
        act()
    };
    child::run(Place::New(namespace, false), After::End, work).map(|(done, _)| done)
}
