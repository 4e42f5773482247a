//! The merged view of an overlay, read without being mounted: from its lowers and its upper, or from its copy.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use crate::diff::escaped;
use crate::doc::{Backend, How, Overlay};
use crate::idmap::{self, Map};
use crate::layer::Marks;
use crate::paths::{bare, inside, is_below, join, split};
use crate::shown::Entry;
use crate::stack::{self, Dir, Stack};
use crate::{record, trees};

/// How many descriptors directories that are still to be walked may keep open.
const KEPT: usize = 256;
/// Who an id belongs to that a map does not have (the kernel's default).
const NOBODY: u32 = 65534;

/// The view: its trees, and what else is mounted in it.
pub struct Merged {
    /// The root first.
    pub parts: Vec<Part>,
    apart: Vec<Apart>,
}

/// A tree of the view.
pub struct Part {
    /// Where it is in the view: without a leading slash, empty for the root.
    pub prefix: Vec<u8>,
    /// What is seen of it.
    pub view: Stack,
    /// What it lies on; none where nothing of it can be changed.
    pub lower: Option<Stack>,
    /// It is a tree of its own, all of which may have been changed.
    pub is_copy: bool,
    /// How many layers at the top of the view have changes: the upper, and those that were put aside.
    changed: usize,
    owners: Option<Map>,
}

/// Something in the view that is no tree.
struct Apart {
    path: Vec<u8>,
    how: How,
    what: PathBuf,
}

/// An entry of the view.
#[derive(Debug)]
pub struct Found<'a> {
    /// Where it is in the view, without a leading slash; empty for the root.
    pub path: &'a [u8],
    /// The directory that it is to be read in.
    pub dir: BorrowedFd<'a>,
    /// Its name there; a directory is `.` in itself.
    pub name: &'a CStr,
    /// Its attributes, as the view shows them.
    pub stat: Stat,
}

impl<'a> Found<'a> {
    /// One that was looked up.
    pub fn of(path: &'a [u8], entry: &'a Entry) -> Self {
        Found { path, dir: entry.dir.as_fd(), name: &entry.name, stat: entry.stat }
    }
}

/// What is done with each entry.
pub type Visit<'v> = &'v mut dyn FnMut(&Found<'_>) -> Result<()>;

/// Whether a walk goes into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enter {
    Yes,
    No,
}

/// Which part of a tree is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Everything,
    /// What stands in the upper, or in a layer of changes that was put aside; of a copy, all of it.
    Changed,
}

/// A directory that is still to be walked.
struct Pending {
    /// From the tree's root.
    path: Vec<u8>,
    dir: At,
}

enum At {
    Open(Dir),
    /// To be opened again; these lowers merge into it.
    Closed(Vec<usize>),
}

impl Merged {
    /// Opens the view. A part that its user cannot open he has not changed: with `changed_only` it is passed over.
    pub fn open(overlay: &Overlay, changed_only: bool) -> Result<Self> {
        let mut parts = Vec::new();
        let mut apart = Vec::new();
        for tree in trees::of(overlay) {
            let is_root = tree.prefix.is_empty();
            match Part::open(overlay, &tree) {
                Ok(part) => parts.push(part),
                Err(error) if changed_only && !is_root && is_closed(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for mount in &overlay.mounts {
            let what = match (mount.how, &mount.upper, mount.lower.last()) {
                (How::Overlay, _, _) => continue,
                (How::File, Some(copy), _) => copy.0.clone(),
                (_, _, Some(lower)) => lower.0.clone(),
                _ => continue,
            };
            let path = bare(&mount.path);
            if mount.how == How::ReadOnly && what.is_dir() {
                if !changed_only {
                    let view = Stack::open(std::slice::from_ref(&what), Marks::of(overlay), None)?;
                    parts.push(Part { prefix: path, view, lower: None, is_copy: false, changed: 0, owners: None });
                }
            } else {
                apart.push(Apart { path, how: mount.how, what });
            }
        }
        Ok(Merged { parts, apart })
    }

    /// The view of a stack of layers (bottom first), which no overlay has.
    pub fn of_layers(layers: &[PathBuf]) -> Result<Self> {
        let view = Stack::open(layers, Marks::of_this_process(), None)?;
        let part = Part { prefix: Vec::new(), view, lower: None, is_copy: false, changed: 0, owners: None };
        Ok(Merged { parts: vec![part], apart: Vec::new() })
    }

    /// The tree that a path is in, and the path from its root.
    pub fn part_of<'p>(&self, path: &'p [u8]) -> Result<(usize, &'p [u8])> {
        let parts = self.parts.iter().enumerate();
        let found = parts.filter_map(|(at, part)| Some((at, inside(path, &part.prefix)?)));
        // The innermost: less of the path is left.
        let innermost = found.min_by_key(|(_, inside)| inside.len());
        innermost.with_context(|| format!("/{}: it is in no tree of the overlay", escaped(path)))
    }

    /// Shows every entry of the view to `visit`, a directory before what is in it.
    pub fn walk(&self, visit: Visit<'_>) -> Result<()> {
        self.parts.first().map_or(Ok(()), |root| self.walk_part(root, visit))
    }

    fn walk_part(&self, part: &Part, visit: Visit<'_>) -> Result<()> {
        part.steps(b"", Scope::Everything, &mut |found| {
            let path = found.path;
            if let Some(inner) = self.parts.iter().find(|inner| inner.prefix == path && inner.prefix != part.prefix) {
                return self.walk_part(inner, visit).map(|()| Enter::No);
            }
            match self.apart.iter().find(|apart| apart.path == path) {
                None => visit(found).map(|()| Enter::Yes),
                Some(apart) => self.walk_apart(apart, found, visit).map(|()| Enter::No),
            }
        })
    }

    /// What is mounted on an entry, and is no tree.
    fn walk_apart(&self, apart: &Apart, on: &Found<'_>, visit: Visit<'_>) -> Result<()> {
        match apart.how {
            How::Hidden => Ok(()),
            How::File | How::ReadOnly => {
                let (dir, name) = (apart.what.parent().unwrap_or(Path::new("/")), apart.what.file_name());
                let (dir, _) = stack::open_alone(dir).with_context(|| dir.display().to_string())?;
                let name = CString::new(name.unwrap_or_default().as_bytes())?;
                let stat = statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
                    .with_context(|| apart.what.display().to_string())?;
                visit(&Found { path: on.path, dir: dir.as_fd(), name: &name, stat })
            }
            // Its files are no data: an empty directory keeps their place.
            How::Bind | How::Overlay => visit(on),
        }
    }

    /// What is in the view as the kernel's own, and is exported as an empty directory.
    pub fn bound(&self) -> impl Iterator<Item = &[u8]> {
        self.apart.iter().filter(|apart| apart.how == How::Bind).map(|apart| &apart.path[..])
    }
}

impl Part {
    fn open(overlay: &Overlay, tree: &trees::Tree) -> Result<Self> {
        let marks = Marks::of(overlay);
        let prefix = tree.prefix.clone();
        let owners = overlay.idmap.as_deref().map(idmap::parse).transpose()?;
        if prefix.is_empty() && record::is_copy(overlay) {
            let own = record::dir_of(overlay);
            let view = Stack::open(&[own.join("merged")], marks, None)?;
            let lower = Some(Stack::open(&tree.lowers, marks, Some(own))?);
            return Ok(Part { prefix, view, lower, is_copy: true, changed: 1, owners: None });
        }
        let layers = tree.layers();
        let changed = layers.len();
        let mut view = Stack::open(&[&tree.lowers[..], &layers].concat(), marks, None)?;
        view.of_fuse = if overlay.backend == Backend::Fuse { changed } else { 0 };
        let lower = Some(Stack::open(&tree.lowers, marks, None)?);
        Ok(Part { prefix, view, lower, is_copy: false, changed, owners })
    }

    /// Whether a lower of the view, by its place in the stack, is where changes are.
    pub fn is_changed(&self, lower: usize) -> bool {
        self.is_copy || lower < self.changed
    }

    /// Attributes as the view shows them.
    pub fn as_shown(&self, mut stat: Stat, changed: bool) -> Stat {
        if let (Some(map), false) = (&self.owners, changed) {
            let shown = |id: u32, ranges: &[[u32; 3]]| {
                let range = ranges.iter().find(|[first, _, count]| id >= *first && id - first < *count);
                range.map_or(NOBODY, |[first, shown, _]| id - first + shown)
            };
            (stat.st_uid, stat.st_gid) = (shown(stat.st_uid, &map.uids), shown(stat.st_gid, &map.gids));
        }
        stat
    }

    /// A path in this tree as one in the view.
    pub fn in_view(&self, path: &[u8]) -> Vec<u8> {
        join(&self.prefix, path)
    }

    /// Shows every entry at and below a directory of this tree to `visit`; what is mounted in the tree is not entered.
    pub fn walk(&self, start: &[u8], scope: Scope, visit: Visit<'_>) -> Result<()> {
        self.steps(start, scope, &mut |found| visit(found).map(|()| Enter::Yes))
    }

    fn steps(&self, start: &[u8], scope: Scope, step: &mut dyn FnMut(&Found<'_>) -> Result<Enter>) -> Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut pending = vec![Pending { path: start.to_vec(), dir: At::Open(self.view.find(start)?) }];
        let mut kept = 0;
        while let Some(Pending { path, dir }) = pending.pop() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let dir = match dir {
                At::Open(dir) => {
                    kept -= if path == start { 0 } else { dir.descriptors() };
                    dir
                }
                At::Closed(lowers) => self.view.reopen(&lowers, &path)?,
            };
            // Deleted since its parent was read, where there is none.
            let (Some(top), Some(stat)) = (dir.top(), dir.stat()) else { continue };
            let in_view = self.in_view(&path);
            let changed = self.is_changed(dir.lower_of(0));
            let stat = self.as_shown(*stat, changed);
            let named = || format!("/{}", escaped(&in_view));
            let entered = step(&Found { path: &in_view, dir: top, name: c".", stat }).with_context(named)?;
            if entered == Enter::No {
                continue;
            }
            let mut entries = self.view.list(&dir, &path, &mut buffer)?;
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let mut inner = Vec::new();
            for entry in entries {
                let (lower, name) = (dir.lower_of(entry.layer), &entry.name);
                let changed = self.is_changed(lower);
                if scope == Scope::Changed && !changed {
                    continue;
                }
                let child_path = join(&path, name.to_bytes());
                if entry.kind == FileType::Directory {
                    let child = self.view.child(&dir, name, &path)?;
                    let dir = if kept <= KEPT {
                        kept += child.descriptors();
                        At::Open(child)
                    } else {
                        At::Closed(child.lowers())
                    };
                    inner.push(Pending { path: child_path, dir });
                    continue;
                }
                let from = dir.layer(entry.layer);
                let stat = match statat(from, &**name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => self.as_shown(stat, changed),
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e).with_context(|| format!("/{}", escaped(&self.in_view(&child_path)))),
                };
                let in_view = self.in_view(&child_path);
                let found = Found { path: &in_view, dir: from, name, stat };
                step(&found).with_context(|| format!("/{}", escaped(&in_view)))?;
            }
            pending.extend(inner.into_iter().rev());
        }
        Ok(())
    }
}

/// Looks up paths of one stack, near to each other mostly: the way to the last one stays open.
pub struct Cursor<'a> {
    stack: &'a Stack,
    /// Directories with their paths, each in one before it.
    way: Vec<(Vec<u8>, Dir)>,
}

/// How many directories a cursor keeps open.
const WAY: usize = 32;

impl<'a> Cursor<'a> {
    pub fn new(stack: &'a Stack) -> Self {
        Cursor { stack, way: Vec::new() }
    }

    /// The directory at a path; one without layers where the stack has none there.
    pub fn dir(&mut self, path: &[u8]) -> Result<&Dir> {
        self.way.retain(|(at, _)| at == path || is_below(path, at));
        if self.way.is_empty() {
            self.way.push((Vec::new(), self.stack.root()?));
        }
        loop {
            let Some((at, dir)) = self.way.last() else { bail!("no root") };
            if at == path {
                break;
            }
            let rest = inside(path, at).unwrap_or_default();
            let name = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
            let child = self.stack.child(dir, &CString::new(name).context("a name with a NUL")?, at)?;
            let next = (join(at, name), child);
            if self.way.len() > WAY {
                self.way.remove(1);
            }
            self.way.push(next);
        }
        let Some((_, dir)) = self.way.last() else { bail!("no root") };
        Ok(dir)
    }

    /// What is at a path: the directory it stands in, which of its layers has it, and the attributes.
    pub fn entry(&mut self, path: &[u8]) -> Result<Option<(&Dir, usize, Stat)>> {
        let (parent, name) = split(path);
        let name = CString::new(name).context("a name with a NUL")?;
        let stack = self.stack;
        let dir = self.dir(parent)?;
        Ok(stack.lookup(dir, &name, parent)?.map(|(layer, stat)| (dir, layer, stat)))
    }
}

fn is_closed(error: &anyhow::Error) -> bool {
    matches!(error.root_cause().downcast_ref::<Errno>(), Some(&Errno::ACCESS | &Errno::NOENT))
}
