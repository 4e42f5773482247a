//! All of an image in one plain directory: `unpack --to`.

use std::time::{Duration, Instant};

use crate::directory::EVERYTHING;
use crate::harness::World;
use crate::images::{make, view};
use crate::interop::picture;
use crate::maker::{Block, tar};

#[test]
fn it_is_what_a_mount_shows() {
    let world = World::root();
    make(&world);
    world.sh("sheep-images import app img").ok();
    // Everything, and a layer on it that changes some, names no directory that it need not, and has links of its own.
    world
        .sh(&format!("{EVERYTHING}
            mkdir -p c/d/deep; echo new > c/a; ln c/a c/d/a2; echo more > c/d/deep/b; touch c/.wh.hole; tar -C c -cf c.tar a d/a2 d/deep/b .wh.hole; tar -C t --xattrs --xattrs-include='*' --acls -S --format=posix -cf t.tar .
            umoci init --layout all; umoci new --image all:t; umoci raw add-layer --image all:t t.tar; umoci raw add-layer --image all:t c.tar; sheep-images import all all"))
        .ok();
    for (image, to) in [("app", "out"), ("all", "deeper/out")] {
        world.sh("mkdir -p deeper/out").ok();
        let outcome = world.sh(&format!("sheep-images unpack {image} --to {to}"));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
        let path = format!("{}/{to}", world.dir.display());
        let field = |field: &str| world.sh(&format!("echo '{}' | jq -r '{field}'", outcome.stdout.trim_end())).ok();
        assert_eq!(field(".image.path"), path);
        assert_eq!(
            field(".image.layers[0].path"),
            world.sh(&format!("sheep-images unpack {image} | jq -r '.image.layers[0].path'")).ok()
        );
        let at = format!("view-{image}");
        view(&world, image, &at);
        assert_eq!(picture(&world, to), picture(&world, &at), "{image}");
    }
    assert_eq!(
        world
            .sh("stat -c '%h %n' deeper/out/a deeper/out/d/a2; cat deeper/out/d/deep/a3; test ! -e deeper/out/hole")
            .ok(),
        "2 deeper/out/a\n2 deeper/out/d/a2\na"
    );
    assert_eq!(world.sh("ls -A | grep sheep; ls -A deeper").ok(), "out");
    // Nothing of it is the store's.
    let layers = world.sh("find data/layers -printf '%p %n %s %T@ %C@\\n' | sort").ok();
    world.sh("echo changed >> out/etc/one; chmod 600 out/bin/busybox; rm -r out/opq").ok();
    assert_eq!(world.sh("find data/layers -printf '%p %n %s %T@ %C@\\n' | sort").ok(), layers);

    assert_eq!(world.sh("sheep-images unpack app --to new --print path").ok(), format!("{}/new", world.dir.display()));
    assert_eq!(world.sh("sheep-images unpack app --print path").code, 2, "there is none where none is asked for");
    world.sh("mkdir mounted; mount -t tmpfs none mounted; touch file; ln -s nowhere link; mkdir closed; echo x > closed/x").ok();
    let before = world.sh("ls -AR closed mounted; stat -c '%n %F' file link").ok();
    for (to, code, text) in [
        ("new", 4, "new: it is not empty; give a new or an empty directory"),
        ("closed/", 4, "closed/: it is not empty"),
        ("mounted", 4, "mounted: something is mounted there; name a directory in it"),
        ("file", 4, "file: there is something else of that name"),
        ("link", 4, "link: there is something else of that name"),
        ("no/such", 3, "/no: no such directory"),
        ("/", 2, "not a name for something new"),
        ("''", 2, "--to"),
    ] {
        let outcome = world.sh(&format!("sheep-images unpack app --to {to}"));
        assert_eq!(outcome.code, code, "{to}: {outcome:?}");
        assert!(outcome.stderr.contains(text), "{to}: {outcome:?}");
    }
    assert_eq!(world.sh("ls -AR closed mounted; stat -c '%n %F' file link").ok(), before);
    world.sh("sheep-images unpack nothing --to x").fails(3, "no such image");
    world.sh("sheep-images unpack app --to mounted/in && test -x mounted/in/bin/sh").ok();
    assert_eq!(world.sh("sheep-images unpack app --userns").code, 2);
    // As root there is nothing more to keep.
    world.sh("sheep-images unpack app --to u --userns").ok();
    assert_eq!(picture(&world, "u"), picture(&world, "new"));
    // Not from a layer that is not what it was, and nothing half-made.
    world.sh("l=$(sheep-images unpack app | jq -r '.image.layers[2].path'); rm -r $l; b=data/images/blobs/sha256/$(sheep-images inspect app | jq -r '.image.layers[2].digest' | cut -d: -f2); printf x | dd of=$b bs=1 seek=30 conv=notrunc status=none").ok();
    world.sh("sheep-images unpack app --to bad").fails(1, "layer sha256:");
    assert_eq!(world.sh("test ! -e bad; ls -A | grep sheep; true").ok(), "");
}

#[test]
fn a_signal_leaves_nothing() {
    let world = World::root();
    world.sh("mkdir t; for i in $(seq 200); do mkdir t/$i; head -c 200000 /dev/urandom > t/$i/f; for j in $(seq 20); do echo > t/$i/$j; done; done; sheep-images import big t").ok();
    for signal in ["INT", "TERM", "KILL"] {
        let mut child = world.start("exec sheep-images unpack big --to out");
        let begun = Instant::now();
        while world.sh("ls -d .out.sheep-*/new/1 2>/dev/null").code != 0 && begun.elapsed() < Duration::from_secs(20) {}
        world.sh(&format!("kill -{signal} {}", child.id()));
        if child.wait().unwrap().success() {
            // It was quicker.
            world.sh("rm -r out").ok();
            continue;
        }
        assert!(!world.dir.join("out").exists(), "{signal}");
        let left = world.sh("ls -d .out.sheep-* 2>/dev/null | wc -l").ok();
        assert_eq!(left, if signal == "KILL" { "1" } else { "0" }, "{signal}");
    }
    world.sh("sheep-images unpack big --to out && diff -r t out").ok();
    assert_eq!(world.sh("ls -A | grep sheep; true").ok(), "");
    // A full disk is an error that names the file, and nothing is left.
    world.sh("mkdir small; mount -t tmpfs -o size=10m none small").ok();
    world.sh("sheep-images unpack big --to small/out").fails(1, "No space left on device");
    assert_eq!(world.sh("ls -A small").ok(), "");
}

#[test]
fn an_ordinary_user_has_it_as_his_own_or_with_its_owners() {
    let world = World::user();
    let lower = tar()
        .block(Block::new(b"shadow", b'0').with(100, b"0000000\0").with(116, b"0000052\0").size(7))
        .content(b"secret\n")
        .block(Block::new(b"closed", b'5').with(100, b"0000000\0").with(108, b"0000041\0"))
        .file(b"closed/f", b"in a directory of mode 0")
        .block(Block::new(b"suid", b'0').with(100, b"0004755\0").with(108, b"0000144\0"))
        .block(Block::new(b"null", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
        .file(b"gone", b"x")
        .block(Block::new(b"far", b'0').with(108, b"7777776\0"))
        .pax(b'x', &[(b"SCHILY.xattr.user.kept", b"v")])
        .block(Block::new(b"old", b'5').with(116, b"0000012\0"))
        .file(b"old/f", b"1")
        .end();
    let upper = tar()
        .file(b".wh.gone", b"")
        .block(Block::new(b"closed", b'5').with(100, b"0000000\0").with(108, b"0000041\0"))
        .file(b"closed/g", b"2")
        .file(b"new", b"n")
        .hard(b"new2", b"new")
        .end();
    world.write("lower.tar", lower);
    world.write("upper.tar", upper);
    world.sh("umoci init --layout img; umoci new --image img:t; umoci raw add-layer --image img:t lower.tar; umoci raw add-layer --image img:t upper.tar; sheep-images import t img 2>/dev/null").ok();

    let outcome = world.sh("sheep-images unpack t --to own --print path");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr,
        "sheep-images: unpack t: as an unprivileged user, the image's owners and devices are not kept: all is yours\n"
    );
    let list = "find . -printf '%p %m %U:%G %n\\n' | sort";
    let me = world.sh("echo $(id -u):$(id -g)").ok();
    let own = ". 755 ME 4\n./closed 0 ME 2\n./far 644 ME 1\n./new 644 ME 2\n./new2 644 ME 2\n./old 755 ME 2\n./old/f 644 ME 1\n./shadow 0 ME 1\n./suid 4755 ME 1";
    assert_eq!(world.sh(&format!("cd own && {list} 2>/dev/null || true")).ok(), own.replace("ME", &me));
    assert_eq!(world.sh("chmod 700 own/closed own/shadow; cat own/closed/f own/closed/g own/shadow; getfattr --only-values -n user.kept own/old").ok(), "in a directory of mode 02secret\nv");
    world.sh("rm -r own").ok();

    let outcome = world.sh("sheep-images unpack t --to mapped --userns --print path");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "sheep-images: unpack t: could not be kept: the owner of 1 entry, 1 device\n");
    let inside = "unshare --map-root-user --map-auto sh -c";
    let mapped = ". 755 0:0 4\n./closed 0 33:0 2\n./closed/f 644 0:0 1\n./closed/g 644 0:0 1\n./far 644 0:0 1\n./new 644 0:0 2\n./new2 644 0:0 2\n./old 755 0:10 2\n./old/f 644 0:0 1\n./shadow 0 0:42 1\n./suid 4755 100:0 1";
    assert_eq!(world.sh(&format!("cd mapped && {inside} \"{list}\"")).ok(), mapped);
    // As podman, buildah and umoci have it.
    assert_eq!(world.sh("stat -c %U mapped mapped/shadow; first=$(grep ^sheeptest: /etc/subuid | cut -d: -f2); test $(stat -c %u mapped/suid) = $((first + 99)) && echo shifted").ok(), "sheeptest\nsheeptest\nshifted");
    assert_eq!(world.sh("ls -A | grep sheep; true").ok(), "");
    world.sh(&format!("{inside} 'rm -r mapped'")).ok();

    // Without ids there is advice, and nothing half-made.
    world
        .sh("PATH=$(dirname $(command -v sheep-images)); sheep-images unpack t --to x --userns")
        .fails(2, "/etc/subuid");
    world.sh("mkdir ro; chmod 555 ro; sheep-images unpack t --to ro/x").fails(1, "/ro: Permission denied");
    world.sh("sheep-images export t --format rootfs -o ro/x").fails(1, "/ro: Permission denied");
    world.sh("mkdir full; touch full/f; sheep-images unpack t --to full --userns").fails(4, "it is not empty");
    // Where no user namespace can be had, what is open to its owner is unpacked all the same.
    let nowhere = "unshare -U --map-user=1000 --map-group=1000 --keep-caps sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all sheep-images unpack IMAGE --to no-namespace --print path'";
    world.sh(&nowhere.replace("IMAGE", "t")).fails(1, "Permission denied");
    world.sh("mkdir plain; echo f > plain/f; sheep-images import plain plain").ok();
    let outcome = world.sh(&nowhere.replace("IMAGE", "plain"));
    assert_eq!(
        (outcome.code, world.sh("cat no-namespace/f; ls -A | grep sheep; true").ok().as_str()),
        (0, "f"),
        "{outcome:?}"
    );
    // Nobody reads on.
    world.sh("sheep-images export t --format rootfs | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}").ok();
    // The child that did the work is ended with its parent.
    world.sh("mkdir t; head -c 100M /dev/urandom > t/f; sheep-images import big t").ok();
    for options in ["", "--userns"] {
        let mut child = world.start(&format!("exec sheep-images unpack big --to out {options}"));
        let begun = Instant::now();
        while world.sh("ls -d .out.sheep-* 2>/dev/null").code != 0 && begun.elapsed() < Duration::from_secs(20) {}
        world.sh(&format!("kill {}", child.id()));
        if child.wait().unwrap().success() {
            world.sh("rm -r out").ok();
            continue;
        }
        let begun = Instant::now();
        while world.sh("ls -d .out.sheep-* 2>/dev/null").code == 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{options}: something is left");
        }
        assert!(!world.dir.join("out").exists());
    }
}

#[test]
fn in_a_directory_that_hands_on_its_group() {
    let world = World::user();
    world.sh("mkdir plain shared; echo f > plain/f; sheep-images import t plain").ok();
    let shared = world.dir.join("shared");
    std::os::unix::fs::chown(&shared, None, Some(65533)).unwrap();
    std::fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
    world.sh("sheep-images unpack t --to shared/out").ok();
    assert_eq!(world.sh("cat shared/out/f; ls -A shared").ok(), "f\nout");
    world.sh("sheep-images unpack t --to shared/x --userns").fails(2, "hands on its group");
    world.sh("sheep-images export t --format rootfs -o shared/t.tar && tar -tf shared/t.tar").ok();
}
