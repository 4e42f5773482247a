//! The kernel backend: OverlayFS by the new mount API.
//!
//! Directories go to the kernel as descriptors (`FSCONFIG_SET_FD`, Linux 6.13), so that any name will do and 500 lowers
//! fit; older kernels get `/proc/self/fd/N` as strings (6.7), and the oldest mount(2). The options define the format of
//! our layers: `index=off`, `metacopy=off`, `redirect_dir=off`.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstatfs, fstatvfs, mknodat, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, open_tree,
};

use crate::lowers::{self, Lower, open_path};
use crate::mountpoint::{self, Mount};

/// The most lowers that the kernel stacks (`OVL_MAX_STACK`).
pub const MAX_LOWERS: usize = 500;

/// The inode number of the initial user namespace in `/proc/PID/ns` (`PROC_USER_INIT_INO`).
const INITIAL_USER_NS: u64 = 0xEFFF_FFFD;

/// What to mount.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// The lower directories, bottom first.
    pub lowers: &'a [&'a Lower],
    /// The upper directory. Where the mount is read-only it is one more lower, on top: what was changed before is seen,
    /// and the kernel has the two lowers that it needs. Where the path is empty there is none, and the mount is read-only.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Whether other mount namespaces are to see the mount, where the directory that it is on is shared with them.
    pub propagate: bool,
    /// Where to mount.
    pub merged: &'a Path,
    /// Refuse writes.
    pub read_only: bool,
    /// Never sync.
    pub volatile: bool,
    /// Whether this is outside the initial user namespace ([`in_user_namespace`]).
    pub user_namespace: bool,
}

impl Stack<'_> {
    fn has_detached(&self) -> bool {
        self.lowers.iter().any(|lower| lower.detached)
    }
}

/// Why there is no mount, in the kernel's words where it had any.
#[derive(Debug)]
pub struct Refused {
    errno: Errno,
    step: String,
    reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = std::io::Error::from(self.errno).to_string();
        // "Operation not permitted (os error 1)": the number helps nobody.
        let words = words.split(" (os error").next().unwrap_or_default();
        write!(f, "{}: {words}", self.step)?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// A refusal: what was tried, the error, and the kernel's words, if any.
    pub fn new(errno: Errno, step: impl Into<String>, reason: impl Into<String>) -> Self {
        Refused { errno, step: step.into(), reason: reason.into() }
    }

    /// What [`Refused::new`] makes one of.
    pub fn parts(&self) -> (Errno, &str, &str) {
        (self.errno, &self.step, &self.reason)
    }

    fn at(step: impl Into<String>) -> impl FnOnce(Errno) -> Refused {
        let step = step.into();
        move |errno| Refused { errno, step, reason: String::new() }
    }

    /// Whether OverlayFS cannot be had here (not known, not permitted, not on this file system), so that a copy is the
    /// way; anything else is an error that a copy would hide.
    pub fn a_copy_may_do(&self) -> bool {
        matches!(
            self.errno,
            Errno::NODEV | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::ROFS
        )
    }

    /// Whether the kernel saw one directory of the stack inside another.
    pub fn is_loop(&self) -> bool {
        self.errno == Errno::LOOP
    }
}

/// How directories are named to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As descriptors.
    Descriptors,
    /// As the strings `/proc/self/fd/N`.
    ProcStrings,
    /// By mount(2), all in one string.
    OldMount,
}

/// Mounts an overlay, private, and returns what is then mounted on `merged`. On failure nothing is left mounted.
pub fn mount(stack: &Stack) -> Result<Option<Mount>, Refused> {
    match make(stack, true) {
        Ok(mount) => attach(&mount, stack.merged)?,
        Err(Failure::UnknownWay) => mount_by(Way::OldMount, stack)?,
        Err(Failure::Refused(refused)) => return Err(refused),
    }
    finish(stack)
}

enum Failure {
    /// This kernel does not know the way.
    UnknownWay,
    Refused(Refused),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Failure::Refused(refused)
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) => refused,
            Failure::UnknownWay => Refused::at("mount overlay")(Errno::NOSYS),
        }
    }
}

/// Everything after the mount is there: it stays in this namespace, and is what was asked for.
fn finish(stack: &Stack) -> Result<Option<Mount>, Refused> {
    let check = || -> Result<Option<Mount>, Refused> {
        if !stack.propagate {
            mountpoint::make_private(stack.merged).map_err(|e| failed("make the mount private", &e))?;
        }
        mountpoint::at(stack.merged).map_err(|e| failed("look at the mount", &e))
    };
    let checked = check();
    if checked.is_err() {
        // The error that matters is the one already held; what is left mounted, the caller's undo finds.
        let _ = mountpoint::unmount(stack.merged);
    }
    checked
}

fn failed(step: &str, error: &anyhow::Error) -> Refused {
    Refused { errno: Errno::IO, step: step.to_owned(), reason: format!("{error:#}") }
}

/// Upper, work and the lowers as the kernel is to see them.
struct Parts<'a> {
    /// Top first, as the kernel wants them.
    lowers: Vec<BorrowedFd<'a>>,
    /// Absent where the mount is read-only.
    writable: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
}

/// Makes an overlay and puts it beneath what is mounted on each of `points`, where nobody sees it yet. Gives its mounts, one for
/// each point; `None` where this kernel cannot (before Linux 6.5, or nothing may come beneath the mount there), and then
/// nothing is mounted. `aside` is a directory that is not there, for [`slip_out`].
pub fn mount_beneath(stack: &Stack, points: &[PathBuf], aside: &Path) -> Result<Option<Vec<OwnedFd>>, Refused> {
    match make(stack, false) {
        Ok(mount) => put_beneath(mount, points, aside),
        Err(Failure::UnknownWay) => Ok(None),
        Err(Failure::Refused(refused)) => Err(refused),
    }
}

/// `MOVE_MOUNT_BENEATH`, which rustix has no name for yet.
const BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

fn put_beneath(mount: OwnedFd, points: &[PathBuf], aside: &Path) -> Result<Option<Vec<OwnedFd>>, Refused> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::from_bits_retain(AtFlags::EMPTY_PATH.bits());
    let mut mounts = vec![mount];
    for (number, point) in points.iter().enumerate() {
        // The others are copies of the first one, of which there is none before it has its place (Linux 6.15).
        let copied = match number {
            0 => Ok(()),
            _ => open_tree(&mounts[0], "", clone).map(|copy| mounts.push(copy)).map_err(Refused::at("open_tree")),
        };
        let placed = copied.and_then(|()| {
            move_mount(&mounts[number], "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | BENEATH)
                .map_err(Refused::at("move_mount"))
        });
        let Err(refused) = placed else { continue };
        for (mount, point) in mounts.into_iter().zip(points.iter().take(number)) {
            slip_out(mount, point, aside)?;
        }
        return if refused.errno == Errno::INVAL { Ok(None) } else { Err(refused) };
    }
    Ok(Some(mounts))
}

/// Takes a mount that was put beneath another one out again. That other one is moved aside for a moment, which its users do
/// not notice: it is theirs, wherever it is. Who comes by meanwhile finds another mount of the same file system there, and for two
/// system calls the new one, in which he can lose nothing, for it is read-only by then.
pub fn slip_out(mount: OwnedFd, point: &Path, aside: &Path) -> Result<(), Refused> {
    let inner = aside.join("mount");
    let attached = MoveMountFlags::empty();
    let detach = || rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
    let slip = || -> Result<(), Errno> {
        let other = open_tree(CWD, point, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        // Nothing can be moved away from a mount that is shared, or to one that is.
        crate::sys::make_private(&mount)?;
        crate::sys::make_this_read_only(&mount)?;
        drop(mount);
        rustix::fs::mkdir(aside, Mode::RWXU)?;
        rustix::mount::mount_bind(aside, aside)?;
        rustix::mount::mount_change(aside, MountPropagationFlags::PRIVATE)?;
        rustix::fs::mkdir(&inner, Mode::RWXU)?;
        move_mount(CWD, point, CWD, &inner, attached)?;
        let stands_in = move_mount(&other, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | BENEATH);
        let removed = detach();
        let back = match stands_in {
            Ok(()) => move_mount(CWD, &inner, CWD, point, attached | BENEATH).and_then(|()| detach()),
            Err(_) => move_mount(CWD, &inner, CWD, point, attached),
        };
        removed.and(back)
    };
    let done = slip().map_err(Refused::at("take the new mount out again"));
    // What is left of it here is empty, and in nobody's way.
    let _ = rustix::fs::rmdir(&inner);
    let _ = rustix::mount::unmount(aside, UnmountFlags::NOFOLLOW);
    let _ = rustix::fs::rmdir(aside);
    done
}

fn mount_by(way: Way, stack: &Stack) -> Result<(), Failure> {
    with_parts(stack, |parts| {
        if way == Way::OldMount {
            return old_mount(stack, parts);
        }
        let mount = new_mount(way, stack, parts)?;
        // Detached, it has no other user; from here on it is seen.
        Ok(attach(&mount, stack.merged)?)
    })
}

/// Makes the overlay, mounted nowhere yet. Where this kernel can only mount it at once, it is an unknown way; but with `old_mount` not if
/// lowers are mounted nowhere, for which that is done out of sight.
fn make(stack: &Stack, old_mount: bool) -> Result<OwnedFd, Failure> {
    let by = |way| with_parts(stack, |parts| new_mount(way, stack, parts));
    match by(Way::Descriptors) {
        Err(Failure::UnknownWay) if !stack.has_detached() => by(Way::ProcStrings),
        // Before Linux 6.15, OverlayFS takes directories from mounts of the caller's mount namespace only.
        Err(Failure::UnknownWay | Failure::Refused(Refused { errno: Errno::INVAL, .. })) if stack.has_detached() => {
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, || in_a_namespace(stack, old_mount));
                let thread = thread.map_err(|e| failed("start a thread", &e.into()))?;
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        }
        made => made,
    }
}

/// Makes the overlay in a mount namespace of this thread alone, where the lowers can be mounted and nobody sees them; OverlayFS makes
/// copies of their mounts, and the namespace ends with the thread, however that ends.
fn in_a_namespace(stack: &Stack, old_mount: bool) -> Result<OwnedFd, Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Refused::at("mount namespace")(Errno::from_raw_os_error(e as i32)))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(Refused::at("mount namespace"))?;
    // The other directories are opened again: what was opened before the namespace was made is not of it.
    let again = |lower: &&Lower| match lower.detached {
        // A copy of a shared mount would hand on what is mounted on it, which the next one is.
        true => crate::sys::make_private(&lower.fd)
            .map_err(Refused::at("make private"))
            .and_then(|()| attach(&lower.fd, stack.merged))
            .map(|()| None),
        false => lowers::open_one(&lower.path).map(Some).map_err(|e| failed("open lower", &e)),
    };
    let opened = stack.lowers.iter().map(again).collect::<Result<Vec<_>, _>>()?;
    let lowers: Vec<&Lower> =
        opened.iter().zip(stack.lowers).map(|(opened, lower)| opened.as_ref().unwrap_or(lower)).collect();
    let stack = &Stack { lowers: &lowers, ..*stack };
    match with_parts(stack, |parts| new_mount(Way::ProcStrings, stack, parts)) {
        Err(Failure::UnknownWay) if old_mount => {
            mount_by(Way::OldMount, stack)?;
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            Ok(open_tree(CWD, stack.merged, clone).map_err(Refused::at("open_tree"))?)
        }
        made => made,
    }
}

/// Puts a mount that is mounted nowhere on a directory.
fn attach(mount: &OwnedFd, point: &Path) -> Result<(), Refused> {
    move_mount(mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Refused::at("move_mount"))
}

/// Opens what is to be stacked, and does `act` with it.
fn with_parts<T>(stack: &Stack, act: impl FnOnce(&Parts) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut lowers: Vec<BorrowedFd> = stack.lowers.iter().rev().map(|lower| lower.fd.as_fd()).collect();
    if stack.read_only && stack.upper.as_os_str().is_empty() {
        return act(&Parts { lowers, writable: None });
    }
    let upper = open_path(stack.upper).map_err(Refused::at("open upper"))?;
    if stack.read_only {
        if lowers.len() < 2 || !is_empty(stack.upper) {
            lowers.insert(0, upper.as_fd());
        }
        return act(&Parts { lowers, writable: None });
    }
    let work = open_path(stack.work).map_err(Refused::at("open work"))?;
    can_be_upper(&upper, &work, stack)?;
    act(&Parts { lowers, writable: Some((upper.as_fd(), work.as_fd())) })
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Makes the overlay, mounted nowhere yet.
fn new_mount(way: Way, stack: &Stack, parts: &Parts) -> Result<OwnedFd, Failure> {
    let fs = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NOSYS) => return Err(Failure::UnknownWay),
        opened => opened.map_err(Refused::at("fsopen(overlay)"))?,
    };
    let refused = |step: &str, errno: Errno| Refused { errno, step: step.to_owned(), reason: messages(&fs) };
    let set_dir = |key: &str, dir: BorrowedFd, own: Option<&Path>| match way {
        Way::Descriptors => fsconfig_set_fd(&fs, key, dir),
        _ => fsconfig_set_string(&fs, key, own.map_or_else(|| proc_path(dir), |path| own_path(dir, path))),
    };
    for (number, lower) in parts.lowers.iter().enumerate() {
        if let Err(errno) = set_dir("lowerdir+", *lower, None) {
            // EOPNOTSUPP before Linux 6.5, where OverlayFS takes strings only; EBADF before 6.13, where fsconfig(2)
            // takes no O_PATH descriptor; EINVAL before 6.5 too, where all strings together must fit into a page.
            let first = number == 0 && matches!(errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF);
            let unknown = first || (way == Way::ProcStrings && errno == Errno::INVAL);
            return Err(if unknown { Failure::UnknownWay } else { refused("lowerdir+", errno).into() });
        }
    }
    if let Some((upper, work)) = parts.writable {
        set_dir("upperdir", upper, Some(stack.upper)).map_err(|e| refused("upperdir", e))?;
        set_dir("workdir", work, Some(stack.work)).map_err(|e| refused("workdir", e))?;
        if stack.volatile {
            fsconfig_set_flag(&fs, "volatile").map_err(|e| refused("volatile", e))?;
        }
    } else {
        fsconfig_set_flag(&fs, "ro").map_err(|e| refused("ro", e))?;
    }
    if stack.user_namespace {
        // Without it the mount succeeds, and then making a directory where one was removed gives EIO. It excludes
        // metacopy and redirect_dir by itself.
        fsconfig_set_flag(&fs, "userxattr").map_err(|e| refused("userxattr", e))?;
    } else {
        for option in ["metacopy", "redirect_dir"] {
            fsconfig_set_string(&fs, option, "off").map_err(|e| refused(option, e))?;
        }
    }
    fsconfig_set_string(&fs, "index", "off").map_err(|e| refused("index", e))?;
    fsconfig_create(&fs).map_err(|e| {
        let refused = refused("mount overlay", e);
        // Before Linux 6.5 the key lowerdir+ is only looked at here, and refused without a word.
        let unknown = way == Way::ProcStrings && e == Errno::INVAL && refused.reason.is_empty();
        if unknown { Failure::UnknownWay } else { refused.into() }
    })?;
    let attributes = if stack.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| refused("fsmount", e))?;
    if !stack.read_only {
        is_writable(&mount).map_err(no_writing)?;
    }
    Ok(mount)
}

fn old_mount(stack: &Stack, parts: &Parts) -> Result<(), Failure> {
    let mut options = old_options(stack, parts);
    // A path leads to what a lower that is mounted nowhere is a view of.
    if options.len() >= 4096 || stack.has_detached() {
        options = short_options(stack, parts);
    }
    if options.len() >= 4096 {
        let reason = format!("{} lowers do not fit into the options of mount(2)", parts.lowers.len());
        return Err(Failure::Refused(Refused { errno: Errno::TOOBIG, step: "mount overlay".to_owned(), reason }));
    }
    let options = CString::new(options).map_err(|_| Refused::at("mount overlay")(Errno::INVAL))?;
    let flags = if stack.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount("overlay", stack.merged, "overlay", flags, &*options).map_err(Refused::at("mount overlay"))?;
    if stack.read_only {
        return Ok(());
    }
    let checked = open_path(stack.merged).and_then(|merged| is_writable(&merged));
    checked.map_err(|errno| {
        let _ = mountpoint::unmount(stack.merged);
        Failure::Refused(no_writing(errno))
    })
}

/// The options of mount(2) with the paths in them, so that `mount` and `findmnt` show them.
fn old_options(stack: &Stack, parts: &Parts) -> Vec<u8> {
    let upper = (parts.lowers.len() > stack.lowers.len()).then_some(stack.upper);
    let lowers = upper.into_iter().chain(stack.lowers.iter().rev().map(|lower| lower.path.as_path()));
    let mut options = b"lowerdir=".to_vec();
    for (number, lower) in lowers.enumerate() {
        if number > 0 {
            options.push(b':');
        }
        escape(lower, b"\\,:", &mut options);
    }
    if !stack.read_only {
        for (key, dir) in [(&b",upperdir="[..], stack.upper), (b",workdir=", stack.work)] {
            options.extend_from_slice(key);
            escape(dir, b"\\,", &mut options);
        }
    }
    options.extend_from_slice(old_flags(stack).as_bytes());
    options
}

/// The options of mount(2) with descriptors for the paths, where these are too long for the page that the kernel takes.
fn short_options(stack: &Stack, parts: &Parts) -> Vec<u8> {
    let lowers: Vec<String> = parts.lowers.iter().map(|dir| proc_path(*dir)).collect();
    let mut options = format!("lowerdir={}", lowers.join(":"));
    if let Some((upper, work)) = parts.writable {
        let (upper, work) = (own_path(upper, stack.upper), own_path(work, stack.work));
        options.push_str(&format!(",upperdir={upper},workdir={work}"));
    }
    options.push_str(&old_flags(stack));
    options.into_bytes()
}

fn old_flags(stack: &Stack) -> String {
    let format = if stack.user_namespace { ",index=off,userxattr" } else { ",index=off,metacopy=off,redirect_dir=off" };
    let volatile = if stack.volatile && !stack.read_only { ",volatile" } else { "" };
    format!("{format}{volatile}")
}

fn escape(path: &Path, special: &[u8], out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// A directory that is nobody's but the overlay's, as a string for the kernel: its path, so that the table of mounts tells it, where
/// nothing in that needs escaping and fsconfig(2) takes as much.
fn own_path(dir: BorrowedFd, path: &Path) -> String {
    let plain = |text: &&str| {
        text.len() < 256 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte))
    };
    path.to_str().filter(plain).map_or_else(|| proc_path(dir), str::to_owned)
}

fn proc_path(dir: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// What the kernel has to say about a mount that it refused: errors and warnings, one a read.
fn messages(fs: &OwnedFd) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut line = [0u8; 1024];
    while let Ok(length @ 1..) = rustix::io::read(fs, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        // "e overlay: overlapping lowerdir path": a letter for the severity, and the file system's name.
        let text = text.trim_end().trim_start_matches(|c: char| "ewi".contains(c)).trim_start();
        said.push(text.strip_prefix("overlay: ").unwrap_or(text).to_owned());
    }
    said.join("; ")
}

fn no_writing(errno: Errno) -> Refused {
    let reason = "the kernel does that where the upper's file system is full, its quota used up (then 'mount --id ID --size' gives more), or unfit".to_owned();
    Refused { errno, step: "mount overlay".to_owned(), reason }
}

/// A full or unfit upper is mounted read-only without a word.
fn is_writable(mount: &impl AsFd) -> Result<(), Errno> {
    if fstatvfs(mount)?.f_flag.contains(StatVfsMountFlags::RDONLY) { Err(Errno::ROFS) } else { Ok(()) }
}

/// Whether this process is outside the initial user namespace.
pub fn in_user_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|ns| ns.ino() != INITIAL_USER_NS)
}

/// File systems known to hold what OverlayFS writes into an upper: ext2/3/4, XFS, btrfs, tmpfs, F2FS, bcachefs, ZFS.
const GOOD_UPPERS: [u64; 7] = [0xEF53, 0x5846_5342, 0x9123_683E, TMPFS, 0xF2F5_2010, 0xCA45_1A4E, 0x2FC1_2FC1];
const TMPFS: u64 = libc::TMPFS_MAGIC as u64;

/// Makes sure that the upper's file system can hold whiteouts and opaque marks: the kernel takes others too, and then
/// fails to delete. The usual file systems are known; of another it is tried.
fn can_be_upper(upper: &OwnedFd, work: &OwnedFd, stack: &Stack) -> Result<(), Refused> {
    let fs = fstatfs(upper).map_err(Refused::at("statfs upper"))?;
    if GOOD_UPPERS.contains(&(fs.f_type as u64)) && !stack.user_namespace {
        return Ok(());
    }
    let refused = |what: &str, errno: Errno| Refused {
        errno,
        step: format!("the file system of {}", stack.upper.display()),
        reason: format!("it cannot hold {what}"),
    };
    let probe = c".sheep-probe";
    let made = mknodat(work, probe, FileType::CharacterDevice, Mode::empty(), 0);
    let removed = unlinkat(work, probe, AtFlags::empty());
    made.and(removed).map_err(|e| refused("whiteouts", e))?;
    let key = if stack.user_namespace { "user.overlay.probe" } else { "trusted.overlay.probe" };
    let set = rustix::fs::setxattr(proc_path(work.as_fd()), key, b"y", rustix::fs::XattrFlags::empty());
    let unset = rustix::fs::removexattr(proc_path(work.as_fd()), key);
    let what =
        if fs.f_type as u64 == TMPFS { "opaque marks of ordinary users before Linux 6.6" } else { "opaque marks" };
    set.and(unset).map_err(|e| refused(what, e))
}

/// Whether an OverlayFS that was mounted with this upper is still alive somewhere: in another mount namespace, or after a
/// lazy umount. Mounting the upper once more would destroy that one's work directory. A throw-away overlay with the
/// upper as its lower tells: with `index=on` the kernel answers `EBUSY`. What cannot be found out counts as no.
pub fn in_use_elsewhere(upper: &Path, dir: &Path) -> bool {
    let scratch = dir.join("probe");
    let inner: [PathBuf; 2] = [scratch.join("upper"), scratch.join("work")];
    let probe = || -> Result<(), Errno> {
        for made in [&scratch, &inner[0], &inner[1]] {
            rustix::fs::mkdir(made, Mode::RWXU)?;
        }
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // As strings, which every kernel takes; before Linux 6.5 it follows them at the end only.
        let dirs = [open_path(upper)?, open_path(&inner[0])?, open_path(&inner[1])?];
        for (key, dir) in ["lowerdir", "upperdir", "workdir"].into_iter().zip(&dirs) {
            fsconfig_set_string(&fs, key, proc_path(dir.as_fd()))?;
        }
        fsconfig_set_string(&fs, "index", "on")?;
        // Or its end would sync the whole file system.
        fsconfig_set_flag(&fs, "volatile")?;
        fsconfig_create(&fs)
    };
    // Whoever makes a mount namespace holds a copy of every mount, a starting container for a moment, others for longer.
    (0..36).all(|attempt| {
        if attempt > 0 {
            std::thread::sleep(std::time::Duration::from_millis(if attempt < 10 { 20 } else { 100 }));
        }
        let answer = probe();
        // What a probe leaves would make the next one fail. Should it stay, it is deleted with the overlay.
        let _ = crate::remove::tree(dir, c"probe");
        answer == Err(Errno::BUSY)
    })
}

/// The directory whose presence in a work directory makes the kernel refuse it after a volatile mount.
pub fn volatile_marker(work: &Path) -> PathBuf {
    work.join("work/incompat/volatile")
}

/// Makes what a volatile overlay wrote durable, and its upper fit to be mounted again.
pub fn settle_volatile(upper: &Path, work: &Path) -> Result<()> {
    let sync = || -> Result<(), Errno> {
        let dir = openat(CWD, upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::syncfs(&dir)
    };
    sync().map_err(|e| anyhow::Error::from(e).context(format!("syncfs {}", upper.display())))?;
    crate::remove::tree(&work.join("work"), c"incompat")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DataRoot;
    use std::ffi::OsStr;
    use std::fs;

    #[test]
    fn p03_mount2_options_are_escaped() {
        for (raw, special, want) in [
            (&b"/plain"[..], &b"\\,:"[..], &b"/plain"[..]),
            (b"/a:b,c\\d", b"\\,:", b"/a\\:b\\,c\\\\d"),
            (b"/a:b,c\\d", b"\\,", b"/a:b\\,c\\\\d"),
            (b"/\xff\n", b"\\,:", b"/\xff\n"),
        ] {
            let mut out = Vec::new();
            escape(Path::new(OsStr::from_bytes(raw)), special, &mut out);
            assert_eq!(out, want);
        }
    }

    /// Mounts by one way, with names that need escaping, and looks at what is seen.
    fn works_by(way: Way, count: usize, read_only: bool) {
        assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
        let top = std::env::temp_dir().join(format!("sheep:kernel,\\{}", crate::state::new_id().unwrap()));
        let root = DataRoot::open(Some(&top)).unwrap();
        let place = |name: &str| root.path().join(name);
        let mut paths = Vec::new();
        for number in 0..count {
            paths.push(place(&format!("l:{number}")));
            fs::create_dir(&paths[number]).unwrap();
            fs::write(paths[number].join(format!("f{number}")), "").unwrap();
        }
        for name in ["upper", "work", "merged"] {
            fs::create_dir(place(name)).unwrap();
        }
        let lowers = lowers::open(&root, None, &paths).unwrap();
        let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
        let stack = Stack {
            lowers: &lowers.iter().collect::<Vec<_>>(),
            upper: &upper,
            work: &work,
            merged: &merged,
            read_only,
            volatile: false,
            propagate: false,
            user_namespace: false,
        };
        match mount_by(way, &stack) {
            Ok(()) => {}
            Err(Failure::Refused(refused)) => panic!("{way:?}: {refused}"),
            Err(Failure::UnknownWay) => {
                assert!(kernel() < since(way), "{way:?} is not known to this kernel");
                fs::remove_dir_all(top).unwrap();
                return;
            }
        }
        assert!(finish(&stack).unwrap().is_some());
        assert_eq!(fs::read_dir(&merged).unwrap().count(), count);
        assert_eq!(fs::write(merged.join("new"), "").is_err(), read_only);
        mountpoint::unmount(&merged).unwrap_or_else(|reason| panic!("{reason:?}"));
        assert_eq!(upper.join("new").exists(), !read_only);
        fs::remove_dir_all(top).unwrap();
    }

    /// The first kernel with each way.
    fn since(way: Way) -> (u32, u32) {
        match way {
            Way::Descriptors => (6, 13),
            Way::ProcStrings => (6, 5),
            Way::OldMount => (0, 0),
        }
    }

    fn kernel() -> (u32, u32) {
        let name = rustix::system::uname();
        let mut numbers = name.release().to_str().unwrap().split(['.', '-']).map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    #[test]
    fn each_way_mounts() {
        for way in [Way::Descriptors, Way::ProcStrings, Way::OldMount] {
            works_by(way, 2, false);
            works_by(way, 1, true);
            works_by(way, 2, true);
        }
    }

    #[test]
    fn lowers_that_are_mounted_nowhere_are_mounted_in_a_namespace_for_kernels_that_want_it() {
        assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
        let top = std::env::temp_dir().join(format!("sheep-kernel-{}", crate::state::new_id().unwrap()));
        let root = DataRoot::open(Some(&top)).unwrap();
        let place = |name: &str| root.path().join(name);
        for name in ["a", "b", "own", "upper", "work", "merged"] {
            fs::create_dir(place(name)).unwrap();
            fs::write(place(name).join(name), "").unwrap();
        }
        fs::remove_file(place("work/work")).unwrap();
        let opened = lowers::open(&root, None, &[place("a"), place("b")]).unwrap();
        let own = lowers::open_one(&place("own")).unwrap();
        let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
        for made in [
            |stack: &Stack| make(stack, true),
            |stack: &Stack| std::thread::scope(|scope| scope.spawn(|| in_a_namespace(stack, true)).join().unwrap()),
        ] {
            let mapped = crate::idmap::apply("b:0:1000:100", &opened).unwrap();
            let stack = Stack {
                lowers: &mapped.iter().chain([&own]).collect::<Vec<_>>(),
                upper: &upper,
                work: &work,
                merged: &merged,
                read_only: false,
                volatile: false,
                propagate: false,
                user_namespace: false,
            };
            let mount = made(&stack).map_err(Refused::from).unwrap();
            // Nothing is seen of it but by its descriptor.
            assert!(mountpoint::at(&merged).unwrap().is_none());
            let owners = ["a", "b", "own", "upper"].map(|name| {
                rustix::fs::statat(&mount, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_uid, stat.st_gid))
            });
            assert_eq!(owners, [Ok((1000, 1000)), Ok((1000, 1000)), Ok((0, 0)), Ok((0, 0))]);
        }
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn p03_mount2_takes_more_lowers_than_fit_into_a_page_by_name() {
        works_by(Way::OldMount, 150, false);
    }
}
