//! Ways out that others have had, and what must happen instead. `host/` in the world stands for the host.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::harness::{NS, World, read_until, wait};

/// The host's directory is as it was.
fn untouched(world: &World) {
    let names: Vec<_> = fs::read_dir(world.dir.join("host")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["canary"]);
    assert_eq!(fs::read_to_string(world.dir.join("host/canary")).unwrap(), "of the host\n");
}

/// CVE-2024-21626: a working directory through a descriptor of the runtime's.
#[test]
fn a_working_directory_through_a_descriptor() {
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
fn system_directories_that_are_links() {
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
fn targets_through_links_stay_inside() {
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
fn a_target_that_changes_under_our_hands() {
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
    for round in 0..200 {
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
fn mounts_over_proc() {
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
fn our_own_program_file() {
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
fn a_process_on_its_way_in() {
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
fn a_console_of_the_image() {
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
fn no_more_rights_inside_than_given() {
    let world = World::new();
    let script = "mount -t tmpfs x /tmp && echo mounted; umount /proc/keys && echo unmasked; mount -o remount,rw /proc/sys && echo writable; \
        unshare -Ur sh -c 'mount -t cgroup -o devices x /tmp && echo cgroup; mount -o remount,dev / && echo devices; umount /proc/keys && echo unmasked'; true";
    let seen = world.sh(script);
    assert_eq!(seen.out, "", "{seen:?}");
}
