//! Bad input: one clear line, the documented code, nothing lost and nothing left.

use crate::harness::{SETTLED, World};

#[test]
fn things_that_do_not_exist() {
    let world = World::root().with_image();
    world.sh("sheep-images unpack nosuch").fails(3, "nosuch");
    world.sh("sheep-images rm nosuch").fails(3, "nosuch");
    world.sh("sheep-images import x nosuch.tar").fails(3, "nosuch.tar");
    world.sh("sheep-overlay mount nosuch").fails(3, "nosuch");
    world.sh("sheep-overlay umount nosuch").fails(3, "nosuch");
    world.sh("sheep-overlay diff nosuch").fails(3, "nosuch");
    world.sh("sheep-overlay mount --from nosuch").fails(3, "nosuch");
    world.sh("sheep-ns state nosuch").fails(3, "does not exist");
    world.sh("sheep-run stop nosuch").fails(3, "nosuch");
    world.sh("sheep-run rm nosuch").fails(3, "nosuch");
    world.sh("sheep-run inspect nosuch").fails(3, "nosuch");
    world.sh("sheep-run run nosuch true").fails(125, "nosuch");
    world.sh("sheep-run run --rm -v ./nosuch:/v minimal true").fails(125, "nosuch");
    world.assert_nothing_left(&[]);
}

#[test]
fn usage() {
    let world = World::root().with_image();
    world.sh("touch file && sheep-overlay mount file").fails(2, "file");
    world.sh("echo '[]' | sheep-overlay mount -").fails(2, "JSON object");
    world.sh("echo 'rubbish' | sheep-overlay umount -").fails(2, "JSON");
    world.sh("echo '{}' | sheep-overlay mount -").fails(2, "image");
    assert_eq!(world.sh("sheep-overlay mount").code, 2);
    assert_eq!(world.sh("sheep-overlay nosuchverb").code, 2);
    world.sh("sheep-overlay mount --id ../x .").fails(2, "../x");
    world.sh("sheep-run run --name a/b minimal true").fails(125, "a/b");
    world.sh("sheep-run run -m lots minimal true").fails(125, "lots");
    world.assert_nothing_left(&[]);
}

#[test]
fn a_name_in_use() {
    let world = World::root().with_image();
    let id = world.sh("sheep-run create --name taken minimal true").ok();
    world.sh("sheep-run run --name taken minimal true").fails(125, "taken");
    world.sh("sheep-run create --name taken minimal true").fails(4, &id);
    assert_eq!(world.entries("containers").len(), 1);
    world.sh("sheep-run rm taken").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn an_upper_in_use() {
    let world = World::root();
    world.sh("mkdir low && sheep-overlay mount --id mine low > doc").ok();
    world.sh("sheep-overlay mount --id mine low").fails(4, "in use");
    world.sh("echo kept > data/overlay/mine/merged/f && sheep-overlay umount --keep mine").ok();
    world.sh("sheep-overlay mount --id mine").ok();
    assert_eq!(world.sh("cat data/overlay/mine/merged/f").ok(), "kept");
    world.sh("sheep-overlay umount mine").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_busy_umount_deletes_nothing() {
    let world = World::root();
    world.sh("mkdir low && sheep-overlay mount --id busy low > doc && echo precious > data/overlay/busy/merged/f").ok();
    let outcome = world.sh("cd data/overlay/busy/merged && echo $$ && exec 2>&1; sheep-overlay umount busy; echo $?");
    let pid = outcome.stdout.lines().next().unwrap_or_default().to_owned();
    assert!(outcome.stdout.trim_end().ends_with('4'), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(&format!("pid {pid}")) || outcome.stdout.contains(&pid), "{}", outcome.stdout);
    assert_eq!(world.sh("cat data/overlay/busy/merged/f").ok(), "precious");
    world.sh("sheep-overlay umount busy").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn an_image_in_use_is_not_removed() {
    let world = World::root().with_image();
    let id = world.sh("sheep-images unpack minimal | sheep-overlay mount - | jq -r .overlay.id").ok();
    world.sh("sheep-images rm minimal").fails(4, &id);
    assert_eq!(world.sh("ls data/overlay/*/merged/bin/sh >/dev/null; echo $?").ok(), "0");
    world.sh(&format!("sheep-overlay umount {id} && sheep-images rm minimal")).ok();
    assert_eq!(world.sh("sheep-images ls --json").ok(), "");
    assert_eq!(world.entries("layers/sha256"), Vec::<String>::new());
    assert_eq!(world.entries("images/blobs/sha256"), Vec::<String>::new());
}

#[test]
fn hostile_and_broken_archives_leave_nothing() {
    let world = World::root().with_image();
    world.sh("mkdir canary tree && echo alive > canary/c && echo f > tree/f").ok();
    let list = format!("{SETTLED}; sheep-images ls --json; find data -printf '%p %s\\n' | sort");
    let before = world.sh(&list).ok();
    for (name, make) in [
        ("cut", "head -c 700000 /dev/urandom > tree/f; tar -cz tree | head -c 300000 > cut.tar"),
        ("cutplain", "tar -c tree | head -c 5000 > cutplain.tar"),
        ("dots", "tar -c --transform 's,tree/f,../../canary/c,' -P tree/f > dots.tar"),
        ("absolute", "tar -c --transform \"s,tree/f,$PWD/canary/c,\" -P tree/f > absolute.tar"),
        (
            "link",
            "ln -s ../../../../../.. tree/up; tar -cf link.tar tree/up; rm tree/up; mkdir -p tree/up$PWD/canary; echo evil > tree/up$PWD/canary/c; tar -rf link.tar tree/up$PWD/canary/c; rm -r tree/up",
        ),
        (
            "hard",
            "echo x > tree/h; ln tree/h tree/i; tar -c --transform \"s,tree/h,../../canary/c,\" -P tree/h tree/i > hard.tar",
        ),
        ("text", "echo 'this is no archive' > text.tar"),
        ("empty", ": > empty.tar"),
    ] {
        world.sh(make);
        let outcome = world.sh(&format!("sheep-images import {name} {name}.tar"));
        assert_eq!(outcome.stderr.lines().count(), usize::from(outcome.code != 0), "{name}: {}", outcome.stderr);
        if name != "link" {
            // A symbolic link that climbs stays inside the layer's own root; everything else is refused.
            assert_eq!(outcome.code, 1, "{name}: {} {}", outcome.stdout, outcome.stderr);
        }
        world.sh(&format!("sheep-images rm {name} 2>/dev/null"));
        assert_eq!(world.sh("cat canary/c; ls canary").ok(), "alive\nc", "{name} wrote outside");
        assert_eq!(world.sh(&list).ok(), before, "{name} left something");
    }
}

#[test]
fn corrupt_state_is_named_and_not_guessed_at() {
    let world = World::root().with_image();
    world.sh("sheep-run create --name good minimal true && sheep-run create --name bad minimal true").ok();
    let bad = world.sh("sheep-run inspect bad | jq -r .container.id").ok();
    world.sh(&format!("echo '{{\"container\":' > data/containers/{bad}/container.json")).ok();
    let outcome = world.sh("sheep-run ps -a");
    assert!(outcome.stdout.contains("good"), "the others are still shown: {outcome:?}");
    assert!(outcome.stderr.contains("container.json"), "{outcome:?}");
    assert!(world.data().join("containers").join(&bad).exists(), "nothing is deleted on a guess");
    world.sh(&format!("sheep-run rm -f {bad} good")).ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let world = World::root().with_image();
    world.sh("mkdir small && mount -t tmpfs -o size=1m tmpfs small && mkdir big && head -c 3000000 /dev/zero | tr '\\0' x > big/f && tar -C big -cf big.tar .").ok();
    world.sh("sheep-overlay --root small/data mount --backend copy big").fails(1, "No space left");
    world.sh("sheep-images --root small/data import x big.tar").fails(1, "No space left");
    assert_eq!(
        world
            .sh("ls -A small/data/overlay; sheep-images --root small/data ls --json; find small -type f -size +64k")
            .ok(),
        ""
    );
    world.sh("timeout 20 sh -c 'until umount small; do sleep 0.1; done'").ok();
}

#[test]
fn a_limit_this_host_cannot_set_is_an_error() {
    let world = World::root().with_image();
    let controllers =
        world.sh("cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/unified/cgroup.controllers 2>/dev/null").stdout;
    let outcome = world.sh("sheep-run run --rm -m 64m minimal true");
    if controllers.contains("memory") {
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    } else {
        outcome.fails(125, "memory");
    }
    world.assert_nothing_left(&[]);
}
