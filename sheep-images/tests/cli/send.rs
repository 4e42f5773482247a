//! From store to store: `data` receives, `from` sends.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::World;
use crate::images::listing;
use crate::interop::PODMAN;
use crate::maker::{Block, Maker, tar};

/// The store that sends.
const FROM: &str = "sheep-images --root from";
/// Everything that `app` needs and `data` has not, moved.
const PIPE: &str = "sheep-images have | sheep-images --root from send app --have - | tee stream | sheep-images receive";

/// In `from` two images, `base` of one layer and `app` of that and four more, of bytes that no compression makes fewer; `base` in `data`, too.
fn make(world: &World) {
    world
        .sh(&format!(
            r#"set -e; umoci init --layout img; umoci new --image img:base; umoci unpack --image img:base b >/dev/null
            mkdir -p b/rootfs/bin; head -c 2M /dev/urandom > b/rootfs/base; cp /bin/busybox b/rootfs/bin/busybox; umoci repack --image img:base b
            umoci tag --image img:base app; rm -r b
            for size in 900K 700K 500K 300K; do umoci unpack --image img:app b >/dev/null; head -c $size /dev/urandom > b/rootfs/of-$size
            chmod 4755 b/rootfs/of-$size; [ $size = 900K ] || rm -f b/rootfs/of-900K; umoci repack --image img:app b; rm -r b; done
            umoci config --image img:app --config.env A=b
            {FROM} import base img --ref base; {FROM} import app img --ref app; sheep-images import base img --ref base"#
        ))
        .ok();
}

/// The bytes of the layers that `app` has and `base` has not.
fn missing(world: &World) -> u64 {
    let sum = format!("{FROM} inspect app | jq '[.image.layers[1:][].size] | add'");
    world.sh(&sum).ok().parse().expect("a number")
}

fn len(world: &World, file: &str) -> u64 {
    fs::metadata(world.dir.join(file)).expect("a file").len()
}

fn digest(world: &World, root: &str, image: &str) -> String {
    world.sh(&format!("sheep-images --root {root} inspect {image} --print digest")).ok()
}

/// Pseudo-random numbers below `most`, so that a failure can be had again.
fn numbers(count: usize, most: u64) -> impl Iterator<Item = u64> {
    let mut state = 4711u64;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % most
    })
}

/// The store without what the kernel counts anew in directories.
fn store(world: &World) -> String {
    let all = world.sh("find data -not -path '*/.unsynced-*' -type f -printf '%p %m %s\\n' | sort; ls -a data/images data/layers/sha256 | grep -v unsynced; jq -cS . data/images/index.json");
    all.ok()
}

#[test]
fn only_what_is_missing_moves() {
    let world = World::root();
    make(&world);
    assert_eq!(world.sh(&format!("{PIPE} --print digest")).ok(), digest(&world, "from", "app"));
    let (moved, missing) = (len(&world, "stream"), missing(&world));
    assert!(missing > 2_300_000 && moved <= missing + missing / 100, "{moved} for {missing}");
    world
        .sh("sheep-images verify && sheep-images unpack app --to a && sheep-images --root from unpack app --to b")
        .ok();
    assert_eq!(listing(&world, "a"), listing(&world, "b"));
    assert_eq!(world.sh("ls -A data/images").ok(), ".lock\nblobs\nindex.json\noci-layout");
    let layers = "jq -r '.image.layers[].path | length > 0' | sort -u";
    assert_eq!(world.sh(&format!("sheep-images inspect app | {layers}")).ok(), "true", "all are unpacked");

    // The same again is the same; with all of it there, only documents move.
    world.sh("cp stream first; sheep-images rm app; sheep-images gc").ok();
    world.sh(&format!("{PIPE} && cmp stream first")).ok();
    assert_eq!(world.sh(&format!("{PIPE} --print reference")).ok(), "app:latest");
    assert!(len(&world, "stream") < 20_000, "{}", len(&world, "stream"));

    // By way of files, under another name; of one image only; and back.
    world.sh("sheep-images rm app; sheep-images gc; sheep-images have base > have").ok();
    assert_eq!(world.sh("wc -l < have; head -1 have").ok(), "4\n{\"have\":{\"version\":1}}");
    world.sh(&format!("{FROM} send app --have have > stick && cmp stick first")).ok();
    for how in ["receive me/app:2 stick", "receive me/app:2 < stick", "receive me/app:2 - < stick"] {
        assert_eq!(world.sh(&format!("sheep-images {how} --print reference")).ok(), "me/app:2", "{how}");
    }
    world.sh("cp -r img/. two; umoci unpack --image two:app b >/dev/null; echo new > b/rootfs/new; umoci repack --image two:back b; sheep-images import back two --ref back").ok();
    assert_eq!(
        world
            .sh(&format!("{FROM} have | sheep-images send back --have - | tee stream | {FROM} receive --print digest"))
            .ok(),
        digest(&world, "data", "back")
    );
    assert!(len(&world, "stream") < 20_000);
    world.sh(&format!("sheep-images verify && {FROM} verify")).ok();
}

#[test]
fn nothing_left_out_is_what_export_prints() {
    let world = World::root();
    make(&world);
    // 'other' has nothing: its list is only a line.
    let other = "sheep-images --root other";
    world.sh(&format!("{other} have | {FROM} send base app --have - > all; {FROM} send base app | cmp - all && {FROM} export base app | cmp - all")).ok();
    assert_eq!(world.sh(&format!("{other} receive < all | jq -r .image.reference")).ok(), "base:latest\napp:latest");
    world.sh(&format!("{other} verify")).ok();
    world.sh(&format!("{FROM} send app > app.tar")).ok();
    let want = digest(&world, "from", "app");
    assert_eq!(world.sh("skopeo inspect oci-archive:app.tar | jq -r .Digest").ok(), want);
    world.sh(&format!("{PODMAN} podman load -q -i app.tar && podman rmi -a -f")).ok();
    assert_eq!(
        world.sh("sheep-images import x app.tar --print digest; sheep-images receive y app.tar --print digest").ok(),
        format!("{want}\n{want}")
    );
    // What others write is theirs to bring in.
    world.sh("skopeo --insecure-policy copy -q oci:img:app oci-archive:theirs.tar:app; sheep-images receive z theirs.tar").fails(1, "import");
    world.sh("gzip -c app.tar | sheep-images receive z").fails(1, "compressed (gzip)");
    world.sh("sheep-images receive z all").fails(2, "2 images");
    // Of an image for several platforms the one for this machine is taken; what of the others is there comes for nothing.
    let multi = r#"cd from/images; entry() { m=$(sheep-images --root .. inspect $1 --print digest); echo "{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"$m\",\"size\":$(stat -c %s blobs/sha256/${m#*:}),\"platform\":{\"os\":\"linux\",\"architecture\":\"$2\"}}"; }
        t=application/vnd.oci.image.index.v1+json; a=$(sheep-images inspect x --print image.platform.architecture); absent=$(printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064d","size":1}' 1)
        echo "{\"schemaVersion\":2,\"mediaType\":\"$t\",\"manifests\":[$absent,$(entry third other),$(entry app $a)]}" > index; d=$(sha256sum < index | cut -c1-64); s=$(stat -c %s index); mv index blobs/sha256/$d
        jq -c ".manifests += [{mediaType: \"$t\", digest: \"sha256:$d\", size: $s, annotations: {\"org.opencontainers.image.ref.name\": \"multi\"}}]" index.json > i && mv i index.json"#;
    world.sh(&format!("echo x > x; tar -cf x.tar x; {FROM} import third x.tar")).ok();
    world.sh(&format!("D=$PWD/data; {}", multi.replace("inspect x", "--root $D inspect x"))).ok();
    assert_eq!(world.sh(&format!("{FROM} send multi | tee m.tar | {other} receive --print digest")).ok(), want);
    assert_eq!(world.sh("tar -tf m.tar | wc -l; sheep-images --root other verify").ok().lines().next(), Some("15"));
    assert_eq!(world.sh(&format!("{other} inspect multi --print reference")).ok(), "multi:latest");
    let nameless = format!(
        "m=$({FROM} inspect app --print digest); {FROM} tag base app >/dev/null; {FROM} send $m > nameless; sheep-images receive < nameless"
    );
    world.sh(&nameless).fails(2, "has no name");
    world.sh("sheep-images receive named < nameless").ok();
}

#[test]
fn what_was_cut_goes_on() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > whole")).ok();
    let (before, want, all) = (store(&world), digest(&world, "from", "app"), len(&world, "whole"));
    let mut resumed = 0;
    for cut in numbers(20, all) {
        let outcome = world.sh(&format!("head -c {cut} whole | sheep-images receive"));
        let kept: u64 = world.sh("cat data/images/.partial/* 2>/dev/null | wc -c").ok().parse().unwrap();
        let said = match (cut, kept) {
            (0, _) => "nothing came",
            (_, 0) => "before a layer was whole",
            _ => "came whole and wait for the rest",
        };
        let code = if cut == 0 { 2 } else { 1 };
        outcome.fails(code, said);
        assert_eq!(
            store(&world).lines().filter(|line| !line.contains(".partial")).collect::<Vec<_>>(),
            before.lines().collect::<Vec<_>>()
        );
        // A layer that came whole is kept, so less than one layer is for nothing.
        assert!(cut - kept < 950_000, "{cut}: {kept}");
        resumed += u64::from(kept > 0);
        assert_eq!(world.sh(&format!("{PIPE} --print digest")).ok(), want, "{cut}");
        assert!(len(&world, "stream") <= all - kept + 1024, "{cut}: {} with {kept}", len(&world, "stream"));
        world.sh("sheep-images verify >/dev/null && sheep-images rm app").ok();
        assert_eq!(store(&world), before, "{cut}");
    }
    assert!(resumed > 10, "{resumed}");

    // Twice cut; then a whole stream, which brings all of it again.
    world.sh("head -c 1500000 whole | sheep-images receive; head -c 2000000 whole | sheep-images receive; sheep-images receive < whole && sheep-images verify").ok();
    assert!(!world.dir.join("data/images/.partial").exists());
    world.sh("sheep-images rm app").ok();

    // What waits for too long goes with gc, all of it when that is asked for.
    world.sh("head -c 2000000 whole | sheep-images receive; test $(ls data/images/.partial | wc -l) = 2; touch -d '8 days ago' $(ls -d data/images/.partial/* | head -1)").ok();
    assert_eq!(world.sh("sheep-images gc --dry-run | grep -c 'partial blob'; sheep-images gc --json | jq -r 'select(.kind).kind'; ls data/images/.partial | wc -l").ok(), "1\npartial blob\n1");
    assert_eq!(
        world.sh("sheep-images gc --partial --json | jq -r 'select(.kind).kind'; ls data/images/.partial | wc -l").ok(),
        "partial blob\n0"
    );
    // One that a power cut tore is in no list, and one that is wrong is found.
    world.sh("head -c 2000000 whole | sheep-images receive; cd data/images/.partial; set -- *; truncate -s -1 $1; printf x | dd of=$2 bs=1 seek=99 conv=notrunc status=none").ok();
    assert_eq!(world.sh("sheep-images have | wc -l").ok(), "5");
    world.sh(PIPE).fails(1, "is deleted now");
    assert_eq!(world.sh(&format!("{PIPE} --print digest")).ok(), want);
    world.sh("sheep-images verify").ok();
}

#[test]
fn a_wrong_byte_never_makes_another_image() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > whole")).ok();
    let stream = fs::read(world.dir.join("whole")).unwrap();
    let (before, want) = (store(&world), digest(&world, "from", "app"));
    // Half of them among the documents, which are few bytes of all.
    let places = numbers(25, stream.len() as u64).chain(numbers(25, 9000));
    let mut refused = 0;
    for (n, place) in places.enumerate() {
        let mut wrong = stream.clone();
        wrong[place as usize] ^= 1 << (n % 8);
        world.write("wrong", wrong);
        let outcome = world.sh("sheep-images receive app < wrong --print digest");
        if outcome.code == 0 {
            assert_eq!(outcome.ok(), want, "{place}");
            world.sh("sheep-images verify >/dev/null && sheep-images rm app").ok();
        } else {
            assert_eq!(outcome.stderr.lines().count(), 1, "{place}: {}", outcome.stderr);
            assert!([1, 2, 3].contains(&outcome.code), "{place}: {}", outcome.stderr);
            refused += 1;
        }
        // Only a size that is too large looks like a cut, and keeps something.
        world.sh("sheep-images gc --partial").ok();
        assert_eq!(store(&world), before, "{place}");
    }
    assert!(refused > 35, "{refused}");
}

#[test]
fn killed_on_the_way_it_goes_on() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > whole")).ok();
    let before = store(&world);
    let mut child = world.start("exec sheep-images receive < <(head -c 2000000 whole; sleep 5)");
    let begun = Instant::now();
    while fs::read_dir(world.dir.join("data/images/.partial")).map_or(0, Iterator::count) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(world.sh("sheep-images have | wc -l").ok(), "6");
    world.sh(PIPE).ok();
    assert!(len(&world, "stream") < len(&world, "whole") - 1_200_000);
    world.sh("sheep-images verify && sheep-images rm app").ok();
    assert_eq!(store(&world), before);
}

#[test]
fn the_base_is_removed_meanwhile() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > whole")).ok();
    for (remove, moment) in [("rm base", 100_000), ("rm base", 2_000_000), ("gc", 1_500_000)] {
        // Removed when the receiver has begun; all that is left out it holds by then.
        let script = format!(
            "(head -c {moment} whole; until ls data/images/.tmp-*/layer0 >/dev/null 2>&1; do sleep 0.02; done; sheep-images {remove} >&2; tail -c +{} whole) | sheep-images receive",
            moment + 1
        );
        world.sh(&script).ok();
        assert_eq!(digest(&world, "data", "app"), digest(&world, "from", "app"), "{remove} at {moment}");
        world.sh("sheep-images unpack app && sheep-images verify && sheep-images rm app; sheep-images import base img --ref base").ok();
    }
    // Before that: then it is not there, and that is said before anything comes.
    world.sh("sheep-images rm base; sheep-images receive < whole").fails(3, "'sheep-images have'");
    world.assert_empty();
}

#[test]
fn from_root_to_an_ordinary_user_and_back() {
    let (root, user) = (World::root(), World::user());
    make(&root);
    root.sh(&format!("{FROM} export base > base.tar")).ok();
    user.write("base.tar", fs::read(root.dir.join("base.tar")).unwrap());
    user.sh("sheep-images import base base.tar && sheep-images have > have").ok();
    root.write("have", fs::read(user.dir.join("have")).unwrap());
    root.sh(&format!("{FROM} send app --have have > stream")).ok();
    user.write("stream", fs::read(root.dir.join("stream")).unwrap());
    assert_eq!(user.sh("sheep-images receive < stream --print digest").ok(), digest(&root, "from", "app"));
    user.sh("sheep-images verify; umoci init --layout l; umoci new --image l:n; echo x > x; tar -cf x.tar x; umoci raw add-layer --image l:n x.tar; sheep-images import n l").ok();
    root.sh("sheep-images have > have").ok();
    user.write("their", fs::read(root.dir.join("have")).unwrap());
    user.sh("sheep-images send n app --have their > back").ok();
    root.write("back", fs::read(user.dir.join("back")).unwrap());
    root.sh("sheep-images receive < back && sheep-images verify").ok();
    assert_eq!(digest(&root, "data", "app"), digest(&root, "from", "app"));
}

#[test]
fn import_takes_it_and_says_what_is_missing() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > stream")).ok();
    assert_eq!(world.sh("sheep-images import x stream --print digest").ok(), digest(&world, "from", "app"));
    world.sh("sheep-images verify; sheep-images rm x; sheep-images unpack base && rm -r data/layers/sha256/*").ok();
    // Not unpacked, it is read again.
    world.sh("sheep-images import x - < <(cat stream) && sheep-images verify").ok();
    let layer = world.sh(&format!("{FROM} inspect app | jq -r '.image.layers[0].digest'")).ok();
    for verb in ["import x stream", "receive x stream"] {
        let outcome = world.sh(&format!("sheep-images --root other {verb}"));
        assert!(outcome.stderr.contains(&layer), "{}", outcome.stderr);
        outcome.fails(3, "have it sent again, with the list of 'sheep-images have'");
        assert_eq!(
            world.sh("ls other/images/blobs/sha256 other/layers/sha256 | grep -c .; ls -A other/images").ok(),
            "2\n.lock\nblobs\nindex.json\noci-layout"
        );
    }
    // Without the member it is a layout in which something is missing.
    world.sh("tar -tf stream | grep -qx not-sent.json; tar --delete -f stream not-sent.json; sheep-images --root other import x stream").fails(1, "it is missing");

    // What is stored is damaged: only what is unpacked hides that.
    world.sh(&format!("sheep-images rm x; rm -rf data/layers/sha256/*; {FROM} send app --have have > stream; printf x | dd of=data/images/blobs/sha256/${{L#*:}} bs=1 seek=5000 conv=notrunc status=none").replace("${L#*:}", layer.trim_start_matches("sha256:"))).ok();
    world.sh("sheep-images receive < stream").fails(1, "verify --repair");
    world.sh(&format!("sheep-images verify --repair >/dev/null; {PIPE} && sheep-images unpack app")).ok();
    // At the sender: the stream has no end.
    let blob = world.sh(&format!("{FROM} inspect app | jq -r '.image.layers[3].digest' | cut -d: -f2")).ok();
    world.sh(&format!("sheep-images rm app; printf x | dd of=from/images/blobs/sha256/{blob} bs=1 seek=99 conv=notrunc status=none")).ok();
    world.sh(&format!("{FROM} send app --have have > stream")).fails(1, &blob);
    world.sh("sheep-images receive < stream").fails(1, &blob);
    world
        .sh(&format!("truncate -s -1 from/images/blobs/sha256/{blob}; {FROM} send app > stream"))
        .fails(1, "is damaged");
}

#[test]
fn lists_that_are_none() {
    let world = World::root();
    make(&world);
    world.sh(&format!("{FROM} send app --have - < /dev/null")).fails(2, "the list is empty");
    world.sh(&format!("echo '{{\"have\":{{\"version\":2}}}}' | {FROM} send app --have -")).fails(2, "version 2");
    world.sh(&format!("sheep-images have | head -c -20 | {FROM} send app --have -")).fails(2, "cut short");
    world.sh(&format!("{FROM} send app --have nosuch")).fails(3, "nosuch");
    world.sh(&format!("{FROM} send nosuch | cat; exit ${{PIPESTATUS[0]}}")).fails(3, "send nosuch");
    world.sh("sheep-images have nosuch base").fails(3, "have: nosuch");
    world.sh("sheep-images receive NAME < /dev/null").fails(2, "lower case");
    world.sh("sheep-images receive x nosuch").fails(3, "nosuch");
    world.sh("sheep-images receive x < /dev/null").fails(2, "nothing came");
    let terminal = world.sh(&format!("script -qec '{FROM} send app' /dev/null < /dev/null")).stdout;
    assert!(terminal.contains("stdout is a terminal") && terminal.len() < 300, "{terminal}");
    // A blob that is not what its image says is not in the list; one of two images is damaged.
    let all = world.sh(&format!("{FROM} have | wc -l")).ok();
    world.sh(&format!("b=$({FROM} inspect app | jq -r '.image.layers[2].digest' | cut -d: -f2); truncate -s -1 from/images/blobs/sha256/$b")).ok();
    assert_eq!(world.sh(&format!("{FROM} have | wc -l")).ok().parse::<u32>().unwrap() + 1, all.parse::<u32>().unwrap());
    world
        .sh(&format!(
            "c=$({FROM} inspect app --raw | jq -r .config.digest | cut -d: -f2); rm from/images/blobs/sha256/$c"
        ))
        .ok();
    let outcome = world.sh(&format!("{FROM} have"));
    assert_eq!((outcome.code, outcome.stdout.lines().count()), (1, 4), "{}", outcome.stderr);
    outcome.fails(1, "have: app:latest");
}

/// The members of a stream.
type Members = Vec<(String, Vec<u8>)>;

fn members(stream: &[u8]) -> Members {
    let mut archive = tar::Archive::new(stream);
    let entries = archive.entries().expect("a stream that send made").map(|entry| {
        let mut entry = entry.expect("a stream that send made");
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).expect("a stream that send made");
        (entry.path().expect("a stream that send made").display().to_string(), content)
    });
    entries.collect()
}

fn built(members: &Members) -> Maker {
    members.iter().fold(tar(), |made, (name, content)| match name.ends_with('/') {
        true => made.dir(name.as_bytes()),
        false => made.file(name.as_bytes(), content),
    })
}

fn sha(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The stream of an image whose manifest and configuration were changed by `change`, digests and all.
fn forged(good: &Members, change: impl Fn(&mut serde_json::Value, &mut serde_json::Value)) -> Members {
    let mut forged = good.clone();
    let at = |name: &str| good.iter().position(|(other, _)| other == name).expect("a stream that send made");
    let blob = |digest: &serde_json::Value| {
        at(&format!("blobs/sha256/{}", &digest.as_str().expect("a stream that send made")[7..]))
    };
    let mut index: serde_json::Value =
        serde_json::from_slice(&good[at("index.json")].1).expect("a stream that send made");
    let manifest_at = blob(&index["manifests"][0]["digest"]);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&good[manifest_at].1).expect("a stream that send made");
    let config_at = blob(&manifest["config"]["digest"]);
    let mut config: serde_json::Value = serde_json::from_slice(&good[config_at].1).expect("a stream that send made");
    change(&mut manifest, &mut config);
    let mut put = |at: usize, bytes: Vec<u8>, descriptor: &mut serde_json::Value| {
        descriptor["digest"] = format!("sha256:{}", sha(&bytes)).into();
        descriptor["size"] = bytes.len().into();
        forged[at] = (format!("blobs/sha256/{}", sha(&bytes)), bytes);
    };
    put(config_at, serde_json::to_vec(&config).expect("a stream that send made"), &mut manifest["config"]);
    let manifest = serde_json::to_vec(&manifest).expect("a stream that send made");
    put(manifest_at, manifest, &mut index["manifests"][0]);
    forged[at("index.json")].1 = serde_json::to_vec(&index).expect("a stream that send made");
    forged
}

#[test]
fn streams_that_lie() {
    let world = World::root();
    make(&world);
    world.sh(&format!("sheep-images have > have; {FROM} send app --have have > whole; {FROM} send app > all")).ok();
    let other =
        world.sh("echo x > x; tar -cf x.tar x; sheep-images import other x.tar | jq -r '.image.layers[0].diffId'").ok();
    let (part, all) =
        (members(&fs::read(world.dir.join("whole")).unwrap()), members(&fs::read(world.dir.join("all")).unwrap()));
    let before = store(&world);
    let with = |members: &Members, change: &dyn Fn(&mut Members)| {
        let mut changed = members.clone();
        change(&mut changed);
        built(&changed).end()
    };
    // oci-layout, index.json, not-sent.json, two directories, manifest, configuration, four layers.
    let names: Vec<&str> = part.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names.len(), names[2]), (11, "not-sent.json"));
    let base_layer = all[6].clone();
    let not_sent = String::from_utf8(part[2].1.clone()).unwrap();
    let extra = r#"{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1}"#;
    let text = |from: &str, to: &str| not_sent.replacen(from, to, 1).into_bytes();
    let wrong = |at: usize| with(&part, &|members| members[at].1[1000] ^= 1);
    // The base's layer is said to be what another layer is that the receiver has unpacked.
    let swapped = forged(&part, |_, config| {
        config["rootfs"]["diff_ids"][0] = other.as_str().into();
    });
    let twice = forged(&part, |manifest, config| {
        let layer = manifest["layers"][1].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
        let other = config["rootfs"]["diff_ids"][2].clone();
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(other);
    });
    let longer = forged(&part, |manifest, config| {
        let mut layer = manifest["layers"][1].clone();
        layer["size"] = 1.into();
        manifest["layers"].as_array_mut().unwrap().push(layer);
        let same = config["rootfs"]["diff_ids"][1].clone();
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(same);
    });
    let cases: Vec<(&str, Vec<u8>, i32, &str)> = vec![
        ("a layer that comes is not sent, it says", with(&part, &|m| m.insert(7, base_layer.clone())), 1, "where"),
        ("one is left out that was not named", with(&part, &|m| drop(m.remove(8))), 1, "where"),
        ("the last one is", with(&part, &|m| drop(m.pop())), 1, "its end"),
        ("none is named", with(&part, &|m| drop(m.remove(2))), 1, "where"),
        ("two change places", with(&part, &|m| m.swap(8, 9)), 1, "where"),
        ("the manifest is missing", with(&part, &|m| drop(m.remove(5))), 1, "missing"),
        ("the configuration is missing", with(&part, &|m| drop(m.remove(6))), 1, "missing"),
        ("the configuration comes first", with(&part, &|m| m.swap(5, 6)), 1, "missing"),
        ("the index comes last", with(&part, &|m| m.rotate_left(2)), 1, "where"),
        ("a blob comes twice", with(&part, &|m| m.push(m[10].clone())), 1, "belongs to no image"),
        ("another blob comes", with(&part, &|m| m.push(("blobs/sha256/00".into(), vec![1]))), 1, "belongs to no image"),
        ("a name that climbs", with(&part, &|m| m[8].0 = "../../x".into()), 1, "where"),
        ("the first is wrong", wrong(7), 1, "layer sha256:"),
        ("the last is wrong", wrong(10), 1, "layer sha256:"),
        ("the manifest is wrong", with(&part, &|m| m[5].1[20] ^= 1), 1, "not what its digest says"),
        ("a layer is longer", with(&part, &|m| m[8].1.push(0)), 1, "bytes"),
        ("a layer is shorter", with(&part, &|m| m[8].1.truncate(1000)), 1, "bytes"),
        (
            "a strange one is not sent",
            with(&part, &|m| m[2].1 = text("[", &format!("[{extra},"))),
            1,
            "a layer of no image",
        ),
        ("it is of another size", with(&part, &|m| m[2].1 = text("\"size\":", "\"size\":1")), 1, "a layer of no image"),
        (
            "all is not sent, and comes",
            with(&part, &|m| {
                let layers: Vec<_> = m[7..].iter().map(|(name, content)| serde_json::json!({"digest": name.replace("blobs/sha256/", "sha256:"), "size": content.len()})).collect();
                m[2].1 = serde_json::to_vec(&serde_json::json!({"notSent": {"version": 1, "layers": layers}})).unwrap();
            }),
            3,
            "was not sent",
        ),
        ("another version", with(&part, &|m| m[2].1 = text("\"version\":1", "\"version\":2")), 1, "version 2"),
        ("another layout", with(&part, &|m| m[0].1 = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()), 1, "version"),
        ("something follows", [built(&part).end(), b"x".to_vec()].concat(), 1, "follows the end"),
        ("zeros without end", [built(&part).end(), vec![0; 2 << 20]].concat(), 1, "follows the end"),
        (
            "a link",
            built(&part[..5].to_vec()).symlink(part[5].0.as_bytes(), b"/etc/passwd").end(),
            1,
            "no such members",
        ),
        (
            "a pax header",
            tar().pax(b'x', &[(b"path", b"index.json")]).file(b"oci-layout", b"{}").end(),
            1,
            "no such members",
        ),
        (
            "a document without end",
            tar().block(Block::new(b"oci-layout", b'0').with(124, b"77777777777\0")).end(),
            1,
            "too many",
        ),
        ("no archive", vec![b'x'; 5000], 1, "no valid header"),
        ("no image", with(&part, &|m| m[1].1 = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()), 1, "no image in it"),
        ("what is in the base is another thing", built(&swapped).end(), 1, "unpacked it is"),
        ("one blob has two sizes", built(&longer).end(), 1, "and also 1"),
        ("one blob is two layers", built(&twice).end(), 1, "do not agree"),
    ];
    for (what, stream, code, text) in cases {
        world.write("bad", stream);
        let outcome = world.sh("sheep-images receive < bad");
        assert_eq!(outcome.code, code, "{what}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
        outcome.fails(code, "");
        assert_eq!(store(&world), before, "{what}");
    }

    // The member itself, with a byte of it another one, gone, or twice.
    let digest = digest(&world, "from", "app");
    for (n, at) in numbers(60, not_sent.len() as u64).enumerate() {
        let (mut content, at) = (not_sent.clone().into_bytes(), at as usize);
        match n % 4 {
            0 => content[at] = content[at].wrapping_add(1 + n as u8),
            1 => drop(content.remove(at)),
            2 => content.insert(at, content[at]),
            _ => content.truncate(at),
        }
        world.write("bad", with(&part, &|members| members[2].1 = content.clone()));
        let outcome = world.sh("sheep-images receive < bad --print digest");
        if outcome.code == 0 {
            assert_eq!(outcome.ok(), digest, "{}", String::from_utf8_lossy(&content));
            world.sh("sheep-images rm app").ok();
        } else {
            outcome.fails(1, "");
        }
        assert_eq!(store(&world), before, "{}", String::from_utf8_lossy(&content));
    }
}
