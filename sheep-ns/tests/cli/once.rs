//! One-shot `exec`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use crate::harness::{World, alive, end_of, processes, signal, wait};

#[test]
fn exit_codes_and_their_words() {
    let world = World::new();
    let root = world.path("root");
    fs::write(world.root("etc/rubbish"), "\x01\x02").unwrap();
    fs::set_permissions(world.root("etc/rubbish"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let table: [(&[&str], i32, &str); 8] = [
        (&["nosuch"], 127, "exec nosuch: executable file not found in $PATH: no such file or directory"),
        (&["/no/such"], 127, "exec /no/such: no such file or directory"),
        (&["/etc/passwd/x"], 127, "no such file or directory"),
        (&["/etc/passwd"], 126, "exec /etc/passwd: permission denied"),
        (&["/etc"], 126, "exec /etc: permission denied"),
        (&["/etc/rubbish"], 126, "exec /etc/rubbish: exec format error"),
        (&["sh", "-c", "exit 42"], 42, ""),
        (&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, ""),
    ];
    for (command, code, words) in table {
        let ending = world.run(&[&["exec", "--rootfs", &root, "--"], command].concat());
        assert_eq!(ending.code, code, "{command:?}: {ending:?}");
        assert!(ending.err.contains(words), "{command:?}: {ending:?}");
    }
    world.fails(&["exec", "--rootfs", "/no/such", "--", "sh"], 125, "/no/such");
    world.fails(&["exec", "--rootfs", &root, "--user", "nobody", "--", "sh"], 125, "nobody");
    world.fails(&["exec", "--rootfs", &root, "--cap", "CAP_KILL", "--", "sh"], 125, "--cap");
    world.fails(&["exec"], 125, "--rootfs");
    assert_eq!(world.leftovers(), [""; 0], "a one-shot command writes no state");
}

#[test]
fn namespaces_are_its_own() {
    let world = World::new();
    let kinds = ["pid", "mnt", "uts", "ipc", "net", "cgroup", "user", "time"];
    let script = "for kind in pid mnt uts ipc net cgroup user time; do readlink /proc/self/ns/$kind; done";
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    for (network, shared) in [("none", &["user", "time"][..]), ("host", &["net", "user", "time"])] {
        let root = world.path("root");
        let out = world.ok(&["exec", "--rootfs", &root, "--network", network, "--", "sh", "-c", script]);
        for (kind, inside) in kinds.iter().zip(out.lines()) {
            assert_eq!(inside == host(kind), shared.contains(kind), "{kind} with --network {network}");
        }
    }
    let seen = world.sh("echo $$; hostname; ip addr show lo | grep -c 'inet 127.0.0.1'; ls /sys/class/net");
    assert_eq!(seen.out, "1\nsheep\n1\nlo\n");
}

#[test]
fn the_root_is_all_there_is() {
    let world = World::new();
    let seen = world.sh("ls /; ls /..; cat /proc/self/mountinfo; ls -l /proc/self/cwd /proc/self/root");
    assert!(seen.out.starts_with("bin\ndev\netc\nproc\nroot\nsys\ntmp\nbin\n"), "{}", seen.out);
    assert!(!seen.out.contains(&world.path("host")) && !seen.out.contains("unreachable"), "{}", seen.out);
    let mounts = seen.out.lines().filter(|line| line.contains(" - ")).count();
    assert!(mounts < 30, "the host's mounts are gone: {}", seen.out);
    assert_eq!(world.sh("echo x > /made; cat /made").out, "x\n");
    assert!(world.root("made").exists());
    let root = world.path("root");
    let ending =
        world.run(&["exec", "--rootfs", &root, "--read-only", "--", "sh", "-c", "echo x > /other; echo > /dev/null"]);
    assert!(ending.err.contains("Read-only file system") && !world.root("other").exists(), "{ending:?}");
}

#[test]
fn masked_and_read_only_paths() {
    let world = World::new();
    let seen = world.sh(
        "cat /proc/keys /proc/timer_list | wc -c; ls -A /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname; \
        mkdir /sys/x; stat -c %t:%T /proc/keys",
    );
    assert_eq!(seen.out, "0\n0\n1:3\n", "{seen:?}");
    assert_eq!(seen.err.matches("Read-only file system").count(), 2, "{seen:?}");
}

#[test]
fn devices_work_and_no_others() {
    let world = World::new();
    let before = fs::metadata("/dev/null").unwrap();
    let seen = world.sh(
        "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; echo x > /dev/full; ls /dev; \
         chmod 0 /dev/null /proc/keys; chown 5 /dev/null; for dir in /dev /tmp /dev/shm; do mknod $dir/n c 1 3; cat $dir/n; done",
    );
    assert!(seen.out.starts_with("3\n5\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\n"), "{seen:?}");
    assert_eq!(seen.err.matches("can't open").count(), 3, "no node made inside is a device: {seen:?}");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()), "the host's node is as it was");
}

#[test]
fn user_directory_environment_volumes() {
    let world = World::new();
    let volume = format!("{}:/mnt/host:ro", world.path("host"));
    let script =
        "id -u; id -g; pwd; echo $A $HOME; cat /mnt/host/canary; echo x > /mnt/host/y; grep Cap /proc/self/status";
    let root = world.path("root");
    let ending = world.run(&[
        "exec", "--rootfs", &root, "-u", "ann", "-w", "/not/yet", "-e", "A=b c", "-v", &volume, "--", "sh", "-c",
        script,
    ]);
    let want =
        "1000\n1000\n/not/yet\nb c /home/ann\nof the host\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n";
    assert!(ending.out.starts_with(want), "{ending:?}");
    assert!(ending.err.contains("Read-only file system"), "{ending:?}");
    let seen = world.sh("grep -E 'Cap(Inh|Eff)|NoNewPrivs' /proc/self/status; umask");
    assert_eq!(seen.out, "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\n0022\n");
}

#[test]
fn only_the_descriptors_that_were_asked_for() {
    let world = World::new();
    let root = world.path("root");
    let file = fs::File::open(world.dir.join("host/canary")).unwrap();
    // Inherited by the shell, and so by sheep-ns: 3 is the file, 9 a directory of the host.
    let run = |flags: &str| {
        let line = format!(
            "exec 3<&{} 9</; exec \"$0\" exec {flags} --rootfs {root} -- sh -c 'ls /proc/self/fd; cat <&3'",
            file.as_raw_fd()
        );
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let output = std::process::Command::new("sh").arg("-c").arg(line).arg(crate::harness::NS).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(""), "0\n1\n2\n3\n", "3 is the listing itself");
    assert_eq!(run("--preserve-fds 1"), "0\n1\n2\n3\n4\nof the host\n");
}

#[test]
fn signals_go_on_to_the_program() {
    let world = World::new();
    let root = world.path("root");
    let start = |script: &str| {
        let mut child =
            world.ns(&["exec", "--rootfs", &root, "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child
    };
    for (number, name) in [(15, "TERM"), (2, "INT"), (1, "HUP"), (10, "USR1"), (28, "WINCH")] {
        let mut child = start(&format!("trap 'exit 3' {name}; echo ready; while :; do sleep 0.01; done"));
        signal(child.id(), number);
        assert_eq!(end_of(&mut child), 3, "{name}");
    }
    // The first process of a pid namespace does not get a signal that it has no handler for; Ctrl-C works all the same.
    for number in [2, 15] {
        let sleep = format!("sleep 1000.{number}{}", std::process::id());
        let mut child = start(&format!("echo ready; exec {sleep}"));
        // A signal that comes while the shell becomes something else is the shell's, and lost with it.
        let is_sleep =
            |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"));
        wait("sleep", || processes(&sleep).iter().any(is_sleep));
        signal(child.id(), number);
        assert_eq!(end_of(&mut child), 128 + number);
    }
}

#[test]
fn a_reader_that_is_gone_is_not_asked_for_over_and_over() {
    let world = World::new();
    let root = world.path("root");
    let mut child = world.ns(&["exec", "--rootfs", &root, "--", "sleep", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    std::thread::sleep(std::time::Duration::from_millis(700));
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // User and system time, in hundredths of a second (proc_pid_stat(5), fields 14 and 15).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let took: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    assert_eq!(end_of(&mut child), 0);
    assert!(took < 10, "{took} hundredths of a second for nothing");
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let world = World::new();
    let root = world.path("root");
    for user in ["root", "ann"] {
        let mark = format!("sleep 77.{}{}", std::process::id(), user.len());
        let script = format!("{mark} & {mark} & wait");
        let mut child = world.ns(&["exec", "--rootfs", &root, "-u", user, "--", "sh", "-c", &script]).spawn().unwrap();
        wait("the program", || processes(&mark).len() >= 4);
        signal(child.id(), 9);
        end_of(&mut child);
        wait("its end", || processes(&mark).is_empty());
    }
}

#[test]
fn a_document_and_its_stdin() {
    let world = World::new();
    let document = format!("{{\"overlay\":{{\"merged\":\"{}\"}},\"mine\":1}}\n", world.path("root"));
    let run = |source: &str, stdin: &str| {
        let mut child = world
            .ns(&["exec", "--from", source, "--", "sh", "-c", "cat; readlink /proc/self/fd/0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("-", &document), "/dev/null\n");
    let file = world.path("document");
    fs::write(&file, &document).unwrap();
    assert!(run(&file, "to the program\n").starts_with("to the program\n"));
    world.fails(&["exec", "--from", "-", "--", "sh"], 125, "no document");
}

#[test]
fn a_limit_without_a_controller_starts_nothing() {
    let world = World::new();
    let v2 = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find_map(|dir| fs::read_to_string(format!("{dir}/cgroup.controllers")).ok());
    let script = "echo started";
    let root = world.path("root");
    let ending = world.run(&["exec", "--rootfs", &root, "-m", "32m", "--", "sh", "-c", script]);
    match v2.is_some_and(|controllers| controllers.contains("memory")) {
        true => assert_eq!((ending.code, ending.out.as_str()), (0, "started\n")),
        false => {
            assert_eq!((ending.code, ending.out.as_str()), (125, ""), "{ending:?}");
            assert!(ending.err.contains("memory limit"), "{ending:?}");
        }
    }
}

#[test]
fn own_mounts_of_the_root_and_a_root_of_slash() {
    let world = World::new();
    // The host's own root, through a user's eyes: read-only, with new namespaces.
    let script = "test -x /bin/sh && echo $$";
    assert_eq!(world.ok(&["exec", "--rootfs", "/", "--read-only", "--", "/bin/sh", "-c", script]), "1\n");
    let pid_file = world.path("pid");
    let mut child = world
        .ns(&["exec", "--rootfs", &world.path("root"), "--pid-file", &pid_file, "--", "sleep", "100"])
        .spawn()
        .unwrap();
    wait("the pid file", || fs::read_to_string(&pid_file).is_ok());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(alive(pid));
    signal(child.id(), 15);
    assert_eq!(end_of(&mut child), 143);
    wait("the program's end", || !alive(pid));
}
