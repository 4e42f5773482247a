//! The documents of images, the files of layouts and of `docker save`, and a store that others wrote into: whatever lies there,
//! the commands say so in one line, wait for nothing, follow nothing out, and leave the store as it was.

use std::io::Write;

use serde_json::{Value, json};
use sheep_images::oci::{self, Digest};

use crate::harness::{SETTLED, World};
use crate::image_maker::{Files, blob_name, config, descriptor, docker, index, layout, layout_of, manifest};
use crate::maker::{Block, tar};

fn layers() -> [Vec<u8>; 2] {
    [tar().dir(b"./").file(b"a", b"1").end(), tar().file(b"b", b"2").end()]
}

/// A layout whose configuration and manifest are changed; what points to them is right.
fn changed(config_as: impl Fn(String) -> String, manifest_as: impl Fn(Value) -> String) -> Files {
    let layers = layers();
    let config = config_as(config(&layers).to_string());
    let manifest = manifest_as(manifest(config.as_bytes(), &layers));
    layout_of(config.as_bytes(), manifest.as_bytes(), &layers)
}

fn with_manifest(change: impl Fn(&mut Value)) -> Files {
    changed(
        |config| config,
        |mut manifest| {
            change(&mut manifest);
            manifest.to_string()
        },
    )
}

fn with_config(change: impl Fn(&mut Value)) -> Files {
    let change = |config: String| {
        let mut config = serde_json::from_str(&config).expect("JSON");
        change(&mut config);
        config.to_string()
    };
    changed(change, |manifest| manifest.to_string())
}

fn with_index(change: impl Fn(&mut Value)) -> Files {
    let files = layout(&layers());
    let (_, text) = files.0.iter().find(|(name, _)| name == "index.json").expect("an index");
    let mut index = serde_json::from_slice(text).expect("JSON");
    change(&mut index);
    files.with("index.json", index.to_string())
}

fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// A layout whose index points to an index, and so on.
fn nested(depth: usize) -> Files {
    let layers = layers();
    let config = config(&layers).to_string();
    let mut inner = manifest(config.as_bytes(), &layers).to_string();
    let mut files = layout_of(config.as_bytes(), inner.as_bytes(), &layers);
    let mut kind = oci::MANIFEST;
    for _ in 0..depth {
        inner = index(kind, inner.as_bytes()).to_string();
        files = files.blob(&inner);
        kind = oci::INDEX;
    }
    files.with("index.json", index(kind, inner.as_bytes()).to_string())
}

#[test]
fn documents() {
    let (one, two) = (&layers()[0], &layers()[1]);
    let name = |content: &[u8]| blob_name(&Digest::of(content));
    let other = tar().file(b"b", b"3").end();
    let hex = "a".repeat(64);
    let manifests = |index: &mut Value, key: &str, value: Value| index["manifests"][0][key] = value;
    let cases: Vec<(&str, Files, i32, &str)> = vec![
        ("both", with_manifest(|m| m["manifests"] = json!([])), 1, "both a manifest and an index"),
        ("another type", with_manifest(|m| m["mediaType"] = json!(oci::INDEX)), 1, "calls itself"),
        ("an unknown type", with_index(|i| manifests(i, "mediaType", json!("text/html"))), 1, "calls itself"),
        ("a digest that climbs", with_index(|i| manifests(i, "digest", json!("sha256:../../x"))), 1, "64 lower-case"),
        ("a digest of another kind", with_index(|i| manifests(i, "digest", json!("sha512:00"))), 1, "only sha256"),
        (
            "a digest in capitals",
            with_index(|i| manifests(i, "digest", json!(format!("sha256:{}", "A".repeat(64))))),
            1,
            "64 lower-case",
        ),
        ("a digest that is a number", with_index(|i| manifests(i, "digest", json!(7))), 1, "invalid type"),
        (
            "a digest that climbs in a layer",
            with_manifest(|m| m["layers"][1]["digest"] = json!("sha256:/etc/passwd")),
            1,
            "64 lower-case",
        ),
        ("a negative size", with_index(|i| manifests(i, "size", json!(-1))), 1, "invalid value"),
        ("a size beyond all numbers", with_index(|i| manifests(i, "size", json!(1e300))), 1, "invalid type"),
        ("the largest size", with_index(|i| manifests(i, "size", json!(u64::MAX))), 1, "what points to it says"),
        ("another size", with_index(|i| manifests(i, "size", json!(3))), 1, "what points to it says"),
        ("another size of a layer", with_manifest(|m| m["layers"][0]["size"] = json!(1)), 1, "the image says 1"),
        ("a negative size of a layer", with_manifest(|m| m["layers"][0]["size"] = json!(-1)), 1, "invalid value"),
        (
            "the largest size of a layer",
            with_manifest(|m| m["layers"][0]["size"] = json!(u64::MAX)),
            1,
            "the image says",
        ),
        (
            "another size of the configuration",
            with_manifest(|m| m["config"]["size"] = json!(1)),
            1,
            "what points to it says 1",
        ),
        ("no layer", layout(&layers()).without(&name(two)), 1, "it is missing"),
        ("no manifest", with_index(|i| manifests(i, "digest", json!(format!("sha256:{hex}")))), 1, "is missing"),
        (
            "no configuration",
            with_manifest(|m| m["config"]["digest"] = json!(format!("sha256:{hex}"))),
            1,
            "is missing",
        ),
        ("another layer", layout(&layers()).with(&name(two), &other), 1, "its digest is"),
        ("a layer cut short", layout(&layers()).with(&name(two), &two[..1024]), 1, "the image says"),
        (
            "another configuration",
            layout(&layers()).with(&name(config(&layers()).to_string().as_bytes()), "{}"),
            1,
            "what points to it says",
        ),
        ("another diffID", with_config(|c| c["rootfs"]["diff_ids"][1] = json!(Digest::of(b"x"))), 1, "unpacked it is"),
        (
            "diffIDs exchanged",
            with_config(|c| c["rootfs"]["diff_ids"] = json!([Digest::of(two), Digest::of(one)])),
            1,
            "unpacked it is",
        ),
        ("more layers than diffIDs", with_config(|c| c["rootfs"]["diff_ids"] = json!([Digest::of(one)])), 1, "names 1"),
        ("no layers, two diffIDs", with_manifest(|m| m["layers"] = json!([])), 1, "names 2"),
        (
            "a diffID that climbs",
            with_config(|c| c["rootfs"]["diff_ids"][0] = json!("sha256:../..")),
            1,
            "64 lower-case",
        ),
        ("no rootfs", with_config(|c| drop(c.as_object_mut().expect("object").remove("rootfs"))), 1, "rootfs"),
        (
            "layers twice",
            changed(|c| c, |m| m.to_string().replacen("\"layers\":", "\"layers\":[],\"layers\":", 1)),
            1,
            "duplicate field",
        ),
        (
            "config twice",
            changed(
                |c| c,
                |m| {
                    m.to_string().replacen(
                        "\"config\":",
                        &format!("\"config\":{},\"config\":", descriptor(oci::CONFIG, b"x")),
                        1,
                    )
                },
            ),
            1,
            "duplicate field",
        ),
        (
            "rootfs twice",
            changed(|c| c.replacen("\"rootfs\":", "\"rootfs\":{\"diff_ids\":[]},\"rootfs\":", 1), |m| m.to_string()),
            1,
            "duplicate field",
        ),
        (
            "manifests twice",
            layout(&layers()).with("index.json", r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#),
            1,
            "duplicate field",
        ),
        (
            "a deep index",
            layout(&layers()).with("index.json", format!("{{\"x\":{}}}", deep(100_000))),
            1,
            "recursion limit",
        ),
        ("a deep manifest", changed(|c| c, |_| deep(1000)), 1, "recursion limit"),
        (
            "a deep configuration",
            changed(|c| c.replacen('{', &format!("{{\"x\":{},", deep(1000)), 1), |m| m.to_string()),
            1,
            "recursion limit",
        ),
        ("indexes within indexes", nested(9), 1, "indexes within indexes"),
        (
            "no image",
            layout(&layers()).with("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
            1,
            "there is no image in it",
        ),
        ("not JSON", layout(&layers()).with("index.json", "{"), 1, "index.json"),
        ("no index", layout(&layers()).with("index.json", "[]"), 1, "index.json"),
        ("not text", layout(&layers()).with("index.json", [0xff; 9]), 1, "index.json"),
        ("nothing", layout(&layers()).with("index.json", ""), 1, "index.json"),
        ("a huge index", layout(&layers()).with("index.json", vec![b' '; 9 << 20]), 1, "too many for a document"),
        ("no manifest but a list", changed(|c| c, |_| "[]".to_owned()), 1, "not a manifest"),
        (
            "501 layers",
            with_manifest(|m| m["layers"] = json!(vec![descriptor(oci::LAYER, b"x"); 501])),
            1,
            "501 layers",
        ),
        (
            "names for the terminal",
            with_index(|i| {
                let mut first = i["manifests"][0].clone();
                first["annotations"] = json!({oci::REF_NAME: "\u{1b}[2J\n\u{9b}1m"});
                i["manifests"] = json!([first, first]);
            }),
            2,
            "--ref: \\u{1b}[2J\\n\\u{9b}1m",
        ),
        ("a digest for the terminal", with_index(|i| manifests(i, "digest", json!("\u{1b}[2J\n"))), 1, "64 lower-case"),
        (
            "a digest of a megabyte",
            with_index(|i| manifests(i, "digest", json!("x".repeat(1 << 20)))),
            1,
            "digest \"xxx",
        ),
        // docker save
        (
            "docker: a layer that climbs",
            saved(json!([{"Config": "config.json", "Layers": ["../../x", "1/layer.tar"]}])),
            1,
            "layer ../../x: it is missing",
        ),
        (
            "docker: an absolute layer",
            saved(json!([{"Config": "config.json", "Layers": ["/etc/passwd", "1/layer.tar"]}])),
            1,
            "it is missing",
        ),
        ("docker: an absolute configuration", saved(json!([{"Config": "/etc/passwd", "Layers": []}])), 1, "is missing"),
        ("docker: no image", saved(json!([])), 1, "there is no image in it"),
        (
            "docker: several",
            saved(json!([{"Config": "a", "Layers": []}, {"Config": "b", "Layers": []}])),
            2,
            "several images",
        ),
        ("docker: no list", saved(json!({"Config": "a"})), 1, "manifest.json"),
        (
            "docker: Layers twice",
            docker(&layers()).with("manifest.json", r#"[{"Config":"config.json","Layers":[],"Layers":[]}]"#),
            1,
            "duplicate field",
        ),
        (
            "docker: 501 layers",
            saved(json!([{"Config": "config.json", "Layers": vec!["0/layer.tar"; 501]}])),
            1,
            "501 layers",
        ),
        ("docker: another layer", docker(&layers()).with("1/layer.tar", &other), 1, "unpacked it is"),
        (
            "docker: layers exchanged",
            saved(json!([{"Config": "config.json", "Layers": ["1/layer.tar", "0/layer.tar"]}])),
            1,
            "unpacked it is",
        ),
        ("docker: fewer layers", saved(json!([{"Config": "config.json", "Layers": ["0/layer.tar"]}])), 1, "names 2"),
        (
            "docker: another configuration",
            docker(&layers())
                .with(&format!("{hex}.json"), "{}")
                .with("manifest.json", json!([{"Config": format!("{hex}.json"), "Layers": []}]).to_string()),
            1,
            "not what its name says",
        ),
    ];
    let world = World::root();
    world.sh("sheep-images ls && touch x.tar").ok();
    let store = world.snapshot();
    for (what, files, code, text) in cases {
        refused(&world, &store, what, &files.archive(), code, text);
    }
    // A layer that the store has, called another's: what the store has it from does not say so.
    world.write("x.tar", layout(&layers()).archive());
    world.sh("sheep-images import x x.tar").ok();
    let store = world.snapshot();
    let lying = with_config(|c| c["rootfs"]["diff_ids"] = json!([Digest::of(two), Digest::of(one)]));
    refused(&world, &store, "a layer that the store has", &lying.archive(), 1, "unpacked it is");
}

fn saved(manifest: Value) -> Files {
    docker(&layers()).with("manifest.json", manifest.to_string())
}

#[track_caller]
fn refused(world: &World, store: &str, what: &str, archive: &[u8], code: i32, text: &str) {
    world.write("x.tar", archive);
    let outcome = world.sh("timeout 60 sheep-images import y x.tar");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (code, ""), "{what}: {}", outcome.stderr);
    assert!(outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
    assert!(outcome.stderr.len() < 70_000 && outcome.stderr.lines().count() == 1, "{what}: {}", outcome.stderr);
    assert!(!outcome.stderr.trim_end().contains(char::is_control), "{what}: {:?}", outcome.stderr);
    assert_eq!(world.snapshot(), store, "{what} left something");
}

/// Members of the archive itself that no tool would write.
#[test]
fn archives_of_images() {
    let world = World::root();
    world.sh("sheep-images ls && touch x.tar && echo 'not yours' > secret").ok();
    let secret = world.dir.join("secret").display().to_string().into_bytes();
    let store = world.snapshot();
    let without = docker(&layers()).without("1/layer.tar").maker();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "a layer that is a link out",
            without.clone().symlink(b"1/layer.tar", &secret).end(),
            "layer 1/layer.tar: it is missing",
        ),
        (
            "a layer that is a climbing link",
            without.clone().symlink(b"1/layer.tar", b"../../../../etc/passwd").end(),
            "it is missing",
        ),
        ("a layer that is a hard link out", without.clone().hard(b"1/layer.tar", &secret).end(), "it is missing"),
        (
            "a layer that is a link to itself",
            without.clone().symlink(b"1/layer.tar", b"layer.tar").end(),
            "links that lead to links",
        ),
        (
            "layers that are a ring of links",
            without.clone().symlink(b"1/layer.tar", b"../l").symlink(b"l", b"1/layer.tar").end(),
            "links that lead to links",
        ),
        ("a layer that is a directory", without.clone().dir(b"1/layer.tar").end(), "it is missing"),
        ("a layer that is a FIFO", without.clone().block(Block::new(b"1/layer.tar", b'6')).end(), "it is missing"),
        (
            "a layer of all the world",
            without
                .clone()
                .block(Block::new(b"1/layer.tar", b'0').with(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"))
                .end(),
            "nowhere",
        ),
        (
            "a layer of a pax size",
            without.clone().pax(b'x', &[(b"size", b"18446744073709551615")]).file(b"1/layer.tar", b"").end(),
            "nowhere",
        ),
        (
            "a layer beyond the end",
            without.clone().block(Block::new(b"1/layer.tar", b'0').size(1 << 30)).end(),
            "cut short",
        ),
        ("a name beyond memory", without.clone().block(Block::new(b"l", b'L').size(1 << 30)).end(), "are refused"),
        (
            "a pax header beyond memory",
            without.clone().block(Block::new(b"l", b'x').size(1 << 30)).end(),
            "are refused",
        ),
        (
            "a sparse layer",
            without
                .clone()
                .pax(b'x', &[(b"GNU.sparse.size", b"9999"), (b"GNU.sparse.map", b"0,512")])
                .file(b"1/layer.tar", &[1; 512])
                .end(),
            "sparse",
        ),
        (
            "a name of a kilobyte",
            docker(&layers()).maker().long(b'L', &b"nnn/".repeat(300)).file(b"x", b"").end(),
            "a name of 1200 bytes",
        ),
        (
            "a duplicate, the last is wrong",
            docker(&layers()).maker().file(b"1/layer.tar", b"x").end(),
            "layer 1/layer.tar",
        ),
        ("no end mark", docker(&layers()).maker().0, "without its end mark"),
        (
            "an archive after it",
            [docker(&layers()).archive(), docker(&layers()).archive()].concat(),
            "something follows",
        ),
    ];
    for (what, archive, text) in cases {
        refused(&world, &store, what, &archive, 1, text);
    }
    // Links within are fine, and so are names that are not clean.
    let within = without.symlink(b"1/layer.tar", b"./x/../../l").hard(b"l", b"./m").file(b"./m", &layers()[1]).end();
    world.write("x.tar", within);
    world.sh("sheep-images import x x.tar && sheep-images rm x").ok();
    assert_eq!(world.snapshot(), store);
    // The same layer in two forms is two blobs, and both are the image's.
    let [one, _] = layers();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&one).and_then(|()| gzip.try_finish()).expect("gzip");
    let packed = gzip.finish().expect("gzip");
    let config = config(&[one.clone(), one.clone()]).to_string();
    let manifest = manifest(config.as_bytes(), &[one.clone(), packed.clone()]).to_string();
    world.write("x.tar", layout_of(config.as_bytes(), manifest.as_bytes(), &[one, packed]).archive());
    world.sh("sheep-images import x x.tar && test $(sheep-images export x | tar -t | grep -c sha256/.) = 4").ok();
    world.sh("sheep-images rm x").ok();
    assert_eq!(world.snapshot(), store);
    // What is unpacked before it can be read by places is limited, too.
    let big = docker(&[vec![0; 1 << 20], layers()[1].clone()]).archive();
    world.write("x.tar", big);
    for pack in ["gzip -c x.tar > y", "zstd -qfo y x.tar"] {
        world.sh(pack).ok();
        world.sh("sheep-images import --max-bytes 100000 x y").fails(1, "--max-bytes");
        world.sh("cat y | sheep-images import --max-bytes 100000 x -").fails(1, "--max-bytes");
        assert_eq!(world.snapshot(), store);
    }
}

/// A directory that its user trusts no more than an archive.
#[test]
fn layout_directories() {
    let world = World::root();
    world.sh("sheep-images ls && mkdir out && echo 'not yours' > out/secret").ok();
    let files = layout(&layers());
    for (name, content) in &files.0 {
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        world.sh(&format!("mkdir -p good/{dir}")).ok();
        world.write(&format!("good/{name}"), content);
    }
    let blob = |content: &[u8]| blob_name(&Digest::of(content));
    let layer = blob(&layers()[1]);
    let config = blob(config(&layers()).to_string().as_bytes());
    let outside = "find out -printf '%p %y %m %s %T@ %C@\\n'; cat out/secret";
    let store = world.snapshot();
    for (what, change, code, text) in [
        (
            "a layer that is a link out",
            format!("cp l/{layer} out/l && ln -sf ../../../out/l l/{layer}"),
            1,
            "leads out of the directory",
        ),
        (
            "a layer that is an absolute link",
            format!("ln -sf $PWD/out/secret l/{layer}"),
            1,
            "leads out of the directory",
        ),
        ("a layer that is a FIFO", format!("rm l/{layer} && mkfifo l/{layer}"), 1, "no regular file"),
        ("a configuration that is a FIFO", format!("rm l/{config} && mkfifo l/{config}"), 1, "no regular file"),
        ("a configuration that is a device", format!("rm l/{config} && mknod l/{config} c 1 5"), 1, "no regular file"),
        ("a layer that is a directory", format!("rm l/{layer} && mkdir l/{layer}"), 1, "it is a directory"),
        ("a layer that is a loop", format!("ln -sf x l/{layer} && ln -s x l/blobs/sha256/x"), 1, "symbolic links"),
        (
            "a layer that is a socket",
            format!(
                "rm l/{layer} && python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"k\")' && mv k l/{layer}"
            ),
            1,
            "no regular file",
        ),
        (
            "blobs that lie elsewhere",
            "mv l/blobs out/ && ln -s ../out/blobs l/blobs".to_owned(),
            1,
            "leads out of the directory",
        ),
        (
            "an index that is a link out",
            "mv l/index.json out/ && ln -s ../out/index.json l/".to_owned(),
            1,
            "leads out of the directory",
        ),
        (
            "an index that is a FIFO",
            "rm l/index.json && mkfifo l/index.json".to_owned(),
            2,
            "index.json or oci-layout is missing",
        ),
        (
            "an index that is a directory",
            "rm l/index.json && mkdir l/index.json".to_owned(),
            2,
            "index.json or oci-layout is missing",
        ),
        ("an index of /proc", "ln -sf /proc/self/environ l/index.json".to_owned(), 1, "leads out of the directory"),
    ] {
        world.sh(&format!("rm -rf l out/* && cp -r good l && echo 'not yours' > out/secret && {change}")).ok();
        let before = world.sh(outside).ok();
        let outcome = world.sh("timeout 60 sheep-images import x l");
        assert_eq!(outcome.code, code, "{what}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(text) && outcome.stderr.lines().count() == 1, "{what}: {}", outcome.stderr);
        assert_eq!(world.snapshot(), store, "{what} left something");
        assert_eq!(world.sh(outside).ok(), before, "{what}");
    }
    // A link that stays within is as good as a file.
    world.sh(&format!("rm -rf l && cp -r good l && mv l/{layer} l/kept && ln -s ../../kept l/{layer}")).ok();
    world.sh("sheep-images import x l").ok();
}

/// A store into which others wrote.
#[test]
fn stores_of_others() {
    let world = World::root();
    world.write("x.tar", layout(&layers()).archive());
    world.sh("sheep-images import x x.tar && echo 'not yours' > secret").ok();
    let digest = |content: &[u8]| Digest::of(content).hex().to_owned();
    let (one, two) = (digest(&layers()[0]), digest(&layers()[1]));
    let config = digest(config(&layers()).to_string().as_bytes());
    // As another tool would leave it: nothing is unpacked.
    world.sh(&format!("{SETTLED}; rm -rf data/layers/sha256/* && cp -a data good")).ok();
    let blobs = "data/images/blobs/sha256";
    let mut set_index = Vec::new();
    for (what, expression) in [
        ("size", ".manifests[0].size = 3"),
        ("huge", ".manifests[0].size = 9000000000000000"),
        ("negative", ".manifests[0].size = -1"),
        ("digest", ".manifests[0].digest = \"sha256:../../../secret\""),
        ("type", ".manifests[0].mediaType = \"text/html\""),
    ] {
        set_index.push((what, format!("jq -c '{expression}' good/images/index.json > data/images/index.json")));
    }
    let mut cases: Vec<(&str, String, &str)> = vec![
        ("a layer that is a FIFO", format!("rm {blobs}/{two} && mkfifo {blobs}/{two}"), "no regular file"),
        ("a layer that is a directory", format!("rm {blobs}/{two} && mkdir {blobs}/{two}"), "it is a directory"),
        ("a layer that is a link to another file", format!("ln -sf $PWD/secret {blobs}/{two}"), "has the digest"),
        ("a layer that is another", format!("cp {blobs}/{one} {blobs}/{two}"), "has the digest"),
        ("a layer that is cut short", format!("truncate -s 1024 {blobs}/{two}"), "has the digest"),
        ("a layer that is a device", format!("rm {blobs}/{two} && mknod {blobs}/{two} c 1 5"), "no regular file"),
        ("no layer", format!("rm {blobs}/{two}"), "it is missing"),
        (
            "a configuration that is a FIFO",
            format!("rm {blobs}/{config} && mkfifo {blobs}/{config}"),
            "no regular file",
        ),
        ("another configuration", format!("echo '{{}}' > {blobs}/{config}"), "its content is not what its digest says"),
        ("an endless configuration", format!("ln -sf /dev/zero {blobs}/{config}"), "no regular file"),
    ];
    for (what, change) in set_index {
        let text = match what {
            "size" => "what points to it says 3",
            "huge" => "too many for a document",
            "negative" => "invalid value",
            "digest" => "64 lower-case",
            _ => "calls itself",
        };
        cases.push((what, change, text));
    }
    let left = "find data/layers data/images -printf '%p %y %s\\n' | sort; cat secret";
    for (what, change, text) in cases {
        world.sh(&format!("rm -rf data && cp -a good data && {change}")).ok();
        let before = world.sh(left).ok();
        for verb in ["unpack x", "export x > /dev/null"] {
            let outcome = world.sh(&format!("timeout 60 sheep-images {verb}"));
            // That a layer is not what it is called, only reading it tells; export does that last.
            assert_eq!(outcome.code, 1, "{what}, {verb}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{what}, {verb}: {}", outcome.stderr);
            assert!(verb.starts_with("export") || outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
            assert_eq!(world.sh(left).ok(), before, "{what}, {verb} left something");
        }
    }
    // What is for the terminal is not for the terminal.
    world.sh("rm -rf data && cp -a good data").ok();
    let name = r#".manifests[0].annotations["org.opencontainers.image.ref.name"] = "\u001b[2J\u009b1m\nx:latest  y""#;
    world.write("name.jq", name);
    world.sh("jq -c -f name.jq good/images/index.json > data/images/index.json").ok();
    let table = world.sh("sheep-images ls").ok();
    assert!(!table.replace('\n', "").contains(char::is_control), "{table:?}");
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("\\u{1b}[2J\\u{9b}1m\\nx:latest"), "{table}");
    let error = world.sh(&format!("rm data/images/blobs/sha256/{config} && sheep-images ls >/dev/null"));
    error.fails(1, "\\u{1b}[2J");
}
