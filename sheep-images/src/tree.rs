//! `tree`: what each layer of an image has at each path, and what becomes of it.
//!
//! All layers are walked at once, a directory at a time, and of what was found only the siblings of the way down to it are kept.
//! Nothing is opened but directories, and files of one size whose content is to be compared. What hides what is as
//! OverlayFS has it (`sheep_overlay::layer`): a whiteout and anything that is no directory hide all that is below, an opaque
//! directory hides the one below it with all that is in it, other directories merge.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{BufWriter, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, OFlags, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;
use sheep_overlay::diff::{Aspect, Compare, Depth, Entry, Kind};
use sheep_overlay::exit;
use sheep_overlay::inode::Inode;
use sheep_overlay::layer::{self, Marks, Opaque};
use sheep_overlay::paths::join;
use sheep_overlay::stack::Stack;
use sheep_overlay::walk::names_in;

use crate::cli::Tree;
use crate::store::{LoadedImage, Store};

mod row;

use row::{Row, Writer};

/// Runs the verb.
pub fn run(store: &Store, args: &Tree) -> Result<()> {
    let work = || -> Result<()> {
        let image = store.find(&args.reference)?;
        let wanted = match &args.layer {
            Some(text) => chosen(&image, text)?,
            None => vec![true; image.layers().count()],
        };
        let paths = store.unpacked(&image)?;
        let marks = Marks::of_this_process();
        let stack = Stack::open(&paths, marks, None)?;
        let out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
        let diff_ids = image.layers().map(|(_, diff_id)| diff_id.to_string()).collect();
        let writer = Writer { out, json: args.json, diff_ids };
        let compare = Compare::of_layers(&stack, Depth::Everything);
        let listing = vec![MaybeUninit::uninit(); 32 << 10];
        let mut walk = Walk { stack: &stack, marks, compare, listing, wanted, writer };
        walk.writer.head()?;
        walk.run(args.path.as_deref().unwrap_or(Path::new("/")))?;
        walk.writer.out.flush().context("stdout")
    };
    work().with_context(|| format!("tree {}", args.reference))
}

/// Which layers a user names: by a number, from 1 at the bottom, or by a digest or the beginning of one. Errors with not found (3).
fn chosen(image: &LoadedImage, text: &str) -> Result<Vec<bool>> {
    let count = image.layers().count();
    if let Ok(number) = text.parse::<usize>()
        && (1..=count).contains(&number)
    {
        return Ok((1..=count).map(|at| at == number).collect());
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_it = |digest: &str| !hex.is_empty() && digest.starts_with(hex);
    let wanted: Vec<bool> =
        image.layers().map(|(stored, diff_id)| is_it(stored.digest.hex()) || is_it(diff_id.hex())).collect();
    match wanted.contains(&true) {
        true => Ok(wanted),
        false => Err(exit::not_found(format!("--layer {text}: the image has {count} layers, and none of that digest"))),
    }
}

struct Walk<'a> {
    stack: &'a Stack,
    marks: Marks,
    compare: Compare<'a>,
    listing: Vec<MaybeUninit<u8>>,
    /// Which layers are to be printed, bottom first.
    wanted: Vec<bool>,
    writer: Writer,
}

/// A directory to be looked at: which layers have it, bottom first, each with the layer that hides it there.
struct Visit {
    path: Vec<u8>,
    layers: Vec<(usize, Option<usize>)>,
}

/// Something that is still to be done.
enum Item {
    Print(Vec<u8>),
    Enter(Visit),
}

/// A directory of a layer, open.
struct Dir {
    layer: usize,
    hidden: Option<usize>,
    fd: OwnedFd,
    mark: Opaque,
}

/// What a layer has under a name.
struct Found {
    /// Its directory, by its place among those that are open.
    dir: usize,
    stat: Stat,
    kind: FileType,
    whiteout: bool,
    opaque: bool,
}

impl Walk<'_> {
    fn run(&mut self, path: &Path) -> Result<()> {
        let mut items = match path.components().any(|part| matches!(part, std::path::Component::Normal(_))) {
            true => self.begin_at(path)?,
            false => self.root()?,
        };
        // What comes next is last.
        while let Some(item) = items.pop() {
            match item {
                Item::Print(lines) => self.writer.out.write_all(&lines).context("stdout")?,
                Item::Enter(visit) => {
                    let dirs = self.open(&visit)?;
                    items.extend(self.directory(&visit.path, &dirs)?);
                }
            }
        }
        Ok(())
    }

    /// The root directory, which every layer has.
    fn root(&mut self) -> Result<Vec<Item>> {
        let visit = self.root_visit()?;
        let mut lines = Vec::new();
        let dirs = self.open(&visit)?;
        let mut below: Option<(&Dir, Stat)> = None;
        for dir in &dirs {
            let stat = fstat(&dir.fd)?;
            let (change, what) = match &below {
                None => (Some(Kind::Added), Vec::new()),
                Some((other, before)) => {
                    let (lower, own) = (Inode::Open(other.fd.as_fd()), Inode::Open(dir.fd.as_fd()));
                    let (what, _) = self.compare.directories(lower, before, own, &stat)?;
                    (change_of(dir.mark == Opaque::Yes, &what), what)
                }
            };
            let row = Row { layer: dir.layer, change, what, stat: Some(stat), target: None, hidden: dir.hidden };
            self.print(b"", &row, &mut lines)?;
            below = Some((dir, stat));
        }
        Ok(vec![Item::Enter(visit), Item::Print(lines)])
    }

    fn root_visit(&self) -> Result<Visit> {
        let height = self.stack.height();
        let mut visit = Visit { path: Vec::new(), layers: (0..height).map(|layer| (layer, None)).collect() };
        for dir in self.open(&visit)? {
            if dir.mark == Opaque::Yes {
                visit.layers[..dir.layer].iter_mut().for_each(|(_, hidden)| *hidden = hidden.or(Some(dir.layer)));
            }
        }
        Ok(visit)
    }

    /// Finds a path below the root. Errors with not found (3) where no layer has anything there.
    fn begin_at(&mut self, path: &Path) -> Result<Vec<Item>> {
        let mut visit = Some(self.root_visit()?);
        let mut lines = Vec::new();
        for part in path.components() {
            let name = match part {
                std::path::Component::Normal(name) => CString::new(name.as_bytes())?,
                std::path::Component::ParentDir => {
                    return Err(exit::usage(format!("{}: a path in an image has no '..'", path.display())));
                }
                _ => continue,
            };
            lines.clear();
            if let Some(above) = visit.take() {
                let dirs = self.open(&above)?;
                let all: Vec<usize> = (0..dirs.len()).collect();
                visit = self.name(&above.path, &name, &dirs, &all, &mut lines)?;
            }
            if lines.is_empty() && visit.is_none() {
                return Err(exit::not_found(format!("no layer has {}", path.display())));
            }
        }
        let mut items = Vec::new();
        items.extend(visit.filter(|visit| self.is_wanted(visit)).map(Item::Enter));
        items.push(Item::Print(lines));
        Ok(items)
    }

    fn open(&self, visit: &Visit) -> Result<Vec<Dir>> {
        let open = |&(layer, hidden): &(usize, Option<usize>)| {
            let lower = self.stack.height() - 1 - layer;
            let place = || self.stack.lower(lower).join(std::ffi::OsStr::from_bytes(&visit.path)).display().to_string();
            let fd = self.stack.open_dir_of(lower, &visit.path).with_context(place)?;
            let mark = layer::opaque(&fd, self.marks).with_context(place)?;
            Ok(Dir { layer, hidden, fd, mark })
        };
        visit.layers.iter().map(open).collect()
    }

    /// Whether something below a directory may be printed.
    fn is_wanted(&self, visit: &Visit) -> bool {
        visit.layers.iter().any(|(layer, _)| self.wanted[*layer])
    }

    /// All names in a directory, the last first; what is in a directory stands where its path with a slash does.
    fn directory(&mut self, path: &[u8], dirs: &[Dir]) -> Result<Vec<Item>> {
        let mut names: BTreeMap<CString, Vec<usize>> = BTreeMap::new();
        for (at, dir) in dirs.iter().enumerate() {
            let listed = names_in(&dir.fd, &mut self.listing).with_context(|| self.place(dir, path, c""))?;
            for (name, _) in listed {
                names.entry(name).or_default().push(at);
            }
        }
        let mut items: Vec<(Vec<u8>, Item)> = Vec::with_capacity(names.len());
        for (name, those) in names {
            let mut lines = Vec::new();
            if let Some(visit) = self.name(path, &name, dirs, &those, &mut lines)?
                && self.is_wanted(&visit)
            {
                items.push(([name.to_bytes(), b"/"].concat(), Item::Enter(visit)));
            }
            if !lines.is_empty() {
                items.push((name.into_bytes(), Item::Print(lines)));
            }
        }
        items.sort_by(|a, b| b.0.cmp(&a.0));
        Ok(items.into_iter().map(|(_, item)| item).collect())
    }

    /// What the layers have under a name, as lines to be printed, and the directory of it that is to be looked at.
    fn name(
        &mut self,
        path: &[u8],
        name: &CStr,
        dirs: &[Dir],
        those: &[usize],
        lines: &mut Vec<u8>,
    ) -> Result<Option<Visit>> {
        let mut all: Vec<Found> = Vec::with_capacity(those.len());
        for &dir in those {
            let place = || self.place(&dirs[dir], path, name);
            all.extend(self.look(&dirs[dir], dir, name, those.len() > 1).with_context(place)?);
        }
        let hidden: Vec<Option<usize>> = (0..all.len()).map(|at| hidden_by(&all, at, dirs)).collect();
        let full = join(path, name.to_bytes());
        let mut top: Option<usize> = None;
        for (at, found) in all.iter().enumerate() {
            let dir = &dirs[found.dir];
            // What was seen until this layer came.
            let below = top.map(|top| &all[top]).filter(|below| dirs[below.dir].hidden.is_none_or(|by| by > dir.layer));
            top = (!found.whiteout).then_some(at);
            if !self.wanted[dir.layer] {
                continue;
            }
            let done = self.change(name, dirs, below, found);
            let place = || self.place(dir, path, name);
            let (change, what) = done.with_context(place)?;
            let target = match found.kind {
                FileType::Symlink => Some(readlinkat(&dir.fd, name, Vec::new()).with_context(place)?.into_bytes()),
                _ => None,
            };
            let stat = (!found.whiteout).then_some(found.stat);
            let hidden = hidden[at].filter(|_| !found.whiteout);
            self.print(&full, &Row { layer: dir.layer, change, what, stat, target, hidden }, lines)?;
        }
        let directories = all.iter().zip(hidden).filter(|(found, _)| found.kind == FileType::Directory);
        let layers: Vec<_> = directories.map(|(found, hidden)| (dirs[found.dir].layer, hidden)).collect();
        Ok((!layers.is_empty()).then_some(Visit { path: full, layers }))
    }

    /// `merges`: others have the name as well, so that it matters whether it is opaque.
    fn look(&self, dir: &Dir, at: usize, name: &CStr, merges: bool) -> Result<Option<Found>> {
        let stat = match statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = layer::is_whiteout(&dir.fd, name.to_bytes(), &stat, dir.mark, self.marks)?;
        let opaque = merges && kind == FileType::Directory && {
            let fd = self.stack.open_at(dir.fd.as_fd(), name, OFlags::DIRECTORY)?;
            layer::is_opaque(&fd, self.marks)?
        };
        Ok(Some(Found { dir: at, stat, kind, whiteout, opaque }))
    }

    /// What a layer does to what the layers below it show; `None` where it has the same again.
    fn change(
        &mut self,
        name: &CStr,
        dirs: &[Dir],
        below: Option<&Found>,
        found: &Found,
    ) -> Result<(Option<Kind>, Vec<Aspect>)> {
        if found.whiteout {
            return Ok((Some(Kind::Deleted), Vec::new()));
        }
        let Some(below) = below else { return Ok((Some(Kind::Added), Vec::new())) };
        if below.kind != found.kind {
            return Ok((Some(Kind::Type), Vec::new()));
        }
        let (lower, own) = (dirs[below.dir].fd.as_fd(), dirs[found.dir].fd.as_fd());
        let what = match found.kind {
            FileType::Directory => {
                let (lower, own) = (Inode::Named(lower, name), Inode::Named(own, name));
                self.compare.directories(lower, &below.stat, own, &found.stat)?.0
            }
            _ => self
                .compare
                .entries(Entry { dir: lower, name, stat: &below.stat }, Entry { dir: own, name, stat: &found.stat })?,
        };
        Ok((change_of(found.opaque, &what), what))
    }

    fn print(&self, path: &[u8], row: &Row, lines: &mut Vec<u8>) -> Result<()> {
        if self.wanted[row.layer] { self.writer.line(path, row, lines) } else { Ok(()) }
    }

    fn place(&self, dir: &Dir, path: &[u8], name: &CStr) -> String {
        let lower = self.stack.lower(self.stack.height() - 1 - dir.layer);
        lower.join(std::ffi::OsStr::from_bytes(&join(path, name.to_bytes()))).display().to_string()
    }
}

fn change_of(opaque: bool, what: &[Aspect]) -> Option<Kind> {
    match (opaque, what) {
        (true, _) => Some(Kind::Opaque),
        (false, []) => None,
        (false, _) => Some(Kind::Modified),
    }
}

/// The lowest of the layers above that hides what a layer has.
fn hidden_by(all: &[Found], at: usize, dirs: &[Dir]) -> Option<usize> {
    let is_dir = |found: &Found| found.kind == FileType::Directory;
    let hides = |above: &&Found| !is_dir(above) || above.opaque || !is_dir(&all[at]);
    let here = all[at + 1..].iter().find(hides).map(|above| dirs[above.dir].layer);
    let by_parent = dirs[all[at].dir].hidden;
    [here, by_parent].into_iter().flatten().min()
}
