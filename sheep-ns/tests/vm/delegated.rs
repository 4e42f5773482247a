//! An ordinary user in a group that was delegated to that user: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "Delegation".

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Ending, World, wait};

const GROUP: &str = "/sys/fs/cgroup/above/delegated";

/// A group of the user `sheeptest`, as systemd makes one with Delegate=, and in it one for the user's own processes.
fn delegate() {
    let script = format!(
        "mkdir -p {GROUP}
         for c in cpu memory pids; do for g in /sys/fs/cgroup {GROUP}/..; do echo +$c > $g/cgroup.subtree_control; done; done
         cd {GROUP} && chown sheeptest . cgroup.procs cgroup.threads cgroup.subtree_control &&
         mkdir own && chown -R sheeptest own"
    );
    assert!(Command::new("sh").args(["-ec", &script]).status().unwrap().success());
}

/// Runs sheep-ns as the user, from the group at `from`.
fn ns_in(world: &World, from: &str, args: &[&str]) -> Ending {
    let command = world.ns(args);
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let script = format!(
        "echo $$ > {from}/cgroup.procs && exec setpriv --reuid sheeptest --regid sheeptest --clear-groups \"$@\""
    );
    let (out, err) = (world.dir.join("out"), world.dir.join("err"));
    let mut shell = Command::new("sh");
    shell.args(["-ec", &script, "sh"]).args(words).current_dir(&world.dir).stdin(Stdio::null());
    // A container that stays would hold on to a pipe.
    let status =
        shell.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap()).status().unwrap();
    let text = |file: &Path| fs::read_to_string(file).unwrap();
    Ending { code: status.code().unwrap(), out: text(&out), err: text(&err) }
}

#[test]
#[ignore = "for scripts/vm test"]
fn a_user_has_limits_there() {
    let world = World::of_user();
    delegate();
    let own = format!("{GROUP}/own");
    let ok = |args: &[&str]| {
        let ending = ns_in(&world, &own, args);
        assert_eq!((ending.code, ending.err.as_str()), (0, ""), "{args:?}: {ending:?}");
        ending.out
    };
    world.bundle("exec sleep 1000", |config| {
        config["linux"]["resources"] = serde_json::json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}});
    });
    let bundle = world.path("bundle");
    ok(&["create", "--bundle", &bundle, "mine"]);
    let file = |name: &str| fs::read_to_string(format!("{GROUP}/sheep/mine/{name}")).unwrap();
    assert_eq!((file("memory.max").as_str(), file("pids.max").as_str()), ("67108864\n", "20\n"));
    ok(&["start", "mine"]);
    wait("the program", || !file("cgroup.procs").is_empty());
    ok(&["update", "--memory", "32m", "--cpu-quota", "50000", "mine"]);
    assert_eq!((file("memory.max").as_str(), file("cpu.max").as_str()), ("33554432\n", "50000 100000\n"));
    ok(&["pause", "mine"]);
    assert!(file("cgroup.events").contains("frozen 1"));
    ok(&["resume", "mine"]);
    assert_eq!(ok(&["ps", "--format", "json", "mine"]).matches(char::is_numeric).count().min(1), 1);
    assert_eq!(ok(&["exec", "mine", "sh", "-c", "wc -l < /proc/self/cgroup"]), "1\n");
    ok(&["delete", "--force", "mine"]);
    assert!(!Path::new(&format!("{GROUP}/sheep")).exists());
    // A controller that was not delegated is an error that names it, and nothing is left.
    let root = world.path("root");
    let ending = ns_in(&world, &own, &["exec", "--rootfs", &root, "-m", "16m", "--", "true"]);
    assert_eq!((ending.code, ending.err.as_str()), (0, ""));
    let above = format!("{GROUP}/../cgroup.subtree_control");
    fs::write(&above, "-cpu").unwrap_err();
    fs::write(format!("{GROUP}/cgroup.subtree_control"), "-cpu").unwrap();
    fs::write(&above, "-cpu").unwrap();
    let ending = ns_in(&world, &own, &["exec", "--rootfs", &root, "--cpu-quota", "50000", "--", "true"]);
    assert!(ending.code == 125 && ending.err.contains("cpu limit") && ending.err.lines().count() == 1, "{ending:?}");
    // A group with processes of its own cannot have children with limits.
    fs::write(format!("{GROUP}/cgroup.subtree_control"), "-memory -pids").unwrap();
    let ending = ns_in(&world, GROUP, &["exec", "--rootfs", &root, "--pids-limit", "5", "--", "true"]);
    assert!(ending.code == 125 && ending.err.contains("processes of its own"), "{ending:?}");
    // Where nothing was delegated, all but limits.
    let ending = ns_in(&world, "/sys/fs/cgroup", &["exec", "--rootfs", &root, "--", "true"]);
    assert_eq!((ending.code, ending.err.as_str()), (0, ""));
    let ending = ns_in(&world, "/sys/fs/cgroup", &["exec", "--rootfs", &root, "-m", "16m", "--", "true"]);
    assert!(ending.code == 125 && ending.err.contains("memory limit: user"), "{ending:?}");
    assert!(!Path::new(&format!("{GROUP}/sheep")).exists());
    fs::remove_dir(&own).unwrap();
    fs::remove_dir(GROUP).unwrap();
    fs::remove_dir(Path::new(GROUP).parent().unwrap()).unwrap();
}
