//! A blob on its way from a registry, as one stream of bytes, whatever breaks off on the way.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow, bail};
use ureq::http::StatusCode;

use super::Repository;
use super::http::{Ask, TRIES, Waits, is_unreachable};
use crate::oci::{Descriptor, Digest};
use crate::stream;

/// How it is called in a line that begins with its digest.
const WHAT: &str = "its blob";

/// What an answer brings.
type Body = Box<dyn Read + Send>;

impl Repository {
    /// Asks for a blob of `size` bytes, from byte `at` on.
    fn blob(&self, digest: &Digest, size: u64, at: u64) -> Result<Body> {
        let mut ask = Ask::get(self.url(&format!("blobs/{digest}")), WHAT.to_owned());
        if at > 0 {
            ask.headers.push(("range", format!("bytes={at}-")));
        }
        let answer = self.send(&ask)?;
        let place = answer.place();
        let (skip, left) = match answer.status {
            StatusCode::OK => (at, size),
            StatusCode::PARTIAL_CONTENT if at > 0 => {
                let said = answer.header("content-range").unwrap_or_default().to_owned();
                let want = format!("bytes {at}-{}/", size - 1);
                let total = said.strip_prefix(&want);
                if !total.is_some_and(|total| total == "*" || total.parse() == Ok(size)) {
                    bail!("{place}: asked for what is from byte {at} on of {size}, it gives {said:?}");
                }
                (0, size - at)
            }
            StatusCode::PARTIAL_CONTENT => bail!("{place}: it gives a part, where all was asked for"),
            _ => return Err(answer.failed()),
        };
        if let Some(length) = answer.length()
            && length != left
        {
            bail!("{place}: it has {length} bytes, and the manifest says {left}");
        }
        let mut reader = answer.into_reader();
        // A server that knows no ranges.
        let skipped = io::copy(&mut (&mut reader).take(skip), &mut io::sink());
        if skipped.as_ref().ok() != Some(&skip) {
            return Err(super::http::Unreachable(format!("{place}: it broke off")).into());
        }
        Ok(Box::new(reader))
    }
}

/// A blob that was asked for before it was known that it is wanted.
#[derive(Debug)]
pub struct Asked(JoinHandle<Result<Body>>);

impl Asked {
    /// Asks for all of a blob, on a thread of its own. Nothing of it is read.
    pub fn ahead(from: &Arc<Repository>, descriptor: &Descriptor) -> Self {
        let (from, descriptor) = (Arc::clone(from), descriptor.clone());
        Asked(thread::spawn(move || from.blob(&descriptor.digest, descriptor.size, 0)))
    }

    fn answer(self) -> Result<Body> {
        self.0.join().map_err(|_| anyhow!("the thread that asks for it panicked"))?
    }
}

/// A blob that is read while it comes. What comes is written to `file`, where one is given; that may have its beginning already.
pub struct Download {
    from: Arc<Repository>,
    digest: Digest,
    size: u64,
    file: Option<File>,
    begun: u64,
    at: u64,
    asked: Option<Asked>,
    body: Option<Body>,
    /// Where the last break was.
    broke_at: u64,
    waits: Waits,
    gave_up: Arc<AtomicBool>,
}

impl Download {
    /// Begins to read a blob of which `file` has the first `begun` bytes; it may have been asked for. `gave_up` is set where it ends
    /// because the registry could not be reached any more: then what came is worth keeping.
    pub fn new(
        from: &Arc<Repository>,
        descriptor: &Descriptor,
        file: Option<File>,
        begun: u64,
        asked: Option<Asked>,
        gave_up: &Arc<AtomicBool>,
    ) -> Self {
        Download {
            from: Arc::clone(from),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            file,
            begun,
            at: 0,
            asked,
            body: None,
            broke_at: begun,
            waits: Waits::new(TRIES),
            gave_up: Arc::clone(gave_up),
        }
    }

    fn place(&self) -> String {
        format!("{}: {WHAT}", self.from.host())
    }

    /// Goes on at `at`.
    fn connect(&mut self) -> Result<Body> {
        match self.asked.take().filter(|_| self.at == 0) {
            Some(asked) => asked.answer(),
            None => self.from.blob(&self.digest, self.size, self.at),
        }
    }

    /// Reads the next bytes; an error is one that ends it.
    fn next(&mut self, into: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(into.len());
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let body = self.connect()?;
                    self.body.insert(body)
                }
            };
            let why = match body.read(&mut into[..most]) {
                Ok(n) if n > 0 => {
                    if let Some(file) = &self.file {
                        file.write_all_at(&into[..n], self.at)?;
                        stream::write_out(file, self.at, n)?;
                    }
                    self.at += n as u64;
                    return Ok(n);
                }
                Ok(_) => "it broke off".to_owned(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => "nothing came any more (--timeout)".to_owned(),
                Err(e) => e.to_string(),
            };
            self.body = None;
            self.waits.got_through(self.at - self.broke_at);
            self.broke_at = self.at;
            if !self.waits.wait() {
                let line = format!("{}: after {} of {} bytes: {why}", self.place(), self.at, self.size);
                return Err(super::http::Unreachable(line).into());
            }
        }
    }

    /// What was there before.
    fn again(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.begun - self.at).unwrap_or(usize::MAX).min(into.len());
        let n = self.file.as_ref().map_or(Ok(0), |file| file.read_at(&mut into[..most], self.at))?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Read for Download {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.at < self.begun {
            return self.again(into);
        }
        if self.at == self.size {
            // One byte more is one too many.
            if let Some(mut body) = self.body.take()
                && body.read(&mut [0]).is_ok_and(|n| n > 0)
            {
                let line = format!("{}: more comes than the {} bytes that the manifest says", self.place(), self.size);
                return Err(io::Error::other(line));
            }
            return Ok(0);
        }
        self.next(into).map_err(|error| {
            self.gave_up.fetch_or(is_unreachable(&error), Ordering::Relaxed);
            io::Error::other(format!("{error:#}"))
        })
    }
}
