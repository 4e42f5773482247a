//! Ways out that others have had, and what must happen instead. `host/` in the world stands for the host.
//!
//! Races are short here; `SHEEP_ESCAPE_ROUNDS` gives them more rounds (2000 take a few minutes).

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::harness::{NS, World, among_private_mounts, in_user_namespace, read_until, wait};

/// The host's directory is as it was.
fn untouched(world: &World) {
    let names: Vec<_> = fs::read_dir(world.dir.join("host")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["canary"]);
    assert_eq!(fs::read_to_string(world.dir.join("host/canary")).unwrap(), "of the host\n");
}

fn rounds(default: u32) -> u32 {
    std::env::var("SHEEP_ESCAPE_ROUNDS").map_or(default, |text| text.parse().unwrap())
}

/// CVE-2024-21626: a working directory through a descriptor of the runtime's.
#[test]
fn cve_2024_21626_a_working_directory_through_a_descriptor() {
    let world = World::new();
    let host = fs::File::open(world.dir.join("host")).unwrap();
    rustix::io::fcntl_setfd(&host, rustix::io::FdFlags::empty()).unwrap();
    for fd in (3..16).chain([host.as_raw_fd()]) {
        for cwd in [format!("/proc/self/fd/{fd}"), format!("/proc/self/fd/{fd}/../..")] {
            let ending = world.run(&["exec", "--rootfs", &world.path("root"), "-w", &cwd, "--", "ls"]);
            assert_eq!(ending.code, 125, "{cwd}: {ending:?}");
            world.bundle("ls", |config| config["process"]["cwd"] = json!(cwd));
            assert_eq!(world.run(&["run", "-b", &world.path("bundle"), "escape-cwd"]).code, 125, "{cwd}");
        }
    }
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-cwd");
    world.ok(&["start", "escape-cwd"]);
    for fd in 3..16 {
        let cwd = format!("/proc/self/fd/{fd}");
        assert_eq!(world.run(&["exec", "-w", &cwd, "escape-cwd", "ls"]).code, 125);
    }
}

/// CVE-2019-19921, 2023-27561, 2023-28642, 2026-41579: the image's /proc, /sys or /dev is a link.
#[test]
fn cve_2019_19921_2023_27561_2023_28642_2026_41579_2026_47766_system_directories_that_are_links() {
    let world = World::new();
    for name in ["proc", "sys", "dev"] {
        let _ = fs::remove_dir_all(world.root(name));
        for aim in [world.path("host"), "/tmp".to_owned(), "../../host".to_owned()] {
            symlink(&aim, world.root(name)).unwrap();
            let ending = world.sh("echo started");
            assert_eq!(ending.code, 125, "{name} → {aim}: {ending:?}");
            assert!(ending.err.contains("symbolic link") && ending.out.is_empty(), "{ending:?}");
            fs::remove_file(world.root(name)).unwrap();
        }
        assert_eq!(world.sh("true").code, 0);
        untouched(&world);
    }
    // A bundle that mounts nothing at /dev: the nodes go into the image's, if that is one.
    symlink(world.path("host"), world.root("link")).unwrap();
    fs::remove_dir_all(world.root("dev")).unwrap();
    symlink(world.path("host"), world.root("dev")).unwrap();
    world.bundle("true", |config| {
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    });
    world.fails(&["run", "-b", &world.path("bundle"), "escape-links"], 125, "symbolic link");
    untouched(&world);
}

/// CVE-2018-15664, 2021-30465, 2022-23648: mount targets and device paths through links of the image.
#[test]
fn cve_2018_15664_2022_23648_2025_24965_targets_through_links_stay_inside() {
    let world = World::new();
    symlink(world.path("host"), world.root("out")).unwrap();
    symlink("../../../../../../..", world.root("up")).unwrap();
    fs::write(world.path("source"), "bound\n").unwrap();
    world.bundle("cat /out/file; ls /up/up", |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for target in ["/out/file", "/up/up/file", "/out/dir/file"] {
            mounts.push(
                json!({"destination": target, "type": "bind", "source": world.path("source"), "options": ["bind"]}),
            );
        }
        config["linux"]["devices"] = json!([{"type": "c", "path": "/out/null", "major": 1, "minor": 3}]);
        config["linux"]["maskedPaths"] = json!(["/out/canary"]);
        config["process"]["cwd"] = json!("/out/cwd");
    });
    let ending = world.run(&["run", "-b", &world.path("bundle"), "escape-targets"]);
    assert_eq!(ending.out.lines().next(), Some("bound"), "{ending:?}");
    untouched(&world);
}

/// CVE-2021-30465, 2024-45310: the target is exchanged for a link while it is mounted on.
#[test]
fn cve_2021_30465_2024_45310_a_target_that_changes_under_our_hands() {
    let world = World::new();
    fs::create_dir_all(world.root("race/dir")).unwrap();
    symlink(world.path("host"), world.root("race/link")).unwrap();
    fs::write(world.path("source"), "bound\n").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, a, b) = (stop.clone(), world.root("race/dir"), world.root("race/link"));
        move || {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        }
    });
    let volume = format!("{}:/race/dir/a/b", world.path("source"));
    let root = world.path("root");
    for round in 0..rounds(200) {
        let ending =
            world.run(&["exec", "--rootfs", &root, "-v", &volume, "-w", "/race/dir/c/d", "--", "cat", "/proc/mounts"]);
        assert!([0, 125].contains(&ending.code), "{round}: {ending:?}");
        untouched(&world);
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&world.path("")), "{mounts}");
}

/// CVE-2019-16884, 2025-52881: something mounted over /proc, or over what is written through it.
#[test]
fn cve_2019_16884_2025_52881_mounts_over_proc() {
    let world = World::new();
    let bundle = world.path("bundle");
    symlink("/proc", world.root("alias")).unwrap();
    let host = world.path("host");
    let table = [
        json!({"destination": "/proc", "type": "bind", "source": host, "options": ["bind"]}),
        json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/proc/sys", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/alias/sys", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/alias/sys/kernel", "type": "bind", "source": host, "options": ["bind"]}),
        json!({"destination": "/alias", "type": "tmpfs", "source": "tmpfs"}),
    ];
    for mount in table {
        world.bundle("echo started", |config| {
            config["mounts"].as_array_mut().unwrap().push(mount.clone());
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        });
        let ending = world.run(&["run", "-b", &bundle, "escape-proc"]);
        assert!(ending.code == 125 && ending.err.contains("/proc"), "{mount}: {ending:?}");
    }
    // What engines do: their own /proc/uptime.
    fs::write(world.path("uptime"), "1 1\n").unwrap();
    world.bundle("cat /proc/uptime", |config| {
        let mount =
            json!({"destination": "/proc/uptime", "type": "bind", "source": world.path("uptime"), "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    assert_eq!(world.run(&["run", "-b", &bundle, "escape-proc"]).out, "1 1\n");
}

/// CVE-2019-5736: the runtime's own program, by way of /proc/PID/exe.
#[test]
fn cve_2019_5736_our_own_program_file() {
    let world = World::new();
    let before = fs::read(NS).unwrap();
    // A copy, should this test fail.
    let copy = world.path("copy");
    assert!(std::process::Command::new("cp").args([NS, &copy]).status().unwrap().success());
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(&copy);
        command.args(["--root", &world.path("state")]).args(args).stdin(Stdio::null());
        command
    };
    world.bundle("exec sleep 1000", |config| {
        let sets = &mut config["process"]["capabilities"];
        for set in ["bounding", "effective", "permitted"] {
            sets[set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
        }
    });
    let bundle = world.path("bundle");
    let quiet =
        |args: &[&str]| assert!(run(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    quiet(&["create", "-b", &bundle, "escape-exe"]);
    // With CAP_SYS_PTRACE the file can be got hold of; what is got hold of is read-only for good.
    let script = "exec 9</proc/1/exe && echo opened; while [ \"$(cat /proc/1/comm)\" != sleep ]; do sleep 0.01; done; \
        echo changed > /proc/self/fd/9; echo changed >> /proc/self/fd/9; exit 3";
    let mut child =
        run(&["exec", "escape-exe", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "opened");
    quiet(&["start", "escape-exe"]);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused =
        said.lines().filter(|line| line.ends_with("Read-only file system") || line.ends_with("Text file busy"));
    assert_eq!((output.status.code(), refused.count()), (Some(3), 2), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    // Have our program executed inside, as a script's interpreter and by its name.
    fs::write(world.root("script"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(world.root("script"), fs::Permissions::from_mode(0o755)).unwrap();
    for program in ["/script", "/proc/self/exe"] {
        let output = run(&["exec", "escape-exe", program]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        let output = run(&["exec", "--rootfs", &world.path("root"), "--", program]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
    }
    quiet(&["delete", "--force", "escape-exe"]);
    assert!(fs::read(&copy).unwrap() == before, "the program is unchanged");
}

/// CVE-2016-9962: what is on its way in has nothing of the host's to be taken.
#[test]
fn cve_2016_9962_a_process_on_its_way_in() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-way");
    // The first process waits for `start`, as sheep-ns still; it is root's, and so is who looks.
    let script = "for x in /proc/1/root /proc/1/cwd /proc/1/exe /proc/1/fd/*; do readlink $x && echo seen; done; \
        cat /proc/1/environ /proc/1/mem && echo seen; true";
    let ending = world.run(&["exec", "escape-way", "sh", "-c", script]);
    assert_eq!(ending.out, "", "{ending:?}");
    world.ok(&["start", "escape-way"]);
    wait("its program", || world.ok(&["exec", "escape-way", "cat", "/proc/1/comm"]) == "sleep\n");
    let ending = world.ok(&["exec", "escape-way", "ls", "/proc/1/fd"]);
    assert_eq!(ending, "0\n1\n2\n");
}

/// CVE-2025-52565: /dev/console is our own terminal, whatever the image has there.
#[test]
fn cve_2025_52565_a_console_of_the_image() {
    let world = World::new();
    fs::create_dir_all(world.root("dev")).unwrap();
    symlink(world.path("host/canary"), world.root("dev/console")).unwrap();
    world.bundle("echo x > /dev/console", |config| {
        config["process"]["terminal"] = json!(true);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev");
    });
    let ending = world.run(&["run", "-b", &world.path("bundle"), "escape-console"]);
    assert!(ending.code == 125 && ending.err.contains("symbolic link"), "{ending:?}");
    untouched(&world);
}

/// CVE-2022-0492 and the like: mounts of one's own from a user namespace inside.
#[test]
fn cve_2022_0492_no_more_rights_inside_than_given() {
    let world = World::new();
    let script = "mount -t tmpfs x /tmp && echo mounted; umount /proc/keys && echo unmasked; mount -o remount,rw /proc/sys && echo writable; \
        unshare -Ur sh -c 'mount -t cgroup -o devices x /tmp && echo cgroup; mount -o remount,dev / && echo devices; umount /proc/keys && echo unmasked'; true";
    let seen = world.sh(script);
    assert_eq!(seen.out, "", "{seen:?}");
}

/// CVE-2016-9962, 2022-29162's neighbour: somebody inside looks at every process that comes, all the time.
#[test]
fn cve_2016_9962_processes_on_their_way_in_are_watched() {
    let world = World::new();
    fs::write(
        world.root("watch"),
        "trap 'exit 0' TERM; while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; \
         for x in $p/root $p/cwd $p/exe $p/fd/*; do at=$(readlink $x) && case \"$at\" in /bin/busybox | / | /dev/* | pipe:* | /watch | /proc/*) ;; \
         *) echo \"$x $at\" >> /seen ;; esac; done; done; done 2>/dev/null",
    )
    .unwrap();
    // Root in a user namespace with all there is in it: only what the process itself forbids keeps it from looking.
    world.give_root_to(100_000);
    world.bundle("exec sh /watch 0</dev/null >/dev/null", |config| {
        in_user_namespace(config);
        let all = json!(sheep_ns::caps::NAMES.to_vec());
        config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        config["process"]["noNewPrivileges"] = json!(false);
    });
    world.create("escape-watch");
    world.ok(&["start", "escape-watch"]);
    for _ in 0..rounds(40) {
        world.ok(&["exec", "escape-watch", "true"]);
    }
    world.ok(&["delete", "--force", "escape-watch"]);
    // What it may see are the files of the tests' own stdio, once a program runs that has them.
    let seen = fs::read_to_string(world.root("seen")).unwrap_or_default();
    let stdio = |line: &&str| {
        let at = line.split(' ').nth(1).unwrap_or_default();
        ["/fd/1 ", "/fd/2 "].iter().any(|fd| line.contains(fd)) && at.starts_with(&world.path(""))
    };
    let others: Vec<&str> = seen.lines().filter(|line| !stdio(line)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// CVE-2025-31133: what hides a path is the kernel's null device, whatever is at /dev/null.
#[test]
fn cve_2025_31133_a_mask_that_was_replaced() {
    let world = World::new();
    fs::create_dir_all(world.root("dev")).unwrap();
    fs::write(world.root("secret"), "secret\n").unwrap();
    // The image's own; no mount hides it.
    symlink("/secret", world.root("dev/null")).unwrap();
    world.bundle("wc -c < /secret; stat -c %t:%T /secret; echo x > /proc/sysrq-trigger", |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        config["linux"]["maskedPaths"] = json!(["/secret", "/proc/sysrq-trigger"]);
    });
    let bundle = world.path("bundle");
    let ending = world.run(&["run", "-b", &bundle, "escape-mask"]);
    assert!(ending.code == 125 && ending.err.contains("/dev/null"), "something else is there: {ending:?}");
    fs::remove_file(world.root("dev/null")).unwrap();
    assert_eq!(world.run(&["run", "-b", &bundle, "escape-mask"]).out, "0\n1:3\n");
    // The host's, as a container in a container sees it.
    let command = world.ns(&["run", "-b", &bundle, "escape-mask"]);
    let script = format!("mount --bind {} /dev/null; \"$@\"", world.path("host/canary"));
    let output = among_private_mounts(&command, &script);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(125) && said.contains("not the device it should be"), "{said}");
    untouched(&world);
}

/// CVE-2022-29162, 2022-27650: a joining process has nothing inheritable, whatever the container has.
#[test]
fn cve_2022_29162_2022_27650_nothing_is_inheritable() {
    let world = World::new();
    world.bundle("exec sleep 1000", |config| {
        config["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    });
    world.create("escape-caps");
    world.ok(&["start", "escape-caps"]);
    let look = ["grep", "CapInh", "/proc/self/status"];
    let process = json!({"args": look, "cwd": "/", "env": ["PATH=/bin"], "capabilities": {"bounding": ["CAP_KILL"],
        "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}});
    fs::write(world.path("process"), process.to_string()).unwrap();
    let process = world.path("process");
    for args in [
        [&["exec", "escape-caps"][..], &look].concat(),
        [&["exec", "--cap", "CAP_KILL", "escape-caps"][..], &look].concat(),
        [&["exec", "-u", "1000", "escape-caps"][..], &look].concat(),
        vec!["exec", "--process", &process, "escape-caps"],
    ] {
        assert_eq!(world.ok(&args), "CapInh:\t0000000000000000\n", "{args:?}");
    }
    assert_eq!(world.sh("grep CapInh /proc/self/status").out, "CapInh:\t0000000000000000\n");
}

/// CVE-2026-30892: who `exec -u` means. Nobody becomes root who was not named so.
#[test]
fn cve_2026_30892_whom_a_user_flag_means() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-user");
    world.ok(&["start", "escape-user"]);
    let table = [
        ("1", Some("1:0")),
        ("1:2", Some("1:2")),
        ("ann", Some("1000:1000")),
        ("ann:video", Some("1000:44")),
        ("0:7", Some("0:7")),
        ("1000", Some("1000:1000")),
        ("00001", Some("1:0")),
        ("1x", None),
        ("0x1", None),
        ("1:x", None),
        // As docker reads it.
        ("1:", Some("1:0")),
        ("", None),
        (":1", None),
        (":", None),
        ("-1", None),
        ("+1", None),
        (" 1", None),
        ("1 ", None),
        ("1:2:3", None),
        ("4294967295", None),
        ("4294967296", None),
        ("18446744073709551617", None),
        ("1:4294967296", None),
        ("ann\n", None),
        ("../ann", None),
    ];
    for (asked, want) in table {
        let args = ["exec", &format!("--user={asked}"), "escape-user", "sh", "-c", "echo $(id -u):$(id -g)"];
        let ending = world.run(&args);
        match want {
            Some(ids) => assert_eq!((ending.code, ending.out.trim()), (0, ids), "{asked:?}: {ending:?}"),
            None => assert!(ending.code == 125 && ending.out.is_empty(), "{asked:?}: {ending:?}"),
        }
    }
}

/// CVE-2023-25809: the control groups of the host cannot be written without a namespace of one's own.
#[test]
fn cve_2023_25809_control_groups_without_a_namespace() {
    let world = World::new();
    world.bundle(
        "cat /proc/self/mountinfo | grep ' /sys/fs/cgroup ' | cut -d' ' -f6; mkdir /sys/fs/cgroup/escape-made",
        |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "cgroup");
            for mount in config["mounts"].as_array_mut().unwrap() {
                if mount["destination"] == "/sys/fs/cgroup" {
                    mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
                }
            }
        },
    );
    let ending = world.run(&["run", "-b", &world.path("bundle"), "escape-groups"]);
    assert!(ending.out.starts_with("ro,"), "{ending:?}");
    assert!(ending.code == 1 && ending.err.contains("Read-only file system"), "{ending:?}");
}

/// CVE-2021-41091: what we keep of a container is for its owner alone.
#[test]
fn cve_2021_41091_directories_of_ours_are_closed_to_others() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-modes");
    let mode = |path: &str| fs::symlink_metadata(world.dir.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("state"), mode("state/escape-modes")), (0o700, 0o700));
    for entry in fs::read_dir(world.dir.join("state/escape-modes")).unwrap() {
        let entry = entry.unwrap();
        let file = format!("state/escape-modes/{}", entry.file_name().display());
        // The socket's own mode counts for nothing: nobody else comes into its directory.
        assert!(entry.file_name() == "start.sock" || mode(&file) == 0o600, "{file}: {:o}", mode(&file));
    }
}

/// An id that system calls take for "unchanged" would leave the program who we are.
#[test]
fn an_id_that_means_unchanged() {
    let world = World::new();
    let none = u32::MAX;
    for (key, what, value) in [
        ("/process/user", "process.user.uid", json!({"uid": none, "gid": 1})),
        ("/process/user", "process.user.gid", json!({"uid": 1, "gid": none})),
        ("/process/user", "process.user.additionalGids", json!({"uid": 1, "gid": 1, "additionalGids": [5, none]})),
        ("/linux/devices", "linux.devices: uid", json!([{"type": "p", "path": "/dev/pipe", "uid": none}])),
        ("/linux/devices", "linux.devices: gid", json!([{"type": "p", "path": "/dev/pipe", "gid": none}])),
    ] {
        world.bundle("id", |config| {
            config["linux"]["devices"] = json!([]);
            *config.pointer_mut(key).unwrap() = value.clone();
        });
        let ending = world.run(&["run", "-b", &world.path("bundle"), "escape-unchanged"]);
        assert!(ending.code == 125 && ending.err.contains(&format!("{what}: {none} is no id")), "{value}: {ending:?}");
        assert_eq!(ending.out, "");
    }
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-unchanged");
    fs::write(world.path("process.json"), json!({"args": ["id"], "cwd": "/", "user": {"uid": none}}).to_string())
        .unwrap();
    for asked in [vec!["-u", "4294967295"], vec!["-u", "1:4294967295"], vec!["--process", &world.path("process.json")]]
    {
        let ending = world.run(&[&["exec"], &asked[..], &["escape-unchanged", "id"]].concat());
        assert!(ending.code != 0 && ending.out.is_empty(), "{asked:?}: {ending:?}");
    }
}

/// CVE-2019-14271: nothing of the image is loaded into our process: no library, no name service.
#[test]
fn cve_2019_14271_nothing_of_the_image_is_loaded() {
    let world = World::new();
    let libraries =
        ["lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"];
    for dir in libraries {
        fs::create_dir_all(world.root(dir)).unwrap();
        for name in ["libnss_files.so.2", "libnss_evil.so.2", "libc.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"] {
            // Whatever opens one of these waits for a writer that never comes.
            let made = std::process::Command::new("mkfifo").arg(world.root(dir).join(name)).status().unwrap();
            assert!(made.success());
        }
    }
    fs::write(world.root("etc/nsswitch.conf"), "passwd: evil files\ngroup: evil files\nhosts: evil\n").unwrap();
    fs::write(world.root("etc/ld.so.preload"), "/lib/libnss_evil.so.2\n").unwrap();
    world.bundle("exec sleep 1000", |config| {
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [44]});
    });
    world.create("escape-load");
    let pid = world.state("escape-load")["pid"].as_i64().unwrap();
    let own: Vec<String> = mapped(&format!("/proc/{pid}/maps"));
    assert!(!own.is_empty());
    for file in own {
        // A path as the host has it; what is of the image would be there under the root directory only.
        assert!(!file.contains(&world.path("root")) && fs::metadata(&file).is_ok_and(|m| m.is_file()), "{file}");
    }
    world.ok(&["start", "escape-load"]);
    for user in ["ann", "ann:video", "root"] {
        assert_eq!(world.ok(&["exec", "-u", user, "escape-load", "echo", "done"]), "done\n");
        assert_eq!(world.ok(&["exec", "--rootfs", &world.path("root"), "-u", user, "--", "echo", "done"]), "done\n");
    }
}

/// The files that are mapped, by their paths.
fn mapped(maps: &str) -> Vec<String> {
    let text = fs::read_to_string(maps).unwrap();
    let mut files: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().nth(5)).map(str::to_owned).collect();
    // "/" is our own program: the root of the mount that holds only it.
    files.retain(|file| file.starts_with('/') && file != "/");
    files.sort();
    files.dedup();
    files
}

/// CVE-2024-9676, 2022-23648: the image's passwd and group lead elsewhere, or to nowhere.
#[test]
fn cve_2022_23648_2024_9676_files_about_users_that_lead_elsewhere() {
    let world = World::new();
    fs::write(world.path("host/canary"), "of the host\n").unwrap();
    fs::write(world.path("passwd"), "mallory:x:4711:4711::/:/bin/sh\n").unwrap();
    let passwd = world.root("etc/passwd");
    let root = world.path("root");
    for aim in [
        world.path("passwd"),
        "../../passwd".to_owned(),
        "/proc/self/root/etc/passwd".to_owned(),
        "passwd".to_owned(),
        "/dev/zero".to_owned(),
    ] {
        fs::remove_file(&passwd).unwrap();
        symlink(&aim, &passwd).unwrap();
        let ending = world.run(&["exec", "--rootfs", &root, "-u", "mallory", "--", "id", "-u"]);
        assert!(ending.code == 125 && ending.out.is_empty(), "{aim}: {ending:?}");
        // A number needs no file; neither its name nor its home is told by what is not the image's.
        let ending = world.run(&["exec", "--rootfs", &root, "-u", "4711", "--", "sh", "-c", "echo $HOME"]);
        assert!(ending.code == 0 && ending.out == "/\n" || ending.code == 125, "{aim}: {ending:?}");
    }
    fs::remove_file(&passwd).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&passwd).status().unwrap().success());
    let ending = world.run(&["exec", "--rootfs", &root, "-u", "mallory", "--", "id", "-u"]);
    assert!(ending.code == 125 && ending.out.is_empty(), "{ending:?}");
    untouched(&world);
}

/// CVE-2020-15257: no socket of ours can be reached from another mount namespace.
#[test]
fn cve_2020_15257_no_abstract_sockets() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("escape-sockets");
    let pid = world.state("escape-sockets")["pid"].as_i64().unwrap();
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()?.to_str()?.strip_prefix("socket:[").map(str::to_owned))
        .map(|inode| inode.trim_end_matches(']').to_owned())
        .collect();
    assert!(!sockets.is_empty(), "it waits at one");
    // Columns of /proc/net/unix: the seventh is the inode, the eighth the address; '@' begins an abstract one.
    let all = fs::read_to_string("/proc/net/unix").unwrap();
    let of_ours =
        all.lines().filter(|line| line.split_whitespace().nth(6).is_some_and(|i| sockets.contains(&i.to_owned())));
    let addresses: Vec<&str> = of_ours.filter_map(|line| line.split_whitespace().nth(7)).collect();
    assert!(addresses.iter().all(|address| !address.starts_with('@')) && !addresses.is_empty(), "{addresses:?}");
}

/// An id that is a path.
#[test]
fn ids_that_are_paths() {
    let world = World::new();
    world.bundle("true", |_| {});
    let bundle = world.path("bundle");
    // A directory of that name with all a container has, beside the state directory.
    world.create("escape-id");
    let copied =
        std::process::Command::new("cp").args(["-r", &world.path("state/escape-id"), &world.path("x")]).status();
    assert!(copied.unwrap().success());
    for id in ["../x", "./escape-id", "escape-id/../../x", "/x", "..", ".", "escape-id/", "a\nb", "\u{1b}[2J", ""] {
        for args in [
            vec!["create", "-b", &bundle, id],
            vec!["run", "-b", &bundle, id],
            vec!["start", id],
            vec!["state", id],
            vec!["kill", id, "KILL"],
            vec!["delete", id],
            vec!["delete", "--force", id],
            vec!["exec", id, "true"],
        ] {
            let ending = world.run(&args);
            assert!([2, 125].contains(&ending.code) && ending.out.is_empty(), "{args:?}: {ending:?}");
            assert!(ending.err.lines().count() == 1 && !ending.err.contains('\u{1b}'), "{args:?}: {ending:?}");
        }
    }
    assert!(world.dir.join("x/config.json").exists());
    assert_eq!(world.state("escape-id")["status"], "created");
}
