//! `exec` in a running container.

use std::fs;

use serde_json::json;

use crate::harness::{World, alive, groups, in_user_namespace, wait};

/// Every id once: control groups are the host's, and tests run side by side.
fn running(world: &World, id: &str) -> i32 {
    world.bundle("exec sleep 1000", |config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=of the container", "HOME=/root"])
    });
    world.create(id);
    world.ok(&["start", id]);
    world.state(id)["pid"].as_i64().unwrap() as i32
}

#[test]
fn as_the_container_is() {
    let world = World::new();
    let pid = running(&world, "join-0");
    let script = "for kind in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$kind; done; cat /proc/1/cmdline | tr '\\0' ' '; \
        echo; echo $A; pwd; grep CapInh /proc/self/status; ls /proc/self/fd";
    let want: String = ["pid", "mnt", "uts", "ipc", "net", "cgroup"]
        .iter()
        .map(|kind| format!("{}\n", fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display()))
        .collect();
    let rest = "sleep 1000 \nof the container\n/\nCapInh:\t0000000000000000\n0\n1\n2\n3\n";
    assert_eq!(world.ok(&["exec", "join-0", "sh", "-c", script]), want + rest);
    for (command, code) in
        [(&["sh", "-c", "exit 5"][..], 5), (&["sh", "-c", "kill -9 $$"], 137), (&["nosuch"], 127), (&["/etc"], 126)]
    {
        assert_eq!(world.run(&[&["exec", "join-0"], command].concat()).code, code, "{command:?}");
    }
    let script = "id -u; id -g; pwd; echo $B $A $HOME; grep -E 'CapEff|CapBnd' /proc/self/status";
    let seen = world.ok(&["exec", "-u", "ann", "-w", "/tmp", "-e", "B=1", "-e", "A=2", "join-0", "sh", "-c", script]);
    assert_eq!(seen, "1000\n1000\n/tmp\n1 2 /home/ann\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n");
    let seen = world.ok(&["exec", "--cap", "CAP_NET_ADMIN", "join-0", "ip", "link", "set", "lo", "down"]);
    assert_eq!(seen, "");
    assert_ne!(world.run(&["exec", "join-0", "ip", "link", "set", "lo", "up"]).code, 0);
    world.fails(&["exec", "--memory", "1g", "join-0", "true"], 125, "--memory");
    world.fails(&["exec", "join-0"], 125, "no command");
    world.fails(&["exec", "nobody", "true"], 125, "does not exist");
    world.fails(&["exec", "-u", "nobody", "join-0", "true"], 125, "nobody");
}

#[test]
fn process_file_and_detached() {
    let world = World::new();
    running(&world, "join-1");
    let process = world.path("process.json");
    let pid_file = world.path("pid");
    let own = json!({"args": ["sh", "-c", "echo $X > /said; exec sleep 1000"], "env": ["X=y", "PATH=/bin"], "cwd": "/tmp",
        "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL"]}});
    fs::write(&process, own.to_string()).unwrap();
    world.ok(&["exec", "--process", &process, "--detach", "--pid-file", &pid_file, "join-1"]);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    wait("what it says", || fs::read_to_string(world.root("said")).is_ok_and(|text| text == "y\n"));
    assert!(alive(pid), "it stays when the command has returned");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapInh:\t0000000000000000") && status.contains("CapBnd:\t0000000000000020"), "{status}");
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups("join-1").is_empty() || group.contains("0::/sheep/join-1\n"), "{group}");
    world.fails(&["exec", "--process", &process, "join-1", "true"], 125, "--process");
    world.fails(&["exec", "--detach", "join-1", "nosuch"], 127, "no such file or directory");
    world.ok(&["delete", "--force", "join-1"]);
    wait("its end with the container", || !alive(pid));
}

#[test]
fn in_a_user_namespace() {
    let world = World::new();
    world.bundle("exec sleep 1000", in_user_namespace);
    world.give_root_to(100_000);
    world.create("join-2");
    world.ok(&["start", "join-2"]);
    let seen =
        world.ok(&["exec", "join-2", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/x; stat -c %u /tmp/x"]);
    assert_eq!(seen, "0\n         0     100000      65536\n0\n");
    assert_eq!(world.ok(&["exec", "-u", "ann", "join-2", "id", "-u"]), "1000\n");
}
