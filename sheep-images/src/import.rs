//! `import`: an image from what other tools wrote: the archive of a root file system or a directory with one, an OCI layout (a
//! directory or an archive of one), or what `docker save` made. Which of these it is tells the content.

mod directory;
pub mod files;
pub mod image;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use anyhow::{Context, Result, anyhow};
use sheep_overlay::{exit, export, state};

use crate::cli::{Import, ImportFormat, LimitArgs};
use crate::oci::{self, Descriptor};
use crate::progress::Progress;
use crate::reference::Name;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::stream::{Intake, Stream, Summary};
use crate::unpack::{self, LeftOut};
use files::{Files, Kind};
use image::Wanted;
pub use image::platform;

/// Runs the verb.
pub fn run(store: &Store, args: &Import) -> Result<()> {
    let name = Name::parse(&args.name)?;
    let shown = args.file.to_string_lossy();
    let what = format!("import {}", args.name);
    let work = || -> Result<Descriptor> {
        let wanted = Wanted {
            reference: args.reference.as_deref(),
            platform: args.platform.as_deref().map_or_else(|| Ok(oci::host_platform()), image::platform)?,
        };
        let progress = Progress::start(args.progress.progress);
        let taken = match open(args).with_context(|| shown.to_string())? {
            Source::Layout(dir) => image::take_in(
                store,
                &name,
                &Files::Directory(File::open(dir)?),
                &wanted,
                args.limits,
                &progress,
                Stage::new(store)?,
            ),
            Source::Directory(dir) => from_directory(store, &name, &dir, args, &what, &progress),
            Source::File(file) => from_file(store, &name, file, args, &wanted, &progress),
        };
        let (image, left_out) = taken.with_context(|| shown.to_string())?;
        unpack::tell_left_out(&what, left_out);
        Ok(image)
    };
    let image = work().with_context(|| what.clone())?;
    let image = store.load(&image).with_context(|| what.clone())?;
    unpack::rest(store, &image, args.limits, args.progress.progress, &what)?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

/// What was named.
enum Source {
    /// An archive, or a pipe that brings one.
    File(File),
    /// A directory that is an OCI layout.
    Layout(PathBuf),
    /// A directory with the files of an image.
    Directory(PathBuf),
}

fn open(args: &Import) -> Result<Source> {
    if args.file == "-" {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(exit::usage("stdin is a terminal; an archive is expected there"));
        }
        return Ok(Source::File(stdin.as_fd().try_clone_to_owned()?.into()));
    }
    match File::open(&args.file) {
        Ok(file) if file.metadata()?.is_dir() => {
            let dir = PathBuf::from(&args.file);
            let (index, layout) = (dir.join("index.json").is_file(), dir.join("oci-layout").is_file());
            match args.format {
                ImportFormat::Image => Ok(Source::Layout(dir)),
                ImportFormat::Rootfs => Ok(Source::Directory(dir)),
                ImportFormat::Auto if index && layout => Ok(Source::Layout(dir)),
                ImportFormat::Auto if layout || dir.join("blobs/sha256").is_dir() => Err(exit::usage(
                    "a directory like an OCI layout, but index.json or oci-layout is missing; --format rootfs takes it as one of files",
                )),
                ImportFormat::Auto => Ok(Source::Directory(dir)),
            }
        }
        Ok(file) => Ok(Source::File(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(exit::not_found("no such file")),
        Err(e) => Err(e.into()),
    }
}

fn from_file(
    store: &Store,
    name: &Name,
    file: File,
    args: &Import,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<(Descriptor, LeftOut)> {
    let total = file.metadata().ok().filter(fs::Metadata::is_file).map(|found| found.len());
    let came = || progress.add(&args.file.to_string_lossy(), total);
    let (found, codec, source) = files::look(file)?;
    let kind = match args.format {
        ImportFormat::Auto => found,
        ImportFormat::Image => Kind::Image,
        ImportFormat::Rootfs => Kind::RootFs,
    };
    match kind {
        Kind::RootFs => {
            of_files(args)?;
            let receive = |stage: &Stage, unpacked: &Scratch| receive(source, stage, unpacked, args.limits, came());
            take_in(store, name, "sheep-images import", receive, |_| Ok(state::now()))
        }
        Kind::Image => {
            let stage = Stage::new(store)?;
            let files = Files::archive(files::seekable(source, codec, args.limits, came, || stage.spool())?)?;
            image::take_in(store, name, &files, wanted, args.limits, progress, stage)
        }
    }
}

/// Errors where an option is given that says which of several images is meant.
fn of_files(args: &Import) -> Result<()> {
    match args.reference.as_ref().map(|_| "--ref").or(args.platform.as_ref().map(|_| "--platform")) {
        Some(option) => Err(exit::usage(format!("{option} is for archives of images, and this is one of files"))),
        None => Ok(()),
    }
}

/// An image of one layer: the files in a directory.
fn from_directory(
    store: &Store,
    name: &Name,
    dir: &Path,
    args: &Import,
    what: &str,
    progress: &Progress,
) -> Result<(Descriptor, LeftOut)> {
    of_files(args)?;
    let latest = export::source_date_epoch()?;
    let receive = |stage: &Stage, unpacked: &Scratch| {
        // What is packed is unpacked again while it comes, so that the store has what every reader of the archive gets.
        let (archive, packed) = io::pipe()?;
        let _ = rustix::pipe::fcntl_setpipe_size(&packed, 1 << 20);
        let out = BufWriter::with_capacity(1 << 18, packed);
        let (received, packed) = thread::scope(|scope| {
            let packing = scope.spawn(|| directory::pack(store, dir, latest, out));
            (receive(archive, stage, unpacked, args.limits, progress.add(&dir.to_string_lossy(), None)), packing.join())
        });
        match (received, packed.map_err(|_| anyhow!("the packing thread panicked"))?) {
            (Ok(received), Ok(not_taken)) => {
                directory::tell(what, &not_taken);
                Ok(received)
            }
            // The one who gave up says why.
            (Err(error), Err(packing)) if exit::is_broken_pipe(&packing) => Err(error),
            (_, Err(packing)) => Err(packing),
            (Err(error), Ok(_)) => Err(error),
        }
    };
    take_in(store, name, "sheep-images import", receive, |_: &Summary| oci::created(latest))
}

/// Stores and unpacks an archive in one pass; `came` counts what of it was read.
pub fn receive(
    source: impl Read + Send + 'static,
    stage: &Stage,
    unpacked: &Scratch,
    limits: LimitArgs,
    came: Arc<AtomicU64>,
) -> Result<(Summary, LeftOut)> {
    let intake = Intake { came, ..Intake::of_another(stage.layer()?, limits.max_ratio) };
    let received = unpack::receive(Stream::start(source, intake), unpacked.fd(), limits)?;
    Ok((received.summary, received.left_out))
}

/// Makes an image of one layer, which `receive` puts into a stage and a scratch directory. Whatever fails on the way,
/// nothing is left of it.
pub fn take_in(
    store: &Store,
    name: &Name,
    created_by: &str,
    receive: impl FnOnce(&Stage, &Scratch) -> Result<(Summary, LeftOut)>,
    created: impl FnOnce(&Summary) -> Result<String>,
) -> Result<(Descriptor, LeftOut)> {
    let stage = Stage::new(store)?;
    let unpacked = Scratch::new(&store.layers())?;
    let (layer, left_out) = receive(&stage, &unpacked)?;
    let config = oci::new_config(&oci::host_platform(), &layer.diff_id, &created(&layer)?, created_by);
    let config = serde_json::to_vec(&config).map_err(|e| anyhow!("configuration: {e}"))?;
    let image = stage.commit(store, name, &layer, unpacked, &config)?;
    Ok((image, left_out))
}
