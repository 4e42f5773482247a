//! `export`: an overlay in a form that others take.
//!
//! - `oci`: the changes as a layer of an OCI image (image-spec, layer.md), on stdout: a tar of what was added or changed, with
//!   a file `.wh.NAME` for what was deleted and `.wh..wh..opq` in a directory that hides the one below. The same changes
//!   give the same bytes: entries are sorted, times are those of the files, and none is later than `$SOURCE_DATE_EPOCH`
//!   where that is set. It is proven before the first byte is printed (see proof.rs).
//! - `tar`: all that the overlay shows, changes and lowers in one, as a plain tar on stdout.
//! - `dir`: the changes as a layer in the form of OverlayFS, in a new directory.
//! - `patch`: the changes of text files, as `diff --patch` prints them.
//!
//! Nothing needs to be mounted. What a form cannot carry is an error that names it, before anything is written.

pub mod archive;
mod check;
mod directory;
mod merged;
mod plan;
mod proof;
mod reader;
mod spool;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::diff::{self, escaped};
use crate::doc::{self, Overlay};
use crate::paths::{join, split};
use crate::shown::{Entry, Shown};
use crate::state::DataRoot;
use crate::{PROGRAM, access, cli, exit, find, record, rotate, sys};
use archive::{Archive, Style};
pub use check::fits_a_tar;
use check::{Carries, Check};
pub use directory::check_place;
pub use merged::Found;
use merged::Merged;
use plan::Item;
use spool::Spool;

/// Exports an overlay in the form that is asked for.
pub fn run(root: &DataRoot, args: &cli::Export) -> Result<()> {
    let to = match (&args.to, args.form) {
        (Some(to), cli::ExportForm::Dir) => Some(std::path::absolute(to).with_context(|| to.display().to_string())?),
        (None, cli::ExportForm::Dir) => return Err(exit::usage("--as dir makes a directory: say which with --to DIR")),
        (Some(_), _) => return Err(exit::usage("--to is for --as dir; the other forms are printed")),
        (None, _) => None,
    };
    let latest = source_date_epoch()?;
    let id = find::by_name(root, &args.overlay)?;
    let overlay = rotate::read(root, &id)?;
    sys::catch_interrupts()?;
    // Where it is a pipe, one that holds more: who reads has something to do while this waits for its turn.
    let _ = rustix::pipe::fcntl_setpipe_size(io::stdout(), 1 << 20);
    let stdout = || Interruptible(io::stdout().lock());
    let export = |overlay: &Overlay| match (args.form, &to) {
        (cli::ExportForm::Oci, _) => oci(overlay, latest, &mut stdout()),
        (cli::ExportForm::Tar, _) => tar(overlay, latest, &mut stdout()),
        (cli::ExportForm::Patch, _) => diff::patch(overlay),
        (cli::ExportForm::Dir, to) => to.as_deref().map_or(Ok(()), |to| directory(overlay, to)),
    };
    match access::with(&overlay, export) {
        Ok(()) => {}
        Err(error) => {
            sys::die_of_interrupt();
            return Err(error.context(format!("export {id}")));
        }
    }
    match to {
        Some(to) => doc::write_out(&[to.as_os_str().as_bytes(), b"\n"].concat()),
        None => Ok(()),
    }
}

/// The latest time that an entry may have, in seconds, as reproducible-builds.org specifies it (`$SOURCE_DATE_EPOCH`).
pub fn source_date_epoch() -> Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => Err(exit::usage(format!("$SOURCE_DATE_EPOCH is {text:?}, and not a number of seconds"))),
        },
    }
}

/// Writes the changes as a layer of an OCI image. No time in it is later than `latest`, in seconds.
pub fn oci(overlay: &Overlay, latest: Option<i64>, out: &mut dyn Write) -> Result<()> {
    let source = Source::open(overlay, Carries::Layer)?;
    let spool = BufWriter::with_capacity(1 << 20, Spool::within(record::dir_of(overlay))?);
    let mut archive = Archive::new(spool, Style { latest, sparse: None });
    for (path, item) in &source.layer {
        if sys::interrupted() {
            bail!("interrupted");
        }
        let mut put = || -> Result<()> {
            if *item == Item::Gone {
                let (dir, name) = split(path);
                return archive.mark(&join(dir, &[b".wh.", name].concat()));
            }
            archive.put(&Found::of(path, &source.entry(path)?))?;
            if *item == Item::Opaque { archive.mark(&join(path, b".wh..wh..opq")) } else { Ok(()) }
        };
        put().with_context(|| format!("/{}", escaped(path)))?;
    }
    let spool = archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    let mut file = spool.done()?;
    proof::prove(&file, overlay, latest)?;
    print(&mut file, out)
}

/// Writes all that an overlay shows as a tar. No time in it is later than `latest`, in seconds.
pub fn tar(overlay: &Overlay, latest: Option<i64>, out: &mut dyn Write) -> Result<()> {
    let merged = Merged::open(overlay, false)?;
    check(&merged, overlay.idmap.is_some())?;
    for bound in merged.bound() {
        exit::warn(
            PROGRAM,
            &format!("export: /{} is the kernel's own, and exported as an empty directory", escaped(bound)),
        );
    }
    write_tar(&merged, latest, out, || Ok(()))
}

/// Writes all that a stack of layers (bottom first) shows as a tar, as [`tar()`] does. Nothing need be mounted, and a layer may
/// stand in it twice. The archive is ended only after `still` finds that the layers were there all the time.
pub fn stack(
    layers: &[PathBuf],
    latest: Option<i64>,
    out: &mut dyn Write,
    still: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let merged = Merged::of_layers(layers)?;
    check(&merged, false)?;
    write_tar(&merged, latest, out, still)
}

fn check(merged: &Merged, idmapped: bool) -> Result<()> {
    let mut check = Check::new(idmapped, Carries::Tar);
    merged.walk(&mut |found| check.entry(found))
}

fn write_tar(
    merged: &Merged,
    latest: Option<i64>,
    out: &mut dyn Write,
    still: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, out), Style { latest, sparse: Some(0) });
    merged.walk(&mut |found| archive.put(found))?;
    still()?;
    archive.finish()?.flush().context("stdout")
}

/// Makes a layer in the form of OverlayFS at `to`, an absolute path of nothing or of an empty directory.
pub fn directory(overlay: &Overlay, to: &Path) -> Result<()> {
    directory::check_place(to)?;
    directory::write(&Source::open(overlay, Carries::Directory)?, to)
}

/// What is needed to make a layer: what is in it, and where that is read.
struct Source {
    layer: Vec<(Vec<u8>, Item)>,
    shown: Shown,
    merged: Merged,
}

impl Source {
    /// Plans a layer, and makes sure that it can be carried.
    fn open(overlay: &Overlay, carries: Carries) -> Result<Self> {
        let merged = Merged::open(overlay, true)?;
        let source = Source { layer: plan::layer(overlay, &merged)?, shown: Shown::open(overlay)?, merged };
        let mut check = Check::new(overlay.idmap.is_some(), carries);
        for (path, item) in &source.layer {
            check.path(path)?;
            if source.shown.is_mounted_file(path) {
                bail!("/{}: it is mounted on another file, which a layer cannot do; '--as tar' has it", escaped(path));
            }
            if *item != Item::Gone {
                let entry = source.entry(path)?;
                check.entry(&Found::of(path, &entry)).with_context(|| format!("/{}", escaped(path)))?;
            }
        }
        Ok(source)
    }

    /// What the overlay has at a path of the layer.
    fn entry(&self, path: &[u8]) -> Result<Entry> {
        if let Some(entry) = self.shown.entry(path)? {
            return Ok(entry);
        }
        // A directory on the way to a part of the view, itself never changed.
        let (part, inside) = self.merged.part_of(path)?;
        let part = &self.merged.parts[part];
        let dir = part.view.find(inside)?;
        match (dir.top(), dir.stat()) {
            (Some(top), Some(stat)) => {
                Ok(Entry { dir: top.try_clone_to_owned()?, name: c".".to_owned(), stat: part.as_shown(*stat, false) })
            }
            _ => bail!("/{}: it has gone while the overlay was exported; export again", escaped(path)),
        }
    }
}

/// Prints what was spooled.
fn print(file: &mut File, out: &mut dyn Write) -> Result<()> {
    file.rewind()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).context("the temporary file")? {
            0 => return out.flush().context("stdout"),
            count => out.write_all(&buffer[..count]).context("stdout")?,
        }
    }
}

/// Somewhere to write to that may keep us waiting: a signal ends that.
struct Interruptible<W>(W);

impl<W: Write> Write for Interruptible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted && sys::interrupted() => {
                Err(io::Error::other("interrupted"))
            }
            done => done,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
