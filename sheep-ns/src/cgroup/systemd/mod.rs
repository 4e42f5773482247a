//! Control groups by systemd: a scope, and in it what was delegated to us.
//!
//! ```text
//! machine.slice/libpod-ID.scope              systemd's: weights and protections, as its properties
//! machine.slice/libpod-ID.scope/runtime      this program, while it makes the container
//! machine.slice/libpod-ID.scope/container    the container, with its limits
//! ```
//!
//! A scope is begun with a process in it, and only processes within it may be born in its groups where all above it is another
//! user's. So this program goes in itself, and back out where it may. systemd ends a scope when nobody is in it any more.
//! <https://systemd.io/CGROUP_DELEGATION>

mod bus;
mod properties;
mod wire;

use std::env;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Mode, mkdirat, unlinkat};

use self::bus::{Bus, Refused};
use self::wire::{Property, Value};
use super::tree::{self, Tree};
use super::{delegated, is_host_root};
use crate::exit;
use crate::init::channel;

pub use self::properties::{asked, of_settings};

/// The container's group in the scope.
pub const CONTAINER: &str = "container";
/// Where this program is meanwhile.
const RUNTIME: &str = "runtime";
/// How long a scope of the same name, that is on its way out, is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seen empty so often, one is not being begun by another: its only process died before systemd looked.
const EMPTY_LOOKS: u32 = 5;

/// A scope that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Where it goes; `None` leaves that to systemd.
    slice: Option<String>,
    /// Its name, with `.scope`.
    name: String,
}

impl Scope {
    /// The scope that `linux.cgroupsPath` means: `SLICE:PREFIX:NAME`, of which the first two may be empty. Without a path it is
    /// `sheep-ID.scope`. Usage (2) for a path of another form.
    pub fn of(path: Option<&str>, id: &str) -> Result<Scope> {
        let (slice, name) = match path.filter(|path| !path.is_empty()) {
            None => ("", format!("sheep-{id}.scope")),
            Some(path) => match path.split(':').collect::<Vec<_>>()[..] {
                [slice, "", name] if !name.is_empty() => (slice, format!("{name}.scope")),
                [slice, prefix, name] if !name.is_empty() => (slice, format!("{prefix}-{name}.scope")),
                _ => {
                    return Err(exit::usage(format!(
                        "linux.cgroupsPath {path:?}: with systemd it is SLICE:PREFIX:NAME (--cgroup-manager=cgroupfs takes a path)"
                    )));
                }
            },
        };
        // systemd.unit(5): what names are made of. A slice's dashes are its path.
        let is_name = |name: &str| {
            let fine = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
            name.len() < 256 && name.bytes().all(fine)
        };
        let is_slice = |slice: &str| slice.is_empty() || (slice.ends_with(".slice") && is_name(slice));
        if !is_name(&name) || !is_slice(slice) {
            return Err(exit::usage(format!(
                "linux.cgroupsPath {:?}: no name of a slice and a scope",
                path.unwrap_or_default()
            )));
        }
        Ok(Scope { slice: Some(slice.to_owned()).filter(|slice| !slice.is_empty()), name })
    }

    /// Its name as a unit.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// This program's time in a scope.
#[derive(Debug)]
pub struct Visit {
    /// The group that it came from, where that is in sight.
    from: Option<String>,
    scope: String,
}

impl Visit {
    /// The scope's path in the tree.
    pub fn scope(&self) -> &str {
        &self.scope
    }
}

impl Drop for Visit {
    /// Goes back. An ordinary user may not, whose scope then goes when this program ends.
    fn drop(&mut self) {
        let Ok(Some(tree)) = Tree::find() else { return };
        let Some(from) = &self.from else { return };
        let moved = tree::open_path(&tree, from).is_ok_and(|dir| tree::write(dir.as_fd(), "cgroup.procs", "0").is_ok());
        if moved && let Ok(scope) = tree::open_path(&tree, &self.scope) {
            // systemd takes away what is left with the scope.
            let _ = unlinkat(&scope, RUNTIME, AtFlags::REMOVEDIR);
        }
    }
}

/// Has systemd begin a scope with this process in it. Busy (4) where there is one of that name.
pub fn enter(scope: &Scope, id: &str, tree: &Tree, mut properties: Vec<Property>) -> Result<Visit> {
    let from = delegated::own_group()?;
    let text = |text: &str| Value::Str(text.to_owned());
    let mut all = vec![
        ("Description".to_owned(), text(&format!("container {id}"))),
        ("PIDs".to_owned(), Value::U32s(vec![std::process::id()])),
        ("Delegate".to_owned(), Value::Bool(true)),
        // As runc and crun have it: who stops the engine's service decides of its containers, and not the shutdown.
        ("DefaultDependencies".to_owned(), Value::Bool(false)),
        ("CollectMode".to_owned(), text("inactive-or-failed")),
    ];
    all.extend(scope.slice.as_deref().map(|slice| ("Slice".to_owned(), text(slice))));
    // What was asked for by name counts.
    all.retain(|(name, _)| properties.iter().all(|(other, _)| other != name));
    all.append(&mut properties);
    let begun = || -> Result<()> {
        let mut bus = connect()?;
        let deadline = Instant::now() + PATIENCE;
        let mut empty = 0;
        let job = loop {
            let asked = bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", |w| {
                w.str(&scope.name);
                w.str("fail");
                w.properties(&all);
                w.no_units();
            });
            match asked {
                // One that ended a moment ago.
                Err(error) if is(&error, "UnitExists") && Instant::now() < deadline => {
                    empty = if is_empty(&mut bus, &scope.name)? { empty + 1 } else { 0 };
                    if empty == EMPTY_LOOKS {
                        stop(&mut bus, &scope.name)?;
                    }
                    sleep(Duration::from_millis(20));
                }
                Err(error) if is(&error, "UnitExists") => {
                    return Err(exit::busy(format!("{error:#}; it is in use by another container")));
                }
                other => break other?,
            }
        };
        bus.wait_for(&job)
    };
    begun().with_context(|| format!("scope {}", scope.name))?;
    let own = delegated::own_group()?.filter(|own| own.rsplit('/').next() == Some(&scope.name));
    let own = own.ok_or_else(|| anyhow!("scope {}: systemd began it, and this process is not in it", scope.name))?;
    let visit = Visit { from, scope: own };
    let context = || format!("control group {}/{RUNTIME}", visit.scope);
    let dir = tree::open_path(tree, &visit.scope).with_context(context)?;
    mkdirat(&dir, RUNTIME, Mode::from_raw_mode(0o755)).with_context(context)?;
    let runtime = tree::open_dir(dir.as_fd(), RUNTIME).with_context(context)?;
    tree::write(runtime.as_fd(), "cgroup.procs", "0").with_context(context)?;
    Ok(visit)
}

/// Sets properties of a scope, until it ends.
pub fn set(scope: &str, properties: &[Property]) -> Result<()> {
    let set = |bus: &mut Bus| {
        bus.call("SetUnitProperties", "sba(sv)", |w| {
            w.str(scope);
            w.bool(true);
            w.properties(properties);
        })
    };
    connect().and_then(|mut bus| set(&mut bus)).map(drop).with_context(|| format!("scope {scope}"))
}

/// Ends the scope in which a group was, which is gone: with all who are in it still. One that is gone, too, is no error; one that this
/// process itself is in ends with it.
pub fn end(scope: &str, group: &str) -> Result<()> {
    let above = group.strip_suffix(CONTAINER).unwrap_or(group).trim_end_matches('/');
    let is_there = Tree::find()?.is_some_and(|tree| tree::open_path(&tree, above).is_ok());
    if !is_there || delegated::own_group()?.is_some_and(|own| own.starts_with(&format!("{above}/"))) {
        return Ok(());
    }
    connect().and_then(|mut bus| stop(&mut bus, scope)).with_context(|| format!("scope {scope}"))
}

/// Ends a scope that was begun for a container that never came to be, and that nobody is in: systemd may have missed the death of the
/// only one. Where there is no systemd there is none.
pub fn end_unused(scope: &Scope) -> Result<()> {
    let Ok(mut bus) = connect() else { return Ok(()) };
    let context = || format!("scope {}", scope.name);
    if is_empty(&mut bus, &scope.name).with_context(context)? {
        stop(&mut bus, &scope.name).with_context(context)?;
    }
    Ok(())
}

/// Whether there is a scope with nobody in it.
fn is_empty(bus: &mut Bus, scope: &str) -> Result<bool> {
    match bus.call("GetUnitProcesses", "s", |w| w.str(scope)) {
        Err(error) if is(&error, "NoSuchUnit") => Ok(false),
        processes => Ok(processes? == "0"),
    }
}

fn stop(bus: &mut Bus, scope: &str) -> Result<()> {
    let asked = bus.call("StopUnit", "ss", |w| {
        w.str(scope);
        w.str("replace");
    });
    match asked {
        Err(error) if is(&error, "NoSuchUnit") => Ok(()),
        asked => bus.wait_for(&asked?),
    }
}

fn is(error: &anyhow::Error, name: &str) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| refused.name.strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

/// The manager whose the container is: the system's for root, and a user's own.
fn connect() -> Result<Bus> {
    let socket = if is_host_root() {
        PathBuf::from("/run/systemd/private")
    } else {
        let dir = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let dir = dir.ok_or_else(|| anyhow!("a user's systemd is found by $XDG_RUNTIME_DIR, which is not set"))?;
        dir.join("systemd/private")
    };
    let hint = "--cgroup-manager=cgroupfs does without";
    channel::connect(&socket, "its socket").and_then(Bus::begin).with_context(|| format!("no systemd here ({hint})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_means() {
        for (path, slice, name) in [
            (None, None, "sheep-x.scope"),
            (Some(""), None, "sheep-x.scope"),
            (Some("machine.slice:libpod:0af"), Some("machine.slice"), "libpod-0af.scope"),
            (Some(":cri-containerd:1"), None, "cri-containerd-1.scope"),
            (Some("a-b.slice::c"), Some("a-b.slice"), "c.scope"),
        ] {
            let want = Scope { slice: slice.map(str::to_owned), name: name.to_owned() };
            assert_eq!(Scope::of(path, "x").unwrap(), want, "{path:?}");
        }
        for path in
            ["/a/b", "a:b", "a.slice:b:", "a:b:c", "a.slice:b:c:d", "../a.slice:b:c", "a.slice:b/c:d", "a.slice:b:c d"]
        {
            assert!(Scope::of(Some(path), "x").is_err(), "{path}");
        }
    }
}
