//! kill -9 at any moment: nothing lost, nothing half-made that the next command does not mend.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};

use crate::harness::{SETTLED, World, eventually, pid_of};

/// Moments spread over the whole of a command that takes some tens of milliseconds, without a random source: a failure
/// can be run again.
fn moments(count: u64, step: Duration) -> impl Iterator<Item = Duration> {
    (0..count).map(move |n| step * u32::try_from(n).unwrap_or(0))
}

#[test]
fn overlay_mount_and_umount_killed() {
    let world = World::root();
    world.sh("mkdir low && echo safe > low/f").ok();
    for moment in moments(40, Duration::from_micros(150)) {
        let mut child = world.start("exec sheep-overlay mount --id k low");
        thread::sleep(moment);
        let _ = kill(pid_of(&child), Signal::SIGKILL);
        child.wait().expect("wait");
        let mut child = world.start("exec sheep-overlay umount k");
        thread::sleep(moment);
        let _ = kill(pid_of(&child), Signal::SIGKILL);
        child.wait().expect("wait");
        // Whatever is left, the next commands make whole: there is one overlay k, mounted and usable, and then none.
        let taken = world.sh("sheep-overlay mount --id k low");
        assert!([0, 4].contains(&taken.code), "{taken:?}");
        assert_eq!(world.sh("cat data/overlay/k/merged/f").ok(), "safe");
        world.sh("sheep-overlay umount k && sheep-overlay ls").ok();
        assert_eq!(world.entries("overlay"), Vec::<String>::new());
        assert_eq!(world.mounts(), Vec::<String>::new());
    }
    assert_eq!(world.sh("cat low/f").ok(), "safe");
}

#[test]
fn import_killed() {
    let world = World::root();
    world.sh("mkdir tree && for i in $(seq 400); do echo $i > tree/$i; done && tar -C tree -czf tree.tar .").ok();
    for moment in moments(20, Duration::from_millis(2)) {
        let mut child = world.start("exec sheep-images import x tree.tar");
        thread::sleep(moment);
        let _ = kill(pid_of(&child), Signal::SIGKILL);
        child.wait().expect("wait");
        world.sh("sheep-images import x tree.tar >/dev/null && test $(ls $(sheep-images unpack x | jq -r .image.layers[0].path) | wc -l) = 400").ok();
        // An import that was done before it was killed has left an image whose name the second one took over.
        world
            .sh("sheep-images rm x && sheep-images ls --json | jq -r .image.digest | xargs -r -n 1 sheep-images rm")
            .ok();
        assert_eq!(world.entries("layers/sha256"), Vec::<String>::new());
        assert_eq!(world.entries("images/blobs/sha256"), Vec::<String>::new());
    }
}

#[test]
fn a_foreground_run_killed_as_a_whole() {
    let world = World::root().with_image();
    for moment in moments(25, Duration::from_millis(2)) {
        let mut child = world.start("sheep-run run --name k minimal sleep 60");
        thread::sleep(moment);
        // The shell leads its process group: sheep-run and whatever it has started in the foreground die at once.
        let _ = killpg(pid_of(&child), Signal::SIGKILL);
        child.wait().expect("wait");
        world.sh("sheep-run ps -a").ok();
        let removed = world.sh("sheep-run rm -f k");
        assert!([0, 3].contains(&removed.code), "{removed:?}");
        eventually("nothing is left", || world.mounts().is_empty() && world.entries("containers").is_empty());
        world.sh("sheep-overlay ls").ok();
        world.assert_nothing_left(&[]);
    }
}

#[test]
fn a_detached_run_killed_in_the_client() {
    let world = World::root().with_image();
    for moment in moments(25, Duration::from_millis(2)) {
        let mut child = world.start("exec sheep-run run --name k -d minimal sleep 60");
        thread::sleep(moment);
        let _ = kill(pid_of(&child), Signal::SIGKILL);
        child.wait().expect("wait");
        // The name is either free or a container that can be removed; never in between for longer than a command.
        world.sh("sheep-run ps -a").ok();
        let removed = world.sh("sheep-run rm -f k");
        assert!([0, 3].contains(&removed.code), "{removed:?}");
        eventually("nothing is left", || {
            world.sh("sheep-run ps -a; sheep-overlay ls; sheep-run rm -f k 2>/dev/null");
            world.mounts().is_empty() && world.entries("containers").is_empty() && world.entries("overlay").is_empty()
        });
        world.assert_nothing_left(&[]);
    }
}

#[test]
fn a_killed_monitor_loses_no_container() {
    let world = World::root().with_image();
    let id = world.sh("sheep-run run --name m -d minimal sleep 600").ok();
    // The monitor is the parent of the container's first process, or its grandparent.
    let pid = world.sh("sheep-run inspect m | jq -r .container.pid").ok();
    let monitor = world.sh(&format!("awk '/^PPid/{{print $2}}' /proc/{pid}/status")).ok();
    let name = world.sh(&format!("cat /proc/{monitor}/comm")).ok();
    assert!(name.starts_with("sheep-run"), "the parent is {name}");
    world.sh(&format!("kill -9 {monitor}")).ok();
    assert_eq!(world.sh("sheep-run ps --json | jq -r .container.status").ok(), "running");
    assert_eq!(world.sh("sheep-run exec m echo alive").ok(), "alive");
    world.sh("sheep-run stop -t 0 m").ok();
    assert_eq!(world.sh("sheep-run inspect m | jq -r .container.status").ok(), "stopped");
    world.sh("sheep-run rm m").ok();
    world.assert_nothing_left(&[&id]);
}

#[test]
fn a_torn_layer_under_a_mounted_overlay_stays_until_that_is_gone() {
    let world = World::root();
    let tear = "for l in $(ls data/layers/sha256); do ln -sfn another-boot data/layers/sha256/.unsynced-$l; done";
    world.sh("mkdir tree && echo whole > tree/f && tar -C tree -cf tree.tar . && sheep-images import x tree.tar").ok();
    world.sh(&format!("{SETTLED}; sheep-images unpack x | sheep-overlay mount - --id ov")).ok();
    world.sh(&format!("{tear}; sheep-images ls && test $(cat data/overlay/ov/merged/f) = whole")).ok();
    world.sh("sheep-overlay umount ov && sheep-images ls && test -z \"$(ls -A data/layers/sha256)\"").ok();
    // What lies on a layer and was kept is taken up again when the layer was unpacked anew.
    world.sh("sheep-images unpack x | sheep-overlay mount - --id ov && echo mine > data/overlay/ov/merged/g").ok();
    world.sh(&format!("sheep-overlay umount --keep ov; {SETTLED}; {tear}")).ok();
    world.sh("sheep-overlay mount --id ov").fails(1, "it must be unpacked anew");
    world.sh("sheep-images unpack x && sheep-overlay mount --id ov && cat data/overlay/ov/merged/[fg] && sheep-overlay umount ov").ok();
}
