//! Hooks: when they are called, where, with what, and what their failure does.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{World, alive, groups, processes, wait};

/// A hook that runs a shell script. `sh` is the host's busybox, at a path that is also the container's.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/sbin:/usr/bin", "OF=the hook"]})
}

/// A hook that notes its kind, what it can see, and the state it was given.
fn note(kind: &str, log: &str) -> Value {
    let script = format!(
        "state=$(cat); pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
         echo \"{kind} $(readlink /proc/self/ns/mnt) $(ls -d /of-the-root 2>/dev/null) [$OF$HOME] $state\" >> {log}"
    );
    hook(&script)
}

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Lines of a log, split into words; the state is the last.
fn lines(file: &std::path::Path) -> Vec<(String, String, Value)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let (left, state) = line.split_once(" [the hook] ").unwrap();
        let (kind, seen) = left.split_once(' ').unwrap();
        (kind.to_owned(), seen.trim().to_owned(), serde_json::from_str(state).unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn their_order_and_their_place() {
    let world = World::new();
    fs::write(world.root("of-the-root"), "").unwrap();
    let log = world.path("log");
    world.bundle("echo program >> /log; exec sleep 1000", |config| {
        for kind in KINDS {
            let log = if kind == "startContainer" { "/log" } else { &log };
            config["hooks"][kind] = json!([note(kind, log)]);
        }
        config["hooks"]["createRuntime"].as_array_mut().unwrap().push(note("createRuntime2", &log));
        config["annotations"] = json!({"a": "b"});
    });
    world.create("hooks-order");
    let outside = fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    let pid = world.state("hooks-order")["pid"].as_i64().unwrap();
    let inside = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap().display().to_string();
    let host_log = world.dir.join("log");
    let seen = lines(&host_log);
    let kinds: Vec<&str> = seen.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(kinds, ["prestart", "createRuntime", "createRuntime2", "createContainer"]);
    for (kind, place, state) in &seen {
        // The host's files are still there in the container's namespace, and its root is not yet /.
        assert_eq!(place, if kind == "createContainer" { &inside } else { &outside }, "{kind}");
        let want = json!({"ociVersion": "1.2.0", "id": "hooks-order", "status": "creating", "pid": pid,
            "bundle": world.path("bundle"), "annotations": {"a": "b"}});
        assert_eq!(*state, want, "{kind}");
    }
    assert!(!world.root("log").exists());
    world.ok(&["start", "hooks-order"]);
    wait("the program", || fs::read_to_string(world.root("log")).is_ok_and(|log| log.ends_with("program\n")));
    let text = fs::read_to_string(world.root("log")).unwrap();
    fs::write(world.root("log"), text.trim_end_matches("program\n")).unwrap();
    let (kind, place, state) = lines(&world.root("log")).remove(0);
    assert_eq!((kind.as_str(), place), ("startContainer", format!("{inside} /of-the-root")));
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
    let (kind, place, state) = lines(&host_log).remove(4);
    assert_eq!((kind.as_str(), &place, &state["status"]), ("poststart", &outside, &json!("running")));
    world.ok(&["delete", "--force", "hooks-order"]);
    let (kind, place, state) = lines(&host_log).remove(5);
    assert_eq!((kind.as_str(), &place), ("poststop", &outside));
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    assert_eq!(lines(&host_log).len(), 6);
    // The same by `run`, which does it all.
    fs::remove_file(&host_log).unwrap();
    fs::remove_file(world.root("log")).unwrap();
    let path = world.dir.join("bundle/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["args"] = json!(["true"]);
    fs::write(&path, config.to_string()).unwrap();
    world.ok(&["run", "-b", &world.path("bundle"), "hooks-run"]);
    let kinds: Vec<String> = lines(&host_log).into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["prestart", "createRuntime", "createRuntime2", "createContainer", "poststart", "poststop"]);
    assert!(world.leftovers().is_empty());
}

/// What hooks are used for: something of the host's goes into the root while it can still be reached from outside.
#[test]
fn a_hook_may_mount_into_the_root() {
    let world = World::new();
    let (source, target) = (world.path("host/canary"), world.path("root/mounted"));
    fs::write(&target, "").unwrap();
    world.bundle("cat /mounted", |config| {
        let script = format!(
            "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); exec /usr/bin/nsenter -m -t $pid mount --bind {source} {target}"
        );
        config["hooks"] = json!({"createRuntime": [hook(&script)]});
    });
    assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "hooks-mount"]), "of the host\n");
    assert_eq!(fs::read_to_string(&target).unwrap(), "");
}

#[test]
fn a_failure_at_create_undoes_it() {
    let world = World::new();
    let (log, bundle) = (world.path("log"), world.path("bundle"));
    for kind in ["prestart", "createRuntime", "createContainer"] {
        for verb in [&["create"][..], &["run"], &["run", "--detach"]] {
            world.bundle("echo ran > /ran; exec sleep 1000", |config| {
                config["hooks"][kind] =
                    json!([hook("echo because >&2; exit 3"), hook(&format!("echo never >> {log}"))]);
                config["hooks"]["poststop"] = json!([hook(&format!("echo poststop >> {log}"))]);
            });
            let code = if verb[0] == "run" { 125 } else { 1 };
            let args = [verb, &["-b", &bundle, "hooks-fail"]].concat();
            world.fails(&args, code, &format!("hooks.{kind}: /bin/busybox: ended with 3: because"));
            assert!(world.leftovers().is_empty() && groups("hooks-fail").is_empty(), "{kind} {verb:?}");
            assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\n", "{kind} {verb:?}");
            fs::remove_file(&log).unwrap();
            assert!(!world.root("ran").exists());
        }
    }
}

#[test]
fn a_failure_at_start_ends_it() {
    let world = World::new();
    let log = world.path("log");
    for (kind, runs) in [("startContainer", false), ("poststart", true)] {
        let _ = fs::remove_file(world.root("ran"));
        world.bundle("echo ran > /ran; exec sleep 1000", |config| {
            // The program has begun when poststart is called, but may not have got far.
            let script =
                if runs { format!("sleep 0.2; cat {}; exit 4", world.path("root/ran")) } else { "exit 4".into() };
            config["hooks"][kind] = json!([hook(&script)]);
            config["hooks"]["poststop"] = json!([hook(&format!("echo poststop >> {log}"))]);
        });
        world.create("hooks-start");
        let pid = world.state("hooks-start")["pid"].as_i64().unwrap() as i32;
        world.fails(&["start", "hooks-start"], 1, &format!("hooks.{kind}: /bin/busybox: ended with 4"));
        wait("its end", || !alive(pid));
        assert_eq!(world.state("hooks-start")["status"], "stopped", "{kind}");
        assert_eq!(world.root("ran").exists(), runs, "{kind}");
        assert!(fs::metadata(&log).is_err());
        world.ok(&["delete", "hooks-start"]);
        assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\n");
        fs::remove_file(&log).unwrap();
        world.fails(&["run", "-b", &world.path("bundle"), "hooks-start"], 125, &format!("hooks.{kind}"));
        assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\n");
        fs::remove_file(&log).unwrap();
        assert!(world.leftovers().is_empty());
    }
}

#[test]
fn a_failure_at_delete_is_a_warning() {
    let world = World::new();
    let log = world.path("log");
    world.bundle("true", |config| {
        config["hooks"]["poststop"] = json!([hook("exit 5"), hook(&format!("echo second >> {log}"))]);
    });
    let ending = world.run(&["run", "-b", &world.path("bundle"), "hooks-stop"]);
    assert_eq!((ending.code, ending.err.lines().count()), (0, 1), "{ending:?}");
    assert!(ending.err.contains("hooks.poststop: /bin/busybox: ended with 5"), "{ending:?}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "second\n");
    assert!(world.leftovers().is_empty());
}

#[test]
fn no_hook_takes_longer_than_it_may() {
    let world = World::new();
    world.bundle("true", |config| {
        config["hooks"]["createRuntime"] = json!([{"path": "/bin/busybox", "args": ["sleep", "4711"], "timeout": 1}]);
    });
    world.fails(&["run", "-b", &world.path("bundle"), "hooks-time"], 125, "did not end in 1 seconds");
    assert!(processes("sleep 4711").is_empty());
    world.bundle("true", |config| config["hooks"]["createRuntime"] = json!([{"path": "bin/x"}]));
    world.fails(&["create", "-b", &world.path("bundle"), "hooks-time"], 2, "hooks.createRuntime: bin/x");
    assert!(world.leftovers().is_empty());
}

/// `create` is killed while a hook runs: the hook does not outlive it, and whoever comes next calls poststop.
#[test]
fn a_create_that_is_killed() {
    let world = World::new();
    let log = world.path("log");
    world.bundle("true", |config| {
        config["hooks"]["createRuntime"] = json!([{"path": "/bin/busybox", "args": ["sleep", "4712"]}]);
        config["hooks"]["poststop"] = json!([hook(&format!("echo poststop >> {log}"))]);
    });
    let mut create = world.ns(&["create", "-b", &world.path("bundle"), "hooks-kill"]).spawn().unwrap();
    wait("the hook", || !processes("sleep 4712").is_empty());
    create.kill().unwrap();
    create.wait().unwrap();
    wait("the hook's end", || processes("sleep 4712").is_empty());
    // Until its first process is gone too, it counts as being made.
    wait("all to be cleared away", || {
        assert_eq!(world.ok(&["list", "-q"]), "");
        world.leftovers().is_empty()
    });
    assert!(groups("hooks-kill").is_empty());
    assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\n");
}

/// An unprivileged user's hooks run as that user, and startContainer has no more than the program will have.
#[test]
fn whose_they_are() {
    let world = World::of_user();
    let log = world.path("log");
    world.bundle("true", |config| {
        // It can reach the container's namespaces, as network helpers must.
        let script =
            format!("pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); id -u > {log}; readlink /proc/$pid/ns/net >> {log}");
        config["hooks"]["createRuntime"] = json!([hook(&script)]);
        config["hooks"]["startContainer"] = json!([hook("id -u > /log; grep CapEff /proc/self/status >> /log")]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
        }
    });
    world.ok(&["run", "-b", &world.path("bundle"), "hooks-user"]);
    let seen = fs::read_to_string(&log).unwrap();
    let (id, network) = seen.split_once('\n').unwrap();
    assert!(id != "0" && network.starts_with("net:["), "{seen}");
    assert_eq!(fs::read_to_string(world.root("log")).unwrap(), "0\nCapEff:\t0000000000000020\n");
    assert_eq!(fs::metadata(world.root("log")).unwrap().permissions().mode() & 0o777, 0o644);
}
