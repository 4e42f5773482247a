//! Who keeps a merged directory busy: looked up in /proc, and only once the kernel has said that somebody does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::mountpoint;

/// How many processes are named.
const NAMED: usize = 8;

/// The users of what is mounted on `merged`, in words: mounts inside it, else processes. `None` where none is found.
pub fn users_of_mount(merged: &Path) -> Option<String> {
    if let Some(inner) = mount_inside(merged) {
        return Some(format!("a mount inside it, {}; unmount that first", inner.display()));
    }
    let id = mountpoint::id_behind(merged)?;
    let on_mount = |link: &Path| mountpoint::id_behind(link) == Some(id);
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

/// A mount whose mount point is below `merged`.
fn mount_inside(merged: &Path) -> Option<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsStr::from_bytes(&unescape(field))))
        .find(|point| point != merged && point.starts_with(merged))
}

/// A field of mountinfo: space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => out.push(*first),
        }
    }
    out
}

/// The processes for which `uses` holds, but for this one: pid and name.
fn processes(uses: impl Fn(&Path) -> bool) -> Vec<(u32, String)> {
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

fn in_words(found: Vec<(u32, String)>) -> String {
    let more = found.len().saturating_sub(NAMED);
    let mut words: Vec<String> =
        found.into_iter().take(NAMED).map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_mountinfo() {
        for (raw, want) in [
            (&b"/plain"[..], &b"/plain"[..]),
            (b"/a\\040b", b"/a b"),
            (b"/new\\012line", b"/new\nline"),
            (b"/back\\134slash", b"/back\\slash"),
            (b"/no\\9", b"/no\\9"),
            (b"/\xff", b"/\xff"),
        ] {
            assert_eq!(unescape(raw), want);
        }
    }
}
