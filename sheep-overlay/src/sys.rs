//! The system calls that neither rustix nor nix has in a safe form; the one module with `unsafe`.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::unistd::{ForkResult, Pid};
use rustix::io::Errno;

/// The signal that asked this program to end, or 0.
static INTERRUPTED_BY: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_interrupt(signal: libc::c_int) {
    INTERRUPTED_BY.store(signal, Ordering::Relaxed);
}

/// From here on Ctrl-C, SIGTERM and SIGHUP end nothing by themselves but are noted for [`interrupted`], so that what is
/// half-made can be undone first. Calls that wait return `EINTR`.
pub fn catch_interrupts() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_interrupt), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store into an atomic, which is async-signal-safe.
        let before = unsafe { sigaction(signal, &action) }?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // Somebody (nohup) wanted it ignored: so it stays.
            // SAFETY: the disposition that was there a moment ago is put back.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Whether a signal asked this program to end since [`catch_interrupts`]. Long work looks here now and then.
pub fn interrupted() -> bool {
    INTERRUPTED_BY.load(Ordering::Relaxed) != 0
}

/// Dies of the signal that was caught, once everything is undone: the shell then knows why. Returns if there was none.
pub fn die_of_interrupt() {
    let Ok(signal) = Signal::try_from(INTERRUPTED_BY.load(Ordering::Relaxed)) else { return };
    if by_default(signal).is_ok() {
        // A signal that cannot be raised leaves the ordinary way out: the error that says "interrupted".
        let _ = raise(signal);
    }
}

/// From here on a signal is ignored.
pub fn ignore(signal: Signal) -> io::Result<()> {
    set_action(signal, SigHandler::SigIgn)
}

/// From here on a signal does what it does by default, which for most is to end the program.
pub fn by_default(signal: Signal) -> io::Result<()> {
    set_action(signal, SigHandler::SigDfl)
}

fn set_action(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the callers above pass actions that run no code of ours.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Makes a child process; gives its pid to the parent and `None` to the child. The caller has one thread only, and ends the
/// child with [`exit_child`].
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this program has no other thread when it forks (copies join theirs before they return), so that no lock is
    // held by a thread that the child does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends a child made by [`fork`], without what the parent registered to be done at its own end.
pub fn exit_child(status: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status) }
}

/// Begins to write a file's pages to the disk and does not wait for them.
pub fn begin_writeback(file: &File) -> io::Result<()> {
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes a file's pages to the disk, and waits until that has them. It may keep them in a cache of its own; and what says where
/// they are may not be written yet.
pub fn write_back(file: &File) -> io::Result<()> {
    let waiting = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE | waiting)
}

fn sync_file_range(file: &File, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for the length of the call.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes descriptor `to` another one of `from`, whatever it was.
pub fn duplicate_to(from: i32, to: i32) -> io::Result<()> {
    // SAFETY: only the holder, a child that is about to do nothing, calls this, for its standard descriptors.
    match unsafe { libc::dup2(from, to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Closes every descriptor but the standard ones and `kept`.
pub fn close_all_but(kept: i32) -> io::Result<()> {
    let close = |first: i32, last: u32| {
        // SAFETY: no memory is passed; only the holder, a child that uses none of these any more, calls this.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if kept > 3 {
        close(3, kept as u32 - 1)?;
    }
    close(kept + 1, u32::MAX)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on a mount that is open, with all below it where `recursive`.
fn mount_setattr(mount: &OwnedFd, recursive: bool, attributes: &MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure and the empty path live for the length of the call, and the size is the structure's own.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Keeps an open tree of mounts from spreading, and from being spread to.
pub fn make_private(tree: &OwnedFd) -> Result<(), Errno> {
    mount_setattr(tree, true, &MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() })
}

/// Makes an open tree of mounts read-only.
pub fn make_read_only(tree: &OwnedFd) -> Result<(), Errno> {
    mount_setattr(tree, true, &MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}

/// Makes one open mount read-only, and none that is mounted on it.
pub fn make_this_read_only(mount: &OwnedFd) -> Result<(), Errno> {
    mount_setattr(mount, false, &MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}

/// Shows the owners in an open, detached mount through the maps of a user namespace.
pub fn idmap(mount: &OwnedFd, user_namespace: &OwnedFd) -> Result<(), Errno> {
    let userns_fd = user_namespace.as_raw_fd() as u64;
    mount_setattr(mount, false, &MountAttr { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() })
}

/// `struct fsxattr` of ioctl_xfs_fsgetxattr(2).
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` and `FS_XFLAG_PROJINHERIT` of linux/fs.h.
const FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FSSETXATTR: libc::Ioctl = 0x401c_5820;
const PROJINHERIT: u32 = 0x200;

/// The project that an open directory belongs to.
pub fn project_of(dir: &OwnedFd) -> Result<u32, Errno> {
    let mut found = FsXattr::default();
    // SAFETY: the ioctl writes one `struct fsxattr`, which `found` is.
    match unsafe { libc::ioctl(dir.as_raw_fd(), FSGETXATTR, &raw mut found) } {
        0 => Ok(found.projid),
        _ => Err(last_errno()),
    }
}

/// Puts an open directory into a project, and all that is made in it from now on.
pub fn set_project(dir: &OwnedFd, project: u32) -> Result<(), Errno> {
    let mut wanted = FsXattr::default();
    // SAFETY: the ioctl writes one `struct fsxattr`, which `wanted` is.
    if unsafe { libc::ioctl(dir.as_raw_fd(), FSGETXATTR, &raw mut wanted) } != 0 {
        return Err(last_errno());
    }
    wanted.projid = project;
    wanted.xflags |= PROJINHERIT;
    // SAFETY: the ioctl reads one `struct fsxattr`.
    match unsafe { libc::ioctl(dir.as_raw_fd(), FSSETXATTR, &raw const wanted) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// A project's limit and use of disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectUse {
    /// The limit; 0 for none.
    pub limit: u64,
    /// What is used.
    pub used: u64,
}

/// `QCMD(…, PRJQUOTA)` of quotactl(2).
const Q_GETQUOTA: u32 = 0x80_0007 << 8 | 2;
const Q_SETQUOTA: u32 = 0x80_0008 << 8 | 2;
/// `QIF_BLIMITS`
const QIF_BLIMITS: u32 = 1;

fn quotactl(file: &OwnedFd, command: u32, project: u32, block: &mut libc::dqblk) -> Result<(), Errno> {
    // SAFETY: for these two commands the kernel reads or writes one `struct if_dqblk`, which libc calls dqblk.
    let done =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, std::ptr::from_mut(block)) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

fn no_block() -> libc::dqblk {
    // SAFETY: the structure has only integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What the file system of an open file says of a project. Errors with `ESRCH` or `ENOTSUP` where it has no project
/// quotas (switched on).
pub fn project_use(file: &OwnedFd, project: u32) -> Result<ProjectUse, Errno> {
    let mut block = no_block();
    match quotactl(file, Q_GETQUOTA, project, &mut block) {
        // XFS knows nothing of a project without files.
        Ok(()) | Err(Errno::NOENT) => Ok(ProjectUse { limit: block.dqb_bhardlimit << 10, used: block.dqb_curspace }),
        Err(e) => Err(e),
    }
}

/// Limits what a project may use to so many bytes; 0 takes the limit away.
pub fn limit_project(file: &OwnedFd, project: u32, bytes: u64) -> Result<(), Errno> {
    let mut block = no_block();
    block.dqb_bhardlimit = bytes.div_ceil(1024);
    block.dqb_bsoftlimit = block.dqb_bhardlimit;
    block.dqb_valid = QIF_BLIMITS;
    quotactl(file, Q_SETQUOTA, project, &mut block)
}

/// The file handle of `name` in `dir`, of its own and no link's target: its type and its bytes. `None` where the file
/// system has none, or the file has gone.
pub fn file_handle(dir: BorrowedFd<'_>, name: &CStr) -> Option<(i32, Vec<u8>)> {
    const MOST: usize = 128;
    #[repr(C)]
    struct Handle {
        length: libc::c_uint,
        kind: libc::c_int,
        bytes: [u8; MOST],
    }
    let mut handle = Handle { length: MOST as _, kind: 0, bytes: [0; MOST] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: the handle says how many bytes it has room for, and all that is passed outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0 as libc::c_int,
        )
    };
    (done == 0).then(|| (handle.kind, handle.bytes[..(handle.length as usize).min(MOST)].to_vec()))
}

/// `BTRFS_IOC_SNAP_CREATE_V2` and its `struct btrfs_ioctl_vol_args_v2`.
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417;
#[repr(C)]
struct SnapshotArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `BTRFS_IOC_SUBVOL_CREATE`, `BTRFS_IOC_SNAP_DESTROY` and their `struct btrfs_ioctl_vol_args`.
const SUBVOL_CREATE: libc::Ioctl = 0x5000_940E;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940F;
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

fn put_name<const N: usize>(to: &mut [u8; N], name: &CStr) -> Result<(), Errno> {
    let bytes = name.to_bytes_with_nul();
    to.get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
    Ok(())
}

/// Makes a writable snapshot of the subvolume `source` as `name` in `place`.
pub fn btrfs_snapshot(source: &OwnedFd, place: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let fd = i64::from(source.as_raw_fd());
    let mut args = SnapshotArgs { fd, transid: 0, flags: 0, unused: [0; 4], name: [0; 4040] };
    put_name(&mut args.name, name)?;
    // SAFETY: the ioctl reads and writes one `struct btrfs_ioctl_vol_args_v2`, whose name ends with a NUL.
    match unsafe { libc::ioctl(place.as_raw_fd(), SNAP_CREATE_V2, &raw mut args) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Makes an empty subvolume `name` in `place`.
pub fn btrfs_create(place: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let mut args = VolumeArgs { fd: 0, name: [0; 4088] };
    put_name(&mut args.name, name)?;
    // SAFETY: the ioctl reads one `struct btrfs_ioctl_vol_args`, whose name ends with a NUL.
    match unsafe { libc::ioctl(place.as_raw_fd(), SUBVOL_CREATE, &raw const args) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Deletes the subvolume `name` in `place`.
pub fn btrfs_delete(place: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let mut args = VolumeArgs { fd: 0, name: [0; 4088] };
    put_name(&mut args.name, name)?;
    // SAFETY: the ioctl reads one `struct btrfs_ioctl_vol_args`, whose name ends with a NUL.
    match unsafe { libc::ioctl(place.as_raw_fd(), SNAP_DESTROY, &raw const args) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Lets go of this program's code in memory, and waits for a signal for ever. The code's pages are read again from the page
/// cache when they are needed, which for who only waits are one or two.
pub fn wait_without_code() -> ! {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in code(&maps) {
        // SAFETY: the range is code, mapped from the program's file and not to be written: what is touched again is what
        // it was. A failure leaves the pages, which does no harm.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
    loop {
        nix::unistd::pause();
    }
}

/// The address ranges of code in the text of a `maps` file (proc_pid_maps(5)).
fn code(maps: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
        is_code.then_some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_is_what_is_executable_and_of_a_file() {
        let maps = "1000-2000 r--p 00000000 08:01 5 /bin/x\n2000-5000 r-xp 00001000 08:01 5 /bin/x\n5000-6000 rw-p 0 08:01 5 /bin/x\n\
                    7000-8000 r-xp 00000000 00:00 0 [vdso]\n8000-9000 rw-p 00000000 00:00 0\n";
        assert_eq!(super::code(maps), [(0x2000, 0x5000)]);
    }
}
