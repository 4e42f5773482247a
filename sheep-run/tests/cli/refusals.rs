//! Bad input: one clear line, the documented code, nothing lost and nothing left.

use crate::harness::World;

#[test]
fn what_does_not_exist() {
    let world = World::new();
    for verb in ["start", "stop", "kill", "wait", "rm", "rm -f", "inspect", "logs"] {
        world.sh(&format!("sheep-run {verb} nosuch")).fails(3, "nosuch: no such container");
    }
    world.sh("sheep-run exec nosuch true").fails(125, "nosuch: no such container");
    world.sh("sheep-run rm ../overlay").fails(3, "no such container");
    world.sh("sheep-run run --pull never nosuch true").fails(125, "run nosuch: no such image");
    world.sh("sheep-run run --pull never -d nosuch true").fails(125, "run nosuch: no such image");
    world.sh("sheep-run create --pull never nosuch true").fails(3, "create nosuch: no such image");
    world.sh("sheep-run run -v ./nosuch:/v minimal true").fails(125, "nosuch");
    world.sh("sheep-run run --env-file nosuch minimal true").fails(125, "nosuch");
    world.sh("sheep-run run -d minimal nosuch").fails(127, "nosuch");
    world.sh("sheep-run run -d minimal /etc/passwd").fails(126, "/etc/passwd");
    world.assert_nothing_left();
}

#[test]
fn usage() {
    let world = World::new();
    for flags in [
        "--name a/b",
        "-m lots",
        "-m -5",
        "--cpus many",
        "--cpus 1 --cpu-quota 5",
        "-v /usr",
        "-v /usr:rel",
        "-e =x",
        "--nosuch",
        "--json",
        "--network x",
    ] {
        let outcome = world.sh(&format!("sheep-run run {flags} minimal true"));
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (125, 1), "{flags}: {}", outcome.stderr);
        assert_eq!(
            world.sh(&format!("sheep-run create {flags} minimal true")).code,
            if flags == "--json" { 0 } else { 2 },
            "{flags}"
        );
    }
    world.sh("sheep-run").fails(2, "verb");
    world.sh("sheep-run nosuch").fails(2, "nosuch");
    world.sh("sheep-run run").fails(125, "IMAGE");
    world.sh("sheep-run inspect $(sheep-run ps -a --json | jq -r .container.id) --print nosuch").fails(2, "nosuch");
    world.sh("sheep-run ps -a --json | jq -r .container.id | xargs sheep-run rm").ok();
    world.assert_nothing_left();
}

#[test]
fn names_in_use() {
    let world = World::new();
    let id = world.sh("sheep-run create --name taken minimal true").ok();
    world.sh("sheep-run run --name taken minimal true").fails(125, &id);
    world.sh("sheep-run create --name taken minimal true").fails(4, &id);
    world.sh(&format!("sheep-run create --name {id} minimal true")).fails(4, &id);
    assert_eq!(world.entries("data/containers"), [id.as_str()]);
    world.sh("sheep-run rm taken && sheep-run run --rm --name taken minimal true").ok();
    world.assert_nothing_left();
}

#[test]
fn a_running_container_is_not_removed() {
    let world = World::new();
    world.sh("sheep-run run --name r -d minimal sleep 60").ok();
    world.sh("sheep-run rm r").fails(4, "running");
    let outcome = world.sh("sheep-run rm nosuch r; sheep-run inspect nosuch r | jq -r .container.name");
    assert_eq!(outcome.stdout, "r\n", "the others have their turn: {outcome:?}");
    assert_eq!(world.sh("sheep-run inspect nosuch r >/dev/null").code, 3, "the first error's code");
    world.sh("sheep-run rm -f r").ok();
    world.assert_nothing_left();
}

#[test]
fn corrupt_state_is_named_and_not_guessed_at() {
    let world = World::new();
    world.sh("sheep-run create --name good minimal true").ok();
    for broken in ["", "{\"container\":", "{}", "{\"container\":{\"id\":5}}"] {
        let id = world.sh("sheep-run create --name bad minimal true").ok();
        world.sh(&format!("printf '%s' '{broken}' >data/containers/{id}/container.json")).ok();
        let outcome = world.sh("sheep-run ps -a");
        assert!(outcome.stdout.contains("good"), "the others are shown: {outcome:?}");
        assert!(outcome.stderr.contains(&format!("{id}/container.json")) && outcome.stderr.lines().count() == 1);
        assert_eq!(outcome.code, 1);
        world.sh(&format!("sheep-run inspect {id}")).fails(1, "container.json");
        world.sh(&format!("sheep-run rm {id}")).fails(1, "container.json");
        world.sh(&format!("sheep-run start {id}")).fails(1, "container.json");
        world.sh(&format!("sheep-run rm -f {id}")).ok();
    }
    world.sh("sheep-run rm good").ok();
    world.assert_nothing_left();
}

#[test]
fn a_limit_that_cannot_be_set_is_an_error() {
    let world = World::new();
    let controllers =
        world.sh("cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/unified/cgroup.controllers").stdout;
    for (flag, controller) in
        [("-m 64m", "memory"), ("--pids-limit 50", "pids"), ("--cpus 1.5", "cpu"), ("--cpu-shares 512", "cpu")]
    {
        for mode in ["--rm", "-d", ""] {
            let outcome = world.sh(&format!("sheep-run run {mode} {flag} minimal true"));
            if controllers.split_whitespace().any(|name| name == controller) {
                assert_eq!(outcome.code, 0, "{}", outcome.stderr);
            } else {
                outcome.fails(125, controller);
            }
        }
    }
    world.sh("sheep-run ps -a --json | jq -r .container.id | xargs -r sheep-run rm -f").ok();
    world.assert_nothing_left();
}

#[test]
fn a_missing_sibling_is_named() {
    let world = World::new();
    world.sh("mkdir alone && cp $(command -v sheep-run) alone").ok();
    world.sh("PATH=/usr/bin:/bin alone/sheep-run run minimal true").fails(125, "sheep-images");
    world.assert_nothing_left();
}
