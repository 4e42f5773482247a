//! Pieces of a stream on their way from thread to thread.
//!
//! Their buffers are used again: new ones would cost a page fault for every 4 KiB that goes through.

use std::io::{self, BufRead, Read};
use std::ops::Deref;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// How long a piece is; the last may be shorter.
pub const CHUNK: usize = 256 * 1024;
/// How many pieces may wait at each step. With those being worked on they are what a layer takes of memory, some 4 MiB, and with
/// what a zstd stream asks for.
const QUEUE: usize = 4;

/// A piece: bytes that several may read. Dropped by the last of them, its buffer is used again.
pub struct Piece {
    buffer: Vec<u8>,
    filled: usize,
    pool: Arc<Pool>,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.pool.lock().push(std::mem::take(&mut self.buffer));
    }
}

/// Buffers that nobody uses.
pub struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// Without any; what is missing is made.
    pub fn new() -> Arc<Self> {
        Arc::new(Pool(Mutex::new(Vec::new())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece of what is read; `None` at its end.
    pub fn fill(self: &Arc<Self>, source: &mut impl Read) -> io::Result<Option<Arc<Piece>>> {
        let buffer = self.lock().pop().unwrap_or_else(|| vec![0; CHUNK]);
        let mut piece = Piece { buffer, filled: 0, pool: Arc::clone(self) };
        piece.filled = read_full(source, &mut piece.buffer)?;
        Ok((piece.filled > 0).then(|| Arc::new(piece)))
    }
}

/// Reads until `into` is full or the source ends.
pub fn read_full(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
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

/// Where pieces are sent.
pub struct Sender(SyncSender<io::Result<Arc<Piece>>>);

/// What was sent, as one stream of bytes. It ends where the sender is dropped, or with the error that it failed with.
pub struct Pieces {
    from: Receiver<io::Result<Arc<Piece>>>,
    piece: Option<Arc<Piece>>,
    at: usize,
}

/// The two ends of a way for pieces.
pub fn channel() -> (Sender, Pieces) {
    let (sender, from) = sync_channel(QUEUE);
    (Sender(sender), Pieces { from, piece: None, at: 0 })
}

impl Sender {
    /// Sends a piece, when there is room. An error where nobody wants it.
    pub fn send(&self, piece: &Arc<Piece>) -> io::Result<()> {
        self.0.send(Ok(Arc::clone(piece))).map_err(|_| io::Error::other("the reader gave up"))
    }

    /// Hands an error on to the reader, after the pieces that came before; gives one that says the same. A reader that is gone
    /// has failed itself.
    pub fn fail(&self, error: io::Error) -> io::Error {
        let again = io::Error::new(error.kind(), error.to_string());
        let _ = self.0.send(Err(error));
        again
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.as_ref().is_none_or(|piece| self.at == piece.len()) {
            // Given back before the wait for the next one.
            (self.piece, self.at) = (None, 0);
            if let Ok(next) = self.from.recv() {
                self.piece = Some(next?);
            }
        }
        Ok(self.piece.as_ref().map_or(&[], |piece| &piece[self.at..]))
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}
