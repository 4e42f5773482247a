//! What tar and the compressors write, unpacked as they unpack it.

use crate::harness::World;
use crate::maker::{Block, tar};

/// Every kind of entry and attribute that a tar archive can carry.
const TREE: &str = r#"
    mkdir -p tree/d/e tree/empty tree/ro && cd tree
    echo a > a && ln a d/hard && ln -s ../a d/soft && ln d/soft d/hard-to-soft && ln -s /nowhere dangling
    mkfifo pipe && mknod null c 1 3 && mknod blk b 7 99
    truncate -s 5M sparse && echo end >> sparse && truncate -s 3M hole && truncate -s 1M start && echo x | dd of=start conv=notrunc status=none
    for n in $(seq 0 2 80); do echo $n | dd of=many bs=65536 seek=$n conv=notrunc status=none; done
    cp /bin/true suid && chown 1234:4321 suid && chmod 4711 suid && cp /bin/true sgid && chmod 2755 sgid && chmod 1777 d
    chown -h 12:34 d/soft && chown 77:88 d/e
    head -c 3000000 /dev/urandom > big && : > nothing && chmod 000 nothing
    touch -d '1999-01-01 00:00:00.123456789' a && touch -h -d '1960-05-06 07:08:09' d/soft && touch -d '2099-01-01' big
    long=$(printf 'n%.0s' $(seq 200)); mkdir -p $long/$long && echo long > $long/$long/$long && ln -s $long/$long/$long longlink && ln $long/$long/$long hardlong
    printf x > $'new\nline' && printf x > $'latin\xe9' && printf x > ' blank ' && printf x > -dash && printf x > 'back\slash'
    chmod 0555 ro && touch -d '2001-02-03 04:05:06' d/e d ro empty .
"#;

/// Attributes that only the pax format carries.
const ATTRIBUTES: &str = r#"
    cd tree
    setfattr -n user.k -v v a && setfattr -n trusted.k -v 0x000a0d3d25ff big && setfattr -n user.'a=b%c' -v x big && setfattr -n user.empty d
    setfattr -h -n trusted.link -v l dangling && setfattr -n trusted.dev -v d null && setfattr -n trusted.pipe -v p pipe
    cp /bin/true cap && setcap cap_net_raw,cap_setpcap,cap_kill,cap_dac_override+ep cap
    setfacl -m u:33:rwx,g:44:r-x a && setfacl -d -m u:33:rx d && setfacl -m u:55:--- d
    touch -d '2001-02-03 04:05:06' d .
"#;

/// Asserts that the image `t` holds what tar unpacked into `want`.
#[track_caller]
fn assert_same(world: &World, what: &str) {
    let layer = world.layer("t").display().to_string();
    let rsync = format!("rsync -aHAXn --delete --checksum --itemize-changes want/ {layer}/");
    assert_eq!(world.sh(&rsync).ok(), "", "{what}");
    // rsync sees whole seconds of some, and neither links' modes nor blocks.
    let list = "find . -printf '%P %y %m %U %G %s %n %l %T@\\n' | sort";
    let (want, got) = (world.sh(&format!("cd want && {list}")).ok(), world.sh(&format!("cd {layer} && {list}")).ok());
    assert_eq!(got, want, "{what}");
    let xattrs = "find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex 2>/dev/null";
    let (want, got) =
        (world.sh(&format!("cd want && {xattrs}")).ok(), world.sh(&format!("cd {layer} && {xattrs}")).ok());
    assert_eq!(got, want, "{what}");
}

#[test]
fn every_format_of_gnu_tar() {
    let world = World::root();
    world.sh(TREE).ok();
    for format in ["gnu", "oldgnu", "posix", "ustar", "v7"] {
        // The older formats cannot hold the long names; v7 no devices either.
        let without = match format {
            "ustar" => {
                "--exclude='*nnnnnnnn*' --exclude=longlink --exclude=hardlong --exclude=soft --exclude=hard-to-soft"
            }
            "v7" => {
                "--exclude='*nnnnnnnn*' --exclude=longlink --exclude=hardlong --exclude=soft --exclude=hard-to-soft --exclude=null --exclude=blk --exclude=pipe"
            }
            _ => "",
        };
        world.sh(&format!("rm -rf want && mkdir want && tar -C tree --format={format} {without} -cf t.tar . && tar -C want -xpf t.tar")).ok();
        world.sh("sheep-images import t t.tar").ok();
        assert_same(&world, format);
        world.sh("sheep-images rm t").ok();
    }
    world.assert_empty();
}

#[test]
fn sparse_files_keep_their_holes() {
    let world = World::root();
    world.sh(TREE).ok();
    for format in [
        "--format=gnu",
        "--format=oldgnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix --sparse-version=1.0",
    ] {
        world
            .sh(&format!(
                "rm -rf want && mkdir want && tar -C tree {format} --sparse -cf t.tar . && tar -C want -xpf t.tar"
            ))
            .ok();
        world.sh("sheep-images import t t.tar").ok();
        assert_same(&world, format);
        let layer = world.layer("t").display().to_string();
        let blocks = "stat -c '%n %b' sparse hole start many";
        assert_eq!(
            world.sh(&format!("cd {layer} && {blocks}")).ok(),
            world.sh(&format!("cd want && {blocks}")).ok(),
            "{format}"
        );
        world.sh("sheep-images rm t").ok();
    }
}

#[test]
fn attributes_in_pax_archives() {
    let world = World::root();
    world.sh(TREE).ok();
    world.sh(ATTRIBUTES).ok();
    let flags = "--xattrs --xattrs-include='*' --acls --numeric-owner --format=posix";
    world.sh(&format!("mkdir want && tar -C tree {flags} -cf t.tar . && tar -C want {flags} -xpf t.tar")).ok();
    assert_eq!(world.sh("sheep-images import t t.tar >/dev/null").stderr, "");
    assert_same(&world, "attributes");
}

#[test]
fn every_compression_found_by_content() {
    let world = World::root();
    world.sh("mkdir tree && cp -r /usr/share/doc/bash /bin/true tree/ && tar -C tree -cf plain.tar . && mkdir want && tar -C want -xpf plain.tar").ok();
    world.sh("gzip -k < plain.tar > a && zstd -q < plain.tar > b && xz < plain.tar > c && bzip2 < plain.tar > d && cp plain.tar e").ok();
    // Two members of gzip, two frames of zstd, cut anywhere.
    world.sh("(head -c 7777 plain.tar | gzip -1; tail -c +7778 plain.tar | gzip -9) > f").ok();
    world.sh("(head -c 7777 plain.tar | zstd -q; tail -c +7778 plain.tar | zstd -q) > g").ok();
    let plain = world.sh("sha256sum < plain.tar | cut -d' ' -f1").ok();
    for (file, media) in
        [("a", "+gzip"), ("b", "+zstd"), ("c", ""), ("d", ""), ("e", ""), ("f", "+gzip"), ("g", "+zstd")]
    {
        // The name says the opposite, and stdin says nothing.
        world.sh(&format!("mv {file} x.tar.bz2 && sheep-images import t - < x.tar.bz2 > doc")).ok();
        assert_same(&world, file);
        let fields = world.sh("jq -r '.image.layers[] | .mediaType, .diffId, .digest, .size' doc").ok();
        let fields: Vec<&str> = fields.lines().collect();
        assert_eq!(fields[0], format!("application/vnd.oci.image.layer.v1.tar{media}"));
        assert_eq!(fields[1], format!("sha256:{plain}"));
        // gzip and zstd are kept as they came, the others without compression.
        let stored = if media.is_empty() { "plain.tar" } else { "x.tar.bz2" };
        assert_eq!(fields[2], format!("sha256:{}", world.sh(&format!("sha256sum < {stored} | cut -d' ' -f1")).ok()));
        assert_eq!(fields[3], world.sh(&format!("stat -c %s {stored}")).ok());
        world.sh("sheep-images rm t").ok();
    }
    world.assert_empty();
}

#[test]
fn cut_and_followed_streams() {
    let world = World::root();
    world.sh("head -c 300000 /dev/urandom > f && tar -cf plain.tar f").ok();
    for program in ["gzip", "zstd -q", "xz", "bzip2"] {
        world.sh(&format!("{program} < plain.tar > whole")).ok();
        for (what, make) in [
            ("cut", "head -c 100000 whole > x"),
            ("cut at its end", "head -c -4 whole > x"),
            ("followed", "(cat whole; echo and more of it) > x"),
        ] {
            world.sh(make).ok();
            let outcome = world.sh("sheep-images import x x");
            assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1), "{program} {what}: {}", outcome.stderr);
        }
        world.sh("cp whole x && dd if=/dev/urandom of=x bs=1 seek=150000 count=64 conv=notrunc status=none").ok();
        let outcome = world.sh("sheep-images import x x");
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1), "{program} damaged: {}", outcome.stderr);
    }
    world.assert_empty();
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let world = World::root();
    world
        .sh("echo x > f && tar -cJf x.tar f && tar -cjf b.tar f && mkdir bin && cp $(command -v sheep-images) bin/")
        .ok();
    world.sh("PATH=$PWD/bin; sheep-images import x x.tar").fails(1, "install the package xz-utils");
    world.sh("PATH=$PWD/bin; sheep-images import x b.tar").fails(1, "install the package bzip2");
}

#[test]
fn pax_records_and_odd_members() {
    let world = World::root();
    let archive = tar()
        // Sub-second and negative times, ids beyond the header's octal digits, a value that holds newlines.
        .pax(
            b'x',
            &[
                (b"mtime", b"-1.5"),
                (b"uid", b"3000000"),
                (b"gid", b"4000000000"),
                (b"SCHILY.xattr.user.x", b"a\nb\0c=d"),
            ],
        )
        .file(b"pax", b"")
        .block(Block::new(b"base256", b'0').with(136, &[0xff; 12]).with(108, b"\x80\0\0\0\0\x20\0\0"))
        .pax(b'g', &[(b"mtime", b"100")])
        .file(b"global", b"")
        .pax(b'x', &[(b"mtime", b"200")])
        .file(b"local", b"")
        .pax(b'x', &[(b"mtime", b"")])
        .file(b"taken-back", b"")
        .pax(b'x', &[(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"), (b"SCHILY.xattr.user.overlay.opaque", b"y")])
        .dir(b"marked")
        .file(b"no/parents/here", b"x")
        .hard(b"forward", b"later")
        .file(b"later", b"linked")
        .end();
    world.write("t.tar", archive);
    let outcome = world.sh("sheep-images import t t.tar >/dev/null");
    assert_eq!(outcome.stderr, "sheep-images: import t: could not be kept: 2 extended attributes\n");
    let layer = world.layer("t").display().to_string();
    let sh = |script: &str| world.sh(&format!("cd {layer} && {script}")).ok();
    assert_eq!(
        sh("stat -c '%n %u %g %.1Y' pax base256 global local taken-back"),
        "pax 3000000 4000000000 -1.5\nbase256 2097152 0 -1.0\nglobal 0 0 100.0\nlocal 0 0 200.0\ntaken-back 0 0 1.0"
    );
    assert_eq!(sh("getfattr --only-values -n user.x pax | od -An -c | tr -d ' '"), "a\\nb\\0c=d");
    assert_eq!(sh("getfattr -d -m - marked"), "");
    assert_eq!(sh("stat -c '%a %u' no no/parents ."), "755 0\n755 0\n755 0");
    assert_eq!(sh("cat forward; stat -c %h forward"), "linked2");
}
