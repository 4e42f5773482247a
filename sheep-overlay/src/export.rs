//! `export`: the changes of an overlay in a form that others take, on stdout.
//!
//! `oci` is a layer as the OCI image specification has it (image-spec, layer.md): a tar of what was added or changed, with
//! a file `.wh.NAME` for what was deleted and `.wh..wh..opq` in a directory that hides the one below. The same changes give the
//! same bytes: entries are sorted, times are those of the files, and none is later than `$SOURCE_DATE_EPOCH` where that is
//! set. What a layer cannot carry is an error that names it, before anything is written.

mod archive;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result, bail};
use rustix::fs::FileType;

use crate::diff::{self, Change, Kind, escaped};
use crate::doc::Overlay;
use crate::shown::{Shown, above, bare, is_below, split};
use crate::state::DataRoot;
use crate::walk::join;
use crate::{access, cli, exit, find, rotate};
use archive::Archive;

/// What stands at a path of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// What the overlay has there.
    Real,
    /// An empty file whose name says what is hidden.
    Mark,
}

/// A layer: its entries by their paths, without a leading slash.
type Layer = BTreeMap<Vec<u8>, Item>;

/// Prints the changes of an overlay in the form that is asked for.
pub fn run(root: &DataRoot, args: &cli::Export) -> Result<()> {
    let id = find::by_name(root, &args.overlay)?;
    let overlay = rotate::read(root, &id)?;
    let latest = source_date_epoch()?;
    let export = |overlay: &Overlay| match args.form {
        cli::ExportForm::Oci => as_oci(overlay, latest),
        cli::ExportForm::Patch => diff::patch(overlay),
    };
    access::with(&overlay, export).with_context(|| format!("export {id}"))
}

/// The latest time that an entry may have, as reproducible-builds.org specifies it.
fn source_date_epoch() -> Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => Err(exit::usage(format!("$SOURCE_DATE_EPOCH is {text:?}, and not a number of seconds"))),
        },
    }
}

fn as_oci(overlay: &Overlay, latest: Option<i64>) -> Result<()> {
    let layer = plan(&diff::changes(overlay)?)?;
    let shown = Shown::open(overlay)?;
    check(&shown, &layer)?;
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, std::io::stdout().lock()), latest);
    for (path, item) in &layer {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let put = match item {
            Item::Mark => archive.mark(path),
            Item::Real => shown.must(path).and_then(|entry| archive.put(path, &entry)),
        };
        put.with_context(|| format!("/{}", escaped(path)))?;
    }
    archive.finish()?.flush().context("stdout")
}

/// The entries of a layer that makes these changes. Errors where a name would be read as a mark.
fn plan(changes: &[Change]) -> Result<Layer> {
    let mut layer = Layer::new();
    let mut anew: Vec<Vec<u8>> = Vec::new();
    for change in changes {
        let path = bare(&change.path);
        match change.kind {
            // In a directory that hides the one below there is nothing to be hidden.
            Kind::Deleted if anew.iter().any(|dir| is_below(&path, dir)) => {}
            Kind::Deleted => hide(&mut layer, &path),
            Kind::Renamed => {
                if let Some(from) = &change.from {
                    hide(&mut layer, &bare(from));
                }
                show(&mut layer, &path)?;
            }
            Kind::Opaque => {
                show(&mut layer, &path)?;
                layer.insert(join(&path, b".wh..wh..opq"), Item::Mark);
                anew.push(path);
            }
            Kind::Added | Kind::Modified | Kind::Type => show(&mut layer, &path)?,
        }
    }
    // The directories on the way have the attributes that they have in the overlay.
    let parents: Vec<Vec<u8>> = layer.keys().flat_map(|path| above(path).map(<[u8]>::to_vec)).collect();
    for parent in parents {
        layer.entry(parent).or_insert(Item::Real);
    }
    Ok(layer)
}

fn show(layer: &mut Layer, path: &[u8]) -> Result<()> {
    if let Some(name) = path.split(|byte| *byte == b'/').find(|name| name.starts_with(b".wh.")) {
        bail!("/{}: a layer cannot carry the name {}, which in it would delete a file", escaped(path), escaped(name));
    }
    if !path.is_empty() {
        layer.insert(path.to_vec(), Item::Real);
    }
    Ok(())
}

fn hide(layer: &mut Layer, path: &[u8]) {
    let (dir, name) = split(path);
    layer.insert(join(dir, &[b".wh.", name].concat()), Item::Mark);
}

/// Makes sure, before a byte is written, that the layer can carry all of its entries.
fn check(shown: &Shown, layer: &Layer) -> Result<()> {
    let overflow = |file: &str| std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u32>().ok());
    // Who is not mapped is shown as this one, in a user namespace.
    let nobody = match crate::backend::kernel::in_user_namespace() {
        true => (overflow("/proc/sys/kernel/overflowuid"), overflow("/proc/sys/kernel/overflowgid")),
        false => (None, None),
    };
    for (path, _) in layer.iter().filter(|(_, item)| **item == Item::Real) {
        if shown.is_mounted_file(path) {
            bail!("/{}: it is mounted on another file, which a layer cannot do", escaped(path));
        }
        let stat = shown.must(path)?.stat;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            bail!("/{}: a socket, which a layer cannot carry; delete it", escaped(path));
        }
        if nobody.0 == Some(stat.st_uid) || nobody.1 == Some(stat.st_gid) {
            bail!("/{}: its owner is not mapped in your user namespace, so a layer cannot name it", escaped(path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: Kind, path: &str, from: Option<&str>) -> Change {
        let from = from.map(std::path::PathBuf::from);
        Change {
            path: path.into(),
            kind,
            what: Vec::new(),
            from,
            layer: None,
            old_size: None,
            size: None,
            file_type: FileType::RegularFile,
        }
    }

    #[test]
    fn a_layer_of_changes() {
        let changes = [
            change(Kind::Added, "/a/new", None),
            change(Kind::Deleted, "/a/old", None),
            change(Kind::Opaque, "/d", None),
            change(Kind::Deleted, "/d/gone", None),
            change(Kind::Renamed, "/x", Some("/y/z")),
            change(Kind::Modified, "/", None),
        ];
        let layer = plan(&changes).unwrap();
        let entries: Vec<String> =
            layer.iter().map(|(path, item)| format!("{item:?} {}", String::from_utf8_lossy(path))).collect();
        let want = [
            "Real a",
            "Mark a/.wh.old",
            "Real a/new",
            "Real d",
            "Mark d/.wh..wh..opq",
            "Real x",
            "Real y",
            "Mark y/.wh.z",
        ];
        assert_eq!(entries, want);
        let error = plan(&[change(Kind::Added, "/a/.wh.b", None)]).unwrap_err().to_string();
        assert!(error.contains("/a/.wh.b"), "{error}");
    }
}
