//! Overlays on overlays: while one has another's merged directory (or kept upper) as a lower, that other one must stay.
//!
//! Each such use is a name in `overlay/<base>/users/`. So a umount asks one question that is nearly always answered with
//! "no such directory", and need not read the record of every overlay.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::doc::Overlay;
use crate::lowers::Lower;
use crate::record::{self, Found, State};
use crate::state::DataRoot;
use crate::{exit, find};

/// Notes in every overlay that one of the lowers is in that `id` uses it. Errors where that overlay went, or was
/// unmounted, since the lowers were opened.
pub fn note_use(root: &DataRoot, id: &str, lowers: &[Lower]) -> Result<()> {
    let overlays = root.overlays();
    for lower in lowers {
        let Ok(inside) = lower.path.strip_prefix(&overlays) else { continue };
        let mut parts = inside.iter();
        let (Some(base), part) = (parts.next().and_then(OsStr::to_str), parts.next()) else { continue };
        let dir = record::dir(root, base);
        let _lock = record::lock(root, base)?.ok_or_else(|| find::no_such(base))?;
        let overlay = record::read(&dir)?.ok_or_else(|| find::no_such(base))?;
        if (record::state(&overlay)? == State::Mounted) != (part == Some(OsStr::new("merged"))) {
            return Err(exit::busy(format!(
                "lower {}: overlay {base} has just been mounted or unmounted",
                lower.path.display()
            )));
        }
        let users = dir.join("users");
        match DirBuilder::new().mode(0o700).create(&users) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).context(users.display().to_string()),
            _ => {}
        }
        let name = users.join(id);
        File::create(&name).with_context(|| name.display().to_string())?;
    }
    Ok(())
}

/// An overlay that has the one in `dir` (which the caller has locked) as a lower. With `mounted_only`, one that was kept
/// does not count.
pub fn user_of(root: &DataRoot, dir: &Path, mounted_only: bool) -> Result<Option<String>> {
    let users = dir.join("users");
    let names = match fs::read_dir(&users) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context(users.display().to_string()),
    };
    for name in names {
        let id = name.with_context(|| users.display().to_string())?.file_name().to_string_lossy().into_owned();
        let counts = match record::look(root, &id)? {
            Found::Whole(user) => uses(&user, dir) && !(mounted_only && record::state(&user)? != State::Mounted),
            Found::Unfinished => true,
            // The name is left from one that is gone.
            Found::Missing => false,
        };
        if counts {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn uses(user: &Overlay, dir: &Path) -> bool {
    user.lower.iter().any(|lower| lower.starts_with(dir))
}
