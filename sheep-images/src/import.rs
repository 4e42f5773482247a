//! `import`: an image from what other tools wrote: the archive of a root file system, an OCI layout (a directory or an
//! archive of one), or what `docker save` made. Which of these it is tells the content.

pub mod files;
pub mod image;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use sheep_overlay::{exit, state};

use crate::cli::{Import, ImportFormat, LimitArgs};
use crate::oci::{self, Descriptor};
use crate::reference::Name;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::stream::{Stream, Summary};
use crate::unpack::{self, LeftOut};
use files::{Files, Kind};
use image::Wanted;

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
        let taken = match open(args).with_context(|| shown.to_string())? {
            Source::Layout(dir) => {
                let files = Files::Directory(File::open(dir)?);
                image::take_in(store, &name, &files, &wanted, args.limits, Stage::new(store)?)
            }
            Source::File(file) => from_file(store, &name, file, args, &wanted),
        };
        let (image, left_out) = taken.with_context(|| shown.to_string())?;
        unpack::tell_left_out(&what, left_out);
        Ok(image)
    };
    let image = work().with_context(|| what.clone())?;
    let image = store.load(&image).with_context(|| what.clone())?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

/// What was named.
enum Source {
    /// An archive, or a pipe that brings one.
    File(File),
    /// A directory that is an OCI layout.
    Layout(PathBuf),
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
            if dir.join("index.json").is_file() && dir.join("oci-layout").is_file() {
                return Ok(Source::Layout(dir));
            }
            Err(exit::usage(
                "it is a directory, and no OCI layout; pack it first: tar -C DIR -c . | sheep-images import NAME -",
            ))
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
) -> Result<(Descriptor, LeftOut)> {
    let (found, codec, source) = files::look(file)?;
    let kind = match args.format {
        ImportFormat::Auto => found,
        ImportFormat::Image => Kind::Image,
        ImportFormat::Rootfs => Kind::RootFs,
    };
    match kind {
        Kind::RootFs => {
            if let Some(option) =
                args.reference.as_ref().map(|_| "--ref").or(args.platform.as_ref().map(|_| "--platform"))
            {
                return Err(exit::usage(format!("{option} is for archives of images, and this is one of files")));
            }
            let receive = |stage: &Stage, unpacked: &Scratch| receive(source, stage, unpacked, args.limits);
            take_in(store, name, "sheep-images import", receive, |_| Ok(state::now()))
        }
        Kind::Image => {
            let stage = Stage::new(store)?;
            let files = Files::archive(files::seekable(source, codec, args.limits, || stage.spool())?)?;
            image::take_in(store, name, &files, wanted, args.limits, stage)
        }
    }
}

/// Stores and unpacks an archive in one pass.
pub fn receive(
    source: impl Read + Send + 'static,
    stage: &Stage,
    unpacked: &Scratch,
    limits: LimitArgs,
) -> Result<(Summary, LeftOut)> {
    let received = unpack::receive(Stream::start(source, Some(stage.layer()?)), unpacked.fd(), limits)?;
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
