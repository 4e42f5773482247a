//! Registries that lie, break off, stall and die, and pulls that are killed.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::World;
use crate::servers::*;

#[test]
fn what_lies_is_refused_and_nothing_of_it_stays() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let digest = world.sh("jq -r '.manifests[0].digest' layout/index.json").ok();
    let above = 100_000;
    for (mode, text) in [
        (json!({"flip": 1_000_000, "above": above}), "layer sha256:"),
        // The time in gzip's header, which nobody reads.
        (json!({"flip": 4, "above": above}), "its digest is sha256:"),
        (json!({"flipmanifest": true}), "digest sha256:"),
        (json!({"longer": 7, "above": above}), "and the manifest says"),
        (json!({"shorter": 7, "above": above}), "and the manifest says"),
        (json!({"unsaid": true, "extra": 9, "above": above}), "more comes than the"),
        (
            json!({"say": {"path": "/blobs/", "status": 206, "headers": {"Content-Range": "bytes 0-1/2"}, "body": "xx"}}),
            "206",
        ),
        (json!({"say": {"path": "/blobs/", "status": 404}}), "404 Not Found"),
        (json!({"say": {"path": "/manifests/", "body": "{}", "headers": {"Content-Type": "text/html"}}}), "manifest"),
        (
            json!({"say": {"path": "/manifests/", "body": "not JSON", "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}),
            "not JSON",
        ),
        (
            json!({"say": {"path": "/manifests/", "body": "{\"layers\":[],\"manifests\":[]}", "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}),
            "both a manifest and an index",
        ),
        (
            json!({"say": {"path": "/manifests/", "status": 404, "body": "{\"errors\":[{\"message\":\"a\\nb\\u001b[2J\"}]}"}}),
            "(a\\nb\\u{1b}[2J)",
        ),
    ] {
        between.mode(mode.clone());
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1"));
        assert!(out.code == 1 || out.code == 3, "{mode}: {}", out.stderr);
        let code = out.code;
        assert!(out.stderr.contains(text), "{mode}: {}", out.stderr);
        out.fails(code, "pull");
        assert_eq!(world.sh("sheep-images ls --json; ls data/images/blobs/sha256; find data -name '.tmp-*'; find data -name '.partial-*' -size +100k").ok(), "", "{mode}");
    }
    // Another manifest than the one that was asked for by its digest.
    let other = "{\"schemaVersion\":2,\"config\":{},\"layers\":[]}";
    between.mode(json!({"say": {"path": "/manifests/", "body": other, "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app@{digest}")).fails(1, "what came has the digest");
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
}

#[test]
fn what_breaks_off_is_gone_on_with() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let above = 100_000;
    let blob = |log: Vec<Value>| log.iter().map(|entry| entry["sent"].as_u64().unwrap()).sum::<u64>();
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    assert!(size > BIG);
    for (mode, timeout, at_most) in [
        // Ranges are taken up where it stopped: not a byte comes twice.
        (json!({"cut": 300_000, "above": above}), 30, size),
        (json!({"stall": 1_000_000, "stalls": 2, "above": above}), 1, size + 2 * 300_000),
        (json!({"fail": 3, "status": 500}), 30, size),
        (json!({"fail": 1, "after": 2, "status": 429}), 30, size),
        // Without them it begins again, and still what is there counts.
        (json!({"cut": 3_000_000, "cuts": 2, "norange": true, "above": above}), 30, 3 * size),
    ] {
        between.mode(mode.clone());
        let begun = Instant::now();
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app --timeout {timeout}"));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{mode}");
        let waited = begun.elapsed();
        assert!(mode["after"].is_null() || waited >= Duration::from_secs(2), "{mode}: it came again after {waited:?}");
        assert_app(&world, "app");
        let sent = blob(
            between
                .asked("GET", "/blobs/")
                .into_iter()
                .filter(|entry| entry["sent"].as_u64() > Some(100_000))
                .collect(),
        );
        assert!(sent <= at_most, "{mode}: {sent} bytes came of {size}");
        world.sh("sheep-images rm app").ok();
    }
    // There is an end to it, and it is said; what came stays for the next time.
    for (mode, text) in [
        (json!({"cut": 0, "above": above}), "bytes: "),
        (json!({"fail": 1000, "status": 502}), "manifest dir/app:v1: 502 Bad Gateway, after several tries"),
        (json!({"fail": 1000, "after": 9999}), "503 Service Unavailable"),
        (json!({"cut": 1_500_000, "cuts": 1, "then": 0, "above": above}), "after 1500000 of "),
    ] {
        between.mode(mode.clone());
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app"));
        out.fails(1, text);
    }
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    let sent = blob(between.asked("GET", "/blobs/").into_iter().filter(|entry| entry["range"].is_string()).collect());
    assert_eq!(sent, size - 1_500_000);
    assert_app(&world, "app");
}

#[test]
fn killed_in_mid_blob_again_and_again() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    // 64 KiB every 60 ms: the layer takes four seconds.
    between.mode(json!({"slow": 0.06}));
    let came =
        || world.sh("stat -c %s data/images/.partial-* 2>/dev/null | sort -n | tail -1").ok().parse().unwrap_or(0u64);
    let mut kept = vec![0];
    for round in 0..10 {
        let signal = if round % 2 == 0 { "KILL" } else { "INT" };
        let mut child = world.start(&format!("exec sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app"));
        wait_for(|| (came() > kept[round] + 65536).then_some(()), "more of the blob");
        let _ = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        child.wait().unwrap();
        kept.push(came());
        // It is not cleared up with what crashes leave, and is no image.
        assert_eq!(world.sh("sheep-images ls --json; sheep-images gc; find data -name '.tmp-*'").ok(), "");
        assert!(world.sh("ls data/images/.partial-*").code == 0);
    }
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
    // Each asked for what was not on the disk when the one before it was killed, and for nothing else: no byte came to the disk twice.
    // What the server sent beyond that was in the sockets' buffers.
    let asked = between.asked("GET", "/blobs/");
    let from = |entry: &Value| {
        entry["range"].as_str().map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse::<u64>().unwrap())
    };
    let big: Vec<&Value> =
        asked.iter().filter(|entry| entry["sent"].as_u64().unwrap() > 60_000 || !entry["range"].is_null()).collect();
    let firsts: Vec<u64> = big.iter().map(|entry| from(entry)).collect();
    assert_eq!(firsts, kept);
    let last = asked.iter().rfind(|entry| !entry["range"].is_null()).unwrap();
    assert_eq!(from(last) + last["sent"].as_u64().unwrap(), size);
    // One that is damaged is found out, and all of it is got again.
    world.sh("sheep-images rm app").ok();
    let hex = world.sh("ls -S layout/blobs/sha256 | head -1").ok();
    world.sh(&format!("head -c 1000000 /dev/urandom > data/images/.partial-{hex}")).ok();
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
    // Old ones go.
    world
        .sh(&format!(
            "echo x > data/images/.partial-{hex} && sheep-images gc && touch -d '2 days ago' data/images/.partial-{hex}"
        ))
        .ok();
    assert!(world.sh("sheep-images gc").ok().contains("deleted partial blob"));
    assert_app(&world, "app");
}

#[test]
fn a_registry_killed_ten_times_in_mid_blob() {
    let world = World::root();
    let port = free_port();
    let mut real = registry_at(&world, port, "", "");
    fill(&world, port);
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    let between = Between::start(&world, port);
    between.mode(json!({"slow": 0.08}));
    let child = world.start(&format!("exec sheep-images pull 127.0.0.1:{}/dir/app:v1 --name app", between.server.port));
    let came =
        || world.sh("stat -c %s data/images/.partial-* 2>/dev/null | sort -n | tail -1").ok().parse().unwrap_or(0u64);
    let broken_off =
        || between.asked("GET", "/blobs/").iter().filter(|entry| entry["sent"].as_u64() > Some(20_000)).count();
    for _ in 0..10 {
        let before = came();
        wait_for(|| (came() > before + 65536).then_some(()), "more of the blob");
        let broke = broken_off();
        drop(real);
        // It stays away until that is noticed.
        wait_for(|| (broken_off() > broke).then_some(()), "the blob broke off");
        real = registry_at(&world, port, "", "");
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_app(&world, "app");
    let asked = between.asked("GET", "/blobs/");
    let broke = asked.iter().filter(|entry| entry["range"].is_string()).count();
    assert!(broke >= 10, "it was in mid-blob {broke} times");
    let sent: u64 = asked.iter().map(|entry| entry["sent"].as_u64().unwrap()).filter(|n| *n > 20_000).sum();
    assert!(sent <= size + 64 * 1024, "{sent} bytes for {size}");
    drop(real);
}

#[test]
fn two_at_once_get_the_same() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    between.mode(json!({"slow": 0.01}));
    let pull = format!("sheep-images pull 127.0.0.1:{}/dir/app:v1", between.server.port);
    let out = world.sh(&format!(
        "for n in a b c; do {pull} --name $n & p=\"$p $!\"; done; for p in $p; do wait $p || exit 1; done"
    ));
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    assert_app(&world, "a");
    assert_app(&world, "c");
}
