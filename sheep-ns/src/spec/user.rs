//! Who a container's process is: names from the container's own /etc/passwd and /etc/group.
//!
//! The files are the image's, so nothing in them is believed: they are opened inside the root directory whatever links
//! they are, only as regular files, and only so much of them is read. No NSS: nothing of the image is loaded.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::exit;
use crate::oci::NO_ID;

/// A larger file of users than this is no file of users.
const MOST_BYTES: u64 = 16 << 20;

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups: those that list the user, unless a group was asked for.
    pub additional_gids: Vec<u32>,
    /// The user's home directory; `None` where no line of passwd has the user.
    pub home: Option<OsString>,
}

/// Finds `asked` (`user`, `uid`, `user:group`, …; empty: root) in the files of `root`. Errors with usage for a name
/// that is not there.
pub fn resolve(root: BorrowedFd<'_>, asked: &str) -> Result<Identity> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    find(asked, &passwd, &group)
}

/// [`resolve`] on the files' contents, by docker's rules: a name goes before a number, a number needs no line.
pub fn find(asked: &str, passwd: &[u8], group: &[u8]) -> Result<Identity> {
    let (user, wanted_group) = match asked.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (asked, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entries = || lines(passwd).filter_map(Entry::parse);
    let by_name = entries().find(|entry| entry.name == user.as_bytes());
    let entry = by_name.or_else(|| {
        let uid = id(user.as_bytes())?;
        entries().find(|entry| entry.uid == uid)
    });
    let mut identity = match (&entry, id(user.as_bytes())) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            home: Some(OsStr::from_bytes(entry.home).to_owned()).filter(|home| !home.is_empty()),
            additional_gids: Vec::new(),
        },
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => {
            return Err(exit::usage(format!("user {user:?}: not in the container's /etc/passwd, and no number")));
        }
    };
    let groups = || lines(group).filter_map(Group::parse);
    match wanted_group.filter(|wanted| !wanted.is_empty()) {
        Some(wanted) => {
            let by_name = groups().find(|group| group.name == wanted.as_bytes()).map(|group| group.gid);
            identity.gid = by_name.or_else(|| id(wanted.as_bytes())).ok_or_else(|| {
                exit::usage(format!("group {wanted:?}: not in the container's /etc/group, and no number"))
            })?;
        }
        None => {
            let Some(entry) = &entry else { return Ok(identity) };
            for group in groups().filter(|group| group.members.split(|b| *b == b',').any(|name| name == entry.name)) {
                if !identity.additional_gids.contains(&group.gid) {
                    identity.additional_gids.push(group.gid);
                }
            }
        }
    }
    Ok(identity)
}

/// A line of passwd(5).
struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Entry<'a>> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of group(5).
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Group<'a>> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii)
}

/// A user or group id in digits.
fn id(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id != NO_ID)
}

/// The content of a file inside the root directory; empty where there is none.
fn read(root: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>> {
    let context = || format!("/{name} in the container's root directory");
    // By path alone first: opening a FIFO would wait, and opening a device may do anything.
    let how = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    let found = loop {
        match openat2(root, name, how, Mode::empty(), inside) {
            // Something was renamed meanwhile.
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            other => break other,
        }
    };
    let found = match found {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno).with_context(context),
    };
    let stat = fstat(&found).with_context(context)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!("{}: not a regular file", context());
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_fd().as_raw_fd())).with_context(context)?;
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text).with_context(context)?;
    if text.len() as u64 > MOST_BYTES {
        bail!("{}: larger than {} MiB", context(), MOST_BYTES >> 20);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/sh\n\
        1000:x:7:8::/home/seven:\nbig:x:4294967295:0::/:\nnohome:x:9:9\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwheel:x:10:root,ann\nvideo:x:44:ann\nother:x:45:bob,anna\n12:x:99:\nvid2:x:44:ann\n";

    #[test]
    fn users_as_docker_finds_them() {
        for (asked, uid, gid, additional, home) in [
            ("", 0, 0, &[10][..], Some("/root")),
            ("0", 0, 0, &[10], Some("/root")),
            ("root", 0, 0, &[10], Some("/root")),
            ("ann", 1000, 100, &[10, 44], Some("/home/ann")),
            ("ann:video", 1000, 44, &[], Some("/home/ann")),
            ("ann:12", 1000, 99, &[], Some("/home/ann")),
            ("ann:13", 1000, 13, &[], Some("/home/ann")),
            ("1000", 7, 8, &[], Some("/home/seven")),
            ("7", 7, 8, &[], Some("/home/seven")),
            ("4242", 4242, 0, &[], None),
            ("4242:video", 4242, 44, &[], None),
            (":video", 0, 44, &[], Some("/root")),
            ("ann:", 1000, 100, &[10, 44], Some("/home/ann")),
            ("nohome", 9, 9, &[], None),
        ] {
            let want = Identity { uid, gid, additional_gids: additional.to_vec(), home: home.map(OsString::from) };
            assert_eq!(find(asked, PASSWD, GROUP).unwrap(), want, "{asked:?}");
        }
    }

    #[test]
    fn who_is_not_there() {
        for asked in ["bob", "ann:nogroup", "-1", "4294967295", "4294967296", "big", "a b", "0x1", "broken"] {
            let error = find(asked, PASSWD, GROUP).unwrap_err();
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{asked:?}: {error:#}");
        }
        assert_eq!(find("5:6", b"", b"").unwrap(), Identity { uid: 5, gid: 6, ..Identity::default() });
    }

    #[test]
    fn files_of_a_hostile_image() {
        let dir = std::env::temp_dir().join(format!("sheep-user-{}", std::process::id()));
        let etc = dir.join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        let root = File::open(&dir).unwrap();
        let asked = || resolve(root.as_fd(), "ann");
        assert!(asked().is_err(), "no passwd at all");
        // A link that leads out leads into the root directory instead.
        std::fs::write(dir.join("users"), PASSWD).unwrap();
        std::os::unix::fs::symlink("/../../users", etc.join("passwd")).unwrap();
        assert_eq!(asked().unwrap().uid, 1000);
        std::fs::remove_file(etc.join("passwd")).unwrap();
        std::os::unix::fs::symlink("passwd", etc.join("passwd")).unwrap();
        assert!(asked().is_err(), "a link to itself");
        std::fs::remove_file(etc.join("passwd")).unwrap();
        rustix::fs::mkfifoat(&root, "etc/passwd", Mode::RUSR).unwrap();
        let error = format!("{:#}", asked().unwrap_err());
        assert!(error.contains("not a regular file"), "{error}");
        std::fs::remove_file(etc.join("passwd")).unwrap();
        File::create(etc.join("passwd")).unwrap().set_len(MOST_BYTES + 1).unwrap();
        let error = format!("{:#}", asked().unwrap_err());
        assert!(error.contains("larger than"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
