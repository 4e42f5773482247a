//! `why`: which layer supplies a path in the merged view, and what hides it in the layers below.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::doc::{DocPath, How, Overlay, write_out};
use crate::du::name_of;
use crate::layer::{self, Marks, Opaque};
use crate::state::DataRoot;
use crate::{access, cli, exit, find, history, record, rotate, trees};

/// What is to be said about a path.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// From the merged directory on.
    pub path: DocPath,
    /// Where it is on the disk; absent where the view has no such path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<DocPath>,
    /// The snapshot of this overlay whose layer that is; absent where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u32>,
    /// Directories of layers further down that merge with it, top first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merges: Vec<DocPath>,
    /// What layers have of the path that is not seen, top first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<Hidden>,
    /// How the part of the view that the path is in was made, where that is no overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Something that is not seen.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hidden {
    /// Where it is.
    pub path: DocPath,
    /// What hides it, in words: a whiteout, an opaque directory, something of another type.
    pub by: String,
}

/// Prints where a path comes from. Errors with not found (3) where no layer has it.
pub fn run(root: &DataRoot, args: &cli::Why) -> Result<()> {
    let id = find::by_name(root, &args.overlay)?;
    let overlay = rotate::read(root, &id)?;
    let path = inside(&overlay, &args.path);
    let answer = access::with(&overlay, |overlay| answer(overlay, &path)).with_context(|| format!("why {id}"))?;
    if answer.from.is_none() && answer.hidden.is_empty() {
        return Err(exit::not_found(format!("why {id}: {}: no layer has it", name_of(&answer.path))));
    }
    if args.json {
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        return write_out(&line);
    }
    write_out(in_words(&answer).as_bytes())
}

/// The path from the merged directory on, relative; one that is given with the merged directory is taken as well.
fn inside(overlay: &Overlay, path: &Path) -> PathBuf {
    crate::parts::relative(path.strip_prefix(&*overlay.merged).unwrap_or(path))
}

fn in_words(answer: &Answer) -> String {
    let path = name_of(&answer.path);
    let mut text = match &answer.from {
        Some(from) => {
            let snapshot = answer.snapshot.map_or_else(String::new, |number| format!(" (snapshot {number})"));
            format!("{path}: from {}{snapshot}\n", name_of(from))
        }
        None => format!("{path}: deleted\n"),
    };
    for merged in &answer.merges {
        text.push_str(&format!("  merged with {}\n", name_of(merged)));
    }
    for hidden in &answer.hidden {
        text.push_str(&format!("  hides {} ({})\n", name_of(&hidden.path), hidden.by));
    }
    if let Some(note) = &answer.note {
        text.push_str(&format!("  {note}\n"));
    }
    text
}

/// Where `path` (relative) comes from.
pub fn answer(overlay: &Overlay, path: &Path) -> Result<Answer> {
    let mut answer = Answer {
        path: Path::new("/").join(path).into(),
        from: None,
        snapshot: None,
        merges: Vec::new(),
        hidden: Vec::new(),
        note: None,
    };
    let at = |mount: &crate::doc::Mount| mount.path.strip_prefix("/").unwrap_or(&mount.path).to_path_buf();
    let bound = overlay.mounts.iter().find(|mount| mount.how != How::Overlay && path.starts_with(at(mount)));
    if let Some(mount) = bound {
        let rest = path.strip_prefix(at(mount)).unwrap_or(Path::new(""));
        let what = match (mount.how, &mount.upper, mount.lower.last()) {
            (How::File, Some(copy), _) => Some(copy),
            (_, _, what) => what,
        };
        answer.from = what
            .map(|what| if rest.as_os_str().is_empty() { what.0.clone() } else { what.join(rest) })
            .filter(|place| place.symlink_metadata().is_ok())
            .map(DocPath);
        answer.note = Some(match mount.how {
            How::File => "a copy of a file that is mounted on the lower's".to_owned(),
            How::Hidden => "hidden: something empty lies over it".to_owned(),
            How::ReadOnly => "bound read-only".to_owned(),
            How::Bind | How::Overlay => "bound as it is".to_owned(),
        });
        return Ok(answer);
    }
    let (layers, path) = if record::is_copy(overlay) {
        answer.note = Some("the view is a copy of its lowers, and changes are made to the copy".to_owned());
        (vec![record::dir_of(overlay).join("merged")], path)
    } else {
        layers_of(overlay, path)
    };
    let marks = Marks::of(overlay);
    let mut by: Option<String> = None;
    for layer in layers {
        look(&mut answer, &mut by, &layer, path, marks)?;
    }
    let place = history::place(overlay);
    let of = |from: &DocPath| {
        let layer = from.strip_prefix(&place).ok()?.iter().next()?.to_str()?;
        overlay.snapshots.iter().find(|snapshot| snapshot.layer == layer).map(|snapshot| snapshot.number)
    };
    answer.snapshot = answer.from.as_ref().and_then(of);
    Ok(answer)
}

/// The layers of the tree that a path is in, top first, and the path from that tree's root on.
fn layers_of<'a>(overlay: &Overlay, path: &'a Path) -> (Vec<PathBuf>, &'a Path) {
    let prefix = |tree: &trees::Tree| PathBuf::from(std::ffi::OsStr::from_bytes(&tree.prefix));
    let trees = trees::of(overlay);
    let tree = trees.iter().rev().find(|tree| path.starts_with(prefix(tree))).unwrap_or(&trees[0]);
    let inside = path.strip_prefix(prefix(tree)).unwrap_or(path);
    let layers = tree.layers();
    (layers.iter().rev().chain(tree.lowers.iter().rev()).cloned().collect(), inside)
}

/// What one layer has of the path, given what hides it from the layers above (`by`).
fn look(answer: &mut Answer, by: &mut Option<String>, layer: &Path, path: &Path, marks: Marks) -> Result<()> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = openat(CWD, layer, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| layer.display().to_string())?;
    let mut place = layer.to_path_buf();
    // What hides the layers below, once this one is looked at.
    let mut hides: Option<String> = opaque(&dir, &place, marks)?;
    let names: Vec<_> = path
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
        .collect();
    let mut found = names.is_empty().then_some(FileType::Directory);
    for (number, name) in names.iter().enumerate() {
        let last = number + 1 == names.len();
        place.push(name);
        let raw = CString::new(name.as_bytes()).context("a name with a NUL")?;
        let describe = || place.display().to_string();
        let stat = match statat(&dir, &*raw, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => break,
            Err(e) => return Err(e).with_context(describe),
        };
        let mark = layer::opaque(&dir, marks)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if layer::is_whiteout(dir.as_fd(), name.as_bytes(), &stat, mark, marks)? {
            hides.get_or_insert_with(|| format!("a whiteout: {}", name_of(&place)));
            break;
        }
        if last {
            found = Some(kind);
        }
        if kind != FileType::Directory {
            hides.get_or_insert_with(|| format!("no directory, and above it: {}", name_of(&place)));
            break;
        }
        dir = openat(&dir, &*raw, open, Mode::empty()).with_context(describe)?;
        if let Some(mark) = opaque(&dir, &place, marks)? {
            hides.get_or_insert(mark);
        }
    }
    if let Some(kind) = found {
        let place = DocPath(layer.join(path));
        match (&by, &answer.from) {
            (Some(by), _) => answer.hidden.push(Hidden { path: place, by: by.clone() }),
            (None, None) => answer.from = Some(place),
            (None, Some(_)) if kind == FileType::Directory => answer.merges.push(place),
            (None, Some(over)) => {
                let by = format!("a directory, and above it: {}", name_of(over));
                hides.get_or_insert_with(|| by.clone());
                answer.hidden.push(Hidden { path: place, by });
            }
        }
    }
    if by.is_none() {
        *by = hides;
    }
    Ok(())
}

fn opaque(dir: &OwnedFd, place: &Path, marks: Marks) -> Result<Option<String>> {
    let mark = layer::opaque(dir, marks).with_context(|| place.display().to_string())?;
    Ok((mark == Opaque::Yes).then(|| format!("an opaque directory: {}", name_of(place))))
}
