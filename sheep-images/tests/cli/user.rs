//! As an unprivileged user.

use crate::harness::World;
use crate::maker::{Block, tar};

#[test]
fn what_a_user_cannot_keep_is_said_in_one_line() {
    let world = World::user();
    let archive = tar()
        .block(Block::new(b"closed", b'5').with(100, b"0000000\0"))
        .file(b"closed/f", b"in a directory of mode 0")
        .block(Block::new(b"ro", b'5').with(100, b"0000555\0"))
        .block(Block::new(b"ro/deep", b'5').with(100, b"0000500\0"))
        .file(b"ro/deep/f", b"x")
        .block(Block::new(b"null", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
        .block(Block::new(b"pipe", b'6'))
        .pax(
            b'x',
            &[
                (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
                (b"SCHILY.xattr.user.kept", b"v"),
            ],
        )
        .block(Block::new(b"suid", b'0').with(100, b"0004711\0"))
        .file(b".wh.gone", b"")
        .end();
    world.write("t.tar", archive);
    let outcome = world.sh("sheep-images import t t.tar >/dev/null");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr,
        "sheep-images: import t: as an unprivileged user, could not be kept: the owners of 8 entries, 1 device, 1 extended attribute\n"
    );
    let layer = world.layer("t").display().to_string();
    let list = world.sh(&format!("cd {layer} && stat -c '%n %U %a' closed ro ro/deep ro/deep/f pipe suid && ls && getfattr --only-values -n user.kept suid && stat -c '%F %t%T' gone")).ok();
    assert_eq!(
        list,
        "closed sheeptest 0\nro sheeptest 555\nro/deep sheeptest 500\nro/deep/f sheeptest 644\npipe sheeptest 644\nsuid sheeptest 4711\nclosed\ngone\npipe\nro\nsuid\nvcharacter special file 00"
    );
    // Nobody else reaches a setuid file there.
    assert_eq!(world.sh("stat -c %a data data/layers data/layers/sha256 data/images").ok(), "700\n700\n700\n700");
    world.sh("sheep-images rm t").ok();
    world.assert_empty();
}

#[test]
fn the_whole_way() {
    let world = World::user();
    let outcome = world.sh("sheep-images bootstrap --print reference");
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.lines().count()), (0, "minimal:latest\n", 1));
    let layer = world.layer("minimal").display().to_string();
    assert_eq!(
        world.sh(&format!("unshare -Ur chroot {layer} /bin/sh -c 'id -u; echo a b | cut -d\" \" -f2'")).ok(),
        "0\nb"
    );
    assert_eq!(world.sh("skopeo inspect oci:data/images:minimal:latest | jq -r .Os").ok(), "linux");
    // Left by a crash, with directories that keep even their owner out.
    world.sh("mkdir -p data/layers/sha256/.tmp-x/a/b && touch data/layers/sha256/.tmp-x/a/b/c && chmod 000 data/layers/sha256/.tmp-x/a/b && chmod 500 data/layers/sha256/.tmp-x/a && chmod 000 data/layers/sha256/.tmp-x").ok();
    world.sh("sheep-images rm minimal").ok();
    world.assert_empty();
}

#[test]
fn root_of_a_user_namespace() {
    let world = World::user();
    let archive = tar().block(Block::new(b"f", b'0').with(108, b"0000041\0")).file(b"g", b"").end();
    world.write("t.tar", archive);
    let outcome = world.sh("unshare -Ur sheep-images import t t.tar >/dev/null");
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (0, "sheep-images: import t: could not be kept: the owner of 1 entry\n")
    );
}
