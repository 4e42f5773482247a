//! `diff --patch`: the changes as a patch in git's extended format (git-diff(1), "Generating patch text with -p"), which
//! `git apply` and, for plain text, patch(1) take.
//!
//! git knows text files, whether they are executable, and symbolic links. What else there is to a change is named in lines
//! before the patch, which both programs pass over.

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use imara_diff::{Algorithm, Diff, InternedInput, sources::byte_lines};
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;

use super::{Aspect, Change, Depth, Kind, changes_between, layers_at, show};
use crate::carry::open_file;
use crate::doc::{How, Mount, Overlay, write_out};
use crate::history::Span;
use crate::layer::Marks;
use crate::paths::{bare, inside, join, split};
use crate::shown::{Entry, Shown};
use crate::stack::{Dir, Stack};
use crate::trees::{self, Tree};
use crate::{PROGRAM, exit, record};

/// What is larger is not shown line by line.
const MUCH: u64 = 16 << 20;
/// How many lines around a change are shown.
const CONTEXT: u32 = 3;

/// One side of a change, as git sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    /// Nothing is there, or nothing that git knows.
    Nothing,
    /// A file: whether it is executable, and its content.
    File(bool, Vec<u8>),
    /// A symbolic link.
    Link(Vec<u8>),
    /// A file that is no text, or too much of it.
    Binary,
}

impl Side {
    fn mode(&self) -> &'static str {
        match self {
            Side::File(true, _) => "100755",
            Side::Link(_) => "120000",
            _ => "100644",
        }
    }

    fn content(&self) -> &[u8] {
        match self {
            Side::File(_, content) | Side::Link(content) => content,
            Side::Nothing | Side::Binary => &[],
        }
    }
}

/// A writable tree, opened for looking at both sides.
struct Sides<'a> {
    tree: Tree,
    /// What was before.
    stack: Stack,
    /// What is now.
    shown: &'a Shown,
}

/// Prints the patch that makes all changes of an overlay.
pub fn run(overlay: &Overlay) -> Result<()> {
    between(overlay, Span::WHOLE)
}

/// Prints the patch from one state of an overlay to another; how much of the changes it cannot carry is said on stderr, once.
pub fn between(overlay: &Overlay, span: Span) -> Result<()> {
    let mut notes = Vec::new();
    let mut patch = Vec::new();
    let made = record::dir_of(overlay).join("merged");
    let mut open: Vec<Sides> = Vec::new();
    let changes = changes_between(overlay, span, Depth::Everything)?;
    let shown = if span == Span::WHOLE { Shown::open(overlay)? } else { Shown::open_at(overlay, span.to)? };
    let before = layers_at(overlay, span.from)?;
    for (number, change) in changes.iter().enumerate() {
        // Sorted by bytes, what is in a directory comes after it, with only such names between as begin with the directory's.
        let name = change.path.as_os_str().as_bytes();
        let mut after =
            changes[number + 1..].iter().take_while(|next| next.path.as_os_str().as_bytes().starts_with(name));
        let is_filled = after.any(|next| next.path.starts_with(&change.path));
        let path = bare(&change.path);
        let is_change = |mount: &&Mount| mount.how == How::File && mount.path.0 == change.path;
        if overlay.mounts.iter().any(|mount| is_change(&mount)) {
            notes.push(format!(
                "a file that is mounted on another: {}",
                show::escaped(change.path.as_os_str().as_bytes())
            ));
            continue;
        }
        let (place, tree) = tree_of(overlay, &path);
        if !open.iter().any(|sides| sides.tree == tree) {
            let hidden = made.parent().filter(|_| before[place].is_empty());
            let stack = Stack::open(&[&tree.lowers[..], &before[place]].concat(), Marks::of(overlay), hidden)?;
            open.push(Sides { tree: tree.clone(), stack, shown: &shown });
        }
        let Some(sides) = open.iter().find(|sides| sides.tree == tree) else { continue };
        one(sides, change, is_filled, &path, &mut patch, &mut notes)
            .with_context(|| change.path.display().to_string())?;
    }
    let mut out: Vec<u8> = notes.iter().flat_map(|note| format!("# {note}\n").into_bytes()).collect();
    out.extend(patch);
    write_out(&out)?;
    if !notes.is_empty() {
        exit::warn(PROGRAM, &format!("diff: {} changes that a patch cannot carry are named at its top", notes.len()));
    }
    Ok(())
}

/// The tree that a path is in, and its place among the trees.
fn tree_of(overlay: &Overlay, path: &[u8]) -> (usize, Tree) {
    let mut trees = trees::of(overlay);
    let inside = |tree: &Tree| {
        Path::new(OsStr::from_bytes(path)).starts_with(OsStr::from_bytes(&tree.prefix)) || tree.prefix.is_empty()
    };
    let last = trees.iter().rposition(inside).unwrap_or(0);
    (last, trees.swap_remove(last))
}

fn one(
    sides: &Sides<'_>,
    change: &Change,
    is_filled: bool,
    path: &[u8],
    patch: &mut Vec<u8>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let shown = || show::escaped(change.path.as_os_str().as_bytes());
    let from = change.from.as_deref().map_or_else(|| path.to_vec(), bare);
    if change.kind == Kind::Opaque {
        return Ok(());
    }
    let lost: Vec<&str> = change
        .what
        .iter()
        .filter(|aspect| matches!(aspect, Aspect::Owner | Aspect::Xattr | Aspect::Acl | Aspect::Device))
        .map(|aspect| aspect.name())
        .collect();
    if !lost.is_empty() {
        notes.push(format!("{} changed: {}", lost.join(", "), shown()));
    }
    let (mut old, mut new) = (Side::Nothing, Side::Nothing);
    if change.kind != Kind::Added {
        let (parent, name) = sides.below(&from)?;
        let found = match &parent {
            Some(parent) => sides.stack.lookup(parent, &name, sides.inside(&from))?,
            None => None,
        };
        match (found, &parent) {
            (Some((_, stat)), Some(parent)) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                // Each file in it is one that is deleted.
                let dir = sides.stack.child(parent, &name, sides.inside(&from))?;
                sides.deleted(&dir, &from, patch, notes)?;
            }
            (Some((layer, stat)), Some(parent)) => old = sides.read(parent.layer(layer), &name, &stat)?,
            _ => {}
        }
    }
    if change.kind != Kind::Deleted {
        let Entry { dir, name, stat } = sides.shown.must(path)?;
        new = sides.read(dir.as_fd(), &name, &stat)?;
        if let (Side::Nothing, kind) = (&new, FileType::from_raw_mode(stat.st_mode)) {
            match kind {
                FileType::Directory if change.kind == Kind::Modified => {}
                // One that something is added in comes with it.
                FileType::Directory if is_filled => {}
                FileType::Directory => notes.push(format!("a directory: {}", shown())),
                _ => notes.push(format!("a special file: {}", shown())),
            }
        }
    }
    if old == Side::Binary || new == Side::Binary {
        notes.push(format!("no text, or too much: {}", shown()));
        return Ok(());
    }
    write(&old, &new, &from, path, patch);
    Ok(())
}

/// Whether content is that of a text, as git tells it from a binary file.
pub(crate) fn is_text(content: &[u8]) -> bool {
    !content.iter().take(8000).any(|byte| *byte == 0)
}

impl Sides<'_> {
    /// A path from the merged directory on as one from this tree's root on.
    fn inside<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        inside(path, &self.tree.prefix).unwrap_or(path)
    }

    fn split<'a>(&self, path: &'a [u8]) -> Result<(&'a [u8], CString)> {
        let (dir, name) = split(self.inside(path));
        let name = if name.is_empty() { b"." } else { name };
        Ok((dir, CString::new(name).context("a name with a NUL")?))
    }

    /// The directory of a path as it was; `None` where there was none.
    fn below(&self, path: &[u8]) -> Result<(Option<Dir>, CString)> {
        let (parent, name) = self.split(path)?;
        let dir = self.stack.find(parent)?;
        Ok((dir.stat().is_some().then_some(dir), name))
    }

    fn read(&self, dir: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<Side> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Ok(Side::Link(readlinkat(dir, name, Vec::new())?.into_bytes())),
            FileType::RegularFile if stat.st_size as u64 > MUCH => Ok(Side::Binary),
            FileType::RegularFile => {
                let file = std::fs::File::from(open_file(dir, name, stat)?);
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut std::io::Read::take(file, MUCH + 1), &mut content)?;
                if content.len() as u64 > MUCH || !is_text(&content) {
                    return Ok(Side::Binary);
                }
                Ok(Side::File(stat.st_mode & 0o100 != 0, content))
            }
            _ => Ok(Side::Nothing),
        }
    }

    /// All files below a directory of the lowers, as deleted.
    fn deleted(&self, dir: &Dir, path: &[u8], patch: &mut Vec<u8>, notes: &mut Vec<String>) -> Result<()> {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let inside = self.inside(path);
        let mut entries = self.stack.list(dir, inside, &mut buffer)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let full = join(path, entry.name.to_bytes());
            if entry.kind == FileType::Directory {
                let child = self.stack.child(dir, &entry.name, inside)?;
                self.deleted(&child, &full, patch, notes)?;
                continue;
            }
            let from = dir.layer(entry.layer);
            let stat = match statat(from, &*entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            match self.read(from, &entry.name, &stat)? {
                Side::Nothing => notes.push(format!("a special file deleted: /{}", show::escaped(&full))),
                Side::Binary => notes.push(format!("no text, or too much, and deleted: /{}", show::escaped(&full))),
                old => write(&old, &Side::Nothing, &full, &full, patch),
            }
        }
        Ok(())
    }
}

/// The patch of one path. A change of type is the end of the one and the beginning of the other.
fn write(old: &Side, new: &Side, from: &[u8], path: &[u8], patch: &mut Vec<u8>) {
    let typed = |side: &Side| matches!(side, Side::Link(_));
    if *old != Side::Nothing && *new != Side::Nothing && typed(old) != typed(new) {
        write(old, &Side::Nothing, from, from, patch);
        write(&Side::Nothing, new, path, path, patch);
        return;
    }
    let renamed = from != path;
    if old == new && !renamed {
        return;
    }
    let line = |patch: &mut Vec<u8>, parts: &[&[u8]]| {
        parts.iter().for_each(|part| patch.extend_from_slice(part));
        patch.push(b'\n');
    };
    let (a, b) = (quoted(b"a/", from), quoted(b"b/", path));
    line(patch, &[b"diff --git ", &a, b" ", &b]);
    match (old, new) {
        (Side::Nothing, new) => line(patch, &[b"new file mode ", new.mode().as_bytes()]),
        (old, Side::Nothing) => line(patch, &[b"deleted file mode ", old.mode().as_bytes()]),
        (old, new) if old.mode() != new.mode() => {
            line(patch, &[b"old mode ", old.mode().as_bytes()]);
            line(patch, &[b"new mode ", new.mode().as_bytes()]);
        }
        _ => {}
    }
    if renamed {
        line(patch, &[b"similarity index 100%"]);
        line(patch, &[b"rename from ", &quoted(b"", from)]);
        line(patch, &[b"rename to ", &quoted(b"", path)]);
    }
    if old.content() == new.content() {
        return;
    }
    // A name with a space is ended by a tab, or what follows might be taken for a date.
    let end = |name: &[u8]| if name.contains(&b' ') { &b"\t"[..] } else { b"" };
    let none = &b"/dev/null"[..];
    line(patch, &if *old == Side::Nothing { [b"--- ", none, b""] } else { [b"--- ", &a, end(&a)] });
    line(patch, &if *new == Side::Nothing { [b"+++ ", none, b""] } else { [b"+++ ", &b, end(&b)] });
    hunks(old.content(), new.content(), patch);
}

/// A name as git writes it: in double quotes and with escapes where it has control characters, quotes, backslashes, or bytes
/// that are not ASCII.
fn quoted(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) && !b"\"\\".contains(byte);
    let mut text = prefix.to_vec();
    if name.iter().all(plain) {
        text.extend_from_slice(name);
        return text;
    }
    text.insert(0, b'"');
    for byte in name {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', *byte]),
            b'\n' => text.extend(b"\\n"),
            b'\t' => text.extend(b"\\t"),
            byte if plain(byte) => text.push(*byte),
            byte => text.extend(format!("\\{byte:03o}").into_bytes()),
        }
    }
    text.push(b'"');
    text
}

/// The lines that differ, with some around them.
fn hunks(old: &[u8], new: &[u8], patch: &mut Vec<u8>) {
    Hunks::of(old, new).0.iter().for_each(|hunk| patch.extend_from_slice(&hunk.text));
}

/// The hunks that make one text of another.
pub(crate) struct Hunks(pub(crate) Vec<Hunk>);

/// Lines that differ, near each other.
pub(crate) struct Hunk {
    /// As a patch has them, with some lines around.
    pub(crate) text: Vec<u8>,
    /// Which bytes of the old text give way to which of the new.
    changes: Vec<(Range<usize>, Range<usize>)>,
}

impl Hunks {
    /// Those of two texts.
    pub(crate) fn of(old: &[u8], new: &[u8]) -> Self {
        let input = InternedInput::new(byte_lines(old), byte_lines(new));
        let mut diff = Diff::compute(Algorithm::Histogram, &input);
        diff.postprocess_lines(&input);
        let (length, new_length) = (input.before.len() as u32, input.after.len() as u32);
        let changes: Vec<(Range<u32>, Range<u32>)> = diff.hunks().map(|hunk| (hunk.before, hunk.after)).collect();
        let (starts, new_starts) = (starts_of_lines(old), starts_of_lines(new));
        let bytes = |starts: &[usize], lines: &Range<u32>| starts[lines.start as usize]..starts[lines.end as usize];
        let mut hunks = Vec::new();
        let mut rest = &changes[..];
        while let [first, ..] = rest {
            // Changes whose surroundings meet are one hunk.
            let together =
                1 + rest.windows(2).take_while(|pair| pair[1].0.start - pair[0].0.end <= 2 * CONTEXT).count();
            let (group, after) = rest.split_at(together);
            rest = after;
            let last = &group[group.len() - 1];
            let (start, new_start) =
                (first.0.start.saturating_sub(CONTEXT), first.1.start - first.0.start.min(CONTEXT));
            let end = (last.0.end + CONTEXT).min(length);
            let new_end = (last.1.end + (end - last.0.end)).min(new_length);
            let range = |start: u32, end: u32| match end - start {
                0 => format!("{start},0"),
                1 => format!("{}", start + 1),
                count => format!("{},{count}", start + 1),
            };
            let mut patch = format!("@@ -{} +{} @@\n", range(start, end), range(new_start, new_end)).into_bytes();
            let mut at = start;
            for (before, after) in group {
                (at..before.start).for_each(|line| text(&mut patch, b' ', input.interner[input.before[line as usize]]));
                before.clone().for_each(|line| text(&mut patch, b'-', input.interner[input.before[line as usize]]));
                after.clone().for_each(|line| text(&mut patch, b'+', input.interner[input.after[line as usize]]));
                at = before.end;
            }
            (at..end).for_each(|line| text(&mut patch, b' ', input.interner[input.before[line as usize]]));
            let changes =
                group.iter().map(|(before, after)| (bytes(&starts, before), bytes(&new_starts, after))).collect();
            hunks.push(Hunk { text: patch, changes });
        }
        Hunks(hunks)
    }

    /// The old text with only some of the hunks made.
    pub(crate) fn some(&self, old: &[u8], new: &[u8], chosen: &[bool]) -> Vec<u8> {
        let mut text = Vec::with_capacity(old.len());
        let mut at = 0;
        let made = self.0.iter().zip(chosen).filter(|(_, chosen)| **chosen).flat_map(|(hunk, _)| &hunk.changes);
        for (before, after) in made {
            text.extend_from_slice(&old[at..before.start]);
            text.extend_from_slice(&new[after.clone()]);
            at = before.end;
        }
        text.extend_from_slice(&old[at..]);
        text
    }
}

/// Where each line begins; the end of the text besides.
fn starts_of_lines(text: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let ends = text.split_inclusive(|byte| *byte == b'\n').map(|line| {
        at += line.len();
        at
    });
    std::iter::once(0).chain(ends).collect()
}

fn text(patch: &mut Vec<u8>, sign: u8, line: &[u8]) {
    patch.push(sign);
    patch.extend_from_slice(line);
    if line.last() != Some(&b'\n') {
        patch.extend_from_slice(b"\n\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch_of(old: &str, new: &str) -> String {
        let mut patch = Vec::new();
        hunks(old.as_bytes(), new.as_bytes(), &mut patch);
        String::from_utf8(patch).unwrap()
    }

    #[test]
    fn hunks_as_diff1_has_them() {
        let numbers = |range: Range<u32>| range.map(|n| format!("{n}\n")).collect::<String>();
        let table = [
            ("a\n".to_owned(), "b\n".to_owned(), "@@ -1 +1 @@\n-a\n+b\n".to_owned()),
            (String::new(), "a\nb\n".to_owned(), "@@ -0,0 +1,2 @@\n+a\n+b\n".to_owned()),
            ("a".to_owned(), String::new(), "@@ -1 +0,0 @@\n-a\n\\ No newline at end of file\n".to_owned()),
            ("a\n".to_owned(), "a".to_owned(), "@@ -1 +1 @@\n-a\n+a\n\\ No newline at end of file\n".to_owned()),
            (
                numbers(1..20),
                format!("{}X\n{}", numbers(1..10), numbers(11..20)),
                "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+X\n 11\n 12\n 13\n".to_owned(),
            ),
            (
                numbers(1..30),
                format!("0\n{}{}", numbers(1..29), ""),
                "@@ -1,3 +1,4 @@\n+0\n 1\n 2\n 3\n@@ -26,4 +27,3 @@\n 26\n 27\n 28\n-29\n".to_owned(),
            ),
        ];
        for (old, new, want) in table {
            assert_eq!(patch_of(&old, &new), want);
        }
    }

    #[test]
    fn some_hunks_alone() {
        let lines = |range: Range<u32>| range.map(|n| format!("{n}\n")).collect::<String>();
        let (old, new) = (lines(1..40), format!("0\n{}X\n{}", lines(1..20), lines(21..39)));
        let hunks = Hunks::of(old.as_bytes(), new.as_bytes());
        assert_eq!(hunks.0.len(), 3);
        let some = |chosen: [bool; 3]| String::from_utf8(hunks.some(old.as_bytes(), new.as_bytes(), &chosen)).unwrap();
        assert_eq!(some([false; 3]), old);
        assert_eq!(some([true; 3]), new);
        assert_eq!(some([false, true, false]), format!("{}X\n{}", lines(1..20), lines(21..40)));
        assert_eq!(some([true, false, true]), format!("0\n{}", lines(1..39)));
    }

    #[test]
    fn names_as_git_quotes_them() {
        let table: [(&[u8], &str); 4] = [
            (b"plain name", "a/plain name"),
            (b"tab\t", "\"a/tab\\t\""),
            (b"q\"\\", "\"a/q\\\"\\\\\""),
            (b"\xff", "\"a/\\377\""),
        ];
        for (name, want) in table {
            assert_eq!(String::from_utf8(quoted(b"a/", name)).unwrap(), want);
        }
    }
}
