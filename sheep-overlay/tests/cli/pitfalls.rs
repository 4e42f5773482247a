//! Pitfalls of OverlayFS that have no better place; the numbers are those of the list.

use std::fs;
use std::process::Command;

use crate::harness::{BIN, World, names_in, ran, sh};

#[test]
fn p02_a_lower_that_was_replaced_is_no_stale_handle() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    // With index=on the kernel would refuse the upper over another directory of the same name (ESTALE).
    sh(&format!("cp -a {0} {0}.copy; rm -r {0}; mv {0}.copy {0}", low.display()));
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(names_in(&merged), ["a", "new"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p06_a_mount_is_known_as_ours_whatever_its_source_is_called() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.lower("place", &["there"]);
    world.run(&["mount", "--id", "ov", "--at", "place", "low"]).ok();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = world.dir.join("place");
    let line = table.lines().find(|line| line.contains(&format!(" {} ", point.display()))).unwrap();
    assert!(line.contains(" - overlay "), "{line}");
    // As a command that was killed before it was done leaves it: mounted outside of its directory, its name only claimed.
    let overlays = world.data.join("overlay");
    fs::rename(overlays.join("ov/lock"), overlays.join(".new-ov")).unwrap();
    world.run(&["ls"]).ok();
    assert_eq!(names_in(&point), ["there"]);
    world.is_clean();

    // What is not ours there is not touched.
    world.run(&["mount", "--id", "ov", "--at", "place", "low"]).ok();
    sh(&format!("umount {0}; mount -t tmpfs tmpfs {0}; touch {0}/theirs", point.display()));
    fs::rename(overlays.join("ov/lock"), overlays.join(".new-ov")).unwrap();
    world.run(&["ls"]).ok();
    assert_eq!(names_in(&point), ["theirs"]);
    sh(&format!("umount {}", point.display()));
    world.is_clean();
}

#[test]
fn p11_upper_and_work_that_are_not_on_one_mount_are_refused() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "kept").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    let work = world.data.join("overlay/ov/work");
    sh(&format!("mount -t tmpfs tmpfs {}", work.display()));
    world.run(&["mount", "--id", "ov"]).fails(1, &["mount overlay"]);
    sh(&format!("umount {}", work.display()));
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(fs::read_to_string(merged.join("new")).unwrap(), "kept");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p14_what_the_kernel_empties_is_its_own() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "kept").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    let dir = world.data.join("overlay/ov");
    sh(&format!("touch {}/work/work/left-by-a-crash", dir.display()));
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(names_in(&dir.join("work/work")), Vec::<String>::new());
    assert_eq!(names_in(&dir.join("upper")), ["new"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p16_other_lowers_are_an_error_and_not_ignored() {
    let world = World::root();
    for lower in ["low", "other"] {
        world.lower(lower, &["a"]);
    }
    world.mount("ov", &["low"]);
    world.run(&["mount", "--id", "ov", "other"]).fails(4, &["mounted"]);
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", "--id", "ov", "other"]).fails(2, &["other lowers", "/low"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p18_what_is_kept_is_synced_and_what_is_dropped_is_not() {
    let world = World::root();
    world.lower("low", &["a"]);
    let syncs = |args: &[&str]| {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=syncfs,sync,fsync", "-o", "trace", BIN]).args(args);
        ran(command.current_dir(&world.dir).env("SHEEP_DATA_DIR", &world.data).output().unwrap()).ok();
        fs::read_to_string(world.dir.join("trace")).unwrap().matches("syncfs(").count()
    };
    let merged = world.data.join("overlay/ov/merged");
    for (volatile, end, want) in [(true, "--keep", 1), (true, "", 0), (false, "", 0)] {
        world
            .run(&[&["mount", "--id", "ov"][..], if volatile { &["--volatile"] } else { &[] }, &["low"]].concat())
            .ok();
        fs::write(merged.join("new"), vec![7; 1 << 20]).unwrap();
        let args: Vec<&str> = ["umount", end, "ov"].into_iter().filter(|arg| !arg.is_empty()).collect();
        assert_eq!(syncs(&args), want, "{args:?} volatile: {volatile}");
        if end == "--keep" {
            assert_eq!(fs::read(world.data.join("overlay/ov/upper/new")).unwrap().len(), 1 << 20);
            world.run(&["umount", "ov"]).ok();
        }
    }
    world.is_clean();
}
