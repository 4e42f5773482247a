//! One busybox bundle, run by `crun run` and by `sheep-ns run` on the same config.json.
//!
//! crun 1.8 refuses a host that has cgroup v1 beside v2. It therefore runs in a mount namespace of its own whose root is
//! a copy of this one with the cgroup2 tree alone at /sys/fs/cgroup; the host's tree is not touched.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// A bundle in a directory of its own.
pub struct Bundle {
    pub dir: PathBuf,
}

/// Where crun sees the host: a directory to bind it to, then the runtime's own arguments.
const CRUN: &str = r#"view=$1 here=$2; shift 2
mount --rbind / "$view" &&
{ [ ! -e /sys/fs/cgroup/unified ] || mount --bind "$view/sys/fs/cgroup/unified" "$view/sys/fs/cgroup"; } &&
cd "$view" && pivot_root . . && umount -l . && cd "$here" && exec crun "$@""#;

impl Bundle {
    /// A bundle with busybox in it, and some files to mount and look at.
    pub fn new() -> Bundle {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-crun-{}-{number}", std::process::id()));
        for path in
            ["bundle/rootfs/bin", "bundle/rootfs/etc", "bundle/rootfs/tmp", "bundle/rootfs/real", "view", "host"]
        {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        let rootfs = dir.join("bundle/rootfs");
        fs::set_permissions(rootfs.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
        let busybox = rootfs.join("bin/busybox");
        // Copied by another process: a descriptor of ours for writing, inherited by the child of another test's thread
        // for a moment, would make it "text file busy".
        let copied = Command::new("cp").arg("/bin/busybox").arg(&busybox).status().unwrap();
        assert!(copied.success(), "busybox-static is installed by scripts/setup");
        let list = Command::new(&busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
            .unwrap();
        fs::write(rootfs.join("etc/group"), "root:x:0:\nann:x:1000:\nvideo:x:44:ann\n").unwrap();
        fs::write(rootfs.join("etc/not-executable"), "#!/bin/sh\n").unwrap();
        fs::write(rootfs.join("etc/no-format"), "true\n").unwrap();
        fs::set_permissions(rootfs.join("etc/no-format"), Permissions::from_mode(0o755)).unwrap();
        symlink("/real", rootfs.join("link")).unwrap();
        fs::write(dir.join("host/file"), "of the host\n").unwrap();
        fs::create_dir(dir.join("host/opt")).unwrap();
        fs::write(dir.join("host/opt/only-here"), "#!/bin/sh\necho found\n").unwrap();
        fs::set_permissions(dir.join("host/opt/only-here"), Permissions::from_mode(0o755)).unwrap();
        Bundle { dir }
    }

    /// A file or directory of the host, to bind.
    pub fn host(&self, name: &str) -> String {
        self.dir.join("host").join(name).display().to_string()
    }

    /// Puts a config.json into the bundle.
    pub fn configure(&self, config: &Value) {
        fs::write(self.dir.join("bundle/config.json"), config.to_string()).unwrap();
    }

    /// Runs the bundle with crun. `terminal`: under a terminal of script(1).
    pub fn crun(&self, stdin: &str, terminal: bool) -> Ending {
        let (view, bundle) = (self.path("view"), self.path("bundle"));
        let root = self.path("crun");
        let runtime = ["--root", &root, "--cgroup-manager=disabled", "run", "--bundle", &bundle, "test"];
        let mut words = vec!["unshare", "-m", "--propagation", "private", "sh", "-c", CRUN, "crun", &view, &bundle];
        words.extend(runtime);
        run(&words, stdin, terminal)
    }

    /// Runs the bundle with sheep-ns.
    pub fn sheep(&self, stdin: &str, terminal: bool) -> Ending {
        let (root, bundle) = (self.path("sheep"), self.path("bundle"));
        let id = format!("crun-{}", self.dir.file_name().unwrap().display());
        // Private mounts, as crun has them: where the host's are shared, a slave of them shows.
        let mut words = vec!["unshare", "-m", "--propagation", "private", env!("CARGO_BIN_EXE_sheep-ns")];
        words.extend(["--root", &root, "run", "--bundle", &bundle, &id]);
        run(&words, stdin, terminal)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A test that failed may have left something; the temporary directory is then looked at by hand.
        if !mounted_under(&self.dir) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Whether anything is mounted under `dir` in this mount namespace.
pub fn mounted_under(dir: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {}/", dir.display()))
}

fn run(words: &[&str], stdin: &str, terminal: bool) -> Ending {
    let mut command = if terminal {
        let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let mut command = Command::new("script");
        command.args(["-qefc", &line.join(" "), "/dev/null"]);
        command
    } else {
        // crun passes on that SIGQUIT is ignored, as under nohup; sheep-ns does not, and has a test of its own for it.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,QUIT").args(words);
        command
    };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(words[0]);
    // A program that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Ending {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap()),
    }
}

/// A configuration that both runtimes take: like `crun spec`, without what needs a control group.
pub fn base() -> Value {
    let default = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": default, "effective": default, "permitted": default},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/nowhere"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/nowhere"]
        }
    })
}
