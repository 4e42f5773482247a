//! The whole tree: what is mounted below a lower is part of the view.

use std::fs;

use crate::harness::{World, sh, until};

/// A lower with a tmpfs, a bind mount and a file mount below it.
struct Below<'a>(&'a World);

impl<'a> Below<'a> {
    fn new(world: &'a World) -> Self {
        world.lower("low", &["t/under", "b/under", "file", "d/f"]);
        world.lower("other", &["o"]);
        fs::write(world.dir.join("mounted"), "mounted").unwrap();
        sh(&format!(
            "cd {}; mount -t tmpfs tmpfs low/t; echo t > low/t/t; mount --bind other low/b; mount --bind mounted low/file; \
             chown -R sheeptest: low other mounted",
            world.dir.display()
        ));
        Below(world)
    }

    /// Nothing that was done in the view has reached what is mounted.
    fn is_as_before(&self) {
        let dir = self.0.dir.display();
        let script = format!("cd {dir}; ls low/t low/b other; cat mounted low/file low/t/t");
        let seen = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&seen.stdout), "low/b:\no\n\nlow/t:\nt\n\nother:\no\nmountedmountedt\n");
    }
}

impl Drop for Below<'_> {
    fn drop(&mut self) {
        sh(&format!("cd {}/low; umount t b file", self.0.dir.display()));
    }
}

const DEEDS: &str =
    "test \"$(cat file)\" = mounted; echo w > file; echo w > t/w; echo ww > t/t; rm b/o; echo n > b/n; echo n > d/n";
const CHANGES: &str = "A /b/n\nD /b/o\nA /d/n\nM /file\nM /t/t\nA /t/w\n";

fn all_is_there(world: &World) {
    let below = Below::new(world);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let low = world.dir.join("low");
    assert_eq!(
        world.run(&["exec", "ov", "sh", "-c", "echo x > d/new; $0 diff .; rm d/new", world.program()]).ok().out,
        "A /d/new\n"
    );
    world.run(&["exec", "ov", "sh", "-ec", &format!("cd {}; {DEEDS}", low.display())]).ok();
    below.is_as_before();
    assert_eq!(world.run(&["diff", "ov"]).ok().out, CHANGES);
    world.run(&["umount", "--keep", "ov"]).ok();
    assert_eq!(world.run(&["diff", "ov"]).ok().out, CHANGES);
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(world.run(&["exec", "ov", "cat", "t/t", "file"]).ok().out, "ww\nw\n");
    world.run(&["umount", "ov"]).ok();
    below.is_as_before();
    drop(below);
    world.is_clean();
}

#[test]
fn p19_mounts_below_the_lower_as_root() {
    all_is_there(&World::root());
}

#[test]
fn p19_mounts_below_the_lower_as_a_plain_user() {
    all_is_there(&World::user());
}

/// What is unmounted by others, or made anew, is no change of the overlay's; what was done in the part is.
fn what_goes_from_below(world: &World) {
    let below = Below::new(world);
    let low = world.dir.join("low");
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let dir = low.display();
    let exchange = format!("cd {dir}; umount t b; mv b away; mkdir -m 705 b; chmod 705 t");
    let back = format!("cd {dir}; rmdir b; mv away b; mount -t tmpfs tmpfs t; mount --bind ../other b");
    sh(&exchange);
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "");
    world.run(&["exec", "ov", "chmod", "711", "t"]).ok();
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "M /t\n");
    world.run(&["umount", "ov"]).ok();
    sh(&back);
    // What a snapshot has of the part is told, also where the upper has nothing of it.
    world.run(&["mount", "--id", "ov", "low"]).ok();
    world.run(&["exec", "ov", "sh", "-c", "echo s > t/s"]).ok();
    world.run(&["snapshot", "ov"]).ok();
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["reset", "ov@0"]).ok();
    sh(&exchange);
    let told = world.run(&["diff", "ov@0..1"]).ok().out;
    assert!(told.contains("A /t/s\n"), "{told}");
    world.run(&["umount", "ov"]).ok();
    sh(&back);
    drop(below);
    world.is_clean();
}

#[test]
fn what_goes_from_below_as_root() {
    what_goes_from_below(&World::root());
}

#[test]
fn what_goes_from_below_as_a_plain_user() {
    what_goes_from_below(&World::user());
}

#[test]
fn p19_they_can_be_left_out() {
    let world = World::root();
    let below = Below::new(&world);
    world.run(&["mount", "--id", "ov", "--no-recursive", "low"]).ok();
    assert_eq!(world.run(&["exec", "ov", "ls", "t", "b"]).ok().out, "b:\nunder\n\nt:\nunder\n");
    world.run(&["umount", "ov"]).ok();
    below.is_as_before();
    drop(below);
    world.is_clean();
}

#[test]
fn p27_a_busy_part_leaves_the_view_whole() {
    let world = World::root();
    let below = Below::new(&world);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let merged = world.merged("ov");
    let mut inside = std::process::Command::new("sleep").arg("60").current_dir(merged.join("b")).spawn().unwrap();
    world.run(&["umount", "ov"]).fails(4, &["in use by", "sleep"]);
    assert!(merged.join("t/t").exists() && merged.join("b/o").exists(), "put back");
    inside.kill().unwrap();
    inside.wait().unwrap();
    world.run(&["umount", "ov"]).ok();
    drop(below);
    world.is_clean();
}

fn the_root_itself(world: &World) {
    let below = Below::new(world);
    world.run(&["mount", "--id", "ov", "/"]).ok();
    let low = world.dir.join("low");
    let script = format!(
        "cd {}; {DEEDS}; test -c /dev/null; test -e /proc/self/stat; test -d /sys/kernel; echo x > /tmp/.sheep-root",
        low.display()
    );
    world.run(&["exec", "ov", "sh", "-ec", &script]).ok();
    below.is_as_before();
    assert!(!std::path::Path::new("/tmp/.sheep-root").exists());
    let diff = world.run(&["diff", "ov"]).ok().out;
    for line in CHANGES.lines() {
        let (letter, path) = line.split_once(' ').unwrap();
        let wanted = format!("{letter} {}{path}", low.display());
        assert!(diff.lines().any(|line| line == wanted), "{wanted} in {diff}");
    }
    assert!(diff.contains("A /tmp/.sheep-root\n"), "{diff}");
    world.run(&["umount", "ov"]).ok();
    drop(below);
    world.is_clean();
}

#[test]
fn the_root_as_root() {
    the_root_itself(&World::root());
}

#[test]
fn the_root_as_a_plain_user() {
    the_root_itself(&World::user());
}

#[test]
fn p13_what_is_hidden_and_the_data_directory_itself() {
    for world in [World::root(), World::user()] {
        world.lower("low", &["secret/key", "d/f", "d/g"]);
        sh(&format!("chown -R sheeptest: {}/low", world.dir.display()));
        world.run(&["mount", "--id", "ov", "--hide", "/low/secret", "--hide", "low/d/f", "."]).ok();
        let script = "cd low; ls; ls secret; cat d/f; ls ../data/overlay; echo x > d/g";
        assert_eq!(world.run(&["exec", "ov", "sh", "-c", script]).ok().out, "d\nsecret\n");
        assert_eq!(world.run(&["diff", "ov"]).ok().out, "M /low/d/g\n");
        world.run(&["mount", "--hide", "/", "low"]).fails(2, &["--hide"]);
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn lazily_unmounted_and_deleted_when_nobody_is_inside() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let mut inside = std::process::Command::new("sleep").arg("60").current_dir(world.merged("ov")).spawn().unwrap();
    let ran = world.run(&["umount", "--lazy", "ov"]).ok();
    assert!(ran.err.contains("still in use"), "{ran:?}");
    assert_eq!(world.state("ov").unwrap(), "lazy");
    world.run(&["umount", "ov"]).fails(4, &["lazily"]);
    world.run(&["mount", "--id", "ov"]).fails(4, &["lazily"]);
    assert!(world.run(&["gc"]).ok().err.contains("stays"));
    inside.kill().unwrap();
    inside.wait().unwrap();
    until(|| world.run(&["gc"]).ok().out.contains("deleted ov"));
    world.is_clean();
}

#[test]
fn at_a_place_of_the_users_choice() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let low = low.to_str().unwrap();
    let document = world.run(&["mount", "--id", "ov", "--at", "low", "low"]).json();
    assert_eq!(document["overlay"]["merged"], low);
    sh(&format!("echo b > {low}/b"));
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "A /b\n");
    assert_eq!(world.run(&["diff", low]).ok().out, "A /b\n", "by its place");
    world.run(&["umount", "ov"]).ok();
    assert!(!std::path::Path::new(low).join("b").exists());
    world.run(&["mount", "--at", "nowhere", "low"]).fails(3, &["--at", "nowhere"]);
    world.run(&["mount", "--at", "/", "low"]).fails(2, &["--at"]);
    world.is_clean();
}

#[test]
fn owners_shown_as_others() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    sh(&format!("chown 5:6 {}/a", low.display()));
    world.run(&["mount", "--id", "ov", "--idmap", "b:0:100000:1000", "low"]).ok();
    let ran = world.run(&["exec", "ov", "stat", "-c", "%u %g", "a"]).ok();
    assert_eq!(ran.out, "100005 100006\n");
    world.run(&["umount", "ov"]).ok();
    world.run(&["mount", "--idmap", "1:2", "low"]).fails(2, &["--idmap", "1:2"]);
    world.is_clean();
}

#[test]
fn a_size_needs_quotas_and_says_so() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--size", "lots", "low"]).fails(2, &["--size", "lots"]);
    world.run(&["mount", "--size", "8m", "low"]).fails(1, &["project quotas", "--tmpfs"]);
    world.is_clean();
}
