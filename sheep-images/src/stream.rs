//! A layer's archive on its way in: read once, and in that pass hashed, stored and decompressed on a thread of its own,
//! while the reader of the stream unpacks it.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use sha2::{Digest as _, Sha256};

use crate::codec::{self, Codec};
use crate::oci::Digest;

/// One piece of the stream on its way between the threads.
const CHUNK: usize = 256 * 1024;
/// How many pieces may wait.
const QUEUE: usize = 8;

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

/// The archive without compression.
pub struct Stream {
    pieces: Option<Receiver<io::Result<Vec<u8>>>>,
    piece: Vec<u8>,
    at: usize,
    worker: Option<JoinHandle<io::Result<Summary>>>,
}

impl Stream {
    /// Starts to read `source`. With `store`, the bytes that make the layer's blob are written there.
    pub fn start(source: impl Read + Send + 'static, store: Option<File>) -> Self {
        let (sender, pieces) = sync_channel(QUEUE);
        let worker = thread::spawn(move || {
            let result = pump(source, store, &sender);
            match result {
                Ok(summary) => Ok(summary),
                Err(e) => {
                    // The reader gets it, in its place after what came before. A reader that is gone has failed itself.
                    let again = io::Error::new(e.kind(), e.to_string());
                    let _ = sender.send(Err(e));
                    Err(again)
                }
            }
        });
        Stream { pieces: Some(pieces), piece: Vec::new(), at: 0, worker: Some(worker) }
    }

    /// What the stream was, after it was read to its end.
    pub fn finish(mut self) -> Result<Summary> {
        self.pieces = None;
        let worker = self.worker.take().ok_or_else(|| anyhow!("the stream was finished before"))?;
        Ok(worker.join().map_err(|_| anyhow!("the reading thread panicked"))??)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            // The sender is gone when it sent everything.
            if let Some(Ok(next)) = self.pieces.as_ref().map(Receiver::recv) {
                (self.piece, self.at) = (next?, 0);
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

fn pump(
    mut source: impl Read + Send + 'static,
    store: Option<File>,
    to: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<Summary> {
    let mut head = vec![0; codec::HEAD];
    let n = read_full(&mut source, &mut head)?;
    head.truncate(n);
    let codec = Codec::detect(&head);
    let source = io::Cursor::new(head).chain(source);
    match codec {
        Codec::Plain => one_hash(source, store, to),
        Codec::Xz | Codec::Bzip2 => one_hash(codec::decode_by_program(codec, source)?, store, to),
        Codec::Gzip | Codec::Zstd => {
            let mut stored = Tap { inner: source, hash: Sha256::new(), store, size: 0 };
            let mut hash = Sha256::new();
            send_all(codec.decode(&mut stored)?, to, |piece| {
                hash.update(piece);
                Ok(())
            })?;
            // A decoder stops at the end of its stream; whatever it left unread is part of the blob, and wrong.
            if stored.read(&mut [0])? != 0 {
                return Err(io::Error::other(format!("something follows the {codec} stream")));
            }
            Ok(Summary {
                codec,
                digest: Digest::from_hash(&stored.hash.finalize()),
                size: stored.size,
                diff_id: Digest::from_hash(&hash.finalize()),
            })
        }
    }
}

/// Stored as it is sent on: one digest is both.
fn one_hash(source: impl Read, mut store: Option<File>, to: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<Summary> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    send_all(source, to, |piece| {
        hash.update(piece);
        size += piece.len() as u64;
        store.as_mut().map_or(Ok(()), |file| file.write_all(piece))
    })?;
    let digest = Digest::from_hash(&hash.finalize());
    Ok(Summary { codec: Codec::Plain, digest: digest.clone(), size, diff_id: digest })
}

fn send_all(
    mut source: impl Read,
    to: &SyncSender<io::Result<Vec<u8>>>,
    mut see: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut piece = vec![0; CHUNK];
        let n = read_full(&mut source, &mut piece)?;
        if n == 0 {
            return Ok(());
        }
        piece.truncate(n);
        see(&piece)?;
        if to.send(Ok(piece)).is_err() {
            return Err(io::Error::other("the reader gave up"));
        }
    }
}

/// Reads until `into` is full or the source ends.
fn read_full(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match source.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Hashes and stores what is read through it.
struct Tap<R> {
    inner: R,
    hash: Sha256,
    store: Option<File>,
    size: u64,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.hash.update(&into[..n]);
        self.size += n as u64;
        if let Some(file) = &mut self.store {
            file.write_all(&into[..n])?;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_both_forms() {
        let data = vec![5u8; 3 * CHUNK + 17];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&data).unwrap();
        let packed = encoder.finish().unwrap();
        let mut stream = Stream::start(io::Cursor::new(packed.clone()), None);
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap();
        assert!(out == data);
        let summary = stream.finish().unwrap();
        assert_eq!(summary.codec, Codec::Gzip);
        assert_eq!(summary.size, packed.len() as u64);
        assert_eq!(summary.digest, Digest::of(&packed));
        assert_eq!(summary.diff_id, Digest::of(&data));
    }

    #[test]
    fn a_reader_that_gives_up_ends_the_worker() {
        let mut stream = Stream::start(io::repeat(1), None);
        stream.read_exact(&mut [0; 10]).unwrap();
        drop(stream);
    }
}
