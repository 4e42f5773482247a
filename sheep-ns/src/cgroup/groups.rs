//! Where groups are in the tree: made with what is missing above them, and removed again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::files::Setting;
use super::tree::{self, Tree};
use super::{delegated, errno_of, is_host_root, systemd};
use crate::exit;
use crate::oci;

/// Where groups are where config.json names no path: `/sheep/ID`, for others than root below the group that is theirs. The
/// only parent that is removed when it is empty.
pub(super) const PARENT: &str = "sheep";

/// The path of a container's group. `linux.cgroupsPath` counts from the tree's root, with or without a slash before it.
pub(super) fn group_path(tree: &Tree, asked: Option<&str>, id: &str) -> Result<String> {
    let path = match asked.filter(|path| !path.is_empty()) {
        None if is_host_root() => format!("/{PARENT}/{id}"),
        // Without one, the attempt at the root's is what says why not.
        None => format!("{}/{PARENT}/{id}", delegated::to_us(tree)?.unwrap_or_default()),
        Some(path) if is_of_systemd(path) => {
            return Err(exit::usage(format!(
                "linux.cgroupsPath {path:?} has systemd's form: give --systemd-cgroup, or a path"
            )));
        }
        Some(path) => format!("/{}", path.trim_matches('/')),
    };
    if components(&path)?.is_empty() {
        return Err(exit::usage("linux.cgroupsPath: the root of the tree cannot be a container's group"));
    }
    Ok(path)
}

/// Whether a `linux.cgroupsPath` is `SLICE:PREFIX:NAME`.
fn is_of_systemd(path: &str) -> bool {
    !path.starts_with('/') && path.split(':').count() == 3
}

/// The names in a group's path. Errors with usage for one that leads elsewhere.
pub(super) fn components(path: &str) -> Result<Vec<&str>> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| [".", ".."].contains(name) || name.contains(['\0', '\n'])) {
        return Err(exit::usage(format!("linux.cgroupsPath {path:?}: no '.' or '..' in it")));
    }
    Ok(names)
}

/// Makes the group and what is missing above it, controllers enabled on the way down.
pub(super) fn make(tree: &Tree, path: &str, settings: &[Setting]) -> Result<OwnedFd> {
    let names = components(path)?;
    // The parent may be removed by the end of another container between our two mkdirs.
    for _ in 0..100 {
        if let Some(dir) = make_once(tree, &names, settings)? {
            return Ok(dir);
        }
    }
    Err(anyhow!("control group {path}: its parent is removed again and again"))
}

fn make_once(tree: &Tree, names: &[&str], settings: &[Setting]) -> Result<Option<OwnedFd>> {
    let mut dir = tree.root.try_clone().context("cgroup2")?;
    let mode = Mode::from_raw_mode(0o755);
    for (depth, name) in names.iter().enumerate() {
        let context = || format!("control group /{}", names[..=depth].join("/"));
        let is_leaf = depth + 1 == names.len();
        let prepared =
            enable(dir.as_fd(), settings).with_context(|| format!("parent of {}", context())).and_then(|()| {
                match mkdirat(&dir, *name, mode) {
                    // Left by a crash, it has the limits of then; one with processes in it is another container's.
                    Err(Errno::EXIST) if is_leaf => match remove_group(dir.as_fd(), name) {
                        Ok(()) => mkdirat(&dir, *name, mode).with_context(context),
                        Err(Errno::BUSY | Errno::NOTEMPTY) => {
                            Err(exit::busy(format!("{} is in use by another container", context())))
                        }
                        Err(errno) => Err(errno).with_context(context),
                    },
                    Err(Errno::EXIST) => Ok(()),
                    other => other.with_context(context),
                }
            });
        match prepared.and_then(|()| tree::open_dir(dir.as_fd(), name).with_context(context)) {
            Ok(next) => dir = next,
            Err(error) if matches!(errno_of(&error), Some(Errno::NOENT | Errno::NODEV)) => return Ok(None),
            Err(error) => {
                remove_parent(tree, names);
                return Err(error);
            }
        }
    }
    Ok(Some(dir))
}

/// Gives the children of `dir` the controllers of `settings`.
pub(super) fn enable(dir: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    if settings.iter().all(|setting| setting.controller == "cgroup") {
        return Ok(());
    }
    let enabled = tree::read(dir, "cgroup.subtree_control")?;
    let mut missing: Vec<&Setting> = Vec::new();
    for setting in settings.iter().filter(|setting| setting.controller != "cgroup") {
        let known = enabled.split_ascii_whitespace().any(|name| name == setting.controller);
        if !known && missing.iter().all(|other| other.controller != setting.controller) {
            missing.push(setting);
        }
    }
    let Some(first) = missing.first() else { return Ok(()) };
    // The kernel forbids it of a group that has processes itself, with several errors, and some controllers it would give all the same
    // and not take the group's children for groups of processes any more. The root alone, which has no type, is exempt.
    if tree::read(dir, "cgroup.type").is_ok() && !tree::read(dir, "cgroup.procs").unwrap_or_default().is_empty() {
        let Setting { what, controller, .. } = first;
        return Err(anyhow!(
            "{what}: the {controller} controller cannot be given to children of a group with processes of its own; move them to a child"
        ));
    }
    for setting in missing {
        let value = format!("+{}", setting.controller);
        tree::write(dir, "cgroup.subtree_control", &value).with_context(|| {
            format!("{}: the {} controller cannot be given to child groups", setting.what, setting.controller)
        })?;
    }
    Ok(())
}

/// Removes the group `name` in `dir` and those in it. One that is gone is no error.
pub(super) fn remove_group(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    let group = match tree::open_dir(dir, name) {
        Ok(group) => group,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for child in children(group.as_fd())? {
        remove_group(group.as_fd(), &child)?;
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes the parent `sheep` where the path is under one and nobody else is.
pub(super) fn remove_parent(tree: &Tree, names: &[&str]) {
    if let Some((_, above)) = names.split_last()
        && above.last() == Some(&PARENT)
        && let Ok(Some((dir, name))) = parent_of(tree, above)
    {
        // Another container's group in it, or its removal by another, are what usually stops this.
        let _ = unlinkat(&dir, name, AtFlags::REMOVEDIR);
    }
}

/// Names of the groups in a group. Their number is what the container made it; each was limited by it.
pub(super) fn children(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    entries(dir, FileType::Directory)
}

pub(super) fn entries(dir: BorrowedFd<'_>, kind: rustix::fs::FileType) -> Result<Vec<String>, Errno> {
    let listing = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let listing = match listing {
        Ok(listing) => listing,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut names = Vec::new();
    for entry in Dir::new(listing)? {
        let entry = entry?;
        if entry.file_type() == kind
            && let Ok(name) = entry.file_name().to_str()
            && ![".", ".."].contains(&name)
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The group that holds the one of this path, and that one's name. `None` where there is no such group.
pub(super) fn parent_of<'a>(tree: &Tree, names: &[&'a str]) -> Result<Option<(OwnedFd, &'a str)>> {
    let Some((leaf, parents)) = names.split_last() else { return Ok(None) };
    let mut parent = tree.root.try_clone().context("cgroup2")?;
    for name in parents {
        parent = match tree::open_dir(parent.as_fd(), name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("control group /{}", names.join("/"))),
        };
    }
    Ok(Some((parent, leaf)))
}

/// Removes the group that [`super::Cgroup::create`] would make, if it is there and empty: what a creation leaves that was killed
/// before it was on record. A group with processes or groups in it is somebody's, and stays.
pub fn remove_unused(linux: &oci::Linux, id: &str) -> Result<()> {
    let Some(tree) = Tree::find()? else { return Ok(()) };
    if linux.cgroups_path.as_deref().is_some_and(is_of_systemd) {
        let scope = systemd::Scope::of(linux.cgroups_path.as_deref(), id);
        return scope.map_or(Ok(()), |scope| systemd::end_unused(&scope));
    }
    let path = group_path(&tree, linux.cgroups_path.as_deref(), id)?;
    let names = components(&path)?;
    let Some((parent, leaf)) = parent_of(&tree, &names)? else { return Ok(()) };
    match unlinkat(&parent, leaf, AtFlags::REMOVEDIR) {
        Ok(()) => remove_parent(&tree, &names),
        Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno).with_context(|| format!("remove control group {path}")),
    }
    Ok(())
}
