//! Names, removal, documents, damage.

use std::process::Child;

use crate::harness::{SETTLED, World};
use crate::maker::tar;

fn with_images(world: &World) {
    for name in ["a", "b"] {
        world.write(&format!("{name}.tar"), tar().file(name.as_bytes(), name.as_bytes()).end());
        world.sh(&format!("sheep-images import {name} {name}.tar")).ok();
    }
}

#[test]
fn documents() {
    let world = World::root();
    with_images(&world);
    let keys = world.sh("sheep-images inspect a | jq -c '.image | keys_unsorted, (.layers[0] | keys_unsorted), .reference, .platform.os, .config.config.Cmd'").ok();
    assert_eq!(
        keys,
        "[\"reference\",\"digest\",\"platform\",\"config\",\"layers\"]\n[\"digest\",\"diffId\",\"mediaType\",\"size\",\"path\"]\n\"a:latest\"\n\"linux\"\n[\"/bin/sh\"]"
    );
    assert_eq!(world.sh("sheep-images inspect a | wc -l").ok(), "1");
    assert_eq!(world.sh("sheep-images inspect a --print image.config.os").ok(), "linux");
    world.sh("sheep-images inspect a --print nosuch").fails(2, "nosuch");
    assert_eq!(world.sh("sheep-images ls --json | jq -r .image.reference").ok(), "a:latest\nb:latest");
    let table = world.sh("sheep-images ls").ok();
    assert!(table.starts_with("REFERENCE  DIGEST        SIZE    CREATED\na:latest   "), "{table}");
    // Whole digest, prefix, name with digest: the same image.
    let digest = world.sh("sheep-images inspect b --print digest").ok();
    let hex = digest.strip_prefix("sha256:").unwrap();
    for reference in [
        &digest,
        hex,
        &hex[..12],
        &format!("sha256:{}", &hex[..20]),
        &format!("b@{digest}"),
        "docker.io/library/b:latest",
    ] {
        assert_eq!(
            world.sh(&format!("sheep-images unpack {reference} --print reference")).ok(),
            "b:latest",
            "{reference}"
        );
    }
    // Without its directory a layer has no path; unpack makes it again.
    world.sh("rm -r data/layers/sha256/*").ok();
    assert_eq!(world.sh("sheep-images inspect b | jq .image.layers[0].path").ok(), "null");
    assert_eq!(world.sh("cat $(sheep-images unpack b | jq -r .image.layers[0].path)/b").ok(), "b");
    assert_eq!(world.sh("sheep-images inspect b | head -c 0; echo ${PIPESTATUS[0]}").ok(), "0");
}

#[test]
fn bad_references() {
    let world = World::root();
    with_images(&world);
    for verb in ["unpack", "inspect", "rm"] {
        world
            .sh(&format!("sheep-images {verb} nosuch"))
            .fails(3, &format!("{verb} nosuch: no such image; 'sheep-images ls' shows what there is"));
        world.sh(&format!("sheep-images {verb} 'sha256:../../x'")).fails(2, "digest");
        world.sh(&format!("sheep-images {verb} '../a'")).fails(2, "not an image name");
        world.sh(&format!("sheep-images {verb} a:other")).fails(3, "no such image");
    }
    world.sh("sheep-images tag nosuch x").fails(3, "no such image");
    world.sh("sheep-images tag a A").fails(2, "lower case");
    world.sh("sheep-images tag a x@sha256:00").fails(2, "not an image name");
    world.sh("sheep-images import x nosuch.tar").fails(3, "nosuch.tar: no such file");
    world.sh("sheep-images import x/ a.tar").fails(2, "not an image name");
    assert_eq!(world.sh("sheep-images nosuchverb").code, 2);
    assert_eq!(world.sh("sheep-images rm").code, 2);
    world.sh("sheep-images --root a.tar ls").fails(1, "data directory");
}

#[test]
fn names_and_removal() {
    let world = World::root();
    with_images(&world);
    assert_eq!(world.sh("sheep-images tag a other:v1 --print reference").ok(), "other:v1");
    world.sh("sheep-images rm a").ok();
    assert_eq!(world.sh("sheep-images ls --json | jq -r .image.reference").ok(), "b:latest\nother:v1");
    assert_eq!(world.sh("ls data/layers/sha256 | wc -l").ok(), "2");
    // A name that moves on leaves the image by its digest.
    let digest = world.sh("sheep-images inspect b --print digest").ok();
    world.sh("sheep-images tag other:v1 b").ok();
    assert_eq!(world.sh("sheep-images ls | awk 'NR>1 {print $1}' | sort").ok(), "<none>\nb:latest\nother:v1");
    assert_eq!(world.sh(&format!("sheep-images inspect {digest} | jq '.image | has(\"reference\")'")).ok(), "false");
    let both = world.sh("sheep-images inspect b --print digest").ok();
    world.sh(&format!("sheep-images rm {both}")).fails(4, "other:v1, b:latest");
    world.sh(&format!("sheep-images rm {digest}")).ok();
    assert_eq!(world.sh("ls data/layers/sha256 | wc -l").ok(), "1");
    // After an error it goes on, and the first error decides.
    let outcome = world.sh("sheep-images rm nosuch b ../x other:v1");
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (3, 2), "{}", outcome.stderr);
    world.assert_empty();
}

#[test]
fn what_an_overlay_uses_stays() {
    let world = World::root();
    with_images(&world);
    world.sh("mkdir -p data/overlay/3f2a data/overlay/kept data/overlay/other && for i in 3f2a kept; do jq -nc --arg l $(sheep-images unpack a | jq -r .image.layers[0].path) '{id:\"x\",lower:[\"/usr\",$l]}' > data/overlay/$i/overlay.json; done; echo '{\"lower\":[\"/usr\"]}' > data/overlay/other/overlay.json").ok();
    let before = world.snapshot();
    world.sh("sheep-images rm a").fails(4, "in use by overlays 3f2a, kept");
    world.sh("sheep-images rm a b").fails(4, "rm a: in use by overlays 3f2a, kept");
    assert_eq!(world.sh("sheep-images ls --json | jq -r .image.reference").ok(), "a:latest");
    assert!(world.layer("a").join("a").exists());
    // Another name of it may go.
    world
        .sh("sheep-images tag a second && sheep-images rm a && sheep-images tag second a && sheep-images rm second")
        .ok();
    world.sh("rm -r data/overlay/3f2a && sheep-images rm a").fails(4, "in use by overlay kept");
    world
        .sh("echo '{\"lower\":' > data/overlay/kept/overlay.json; sheep-images rm a")
        .fails(1, "data/overlay/kept/overlay.json");
    world.sh("rm -r data/overlay/kept && sheep-images rm a").ok();
    assert_ne!(world.snapshot(), before);
    world.assert_empty();
}

#[test]
fn damage_is_named() {
    let world = World::root();
    with_images(&world);
    let config = world.sh("jq -r .config.digest data/images/blobs/sha256/$(sheep-images inspect a --print digest | cut -d: -f2) | sed 's,sha256:,data/images/blobs/sha256/,'").ok();
    world.sh(&format!("cp {config} kept; echo '{{' > {config}")).ok();
    world.sh("sheep-images unpack a").fails(1, &config);
    let outcome = world.sh("sheep-images ls");
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1));
    assert!(outcome.stdout.contains("b:latest") && outcome.stderr.contains(&config), "{outcome:?}");
    // What the damaged image needs cannot be told, so nothing else is removed; it itself can be.
    world.sh("sheep-images rm b").fails(1, &config);
    world.sh(&format!("rm {config}; sheep-images unpack a")).fails(1, &config);
    world.sh("sheep-images rm a && sheep-images unpack b").ok();
    for bad in [
        "{",
        "[]",
        "{\"schemaVersion\":2}",
        "{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"sha256:../../../x\",\"size\":1}]}",
        "",
    ] {
        world.write("bad", bad);
        world.sh("cp data/images/index.json good; cp bad data/images/index.json").ok();
        for verb in ["ls", "unpack b", "rm b", "tag b c", "import c a.tar", "bootstrap"] {
            world.sh(&format!("sheep-images {verb}")).fails(1, "index.json");
        }
        world.sh("cmp bad data/images/index.json && mv good data/images/index.json").ok();
    }
    world.sh("rm data/images/index.json; sheep-images ls").fails(1, "index.json");
    world.sh("echo '{\"imageLayoutVersion\":\"9\"}' > data/images/oci-layout; sheep-images ls").fails(1, "oci-layout");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let world = World::root();
    world.sh("mkdir small && mount -t tmpfs -o size=3m tmpfs small && export SHEEP_DATA_DIR=$PWD/small/data && sheep-images ls").ok();
    world.sh("head -c 2000000 /dev/urandom > f && tar -cf big.tar f f && tar -czf big.tgz f f && xz < big.tar > big.txz && head -c 20M /dev/zero > z && tar -czf bomb.tgz z").ok();
    let list = "find small -printf '%p %y %s\\n' | sort";
    let before = world.sh(list).ok();
    for file in ["big.tar", "big.tgz", "big.txz", "bomb.tgz"] {
        world.sh(&format!("sheep-images --root small/data import x {file}")).fails(1, "No space left");
        assert_eq!(world.sh(list).ok(), before, "{file}");
    }
    world.sh("sheep-images --root small/data bootstrap").fails(1, "No space left");
    assert_eq!(world.sh(list).ok(), before);
    // The archive fits and what is unpacked does not: the image is there, its directory is not.
    world.sh(&format!("timeout 20 sh -c 'until umount small; do sleep 0.1; done' && mount -t tmpfs -o size=100m tmpfs small && sheep-images --root small/data import z bomb.tgz && {} && rm -r small/data/layers/sha256/* && mount -o remount,size=10m small", SETTLED.replace("data", "small/data"))).ok();
    world.sh("sheep-images --root small/data unpack z").fails(1, "No space left");
    assert_eq!(
        world.sh("ls -A small/data/layers/sha256; timeout 20 sh -c 'until umount small; do sleep 0.1; done'").ok(),
        ""
    );
}

#[test]
fn several_at_once() {
    let world = World::root();
    world.sh("tar -C /usr/share -czf t.tgz doc/bash doc/tar 2>/dev/null; test -s t.tgz").ok();
    let all = |scripts: Vec<String>| {
        let children: Vec<Child> = scripts.iter().map(|script| world.start(script)).collect();
        for child in children {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    };
    // From nothing: also the store is made by all of them at once.
    all((0..6).map(|n| format!("sheep-images import n{n} t.tgz")).collect());
    assert_eq!(world.sh("sheep-images ls --json | wc -l; ls data/layers/sha256 | wc -l").ok(), "6\n1");
    world.sh("rm -r data/layers/sha256/*").ok();
    all((0..6).map(|n| format!("sheep-images unpack n{n}")).collect());
    assert_eq!(world.sh("ls data/layers/sha256 | wc -l").ok(), "1");
    all((0..6).map(|n| format!("sheep-images tag n{n} m{n} && sheep-images rm n{n}")).collect());
    all((0..6).map(|n| format!("sheep-images rm m{n}; sheep-images import k{n} t.tgz && sheep-images unpack k{n} && sheep-images rm k{n}")).collect());
    world.assert_empty();
}
