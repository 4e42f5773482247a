//! Images of several layers, as other tools make them and put them into the layout.

use crate::harness::World;
use crate::maker::tar;

/// Makes an image `multi` of these layers (archives, with the compression command of each) in the store, by hand.
fn put(world: &World, layers: &[(&[u8], &str)]) {
    world.sh("sheep-images ls").ok();
    let mut script = String::from(
        "set -e; cd data/images/blobs/sha256; put() { d=$(sha256sum < $1 | cut -d' ' -f1); s=$(stat -c %s $1); mv $1 $d; }; layers=; diffs=\n",
    );
    for (n, (archive, pack)) in layers.iter().enumerate() {
        world.write(&format!("layer{n}"), archive);
        script += &format!(
            "f=$(sha256sum < ../../../../layer{n} | cut -d' ' -f1); {pack} < ../../../../layer{n} > x; put x; layers=\"$layers,{{\\\"mediaType\\\":\\\"application/vnd.oci.image.layer.v1.tar+gzip\\\",\\\"digest\\\":\\\"sha256:$d\\\",\\\"size\\\":$s}}\"; diffs=\"$diffs,\\\"sha256:$f\\\"\"\n"
        );
    }
    script += r#"
        echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[${diffs#,}]}}" > x; put x
        echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$d\",\"size\":$s},\"layers\":[${layers#,}]}" > x; put x
        jq -c ".manifests += [{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$d\",\"size\":$s,\"annotations\":{\"org.opencontainers.image.ref.name\":\"multi\"}}]" ../../index.json > x; mv x ../../index.json
    "#;
    world.sh(&script).ok();
}

#[test]
fn whiteouts_become_overlays_own() {
    let world = World::root();
    let base = tar()
        .dir(b"d")
        .file(b"d/gone", b"1")
        .file(b"gone", b"1")
        .dir(b"o")
        .file(b"o/old", b"1")
        .dir(b"replaced")
        .file(b"replaced/old", b"")
        .file(b"stays", b"")
        .dir(b"made-anew")
        .file(b"made-anew/old", b"")
        .end();
    let top = tar()
        .dir(b"d")
        .file(b"d/.wh.gone", b"")
        .file(b".wh.gone", b"")
        .dir(b"o")
        .file(b"o/new", b"2")
        // After its siblings: it hides only what is below.
        .file(b"o/.wh..wh..opq", b"")
        .file(b".wh.replaced", b"")
        .file(b"replaced", b"a file now")
        .file(b".wh.made-anew", b"")
        .dir(b"made-anew")
        .file(b"made-anew/new", b"")
        // A mark for what this layer has itself, and one whose directory is not in this layer; what AUFS left.
        .file(b"both", b"mine")
        .file(b".wh.both", b"")
        .file(b"absent/dir/.wh.x", b"")
        .file(b".wh..wh.plnk", b"")
        .file(b".wh..wh.aufs", b"")
        .end();
    put(&world, &[(&base, "gzip"), (&top, "zstd -q")]);
    let paths = world.sh("sheep-images unpack multi | jq -r '.image.layers[].path'").ok();
    let paths: Vec<&str> = paths.lines().collect();
    world
        .sh(&format!(
            "mkdir u w m && mount -t overlay overlay -o lowerdir={}:{},upperdir=u,workdir=w m",
            paths[1], paths[0]
        ))
        .ok();
    let seen = world.sh("cd m && find . -mindepth 1 | sort; cat replaced both; cd .. && umount m").ok();
    // The kernel lists a whiteout in a directory that only one layer has, and says of it that it does not exist.
    assert_eq!(
        seen,
        "./absent\n./absent/dir\n./absent/dir/x\n./both\n./d\n./made-anew\n./made-anew/new\n./o\n./o/new\n./replaced\n./stays\na file nowmine"
    );
    assert_eq!(
        world.sh(&format!("cd {} && stat -c '%F %t %T' gone d/gone absent/dir/x", paths[1])).ok(),
        ["character special file 0 0"; 3].join("\n")
    );
    assert_eq!(world.sh(&format!("find {} -name '.wh.*'", paths[1])).ok(), "");
    world.sh("sheep-images rm multi").ok();
    world.assert_empty();
}

#[test]
fn umoci_unpacks_the_same() {
    let world = World::root();
    world
        .sh("sheep-images bootstrap base && tar -C /usr/share -cf doc.tar doc/bash && sheep-images import doc doc.tar")
        .ok();
    world.sh("umoci unpack --image data/images:base:latest bundle").ok();
    let layer = world.layer("base").display().to_string();
    assert_eq!(
        world.sh(&format!("rsync -aHAXn --delete --checksum --itemize-changes bundle/rootfs/ {layer}/")).ok(),
        ""
    );
    // umoci adds a layer to our store, and we unpack it.
    world.sh("rm -rf bundle && umoci unpack --image data/images:base:latest bundle && echo new > bundle/rootfs/new && rm bundle/rootfs/etc/hosts && umoci repack --image data/images:changed:latest bundle").ok();
    let paths = world.sh("sheep-images unpack changed:latest | jq -r '.image.layers[].path'").ok();
    let paths: Vec<&str> = paths.lines().collect();
    assert_eq!((paths.len(), paths[0]), (2, layer.as_str()));
    assert_eq!(
        world.sh(&format!("cat {0}/new; stat -c %F {0}/etc/hosts", paths[1])).ok(),
        "new\ncharacter special file"
    );
    // The shared layer stays until its last image goes.
    world.sh("sheep-images rm base").ok();
    assert_eq!(world.sh("sheep-images unpack changed | jq -r '.image.layers[].path'").ok(), paths.join("\n"));
    world.sh("sheep-images rm changed doc").ok();
    world.assert_empty();
}

#[test]
fn skopeo_and_umoci_read_the_store() {
    let world = World::root();
    world.sh("sheep-images bootstrap minimal && sheep-images tag minimal quay.io/me/tool:v1").ok();
    let digest = world.sh("sheep-images inspect minimal --print digest").ok();
    for name in ["minimal:latest", "quay.io/me/tool:v1"] {
        assert_eq!(world.sh(&format!("skopeo inspect oci:data/images:{name} | jq -r .Digest")).ok(), digest);
        world
            .sh(&format!(
                "skopeo --insecure-policy copy -q oci:data/images:{name} dir:out && ls out/manifest.json && rm -r out"
            ))
            .ok();
    }
    assert_eq!(world.sh("umoci ls --layout data/images | sort").ok(), "minimal:latest\nquay.io/me/tool:v1");
    // And the other way: what skopeo puts there.
    world.sh("skopeo --insecure-policy copy -q oci:data/images:minimal:latest oci:data/images:copied && sheep-images unpack copied").ok();
    assert_eq!(
        world.sh("sheep-images ls --json | jq -r .image.reference | sort").ok(),
        "copied:latest\nminimal:latest\nquay.io/me/tool:v1"
    );
    world.sh("sheep-images rm copied && sheep-images rm minimal quay.io/me/tool:v1").ok();
    world.assert_empty();
}

#[test]
fn a_changed_blob_is_found_out() {
    let world = World::root();
    let base = tar().file(b"f", b"honest").end();
    for pack in ["cat", "gzip", "zstd -q"] {
        put(&world, &[(&base, pack)]);
        let blob = world.sh("sheep-images inspect multi | jq -r '.image.layers[0].digest' | sed 's,sha256:,data/images/blobs/sha256/,'").ok();
        world.sh(&format!("cp {blob} kept && printf x | dd of={blob} bs=1 seek=$(($(stat -c %s {blob}) - 3)) conv=notrunc status=none")).ok();
        let outcome = world.sh("sheep-images unpack multi");
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1), "{}", outcome.stderr);
        assert_eq!(world.sh("ls -A data/layers/sha256").ok(), "");
        // Another archive in its place, of the same length or not.
        world.write("other", tar().file(b"f", b"evil").end());
        world.sh(&format!("{pack} < other > {blob}")).ok();
        world.sh("sheep-images unpack multi").fails(1, "digest");
        assert_eq!(world.sh("ls -A data/layers/sha256").ok(), "");
        world.sh(&format!("cp kept {blob} && sheep-images unpack multi && sheep-images rm multi")).ok();
        world.assert_empty();
    }
}

#[test]
fn what_is_noted_of_a_blob_counts_only_with_that_blob() {
    for (world, pack) in [(World::root(), "gzip"), (World::user(), "zstd -q")] {
        world.write("honest", tar().file(b"f", b"honest").end());
        world.write("evil", tar().file(b"f", b"evil").end());
        world
            .sh(&format!("for f in honest evil; do {pack} < $f > $f.packed; done; sheep-images import a honest.packed"))
            .ok();
        let blob = world
            .sh("sheep-images inspect a | jq -r '.image.layers[0].digest' | sed 's,sha256:,data/images/blobs/sha256/,'")
            .ok();
        let diff_id = world.sh("sheep-images inspect a | jq -r '.image.layers[0].diffId'").ok();
        let noted = format!("getfattr --only-values -n user.sheep.diffid {blob} 2>&1");
        assert_eq!(world.sh(&noted).ok(), diff_id);
        let again = "rm -r data/layers/sha256/*; sheep-images unpack a";
        world.sh(again).ok();
        assert_eq!(world.sh("sheep-images unpack a --to plain >/dev/null; cat plain/f").ok(), "honest");
        // Written over, the file keeps the note.
        world.sh(&format!("cat evil.packed > {blob}")).ok();
        assert_eq!(world.sh(&noted).ok(), diff_id);
        world.sh(again).fails(1, "digest");
        assert_eq!(world.sh("ls -A data/layers/sha256").ok(), "");
        world.sh("sheep-images unpack a --to evil-too").fails(1, "digest");
        assert_eq!(world.sh("ls -d evil-too 2>/dev/null").stdout, "");
        // What is noted wrongly, or not at all, is found out.
        world
            .sh(&format!(
                "cat honest.packed > {blob}; setfattr -n user.sheep.diffid -v sha256:0000 {blob}; sheep-images unpack a"
            ))
            .ok();
        world.sh(&format!("setfattr -x user.sheep.diffid {blob}; {again}")).ok();
        let layer = world.layer("a");
        assert_eq!(std::fs::read(layer.join("f")).expect("the layer"), b"honest");
    }
}

#[test]
fn a_diff_id_that_is_not_so() {
    let world = World::root();
    put(&world, &[(&tar().file(b"f", b"1").end(), "gzip")]);
    // The configuration says another diffID: manifest and index are made to fit, so that only that is wrong.
    world
        .sh(r#"set -e; cd data/images/blobs/sha256; m=$(jq -r '.manifests[0].digest' ../../index.json | cut -d: -f2); c=$(jq -r .config.digest $m | cut -d: -f2)
            jq -c '.rootfs.diff_ids = ["sha256:'$(printf %064d 0)'"]' $c > x; n=$(sha256sum < x | cut -d' ' -f1); s=$(stat -c %s x); mv x $n; rm $c
            jq -c ".config.digest=\"sha256:$n\" | .config.size=$s" $m > x; k=$(sha256sum < x | cut -d' ' -f1); s=$(stat -c %s x); mv x $k; rm $m
            jq -c ".manifests[0].digest=\"sha256:$k\" | .manifests[0].size=$s" ../../index.json > x; mv x ../../index.json"#)
        .ok();
    world.sh("sheep-images unpack multi").fails(1, "the image says sha256:0000");
    assert_eq!(world.sh("ls -A data/layers/sha256").ok(), "");
}

#[test]
fn an_image_for_several_platforms() {
    let world = World::root();
    put(&world, &[(&tar().file(b"f", b"1").end(), "gzip")]);
    world
        .sh(r#"set -e; cd data/images/blobs/sha256; m=$(jq -c '.manifests[0]' ../../index.json); o=$(printf %064d 1)
            echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$o\",\"size\":1,\"platform\":{\"os\":\"linux\",\"architecture\":\"s390x\"}},$(echo $m | jq -c --arg a $(uname -m | sed s/x86_64/amd64/\;s/aarch64/arm64/) 'del(.annotations) | .platform={os:"linux",architecture:$a}')]}" > x
            k=$(sha256sum < x | cut -d' ' -f1); s=$(stat -c %s x); mv x $k
            jq -c ".manifests[0] |= (.digest=\"sha256:$k\" | .size=$s | .mediaType=\"application/vnd.oci.image.index.v1+json\")" ../../index.json > x; mv x ../../index.json"#)
        .ok();
    let layer = world.layer("multi");
    assert_eq!(std::fs::read(layer.join("f")).unwrap(), b"1");
    world
        .sh("sheep-images tag multi two && sheep-images rm multi && sheep-images unpack two && sheep-images rm two")
        .ok();
    world.assert_empty();
}

#[test]
fn two_layers_that_are_the_same_are_one() {
    let world = World::root();
    let layer = tar().file(b"f", b"1").end();
    let empty = tar().end();
    put(&world, &[(&empty, "gzip"), (&layer, "gzip"), (&layer, "zstd -q"), (&empty, "gzip")]);
    let paths = world.sh("sheep-images unpack multi | jq -r '.image.layers[].path'").ok();
    let paths: Vec<&str> = paths.lines().collect();
    assert_eq!((paths[0], paths[1]), (paths[3], paths[2]));
    world.sh("sheep-images rm multi").ok();
    world.assert_empty();
}
