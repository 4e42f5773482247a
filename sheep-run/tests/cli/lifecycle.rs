//! From `run` to `rm`.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{World, eventually};

#[test]
fn two_containers_share_one_image() {
    let world = World::new();
    let one = world.sh("sheep-run run --name ov1 -d minimal /bin/sleep 3600").ok();
    let two = world.sh("sheep-run run --name ov2 -d minimal /bin/sleep 3600").ok();
    assert_ne!(one, two);
    assert_eq!(world.entries("data/overlay").len(), 2);
    assert_ne!(world.field("ov1", ".overlay.upper"), world.field("ov2", ".overlay.upper"));
    assert_eq!(world.field("ov1", ".overlay.lower"), world.field("ov2", ".overlay.lower"));
    world.sh("sheep-run exec ov1 touch /x").ok();
    assert_eq!(world.sh("sheep-run exec ov2 test -e /x").code, 1);
    let table = world.sh("sheep-run ps").ok();
    let header: Vec<&str> =
        table.lines().next().unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(header, ["CONTAINER ID", "NAME", "IMAGE", "COMMAND", "STATUS", "CREATED"]);
    assert!(table.contains("ov1") && table.contains("minimal:latest") && table.contains("/bin/sleep 3600"), "{table}");
    assert!(table.contains("Up ") && table.lines().count() == 3, "{table}");
    world.sh("sheep-run rm -f ov1 ov2").ok();
    world.assert_nothing_left();
    world.assert_no_cgroup(&one);
    world.assert_no_cgroup(&two);
}

#[test]
fn the_exit_code_is_the_programs_own() {
    let world = World::new();
    for flags in ["--rm", ""] {
        for (command, code) in [
            ("true", 0),
            ("sh -c 'exit 7'", 7),
            ("sh -c 'exit 125'", 125),
            ("sh -c 'sh -c \"kill -9 \\$\\$\"; exit $?'", 137),
        ] {
            let outcome = world.sh(&format!("sheep-run run {flags} minimal {command}"));
            assert_eq!(outcome.code, code, "{flags} {command}: {}", outcome.stderr);
        }
        world.sh(&format!("sheep-run run {flags} minimal nosuch")).fails(127, "nosuch");
        world.sh(&format!("sheep-run run {flags} minimal /etc/passwd")).fails(126, "/etc/passwd");
    }
    assert_eq!(world.sh("echo in | sheep-run run --rm -i minimal cat").ok(), "in");
    assert_eq!(world.sh("echo in | sheep-run run --rm minimal cat").ok(), "");
    world.sh("sheep-run ps -a --json | jq -r .container.id | xargs sheep-run rm").ok();
    world.assert_nothing_left();
}

#[test]
fn a_container_has_a_filter_of_system_calls() {
    let world = World::new();
    let mode =
        |flags: &str| world.sh(&format!("sheep-run run --rm {flags} minimal sh -c 'grep Seccomp: /proc/self/status'"));
    assert_eq!(mode("").ok(), "Seccomp:\t2");
    assert_eq!(mode("--seccomp unconfined").ok(), "Seccomp:\t0");
    let deny =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    world.sh(&format!("echo '{deny}' > profile.json")).ok();
    let outcome = world.sh("sheep-run run --rm --seccomp profile.json minimal mkdir /d");
    assert!(outcome.code == 1 && outcome.stderr.contains("not permitted"), "{}", outcome.stderr);
    world.sh("sheep-run run --rm --seccomp nosuch minimal true").fails(125, "nosuch");
    // A process that joins has the container's.
    world.sh("sheep-run run -d --name filtered --seccomp profile.json minimal sleep 3600").ok();
    assert!(world.sh("sheep-run exec filtered mkdir /d").stderr.contains("not permitted"));
    world.sh("sheep-run rm -f filtered").ok();
    world.assert_nothing_left();
}

#[test]
fn a_container_in_the_foreground_stays_and_starts_again() {
    let world = World::new();
    let outcome = world.sh("sheep-run run --name fg minimal sh -c 'echo run | tee -a /runs; echo err >&2; exit 3'");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.code), ("run\n", "err\n", 3));
    assert_eq!(world.field("fg", "[.container.status, .container.exitCode, .container.pid]"), r#"["stopped",3,null]"#);
    assert_eq!(world.mounts(), Vec::<String>::new(), "nothing stays mounted");
    assert_eq!(world.field("fg", ".overlay.mountId"), "null");
    assert!(world.sh("sheep-run ps -a").ok().contains("Exited (3)"));
    assert_eq!(world.sh("sheep-run ps --json").ok(), "");
    world.sh("sheep-run start fg").ok();
    assert_eq!(world.sh("sheep-run wait fg").ok(), "3");
    let logs = world.sh("sheep-run logs fg");
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("run\nrun\n", "err\nerr\n"));
    assert_eq!(world.sh("sheep-overlay diff $(sheep-run inspect --print id fg)").ok(), "A /runs");
    assert_eq!(world.sh("cat $(sheep-run inspect --print overlay.upper fg)/runs").ok(), "run\nrun");
    world.sh("sheep-run rm fg").ok();
    world.assert_nothing_left();
}

#[test]
fn a_detached_run_lets_go_of_everything() {
    let world = World::new();
    let begin = Instant::now();
    let id = world.sh("x=$(sheep-run run --name bg -d minimal sleep 30 2>&1 3>&1) && echo $x").ok();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(world.field("bg", ".container.id"), format!("\"{id}\""));
    // Neither the container nor its monitor has anything open that it was not given.
    assert_eq!(world.sh("sheep-run exec bg sh -c 'ls /proc/1/fd | wc -l'").ok(), "3");
    let monitor = world.monitors()[0];
    let open = world.sh(&format!("ls -l /proc/{monitor}/fd")).ok();
    assert!(!open.contains("/dev/pts") && !open.contains("lock"), "{open}");
    assert_eq!(world.sh(&format!("readlink /proc/{monitor}/cwd")).ok(), "/");
    world.sh("sheep-run rm -f bg").ok();
    world.assert_nothing_left();
    world.assert_no_cgroup(&id);
}

#[test]
fn create_start_kill_wait_rm() {
    let world = World::new();
    let id = world.sh("sheep-run create --name made --label a=b --label c minimal sleep 60").ok();
    assert_eq!(world.field("made", "[.container.status, .container.labels]"), r#"["created",{"a":"b","c":""}]"#);
    assert_eq!(world.mounts(), Vec::<String>::new(), "nothing is mounted before it runs");
    assert!(world.sh("sheep-run ps -a").ok().contains("Created"));
    world.sh("sheep-run wait made").fails(1, "never started");
    world.sh("sheep-run stop made").ok();
    world.sh("sheep-run kill made").fails(1, "does not run");
    assert_eq!(world.sh(&format!("sheep-run start {}", &id[..5])).ok(), id);
    world.sh("sheep-run start made").ok();
    assert_eq!(world.field("made", ".container.status"), "\"running\"");
    let pid = world.field("made", ".container.pid");
    assert_eq!(world.sh(&format!("cat /proc/{pid}/comm")).ok(), "sleep");
    world.sh(&format!("sheep-run kill -s KILL {id}")).ok();
    assert_eq!(world.sh("sheep-run wait made").ok(), "137");
    assert_eq!(world.field("made", "[.container.exitCode, .container.signal, .container.oomKilled]"), "[137,9,false]");
    world.sh("sheep-run rm made").ok();
    let document = world.sh("sheep-run create --json minimal true | jq -c 'keys_unsorted'").ok();
    assert_eq!(document, r#"["image","overlay","container"]"#);
    world.sh("sheep-run ps -a --json | jq -r .container.id | xargs sheep-run rm").ok();
    world.assert_nothing_left();
}

#[test]
fn stop_asks_first_and_takes_several() {
    let world = World::new();
    world.sh("sheep-run run --name polite -d minimal sh -c 'trap \"exit 3\" TERM; echo ready; while :; do sleep 0.02; done'").ok();
    for name in ["deaf1", "deaf2"] {
        world.sh(&format!("sheep-run run --name {name} -d minimal sh -c 'trap \"cat /proc/uptime\" TERM; echo ready; while :; do sleep 0.02; done'")).ok();
    }
    for name in ["polite", "deaf1", "deaf2"] {
        eventually("its trap is set", || world.sh(&format!("sheep-run logs {name}")).stdout == "ready\n");
    }
    let begin = Instant::now();
    world.sh("sheep-run stop polite").ok();
    assert!(begin.elapsed() < Duration::from_secs(9), "it heeds SIGTERM");
    assert_eq!(world.field("polite", ".container.exitCode"), "3");
    let begin = Instant::now();
    world.sh("sheep-run stop -t 4 deaf1 polite deaf2").ok();
    assert!(begin.elapsed() >= Duration::from_secs(4), "they were given the time");
    let asked = "sheep-run logs $name | sed -n '2s/ .*//p'";
    let killed = "date -d \"$(sheep-run inspect $name | jq -r .container.finished)\" +%s.%N";
    for what in [asked, killed] {
        let times = world.sh(&format!("for name in deaf1 deaf2; do {what}; done")).ok();
        let times: Vec<f64> = times.lines().map(|seconds| seconds.parse().unwrap()).collect();
        assert!(times.len() == 2 && (times[0] - times[1]).abs() < 3.9, "both at the same time: {what}: {times:?}");
    }
    assert_eq!(world.sh("sheep-run wait deaf1 deaf2 polite").ok(), "137\n137\n3");
    world.sh("sheep-run rm polite deaf1 deaf2").ok();
    world.assert_nothing_left();
}

#[test]
fn wait_gets_the_code_of_a_container_that_goes() {
    let world = World::new();
    let id = world.sh("sheep-run run --rm -d minimal sh -c 'sleep 3; exit 9'").ok();
    assert_eq!(world.sh(&format!("sheep-run wait {id}")).ok(), "9");
    world.assert_nothing_left();
    world.sh(&format!("sheep-run wait {id}")).fails(3, &id);
    // One that ends at once is no less seen.
    for _ in 0..10 {
        let id = world.sh("sheep-run run -d minimal sh -c 'exit 4'").ok();
        assert_eq!(world.sh(&format!("sheep-run wait {id}; sheep-run rm {id}")).ok(), "4");
    }
    world.assert_nothing_left();
}

#[test]
fn flags_reach_the_container() {
    let world = World::new();
    world.sh("mkdir vol && echo there >vol/f && printf '# c\\nFROM_FILE=1\\nHERE\\n' >env").ok();
    let out = world
        .sh("HERE=yes sheep-run run --rm -e A='b c' -e HERE -e NOT_HERE --env-file env -v ./vol:/v:ro -w /tmp -u 65534:65534 --hostname sheepy minimal sh -c 'echo $A $FROM_FILE $HERE ${NOT_HERE-unset}; pwd; id -u; hostname; cat /v/f; touch /v/x 2>/dev/null || echo refused'")
        .ok();
    assert_eq!(out, "b c 1 yes unset\n/tmp\n65534\nsheepy\nthere\nrefused");
    let id = world.sh("sheep-run run --name h minimal hostname; sheep-run inspect --print id h").ok();
    let lines: Vec<&str> = id.lines().collect();
    assert_eq!(lines[0], lines[1], "the host name is the id");
    world.sh("sheep-run rm h").ok();
    assert_eq!(
        world.sh("sheep-run run --rm --backend copy minimal sh -c 'echo in > /x; cat /x' 2>/dev/null").ok(),
        "in"
    );
    world.assert_nothing_left();
}

#[test]
fn exec_in_a_running_container() {
    let world = World::new();
    world.sh("sheep-run run --name e -d -e FROM=run minimal sleep 60").ok();
    assert_eq!(world.sh("sheep-run exec -e A=b -w /tmp -u 1:1 e sh -c 'echo $A; pwd; id -u'").ok(), "b\n/tmp\n1");
    assert_eq!(world.sh("echo in | sheep-run exec -i e cat").ok(), "in");
    assert_eq!(world.sh("echo in | sheep-run exec e cat").ok(), "");
    assert_eq!(world.sh("sheep-run exec e sh -c 'exit 5'").code, 5);
    assert_eq!(world.sh("sheep-run exec e sh -c 'kill -9 $$'").code, 137);
    world.sh("sheep-run exec e nosuch").fails(127, "nosuch");
    world.sh("sheep-run exec -d e sh -c 'sleep 0.1; touch /done'").ok();
    eventually("the detached command has run", || world.sh("sheep-run exec e test -e /done").code == 0);
    world.sh("sheep-run stop -t 0 e").ok();
    world.sh("sheep-run exec e true").fails(125, "not running");
    world.sh("sheep-run rm e").ok();
    world.assert_nothing_left();
}

#[test]
fn terminals() {
    let world = World::new();
    let script = |command: &str| world.sh(&format!("script -qec {command:?} /dev/null </dev/null")).ok();
    let out = script("sheep-run run --rm -it minimal sh -c 'test -t 0 && test -t 1 && stty size && tty'");
    assert!(out.contains("/dev/"), "{out:?}");
    world.sh("sheep-run run --name t -t -d minimal sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2; sleep 60'").ok();
    eventually("it has written", || world.sh("sheep-run logs t").stdout.contains("err"));
    let out = world.sh("sheep-run logs t").ok();
    assert!(out.contains("/dev/") && out.contains("all\r\n"), "{out:?}");
    let out = script("sheep-run exec -it t tty");
    assert!(out.contains("/dev/"), "{out:?}");
    world.sh("sheep-run rm -f t").ok();
    world.assert_nothing_left();
}

#[test]
fn stdin_of_a_detached_container() {
    let world = World::new();
    world.sh("sheep-run run --name none -d minimal cat && sheep-run wait none").ok();
    assert_eq!(world.field("none", ".container.exitCode"), "0", "stdin is empty");
    world.sh("sheep-run run --name open -d -i minimal cat").ok();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(world.field("open", ".container.status"), "\"running\"", "stdin has no end");
    world.sh("sheep-run rm -f none open").ok();
    world.assert_nothing_left();
}

#[test]
fn several_commands_on_one_container_at_the_same_moment() {
    let world = World::new();
    let all = |script: &str| -> Vec<i32> {
        thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| world.sh(script).code)).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        })
    };
    for _ in 0..3 {
        let codes = all("sheep-run run --name one -d minimal sleep 60");
        assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
        assert!(codes.iter().all(|code| [0, 125].contains(code)), "{codes:?}");
        assert_eq!(all("sheep-run stop -t 0 one"), [0; 4]);
        assert_eq!(all("sheep-run start one"), [0; 4]);
        assert_eq!(world.monitors().len(), 1);
        let codes = all("sheep-run rm -f one");
        assert!(codes.contains(&0) && codes.iter().all(|code| [0, 3].contains(code)), "{codes:?}");
        world.assert_nothing_left();
    }
}

#[test]
fn as_a_plain_user() {
    let world = World::user();
    let outcome = world.sh("sheep-run run --rm minimal sh -c 'id -u; exit 4'");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("0\n", 4), "{}", outcome.stderr);
    world.sh("sheep-run run -d --name u minimal sh -c 'echo hi; sleep 60' 2>/dev/null").ok();
    assert_eq!(world.sh("sheep-run exec u cat /proc/1/comm").ok(), "sh");
    eventually("it has written", || world.sh("sheep-run logs u").stdout == "hi\n");
    world.sh("sheep-run stop -t 0 u && sheep-run start u && sheep-run rm -f u").ok();
    world.assert_nothing_left();
}
