//! Archives that want out. Every one is refused with one line, or unpacked without harm; a directory outside is compared
//! before and after, and of what is refused nothing is left.

use crate::harness::World;
use crate::maker::{Block, Maker, tar};

/// What must come of an archive.
enum Fate {
    /// Exit code 1 and one line with this text.
    Refused(&'static str),
    /// It is unpacked, and harms nobody.
    Harmless,
}
use Fate::{Harmless, Refused};

#[test]
fn none_gets_out() {
    let world = World::root();
    world
        .sh("mkdir canary && echo alive > canary/c && chmod 600 canary/c && mkdir canary/d && chmod 700 canary/d")
        .ok();
    world.sh("sheep-images ls").ok();
    let canary = world.dir.join("canary").display().to_string().into_bytes();
    let up: Vec<u8> = [&b"../".repeat(12)[..], &canary[1..]].concat();
    let at = |rest: &str| [&canary, rest.as_bytes()].concat();
    let evil = b"evil";
    let cases: Vec<(&str, Vec<u8>, Fate)> = vec![
        ("dots", tar().file(b"../x", evil).end(), Refused("climbs")),
        ("dots inside", tar().dir(b"a").file(b"a/../../x", evil).end(), Refused("climbs")),
        ("dots that stay", tar().dir(b"a").file(b"a/../x", evil).end(), Refused("climbs")),
        ("dots alone", tar().dir(b"..").end(), Refused("climbs")),
        ("dots up to the canary", tar().file(&up, evil).end(), Refused("climbs")),
        ("absolute", tar().file(&at("/c"), evil).end(), Refused("absolute")),
        ("the absolute root", tar().dir(b"/").end(), Refused("absolute")),
        ("dots in a pax path", tar().pax(b'x', &[(b"path", b"../x")]).file(b"fine", evil).end(), Refused("climbs")),
        ("dots in a global path", tar().pax(b'g', &[(b"path", b"../x")]).file(b"fine", evil).end(), Refused("climbs")),
        ("dots in a long name", tar().long(b'L', b"../x").file(b"fine", evil).end(), Refused("climbs")),
        ("dots in the prefix", tar().block(Block::new(b"x", b'0').with(345, b"..")).end(), Refused("climbs")),
        (
            "dots in a sparse name",
            tar()
                .pax(b'x', &[(b"GNU.sparse.size", b"0"), (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.name", b"../x")])
                .file(b"fine", b"")
                .end(),
            Refused("climbs"),
        ),
        ("a NUL in a name", tar().pax(b'x', &[(b"path", b"a\0b")]).file(b"fine", evil).end(), Refused("NUL")),
        ("no name", tar().file(b"", evil).end(), Refused("empty")),
        ("root is a link", tar().symlink(b"./", &canary).file(b"c", evil).end(), Refused("root can only be")),
        ("root is a file", tar().block(Block::new(b".", b'0')).end(), Refused("root can only be")),
        (
            "write through an absolute link",
            tar().symlink(b"l", &canary).file(b"l/c", evil).end(),
            Refused("is a symbolic link"),
        ),
        (
            "make a directory through an absolute link",
            tar().symlink(b"l", &canary).dir(b"l/new").end(),
            Refused("is a symbolic link"),
        ),
        (
            "write through a climbing link",
            tar().symlink(b"l", &up).file(b"l/c", evil).end(),
            Refused("leads out of the root"),
        ),
        (
            "write through links of links",
            tar().symlink(b"a", b"b/..").dir(b"b").symlink(b"b/up", b"../..").file(b"b/up/x", evil).end(),
            Refused("leads out of the root"),
        ),
        (
            "a loop of links",
            tar().symlink(b"a", b"b").symlink(b"b", b"a").file(b"a/x", evil).end(),
            Refused("too many"),
        ),
        ("a file in place of a link", tar().symlink(b"l", &at("/c")).file(b"l", evil).end(), Harmless),
        ("a directory in place of a link", tar().symlink(b"l", &at("/d")).dir(b"l").end(), Harmless),
        (
            "modes through a link",
            tar().symlink(b"l", &at("/d")).block(Block::new(b"l", b'5').with(100, b"0000777\0")).end(),
            Harmless,
        ),
        (
            "a directory that becomes a link",
            tar().dir(b"d").file(b"d/a", b"1").symlink(b"d", &canary).file(b"d/c", evil).end(),
            Refused("is a symbolic link"),
        ),
        (
            "a directory whose attributes come when it is a link",
            tar().block(Block::new(b"d", b'5').with(100, b"0000777\0")).symlink(b"d", &at("/d")).end(),
            Harmless,
        ),
        ("hard link up", tar().hard(b"h", b"../../canary/c").file(b"h", evil).end(), Refused("climbs")),
        ("hard link to absolute", tar().hard(b"h", &at("/c")).end(), Refused("absolute")),
        (
            "hard link through a link",
            tar().symlink(b"l", &canary).hard(b"h", b"l/c").end(),
            Refused("which the archive does not have"),
        ),
        (
            "hard link through a climbing link",
            tar().symlink(b"l", &up).hard(b"h", b"l/c").end(),
            Refused("leads out of the root"),
        ),
        (
            "hard link to a link, then written",
            tar().symlink(b"l", &at("/c")).hard(b"h", b"l").file(b"h", evil).end(),
            Harmless,
        ),
        (
            "hard link in a pax record",
            tar().pax(b'x', &[(b"linkpath", b"../../canary/c")]).hard(b"h", b"fine").end(),
            Refused("climbs"),
        ),
        ("hard link to nothing", tar().hard(b"h", b"nosuch").end(), Refused("which the archive does not have")),
        ("hard link to a directory", tar().dir(b"d").hard(b"h", b"d").end(), Refused("hard link to 'd'")),
        ("hard link to the root", tar().hard(b"h", b".").end(), Refused("root")),
        ("hard link to itself", tar().file(b"f", b"1").hard(b"f", b"./f").end(), Harmless),
        ("FIFO, then written", tar().block(Block::new(b"f", b'6')).file(b"f", evil).end(), Harmless),
        (
            "device, then written",
            tar().block(Block::new(b"f", b'3').with(329, b"0000001\0").with(337, b"0000005\0")).file(b"f", evil).end(),
            Harmless,
        ),
        ("whiteout of dot", tar().file(b".wh..", b"").end(), Refused("which is no name")),
        ("whiteout of dots", tar().file(b".wh...", b"").end(), Refused("which is no name")),
        ("whiteout of nothing", tar().dir(b"d").file(b"d/.wh.", b"").end(), Refused("which is no name")),
        ("whiteout through a link", tar().symlink(b"l", &canary).file(b"l/.wh.c", b"").end(), Harmless),
        ("opaque through a link", tar().symlink(b"l", &up).file(b"l/.wh..wh..opq", b"").end(), Harmless),
        (
            "opaque through a link inside",
            tar().dir(b"d").symlink(b"l", b"d").file(b"l/.wh..wh..opq", b"").end(),
            Harmless,
        ),
        ("a file as a directory", tar().file(b"f", b"").file(b"f/x", evil).end(), Refused("is no directory")),
        ("a name too long", tar().long(b'L', &[b'n'; 300]).file(b"x", b"").end(), Refused("name too long")),
        ("a path too long", tar().long(b'L', &b"nnnnnnnn/".repeat(600)).file(b"x", b"").end(), Refused("are refused")),
        ("a path too deep", tar().long(b'L', &b"d/".repeat(1500)).file(b"x", b"").end(), Refused("are refused")),
        (
            "an owner that means nobody",
            tar().block(Block::new(b"f", b'0').with(108, b"\x80\0\0\0\xff\xff\xff\xff")).end(),
            Refused("out of range"),
        ),
        ("a negative size", tar().block(Block::new(b"f", b'0').with(124, &[0xff; 12])).end(), Refused("negative size")),
        (
            "a size beyond the archive",
            tar().block(Block::new(b"f", b'0').with(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")).end(),
            Refused("max-bytes"),
        ),
        ("a letter in a number", tar().block(Block::new(b"f", b'0').with(100, b"00x0644\0")).end(), Refused("mode")),
        ("an unknown type", tar().block(Block::new(b"f", b'Q')).end(), Refused("type 'Q' is not known")),
        ("a continued volume", tar().block(Block::new(b"f", b'M')).end(), Refused("join the volumes")),
        (
            "a directory with content",
            tar().block(Block::new(b"d/", b'0').size(512)).content(&[1; 512]).end(),
            Refused("directory by its name"),
        ),
        ("a malformed pax record", tar().raw_pax(b'x', b"99 path=x\n").file(b"f", b"").end(), Refused("malformed pax")),
        (
            "a pax size that is none",
            tar().pax(b'x', &[(b"size", b"-1")]).file(b"f", b"").end(),
            Refused("pax record 'size=-1'"),
        ),
        (
            "a pax header without a member",
            tar().pax(b'x', &[(b"a", b"b")]).end(),
            Refused("where a member should follow"),
        ),
        (
            "a huge pax header",
            tar().block(Block::new(b"pax", b'x').with(124, b"77777777777\0")).end(),
            Refused("are refused"),
        ),
        (
            "sparse regions that overlap",
            sparse(&[(0, 1024), (512, 512)], 2048).content(&[1; 1536]).end(),
            Refused("overlap"),
        ),
        ("sparse beyond its size", sparse(&[(0, 1024)], 512).content(&[1; 1024]).end(), Refused("ends after")),
        ("sparse of another length", sparse(&[(0, 512)], 2048).content(&[1; 1024]).end(), Refused("the content has")),
        (
            "sparse at the end of the world",
            sparse(&[(u64::MAX - 100, 512)], u64::MAX).content(&[1; 512]).end(),
            Refused("ends nowhere"),
        ),
        (
            "sparse that is larger than a file can be",
            sparse(&[(0, 512)], u64::MAX / 2).content(&[1; 512]).end(),
            Refused("set its size"),
        ),
        (
            "an unknown sparse format",
            tar().pax(b'x', &[(b"GNU.sparse.major", b"2")]).file(b"f", b"").end(),
            Refused("format 2.0"),
        ),
        (
            "a sparse map without an end",
            tar()
                .pax(b'x', &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
                .file(b"f", &[b'1'; 2048])
                .end(),
            Refused("sparse map"),
        ),
        (
            "a sparse map of a billion regions",
            tar()
                .pax(b'x', &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
                .file(b"f", &[&b"1000000000\n1\n"[..], &[0; 600]].concat())
                .end(),
            Refused("regions"),
        ),
    ];
    check(&world, cases);
}

#[test]
fn broken_archives() {
    let world = World::root();
    world.sh("mkdir canary && sheep-images ls").ok();
    let whole = tar().dir(b"d").file(b"d/f", &[7; 3000]).end();
    let mut cases: Vec<(&str, Vec<u8>, Fate)> = vec![
        ("empty", vec![], Refused("empty")),
        ("text", b"this is no archive".to_vec(), Refused("cut short")),
        ("long text", b"this is no archive ".repeat(100), Refused("not a tar archive")),
        ("no end mark", whole[..whole.len() - 1024].to_vec(), Refused("without its end mark")),
        ("one zero block", whole[..whole.len() - 512].to_vec(), Harmless),
        ("an end mark and padding", [&whole[..], &[0; 9216]].concat(), Harmless),
        ("something follows", [&whole[..], b"x"].concat(), Refused("something follows")),
        ("an archive follows", [&whole[..], &whole].concat(), Refused("something follows")),
        ("one zero block, then more", [&whole[..whole.len() - 512], &whole].concat(), Refused("something follows")),
        ("two zero blocks only", vec![0; 1024], Harmless),
    ];
    for cut in [100, 512 + 100, 1024, 1024 + 1, 2000, 1024 + 3000] {
        cases.push(("cut", whole[..cut].to_vec(), Refused("cut short")));
    }
    let mut flipped = whole.clone();
    flipped[512 + 10] ^= 1;
    cases.push(("a flipped bit in a header", flipped, Refused("no valid header at byte 512")));
    check(&world, cases);
}

#[test]
fn limits() {
    let world = World::root();
    world.write("t.tar", tar().dir(b"a").file(b"a/b", &[1; 2000]).file(b"a/c", b"").end());
    world.sh("sheep-images import --max-entries 2 x t.tar").fails(1, "--max-entries");
    world.sh("sheep-images import --max-bytes 1999 x t.tar").fails(1, "--max-bytes");
    world.assert_empty();
    world.sh("sheep-images import --max-bytes 2000 --max-entries 3 x t.tar").ok();
    world.sh("sheep-images rm x").ok();
    world
        .sh("sheep-images import --max-depth 1 x t.tar")
        .fails(1, "it is 2 deep; more than 1 is refused (--max-depth)");
    world.assert_empty();
    world.sh("sheep-images import --max-depth 2 x t.tar && sheep-images rm x").ok();
    for bad in ["0", "1025", "-1", "x"] {
        assert_eq!(world.sh(&format!("sheep-images import --max-depth={bad} x t.tar")).code, 2, "{bad}");
    }
    // It is the place that counts, wherever the name leads.
    world.write("t.tar", tar().dir(b"a").dir(b"a/b").symlink(b"l", b"/a/b/").file(b"l/f", b"").end());
    world.sh("sheep-images import --max-depth 2 x t.tar").fails(1, "it is 3 deep");
    world.sh("sheep-images import --max-depth 3 x t.tar").ok();
    // The directories that a name brings with it are entries, too: this archive is two kilobytes.
    world.write("t.tar", tar().long(b'L', &[&b"d/".repeat(1000)[..], b"f"].concat()).file(b"f", b"").end());
    world.sh("sheep-images import --max-entries 1000 y t.tar").fails(1, "--max-entries");
    world.sh("sheep-images import --max-entries 1001 y t.tar && sheep-images rm y").ok();
    // A bomb: a gigabyte of nothing in a megabyte.
    world.sh("head -c 1G /dev/zero > zeros && tar -cz zeros > bomb.tgz && rm zeros").ok();
    world.sh("sheep-images import --max-bytes 1000000 bomb bomb.tgz").fails(1, "--max-bytes");
    world.sh("sheep-images rm x").ok();
    world.assert_empty();
}

/// What one reader sees and another does not is a way past the one that looks: the list is GNU tar's.
#[test]
fn the_same_members_as_gnu_tar() {
    let world = World::root();
    let hidden = tar().file(b"hidden", b"smuggled").0;
    let blocks = hidden.len().to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // The header says the content is empty, the pax record that it is as long as the archive within (CVE-2025-62518).
        (
            "pax size over a size of zero",
            tar()
                .pax(b'x', &[(b"size", blocks.as_bytes())])
                .file(b"outer", b"")
                .content(&hidden)
                .file(b"last", b"")
                .end(),
        ),
        (
            "pax size under a larger size",
            tar()
                .pax(b'x', &[(b"size", b"0")])
                .block(Block::new(b"outer", b'0').size(hidden.len()))
                .content(&hidden)
                .end(),
        ),
        (
            "pax size over a larger size",
            tar()
                .pax(b'x', &[(b"size", blocks.as_bytes())])
                .block(Block::new(b"outer", b'0').size(512))
                .content(&hidden)
                .file(b"last", b"")
                .end(),
        ),
        (
            "the last of two sizes",
            tar()
                .pax(b'x', &[(b"size", b"0"), (b"size", blocks.as_bytes())])
                .file(b"outer", b"")
                .content(&hidden)
                .end(),
        ),
        (
            "a pax size, then a long name",
            tar()
                .pax(b'x', &[(b"size", blocks.as_bytes())])
                .long(b'L', b"long")
                .file(b"outer", b"")
                .content(&hidden)
                .end(),
        ),
        (
            "a size on a hard link",
            tar().file(b"f", b"1").block(Block::new(b"h", b'1').link(b"f").size(512)).file(b"g", b"").end(),
        ),
        (
            "a path in pax and as long name",
            tar().long(b'L', b"long").pax(b'x', &[(b"path", b"pax")]).file(b"short", b"").end(),
        ),
        (
            "an old magic with a prefix",
            tar().block(Block::new(b"x", b'0').with(257, b"ustar\0\0\0").with(345, b"pre")).end(),
        ),
        (
            "a GNU magic with a prefix",
            tar().block(Block::new(b"x", b'0').with(257, b"ustar  \0").with(345, b"0")).end(),
        ),
        ("no magic", tar().block(Block::new(b"x", b'0').with(257, &[0; 8]).with(345, b"pre")).end()),
        ("a name of a hundred bytes", tar().file(&[b'n'; 100], b"").end()),
        ("duplicates", tar().file(b"a", b"1").file(b"a", b"22").file(b"./a", b"333").end()),
        ("a volume label", tar().block(Block::new(b"label", b'V')).file(b"a", b"").end()),
        ("a contiguous file", tar().block(Block::new(b"a", b'7').size(2)).content(b"hi").end()),
        ("the oldest type", tar().block(Block::new(b"a", 0).size(2)).content(b"hi").block(Block::new(b"d/", 0)).end()),
    ];
    for (what, archive) in cases {
        world.write("a.tar", &archive);
        world.sh("rm -rf gnu && mkdir gnu && tar -C gnu -xf a.tar 2>/dev/null").ok();
        let theirs = world.sh("cd gnu && find . -printf '%p %y %s\\n' | grep -v ' d ' | sort").ok();
        world.sh("sheep-images import a a.tar").ok();
        let layer = world.layer("a");
        let ours =
            world.sh(&format!("cd {} && find . -printf '%p %y %s\\n' | grep -v ' d ' | sort", layer.display())).ok();
        assert_eq!(ours, theirs, "{what}");
        world.sh("sheep-images rm a").ok();
    }
}

/// Archives with every feature and a few bytes changed: whatever they have become, nothing outside is touched, and the
/// reader neither panics nor hangs.
#[test]
fn mutations() {
    use sheep_images::cli::LimitArgs;
    use sheep_images::scratch::Scratch;
    use sheep_images::stream::{Intake, Known, Stream};
    use sheep_images::unpack;

    let world = World::root();
    world.sh("mkdir canary out && echo alive > canary/c && mount -t tmpfs tmpfs out").ok();
    let list = "find canary out -printf '%p %y %m %s\\n'; cat canary/c; ls -A; true";
    let before = world.sh(list).ok();
    let map: [(&[u8], &[u8]); 3] =
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"4096")];
    let base = tar()
        .dir(b"./")
        .dir(b"a/")
        .file(b"a/f", &[b'x'; 700])
        .symlink(b"l", b"../../../../canary")
        .symlink(b"in", b"a")
        .file(b"in/g", b"through a link")
        .hard(b"h", b"a/f")
        .long(b'L', &[b"long/".repeat(30), b"x".to_vec()].concat())
        .file(b"short", b"1")
        .pax(b'x', &[(b"path", b"p/q"), (b"mtime", b"1.5"), (b"size", b"3"), (b"SCHILY.xattr.user.k", b"v\n1")])
        .file(b"r", b"abc")
        .pax(b'x', &map)
        .file(b"s", &[b"2\n0\n512\n1024\n512\n".to_vec(), vec![0; 495], vec![7; 1024]].concat())
        .block(
            Block::new(b"old", b'S')
                .size(512)
                .with(257, b"ustar  \0")
                .with(386, b"00000001000\0")
                .with(398, b"00000001000\0")
                .with(483, b"00000004000\0"),
        )
        .content(&[9; 512])
        .file(b"a/.wh.f", b"")
        .file(b"a/.wh..wh..opq", b"")
        .block(Block::new(b"dev", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
        .block(Block::new(b"fifo", b'6'))
        .end();
    let limits = LimitArgs { max_entries: 1000, max_bytes: 1 << 20, ..LimitArgs::default() };
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    let mut unpacked = 0;
    for round in 0..2000 {
        let mut archive = base.clone();
        if round > 0 {
            for _ in 0..=random(3) {
                let at = random(archive.len());
                archive[at] = [b'/', b'.', 0, b'1', b'2', b'5', b'9', 0xff, b'x'][random(9)];
            }
            if random(4) == 0 {
                archive.truncate(random(archive.len()));
            }
            // Without good checksums few would get past the first look.
            for block in archive.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let block: &mut [u8; 512] = block.try_into().expect("a block");
                    *block = Block(*block).summed();
                }
            }
        }
        let root = Scratch::new(&world.dir.join("out")).expect("scratch");
        let result = unpack::receive(
            Stream::start(std::io::Cursor::new(archive), Intake::of_the_store(Known::Nothing, limits.max_ratio)),
            root.fd(),
            limits,
        );
        assert!(round > 0 || result.is_ok(), "{result:?}");
        unpacked += u32::from(result.is_ok());
        root.delete().expect("delete");
    }
    assert!((200..1900).contains(&unpacked), "{unpacked} were unpacked; the test has lost its point");
    assert_eq!(world.sh(list).ok(), before);
    world.sh("umount out").ok();
}

#[track_caller]
fn check(world: &World, cases: Vec<(&str, Vec<u8>, Fate)>) {
    let outside = "find canary -printf '%p %y %m %U %G %s %T@ %l\\n' | sort; cat canary/* 2>/dev/null; ls -A; true";
    world.write("x.tar", b"");
    let (canary, store) = (world.sh(outside).ok(), world.snapshot());
    for (what, archive, fate) in cases {
        world.write("x.tar", &archive);
        let outcome = world.sh("sheep-images import x x.tar >/dev/null");
        assert_eq!(world.sh(outside).ok(), canary, "{what} got out");
        match fate {
            Refused(text) => {
                assert_eq!(outcome.code, 1, "{what}: {}", outcome.stderr);
                assert!(outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
                assert_eq!(outcome.stderr.lines().count(), 1, "{what}: {}", outcome.stderr);
            }
            Harmless => {
                assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{what}");
                world.sh("sheep-images rm x").ok();
            }
        }
        assert_eq!(world.snapshot(), store, "{what} left something");
    }
}

/// A sparse file in pax format 0.1; its content is to follow.
fn sparse(map: &[(u64, u64)], size: u64) -> Maker {
    let list: Vec<String> = map.iter().map(|(at, len)| format!("{at},{len}")).collect();
    let (list, size) = (list.join(","), size.to_string());
    let stored: u64 = map.iter().map(|(_, len)| len).sum();
    // Case "of another length".
    let stored = if map == [(0, 512)] && size == "2048" { 1024 } else { stored };
    tar()
        .pax(b'x', &[(b"GNU.sparse.size", size.as_bytes()), (b"GNU.sparse.map", list.as_bytes())])
        .block(Block::new(b"s", b'0').size(usize::try_from(stored).expect("small")))
}
