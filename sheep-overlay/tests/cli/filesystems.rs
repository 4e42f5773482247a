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
        if !std::thread::panicking() {
            sh(&format!("umount {0}/fs", self.0.dir.display()));
        }
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

/// Deeds in the overlay, then deeds of others in its lower; what the overlay shows of these, and what is told of them.
fn freezes(world: &World, root: &str, lower: &str, way: &str, how: &str) {
    let run = |args: &[&str]| world.run(&[&["--root", root], args].concat());
    let inside = |script: &str| run(&["exec", "ov", "--", "sh", "-c", script]).ok().out;
    sh(&format!(
        "cd {}/{lower}; rm -rf a c gone d; echo one > a; echo one > mine; echo old > gone; mkdir d; echo two > d/b; chown -R sheeptest: .",
        world.dir.display()
    ));
    let document = run(&["mount", way, "--id", "ov", lower]).json();
    assert_eq!(document["overlay"]["freeze"], how, "{document}");
    assert_eq!(run(&["status", "ov"]).ok().out, "");
    let place = world.dir.join(lower);
    inside(&format!(
        "cd {0} 2>/dev/null || cd {root}/overlay/ov/merged; echo ours > d/b; echo ours > mine; rm a; echo ours > gone",
        place.display()
    ));
    sh(&format!(
        "sleep 0.02; cd {}; echo theirs > a; echo new > c; rm gone; chmod 700 d; echo theirs > d/b",
        place.display()
    ));
    let ran = run(&["status", "ov"]);
    ran.refuses(1, &["ov: the lower was changed in 5 places"]);
    assert_eq!(ran.out, "M /a\nA /c\nM /d\nM /d/b\nD /gone\n");
    if how != "listing" {
        let shown =
            inside(&format!("cd {0} 2>/dev/null || cd {root}/overlay/ov/merged; ls; stat -c %a d", place.display()));
        assert_eq!(shown, "d\ngone\nmine\n755\n", "the overlay shows nothing of it");
    }
    let ran = run(&["apply", "ov"]);
    // To OverlayFS, what the directory was before is a change of the overlay.
    ran.refuses(1, &[if how == "listing" { "4 conflicts" } else { "3 conflicts" }]);
    assert!(ran.out.contains(r#""path":"/gone""#) && ran.out.contains(r#""theirs":"deleted""#), "{}", ran.out);
    run(&["apply", "ov", "--theirs"]).ok();
    assert_eq!(fs::read_to_string(place.join("mine")).unwrap(), "ours\n");
    run(&["apply", "ov", "--ours"]).ok();
    let names: Vec<String> = names_in(&place).into_iter().filter(|name| name != ".sheep-applied").collect();
    assert_eq!(names, ["c", "d", "gone", "mine"]);
    // What was applied is no change of others.
    let left = if how == "listing" { "A /c\n" } else { "A /c\nM /d\n" };
    assert_eq!(run(&["status", "ov"]).out, left);
    // A branch lies on the same, and so does what was put aside.
    run(&["umount", "--keep", "ov"]).ok();
    run(&["snapshot", "ov"]).ok();
    run(&["mount", "--branch", "ov@1", "--id", "branch"]).ok();
    assert_eq!(run(&["diff", "branch"]).ok().out, run(&["diff", "ov"]).ok().out);
    assert_eq!(run(&["status", "branch"]).out, left);
    run(&["umount", "branch"]).ok();
    run(&["mount", "--id", "ov", lower]).ok();
    assert_eq!(inside(&format!("cat {}/d/b || cat {root}/overlay/ov/merged/d/b", place.display())), "ours\n");
    let names = || inside(&format!("cd {} 2>/dev/null || cd {root}/overlay/ov/merged; ls", place.display()));
    let before = names();
    run(&["snapshot", "ov"]).ok();
    assert_eq!(names(), before, "one that is mounted lies on the same, too");
    assert_eq!(before.contains('c'), how == "listing");
    run(&["umount", "ov"]).ok();
    assert_eq!(names_in(&world.dir.join(root).join("overlay")), Vec::<String>::new());
}

#[test]
fn a_lower_that_others_change_is_listed() {
    for world in [World::root(), World::user()] {
        world.lower("low", &[]);
        freezes(&world, "data", "low", "--freeze=listing", "listing");
        freezes(&world, "data", "low", "--freeze", "listing");
        world.run(&["mount", "--freeze=reflink", "low"]).refuses(1, &["--freeze"]);
        world.run(&["mount", "--freeze=btrfs", "low"]).refuses(1, &["--freeze", "no btrfs subvolume"]);
        world.run(&["mount", "--freeze", "--backend", "copy", "low"]).fails(2, &["--freeze is for OverlayFS"]);
        world.is_clean();
    }
}

#[test]
fn a_lower_that_others_change_is_held_by_a_snapshot() {
    let world = World::root();
    let fs = Fs::new(&world, "btrfs", "");
    subvolume(&world);
    freezes(&world, "fs/data", "fs/sub", "--freeze", "btrfs");
    drop(fs);
}

#[test]
fn a_lower_that_others_change_is_held_by_shared_content() {
    let world = World::root();
    let fs = Fs::new(&world, "xfs -q", "");
    sh(&format!("mkdir {}/fs/low", world.dir.display()));
    freezes(&world, "fs/data", "fs/low", "--freeze", "reflink");
    sh(&format!("cd {}/fs/low; mkdir m; mount -t tmpfs none m", world.dir.display()));
    let run = |args: &[&str]| world.run(&[&["--root", "fs/data"], args].concat());
    run(&["mount", "--freeze=reflink", "fs/low"]).fails(2, &["fs/low/m is mounted below the lower"]);
    assert_eq!(run(&["mount", "--freeze", "--id", "ov", "fs/low"]).json()["overlay"]["freeze"], "listing");
    run(&["umount", "ov"]).ok();
    sh(&format!("umount {}/fs/low/m", world.dir.display()));
    drop(fs);
}

#[test]
fn without_a_listing_times_tell_what_was_changed() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "d/c"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("echo ours > {}/b", merged.display()));
    world.run(&["apply", "ov"]).ok();
    world.run(&["status", "ov"]).ok();
    sh(&format!("sleep 0.02; cd {}; echo theirs > a; chmod 600 d/c; rm b", low.display()));
    let ran = world.run(&["status", "ov", "--json"]);
    ran.refuses(1, &["2 places"]);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[0], r#"{"lower":{"overlay":"ov","path":"/a","change":"modified"}}"#);
    world.run(&["status", "nothing"]).fails(3, &["nothing"]);
    world.run(&["umount", "ov"]).ok();
}
