//! Reads a tar back, by the letter of POSIX (pax interchange format) and strictly: it shares nothing with what writes it, so
//! that what the two agree on can be believed. It knows only what a layer may contain.

use std::collections::BTreeMap;
use std::io::{Read, Take};

use anyhow::{Context, Result, bail, ensure};

/// A member of the archive.
#[derive(Debug, Default)]
pub struct Member {
    /// As it is written, but for a slash at the end.
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub owner: (u64, u64),
    /// Seconds and nanoseconds.
    pub time: (i64, i64),
    pub device: (u32, u32),
    pub target: Vec<u8>,
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The members of an archive, one after the other.
pub struct Reader<R> {
    from: R,
    /// What is left of the member that was read last, and the zeros after it.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Reader { from, left: 0, padding: 0 }
    }

    /// The next member; none at the end.
    pub fn next(&mut self) -> Result<Option<Member>> {
        self.skip()?;
        let mut records = BTreeMap::new();
        loop {
            let block = self.block()?;
            if block == [0; 512] {
                ensure!(self.block()? == [0; 512], "the archive ends with one block of zeros and not with two");
                ensure!(self.from.read(&mut [0])? == 0, "something follows the end of the archive");
                ensure!(records.is_empty(), "attributes without a member");
                return Ok(None);
            }
            check_sum(&block)?;
            ensure!(&block[257..263] == b"ustar\0", "a header that is not POSIX's");
            let size = octal(&block[124..136])?;
            if block[156] == b'x' {
                ensure!(records.is_empty(), "attributes twice for one member");
                let mut body = vec![0; usize::try_from(size)?];
                self.from.read_exact(&mut body)?;
                self.zeros(padding(size))?;
                records = pax(&body)?;
                continue;
            }
            let member = member(&block, records)?;
            (self.left, self.padding) = (member.size, padding(member.size));
            return Ok(Some(member));
        }
    }

    /// The content of the last member.
    pub fn content(&mut self) -> Take<&mut R> {
        let size = std::mem::take(&mut self.left);
        self.from.by_ref().take(size)
    }

    fn skip(&mut self) -> Result<()> {
        ensure!(self.left == 0, "content that nobody looked at");
        let padding = std::mem::take(&mut self.padding);
        self.zeros(padding)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let mut rest = [0; 512];
        let rest = &mut rest[..count as usize];
        self.from.read_exact(rest)?;
        ensure!(rest.iter().all(|byte| *byte == 0), "something stands between two members");
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; 512]> {
        let mut block = [0; 512];
        self.from.read_exact(&mut block).context("the archive has no end")?;
        Ok(block)
    }
}

fn member(block: &[u8; 512], mut records: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Member> {
    let mut or = |key: &[u8], field: &[u8]| records.remove(key).unwrap_or_else(|| text(field).to_vec());
    let (mut name, target) = (or(b"path", &block[..100]), or(b"linkpath", &block[157..257]));
    ensure!(block[345..500].iter().all(|byte| *byte == 0), "a name in two pieces");
    let kind = block[156];
    if kind == b'5' {
        ensure!(name.pop() == Some(b'/'), "a directory without a slash");
    }
    let mut number = |key: &[u8], field: &[u8]| match records.remove(key) {
        Some(value) => Ok(std::str::from_utf8(&value)?.parse()?),
        None => octal(field),
    };
    let owner = (number(b"uid", &block[108..116])?, number(b"gid", &block[116..124])?);
    let size = number(b"size", &block[124..136])?;
    let time = match records.remove(&b"mtime"[..]) {
        Some(value) => time(&value)?,
        None => (i64::try_from(octal(&block[136..148])?)?, 0),
    };
    let mut xattrs = BTreeMap::new();
    for (key, value) in records {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else {
            bail!("an attribute that a layer should not have: {}", key.escape_ascii())
        };
        xattrs.insert(name.to_vec(), value);
    }
    let device = (u32::try_from(octal(&block[329..337])?)?, u32::try_from(octal(&block[337..345])?)?);
    let mode = u32::try_from(octal(&block[100..108])?)?;
    Ok(Member { name, kind, mode, owner, time, device, target, size, xattrs })
}

/// Records of the form `LENGTH KEY=VALUE\n`.
fn pax(body: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    let mut rest = body;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').context("an attribute without a length")?;
        let length: usize = std::str::from_utf8(&rest[..space])?.parse()?;
        ensure!(
            length > space && length <= rest.len() && rest[length - 1] == b'\n',
            "an attribute of the wrong length"
        );
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').context("an attribute without a value")?;
        let before = records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        ensure!(before.is_none(), "an attribute twice");
        rest = &rest[length..];
    }
    Ok(records)
}

fn check_sum(block: &[u8; 512]) -> Result<()> {
    let sum: u64 = (0..512).map(|at| if (148..156).contains(&at) { 32 } else { u64::from(block[at]) }).sum();
    ensure!(octal(&block[148..156])? == sum, "a header with a wrong checksum");
    Ok(())
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(text(field))?.trim_matches(' ');
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).with_context(|| format!("{digits:?} is no octal number"))
}

/// Decimal seconds with a fraction, as a time before 1970 is counted: seconds down, nanoseconds up.
fn time(value: &[u8]) -> Result<(i64, i64)> {
    let value = std::str::from_utf8(value)?;
    let (digits, below) = match value.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (value, false),
    };
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    ensure!(fraction.len() <= 9, "a time finer than a nanosecond");
    let seconds: i64 = seconds.parse()?;
    let nanoseconds: i64 = format!("{fraction:0<9}").parse()?;
    Ok(match (below, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// How many zeros follow so many bytes, up to the next block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(512) - size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_stat_has_them() {
        let table = [("5", (5, 0)), ("5.5", (5, 500_000_000)), ("-1", (-1, 0)), ("-0.25", (-1, 750_000_000))];
        for (text, want) in table {
            assert_eq!(time(text.as_bytes()).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn values_may_have_newlines_and_nuls() {
        let records = pax(b"21 SCHILY.xattr.a=\n\0\n9 path=a\n").unwrap();
        assert_eq!(records[&b"path"[..]], b"a");
        assert_eq!(records[&b"SCHILY.xattr.a"[..]], b"\n\0");
        for bad in ["8 path=a\n", "11 path=a\n", "9 path a\n", "path=a\n"] {
            assert!(pax(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cut_archive_is_no_archive() {
        for length in [0, 512, 1000] {
            assert!(Reader::new(&vec![0; length][..]).next().is_err(), "{length}");
        }
        assert!(Reader::new(&[0; 1024][..]).next().unwrap().is_none());
        assert!(Reader::new(&[1; 1024][..]).next().is_err());
    }
}
