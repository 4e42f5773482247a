//! POSIX access control lists: the text that GNU tar and star put into pax records, as the kernel's extended attributes.

/// Version 2 of the attribute's layout, and the numbers of its entries (linux/posix_acl_xattr.h).
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// The value of `system.posix_acl_access` or `…_default` for a list such as `user::rwx,user:33:r-x,…`. Ids are the
/// fourth field, as star writes them, or a number where the name is. `None` where a name stands alone: the names of an
/// image are not this host's; or where the text is no list.
pub fn to_xattr(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        let entry = entry.split('#').next().unwrap_or("").trim();
        if entry.is_empty() {
            continue;
        }
        let mut fields = entry.split(':');
        let (kind, name, mode) = (fields.next()?, fields.next()?, fields.next()?);
        let id = match (name, fields.next()) {
            ("", _) => NO_ID,
            (_, Some(id)) => id.parse().ok()?,
            (name, None) => name.parse().ok()?,
        };
        let tag = match (kind, name.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => return None,
        };
        entries.push((tag, id, permissions(mode)?));
    }
    // The kernel wants them in this order.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, mode) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(mode.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

fn permissions(text: &str) -> Option<u16> {
    text.bytes().try_fold(0, |mode, byte| {
        Some(match byte {
            b'r' => mode | 4,
            b'w' => mode | 2,
            b'x' => mode | 1,
            b'-' => mode,
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let value =
            to_xattr(b"other::r--,user::rwx\nuser:www-data:r-x:33,user:5:--- #effective:---,group::r-x,mask::r-x")
                .unwrap();
        assert_eq!(value.len(), 4 + 6 * 8);
        let tags: Vec<u8> = value[4..].chunks_exact(8).map(|entry| entry[0]).collect();
        assert_eq!(tags, [1, 2, 2, 4, 0x10, 0x20]);
        assert_eq!(&value[12..20], &[2, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(&value[20..28], &[2, 0, 5, 0, 33, 0, 0, 0]);
        for bad in [&b"user:name:rwx"[..], b"user::rwz", b"what::rwx", b"user", b"\xff"] {
            assert_eq!(to_xattr(bad), None);
        }
    }
}
