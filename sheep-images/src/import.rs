//! `import`: an image from the archive of a root file system.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use sheep_overlay::{exit, state};

use crate::cli::{Import, LimitArgs};
use crate::oci::{self, Descriptor};
use crate::reference::Name;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::stream::{Stream, Summary};
use crate::unpack::{self, LeftOut};

/// Runs the verb.
pub fn run(store: &Store, args: &Import) -> Result<()> {
    let name = Name::parse(&args.name)?;
    let shown = args.file.to_string_lossy();
    let what = format!("import {}", args.name);
    let work = || -> Result<Descriptor> {
        let file = open(args).with_context(|| shown.to_string())?;
        let receive = |stage: &Stage, unpacked: &Scratch| receive(file, stage, unpacked, args.limits);
        let (image, left_out) = take_in(store, &name, "sheep-images import", receive, |_| Ok(state::now()))
            .with_context(|| shown.to_string())?;
        unpack::tell_left_out(&what, left_out);
        Ok(image)
    };
    let image = work().with_context(|| what.clone())?;
    let image = store.load(&image).with_context(|| what.clone())?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

fn open(args: &Import) -> Result<File> {
    if args.file == "-" {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(exit::usage("stdin is a terminal; an archive is expected there"));
        }
        return Ok(stdin.as_fd().try_clone_to_owned()?.into());
    }
    match File::open(&args.file) {
        Ok(file) if file.metadata()?.is_dir() => {
            Err(exit::usage("it is a directory; pack it first: tar -C DIR -c . | sheep-images import NAME -"))
        }
        Ok(file) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(exit::not_found("no such file")),
        Err(e) => Err(e.into()),
    }
}

/// Stores and unpacks an archive in one pass.
pub fn receive(
    source: impl Read + Send + 'static,
    stage: &Stage,
    unpacked: &Scratch,
    limits: LimitArgs,
) -> Result<(Summary, LeftOut)> {
    unpack::receive(Stream::start(source, Some(stage.layer()?)), unpacked.fd(), limits)
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
