//! Members of an archive made into files beneath a directory descriptor.
//!
//! Every call names one entry of an open directory and follows no link. A file costs four system calls: open, write, utimens,
//! close; and a chown and a chmod where making it does not give it the owner and the mode that it is to have. Directories get
//! theirs, and their times, when everything is in them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use sheep_overlay::layer;

use super::archive::{Archive, Kind, Member, shown};
use super::directories::{Attributes, Directories};
use super::resolve;
use crate::cli::LimitArgs;
use crate::scratch;

/// The marks of OCI layers (image specification, layer.md): "this is deleted", "all that was here is deleted", and the
/// rest of what AUFS wrote, which means nothing here.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// Open parent directories that are kept for the next members.
const CACHE_MAX: usize = 256;

/// What could not be kept of an archive, by count. All zero as root on a common file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Entries whose owner is another than the archive says.
    pub owners: u64,
    /// Devices that were not made.
    pub devices: u64,
    /// Extended attributes that were not set.
    pub xattrs: u64,
}

impl std::ops::AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.devices += other.devices;
        self.xattrs += other.xattrs;
    }
}

/// Reads the archive to its end, makes all its members beneath `root`, and gives back what could not be kept, and the
/// directories that it made without being told to, sorted; the root among them is the empty path.
pub fn extract<R: BufRead>(
    archive: &mut Archive<R>,
    root: BorrowedFd<'_>,
    limits: LimitArgs,
) -> Result<(LeftOut, Vec<Vec<u8>>)> {
    let umask = Umask::none();
    let mut extraction = Extraction {
        root,
        limits,
        entries: 0,
        bytes: 0,
        parents: HashMap::new(),
        directories: Directories::default(),
        late_links: Vec::new(),
        left_out: LeftOut::default(),
        uid: rustix::process::geteuid(),
        gid: rustix::process::getegid(),
        born_plain: born_plain(root, &umask)?,
    };
    // An archive need not say anything of its root.
    extraction.directories.insert(Vec::new(), Attributes::of_implied_directory())?;
    while let Some(member) = archive.next_member()? {
        extraction.member(archive, &member).with_context(|| format!("member {}", shown(&member.name)))?;
    }
    let implied = extraction.finish()?;
    Ok((extraction.left_out, implied))
}

struct Extraction<'a> {
    root: BorrowedFd<'a>,
    limits: LimitArgs,
    entries: u64,
    bytes: u64,
    /// By the path as members name it.
    parents: HashMap<Vec<u8>, Rc<Parent>>,
    directories: Directories,
    /// Name and target of hard links whose target was not there yet.
    late_links: Vec<(Vec<u8>, Vec<u8>)>,
    left_out: LeftOut,
    uid: Uid,
    gid: Gid,
    /// See [`born_plain`].
    born_plain: bool,
}

struct Parent {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// Whether a new entry has the owner and group of this process and the mode that is asked for: no directory gives it its own
/// group or an access control list, and no mask takes permissions away. As it is for the root, so it is for all below it while
/// the archive is unpacked: directories get their modes at the end.
fn born_plain(root: BorrowedFd<'_>, umask: &Umask) -> Result<bool> {
    let stat = rustix::fs::fstat(root).context("the layer's directory")?;
    let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let list = rustix::fs::fgetxattr(root, "system.posix_acl_default", &mut [0; 0]);
    let no_list = matches!(list, Err(Errno::NODATA | Errno::OPNOTSUPP));
    Ok(umask.0.is_some() && (stat.st_uid, stat.st_gid) == ours && stat.st_mode & 0o2000 == 0 && no_list)
}

/// No mask for what this thread makes, as long as this lives; holds the one that it had.
struct Umask(Option<Mode>);

impl Umask {
    /// The mask belongs to all threads, which this one leaves first. Where that is refused (by a seccomp filter, say) it stays as
    /// it is, and modes are set one by one.
    fn none() -> Self {
        Umask(unshare(CloneFlags::CLONE_FS).ok().map(|()| rustix::process::umask(Mode::empty())))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            rustix::process::umask(before);
        }
    }
}

/// Where attributes go: an open file or directory, or an entry that cannot be opened.
enum Target<'a> {
    /// Made with the mode that it is to have, but for the bits that an owner or a write may take away.
    New(BorrowedFd<'a>),
    Open(BorrowedFd<'a>),
    Entry(BorrowedFd<'a>, &'a OsStr, Kind),
}

impl Extraction<'_> {
    fn member<R: BufRead>(&mut self, archive: &mut Archive<R>, member: &Member) -> Result<()> {
        self.count_entry()?;
        let path = resolve::clean(&member.name)?;
        if path.is_empty() {
            if member.kind != Kind::Directory {
                bail!("the root can only be a directory");
            }
            return self.directories.insert(path, Attributes::of(member));
        }
        let (dir, name) = resolve::split(&path);
        if name.starts_with(WHITEOUT) {
            // A mark is of what the layers below have in a directory of this name. Where this layer has something else in the
            // directory's place, that hides it all; umoci lists it nevertheless, one by one. Followed, a link would lead the
            // marks to where they are not meant.
            match resolve::open_plain(self.root, dir, OFlags::PATH) {
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(()),
                _ => {
                    let parent = self.parent(dir)?;
                    return self.whiteout(&parent, name);
                }
            }
        }
        let parent = self.parent(dir)?;
        let place = joined(&parent.path, name);
        let depth = place.iter().filter(|&&b| b == b'/').count() + 1;
        if depth > self.limits.max_depth as usize {
            bail!("it is {depth} deep; more than {} is refused (--max-depth)", self.limits.max_depth);
        }
        let entry = OsStr::from_bytes(name);
        match member.kind {
            Kind::File => self.file(archive, member, &parent, entry, &place),
            Kind::Directory => self.directory(member, &parent, entry, place),
            Kind::HardLink => match self.hard_link(&member.link, &parent, entry, &place)? {
                true => Ok(()),
                // What it links to may come later.
                false => {
                    let (name, link) = (member.name.clone(), member.link.clone());
                    self.directories.keep(size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + link.len())?;
                    self.late_links.push((name, link));
                    Ok(())
                }
            },
            Kind::Symlink => {
                let target = OsStr::from_bytes(&member.link);
                self.make(&parent, entry, &place, || rustix::fs::symlinkat(target, &parent.fd, entry))?;
                self.set(Target::Entry(parent.fd.as_fd(), entry, member.kind), &Attributes::of(member))
            }
            Kind::CharDevice => self.node(member, &parent, entry, &place, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(member, &parent, entry, &place, FileType::BlockDevice),
            Kind::Fifo => self.node(member, &parent, entry, &place, FileType::Fifo),
        }
    }

    fn count_entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            bail!("the archive has more than {} entries (--max-entries)", self.limits.max_entries);
        }
        Ok(())
    }

    /// The directory in which a member goes, made where it is missing.
    fn parent(&mut self, dir: &[u8]) -> Result<Rc<Parent>> {
        if let Some(parent) = self.parents.get(dir) {
            return Ok(Rc::clone(parent));
        }
        let found = resolve::open_dir(self.root, dir, true)?;
        for made in found.made {
            // One name can make a thousand.
            self.count_entry()?;
            self.directories.insert(made, Attributes::of_implied_directory())?;
        }
        if self.parents.len() >= CACHE_MAX {
            self.parents.clear();
        }
        let parent = Rc::new(Parent { fd: found.fd, path: found.path });
        self.parents.insert(dir.to_vec(), Rc::clone(&parent));
        Ok(parent)
    }

    /// Runs `act`, which makes the entry. What has the name already goes: the last member of a name holds.
    fn make<T>(
        &mut self,
        parent: &Parent,
        name: &OsStr,
        place: &[u8],
        act: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match act() {
            Err(Errno::EXIST) => (),
            other => return other.context("make it"),
        }
        self.clear(parent, name, place)?;
        act().context("make it")
    }

    /// Deletes what is at `place`.
    fn clear(&mut self, parent: &Parent, name: &OsStr, place: &[u8]) -> Result<()> {
        scratch::delete_entry(parent.fd.as_fd(), name.as_bytes()).context("replace what has its name")?;
        // It may have been a directory, or a link on the way to one.
        self.parents.clear();
        self.directories.remove(place);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        member: &Member,
        parent: &Parent,
        name: &OsStr,
        place: &[u8],
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        let file = self.make(parent, name, place, || rustix::fs::openat(&parent.fd, name, flags, mode))?;
        let mut end = 0;
        for &(at, length) in &member.regions {
            self.bytes = self.bytes.saturating_add(length);
            if self.bytes > self.limits.max_bytes {
                bail!("the archive has more than {} bytes of content (--max-bytes)", self.limits.max_bytes);
            }
            // An empty region only says where the file ends; that is set below.
            if length > 0 {
                end = at;
            }
            while length > 0 && end < at + length {
                let piece = archive.content(at + length - end)?;
                let written = match rustix::io::pwrite(&file, piece, end) {
                    Err(Errno::INTR) => 0,
                    other => other.context("write")?,
                };
                archive.consume(written);
                end += written as u64;
            }
        }
        if end != member.size {
            rustix::fs::ftruncate(&file, member.size).context("set its size")?;
        }
        self.set(Target::New(file.as_fd()), &Attributes::of(member))
    }

    fn directory(&mut self, member: &Member, parent: &Parent, name: &OsStr, place: Vec<u8>) -> Result<()> {
        match rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU) {
            Ok(()) => (),
            Err(Errno::EXIST) => {
                let there = stat(&parent.fd, name)?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    self.clear(parent, name, &place)?;
                    rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU).context("make it")?;
                    if layer::is_device_whiteout(&there) {
                        // Deleted and made anew: nothing of the directory below is to be seen in it.
                        self.set_opaque(&place)?;
                    }
                }
            }
            Err(e) => return Err(e).context("make it"),
        }
        self.directories.insert(place, Attributes::of(member))
    }

    /// Makes a hard link; `false` where what it links to is not there.
    fn hard_link(&mut self, target: &[u8], parent: &Parent, name: &OsStr, place: &[u8]) -> Result<bool> {
        let context = || format!("hard link to {}", shown(target));
        let target = resolve::clean(target).with_context(context)?;
        if target.is_empty() {
            bail!("hard link to the root");
        }
        let (dir, target_name) = resolve::split(&target);
        let target_parent = match self.parents.get(dir) {
            Some(known) => Rc::clone(known),
            None => match resolve::open_dir(self.root, dir, false) {
                Ok(found) => Rc::new(Parent { fd: found.fd, path: found.path }),
                Err(e) if e.chain().any(|cause| cause.downcast_ref() == Some(&Errno::NOENT)) => return Ok(false),
                Err(e) => return Err(e).with_context(context),
            },
        };
        if joined(&target_parent.path, target_name) == place {
            // A link to itself would delete what it links to first.
            return match stat(&parent.fd, name) {
                Ok(_) => Ok(true),
                Err(e) => Err(e).with_context(context),
            };
        }
        let target_name = OsStr::from_bytes(target_name);
        // No AT_SYMLINK_FOLLOW: a link to a symbolic link is another name of that link, wherever it points.
        let link = || rustix::fs::linkat(&target_parent.fd, target_name, &parent.fd, name, AtFlags::empty());
        match link() {
            Ok(()) => return Ok(true),
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::EXIST) => (),
            Err(e) => return Err(e).with_context(context),
        }
        // The name is taken. Look whether there is something to link to before that goes.
        match stat(&target_parent.fd, target_name) {
            Ok(_) => (),
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e).with_context(context),
        }
        self.clear(parent, name, place)?;
        link().with_context(context)?;
        Ok(true)
    }

    fn node(&mut self, member: &Member, parent: &Parent, name: &OsStr, place: &[u8], kind: FileType) -> Result<()> {
        let device = rustix::fs::makedev(member.device.0, member.device.1);
        let made = self
            .make(parent, name, place, || rustix::fs::mknodat(&parent.fd, name, kind, Mode::RUSR | Mode::WUSR, device));
        match made {
            Ok(()) => self.set(Target::Entry(parent.fd.as_fd(), name, member.kind), &Attributes::of(member)),
            Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::PERM) => {
                self.left_out.devices += 1;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn whiteout(&mut self, parent: &Parent, name: &[u8]) -> Result<()> {
        if name == OPAQUE {
            return self.set_opaque(&parent.path);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            bail!("it would delete {}, which is no name", shown(hidden));
        }
        match layer::make_whiteout(&parent.fd, OsStr::from_bytes(hidden)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // A mark concerns the layers below. What this layer itself has of that name stays, and hides them.
                let there = stat(&parent.fd, OsStr::from_bytes(hidden))?;
                if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                    self.set_opaque(&joined(&parent.path, hidden))?;
                }
                Ok(())
            }
            Err(e) => Err(e).context("make the whiteout"),
        }
    }

    fn set_opaque(&self, directory: &[u8]) -> Result<()> {
        let fd = resolve::open_plain(self.root, directory, OFlags::RDONLY).context("open it to mark it opaque")?;
        layer::set_opaque(&fd).context("mark it opaque")
    }

    /// Links whose target came after them, then the directories, deepest first.
    fn finish(&mut self) -> Result<Vec<Vec<u8>>> {
        for (name, link) in std::mem::take(&mut self.late_links) {
            let context = || format!("member {}", shown(&name));
            let path = resolve::clean(&name).with_context(context)?;
            let (dir, entry) = resolve::split(&path);
            let parent = self.parent(dir).with_context(context)?;
            let place = joined(&parent.path, entry);
            if !self.hard_link(&link, &parent, OsStr::from_bytes(entry), &place).with_context(context)? {
                bail!("member {}: hard link to {}, which the archive does not have", shown(&name), shown(&link));
            }
        }
        self.parents.clear();
        let directories = self.directories.take();
        for (path, attributes) in directories.iter().rev() {
            let context = || format!("directory {}", shown(path));
            let fd = resolve::open_plain(self.root, path, OFlags::RDONLY).with_context(context)?;
            self.set(Target::Open(fd.as_fd()), attributes).with_context(context)?;
        }
        Ok(directories.into_iter().filter(|(_, attributes)| attributes.implied).map(|(path, _)| path).collect())
    }

    /// Sets owner, mode, extended attributes and times, in this order: a new owner takes setuid bits and capabilities
    /// away, and any change sets the time.
    fn set(&mut self, target: Target<'_>, attributes: &Attributes) -> Result<()> {
        self.set_owner(&target, attributes)?;
        let mode = Mode::from_raw_mode(attributes.mode);
        match &target {
            Target::New(_) if self.born_plain && attributes.mode & !0o777 == 0 => (),
            Target::New(fd) | Target::Open(fd) => rustix::fs::fchmod(fd, mode).context("set its mode")?,
            // A symbolic link has no mode of its own. Anything else here was made by us a moment ago, and is no link.
            Target::Entry(_, _, Kind::Symlink) => (),
            Target::Entry(dir, name, _) => {
                rustix::fs::chmodat(dir, *name, mode, AtFlags::empty()).context("set its mode")?;
            }
        }
        for (name, value) in &attributes.xattrs {
            self.set_xattr(&target, name, value.as_deref())
                .with_context(|| format!("extended attribute {}", shown(name)))?;
        }
        match &target {
            Target::New(fd) | Target::Open(fd) => rustix::fs::futimens(fd, &attributes.times()),
            Target::Entry(dir, name, _) => {
                rustix::fs::utimensat(dir, *name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            }
        }
        .context("set its times")
    }

    fn set_owner(&mut self, target: &Target<'_>, attributes: &Attributes) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        if self.born_plain && (uid, gid) == (self.uid, self.gid) {
            // So it was made.
        } else if self.uid.is_root() {
            let done = match target {
                Target::New(fd) | Target::Open(fd) => rustix::fs::fchown(fd, Some(uid), Some(gid)),
                Target::Entry(dir, name, _) => {
                    rustix::fs::chownat(dir, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                }
            };
            match done {
                // Root of a user namespace in which this owner is not mapped.
                Err(Errno::INVAL | Errno::PERM) => self.left_out.owners += 1,
                other => other.with_context(|| format!("set its owner {}:{}", attributes.uid, attributes.gid))?,
            }
        } else if (uid, gid) != (self.uid, self.gid) {
            self.left_out.owners += 1;
        }
        Ok(())
    }

    fn set_xattr(&mut self, target: &Target<'_>, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        // An archive has no business in OverlayFS's own bookkeeping: a redirect or a metacopy mark in a layer would make
        // the kernel show other files than the archive holds.
        let Some(value) = value.filter(|_| !layer::is_overlay_xattr(name)) else {
            self.left_out.xattrs += 1;
            return Ok(());
        };
        let key = OsStr::from_bytes(name);
        let done = match target {
            Target::New(fd) | Target::Open(fd) => rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty()),
            Target::Entry(dir, entry, _) => {
                let entry = joined(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes(), entry.as_bytes());
                rustix::fs::lsetxattr(OsStr::from_bytes(&entry), key, value, XattrFlags::empty())
            }
        };
        match done {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                self.left_out.xattrs += 1;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

fn stat(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<rustix::fs::Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
