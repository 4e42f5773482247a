//! Profiles of AppArmor: loaded by the test, in force in the container. Debian's kernels have it, and so has the virtual machine.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::harness::{NS, World};

/// Everything but one file.
const PROFILE: &str = "profile sheep-test flags=(attach_disconnected,mediate_deleted) {
  file, network, capability, mount, umount, pivot_root, signal, ptrace, unix,
  deny /etc/closed rw,
}
";

fn with_profile(world: &World, script: &str, name: &str, more: impl FnOnce(&mut serde_json::Value)) {
    world.bundle(script, |config| {
        config["process"]["apparmorProfile"] = json!(name);
        more(config);
    });
}

#[test]
#[ignore = "for scripts/vm test"]
fn a_profile_is_in_force() {
    let world = World::new();
    fs::write(world.path("profile"), PROFILE).unwrap();
    let loaded = Command::new("apparmor_parser").args(["--replace", "--skip-cache", &world.path("profile")]).status();
    assert!(loaded.expect("apparmor is installed by scripts/setup vm").success());
    fs::write(world.root("etc/closed"), "secret\n").unwrap();
    let look = "cat /proc/self/attr/apparmor/current; cat /etc/closed || echo closed";
    let confined = "sheep-test (enforce)\nclosed\n";
    for no_new_privileges in [true, false] {
        with_profile(&world, look, "sheep-test", |config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges)
        });
        assert_eq!(world.run(&["run", "-b", &world.path("bundle"), "app-run"]).out, confined, "{no_new_privileges}");
    }
    // As another user, and without /proc.
    with_profile(&world, look, "sheep-test", |config| config["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    assert_eq!(world.run(&["run", "-b", &world.path("bundle"), "app-user"]).out, confined);
    with_profile(&world, "cat /etc/closed || echo closed", "sheep-test", |config| {
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    });
    assert_eq!(world.run(&["run", "-b", &world.path("bundle"), "app-bare"]).out, "closed\n");

    // Who joins has the container's, or the one that was asked for.
    with_profile(&world, "exec sleep 1000", "sheep-test", |_| {});
    world.create("app-life");
    world.ok(&["start", "app-life"]);
    assert_eq!(world.run(&["exec", "app-life", "sh", "-c", look]).out, confined);
    let other = json!({"args": ["sh", "-c", look], "cwd": "/", "apparmorProfile": "unconfined"});
    fs::write(world.path("process.json"), other.to_string()).unwrap();
    let open = world.ok(&["exec", "--process", &world.path("process.json"), "app-life"]);
    assert_eq!(open, "unconfined\nsecret\n");
    world.ok(&["delete", "--force", "app-life"]);

    with_profile(&world, "true", "sheep-no-such", |_| {});
    world.fails(
        &["create", "-b", &world.path("bundle"), "app-none"],
        1,
        "sheep-no-such: no such profile is loaded here",
    );
    with_profile(&world, "cat /proc/self/attr/apparmor/current", "unconfined", |_| {});
    assert_eq!(world.ok(&["run", "-b", &world.path("bundle"), "app-free"]), "unconfined\n");
    assert!(world.leftovers().is_empty());
}

/// podman gives every container a profile of its own, where AppArmor is in force: on Debian and Ubuntu as they are installed.
#[test]
#[ignore = "for scripts/vm test"]
fn podman_with_its_profile() {
    let world = World::new();
    let script = r#"
        set -e
        mount --make-rshared /
        p() { podman --runtime "$NS" --cgroup-manager cgroupfs --storage-driver vfs --root "$DIR/podman" --runroot "$DIR/run" "$@"; }
        tar -C "$DIR/root" -c . | p import -q - box:1 >/dev/null
        p run --rm --network none box:1 cat /proc/self/attr/apparmor/current
        p run -d --name c --network none box:1 sleep 1000 >/dev/null
        p exec c cat /proc/self/attr/apparmor/current
        p rm -f -t 0 c >/dev/null
        p run --rm --network none --security-opt apparmor=unconfined box:1 cat /proc/self/attr/apparmor/current
        p run --rm --network none --privileged box:1 cat /proc/self/attr/apparmor/current
    "#;
    let seen = Command::new("bash").args(["-c", script]).env("NS", NS).env("DIR", &world.dir).output().unwrap();
    let out = String::from_utf8_lossy(&seen.stdout).into_owned();
    let lines: Vec<&str> = out.lines().collect();
    assert!(seen.status.success() && lines.len() == 4, "{seen:?}");
    assert!(lines[0].starts_with("containers-default-") && lines[0].ends_with(" (enforce)"), "{seen:?}");
    assert_eq!(lines[1..], [lines[0], "unconfined", "unconfined"]);
}
