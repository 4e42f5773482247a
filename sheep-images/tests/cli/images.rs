//! Images that other tools made, brought in from files and pipes.

use crate::harness::World;
use crate::maker::tar;

/// An image of three layers, made by umoci: whiteouts, an opaque directory, links, set-id bits, a name that is no UTF-8; as
/// the OCI layout `img`, tag `t`, and unpacked by umoci in `bundle/rootfs`.
pub fn make(world: &World) {
    world
        .sh(r#"set -e; umoci init --layout img; umoci new --image img:t; umoci unpack --image img:t b1 >/dev/null; cd b1/rootfs
            mkdir -p bin etc opq dir; cp /bin/busybox bin/busybox; ln -s busybox bin/sh; echo one > etc/one; ln etc/one etc/two; echo old > opq/old
            echo gone > etc/gone; chmod 4755 bin/busybox; printf x > "$(printf 'etc/\377')"; cd ../..; umoci repack --image img:t b1
            rm -r b1; umoci unpack --image img:t b2; cd b2/rootfs; rm etc/gone; rm -r opq; mkdir opq; echo new > opq/new; echo more >> etc/one; cd ../..
            umoci repack --image img:t b2; rm -r b2; umoci unpack --image img:t b3; cd b3/rootfs; touch -d '2001-02-03 04:05:06' dir; mkfifo dir/fifo
            chown 12:34 etc/two; cd ../..; umoci repack --image img:t b3; umoci config --image img:t --config.env A=b --config.cmd /bin/sh
            rm -r b3; umoci unpack --image img:t bundle"#)
        .ok();
}

/// What is in a tree.
pub fn listing(world: &World, dir: &str) -> String {
    world
        .sh(&format!(
            "cd {dir} && find . -type d -printf '%p %m %U:%G %T@\\n' | sort && find . ! -type d -printf '%p %y %m %U:%G %s %T@ %n %l\\n' | sort && \
             find . -type f -exec sha256sum {{}} + | sort"
        ))
        .ok()
}

/// The merged view of an image, by the kernel.
pub fn shown(world: &World, image: &str) -> String {
    let lowers = world
        .sh(&format!(
            "sheep-images unpack {image} | jq -r '[.image.layers[].path] | reduce .[] as $p ([]; if index($p) then . else . + [$p] end) | reverse | join(\":\")'"
        ))
        .ok();
    world
        .sh(&format!("mkdir -p up wk view && rm -rf up/* && mount -t overlay -o lowerdir={lowers},upperdir=up,workdir=wk none view"))
        .ok();
    let listing = listing(world, "view");
    world.sh("umount view").ok();
    listing
}

/// Mounts an image's layers, and no more, read-only at `at`. A layer that stands in it twice stands where it is on top.
pub fn view(world: &World, image: &str, at: &str) {
    // The kernel wants two lowers at least, and their names on one page.
    world
        .sh(&format!(
            "set -e; mkdir -p {at} .lowers-{at}/nothing; l=; i=0
             for p in $(sheep-images unpack {image} | jq -r '[.image.layers[].path] | reverse | reduce .[] as $p ([]; if index($p) then . else . + [$p] end) | .[]')
             do i=$((i + 1)); ln -s $p .lowers-{at}/$i; l=$l$i:; done; cd .lowers-{at}; mount -t overlay -o ro,lowerdir=${{l}}nothing none ../{at}"
        ))
        .ok();
}

/// Without the root, which no layer has.
fn plain(listing: &str) -> String {
    listing.lines().filter(|line| !line.starts_with(". ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_oci_layout_from_everywhere() {
    let world = World::root();
    make(&world);
    let digest = world.sh("jq -r '.manifests[0].digest' img/index.json").ok();
    let want = plain(&listing(&world, "bundle/rootfs"));
    world.sh("skopeo --insecure-policy copy -q oci:img:t oci-archive:img.tar:t; gzip -k img.tar; zstd -q img.tar; tar -C img -cf own.tar .").ok();
    for (from, kind) in [
        ("img", "a directory"),
        ("img.tar", "skopeo's archive"),
        ("img.tar.gz", "compressed"),
        ("img.tar.zst", "compressed otherwise"),
        ("own.tar", "another order"),
        ("- < img.tar", "a pipe"),
        ("- < <(cat img.tar.gz)", "a pipe, compressed"),
    ] {
        let document = world.sh(&format!("sheep-images import x {from} --print digest")).ok();
        assert_eq!(document, digest, "{kind}");
        assert_eq!(plain(&shown(&world, "x")), want, "{kind}");
        assert_eq!(world.sh("sheep-images inspect x --print image.config.config.Env").ok(), world.sh("umoci stat --image img:t --json >/dev/null; jq -c .config.Env img/blobs/sha256/$(jq -r .config.digest img/blobs/sha256/${D#sha256:} | cut -d: -f2)".replace("${D#sha256:}", digest.trim_start_matches("sha256:")).as_str()).ok());
        world.sh("sheep-images rm x").ok();
        world.assert_empty();
    }
    // Read again by others, digests and all.
    world.sh("sheep-images import x img.tar").ok();
    assert_eq!(world.sh("skopeo inspect oci:data/images:x:latest | jq -r .Digest").ok(), digest);
    world.sh("sheep-images import y img.tar; sheep-images rm x").ok();
    assert_eq!(plain(&shown(&world, "y")), want);
    world.sh("sheep-images rm y").ok();
    world.assert_empty();
}

#[test]
fn what_docker_save_and_podman_write() {
    let world = World::root();
    make(&world);
    let want = plain(&listing(&world, "bundle/rootfs"));
    let config = world
        .sh("skopeo --insecure-policy copy -q oci:img:t docker-archive:saved.tar:quay.io/me/tool:v1 && skopeo inspect --config --raw docker-archive:saved.tar | sha256sum | cut -c 1-64")
        .ok();
    for from in ["saved.tar", "- < <(gzip -c saved.tar)"] {
        world.sh(&format!("sheep-images import x {from}")).ok();
        assert_eq!(plain(&shown(&world, "x")), want, "{from}");
        let id = world
            .sh("m=$(sheep-images inspect x --print digest); jq -r .config.digest data/images/blobs/sha256/${m#sha256:}")
            .ok();
        assert_eq!(id, format!("sha256:{config}"), "the image's id stays");
        world.sh("sheep-images rm x").ok();
        world.assert_empty();
    }
    world
        .sh("set -e; podman() { command podman --root $PWD/store --runroot $PWD/run --tmpdir $PWD/tmp --storage-driver vfs \"$@\"; }; id=$(podman pull -q oci:img:t); podman tag $id localhost/one:1
            podman save -q -o one.tar localhost/one:1; podman save -q --format oci-archive -o oci.tar localhost/one:1; podman save -q -m -o two.tar localhost/one:1 $id")
        .ok();
    for from in ["one.tar", "oci.tar", "--ref localhost/one:1 two.tar"] {
        world.sh(&format!("sheep-images import x {from}")).ok();
        assert_eq!(plain(&shown(&world, "x")), want, "{from}");
        world.sh("sheep-images rm x").ok();
    }
    world.assert_empty();
}

#[test]
fn one_of_several() {
    let world = World::root();
    make(&world);
    world.sh("set -e; umoci tag --image img:t other; umoci config --image img:other --config.cmd /bin/other; umoci tag --image img:other quay.io/a/b:c; tar -C img -cf img.tar .").ok();
    world.sh("sheep-images import x img.tar").fails(2, "say which with --ref: t:latest, other:latest, quay.io/a/b:c");
    world.sh("sheep-images import x img.tar --ref nothing").fails(3, "--ref nothing: no such image in it");
    for reference in ["other", "quay.io/a/b:c"] {
        world.sh(&format!("sheep-images import x img --ref {reference}")).ok();
        assert_eq!(world.sh("sheep-images inspect x --print image.config.config.Cmd").ok(), r#"["/bin/other"]"#);
    }
    // For several platforms.
    world
        .sh(r#"set -e; cd img; one=$(jq -c '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "t")' index.json); two=$(jq -c '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "other")' index.json)
            jq -nc --argjson a "$one" --argjson b "$two" --arg h $(uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/') '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [($a | del(.annotations) | .platform = {os: "linux", architecture: $h}), ($b | del(.annotations) | .platform = {os: "linux", architecture: "s390x"})]}' > x
            d=$(sha256sum < x | cut -c 1-64); s=$(stat -c %s x); mv x blobs/sha256/$d
            jq -nc --arg d sha256:$d --argjson s $s '{schemaVersion: 2, manifests: [{mediaType: "application/vnd.oci.image.index.v1+json", digest: $d, size: $s}]}' > index.json"#)
        .ok();
    world.sh("sheep-images import x img").ok();
    assert_eq!(world.sh("sheep-images inspect x --print image.config.config.Cmd").ok(), r#"["/bin/sh"]"#);
    world.sh("sheep-images import x img --platform linux/s390x").ok();
    assert_eq!(world.sh("sheep-images inspect x --print image.config.config.Cmd").ok(), r#"["/bin/other"]"#);
    world.sh("sheep-images import x img --platform linux/mips").fails(3, "no image for linux/mips");
    world.sh("sheep-images import x img --platform linux").fails(2, "--platform linux");
}

#[test]
fn what_is_not_as_it_says_is_refused() {
    let world = World::root();
    make(&world);
    world.sh("sheep-images ls").ok();
    let before = world.snapshot();
    let layer = r#"l=img/blobs/sha256/$(jq -r .layers[1].digest img/blobs/sha256/$(jq -r .manifests[0].digest img/index.json | cut -d: -f2) | cut -d: -f2);"#;
    let config = r#"c=img/blobs/sha256/$(jq -r .config.digest img/blobs/sha256/$(jq -r .manifests[0].digest img/index.json | cut -d: -f2) | cut -d: -f2);"#;
    let cases: [(&str, String, &str); 9] = [
        (
            "a byte of a layer",
            format!("{layer} printf x | dd of=$l bs=1 seek=40 conv=notrunc status=none"),
            "layer blobs/sha256/",
        ),
        ("a layer cut short", format!("{layer} truncate -s -1 $l"), "bytes, and the image says"),
        ("a layer gone", format!("{layer} rm $l"), "it is missing"),
        (
            "another layer",
            format!("{layer} printf x | gzip > x; truncate -s $(stat -c %s $l) x; mv x $l"),
            "layer blobs/sha256/",
        ),
        ("a configuration", format!("{config} sed -i s/amd64/arm64/ $c"), "not what its digest says"),
        ("a configuration gone", format!("{config} rm $c"), "is missing"),
        ("no manifest", "rm img/index.json".to_owned(), "directory"),
        ("no JSON", "echo x > img/index.json".to_owned(), "index.json"),
        (
            "nothing in it",
            r#"echo '{"schemaVersion":2,"manifests":[]}' > img/index.json"#.to_owned(),
            "there is no image in it",
        ),
    ];
    for (what, deed, error) in cases {
        world.sh(&format!("rm -rf kept; cp -a img kept; {deed}")).ok();
        for from in ["img", "<(tar -C img -c .)"] {
            let outcome = world.sh(&format!("sheep-images import x {from}"));
            assert!(outcome.code != 0 && outcome.stderr.lines().count() == 1, "{what}: {outcome:?}");
            if from == "img" || what != "no manifest" {
                assert!(outcome.stderr.contains(error), "{what}: {outcome:?}");
            }
            assert_eq!(world.snapshot(), before, "{what}");
        }
        world.sh("rm -rf img; mv kept img").ok();
    }
    // A diffID that is not so, and an archive of docker's whose layer is another.
    world.sh(r#"set -e; skopeo --insecure-policy copy -q oci:img:t docker-archive:s.tar:a:b; mkdir s; tar -C s -xf s.tar; cd s; f=$(jq -r '.[0].Layers[0]' manifest.json); rm -f $f; tar -cf $f --files-from /dev/null; tar -cf ../s2.tar *"#).ok();
    world.sh("sheep-images import x s2.tar").fails(1, "and the image says");
    assert_eq!(world.snapshot(), before);
    // An archive of files that only begins like one of an image.
    world.write("blobs.tar", tar().dir(b"blobs").file(b"blobs/x", b"1").end());
    world.sh("sheep-images import x blobs.tar").fails(1, "neither index.json (an OCI layout) nor manifest.json");
    world.sh("sheep-images import x blobs.tar --format rootfs && sheep-images rm x").ok();
    world.sh("sheep-images import x blobs.tar --format rootfs --ref y").fails(2, "--ref is for archives of images");
}

#[test]
fn directories_that_a_layer_does_not_name_are_as_the_layers_below_have_them() {
    let world = World::root();
    // Two bases whose directories differ, and one layer on each that names none of its directories.
    world
        .sh(r#"set -e; mkdir one two top; for i in one two; do mkdir -p $i/d/e $i/tmp; cp -a /bin/busybox $i/; done; chmod 1777 one/tmp; chmod 2750 one/d; chown 12:34 one/d
            setfattr -n user.k -v v one/d/e; touch -d 2001-02-03 one/d/e one/d one/tmp; chmod 555 one; mkdir -p top/d/e top/tmp top/new/deep; echo f > top/d/e/f; echo t > top/tmp/t; echo n > top/new/deep/n
            tar -C one --xattrs --format=posix -cf one.tar .; tar -C two --format=posix -cf two.tar .; tar -C top --format=posix -cf top.tar d/e/f tmp/t new/deep/n
            umoci init --layout img; for i in one two; do umoci new --image img:$i; umoci raw add-layer --image img:$i $i.tar; umoci raw add-layer --image img:$i top.tar; umoci unpack --image img:$i b-$i; done"#)
        .ok();
    let want = |name: &str| {
        let listing = world.sh(&format!("cd b-{name}/rootfs && stat -c '%n %a %u:%g' . && find d tmp -type d -printf '%p %m %U:%G %TY\\n' && getfattr -d d/e && find . -type f | sort")).ok();
        // What umoci makes anew is of the time of its making.
        listing.lines().filter(|line| !line.contains("/2026")).collect::<Vec<_>>().join("\n")
    };
    let have = |name: &str| {
        world.sh(&format!("l=$(sheep-images unpack {name} | jq -r '[.image.layers[].path] | reverse | join(\":\")'); mkdir -p up-{name} wk-{name} m-{name}; mount -t overlay -o lowerdir=$l,upperdir=up-{name},workdir=wk-{name} none m-{name}")).ok();
        let listing = world.sh(&format!("l=$(sheep-images unpack {name} | jq -r '.image.layers[1].path'); cd m-{name} && stat -c '%n %a %u:%g' $l | sed 's,^/[^ ]*,.,' && find d tmp -type d -printf '%p %m %U:%G %TY\\n' && getfattr -d d/e && find . -type f | sort")).ok();
        world.sh(&format!("umount m-{name}")).ok();
        listing
    };
    // Imported together, and the second while the store has the layer of the first.
    for (first, second) in [("one", "two"), ("two", "one")] {
        world
            .sh(&format!(
                "sheep-images import {first} img --ref {first} && sheep-images import {second} img --ref {second}"
            ))
            .ok();
        for name in [first, second] {
            let (want, have) = (want(name), have(name));
            // umoci changes the times of directories that it puts something in; the layers below know them.
            let plain = |text: &str| {
                text.lines()
                    .map(|line| line.trim_end_matches(" 2001").trim_end_matches(" 2026").to_owned())
                    .collect::<Vec<_>>()
            };
            assert_eq!(plain(&have), plain(&want), "{name} after {first}");
            assert!(name != "one" || have.contains("d/e 755 0:0 2001"), "{have}");
        }
        // The base once for each, the layer once for each chain that it is completed for.
        let paths = world
            .sh("for i in one two; do sheep-images unpack $i | jq -r '.image.layers[].path'; done | sort -u | wc -l")
            .ok();
        assert_eq!(paths, "4");
        world.sh("sheep-images rm one && sheep-images unpack two && sheep-images rm two").ok();
        world.assert_empty();
    }
    // The usual layer names them all, and is there once.
    world.sh("tar -C top --format=posix -cf named.tar d tmp new; for i in one two; do umoci new --image img:n$i; umoci raw add-layer --image img:n$i $i.tar; umoci raw add-layer --image img:n$i named.tar; sheep-images import n$i img --ref n$i; done").ok();
    let paths = world
        .sh("for i in none ntwo; do sheep-images unpack $i | jq -r '.image.layers[1].path'; done | sort -u | wc -l")
        .ok();
    assert_eq!(paths, "2", "the root of the one base is closed, and no layer names it");
}

#[test]
fn an_image_is_sent_out_as_it_came() {
    let world = World::root();
    make(&world);
    let digest = world.sh("sheep-images import app img --print digest").ok();
    world.sh("sheep-images export app > out.tar && sheep-images export app | cmp - out.tar").ok();
    assert_eq!(world.sh("skopeo inspect oci-archive:out.tar | jq -r .Digest").ok(), digest);
    assert_eq!(world.sh("tar -tf out.tar | head -2").ok(), "oci-layout\nindex.json");
    // Other stores, without a file between them; and all of it again.
    assert_eq!(
        world.sh("sheep-images export app | sheep-images --root other import b - --print digest && sheep-images --root other export b | sheep-images --root third import app - >/dev/null && sheep-images --root third export app | cmp - out.tar").ok(),
        digest
    );
    world
        .sh("set -e; mkdir layout; tar -C layout -xf out.tar; umoci unpack --image layout:app:latest again 2>/dev/null || umoci unpack --image layout:$(umoci ls --layout layout | head -1) again; diff -r --no-dereference bundle/rootfs/etc again/rootfs/etc")
        .ok();
    let loaded = world
        .sh("podman() { command podman --root $PWD/store --runroot $PWD/run --tmpdir $PWD/tmp --storage-driver vfs \"$@\"; }; podman load -q -i out.tar >/dev/null && podman images --digests --format '{{.Digest}}'")
        .ok();
    assert_eq!(loaded, digest);
    world.sh("sheep-images export nothing").fails(3, "no such image");
    world.sh("sheep-images export app | head -c 100 >/dev/null; exit ${PIPESTATUS[0]}").ok();
    // What is damaged is no whole archive.
    world.sh("b=data/images/blobs/sha256/$(sheep-images inspect app | jq -r '.image.layers[0].digest' | cut -d: -f2); printf x | dd of=$b bs=1 seek=30 conv=notrunc status=none").ok();
    world.sh("sheep-images export app > broken.tar").fails(1, "is damaged");
    assert_ne!(world.sh("sheep-images --root fourth import x broken.tar").code, 0);
    assert_ne!(world.sh("skopeo --insecure-policy copy -q oci-archive:broken.tar dir:copied").code, 0);
    let ended = world.sh("test -s broken.tar && test $(tail -c 1024 broken.tar | tr -d '\\0' | wc -c) = 0").code == 0;
    assert!(!ended, "it has no end");
}
