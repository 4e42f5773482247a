//! What depends on the file system: snapshots and shared content.

use std::fs;

use crate::harness::{World, names_in, sh};

/// A file system in a file, mounted on the world's `fs`; unmounted at the end.
struct Fs<'a>(&'a World);

impl<'a> Fs<'a> {
    fn new(world: &'a World, mkfs: &str, options: &str) -> Self {
        sh(&format!(
            "cd {}; mkdir fs; truncate -s 512M image; mkfs.{mkfs} image > /dev/null 2>&1; mount -o loop{options} image fs; chmod 1777 fs",
            world.dir.display()
        ));
        Fs(world)
    }
}

impl Drop for Fs<'_> {
    fn drop(&mut self) {
        sh(&format!("umount {0}/fs", self.0.dir.display()));
    }
}

/// A subvolume with some files, and the data directory beside it.
fn subvolume(world: &World) {
    let script = "btrfs subvolume create fs/sub > /dev/null; cd fs/sub; echo one > a; mkdir d; echo two > d/b; echo old > gone; \
                  chown -R sheeptest: .; chmod 755 .";
    sh(&format!("cd {}; {script}", world.dir.display()));
}

#[test]
fn a_snapshot_of_a_subvolume() {
    for world in [World::root(), World::user()] {
        let fs = Fs::new(&world, "btrfs", "");
        subvolume(&world);
        let run = |args: &[&str]| world.run(&[&["--root", "fs/data"], args].concat());
        let document = run(&["mount", "--backend", "btrfs", "--id", "ov", "fs/sub"]).json();
        assert_eq!(document["overlay"]["backend"], "btrfs");
        let merged = world.dir.join("fs/data/overlay/ov/merged");
        assert_eq!(names_in(&merged), ["a", "d", "gone"]);
        assert_eq!(run(&["diff", "ov"]).ok().out, "", "nothing is changed yet");
        sh(&format!("cd {}; echo more >> a; rm gone; echo n > d/new; mv d/b d/c", merged.display()));
        assert_eq!(run(&["diff", "ov"]).ok().out, "M /a\nR /d/b -> /d/c\nA /d/new\nD /gone\n");
        assert_eq!(fs::read_to_string(world.dir.join("fs/sub/a")).unwrap(), "one\n");
        run(&["umount", "--keep", "ov"]).ok();
        run(&["mount", "--id", "ov"]).ok();
        assert!(run(&["why", "ov", "a"]).ok().out.contains("copy"));
        run(&["umount", "ov"]).ok();
        assert_eq!(names_in(&world.dir.join("fs/data/overlay")), Vec::<String>::new());
        run(&["mount", "--backend", "btrfs", "fs/sub/d"]).fails(1, &["no btrfs subvolume"]);
        drop(fs);
    }
}

#[test]
fn a_copy_that_shares_all_or_is_none() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--backend", "reflink", "low"]).fails(1, &["low/a", "reflink"]);
    world.is_clean();
    let fs = Fs::new(&world, "xfs -q", "");
    sh(&format!("cd {}/fs; mkdir low; head -c 20M /dev/urandom > low/big", world.dir.display()));
    let run = |args: &[&str]| world.run(&[&["--root", "fs/data"], args].concat());
    run(&["mount", "--backend", "reflink", "--id", "ov", "fs/low"]).ok();
    let used = rustix::fs::statvfs(world.dir.join("fs")).unwrap();
    sh(&format!("cd {}/fs; cmp low/big data/overlay/ov/merged/big", world.dir.display()));
    run(&["umount", "ov"]).ok();
    let after = rustix::fs::statvfs(world.dir.join("fs")).unwrap();
    let shared = (after.f_bfree - used.f_bfree) * used.f_frsize;
    assert!(shared < 1 << 20, "{shared} bytes were freed");
    drop(fs);
}
