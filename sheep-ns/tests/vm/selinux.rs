//! Labels of SELinux, under a policy of the test's own: in force for the container's processes, its keys and its file systems. Of a
//! virtual machine that was started with `security=selinux`.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::harness::{NS, World, in_user_namespace};

/// Categories have commas, which mean something else among the options of a mount.
const BOX: &str = "u:r:box_t:s0:c1,c2";
const FILES: &str = "u:object_r:box_file_t:s0:c1,c2";
const POLICY: &str = include_str!("selinux.cil");

fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A world under the policy. The files of its root are the container's.
fn world() -> World {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        run("mount", &["-t", "selinuxfs", "selinuxfs", "/sys/fs/selinux"]);
        let names: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
        let declared: String = names.iter().map(|name| format!("(category {name})\n")).collect();
        fs::write("/tmp/sheep.cil", format!("{POLICY}{declared}(categoryorder ({}))\n", names.join(" "))).unwrap();
        // Debian's, which scripts/setup vm installs.
        run("secilc", &["-N", "-o", "/tmp/sheep-policy", "-f", "/dev/null", "/tmp/sheep.cil"]);
        fs::write("/sys/fs/selinux/load", fs::read("/tmp/sheep-policy").unwrap()).unwrap();
        fs::write("/sys/fs/selinux/enforce", "1").unwrap();
    });
    let world = World::new();
    fs::write(world.root("etc/closed"), "secret\n").unwrap();
    label("u:object_r:box_file_t:s0", &world.path("root"));
    label("u:object_r:secret_t:s0", &world.path("root/etc/closed"));
    world
}

fn label(label: &str, path: &str) {
    run("chcon", &["-hR", label, path]);
}

fn labelled(world: &World, script: &str, more: impl FnOnce(&mut Value)) {
    world.bundle(script, |config| {
        config["process"]["selinuxLabel"] = json!(BOX);
        config["linux"]["mountLabel"] = json!(FILES);
        // /proc/keys is hidden else.
        config["linux"]["maskedPaths"] = json!([]);
        more(config);
    });
}

/// What is in force for who runs this: the label, whether the secret can be read, whether a session keyring can be seen.
const LOOK: &str = "cat /proc/self/attr/current; echo; cat /etc/closed 2>/dev/null || echo closed; grep -q ' keyring *_ses' /proc/keys && echo keys";

#[test]
#[ignore = "for scripts/vm test"]
fn the_process_has_its_label() {
    let world = world();
    let confined = format!("{BOX}\0\nclosed\nkeys\n");
    for no_new_privileges in [true, false] {
        labelled(&world, LOOK, |config| config["process"]["noNewPrivileges"] = json!(no_new_privileges));
        assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "se-run"]), confined, "{no_new_privileges}");
    }
    labelled(&world, LOOK, |config| config["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "se-user"]), confined);
    // The program must be one that the label is for.
    label("u:object_r:host_t:s0", &world.path("root/bin/busybox"));
    world.fails(&["run", "-b", &world.path("bundle"), "se-entry"], 126, "permission denied");
    label("u:object_r:box_file_t:s0", &world.path("root/bin/busybox"));

    // Who joins has the container's, or the one that was asked for.
    labelled(&world, "exec sleep 1000", |_| {});
    world.create("se-life");
    world.ok(&["start", "se-life"]);
    assert_eq!(world.ok(&["exec", "se-life", "sh", "-c", LOOK]), confined);
    let other = json!({"args": ["sh", "-c", LOOK], "cwd": "/", "selinuxLabel": "u:r:host_t:s0"});
    fs::write(world.path("process.json"), other.to_string()).unwrap();
    let open = world.ok(&["exec", "--process", &world.path("process.json"), "se-life"]);
    assert!(open.starts_with("u:r:host_t:s0\0\nsecret\n"), "{open}");
    world.ok(&["delete", "--force", "se-life"]);
    assert!(world.leftovers().is_empty());
}

#[test]
#[ignore = "for scripts/vm test"]
fn its_file_systems_have_theirs() {
    let world = world();
    let own = ["dev", "dev/null", "dev/pts", "dev/shm", "dev/mqueue", "fresh", "fresh/made", "sys/firmware"];
    let of_the_host = ["proc", "sys"];
    fs::create_dir(world.root("fresh")).unwrap();
    fs::write(world.root("fresh/made"), "").unwrap();
    for with_users in [false, true] {
        labelled(&world, "exec sleep 1000", |config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| !["/dev/mqueue", "/dev/shm"].contains(&mount["destination"].as_str().unwrap()));
            mounts.extend([
                json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}),
                json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}),
                json!({"destination": "/fresh", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
            ]);
            config["linux"]["maskedPaths"] = json!(["/sys/firmware"]);
            if with_users {
                in_user_namespace(config);
            }
        });
        if with_users {
            world.give_root_to(100000);
        }
        world.create("se-mounts");
        world.ok(&["start", "se-mounts"]);
        let state: Value = serde_json::from_str(&world.ok(&["state", "se-mounts"])).unwrap();
        let seen = |path: &str| run("stat", &["-L", "-c", "%C", &format!("/proc/{}/root/{path}", state["pid"])]);
        for path in own {
            // In a user namespace the device is the host's, with its label.
            if !(with_users && path == "dev/null") {
                assert_eq!(seen(path).trim_end(), FILES, "{path}, {with_users}");
            }
        }
        for path in of_the_host {
            assert!(seen(path).starts_with("u:object_r:host_t:"), "{path}, {with_users}");
        }
        world.ok(&["delete", "--force", "se-mounts"]);
    }
    assert!(world.leftovers().is_empty());
}

#[test]
#[ignore = "for scripts/vm test"]
fn a_label_that_the_policy_does_not_know() {
    let world = world();
    let bundle = world.path("bundle");
    labelled(&world, "true", |config| config["process"]["selinuxLabel"] = json!("u:r:no_such_t:s0"));
    world.fails(&["create", "-b", &bundle, "se-none"], 1, "process.selinuxLabel u:r:no_such_t:s0: the policy");
    labelled(&world, "true", |config| config["linux"]["mountLabel"] = json!("u:r:no_such_t:s0"));
    world.fails(&["create", "-b", &bundle, "se-none"], 1, "linux.mountLabel u:r:no_such_t:s0: the policy");
    labelled(&world, "true", |config| config["process"]["selinuxLabel"] = json!("u:r:box_t:s0\n"));
    world.fails(&["create", "-b", &bundle, "se-none"], 2, "not one line");
    assert!(world.leftovers().is_empty());
}

/// podman gives every container a label of its own, where SELinux is in force: on Fedora and its like as they are installed.
#[test]
#[ignore = "for scripts/vm test"]
fn podman_with_its_labels() {
    let world = world();
    // What podman asks of a host's policy.
    fs::create_dir_all("/etc/selinux/sheep/contexts").unwrap();
    fs::write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=sheep\n").unwrap();
    let contexts =
        "process = \"u:r:box_t:s0\"\nfile = \"u:object_r:box_file_t:s0\"\nro_file = \"u:object_r:box_file_t:s0\"\n";
    fs::write("/etc/selinux/sheep/contexts/lxc_contexts", contexts).unwrap();
    let script = r#"
        set -e
        mount --make-rshared /
        p() { podman --runtime "$NS" --cgroup-manager cgroupfs --storage-driver vfs --root "$DIR/podman" --runroot "$DIR/run" "$@"; }
        tar -C "$DIR/root" -c . | p import -q - box:1 >/dev/null
        label='cat /proc/self/attr/current; echo'
        p run --rm --network none box:1 sh -c "$label"
        p run -d --name c --network none box:1 sleep 1000 >/dev/null
        p exec c sh -c "$label"
        p inspect --format '{{.ProcessLabel}} {{.MountLabel}}' c
        pid=$(p inspect --format '{{.State.Pid}}' c)
        stat -c %C "/proc/$pid/root/dev/shm"
        p rm -f -t 0 c >/dev/null
        p run --rm --network none --security-opt label=disable box:1 sh -c "$label"
        p run --rm --network none --privileged box:1 sh -c "$label"
    "#;
    let seen = Command::new("bash").args(["-c", script]).env("NS", NS).env("DIR", &world.dir).output().unwrap();
    let out = String::from_utf8_lossy(&seen.stdout).replace('\0', "");
    let lines: Vec<&str> = out.lines().collect();
    assert!(seen.status.success() && lines.len() == 6, "{seen:?}");
    assert!(lines[0].starts_with("u:r:box_t:s0:c"), "{seen:?}");
    let (process, mount) = lines[2].split_once(' ').unwrap();
    assert_eq!((lines[1], lines[3]), (process, mount), "{seen:?}");
    assert!(process.starts_with("u:r:box_t:s0:c") && mount.starts_with("u:object_r:box_file_t:s0:c"), "{seen:?}");
    assert!(lines[4..].iter().all(|line| line.starts_with("u:r:host_t:")), "{seen:?}");
}
