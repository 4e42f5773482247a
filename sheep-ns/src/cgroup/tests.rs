//! Against the kernel's own tree, under /sheep in it. These need root; controllers are not needed.

use std::process::{Child, Command};

use rustix::fs::{Mode, mkdirat};
use rustix::process::Pid;

use super::groups::PARENT;
use super::*;
use crate::exit;

fn linux(json: &str) -> oci::Linux {
    serde_json::from_str(json).unwrap()
}

/// A group of this test's own.
fn group(name: &str) -> Cgroup {
    assert!(geteuid().is_root(), "needs root: run scripts/test as root");
    let id = format!("test-{}-{name}", std::process::id());
    Cgroup::create(&linux("{}"), &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap().expect("a cgroup2 tree")
}

fn sleeper(group: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    group.join(pid_of(&child)).unwrap();
    child
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

#[test]
fn a_group_from_its_making_to_its_end() {
    let group = group("life");
    let again = Cgroup::open(group.path()).unwrap().expect("it is there");
    assert_eq!(again.path(), group.path());
    let mut child = sleeper(&group);
    assert_eq!(group.pids().unwrap(), [pid_of(&child)]);

    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    group.thaw().unwrap();
    assert!(!group.is_frozen().unwrap());

    mkdirat(group.dir(), "inner", Mode::from_raw_mode(0o755)).unwrap();
    again.kill().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(Cgroup::open(group.path()).unwrap().is_none());
    assert_eq!(group.oom_kills().unwrap(), None);
}

#[test]
fn a_frozen_group_can_be_killed() {
    let group = group("frozen");
    let mut child = sleeper(&group);
    group.freeze().unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
}

#[test]
fn what_is_left_by_a_crash_is_taken_over_and_what_is_in_use_is_not() {
    let group = group("left");
    let id = group.path().rsplit_once('/').unwrap().1.to_owned();
    mkdirat(group.dir(), "inner", Mode::from_raw_mode(0o755)).unwrap();
    let second = Cgroup::create(&linux("{}"), &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap().unwrap();
    let mut child = sleeper(&second);
    let error = Cgroup::create(&linux("{}"), &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap_err();
    assert_eq!(exit::kind(&error), Some(exit::Kind::Busy), "{error:#}");
    second.kill().unwrap();
    child.wait().unwrap();
    second.remove().unwrap();
}

#[test]
fn a_limit_without_its_controller_is_an_error_and_leaves_nothing() {
    let tree = Tree::find().unwrap().unwrap();
    let id = format!("test-{}-limit", std::process::id());
    let path = format!("/{PARENT}/{id}");
    for (controller, what, json) in [
        ("memory", "memory limit", r#"{"resources":{"memory":{"limit":33554432}}}"#),
        ("pids", "pids limit", r#"{"resources":{"pids":{"limit":10}}}"#),
        ("cpu", "cpu limit", r#"{"resources":{"cpu":{"quota":50000}}}"#),
        ("nosuch", "unified", r#"{"resources":{"unified":{"nosuch.max":"1"}}}"#),
    ] {
        let result = Cgroup::create(&linux(json), &id, Manager::Cgroupfs, &BTreeMap::new());
        if tree.has(controller).unwrap() {
            result.unwrap().expect("a group").remove().unwrap();
            continue;
        }
        let error = format!("{:#}", result.unwrap_err());
        let want = format!("{what}: this host's cgroup v2 tree has no {controller} controller");
        assert!(error.starts_with(&want), "{error}");
        assert!(Cgroup::open(&path).unwrap().is_none(), "{json}");
    }
    // What a new group has anyway needs no controller.
    let unlimited = linux(r#"{"resources":{"memory":{"limit":-1},"pids":{"limit":0},"cpu":{"quota":-1}}}"#);
    Cgroup::create(&unlimited, &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap().expect("a group").remove().unwrap();
}

#[test]
fn without_a_group_a_limit_is_an_error() {
    assert!(Cgroup::create(&linux("{}"), "a", Manager::Disabled, &BTreeMap::new()).unwrap().is_none());
    let limited = linux(r#"{"resources":{"pids":{"limit":10}}}"#);
    let error = format!("{:#}", Cgroup::create(&limited, "a", Manager::Disabled, &BTreeMap::new()).unwrap_err());
    assert_eq!(error, "pids limit: there is no control group with --cgroup-manager=disabled");
}

#[test]
fn paths() {
    assert!(geteuid().is_root(), "needs root: run scripts/test as root");
    let tree = Tree::find().unwrap().expect("a cgroup2 tree");
    for (asked, want) in [
        (None, "/sheep/id"),
        (Some(""), "/sheep/id"),
        (Some("/a/b"), "/a/b"),
        (Some("a/b/"), "/a/b"),
        (Some("/a:b:c"), "/a:b:c"),
    ] {
        assert_eq!(group_path(&tree, asked, "id").unwrap(), want);
    }
    for bad in ["..", "/a/../b", "/", "./a", "a:b:c", "machine.slice:libpod:abc"] {
        let error = group_path(&tree, Some(bad), "id").unwrap_err();
        assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{bad}");
    }
}

#[test]
fn many_at_once_share_the_parent() {
    assert!(geteuid().is_root(), "needs root: run scripts/test as root");
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            std::thread::spawn(move || {
                for round in 0..50 {
                    let id = format!("test-{}-many-{worker}-{round}", std::process::id());
                    let group =
                        Cgroup::create(&linux("{}"), &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap().unwrap();
                    group.remove().unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn device_rules_are_in_force() {
    let json =
        r#"{"resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11}]}}"#;
    assert!(geteuid().is_root(), "needs root: run scripts/test as root");
    let id = format!("test-{}-devices", std::process::id());
    let group =
        Cgroup::create(&linux(json), &id, Manager::Cgroupfs, &BTreeMap::new()).unwrap().expect("a cgroup2 tree");
    let dir = std::env::temp_dir().join(&id);
    std::fs::create_dir(&dir).unwrap();
    // full, which is a default device; and a number no driver has: ENXIO when it may be opened, EPERM when not.
    let script = "read go; mknod full c 1 7; mknod none c 99 9; head -c1 full >/dev/null && echo full; head -c1 none";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(&dir).env("LC_ALL", "C");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    group.join(pid_of(&child)).unwrap();
    io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    group.remove().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"full\n", "{stderr}");
    assert!(stderr.contains("Operation not permitted"), "{stderr}");
}
