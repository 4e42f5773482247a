//! Exports in every form, unpacked by other means than Sheep's: over the lowers they show what the overlay showed.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::mount::{MountFlags, mount};
use sheep_overlay::doc::Overlay;
use sheep_overlay::{export, layer};

use crate::trees::{Picture, Scratch, assert_same, picture, sh};

/// Exports an overlay as a layer of an image, as a directory and as a tar, and compares each with what the overlay shows.
/// Gives the bytes of the first and the last.
pub fn all(scratch: &mut Scratch, overlay: &Overlay, seen: &Picture, context: &str) -> [Vec<u8>; 2] {
    let dir = overlay.upper.parent().unwrap().join("exported");
    fs::create_dir(&dir).unwrap();
    let lowers: Vec<PathBuf> = overlay.lower.iter().map(|lower| lower.0.clone()).collect();
    let mut bytes = [Vec::new(), Vec::new()];
    let [oci, tar] = &mut bytes;

    export::oci(overlay, None, oci).unwrap_or_else(|e| panic!("{e:#}, {context}"));
    let unpacked = dir.join("oci");
    // What no entry says anything of is as the lower has it: so is the top.
    let top = lowers.last().unwrap().display();
    sh(&format!(
        "cp -a --attributes-only {top} {0}; find {0} -mindepth 1 -delete; touch -r {top} {0}",
        unpacked.display()
    ));
    unpack(oci, &unpacked);
    marks_to_whiteouts(&unpacked);
    over_the_lowers(scratch, &lowers, &unpacked, seen, &format!("as oci, {context}"));

    let made = dir.join("dir");
    export::directory(overlay, &made).unwrap_or_else(|e| panic!("{e:#}, {context}"));
    over_the_lowers(scratch, &lowers, &made, seen, &format!("as dir, {context}"));

    export::tar(overlay, None, tar).unwrap_or_else(|e| panic!("{e:#}, {context}"));
    let whole = dir.join("tar");
    fs::create_dir(&whole).unwrap();
    unpack(tar, &whole);
    assert_same(&format!("as tar, {context}"), &picture(&whole), seen, |look| look.blocks = 0);
    let _ = Command::new("rm").arg("-rf").arg(&dir).status();
    bytes
}

fn over_the_lowers(scratch: &mut Scratch, lowers: &[PathBuf], layer: &Path, seen: &Picture, context: &str) {
    let at = layer.parent().unwrap().join("view");
    view(scratch, &[lowers, &[layer.to_path_buf()]].concat(), &at);
    assert_same(context, &picture(&at), seen, |look| look.blocks = 0);
    scratch.unmount();
}

/// Mounts the view of some layers (bottom first), read-only.
fn view(scratch: &mut Scratch, layers: &[PathBuf], at: &Path) {
    let top_first: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
    let format = if sheep_overlay::backend::kernel::in_user_namespace() { ",userxattr" } else { "" };
    let options = CString::new(format!("lowerdir={}{format}", top_first.join(":"))).unwrap();
    fs::create_dir_all(at).unwrap();
    mount("overlay", at, "overlay", MountFlags::empty(), Some(&*options)).unwrap();
    scratch.mounts.push(at.to_path_buf());
}

/// Unpacks by GNU tar.
fn unpack(bytes: &[u8], to: &Path) {
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C"]).arg(to);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), bytes).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "tar: {said}");
}

/// The marks of an image's layer as OverlayFS has them; the times of directories stay.
fn marks_to_whiteouts(dir: &Path) {
    let before = rustix::fs::lstat(dir).unwrap();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap).collect::<Vec<_>>() {
        let path = entry.path();
        match entry.file_name().as_bytes().strip_prefix(b".wh.") {
            Some(b".wh..opq") => {
                fs::remove_file(&path).unwrap();
                layer::set_opaque(fs::File::open(dir).unwrap()).unwrap();
            }
            Some(hidden) => {
                fs::remove_file(&path).unwrap();
                layer::make_whiteout(CWD, dir.join(OsStr::from_bytes(hidden))).unwrap();
            }
            None if entry.file_type().unwrap().is_dir() => marks_to_whiteouts(&path),
            None => {}
        }
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec as _),
        last_modification: time(before.st_mtime, before.st_mtime_nsec as _),
    };
    utimensat(CWD, dir, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
