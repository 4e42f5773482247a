//! Killed at any moment: the store is whole, and the next command clears up.

use std::time::Duration;

use crate::harness::World;

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
    let layers = world.sh("ls -A data/layers/sha256").ok();
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
            match out.status.code() {
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
