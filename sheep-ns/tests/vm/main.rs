//! Limits, in a machine whose cgroup v2 tree has every controller: they are read back, felt, changed, and gone with their
//! container. `scripts/vm test` runs this in a virtual machine; elsewhere the tests are ignored, for the host may have no
//! controllers, and its tree is not ours.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "../cli/harness.rs"]
#[allow(dead_code, reason = "shared with the tests that need no machine of their own")]
mod harness;

mod apparmor;
mod changed;
mod delegated;
mod felt;
mod selinux;

use std::fs;
use std::path::{Path, PathBuf};

use harness::{World, wait};
use serde_json::{Value, json};

/// The group of a container of that id.
fn group(id: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup/sheep").join(id)
}

/// A file of a container's group.
fn limit(id: &str, file: &str) -> String {
    fs::read_to_string(group(id).join(file)).unwrap_or_else(|e| panic!("{id}/{file}: {e}")).trim_end().to_owned()
}

/// A container with these resources, whose script waits for `/go`.
fn waiting(world: &World, id: &str, script: &str, resources: &Value) {
    configure(world, &format!("until [ -e /go ]; do sleep 0.05; done; {script}"), resources);
    world.create(id);
    world.ok(&["start", id]);
    world.wait_status(id, "running");
}

/// A bundle with these resources, beside the rules for devices that it has anyway.
fn configure(world: &World, script: &str, resources: &Value) {
    world.bundle(script, |config| {
        let own = config["linux"]["resources"].as_object_mut().unwrap();
        own.extend(resources.as_object().unwrap().clone());
    });
}

fn go(world: &World) {
    fs::write(world.root("go"), "").unwrap();
}

/// Deletes it, and looks that nothing of it is left.
fn gone(world: &World, id: &str) {
    world.ok(&["delete", "--force", id]);
    assert!(!group(id).exists());
    assert!(world.leftovers().is_empty());
}

/// The number of the disk under /tmp.
fn disk() -> (u64, u64) {
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata("/tmp").unwrap());
    (nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

#[test]
#[ignore = "for scripts/vm test"]
fn limits_are_read_back() {
    let world = World::new();
    let (major, minor) = disk();
    let resources = json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "cpu": {"quota": 50_000, "period": 200_000, "shares": 512, "burst": 10_000, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 33},
        "blockIO": {
            "weight": 500,
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1_048_576}],
            "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 77}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "60000000", "memory.oom.group": "1", "cgroup.max.depth": "3"},
    });
    waiting(&world, "read-back", "exit 0", &resources);
    for (file, want) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "33554432"),
        ("memory.low", "33554432"),
        ("memory.high", "59998208"),
        ("memory.oom.group", "1"),
        ("cpu.max", "50000 200000"),
        ("cpu.max.burst", "10000"),
        ("cpu.weight", "20"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.cpus.effective", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "33"),
        ("io.weight", "default 4950"),
        ("io.max", &format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=77")),
        ("hugetlb.2MB.max", "4194304"),
        ("cgroup.max.depth", "3"),
    ] {
        assert_eq!(limit("read-back", file), want, "{file}");
    }
    let event: Value = serde_json::from_str(&world.ok(&["events", "--stats", "read-back"])).unwrap();
    let data = &event["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20, "{data}");
    assert_eq!(data["memory"]["swap"]["limit"], 96 << 20, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{data}");
    assert!(data["memory"]["raw"]["anon"].as_u64().unwrap() > 0, "{data}");
    assert_eq!(
        (&data["pids"]["limit"], &data["pids"]["current"]),
        (&json!(33), &json!(limit("read-back", "pids.current").parse::<u64>().unwrap()))
    );
    assert!(data["cpu"]["throttling"]["periods"].is_u64() && data["hugetlb"]["2MB"]["usage"] == 0, "{data}");
    assert_eq!(data["cpuset"]["cpus"], json!([0, 1]), "{data}");
    gone(&world, "read-back");
    // The flags of exec and spec are the same thing.
    let root = world.path("root");
    let script = "sleep 1000";
    let args = [
        "exec",
        "--rootfs",
        &root,
        "-m",
        "48m",
        "--pids-limit",
        "9",
        "--cpu-quota",
        "30000",
        "--cgroups-path",
        "/sheep/flags",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut child = world.ns(&args).spawn().unwrap();
    wait("the group", || group("flags").join("memory.max").exists() && !limit("flags", "cgroup.procs").is_empty());
    for (file, want) in
        [("memory.max", "50331648"), ("memory.swap.max", "0"), ("pids.max", "9"), ("cpu.max", "30000 100000")]
    {
        assert_eq!(limit("flags", file), want, "{file}");
    }
    harness::signal(child.id(), 15);
    harness::end_of(&mut child);
    assert!(!group("flags").exists());
}

#[test]
#[ignore = "for scripts/vm test"]
fn what_the_kernel_refuses_leaves_nothing() {
    let world = World::new();
    for (resources, words) in [
        (json!({"cpu": {"cpus": "77"}, "memory": {"limit": 64 << 20}}), "cpuset"),
        (json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}), "hugetlb.3MB.max"),
        (json!({"unified": {"memory.frob": "1"}}), "memory.frob"),
        (json!({"unified": {"frob.max": "1"}}), "no frob controller"),
        (json!({"cpu": {"quota": 10_000, "burst": 20_000}}), "cpu burst"),
        (json!({"blockIO": {"throttleReadBpsDevice": [{"major": 99, "minor": 99, "rate": 5}]}}), "io limit"),
    ] {
        configure(&world, "true", &resources);
        world.fails(&["create", "--bundle", &world.path("bundle"), "refused"], 1, words);
        assert!(world.leftovers().is_empty() && !group("refused").exists(), "{resources}");
    }
}
