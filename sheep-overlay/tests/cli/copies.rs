//! The copy backend as `mount` chooses and reports it; what a copy is like is tested with the copying itself.

use std::fs;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{World, names_in, sh, until};

#[test]
fn a_plain_user_gets_a_copy_and_is_told_why() {
    let world = World::user();
    world.lower("low", &["a", "gone"]);
    world.lower("top", &["b"]);
    let ran = world.run(&["mount", "--id", "ov", "low", "top"]);
    let document = ran.json();
    assert_eq!(document["overlay"]["backend"], "copy");
    let reason = document["overlay"]["backendReason"].as_str().unwrap();
    assert!(reason.contains("not permitted"), "{reason}");
    assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    assert!(ran.err.contains("copied") && ran.err.contains("not permitted"), "{ran:?}");
    let merged = world.merged("ov");
    assert_eq!(names_in(&merged), ["a", "b", "gone"]);
    sh(&format!("cd {}; setpriv --reuid sheeptest --clear-groups touch new", merged.display()));
    assert_eq!(names_in(&world.dir.join("low")), ["a", "gone"]);
    assert_eq!(world.state("ov").unwrap(), "mounted");
    world.run(&["mount", "--id", "ov"]).fails(4, &["in use"]);

    world.run(&["umount", "--keep", "ov"]).ok();
    assert_eq!(world.state("ov").unwrap(), "kept");
    let again = world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(again.err, "");
    assert_eq!(names_in(&merged), ["a", "b", "gone", "new"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn a_plain_user_who_insists_on_the_kernel_is_told_why_not() {
    let world = World::user();
    world.lower("low", &["a"]);
    world.run(&["mount", "--backend", "kernel", "low"]).fails(1, &["fsopen(overlay)", "not permitted"]);
    world.run(&["mount", "--read-only", "low"]).fails(1, &["--read-only", "root"]);
    world.run(&["mount", "--read-only", "--backend", "copy", "low"]).fails(2, &["--read-only", "root"]);
    world.is_clean();
}

#[test]
fn a_plain_users_directories_without_permissions_are_deleted() {
    let world = World::user();
    world.lower("low", &["d/e/f", "d/g"]);
    sh(&format!("chown -R sheeptest: {0}/low; chmod 555 {0}/low/d/e {0}/low/d", world.dir.display()));
    world.run(&["mount", "--id", "ov", "low"]).ok();
    sh(&format!("chmod 0 {}/d/e", world.merged("ov").display()));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p10_an_upper_on_overlayfs_means_a_copy() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let outer = world.mount("outer", &["low"]);
    let root = outer.join("data");
    let root = root.to_str().unwrap();
    let low = low.to_str().unwrap();
    world.run(&["--root", root, "mount", "--backend", "kernel", low]).fails(1, &["whiteouts"]);
    let ran = world.run(&["--root", root, "mount", "--id", "inner", low]);
    assert_eq!(ran.json()["overlay"]["backend"], "copy");
    assert!(ran.err.contains("copied"), "{ran:?}");
    assert_eq!(names_in(&outer.join("data/overlay/inner/merged")), ["a"]);
    world.run(&["--root", root, "umount", "inner"]).ok();
    assert_eq!(names_in(&outer.join("data/overlay")), Vec::<String>::new());
}

#[test]
fn a_copy_can_be_asked_for_and_be_read_only() {
    let world = World::root();
    world.lower("low", &["a"]);
    let ran = world.run(&["mount", "--backend", "copy", "--read-only", "--id", "ov", "low"]);
    assert_eq!(ran.json()["overlay"]["backend"], "copy");
    assert_eq!(ran.err, "", "as asked for: nothing to say");
    let merged = world.merged("ov");
    assert_eq!(fs::write(merged.join("x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    world.run(&["umount", "--keep", "ov"]).ok();
    assert!(world.mounts().is_empty());
    world.mount("ov", &["low"]);
    fs::write(merged.join("x"), "").unwrap();
    world.run(&["mount", "--id", "other", "--backend", "copy", "low"]).ok();
    world.run(&["umount", "ov", "other"]).ok();
    world.is_clean();
}

#[test]
fn a_copy_in_use_is_not_pulled_away() {
    let world = World::root();
    world.lower("low", &["dir/a"]);
    world.run(&["mount", "--backend", "copy", "--id", "ov", "low"]).ok();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("100")
        .current_dir(world.merged("ov").join("dir"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    world.run(&["umount", "ov"]).fails(4, &["in use by sleep", &format!("(pid {})", sleeper.id())]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn ctrl_c_ends_a_copy_and_removes_it() {
    let world = World::root();
    let low = world.lower("low", &[]);
    sh(&format!("cd {}; for d in 1 2 3 4 5 6; do mkdir $d; (cd $d; seq 3000 | xargs touch); done", low.display()));
    for wait in [10, 40, 90, 150] {
        let mut child = world
            .command(&["mount", "--backend", "copy", "--id", "ov", "low"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        if child.wait().unwrap().success() {
            world.run(&["umount", "ov"]).ok();
        }
        world.is_clean();
    }
}

#[test]
fn a_killed_copy_is_reaped() {
    let world = World::root();
    let low = world.lower("low", &[]);
    sh(&format!("cd {}; for d in 1 2 3 4 5 6; do mkdir $d; (cd $d; seq 3000 | xargs touch); done", low.display()));
    let mut child =
        world.command(&["mount", "--backend", "copy", "--id", "ov", "low"]).stdout(Stdio::null()).spawn().unwrap();
    until(|| world.merged("ov").join("1").exists());
    // While it lives, nobody takes it for a leftover, and it cannot be unmounted yet.
    assert_eq!(world.run(&["ls"]).ok().out.lines().count(), 1);
    let early = world.run(&["umount", "ov"]);
    child.kill().unwrap();
    child.wait().unwrap();
    early.fails(4, &["ov is being made"]);
    assert_eq!(world.in_overlay_dir(), [".new-ov", "ov"]);
    world.run(&["ls"]).ok();
    world.is_clean();
}
