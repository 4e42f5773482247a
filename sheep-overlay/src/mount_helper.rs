//! The helper of mount(8): with a link `mount.sheep` to this program in /sbin, `mount -t sheep none DIR -o lowerdir=…` and
//! lines in fstab mount an overlay without a record of ours; umount(8) unmounts it. `mount.fuse.sheep` is the same for
//! `mount -t fuse.sheep`, and podman takes the program as its `mount_program`, for it is started as fuse-overlayfs is.
//!
//! Options are those of OverlayFS (Documentation/filesystems/overlayfs.rst) and of mount(8): `lowerdir` with the topmost first,
//! parts separated by `:`, and `\\`, `\:` and `\,` for these characters themselves; a value in double quotes may have commas.
//!
//! Exit codes are those of mount(8): 0 mounted, 1 wrong options, 32 not mounted.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use crate::backend::kernel::{self, Stack};
use crate::lowers::{self, Lower};
use crate::{exit, mountpoint};

/// The name that messages begin with.
const NAME: &str = "mount.sheep";

/// Whether a program's own name says that it is to be the helper.
pub fn is_meant(argv0: &OsStr) -> bool {
    let name = Path::new(argv0).file_name().unwrap_or(argv0);
    name == "mount.sheep" || name == "mount.fuse.sheep"
}

/// Mounts what the arguments (without the program's name) say.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let done = parse(args).and_then(|call| mount(&call));
    let Err(error) = done else { return ExitCode::SUCCESS };
    exit::print_line(NAME, &error);
    ExitCode::from(if exit::kind(&error) == Some(exit::Kind::Usage) { 1 } else { 32 })
}

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    target: PathBuf,
    /// `-f`: only look.
    fake: bool,
    /// `-v`
    verbose: bool,
    options: Options,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// Bottom first.
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    read_only: bool,
    volatile: bool,
    user_xattrs: bool,
    flags: Vec<&'static str>,
}

/// mount(8)'s flags of a mount.
const FLAGS: [(&str, MountFlags); 10] = [
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
];

/// Options that say nothing to a mount (fstab's own), or are the default here.
const IGNORED: [&str; 31] = [
    "rw",
    "defaults",
    "suid",
    "dev",
    "exec",
    "async",
    "atime",
    "diratime",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    // Of fuse-overlayfs and FUSE: the kernel needs none of them.
    "noacl",
    "allow_other",
    "allow_root",
    "default_permissions",
    "static_nlink",
];

/// Reads the arguments: `[SPEC] DIR [-sfnv] [-N NS] [-t TYPE] [-o OPTIONS]`, in any order.
fn parse(args: impl Iterator<Item = OsString>) -> Result<Call> {
    let mut call = Call::default();
    let (mut places, mut given, mut sloppy) = (Vec::new(), Vec::new(), false);
    let mut args = args;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            places.push(PathBuf::from(arg));
            continue;
        }
        for (at, letter) in bytes[1..].iter().enumerate() {
            match letter {
                b's' => sloppy = true,
                b'f' => call.fake = true,
                b'v' => call.verbose = true,
                b'n' => {}
                b'o' | b't' | b'N' => {
                    let rest = &bytes[at + 2..];
                    let value = match rest {
                        [] => args
                            .next()
                            .ok_or_else(|| exit::usage(format!("-{} without a value", char::from(*letter))))?,
                        rest => OsStr::from_bytes(rest).to_owned(),
                    };
                    match letter {
                        b'o' => given.push(value),
                        b'N' => return Err(exit::usage("-N: mount in that namespace yourself, with nsenter(1)")),
                        _ => {}
                    }
                    break;
                }
                _ => return Err(exit::usage(format!("{}: unknown option", arg.to_string_lossy()))),
            }
        }
    }
    match &places[..] {
        [target] | [_, target] => call.target = target.clone(),
        _ => return Err(exit::usage("usage: mount.sheep [SPEC] DIR [-sfnv] -o lowerdir=…,upperdir=…,workdir=…")),
    }
    for list in given {
        call.options.read(list.as_bytes(), sloppy)?;
    }
    call.options.check()?;
    Ok(call)
}

impl Options {
    fn read(&mut self, list: &[u8], sloppy: bool) -> Result<()> {
        for option in split(list, b',') {
            let (key, value) = match option.iter().position(|byte| *byte == b'=') {
                Some(at) => (&option[..at], Some(unquote(&option[at + 1..]))),
                None => (option, None),
            };
            let key = String::from_utf8_lossy(key).into_owned();
            match (key.as_str(), value) {
                ("lowerdir", Some(value)) => {
                    let parts = split(value, b':');
                    if parts.iter().any(|part| part.is_empty()) {
                        return Err(exit::usage(
                            "lowerdir: an empty part (layers with data alone, '::', are not supported)",
                        ));
                    }
                    self.lowers = parts.iter().rev().map(|part| path(part)).collect();
                }
                ("lowerdir+", Some(value)) => self.lowers.insert(0, path(value)),
                ("upperdir", Some(value)) => self.upper = Some(path(value)),
                ("workdir", Some(value)) => self.work = Some(path(value)),
                ("ro", None) => self.read_only = true,
                ("rw", None) => self.read_only = false,
                ("volatile", None) => self.volatile = true,
                ("fsync", Some(value)) => self.volatile = value == b"0",
                ("userxattr", None) => self.user_xattrs = true,
                ("index" | "metacopy" | "redirect_dir" | "nfs_export" | "verity", Some(value)) if is_off(value) => {}
                ("index" | "metacopy" | "redirect_dir" | "nfs_export" | "verity", _) => {
                    return Err(exit::usage(format!(
                        "{key}: layers are kept readable without OverlayFS, which this would end; only '{key}=off'"
                    )));
                }
                (
                    "xino" | "uuid" | "context" | "comment" | "timeout" | "max_idle_threads" | "max_threads"
                    | "clone_fd",
                    _,
                ) => {}
                ("", None) => {}
                (key, _) if key.starts_with("x-") || key.starts_with("X-") => {}
                (key, None) => match FLAGS.iter().find(|(name, _)| *name == key) {
                    Some((name, _)) => self.flags.push(name),
                    None if IGNORED.contains(&key) || sloppy => {}
                    None => return Err(exit::usage(format!("{key}: unknown mount option"))),
                },
                (_, Some(_)) if sloppy => {}
                (key, Some(_)) => return Err(exit::usage(format!("{key}=: unknown mount option"))),
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.lowers.is_empty() {
            return Err(exit::usage("no lowerdir; -o lowerdir=TOP:…:BOTTOM names the directories to stack"));
        }
        if self.lowers.len() > kernel::MAX_LOWERS {
            return Err(exit::usage(format!(
                "{} lowers, and the kernel stacks {} at most",
                self.lowers.len(),
                kernel::MAX_LOWERS
            )));
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => {
                return Err(exit::usage("upperdir without workdir; it is an empty directory on the same mount"));
            }
            (None, Some(_)) => return Err(exit::usage("workdir without upperdir")),
            (None, None) if self.lowers.len() < 2 => {
                return Err(exit::usage(
                    "without upperdir there must be two lowers; one alone can be bound: mount --bind",
                ));
            }
            (None, None) => self.read_only = true,
            _ => {}
        }
        Ok(())
    }
}

fn is_off(value: &[u8]) -> bool {
    matches!(value, b"off" | b"nofollow")
}

/// The parts of a list, split where the separator is neither after a backslash nor in double quotes. Backslashes stay.
fn split(list: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut at, mut quoted) = (Vec::new(), 0, 0, false);
    while at < list.len() {
        match list[at] {
            b'\\' => at += 1,
            b'"' => quoted = !quoted,
            byte if byte == separator && !quoted => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&list[start.min(list.len())..]);
    parts
}

fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// A path, its backslashes undone.
fn path(escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(byte) = rest.next() {
        bytes.push(if *byte == b'\\' { *rest.next().unwrap_or(byte) } else { *byte });
    }
    OsString::from_vec(bytes).into()
}

fn mount(call: &Call) -> Result<()> {
    let target = call.target.display();
    let options = &call.options;
    let opened: Vec<Lower> = options.lowers.iter().map(|lower| lowers::open_one(lower)).collect::<Result<_>>()?;
    lowers::open_path(&call.target).with_context(|| target.to_string())?;
    let absolute = |path: &Option<PathBuf>| match path {
        Some(path) => std::path::absolute(path).with_context(|| path.display().to_string()),
        None => Ok(PathBuf::new()),
    };
    let (upper, work) = (absolute(&options.upper)?, absolute(&options.work)?);
    if call.verbose {
        exit::warn(
            NAME,
            &format!("{} lowers on {target}{}", opened.len(), if options.read_only { ", read-only" } else { "" }),
        );
    }
    if call.fake {
        return Ok(());
    }
    kernel::mount(&Stack {
        lowers: &opened.iter().collect::<Vec<_>>(),
        upper: &upper,
        work: &work,
        propagate: true,
        merged: &call.target,
        read_only: options.read_only,
        volatile: options.volatile,
        user_namespace: options.user_xattrs || kernel::in_user_namespace(),
    })
    .map_err(anyhow::Error::from)
    .with_context(|| target.to_string())?;
    set_flags(call).inspect_err(|_| {
        // The error that matters is the one already held.
        let _ = mountpoint::unmount(&call.target);
    })
}

fn set_flags(call: &Call) -> Result<()> {
    let wanted = call.options.flags.iter().filter_map(|wanted| FLAGS.iter().find(|(name, _)| name == wanted));
    let flags = wanted.fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag);
    if flags.is_empty() {
        return Ok(());
    }
    let read_only = if call.options.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount_remount(&call.target, flags | read_only | MountFlags::BIND, c"")
        .with_context(|| format!("{}: set {}", call.target.display(), call.options.flags.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Call> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn as_mount8_podman_and_fstab_call_it() {
        let stack = "lowerdir=/top:/bottom,upperdir=/u,workdir=/w";
        for args in [
            vec!["none", "/m", "-o", stack],
            vec!["-o", stack, "/m"],
            vec!["none", "/m", "-n", "-t", "sheep", "-o", "rw,nosuid", "-o", stack],
            vec!["none", "/m", "-no", stack],
        ] {
            let call = parsed(&args).unwrap();
            assert_eq!(call.target, Path::new("/m"), "{args:?}");
            assert_eq!(call.options.lowers, [Path::new("/bottom"), Path::new("/top")], "{args:?}");
            assert_eq!(call.options.upper.as_deref(), Some(Path::new("/u")));
        }
        assert!(parsed(&["/m", "-o", "lowerdir=/a:/b"]).unwrap().options.read_only);
    }

    #[test]
    fn names_with_separators_in_them() {
        let table: [(&str, &[&str]); 4] = [
            (r"lowerdir=/a\:b:/c", &["/c", "/a:b"]),
            (r"lowerdir=/a\,b:/c\\d", &["/c\\d", "/a,b"]),
            ("lowerdir=\"/a,b:/c\"", &["/c", "/a,b"]),
            ("lowerdir=/a b:/c", &["/c", "/a b"]),
        ];
        for (options, want) in table {
            let call = parsed(&["/m", "-o", options]).unwrap();
            let want: Vec<PathBuf> = want.iter().map(PathBuf::from).collect();
            assert_eq!(call.options.lowers, want, "{options}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (vec!["/m"], "no lowerdir"),
            (vec!["-o", "lowerdir=/a"], "usage"),
            (vec!["/m", "-o", "lowerdir=/a"], "two lowers"),
            (vec!["/m", "-o", "lowerdir=/a::/b"], "empty part"),
            (vec!["/m", "-o", "lowerdir=/a,upperdir=/u"], "without workdir"),
            (vec!["/m", "-o", "lowerdir=/a:/b,metacopy=on"], "metacopy"),
            (vec!["/m", "-o", "lowerdir=/a:/b,wibble"], "wibble"),
            (vec!["/m", "-o", "lowerdir=/a:/b,wibble=1"], "wibble="),
            (vec!["/m", "-q"], "-q"),
            (vec!["/m", "-o"], "-o without"),
        ];
        for (args, want) in table {
            let error = parsed(&args).unwrap_err();
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{args:?}");
            assert!(format!("{error:#}").contains(want), "{args:?}: {error:#}");
        }
        parsed(&["/m", "-s", "-o", "lowerdir=/a:/b,wibble,x=1,x-mount.mkdir,_netdev,noauto"]).unwrap();
    }
}
