//! Settings of config.json beyond the ordinary: scheduling, execution domain, memory policy, idmapped mounts, time.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{World, among_private_mounts, in_user_namespace};

/// What a script says with one value of the configuration set.
fn says(world: &World, script: &str, pointer: &str, value: Value) -> String {
    world.bundle(script, |config| set(config, pointer, value));
    world.ok(&["run", "-b", &world.path("bundle"), &format!("set-{}", world.dir.file_name().unwrap().display())])
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
}

/// It fails, and names what is wrong.
fn refused(world: &World, pointer: &str, value: Value, words: &str) {
    world.bundle("true", |config| set(config, pointer, value));
    world.fails(&["run", "-b", &world.path("bundle"), "set-refused"], 125, words);
}

#[test]
fn scheduling() {
    let world = World::new();
    let script = "cut -d' ' -f19,41 /proc/self/stat";
    let table = [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), "7 0\n"),
        (json!({"policy": "SCHED_BATCH", "nice": -3}), "-3 3\n"),
        (json!({"policy": "SCHED_IDLE"}), "0 5\n"),
    ];
    for (value, want) in table {
        // As a user too: it is in force before root's rights are given up.
        assert_eq!(says(&world, script, "/process/scheduler", value.clone()), want, "{value}");
    }
    refused(&world, "/process/scheduler", json!({"policy": "SCHED_RR", "priority": 200}), "process.scheduler");
    refused(&world, "/process/scheduler", json!({"policy": "X"}), "'X'");
    let io = |value: Value| says(&world, "exec ionice -p $$", "/process/ioPriority", value);
    assert_eq!(io(json!({"class": "IOPRIO_CLASS_BE", "priority": 3})), "best-effort: prio 3\n");
    assert_eq!(io(json!({"class": "IOPRIO_CLASS_IDLE"})), "idle\n");
    refused(&world, "/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), "process.ioPriority");
}

#[test]
fn execution_domain_and_memory() {
    let world = World::new();
    let domain = |name: &str| {
        says(&world, "uname -m; cat /proc/self/personality", "/linux/personality", json!({"domain": name}))
    };
    let (wide, narrow) = (domain("LINUX"), domain("LINUX32"));
    assert!(wide.ends_with("\n00000000\n") && narrow.ends_with("\n00000008\n"), "{wide} {narrow}");
    if cfg!(target_arch = "x86_64") {
        assert!(wide.starts_with("x86_64\n") && narrow.starts_with("i686\n"), "{wide} {narrow}");
    }
    let memory = |value: Value| {
        says(
            &world,
            "grep -o -m1 'stack' /proc/self/numa_maps; grep -m1 stack /proc/self/numa_maps | cut -d' ' -f2",
            "/linux/memoryPolicy",
            value,
        )
    };
    assert_eq!(memory(json!({"mode": "MPOL_BIND", "nodes": "0"})), "stack\nbind:0\n");
    assert_eq!(
        memory(json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})),
        "stack\ninterleave=static:0\n"
    );
    assert_eq!(memory(json!({"mode": "MPOL_DEFAULT"})), "stack\ndefault\n");
    refused(&world, "/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "900"}), "linux.memoryPolicy");
    refused(&world, "/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy");
}

#[test]
fn a_process_that_joins_has_them_too() {
    let world = World::new();
    // The machine's second processor, if it has one.
    let second = std::thread::available_parallelism().unwrap().get().min(2) - 1;
    world.bundle("exec sleep 1000", |config| {
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
        config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH"});
        config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": second.to_string()});
    });
    world.create("set-join");
    let seen = world.ok(&["exec", "set-join", "sh", "-c", "cat /proc/self/personality; cut -d' ' -f41 /proc/self/stat; grep Cpus_allowed_list /proc/self/status | cut -f2"]);
    assert_eq!(seen, format!("00000008\n3\n{second}\n"));
    let process = json!({"args": ["grep", "Cpus_allowed_list", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"], "execCPUAffinity": {"initial": "0"}});
    fs::write(world.path("process"), process.to_string()).unwrap();
    assert_eq!(world.ok(&["exec", "--process", &world.path("process"), "set-join"]), "Cpus_allowed_list:\t0\n");
    let wrong = json!({"args": ["true"], "cwd": "/", "execCPUAffinity": {"final": "1-"}});
    fs::write(world.path("process"), wrong.to_string()).unwrap();
    world.fails(&["exec", "--process", &world.path("process"), "set-join"], 125, "execCPUAffinity.final: '1-'");
    world.ok(&["delete", "--force", "set-join"]);
}

/// A source with files of two owners.
fn owned(world: &World) -> String {
    let dir = world.dir.join("owned");
    fs::create_dir_all(dir.join("below")).unwrap();
    for (name, id) in [("zero", 0), ("one", 1), ("below/one", 1)] {
        fs::write(dir.join(name), "").unwrap();
        chown(dir.join(name), Some(id), Some(id)).unwrap();
    }
    dir.display().to_string()
}

#[test]
fn idmapped_mounts() {
    let world = World::new();
    let source = owned(&world);
    let maps = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let mount = |options: Value| json!({"destination": "/m", "type": "bind", "source": source, "options": options});
    let mapped = |options: Value| {
        let mut mount = mount(options);
        mount["uidMappings"] = maps.clone();
        mount["gidMappings"] = maps.clone();
        mount
    };
    let script = "cd /m; stat -c '%u %g' zero one below/one; touch made 2>/dev/null; echo $?";
    for options in [json!(["bind"]), json!(["rbind", "idmap"]), json!(["rbind", "ridmap", "rprivate"])] {
        world.bundle(script, |config| config["mounts"].as_array_mut().unwrap().push(mapped(options.clone())));
        // Root is nobody there: what is made would have an owner that the source cannot have.
        let seen = world.ok(&["run", "-b", &world.path("bundle"), "set-idmap"]);
        assert_eq!(seen, "5000 5000\n5001 5001\n5001 5001\n1\n", "{options}");
    }
    // With the container's own maps, the owners inside are those on the disk.
    world.give_root_to(100_000);
    for options in [json!(["rbind", "idmap"]), json!(["rbind", "ridmap", "nosuid", "rro"])] {
        world.bundle(script, |config| {
            in_user_namespace(config);
            config["mounts"].as_array_mut().unwrap().push(mount(options.clone()));
        });
        let seen = world.ok(&["run", "-b", &world.path("bundle"), "set-idmap"]);
        let made = world.dir.join("owned/made");
        let writes = options[2].is_null();
        assert_eq!(seen, format!("0 0\n1 1\n1 1\n{}\n", u8::from(!writes)), "{options}");
        assert_eq!(made.exists(), writes, "{options}");
        if writes {
            let made_by = fs::metadata(&made).unwrap();
            assert_eq!((made_by.uid(), made_by.gid()), (0, 0));
            fs::remove_file(made).unwrap();
        }
    }
    let table = [
        (json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["idmap"]}), "only a bind mount"),
        (mount(json!(["bind", "idmap"])), "needs uidMappings and gidMappings"),
        (json!({"destination": "/m", "type": "bind", "source": source, "uidMappings": maps}), "needs both"),
        (
            json!({"destination": "/m", "type": "bind", "source": "/proc", "uidMappings": maps, "gidMappings": maps}),
            "/m: idmapped mount: ",
        ),
        (
            json!({"destination": "/m", "type": "bind", "source": world.path("absent"), "uidMappings": maps, "gidMappings": maps}),
            "no such file",
        ),
    ];
    for (entry, words) in table {
        world.bundle("true", |config| config["mounts"].as_array_mut().unwrap().push(entry));
        world.fails(&["run", "-b", &world.path("bundle"), "set-idmap"], 125, words);
    }
}

/// `idmap` is for the mount itself, `ridmap` also for what is mounted below.
#[test]
fn idmapped_mounts_and_what_is_below() {
    let world = World::new();
    let source = owned(&world);
    let maps = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    for (word, below) in [("idmap", "1 1"), ("ridmap", "5001 5001")] {
        world.bundle("cd /m; stat -c '%u %g' one below/one", |config| {
            let mount = json!({"destination": "/m", "type": "bind", "source": source, "options": ["rbind", word],
                "uidMappings": maps, "gidMappings": maps});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        let command = world.ns(&["run", "-b", &world.path("bundle"), "set-below"]);
        let ending = among_private_mounts(&command, &format!("mount --bind {source} {source}/below && exec \"$@\""));
        assert_eq!(String::from_utf8_lossy(&ending.stdout), format!("5001 5001\n{below}\n"), "{word}: {ending:?}");
    }
}

/// A plain user has no privilege over the file system.
#[test]
fn idmapped_mounts_of_a_user() {
    let world = World::of_user();
    let source = world.path("host");
    world.bundle("true", |config| {
        let mount = json!({"destination": "/m", "type": "bind", "source": source, "options": ["bind", "idmap"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    world.fails(&["run", "-b", &world.path("bundle"), "set-idmap-user"], 125, "it takes root on the host");
}

/// Clocks of its own: as root, in a user namespace, and for a plain user.
#[test]
fn time_offsets() {
    let mut worlds = vec![(World::new(), false), (World::new(), true), (World::of_user(), false)];
    for (world, with_users) in &mut worlds {
        world.bundle("cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time", |config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "time"}));
            if *with_users {
                in_user_namespace(config);
            }
            config["linux"]["timeOffsets"] =
                json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5, "nanosecs": 6}});
        });
        if *with_users {
            world.give_root_to(100_000);
        }
        let seen = world.ok(&["run", "-b", &world.path("bundle"), "set-time"]);
        let (uptime, namespace) = seen.trim().split_once('\n').unwrap();
        assert!(uptime.parse::<u64>().unwrap() >= 1_000_000, "{seen}");
        assert_ne!(namespace, fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap());
    }
}

/// A network of the host's root, and a new user namespace: joined before there is one. Hooks are called at the host.
#[test]
fn joined_namespaces_and_a_new_user_namespace() {
    let world = World::new();
    world.give_root_to(100_000);
    let mut holder = std::process::Command::new("unshare")
        .args(["-n", "-u", "-i", "sleep", "20"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let of = |kind: &str| format!("/proc/{}/ns/{kind}", holder.id());
    let id = |kind: &str| fs::read_link(of(kind)).unwrap().display().to_string();
    crate::harness::wait("its namespaces", || {
        fs::read_link(of("ipc")).unwrap() != fs::read_link("/proc/self/ns/ipc").unwrap()
    });
    let kinds = [("network", "net"), ("uts", "uts"), ("ipc", "ipc")];
    for users in [true, false] {
        world.bundle("for kind in net uts ipc user; do readlink /proc/self/ns/$kind; done", |config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if let Some((_, file)) = kinds.iter().find(|(kind, _)| namespace["type"] == *kind) {
                    namespace["path"] = json!(of(file));
                }
            }
            if users {
                in_user_namespace(config);
            }
            config.as_object_mut().unwrap().remove("hostname");
            // The queues' owner alone can mount them. The same of /sys and the network, but there the host's is shown.
            config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "mqueue");
            let script = format!("readlink /proc/self/ns/net > {}", world.path("log"));
            config["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]});
        });
        let seen = world.ok(&["run", "-b", &world.path("bundle"), "set-joins"]);
        let seen: Vec<&str> = seen.lines().collect();
        assert_eq!(seen[..3], [id("net"), id("uts"), id("ipc")], "users: {users}");
        assert_eq!(seen[3] != fs::read_link("/proc/self/ns/user").unwrap().to_str().unwrap(), users);
        let hook = fs::read_to_string(world.path("log")).unwrap();
        assert_eq!(hook.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// The session that starts a container may hold keys of the host's; what is inside has a session of its own.
#[test]
fn no_key_of_the_callers_session() {
    let world = World::new();
    let search = "/usr/bin/keyctl search @s user sheep-secret 2>&1";
    world.bundle(&format!("{search}; echo; exec sleep 1000"), |config| {
        for dir in ["/usr", "/lib", "/lib64"] {
            let mount = json!({"destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }
    });
    let in_a_session = |args: &[&str]| {
        let command = world.ns(args);
        let script = format!("keyctl add user sheep-secret x @s >/dev/null; {search}; \"$@\" >inside 2>&1 </dev/null");
        let output = std::process::Command::new("keyctl")
            .args(["session", "-", "sh", "-c", &script, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&world.dir)
            .output()
            .unwrap();
        let outside = String::from_utf8(output.stdout).unwrap();
        assert!(outside.trim().parse::<u64>().is_ok(), "it is found in the session itself: {outside}");
        let inside = || fs::read_to_string(world.path("inside")).unwrap();
        crate::harness::wait("what it says", || inside().ends_with('\n'));
        inside()
    };
    let inside = in_a_session(&["run", "-d", "-b", &world.path("bundle"), "set-keys"]);
    assert!(inside.contains("not available"), "{inside}");
    let inside = in_a_session(&["exec", "set-keys", "sh", "-c", search]);
    assert!(inside.contains("not available"), "{inside}");
    world.ok(&["delete", "--force", "set-keys"]);
}

/// A read-only tmpfs with something mounted in it: its place is made while that is possible.
#[test]
fn a_place_in_a_read_only_tmpfs() {
    let world = World::new();
    let script = "cat /t/deep/file; touch /t/x 2>/dev/null; echo $?; touch /dev/x 2>/dev/null; echo $?; test -c /dev/null; echo $?";
    world.bundle(script, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap();
        dev["options"].as_array_mut().unwrap().push(json!("ro"));
        mounts.push(json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["ro"]}));
        mounts.push(json!({"destination": "/t/deep/file", "type": "bind", "source": world.path("host/canary"), "options": ["bind"]}));
    });
    assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "set-place"]), "of the host\n1\n1\n0\n");
}

/// What is forbidden on a bind mount is so in a user namespace too, and what the host's mount forbids can be allowed.
#[test]
fn bind_options_in_a_user_namespace() {
    let world = World::new();
    world.give_root_to(100_000);
    for (words, want) in [
        (json!(["bind", "ro", "nosuid", "noexec", "noatime"]), "ro,nosuid,noexec,noatime"),
        (json!(["rbind", "nodev", "rslave", "rro"]), "ro,nodev,relatime"),
        (json!(["bind", "strictatime"]), "rw"),
    ] {
        world.bundle("grep ' /m ' /proc/self/mountinfo | cut -d' ' -f6", |config| {
            in_user_namespace(config);
            let mount = json!({"destination": "/m", "type": "bind", "source": world.path("host"), "options": words});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "set-bind"]).trim(), want, "{words}");
    }
}

/// `rootfsPropagation: shared` on a host whose mounts are shared, as systemd has them: what is left behind inside is not
/// unmounted outside, and what asked to be shared is.
#[test]
fn a_shared_root_leaves_the_host_alone() {
    let world = World::new();
    fs::create_dir_all(world.path("host/below")).unwrap();
    for word in ["shared", "rshared"] {
        world.bundle("grep -c ' /m .* shared:' /proc/self/mountinfo", |config| {
            config["linux"]["rootfsPropagation"] = json!(word);
            let mount = json!({"destination": "/m", "type": "bind", "source": world.path("bundle"), "options": ["bind", "shared"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        let command = world.ns(&["run", "-b", &world.path("bundle"), "set-shared"]);
        let script = format!(
            "mount -t tmpfs x {below} && mount --make-rshared / && wc -l < /proc/self/mountinfo && \"$@\" && wc -l < /proc/self/mountinfo",
            below = world.path("host/below")
        );
        let output = among_private_mounts(&command, &script);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.split_whitespace().collect();
        assert!(lines.len() == 3 && lines[0] == lines[2] && lines[1] == "1", "{word}: {text} {:?}", output.stderr);
    }
}

/// A network device goes in with its addresses, under another name; in a network of the test's own, which stands for the
/// host's.
#[test]
fn network_devices() {
    let world = World::new();
    for users in [false, true] {
        if users {
            world.give_root_to(100_000);
        }
        world.bundle("ip -o addr show | grep -v ' lo ' | tr -s ' '; ip link show inside", |config| {
            if users {
                in_user_namespace(config);
            }
            config["linux"]["netDevices"] = json!({"sheep-dev": {"name": "inside"}});
        });
        let command = world.ns(&["run", "-b", &world.path("bundle"), "set-device"]);
        let script = "set -e; ip link add sheep-dev mtu 1400 type veth peer name sheep-peer; ip link set sheep-peer up
            ip link set sheep-dev address 02:00:00:00:00:07; ip addr add 10.9.8.7/24 broadcast 10.9.8.255 dev sheep-dev
            ip addr add fd00:9::7/64 nodad dev sheep-dev; ip link set sheep-dev up; \"$@\"; ip link show sheep-dev 2>&1 || echo gone";
        let output = std::process::Command::new("unshare")
            .args(["-n", "sh", "-c", script, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{users}: {said} {:?}",
            String::from_utf8_lossy(&output.stderr)
        );
        for words in [
            "inside inet 10.9.8.7/24 brd 10.9.8.255 scope global",
            "inside inet6 fd00:9::7/64 scope global",
            "02:00:00:00:00:07",
            "mtu 1400",
            "UP",
            "gone",
        ] {
            assert!(said.contains(words), "users: {users}: {words}: {said}");
        }
    }
    let refusals = [
        (json!({"lo": {}}), None, "linux.netDevices: lo"),
        (json!({"lo": {"name": "eth%d"}}), None, "'%'"),
        (json!({"no-such": {}}), None, "no such device"),
        (json!({"lo": {"name": "x"}}), Some("network"), "no network namespace"),
    ];
    for (devices, without, words) in refusals {
        world.bundle("true", |config| {
            config["linux"]["netDevices"] = devices;
            let list = config["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|namespace| namespace["type"].as_str() != without);
        });
        world.fails(&["run", "-b", &world.path("bundle"), "set-device"], 125, words);
        assert!(world.leftovers().is_empty());
    }
}
