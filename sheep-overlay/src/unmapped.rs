//! Owners that a user namespace does not map: what they own can be read in an overlay there, and not be changed (the kernel
//! answers `EOVERFLOW` or `EACCES`). Found before the mount, so that nobody is left to wonder.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, openat, statat};

use crate::doc::UserNamespace;
use crate::lowers::Lower;
use crate::{PROGRAM, exit};

/// How many entries of a lower are looked at: a sample, for a tree may be large and a mount is quick.
const SAMPLE: usize = 256;

/// Says on stderr which owners at the top of the lowers are not mapped, if there are any. To be asked outside of the
/// namespace: inside it, every such owner is shown as nobody.
pub fn explain(lowers: &[Lower], namespace: &UserNamespace) {
    let mut found = BTreeSet::new();
    let mut count = 0;
    for lower in lowers {
        let mut look = |uid: u32, gid: u32| {
            if !namespace.maps(uid, gid) {
                found.insert((uid, gid));
                count += 1;
            }
        };
        look(lower.stat.st_uid, lower.stat.st_gid);
        let Ok(dir) = openat(&lower.fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        let mut entries = RawDir::new(&dir, &mut buffer);
        let mut left = SAMPLE;
        while let Some(Ok(entry)) = entries.next() {
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if let Ok(stat) = statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                look(stat.st_uid, stat.st_gid);
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    if count == 0 {
        return;
    }
    let owners: Vec<String> = found.iter().take(4).map(|(uid, gid)| format!("{uid}:{gid}")).collect();
    let more = if found.len() > 4 { ", …" } else { "" };
    let remedy = if namespace.is_single() {
        "subordinate ids (usermod --add-subuids) map more owners, and root changes all"
    } else {
        "root changes all"
    };
    exit::warn(
        PROGRAM,
        &format!(
            "mount: owners outside of your user namespace ({}{more}): what is theirs can be read, but not changed; {remedy}",
            owners.join(", ")
        ),
    );
}
