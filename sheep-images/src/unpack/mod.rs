//! `unpack`: an image's layers as directories, each unpacked once and shared by every image that has it.

pub mod acl;
pub mod archive;
pub mod attributes;
pub mod extract;
pub mod header;
pub mod pax;
pub mod resolve;
pub mod sparse;

use std::fs::File;
use std::io::BufRead;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail};
use sheep_overlay::exit;

use crate::cli::{LimitArgs, Unpack};
use crate::oci::{Descriptor, Digest};
use crate::parallel;
use crate::scratch::Scratch;
use crate::store::{LoadedImage, Store};
use crate::stream::{Stream, Summary};
use archive::Archive;
pub use extract::LeftOut;

/// Runs the verb.
pub fn run(store: &Store, args: &Unpack) -> Result<()> {
    let work = || -> Result<LoadedImage> {
        let image = store.find(&args.reference)?;
        let layers: Vec<(&Descriptor, &Digest)> = image.layers().collect();
        let done = parallel::each(&layers, |_, (descriptor, diff_id)| ensure(store, descriptor, diff_id, args.limits))?;
        let mut left_out = LeftOut::default();
        done.into_iter().for_each(|one| left_out += one);
        tell_left_out(&format!("unpack {}", args.reference), left_out);
        Ok(image)
    };
    let image = work().with_context(|| format!("unpack {}", args.reference))?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

/// Unpacks a layer unless that is done. Of two processes that want it at once one works, and the other waits for it.
fn ensure(store: &Store, layer: &Descriptor, diff_id: &Digest, limits: LimitArgs) -> Result<LeftOut> {
    if store.layer_dir(diff_id).is_dir() {
        return Ok(LeftOut::default());
    }
    let blob_path = store.blob(&layer.digest);
    let context = || format!("layer {}", layer.digest);
    let blob = File::open(&blob_path).with_context(|| blob_path.display().to_string()).with_context(context)?;
    // The lock of a layer is on its blob, which is there as long as anybody can want the layer.
    blob.lock().with_context(context)?;
    if store.layer_dir(diff_id).is_dir() {
        return Ok(LeftOut::default());
    }
    let scratch = Scratch::new(&store.layers())?;
    let source = blob.try_clone().with_context(context)?;
    let (summary, left_out) = receive(Stream::start(source, None), scratch.fd(), limits).with_context(context)?;
    if summary.digest != layer.digest {
        bail!(
            "layer {}: what is stored has the digest {}; import or fetch the image again",
            layer.digest,
            summary.digest
        );
    }
    if summary.diff_id != *diff_id {
        bail!("layer {}: unpacked it is {}, and the image says {diff_id}", layer.digest, summary.diff_id);
    }
    rustix::fs::syncfs(scratch.fd()).context("sync")?;
    store.keep_layer(scratch, &blob, layer, diff_id)?;
    Ok(left_out)
}

/// Takes a layer's archive in, to its very end, and unpacks it beneath `root`.
pub fn receive(stream: Stream, root: BorrowedFd<'_>, limits: LimitArgs) -> Result<(Summary, LeftOut)> {
    let mut archive = Archive::new(stream);
    let left_out = extract::extract(&mut archive, root, limits)?;
    let mut stream = archive.into_input();
    if !stream.fill_buf()?.is_empty() {
        bail!("something follows the end of the archive");
    }
    Ok((stream.finish()?, left_out))
}

/// Says in one line what an unpacked layer has not got.
pub fn tell_left_out(what: &str, left_out: LeftOut) {
    let LeftOut { owners, devices, xattrs } = left_out;
    if left_out == LeftOut::default() {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let mut parts = Vec::new();
    for (count, one, many) in [
        (owners, "the owner of 1 entry", "the owners of # entries"),
        (devices, "1 device", "# devices"),
        (xattrs, "1 extended attribute", "# extended attributes"),
    ] {
        match count {
            0 => (),
            1 => parts.push(one.to_owned()),
            _ => parts.push(many.replace('#', &count.to_string())),
        }
    }
    exit::warn(
        "sheep-images",
        &format!(
            "{what}: {}could not be kept: {}",
            if root { "" } else { "as an unprivileged user, " },
            parts.join(", ")
        ),
    );
}
