//! What is refused, with which exit code and words, and that nothing is left of it.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::{World, names_in, sh, until};

#[test]
fn p12_what_cannot_be_stacked() {
    let world = World::root();
    world.lower("low", &["file", "sub/x"]);
    std::os::unix::fs::symlink("low", world.dir.join("link")).unwrap();
    for (lowers, code, words) in [
        (&["nosuch"][..], 3, &["nosuch", "no such directory"][..]),
        (&["low", "nosuch"], 3, &["nosuch"]),
        (&["low/file"], 2, &["low/file", "not a directory"]),
        (&["low", "low"], 2, &["low", "twice"]),
        (&["low", "link"], 2, &["low", "twice"]),
        (&["low", "low/sub"], 2, &["low/sub lies inside"]),
        (&["low/sub", "low"], 2, &["low/sub lies inside"]),
        (&[""], 3, &["no such directory"]),
    ] {
        let mut args = vec!["mount"];
        args.extend(lowers);
        world.run(&args).fails(code, words);
        world.is_clean();
    }
}

#[test]
fn a_layer_that_a_power_cut_may_have_torn_is_not_mounted() {
    let world = World::root();
    world.lower("data/layers/sha256/abc", &["file"]);
    let layers = world.data.join("layers/sha256");
    let layer = layers.join("abc").display().to_string();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    // Of this boot: the kernel has it, and the disk will.
    std::os::unix::fs::symlink(boot.trim(), layers.join(".unsynced-abc")).unwrap();
    world.run(&["mount", "--id", "ov", &layer]).ok();
    world.run(&["umount", "--keep", "ov"]).ok();
    fs::remove_file(layers.join(".unsynced-abc")).unwrap();
    std::os::unix::fs::symlink("another", layers.join(".unsynced-abc")).unwrap();
    for args in [&["mount", "--id", "ov"][..], &["mount", "--id", "new", &layer]] {
        world.run(args).fails(1, &[&layer, "the machine went down before it was on the disk"]);
    }
    fs::remove_file(layers.join(".unsynced-abc")).unwrap();
    world.run(&["mount", "--id", "ov"]).ok();
}

#[test]
fn wrong_command_lines() {
    let world = World::root();
    world.lower("low", &[]);
    for (args, word) in [
        (&["mount"][..], "LOWER"),
        (&["mount", "--id", "../x", "low"], "name"),
        (&["mount", "--id", "", "low"], "name"),
        (&["mount", "--id", ".new-x", "low"], "name"),
        (&["mount", "-", "low"], "stands alone"),
        (&["mount", "--read-only", "--volatile", "low"], "exclude"),
        (&["mount", "--from", "low"], "low"),
    ] {
        let ran = world.run(args);
        assert!(ran.code == 2 || args.contains(&"--from"), "{args:?}: {ran:?}");
        assert!(ran.err.contains(word), "{args:?}: {ran:?}");
        world.is_clean();
    }
    for args in [&["nosuchverb"][..], &["mount", "--nosuch", "low"], &["umount"], &["inspect"], &["diff"]] {
        assert_eq!(world.run(args).code, 2, "{args:?}");
    }
    world.run(&["mount", "--id", "nosuch"]).fails(3, &["nosuch", "LOWER"]);
    world.run(&["umount", "nosuch"]).fails(3, &["umount: nosuch: no such overlay"]);
}

#[test]
fn documents_that_do_not_fit() {
    let world = World::root();
    for (input, words) in [
        ("", &["no document"][..]),
        ("[]", &["JSON object"]),
        ("{", &["JSON"]),
        ("{}", &["neither 'image' nor 'overlay'"]),
        (r#"{"image":{"layers":[{"diffId":"x"}]}}"#, &["not unpacked"]),
        (r#"{"image":{"layers":[]}}"#, &["not unpacked"]),
        (r#"{"image":{"layers":[{"path":"relative"}]}}"#, &["relative", "absolute"]),
        (r#"{"image":7}"#, &["image"]),
        ("{}\n{}", &["2 documents"]),
    ] {
        world.run_with(input, &["mount", "-"]).fails(2, words);
        world.is_clean();
    }
    world.run_with("{}", &["umount", "-"]).fails(2, &["overlay"]);
    world.run(&["mount", "--from", "nosuchfile"]).fails(3, &["nosuchfile"]);
}

#[test]
fn a_document_of_another_data_directory_is_not_mistaken() {
    let (here, there) = (World::root(), World::root());
    for world in [&here, &there] {
        world.lower("low", &["a"]);
        world.mount("same", &["low"]);
    }
    let document = there.run(&["inspect", "same"]).ok().out;
    here.run_with(&document, &["umount", "-"]).fails(3, &["same", "--root"]);
    assert_eq!(here.state("same").unwrap(), "mounted");
}

#[test]
fn p27_busy_names_who() {
    let world = World::root();
    world.lower("low", &["file"]);
    let merged = world.mount("ov", &["low"]);
    let sleeper = |command: &mut Command| command.arg("100").stdin(Stdio::null()).spawn().unwrap();
    let mut by_cwd = sleeper(Command::new("sleep").current_dir(&merged));
    // What `current_dir` does, the child does before it is spawned; but not what follows.
    let ran = world.run(&["umount", "ov"]);
    ran.fails(4, &["ov", "in use by sleep", &format!("(pid {})", by_cwd.id())]);
    by_cwd.kill().unwrap();
    by_cwd.wait().unwrap();
    let open = fs::File::open(merged.join("file")).unwrap();
    let own = format!("(pid {})", std::process::id());
    world.run(&["umount", "ov"]).fails(4, &["ov", &own]);
    world.run(&["umount", "--keep", "ov"]).fails(4, &["ov", &own]);
    assert_eq!(world.state("ov").unwrap(), "mounted");
    assert_eq!(names_in(&merged), ["file"], "a refused umount deletes nothing");
    drop(open);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p27_a_mount_inside_is_named() {
    let world = World::root();
    world.lower("low", &["dir with space/x"]);
    let merged = world.mount("ov", &["low"]);
    let inner = merged.join("dir with space");
    sh(&format!("mount -t tmpfs none '{}'", inner.display()));
    world.run(&["umount", "ov"]).fails(4, &["a mount inside it", inner.to_str().unwrap()]);
    sh(&format!("umount '{}'", inner.display()));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p28_p29_what_lies_over_the_overlay_is_neither_unmounted_nor_deleted() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("mine"), "").unwrap();
    sh(&format!("mount -t tmpfs none {0}; touch {0}/theirs", merged.display()));
    assert_eq!(world.state("ov").unwrap(), "covered");
    world.run(&["umount", "ov"]).fails(4, &["merged", "not overlay ov"]);
    world.run(&["mount", "--id", "ov"]).fails(4, &["merged", "not overlay ov"]);
    assert_eq!(names_in(&merged), ["theirs"]);
    sh(&format!("umount {}", merged.display()));
    assert_eq!(names_in(&merged), ["a", "mine"]);
    // Another overlay, mounted over ours: not ours either.
    let other = world.lower("other", &["other"]);
    sh(&format!(
        "mount -t overlay none -o ro,lowerdir={0}:{1}/low {2}",
        other.display(),
        world.dir.display(),
        merged.display()
    ));
    world.run(&["umount", "ov"]).fails(4, &["merged", "not overlay ov"]);
    sh(&format!("umount {}", merged.display()));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p01_a_mounted_overlay_is_not_mounted_again() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    world.run(&["mount", "--id", "ov"]).fails(4, &["upper is in use", "ov"]);
    world.run(&["mount", "--id", "ov", "low"]).fails(4, &["upper is in use"]);
    assert_eq!(world.mounts().len(), 1);
    let upper = world.data.join("overlay/ov/upper");
    world.run(&["mount", upper.to_str().unwrap()]).fails(4, &["upper is in use by ov"]);
    let work = world.data.join("overlay/ov/work");
    world.run(&["mount", work.to_str().unwrap()]).fails(2, &["workings"]);
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", world.merged("ov").to_str().unwrap()]).fails(2, &["ov is not mounted"]);
    world.run(&["mount", "--id", "ov", upper.to_str().unwrap()]).fails(2, &["other lowers"]);
    // The upper of one that is not mounted may be read.
    world.run(&["mount", "--id", "reader", upper.to_str().unwrap()]).ok();
}

#[test]
fn p01_an_overlay_that_lives_on_in_another_mount_namespace() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    // A namespace of its own holds a copy of the mount: the umount here succeeds, and the file system lives on. Of the
    // other tests' mounts it holds none.
    let script = format!(
        "grep -o '/tmp/overlay-test[^ ]*/merged' /proc/self/mountinfo | grep -v {0} | xargs -r umount; \
         touch {0}/ready; exec sleep 100",
        world.dir.display()
    );
    let mut holder = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until(|| world.dir.join("ready").exists());
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["mount", "--id", "ov"]).fails(4, &["upper is in use", "another mount namespace"]);
    assert_eq!(world.state("ov").unwrap(), "kept");
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The namespace goes a moment after its last process.
    until(|| world.run(&["mount", "--id", "ov"]).code == 0);
}

#[test]
fn an_overlay_of_another_mount_namespace_is_not_deleted() {
    let world = World::root();
    world.lower("low", &["a"]);
    let script = format!(
        "grep -o '/tmp/overlay-test[^ ]*/merged' /proc/self/mountinfo | xargs -r umount; \
         {} --root {} mount --id ov low && exec sleep 100",
        crate::harness::BIN,
        world.data.display()
    );
    let mut holder = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .current_dir(&world.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until(|| world.data.join("overlay/ov/lock").exists());
    world.run(&["umount", "ov"]).fails(4, &["another mount namespace"]);
    assert!(world.data.join("overlay/ov/upper").exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
    until(|| world.run(&["umount", "ov"]).code == 0);
    world.is_clean();
}

#[test]
fn a_full_file_system_leaves_nothing() {
    let world = World::root();
    world.lower("low", &["a"]);
    for inodes in 6..14 {
        fs::create_dir_all(&world.data).unwrap();
        sh(&format!("mount -t tmpfs -o nr_inodes={inodes} none {}", world.data.display()));
        let ran = world.run(&["mount", "--id", "ov", "--backend", "kernel", "low"]);
        if ran.code == 0 {
            world.run(&["umount", "ov"]).ok();
        } else {
            ran.fails(1, &[]);
            assert!(ran.err.contains("No space left") || ran.err.contains("file system is full"), "{ran:?}");
        }
        assert_eq!(world.in_overlay_dir(), Vec::<String>::new(), "{inodes} inodes: {ran:?}");
        sh(&format!("umount {}", world.data.display()));
        world.is_clean();
    }
}

#[test]
fn a_corrupt_record_is_named_and_hides_no_other() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("bad", &["low"]);
    world.mount("good", &["low"]);
    sh(&format!("umount {}", world.merged("bad").display()));
    let record = world.data.join("overlay/bad/overlay.json");
    fs::write(&record, "\0\0\0").unwrap();
    let ran = world.run(&["ls"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("good"), "{ran:?}");
    assert!(ran.err.contains("overlay/bad/overlay.json is corrupt"), "{ran:?}");
    world.run(&["umount", "bad"]).fails(1, &["corrupt"]);
    world.run(&["mount", "--id", "bad"]).fails(1, &["corrupt"]);
    assert!(world.data.join("overlay/bad/upper").exists(), "nothing is guessed, nothing deleted");
    fs::remove_file(&record).unwrap();
    let ran = world.run(&["ls"]);
    assert!(ran.code == 1 && ran.err.contains("no overlay.json"), "{ran:?}");
    world.run(&["umount", "bad"]).ok();
    assert_eq!(world.in_overlay_dir(), ["good"]);
}

#[test]
fn a_reader_that_went_away_is_a_quiet_end() {
    let world = World::root();
    world.lower("low", &["a"]);
    for n in 0..20 {
        world.mount(&format!("o{n}"), &["low"]);
    }
    let mut child = world.command(&["ls", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
