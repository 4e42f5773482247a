//! What copy-on-write is for: many containers, one image.

use crate::harness::World;

#[test]
fn ten_containers_cost_one_image() {
    let world = World::root();
    world.sh("mkdir big && head -c 100000000 /dev/urandom > big/ballast").ok();
    // A root file system of 100 MB: the host's shell and its libraries with a ballast file beside them.
    world.sh("sheep-images bootstrap seed >/dev/null && cp -a $(sheep-images unpack seed | jq -r .image.layers[0].path) root && cp big/ballast root/ballast && tar -C root -cf root.tar . && sheep-images import hundred root.tar >/dev/null && rm -r root root.tar").ok();
    let layers = world.sh("du -sk data/layers | cut -f1").ok();
    for n in 0..10 {
        world.sh(&format!("sheep-run run -d --name c{n} hundred sleep 600")).ok();
    }
    // du counts what is seen through a mount as well; -x keeps it on the data directory's own file system.
    let own =
        world.sh("du -skx data/overlay data/containers | awk '{s+=$1} END {print s}'").ok().parse::<u64>().unwrap();
    assert!(own < 2000, "ten containers take {own} KiB of their own");
    assert_eq!(world.sh("du -sk data/layers | cut -f1").ok(), layers, "the layer is stored once");
    world.sh("sheep-run rm -f c0 c1 c2 c3 c4 c5 c6 c7 c8 c9").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn the_copy_backend_equals_cp_in_every_attribute() {
    let world = World::root();
    // A tree with every kind of entry, and a real one beside it.
    world.sh(
        "mkdir -p t/d/e && echo a > t/a && ln t/a t/d/hard && ln -s ../a t/d/soft && ln -s /nowhere t/dangling && mkfifo t/pipe && mknod t/null c 1 3 && mknod t/blk b 7 99 &&
         truncate -s 50M t/sparse && echo end >> t/sparse && chmod 4711 t/a && chmod 1777 t/d && mkdir -m 0555 t/ro && chown 12:34 t/d/soft -h && setfacl -m u:33:rwx t/a && setfattr -n user.k -v v t/a && setfattr -n trusted.k -v v t/d &&
         cp /bin/true t/cap && setcap cap_net_raw+ep t/cap && python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"t/sock\")' && touch -h -d '1999-01-01 00:00:00.123456789' t/d/soft t/d && cp -a /usr/share/perl5 /usr/lib/git-core t/ 2>/dev/null; true",
    )
    .ok();
    world.sh("sheep-overlay mount --backend copy t > doc").ok();
    assert_eq!(
        world
            .sh(
                "rsync -aHAXn --delete --checksum --itemize-changes t/ $(sheep-overlay inspect --print merged - < doc)/"
            )
            .ok(),
        ""
    );
    let listing = "find . -printf '%P %y %m %U %G %s %T@ %n %l\\n' | sort";
    assert_eq!(
        world.sh(&format!("cd t && {listing}")).ok(),
        world.sh(&format!("cd $(sheep-overlay inspect --print merged - < doc) && {listing}")).ok()
    );
    assert_eq!(
        world.sh("du -k $(sheep-overlay inspect --print merged - < doc)/sparse | cut -f1").ok(),
        world.sh("du -k t/sparse | cut -f1").ok()
    );
    assert_eq!(world.sh("sheep-overlay diff - < doc").ok(), "");
    world.sh("sheep-overlay umount - < doc").ok();
}

#[test]
fn what_a_container_lies_on_is_neither_collected_nor_exchanged() {
    let world = World::root().with_image();
    let layer = world.sh("sheep-images unpack minimal | jq -r '.image.layers[0].path'").ok();
    let id = world.sh("sheep-run run -d --name c minimal sleep 600").ok();
    world.sh(&format!("echo damage > {layer}/damage")).ok();
    for state in ["true", "sheep-run stop -t 1 c"] {
        world.sh(state).ok();
        let outcome = world.sh("sheep-images verify --repair");
        assert_eq!(outcome.code, 4, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("in use by overlay {id}")), "{}", outcome.stderr);
        assert!(outcome.stdout.contains(": /damage: extra; it is in use\n"), "{}", outcome.stdout);
    }
    // No image has the layer any more, and the container still does.
    world
        .sh("jq -c '.manifests = []' $SHEEP_DATA_DIR/images/index.json > x && mv x $SHEEP_DATA_DIR/images/index.json")
        .ok();
    let outcome = world.sh("sheep-images gc");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("stays: in use by overlay {id}")), "{}", outcome.stderr);
    assert_eq!(
        outcome.stdout.lines().filter(|line| line.starts_with("deleted blob ")).count(),
        3,
        "{}",
        outcome.stdout
    );
    world.sh("sheep-run start c && sheep-run exec c cat /damage && sheep-run rm -f c").ok();
    let outcome = world.sh("sheep-images gc").ok();
    assert!(outcome.contains("deleted layer sha256:"), "{outcome}");
    assert_eq!(world.entries("layers/sha256"), Vec::<String>::new());
    world.assert_nothing_left(&[]);
}
