//! How much disk images take, and what is cleared away.

use crate::harness::World;
use crate::maker::{Block, tar};

/// What coreutils says of the data directory; what is mounted in it is not counted.
#[track_caller]
fn du(world: &World, dir: &str) -> u64 {
    world.sh(&format!("du -sB1 -- {dir} | cut -f1")).ok().parse().expect("a number")
}

#[track_caller]
fn number(world: &World, script: &str) -> u64 {
    world.sh(script).ok().parse().expect("a number")
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
        let (shared, own): (u64, u64) = (cells[1].parse().expect("shared"), cells[2].parse().expect("own"));
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
    assert_eq!(lines[lines.len() - 1][0], "total", "{table}");
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
    let archive = tar().block(Block::new(b"closed", b'5').with(100, b"0000000\0")).file(b"closed/f", &[1; 9000]).end();
    world.write("t.tar", archive);
    world.sh("sheep-images import t t.tar 2>/dev/null").ok();
    let outcome = world.sh("sheep-images du --json | tail -1 | jq .total.bytes");
    assert_eq!(outcome.stderr, "sheep-images: du: what is in 1 directory that may not be read is not counted\n");
    assert_eq!(outcome.stdout.trim(), world.sh("du -sB1 data 2>/dev/null | cut -f1; true").ok());
}

/// A store with an image, and beside it a blob and a layer that no image needs, and what crashes left.
fn with_waste(world: &World) {
    world.write("a.tar", tar().file(b"a", &[7; 50_000]).end());
    world.sh("sheep-images import a a.tar").ok();
    world.sh("set -e; b=$(printf %064d 1); l=$(printf %064d 2); cd data; head -c 70000 /dev/urandom > images/blobs/sha256/$b; mkdir -p layers/sha256/$l/d; head -c 90000 /dev/urandom > layers/sha256/$l/d/f
        head -c 5000 /dev/urandom > images/.damaged-$b; mkdir -p layers/sha256/.tmp-dead/x images/.tmp-stage; head -c 30000 /dev/urandom > layers/sha256/.tmp-dead/x/f; head -c 20000 /dev/urandom > images/.tmp-stage/layer0; echo '{}' > images/.index.json.12")
        .ok();
}

#[test]
fn gc_deletes_what_no_image_needs() {
    let world = World::root();
    with_waste(&world);
    let (all, before) = (du(&world, "data"), world.snapshot());
    let dry = world.sh("sheep-images gc --dry-run").ok();
    assert_eq!(world.snapshot(), before);
    let (blob, layer) = (format!("sha256:{:064}", 1), format!("sha256:{:064}", 2));
    for line in [format!("blob {blob} (73.7 kB)"), format!("layer {layer} (98.3 kB)")] {
        assert!(dry.lines().any(|l| l == line), "{line}: {dry}");
    }
    assert!(dry.contains("damaged blob") && dry.contains(".tmp-dead") && dry.contains(".tmp-stage"), "{dry}");
    let promised = number(&world, "sheep-images gc --dry-run --json | tail -1 | jq .total.bytes");
    let json = world.sh("sheep-images gc --json").ok();
    let freed = number(&world, &format!("echo '{}' | tail -1 | jq .total.bytes", json));
    assert_eq!(
        (promised, freed),
        (all - du(&world, "data") - 4096, promised),
        "and the temporary index, which is not told of"
    );
    assert_eq!(
        world.sh(&format!("echo '{json}' | jq -c 'select(.kind==\"blob\" or .kind==\"layer\") | [.kind, .digest, .bytes, .deleted]'")).ok(),
        format!("[\"blob\",\"{blob}\",73728,true]\n[\"layer\",\"{layer}\",98304,true]")
    );
    assert_eq!(world.sh("sheep-images gc").ok(), "", "there is nothing left");
    assert_eq!(
        world.sh("ls data/layers/sha256 | wc -l; ls data/images/blobs/sha256 | wc -l; ls -A data/images").ok(),
        "1\n3\n.lock\nblobs\nindex.json\noci-layout"
    );
    world.sh("sheep-images unpack a && sheep-images rm a").ok();
    world.assert_empty();
}

#[test]
fn gc_leaves_what_is_in_use_or_cannot_be_told() {
    let world = World::root();
    with_waste(&world);
    let layer = format!("{:064}", 2);
    world.sh(&format!("mkdir -p data/overlay/3f2a && jq -nc --arg l $PWD/data/layers/sha256/{layer} '{{id:\"x\",lower:[$l]}}' > data/overlay/3f2a/overlay.json")).ok();
    let outcome = world.sh("sheep-images gc");
    assert_eq!(outcome.code, 0);
    assert_eq!(outcome.stderr, format!("sheep-images: gc: layer sha256:{layer} stays: in use by overlay 3f2a\n"));
    assert!(!outcome.stdout.contains("deleted layer"));
    assert_eq!(world.sh(&format!("ls data/layers/sha256/{layer}/d")).ok(), "f");
    world.sh("rm -r data/overlay/3f2a; sheep-images gc | grep -q 'deleted layer'").ok();
    // A blob that somebody holds, who is about to need it.
    let blob = format!("data/images/blobs/sha256/{:064}", 3);
    world.sh(&format!("echo x > {blob}; flock --shared {blob} sheep-images gc")).ok();
    world.sh(&format!("test -e {blob} && sheep-images gc && test ! -e {blob}")).ok();
    // What a damaged image needs is not known.
    world
        .sh(&format!(
            "echo x > {blob}; echo x >> data/images/blobs/sha256/$(sheep-images inspect a --print digest | cut -d: -f2)"
        ))
        .ok();
    let before = world.snapshot();
    world
        .sh("sheep-images gc")
        .fails(1, "gc: what is needed cannot be told, so nothing is deleted; 'sheep-images verify'");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn gc_beside_imports() {
    let world = World::root();
    ten_on_one_base(&world);
    world.sh("sheep-images rm base x0 x1 x2 x3 x4 x5 x6 x7 x8 x9").ok();
    // As other tools do it: the name goes, the blobs and the layers stay.
    let drop = "drop() { flock data/images/.lock sh -c 'jq -c --arg n $1 \"del(.manifests[] | select(.annotations[\\\"org.opencontainers.image.ref.name\\\"] == \\$n))\" data/images/index.json > i.$1 && mv i.$1 data/images/index.json' - $1; }";
    // Blobs and layers of nobody, which the imports find there and take over, while gc would delete them.
    let children: Vec<_> = (0..3)
        .map(|n| {
            world.start(&format!(
                "{drop}; set -e; for i in 1 2 3 4 5 6 7 8; do for x in {n} {m}; do sheep-images import x$x img --ref x$x >/dev/null; sheep-images unpack x$x >/dev/null; \
                 p=$(sheep-images unpack x$x | jq -r '.image.layers[1].path'); test $(stat -c %s $p/own) = 102400; \
                 drop x$x:latest; done; done",
                m = n + 3
            ))
        })
        .collect();
    let sweeper = world.start(
        "for i in $(seq 60); do sheep-images gc || exit 1; sheep-images gc --dry-run >/dev/null || exit 1; done",
    );
    for child in children.into_iter().chain([sweeper]) {
        let out = child.wait_with_output().expect("wait");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    world.sh("sheep-images gc").ok();
    world.assert_empty();
}
