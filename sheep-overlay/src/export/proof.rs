//! The proof that a layer is right: it is read back, and laid over the lowers in thought. What that gives is compared with
//! what the overlay shows.
//!
//! Every entry of the layer must be as the overlay has it now: type, attributes, content, and which names are one file. So
//! what was changed while it was exported is found. Where the layer has nothing, the lowers must show the same as the
//! overlay, and where the overlay has nothing, the layer must hide what they have. That need only be looked at in the
//! directories of the upper: elsewhere the overlay shows the lowers' own files. (A copy is looked at as a whole.)
//!
//! Nothing of what made the layer is used here: neither the list of changes, nor the code that reads and writes entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat};

use super::merged::{Cursor, Merged, Part, Scope};
use super::reader::{Member, Reader};
use crate::diff::escaped;
use crate::doc::{Backend, Overlay};
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::paths::{above, inside, join, split};

/// The inode number of the empty directory that stands in a btrfs snapshot for a subvolume.
const EMPTY_SUBVOLUME: u64 = 2;

/// What a layer says of paths.
#[derive(Default)]
struct Says {
    entries: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    gone: BTreeSet<Vec<u8>>,
    /// A directory with another time: something in it was changed, which is the better thing to name.
    touched: Option<Vec<u8>>,
}

/// An inode of the view.
struct Seen<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    stat: Stat,
}

/// Errors, and names a path, where the layer in `archive` over the lowers is not what the overlay shows. No time in it
/// is later than `latest`.
pub fn prove(archive: &File, overlay: &Overlay, latest: Option<i64>) -> Result<()> {
    let merged = Merged::open(overlay, true)?;
    let mut from = archive;
    from.rewind()?;
    let mut reader = Reader::new(BufReader::with_capacity(256 << 10, from));
    let says = entries(&mut reader, &merged, latest)?;
    for path in &says.opaque {
        ensure!(says.entries.contains(path), "/{}: it hides what is below, and is no directory", escaped(path));
    }
    let mut looked_at = BTreeSet::new();
    for part in &merged.parts {
        directories(part, &says, overlay.backend, &mut looked_at)?;
    }
    if let Some(path) = says.opaque.iter().find(|path| !looked_at.contains(*path)) {
        bail!("/{}: the layer hides what is below, and the overlay does not", escaped(path));
    }
    match &says.touched {
        Some(path) => Err(changed(path, "times")),
        None => Ok(()),
    }
}

/// What is said of something that the layer has otherwise.
fn changed(path: &[u8], what: &str) -> anyhow::Error {
    anyhow::anyhow!("/{}: it was changed while the overlay was exported ({what}); export again", escaped(path))
}

/// Compares every entry of the archive with what the overlay shows.
fn entries(reader: &mut Reader<BufReader<&File>>, merged: &Merged, latest: Option<i64>) -> Result<Says> {
    let mut says = Says::default();
    let mut cursors: Vec<Cursor<'_>> = merged.parts.iter().map(|part| Cursor::new(&part.view)).collect();
    // Which path a file is in the archive under, and the other way round.
    let mut files: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut keys: BTreeMap<Vec<u8>, (u64, u64)> = BTreeMap::new();
    let mut buffers = (vec![0; 128 << 10], vec![0; 128 << 10]);
    while let Some(member) = reader.next()? {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let path = if member.name == b"." { Vec::new() } else { member.name.clone() };
        let shown = || format!("/{}", escaped(&path));
        let (dir, name) = split(&path);
        let bad = |name: &[u8]| matches!(name, b"." | b"..") || (name.is_empty() && !path.is_empty());
        ensure!(!path.split(|byte| *byte == b'/').any(bad), "{}: no name for a layer", shown());
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            ensure!(member.kind == b'0' && member.size == 0, "{}: no mark", shown());
            let fresh = match hidden {
                b".wh..opq" => says.opaque.insert(dir.to_vec()),
                hidden => says.gone.insert(join(dir, hidden)),
            };
            ensure!(fresh, "{}: twice in the layer", shown());
            continue;
        }
        ensure!(says.entries.insert(path.clone()), "{}: twice in the layer", shown());
        if let Some(first) = above(&path).find(|dir| !says.entries.contains(*dir)) {
            bail!("{}: it comes before its directory {}", shown(), escaped(first));
        }
        let (part, inside) = merged.part_of(&path)?;
        let (part, cursor) = (&merged.parts[part], &mut cursors[part]);
        let key = with(part, cursor, inside, |seen| {
            let Some(seen) = seen else { return Err(changed(&path, "it is gone")) };
            let key = (seen.stat.st_dev, seen.stat.st_ino);
            if member.kind == b'1' {
                ensure!(keys.get(&member.target) == Some(&key), changed(&path, "links"));
            } else if seen.stat.st_nlink > 1 && FileType::from_raw_mode(seen.stat.st_mode) != FileType::Directory {
                ensure!(!files.contains_key(&key), changed(&path, "links"));
            }
            match attributes(&member, &seen, latest).with_context(shown)? {
                Some("times") if member.kind == b'5' => {
                    says.touched.get_or_insert_with(|| path.clone());
                }
                Some(what) => return Err(changed(&path, what)),
                None => {}
            }
            if member.kind == b'0' && !content(reader.content(), &seen, &mut buffers).with_context(shown)? {
                return Err(changed(&path, "content"));
            }
            Ok(key)
        });
        let key = key?;
        files.entry(key).or_insert_with(|| path.clone());
        keys.insert(path, key);
    }
    for path in &says.gone {
        let (part, inside) = merged.part_of(path)?;
        let there = with(&merged.parts[part], &mut cursors[part], inside, |seen| Ok(seen.is_some()))?;
        ensure!(!there && !says.entries.contains(path), changed(path, "it is there again"));
    }
    Ok(says)
}

/// Shows what the view has at a path of a tree.
fn with<T>(
    part: &Part,
    cursor: &mut Cursor<'_>,
    path: &[u8],
    act: impl FnOnce(Option<Seen<'_>>) -> Result<T>,
) -> Result<T> {
    if path.is_empty() {
        let dir = cursor.dir(b"")?;
        let (Some(top), Some(stat)) = (dir.top(), dir.stat()) else { return act(None) };
        let stat = part.as_shown(*stat, part.is_changed(dir.lower_of(0)));
        return act(Some(Seen { dir: top, name: c".", stat }));
    }
    let name = CString::new(split(path).1).context("a name with a NUL")?;
    match cursor.entry(path)? {
        Some((dir, layer, stat)) => {
            let stat = part.as_shown(stat, part.is_changed(dir.lower_of(layer)));
            act(Some(Seen { dir: dir.layer(layer), name: &name, stat }))
        }
        None => act(None),
    }
}

/// In what a member differs from what is seen; its content is not looked at.
fn attributes(member: &Member, seen: &Seen<'_>, latest: Option<i64>) -> Result<Option<&'static str>> {
    let stat = &seen.stat;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let same_kind = match member.kind {
        b'0' => kind == FileType::RegularFile,
        b'1' => kind != FileType::Directory,
        b'2' => kind == FileType::Symlink,
        b'3' => kind == FileType::CharacterDevice,
        b'4' => kind == FileType::BlockDevice,
        b'5' => kind == FileType::Directory,
        b'6' => kind == FileType::Fifo,
        _ => false,
    };
    let mut time = (stat.st_mtime, stat.st_mtime_nsec as i64);
    if let Some(latest) = latest {
        time = time.min((latest, 0));
    }
    let device = if matches!(member.kind, b'3' | b'4') { (major(stat.st_rdev), minor(stat.st_rdev)) } else { (0, 0) };
    Ok(if !same_kind {
        Some("type")
    } else if member.mode != stat.st_mode & 0o7777 {
        Some("mode")
    } else if member.owner != (u64::from(stat.st_uid), u64::from(stat.st_gid)) {
        Some("owner")
    } else if member.time != time {
        Some("times")
    } else if member.kind == b'0' && member.size != stat.st_size as u64 {
        Some("size")
    } else if member.device != device {
        Some("device")
    } else if member.kind == b'2' && readlinkat(seen.dir, seen.name, Vec::new())?.as_bytes() != member.target {
        Some("target")
    } else if member.kind != b'1' && xattrs(seen.dir, seen.name)? != member.xattrs {
        Some("xattr")
    } else {
        None
    })
}

/// Whether a file has the content that is read.
fn content(mut from: impl Read, seen: &Seen<'_>, (left, right): &mut (Vec<u8>, Vec<u8>)) -> Result<bool> {
    let mut file = open(seen)?;
    loop {
        let count = read_full(&mut from, left)?;
        if count != read_full(&mut file, right)? || left[..count] != right[..count] {
            return Ok(false);
        }
        if count < left.len() {
            return Ok(true);
        }
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
    }
}

fn open(seen: &Seen<'_>) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(seen.dir, seen.name, flags | OFlags::NOATIME, Mode::empty());
    let file = file.or_else(|_| openat(seen.dir, seen.name, flags, Mode::empty()))?;
    ensure!(FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile, "no regular file any more");
    Ok(file.into())
}

fn read_full(from: &mut impl Read, into: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(filled)
}

fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let (mut names, mut value) = (Vec::new(), Vec::new());
    let inode = Inode::Named(dir, name);
    inode.list_xattrs(&mut names)?;
    for name in xattr_names(&names).filter(|name| !layer::is_bookkeeping(name.to_bytes())) {
        inode.get_xattr(name, &mut value)?;
        found.insert(name.to_bytes().to_vec(), value.clone());
    }
    Ok(found)
}

/// Looks at every directory of a tree in which something may have been changed: which names there are with the layer over the
/// lowers, and which the overlay shows.
fn directories(part: &Part, says: &Says, backend: Backend, looked_at: &mut BTreeSet<Vec<u8>>) -> Result<()> {
    let Some(lower) = &part.lower else { return Ok(()) };
    let (mut view, mut below) = (Cursor::new(&part.view), Cursor::new(lower));
    let mut dirs = Vec::new();
    part.walk(b"", Scope::Changed, &mut |found| {
        let is_dir = FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory;
        let left_out = backend == Backend::Btrfs && found.stat.st_ino == EMPTY_SUBVOLUME;
        if is_dir && !left_out {
            dirs.push(found.path.to_vec());
        }
        Ok(())
    })?;
    for path in dirs {
        directory(part, says, &path, &mut view, &mut below)?;
        looked_at.insert(path);
    }
    Ok(())
}

fn directory(part: &Part, says: &Says, path: &[u8], view: &mut Cursor<'_>, below: &mut Cursor<'_>) -> Result<()> {
    let Some(lower) = &part.lower else { return Ok(()) };
    let inside = inside(path, &part.prefix).unwrap_or(path);
    let is_hidden = says.opaque.contains(path)
        || above(path).any(|dir| says.opaque.contains(dir) || says.gone.contains(dir))
        || says.opaque.contains(&b""[..]);
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let (now, before) = (view.dir(inside)?, below.dir(inside)?);
    let mut left: BTreeMap<CString, usize> = BTreeMap::new();
    if !is_hidden {
        left.extend(lower.list(before, inside, &mut buffer)?.into_iter().map(|entry| (entry.name, entry.layer)));
    }
    for entry in part.view.list(now, inside, &mut buffer)? {
        let at = join(path, entry.name.to_bytes());
        let old = left.remove(&entry.name);
        // Its attributes and content were compared when it was read.
        if says.entries.contains(&at) {
            continue;
        }
        let Some(old) = old else { return Err(changed(&at, "it is new")) };
        ensure!(!says.gone.contains(&at), changed(&at, "it is there again"));
        if !part.is_changed(now.lower_of(entry.layer)) || entry.kind == FileType::Directory {
            // It is the lower's own, or is looked at by itself.
            continue;
        }
        let seen = |dir: BorrowedFd<'_>, changed: bool| -> Result<Stat> {
            let stat = statat(dir, &*entry.name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(part.as_shown(stat, changed))
        };
        let (old_dir, new_dir) = (before.layer(old), now.layer(entry.layer));
        let old = Seen { dir: old_dir, name: &entry.name, stat: seen(old_dir, false)? };
        let new = Seen { dir: new_dir, name: &entry.name, stat: seen(new_dir, true)? };
        if let Some(what) = difference(&old, &new, part.is_copy).with_context(|| format!("/{}", escaped(&at)))? {
            return Err(changed(&at, what));
        }
    }
    for (name, layer) in left {
        let at = join(path, name.to_bytes());
        let kind = FileType::from_raw_mode(statat(before.layer(layer), &*name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
        // Devices that an ordinary user cannot copy are no change.
        let left_out = part.is_copy && matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        ensure!(left_out || says.gone.contains(&at), changed(&at, "it is gone"));
    }
    if !says.entries.contains(path) {
        // It is in the upper, and as it was.
        let (Some(top), Some(stat)) = (now.top(), now.stat()) else { return Err(changed(path, "it is gone")) };
        let stat = part.as_shown(*stat, part.is_changed(now.lower_of(0)));
        let (Some(top_before), Some(before)) = (before.top(), before.stat()) else {
            return Err(changed(path, "it is new"));
        };
        let (old, new) = (
            Seen { dir: top_before, name: c".", stat: part.as_shown(*before, false) },
            Seen { dir: top, name: c".", stat },
        );
        if let Some(what) = difference(&old, &new, part.is_copy)? {
            return Err(changed(path, what));
        }
    }
    Ok(())
}

/// In what the overlay shows something else than the lowers, that is not in the layer. A copy may have lost owners and
/// attributes when it was made, and most of it was never looked at: there type, size and time must do.
fn difference(old: &Seen<'_>, new: &Seen<'_>, is_copy: bool) -> Result<Option<&'static str>> {
    let (before, now) = (&old.stat, &new.stat);
    let kind = FileType::from_raw_mode(now.st_mode);
    let is_dir = kind == FileType::Directory;
    if FileType::from_raw_mode(before.st_mode) != kind {
        return Ok(Some("type"));
    }
    let same_time = match is_copy {
        true => is_dir || before.st_mtime == now.st_mtime,
        false => (before.st_mtime, before.st_mtime_nsec) == (now.st_mtime, now.st_mtime_nsec),
    };
    if !same_time {
        return Ok(Some("times"));
    }
    if !is_dir && before.st_size != now.st_size {
        return Ok(Some("size"));
    }
    if is_copy {
        return Ok(None);
    }
    let key = |stat: &Stat| (stat.st_uid, stat.st_gid, stat.st_mode);
    if key(before) != key(now) {
        return Ok(Some("owner or mode"));
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) && before.st_rdev != now.st_rdev {
        return Ok(Some("device"));
    }
    if kind == FileType::Symlink
        && readlinkat(old.dir, old.name, Vec::new())? != readlinkat(new.dir, new.name, Vec::new())?
    {
        return Ok(Some("target"));
    }
    if xattrs(old.dir, old.name)? != xattrs(new.dir, new.name)? {
        return Ok(Some("xattr"));
    }
    let mut buffers = (vec![0; 128 << 10], vec![0; 128 << 10]);
    if kind == FileType::RegularFile && !content(open(old)?, new, &mut buffers)? {
        return Ok(Some("content"));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::CWD;

    use super::*;

    /// An overlay that was never mounted: its upper is made here. Gone with the value.
    struct Made(PathBuf, Overlay);

    impl Made {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("sheep-proof-{}", crate::state::new_id().unwrap()));
            for sub in ["low/d/sub", "low/e", "ov/upper/d", "ov/upper/e", "ov/work"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            let (low, upper) = (dir.join("low"), dir.join("ov/upper"));
            for file in ["a", "gone", "d/x", "d/same", "d/sub/y", "e/gone", "e/stays"] {
                fs::write(low.join(file), file).unwrap();
            }
            fs::write(upper.join("a"), "changed").unwrap();
            fs::hard_link(upper.join("a"), upper.join("b")).unwrap();
            symlink("a", upper.join("link")).unwrap();
            fs::write(upper.join("d/new"), vec![7; 1000]).unwrap();
            // As it was, where what was there is hidden.
            fs::write(upper.join("d/same"), "d/same").unwrap();
            for changed in ["", "e"] {
                fs::set_permissions(upper.join(changed), fs::Permissions::from_mode(0o700)).unwrap();
            }
            for whiteout in ["gone", "e/gone"] {
                layer::make_whiteout(CWD, upper.join(whiteout)).unwrap();
            }
            layer::set_opaque(File::open(upper.join("d")).unwrap()).unwrap();
            let mut overlay = Overlay::new("ov", &dir.join("ov"));
            overlay.lower = vec![low.into()];
            Made(dir, overlay)
        }

        fn prove(&self, layer: &[Vec<u8>]) -> Result<()> {
            let mut file = File::from(rustix::fs::memfd_create("layer", rustix::fs::MemfdFlags::CLOEXEC)?);
            layer.iter().try_for_each(|member| file.write_all(member))?;
            prove(&file, &self.1, None)
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The members of an archive with their attributes before them; the end is the last.
    fn members(tar: &[u8]) -> Vec<Vec<u8>> {
        let mut members = vec![Vec::new()];
        let mut rest = tar;
        while rest.len() > 1024 {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[124..135]).unwrap(), 8).unwrap();
            let whole = 512 + size.next_multiple_of(512);
            members.last_mut().unwrap().extend_from_slice(&rest[..whole]);
            if rest[156] != b'x' {
                members.push(Vec::new());
            }
            rest = &rest[whole..];
        }
        members.last_mut().unwrap().extend_from_slice(rest);
        members
    }

    /// Changes a digit in a member's own header to the next, and makes its checksum fit.
    fn with_another(member: &[u8], at: usize) -> Vec<u8> {
        let mut member = member.to_vec();
        let header = (0..member.len()).step_by(512).rfind(|at| &member[at + 257..at + 262] == b"ustar").unwrap();
        member[header + at] ^= 1;
        let block = &mut member[header..header + 512];
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        member
    }

    #[test]
    fn whatever_is_wrong_with_a_layer_is_found() {
        let made = Made::new();
        let mut tar = Vec::new();
        super::super::oci(&made.1, None, &mut tar).unwrap();
        let layer = members(&tar);
        made.prove(&layer).unwrap();
        assert_eq!(layer.len(), 11 + 1);
        let whole_minus = |without: usize| {
            let mut less = layer.clone();
            less.remove(without);
            made.prove(&less)
        };
        for member in 0..layer.len() {
            assert!(whole_minus(member).is_err(), "without {member}");
        }
        for (number, member) in layer[..layer.len() - 1].iter().enumerate() {
            // The last digits of mode, user, group and size, and the type.
            for at in [106, 114, 122, 134, 156] {
                let mut other = layer.clone();
                other[number] = with_another(member, at);
                // Nothing is said of the attributes of marks.
                let is_mark = member.windows(4).any(|name| name == b".wh.") && at < 134;
                assert!(is_mark || made.prove(&other).is_err(), "{number}: {at}");
            }
            let mut twice = layer.clone();
            twice.insert(number, member.clone());
            assert!(made.prove(&twice).is_err(), "{number} twice");
        }
    }

    #[test]
    fn what_is_changed_after_the_layer_was_made_is_found() {
        type Deed = (&'static str, fn(&std::path::Path));
        let deeds: [Deed; 8] = [
            ("content", |upper| fs::write(upper.join("a"), "Changed").unwrap()),
            ("mode", |upper| fs::set_permissions(upper.join("e"), fs::Permissions::from_mode(0o711)).unwrap()),
            ("it is new", |upper| fs::write(upper.join("d/later"), "").unwrap()),
            ("it is gone", |upper| fs::remove_file(upper.join("link")).unwrap()),
            ("links", |upper| {
                fs::remove_file(upper.join("b")).unwrap();
                fs::write(upper.join("b"), "changed").unwrap();
            }),
            ("it is there again", |upper| fs::remove_file(upper.join("e/gone")).unwrap()),
            ("it is gone", |upper| layer::make_whiteout(CWD, upper.join("e/stays")).unwrap()),
            ("xattr", |upper| {
                rustix::fs::setxattr(upper.join("d/new"), "user.x", b"", rustix::fs::XattrFlags::empty()).unwrap();
            }),
        ];
        for (want, deed) in deeds {
            let made = Made::new();
            let mut tar = Vec::new();
            super::super::oci(&made.1, None, &mut tar).unwrap();
            let before = fs::metadata(made.1.upper.join("a")).unwrap().modified().unwrap();
            deed(&made.1.upper);
            // All times as before: they are not what tells.
            File::options().write(true).open(made.1.upper.join("a")).unwrap().set_modified(before).unwrap();
            let error = format!("{:#}", made.prove(&members(&tar)).unwrap_err());
            assert!(error.contains(want), "{want}: {error}");
        }
    }
}
