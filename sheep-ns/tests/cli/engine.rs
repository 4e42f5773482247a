//! What engines and suites ask for beyond the plain verbs.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::harness::{World, alive, groups, wait};

/// A container that sleeps. Every id once: control groups are the host's, and tests run side by side.
fn sleeping(world: &World, id: &str) {
    world.bundle("exec sleep 1000", |_| {});
    world.create(id);
    world.ok(&["start", id]);
}

#[test]
fn features_are_what_is_done() {
    let world = World::new();
    let features: Value = serde_json::from_str(&world.ok(&["features"])).unwrap();
    let list = |pointer: &str| -> Vec<String> {
        serde_json::from_value(features.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone()).unwrap()
    };
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(list("/linux/namespaces"), ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]);
    assert_eq!(features.pointer("/linux/cgroup/v2"), Some(&json!(true)));
    assert!(list("/linux/capabilities").contains(&"CAP_CHECKPOINT_RESTORE".to_owned()));
    // Each is what a container gets, or is told that it does not.
    let runs = |change: &dyn Fn(&mut Value)| {
        world.bundle("true", |config| change(config));
        let ending = world.run(&["run", "-b", &world.path("bundle"), "features-1"]);
        assert!(matches!(ending.code, 0 | 125), "{ending:?}");
        ending.code == 0
    };
    for hook in ["createRuntime", "poststop"] {
        let called = runs(&|config| config["hooks"] = json!({hook: [{"path": "/bin/true"}]}));
        assert_eq!(called, list("/hooks").iter().any(|name| name == hook), "{hook}");
    }
    let filters = runs(&|config| config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(features.pointer("/linux/seccomp/enabled"), Some(&json!(filters)));
    for option in ["ro", "rnosuid", "runbindable", "symfollow", "remount"] {
        let mount = json!({"destination": "/mnt", "type": "bind", "source": "/etc", "options": ["rbind", option]});
        let taken = runs(&|config| config["mounts"].as_array_mut().unwrap().push(mount.clone()));
        assert_eq!(taken, list("/mountOptions").iter().any(|name| name == option), "{option}");
    }
}

#[test]
fn a_bundle_by_spec() {
    let world = World::new();
    let bundle = world.path("bundle");
    fs::rename(world.dir.join("root"), world.dir.join("bundle/rootfs")).unwrap();
    assert_eq!(world.ok(&["spec", "--bundle", &bundle]), "");
    world.fails(&["spec", "-b", &bundle], 4, "config.json: is there already");
    let names: Vec<_> = fs::read_dir(&bundle).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let config: Value = serde_json::from_slice(&fs::read(format!("{bundle}/config.json")).unwrap()).unwrap();
    assert_eq!((&config["process"]["args"], &config["root"]["path"]), (&json!(["sh"]), &json!("rootfs")));
    assert_eq!(serde_json::from_str::<Value>(&world.ok(&["spec"])).unwrap()["linux"], config["linux"]);
    world.ok(&["run", "-b", &bundle, "spec-1"]);
    world.fails(&["spec", "--bundle", "/nosuch"], 1, "/nosuch");
}

/// The descriptor that is sent with "pidfd" over the next connection.
fn received(listener: &UnixListener) -> OwnedFd {
    let (connection, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    recvmsg(connection.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert!(bytes.starts_with(b"pidfd"));
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.expect("a descriptor")
}

/// The process that a pidfd of ours is of.
fn pid_of(pidfd: &OwnedFd) -> i64 {
    use std::os::fd::AsRawFd;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn pidfds_for_who_asks() {
    let world = World::new();
    let socket = world.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (bundle, pid_file) = (world.path("bundle"), world.path("pid"));
    world.bundle("exec sleep 1000", |_| {});
    for (index, verb) in [&["create"][..], &["run", "--detach"]].iter().enumerate() {
        let id = format!("pidfd-{index}");
        world.ok(&[verb, &["--pidfd-socket", &socket, "--bundle", &bundle, &id][..]].concat());
        assert_eq!(json!(pid_of(&received(&listener))), world.state(&id)["pid"]);
    }
    let exec = ["exec", "--detach", "--pid-file", &pid_file, "--pidfd-socket", &socket, "pidfd-1", "sleep", "1000"];
    world.ok(&exec);
    assert_eq!(pid_of(&received(&listener)).to_string(), fs::read_to_string(&pid_file).unwrap());
    world.fails(
        &["create", "--pidfd-socket", "/no/such", "--bundle", &bundle, "pidfd-2"],
        1,
        "--pidfd-socket /no/such",
    );
    world.fails(&["exec", "--pidfd-socket", "/no/such", "pidfd-1", "true"], 125, "--pidfd-socket /no/such");
    world.fails(&["state", "pidfd-2"], 3, "does not exist");
}

#[test]
fn options_of_exec() {
    let world = World::new();
    sleeping(&world, "options-1");
    let who = ["sh", "-c", "id -u; id -G; pwd; echo $A; grep -E 'CapEff|NoNewPrivs' /proc/self/status"];
    let options = ["--user", "1000:44", "--cwd=/tmp", "--env", "A=b", "--additional-gids", "7,8", "--no-new-privs"];
    let want = "1000\n44 7 8\n/tmp\nb\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(world.ok(&[&["exec"], &options[..], &["options-1"], &who].concat()), want);
    assert_eq!(world.ok(&[&["exec", "options-1"], &options[..], &who].concat()), want);
    // What follows the command is the command's.
    assert_eq!(world.ok(&["exec", "options-1", "--cwd", "/tmp", "echo", "--cwd", "/etc"]), "--cwd /etc\n");
    world.fails(&["exec", "--cwd", "/nosuch", "options-1", "true"], 125, "/nosuch: no such file or directory");
    assert!(!world.root("nosuch").exists(), "who joins makes nothing");
    world.fails(&["exec", "--detach", "--tty", "options-1", "true"], 125, "--console-socket");
    let process = world.path("process.json");
    // As podman gives it where it does not know the user.
    let own = json!({"args": ["sh", "-c", "echo $HOME"], "env": ["PATH=/bin", "HOME="], "cwd": "/", "user": {"uid": 1000, "gid": 0}});
    fs::write(&process, own.to_string()).unwrap();
    assert_eq!(world.ok(&["exec", "options-1", "--process", &process]), "/home/ann\n");
    fs::write(&process, "{").unwrap();
    world.fails(&["exec", "--process", &process, "options-1"], 125, "process.json");
    world.fails(&["exec", "--process", "/nosuch", "options-1"], 125, "/nosuch: No such file or directory");
}

#[test]
fn a_control_group_below_the_containers() {
    let world = World::new();
    sleeping(&world, "below-1");
    let Some(group) = groups("below-1").pop() else { panic!("this host has no cgroup2 that groups can be made in") };
    fs::create_dir(group.join("a")).unwrap();
    fs::create_dir(group.join("a/b")).unwrap();
    for (path, want) in [("a", "0::/a\n"), ("/a/b", "0::/a/b\n"), ("/", "0::/\n")] {
        assert_eq!(
            world.ok(&["exec", "--cgroup", path, "below-1", "grep", "0::", "/proc/self/cgroup"]),
            want,
            "{path}"
        );
    }
    world.fails(&["exec", "--cgroup", "c", "below-1", "true"], 125, "--cgroup c: no such file or directory");
    world.fails(&["exec", "--cgroup", "a/../..", "below-1", "true"], 125, "--cgroup a/../..: linux.cgroupsPath");
    world.ok(&["delete", "--force", "below-1"]);
    assert!(!group.exists());
}

#[test]
fn run_in_the_background_and_kill_all() {
    let world = World::new();
    let (bundle, pid_file) = (world.path("bundle"), world.path("pid"));
    world.bundle("sleep 1000 & exec sleep 1000", |_| {});
    assert_eq!(world.ok(&["run", "-d", "--pid-file", &pid_file, "-b", &bundle, "back-1"]), "");
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(world.state("back-1")["status"], "running");
    assert_eq!(world.ok(&["list", "--quiet"]), "back-1\n");
    world.ok(&["kill", "--all", "back-1", "KILL"]);
    wait("its end", || !alive(pid));
    let state = world.state("back-1");
    assert_eq!(
        (&state["status"], &state["pid"], &state["ociVersion"]),
        (&json!("stopped"), &json!(0), &json!("1.2.0"))
    );
    world.fails(&["kill", "back-1"], 4, "not running");
    world.ok(&["delete", "back-1"]);
    world.ok(&["delete", "--force", "back-1"]);
    world.fails(&["delete", "back-1"], 3, "does not exist");
    assert_eq!(world.ok(&["list", "-q"]), "");
}
