//! What is done to a container that runs: pause, resume, ps, update, events. What limits do is tested in the virtual machine
//! (tests/vm), where the controllers are; here also that they are refused where they are not.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{World, alive, end_of, groups, wait};

/// Whether this host's cgroup v2 tree has controllers; a hybrid host's has none.
fn controllers() -> bool {
    let file = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    let text = file.iter().find_map(|file| fs::read_to_string(file).ok()).expect("a cgroup v2 tree");
    text.contains("memory")
}

fn started(world: &World, id: &str, script: &str) {
    world.bundle(script, |_| {});
    world.create(id);
    world.ok(&["start", id]);
    world.wait_status(id, "running");
}

#[test]
fn a_paused_container() {
    let world = World::new();
    world.bundle("i=0; while :; do i=$((i + 1)); echo $i > /count; done", |_| {});
    world.create("p1");
    for verb in ["pause", "resume"] {
        world.fails(&[verb, "nobody"], 3, "does not exist");
        world.fails(&[verb, "p1"], 4, "is created");
    }
    world.ok(&["start", "p1"]);
    world.fails(&["resume", "p1"], 4, "is running; only a paused one");
    wait("the program", || world.root("count").exists());
    let count = || fs::read_to_string(world.root("count")).unwrap();
    world.ok(&["pause", "p1"]);
    assert_eq!(world.state("p1")["status"], "paused");
    assert!(world.ok(&["list"]).contains(" paused "));
    let stopped_at = count();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(count(), stopped_at);
    world.fails(&["pause", "p1"], 4, "is paused");
    world.fails(&["delete", "p1"], 4, "is paused");
    world.fails(&["exec", "p1", "true"], 125, "is paused");
    world.ok(&["resume", "p1"]);
    assert_eq!(world.state("p1")["status"], "running");
    wait("it to go on", || count() != stopped_at);
    // What is paused can be killed, and be done with.
    let pid = world.state("p1")["pid"].as_i64().unwrap() as i32;
    world.ok(&["pause", "p1"]);
    world.ok(&["kill", "p1", "KILL"]);
    wait("its end", || !alive(pid));
    world.ok(&["delete", "p1"]);
    started(&world, "p2", "exec sleep 1000");
    let pid = world.state("p2")["pid"].as_i64().unwrap() as i32;
    world.ok(&["pause", "p2"]);
    world.ok(&["delete", "--force", "p2"]);
    assert!(!alive(pid) && world.leftovers().is_empty() && groups("p2").is_empty());
    // An ordinary signal waits until it goes on.
    started(&world, "p3", "trap 'exit 5' TERM; while :; do sleep 0.01; done");
    let pid = world.state("p3")["pid"].as_i64().unwrap() as i32;
    world.ok(&["pause", "p3"]);
    world.ok(&["kill", "p3", "TERM"]);
    assert!(alive(pid));
    world.ok(&["resume", "p3"]);
    world.wait_status("p3", "stopped");
    world.fails(&["pause", "p3"], 4, "is stopped");
    world.fails(&["update", "--pids-limit", "5", "p3"], 4, "is stopped");
    world.fails(&["events", "--stats", "p3"], 4, "is stopped");
}

#[test]
fn processes_of_a_container() {
    let world = World::new();
    // One in a pid namespace of its own, one that exec has brought.
    world.bundle("sleep 71.5 & unshare -p -f sh -c 'sleep 72.5; true' & wait", |config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    });
    world.create("ps1");
    world.ok(&["start", "ps1"]);
    let mut exec = world.ns(&["exec", "ps1", "sleep", "73.5"]).stdout(Stdio::null()).spawn().unwrap();
    let list = || serde_json::from_str::<Vec<i32>>(&world.ok(&["ps", "--format", "json", "ps1"])).unwrap();
    wait("all of them", || list().len() == 6);
    let first = world.state("ps1")["pid"].as_i64().unwrap() as i32;
    assert!(list().contains(&first) && list().iter().all(|pid| alive(*pid)));
    let table = world.ok(&["ps", "ps1"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("PID") && lines[0].contains("CMD") && lines.len() == 7, "{table}");
    for words in ["sleep 71.5", "sleep 72.5", "sleep 73.5"] {
        assert_eq!(lines.iter().filter(|line| line.ends_with(words)).count(), 1, "{table}");
    }
    assert!(world.ok(&["ps", "ps1", "-o", "pid,comm"]).lines().all(|line| line.split_whitespace().count() == 2));
    world.fails(&["ps", "ps1", "-o", "comm"], 2, "without a column PID");
    world.fails(&["ps", "nobody"], 3, "does not exist");
    // A paused one as well.
    world.ok(&["pause", "ps1"]);
    assert_eq!(list().len(), 6);
    world.ok(&["delete", "--force", "ps1"]);
    assert_eq!(end_of(&mut exec), 137);
    // Without a control group, by the pid namespace.
    let bundle = world.path("bundle");
    world.ok(&["--cgroup-manager", "disabled", "run", "--detach", "-b", &bundle, "ps2"]);
    let list = || serde_json::from_str::<Vec<i32>>(&world.ok(&["ps", "-f", "json", "ps2"])).unwrap();
    wait("all but exec's", || list().len() == 5);
    for verb in [&["pause", "ps2"][..], &["update", "--pids-limit", "5", "ps2"], &["events", "--stats", "ps2"]] {
        world.fails(verb, 2, "without a control group");
    }
    world.ok(&["kill", "ps2", "KILL"]);
    world.wait_status("ps2", "stopped");
    assert_eq!(world.ok(&["ps", "-f", "json", "ps2"]), "[]\n");
}

#[test]
fn limits_of_a_container_that_runs() {
    let world = World::new();
    started(&world, "u1", "exec sleep 1000");
    let file = world.path("resources.json");
    let write = |value: Value| fs::write(&file, value.to_string()).unwrap();
    // What makes no sense, before anything is looked for.
    for (flags, words) in [
        (&[][..], "no limit given"),
        (&["--memory", "lots"], "--memory"),
        (&["--cpu-period", "5"], "cpu.period"),
        (&["--cpu-idle", "7"], "cpu.idle"),
        (&["--blkio-weight", "5"], "blockIO.weight"),
        (&["--cpuset-cpus", "all"], "cpu"),
        (&["--resources", &file, "--memory", "1g"], "give no other"),
    ] {
        world.fails(&[&["update"], flags, &["u1"]].concat(), 2, words);
    }
    world.fails(&["update", "--resources", &world.path("none"), "u1"], 1, "none");
    fs::write(&file, "{").unwrap();
    world.fails(&["update", "-r", &file, "u1"], 2, "resources.json");
    write(json!({"memory": {"swappiness": 5}}));
    world.fails(&["update", "-r", &file, "u1"], 2, "memory.swappiness");
    write(json!({"devices": [{"allow": true, "access": "rwm"}]}));
    world.fails(&["update", "-r", &file, "u1"], 2, "devices");
    world.fails(&["update", "--pids-limit", "5", "nobody"], 3, "does not exist");
    write(json!({"unified": {"cgroup.procs": "1"}}));
    world.fails(&["update", "-r", &file, "u1"], 2, "not a limit");
    // What changes nothing: zeros, the rules for devices that are in force anyway, no limit where there is none.
    let config: Value = serde_json::from_slice(&fs::read(world.path("bundle/config.json")).unwrap()).unwrap();
    write(json!({"devices": config["linux"]["resources"]["devices"], "memory": {"limit": 0}, "pids": {"limit": -1},
        "cpu": {"quota": 0, "period": 0, "shares": 0}}));
    world.ok(&["update", "-r", &file, "u1"]);
    if controllers() {
        world.ok(&["update", "--memory", "64m", "--pids-limit", "7", "u1"]);
        let group = groups("u1").pop().unwrap();
        assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap(), "67108864\n");
        assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "7\n");
    } else {
        world.fails(&["update", "--memory", "64m", "u1"], 1, "cgroup v2 tree has no memory controller");
        write(json!({"pids": {"limit": 10}}));
        let with_stdin = world.ns(&["update", "--resources", "-", "u1"]).stdin(fs::File::open(&file).unwrap()).output();
        let said = String::from_utf8(with_stdin.unwrap().stderr).unwrap();
        assert!(said.contains("pids limit: this host's cgroup v2 tree has no pids controller"), "{said}");
        // What needs no controller is done.
        write(json!({"unified": {"cgroup.max.depth": "2", "cgroup.max.descendants": "3"}}));
        world.ok(&["update", "-r", &file, "u1"]);
        let group = groups("u1").pop().unwrap();
        let depth = || fs::read_to_string(group.join("cgroup.max.depth")).unwrap();
        assert_eq!(depth(), "2\n");
        // All or nothing: the second value is refused by the kernel, and the first put back.
        write(json!({"unified": {"cgroup.max.depth": "5", "cgroup.max.descendants": "many"}}));
        world.fails(&["update", "-r", &file, "u1"], 1, "cgroup.max.descendants");
        assert_eq!(depth(), "2\n");
        write(json!({"unified": {"cgroup.max.depth": "5", "cgroup.max.frob": "1"}}));
        world.fails(&["update", "-r", &file, "u1"], 1, "cgroup.max.frob");
        assert_eq!(depth(), "2\n");
    }
}

#[test]
fn events_of_a_container() {
    let world = World::new();
    started(&world, "e1", "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; sleep 1000");
    let event: Value = serde_json::from_str(&world.ok(&["events", "--stats", "e1"])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("e1")));
    let data = &event["data"];
    for key in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt"] {
        assert!(data[key].is_object(), "{key}: {data}");
    }
    assert!(data["pids"]["current"].as_u64().unwrap() >= 1, "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
    assert!(data["memory"]["usage"]["limit"].is_u64() && data["memory"]["raw"].is_object(), "{data}");
    // Again and again, until the container's end.
    let mut child = world.ns(&["events", "--interval", "20ms", "e1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["type"], "stats", "{line}");
    }
    world.ok(&["kill", "e1", "KILL"]);
    lines.read_to_string(&mut String::new()).unwrap();
    assert_eq!(end_of(&mut child), 0);
    world.wait_status("e1", "stopped");
    world.fails(&["events", "e1"], 4, "is stopped");
    world.fails(&["events", "--interval", "0s", "e1"], 2, "--interval");
    world.fails(&["events", "nobody"], 3, "does not exist");
    world.ok(&["delete", "e1"]);
    // A reader that goes away is a quiet end.
    started(&world, "e2", "exec sleep 1000");
    let pipe = format!("{} --root {} events --interval 5ms e2 | head -n1", world.path("sheep-ns"), world.path("state"));
    fs::copy(crate::harness::NS, world.dir.join("sheep-ns")).unwrap();
    let ending = Command::new("bash").args(["-o", "pipefail", "-c", &pipe]).output().unwrap();
    assert_eq!((ending.status.code(), ending.stderr.len()), (Some(0), 0), "{ending:?}");
}
