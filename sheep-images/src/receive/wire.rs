//! The members of a stream, one after the other, as they come through a pipe: nothing is read twice, and nothing is passed over.
//!
//! They are what `send` and `export` write: plain ustar headers, files and directories only. How a stream ends tells whether it was cut
//! (then the rest may still come) or is wrong.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use sheep_overlay::exit;

use crate::codec::{self, Codec};
use crate::unpack::header::{BLOCK, Header};

const READ_AHEAD: usize = 256 << 10;
/// Zeros after the end mark that other programs may add, to fill up a record.
const ZEROS_MAX: u64 = 1 << 20;

/// A member of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, as it stands there.
    pub name: String,
    /// Its size; a directory has none.
    pub size: u64,
}

/// A stream that is being read.
pub struct Wire {
    input: Arc<Mutex<Input>>,
    cut: Arc<AtomicBool>,
    began: bool,
}

struct Input {
    source: BufReader<File>,
    /// Bytes of the member's content that were not read, and of the padding after it.
    left: u64,
    padding: u64,
}

/// What is in a member. Not read to its end, the rest is passed over by who asks for the next one.
pub struct Content {
    input: Arc<Mutex<Input>>,
    cut: Arc<AtomicBool>,
}

impl Wire {
    /// Begins to read.
    pub fn new(source: File) -> Self {
        let source = BufReader::with_capacity(READ_AHEAD, source);
        let input = Arc::new(Mutex::new(Input { source, left: 0, padding: 0 }));
        Wire { input, cut: Arc::default(), began: false }
    }

    /// Whether it ended, or could not be read any more, before its end.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// The next member; `None` after the last one, when the rest was read and checked.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let mut input = lock(&self.input);
        if !std::mem::replace(&mut self.began, true) {
            check_beginning(&mut input, &self.cut)?;
        }
        input.pass_over(&self.cut)?;
        let mut block = [0; BLOCK];
        input.fill(&mut block, &self.cut)?;
        let header = Header(&block);
        if header.is_zero() {
            input.fill(&mut block, &self.cut)?;
            if !Header(&block).is_zero() {
                bail!("something follows the end of the stream");
            }
            return input.end(&self.cut).map(|()| None);
        }
        let name = String::from_utf8(header.name());
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let (true, Ok(name), Some(size)) = (header.checksum_fits(), name, size) else {
            bail!("it is damaged, or not what 'sheep-images send' prints: no valid header where a member should begin");
        };
        match (header.typeflag(), size) {
            (b'0', _) | (b'5', 0) => {}
            _ => bail!(
                "{name}: 'sheep-images send' makes no such members; 'sheep-images import' takes archives of others"
            ),
        }
        input.left = size;
        input.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(Some(Member { name, size }))
    }

    /// What is in the member that came last.
    pub fn content(&self) -> Content {
        Content { input: Arc::clone(&self.input), cut: Arc::clone(&self.cut) }
    }
}

fn lock(input: &Mutex<Input>) -> MutexGuard<'_, Input> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Errors where nothing comes, or something that is compressed.
fn check_beginning(input: &mut Input, cut: &AtomicBool) -> Result<()> {
    let head = input.look(cut)?;
    if head.is_empty() {
        return Err(exit::usage("nothing came; the 'sheep-images send' before it printed nothing"));
    }
    match Codec::detect(&head[..head.len().min(codec::HEAD)]) {
        Codec::Plain => Ok(()),
        codec => bail!("it is compressed ({codec}); decompress it on its way"),
    }
}

impl Input {
    /// What comes next; nothing at the end.
    fn look(&mut self, cut: &AtomicBool) -> io::Result<&[u8]> {
        self.source.fill_buf().inspect_err(|_| cut.store(true, Ordering::Relaxed))
    }

    fn read(&mut self, into: &mut [u8], cut: &AtomicBool) -> io::Result<usize> {
        loop {
            match self.source.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => {
                    cut.store(true, Ordering::Relaxed);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream is cut short"));
                }
                Ok(n) => return Ok(n),
                Err(e) => {
                    cut.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    }

    fn fill(&mut self, into: &mut [u8], cut: &AtomicBool) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            filled += self.read(&mut into[filled..], cut)?;
        }
        Ok(())
    }

    /// Passes over what is left of a member.
    fn pass_over(&mut self, cut: &AtomicBool) -> io::Result<()> {
        let mut piece = [0; 8192];
        let mut left = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            left -= self.read(&mut piece[..most], cut)? as u64;
        }
        Ok(())
    }

    /// After the end mark nothing may follow but zeros.
    fn end(&mut self, cut: &AtomicBool) -> Result<()> {
        let mut zeros = 0;
        loop {
            let piece = self.look(cut)?;
            if piece.is_empty() {
                return Ok(());
            }
            let n = piece.len();
            zeros += n as u64;
            if piece.iter().any(|&byte| byte != 0) || zeros > ZEROS_MAX {
                bail!("something follows the end of the stream");
            }
            self.source.consume(n);
        }
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut input = lock(&self.input);
        let most = usize::try_from(input.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let n = input.read(&mut into[..most], &self.cut)?;
        input.left -= n as u64;
        Ok(n)
    }
}
