//! What umount deletes, and what it must never delete.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::harness::{World, names_in, sh};

#[test]
fn links_are_not_followed() {
    let world = World::root();
    world.lower("low", &["a"]);
    let outside = world.lower("outside", &["precious", "dir/precious"]);
    let merged = world.mount("ov", &["low"]);
    std::os::unix::fs::symlink(&outside, merged.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("precious"), merged.join("file-link")).unwrap();
    fs::create_dir(merged.join("d")).unwrap();
    std::os::unix::fs::symlink("../../../../../outside", merged.join("d/up")).unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
    assert_eq!(names_in(&outside), ["dir", "precious"]);
    assert_eq!(names_in(&outside.join("dir")), ["precious"]);
}

#[test]
fn p28_a_mount_in_the_upper_is_not_entered() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::create_dir_all(merged.join("deep/mnt")).unwrap();
    fs::write(merged.join("deep/file"), "").unwrap();
    let inner = world.data.join("overlay/ov/upper/deep/mnt");
    let precious = world.lower("precious", &["file"]);
    // A bind mount has the same device: only the mount tells.
    sh(&format!("mount --bind {} {}", precious.display(), inner.display()));
    let ran = world.run(&["umount", "ov"]);
    ran.fails(4, &["deep/mnt", "mounted there"]);
    assert_eq!(names_in(&precious), ["file"]);
    // The leftover is known, and goes once the mount is gone.
    let left = world.run(&["ls"]).ok();
    assert!(left.err.contains("leftover") && left.err.contains("deep/mnt"), "{left:?}");
    let gone = world.mounts().pop().unwrap();
    sh(&format!("umount {}", gone.display()));
    assert_eq!(world.run(&["ls"]).ok().err, "");
    world.is_clean();
    assert_eq!(names_in(&precious), ["file"]);
}

#[test]
fn p15_directories_without_permissions() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::create_dir_all(merged.join("no/way")).unwrap();
    fs::write(merged.join("no/way/file"), "").unwrap();
    sh(&format!("chmod 0 {0}/no/way {0}/no; chmod 0 {0}", merged.display()));
    assert_eq!(names_in(&world.data.join("overlay/ov/work")), ["work"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn immutable_and_append_only_files() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::create_dir_all(merged.join("d/e")).unwrap();
    fs::write(merged.join("d/e/f"), "").unwrap();
    fs::write(merged.join("log"), "").unwrap();
    sh(&format!("cd {}; chattr +i d/e/f; chattr +i d/e; chattr +a log; chattr +i d", merged.display()));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn trees_of_any_depth_and_width() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    // 2500 levels: far more than a process may have descriptors open, and a path far too long for one call.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = openat(CWD, &merged, flags, Mode::empty()).unwrap();
    for _ in 0..2500 {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        drop(openat(&dir, "f", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap());
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    drop(dir);
    let wide = merged.join("wide");
    fs::create_dir(&wide).unwrap();
    for n in 0..10000 {
        fs::write(wide.join(format!("f{n}")), "").unwrap();
    }
    for n in 0..1000 {
        fs::create_dir(wide.join(format!("d{n}"))).unwrap();
    }
    let status = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 150; exec \"$0\" umount ov", crate::harness::BIN])
        .env("SHEEP_DATA_DIR", &world.data)
        .status()
        .unwrap();
    assert!(status.success());
    world.is_clean();
}

#[test]
fn special_files_are_deleted_unopened() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {}; mkfifo fifo; mknod null c 1 3; mknod blk b 7 99; rm a; \
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'",
        merged.display()
    ));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn only_what_is_ours_is_reaped() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    let overlays = world.data.join("overlay");
    // The claim of a process killed before it made anything, on a name that was taken.
    fs::write(overlays.join(".new-ov"), "").unwrap();
    // One killed while it was building, one while it was deleting.
    half_made(&overlays, "half");
    fs::write(overlays.join(".new-half"), "").unwrap();
    half_made(&overlays, ".gone-1234");
    // Something that nobody of us made.
    fs::write(overlays.join(".keep"), "").unwrap();
    let ran = world.run(&["ls"]).ok();
    assert_eq!(ran.err, "");
    assert_eq!(world.in_overlay_dir(), [".keep", "ov"]);
    assert_eq!(world.state("ov").unwrap(), "mounted");
}

fn half_made(overlays: &Path, name: &str) {
    for inner in ["upper", "work/work", "merged/sub"] {
        fs::create_dir_all(overlays.join(name).join(inner)).unwrap();
    }
}
