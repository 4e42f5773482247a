//! Where an archive waits until it is proven: a file without a name, on the disk where the changes are.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use crate::state;

/// What is looked at in one piece, to leave holes where there are only zeros.
const PIECE: usize = 64 << 10;

/// A file that is being written, and is gone when it is closed.
pub struct Spool {
    file: File,
    at: u64,
}

impl Spool {
    /// An empty one in a directory.
    pub fn within(dir: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let unnamed = options.clone().custom_flags(OFlags::TMPFILE.bits() as i32).open(dir);
        // Some file systems have only files with names.
        let file = unnamed.or_else(|_| {
            let path = dir.join(format!(".export-{}", state::new_id().map_err(io::Error::other)?));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path).map(|()| file)
        });
        let file = file.with_context(|| format!("a temporary file in {}", dir.display()))?;
        Ok(Spool { file, at: 0 })
    }

    /// All that was written.
    pub fn done(self) -> Result<File> {
        self.file.set_len(self.at).context("the temporary file")?;
        Ok(self.file)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        if piece.len() < PIECE || piece.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(piece, self.at)?;
        }
        self.at += piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_take_no_room_and_are_there() {
        let mut spool = Spool::within(&std::env::temp_dir()).unwrap();
        spool.write_all(b"begin").unwrap();
        spool.write_all(&vec![0; 10 << 20]).unwrap();
        let mut file = spool.done().unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!(stat.len(), 5 + (10 << 20));
        assert!(stat.blocks() < 1000, "{}", stat.blocks());
        let mut back = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut back).unwrap();
        assert!(back.starts_with(b"begin\0") && back[5..].iter().all(|byte| *byte == 0));
    }
}
