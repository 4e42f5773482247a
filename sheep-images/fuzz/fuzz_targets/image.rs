//! A whole image from an archive into a store: an OCI layout, what `docker save` made, or bytes that are to be one. It is
//! taken in with all that belongs to it, or the store is as it was.

#![no_main]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use libfuzzer_sys::fuzz_target;
use sheep_images::cli::{ProgressMode, Rm};
use sheep_images::import::files::{self, Files};
use sheep_images::import::image::{self, Wanted};
use sheep_images::oci::{self, Digest};
use sheep_images::progress::Progress;
use sheep_images::reference::Name;
use sheep_images::rm;
use sheep_images::store::Store;
use sheep_images::store::stage::Stage;
use sheep_images_fuzz::maker::tar;
use sheep_images_fuzz::{Ground, archives, limits, seed, with_checksums};

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::new);
static STORE: LazyLock<Store> = LazyLock::new(|| {
    drop(Store::open(Some(&GROUND.work().join("data"))).expect("a store"));
    fs::write(GROUND.work().join("archive"), b"").expect("a file");
    // A lock file comes with the first removal.
    let store = Store::open(Some(&GROUND.work().join("data"))).expect("a store");
    drop(store.data().lock_layers_for_removal());
    store
});

/// Parts of the input are parted by this line.
const PART: &[u8] = b"\n--\n";

fuzz_target!(
    init: seed(seeds),
    |data: &[u8]| {
        let [kind, rest @ ..] = data else { return };
        let archive = match kind % 3 {
            0 => layout(rest),
            1 => docker(rest),
            _ => with_checksums(rest),
        };
        let store = &*STORE;
        let before = list(&GROUND.work());
        let path = GROUND.work().join("archive");
        fs::write(&path, &archive).expect("write the archive");
        match take_in(store, &path) {
            Ok(digest) => {
                let image = store.find("x").expect("the image is there");
                let index = store.index().expect("index");
                assert_eq!(index.manifests.len(), 1);
                assert_eq!(index.manifests[0].digest, digest);
                store.document(&image).expect("a document");
                rm::run(store, &Rm { references: vec!["x".to_owned()] }).expect("it can be removed");
                store.uses(&[]).expect("uses");
            }
            Err(error) => assert!(!format!("{error:#}").is_empty()),
        }
        fs::write(&path, b"").expect("write");
        assert_eq!(list(&GROUND.work()), before, "the store is not as it was");
        GROUND.check();
    }
);

fn take_in(store: &Store, path: &Path) -> Result<Digest> {
    let (_, codec, source) = files::look(File::open(path)?)?;
    let stage = Stage::new(store)?;
    let files = Files::archive(files::seekable(source, codec, limits(), Arc::default, || stage.spool())?)?;
    let wanted = Wanted { reference: None, platform: oci::host_platform() };
    let name = Name::parse("x")?;
    Ok(image::take_in(store, &name, &files, &wanted, limits(), &Progress::start(ProgressMode::None), stage)?.0.digest)
}

/// An OCI layout of the parts: each is a blob, but the last, which is the index. In a part, `@0` to `@9` stand for the
/// digests of the parts before it, `#0` to `#9` for their sizes: a fuzzer guesses much, but no SHA-256.
fn layout(input: &[u8]) -> Vec<u8> {
    let mut blobs = parts(input);
    let index = blobs.pop().unwrap_or_default();
    let mut archive = tar().file(b"oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).file(b"index.json", &index);
    for blob in blobs {
        archive = archive.file(format!("blobs/sha256/{}", Digest::of(&blob).hex()).as_bytes(), &blob);
    }
    archive.end()
}

/// What `docker save` makes of the parts: the last is manifest.json, the others are the files `0` to `9`.
fn docker(input: &[u8]) -> Vec<u8> {
    let mut parts = parts(input);
    let manifest = parts.pop().unwrap_or_default();
    let mut archive = tar().file(b"manifest.json", &manifest);
    for (number, part) in parts.iter().enumerate() {
        archive = archive.file(number.to_string().as_bytes(), part);
    }
    archive.end()
}

fn parts(input: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut rest = input;
    while parts.len() < 10 {
        let end = rest.windows(PART.len()).position(|window| window == PART);
        let part = &rest[..end.unwrap_or(rest.len())];
        let is_archive = part.len() >= 512 && part[257..262] == *b"ustar";
        parts.push(if is_archive { with_checksums(part) } else { filled_in(part, &parts) });
        let Some(end) = end else { break };
        rest = &rest[end + PART.len()..];
    }
    parts
}

fn filled_in(part: &[u8], before: &[Vec<u8>]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(part.len());
    let mut rest = part;
    while let [first, tail @ ..] = rest {
        let which = tail.first().filter(|b| b.is_ascii_digit()).and_then(|b| before.get(usize::from(b - b'0')));
        match (first, which) {
            (b'@', Some(other)) => filled.extend(Digest::of(other).as_str().as_bytes()),
            (b'#', Some(other)) => filled.extend(other.len().to_string().as_bytes()),
            _ => {
                filled.push(*first);
                rest = tail;
                continue;
            }
        }
        rest = &tail[1..];
    }
    filled
}

/// All that is in a directory: kind, size and links of each.
fn list(dir: &Path) -> BTreeMap<String, (u32, u64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("list") {
            let entry = entry.expect("list");
            let m = entry.metadata().expect("look");
            let size = if m.is_dir() { 0 } else { m.size() };
            found.insert(entry.path().to_string_lossy().into_owned(), (m.mode(), size));
            if m.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
}

fn seeds() -> Vec<Vec<u8>> {
    let host = oci::host_platform();
    let platform = format!(r#""os":"{}","architecture":"{}""#, host.os, host.architecture);
    let config = |layers: &str| {
        format!(r#"{{{platform},"created":"2026-01-01T00:00:00Z","rootfs":{{"type":"layers","diff_ids":[{layers}]}}}}"#)
    };
    let descriptor = |kind: &str, part: u32| format!(r#"{{"mediaType":"{kind}","digest":"@{part}","size":#{part}}}"#);
    let manifest = |config: u32, layers: &[u32]| {
        let layers: Vec<String> = layers.iter().map(|part| descriptor(oci::LAYER, *part)).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            oci::MANIFEST,
            descriptor(oci::CONFIG, config),
            layers.join(",")
        )
    };
    let index = |kind: &str, part: u32| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"@{part}","size":#{part},"platform":{{{platform}}},"annotations":{{"{}":"a:b"}}}}]}}"#,
            oci::REF_NAME
        )
    };
    let join = |kind: u8, parts: &[&[u8]]| [&[kind][..], &parts.join(PART)].concat();
    let mut seeds = Vec::new();
    for layer in archives() {
        let (config, manifest) = (config("\"@0\""), manifest(1, &[0]));
        let index = index(oci::MANIFEST, 2);
        seeds.push(join(0, &[&layer, config.as_bytes(), manifest.as_bytes(), index.as_bytes()]));
    }
    let archives = archives();
    let (bottom, top) = (&archives[1][..], &archives[9][..]);
    let two = config("\"@0\",\"@1\"");
    seeds.push(join(
        0,
        &[bottom, top, two.as_bytes(), manifest(2, &[0, 1]).as_bytes(), index(oci::MANIFEST, 3).as_bytes()],
    ));
    // An index in the index, and the same layer twice.
    let twice = config("\"@0\",\"@0\"");
    seeds.push(join(
        0,
        &[
            bottom,
            twice.as_bytes(),
            manifest(1, &[0, 0]).as_bytes(),
            index(oci::MANIFEST, 2).as_bytes(),
            index(oci::INDEX, 3).as_bytes(),
        ],
    ));
    let saved = br#"[{"Config":"2","RepoTags":["a:b"],"Layers":["0","1"]}]"#;
    seeds.push(join(1, &[bottom, top, two.as_bytes(), saved]));
    seeds.push([&[2][..], &docker(&[bottom, top, two.as_bytes(), saved].join(PART))].concat());
    let linked = tar().file(b"manifest.json", br#"[{"Config":"c","Layers":["l"]}]"#).symlink(b"l", b"../../etc/passwd");
    seeds.push([&[2][..], &linked.file(b"c", two.as_bytes()).end()].concat());
    seeds
}
