//! containerd as a peer: it pulls what we push, and we pull what it pushes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::World;
use crate::servers::{LAYOUT, app, registry};

/// Debian's containerd, with all its files in the world's directory; ended by its pid.
struct Containerd {
    child: Child,
}

impl Containerd {
    /// Starts it, and waits until it answers. Of its plugins, those are left out that would look at, or write to, the rest of the machine.
    fn start(world: &World) -> Self {
        let dir = world.dir.join("containerd");
        std::fs::create_dir(&dir).expect("a directory of containerd");
        let dir = dir.display();
        world.write(
            "containerd/config.toml",
            format!(
                "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
                disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \
                \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n[grpc]\naddress = \"{dir}/sock\"\n"
            ),
        );
        let log = std::fs::File::create(world.dir.join("containerd/log")).expect("a log of containerd");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(world.dir.join("containerd/config.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log of containerd")).stderr(log);
        let containerd = Containerd { child: command.spawn().expect("containerd: run scripts/setup") };
        let begun = Instant::now();
        while world.sh(&format!("{CTR}ctr version")).code != 0 {
            let log = || world.sh("cat containerd/log").stdout;
            assert!(begun.elapsed() < Duration::from_secs(20), "containerd does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // In the way that lets it put away what it has mounted.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// `ctr` that asks the world's containerd, as a shell function.
const CTR: &str = "ctr() { command ctr --address $PWD/containerd/sock \"$@\"; }\n";

#[test]
fn containerd_gets_what_we_push_and_we_what_it_pushes() {
    let world = World::root();
    let real = registry(&world, "");
    let containerd = Containerd::start(&world);
    let at = format!("127.0.0.1:{}", real.port);
    let ctr = |script: &str| world.sh(&format!("set -e; {CTR}{script}"));
    let digest_there = |name: &str| ctr(&format!("ctr image ls name=={at}/{name} | awk 'NR == 2 {{print $3}}'")).ok();

    // What we pushed has the same digest there, and the same files.
    let digest = app(&world);
    world.sh(&format!("sheep-images push app {at}/dir/app:v1")).ok();
    ctr(&format!("ctr image pull --plain-http --snapshotter native {at}/dir/app:v1")).ok();
    assert_eq!(digest_there("dir/app:v1"), digest);
    ctr(&format!(
        "mkdir mnt; ctr image mount --snapshotter native {at}/dir/app:v1 mnt; cmp 2/usr/big mnt/usr/big; test $(cat mnt/bin/one) = one
        ctr image unmount --snapshotter native mnt"
    ))
    .ok();

    // It pushes the same again under another name; what another tool made; and what it made itself of that, which has other bytes.
    ctr(&format!(
        "cp 2/usr/big big; ({LAYOUT}) >/dev/null 2>&1; skopeo copy -q oci:layout:app oci-archive:app.tar:app
        ctr image tag {at}/dir/app:v1 {at}/ctr/same:v1; ctr image import --base-name {at}/ctr/theirs app.tar
        ctr image convert --uncompress --oci {at}/ctr/theirs:app {at}/ctr/own:v1
        for name in same:v1 theirs:app own:v1; do ctr image push --plain-http {at}/ctr/$name; done"
    ))
    .ok();
    let theirs = world.sh("jq -r '.manifests[0].digest' layout/index.json").ok();
    assert_eq!((digest_there("ctr/same:v1"), digest_there("ctr/theirs:app")), (digest.clone(), theirs.clone()));
    let own = digest_there("ctr/own:v1");
    assert!(own != theirs && own.starts_with("sha256:"), "{own}");
    for (name, want, big) in
        [("ctr/same:v1", digest, "big"), ("ctr/theirs:app", theirs, "2/usr/big"), ("ctr/own:v1", own, "2/usr/big")]
    {
        let pulled = world.sh(&format!("sheep-images pull {at}/{name} --name pulled --print digest")).ok();
        assert_eq!(pulled, want, "{name}");
        world.sh(&format!("sheep-images unpack pulled --to out && cmp {big} out/usr/big && rm -r out")).ok();
    }
    world.sh("sheep-images verify").ok();
    drop(containerd);
    assert_eq!(world.sh("grep -c $PWD /proc/self/mountinfo").stdout, "0\n");
}
