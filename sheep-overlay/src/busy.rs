//! Who keeps a merged directory busy: looked up in /proc, and only once the kernel has said that somebody does.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{mountinfo, mountpoint, namespace};

/// How many processes are named.
const NAMED: usize = 8;

/// The users of what is mounted on `merged`, in words: mounts inside it, else processes. `own` are the mount points of
/// its own parts, which count as it does; what is `bound` into it is not looked at. `None` where none is found.
pub fn users_of_mount(merged: &Path, own: &[PathBuf], bound: &[PathBuf]) -> Option<String> {
    if let Some(inner) = mount_inside(merged, own, bound) {
        return Some(format!("a mount inside it, {}; unmount that first", inner.display()));
    }
    let ids: Vec<u64> = own.iter().map(|point| &**point).chain([merged]).filter_map(mountpoint::id_behind).collect();
    let on_mount = |link: &Path| mountpoint::id_behind(link).is_some_and(|id| ids.contains(&id));
    let found = processes(|process| links(process).iter().any(|link| on_mount(link)));
    if !found.is_empty() {
        return Some(in_words(found));
    }
    // A mapped file needs no descriptor. Many links: only where nothing else explains it.
    let found = processes(|process| entries(&process.join("map_files")).iter().any(|link| on_mount(link)));
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// The processes that work in a copy, in words: their working or root directory, program or an open file is in it.
pub fn users_of_copy(merged: &Path) -> Option<String> {
    let top = fs::metadata(merged).ok()?;
    let found = processes(|process| {
        links(process).iter().any(|link| {
            let named = fs::read_link(link).is_ok_and(|target| target.starts_with(merged));
            // In a container the copy is "/": only its identity tells.
            named || fs::metadata(link).is_ok_and(|seen| (seen.dev(), seen.ino()) == (top.dev(), top.ino()))
        })
    });
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// The processes in other mount namespaces that see what is mounted on `merged`, in words: `sheep-overlay exec` of root
/// makes such namespaces, with the view in another place, and an umount does not reach into them. A namespace that only has
/// a copy of the mount where it is here, as every new one has, does not count.
pub fn users_elsewhere(merged: &Path) -> Option<String> {
    let device = fs::metadata(merged).ok()?.dev();
    let wanted = (rustix::fs::major(device), rustix::fs::minor(device));
    let here = namespace::inode_of(Path::new("/proc/self"), "mnt");
    let sees = |process: &Path| {
        let there = namespace::inode_of(process, "mnt");
        there.is_some()
            && there != here
            && mountinfo::read_of(&process.join("mountinfo"))
                .is_ok_and(|table| table.iter().any(|entry| entry.device == wanted && entry.point != merged))
    };
    let found = processes(sees);
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// The processes in other mount namespaces in which an overlay with this upper is mounted, in words: a namespace gets a copy
/// of every mount that there is when it is made.
pub fn keepers_of(upper: &Path) -> Option<String> {
    let here = namespace::inode_of(Path::new("/proc/self"), "mnt");
    let keeps = |process: &Path| {
        let there = namespace::inode_of(process, "mnt");
        there.is_some()
            && there != here
            && mountinfo::read_of(&process.join("mountinfo"))
                .is_ok_and(|table| table.iter().any(|entry| entry.has_upper(upper)))
    };
    let found = processes(keeps);
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// The processes in other mount namespaces in which the file system with this device is mounted, in words; one of each namespace
/// is named.
pub fn keepers_of_device(device: (u32, u32)) -> Option<String> {
    let here: HashSet<u64> = namespace::inode_of(Path::new("/proc/self"), "mnt").into_iter().collect();
    let seen = RefCell::new(here);
    let keeps = |process: &Path| {
        namespace::inode_of(process, "mnt").is_some_and(|there| seen.borrow_mut().insert(there))
            && mountinfo::read_of(&process.join("mountinfo"))
                .is_ok_and(|table| table.iter().any(|entry| entry.device == device))
    };
    let found = processes(keeps);
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// The processes in other mount namespaces that have a file, or their working or root directory, on the file system with this
/// device, in words.
pub fn users_of_device(device: (u32, u32)) -> Option<String> {
    let here = namespace::inode_of(Path::new("/proc/self"), "mnt");
    let is_on = |link: &PathBuf| {
        let found = fs::metadata(link).map(|found| (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())));
        found.is_ok_and(|found| found == device)
    };
    let found = processes(|process| namespace::inode_of(process, "mnt") != here && links(process).iter().any(is_on));
    if found.is_empty() { None } else { Some(in_words(found)) }
}

/// A mount whose mount point is below `merged`, and which is none of its own.
fn mount_inside(merged: &Path, own: &[PathBuf], bound: &[PathBuf]) -> Option<PathBuf> {
    let inside = |entry: &mountinfo::Entry| {
        entry.point != merged
            && entry.point.starts_with(merged)
            && !own.contains(&entry.point)
            && !bound.iter().any(|bound| entry.point.starts_with(bound))
    };
    mountinfo::read().ok()?.into_iter().find(inside).map(|entry| entry.point)
}

/// The processes for which `uses` (of `/proc/PID`) holds, but for this one: pid and name.
pub fn processes(uses: impl Fn(&Path) -> bool) -> Vec<(u32, String)> {
    let own = std::process::id();
    let mut found: Vec<(u32, String)> = entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|process| Some((process.file_name()?.to_str()?.parse().ok()?, process)))
        .filter(|(pid, process)| *pid != own && uses(process))
        .map(|(pid, process)| (pid, name_of(&process)))
        .collect();
    found.sort_unstable();
    found
}

/// The links in /proc/PID to what a process has open.
fn links(process: &Path) -> Vec<PathBuf> {
    let mut links = entries(&process.join("fd"));
    links.extend(["cwd", "root", "exe"].map(|name| process.join(name)));
    links
}

/// A directory's entries; none where it cannot be read (a process that ended, or is another user's).
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn name_of(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// Processes as a message names them: `make (pid 12), sh (pid 3)`; some of them, where they are many.
pub fn in_words(found: Vec<(u32, String)>) -> String {
    let more = found.len().saturating_sub(NAMED);
    let mut words: Vec<String> =
        found.into_iter().take(NAMED).map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}
