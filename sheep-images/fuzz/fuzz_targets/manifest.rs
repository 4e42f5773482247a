//! Documents of an image: index, manifest and configuration. What is taken for a manifest or an index is written and read
//! the same, no document is both, and an index that images are looked up in, named in and renamed in keeps its rules.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sheep_images::oci::{self, Config, Descriptor, Digest, Index, ManifestOrIndex};
use sheep_images::reference::Name;
use sheep_images::store;
use sheep_images_fuzz::seed;

fuzz_target!(
    init: seed(seeds),
    |data: &[u8]| {
        // The first byte chooses what the descriptor calls the document.
        let [kind, document @ ..] = data else { return };
        let media_type = match kind % 4 {
            0 => "",
            1 => oci::MANIFEST,
            2 => oci::INDEX,
            _ => "application/vnd.docker.distribution.manifest.v2+json",
        };
        let descriptor = Descriptor::new(media_type, Digest::of(document), document.len() as u64);
        match oci::parse_manifest(&descriptor, document) {
            Ok(ManifestOrIndex::Manifest(manifest)) => {
                let value: Value = serde_json::from_slice(document).expect("it was JSON");
                assert!(value.get("manifests").is_none(), "it is both");
                let written = serde_json::to_vec(&manifest).expect("write");
                let again = oci::parse_manifest(&Descriptor::new("", descriptor.digest.clone(), 1), &written);
                match manifest.media_type {
                    // Without a type it may say so only together with what points to it.
                    None => drop(again),
                    Some(_) => assert_eq!(again.expect("read again"), ManifestOrIndex::Manifest(manifest)),
                }
            }
            Ok(ManifestOrIndex::Index(index)) => an_index(index),
            Err(_) => {}
        }
        if let Ok(index) = serde_json::from_slice::<Index>(document) {
            an_index(index);
        }
        if let Ok(config) = serde_json::from_slice::<Config>(document) {
            let chain = oci::chain_ids(&config.rootfs.diff_ids);
            assert_eq!(chain.len(), config.rootfs.diff_ids.len());
            assert_eq!(chain.first(), config.rootfs.diff_ids.first());
        }
    }
);

fn an_index(index: Index) {
    let _ = store::choose(&index, &oci::host_platform());
    let written = serde_json::to_vec(&index).expect("write");
    let mut again: Index = serde_json::from_slice(&written).expect("an index that was written is read");
    assert_eq!(again, index);
    for name in ["x", "sha256:ab", "ab", "localhost/x:1"] {
        if let Ok(at) = store::position(&index, name) {
            assert!(at < index.manifests.len());
        }
    }
    let image = Descriptor::new(oci::MANIFEST, Digest::of(b"new"), 3);
    store::set_name(&mut again, image.clone(), &Name::parse("x").expect("a name"));
    assert_eq!(again.manifests[store::position(&again, "x").expect("it has the name")].digest, image.digest);
    let holds = |index: &Index, digest: &Digest| index.manifests.iter().any(|other| other.digest == *digest);
    assert!(index.manifests.iter().all(|old| holds(&again, &old.digest)), "an image was lost by naming another");
}

fn seeds() -> Vec<Vec<u8>> {
    let hex = "c".repeat(64);
    let blob = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"sha256:{hex}","size":1}}"#);
    let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip");
    let config = blob(oci::CONFIG);
    let host = oci::host_platform();
    [
        (1, format!(r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}]}}"#, oci::MANIFEST)),
        (0, format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#)),
        (
            2,
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"sha256:{hex}","size":7,"annotations":{{"{}":"x","a":"b"}},"platform":{{"os":"{}","architecture":"{}"}},"urls":["u"]}}],"annotations":{{"k":"v"}}}}"#,
                oci::MANIFEST,
                oci::REF_NAME,
                host.os,
                host.architecture
            ),
        ),
        (0, format!(r#"{{"os":"linux","architecture":"amd64","created":"2026","rootfs":{{"type":"layers","diff_ids":["sha256:{hex}"]}},"config":{{"Env":["A=b"]}}}}"#)),
    ]
    .into_iter()
    .map(|(kind, text)| [&[kind][..], text.as_bytes()].concat())
    .collect()
}
