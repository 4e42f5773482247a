//! `snapshot`, `log`, `reset`, `squash`, `mount --branch` and the ranges of `diff`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::harness::{World, kernel, names_in, sh, until};

/// Runs a script in an overlay, wherever it is seen.
#[track_caller]
fn act(world: &World, id: &str, script: &str) {
    let low = world.dir.join("low");
    let place = if world.is_user() { low } else { world.merged(id) };
    world.run(&["exec", id, "sh", "-ec", &format!("cd {}; {script}", place.display())]).ok();
}

/// What an overlay shows: each path, its mode, type, owner, time and content.
#[track_caller]
fn view(world: &World, id: &str) -> String {
    let script =
        "find . -printf '%p %y %m %U %G %T@ %l\\n' | LC_ALL=C sort; find . -type f | LC_ALL=C sort | xargs -r md5sum";
    let low = world.dir.join("low");
    let place = if world.is_user() { low } else { world.merged(id) };
    world.run(&["exec", id, "sh", "-ec", &format!("cd {}; {script}", place.display())]).ok().out
}

#[track_caller]
fn diff(world: &World, what: &str) -> String {
    world.run(&["diff", what]).ok().out
}

#[track_caller]
fn snapshot(world: &World, id: &str) -> Value {
    let made = world.run(&["snapshot", id]).json();
    assert_eq!(made["overlay"]["head"], made["snapshot"]["number"], "{made}");
    made["snapshot"].clone()
}

const FIRST: &str = "echo 1 > one; rm a; mkdir new; chmod 750 new; echo x > new/x";
const SECOND: &str = "echo 2 > two; rm one; rm -r d; mkdir d; echo 3 > d/three; mv new/x new/y";
const FIRST_CHANGES: &str = "D /a\nA /new\nA /new/x\nA /one\n";
const BOTH_CHANGES: &str = "D /a\nO /d\nD /d/b\nA /d/three\nA /new\nA /new/y\nA /two\n";

/// The worlds of root and of an ordinary user, each with a lower.
fn worlds() -> [World; 2] {
    [World::root(), World::user()].map(|world| {
        let low = world.lower("low", &["a", "d/b", "c"]);
        sh(&format!("chown -R sheeptest: {0}; chmod 751 {0}; touch -d 2001-01-01 {0}", low.display()));
        world
    })
}

fn snapshots_and_back(world: &World, options: &[&str], live: &str) {
    world.run(&[&["mount", "--id", "ov"], options, &["low"]].concat()).ok();
    let began = view(world, "ov");
    act(world, "ov", FIRST);
    let first = view(world, "ov");
    let made = snapshot(world, "ov");
    assert_eq!((&made["number"], &made["parent"], &made["live"]), (&1.into(), &0.into(), &live.into()), "{made}");
    assert_eq!(view(world, "ov"), first);
    act(world, "ov", SECOND);
    let second = view(world, "ov");
    assert_eq!(snapshot(world, "ov")["parent"], 1);
    assert_eq!(view(world, "ov"), second);

    assert_eq!(diff(world, "ov"), BOTH_CHANGES);
    assert_eq!(diff(world, "ov@1"), FIRST_CHANGES);
    assert_eq!(diff(world, "ov@2"), BOTH_CHANGES);
    assert_eq!(diff(world, "ov@1..ov@2"), "O /d\nD /d/b\nA /d/three\nR /new/x -> /new/y\nD /one\nA /two\n");
    assert_eq!(diff(world, "ov@2..1"), "O /d\nA /d/b\nD /d/three\nR /new/y -> /new/x\nA /one\nD /two\n");
    assert_eq!(diff(world, "ov@2.."), "");
    act(world, "ov", "echo more >> two");
    assert_eq!(diff(world, "ov@2.."), "M /two\n");
    assert_eq!(diff(world, "ov@0..1"), FIRST_CHANGES);

    // Back to the head, to another one, and to the beginning; the snapshots stay.
    let back = world.run(&["reset", "ov"]).json();
    assert_eq!((&back["reset"]["head"], &back["reset"]["live"]), (&2.into(), &live.into()));
    assert_eq!(view(world, "ov"), second);
    assert_eq!(world.run(&["reset", "--print", "head", "ov@1"]).ok().out, "1\n");
    assert_eq!(view(world, "ov"), first);
    world.run(&["reset", "ov@0"]).ok();
    assert_eq!(view(world, "ov"), began);
    assert_eq!(diff(world, "ov"), "");
    act(world, "ov", "echo side > side");
    assert_eq!(snapshot(world, "ov")["number"], 3);
    // They lie on different snapshots.
    assert_eq!(diff(world, "ov@1..3"), "A /a\nD /new\nD /one\nA /side\n");
    assert_eq!(diff(world, "ov@3..1"), "D /a\nA /new\nA /new/x\nA /one\nD /side\n");
    world.run(&["reset", "ov@2"]).ok();
    assert_eq!(view(world, "ov"), second);

    let log = world.run(&["log", "ov"]).ok().out;
    assert_eq!(log.lines().count(), 4, "{log}");
    assert!(log.lines().nth(2).unwrap().starts_with("*      2       1  "), "{log}");
    let documents = world.run(&["log", "--json", "ov"]).ok().out;
    let documents: Vec<Value> = documents.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let heads: Vec<_> =
        documents.iter().map(|one| (one["snapshot"]["parent"].clone(), one["snapshot"]["head"] == true)).collect();
    assert_eq!(heads, [(0.into(), false), (1.into(), true), (0.into(), false)]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

/// How a mounted overlay gets another stack.
fn live() -> &'static str {
    if kernel() < (6, 5) { "remounted" } else { "beneath" }
}

#[test]
fn mounted() {
    for world in worlds() {
        snapshots_and_back(&world, &[], live());
    }
}

#[test]
fn volatile() {
    for world in worlds() {
        snapshots_and_back(&world, &["--scratch"], live());
    }
}

#[test]
fn in_memory() {
    // An ordinary user's needs attributes on it, which Linux 6.6 has.
    for world in worlds().into_iter().take(if kernel() < (6, 6) { 1 } else { 2 }) {
        snapshots_and_back(&world, &["--tmpfs=16m"], live());
    }
}

#[test]
fn with_mounts_below_the_lower() {
    for world in worlds() {
        let dir = world.dir.display().to_string();
        sh(&format!(
            "cd {dir}; echo m > mounted; touch low/file; mkdir low/t; mount -t tmpfs tmpfs low/t; echo t > low/t/t; \
             mount --bind mounted low/file; chown -R sheeptest: low mounted; touch -d 2001-01-01 low"
        ));
        world.run(&["mount", "--id", "ov", "low"]).ok();
        let began = view(&world, "ov");
        act(&world, "ov", "echo 1 > one; rm t/t; echo n > t/n; echo w > file");
        let first = view(&world, "ov");
        assert_eq!(snapshot(&world, "ov")["live"], "remounted");
        assert_eq!(view(&world, "ov"), first);
        act(&world, "ov", "echo 2 > two; rm t/n; mkdir t/d; echo ww > file");
        let second = view(&world, "ov");
        snapshot(&world, "ov");
        assert_eq!(diff(&world, "ov@1"), "M /file\nA /one\nA /t/n\nD /t/t\n");
        assert_eq!(diff(&world, "ov@1..2"), "M /file\nA /t/d\nD /t/n\nA /two\n");
        assert_eq!(view(&world, "ov"), second);
        world.run(&["reset", "ov@1"]).ok();
        assert_eq!(view(&world, "ov"), first);
        world.run(&["reset", "ov@2"]).ok();
        world.run(&["squash", "ov"]).ok();
        assert_eq!(view(&world, "ov"), second);
        world.run(&["reset", "ov@0"]).ok();
        assert_eq!(view(&world, "ov"), began);
        world.run(&["umount", "ov"]).ok();
        sh(&format!("cd {dir}; test $(cat mounted)$(cat low/t/t) = mt; umount low/t low/file"));
        world.is_clean();
    }
}

#[test]
fn kept() {
    for world in worlds() {
        world.run(&["mount", "--id", "ov", "low"]).ok();
        act(&world, "ov", FIRST);
        let first = view(&world, "ov");
        world.run(&["umount", "--keep", "ov"]).ok();
        assert_eq!(snapshot(&world, "ov")["live"], "nextMount");
        assert_eq!(world.state("ov").unwrap(), "kept");
        assert_eq!(diff(&world, "ov"), FIRST_CHANGES);
        world.run(&["mount", "--id", "ov"]).ok();
        assert_eq!(view(&world, "ov"), first);
        act(&world, "ov", SECOND);
        world.run(&["umount", "--keep", "ov"]).ok();
        assert_eq!(diff(&world, "ov"), BOTH_CHANGES);
        assert_eq!(world.run(&["reset", "ov"]).json()["reset"]["live"], "nextMount");
        assert_eq!(diff(&world, "ov"), FIRST_CHANGES);
        world.run(&["mount", "--id", "ov"]).ok();
        assert_eq!(view(&world, "ov"), first);
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn what_is_volatile_is_settled_as_before() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--id", "ov", "--volatile", "low"]).ok();
    let merged = world.merged("ov");
    fs::write(merged.join("one"), "").unwrap();
    snapshot(&world, "ov");
    fs::write(merged.join("two"), "").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    world.mount("ov", &[]);
    assert_eq!(names_in(&merged), ["a", "one", "two"]);
    world.run(&["umount", "--keep", "ov"]).ok();

    // A restart in between: what was put aside was never synced either.
    world.run(&["mount", "--id", "ov", "--volatile"]).ok();
    snapshot(&world, "ov");
    sh(&format!("umount {}", merged.display()));
    let record = world.data.join("overlay/ov/overlay.json");
    let mut overlay: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    overlay["bootId"] = "00000000-0000-0000-0000-000000000000".into();
    fs::write(&record, overlay.to_string()).unwrap();
    world.run(&["mount", "--id", "ov"]).fails(1, &["volatile", "torn"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn who_is_inside_is_named_and_nothing_happens() {
    for world in worlds() {
        world.run(&["mount", "--id", "ov", "low"]).ok();
        act(&world, "ov", FIRST);
        let first = view(&world, "ov");
        let mut inside = match world.is_user() {
            true => world.command(&["exec", "ov", "sleep", "60"]).spawn().unwrap(),
            false => Command::new("sleep").arg("60").current_dir(world.merged("ov")).spawn().unwrap(),
        };
        let named = format!("sleep (pid {})", inside.id());
        until(|| world.run(&["snapshot", "ov"]).err.contains(&named));
        for verb in [&["snapshot", "ov"][..], &["reset", "ov@0"]] {
            world.run(verb).fails(4, &["in use by", &named]);
        }
        assert_eq!(diff(&world, "ov"), FIRST_CHANGES);
        inside.kill().unwrap();
        inside.wait().unwrap();
        let log = world.run(&["log", "ov"]).ok().out;
        let before = log.lines().count();
        snapshot(&world, "ov");
        assert_eq!(view(&world, "ov"), first);
        assert!(before <= 2, "{log}");
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_is_frozen_unless_it_is_used() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("one"), "1").unwrap();
    let elsewhere = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &format!("{script}; exec sleep 60")]);
        let child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let pid = child.id();
        until(|| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n"));
        child
    };
    for script in [format!("cd {}", merged.display()), format!("exec 9>{}/open", merged.display())] {
        let mut other = elsewhere(&script);
        world.run(&["snapshot", "ov"]).fails(4, &[&format!("sleep (pid {})", other.id()), "namespace"]);
        // All is as it was, and goes on.
        assert_eq!(world.state("ov").unwrap(), "mounted");
        assert_eq!(world.mounts().len(), 1);
        fs::write(merged.join("two"), "2").unwrap();
        assert!(diff(&world, "ov").starts_with("A /one\n") && diff(&world, "ov").ends_with("A /two\n"));
        other.kill().unwrap();
        other.wait().unwrap();
    }
    let mut other = elsewhere("true");
    assert_eq!(snapshot(&world, "ov")["live"], live());
    fs::write(merged.join("three"), "3").unwrap();
    let there = format!("nsenter -t {} -m sh -c 'cd {}; ls; touch x || true'", other.id(), merged.display());
    assert_eq!(sh(&there), "a\none\nopen\ntwo\n");
    assert_eq!(diff(&world, "ov@1.."), "A /three\n");
    assert_eq!(diff(&world, "ov@1"), "A /one\nA /open\nA /two\n");
    // What is to be unmounted for a moment is put back too.
    snapshot(&world, "ov");
    let mut inside = elsewhere(&format!("cd {}", merged.display()));
    world.run(&["squash", "ov"]).fails(4, &[&format!("sleep (pid {})", inside.id()), "namespace"]);
    assert_eq!(world.state("ov").unwrap(), "mounted");
    fs::write(merged.join("four"), "4").unwrap();
    inside.kill().unwrap();
    inside.wait().unwrap();
    world.run(&["squash", "ov"]).ok();
    fs::write(merged.join("five"), "5").unwrap();
    assert_eq!(names_in(&merged), ["a", "five", "four", "one", "open", "three", "two"]);
    other.kill().unwrap();
    other.wait().unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn where_mounts_are_shared_all_namespaces_have_the_new_one() {
    let world = World::root();
    world.lower("low", &["a"]);
    let script = format!(
        "set -e; cd {dir}; mkdir shared; mount --bind shared shared; mount --make-shared shared; \
         export SHEEP_DATA_DIR={dir}/shared/data; {bin} mount --id ov low >/dev/null; m=shared/data/overlay/ov/merged; echo 1 > $m/one; \
         unshare -m --propagation slave sleep 60 & sleep 0.3; {bin} snapshot --print live ov; \
         nsenter -t $! -m sh -c \"grep -c $m /proc/self/mountinfo || true\"; echo 2 > $m/two; ls $m | tr '\\n' ' '; kill $!; \
         {bin} umount ov; grep -c $m /proc/self/mountinfo || true; umount shared",
        dir = world.dir.display(),
        bin = crate::harness::BIN,
    );
    let done = Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.starts_with(&format!("{}\n", live())), "{done:?}");
    assert!(said.ends_with("a one two 0\n"), "{done:?}");
}

#[test]
fn what_cannot_be() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    world.run(&["mount", "--backend", "copy", "--id", "copy", "low"]).ok();
    world.run(&["snapshot", "copy"]).fails(2, &["copy", "backend", "mount --backend kernel"]);
    world.run(&["reset", "copy"]).fails(2, &["copy backend"]);
    world.run(&["snapshot", "no-such"]).fails(3, &["no-such"]);
    world.run(&["reset", "ov@3"]).fails(3, &["no snapshot 3", "log"]);
    world.run(&["reset", "ov@x"]).fails(2, &["ov@x", "log"]);
    world.run(&["reset", "ov@1..2"]).fails(2, &["one snapshot"]);
    world.run(&["diff", "ov@1"]).fails(3, &["no snapshot 1"]);
    world.run(&["diff", "ov@0..other@0"]).fails(2, &["two overlays"]);
    world.run(&["mount", "--branch", "ov@1"]).fails(3, &["no snapshot 1"]);
    world.run(&["mount", "--branch", "no-such@1"]).fails(3, &["no-such"]);
    world.run(&["mount", "--branch", "copy@0"]).fails(2, &["copy backend"]);
    world.run(&["squash", "ov"]).fails(2, &["nothing to squash"]);
    world.mount("top", &[world.merged("ov").to_str().unwrap()]);
    world.run(&["snapshot", "ov"]).fails(4, &["overlay top"]);
    world.run(&["umount", "top", "ov", "copy"]).ok();
    world.is_clean();
}

#[test]
fn nothing_is_copied_however_much_there_is() {
    for world in worlds() {
        world.run(&["mount", "--id", "ov", "low"]).ok();
        act(&world, "ov", "head -c 200000000 /dev/zero > big; mkdir many; cd many; touch $(seq 3000)");
        let inode = |place: &str| fs::metadata(world.data.join("overlay/ov").join(place)).unwrap().ino();
        let before = inode("upper/big");
        let start = Instant::now();
        snapshot(&world, "ov");
        eprintln!("a snapshot of 200 MB and 3000 files took {:?}", start.elapsed());
        assert_eq!(inode("snapshots/1/upper/big"), before, "it is the same file");
        act(&world, "ov", "test $(stat -c %s big) = 200000000; test $(ls many | wc -l) = 3000");
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn the_layer_of_a_path_is_named() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("one"), "1").unwrap();
    world.run(&["snapshot", "-m", "the first\nof all", "ov"]).ok();
    let why = world.run(&["why", "ov", "one"]).ok().out;
    assert!(why.ends_with("/snapshots/1/upper/one (snapshot 1)\n"), "{why}");
    assert_eq!(world.run(&["why", "--json", "ov", "one"]).json()["snapshot"], 1);
    let log = world.run(&["log", "ov"]).ok().out;
    assert!(log.ends_with("  the first\\nof all\n"), "{log}");
    let shown = world.run(&["inspect", "ov"]).json();
    assert_eq!(shown["overlay"]["snapshots"][0]["message"], "the first\nof all");
    // What is exported is all that changed, from whichever layer it comes.
    fs::write(merged.join("two"), "2").unwrap();
    let export = world.command(&["export", "ov"]).output().unwrap();
    fs::write(world.dir.join("layer.tar"), export.stdout).unwrap();
    assert_eq!(sh(&format!("tar -tf {}/layer.tar", world.dir.display())), "./\none\ntwo\n");
    let patch = world.run(&["diff", "--patch", "ov@1.."]).ok().out;
    assert!(patch.contains("b/two") && !patch.contains("b/one"), "{patch}");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn a_branch_goes_on_from_a_snapshot() {
    for world in worlds() {
        world.run(&["mount", "--id", "ov", "low"]).ok();
        act(&world, "ov", FIRST);
        let first = view(&world, "ov");
        snapshot(&world, "ov");
        act(&world, "ov", SECOND);
        let second = view(&world, "ov");
        snapshot(&world, "ov");
        world.run(&["mount", "--branch", "ov@1", "--id", "br"]).ok();
        assert_eq!(view(&world, "br"), first);
        // Against the lowers, and against where it began.
        act(&world, "br", "echo b > branch; rm one");
        assert_eq!(diff(&world, "br"), "D /a\nA /branch\nA /new\nA /new/x\n");
        assert_eq!(diff(&world, "br@0.."), "A /branch\nD /one\n");
        assert_eq!(view(&world, "ov"), second);
        let branched = view(&world, "br");
        assert_eq!(snapshot(&world, "br")["number"], 1);
        assert_eq!(view(&world, "br"), branched);
        // A branch of the branch, which needs all of them.
        world.run(&["mount", "--branch", "br", "--id", "third"]).ok();
        assert_eq!(view(&world, "third"), branched);
        world.run(&["umount", "ov"]).fails(4, &["ov", "in use", "overlay "]);
        world.run(&["umount", "br"]).fails(4, &["br", "overlay third"]);
        // The layers are there whether it is mounted or not.
        world.run(&["umount", "--keep", "ov"]).ok();
        assert_eq!(view(&world, "third"), branched);
        world.run(&["umount", "--keep", "br", "third"]).ok();
        world.run(&["umount", "ov"]).fails(4, &["overlay "]);
        world.run(&["mount", "--id", "third"]).ok();
        world.run(&["reset", "third@0"]).ok();
        assert_eq!(view(&world, "third"), branched);
        world.run(&["mount", "--id", "br"]).ok();
        world.run(&["reset", "br@0"]).ok();
        assert_eq!(view(&world, "br"), first);
        for option in [&["--hide", "a"][..], &["--backend", "copy"], &["--no-recursive"]] {
            world.run(&[&["mount", "--branch", "ov@1"], option].concat()).fails(2, &[option[0], "branch"]);
        }
        world.run(&["mount", "--branch", "ov@1", "--id", "br"]).fails(4, &["br", "already"]);
        world.run(&["umount", "third", "br", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn several_become_one() {
    for world in worlds() {
        world.run(&["mount", "--id", "ov", "low"]).ok();
        act(&world, "ov", FIRST);
        let first = view(&world, "ov");
        snapshot(&world, "ov");
        act(
            &world,
            "ov",
            &format!("{SECOND}; ln two link; mkdir -p deep/er; echo 4 > deep/er/f; ln -s two soft; mkfifo fifo"),
        );
        snapshot(&world, "ov");
        act(&world, "ov", "rm -r new deep/er; echo 5 >> c; truncate -s 64M hole");
        let all = view(&world, "ov");
        let changes = diff(&world, "ov");
        snapshot(&world, "ov");
        let done = world.run(&["squash", "ov"]).json();
        assert_eq!((&done["squash"]["head"], &done["squash"]["live"]), (&3.into(), &"remounted".into()), "{done}");
        assert_eq!(done["overlay"]["snapshots"].as_array().unwrap().len(), 1);
        assert_eq!(view(&world, "ov"), all);
        assert_eq!(diff(&world, "ov"), changes);
        assert_eq!(names_in(&world.data.join("overlay/ov/snapshots")).len(), 1);
        act(&world, "ov", "test $(stat -c %h link) = 2; test $(stat -c %h c) = 1; test $(stat -c %b hole) -lt 100");
        world.run(&["squash", "ov"]).fails(2, &["nothing to squash"]);
        world.run(&["diff", "ov@1"]).fails(3, &["no snapshot 1"]);
        // Work goes on, and what others lie on is kept.
        act(&world, "ov", "echo 6 > six");
        assert_eq!(snapshot(&world, "ov")["number"], 4);
        act(&world, "ov", "echo 7 > seven");
        let seven = view(&world, "ov");
        snapshot(&world, "ov");
        world.run(&["mount", "--branch", "ov@4", "--id", "br"]).ok();
        let four = view(&world, "br");
        world.run(&["umount", "--keep", "ov"]).ok();
        let done = world.run(&["squash", "ov"]).json();
        assert_eq!(done["squash"]["live"], "nextMount");
        assert_eq!(done["overlay"]["snapshots"].as_array().unwrap().len(), 3, "{done}");
        assert_eq!(view(&world, "br"), four);
        world.run(&["mount", "--id", "ov"]).ok();
        assert_eq!(view(&world, "ov"), seven);
        world.run(&["reset", "ov@4"]).ok();
        assert_eq!(view(&world, "ov"), four);
        world.run(&["umount", "br", "ov"]).ok();
        world.is_clean();
        drop(first);
    }
}

#[test]
fn who_is_inside_keeps_it_from_being_squashed() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    for file in ["one", "two"] {
        fs::write(merged.join(file), file).unwrap();
        snapshot(&world, "ov");
    }
    let open = fs::File::open(merged.join("one")).unwrap();
    world.run(&["squash", "ov"]).fails(4, &["in use by"]);
    assert_eq!(names_in(&world.data.join("overlay/ov/snapshots")), ["1", "2"]);
    assert_eq!(names_in(&merged), ["a", "one", "two"]);
    drop(open);
    world.run(&["squash", "ov"]).ok();
    assert_eq!(names_in(&merged), ["a", "one", "two"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

/// Makes a change, a snapshot and another change, and goes back.
#[track_caller]
fn there_and_back(world: &World, options: &[&str], live: &str) {
    let merged = world.run(&[&["mount", "--id", "ov", "--print", "merged"], options, &["low"]].concat()).ok().out;
    let merged = std::path::Path::new(merged.trim_end());
    fs::write(merged.join("one"), "1").unwrap();
    fs::remove_file(merged.join("a")).unwrap();
    let first = sh(&format!("cd {}; ls -ln --time-style=full-iso", merged.display()));
    assert_eq!(snapshot(world, "ov")["live"], live, "{options:?}");
    fs::write(merged.join("two"), "2").unwrap();
    assert_eq!(names_in(merged), ["one", "two"]);
    assert_eq!(diff(world, "ov"), "D /a\nA /one\nA /two\n", "{options:?}");
    assert_eq!(diff(world, "ov@1.."), "A /two\n", "{options:?}");
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(world.run(&["reset", "ov"]).json()["reset"]["live"], live, "{options:?}");
    assert_eq!(sh(&format!("cd {}; ls -ln --time-style=full-iso", merged.display())), first, "{options:?}");
    world.run(&["reset", "ov@0"]).ok();
    assert_eq!(names_in(merged), ["a"], "{options:?}");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn with_other_options() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.lower("place", &["hidden"]);
    there_and_back(&world, &["--at", "place"], live());
    there_and_back(&world, &["--idmap", "b:0:100000:65536"], live());
    // Over its own lower, which is seen where it is not mounted.
    there_and_back(&world, &["--at", "low"], "remounted");
}

#[test]
fn of_a_view_that_is_read_only() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("one"), "1").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", "--id", "ov", "--read-only"]).ok();
    assert_eq!(snapshot(&world, "ov")["live"], live());
    assert_eq!(names_in(&merged), ["a", "one"]);
    fs::write(merged.join("two"), "").unwrap_err();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}
