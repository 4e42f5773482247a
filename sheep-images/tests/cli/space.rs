//! How much disk images take, and what is cleared away.

use crate::harness::World;
use crate::maker::tar;

/// What coreutils says of the data directory; what is mounted in it is not counted.
#[track_caller]
fn du(world: &World, dir: &str) -> u64 {
    world.sh(&format!("du -sB1 -- {dir} | cut -f1")).ok().parse().unwrap()
}

#[track_caller]
fn number(world: &World, script: &str) -> u64 {
    world.sh(script).ok().parse().unwrap()
}

/// An image of 8 MB, and ten that umoci made of it, each with a file of 100 kB of its own.
fn ten_on_one_base(world: &World) {
    world.sh("mkdir root && head -c 8M /dev/urandom > root/ballast && ln root/ballast root/again && tar -C root -cf base.tar . && sheep-images import base base.tar").ok();
    world.sh("set -e; umoci init --layout img; sheep-images export base | tar -C img -x; umoci tag --image img:base:latest base").ok();
    for n in 0..10 {
        world
            .sh(&format!(
                "set -e; mkdir add; head -c 100k /dev/urandom > add/own; tar -C add -cf add.tar own; rm -r add; \
                 umoci tag --image img:base x{n}; umoci raw add-layer --image img:x{n} add.tar; \
                 sheep-images import x{n} img --ref x{n}"
            ))
            .ok();
    }
}

#[test]
fn ten_images_on_one_base_take_the_base_once() {
    let world = World::root();
    world.sh("mkdir root && head -c 8M /dev/urandom > root/ballast && ln root/ballast root/again && tar -C root -cf base.tar . && sheep-images import base base.tar").ok();
    let base = du(&world, "data");
    assert!(base > 16_000_000, "the archive and the directory: {base}");
    world.sh("rm base.tar; sheep-images rm base").ok();
    world.assert_empty();
    world.sh("rm -r root").ok();
    ten_on_one_base(&world);
    let all = du(&world, "data");
    // 100 kB as a blob and as a directory, twice for ten, and a manifest and a configuration each.
    assert!(all > base + 2_000_000 && all < base + 2_000_000 + 10 * 60_000, "base {base}, all {all}");
    assert_eq!(number(&world, "sheep-images du --json | tail -1 | jq .total.bytes"), all);
    let sums = world.sh("sheep-images du --json | tail -1 | jq -c '.total | .stored + .unpacked + .overlays + .rest == .bytes, .unused'").ok();
    assert_eq!(sums, "true\n0");
    // The base is all but shared; each of the others shares it and has its own.
    let rows = world.sh("sheep-images du --json | jq -r 'select(.du) | [.image.reference, .du.shared, .du.own, (.du.stored + .du.unpacked == .du.bytes and .du.shared + .du.own == .du.bytes)] | @tsv'").ok();
    assert_eq!(rows.lines().count(), 11);
    for row in rows.lines() {
        let cells: Vec<&str> = row.split('\t').collect();
        let (shared, own): (u64, u64) = (cells[1].parse().unwrap(), cells[2].parse().unwrap());
        assert!(shared > 16_000_000, "{row}");
        let is_base = cells[0] == "base:latest";
        assert!(if is_base { own < 20_000 } else { (200_000..260_000).contains(&own) }, "{row}");
        assert_eq!(cells[3], "true");
    }
    // What is its own is what removing it frees.
    let own = number(&world, "sheep-images du x3 --json | jq 'select(.du).du.own'");
    let some = number(&world, "sheep-images du x3 x4 --json | tail -1 | jq .total.bytes");
    let each = number(&world, "sheep-images du x3 --json | tail -1 | jq .total.bytes");
    assert!(some > each && some < each + 300_000, "{some} {each}");
    world.sh("sheep-images rm x3").ok();
    assert_eq!(du(&world, "data"), all - own);
    // A second name: removing one of them frees nothing.
    world.sh("sheep-images tag x4 other").ok();
    assert_eq!(number(&world, "sheep-images du x4 --json | jq 'select(.du).du.own'"), 0);

    let table = world.sh("sheep-images du").ok();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["REFERENCE", "STORED", "UNPACKED", "TOTAL", "SHARED", "OWN"]);
    assert_eq!(lines.last().unwrap()[0], "total", "{table}");
    world.sh("sheep-images du nosuch x4 >/dev/null").fails(3, "du nosuch: no such image");
}

#[test]
fn all_of_the_data_directory_is_counted() {
    let world = World::root();
    world.write("a.tar", tar().file(b"a", &[7; 50_000]).end());
    world.sh("sheep-images import a a.tar && mkdir -p data/overlay/x/upper data/containers/c && head -c 300k /dev/zero > data/overlay/x/upper/f && echo x > data/containers/c/log").ok();
    // No image's: a blob, a layer.
    world.sh("head -c 70000 /dev/urandom > data/images/blobs/sha256/$(printf %064d 1) && mkdir data/layers/sha256/$(printf %064d 2) && head -c 90000 /dev/urandom > data/layers/sha256/$(printf %064d 2)/f").ok();
    let total = world.sh("sheep-images du --json | tail -1 | jq -c .total").ok();
    assert_eq!(number(&world, "sheep-images du --json | tail -1 | jq .total.bytes"), du(&world, "data"));
    let field = |name: &str| number(&world, &format!("echo '{total}' | jq .{name}"));
    assert!((160_000..190_000).contains(&field("unused")), "{total}");
    assert!((307_200..340_000).contains(&field("overlays")), "{total}");
    // What is mounted there is another file system's.
    world.sh("mkdir data/overlay/x/merged && mount -t tmpfs tmpfs data/overlay/x/merged && head -c 1M /dev/zero > data/overlay/x/merged/f").ok();
    let counted = number(&world, "sheep-images du --json | tail -1 | jq .total.bytes");
    assert_eq!(
        counted,
        number(&world, "du -sxB1 data | cut -f1") - number(&world, "stat -c '%b*512' data/overlay/x/merged | bc")
    );
    world.sh("umount data/overlay/x/merged").ok();
    // A damaged image is named, and the others counted.
    world.sh("sheep-images import b a.tar; rm data/images/blobs/sha256/$(sheep-images inspect a --print digest | cut -d: -f2)").ok();
    let outcome = world.sh("sheep-images du --json | jq -r .image.reference");
    assert!(outcome.stdout.contains("b:latest"), "{outcome:?}");
    world.sh("sheep-images du >/dev/null").fails(1, "du: a:latest: ");
}

#[test]
fn a_user_counts_what_may_be_read() {
    let world = World::user();
    use crate::maker::Block;
    let archive = tar().block(Block::new(b"closed", b'5').with(100, b"0000000\0")).file(b"closed/f", &[1; 9000]).end();
    world.write("t.tar", archive);
    world.sh("sheep-images import t t.tar 2>/dev/null").ok();
    let outcome = world.sh("sheep-images du --json | tail -1 | jq .total.bytes");
    assert_eq!(outcome.stderr, "sheep-images: du: what is in 1 directory that may not be read is not counted\n");
    assert_eq!(outcome.stdout.trim(), world.sh("du -sB1 data 2>/dev/null | cut -f1; true").ok());
}
