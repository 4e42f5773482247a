//! A layer's archive: unpacked beneath a directory. Nothing outside is touched, nothing panics, and what the reader sees
//! does not depend on the pieces in which the archive comes.

#![no_main]

use std::io::{self, BufRead, Read};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustix::fs::OFlags;
use sheep_images::scratch::Scratch;
use sheep_images::unpack::archive::Archive;
use sheep_images::unpack::{extract, resolve};
use sheep_images_fuzz::{Ground, archives, limits, seed, with_checksums};

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::new);

fuzz_target!(
    init: seed(|| archives().into_iter().enumerate().map(|(n, a)| [&[0, u8::try_from(n % 3).unwrap_or(0)][..], &a].concat())),
    |data: &[u8]| {
        // The first byte says whether headers keep bad checksums, the second how small the pieces are.
        let [raw, piece, archive @ ..] = data else { return };
        let archive = if raw & 1 == 0 { with_checksums(archive) } else { archive.to_vec() };
        let root = Scratch::new(&GROUND.work()).expect("scratch");
        let whole = extract::extract(&mut Archive::new(&archive[..]), root.fd(), limits());
        if let Ok((_, implied)) = &whole {
            for directory in implied {
                resolve::open_plain(root.fd(), directory, OFlags::PATH).expect("an implied directory is there");
            }
        }
        GROUND.check();
        root.delete().expect("delete");
        let pieces = Pieces { data: &archive, most: 1 + usize::from(*piece) };
        assert_eq!(members(&archive[..], false), members(pieces, true), "the members depend on how they are read");
    }
);

/// All members, and the error that ends them; contents are passed over or read.
fn members<R: BufRead>(input: R, read: bool) -> Vec<String> {
    let mut archive = Archive::new(input);
    let mut seen = Vec::new();
    loop {
        match archive.next_member() {
            Ok(None) => return seen,
            Ok(Some(member)) => {
                let total: u64 = member.regions.iter().map(|(_, length)| length).sum();
                assert!(member.regions.iter().all(|(at, length)| at + length <= member.size));
                seen.push(format!("{member:?}"));
                let mut left = if read { total } else { 0 };
                while left > 0 {
                    match archive.content(left).map(<[u8]>::len) {
                        Ok(n) => {
                            archive.consume(n);
                            left -= n as u64;
                        }
                        Err(error) => {
                            seen.push(format!("{error:#}"));
                            return seen;
                        }
                    }
                }
            }
            Err(error) => {
                seen.push(format!("{error:#}"));
                return seen;
            }
        }
    }
}

/// An archive that comes in small pieces.
struct Pieces<'a> {
    data: &'a [u8],
    most: usize,
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.data[..self.data.len().min(self.most)])
    }

    fn consume(&mut self, n: usize) {
        self.data = &self.data[n..];
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}
