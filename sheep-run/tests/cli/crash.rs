//! kill -9 of any of our processes at any moment: nothing lost, and nothing left that the next command does not mend.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};

use crate::harness::{World, end_of, eventually, pid_of};

/// Moments spread over the whole of a command that takes some tens of milliseconds, without a random source: a failure
/// can be run again.
fn moments() -> impl Iterator<Item = Duration> {
    (0..24).map(|n| Duration::from_millis(3) * n)
}

#[test]
fn a_client_killed() {
    let world = World::new();
    for flags in ["", "--rm", "-d", "-d --rm"] {
        for (n, moment) in moments().enumerate() {
            let mut child = world.start(&format!("exec sheep-run run {flags} --name k minimal sleep 60"));
            thread::sleep(moment);
            if n % 2 == 0 {
                let _ = kill(pid_of(&child), Signal::SIGKILL);
            } else {
                // And the siblings it has at work.
                let _ = killpg(pid_of(&child), Signal::SIGKILL);
            }
            end_of(&mut child);
            let listed = world.sh("sheep-run ps -a --json | jq -r .container.status");
            assert!(["", "creating\n", "running\n", "stopped\n"].contains(&listed.stdout.as_str()), "{listed:?}");
            let removed = world.sh("sheep-run rm -f k");
            assert!([0, 3].contains(&removed.code), "{flags} {moment:?}: {removed:?}");
            if removed.code == 3 {
                // A sibling that outlived the client may still have had something at work; ps mends it.
                eventually("it is gone", || world.sh("sheep-run ps -a --json").stdout.is_empty());
            }
            world.assert_nothing_left();
        }
    }
}

#[test]
fn the_name_of_a_killed_run_is_free_again() {
    let world = World::new();
    for moment in moments().step_by(3) {
        let mut child = world.start("sheep-run run --name k minimal sleep 60");
        thread::sleep(moment);
        let _ = killpg(pid_of(&child), Signal::SIGKILL);
        end_of(&mut child);
        let outcome = world.sh("sheep-run run --rm --name k minimal true");
        // The first process of a container belongs to no process group of ours: it may live on, and has the name.
        assert!(outcome.code == 0 || outcome.stderr.contains("in use"), "{outcome:?}");
        world.sh("sheep-run rm -f k");
        world.assert_nothing_left();
    }
}

#[test]
fn a_container_outlives_its_client_in_the_foreground() {
    let world = World::new();
    let mut child = world.start("exec sheep-run run --name o minimal sleep 60");
    eventually("it runs", || world.sh("sheep-run exec o true").code == 0);
    kill(pid_of(&child), Signal::SIGKILL).unwrap();
    end_of(&mut child);
    assert_eq!(world.field("o", ".container.status"), "\"running\"");
    assert_eq!(world.sh("sheep-run exec o echo alive").ok(), "alive");
    world.sh("sheep-run stop -t 0 o").ok();
    assert_eq!(world.field("o", "[.container.status, .container.exitCode]"), "[\"stopped\",null]");
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.sh("sheep-run rm o").ok();
    world.assert_nothing_left();
}

#[test]
fn a_monitor_killed_while_the_container_runs() {
    let world = World::new();
    for flags in ["", "--rm"] {
        let id = world.sh(&format!("sheep-run run {flags} --name m -d minimal sleep 600")).ok();
        world.kill_monitors();
        assert_eq!(world.sh("sheep-run ps --json | jq -r .container.status").ok(), "running");
        assert_eq!(world.sh("sheep-run exec m echo alive").ok(), "alive");
        world.sh("sheep-run rm m").fails(4, "running");
        world.sh("sheep-run stop -t 0 m").ok();
        assert_eq!(world.mounts(), Vec::<String>::new());
        world.assert_no_cgroup(&id);
        if flags.is_empty() {
            assert_eq!(world.field("m", "[.container.status, .container.exitCode]"), "[\"stopped\",null]");
            assert!(world.sh("sheep-run ps -a").ok().contains("Exited (?)"));
            assert_eq!(world.sh("sheep-run wait m").ok(), "unknown");
            world.sh("sheep-run start m && sheep-run exec m true").ok();
            world.kill_monitors();
            world.sh("sheep-run rm -f m").ok();
        }
        world.assert_nothing_left();
    }
}

#[test]
fn a_container_that_ends_without_its_monitor() {
    let world = World::new();
    world.sh("sheep-run run --name m -d minimal sh -c 'while [ ! -e /end ]; do sleep 0.02; done'").ok();
    world.kill_monitors();
    // The end may come to the one who brings it as well.
    world.sh("sheep-run exec m touch /end");
    eventually("the next command sees it", || world.field("m", ".container.status") == "\"stopped\"");
    assert_eq!(world.mounts(), Vec::<String>::new(), "and has unmounted it");
    world.sh("sheep-run rm m").ok();
    world.assert_nothing_left();
}

#[test]
fn a_monitor_killed_at_any_moment() {
    let world = World::new();
    for flags in ["", "--rm"] {
        for (n, moment) in moments().enumerate() {
            let command = if n % 2 == 0 { "sleep 0.02" } else { "sleep 60" };
            let mut child = world.start(&format!("exec sheep-run run {flags} --name k -d minimal {command}"));
            let mut seen = Vec::new();
            while seen.is_empty() && child.try_wait().unwrap().is_none() {
                seen = world.monitors();
            }
            thread::sleep(moment / 2);
            for pid in world.monitors() {
                let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
            let code = end_of(&mut child).code();
            assert!([Some(0), Some(125)].contains(&code), "{code:?}");
            let removed = world.sh("sheep-run rm -f k");
            assert!([0, 3].contains(&removed.code), "{flags} {moment:?}: {removed:?}");
            world.assert_nothing_left();
        }
    }
}

#[test]
fn stop_and_rm_killed() {
    let world = World::new();
    for moment in moments() {
        world.sh("sheep-run run --name k -d minimal sleep 60").ok();
        for verb in ["stop -t 0", "rm -f"] {
            let mut child = world.start(&format!("exec sheep-run {verb} k"));
            thread::sleep(moment / 3);
            let _ = killpg(pid_of(&child), Signal::SIGKILL);
            end_of(&mut child);
        }
        let removed = world.sh("sheep-run rm -f k");
        assert!([0, 3].contains(&removed.code), "{moment:?}: {removed:?}");
        world.assert_nothing_left();
    }
}

#[test]
fn start_killed_loses_no_changes() {
    let world = World::new();
    world.sh("sheep-run run --name k minimal sh -c 'echo precious >/f'").ok();
    world.sh("id=$(sheep-run inspect --print id k); jq '.process.args=[\"sleep\",\"60\"]' data/containers/$id/config.json >c && cp c data/containers/$id/config.json").ok();
    for (n, moment) in moments().enumerate() {
        let mut child = world.start("exec sheep-run start k");
        thread::sleep(moment / 2);
        let _ = kill(pid_of(&child), Signal::SIGKILL);
        if n % 2 == 0 {
            world.kill_monitors();
        }
        end_of(&mut child);
        world.sh("sheep-run start k && sheep-run exec k grep -q precious /f && sheep-run stop -t 0 k").ok();
        assert_eq!(world.mounts(), Vec::<String>::new());
    }
    world.sh("sheep-run rm k").ok();
    world.assert_nothing_left();
}

#[test]
fn after_the_machine_went_down() {
    let world = World::new();
    let id = world.sh("sheep-run run --name r -d minimal sh -c 'echo kept >>/f; sleep 60'").ok();
    eventually("it has written", || world.sh("sheep-run exec r cat /f").stdout == "kept\n");
    world.sh("sheep-run run --rm --name gone -d minimal sleep 60").ok();
    // What a power cut takes: processes, mounts, the run directory.
    world.kill_monitors();
    world.sh("sheep-ns --root run/ns list -q | xargs sheep-ns --root run/ns delete --force && umount data/overlay/*/merged && rm -r run").ok();
    let listed = world.sh("sheep-run ps -a").ok();
    assert!(listed.contains("Exited (?)") && listed.lines().count() == 2, "{listed}");
    assert_eq!(world.entries("data/containers"), [id.as_str()], "--rm means it does not come back");
    world.sh("sheep-run start r").ok();
    eventually("it runs again", || world.sh("sheep-run exec r cat /f").stdout == "kept\nkept\n");
    world.sh("sheep-run rm -f r").ok();
    world.assert_nothing_left();
}

#[test]
fn a_full_disk_leaves_nothing() {
    let world = World::new();
    world.sh("mkdir small && mount -t tmpfs -o size=100m tmpfs small && cp -a data small/ && head -c 200m /dev/zero >small/fill 2>/dev/null; true").ok();
    let run = |flags: &str| world.sh(&format!("sheep-run --root $PWD/small/data run {flags} minimal sh -c 'echo ran'"));
    for flags in ["", "-d", "--rm", "-d --rm"] {
        let outcome = run(flags);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (125, ""), "{flags}: {outcome:?}");
        assert!(outcome.stderr.contains("No space left"), "{flags}: {outcome:?}");
        assert_eq!(
            world.sh("ls -A small/data/containers small/data/overlay 2>/dev/null | grep -v :").stdout.trim(),
            ""
        );
    }
    world.sh("rm small/fill").ok();
    assert_eq!(run("--rm").ok(), "ran");
    // Full while it runs: the log loses lines and the record cannot be written, but the exit code is not lost.
    world.sh("sheep-run --root $PWD/small/data run --name x -d minimal sh -c 'while [ ! -e /go ]; do sleep 0.02; done; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 7'").ok();
    world
        .sh("sheep-run --root $PWD/small/data exec x touch /go; head -c 200m /dev/zero >small/fill 2>/dev/null; true")
        .ok();
    eventually("it has ended", || world.sh("sheep-run --root $PWD/small/data ps --json").stdout.is_empty());
    world.sh("rm small/fill").ok();
    let code = world.sh("sheep-run --root $PWD/small/data wait x").ok();
    assert_eq!(code, "7");
    world.sh("sheep-run --root $PWD/small/data rm x && timeout 20 sh -c 'until umount small; do sleep 0.1; done'").ok();
    world.assert_nothing_left();
}
