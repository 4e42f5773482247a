//! What a limit does to the program that meets it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{World, end_of, wait};
use crate::{configure, disk, go, gone, group, limit, waiting};

/// Writes so much to a tmpfs, which is memory.
fn fill(mib: u32) -> String {
    format!("dd if=/dev/zero of=/dev/shm/x bs=1048576 count={mib} 2>/dev/null")
}

#[test]
#[ignore = "for scripts/vm test"]
fn out_of_memory() {
    let world = World::new();
    let memory = |limit: u64, swap: u64| json!({"memory": {"limit": limit << 20, "swap": swap << 20}});
    configure(&world, &format!("exec {}", fill(40)), &memory(24, 24));
    let bundle = world.path("bundle");
    assert_eq!(world.run(&["run", "-b", &bundle, "oom"]).code, 137);
    assert!(!group("oom").exists());
    configure(&world, &format!("exec {}", fill(40)), &memory(56, 56));
    assert_eq!(world.run(&["run", "-b", &bundle, "oom"]).code, 0);
    // What does not fit goes to swap, as far as that is allowed.
    configure(&world, &format!("exec {}", fill(40)), &memory(24, 80));
    assert_eq!(world.run(&["run", "-b", &bundle, "oom"]).code, 0);
    // Seen from outside: a line when it is killed, and the end of the lines with the container's end.
    waiting(&world, "oom", &format!("exec {}", fill(40)), &memory(24, 24));
    let mut child = world.ns(&["events", "--interval", "1h", "oom"]).stdout(Stdio::piped()).spawn().unwrap();
    // Its first look has to come before the killing.
    wait("events to watch", || {
        fs::read_dir(format!("/proc/{}/fd", child.id())).is_ok_and(|fds| {
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("memory.events")))
        })
    });
    sleep(Duration::from_millis(200));
    go(&world);
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, [json!({"type": "oom", "id": "oom"})], "{lines:?}");
    assert_eq!(end_of(&mut child), 0);
    world.wait_status("oom", "stopped");
    gone(&world, "oom");
    // A child's death is not the container's: it goes on, and the count tells.
    fs::remove_file(world.root("go")).unwrap();
    waiting(&world, "oom", &format!("sh -c '{}'; echo $? > /code; sleep 1000", fill(40)), &memory(24, 24));
    go(&world);
    wait("the child's end", || fs::read_to_string(world.root("code")).is_ok_and(|code| code.ends_with('\n')));
    assert_eq!(fs::read_to_string(world.root("code")).unwrap(), "137\n");
    let event: Value = serde_json::from_str(&world.ok(&["events", "--stats", "oom"])).unwrap();
    assert_eq!(event["data"]["memory"]["event_count"]["oom_kill"], 1, "{event}");
    gone(&world, "oom");
}

#[test]
#[ignore = "for scripts/vm test"]
fn a_fork_bomb() {
    let world = World::new();
    waiting(&world, "bomb", "while :; do sleep 1000 & done", &json!({"pids": {"limit": 12}}));
    go(&world);
    // The shell cannot fork any more and ends, or holds on; there are never more.
    wait("the bomb", || !group("bomb").exists() || limit("bomb", "pids.events") != "max 0");
    let most: usize =
        limit("bomb", "pids.peak").parse().unwrap_or_else(|_| limit("bomb", "pids.current").parse().unwrap());
    assert!(most <= 12, "{most}");
    gone(&world, "bomb");
}

/// Waits until the share of one processor that a container has taken since now is within a tenth of `wanted`, four seconds at least.
/// On a machine that is emulated and itself waits for processors, a program runs on beyond its quota for as long as a tick is late.
/// The kernel takes that off what comes after, so the share is right in the long run, and only then.
fn takes(id: &str, wanted: f64) {
    let used = || -> f64 {
        let stat = limit(id, "cpu.stat");
        stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
    };
    let (start, before) = (Instant::now(), used());
    let mut seen = Vec::new();
    while start.elapsed() < Duration::from_secs(40) {
        sleep(Duration::from_secs(4));
        let share = (used() - before) / start.elapsed().as_micros() as f64;
        if (share / wanted - 1.0).abs() <= 0.1 {
            return;
        }
        seen.push(share);
    }
    panic!("{wanted} of a processor wanted, seen {seen:?}");
}

#[test]
#[ignore = "for scripts/vm test"]
fn processor_time() {
    let world = World::new();
    // Two that never wait, on a quarter of a processor together.
    waiting(&world, "cpu", "(while :; do :; done) & while :; do :; done", &json!({"cpu": {"quota": 25_000}}));
    go(&world);
    takes("cpu", 0.25);
    world.ok(&["update", "--cpu-quota", "60000", "cpu"]);
    assert_eq!(limit("cpu", "cpu.max"), "60000 100000");
    takes("cpu", 0.6);
    gone(&world, "cpu");
}

#[test]
#[ignore = "for scripts/vm test"]
fn which_processors() {
    let world = World::new();
    let script = "while :; do grep Cpus_allowed_list /proc/self/status > /new; mv /new /cpus; sleep 0.1; done";
    waiting(&world, "set", script, &json!({"cpu": {"cpus": "1"}}));
    go(&world);
    let cpus = |want: &str| {
        wait(want, || {
            fs::read_to_string(world.root("cpus")).is_ok_and(|text| text.trim_end().ends_with(&format!("\t{want}")))
        })
    };
    cpus("1");
    world.ok(&["update", "--cpuset-cpus", "0", "set"]);
    cpus("0");
    world.ok(&["update", "--cpuset-cpus", "0-1", "--cpuset-mems", "0", "set"]);
    cpus("0-1");
    gone(&world, "set");
}

#[test]
#[ignore = "for scripts/vm test"]
fn how_fast_a_disk_is_written() {
    let world = World::new();
    let (major, minor) = disk();
    let rate =
        |rate: u64| json!({"blockIO": {"throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": rate}]}});
    let script = "while :; do until [ -e /go ]; do sleep 0.05; done; dd if=/dev/zero of=/file bs=1048576 count=6 conv=fsync 2>/dev/null; rm /go; done";
    waiting(&world, "io", script, &rate(2 << 20));
    let time = || {
        let start = Instant::now();
        go(&world);
        wait("it to be written", || !world.root("go").exists());
        start.elapsed().as_secs_f64()
    };
    let slow = time();
    assert!((2.2..9.0).contains(&slow), "{slow}");
    let file = world.path("resources.json");
    fs::write(&file, rate(0).to_string()).unwrap();
    world.ok(&["update", "--resources", &file, "io"]);
    let fast = time();
    assert!(fast < 2.0 && fast < slow / 2.0, "{fast} {slow}");
    assert_eq!(limit("io", "io.max"), "");
    gone(&world, "io");
}

#[test]
#[ignore = "for scripts/vm test"]
fn huge_pages() {
    let world = World::new();
    fs::write("/proc/sys/vm/nr_hugepages", "8").unwrap();
    let pool = world.dir.join("pool");
    fs::create_dir(&pool).unwrap();
    nix::mount::mount(Some("none"), &pool, Some("hugetlbfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let script = "fallocate -l 4194304 /pool/a && echo two; fallocate -l 2097152 /pool/b && echo three; rm -f /pool/*";
    let seen = |resources: &Value| {
        world.bundle(script, |config| {
            config["linux"]["resources"].as_object_mut().unwrap().extend(resources.as_object().unwrap().clone());
            let bind = json!({"destination": "/pool", "type": "bind", "source": pool.display().to_string(), "options": ["bind"]});
            config["mounts"].as_array_mut().unwrap().push(bind);
        });
        world.run(&["run", "-b", &world.path("bundle"), "huge"]).out
    };
    let limited = seen(&json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}));
    let free = seen(&json!({}));
    nix::mount::umount(&pool).unwrap();
    assert_eq!((limited.as_str(), free.as_str()), ("two\n", "two\nthree\n"));
}

#[test]
#[ignore = "for scripts/vm test"]
fn devices() {
    let world = World::new();
    let (major, minor) = disk();
    let script = format!(
        "mknod /disk b {major} {minor} && dd if=/disk of=/dev/null bs=512 count=1 2>&1 | grep -o 'not permitted'; mknod /kmsg c 1 11 && dd if=/kmsg of=/dev/null bs=1 count=0 2>&1 | grep -o 'not permitted'; head -c1 /dev/zero | wc -c"
    );
    configure(&world, &script, &json!({}));
    let bundle = world.path("bundle");
    let seen = world.run(&["run", "-b", &bundle, "devices"]);
    assert_eq!(seen.out, "not permitted\nnot permitted\n1\n", "{seen:?}");
    for node in ["disk", "kmsg"] {
        fs::remove_file(world.root(node)).unwrap();
    }
    let rules = json!({"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}]});
    configure(&world, &script, &rules);
    let seen = world.run(&["run", "-b", &bundle, "devices"]);
    assert_eq!(seen.out, "not permitted\n1\n", "{seen:?}");
}

/// A container that gives its controllers to groups of its own, as systemd in one does, has no process in its group itself.
#[test]
#[ignore = "for scripts/vm test"]
fn who_joins_is_where_the_first_process_is() {
    let world = World::new();
    let script = "cd /sys/fs/cgroup && mkdir init && echo 1 > init/cgroup.procs && echo +pids > cgroup.subtree_control && echo up && exec sleep 1000";
    world.bundle(script, |config| {
        config["linux"]["resources"]["pids"] = json!({"limit": 20});
        for mount in config["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/sys/fs/cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev"]);
            }
        }
    });
    world.create("joined");
    assert_eq!(world.ok(&["exec", "joined", "cat", "/proc/self/cgroup"]), "0::/\n");
    world.ok(&["start", "joined"]);
    wait("the groups", || !limit("joined", "cgroup.subtree_control").is_empty());
    assert_eq!(world.ok(&["exec", "joined", "cat", "/proc/self/cgroup"]), "0::/init\n");
    gone(&world, "joined");
}
