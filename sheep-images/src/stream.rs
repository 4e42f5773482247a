//! A layer's archive on its way in, read once. Each step of that is a thread that hands pieces on: one reads, hashes and stores
//! what comes, one takes the compression off, one hashes what that gives, and the reader of the stream unpacks it. So a layer takes
//! as long as the slowest of them, which is mostly the decoder.

mod pieces;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use sha2::{Digest as _, Sha256};
use sheep_overlay::sys;

use crate::codec::{self, Codec};
use crate::oci::Digest;
use pieces::{Pieces, Pool, Sender};

/// From so many bytes on an archive must not expand more than it may: one that is shorter does no harm.
const RATIO_FROM: u64 = 1 << 30;
/// After so many bytes each the blob is written out.
const WRITE_OUT: u64 = 8 << 20;

/// What a stream turned out to be, known when all of it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it is stored: never xz or bzip2, which are stored plain.
    pub codec: Codec,
    /// The digest of the archive as it is stored.
    pub digest: Digest,
    /// Its size as it is stored.
    pub size: u64,
    /// The digest of the archive without compression.
    pub diff_id: Digest,
}

/// What is to be done with an archive on its way.
#[derive(Debug)]
pub struct Intake {
    /// Where the bytes that make the layer's blob are written.
    pub store: Option<File>,
    /// What need not be found out.
    pub known: Known,
    /// How many times as long as it came an archive may be without its compression.
    pub max_ratio: u64,
    /// Counts the bytes that came, for who shows how far it is.
    pub came: Arc<AtomicU64>,
}

/// What is known of an archive before it is read. The other of its two digests tells then whether that holds.
#[derive(Debug)]
pub enum Known {
    /// Nothing: both digests are found out.
    Nothing,
    /// The digest of what comes.
    Stored(Digest),
    /// The digest of it without compression.
    Content(Digest),
}

impl Intake {
    /// An archive that comes from elsewhere, and is to be stored.
    pub fn of_another(store: File, max_ratio: u64) -> Self {
        Intake { store: Some(store), known: Known::Nothing, max_ratio, came: Arc::default() }
    }

    /// An archive that is stored already.
    pub fn of_the_store(known: Known, max_ratio: u64) -> Self {
        Intake { store: None, known, max_ratio, came: Arc::default() }
    }
}

/// The archive without compression.
pub struct Stream {
    pieces: Pieces,
    worker: JoinHandle<io::Result<Summary>>,
}

impl Stream {
    /// Starts to read `source`.
    pub fn start(source: impl Read + Send + 'static, intake: Intake) -> Self {
        let (sender, pieces) = pieces::channel();
        let worker = thread::spawn(move || {
            let result = pump(source, intake, &sender);
            result.map_err(|e| sender.fail(e))
        });
        Stream { pieces, worker }
    }

    /// What the stream was, after it was read to its end.
    pub fn finish(self) -> Result<Summary> {
        drop(self.pieces);
        Ok(self.worker.join().map_err(|_| anyhow!("the reading thread panicked"))??)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.pieces.read(into)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.pieces.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.pieces.consume(n);
    }
}

fn pump(mut source: impl Read + Send + 'static, intake: Intake, to: &Sender) -> io::Result<Summary> {
    let mut head = vec![0; codec::HEAD];
    let n = pieces::read_full(&mut source, &mut head)?;
    head.truncate(n);
    let codec = Codec::detect(&head);
    let Intake { store, known, max_ratio, came } = intake;
    let source = Counted { inner: io::Cursor::new(head).chain(source), came: Arc::clone(&came) };
    // Stored as it is sent on: one digest is both.
    let plain = |(digest, size): (Sha256, u64)| {
        let digest = Digest::from_hash(&digest.finalize());
        Summary { codec: Codec::Plain, diff_id: digest.clone(), digest, size }
    };
    match codec {
        Codec::Plain => pass(source, store, to, true).map(plain),
        Codec::Xz | Codec::Bzip2 => {
            let decoder = Expanding::new(codec::decode_by_program(codec, source)?, came, max_ratio);
            pass(decoder, store, to, true).map(plain)
        }
        Codec::Gzip | Codec::Zstd => {
            let (digest, diff_id) = match known {
                Known::Nothing => (None, None),
                Known::Stored(digest) => (Some(digest), None),
                Known::Content(diff_id) => (None, Some(diff_id)),
            };
            let mut stored = Stored::start(source, store, digest.is_none());
            let hash = diff_id.is_none().then(Hashing::start);
            let pool = Pool::new();
            {
                let mut decoder = Expanding::new(codec.decode(&mut stored.pieces)?, came, max_ratio);
                while let Some(piece) = pool.fill(&mut decoder)? {
                    if let Some(hash) = &hash {
                        hash.pieces.send(&piece)?;
                    }
                    to.send(&piece)?;
                }
            }
            // A decoder stops at the end of its stream; whatever it left unread is part of the blob, and wrong.
            if !stored.pieces.fill_buf()?.is_empty() {
                return Err(io::Error::other(format!("something follows the {codec} stream")));
            }
            let (stored, size) = stored.finish()?;
            let digest = digest.unwrap_or_else(|| Digest::from_hash(&stored.finalize()));
            let found = hash.map(Hashing::finish).transpose()?;
            let diff_id = found.or(diff_id).ok_or_else(|| io::Error::other("a digest that nobody asked for"))?;
            Ok(Summary { codec, digest, size, diff_id })
        }
    }
}

/// Hashes, if that is wanted, stores and sends on what comes, and gives the hash and the size.
fn pass(mut source: impl Read, store: Option<File>, to: &Sender, wanted: bool) -> io::Result<(Sha256, u64)> {
    let (pool, mut hash, mut size) = (Pool::new(), Sha256::new(), 0);
    while let Some(piece) = pool.fill(&mut source)? {
        // Sent on first: the next step works on it while it is hashed and stored here.
        to.send(&piece)?;
        if wanted {
            hash.update(&piece[..]);
        }
        if let Some(mut file) = store.as_ref() {
            file.write_all(&piece)?;
            write_out(file, size, piece.len())?;
        }
        size += piece.len() as u64;
    }
    Ok((hash, size))
}

/// Sends a blob that is being written on its way to the disk while the rest of it comes, from time to time: `n` bytes were written
/// at `at`. Who waits for all of it at the end then waits for little.
pub fn write_out(file: &File, at: u64, n: usize) -> io::Result<()> {
    match at / WRITE_OUT == (at + n as u64) / WRITE_OUT {
        true => Ok(()),
        false => sys::begin_writeback(file),
    }
}

/// Counts what is read through it.
pub struct Counted<R> {
    /// What is read.
    pub inner: R,
    /// How many bytes it gave.
    pub came: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.came.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What a decoder gives, until that is too much for what came.
pub struct Expanding<R> {
    inner: R,
    out: u64,
    came: Arc<AtomicU64>,
    max_ratio: u64,
}

impl<R: Read> Expanding<R> {
    /// Reads from a decoder of what `came` counts, up to `max_ratio` times as much, or 1 GiB.
    pub fn new(inner: R, came: Arc<AtomicU64>, max_ratio: u64) -> Self {
        Expanding { inner, out: 0, came, max_ratio: max_ratio.max(1) }
    }
}

impl<R: Read> Read for Expanding<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.out += n as u64;
        if self.out > RATIO_FROM && self.out / self.max_ratio > self.came.load(Ordering::Relaxed) {
            let most = self.max_ratio;
            return Err(io::Error::other(format!("it expands to more than {most} times its size (--max-ratio)")));
        }
        Ok(n)
    }
}

/// The archive as it came, hashed and stored on a thread of its own.
struct Stored {
    pieces: Pieces,
    worker: JoinHandle<io::Result<(Sha256, u64)>>,
}

impl Stored {
    fn start(source: impl Read + Send + 'static, store: Option<File>, digest: bool) -> Self {
        let (sender, pieces) = pieces::channel();
        let worker = thread::spawn(move || pass(source, store, &sender, digest).map_err(|e| sender.fail(e)));
        Stored { pieces, worker }
    }

    /// Hash and size, after all was read.
    fn finish(self) -> io::Result<(Sha256, u64)> {
        drop(self.pieces);
        self.worker.join().map_err(|_| panicked())?
    }
}

/// Hashes on a thread of its own what is sent to it.
struct Hashing {
    pieces: Sender,
    worker: JoinHandle<io::Result<Digest>>,
}

impl Hashing {
    fn start() -> Self {
        let (sender, mut pieces) = pieces::channel();
        let worker = thread::spawn(move || {
            let mut hash = Sha256::new();
            loop {
                let piece = pieces.fill_buf()?;
                if piece.is_empty() {
                    return Ok(Digest::from_hash(&hash.finalize()));
                }
                hash.update(piece);
                let n = piece.len();
                pieces.consume(n);
            }
        });
        Hashing { pieces: sender, worker }
    }

    /// The digest of all that was sent.
    fn finish(self) -> io::Result<Digest> {
        drop(self.pieces);
        self.worker.join().map_err(|_| panicked())?
    }
}

fn panicked() -> io::Error {
    io::Error::other("a thread of the stream panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(data: impl Read) -> Vec<u8> {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(data, flate2::Compression::default()).read_to_end(&mut packed).unwrap();
        packed
    }

    #[test]
    fn digests_of_both_forms() {
        let data = vec![5u8; 3 * pieces::CHUNK + 17];
        let packed = gzip(&data[..]);
        let intake = Intake::of_the_store(Known::Nothing, u64::MAX);
        let came = Arc::clone(&intake.came);
        let mut stream = Stream::start(io::Cursor::new(packed.clone()), intake);
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap();
        assert!(out == data);
        let summary = stream.finish().unwrap();
        assert_eq!(summary.codec, Codec::Gzip);
        assert_eq!(summary.size, packed.len() as u64);
        assert_eq!(came.load(Ordering::Relaxed), packed.len() as u64);
        assert_eq!(summary.digest, Digest::of(&packed));
        assert_eq!(summary.diff_id, Digest::of(&data));
    }

    #[test]
    fn what_expands_too_much_is_cut_off() {
        // gzip makes some 1000 bytes of one at most.
        let packed = gzip(io::repeat(0).take(RATIO_FROM + RATIO_FROM / 8));
        for (ratio, refused) in [(200, true), (2000, false)] {
            let mut stream =
                Stream::start(io::Cursor::new(packed.clone()), Intake::of_the_store(Known::Nothing, ratio));
            let read = io::copy(&mut stream, &mut io::sink());
            assert_eq!(read.is_err(), refused, "{ratio}");
            assert!(read.is_err_and(|e| e.to_string().contains("--max-ratio")) == refused);
        }
    }

    #[test]
    fn a_reader_that_gives_up_ends_the_workers() {
        for source in [
            Box::new(io::repeat(1)) as Box<dyn Read + Send>,
            Box::new(io::Cursor::new(gzip(io::repeat(1).take(9 << 20)))),
        ] {
            let mut stream = Stream::start(source, Intake::of_the_store(Known::Nothing, 200));
            stream.read_exact(&mut [0; 10]).unwrap();
            let worker = stream.worker;
            drop(stream.pieces);
            assert!(worker.join().unwrap().is_err());
        }
    }
}
