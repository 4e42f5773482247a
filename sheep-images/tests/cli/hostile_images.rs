//! Images that want out, or want to be what they are not. Each comes as an OCI layout and as what `docker save` writes. What is
//! refused is refused with one line and leaves the store as it was; what is taken in is mounted by the kernel, and shows what
//! the image specification says. A directory outside is compared each time.

use crate::harness::World;
use crate::image_maker::{docker, layout};
use crate::maker::{Block, Maker, tar};

/// What must come of an image.
enum Fate {
    /// Exit code 1 and one line with this text.
    Refused(&'static str),
    /// Mounted, the script prints this. No word on stderr.
    Shows(&'static str, &'static str),
    /// The same, and stderr is one line with the third text.
    Without(&'static str, &'static str, &'static str),
}
use Fate::{Refused, Shows, Without};

/// The layer below: what the one on top may want to misuse.
fn bottom(canary: &[u8]) -> Vec<u8> {
    tar()
        .dir(b"./")
        .dir(b"usr/")
        .dir(b"usr/bin/")
        .file(b"usr/bin/sh", b"shell")
        .symlink(b"bin", b"usr/bin")
        .dir(b"d/")
        .file(b"d/a", b"a")
        .file(b"d/b", b"b")
        .file(b"f", b"file")
        .dir(b"etc/")
        .file(b"etc/secret", b"s")
        .symlink(b"out", canary)
        .symlink(b"up", &[&b"../".repeat(12)[..], &canary[1..]].concat())
        .end()
}

struct Canary {
    world: World,
    path: Vec<u8>,
    looked: String,
    store: String,
}

impl Canary {
    fn new() -> Self {
        let world = World::root();
        world.sh("mkdir canary && echo alive > canary/c && chmod 600 canary/c && mkdir canary/d && mkdir m").ok();
        world.sh("sheep-images ls && touch x.tar err").ok();
        let path = world.dir.join("canary").display().to_string().into_bytes();
        let mut canary = Canary { world, path, looked: String::new(), store: String::new() };
        (canary.looked, canary.store) = (canary.look(), canary.world.snapshot());
        canary
    }

    fn look(&self) -> String {
        self.world.sh("find canary -printf '%p %y %m %U %G %s %T@ %C@ %n %l\\n' | sort; cat canary/c; ls -A").ok()
    }

    #[track_caller]
    fn check(&self, what: &str, archive: &[u8], fate: &Fate) {
        self.world.write("x.tar", archive);
        let outcome = self.world.sh("sheep-images import x x.tar >/dev/null");
        assert_eq!(self.look(), self.looked, "{what} got out");
        let lines = outcome.stderr.lines().count();
        assert!(!outcome.stderr.contains('\x1b'), "{what}: {:?}", outcome.stderr);
        let (script, want) = match fate {
            Refused(text) => {
                assert_eq!((outcome.code, lines), (1, 1), "{what}: {}", outcome.stderr);
                assert!(outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
                assert_eq!(self.world.snapshot(), self.store, "{what} left something");
                return;
            }
            Shows(script, want) => {
                assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{what}");
                (script, want)
            }
            Without(script, want, text) => {
                assert_eq!((outcome.code, lines), (0, 1), "{what}: {}", outcome.stderr);
                assert!(outcome.stderr.contains(text), "{what}: {}", outcome.stderr);
                (script, want)
            }
        };
        // Bottom first in the document, top first for the kernel.
        let mount = "lower=$(sheep-images unpack x | jq -r '[.image.layers[].path] | reverse | join(\":\")') && \
                     mount -t overlay -o ro,lowerdir=$lower overlay m && cd m";
        let shown = self.world.sh(&format!("{mount} && {{ {script}; }}; cd ..; umount m"));
        assert_eq!((shown.stdout.trim_end(), shown.stderr.as_str()), (*want, ""), "{what}");
        self.world.sh("sheep-images rm x").ok();
        assert_eq!(self.look(), self.looked, "{what} got out when it was mounted or removed");
        assert_eq!(self.world.snapshot(), self.store, "{what} left something");
    }
}

fn xattrs(records: &[(&[u8], &[u8])]) -> Maker {
    tar().pax(b'x', records)
}

#[test]
fn layers_on_layers() {
    let canary = Canary::new();
    let path = canary.path.clone();
    let up: Vec<u8> = [&b"../".repeat(12)[..], &path[1..]].concat();
    let at = |rest: &str| [&path, rest.as_bytes()].concat();
    let evil = b"evil";
    let long = [b'n'; 255];
    let fifo = |name: &[u8]| Block::new(name, b'6');
    let device = |name: &[u8], minor: u8| {
        Block::new(name, b'3').with(329, b"0000001\0").with(337, &[b'0', b'0', b'0', b'0', b'0', b'0', minor, 0])
    };
    let whole = tar().dir(b"w").file(b"w/f", &[7; 3000]).end();
    let smuggled = tar().file(b"hidden", b"smuggled").0;
    let size = smuggled.len().to_string();
    let cases: Vec<(&str, Vec<u8>, Fate)> = vec![
        ("climbs", tar().file(b"../x", evil).end(), Refused("climbs")),
        ("climbs from a directory below", tar().file(b"usr/../../x", evil).end(), Refused("climbs")),
        ("absolute", tar().file(&at("/c"), evil).end(), Refused("absolute")),
        ("NUL", tar().pax(b'x', &[(b"path", b"a\0b")]).file(b"x", evil).end(), Refused("NUL")),
        ("the root a link", tar().symlink(b"./", &path).end(), Refused("root can only be")),
        ("a FIFO through a link", tar().symlink(b"l", &path).block(fifo(b"l/p")).end(), Refused("is a symbolic link")),
        ("a device through a link", tar().symlink(b"l", &up).block(device(b"l/n", b'3')).end(), Refused("leads out")),
        ("a file through a link", tar().symlink(b"bin", &path).file(b"bin/c", evil).end(), Refused("symbolic link")),
        (
            "a link through a link",
            tar().symlink(b"l", &path).symlink(b"l/new", b"x").end(),
            Refused("is a symbolic link"),
        ),
        (
            "a whiteout through a link",
            tar().symlink(b"l", &path).file(b"l/.wh.c", b"").end(),
            Shows("test -L l && ls l/", "c\nd"),
        ),
        (
            "opaque through a link",
            tar().symlink(b"l", &up).file(b"l/.wh..wh..opq", b"").end(),
            Shows("test -L l && echo link", "link"),
        ),
        ("a whiteout of the root", tar().file(b".wh..", b"").end(), Refused("which is no name")),
        ("a whiteout that climbs", tar().file(b".wh...", b"").end(), Refused("which is no name")),
        ("a whiteout that climbs by a part", tar().file(b".wh.../x", b"").end(), Shows("ls -d .wh...", ".wh...")),
        ("a hard link up", tar().hard(b"h", b"../../canary/c").end(), Refused("climbs")),
        ("a hard link to absolute", tar().hard(b"h", &at("/c")).end(), Refused("absolute")),
        ("a hard link to the layer below", tar().hard(b"h", b"f").end(), Refused("which the archive does not have")),
        (
            "a hard link through a link of the layer below",
            tar().hard(b"h", b"out/c").end(),
            Refused("which the archive does not have"),
        ),
        (
            "hard links in a ring",
            tar().hard(b"a", b"b").hard(b"b", b"c").hard(b"c", b"a").end(),
            Refused("which the archive does not have"),
        ),
        ("a loop of links", tar().symlink(b"a", b"a").file(b"a/x", evil).end(), Refused("too many")),
        ("a name of 256 bytes", tar().long(b'L', &[b'n'; 256]).file(b"x", b"").end(), Refused("too long")),
        ("a path of 4096 bytes", tar().long(b'L', &b"nnn/".repeat(1025)).file(b"x", b"").end(), Refused("refused")),
        ("cut short", whole[..1500].to_vec(), Refused("cut short")),
        ("no end mark", whole[..whole.len() - 1024].to_vec(), Refused("without its end mark")),
        ("two archives", [&whole[..], &whole].concat(), Refused("something follows")),
        (
            "two thousand extended attributes",
            {
                let names: Vec<String> = (0..2000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
                let records: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_bytes(), &b"v"[..])).collect();
                xattrs(&records).file(b"x", b"").end()
            },
            Refused("extended attributes are refused"),
        ),
        (
            "global headers without an end",
            (0..40u8).fold(tar(), |t, n| t.pax(b'g', &[(&[b'a' + n % 26, b'0' + n], &[b'x'; 4000])])).end(),
            Refused("global headers"),
        ),
        // The layer below has links to the canary. This one is unpacked by itself, and its directories hide them.
        (
            "a file through a link of the layer below",
            tar().file(b"out/c", evil).end(),
            Shows("stat -c %F out; ls out; cat out/c", "directory\nc\nevil"),
        ),
        (
            "a file through a climbing link of the layer below",
            tar().file(b"up/c", evil).end(),
            Shows("stat -c %F up; ls up", "directory\nc"),
        ),
        (
            "a whiteout through a link of the layer below",
            tar().file(b"out/.wh.c", b"").end(),
            // Listed it is, in a directory that no layer below has: so the kernel does. It cannot be looked up.
            Shows("stat -c %F out; cat out/c 2>&- || echo none", "directory\nnone"),
        ),
        (
            "opaque through a link of the layer below",
            tar().file(b"up/.wh..wh..opq", b"").end(),
            Shows("ls -A up; cat usr/bin/sh", "shell"),
        ),
        (
            "a whiteout through /bin",
            tar().file(b"bin/.wh.sh", b"").end(),
            Shows("cat usr/bin/sh; cat bin/sh 2>&- || echo none", "shellnone"),
        ),
        ("a device through /bin", tar().block(device(b"bin/null", b'3')).end(), Shows("stat -c %F bin", "directory")),
        (
            "opaque in /bin",
            tar().dir(b"bin").file(b"bin/.wh..wh..opq", b"").file(b"bin/x", b"").end(),
            Shows("ls bin usr/bin", "bin:\nx\n\nusr/bin:\nsh"),
        ),
        (
            "/bin written as a directory",
            tar().dir(b"bin").file(b"bin/sh", evil).end(),
            Shows("cat usr/bin/sh", "shell"),
        ),
        (
            "/bin through the layer's own link",
            tar().dir(b"usr").dir(b"usr/bin").symlink(b"bin", b"usr/bin").file(b"bin/new", b"n").end(),
            Shows("ls usr/bin; cat bin/new", "new\nsh\nn"),
        ),
        ("a directory for a link", tar().dir(b"out").end(), Shows("stat -c %F out; ls -A out", "directory")),
        ("a file for a link", tar().file(b"out", evil).end(), Shows("stat -c %F out; cat out", "regular file\nevil")),
        ("a file for a directory", tar().file(b"d", b"x").end(), Shows("cat d", "x")),
        ("a link for a directory", tar().symlink(b"d", b"etc").end(), Shows("ls d/", "secret")),
        ("a whiteout of a link", tar().file(b".wh.out", b"").end(), Shows("ls -A", "bin\nd\netc\nf\nup\nusr")),
        ("a whiteout of a directory", tar().file(b".wh.d", b"").end(), Shows("ls -d d etc 2>&- || :", "etc")),
        ("a whiteout of nothing", tar().file(b".wh.nosuch", b"").end(), Shows("ls", "bin\nd\netc\nf\nout\nup\nusr")),
        ("opaque", tar().dir(b"d").file(b"d/.wh..wh..opq", b"").file(b"d/n", b"").end(), Shows("ls d", "n")),
        ("opaque, said last", tar().dir(b"d").file(b"d/n", b"").file(b"d/.wh..wh..opq", b"").end(), Shows("ls d", "n")),
        ("the root opaque", tar().file(b".wh..wh..opq", b"").file(b"n", b"").end(), Shows("ls", "n")),
        ("a mark of AUFS", tar().file(b".wh..wh.plnk", b"").end(), Shows("ls -A | wc -l", "7")),
        ("deleted, and made again", tar().file(b".wh.d", b"").dir(b"d").file(b"d/n", b"").end(), Shows("ls d", "n")),
        ("made, and deleted", tar().dir(b"d").file(b"d/n", b"").file(b".wh.d", b"").end(), Shows("ls d", "n")),
        (
            "OverlayFS's whiteout",
            tar().block(Block::new(b"f", b'3').with(329, b"0000000\0").with(337, b"0000000\0")).end(),
            Shows("ls f 2>&- || echo gone", "gone"),
        ),
        (
            "OverlayFS's redirect",
            xattrs(&[(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir(b"d").end(),
            Without("ls d", "a\nb", "1 extended attribute"),
        ),
        (
            "OverlayFS's redirect for users",
            xattrs(&[(b"SCHILY.xattr.user.overlay.redirect", b"/etc")]).dir(b"d").end(),
            Without("ls d", "a\nb", "1 extended attribute"),
        ),
        (
            "OverlayFS's metacopy",
            xattrs(&[
                (b"SCHILY.xattr.trusted.overlay.metacopy", b""),
                (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc/secret"),
            ])
            .file(b"f", b"")
            .end(),
            Without("stat -c %s f", "0", "2 extended attributes"),
        ),
        (
            "OverlayFS's opaque",
            xattrs(&[(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]).dir(b"d").end(),
            Without("ls d", "a\nb", "1 extended attribute"),
        ),
        (
            "OverlayFS's whiteout as an attribute",
            [
                xattrs(&[(b"SCHILY.xattr.trusted.overlay.opaque", b"x")]).dir(b"d").0,
                xattrs(&[(b"SCHILY.xattr.trusted.overlay.whiteout", b"")]).file(b"d/a", b"").end(),
            ]
            .concat(),
            Without("ls d", "a\nb", "2 extended attributes"),
        ),
        (
            "OverlayFS's marks for another overlay",
            xattrs(&[(b"SCHILY.xattr.trusted.overlay.overlay.opaque", b"y")]).dir(b"d").end(),
            Without("ls d", "a\nb", "1 extended attribute"),
        ),
        (
            "OverlayFS's marks for all",
            [tar().pax(b'g', &[(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]).0, tar().dir(b"d").dir(b"etc").end()]
                .concat(),
            Without("ls d etc", "d:\na\nb\n\netc:\nsecret", "2 extended attributes"),
        ),
        ("a link to the canary", tar().symlink(b"new", &at("/c")).end(), Shows("test -L new && echo link", "link")),
        (
            "a hard link to a link, then written",
            tar().symlink(b"l", &at("/c")).hard(b"h", b"l").file(b"h", evil).end(),
            Shows("cat h; test -L l && echo; test -L l && echo link", "evil\nlink"),
        ),
        (
            "duplicates",
            tar().file(b"x", b"1").dir(b"x").symlink(b"x", b"/").block(fifo(b"x")).file(b"x", b"last").end(),
            Shows("cat x", "last"),
        ),
        ("a name of 255 bytes", tar().long(b'L', &long).file(b"x", b"").end(), Shows("ls | grep -c nnnnn", "1")),
        (
            "a path of 4000 bytes",
            tar().long(b'L', &[&b"nnnnnnn/".repeat(500)[..], b"x"].concat()).file(b"x", b"").end(),
            Shows("ls -d nnnnnnn/nnnnnnn", "nnnnnnn/nnnnnnn"),
        ),
        (
            "names for the terminal",
            tar().file(b"\x1b[2J\n\xff\xc2\x9b", b"").file("\u{202e}gpj".as_bytes(), b"").end(),
            Shows("ls -A | wc -l", "10"),
        ),
        ("setuid", tar().block(Block::new(b"s", b'0').with(100, b"0004755\0")).end(), Shows("stat -c %a s", "4755")),
        ("a FIFO, then written", tar().block(fifo(b"p")).file(b"p", b"x").end(), Shows("cat p", "x")),
        (
            "a device, then written",
            tar().block(device(b"n", b'5')).file(b"n", b"x").end(),
            Shows("stat -c %F n; cat n", "regular file\nx"),
        ),
        (
            "a pax size over a size of zero",
            xattrs(&[(b"size", size.as_bytes())]).file(b"outer", b"").content(&smuggled).file(b"last", b"").end(),
            Shows("ls hidden last outer 2>&- || :", "last\nouter"),
        ),
        ("modes of the root", tar().block(Block::new(b"./", b'5').with(100, b"0000700\0")).end(), Shows("ls f", "f")),
    ];
    assert!(cases.len() >= 60, "{}", cases.len());
    for (what, top, fate) in cases {
        let layers = [bottom(&path), top];
        canary.check(&format!("{what} (layout)"), &layout(&layers).archive(), &fate);
        canary.check(&format!("{what} (docker)"), &docker(&layers).archive(), &fate);
    }
}

/// A setuid program of an image is nobody's to run but who may read the data directory.
#[test]
fn setuid_stays_within() {
    let canary = Canary::new();
    let world = &canary.world;
    let layer = tar().block(Block::new(b"s", b'0').with(100, b"0006777\0").size(3)).content(b"abc").end();
    world.write("x.tar", layout(&[bottom(&canary.path), layer]).archive());
    let path = world.sh("sheep-images import x x.tar | jq -r '.image.layers[1].path'").ok();
    world.sh(&format!("test -u {path}/s && cat {path}/s")).ok();
    let outcome = world.sh(&format!("chmod 755 . && runuser -u sheeptest -- cat {path}/s"));
    assert!(outcome.code != 0 && outcome.stderr.contains("Permission denied"), "{}", outcome.stderr);
}
