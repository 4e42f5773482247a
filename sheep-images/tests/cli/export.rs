//! Images on their way out, in each form.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::harness::World;
use crate::images::{listing, make, view};
use crate::interop::{PODMAN, picture};
use crate::maker::{Block, tar};

#[test]
fn as_docker_saves_it() {
    let world = World::root();
    make(&world);
    world.sh("sheep-images import me/app:v1 img").ok();
    world.sh("sheep-images export --format docker me/app:v1 > d.tar && sheep-images export --format docker me/app:v1 | cmp - d.tar").ok();
    let config = world
        .sh("m=$(sheep-images inspect me/app:v1 --print digest); jq -r .config.digest data/images/blobs/sha256/${m#sha256:} | cut -d: -f2")
        .ok();
    assert_eq!(
        world.sh("tar -xOf d.tar manifest.json | jq -r '.[] | .Config, .RepoTags[]'").ok(),
        format!("{config}.json\nme/app:v1")
    );
    assert_eq!(world.sh(&format!("tar -xOf d.tar {config}.json | sha256sum | cut -c 1-64")).ok(), config);
    // Each layer is called by what is in it, and is a plain tar.
    let layers = "tar -xOf d.tar manifest.json | jq -r '.[0].Layers[]' | while read -r l; do echo $(tar -xOf d.tar $l | sha256sum | cut -c 1-64).tar = $l; done | awk '$1 != $3 || NF != 3 {bad=1} END {print NR, bad+0}'";
    assert_eq!(world.sh(layers).ok(), "3 0");
    assert_eq!(
        world.sh("skopeo inspect --config docker-archive:d.tar | jq -c .rootfs.diff_ids").ok(),
        world.sh("sheep-images inspect me/app:v1 --print image.config.rootfs.diff_ids").ok()
    );
    let loaded =
        world.sh(&format!("{PODMAN} podman load -q -i d.tar && podman images --no-trunc --format '{{{{.ID}}}}'")).ok();
    assert_eq!(loaded, format!("Loaded image: localhost/me/app:v1\nsha256:{config}"));
    let rooted = world.sh(&format!("{PODMAN} podman image mount localhost/me/app:v1")).ok();
    let want = listing(&world, "bundle/rootfs");
    // podman gives directories that a layer does not name the time of their making.
    let is_dir = |line: &&str| line.split(' ').nth(1).is_some_and(|mode| mode.len() >= 3);
    let inner = |text: &str| text.lines().filter(|line| !is_dir(line)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(inner(&listing(&world, &rooted)), inner(&want));
    world.sh(&format!("{PODMAN} podman image umount -a; podman rmi -a -f")).ok();
    // And back.
    assert_eq!(
        world.sh("sheep-images --root other import back d.tar --print image.config.rootfs").ok(),
        world.sh("sheep-images inspect me/app:v1 --print image.config.rootfs").ok()
    );

    // Two images, and two names of one.
    world.sh("sheep-images tag me/app:v1 second; echo x > x; tar -cf x.tar x; sheep-images import third x.tar").ok();
    world.sh("sheep-images export --format docker me/app:v1 second third second | tee several.tar | sheep-images --root other import back - --ref third").ok();
    assert_eq!(
        world.sh("tar -xOf several.tar manifest.json | jq -c '[.[].RepoTags]'").ok(),
        r#"[["me/app:v1","second:latest"],["third:latest"]]"#
    );
    assert_eq!(world.sh("skopeo inspect docker-archive:several.tar:third:latest | jq -r '.Layers | length'").ok(), "1");
    let image = world.sh("m=$(sheep-images inspect third --print digest); sheep-images tag third gone >/dev/null; sheep-images rm third gone; sheep-images import third x.tar >/dev/null; echo $m").ok();
    world.sh(&format!("sheep-images export third {image}")).fails(3, &image);

    // What is damaged is found before the first byte.
    world.sh("b=data/images/blobs/sha256/$(sheep-images inspect second | jq -r '.image.layers[2].digest' | cut -d: -f2); printf x | dd of=$b bs=1 seek=30 conv=notrunc status=none").ok();
    world.sh("sheep-images export --format docker second > broken.tar").fails(1, "layer sha256:");
    assert_eq!(world.sh("stat -c %s broken.tar").ok(), "0");
}

#[test]
fn as_the_files_that_a_container_sees() {
    let world = World::root();
    make(&world);
    world.sh("sheep-images import app img").ok();
    world
        .sh("sheep-images export --format rootfs app > r.tar && sheep-images export --format rootfs app | cmp - r.tar")
        .ok();
    world.sh("mkdir out && tar -C out --xattrs --xattrs-include='*' -xpf r.tar").ok();
    view(&world, "app", "seen");
    assert_eq!(listing(&world, "out"), listing(&world, "seen"));
    assert_eq!(world.sh("stat -c %h out/etc/two out/etc/one; cat out/etc/two").ok(), "2\n2\none\nmore");

    // All that a file can have, in two layers with links within each.
    world
        .sh(r#"set -e; mkdir -p t/d t/e; cd t; echo a > a; ln a d/a2; ln a e/a3; cp /bin/busybox cap; setcap cap_net_raw+ep cap; truncate -s 40M hole; printf end >> hole; ln -s a l; setfattr -h -n trusted.t -v 1 l
            echo x > acl; setfacl -m u:12:rw acl; setfacl -d -m g:7:rx d; mknod dev c 1 3; mkfifo fifo; printf y > "$(printf 'n\377\nl')"; chmod 6755 a; chown 12:34 a; touch -h -d '2001-02-03 04:05:06.123456789' l fifo
            touch -d 1960-01-01 cap; setfattr -n user.v -v "$(printf 'b\nc')" acl; cd ..
            tar -C t --xattrs --xattrs-include='*' --acls -S --format=posix -cf t.tar .; tar -C t --xattrs --xattrs-include='*' --format=posix -cf t2.tar -C $PWD/t a d/a2
            umoci init --layout two; umoci new --image two:t; umoci raw add-layer --image two:t t.tar; umoci raw add-layer --image two:t t2.tar; sheep-images import two two"#)
        .ok();
    world.sh("sheep-images export --format rootfs two -o two.tar && mkdir got && tar -C got --xattrs --xattrs-include='*' -xpf two.tar").ok();
    assert_eq!(world.sh("du -k two.tar | awk '$1 < 4000 {print \"small\"}'; stat -c '%s %b' got/hole | awk '$2 < 100 {print $1}'").ok(), "small\n41943043");
    view(&world, "two", "view2");
    let want = picture(&world, "view2");
    assert_eq!(picture(&world, "got"), want);
    // a and d/a2 are of the upper layer, e/a3 of the lower one.
    assert_eq!(world.sh("stat -c %h got/a got/d/a2 got/e/a3; test got/a -ef got/d/a2").ok(), "2\n2\n1");
    // As an image again.
    world.sh("sheep-images import again two.tar").ok();
    assert_eq!(picture(&world, &world.layer("again").display().to_string()), want);
    world.sh("SOURCE_DATE_EPOCH=1000000 sheep-images export --format rootfs two | tar -tv --full-time -f - | awk '$4 > \"1970-01-13\"'").ok();

    world.sh("sheep-images export --format rootfs app two").fails(2, "--format rootfs is of one image");
    // The archive has no end where the image goes while its files are read: they are more than a pipe and a buffer hold.
    world.sh("for i in 1 2 3 4; do dd if=/dev/urandom of=t/big$i bs=1M count=1 status=none; done; tar -C t -cf t3.tar .; sheep-images import big t3.tar").ok();
    let slow = world.start("sheep-images export --format rootfs big | (until test -e go; do sleep 0.01; done; cat) > cut.tar; exit ${PIPESTATUS[0]}");
    world.sh("sleep 0.3; sheep-images rm big && touch go").ok();
    let outcome = slow.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(
        (outcome.status.code(), said.as_str()),
        (Some(3), "sheep-images: export big: the image was removed meanwhile\n")
    );
    assert_ne!(world.sh("test $(tail -c 1024 cut.tar | tr -d '\\0' | wc -c) = 0").code, 0, "it has an end");
}

#[test]
fn as_a_layout_in_a_directory() {
    let world = World::root();
    make(&world);
    let digest = world.sh("sheep-images import app img --print digest").ok();
    world.sh("sheep-images export --format oci-dir app").fails(2, "say which with --output DIR");
    world.sh("umask 022; sheep-images export --format oci-dir app -o made").ok();
    assert_eq!(world.sh("skopeo inspect oci:made:app:latest | jq -r .Digest").ok(), digest);
    assert_eq!(
        world.sh("find made -printf '%m\\n' | sort -u; ls -A made").ok(),
        "644\n755\nblobs\nindex.json\noci-layout"
    );
    world.sh("umoci unpack --image made:app:latest again >/dev/null && diff -r --no-dereference bundle/rootfs/etc again/rootfs/etc").ok();
    // Into one that is there: what it has stays, a name goes from one image to the next.
    world.sh("echo x > x; tar -cf x.tar x; sheep-images import third x.tar; umoci tag --image img:t other; umoci new --image img:app:latest; sheep-images export --format oci-dir app third -o img").ok();
    assert_eq!(world.sh("umoci ls --layout img | sort").ok(), "app:latest\nother\nt\nthird:latest");
    for (reference, want) in [("app:latest", &digest), ("t", &digest)] {
        assert_eq!(world.sh(&format!("skopeo inspect oci:img:{reference} | jq -r .Digest")).ok(), *want);
    }
    let before = world.sh("find img -printf '%p %s %T@ %m\\n' | sort").ok();
    world.sh("sheep-images export --format oci-dir app -o img").ok();
    let names =
        |text: &str| text.lines().filter(|line| line.contains("/sha256/")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        names(&world.sh("find img -printf '%p %s %T@ %m\\n' | sort").ok()),
        names(&before),
        "what is there is not written again"
    );
    // Several at once.
    world.sh("for i in 1 2 3 4 5 6; do sheep-images tag app n$i >/dev/null; done; for i in 1 2 3 4 5 6; do sheep-images export --format oci-dir n$i -o img & done; wait").ok();
    assert_eq!(
        world.sh("umoci ls --layout img | grep -c '^n[1-6]:latest$'; ls -A img").ok(),
        "6\nblobs\nindex.json\noci-layout"
    );
    // A blob that a killed one left half-written is put right.
    world.sh("b=$(jq -r .manifests[0].digest img/index.json | cut -d: -f2); truncate -s 10 img/blobs/sha256/$b; sheep-images export --format oci-dir app -o img; skopeo inspect oci:img:app:latest >/dev/null").ok();

    world.sh("mkdir full; touch full/f empty-file; mkdir empty; ln -s empty link").ok();
    for (to, code, text) in [
        ("full", 4, "full: it is not empty"),
        ("empty-file", 4, "there is something else of that name"),
        ("link", 4, "there is something else of that name"),
        ("no/such/place", 3, "no/such: no such directory"),
        ("..", 2, "not a name for something new"),
    ] {
        world.sh(&format!("sheep-images export --format oci-dir app -o {to}")).fails(code, text);
    }
    world
        .sh("umoci init --layout null; sheep-images export --format oci-dir app -o null && skopeo inspect oci:null:app:latest >/dev/null")
        .ok();
    world
        .sh("sheep-images export --format oci-dir app -o empty && skopeo inspect oci:empty:app:latest >/dev/null")
        .ok();
    let before = world.snapshot();
    world.sh("sheep-images export --format oci-dir app -o data/images").fails(2, "it is the store of a data directory");
    assert_eq!(world.snapshot(), before);
    // What is damaged makes nothing.
    world.sh("b=data/images/blobs/sha256/$(sheep-images inspect app | jq -r '.image.layers[0].digest' | cut -d: -f2); printf x | dd of=$b bs=1 seek=30 conv=notrunc status=none").ok();
    world.sh("sheep-images export --format oci-dir app -o broken").fails(1, "is damaged");
    world.sh("rm img/blobs/sha256/*; sheep-images export --format oci-dir app -o img").fails(1, "is damaged");
    assert_eq!(
        world.sh("ls -A img img/blobs/sha256; test ! -e broken; ls -A | grep sheep; true").ok(),
        "img:\nblobs\nindex.json\noci-layout\n\nimg/blobs/sha256:"
    );
}

#[test]
fn a_file_is_whole_or_absent() {
    let world = World::root();
    world.write("x.tar", tar().file(b"x", &vec![b'x'; 3 << 20]).end());
    world.sh("sheep-images import x x.tar").ok();
    for format in ["oci", "docker", "rootfs"] {
        world.sh(&format!("umask 027; sheep-images export x --format {format} -o {format}.tar && sheep-images export x --format {format} | cmp - {format}.tar")).ok();
        assert_eq!(world.sh(&format!("stat -c %a {format}.tar")).ok(), "640");
        world
            .sh(&format!("echo keep > {format}.tar; sheep-images export x --format {format} -o {format}.tar"))
            .fails(4, "it is there already; --force replaces it");
        assert_eq!(world.sh(&format!("cat {format}.tar; sheep-images export x --format {format} -o {format}.tar --force; sheep-images export x --format {format} | cmp - {format}.tar")).ok(), "keep");
    }
    world.sh("mkdir dir; ln -s oci.tar link; mkfifo fifo; mknod null c 1 3").ok();
    for (to, code, text) in [
        ("dir", 4, "it is a directory"),
        ("link", 4, "it is a symbolic link"),
        ("fifo", 4, "it is no file; write there with >"),
        ("null", 4, "it is no file; write there with >"),
        ("/dev/null", 4, "it is no file; write there with >"),
        ("no/such", 3, "no such directory"),
    ] {
        for force in ["", "--force"] {
            world.sh(&format!("sheep-images export x -o {to} {force}")).fails(code, text);
        }
    }
    assert_eq!(
        world.sh("stat -c %F dir link fifo null /dev/null").ok(),
        "directory\nsymbolic link\nfifo\ncharacter special file\ncharacter special file"
    );
    world.sh("sheep-images export x -o - | cmp - oci.tar").ok();
    assert_eq!(world.sh("sheep-images export x --force").code, 2);
    let terminal = world.sh("script -qec 'sheep-images export x' /dev/null");
    assert_eq!(terminal.code, 2);
    assert!(terminal.stdout.contains("stdout is a terminal"), "{}", terminal.stdout);

    world.sh("mkdir small; mount -t tmpfs -o size=1m none small").ok();
    for format in ["oci", "docker", "rootfs", "oci-dir"] {
        world.sh(&format!("sheep-images export x --format {format} -o small/out")).fails(1, "No space left on device");
        assert_eq!(world.sh("ls -A small").ok(), "", "{format}");
    }

    // A signal leaves nothing; a kill leaves what the next one takes away.
    world.sh("dd if=/dev/urandom of=big bs=1M count=64 status=none; tar -cf big.tar big; sheep-images import big big.tar; rm big big.tar").ok();
    for signal in ["INT", "TERM", "KILL"] {
        let mut child = world.start("exec sheep-images export big -o out.tar");
        let begun = Instant::now();
        while world.sh("ls -d .out.tar.sheep-* 2>/dev/null").code != 0 && begun.elapsed() < Duration::from_secs(20) {}
        world.sh(&format!("kill -{signal} {}", child.id()));
        let status = child.wait().unwrap();
        if status.success() {
            // It was quicker.
            fs::remove_file(world.dir.join("out.tar")).unwrap();
            continue;
        }
        assert!(!world.dir.join("out.tar").exists(), "{signal}");
        let left = world.sh("ls -d .out.tar.sheep-* 2>/dev/null | wc -l").ok();
        assert_eq!(left, if signal == "KILL" { "1" } else { "0" }, "{signal} {:?}", status.signal());
    }
    world.sh("sheep-images export big -o out.tar && sheep-images export big | cmp - out.tar").ok();
    assert_eq!(world.sh("ls -A | grep sheep; true").ok(), "");
}

#[test]
fn as_an_ordinary_user() {
    let world = World::user();
    let archive = tar()
        .block(Block::new(b"closed", b'5').with(100, b"0000000\0"))
        .file(b"closed/f", b"in a directory of mode 0")
        .block(Block::new(b"other", b'0').with(108, b"0000041\0"))
        .end();
    world.write("t.tar", archive);
    world.sh("sheep-images import t t.tar").ok();
    for format in ["oci", "docker"] {
        let outcome = world.sh(&format!("sheep-images export t --format {format} -o {format}.tar"));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    }
    assert_eq!(
        world.sh("sheep-images --root other import t oci.tar --print digest 2>/dev/null").ok(),
        world.sh("sheep-images inspect t --print digest").ok()
    );
    world.sh("sheep-images export t --format oci-dir -o layout && skopeo inspect oci:layout:t:latest >/dev/null").ok();
    let outcome = world.sh("sheep-images export t --format rootfs -o r.tar");
    assert_eq!(
        outcome.stderr,
        "sheep-images: export t: as an unprivileged user, the image's owners and devices are not kept: all is yours\n"
    );
    assert_eq!(world.sh("tar -tf r.tar").ok(), "./\nother\nclosed/\nclosed/f");
    world.sh("mkdir ro; chmod 555 ro; sheep-images export t -o ro/x").fails(1, "ro/.x.sheep-");
}
