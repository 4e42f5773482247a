//! One header block of a tar archive, in any of its dialects: v7, ustar, pax, GNU.
//!
//! Read as GNU tar reads it, because what two programs read differently in one archive is a way past the one that
//! checks (CVE-2025-62518). The `tar` crate is not used for reading: it splits pax records at newlines, which extended
//! attributes contain, and knows neither pax sparse files nor negative times.

/// The size of a block; headers are one, and contents are padded to whole ones.
pub const BLOCK: usize = 512;

/// A header block.
pub struct Header<'a>(pub &'a [u8; BLOCK]);

impl Header<'_> {
    /// Whether it is one of the zero blocks that end an archive.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Whether the checksum fits: the sum of the block's bytes, its own field read as blanks. Old programs summed signed
    /// bytes.
    pub fn checksum_fits(&self) -> bool {
        let Some(want) = number(self.field(148, 8)) else { return false };
        let bytes = || self.0.iter().enumerate().map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        want == unsigned || want == signed
    }

    /// The member's type.
    pub fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that POSIX archives put before it.
    pub fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU's magic ("ustar  ") has other things where POSIX ("ustar\0") has the prefix.
        let prefix = if self.field(257, 6) == b"ustar\0" { until_nul(self.field(345, 155)) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// The target of a link.
    pub fn link_name(&self) -> &[u8] {
        until_nul(self.field(157, 100))
    }

    /// The mode bits; `None` where the field is not a number, as for all numbers here.
    pub fn mode(&self) -> Option<i64> {
        number(self.field(100, 8))
    }

    /// The owner.
    pub fn uid(&self) -> Option<i64> {
        number(self.field(108, 8))
    }

    /// The group.
    pub fn gid(&self) -> Option<i64> {
        number(self.field(116, 8))
    }

    /// The size of the content in the archive.
    pub fn size(&self) -> Option<i64> {
        number(self.field(124, 12))
    }

    /// The time of the last change, in seconds; negative before 1970.
    pub fn mtime(&self) -> Option<i64> {
        number(self.field(136, 12))
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Option<(i64, i64)> {
        Some((number(self.field(329, 8))?, number(self.field(337, 8))?))
    }

    /// The file size of an old GNU sparse member.
    pub fn sparse_real_size(&self) -> Option<i64> {
        number(self.field(483, 12))
    }

    /// The entries of the sparse map in an old GNU sparse header, and whether another block of them follows.
    pub fn sparse_entries(&self) -> (Option<Vec<(i64, i64)>>, bool) {
        (sparse_entries(self.field(386, 4 * 24)), self.0[482] != 0)
    }

    fn field(&self, at: usize, len: usize) -> &[u8] {
        &self.0[at..at + len]
    }
}

/// The entries in a block that continues an old GNU sparse header, and whether another one follows.
pub fn sparse_extension(block: &[u8; BLOCK]) -> (Option<Vec<(i64, i64)>>, bool) {
    (sparse_entries(&block[..21 * 24]), block[504] != 0)
}

/// Offset and length, until the first empty entry.
fn sparse_entries(bytes: &[u8]) -> Option<Vec<(i64, i64)>> {
    bytes
        .chunks_exact(24)
        .take_while(|entry| entry[0] != 0 || entry[12] != 0)
        .map(|entry| Some((number(&entry[..12])?, number(&entry[12..])?)))
        .collect()
}

/// A numeric field: octal digits between blanks and NULs, or, with the first bit set, a big-endian two's complement
/// number. Empty is 0. `None` where it is neither, or does not fit.
pub fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The bit that marks the form is not part of the number; the next one is its sign.
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let head = (start << 6) | i128::from(first & 0x3f);
        let value = field[1..].iter().try_fold(head, |value, &b| value.checked_mul(256).map(|v| v | i128::from(b)))?;
        return i64::try_from(value).ok();
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(text.len());
    if !text[end..].iter().all(|b| matches!(b, b' ' | 0)) {
        return None;
    }
    text[..end].iter().try_fold(0i64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"64 4\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
