//! Our own program file, out of a container's reach (CVE-2019-5736): a container can have `/proc/self/exe` executed and
//! then open that link of the new process for writing, which would change `sheep-ns` itself for the next caller.
//!
//! So the verbs that execute something in a container first execute themselves again from a read-only view of the file:
//! a detached read-only mount of it (0.2 ms), or a sealed copy in memory where mounting is not permitted.

use std::env;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use rustix::fs::{
    Access, AtFlags, CWD, MemfdFlags, SealFlags, accessat, fcntl_add_seals, fcntl_get_seals, memfd_create,
};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys;

const EXE: &str = "/proc/self/exe";

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Whether a command line may execute something in a container. Looks for the verb among all words: one that is wrongly
/// taken for a verb costs a fraction of a millisecond.
pub fn is_needed(mut words: impl Iterator<Item = std::ffi::OsString>) -> bool {
    words.any(|word| word == "exec" || word == "run" || word == "create")
}

/// Makes sure that nobody can write to this process's program file through the process. Executes it again where that
/// takes it; returns in the process that is safe.
pub fn protect() -> Result<()> {
    // Read-only mount, or no right to write: as this user, and so as the container's root, who can at most do the same.
    if accessat(CWD, EXE, Access::WRITE_OK, AtFlags::EACCESS).is_err() {
        return protected();
    }
    let exe = match read_only_view() {
        Ok(view) => view,
        Err(_) if is_sealed() => return protected(),
        Err(_) => sealed_copy().context("copy the program to memory")?,
    };
    let strings = |words: Vec<Vec<u8>>| words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let args = strings(env::args_os().map(|arg| arg.as_bytes().to_vec()).collect())?;
    let env = strings(env::vars_os().map(|(k, v)| [k.as_bytes(), b"=", v.as_bytes()].concat()).collect())?;
    Err(anyhow::Error::from(sys::fexecve(exe.as_fd(), &args, &env)).context("execute the protected program"))
}

fn protected() -> Result<()> {
    // Some kernels name a process that was executed from a descriptor by the descriptor's number.
    rustix::thread::set_name(c"sheep-ns").context("prctl(PR_SET_NAME)")
}

fn is_sealed() -> bool {
    File::open(EXE).is_ok_and(|exe| fcntl_get_seals(&exe).is_ok_and(|seals| seals.contains(SEALS)))
}

fn read_only_view() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = open_tree(CWD, EXE, flags)?;
    sys::mount_setattr(view.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
    Ok(view)
}

fn sealed_copy() -> Result<OwnedFd> {
    let copy = memfd_create(c"sheep-ns", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open(EXE)?, &mut copy)?;
    fcntl_add_seals(&copy, SEALS)?;
    Ok(copy.into())
}
