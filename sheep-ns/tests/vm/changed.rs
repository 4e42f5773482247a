//! `update` where the controllers are.

use std::fs;

use serde_json::{Value, json};

use crate::harness::World;
use crate::{disk, gone, limit, waiting};

#[test]
#[ignore = "for scripts/vm test"]
fn every_limit_can_be_changed() {
    let world = World::new();
    waiting(&world, "change", "exit 0", &json!({}));
    for (flags, file, want) in [
        (&["--memory", "64m"][..], "memory.max", "67108864"),
        // Together with what is in force: the total is asked for, the rest is written.
        (&["--memory-swap", "96m"], "memory.swap.max", "33554432"),
        (&["--memory", "-1"], "memory.max", "max"),
        (&["--memory-reservation", "16m"], "memory.low", "16777216"),
        (&["--pids-limit", "20"], "pids.max", "20"),
        (&["--pids-limit", "-1"], "pids.max", "max"),
        (&["--cpu-quota", "20000"], "cpu.max", "20000 100000"),
        (&["--cpu-period", "50000"], "cpu.max", "20000 50000"),
        (&["--cpu-quota", "30000"], "cpu.max", "30000 50000"),
        (&["--cpu-burst", "10000"], "cpu.max.burst", "10000"),
        // A quota below the burst in force is taken with the burst that goes with it.
        (&["--cpu-quota", "5000", "--cpu-burst", "4000"], "cpu.max", "5000 50000"),
        (&["--cpu-quota", "40000", "--cpu-burst", "30000"], "cpu.max.burst", "30000"),
        (&["--cpu-burst", "0"], "cpu.max.burst", "0"),
        (&["--cpu-quota", "-1"], "cpu.max", "max 50000"),
        (&["--cpu-share", "2048"], "cpu.weight", "79"),
        (&["--cpu-idle", "1"], "cpu.idle", "1"),
        // A weight is refused while idle.
        (&["--cpu-share", "1024", "--cpu-idle", "0"], "cpu.weight", "39"),
        (&["--cpuset-cpus", "1"], "cpuset.cpus", "1"),
        (&["--cpuset-mems", "0"], "cpuset.mems", "0"),
        (&["--blkio-weight", "1000"], "io.weight", "default 10000"),
    ] {
        world.ok(&[&["update"], flags, &["change"]].concat());
        assert_eq!(limit("change", file), want, "{flags:?}");
    }
    assert_eq!(limit("change", "memory.swap.max"), "max", "unlimited with the memory");
    let (major, minor) = disk();
    let file = world.path("resources.json");
    let update = |resources: Value| {
        fs::write(&file, resources.to_string()).unwrap();
        world.ok(&["update", "-r", &file, "change"]);
    };
    update(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]}));
    assert_eq!(limit("change", "hugetlb.2MB.max"), "2097152");
    update(json!({"unified": {"memory.high": "max", "pids.max": "99"}, "pids": {"limit": 5}}));
    assert_eq!(limit("change", "pids.max"), "99");
    update(json!({"blockIO": {"throttleReadIOPSDevice": [{"major": major, "minor": minor, "rate": 9}]}}));
    assert_eq!(limit("change", "io.max"), format!("{major}:{minor} rbps=max wbps=max riops=9 wiops=max"));
    world.ok(&["pause", "change"]);
    world.ok(&["update", "--pids-limit", "7", "change"]);
    assert_eq!((limit("change", "pids.max"), world.state("change")["status"].clone()), ("7".into(), json!("paused")));
    gone(&world, "change");
}

#[test]
#[ignore = "for scripts/vm test"]
fn controllers_are_switched_on() {
    let world = World::new();
    // Made without a limit, and so without controllers, under a parent of its own.
    world.bundle("exec sleep 1000", |config| config["linux"]["cgroupsPath"] = json!("/alone/box"));
    world.create("alone");
    let group = std::path::Path::new("/sys/fs/cgroup/alone/box");
    assert!(group.exists() && !group.join("memory.max").exists());
    world.ok(&["update", "--memory", "64m", "--pids-limit", "5", "alone"]);
    assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap(), "67108864\n");
    let on = fs::read_to_string("/sys/fs/cgroup/alone/cgroup.subtree_control").unwrap();
    assert_eq!(on, "memory pids\n");
    world.ok(&["delete", "--force", "alone"]);
    // It is whose path was named that is removed.
    fs::remove_dir("/sys/fs/cgroup/alone").unwrap();
}

#[test]
#[ignore = "for scripts/vm test"]
fn all_or_nothing() {
    let world = World::new();
    let (major, minor) = disk();
    let resources = json!({
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "cpu": {"quota": 50_000, "cpus": "0"},
        "pids": {"limit": 30},
        "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1_000_000}]},
    });
    waiting(&world, "all", "exit 0", &resources);
    let files = [
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "cpu.max",
        "cpu.weight",
        "cpuset.cpus",
        "pids.max",
        "io.max",
        "io.weight",
    ];
    let before: Vec<String> = files.iter().map(|file| limit("all", file)).collect();
    let file = world.path("resources.json");
    let everything = json!({
        "memory": {"limit": 128 << 20, "swap": 256 << 20, "reservation": 1 << 20},
        "cpu": {"quota": 10_000, "period": 20_000, "shares": 99, "cpus": "0-1"},
        "pids": {"limit": 5},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 5_000_000}],
            "throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 5_000_000}]},
    });
    for (pointer, value, words) in [
        // Known beforehand, and only to the kernel.
        ("/unified", json!({"frob.max": "1"}), "no frob controller"),
        ("/unified", json!({"memory.frob": "1"}), "memory.frob"),
        ("/unified", json!({"memory.high": "lots"}), "memory.high"),
        ("/cpu/cpus", json!("55"), "cpuset.cpus"),
        ("/hugepageLimits", json!([{"pageSize": "3MB", "limit": 1}]), "hugetlb.3MB.max"),
    ] {
        let mut asked = everything.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        asked.pointer_mut(parent).unwrap()[key] = value;
        fs::write(&file, asked.to_string()).unwrap();
        world.fails(&["update", "--resources", &file, "all"], 1, words);
        for (file, before) in files.iter().zip(&before) {
            assert_eq!(&limit("all", file), before, "{file} after {pointer}");
        }
    }
    // Below what is in use, when that was to be looked at.
    fs::write(&file, json!({"memory": {"limit": 65_536, "checkBeforeUpdate": true}}).to_string()).unwrap();
    world.fails(&["update", "--resources", &file, "all"], 4, "in use");
    fs::write(&file, everything.to_string()).unwrap();
    world.ok(&["update", "--resources", &file, "all"]);
    assert_eq!((limit("all", "memory.max"), limit("all", "cpu.max")), ("134217728".into(), "10000 20000".into()));
    assert_eq!(limit("all", "io.max"), format!("{major}:{minor} rbps=5000000 wbps=5000000 riops=max wiops=max"));
    gone(&world, "all");
}
