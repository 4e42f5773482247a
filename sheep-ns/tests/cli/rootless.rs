//! What an unprivileged user can do: everything but limits and several ids.

use crate::harness::{World, groups, wait};

#[test]
fn one_shot() {
    let world = World::of_user();
    let seen = world.sh("id -u; echo $$; echo x > /dev/null; echo x > /made; stat -c %u /made; ip addr show lo | grep -c 127.0.0.1; ls /dev");
    let want =
        "0\n1\n0\n1\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
    assert_eq!((seen.code, seen.out.as_str(), seen.err.as_str()), (0, want, ""));
    let root = world.path("root");
    assert_eq!(world.run(&["exec", "--rootfs", &root, "--", "nosuch"]).code, 127);
    assert_eq!(world.run(&["exec", "--rootfs", &root, "--", "sh", "-c", "exit 6"]).code, 6);
    assert_eq!(
        world.ok(&["exec", "--rootfs", &root, "--network", "host", "--", "sh", "-c", "test -d /sys/class && echo $$"]),
        "1\n"
    );
    let seen = world.run(&["exec", "--rootfs", &root, "-u", "ann", "--", "id", "-u"]);
    assert!(seen.out == "1000\n" || seen.code == 125, "{seen:?}");
    world.fails(&["exec", "--rootfs", &root, "-m", "32m", "--", "true"], 125, "memory limit");
}

#[test]
fn a_container() {
    let world = World::of_user();
    world.bundle("echo up > /up; exec sleep 1000", |_| {});
    world.create("mine");
    world.ok(&["start", "mine"]);
    world.wait_status("mine", "running");
    wait("the program", || world.root("up").exists());
    assert_eq!(world.ok(&["exec", "mine", "sh", "-c", "id -u; cat /proc/1/cmdline | tr '\\0' ' '"]), "0\nsleep 1000 ");
    world.ok(&["kill", "mine", "KILL"]);
    world.wait_status("mine", "stopped");
    world.ok(&["delete", "mine"]);
    assert!(world.leftovers().is_empty() && groups("mine").is_empty());
}

/// Rootless engines call us as root of a user namespace, and leave it to us where the state is.
#[test]
fn root_of_a_user_namespace_has_the_users_state_directory() {
    let world = World::of_user();
    let script =
        "mkdir run && XDG_RUNTIME_DIR=$PWD/run unshare --user --map-root-user ./sheep-ns list -q && ls -d run/sheep/ns";
    let seen = world.shell().args(["-c", script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "run/sheep/ns\n", "{}", String::from_utf8_lossy(&seen.stderr));
}
