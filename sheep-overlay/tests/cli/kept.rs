//! `umount --keep`, taking up again, restarts and umounts by hand.

use std::fs;

use serde_json::Value;

use crate::harness::{World, names_in, sh};

fn record(world: &World, id: &str) -> Value {
    serde_json::from_slice(&fs::read(world.data.join("overlay").join(id).join("overlay.json")).unwrap()).unwrap()
}

/// Makes it look as if the machine had been restarted since.
fn restart(world: &World, id: &str) {
    if world.merged(id).join("low").exists() {
        unreachable!("no test has that");
    }
    sh(&format!("mountpoint -q {0} && umount {0} || true", world.merged(id).display()));
    let mut overlay = record(world, id);
    overlay["bootId"] = "00000000-0000-0000-0000-000000000000".into();
    fs::write(world.data.join("overlay").join(id).join("overlay.json"), overlay.to_string()).unwrap();
}

#[test]
fn changes_are_kept_and_taken_up() {
    let world = World::root();
    world.lower("low", &["a", "b"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "new").unwrap();
    fs::remove_file(merged.join("a")).unwrap();
    let kept = world.run(&["umount", "--keep", "ov"]).json();
    assert_eq!(kept["overlay"].get("mountId"), None);
    assert_eq!(world.state("ov").unwrap(), "kept");
    assert!(world.mounts().is_empty());
    world.run(&["umount", "--keep", "ov"]).ok();

    for lowers in [&[][..], &["low"]] {
        world.mount("ov", lowers);
        assert_eq!(names_in(&merged), ["b", "new"]);
        world.run(&["umount", "--keep", "ov"]).ok();
    }
    world.lower("other", &[]);
    world.run(&["mount", "--id", "ov", "other"]).fails(2, &["other lowers", "low"]);
    world.run(&["mount", "--id", "ov", "--backend", "copy"]).fails(2, &["kernel backend"]);
    assert_eq!(world.state("ov").unwrap(), "kept");

    assert_eq!(world.run(&["mount", "--id", "ov", "--read-only"]).json()["overlay"]["readOnly"], true);
    assert_eq!(names_in(&merged), ["b", "new"], "read-only shows the changes too");
    fs::write(merged.join("x"), "").unwrap_err();
    world.run(&["umount", "--keep", "ov"]).ok();
    world.mount("ov", &[]);
    fs::write(merged.join("x"), "").unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn a_lower_that_went_away_is_missed() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    world.run(&["umount", "--keep", "ov"]).ok();
    fs::rename(world.dir.join("low"), world.dir.join("moved")).unwrap();
    world.run(&["mount", "--id", "ov"]).fails(3, &["low", "no such directory"]);
    assert_eq!(world.state("ov").unwrap(), "kept");
    fs::rename(world.dir.join("moved"), world.dir.join("low")).unwrap();
    world.mount("ov", &[]);
}

#[test]
fn p30_after_a_restart_the_overlay_is_taken_up() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "").unwrap();
    restart(&world, "ov");
    assert_eq!(world.state("ov").unwrap(), "stale");
    let seen = world.run(&["inspect", "ov"]).json();
    assert_eq!(seen["overlay"].get("mountId"), None);
    world.mount("ov", &[]);
    assert_eq!(names_in(&merged), ["a", "new"]);
    assert_eq!(world.state("ov").unwrap(), "mounted");
    restart(&world, "ov");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p30_unmounted_by_hand() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "").unwrap();
    sh(&format!("umount {}", merged.display()));
    assert_eq!(world.state("ov").unwrap(), "stale");
    world.mount("ov", &[]);
    assert_eq!(names_in(&merged), ["a", "new"]);
    sh(&format!("umount {}", merged.display()));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p17_a_volatile_upper_is_taken_up_after_keep() {
    let world = World::root();
    world.lower("low", &["a"]);
    let document = world.run(&["mount", "--id", "ov", "--volatile", "low"]).json();
    assert_eq!(document["overlay"]["volatile"], true);
    let merged = world.merged("ov");
    let options = sh(&format!("grep {} /proc/self/mountinfo", merged.display()));
    assert!(options.contains("volatile"), "{options}");
    fs::write(merged.join("new"), "").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    world.mount("ov", &[]);
    assert_eq!(names_in(&merged), ["a", "new"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p17_a_volatile_upper_that_was_unmounted_by_hand_is_settled_in_the_same_boot_only() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--id", "ov", "--volatile", "low"]).ok();
    let merged = world.merged("ov");
    fs::write(merged.join("new"), "").unwrap();
    sh(&format!("umount {}", merged.display()));
    world.run(&["mount", "--id", "ov", "--volatile"]).ok();
    assert_eq!(names_in(&merged), ["a", "new"]);
    restart(&world, "ov");
    world.run(&["mount", "--id", "ov"]).fails(1, &["volatile", "torn", "sheep-overlay umount ov"]);
    // Keeping it once more does not make it whole.
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", "--id", "ov"]).fails(1, &["torn"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn a_data_directory_may_be_moved() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    fs::rename(&world.data, world.dir.join("elsewhere")).unwrap();
    let root = world.dir.join("elsewhere");
    let out = world.run(&["--root", "elsewhere", "mount", "--id", "ov", "--print", "merged"]).ok().out;
    assert_eq!(out.trim_end(), root.join("overlay/ov/merged").to_str().unwrap());
    assert_eq!(names_in(&root.join("overlay/ov/merged")), ["a", "new"]);
    world.run(&["--root", "elsewhere", "umount", "ov"]).ok();
}

#[test]
fn an_overlay_stays_while_another_is_stacked_on_it() {
    let world = World::root();
    world.lower("low", &["a"]);
    let base = world.mount("base", &["low"]);
    fs::write(base.join("b"), "").unwrap();
    let merged = world.mount("top", &[base.to_str().unwrap()]);
    world.run(&["umount", "base"]).fails(4, &["base", "in use as a lower by overlay top"]);
    world.run(&["umount", "--keep", "base"]).fails(4, &["overlay top"]);
    assert_eq!(names_in(&merged), ["a", "b"]);
    // Kept, it still means nothing without its lower; both can be kept, and taken up in the same order again.
    world.run(&["umount", "--keep", "top"]).ok();
    world.run(&["umount", "base"]).fails(4, &["overlay top"]);
    world.run(&["umount", "--keep", "base"]).ok();
    world.run(&["mount", "--id", "top"]).fails(2, &["base is not mounted"]);
    world.mount("base", &[]);
    world.mount("top", &[]);
    assert_eq!(names_in(&merged), ["a", "b"]);
    world.run(&["umount", "top", "base"]).ok();
    world.is_clean();
}
