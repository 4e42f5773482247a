//! A container's life: create, start, state, kill, delete, run, list; and what is left when somebody dies on the way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{NS, World, alive, end_of, groups, in_user_namespace, processes, signal, wait};

#[test]
fn from_create_to_delete() {
    let world = World::new();
    let id = "life-1";
    world.bundle("echo started > /started; exec sleep 1000", |config| config["annotations"] = json!({"a": "b"}));
    let pid_file = world.path("pid");
    world.ok(&["create", "--bundle", &world.path("bundle"), "--pid-file", &pid_file, id]);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let state = world.state(id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], pid);
    assert_eq!(state["id"], id);
    assert_eq!(state["bundle"], Value::from(world.path("bundle")));
    assert_eq!(state["annotations"], json!({"a": "b"}));
    assert!(!world.root("started").exists(), "the program waits for start");
    assert_eq!(world.leftovers(), [id]);
    world.fails(&["create", "--bundle", &world.path("bundle"), id], 4, "exists already");
    world.fails(&["delete", id], 4, "is created");
    world.ok(&["start", id]);
    world.wait_status(id, "running");
    wait("the program", || world.root("started").exists());
    world.fails(&["start", id], 4, "is running");
    world.fails(&["delete", id], 4, "is running");
    let list: Value = serde_json::from_str(&world.ok(&["list", "-f", "json"])).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["pid"], &list[0]["status"]), (&json!(id), &json!(pid), &json!("running")));
    assert_eq!(world.ok(&["list", "-q"]), format!("{id}\n"));
    assert!(world.ok(&["list"]).starts_with("ID"));
    world.fails(&["kill", id, "FROB"], 2, "FROB");
    world.ok(&["kill", id, "SIGKILL"]);
    wait("its end", || !alive(pid));
    world.wait_status(id, "stopped");
    assert_eq!(world.state(id)["pid"], 0);
    world.fails(&["kill", id, "9"], 4, "not running");
    world.fails(&["exec", id, "true"], 125, "is stopped");
    world.ok(&["delete", id]);
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(groups(id).is_empty());
    for verb in [&["state", id][..], &["start", id], &["kill", id], &["delete", id]] {
        world.fails(verb, 3, "does not exist");
    }
    world.ok(&["delete", "--force", id]);
}

#[test]
fn run_ends_as_its_program() {
    let world = World::new();
    let bundle = world.path("bundle");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("sh -c 'kill -15 $$'; exit $?", 143)] {
        world.bundle(script, |_| {});
        assert_eq!(world.run(&["run", "--bundle", &bundle, "run-1"]).code, code, "{script}");
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(groups("run-1").is_empty());
    }
    world.bundle("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done", |_| {});
    let mut child = world.ns(&["run", "-b", &bundle, "run-2"]).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    world.wait_status("run-2", "running");
    signal(child.id(), 15);
    assert_eq!(end_of(&mut child), 9);
    assert_eq!(world.leftovers(), [""; 0]);
    world.bundle("exec sleep 1000", |_| {});
    world.ok(&["run", "--detach", "-b", &bundle, "run-3"]);
    assert_eq!(world.state("run-3")["status"], "running");
    world.ok(&["delete", "--force", "run-3"]);
    assert!(groups("run-3").is_empty() && world.leftovers().is_empty());
    world.ok(&["run", "--keep", "-b", &bundle, "-f", &config(&world, "true"), "run-4"]);
    assert_eq!(world.state("run-4")["status"], "stopped");
    world.ok(&["delete", "run-4"]);
}

/// Another config.json for the bundle.
fn config(world: &World, script: &str) -> String {
    let file = world.path("other.json");
    fs::write(&file, world.ok(&["spec", "--rootfs", &world.path("root"), "--", "sh", "-c", script])).unwrap();
    file
}

#[test]
fn a_program_that_cannot_be_executed_leaves_nothing() {
    let world = World::new();
    let bundle = world.path("bundle");
    for (program, code, words) in
        [("/no/such", 127, "no such file or directory"), ("/etc/passwd", 126, "permission denied")]
    {
        world.bundle("", |config| config["process"]["args"] = json!([program]));
        world.fails(&["run", "--bundle", &bundle, "bad"], code, words);
        world.fails(&["create", "--bundle", &bundle, "bad"], 1, words);
        world.fails(&["run", "--detach", "--bundle", &bundle, "bad"], code, words);
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(groups("bad").is_empty());
    }
    // A script whose interpreter is missing shows only when it is executed: `start` says so.
    fs::write(world.root("script"), "#!/no/interpreter\n").unwrap();
    fs::set_permissions(world.root("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    world.bundle("", |config| config["process"]["args"] = json!(["/script"]));
    world.create("late");
    world.fails(&["start", "late"], 1, "exec /script: no such file or directory");
    world.wait_status("late", "stopped");
    world.ok(&["delete", "late"]);
}

#[test]
fn settings_that_are_not_done_are_refused() {
    let world = World::new();
    let bundle = world.path("bundle");
    let table = [
        ("/linux/seccomp", json!({"defaultAction": "ALLOW"}), "linux.seccomp"),
        ("/process/apparmorProfile", json!("sheep-no-such"), "process.apparmorProfile sheep-no-such: "),
        ("/process/selinuxLabel", json!("x"), "process.selinuxLabel x: "),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel x: "),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/netDevices", json!({"no-such-device": {}}), "no such device"),
        ("/linux/netDevices", json!({"lo": {"name": "longer-than-15-bytes"}}), "linux.netDevices"),
        ("/hooks", json!({"poststart": [{"path": "true"}]}), "hooks"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/root/path", json!("/no/such/root"), "/no/such/root: no such file or directory"),
        ("/mounts/0/options", json!(["frobnicate"]), "frobnicate"),
        ("/mounts/2/type", json!("frobfs"), "no file system 'frobfs'"),
        ("/process/rlimits", json!([{"type": "RLIMIT_FROB", "soft": 1, "hard": 1}]), "RLIMIT_FROB"),
    ];
    for (at, value, words) in table {
        world.bundle("true", |config| {
            let (parent, key) = at.rsplit_once('/').unwrap();
            match config.pointer_mut(parent).unwrap() {
                Value::Object(map) => drop(map.insert(key.to_owned(), value)),
                _ => unreachable!(),
            }
        });
        world.fails(&["run", "--bundle", &bundle, "refused"], 125, words);
        assert_eq!(world.leftovers(), [""; 0], "{at}");
    }
    world.bundle("true", |_| {});
    for id in ["../x", "a/b", ".x", ""] {
        world.fails(&["create", "--bundle", &bundle, id], 2, "is no container id");
    }
    world.fails(&["create", "--bundle", &bundle, "--no-pivot", "x"], 2, "--no-pivot");
    world.fails(&["create", "--bundle", "/no/such", "x"], 1, "/no/such");
    world.fails(&["create", "--bundle", &world.path("host"), "x"], 3, "config.json");
}

#[test]
fn names_limits_sysctls_and_namespaces_of_the_config() {
    let world = World::new();
    let script = "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni; ulimit -n; \
        cat /proc/self/oom_score_adj; umask; cut -d. -f1 /proc/uptime; stat -c %t:%T:%a:%u /dev/own; id -G";
    world.bundle(script, |config| {
        config["hostname"] = json!("h1");
        config["domainname"] = json!("d1");
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "5"});
        config["linux"]["devices"] =
            json!([{"type": "c", "path": "/dev/own", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7}]);
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000}});
        let process = &mut config["process"];
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        process["oomScoreAdj"] = json!(500);
        process["user"] = json!({"uid": 0, "gid": 0, "umask": 0o027, "additionalGids": [5, 6]});
    });
    let seen = world.run(&["run", "--bundle", &world.path("bundle"), "names"]);
    let lines: Vec<&str> = seen.out.lines().collect();
    assert_eq!(lines.get(..7).unwrap(), ["h1", "d1", "1", "5", "100", "500", "0027"], "{seen:?}");
    assert!(lines[7].parse::<u64>().unwrap() >= 1_000_000_000, "{seen:?}");
    assert_eq!(lines.get(8..).unwrap(), ["1:5:640:7", "0 5 6"], "{seen:?}");
}

#[test]
fn mounts_of_the_config() {
    let world = World::new();
    fs::create_dir_all(world.root("full/sub")).unwrap();
    fs::write(world.root("full/file"), "copied\n").unwrap();
    fs::write(world.dir.join("host/single"), "single\n").unwrap();
    let script = "cat /full/file; test -d /full/sub; echo x > /full/new; cat /new/dir/canary /new/file; echo x > /new/dir/y; \
        ls -d /new/dir /new/file; grep -c ' /new/dir ro' /proc/self/mountinfo";
    world.bundle(script, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=755"]}));
        mounts.push(json!({"destination": "/new/dir", "type": "bind", "source": world.path("host"), "options": ["rbind", "rro"]}));
        mounts.push(json!({"destination": "/new/file", "source": world.path("host/single"), "options": ["bind", "ro", "rprivate"]}));
    });
    let seen = world.run(&["run", "--bundle", &world.path("bundle"), "mounts"]);
    assert_eq!(seen.out, "copied\nof the host\nsingle\n/new/dir\n/new/file\n1\n", "{seen:?}");
    assert!(seen.err.contains("Read-only file system"), "{seen:?}");
    assert!(!world.root("full/new").exists() && !world.dir.join("host/y").exists());
}

#[test]
fn namespaces_joined_by_path() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("first");
    world.ok(&["start", "first"]);
    let pid = world.state("first")["pid"].as_i64().unwrap();
    let script = "for kind in net ipc uts pid; do readlink /proc/self/ns/$kind; done; ps | grep -c '[s]leep 1000'";
    world.bundle(script, |config| {
        config.as_object_mut().unwrap().remove("hostname");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let file = match namespace["type"].as_str().unwrap() {
                "network" => "net",
                kind @ ("ipc" | "uts" | "pid") => kind,
                _ => continue,
            };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    });
    let seen = world.run(&["run", "--bundle", &world.path("bundle"), "second"]);
    let want: String = ["net", "ipc", "uts", "pid"]
        .iter()
        .map(|kind| format!("{}\n", fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display()))
        .collect();
    assert_eq!(seen.out, want + "1\n", "{seen:?}");
    world.ok(&["delete", "--force", "first"]);
}

#[test]
fn root_in_a_user_namespace() {
    let world = World::new();
    let script = "id -u; cat /proc/self/uid_map; echo x > /tmp/made; echo x > /dev/null; hostname; cat /proc/self/setgroups; id -G";
    world.bundle(script, |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        (config["linux"]["uidMappings"], config["linux"]["gidMappings"]) = (map.clone(), map);
        config["process"]["user"]["additionalGids"] = json!([7]);
    });
    world.give_root_to(100_000);
    let seen = world.run(&["run", "--bundle", &world.path("bundle"), "userns"]);
    assert_eq!(seen.out, "0\n         0     100000       1000\nsheep\nallow\n0 7\n", "{seen:?}");
    let made = fs::metadata(world.root("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

/// What only the namespace's owners may reach is reached, however late the maps are written.
#[test]
fn a_root_directory_of_others_in_a_user_namespace() {
    let world = World::new();
    world.give_root_to(100_000);
    let private = world.dir.join("private");
    fs::create_dir(&private).unwrap();
    for name in ["root", "host"] {
        fs::rename(world.dir.join(name), private.join(name)).unwrap();
    }
    std::os::unix::fs::chown(&private, Some(100_000), Some(100_000)).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let config = world.ok(&["spec", "--rootfs", &world.path("private/root"), "--", "cat", "/tmp/host/canary"]);
    let mut config: Value = serde_json::from_str(&config).unwrap();
    in_user_namespace(&mut config);
    let bind =
        json!({"destination": "/tmp/host", "type": "bind", "source": world.path("private/host"), "options": ["rbind"]});
    config["mounts"].as_array_mut().unwrap().push(bind);
    fs::write(world.path("bundle/config.json"), config.to_string()).unwrap();
    // The parent alone is slow to write; the child goes on.
    let late = Command::new("strace")
        .args(["-o", "/dev/null", "-e", "inject=write:delay_enter=100ms", NS, "--root"])
        .args([
            world.path("state"),
            "run".to_owned(),
            "--bundle".to_owned(),
            world.path("bundle"),
            "late-maps".to_owned(),
        ])
        .output()
        .expect("strace is installed by scripts/setup");
    assert_eq!(String::from_utf8_lossy(&late.stderr), "");
    assert_eq!(String::from_utf8_lossy(&late.stdout), "of the host\n");
}

#[test]
fn one_of_two_at_the_same_moment() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    for round in 0..5 {
        let id = format!("twice-{round}");
        for verb in [&["create", "--bundle", &world.path("bundle"), &id][..], &["start", &id]] {
            let both: Vec<_> = (0..2).map(|_| world.ns(verb).stderr(Stdio::null()).spawn().unwrap()).collect();
            let mut codes: Vec<i32> = both.into_iter().map(|mut child| end_of(&mut child)).collect();
            codes.sort_unstable();
            assert_eq!(codes, [0, 4], "{verb:?}");
        }
        world.ok(&["delete", "--force", &id]);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_control_group_that_was_never_on_record_goes_too() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    // As `create` leaves it when it is killed right after it made the group: a configuration, a group, no record.
    let id = format!("unrecorded-{}", std::process::id());
    world.create(&id);
    let group = groups(&id).pop().expect("a control group");
    world.ok(&["delete", "--force", &id]);
    let dir = world.dir.join("state").join(&id);
    fs::create_dir(&dir).unwrap();
    fs::copy(world.path("bundle/config.json"), dir.join("config.json")).unwrap();
    // Its parent goes with the last group in it.
    fs::create_dir_all(&group).unwrap();
    world.ok(&["delete", "--force", &id]);
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!group.exists());
}

#[test]
fn whoever_is_killed_leaves_nothing_that_stays() {
    let world = World::new();
    let mark = format!("sleep 66.{}", std::process::id());
    world.bundle(&format!("exec {mark}"), |_| {});
    for round in 0..40u64 {
        let mut child = world.ns(&["create", "--bundle", &world.path("bundle"), "torn"]).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(400 * round));
        let _ = child.kill();
        let _ = child.wait();
        match round % 3 {
            0 => drop(world.ok(&["list"])),
            1 => drop(world.ok(&["delete", "--force", "torn"])),
            _ => {}
        }
        let again = world.run(&["create", "--bundle", &world.path("bundle"), "torn"]);
        assert!(again.code == 0 || again.err.contains("exists already"), "{round}: {again:?}");
        world.ok(&["delete", "--force", "torn"]);
        assert_eq!(world.leftovers(), [""; 0], "{round}");
        assert!(groups("torn").is_empty(), "{round}");
        wait("every process to go", || processes(&world.path("bundle")).is_empty());
    }
    let started = |id: &str| {
        world.create(id);
        world.ok(&["start", id]);
        world.state(id)["pid"].as_i64().unwrap() as i32
    };
    let pid = started("killed");
    signal(pid as u32, 9);
    world.wait_status("killed", "stopped");
    world.ok(&["delete", "killed"]);
    // A record of a process that has gone, whose number another has now, is a record of nobody.
    let pid = started("old");
    let file = world.dir.join("state/old/state.json");
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    record["process"]["startTime"] = json!(1);
    fs::write(&file, record.to_string()).unwrap();
    world.fails(&["kill", "old", "9"], 4, "not running");
    assert!(alive(pid), "nobody else is killed");
    fs::write(&file, "{").unwrap();
    world.fails(&["state", "old"], 1, "corrupt");
    signal(pid as u32, 9);
    assert!(world.run(&["delete", "--force", "old"]).code == 0);
    for group in groups("old") {
        wait("an empty group", || fs::remove_dir(&group).is_ok());
    }
}

#[test]
fn without_a_pid_namespace() {
    let world = World::new();
    let mark = format!("sleep 55.{}", std::process::id());
    let own = |config: &mut Value| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    };
    for how in
        [&["kill", "--all", "flat", "KILL"][..], &["kill", "--all", "flat", "TERM"], &["delete", "--force", "flat"]]
    {
        world.bundle(&format!("setsid {mark} & exec {mark}"), own);
        world.create("flat");
        world.ok(&["start", "flat"]);
        wait("both programs", || processes(&mark).len() == 2);
        world.ok(how);
        wait("their end", || processes(&mark).is_empty());
        world.ok(&["delete", "--force", "flat"]);
        assert!(groups("flat").is_empty());
    }
}

#[test]
fn errors_go_to_the_log_too() {
    let world = World::new();
    let log = world.path("log");
    world.fails(&["--log", &log, "--log-format", "json", "state", "nobody"], 3, "does not exist");
    world.fails(&["--log", &log, "--log-format=json", "state", "nobody"], 3, "does not exist");
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.lines().count(), 2);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().unwrap().contains("does not exist") && line["time"].is_string());
    }
    assert!(world.ok(&["--version"]).starts_with("sheep-ns version "));
}
