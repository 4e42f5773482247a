//! A tar archive as a stream of members: long names, pax attributes and sparse maps are resolved here, contents are
//! handed out as they come.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Seek};

use anyhow::{Context, Result, bail};

use super::attributes::Attributes;
use super::header::{self, BLOCK, Header};
use super::pax;
use super::sparse::{self, PaxSparse, REGIONS_MAX};

/// Long names and pax headers are kept in memory; no real one is nearly as long.
const EXTENSION_MAX: u64 = 8 << 20;
/// Bytes of the records of all global headers together. What they say holds for each member; real ones are a remark or two.
const GLOBAL_MAX: usize = 8 << 10;
/// How much of a name an error message shows.
const SHOWN_MAX: usize = 4096;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a member that came before.
    HardLink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
}

/// An extended attribute: its name, and its value, where that can be told.
pub type Xattr = (Vec<u8>, Option<Vec<u8>>);

/// A member of an archive.
#[derive(Debug, Clone)]
pub struct Member {
    /// The name as it stands in the archive: nothing is checked yet.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Mode bits, the lower twelve.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The file's size.
    pub size: u64,
    /// Where the content goes: offset and length of each region of data, in order. What is between them is holes.
    pub regions: Vec<(u64, u64)>,
}

/// A tar archive that is being read.
pub struct Archive<R> {
    input: R,
    /// Where in the archive the reader is, for error messages.
    at: u64,
    /// Bytes of the member's content not read yet, and the padding after them.
    left: u64,
    padding: u64,
    /// Records of global pax headers.
    global: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Archive { input, at: 0, left: 0, padding: 0, global: BTreeMap::new() }
    }

    /// The next member. After the last one, the rest of the input is read and checked, and `None` returned. Content that
    /// was not read is passed over.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        self.skip(self.left)?;
        self.left = 0;
        self.skip(self.padding)?;
        self.padding = 0;
        let mut local: Option<Vec<(Vec<u8>, Vec<u8>)>> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let start = self.at;
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? {
                if start == 0 {
                    bail!("it is empty, and not a tar archive");
                }
                bail!("the archive is cut short: it ends without its end mark");
            }
            let header = Header(&block);
            if header.is_zero() {
                if local.is_some() || long_name.is_some() || long_link.is_some() {
                    bail!("the archive is damaged: it ends where a member should follow its extended header");
                }
                self.read_end()?;
                return Ok(None);
            }
            if !header.checksum_fits() {
                if start == 0 {
                    bail!("it is not a tar archive");
                }
                bail!("the archive is damaged: no valid header at byte {start}");
            }
            match header.typeflag() {
                b'L' => long_name = Some(until_nul(self.read_extension(&header)?)),
                b'K' => long_link = Some(until_nul(self.read_extension(&header)?)),
                b'x' | b'X' => local = Some(self.read_pax(&header)?),
                b'g' => {
                    let records = self.read_pax(&header)?;
                    self.global.extend(records);
                    let bytes: usize = self.global.iter().map(|(key, value)| key.len() + value.len()).sum();
                    if bytes > GLOBAL_MAX {
                        bail!("the global headers have {bytes} bytes of records; more than {GLOBAL_MAX} are refused");
                    }
                }
                _ => {
                    let attributes = Attributes { global: &self.global, local: local.as_deref().unwrap_or(&[]) };
                    let name =
                        attributes.get(b"path").map(<[u8]>::to_vec).or(long_name).unwrap_or_else(|| header.name());
                    let link = attributes
                        .get(b"linkpath")
                        .map(<[u8]>::to_vec)
                        .or(long_link)
                        .unwrap_or_else(|| header.link_name().to_vec());
                    let member = basic_member(&header, &attributes, name, link)
                        .with_context(|| format!("the archive is damaged: header at byte {start}"))?;
                    let Some(mut member) = member else {
                        // A volume label is no file.
                        (local, long_name, long_link) = (None, None, None);
                        continue;
                    };
                    self.left = member.size;
                    self.padding = padding(member.size);
                    let sparse = sparse::of(&attributes);
                    self.read_sparse(&header, sparse, &mut member)
                        .with_context(|| format!("member {}: sparse map", shown(&member.name)))?;
                    return Ok(Some(member));
                }
            }
        }
    }

    /// The next piece of the member's content, at most `most` bytes; call [`Archive::consume`] with what was taken of it.
    /// Content that ends early is an error.
    pub fn content(&mut self, most: u64) -> io::Result<&[u8]> {
        let most = most.min(self.left);
        let piece = self.input.fill_buf()?;
        if piece.is_empty() && most > 0 {
            return Err(cut_short());
        }
        Ok(&piece[..piece.len().min(usize::try_from(most).unwrap_or(usize::MAX))])
    }

    /// Takes `n` bytes of the piece that [`Archive::content`] gave.
    pub fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.at += n as u64;
        self.left -= n as u64;
    }

    /// Where in the archive the content begins, before any of it was read.
    pub fn content_at(&self) -> u64 {
        self.at
    }

    /// The input, after the archive was read to its end.
    pub fn into_input(self) -> R {
        self.input
    }

    /// After a zero block: what follows may only be zeros, to the end of the input. One zero block before the end of
    /// the input is enough, as for GNU tar.
    fn read_end(&mut self) -> Result<()> {
        loop {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            if let Some(at) = piece.iter().position(|&b| b != 0) {
                bail!("something follows the end of the archive, at byte {}", self.at + at as u64);
            }
            let n = piece.len();
            self.input.consume(n);
            self.at += n as u64;
        }
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(cut_short()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(e),
            }
        }
        self.at += BLOCK as u64;
        Ok(true)
    }

    fn skip(&mut self, mut n: u64) -> io::Result<()> {
        while n > 0 {
            let piece = self.input.fill_buf()?.len();
            if piece == 0 {
                return Err(cut_short());
            }
            let step = usize::try_from(n).unwrap_or(usize::MAX).min(piece);
            self.input.consume(step);
            self.at += step as u64;
            n -= step as u64;
        }
        Ok(())
    }

    fn read_extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        let at = self.at;
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = size.with_context(|| format!("the archive is damaged: size of the extended header at byte {at}"))?;
        if size > EXTENSION_MAX {
            bail!("the extended header at byte {at} has {size} bytes; more than {EXTENSION_MAX} are refused");
        }
        let mut data = Vec::new();
        let got = (&mut self.input).take(size).read_to_end(&mut data)? as u64;
        self.at += got;
        if got < size {
            return Err(cut_short().into());
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    fn read_pax(&mut self, header: &Header<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let at = self.at;
        let data = self.read_extension(header)?;
        let records = pax::records(&data);
        let records = records.with_context(|| format!("the archive is damaged: malformed pax header at byte {at}"))?;
        Ok(records.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
    }

    /// Fills in size and regions of a sparse member; others have one region.
    fn read_sparse(
        &mut self,
        header: &Header<'_>,
        sparse: Result<Option<PaxSparse>>,
        member: &mut Member,
    ) -> Result<()> {
        let stored = member.size;
        let is_file = member.kind == Kind::File;
        let (real_size, map) = match sparse? {
            Some(sparse) if is_file => {
                let map = match sparse.map {
                    Some(map) => map,
                    None => self.read_map_in_content()?,
                };
                if let Some(name) = sparse.name {
                    member.name = name;
                }
                (sparse.real_size, map)
            }
            _ if header.typeflag() == b'S' => {
                let (mut entries, mut more) = header.sparse_entries();
                let mut map = entries.take().context("bad number")?;
                while more {
                    let mut block = [0; BLOCK];
                    if !self.read_block(&mut block)? {
                        return Err(cut_short().into());
                    }
                    (entries, more) = header::sparse_extension(&block);
                    map.extend(entries.take().context("bad number")?);
                    if map.len() > REGIONS_MAX {
                        bail!("more than {REGIONS_MAX} regions");
                    }
                }
                let unsigned = |n: i64| u64::try_from(n).context("negative number");
                let map =
                    map.into_iter().map(|(at, len)| Ok((unsigned(at)?, unsigned(len)?))).collect::<Result<_>>()?;
                (unsigned(header.sparse_real_size().context("bad size")?)?, map)
            }
            _ => {
                if is_file && stored > 0 {
                    member.regions = vec![(0, stored)];
                }
                return Ok(());
            }
        };
        sparse::check_map(&map, real_size, self.left)?;
        member.regions = map;
        member.size = real_size;
        Ok(())
    }

    /// Format 1.0 puts the map before the data: decimal numbers, a line each, padded to whole blocks.
    fn read_map_in_content(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut text: Vec<u8> = Vec::new();
        let mut numbers = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 || !self.read_block(&mut block)? {
                bail!("it is longer than the member");
            }
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|&b| b == b'\n') {
                numbers.push(pax::decimal(&text[..end]).context("bad number")?);
                text.drain(..=end);
                let count = numbers.first().copied().unwrap_or(0);
                if count > REGIONS_MAX as u64 {
                    bail!("more than {REGIONS_MAX} regions");
                }
                if numbers.len() as u64 == 1 + 2 * count {
                    return Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
                }
            }
            if text.len() > BLOCK {
                bail!("bad number");
            }
        }
    }
}

impl<R: Read + Seek> Archive<BufReader<R>> {
    /// Passes over the member's content without reading it.
    pub fn seek_past_content(&mut self) -> Result<()> {
        let length = self.left.checked_add(self.padding).context("a member ends nowhere")?;
        self.input.seek_relative(i64::try_from(length).context("a member ends nowhere")?)?;
        self.at += length;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }
}

/// The member that a header and its attributes describe, its size being that of the content in the archive. `None` for
/// what is no file.
fn basic_member(
    header: &Header<'_>,
    attributes: &Attributes<'_>,
    name: Vec<u8>,
    link: Vec<u8>,
) -> Result<Option<Member>> {
    let size = match attributes.number(b"size")? {
        // The header's own field holds only what fits; where both are given, the pax record is right.
        Some(size) => size,
        None => u64::try_from(header.size().context("size")?).context("negative size")?,
    };
    let kind = match header.typeflag() {
        b'0' | 0 | b'7' if name.ends_with(b"/") => {
            if size > 0 {
                bail!("member {} is a directory by its name and has content", shown(&name));
            }
            Kind::Directory
        }
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'V' => return Ok(None),
        b'M' => bail!("member {} continues another archive; join the volumes first", shown(&name)),
        other => bail!("member {}: type {:?} is not known", shown(&name), char::from(other)),
    };
    // Only files have content, and the list of files in GNU's incremental archives. Others may carry a size that means
    // nothing: the next header follows directly, as for GNU tar and Go.
    let size = if kind == Kind::File || header.typeflag() == b'D' { size } else { 0 };
    let id = |record: Option<u64>, field: Option<i64>, what: &str| {
        let value = record.map_or(field, |n| i64::try_from(n).ok()).and_then(|n| u32::try_from(n).ok());
        // The highest number means "leave as it is" to chown.
        value.filter(|&n| n != u32::MAX).with_context(|| format!("member {}: {what} is out of range", shown(&name)))
    };
    let mtime = match attributes.get(b"mtime") {
        Some(text) => pax::time(text).context("mtime")?,
        None => (header.mtime().context("mtime")?, 0),
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            let (major, minor) = header.device().context("device number")?;
            (u32::try_from(major).context("device number")?, u32::try_from(minor).context("device number")?)
        }
        _ => (0, 0),
    };
    Ok(Some(Member {
        kind,
        link,
        mode: u32::try_from(header.mode().context("mode")? & 0o7777)?,
        uid: id(attributes.number(b"uid")?, header.uid(), "owner")?,
        gid: id(attributes.number(b"gid")?, header.gid(), "group")?,
        mtime,
        xattrs: attributes.xattrs().with_context(|| format!("member {}", shown(&name)))?,
        device,
        size,
        regions: Vec::new(),
        name,
    }))
}

/// A name for an error message.
pub fn shown(name: &[u8]) -> String {
    let (start, rest) = name.split_at(name.len().min(SHOWN_MAX));
    format!("'{}{}'", String::from_utf8_lossy(start), if rest.is_empty() { "" } else { "…" })
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|&b| b == 0) {
        name.truncate(end);
    }
    name
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short")
}
