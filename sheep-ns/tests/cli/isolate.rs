//! One line in place of a bubblewrap script, as root and as an ordinary user.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use crate::harness::{Ending, World, processes, wait};

fn worlds() -> [World; 2] {
    [World::new(), World::of_user()]
}

fn sh(world: &World, flags: &[&str], script: &str) -> Ending {
    world.run(&[&["exec", "--rootfs", &world.path("root")], flags, &["--", "sh", "-c", script]].concat())
}

#[test]
fn namespaces_are_shared_one_by_one() {
    let kinds = [("net", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    for world in worlds() {
        for (word, kind) in kinds {
            let script =
                "for kind in net pid ipc uts cgroup; do readlink /proc/self/ns/$kind; done; ls -d /dev/shm /sys/class";
            let seen = sh(&world, &["--share", word], script);
            assert_eq!((seen.code, seen.err.as_str()), (0, ""), "{word}: {seen:?}");
            for ((_, other), inside) in kinds.iter().zip(seen.out.lines()) {
                assert_eq!(inside == host(other), *other == kind, "{other} with --share {word}");
            }
        }
        let all =
            sh(&world, &["--share", "net,pid,ipc", "--share", "uts,cgroup"], "readlink /proc/self/ns/pid; hostname");
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(all.out, format!("{}\n{name}", host("pid")), "{all:?}");
        let root = world.path("root");
        world.fails(&["exec", "--rootfs", &root, "--share", "uts", "--hostname", "x", "--", "true"], 125, "--hostname");
        world.fails(&["exec", "--share", "net", "someone", "true"], 125, "--share is for");
    }
}

#[test]
fn root_inside_and_nobody_outside() {
    for world in worlds() {
        let seen =
            sh(&world, &["--map-root"], "id -u; awk '{print $1, $3}' /proc/self/uid_map; mkdir /d && stat -c %u /d");
        assert_eq!((seen.out.as_str(), seen.code), ("0\n0 1\n0\n", 0), "{seen:?}");
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        let inside = sh(&world, &["--map-root"], "readlink /proc/self/ns/user").out;
        assert_ne!(inside.trim(), own.to_str().unwrap());
        let seen = sh(&world, &["--uid", "7", "--gid", "8"], "id -u; id -g");
        assert_eq!(seen.out, "7\n8\n", "{seen:?}");
        assert_eq!(sh(&world, &["--uid", "7"], "id -u; id -g").out, "7\n7\n");
    }
}

#[test]
fn mounts_in_their_order() {
    for world in worlds() {
        let host = world.path("host");
        let seen = sh(&world, &["--ro-bind", &host], &format!("cat {host}/canary; echo x > {host}/x"));
        assert!(seen.out == "of the host\n" && seen.err.contains("Read-only file system"), "{seen:?}");
        // The one nearer to the root is mounted first, wherever its flag stands.
        let seen = sh(
            &world,
            &["--bind", &format!("{host}:/t/deep/host"), "--tmpfs", "/t:1m"],
            "cat /t/deep/host/canary; df -k /t | tail -1 | awk '{print $2}'; echo x > /t/x; echo y > /t/deep/host/y",
        );
        assert_eq!((seen.out.as_str(), seen.err.as_str()), ("of the host\n1024\n", ""));
        assert!(fs::exists(format!("{host}/y")).unwrap());
        let root = world.path("root");
        world.fails(
            &["exec", "--rootfs", &root, "--ro-bind", "/no/such", "--", "true"],
            125,
            "--ro-bind: /no/such: no such file",
        );
        // From nothing: an empty directory, and the host's programs.
        let empty = world.path("empty");
        fs::create_dir(&empty).unwrap();
        fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        if world.ok(&["exec", "--rootfs", &root, "--", "id", "-u"]) == "0\n" {
            std::process::Command::new("chown").args(["--reference", &host, &empty]).status().unwrap();
        }
        let busybox = "/bin/busybox:/b/busybox";
        let out = world.ok(&["exec", "--rootfs", &empty, "--ro-bind", busybox, "--", "/b/busybox", "ls", "/"]);
        assert_eq!(out, "b\ndev\nproc\nsys\n");
    }
}

#[test]
fn capabilities_and_environment() {
    for world in worlds() {
        let sets = "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f2";
        let seen = sh(&world, &["--cap-drop", "all", "--cap-add", "net_admin,CAP_CHOWN"], sets);
        assert_eq!(seen.out, "0000000000001001\n0000000000001001\n", "{seen:?}");
        assert_eq!(sh(&world, &["--cap-drop", "all"], sets).out, "0000000000000000\n0000000000000000\n");
        let all = sh(&world, &["--cap-add", "all", "--cap-drop", "sys_admin"], sets);
        let set = u64::from_str_radix(all.out.lines().next().unwrap(), 16).unwrap();
        assert!(set & (1 << 21) == 0 && set.count_ones() > 30, "{all:?}");
        // What the filter lets do follows from the capabilities.
        assert!(sh(&world, &[], "hostname x").err.contains("not permitted"));
        assert_eq!(sh(&world, &["--cap-add", "sys_admin"], "hostname x && hostname").out, "x\n");
        let mut command = world.ns(&[
            "exec",
            "--rootfs",
            &world.path("root"),
            "--keep-env",
            "--unsetenv",
            "GONE",
            "-e",
            "A=1",
            "--",
            "sh",
            "-c",
            "echo $MINE-$GONE-$A",
        ]);
        let output = command.env("MINE", "kept").env("GONE", "x").output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "kept--1\n");
        let cleared = ["exec", "--rootfs", &world.path("root"), "--clearenv", "-e", "A=1", "--", "/bin/env"];
        // As every program of a container, it has a HOME.
        assert_eq!(world.ok(&cleared), "A=1\nHOME=/root\n");
        let root = world.path("root");
        world.fails(&["exec", "--rootfs", &root, "--cap-add", "fly", "--", "true"], 125, "--cap-add fly");
    }
}

#[test]
fn what_happens_is_told_as_json() {
    for world in worlds() {
        let root = world.path("root");
        let line = format!(
            "exec 7>{}; \"$0\" exec --rootfs {root} --json-status-fd 7 -- sh -c 'ls /proc/self/fd; exit 5'",
            world.path("status")
        );
        let program = world.ns(&[]).get_program().to_owned();
        let output = world.shell().arg("-c").arg(line).arg(program).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(5), &b"0\n1\n2\n3\n"[..]), "{output:?}");
        let text = fs::read_to_string(world.dir.join("status")).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(
            lines[0]["child-pid"].as_i64().unwrap() > 1 && lines[1]["exit-code"] == 5 && lines.len() == 2,
            "{text}"
        );
        world.fails(&["exec", "--rootfs", &root, "--json-status-fd", "77", "--", "true"], 125, "--json-status-fd");
    }
}

#[test]
fn it_ends_with_who_called_it() {
    let world = World::new();
    let root = world.path("root");
    for tied in [true, false] {
        let mark = format!("sleep 88.{}{}", std::process::id(), u8::from(tied));
        let flag = if tied { "--die-with-parent" } else { "" };
        let line = format!("\"$0\" exec --rootfs {root} {flag} -- sh -c 'echo up; {mark}' & wait");
        let mut shell = world.shell();
        shell.arg("-c").arg(line).arg(crate::harness::NS).stdout(Stdio::piped()).process_group(0);
        let mut shell = shell.spawn().unwrap();
        let mut up = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut up).unwrap();
        wait("the program", || !processes(&mark).is_empty());
        shell.kill().unwrap();
        shell.wait().unwrap();
        if tied {
            wait("its end", || processes(&mark).is_empty());
        } else {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let left = processes(&mark);
            assert!(!left.is_empty(), "without the flag it goes on");
            left.iter().for_each(|pid| {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
            });
            wait("the end of all", || processes(&mark).is_empty());
        }
    }
}
