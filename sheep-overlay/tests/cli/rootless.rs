//! An ordinary user's overlays: a user namespace that a holder keeps.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{World, kernel, names_in, sh, until};

fn own_lower(world: &World, files: &[&str]) -> PathBuf {
    let low = world.lower("low", files);
    sh(&format!("chown -R sheeptest: {}", low.display()));
    low
}

fn holder(world: &World, id: &str) -> String {
    world.run(&["inspect", "--print", "overlay.holder.pid", id]).ok().out.trim().to_owned()
}

#[test]
fn p22_a_scratch_for_all_shells_of_a_user_and_nothing_is_left() {
    let world = World::user();
    let low = own_lower(&world, &["a", "sub/b"]);
    let document = world.run(&["mount", "--id", "ov", "low"]).json();
    assert_eq!(document["overlay"]["backend"], "kernel");
    assert_eq!(document["overlay"]["userXattrs"], true);

    let script = format!(
        "cd {0}; test $(id -un) = sheeptest; echo new > n; echo x > {0}/a; rm -r sub; mkdir sub",
        low.display()
    );
    world.run(&["exec", "ov", "sh", "-ec", &script]).ok();
    // Another process sees it, and has its working directory where it is outside.
    let mut command = world.command(&["exec", "ov", "sh", "-c", "pwd; ls; cat a"]);
    let seen = command.current_dir(&low).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), format!("{}\na\nn\nsub\nx\n", low.display()));
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "low");
    assert_eq!(names_in(&low), ["a", "sub"]);
    let diff = world.run(&["diff", "ov"]).ok().out;
    assert_eq!(diff, "M /a\nA /n\nO /sub\nD /sub/b\n");
    // Inside, the overlay is meant by a path in it.
    let inside = world
        .command(&[
            "exec",
            "ov",
            "sh",
            "-c",
            "$0 diff .; $0 why . a | wc -l",
            world.dir.join("sheep-overlay").to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&inside.stdout), format!("{diff}2\n"), "{inside:?}");
    // What others see is no place to write to by mistake.
    let write = format!("setpriv --reuid sheeptest --clear-groups touch {}/x", world.merged("ov").display());
    assert!(!Command::new("sh").args(["-c", &write]).output().unwrap().status.success());
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn the_exit_code_is_the_commands() {
    let world = World::user();
    own_lower(&world, &["a"]);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    assert_eq!(world.run(&["exec", "ov", "--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(world.run(&["exec", "ov", "no-such-command"]).code, 127);
    assert_eq!(world.run(&["exec", "ov", "/etc"]).code, 126);
    world.run(&["exec", "nothing", "true"]).fails(125, &["no such overlay"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn a_holder_that_was_killed_is_noticed_and_mended() {
    let world = World::user();
    own_lower(&world, &["a"]);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    world.run(&["exec", "ov", "touch", "new"]).ok();
    sh(&format!("kill -9 {}", holder(&world, "ov")));
    until(|| world.state("ov").as_deref() == Some("stale"));
    let ran = world.run(&["exec", "ov", "ls"]).ok();
    assert_eq!(ran.out, "a\nnew\n");
    assert!(ran.err.contains("is again"), "{ran:?}");
    assert_eq!(world.state("ov").unwrap(), "mounted");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p01_a_process_inside_lends_its_namespaces_to_a_new_holder() {
    let world = World::user();
    own_lower(&world, &["a"]);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let mut inside = world.command(&["exec", "ov", "sh", "-c", "touch ready; exec sleep 60"]).spawn().unwrap();
    until(|| world.run(&["diff", "ov"]).out.contains("/ready"));
    world.run(&["umount", "ov"]).fails(4, &["in use by", "(pid"]);
    sh(&format!("kill -9 {}", holder(&world, "ov")));
    until(|| world.state("ov").as_deref() == Some("stale"));
    // Mounted twice, the one upper would be destroyed.
    world.run(&["umount", "ov"]).fails(4, &["(pid"]);
    assert_eq!(world.run(&["exec", "ov", "ls"]).ok().out, "a\nready\n");
    inside.kill().unwrap();
    inside.wait().unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p30_kept_and_taken_up_again() {
    let world = World::user();
    own_lower(&world, &["a"]);
    world.run(&["mount", "--id", "ov", "--scratch", "low"]).ok();
    world.run(&["exec", "ov", "sh", "-c", "rm a; mkdir a; touch a/b"]).ok();
    world.run(&["umount", "--keep", "ov"]).ok();
    assert_eq!(world.state("ov").unwrap(), "kept");
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "T /a\nA /a/b\n");
    world.run(&["exec", "ov", "ls"]).fails(125, &["kept", "mount --id ov"]);
    world.run(&["mount", "--id", "ov"]).ok();
    assert_eq!(world.run(&["exec", "ov", "ls", "a"]).ok().out, "b\n");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p23_changes_in_memory() {
    let world = World::user();
    own_lower(&world, &["a"]);
    if kernel() < (6, 6) {
        world.run(&["mount", "--id", "ov", "--tmpfs=8m", "low"]).fails(1, &["before Linux 6.6"]);
        return world.is_clean();
    }
    world.run(&["mount", "--id", "ov", "--tmpfs=8m", "low"]).ok();
    world.run(&["exec", "ov", "sh", "-c", "echo x > new; rm a; mkdir a"]).ok();
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "T /a\nA /new\n");
    let full = world.run(&["exec", "ov", "dd", "if=/dev/zero", "of=big", "bs=1M", "count=20"]);
    assert!(full.err.contains("No space left"), "{full:?}");
    world.run(&["umount", "--keep", "ov"]).fails(2, &["in memory"]);
    sh(&format!("kill -9 {}", holder(&world, "ov")));
    until(|| world.state("ov").as_deref() == Some("stale"));
    world.run(&["exec", "ov", "ls"]).fails(125, &["in memory", "gone"]);
    assert!(world.run(&["gc"]).ok().out.contains("deleted ov"));
    world.is_clean();
}

#[test]
fn p22_owners_that_are_not_mapped_are_told_before() {
    let world = World::user();
    world.lower("low", &["a"]);
    let ran = world.run(&["mount", "--id", "ov", "low"]).ok();
    assert!(ran.err.contains("owners outside of your user namespace (0:0)"), "{ran:?}");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

/// The holders of this world's overlays that live.
fn holders(world: &World) -> usize {
    let program = world.dir.join("sheep-overlay").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let lines = processes.filter_map(|process| fs::read(process.join("cmdline")).ok());
    lines.filter(|line| line.starts_with(program.as_bytes())).count()
}

#[test]
fn p48_commands_that_are_killed_leave_nothing_that_gc_does_not_mend() {
    let world = World::user();
    let low = own_lower(&world, &["a", "d/b"]);
    for round in 0..60u64 {
        let verbs: [&[&str]; 3] = [&["mount", "--id", "ov", "low"], &["umount", "ov"], &["umount", "--keep", "ov"]];
        let verb = verbs[round as usize % 3];
        if verb[0] == "umount" {
            let taken = world.run(&["mount", "--id", "ov", "low"]);
            assert!([0, 4].contains(&taken.code), "round {round}: {taken:?}");
            world.run(&["exec", "ov", "sh", "-c", "echo new > new; rm -rf d"]).ok();
        }
        let mut child = world
            .command(verb)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(round * 400));
        let _ = child.kill();
        child.wait().unwrap();
        // What is half-made or half-deleted goes; what is whole is of use.
        until(|| {
            let collected = world.run(&["gc"]);
            assert_eq!(collected.code, 0, "round {round}: {collected:?}");
            !world.in_overlay_dir().iter().any(|name| name.starts_with('.'))
        });
        let taken = world.run(&["mount", "--id", "ov", "low"]);
        assert!([0, 4].contains(&taken.code), "round {round}: {taken:?}");
        assert_eq!(world.run(&["exec", "ov", "cat", "a"]).ok().out, "low", "round {round}");
        world.run(&["umount", "ov"]).ok();
        assert_eq!(world.in_overlay_dir(), Vec::<String>::new(), "round {round}");
        until(|| holders(&world) == 0);
    }
    assert_eq!(fs::read_to_string(low.join("d/b")).unwrap(), "low");
    world.is_clean();
}

#[test]
fn p48_snapshots_that_are_killed_lose_nothing() {
    let world = World::user();
    own_lower(&world, &["a"]);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let begin = std::time::Instant::now();
    world.run(&["snapshot", "ov"]).ok();
    let whole = begin.elapsed();
    let mut made = 0;
    for round in 0..60u32 {
        world.run(&["exec", "ov", "sh", "-c", &format!("echo {round} > f{}", round % 5)]).ok();
        let seen = |world: &World| world.run(&["exec", "ov", "sh", "-c", "grep . *"]).ok().out;
        let before = seen(&world);
        let verb: &[&str] = if round % 10 == 9 { &["squash", "ov"] } else { &["snapshot", "ov"] };
        let mut child = world
            .command(verb)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * round / 50);
        let _ = child.kill();
        child.wait().unwrap();
        let collected = world.run(&["gc"]);
        assert_eq!(collected.code, 0, "round {round}: {collected:?}");
        assert_eq!(seen(&world), before, "round {round}");
        let record = world.run(&["inspect", "ov"]).json();
        assert!(record["overlay"].get("pending").is_none(), "round {round}: {record}");
        made = made.max(record["overlay"]["snapshots"].as_array().map_or(0, Vec::len));
    }
    assert!(made > 1);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}
