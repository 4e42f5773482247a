//! What `explain` prints does what `run` does.

use crate::harness::World;

const HARD: &str =
    r#"sh -c 'printf "%s|" "$0" "$@" "$X"; echo; echo err >&2; touch /f; exit 5' "it's" 'a  b' '$HOME' '*' ''"#;

#[test]
fn it_does_nothing_itself() {
    let world = World::new();
    // What waits for the disk has an end.
    world.sh("while ls data/layers/sha256/.unsynced-* >/dev/null 2>&1; do sleep 0.05; done").ok();
    let look = "find data -printf '%p %T@\\n' | sort | sha256sum; ls -A data";
    let before = world.sh(look).ok();
    for flags in ["", "--rm", "-d", "--name x -t", "-d --json --name y"] {
        world
            .sh(&format!("sheep-run explain run {flags} minimal {HARD} >plan && shellcheck -S warning -s sh plan"))
            .ok();
    }
    assert_eq!(world.sh(look).ok(), before);
    world.sh("sheep-run explain run -m lots minimal").fails(2, "lots");
}

#[test]
fn in_the_foreground() {
    let world = World::new();
    for flags in ["--rm", ""] {
        let flags = format!("{flags} -e X=it\\'s --label a=b");
        world.sh(&format!("sheep-run explain run {flags} --name planned minimal {HARD} >plan")).ok();
        let planned = world.sh("sh plan");
        let direct = world.sh(&format!("sheep-run run {flags} --name direct minimal {HARD}"));
        assert_eq!(
            (planned.stdout.as_str(), planned.stderr.as_str(), planned.code),
            (direct.stdout.as_str(), direct.stderr.as_str(), direct.code),
        );
        assert_eq!((direct.stdout.as_str(), direct.code), ("it's|a  b|$HOME|*||it's|\n", 5));
        if !flags.contains("--rm") {
            let of = |name: &str| {
                let fields =
                    "[.container.status, .container.exitCode, .container.command, .container.labels, .image.reference]";
                let logs = world.sh(&format!("sheep-run logs {name}"));
                let diff = world.sh(&format!("sheep-overlay diff $(sheep-run inspect --print id {name})")).ok();
                (world.field(name, fields), logs.stdout, logs.stderr, diff)
            };
            assert_eq!(of("planned"), of("direct"));
            world.sh("sheep-run start planned && sheep-run wait planned && sheep-run rm planned direct").ok();
        }
        world.assert_nothing_left();
    }
    assert_eq!(world.sh("sheep-run explain run --rm -i minimal cat >plan; echo in | sh plan").ok(), "in");
    assert_eq!(world.sh("sheep-run explain run --rm minimal cat >plan; echo in | sh plan").ok(), "");
    world.assert_nothing_left();
}

#[test]
fn in_the_background() {
    let world = World::new();
    world.sh("sheep-run explain run -d --name planned minimal sh -c 'echo hi; sleep 60' >plan").ok();
    let id = world.sh("x=$(sh plan) && echo $x").ok();
    assert_eq!(world.field("planned", "[.container.id, .container.status]"), format!("[\"{id}\",\"running\"]"));
    assert_eq!(world.sh("sheep-run exec planned cat /proc/1/comm").ok(), "sh");
    let again = world.sh("sh plan");
    assert_eq!(again.code, 125, "the name is in use: {again:?}");
    world.sh("sheep-run rm -f planned").ok();
    world.assert_nothing_left();
}

#[test]
fn failures_are_undone() {
    let world = World::new();
    for (run, code) in [
        ("run nosuch true", 125),
        ("run minimal nosuch", 127),
        ("run -d minimal nosuch", 127),
        ("run --rm minimal /etc/passwd", 126),
    ] {
        let direct = world.sh(&format!("sheep-run {run}")).code;
        let planned = world.sh(&format!("sheep-run explain {run} >plan; sh plan"));
        assert_eq!(direct, code, "{run}");
        if !run.contains("-d") {
            assert_eq!(planned.code, code, "{run}: {}", planned.stderr);
        } else {
            assert_ne!(planned.code, 0);
        }
        world.assert_nothing_left();
    }
}
