//! The system calls that neither nix nor rustix wraps safely, each behind a small safe function. The only module of
//! this crate with `unsafe` in it.
#![allow(unsafe_code)]

mod arena;

pub use arena::Arena;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

use crate::cgroup::devices::Instruction;

/// linux/sched.h; the constant of libc is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone3`] returns: which side of the clone this is.
#[derive(Debug)]
pub enum Side {
    /// The new process.
    Child,
    /// The caller, with the new process's id in the caller's pid namespace and a descriptor for it.
    Parent(Pid, OwnedFd),
}

/// Clones this process with new namespaces (`flags`, `CLONE_NEW*`), straight into `cgroup` where one is given. The child
/// is a copy, as after fork: this program has one thread, so that every lock is free in it.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the size given; `pidfd` outlives the call. No CLONE_VM: the child gets a
    // copy of the address space and goes on on a copy of this stack. The program never starts a second thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            let pid = Pid::from_raw(pid as i32).ok_or_else(|| io::Error::other("clone3 gave no process id"))?;
            // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
            Ok(Side::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// Ends this process at once: no destructor, no exit handler, no flush of what the parent may have buffered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(code) }
}

/// Changes attributes of the mount at `fd` (a detached tree or the root of a mount): flags `MOUNT_ATTR_*` to set and to
/// clear, and a propagation (`MS_PRIVATE`, … or 0 to leave it); with `recursive`, of all mounts under it too.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, set: u64, clear: u64, propagation: u64) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    set_mount_attr(fd, flags, &attr)
}

/// Shows the owners in the mount at `fd`, a detached tree, through the id maps of the user namespace `users`; with
/// `recursive`, in all mounts under it too. EINVAL: a file system that cannot; EPERM: no privilege over it.
pub fn mount_idmap(fd: BorrowedFd<'_>, recursive: bool, users: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let userns_fd = users.as_raw_fd() as u64;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set_mount_attr(fd, flags, &attr)
}

fn set_mount_attr(fd: BorrowedFd<'_>, flags: libc::c_int, attr: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is a C string, `attr` a mount_attr of the size given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result)
}

/// Takes over a descriptor that our caller has left open for us, close-on-exec from now on. EBADF: it has not.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number; it makes a new descriptor or fails.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    check(own.into())?;
    // SAFETY: the call has just made this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Closes the descriptors `first..=last`.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the callers close numbers of which no OwnedFd of theirs is used any more: they are about to exec or exit.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Duplicates `fd` to the number `to`, which may be in use; close-on-exec where `cloexec`.
pub fn dup_to(fd: BorrowedFd<'_>, to: RawFd, cloexec: bool) -> io::Result<()> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    if fd.as_raw_fd() == to {
        // dup3 refuses equal numbers; only the flag is left to be set.
        // SAFETY: fcntl on a borrowed, hence open, descriptor.
        let result = unsafe { libc::fcntl(to, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }) };
        return check(result.into());
    }
    // SAFETY: `fd` is open; whatever was at `to` is given up by the caller's intention.
    check(unsafe { libc::dup3(fd.as_raw_fd(), to, flags) }.into())
}

/// Puts the default action back for every signal that may have another: exec passes on which are ignored, and that is our
/// caller's affair (nohup, a shell's background job) or our own (Rust's runtime ignores SIGPIPE), not the program's.
pub fn default_signals() {
    for signal in (1..32).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: installs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sends any signal, also a real-time one, to the process of a pidfd.
pub fn pidfd_send(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is given; the kernel checks the signal's number.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<()>(), 0) })
}

/// Moves this process (or, for pid and time, its children) into the namespaces `flags` of `fd`: a namespace file, or a
/// pidfd with any number of `CLONE_NEW*`.
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: acts on this single-threaded process only; memory is not affected.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags as libc::c_int) }.into())
}

/// Moves this process into new namespaces `flags`.
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: only CLONE_NEW* flags are passed, which leave descriptors and memory alone.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })
}

/// struct sched_attr of sched_setattr(2), in the kernel's second version of it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Set by [`sched_setattr`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Of SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, of SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, of SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, of SCHED_DEADLINE.
    pub period: u64,
    /// With SCHED_FLAG_UTIL_CLAMP_MIN.
    pub util_min: u32,
    /// With SCHED_FLAG_UTIL_CLAMP_MAX.
    pub util_max: u32,
}

/// Has this process scheduled otherwise.
pub fn sched_setattr(attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: `attr` is a sched_attr of the size it says, and outlives the call; 0 is this process.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// Gives this process another I/O priority: class and level as ioprio_set(2) packs them.
pub fn ioprio_set(value: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes numbers only; 0 is this process.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })
}

/// Gives this process a new session keyring without a name (keyctl(2)).
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name means a new keyring without one.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) })
}

/// Sets the execution domain of this process.
pub fn personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: takes a number only; the domains in use change what uname(2) says, and nothing of this program's memory.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) })
}

/// Sets the memory policy of this process: mode with flags, and nodes, one bit each.
pub fn set_mempolicy(mode: libc::c_int, nodes: &[u64]) -> io::Result<()> {
    // The kernel takes one bit less than it is told there are.
    let (mask, bits) = if nodes.is_empty() { (ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: `mask` is null or points to the `bits - 1` bits of `nodes`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })
}

/// Brings the interface `lo` of this network namespace up. `socket` is any socket of it.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is an ifreq that outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }.into())
}

/// Replaces this process by the program at `path`. Returns only with an error.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let args = pointers(args);
    let env = pointers(env);
    // SAFETY: both arrays end in a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process by the program open as `fd`. Returns only with an error.
pub fn fexecve(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let args = pointers(args);
    let env = pointers(env);
    // SAFETY: as for execve; the empty path with AT_EMPTY_PATH means the descriptor itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Loads a device filter (a BPF program of type CGROUP_DEVICE). EPERM without CAP_BPF or CAP_SYS_ADMIN on the host.
pub fn load_device_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    /// The start of union bpf_attr for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(program.len()).map_err(io::Error::other)?,
        code: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: `attributes` is the start of a bpf_attr, of the size given; the kernel takes the rest as zero. The
    // instructions and the licence outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    check(fd)?;
    // SAFETY: the call has just made this descriptor (close-on-exec), which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Puts a device filter in force for a control group and those in it, beside the filters of groups above.
pub fn attach_device_filter(group: BorrowedFd<'_>, filter: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    /// The start of union bpf_attr for BPF_PROG_ATTACH: group, program, attach type, flags.
    type Attach = [u32; 4];
    let attributes: Attach =
        [group.as_raw_fd() as u32, filter.as_raw_fd() as u32, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: `attributes` is the start of a bpf_attr, of the size given; the kernel takes the rest as zero.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<Attach>()) })
}

/// Loads a filter of system calls for this thread (seccomp(2), `SECCOMP_SET_MODE_FILTER`). Gives the listener's descriptor,
/// close-on-exec, where `flags` ask for one.
pub fn load_seccomp(program: &[crate::seccomp::bpf::Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const crate::seccomp::bpf::Instruction,
    }
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: `program` is a sock_fprog with as many sock_filters as it says, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result)?;
    if flags & crate::seccomp::words::NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the call has just made a descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as RawFd) }))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
