//! Paths of the merged view and of directories in it: bytes, without a leading slash; empty is the root.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `path/name`; one alone where the other is empty, as the root's is.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() && !name.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// A path as it is here.
pub fn bare(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default().to_vec()
}

/// The directory of a path, and the name in it.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    }
}

/// All directories above a path, but for the root, the topmost first.
pub fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

/// A path from a directory on that it is, or is in; `None` where it is elsewhere.
pub fn inside<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    match path.strip_prefix(dir)? {
        rest if dir.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix(b"/"),
    }
}

/// Whether a path is somewhere below a directory.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    inside(path, dir).is_some_and(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_a_directory_on() {
        let table: [(&str, &str, Option<&str>); 7] = [
            ("a/b", "", Some("a/b")),
            ("", "", Some("")),
            ("a", "a", Some("")),
            ("a/b/c", "a", Some("b/c")),
            ("ab", "a", None),
            ("a", "a/b", None),
            ("", "a", None),
        ];
        for (path, dir, want) in table {
            let found = inside(path.as_bytes(), dir.as_bytes());
            assert_eq!(found, want.map(str::as_bytes), "{path:?} in {dir:?}");
            if let Some(found) = found {
                assert_eq!(join(dir.as_bytes(), found), path.as_bytes());
            }
        }
    }
}
