//! The same images by the other tools: what is in a tree is the same whoever made it.

use std::collections::BTreeMap;
use std::fs;

use crate::harness::World;
use crate::images::view;

/// podman and buildah with a store in the world's directory, as shell functions.
pub const PODMAN: &str = r#"podman() { command podman --root $PWD/store --runroot $PWD/run --tmpdir $PWD/tmp --storage-driver overlay "$@"; }
buildah() { command buildah --root $PWD/store --runroot $PWD/run --storage-driver overlay "$@"; }
"#;

/// `picture DIR` as a shell function.
const PICTURE: &str = r#"picture() { (
    cd "$1" || exit 1
    find . -type d -printf '%p d %m %U:%G %T@\n' | sort
    find . ! -type d -printf '%p %y %m %U:%G %s %T@ %l\n' | sort
    find . \( -type b -o -type c \) -exec stat -c '%n %t:%T' {} + | sort
    find . -type f -exec sha256sum {} + | sort
    find . ! -type d -links +1 -printf '%i %p\n' | sort | awk '{i=$1; $1=""; g[i]=g[i] $0; n[i]++} END {for (i in g) if (n[i] > 1) print "links:" g[i]}' | sort
    find . -print0 | sort -z | xargs -0 getfattr -hd -m '^(user|trusted|security)' -e hex -- 2>/dev/null | awk '/^# file: / {f = $0; next} NF && !/^(trusted|user)\.overlay\./ {print f, $0}'
    find . ! -type l -print0 | sort -z | xargs -0 getfacl -ns -- 2>/dev/null
    getcap -rn . 2>/dev/null | sort
) }
"#;

/// All that there is to see in a tree: kinds, modes, owners, sizes, times, targets, devices, contents, which names are one file,
/// extended attributes, access control lists and capabilities. Not the size and links of directories, which are the file
/// system's, nor OverlayFS's own notes: of a layer's marks a mount hides only the set that it reads.
pub fn picture(world: &World, dir: &str) -> String {
    world.sh(&format!("{PICTURE} picture {dir}")).ok()
}

/// Images by hand, of layers that are made of the directories 1, 2, …; as an OCI layout `img`.
const BY_HAND: &str = r##"
umoci init --layout img
image() { # NAME [TAR OPTIONS]: an image of the layers 1, 2, ...
    umoci new --image img:$1
    for l in 1 2 3 4 5; do
        [ -d $l ] || break
        (cd $l && tar --format=posix --sort=name --xattrs --xattrs-include='*' --acls -S -cf ../layer.tar $2 ${3:-.}); umoci raw add-layer --image img:$1 layer.tar; rm layer.tar
    done
    rm -r [1-5]
}
dirs() { for d; do mkdir -p $d; done; }
T() { find [1-5] -depth -exec touch -h -d "${1:-2001-02-03 04:05:06.123456789}" {} +; }

dirs 1/etc 1/bin; echo hi > 1/etc/f; echo program > 1/bin/busybox; ln -s busybox 1/bin/sh; ln -s /etc/f 1/abs; T; image plain

dirs 1/d/sub 1/gone/deep 2/d; echo 1 | tee 1/a 1/b 1/d/x 1/d/y 1/d/sub/z 1/gone/deep/f 1/c >/dev/null; touch 2/.wh.a 2/d/.wh.x 2/.wh.gone 2/d/.wh.sub 2/.wh.never; echo 2 > 2/c; T; image whiteouts

dirs 1/d/sub/deep 1/e/s 2/d/sub 2/e/s; echo 1 | tee 1/d/x 1/d/sub/y 1/d/sub/deep/z 1/e/s/old 1/e/kept >/dev/null; touch 2/d/.wh..wh..opq 2/e/s/.wh..wh..opq; echo 2 | tee 2/d/.a 2/d/new 2/d/sub/n 2/e/s/new > /dev/null; T; image opaque

dirs 1/dir/x 1/todir 1/target 2 3; rmdir 1/todir; echo f > 1/file; echo f > 1/todir; ln -s target 1/link; ln -s target 1/link2; echo t > 1/target/t; echo 1 > 1/dir/f
echo now-a-file > 2/dir; dirs 2/todir 2/link; echo in > 2/todir/in; echo in > 2/link/in; rm -f 2/link2; echo x > 2/link2; ln -s target 2/file; echo 3 > 3/file; dirs 3/dir; echo 3 > 3/dir/new; T; image replaced

dirs 1/d/s 2 3/d; echo 1 | tee 1/d/old 1/d/s/old >/dev/null; touch 2/.wh.d; echo 3 > 3/d/new; T; image anew

dirs 1/d 2/e 3; echo l > 1/a; ln 1/a 1/d/b; ln 1/a 1/c; echo x > 1/x; ln 1/x 1/y; echo new > 2/e/n; ln 2/e/n 2/c; ln 2/e/n 2/e/m; ln -s a 2/s; ln 2/s 2/e/s; touch 3/.wh.a 3/.wh.x; T; image links

dirs 1/sticky 1/setgid 1/closed 1/ro; echo s | tee 1/suid 1/sgid 1/none 1/all 1/big 1/ro/f 1/closed/f >/dev/null; chmod 1777 1/sticky; chmod 2775 1/setgid; chmod 000 1/none 1/closed; chmod 666 1/all; chmod 555 1/ro
chown 12:34 1/suid 1/setgid; chmod 4711 1/suid; chmod 2755 1/sgid; chown 3000000:4000000000 1/big; chmod 711 1; chown 5:6 1; T; image modes

dirs 1/d 2/d; echo program > 1/cap; setcap cap_net_raw,cap_net_bind_service+ep 1/cap; echo x > 1/u; setfattr -n user.v -v "$(printf 'b\nc=d')" 1/u; setfattr -n user.dir -v 1 1/d; echo y > 1/plain; cp -a 1/u 1/d/lost; cp -a --preserve=all 1/cap 1/d/cap
echo again > 2/d/lost; setfattr -n user.other -v 2 2/d; T; image xattrs

dirs 1/d; echo a > 1/f; setfacl -m u:12:rw,g:34:r 1/f; setfacl -m u:7:rwx 1/d; setfacl -d -m g:7:rx 1/d; T; image acls

dirs 1/dev; mknod 1/dev/null c 1 3; mknod 1/dev/big b 259 1048575; mkfifo 1/dev/fifo; ln 1/dev/null 1/dev/null2; chmod 666 1/dev/null; chown 0:6 1/dev/big; dirs 2/dev; touch 2/dev/.wh.null; mknod 2/dev/fifo c 5 1; T; image devices

dirs "1/$(printf 'bad\377dir')" "1/with  spaces"; echo 1 > "1/$(printf 'bad\377dir')/$(printf 'n\001\nl')"; echo 2 > '1/back\slash'; echo 3 > "1/$(printf 'n%.0s' $(seq 255))"; ln -s "$(printf 't\377')" "1/$(printf 'l\303\244')"; mkdir -p "1/$(printf 'deep%.0s/' $(seq 60))"
dirs "2/$(printf 'bad\377dir')"; touch "2/.wh.$(printf 'n%.0s' $(seq 251))" "2/$(printf 'bad\377dir')/.wh.$(printf 'n\001\nl')"; echo 4 > "2/$(printf 'bad\377dir')/$(printf '\200')"; T; image names

dirs 1/d; echo 1 | tee 1/now 1/old 1/far 1/d/f >/dev/null; T; touch -d '1969-12-31 23:00:00.5' 1/old; touch -d '2300-01-01 00:00:00.000000001' 1/far; touch -d 2020-02-20 1; image times

dirs 1/d/e 2/d/e; echo 1 > 1/d/f; setfattr -n user.gone -v 1 1/d; setfacl -m u:9:rwx 1/d/e; T; T '2003-03-03 03:03:03.3'; chmod 750 2/d; chown 8:9 2/d/e; image attributes

dirs 1; truncate -s 8M 1/hole; printf end >> 1/hole; truncate -s 1M 1/only; printf s > 1/tail; truncate -s 3M 1/tail; T; image sparse

dirs 1 2 3; chmod 700 1; chmod 1755 2; chown 3:4 2; chmod 555 3; echo 1 > 1/a; echo 3 > 3/b; T; touch -d 2010-01-01 3; image roots

# The same layer twice, and one of nothing.
dirs 1/d 2/d 3/d 4; echo 1 | tee 1/d/a 1/d/b 3/d/a 3/d/b >/dev/null; touch 2/d/.wh.a; echo two > 2/d/b; T; image twice

# Layers that name no directory, as umoci and some builders make them.
dirs 1/d/e 2/d/e 3/d/new/deep; echo 1 | tee 1/d/f 1/d/e/f 1/d/gone >/dev/null; chmod 2750 1/d; chown 12:34 1/d/e; echo 2 > 2/d/e/g; touch 2/d/.wh.gone; echo 3 > 3/d/new/deep/f; T
umoci new --image img:implied; tar -C 1 --format=posix -cf l.tar .; umoci raw add-layer --image img:implied l.tar; tar -C 2 --format=posix -cf l.tar d/e/g d/.wh.gone; umoci raw add-layer --image img:implied l.tar; tar -C 3 --format=posix -cf l.tar d/new/deep/f; umoci raw add-layer --image img:implied l.tar; rm -r [123] l.tar
"##;

/// The same changes to a root file system by each builder, in three steps.
const BY_BUILDERS: &str = r##"
# The same changes in a root file system by each builder, in three steps.
step() { (
    cd "$2"; umask 022
    case $1 in
        1) mkdir -p bin etc/deep opq/sub dir tmp; echo program > bin/busybox; ln -s busybox bin/sh; echo one > etc/one; ln etc/one etc/two; ln etc/one etc/deep/three; echo old | tee opq/old opq/sub/old etc/gone >/dev/null
            echo x > "$(printf 'etc/\377')"; chmod 4755 bin/busybox; echo program > bin/ping; setcap cap_net_raw+ep bin/ping; chmod 1777 tmp; mkfifo dir/fifo; mknod dir/null c 1 3; echo s > etc/shadow; chmod 000 etc/shadow; chown 0:42 etc/shadow; echo o > etc/other; setfattr -n user.v -v 1 etc/other;;
        2) rm etc/gone; rm -r opq; mkdir opq; echo new > opq/new; echo more >> etc/one; ln etc/other etc/linked; chmod 700 dir; chown 12:34 etc/two; rm bin/sh; echo '#!' > bin/sh; rm dir/null; mkdir dir/null; touch dir/null/f;;
        3) rm -r dir; touch dir; rm "$(printf 'etc/\377')"; mkdir -p new/deep; echo n > new/deep/n; setfattr -x user.v etc/other; touch -d '2001-02-03 04:05:06.123456789' etc/two; rm -r etc/deep;;
    esac
) }
umoci new --image img:by-umoci
for i in 1 2 3; do umoci unpack --image img:by-umoci b; step $i b/rootfs; umoci repack --image img:by-umoci b; rm -rf b; done
from=scratch
for i in 1 2 3; do c=$(buildah from $from); step $i $(buildah mount $c); buildah umount $c >/dev/null; from=$(buildah commit -q $c); buildah rm $c >/dev/null; done
buildah push -q $from oci:img:by-buildah
from=$(tar -cf - --files-from /dev/null | podman import -q - localhost/base)
for i in 1 2 3; do c=$(podman create $from x); step $i $(podman mount $c); podman umount $c >/dev/null; from=$(podman commit -q $c); podman rm $c >/dev/null; done
podman push -q $from oci:img:by-podman
"##;

/// What a peer is known to do otherwise is taken out of both pictures.
fn known(tool: &str, image: &str, picture: &str) -> String {
    let is_kept = |line: &&str| {
        // Of a directory: path, kind, mode, owner, time.
        let fields: Vec<&str> = line.rsplitn(5, ' ').collect();
        let directory = fields.get(4).filter(|_| fields[3] == "d").copied();
        // podman gives every container's root the mode 0555, root as its owner, and a time of its own.
        !(tool == "podman" && directory == Some(".")
            // A layer that does not name its root has none of a time with us: it is the upper's that is seen in an overlay.
            || tool == "umoci" && directory == Some(".") && matches!(image, "by-umoci" | "implied")
            // To directories that a layer does not name umoci gives the time at which it puts something in, and set-group-id of
            // the one above; podman does not look at the layers below at all. See images.rs for what is right there.
            || directory.is_some() && matches!(tool, "podman" | "umoci") && matches!(image, "by-umoci" | "implied")
            // umoci knows times up to 2038, podman (containers/storage) takes those before 1970 and after 2262 for none.
            || tool == "umoci" && image == "times" && line.starts_with("./far ")
            || tool == "podman" && image == "times" && (line.starts_with("./far ") || line.starts_with("./old ")))
    };
    picture.trim_end().lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
}

#[test]
fn trees_are_the_same_by_every_tool() {
    let world = World::root();
    world.sh(&format!("{PODMAN} {BY_HAND} {BY_BUILDERS}")).ok();
    let names = world.sh("umoci ls --layout img").ok();
    let names: Vec<&str> = names.lines().collect();
    assert!(names.len() >= 20, "{names:?}");
    // Each tool for itself, all at once.
    let all = format!("{PODMAN} {PICTURE} set -e; mkdir -p pics");
    let lanes = [
        "for n in $names; do umoci unpack --image img:$n umoci-$n; picture umoci-$n/rootfs > pics/umoci.$n; rm -r umoci-$n; done",
        "for n in $names; do id=$(podman pull -q oci:img:$n); at=$(podman image mount $id); picture $at > pics/podman.$n; podman image umount $id; done",
        "for n in $names; do sheep-images import $n img --ref $n; sheep-images unpack $n --to to-$n; picture to-$n > pics/to.$n; rm -r to-$n; done",
    ];
    let lanes = lanes.map(|lane| world.start(&format!("{all}; names='{}'; {{ {lane}; }} >&2", names.join(" "))));
    for lane in lanes {
        let outcome = lane.wait_with_output().unwrap();
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    }
    let mut seen = BTreeMap::new();
    for name in &names {
        let at = format!("view-{name}");
        view(&world, name, &at);
        let ours = picture(&world, &at);
        world.sh(&format!("umount {at}")).ok();
        for tool in ["to", "umoci", "podman"] {
            let theirs = fs::read(world.dir.join(format!("pics/{tool}.{name}"))).unwrap();
            let theirs = String::from_utf8_lossy(&theirs).into_owned();
            assert_eq!(known(tool, name, &ours), known(tool, name, &theirs), "{name}: ours, and {tool}'s");
        }
        seen.insert(*name, ours);
    }
    // That the pictures show what the images were made for.
    for (image, part) in [
        ("whiteouts", "./d/y f"),
        ("links", "links: ./c ./e/m ./e/n"),
        ("modes", "./suid f 4711 12:34"),
        ("modes", "./big f 644 3000000:4000000000"),
        ("xattrs", "# file: d user.other=0x32"),
        ("xattrs", "cap_net_bind_service,cap_net_raw=ep"),
        ("acls", "default:group:7:r-x"),
        ("devices", "./dev/big 103:fffff"),
        ("times", "./far f 644 0:0 2 10413792000.0000000010"),
        ("sparse", "./hole f 644 0:0 8388611"),
        ("roots", ". d 555 0:0 1262304000.0"),
        ("by-podman", "./bin/ping cap_net_raw=ep"),
    ] {
        let picture = &seen[image];
        assert!(picture.contains(part), "{image}: {part}: {picture}");
    }
    let lost = seen["xattrs"].contains("file: d/lost") || seen["xattrs"].contains("user.dir");
    assert!(!lost, "what lies on another has none of its attributes");
    // The builders came to the same, but for times, and for names of one file: OverlayFS, on which buildah and podman work, parts
    // them when one is written to.
    let timeless = |image: &str| {
        let entry = |line: &str| line.starts_with("./").then(|| line.split(" 17").next().unwrap_or(line).to_owned());
        let shared = |line: &String| line.starts_with("./etc/one ") || line.starts_with("./etc/two ");
        seen[image].lines().filter_map(entry).filter(|line| !shared(line)).collect::<Vec<_>>()
    };
    assert_eq!(timeless("by-buildah"), timeless("by-umoci"));
    assert_eq!(timeless("by-podman"), timeless("by-umoci"));
    // The digests are what they were, to skopeo too.
    let theirs = world.sh(r#"jq -r '.manifests[] | .annotations["org.opencontainers.image.ref.name"] + ":latest " + .digest' img/index.json | sort"#);
    let ours = world.sh("sheep-images ls --json | jq -r '.image | .reference + \" \" + .digest' | sort");
    assert_eq!(ours.ok(), theirs.ok());
    world.sh(&format!("{PODMAN} podman rmi -a -f >/dev/null")).ok();

    // Ours by each of them.
    let want = known("podman", "by-buildah", &seen["by-buildah"]);
    let digest = world.sh("sheep-images inspect by-buildah --print digest").ok();
    world.sh("sheep-images export by-buildah -o oci.tar; sheep-images export by-buildah --format docker -o docker.tar; sheep-images export by-buildah --format oci-dir -o layout").ok();
    assert_eq!(world.sh("for i in oci-archive:oci.tar oci:layout:by-buildah:latest oci:data/images:by-buildah:latest; do skopeo inspect $i | jq -r .Digest; done | uniq").ok(), digest);
    assert_eq!(
        world.sh("skopeo inspect --config docker-archive:docker.tar | jq -c .rootfs").ok(),
        world.sh("sheep-images inspect by-buildah --print image.config.rootfs").ok()
    );
    let by_podman = "id=$(podman pull -q FROM); picture $(podman image mount $id); podman image umount $id >/dev/null; podman rmi -f $id >/dev/null";
    let by_buildah = "c=$(buildah from -q FROM); picture $(buildah mount $c); buildah umount $c >/dev/null; buildah rm $c >/dev/null; buildah rmi -a -f >/dev/null";
    for (tool, from, script) in [
        ("podman", "oci-archive:oci.tar", by_podman),
        ("podman", "docker-archive:docker.tar", by_podman),
        ("buildah", "docker-archive:docker.tar", by_buildah),
        ("buildah", "oci:layout:by-buildah:latest", by_buildah),
    ] {
        let theirs = world.sh(&format!("{PODMAN} {PICTURE} set -e; {}", script.replace("FROM", from))).ok();
        assert_eq!(known("podman", "by-buildah", &theirs), want, "{tool} of {from}");
    }
    for layout in ["layout", "data/images"] {
        world.sh(&format!("umoci unpack --image {layout}:by-buildah:latest b")).ok();
        assert_eq!(picture(&world, "b/rootfs"), picture_of(&seen, "by-buildah"), "umoci of {layout}");
        world.sh("rm -r b").ok();
    }
    world
        .sh("sheep-images export by-buildah --format rootfs | (mkdir r && tar -C r --xattrs --xattrs-include='*' -xp)")
        .ok();
    assert_eq!(picture(&world, "r"), picture_of(&seen, "by-buildah"), "GNU tar");
    let root = "sheep-images export by-buildah --format rootfs | podman import -q - localhost/r";
    let theirs = world.sh(&format!("{PODMAN} {PICTURE} set -e; id=$({root}); picture $(podman image mount $id); podman image umount -a >/dev/null")).ok();
    assert_eq!(known("podman", "by-buildah", &theirs), want, "podman import");
}

fn picture_of(seen: &BTreeMap<&str, String>, image: &str) -> String {
    seen[image].clone()
}

#[test]
fn a_hundred_layers() {
    let world = World::root();
    world
        .sh(r#"set -e; umoci init --layout img; umoci new --image img:t; mkdir -p l/d; for i in $(seq 100); do
            rm -f l/d/.wh.*; echo $i > l/d/f$i; echo $i > l/top; [ $i -lt 3 ] || touch l/d/.wh.f$((i - 2)); touch -d @$((1000000000 + i)) l l/d l/top l/d/*; tar -C l --format=posix -cf l.tar .; umoci raw add-layer --image img:t l.tar; rm l/d/f$i; done"#)
        .ok();
    world.sh("sheep-images import t img && umoci unpack --image img:t b && sheep-images unpack t --to to").ok();
    view(&world, "t", "seen");
    let want = picture(&world, "seen");
    assert_eq!(world.sh("cat seen/top; ls seen/d").ok(), "100\nf100\nf99");
    assert_eq!(want, picture(&world, "b/rootfs"));
    assert_eq!(want, picture(&world, "to"));
    let digest = world.sh("sheep-images inspect t --print digest").ok();
    let loaded = world
        .sh(&format!("{PODMAN} {PICTURE} set -e; sheep-images export t -o t.tar; id=$(podman load -q -i t.tar | sed 's/.*: //'); podman images --digests --format '{{{{.Digest}}}}'; picture $(podman image mount $id); podman image umount -a >/dev/null"))
        .ok();
    let (theirs, tree) = loaded.split_once('\n').unwrap();
    assert_eq!(theirs, digest);
    assert_eq!(known("podman", "t", tree), known("podman", "t", &want));
    world.sh("sheep-images export t --format docker | sheep-images --root other import back - && umount seen").ok();
}

#[test]
fn marks_in_the_place_of_a_link_or_a_file() {
    let world = World::root();
    // umoci lists all that was in a directory as deleted, though a link is in its place; and then follows the link, and deletes
    // what is there. podman refuses such a layer.
    world
        .sh("set -e; umoci init --layout img; umoci new --image img:t; umoci unpack --image img:t b; cd b/rootfs; mkdir -p dir etc file away other; echo 1 | tee dir/same dir/only file/f away/a other/o >/dev/null; echo e > etc/same
             cd ../..; umoci repack --image img:t b; rm -r b; umoci unpack --image img:t b; cd b/rootfs; rm -r dir file away other; ln -s etc dir; echo file > file; ln -s /nowhere away; ln -s .. other; echo e2 > etc/new; cd ../..; umoci repack --image img:t b")
        .ok();
    let listed = world.sh("zcat img/blobs/sha256/$(jq -r '.layers[1].digest' img/blobs/sha256/$(jq -r '.manifests[0].digest' img/index.json | cut -d: -f2) | cut -d: -f2) | tar -t").ok();
    for mark in ["dir/.wh.same", "file/.wh.f", "away/.wh.a", "other/.wh.o"] {
        assert!(listed.contains(mark), "{mark}: {listed}");
    }
    world.sh("sheep-images import t img").ok();
    view(&world, "t", "seen");
    world.sh("sheep-images unpack t --to to").ok();
    for at in ["seen", "to"] {
        assert_eq!(
            world.sh(&format!("cd {at}; find . -mindepth 1 -printf '%p %l\\n' | sort; cat etc/same file")).ok(),
            "./away /nowhere\n./dir etc\n./etc \n./etc/new \n./etc/same \n./file \n./other ..\ne\nfile"
        );
    }
}

#[test]
fn a_builder_goes_on_from_ours_and_we_from_its() {
    let world = World::root();
    let made = world
        .sh(&format!(
            "{PODMAN} set -e; sheep-images bootstrap base >/dev/null; sheep-images export base --format docker -o base.tar
             printf 'FROM docker-archive:base.tar\\nRUN echo made > /made && rm /bin/ls && mkdir /dir && ln /made /dir/link\\nCOPY base.tar /dir/\\nENV A=b\\nENTRYPOINT [\"/bin/cat\"]\\nUSER 12:34\\n' > Containerfile
             buildah bud -q --layers --isolation chroot -t localhost/built . >/dev/null; buildah push -q localhost/built oci-archive:built.tar:built
             sheep-images import built built.tar --print image.config.config; sheep-images unpack built --to root >/dev/null; chroot root /bin/sh -c 'cat /made; test ! -e /bin/ls && test /made -ef /dir/link && echo so'"
        ))
        .ok();
    let (config, said) = made.split_once('\n').unwrap();
    for part in [r#""A=b""#, r#""Entrypoint":["/bin/cat"]"#, r#""User":"12:34""#] {
        assert!(config.contains(part), "{part}: {config}");
    }
    assert_eq!(said, "made\nso");
    // The layer of the base is the one that the store has.
    let layers = |image: &str| world.sh(&format!("sheep-images unpack {image} | jq -r '.image.layers[0].path'")).ok();
    assert_eq!(layers("built"), layers("base"));
    world.sh("cmp base.tar root/dir/base.tar").ok();
}
