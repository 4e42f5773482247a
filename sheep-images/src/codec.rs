//! Compression, found by content and not by name.
//!
//! gzip and zstd are decoded here. xz and bzip2, which OCI layers do not use and root file system archives do, go through
//! the programs `xz` and `bzip2`.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

/// How many bytes [`Codec::detect`] wants to see.
pub const HEAD: usize = 6;
/// zstd streams may ask for a window of this many bits at most (128 MiB), as the zstd program allows by default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const READ_AHEAD: usize = 128 * 1024;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Plain,
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
}

impl Codec {
    /// Tells from the first bytes. What is none of the others is taken for plain.
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Codec::Gzip,
            // A frame, or a skippable frame (magic 0x184D2A50 to 5F) before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Codec::Bzip2,
            _ => Codec::Plain,
        }
    }

    /// The end of the OCI media type of a layer so compressed.
    pub fn media_suffix(self) -> &'static str {
        match self {
            Codec::Gzip => "+gzip",
            Codec::Zstd => "+zstd",
            _ => "",
        }
    }

    /// A reader of what is in `source` without compression. A damaged or cut stream is an error; so is anything that
    /// follows it.
    pub fn decode<'a>(self, source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Codec::Gzip => Box::new(Named { codec: self, inner: MultiGzDecoder::new(source) }),
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(Named { codec: self, inner: decoder })
            }
            Codec::Plain | Codec::Xz | Codec::Bzip2 => Box::new(source),
        })
    }

    /// Writes all of `source` to `to`, compressed by gzip or zstd, and gives `to` back. Nothing but the bytes and the level matters for
    /// what comes out: no time, no name, no number of processors.
    pub fn encode<W: Write>(self, level: i32, source: &mut impl Read, to: W) -> io::Result<W> {
        match self {
            Codec::Gzip => {
                let mut encoder = GzEncoder::new(to, Compression::new(level.unsigned_abs()));
                copy(source, &mut encoder)?;
                encoder.finish()
            }
            Codec::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(to, level)?;
                encoder.include_checksum(true)?;
                copy(source, &mut encoder)?;
                encoder.finish()
            }
            Codec::Plain | Codec::Xz | Codec::Bzip2 => {
                Err(io::Error::new(io::ErrorKind::Unsupported, format!("{self} is not written")))
            }
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Plain => "plain",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
            Codec::Xz => "xz",
            Codec::Bzip2 => "bzip2",
        })
    }
}

/// Copies in pieces of always the same length: a compressor may make something else of the same bytes where they come otherwise.
fn copy(mut source: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = Vec::with_capacity(READ_AHEAD);
    loop {
        piece.clear();
        source.by_ref().take(READ_AHEAD as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok(());
        }
        to.write_all(&piece)?;
    }
}

/// Says of a decoder's complaint what it is about. Errors of the source below (a full disk, a bad disk) pass as they are.
struct Named<R> {
    codec: Codec,
    inner: R,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(into).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            _ if e.raw_os_error().is_some() => e,
            io::ErrorKind::UnexpectedEof => io::Error::other(format!("the {} stream is cut short", self.codec)),
            _ => io::Error::other(format!("the {} stream is damaged, or something follows it: {e}", self.codec)),
        })
    }
}

/// Decodes xz or bzip2 by its own program.
pub fn decode_by_program<R: Read + Send + 'static>(codec: Codec, source: R) -> io::Result<impl Read + Send> {
    let program = if codec == Codec::Xz { "xz" } else { "bzip2" };
    let spawned =
        Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let package = if codec == Codec::Xz { "xz-utils" } else { "bzip2" };
            io::Error::other(format!(
                "the archive is compressed with {program}, and the program '{program}' is not here: install the package {package}"
            ))
        }
        _ => io::Error::other(format!("{program}: {e}")),
    })?;
    let (Some(stdin), Some(stdout), Some(mut stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other(format!("{program}: no pipes")));
    };
    let feeder = thread::spawn(move || feed(source, stdin));
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // A program that floods stderr is read to its end, but not kept whole.
        let _ = stderr.by_ref().take(4096).read_to_end(&mut text);
        let _ = io::copy(&mut stderr, &mut io::sink());
        text
    });
    Ok(ByProgram { program, child, stdout, feeder: Some(feeder), complaints: Some(complaints), done: false })
}

fn feed(mut source: impl Read, mut stdin: ChildStdin) -> io::Result<()> {
    let mut buffer = vec![0; READ_AHEAD];
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        match stdin.write_all(&buffer[..n]) {
            Ok(()) => (),
            // It ended before its input did; its exit status tells whether that is wrong.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

struct ByProgram {
    program: &'static str,
    child: Child,
    stdout: ChildStdout,
    feeder: Option<JoinHandle<io::Result<()>>>,
    complaints: Option<JoinHandle<Vec<u8>>>,
    done: bool,
}

impl Read for ByProgram {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.stdout.read(into)?;
        if n == 0 && !into.is_empty() && !self.done {
            self.done = true;
            self.finish()?;
        }
        Ok(n)
    }
}

impl ByProgram {
    /// The program's output has ended: was that the whole of it?
    fn finish(&mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        if let Some(feeder) = self.feeder.take() {
            feeder.join().map_err(|_| io::Error::other(format!("{}: feeding it failed", self.program)))??;
        }
        let complaints = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        // bzip2 only warns of what follows the stream, and exits with 0.
        if status.success() && complaints.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&complaints);
        let text: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = text.first().copied().unwrap_or("failed");
        let text = text.strip_prefix(self.program).map_or(text, |rest| rest.trim_start_matches([':', ' ']));
        Err(io::Error::other(format!("{} -dc: {text}", self.program)))
    }
}

impl Drop for ByProgram {
    fn drop(&mut self) {
        if !self.done {
            // Nobody wants the rest. It has usually ended by itself then; there is nobody to tell of a failure.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells() {
        for (head, codec) in [
            (&b"\x1f\x8b\x08\0\0\0"[..], Codec::Gzip),
            (b"\x28\xb5\x2f\xfd\0\0", Codec::Zstd),
            (b"\x52\x2a\x4d\x18\0\0", Codec::Zstd),
            (b"\xfd7zXZ\0", Codec::Xz),
            (b"BZh91A", Codec::Bzip2),
            (b"BZh0", Codec::Plain),
            (b"./\0\0\0\0", Codec::Plain),
            (b"", Codec::Plain),
        ] {
            assert_eq!(Codec::detect(head), codec, "{head:?}");
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(codec: Codec, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        codec.decode(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn several_members_are_one_stream() {
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(read(Codec::Gzip, &two).unwrap(), b"one two");
        let frames = [zstd::encode_all(&b"one "[..], 1).unwrap(), zstd::encode_all(&b"two"[..], 1).unwrap()].concat();
        assert_eq!(read(Codec::Zstd, &frames).unwrap(), b"one two");
    }

    #[test]
    fn the_same_comes_out_again() {
        let data: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for (codec, level) in [(Codec::Gzip, 1), (Codec::Gzip, 9), (Codec::Zstd, 1), (Codec::Zstd, 19)] {
            let packed = codec.encode(level, &mut &data[..], Vec::new()).unwrap();
            assert_eq!(Codec::detect(&packed), codec);
            assert!(read(codec, &packed).unwrap() == data && packed.len() < data.len());
            // However the pieces come.
            let mut pieces = (&data[..1000]).chain(&data[1000..]);
            assert!(codec.encode(level, &mut pieces, Vec::new()).unwrap() == packed, "{codec} {level}");
        }
        assert!(Codec::Xz.encode(1, &mut &data[..], Vec::new()).is_err());
    }

    #[test]
    fn cut_and_followed_streams_are_errors() {
        let whole = gzip(&[7; 10_000]);
        let frame = zstd::encode_all(&[7; 10_000][..], 1).unwrap();
        for cut in [whole.len() - 1, whole.len() - 8, whole.len() / 2, 12] {
            assert!(read(Codec::Gzip, &whole[..cut]).is_err(), "{cut}");
        }
        for cut in [frame.len() - 1, frame.len() / 2] {
            assert!(read(Codec::Zstd, &frame[..cut]).is_err(), "{cut}");
        }
        assert!(read(Codec::Gzip, &[&whole[..], b"garbage, garbage, garbage"].concat()).is_err());
        assert!(read(Codec::Zstd, &[&frame[..], b"garbage"].concat()).is_err());
    }
}
