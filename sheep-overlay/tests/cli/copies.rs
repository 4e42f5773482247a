//! The copy backend as `mount` chooses and reports it; what a copy is like is tested with the copying itself.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Ran, World, names_in, ran, sh, until};

/// Where there are no user namespaces (none is made in a chroot).
fn without_namespaces(world: &World, args: &str) -> Ran {
    let script = format!(
        "mkdir -p {0}/host && mount --rbind / {0}/host && exec chroot {0}/host setpriv --reuid sheeptest --regid sheeptest \
         --clear-groups env SHEEP_DATA_DIR={1} {0}/sheep-overlay {args}",
        world.dir.display(),
        world.data.display()
    );
    ran(Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap())
}

#[test]
fn without_user_namespaces_a_plain_user_gets_a_copy_and_is_told_why() {
    let world = World::user();
    world.lower("low", &["a", "gone"]);
    world.lower("top", &["b"]);
    let dir = world.dir.display();
    let ran = without_namespaces(&world, &format!("mount --id ov {dir}/low {dir}/top"));
    let document = ran.json();
    assert_eq!(document["overlay"]["backend"], "copy");
    let reason = document["overlay"]["backendReason"].as_str().unwrap();
    assert!(reason.contains("a user namespace: Operation not permitted"), "{reason}");
    assert!(ran.err.lines().last().unwrap().contains("copied"), "{ran:?}");
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
    sh(&format!("rmdir {dir}/host"));
    world.is_clean();
}

#[test]
fn a_plain_user_who_insists_is_told_why_not() {
    let world = World::user();
    world.lower("low", &["a"]);
    let low = world.dir.join("low").display().to_string();
    without_namespaces(&world, &format!("mount --backend kernel {low}"))
        .refuses(1, &["a user namespace", "not permitted"]);
    without_namespaces(&world, &format!("mount --read-only {low}")).refuses(1, &["--read-only", "root"]);
    world.run(&["mount", "--read-only", "--backend", "copy", "low"]).fails(2, &["--read-only", "root"]);
    sh(&format!("rmdir {}/host", world.dir.display()));
    world.is_clean();
}

#[test]
fn a_plain_users_directories_without_permissions_are_deleted() {
    let world = World::user();
    world.lower("low", &["d/e/f", "d/g"]);
    sh(&format!("chown -R sheeptest: {0}/low; chmod 555 {0}/low/d/e {0}/low/d", world.dir.display()));
    world.run(&["mount", "--backend", "copy", "--id", "ov", "low"]).ok();
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
