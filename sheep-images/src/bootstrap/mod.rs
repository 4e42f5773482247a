//! `bootstrap`: an image from this host's own files.
//!
//! A shell, the usual utilities, and what they need to run: the loader, shared libraries, interpreters of scripts. Nothing
//! of the host's accounts or settings goes in. Owners are root, setuid bits are left off (a container's programs gain
//! nothing by them), and directories bear the time of the newest file, so that the same host files give the same digest
//! to every user.

mod archive;
mod closure;
mod elf;
mod libraries;
mod tree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use sheep_overlay::exit;

use crate::cli::{Bootstrap, LimitArgs};
use crate::import;
use crate::oci::{self, Descriptor};
use crate::reference::Name;
use crate::store::Store;
use crate::unpack;
use closure::Closure;
use tree::Tree;

/// Without these there is no image.
const REQUIRED: &[&str] = &["sh", "cat", "ls"];

/// Taken where the host has them.
const OPTIONAL: &[&str] = &[
    // Shells and what shells call.
    "bash",
    "[",
    "arch",
    "awk",
    "b2sum",
    "base32",
    "base64",
    "basename",
    "chgrp",
    "chmod",
    "chown",
    "chroot",
    "cksum",
    "clear",
    "cmp",
    "comm",
    "cp",
    "csplit",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dir",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "egrep",
    "env",
    "expand",
    "expr",
    "factor",
    "false",
    "fgrep",
    "find",
    "flock",
    "fmt",
    "fold",
    "free",
    "getconf",
    "getent",
    "getopt",
    "grep",
    "groups",
    "gunzip",
    "gzip",
    "head",
    "hostid",
    "hostname",
    "id",
    "install",
    "ip",
    "join",
    "kill",
    "link",
    "ln",
    "logname",
    "mawk",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "more",
    "mount",
    "mountpoint",
    "mv",
    "nice",
    "nl",
    "nohup",
    "nproc",
    "nsenter",
    "numfmt",
    "od",
    "paste",
    "pathchk",
    "pgrep",
    "pkill",
    "pr",
    "printenv",
    "printf",
    "prlimit",
    "ps",
    "ptx",
    "pwd",
    "readlink",
    "realpath",
    "rev",
    "rm",
    "rmdir",
    "runcon",
    "sed",
    "seq",
    "setpriv",
    "setsid",
    "sha1sum",
    "sha224sum",
    "sha256sum",
    "sha384sum",
    "sha512sum",
    "shred",
    "shuf",
    "sleep",
    "sort",
    "split",
    "stat",
    "stdbuf",
    "stty",
    "sum",
    "sync",
    "tac",
    "tail",
    "tar",
    "taskset",
    "tee",
    "test",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "truncate",
    "tsort",
    "tty",
    "umount",
    "uname",
    "unexpand",
    "uniq",
    "unlink",
    "unshare",
    "uptime",
    "vdir",
    "watch",
    "wc",
    "which",
    "whoami",
    "xargs",
    "yes",
    "zcat",
];

/// Runs the verb.
pub fn run(store: &Store, args: &Bootstrap) -> Result<()> {
    let what = format!("bootstrap {}", args.name);
    let image = make(store, args, &what).with_context(|| what.clone())?;
    let image = store.load(&image).with_context(|| what.clone())?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

fn make(store: &Store, args: &Bootstrap, what: &str) -> Result<Descriptor> {
    let name = Name::parse(&args.name)?;
    let tree = collect(args, what)?;
    let newest = tree.newest();
    let receive = |stage: &_, unpacked: &_| {
        let (reader, writer) = std::io::pipe().context("pipe")?;
        let packing = thread::spawn(move || archive::write(&tree, writer));
        let received = import::receive(reader, stage, unpacked, LimitArgs::NONE, Arc::default());
        let packed = packing.join().map_err(|_| anyhow!("packing panicked"))?;
        match packed {
            // The archive was not taken; the reason is with who did not take it.
            Err(e) if received.is_err() && is_broken_pipe(&e) => received,
            Err(e) => Err(e),
            Ok(()) => received,
        }
    };
    let created = |_: &_| oci::created(Some(newest));
    let (image, left_out) = import::take_in(store, &name, "sheep-images bootstrap", receive, created)?;
    unpack::tell_left_out(what, left_out);
    Ok(image)
}

/// All that goes into the image.
fn collect(args: &Bootstrap, what: &str) -> Result<Tree> {
    let mut tree = Tree::with_skeleton()?;
    let mut closure = Closure::new();
    for tool in REQUIRED {
        let path = find_tool(tool).ok_or_else(|| exit::not_found(format!("this host has no {tool}")))?;
        closure.add(&mut tree, &path).with_context(|| path.display().to_string())?;
    }
    for bin in &args.bin {
        let path = find_extra(bin)?;
        closure.add(&mut tree, &path).with_context(|| format!("--bin {}", bin.display()))?;
    }
    for tool in OPTIONAL {
        let Some(path) = find_tool(tool) else { continue };
        // Into a copy first: a tool whose libraries are missing leaves nothing in.
        let (mut with_tool, mut with_closure) = (tree.clone(), closure.clone());
        match with_closure.add(&mut with_tool, &path) {
            Ok(()) => (tree, closure) = (with_tool, with_closure),
            Err(error) => exit::warn("sheep-images", &format!("{what}: left out {}: {error:#}", path.display())),
        }
    }
    closure.finish(&mut tree)?;
    Ok(tree)
}

/// A utility, where every user of every host looks for it: the result must not depend on who asks.
pub(crate) fn find_tool(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let name = name.as_ref();
    ["/bin", "/usr/bin", "/sbin", "/usr/sbin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| is_program(path))
}

/// What `--bin` names. Errors with not found (3).
fn find_extra(bin: &Path) -> Result<PathBuf> {
    let absent = || exit::not_found(format!("--bin {}: no such program", bin.display()));
    let has_slash = bin.as_os_str().as_encoded_bytes().contains(&b'/');
    let path = if has_slash {
        std::path::absolute(bin).with_context(|| format!("--bin {}", bin.display()))?
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(bin)).find(|path| is_program(path)).ok_or_else(absent)?
    };
    match path.metadata() {
        Ok(meta) if meta.is_file() => Ok(path),
        Ok(_) => Err(exit::usage(format!("--bin {}: it is not a file", bin.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(absent()),
        Err(e) => Err(e).with_context(|| format!("--bin {}", bin.display())),
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is))
}
