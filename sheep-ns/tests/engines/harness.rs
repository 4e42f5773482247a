//! Engines on a machine of their own, once with a known runtime and once with `sheep-ns`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The runtime whose outcomes are the right ones. crun 1.8 cannot make a device filter without CAP_SYS_RESOURCE.
pub const PEER: &str = "/usr/sbin/runc";

/// The binary under test.
pub const NS: &str = env!("CARGO_BIN_EXE_sheep-ns");

const MACHINE: &str = include_str!("machine.sh");
const GROUP: &str = include_str!("../group.sh");
const STEPS: &str = include_str!("steps.sh");

/// What podman and buildah are told. `default_ulimits`: theirs are more than a root without CAP_SYS_RESOURCE may set.
const CONTAINERS: &str = r#"[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime_supports_json = ["runc", "sheep-ns"]
runtime_supports_nocgroup = ["runc", "sheep-ns"]
"#;

/// A directory with what machines need; gone when dropped.
pub struct World {
    dir: PathBuf,
}

impl World {
    /// With a busybox root directory, as a directory and as a tar.
    pub fn new() -> World {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-engines-{}-{number}", std::process::id()));
        for path in ["box/bin", "box/etc", "box/tmp", "box/root"] {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        let root = dir.join("box");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed by scripts/setup");
        let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let files = [
            ("box/etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n"),
            ("box/etc/group", "root:x:0:\nann:x:1000:\nvideo:x:44:ann\n"),
            ("box/etc/not-executable", "#!/bin/sh\n"),
            ("box/etc/no-format", "true\n"),
            ("machine.sh", MACHINE),
            ("group.sh", GROUP),
            ("steps.sh", STEPS),
            ("containers.conf", CONTAINERS),
        ];
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        fs::set_permissions(root.join("etc/no-format"), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
        let packed = Command::new("tar").current_dir(&dir).args(["-C", "box", "-cf", "box.tar", "."]).status().unwrap();
        assert!(packed.success());
        World { dir }
    }

    /// One more file for the scripts, at `$DIR/NAME`.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    /// Runs a script of [`STEPS`] on two machines; every step must have the same outcome. Gives the outcome.
    pub fn same(&self, script: &str) -> String {
        let (peer, peers_errors) = self.machine(PEER, script);
        let (ours, errors) = self.machine(NS, script);
        let steps = |text: &str| text.split("== ").skip(1).map(str::to_owned).collect::<Vec<_>>();
        let (theirs, mine) = (steps(&peer), steps(&ours));
        let differences: Vec<String> = (0..theirs.len().max(mine.len()))
            .filter(|index| theirs.get(*index) != mine.get(*index))
            .map(|index| {
                let step = |steps: &[String]| steps.get(index).cloned().unwrap_or("nothing".to_owned());
                format!("--- runc:\n{}--- sheep-ns:\n{}", step(&theirs), step(&mine))
            })
            .collect();
        assert!(
            differences.is_empty(),
            "{} steps of {} differ\n{}\n=== stderr of runc\n{peers_errors}\n=== stderr of sheep-ns\n{errors}",
            differences.len(),
            theirs.len(),
            differences.join("\n")
        );
        assert!(!ours.is_empty() && !ours.contains("in vain:"), "{ours}\n{errors}");
        ours
    }

    /// Runs a script on a machine with this runtime: stdout and stderr.
    pub fn machine(&self, runtime: &str, script: &str) -> (String, String) {
        let place = self.dir.join(format!("script-{}", Path::new(runtime).file_name().unwrap().display()));
        fs::write(&place, script).unwrap();
        let (out, err) = (place.with_extension("out"), place.with_extension("err"));
        let status = Command::new("bash")
            .arg(self.dir.join("machine.sh"))
            .arg(&self.dir)
            .arg(runtime)
            .arg(&place)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        let text = |file: &Path| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        let (out, err) = (text(&out), text(&err));
        assert!(status.success(), "{runtime}: {status}\n{out}\n{err}");
        (out, err)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
