//! Images from plain directories.

use crate::harness::World;
use crate::images::make;
use crate::interop::picture;

/// Everything that a directory can have, in `t`.
pub const EVERYTHING: &str = r#"set -e; mkdir -p t/d/deep t/empty t/acl t/sticky t/setgid t/closed; cd t
    echo a > a; ln a d/a2; ln a d/deep/a3; ln -s a l; ln -P l d/l2; ln -s /etc/passwd out; ln -s ../../../.. up; ln -s /nowhere dangling
    cp /bin/busybox cap; setcap cap_net_raw+ep cap; truncate -s 64M hole; printf end >> hole; truncate -s 2M onlyhole; printf start > small; truncate -s 20000 small; : > nothing
    echo x > with-acl; setfacl -m u:12:rw,g:34:r with-acl; setfacl -m u:7:rwx acl; setfacl -d -m g:7:rx acl; mknod dev c 1 3; mknod blk b 7 200; mkfifo fifo; ln dev d/dev2
    printf y > "$(printf 'n\377\nl')"; mkdir "$(printf 'd\001\303\244')"; echo s > suid; echo 'a  b' > 'with  spaces'; echo b > back\\slash
    chown -h 7:8 l; chown 12:34 a suid d/deep; chown 3000000:4000000000 nothing; chmod 6755 suid; chmod 1777 sticky; chmod 2775 setgid; chmod 000 closed
    setfattr -n user.v -v "$(printf 'b\nc')" with-acl; setfattr -n user.empty d; setfattr -h -n trusted.t -v 1 l; setfattr -n security.mine -v 1 fifo
    touch -h -d '2001-02-03 04:05:06.123456789' l fifo dev dangling; touch -d '1960-01-01 00:00:00.5' cap; touch -d '2300-01-01' small
    touch "$(printf 'long%.0s' $(seq 60))"; mkdir -p "$(printf 'deep%.0s/' $(seq 60))"; find . -depth -type d -exec touch -d '2001-02-03 04:05:06.789012345' {} +; chmod 751 .; chown 5:6 .; touch -d '2002-02-02 02:02:02.2' .; cd .."#;

#[test]
fn everything_is_kept() {
    let world = World::root();
    world.sh(EVERYTHING).ok();
    let want = picture(&world, "t");
    for part in [
        "trusted.t",
        "cap_net_raw",
        "user:12:rw-",
        "./blk 7:c8",
        "links: ./a ./d/a2 ./d/deep/a3",
        "5:6 1012615322.2",
        "0x",
        "default:group:7",
    ] {
        assert!(want.contains(part), "{part}: {want}");
    }
    let outcome = world.sh("sheep-images import t t --print image.layers");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    let layer = world.layer("t").display().to_string();
    assert_eq!(picture(&world, &layer), want);
    assert_eq!(picture(&world, "t"), want, "it is as it was");
    // Holes, in the store and in the layer; not where podman would be the worse for little.
    let blob = r#"data/images/blobs/sha256/$(sheep-images inspect t | jq -r '.image.layers[0].digest' | cut -d: -f2)"#;
    assert_eq!(world.sh(&format!("du -k {blob} | awk '{{print ($1 < 6000)}}'; stat -c '%s %b' {layer}/hole | awk '{{print $1, ($2 < 100)}}'; tar -tf {blob} | head -1")).ok(), "1\n67108867 1\n./");
    assert_eq!(
        world.sh(&format!("tar -tvf {blob} | wc -l; tar --to-stdout -xf {blob} hole | cmp - t/hole")).ok(),
        world.sh("find t -printf 'x\\n' | wc -l").ok()
    );
    world.sh(&format!("tar -tf {blob} | grep -v '[/\\\\]' | LC_ALL=C sort -c")).ok();
    // The same files, the same bytes, wherever they are.
    assert_eq!(world.sh("cp -a t u; sheep-images import u ./u/ --print image.layers").ok(), outcome.stdout.trim_end());
    let image = "SOURCE_DATE_EPOCH=1000000000 sheep-images import e t --print digest";
    assert_eq!(world.sh(image).ok(), world.sh(&format!("sleep 0.01; {image}")).ok());
    assert_eq!(world.sh(r#"find "$(sheep-images unpack e | jq -r '.image.layers[0].path')" -newermt @1000000000 | wc -l; sheep-images inspect e --print image.config.created"#).ok(), "0\n2001-09-09T01:46:40Z");
    world.sh("sheep-images import in t --max-entries 5").fails(1, "more than 5 entries");
    world.sh("sheep-images rm t u e").ok();
    world.assert_empty();
}

#[test]
fn what_is_not_of_the_directory_is_not_taken() {
    let world = World::root();
    // Sockets, mounts, and the store itself, which lies in it.
    world.sh(r#"set -e; mkdir -p t/proc t/sub/mnt t/bound; echo under > t/sub/mnt/under; echo f > t/bound/f; echo g > t/file
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("t/socket")'; mount -t tmpfs none t/sub/mnt; echo over > t/sub/mnt/over; mount --bind /etc t/bound; mount --bind /etc/hostname t/file; ln -s t link"#).ok();
    let outcome = world.sh("export SHEEP_DATA_DIR=$PWD/t/data; sheep-images import t link --print digest");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let dir = world.dir.display();
    assert_eq!(
        outcome.stderr,
        format!(
            "sheep-images: import t: not in the image: 1 socket; what is mounted on {dir}/t/sub/mnt, {dir}/t/bound, {dir}/t/file (tar -C DIR -c . | sheep-images import NAME - takes that too); the images and containers in link/data\n"
        )
    );
    let layer =
        world.sh("export SHEEP_DATA_DIR=$PWD/t/data; sheep-images unpack t | jq -r '.image.layers[0].path'").ok();
    assert_eq!(
        world.sh(&format!("cd {layer}; find . -type f -o -type d -empty | sort; cat sub/mnt/under bound/f file")).ok(),
        "./bound/f\n./data\n./file\n./proc\n./sub/mnt/under\nunder\nf\ng"
    );
    world.sh("SHEEP_DATA_DIR=$PWD/t/data sheep-images import x t/data").fails(1, "it is the data directory");
    world.sh("umount t/sub/mnt t/bound t/file; rm -r t/data").ok();

    // What would mean something else in a layer.
    world.sh("sheep-images ls; rm t/socket").ok();
    let before = world.snapshot();
    for (deed, text) in [
        ("echo > t/sub/.wh.x", "t/sub/.wh.x: in a layer a name that begins with .wh. deletes a file"),
        ("mkdir t/.wh.x", "t/.wh.x: in a layer"),
        ("mknod t/x c 0 0", "t/x: a character device 0/0"),
        ("setfattr -n trusted.overlay.metacopy t/file", "t/file: only its attributes are in its layer"),
        ("setfattr -n trusted.overlay.redirect -v y t/sub", "t/sub: renamed in its layer"),
        ("setfattr -n user.a=b -v y t/sub", "t/sub: an extended attribute with '=' in its name"),
    ] {
        world.sh(&format!("rm -rf kept; cp -a t kept; {deed}")).ok();
        world.sh("sheep-images import x t").fails(1, text);
        assert_eq!(world.snapshot(), before, "{deed}");
        world.sh("rm -rf t; mv kept t").ok();
    }
    // An upper that OverlayFS wrote is no plain directory, but its own notes say nothing.
    world.sh("setfattr -n trusted.overlay.origin -v y t/file; setfattr -n trusted.overlay.opaque -v y t/sub; sheep-images import x t").ok();
    assert_eq!(world.sh(&format!("getfattr -Rd -m - {}", world.layer("x").display())).ok(), "");
}

#[test]
fn what_changes_meanwhile_is_an_error() {
    let world = World::root();
    world
        .sh("mkdir t; truncate -s 1 t/f; dd if=/dev/urandom of=t/big bs=1M count=30 status=none; sheep-images ls")
        .ok();
    let before = world.snapshot();
    for (deed, text) in [
        ("printf x >> t/big", "/big: changed while it was read"),
        ("touch t/new; rm t/new", "changed while it was read"),
    ] {
        // A reader that the other one never gets in the way of is right to succeed; so again, until it does.
        let script = format!(
            "(while :; do {deed}; done) & for i in $(seq 100); do sheep-images import x t >/dev/null 2>said; code=$?; [ $code = 0 ] || break; sheep-images rm x; done; kill $!; cat said >&2; exit $code"
        );
        world.sh(&script).fails(1, text);
        assert_eq!(world.snapshot(), before);
    }
    world.sh("sheep-images import x t").ok();
}

#[test]
fn a_layout_is_told_from_files() {
    let world = World::root();
    make(&world);
    let digest = world.sh("sheep-images import app img --print digest").ok();
    world.sh("sheep-images import files img --format rootfs").ok();
    assert_eq!(world.sh(&format!("diff -r img {}", world.layer("files").display())).ok(), "");
    world
        .sh("cp -a img broken; rm broken/oci-layout; sheep-images import x broken")
        .fails(2, "index.json or oci-layout is missing");
    world.sh("mkdir saved plain; sheep-images export app --format docker | tar -C saved -x; sheep-images import back saved --format image").ok();
    assert_eq!(
        world.sh("sheep-images inspect back --print image.config.rootfs").ok(),
        world.sh("sheep-images inspect app --print image.config.rootfs").ok()
    );
    world
        .sh("sheep-images import x plain --format image")
        .fails(1, "neither index.json (an OCI layout) nor manifest.json");
    world.sh("sheep-images import x plain --ref y").fails(2, "--ref is for archives of images");
    world.sh("sheep-images import x no/such").fails(3, "no such file");
    assert_eq!(world.sh("sheep-images import empty plain && find $(sheep-images unpack empty | jq -r '.image.layers[0].path') | wc -l").ok().lines().last(), Some("1"));
    assert_eq!(world.sh("skopeo inspect oci:data/images:app:latest | jq -r .Digest").ok(), digest);
    world.sh("skopeo inspect oci:data/images:files:latest >/dev/null").ok();
}

#[test]
fn as_an_ordinary_user() {
    let world = World::user();
    world.sh("mkdir -p t/d t/locked; echo f > t/d/f; ln t/d/f t/g; chmod 700 t/d; setfattr -n user.v -v 1 t/g; echo s > t/locked/s; chmod 000 t/locked").ok();
    world.sh("sheep-images import x t").fails(1, "t/locked: Permission denied");
    world.sh("chmod 755 t/locked").ok();
    let outcome = world.sh("sheep-images import x t --print reference");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    let layer = world.layer("x").display().to_string();
    assert_eq!(picture(&world, &layer), picture(&world, "t"));
    // A mount that he can see and not look under.
    let outcome = world.sh("unshare -Urm sh -c 'mount -t tmpfs none t/locked && touch t/locked/hidden && setpriv --bounding-set=-all --inh-caps=-all sheep-images import y t --print reference'");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr,
        "sheep-images: import y: not in the image: what is mounted on t/locked (tar -C DIR -c . | sheep-images import NAME - takes that too)\n"
    );
    assert_eq!(world.sh(&format!("ls -A {}/locked", world.layer("y").display())).ok(), "");
}
