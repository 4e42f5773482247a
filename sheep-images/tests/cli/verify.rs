//! Damage of every kind is found, and what can be mended is.

use std::time::Duration;

use crate::care::import;
use crate::harness::{SETTLED, World};
use crate::maker::{Block, tar};

/// Images `a` (two layers) and `b` (the first of them, and one whose archive leaves a directory out), with all that an archive can hold.
fn with_images(world: &World) {
    let base = tar()
        .block(Block::new(b"etc", b'5').with(100, b"0000750\0"))
        .file(b"etc/passwd", b"root:x:0:0")
        .file(b"etc/empty", b"")
        .hard(b"etc/again", b"etc/passwd")
        .symlink(b"link", b"etc/passwd")
        .block(Block::new(b"null", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
        .block(Block::new(b"fifo", b'6'))
        .pax(b'x', &[(b"SCHILY.xattr.user.kept", b"value"), (b"mtime", b"1234.000000567")])
        .block(Block::new(b"suid", b'0').with(100, b"0004755\0").with(108, b"0000041\0"))
        .file(b"big", &[5; 300_000])
        .end();
    let top =
        tar().dir(b"etc").file(b"etc/.wh.empty", b"").dir(b"o").file(b"o/.wh..wh..opq", b"").file(b"o/f", b"1").end();
    let sparing = tar().file(b"etc/added", b"1").end();
    import(world, "a", &[base.clone(), top], "");
    import(world, "b", &[base, sparing], "");
    world.sh("sheep-images unpack a && sheep-images unpack b").ok();
}

/// All that there is in the blobs and layers, but for the times of whiteouts, which nothing says.
#[track_caller]
fn listed(world: &World) -> String {
    let list = "find data/layers/sha256 data/images/blobs/sha256 -mindepth 1 ! -type c -printf '%P %y %m %U:%G %s %T@ %n %l\\n' | sort; \
    cd data/layers/sha256; find . -type c -exec stat -c '%n %a %u:%g %t:%T' {} + | sort; getfattr -hdRm - . 2>/dev/null | LC_ALL=C sort";
    world.sh(&format!("{SETTLED}; {list}")).ok()
}

/// The directory of a layer.
#[track_caller]
fn layer(world: &World, image: &str, number: usize) -> String {
    world.sh(&format!("sheep-images inspect {image} | jq -r '.image.layers[{number}].path'")).ok()
}

#[track_caller]
fn blob(world: &World, image: &str, number: usize) -> String {
    let hex = world.sh(&format!("sheep-images inspect {image} | jq -r '.image.layers[{number}].digest[7:]'")).ok();
    format!("data/images/blobs/sha256/{hex}")
}

#[test]
fn a_store_that_is_whole() {
    for world in [World::root(), World::user()] {
        with_images(&world);
        let before = world.snapshot();
        let outcome = world.sh("sheep-images verify && sheep-images verify a b && sheep-images verify --repair --json");
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "", ""));
        assert_eq!(world.snapshot(), before);
        // Layers that are not unpacked are not wrong, nor is one on another that is not.
        let dir = layer(&world, "a", 0);
        world
            .sh(&format!("mv {dir} away && sheep-images verify && rm -rf data/layers/sha256/* && sheep-images verify"))
            .ok();
        world.sh("sheep-images verify nosuch").fails(3, "verify nosuch: no such image");
    }
}

#[test]
fn a_user_compares_what_may_be_read() {
    let world = World::user();
    let archive =
        tar().block(Block::new(b"closed", b'5').with(100, b"0000000\0")).file(b"closed/f", b"1").file(b"f", b"1").end();
    import(&world, "t", &[archive], "");
    let outcome = world.sh("sheep-images verify");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
    assert_eq!(outcome.stderr, "sheep-images: verify: 1 entry that may not be read was not compared\n");
    let dir = layer(&world, "t", 0);
    world.sh(&format!("echo more >> {dir}/f; sheep-images verify --repair 2>/dev/null")).ok();
    assert_eq!(world.sh(&format!("cat {dir}/f; stat -c %a {dir}/closed")).ok(), "10");
}

#[test]
fn every_change_of_an_unpacked_layer_is_found_and_mended() {
    let world = World::root();
    with_images(&world);
    world.sh("cp -a data good").ok();
    let changes: [(&str, &str); 20] = [
        (
            "printf X | dd of=etc/passwd bs=1 conv=notrunc status=none; touch -d @1 etc/passwd",
            "/etc/again: content /etc/passwd: content",
        ),
        ("printf X >> big; touch -d @1 big", "/big: content, size"),
        ("rm big; touch -d @0 .", "/big: missing"),
        ("touch etc/new; touch -d @1 etc", "/etc/new: extra"),
        ("chmod 4711 suid", "/suid: mode"),
        ("chmod 0755 etc", "/etc: mode"),
        ("chown 1:1 big", "/big: owner"),
        ("chown -h 1 link", "/link: owner"),
        ("ln -sfn elsewhere link; touch -hd @1 link; touch -d @0 .", "/link: target"),
        ("rm link; cp etc/passwd link; touch -d @0 .", "/link: type"),
        ("touch -d @1234.000000568 suid", "/suid: times"),
        ("touch -d @2 etc", "/etc: times"),
        ("setfattr -n user.kept -v other suid", "/suid: xattr"),
        ("setfattr -x user.kept suid", "/suid: xattr"),
        ("setfattr -n user.more -v 1 etc", "/etc: xattr"),
        ("rm etc/again; cp -a etc/passwd etc/again; touch -d @1 etc", "/etc/again: links /etc/passwd: links"),
        ("rm null; mknod -m 644 null c 1 5; touch -d @1 null; touch -d @0 .", "/null: device"),
        ("rm fifo; mkdir -m 644 fifo; touch -d @1 fifo; touch -d @0 .", "/fifo: type"),
        ("chmod 700 .", "/: mode"),
        ("rm -r etc; ln -s / etc; touch -hd @1 etc; touch -d @0 .", "/etc: type"),
    ];
    let dir = layer(&world, "a", 0);
    let diff_id = world.sh("sheep-images inspect a | jq -r '.image.layers[0].diffId'").ok();
    let whole = listed(&world);
    for (change, want) in changes {
        world.sh(&format!("cd {dir} && {change}")).ok();
        let found = world.sh("sheep-images verify");
        let lines: Vec<&str> = found
            .stdout
            .lines()
            .map(|line| {
                let line = line.strip_prefix(&format!("layer {diff_id} of a:latest: ")).expect("what it is of");
                line.strip_suffix("; 'verify --repair' unpacks the layer anew").expect("what to do")
            })
            .collect();
        assert_eq!(lines.join(" "), want, "{change}");
        assert_eq!((found.code, found.stderr.lines().count()), (1, 1), "{change}: {}", found.stderr);
        let outcome = world.sh("sheep-images verify --repair");
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{change}");
        assert!(outcome.stdout.lines().all(|line| line.ends_with("; unpacked anew")), "{}", outcome.stdout);
        assert_eq!(listed(&world), whole, "{change}");
    }
    // Marks of the layers above: a whiteout that has gone shows what was deleted.
    let top = layer(&world, "a", 1);
    world.sh(&format!("cd {top} && rm etc/empty && touch -d @1 etc && setfattr -x trusted.overlay.opaque o")).ok();
    let found = world.sh("sheep-images verify a --json | jq -c '[.kind, .images, .inside, .what, .repaired]'").ok();
    assert_eq!(
        found,
        "[\"layer\",[\"a:latest\"],\"/etc/empty\",\"missing\",false]\n[\"layer\",[\"a:latest\"],\"/o\",\"xattr\",false]"
    );
    world.sh("sheep-images verify b && sheep-images verify --repair a").ok();
    assert_eq!(listed(&world), whole);
    // One that was completed for the layers below it, which are damaged as well.
    let (low, sparing) = (layer(&world, "b", 0), layer(&world, "b", 1));
    world.sh(&format!("chmod 777 {low}/etc; chmod 711 {sparing}/etc")).ok();
    let found = world.sh("sheep-images verify b --json | jq -c '[.inside, .what]'").ok();
    assert_eq!(found, "[\"/etc\",\"mode\"]\n[\"/etc\",\"mode\"]");
    assert_eq!(world.sh(&format!("stat -c %a {sparing}/etc")).ok(), "711");
    world.sh("sheep-images verify --repair").ok();
    assert_eq!(world.sh(&format!("stat -c %a {low}/etc {sparing}/etc")).ok(), "750\n750");
    world.sh("sheep-images verify").ok();
}

#[test]
fn a_layer_in_use_is_not_exchanged() {
    let world = World::root();
    with_images(&world);
    let dir = layer(&world, "a", 1);
    world.sh(&format!("echo more >> {dir}/o/f; mkdir -p data/overlay/3f2a && jq -nc --arg l {dir} '{{id:\"x\",lower:[$l]}}' > data/overlay/3f2a/overlay.json")).ok();
    let before = world.snapshot();
    let outcome = world.sh("sheep-images verify --repair");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(
        outcome.stderr.contains("is damaged, and in use by overlay 3f2a; 'sheep-overlay umount'"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.ends_with("/o/f: content, size, times; it is in use\n"), "{}", outcome.stdout);
    assert_eq!(world.snapshot(), before);
    world.sh("rm -r data/overlay && sheep-images verify --repair").ok();
    assert_eq!(world.sh(&format!("cat {dir}/o/f")).ok(), "1");
}

#[test]
fn a_damaged_blob_is_replaced_by_the_next_import() {
    let world = World::root();
    with_images(&world);
    world.sh("sheep-images export a > a.tar && sheep-images export b > b.tar").ok();
    let blob = blob(&world, "a", 0);
    let hex = &blob[blob.len() - 64..];
    // Another byte: only verify sees it, and puts it aside; what is unpacked of it is as it was.
    world.sh(&format!("printf X | dd of={blob} bs=1 seek=700 conv=notrunc status=none")).ok();
    let outcome = world.sh("sheep-images verify");
    let size = world.sh(&format!("stat -c %s {blob}")).ok();
    assert_eq!(
        outcome.stdout,
        format!(
            "blob sha256:{hex} of a:latest, b:latest: its content is not what its digest says ({size} bytes of {size}); import or fetch the image again\n"
        )
    );
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, "sheep-images: verify: 1 problem found\n"));
    let outcome = world.sh("sheep-images verify --repair");
    assert!(
        outcome.code == 1 && outcome.stdout.ends_with("; put aside; import or fetch the image again\n"),
        "{outcome:?}"
    );
    // Nothing of it goes out as if all were there.
    world.sh("sheep-images export a | cat; exit ${PIPESTATUS[0]}").fails(1, hex);
    let outcome = world.sh("sheep-images verify --repair");
    assert!(
        outcome.code == 1 && outcome.stdout.ends_with(": it is missing; import or fetch the image again\n"),
        "{outcome:?}"
    );
    world.sh("sheep-images import a a.tar && sheep-images verify && sheep-images gc").ok();
    assert_eq!(world.sh("ls -A data/images").ok(), ".lock\nblobs\nindex.json\noci-layout");
    // Cut short: the import sees it by itself, and trusts neither that nor a blob that is longer.
    for damage in ["truncate -s 1000", "truncate -s +1"] {
        world.sh(&format!("{damage} {blob} && sheep-images import a a.tar && sheep-images verify")).ok();
    }
    // A file system's archive brings its blob along: it takes the place of one that is not the same.
    world.sh("mkdir d && echo x > d/f && tar -C d -cf t.tar . && sheep-images import t t.tar").ok();
    let of_t = crate::verify::blob(&world, "t", 0);
    world
        .sh(&format!("printf X | dd of={of_t} bs=1 seek=600 conv=notrunc status=none; sheep-images verify t"))
        .fails(1, "1 problem");
    world.sh("sheep-images import t t.tar && sheep-images verify").ok();
    // Documents: they stay where they are, damaged or not, and the next import puts good ones in their place.
    for what in ["inspect a --raw", "inspect a --raw=config"] {
        let name = world.sh(&format!("sheep-images {what} | sha256sum | cut -d' ' -f1")).ok();
        world.sh(&format!("echo ' ' >> data/images/blobs/sha256/{name}")).ok();
        let kind = if what.ends_with("config") { "config" } else { "manifest" };
        let outcome = world.sh("sheep-images verify --repair");
        assert!(
            outcome.code == 1 && outcome.stdout.starts_with(&format!("{kind} sha256:{name} of a:latest: ")),
            "{outcome:?}"
        );
        assert_eq!(outcome.stdout.lines().count(), 1, "{}", outcome.stdout);
        world.sh("sheep-images import a a.tar && sheep-images verify").ok();
    }
    // A directory that has a blob's name.
    world.sh("mkdir -p data/images/blobs/sha256/$(printf %064d 8)/d").ok();
    world.sh("sheep-images gc").ok();
    let outcome = world.sh("sheep-images verify --repair");
    assert!(
        outcome.code == 0 && outcome.stdout.contains(": it is no file; put aside; 'gc' deletes it\n"),
        "{outcome:?}"
    );
    world.sh("sheep-images gc && sheep-images verify").ok();
    // One that no image needs.
    world
        .sh("echo x > data/images/blobs/sha256/$(printf %064d 7); sheep-images verify >/dev/null")
        .fails(1, "1 problem");
    let outcome = world.sh("sheep-images verify --repair");
    assert!(outcome.code == 0 && outcome.stdout.ends_with("put aside; 'gc' deletes it\n"), "{outcome:?}");
    world.sh("sheep-images gc && sheep-images verify").ok();
}

#[test]
fn a_name_that_leads_to_nothing_and_leftovers() {
    let world = World::root();
    with_images(&world);
    let digest = world.sh("sheep-images inspect a --print digest").ok();
    world.sh(&format!("rm data/images/blobs/sha256/{}; mkdir data/layers/sha256/.tmp-x", &digest[7..])).ok();
    let outcome = world.sh("sheep-images verify");
    assert_eq!(outcome.code, 1);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(
        lines[0],
        format!(
            "index {digest} of a:latest: its manifest is missing; import or fetch the image again, or --repair drops the name"
        )
    );
    assert!(
        lines[1].starts_with("leftover /") && lines[1].ends_with(".tmp-x; the next command clears it away"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 2);
    // Only the name that is asked for.
    world.sh("sheep-images verify b").ok();
    let outcome = world.sh("sheep-images verify --repair");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    assert!(
        outcome.stdout.contains("; dropped from the index\n") && outcome.stdout.contains(".tmp-x; deleted\n"),
        "{}",
        outcome.stdout
    );
    assert_eq!(world.sh("sheep-images ls --json | jq -r .image.reference").ok(), "b:latest");
    world.sh("sheep-images verify && sheep-images gc && sheep-images rm b").ok();
    world.assert_empty();
    // A configuration that is none, and one that does not fit: well-made, with right digests.
    world.sh(r#"set -e; cd data/images/blobs/sha256; put() { d=$(sha256sum < $1 | cut -d' ' -f1); s=$(stat -c %s $1); mv $1 $d; }
        echo '{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["sha256:'$(printf %064d 1)'"]}}' > x; put x
        echo "{\"schemaVersion\":2,\"config\":{\"digest\":\"sha256:$d\",\"size\":$s},\"layers\":[]}" > x; put x
        jq -c ".manifests = [{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$d\",\"size\":$s}]" ../../index.json > x; mv x ../../index.json"#).ok();
    let outcome = world.sh("sheep-images verify");
    assert!(
        outcome.code == 1 && outcome.stdout.contains(": it names 1 layers, and the manifest 0; import"),
        "{outcome:?}"
    );
    // A size that is not so.
    world.sh(r#"jq -c '.manifests[0].size += 1' data/images/index.json > x && mv x data/images/index.json"#).ok();
    assert!(world.sh("sheep-images verify").stdout.contains(" bytes, and the image says "));
}

#[test]
fn beside_imports_and_removals() {
    let world = World::root();
    with_images(&world);
    world.sh("sheep-images export a > a.tar && sheep-images export b > b.tar && sheep-images rm a b").ok();
    let children: Vec<_> = ["a", "b"]
        .iter()
        .map(|x| world.start(&format!("set -e; for i in $(seq 12); do sheep-images import {x} {x}.tar >/dev/null || sheep-images import {x} {x}.tar >/dev/null || sheep-images import {x} {x}.tar >/dev/null; sheep-images unpack {x} >/dev/null; sheep-images rm {x}; done 2>log-{x} || {{ cat log-{x} >&2; exit 1; }}")))
        .chain(["verify", "verify --repair", "gc"].map(|verb| {
            world.start(&format!("for i in $(seq 25); do sheep-images {verb} > said-{} || {{ cat said-*; exit 1; }}; done", verb.replace(' ', "")))
        }))
        .collect();
    for child in children {
        let out = child.wait_with_output().expect("wait");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    }
    world.sh("sheep-images gc").ok();
    world.assert_empty();
}

#[test]
fn repairs_and_collections_killed() {
    let world = World::root();
    with_images(&world);
    world.sh("sheep-images export a > a.tar && sheep-images export b > b.tar").ok();
    let whole = listed(&world);
    let dir = layer(&world, "a", 0);
    let mut state = 99u64;
    for n in 0..16 {
        let script = match n % 2 {
            0 => {
                world.sh(&format!("echo damage >> {dir}/big; rm -f {dir}/link")).ok();
                "exec sheep-images verify --repair"
            }
            _ => {
                world.sh("l=data/layers/sha256/$(printf %064d 5); mkdir -p $l && cp -r /usr/share/doc/a* $l/; for i in 1 2 3 4 5 6 7 8; do echo $i > data/images/blobs/sha256/$(printf %064d $i); done").ok();
                "exec sheep-images gc"
            }
        };
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut child = world.start(script);
        std::thread::sleep(Duration::from_micros((state >> 33) % 40_000));
        child.kill().expect("kill");
        child.wait().expect("wait");
        // Either the damaged layer is there or the good one, and never a part of one: what is left to do is done by the next.
        world.sh("sheep-images unpack a && sheep-images unpack b").ok();
        world.sh("sheep-images verify --repair >/dev/null; sheep-images gc && sheep-images verify").ok();
        assert_eq!(listed(&world), whole, "{script} {n}");
        assert_eq!(world.sh("find data -name '.tmp-*' -o -name '.index.json.*' -o -name '.damaged*'").ok(), "");
    }
}
