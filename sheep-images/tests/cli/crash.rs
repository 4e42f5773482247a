//! Killed at any moment: the store is whole, and the next command clears up.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::harness::{SETTLED, World};

/// Pseudo-random, so that a failure can be had again.
fn moments(count: u64, most: u64) -> impl Iterator<Item = Duration> {
    let mut state = 12345u64;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Duration::from_micros((state >> 33) % most)
    })
}

/// Asserts that every image can be read, every layer that is there is whole, and nothing else is there.
#[track_caller]
fn assert_whole(world: &World, what: &str) {
    let listed = world.sh("sheep-images ls --json | tee docs | jq -r '.image.layers[].path // empty' | sort -u");
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""), "{what}");
    for path in listed.stdout.lines() {
        assert_eq!(
            world.sh(&format!("rsync -aHAXn --delete --checksum --itemize-changes want/ {path}/")).ok(),
            "",
            "{what}"
        );
    }
    let layers = world.sh("ls data/layers/sha256").ok();
    let known = world.sh("jq -r .image.layers[].diffId docs | sed s/sha256:// | sort -u").ok();
    assert!(layers.lines().all(|layer| known.contains(layer)), "{what}: {layers}");
    let needed = world.sh("for m in $(jq -r '.manifests[].digest' data/images/index.json); do echo $m; jq -r '.config.digest, .layers[].digest' data/images/blobs/sha256/${m#*:}; done | sed s/sha256:// | sort -u").ok();
    assert_eq!(world.sh("ls -A data/images/blobs/sha256 | sort").ok(), needed, "{what}");
    assert_eq!(world.sh("find data -name '.tmp-*' -o -name '.index.json.*'").ok(), "", "{what}");
}

fn prepare(world: &World) {
    world.sh("mkdir want && cp -a /usr/share/doc/[a-b]* want/ && head -c 1M /dev/urandom > want/random && tar -C want --format=posix -czf t.tgz . && sheep-images ls").ok();
}

#[test]
fn imports_killed() {
    let world = World::root();
    prepare(&world);
    for (n, moment) in moments(30, 150_000).enumerate() {
        let mut child = world.start("exec sheep-images import x t.tgz");
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_whole(&world, &format!("import {n} killed after {moment:?}"));
        if n % 3 == 0 {
            world.sh("sheep-images rm x 2>/dev/null; true").ok();
        }
    }
    world.sh("sheep-images import x t.tgz").ok();
    assert_whole(&world, "at the end");
}

/// What stands for a power cut: another boot, in which some layers still have the mark that they were not on the disk.
const CUT: &str = "rm -f data/layers/sha256/.unsynced-*; \
    for layer in $(ls data/layers/sha256); do ln -s another-boot data/layers/sha256/.unsynced-$layer; done";

fn prepare_torn(world: &World) {
    prepare(world);
    world.sh(&format!("sheep-images import x t.tgz --print digest && {SETTLED}")).ok();
    world.sh(&format!("{CUT}; : > data/layers/sha256/*/random && rm data/layers/sha256/*/apt/copyright; test -e want/apt/copyright")).ok();
}

#[test]
fn a_layer_that_a_power_cut_tore_is_unpacked_anew() {
    let world = World::root();
    prepare_torn(&world);
    assert_eq!(world.sh("sheep-images inspect x | jq '.image.layers[0].path'").ok(), "null");
    world.sh("test -z \"$(ls -A data/layers/sha256)\"").ok();
    assert!(world.layer("x").exists());
    assert_whole(&world, "unpacked anew");
}

#[test]
fn a_layer_that_came_to_the_disk_loses_its_mark() {
    let world = World::root();
    prepare(&world);
    let mark = world.sh("sheep-images import x t.tgz --print digest >/dev/null; readlink data/layers/sha256/.unsynced-* || echo none").ok();
    // It is gone already, or names this boot.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(mark == "none" || mark == boot.trim(), "{mark}");
    world
        .sh("for i in $(seq 200); do ls data/layers/sha256/.unsynced-* 2>/dev/null || exit 0; sleep 0.05; done; exit 1")
        .ok();
    // By hand: one of another boot stays, and so does everything else.
    world.sh(&format!("{CUT}; sheep-images settle < data/layers/sha256 && ls data/layers/sha256/.unsynced-*")).ok();
    world.sh("sheep-images settle < /dev/null").fails(1, "settle");
}

#[test]
fn unpacks_and_removals_killed() {
    let world = World::root();
    prepare(&world);
    for (n, moment) in moments(24, 100_000).enumerate() {
        world.sh("sheep-images import x t.tgz && sheep-images tag x y").ok();
        let (before, script, part) = match n % 3 {
            0 => ("rm -r data/layers/sha256/*", "exec sheep-images unpack x", 1),
            1 => ("true", "exec sheep-images rm x y", 8),
            _ => ("sheep-images rm y", "exec sheep-images rm x", 8),
        };
        world.sh(before).ok();
        let mut child = world.start(script);
        std::thread::sleep(moment / part);
        child.kill().unwrap();
        child.wait().unwrap();
        world.sh("sheep-images unpack x 2>/dev/null; true").ok();
        assert_whole(&world, &format!("{script} killed after {moment:?}"));
    }
}

#[test]
fn a_signal_leaves_nothing() {
    let world = World::root();
    prepare(&world);
    world.sh("head -c 40M /dev/urandom > want/more && tar -C want -cf t.tar .").ok();
    let before = world.snapshot();
    let mut interrupted = 0;
    for moment in moments(8, 60_000) {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            // The shell would keep a background child from SIGINT.
            let child = world.start("exec sheep-images import x t.tar");
            std::thread::sleep(moment + Duration::from_millis(10));
            world.sh(&format!("kill -{signal} {}", child.id()));
            let out = child.wait_with_output().unwrap();
            // Before there is anything to clear up, a signal ends it as it ends any program.
            match out.status.code().or(out.status.signal().map(|signal| 128 + signal)) {
                Some(0) => drop(world.sh("sheep-images rm x").ok()),
                ended => {
                    assert_eq!(ended, Some(code), "{}", String::from_utf8_lossy(&out.stderr));
                    interrupted += 1;
                }
            }
            let left = world.sh("find data -name '.tmp-*'").ok();
            assert_eq!(left, "", "after {signal} at {moment:?}");
            assert_eq!(world.snapshot(), before);
        }
    }
    assert!(interrupted > 3, "only {interrupted} were in time");
}
