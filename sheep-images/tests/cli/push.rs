//! What goes to registries: as it is stored, compressed anew, for several platforms; gone on with where it broke off.

use serde_json::{Value, json};

use crate::harness::World;
use crate::interop::PODMAN;
use crate::servers::{Between, LAYOUT, app, registry};

/// The manifest of an image in a registry, by skopeo.
fn manifest(world: &World, reference: &str) -> Value {
    let raw = world.sh(&format!("skopeo inspect --raw --tls-verify=false docker://{reference}")).ok();
    serde_json::from_str(&raw).expect("a manifest")
}

#[test]
fn layers_are_compressed_as_asked() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let at = format!("127.0.0.1:{}", between.server.port);
    let there = format!("127.0.0.1:{}", real.port);
    // A gzip layer, and by hand one of each other kind on it.
    app(&world);
    world
        .sh("sheep-images export app --format oci-dir -o mixed && for n in 3 4; do mkdir -p $n/d; seq $n 50000 > $n/d/$n; tar -C $n --format=posix -cf $n.tar .; done
            zstd -q 3.tar && python3 - <<'END'
import hashlib, json
def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    open('mixed/blobs/sha256/' + digest, 'wb').write(data)
    return {'digest': 'sha256:' + digest, 'size': len(data)}
read = lambda of: json.load(open('mixed/blobs/sha256/' + of['digest'][7:]))
index = json.load(open('mixed/index.json'))
manifest = read(index['manifests'][0])
config = read(manifest['config'])
for file, kind, n in ('3.tar.zst', '+zstd', 3), ('4.tar', '', 4):
    manifest['layers'].append({'mediaType': 'application/vnd.oci.image.layer.v1.tar' + kind, **blob(open(file, 'rb').read()), 'annotations': {'n': str(n)}})
    config['rootfs']['diff_ids'].append('sha256:' + hashlib.sha256(open('%d.tar' % n, 'rb').read()).hexdigest())
config.pop('history', None)
manifest['config'].update(blob(json.dumps(config).encode()))
manifest['annotations'] = {'of': 'the manifest'}
index['manifests'] = [{'mediaType': manifest['mediaType'], **blob(json.dumps(manifest).encode())}]
json.dump(index, open('mixed/index.json', 'w'))
END
            sheep-images import mixed mixed")
        .ok();
    let stored: Value = serde_json::from_str(&world.sh("sheep-images inspect mixed --raw").ok()).unwrap();
    let types = |manifest: &Value| -> Vec<String> {
        let of = |layer: &Value| layer["mediaType"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        manifest["layers"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(types(&stored), ["tar+gzip", "tar+zstd", "tar"]);
    for (name, how, kind, stays) in [("gzip", "gzip", "tar+gzip", 0), ("zstd", "zstd --level 7", "tar+zstd", 1)] {
        between.mode(json!({}));
        let push = format!("sheep-images push mixed {at}/{name}/app:v1 --compress {how}");
        let document: Value = serde_json::from_str(&world.sh(&push).ok()).unwrap();
        let digest = document["image"]["digest"].as_str().unwrap();
        let inspect = format!("skopeo inspect --tls-verify=false docker://{there}/{name}/app:v1 | jq -r .Digest");
        assert_eq!(world.sh(&inspect).ok(), digest, "what is printed is what is there");
        let pushed = manifest(&world, &format!("{there}/{name}/app:v1"));
        assert_eq!(types(&pushed), [kind; 3]);
        for (n, layer) in pushed["layers"].as_array().unwrap().iter().enumerate() {
            for key in ["digest", "size", "mediaType"] {
                assert_eq!(layer[key], document["image"]["layers"][n][key]);
            }
            assert_eq!(layer == &stored["layers"][n], n == stays, "{layer}");
            assert_eq!(layer["annotations"], stored["layers"][n]["annotations"]);
        }
        assert_eq!((&pushed["config"], &pushed["annotations"]), (&stored["config"], &stored["annotations"]));

        // Once more: nothing is sent, and it is the same.
        between.mode(json!({}));
        assert_eq!(world.sh(&format!("{push} --print digest")).ok(), digest);
        assert!(between.log().iter().all(|entry| entry["method"] == "HEAD"), "{:?}", between.log());
        assert_eq!(world.sh("find data -name '.tmp-*'; sheep-images verify").code, 0);
        assert_eq!(world.sh("find data -name '.tmp-*'").ok(), "");

        // The others read it, and it is the same image.
        let copy = format!("skopeo copy -q --src-tls-verify=false docker://{there}/{name}/app:v1 oci:of-{name}:app");
        world.sh(&format!("{copy} && sheep-images --root other-{name} import app of-{name}")).ok();
        let diff_ids = "jq -c '[.image.layers[].diffId]'";
        assert_eq!(
            world.sh(&format!("sheep-images --root other-{name} inspect app | {diff_ids}")).ok(),
            world.sh(&format!("sheep-images inspect mixed | {diff_ids}")).ok()
        );
        let podman = format!(
            "{PODMAN}set -e; podman rmi -a -f >/dev/null; podman pull -q --tls-verify=false {there}/{name}/app:v1 >/dev/null; podman image inspect --format '{{{{.Digest}}}}' {there}/{name}/app:v1
            m=$(podman image mount {there}/{name}/app:v1); cmp $m/usr/big 2/usr/big; cmp $m/d/3 3/d/3; cmp $m/d/4 4/d/4; podman image umount -a >/dev/null"
        );
        assert_eq!(world.sh(&podman).ok(), digest);
        let pulled = format!("sheep-images --root back-{name} pull {there}/{name}/app:v1 --print digest");
        assert_eq!(world.sh(&pulled).ok(), digest);
    }
    // As it is stored where nothing is said.
    let plain = world.sh(&format!("sheep-images push mixed {there}/plain/app:v1 --print digest")).ok();
    assert_eq!(plain, world.sh("sheep-images inspect mixed --print digest").ok());
    for (options, text) in [
        ("--compress gzip --level 10", "--level 10: gzip has levels from 1 to 9"),
        ("--compress zstd --level 0", "--level 0: zstd has levels from 1 to 19"),
    ] {
        world.sh(&format!("sheep-images push mixed {there}/x {options}")).fails(2, text);
    }
    assert_eq!(world.sh(&format!("sheep-images push mixed {there}/x --level 3")).code, 2);
    // What is damaged here is not made something good there.
    world.sh("cd data/images/blobs/sha256; b=$(sha256sum ../../../../4.tar | cut -c-64); printf X | dd of=$b bs=1 seek=3000 conv=notrunc status=none").ok();
    world
        .sh(&format!("sheep-images push mixed {there}/damaged/app --compress zstd"))
        .fails(1, "'sheep-images verify' says more");
    assert_eq!(world.sh("find data -name '.tmp-*'").ok(), "");
}

#[test]
fn dockers_format_goes_as_ocis_for_zstd() {
    let world = World::root();
    let real = registry(&world, "");
    let at = format!("127.0.0.1:{}", real.port);
    world.sh(&format!("({LAYOUT}) >/dev/null 2>&1; skopeo copy -q --format v2s2 --dest-tls-verify=false oci:layout:app docker://{at}/docker && sheep-images pull {at}/docker --name docker")).ok();
    for (how, own, config) in [
        (
            "gzip",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.container.image.v1+json",
        ),
        ("zstd", "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"),
    ] {
        let digest = world.sh(&format!("sheep-images push docker {at}/{how} --compress {how} --print digest")).ok();
        let pushed = manifest(&world, &format!("{at}/{how}"));
        assert_eq!((&pushed["mediaType"], &pushed["config"]["mediaType"]), (&json!(own), &json!(config)));
        let pull = format!(
            "{PODMAN}podman rmi -a -f >/dev/null; podman pull -q --tls-verify=false {at}/{how} >/dev/null && podman image inspect --format '{{{{.Digest}}}}' {at}/{how}"
        );
        assert_eq!(world.sh(&pull).ok(), digest);
    }
}

#[test]
fn an_index_goes_with_all_that_it_lists() {
    let world = World::root();
    let real = registry(&world, "");
    let at = format!("127.0.0.1:{}", real.port);
    // Two images, of one layer of their own each and one that both have, and the index of both, put into the store as skopeo does it.
    world
        .sh("for n in base amd64 arm64; do mkdir -p $n/of; seq 30000 > $n/of/$n; echo $n >> $n/of/$n; tar -C $n --format=posix -czf $n.tgz .; gzip -dc $n.tgz > $n.tar; done
            mkdir -p both/blobs/sha256 && python3 - <<'END'
import hashlib, json
def blob(data, **more):
    digest = hashlib.sha256(data).hexdigest()
    open('both/blobs/sha256/' + digest, 'wb').write(data)
    return {**more, 'digest': 'sha256:' + digest, 'size': len(data)}
oci = 'application/vnd.oci.image.'
manifests = []
for arch in 'amd64', 'arm64':
    names = 'base', arch
    ids = ['sha256:' + hashlib.sha256(open(n + '.tar', 'rb').read()).hexdigest() for n in names]
    config = blob(json.dumps({'os': 'linux', 'architecture': arch, 'rootfs': {'type': 'layers', 'diff_ids': ids}}).encode(), mediaType=oci + 'config.v1+json')
    layers = [blob(open(n + '.tgz', 'rb').read(), mediaType=oci + 'layer.v1.tar+gzip') for n in names]
    manifest = {'schemaVersion': 2, 'mediaType': oci + 'manifest.v1+json', 'config': config, 'layers': layers}
    manifests.append(blob(json.dumps(manifest).encode(), mediaType=oci + 'manifest.v1+json', platform={'os': 'linux', 'architecture': arch}))
index = {'schemaVersion': 2, 'mediaType': oci + 'index.v1+json', 'manifests': manifests}
index = blob(json.dumps(index, indent=1).encode(), mediaType=oci + 'index.v1+json', annotations={'org.opencontainers.image.ref.name': 'both'})
json.dump({'schemaVersion': 2, 'manifests': [index]}, open('both/index.json', 'w'))
open('both/oci-layout', 'w').write('{\"imageLayoutVersion\":\"1.0.0\"}')
open('digest', 'w').write(index['digest'])
END
            sheep-images ls && skopeo copy -q --all oci:both:both oci:data/images:both")
        .ok();
    let digest = world.sh("cat digest").ok();
    let manifests = world.sh("jq -r '.manifests[].digest' both/blobs/sha256/$(cut -c8- digest)").ok();
    let manifests: Vec<&str> = manifests.lines().collect();
    world.sh(&format!("sheep-images push both {at}/dir/both:v1")).ok();
    // The same bytes, and all that they name.
    world.sh(&format!("skopeo inspect --raw --tls-verify=false docker://{at}/dir/both:v1 | cmp - both/blobs/sha256/$(cut -c8- digest)")).ok();
    world.sh(&format!("skopeo copy -q --all --src-tls-verify=false docker://{at}/dir/both@{digest} oci:back:both && cd both && find blobs -type f | sort > ../want && cd ../back && find blobs -type f | sort | cmp - ../want")).ok();
    for (n, arch) in ["amd64", "arm64"].into_iter().enumerate() {
        let pull = format!("sheep-images --root {arch}-data pull {at}/dir/both:v1 --platform linux/{arch}");
        assert_eq!(world.sh(&format!("{pull} --print digest")).ok(), manifests[n]);
        let look = format!("sheep-images --root {arch}-data unpack {at}/dir/both:v1 --to {arch}-out >/dev/null");
        world
            .sh(&format!("{look} && cmp {arch}/of/{arch} {arch}-out/of/{arch} && cmp base/of/base {arch}-out/of/base"))
            .ok();
    }
    // Compressed anew, the index follows; the one for this machine is shown.
    let pushed = world.sh(&format!("sheep-images push both {at}/dir/zstd:v1 --compress zstd --print digest")).ok();
    let index = manifest(&world, &format!("{at}/dir/zstd:v1"));
    let listed: Vec<&Value> = index["manifests"].as_array().unwrap().iter().map(|entry| &entry["digest"]).collect();
    assert!(listed.iter().all(|digest| !manifests.contains(&digest.as_str().unwrap())), "{index}");
    assert!(listed.contains(&&json!(pushed)), "{pushed} is not in {index}");
    for arch in ["amd64", "arm64"] {
        let pull = format!("sheep-images --root z-{arch} pull {at}/dir/zstd:v1 --platform linux/{arch}");
        let types = "jq -r '.image.layers[].mediaType' | sort -u";
        assert!(world.sh(&format!("{pull} | {types}")).ok().ends_with("v1.tar+zstd"));
        let ids = "jq -c '[.image.layers[].diffId]'";
        assert_eq!(
            world.sh(&format!("sheep-images --root z-{arch} inspect {at}/dir/zstd:v1 | {ids}")).ok(),
            world.sh(&format!("sheep-images --root {arch}-data inspect {at}/dir/both:v1 | {ids}")).ok()
        );
    }
    // One of which not all is there does not go: an index that leads nowhere is of use to nobody.
    let other = manifests[if cfg!(target_arch = "x86_64") { 1 } else { 0 }];
    world.sh(&format!("rm data/images/blobs/sha256/{}", &other["sha256:".len()..])).ok();
    world.sh(&format!("sheep-images push both {at}/dir/part:v1")).fails(1, &format!("({other} is missing)"));
}

#[test]
fn the_others_get_what_we_push_and_we_what_they_push() {
    let world = World::root();
    let real = registry(&world, "");
    let port = real.port;
    let digest = app(&world);
    let out = world.sh(&format!("sheep-images push app 127.0.0.1:{port}/dir/app:v1"));
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    assert_eq!(
        world
            .sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{port}/dir/app:v1 | jq -r .Digest"))
            .ok(),
        digest
    );
    world.sh(&format!("skopeo copy -q --src-tls-verify=false docker://127.0.0.1:{port}/dir/app:v1 oci:back:app")).ok();
    assert_eq!(world.sh("jq -r .manifests[0].digest back/index.json").ok(), digest);
    let podman = format!("{PODMAN}
        podman pull -q --tls-verify=false 127.0.0.1:{port}/dir/app:v1 >/dev/null && podman image inspect --format '{{{{.Digest}}}}' 127.0.0.1:{port}/dir/app:v1
        podman tag 127.0.0.1:{port}/dir/app:v1 127.0.0.1:{port}/podman/app && podman push -q --digestfile podman.digest --tls-verify=false 127.0.0.1:{port}/podman/app
        ctr=$(buildah from --pull-never 127.0.0.1:{port}/dir/app:v1) && buildah config --env X=y $ctr && buildah commit -q --tls-verify=false $ctr docker://127.0.0.1:{port}/buildah/app:v2 >/dev/null");
    let out = world.sh(&podman);
    assert_eq!((out.code, out.stdout.trim()), (0, digest.as_str()), "{}", out.stderr);
    // podman says itself what it pushed; what skopeo pushed it had from a layout, see pulls_what_skopeo_pushed.
    let podmans = world
        .sh(&format!("sheep-images pull 127.0.0.1:{port}/podman/app --name theirs --print digest; cat podman.digest"))
        .ok();
    assert!(matches!(podmans.split_once('\n'), Some((ours, theirs)) if ours == theirs), "{podmans}");
    for reference in ["podman/app", "buildah/app:v2"] {
        let theirs = world
            .sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{port}/{reference} | jq -r .Digest"))
            .ok();
        assert_eq!(
            world.sh(&format!("sheep-images pull 127.0.0.1:{port}/{reference} --name theirs --print digest")).ok(),
            theirs
        );
        world.sh("sheep-images unpack theirs --to theirs --print path && cmp 2/usr/big theirs/usr/big && rm -r theirs && sheep-images verify").ok();
    }
    assert!(world.sh("sheep-images inspect theirs --print image.config.config.Env").ok().contains("X=y"));
}

#[test]
fn what_is_there_is_not_sent_and_what_is_near_is_mounted() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    app(&world);
    let push = format!("sheep-images push app 127.0.0.1:{port}/dir/app:v1 --print digest");
    for mode in [json!({"token": "sheep:pw", "anonymous": true}), json!({})] {
        between.mode(mode);
        world.sh(&push).ok();
    }
    assert!(between.log().iter().all(|entry| entry["method"] == "HEAD"), "{:?}", between.log());
    // By its name here we know where it is there.
    between.mode(json!({"token": "sheep:pw", "anonymous": true}));
    world.sh(&format!("sheep-images tag app 127.0.0.1:{port}/dir/app:v1 && sheep-images push app 127.0.0.1:{port}/other/app --print digest")).ok();
    let mounted = between.asked("POST", "/v2/other/app/blobs/uploads/?mount=sha256");
    assert_eq!(mounted.len(), 2 + mounted.iter().filter(|entry| entry["refused"] == true).count());
    assert!(between.asked("PATCH", "").is_empty() && between.asked("PUT", "/blobs/").is_empty(), "{:?}", between.log());
    world.sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{}/other/app", real.port)).ok();
    // The image's own name says where it goes.
    world.sh(&format!("sheep-images tag app 127.0.0.1:{port}/own:v7 && sheep-images push 127.0.0.1:{port}/own:v7 && sheep-images inspect --remote 127.0.0.1:{port}/own:v7")).ok();
    world.sh("sheep-images push app").fails(2, "say where: push app REGISTRY/NAME");
    world.sh("sheep-images push nosuch localhost:1/x").fails(3, "no such image");
    world.sh(&format!("sheep-images push app localhost:{port}/x@sha256:{}", "0".repeat(64))).fails(2, "by a tag");
    between.mode(json!({"token": "sheep:pw"}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/secret/app")).fails(1, "token for 127.0.0.1");
    // What is damaged here does not get there.
    world
        .sh("for b in $(ls -S data/images/blobs/sha256 | head -1); do truncate -s -1 data/images/blobs/sha256/$b; done")
        .ok();
    between.mode(json!({}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/new/app")).fails(1, "'sheep-images verify' says more");
}

#[test]
fn a_push_that_breaks_off_goes_on() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let digest = app(&world);
    let size: u64 = world.sh("stat -c %s data/images/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    for (n, mode) in [
        // A registry that knows what it has, and one that begins anew.
        json!({"cutupload": 1_500_000, "cuts": 2, "uploads": true}),
        json!({"cutupload": 1_500_000, "cuts": 2}),
        json!({"fail": 2}),
        json!({"fail": 1, "status": 429, "after": 1}),
    ]
    .into_iter()
    .enumerate()
    {
        between.mode(mode.clone());
        world.sh(&format!("sheep-images push app 127.0.0.1:{port}/n{n}/app --print digest")).ok();
        assert_eq!(
            world
                .sh(&format!(
                    "skopeo inspect --tls-verify=false docker://127.0.0.1:{}/n{n}/app | jq -r .Digest",
                    real.port
                ))
                .ok(),
            digest
        );
        if mode["cutupload"].is_u64() {
            let patches = between.asked("PATCH", "");
            assert_eq!(patches.len(), 3);
            let received: u64 = patches.iter().map(|entry| entry["received"].as_u64().unwrap()).sum();
            assert!(mode["uploads"].is_null() || received == size, "{received} for {size}");
        }
    }
    between.mode(json!({"cutupload": 1000}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/never/app --timeout 3")).fails(1, "upload of blob");
}

#[test]
fn a_registry_that_forgets_gets_chunks() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    world.sh("mkdir 1 && head -c 20000000 /dev/urandom > 1/big && tar -C 1 --format=posix -czf t.tgz . && sheep-images import app t.tgz").ok();
    let size: u64 = world.sh("stat -c %s data/images/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    let (cut, chunk) = (3_000_000, 8 << 20);
    // Debian's docker-registry throws away what came of an upload when one of its requests breaks off. Before it a proxy that holds a
    // request back until it is whole, as nginx does, so that only the request is lost; and none, so that all is.
    for (n, (mode, patches, at_most)) in [
        // Once, in the first request: then chunks.
        (json!({"cutupload": cut, "cuts": [1]}), 4, size + cut),
        (json!({"cutupload": cut, "cuts": [1], "buffered": true}), 4, size + cut),
        // Then once in each chunk, of which no other is sent again.
        (json!({"cutupload": cut, "cuts": [1, 2, 4, 6], "buffered": true}), 7, size + 4 * cut),
        (json!({"cutupload": cut, "cuts": [1, 3]}), 6, size + cut + chunk + cut),
    ]
    .into_iter()
    .enumerate()
    {
        between.mode(mode.clone());
        let digest = world.sh(&format!("sheep-images push app 127.0.0.1:{port}/n{n}/app --print digest")).ok();
        let asked = between.asked("PATCH", "");
        let received: u64 = asked.iter().map(|entry| entry["received"].as_u64().unwrap()).sum();
        assert!(received <= at_most, "{mode}: {received} bytes came of {size}");
        assert_eq!(asked.len(), patches, "{mode}");
        assert!(asked[1..].iter().all(|entry| entry["received"].as_u64() <= Some(chunk)), "{mode}: {asked:?}");
        let there = format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{}/n{n}/app", real.port);
        assert_eq!(world.sh(&format!("{there} | jq -r .Digest")).ok(), digest, "{mode}");
    }
}
