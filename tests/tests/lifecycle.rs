//! The life of containers under `sheep-run`.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{World, eventually};

#[test]
fn two_containers_share_one_image() {
    let world = World::root().with_image();
    let id1 = world.sh("sheep-run run --name ov1 -d minimal /bin/sleep 3600").ok();
    let id2 = world.sh("sheep-run run --name ov2 -d minimal /bin/sleep 3600").ok();
    assert_eq!(world.entries("overlay").len(), 2);
    let facts = world.sh("sheep-run inspect ov1 ov2 | jq -cs '[(map(.overlay.upper) | unique | length), (map(.overlay.lower) | unique | length)]'").ok();
    assert_eq!(facts, "[2,1]", "two uppers, one stack of lowers");
    world.sh("sheep-run exec ov1 touch /only-in-one").ok();
    assert_eq!(world.sh("sheep-run exec ov2 test -e /only-in-one").code, 1);
    world.sh("sheep-run rm -f ov1 ov2").ok();
    world.assert_nothing_left(&[&id1, &id2]);
}

#[test]
fn the_exit_status_is_the_programs_own() {
    let world = World::root().with_image();
    for (command, code) in [("true", 0), ("sh -c 'exit 7'", 7), ("nosuch", 127), ("/etc/passwd", 126)] {
        let outcome = world.sh(&format!("sheep-run run --rm minimal {command}"));
        assert_eq!(outcome.code, code, "{command}: {}", outcome.stderr);
    }
    assert_eq!(world.sh("echo in | sheep-run run --rm -i minimal cat").ok(), "in");
    assert_eq!(world.sh("echo in | sheep-run run --rm minimal cat").ok(), "", "without -i there is no stdin");
    world.assert_nothing_left(&[]);
}

#[test]
fn flags_reach_the_container() {
    let world = World::root().with_image();
    world.sh("mkdir vol && echo there > vol/f && printf '# comment\\nFROM_FILE=1\\nHOME_COPY\\n' > env").ok();
    let out = world
        .sh("HOME_COPY=yes sheep-run run --rm -e A='b c' --env-file env -v ./vol:/v:ro -w /tmp -u 65534:65534 --hostname sheepy minimal sh -c 'echo $A $FROM_FILE $HOME_COPY; pwd; id -u; hostname; cat /v/f; touch /v/x 2>/dev/null || echo refused'")
        .ok();
    assert_eq!(out, "b c 1 yes\n/tmp\n65534\nsheepy\nthere\nrefused");
    assert_eq!(world.sh("sheep-run run --rm --read-only minimal sh -c 'touch /x 2>/dev/null; echo $?'").ok(), "1");
    assert_eq!(world.sh("sheep-run run --rm minimal ls -la").code, 0, "flags after the image are the command's");
    let own = world.sh("readlink /proc/self/ns/net").ok();
    assert_eq!(world.sh("sheep-run run --rm --network host minimal readlink /proc/self/ns/net").ok(), own);
    assert_ne!(world.sh("sheep-run run --rm minimal readlink /proc/self/ns/net").ok(), own);
    world.assert_nothing_left(&[]);
}

#[test]
fn a_stopped_container_keeps_its_changes_and_starts_again() {
    let world = World::root().with_image();
    world.sh("sheep-run run --name keep -d minimal sh -c 'echo run >> /runs; trap \"exit 3\" TERM; while :; do sleep 0.05; done'").ok();
    eventually("the first run has written", || world.sh("sheep-run exec keep cat /runs").stdout == "run\n");
    world.sh("sheep-run stop keep").ok();
    assert_eq!(
        world.sh("sheep-run inspect keep | jq -c '[.container.status, .container.exitCode]'").ok(),
        r#"["stopped",3]"#
    );
    assert_eq!(world.mounts(), Vec::<String>::new(), "nothing stays mounted for a stopped container");
    world.sh("sheep-run start keep").ok();
    eventually("the second run has written", || world.sh("sheep-run exec keep cat /runs").stdout == "run\nrun\n");
    world.sh("sheep-run rm keep").fails(4, "running");
    world.sh("sheep-run stop -t 0 keep && sheep-run rm keep").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn stop_waits_then_kills() {
    let world = World::root().with_image();
    world.sh("sheep-run run --name deaf -d minimal sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'").ok();
    let begin = Instant::now();
    world.sh("sheep-run stop -t 1 deaf").ok();
    assert!(begin.elapsed() >= Duration::from_secs(1), "TERM and KILL must not come at once");
    assert_eq!(world.sh("sheep-run wait deaf").ok(), "137");
    world.sh("sheep-run rm deaf").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn logs_keep_both_streams() {
    let world = World::root().with_image();
    world
        .sh("sheep-run run --name talk -d minimal sh -c 'echo out; echo err >&2; printf tail'; sheep-run wait talk")
        .ok();
    let outcome = world.sh("sheep-run logs talk");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\ntail", "err\n"));
    assert_eq!(world.sh("sheep-run logs -f talk 2>/dev/null").ok(), "out\ntail", "-f ends with the container");
    world.sh("sheep-run rm talk").ok();
}

#[test]
fn names_and_prefixes_are_accepted_everywhere() {
    let world = World::root().with_image();
    let id = world.sh("sheep-run create --name made minimal sleep 60").ok();
    assert_eq!(world.sh("sheep-run inspect made | jq -r .container.status").ok(), "created");
    let prefix = &id[..4];
    world.sh(&format!("sheep-run start {prefix} && sheep-run ps --json | jq -e 'select(.container.id==\"{id}\" and .container.status==\"running\")' >/dev/null")).ok();
    world.sh(&format!("sheep-run kill -s KILL {prefix}; sheep-run wait {id}")).ok();
    world.sh(&format!("sheep-run rm {id}")).ok();
    world.assert_nothing_left(&[&id]);
}

#[test]
fn what_explain_prints_does_what_run_does() {
    let world = World::root().with_image();
    world.sh("sheep-run explain run --rm -e X='it'\\''s' minimal sh -c 'echo $X; touch /f; exit 5' > plan").ok();
    assert_eq!(world.entries("containers"), Vec::<String>::new(), "explain itself does nothing");
    let planned = world.sh("sh plan");
    let direct = world.sh("sheep-run run --rm -e X='it'\\''s' minimal sh -c 'echo $X; touch /f; exit 5'");
    assert_eq!((planned.stdout.as_str(), planned.code), (direct.stdout.as_str(), direct.code), "{}", planned.stderr);
    assert_eq!(direct.stdout, "it's\n");
    world.assert_nothing_left(&[]);
}

#[test]
fn a_detached_run_lets_go_of_stdout() {
    let world = World::root().with_image();
    let begin = Instant::now();
    world.sh("x=$(sheep-run run --name bg -d minimal sleep 30) && test -n \"$x\"").ok();
    assert!(begin.elapsed() < Duration::from_secs(20));
    world.sh("sheep-run rm -f bg").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = World::root().with_image();
    let out = world.sh("script -qec 'sheep-run run --rm -it minimal sh -c \"test -t 0 && test -t 1 && stty size >/dev/null; tty\"' /dev/null </dev/null").ok();
    assert!(out.contains("/dev/pts/") || out.contains("/dev/console"), "{out:?}");
    world.assert_nothing_left(&[]);
}

#[test]
fn two_commands_on_one_container_at_the_same_moment() {
    let world = World::root().with_image();
    for _ in 0..5 {
        world.sh("sheep-run run --name both -d minimal sleep 60").ok();
        let codes: Vec<i32> = thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| world.sh("sheep-run rm -f both").code)).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert!(codes.contains(&0), "{codes:?}");
        assert!(codes.iter().all(|code| [0, 3].contains(code)), "done or not found, nothing else: {codes:?}");
        world.assert_nothing_left(&[]);
    }
    let codes: Vec<i32> = thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| world.sh("sheep-run run --name one -d minimal sleep 60").code)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "one name, one container: {codes:?}");
    world.sh("sheep-run rm -f one").ok();
    world.assert_nothing_left(&[]);
}
