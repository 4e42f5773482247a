//! Names that JSON, mount options and terminals do not like.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::harness::World;

/// Runs the whole life of an overlay in directories of this name.
fn lives_in(name: &[u8]) {
    assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
    let world = World::named(OsStr::from_bytes(name));
    let mut lowers = Vec::new();
    for prefix in [&b"low"[..], b"top"] {
        let lower = world.dir.join(OsStr::from_bytes(&[prefix, name].concat()));
        fs::create_dir(&lower).unwrap();
        fs::write(lower.join(OsStr::from_bytes(name)), prefix).unwrap();
        lowers.push(lower.into_os_string());
    }
    let mut args: Vec<OsString> = ["mount", "--backend", "kernel", "--id", "ov"].map(OsString::from).to_vec();
    args.extend(lowers.clone());
    let document = world.run(&args).ok().out;
    let merged = world.merged("ov");
    assert_eq!(fs::read(merged.join(OsStr::from_bytes(name))).unwrap(), b"top");
    fs::write(merged.join("new"), "").unwrap();

    let output = world.command(&["inspect", "ov", "--print", "merged"]).output().unwrap();
    assert_eq!(output.stdout, [merged.as_os_str().as_bytes(), b"\n"].concat(), "raw");
    assert_eq!(world.run(&["ls"]).ok().out.lines().count(), 2, "one line each");
    let kept = world.run_with(&document, &["umount", "--keep", "-"]).ok().out;
    let again = world.run_with(&kept, &["mount", "-"]).ok().out;
    assert_eq!(kept.contains("base64"), std::str::from_utf8(name).is_err());
    assert!(merged.join("new").exists());
    let inside: PathBuf = merged.join(OsStr::from_bytes(name));
    world.run(&[OsStr::new("umount"), inside.as_os_str()]).ok();
    world.is_clean();
    // The document still leads to its lowers.
    world.run_with(&again, &["mount", "-", "--id", "next"]).ok();
    world.run(&["umount", "next"]).ok();
    world.is_clean();
}

#[test]
fn p04_backslash() {
    lives_in(b"back\\slash\\");
}

#[test]
fn p03_comma_and_colon() {
    lives_in(b"com,ma:colon=equals");
}

#[test]
fn p07_newline_and_control_characters() {
    lives_in(b"new\nline\ttab\x1b[31m");
}

#[test]
fn p07_not_utf8() {
    lives_in(b"\xff\xfe latin\xe9");
}

#[test]
fn quotes_spaces_and_other_scripts() {
    lives_in("\"it's\" a $HOME * Schäfchen 羊".as_bytes());
}

#[test]
fn p05_paths_longer_than_a_mount_option() {
    lives_in(&[b'x'; 200]);
}

#[test]
fn errors_stay_on_one_line() {
    let world = World::root();
    world.run(&["mount", "no\nsuch\x1b[2J"]).fails(3, &["no\\nsuch"]);
    world.run(&["umount", "no\nsuch"]).fails(3, &["no\\nsuch"]);
}
