//! A busybox root directory, a bundle on it, and the binary.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

/// The binary under test.
pub const NS: &str = env!("CARGO_BIN_EXE_sheep-ns");

/// A world for one test; gone with everything in it when dropped.
pub struct World {
    pub dir: PathBuf,
    user: Option<(u32, u32)>,
    ns: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ending {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl World {
    /// A world of root's.
    pub fn new() -> World {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        World::make(None)
    }

    /// A world of the unprivileged user `sheeptest`, who is made by scripts/setup.
    pub fn of_user() -> World {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("sheeptest:"));
        let fields: Vec<&str> = line.expect("user sheeptest: run scripts/setup test").split(':').collect();
        World::make(Some((fields[2].parse().unwrap(), fields[3].parse().unwrap())))
    }

    fn make(user: Option<(u32, u32)>) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-ns-{}-{number}", std::process::id()));
        for path in ["bundle", "root/bin", "root/etc", "root/tmp", "root/root", "host"] {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        copy("/bin/busybox", &dir.join("root/bin/busybox"));
        let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", dir.join("root/bin").join(applet)).unwrap();
        }
        fs::write(dir.join("root/etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
            .unwrap();
        fs::write(dir.join("root/etc/group"), "root:x:0:\nann:x:1000:\nvideo:x:44:ann\n").unwrap();
        fs::set_permissions(dir.join("root/tmp"), Permissions::from_mode(0o1777)).unwrap();
        fs::write(dir.join("host/canary"), "of the host\n").unwrap();
        let mut ns = PathBuf::from(NS);
        if let Some((uid, gid)) = user {
            // The build directory may be out of the user's reach.
            ns = dir.join("sheep-ns");
            copy(NS, &ns);
            let owned = Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(&dir).status().unwrap();
            assert!(owned.success());
        }
        World { dir, user, ns }
    }

    /// A path in this world, as text.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A path in the root directory.
    pub fn root(&self, name: &str) -> PathBuf {
        self.dir.join("root").join(name)
    }

    /// Makes the root directory another user's, as a user namespace needs it.
    pub fn give_root_to(&self, id: u32) {
        let owned = Command::new("chown").arg("-hR").arg(format!("{id}:{id}")).arg(self.dir.join("root")).status();
        assert!(owned.unwrap().success());
    }

    /// `sheep-ns` with this world's state directory.
    pub fn ns(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.ns);
        command.arg("--root").arg(self.dir.join("state")).args(args);
        command
    }

    /// A shell of this world's user.
    pub fn shell(&self) -> Command {
        self.command(Path::new("/bin/sh"))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir(&self.dir);
        command.env_remove("XDG_RUNTIME_DIR");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid).env("HOME", &self.dir);
        }
        command
    }

    /// Runs it to its end. Its output goes to files: a container that stays holds on to them, and would to a pipe.
    pub fn run(&self, args: &[&str]) -> Ending {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.dir.join(format!("out-{number}")), self.dir.join(format!("err-{number}")));
        let mut command = self.ns(args);
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        let status = command.status().unwrap();
        let text = |file: &Path| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        let code = status.code().or(status.signal().map(|signal| -signal)).unwrap();
        Ending { code, out: text(&out), err: text(&err) }
    }

    /// Runs it; it must succeed and say nothing on stderr. Gives its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let ending = self.run(args);
        assert_eq!((ending.code, ending.err.as_str()), (0, ""), "{args:?}: {ending:?}");
        ending.out
    }

    /// Runs it; it must fail with `code` and say `words` on one line.
    pub fn fails(&self, args: &[&str], code: i32, words: &str) {
        let ending = self.run(args);
        let said = ending.err.contains(words) && ending.err.lines().count() == 1;
        assert!(ending.code == code && said, "{args:?}: wanted {code} and {words:?}: {ending:?}");
    }

    /// A shell script in the root directory, one shot.
    pub fn sh(&self, script: &str) -> Ending {
        self.run(&["exec", "--rootfs", &self.path("root"), "--", "sh", "-c", script])
    }

    /// Writes the bundle's config.json: what `spec` prints for a shell script, changed by `change`.
    pub fn bundle(&self, script: &str, change: impl FnOnce(&mut Value)) {
        let text = self.ok(&["spec", "--rootfs", &self.path("root"), "--", "sh", "-c", script]);
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(&mut config);
        fs::write(self.dir.join("bundle/config.json"), config.to_string()).unwrap();
    }

    /// `create` of that bundle.
    pub fn create(&self, id: &str) {
        self.ok(&["create", "--bundle", &self.path("bundle"), id]);
    }

    /// A container's state.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    /// Waits until a container has that status.
    pub fn wait_status(&self, id: &str, status: &str) {
        wait(&format!("{id} to be {status}"), || self.state(id)["status"] == status);
    }

    /// What is in the state directory.
    pub fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.join("state")).map(|dir| dir.map(|e| e.unwrap().file_name()));
        names.map(|names| names.map(|name| name.into_string().unwrap()).collect()).unwrap_or_default()
    }
}

/// Copies a program by another process: one that this process had open for writing could not be executed while a child of
/// another test still has the descriptor.
fn copy(from: &str, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{from}: scripts/setup test installs it");
}

impl Drop for World {
    fn drop(&mut self) {
        for id in self.leftovers() {
            let _ = self.ns(&["delete", "--force", &id]).output();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a shell script that may mount what it likes, with a command for `"$@"`.
pub fn among_private_mounts(command: &Command, script: &str) -> Output {
    Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap()
}

/// Waits until `what` holds, at most ten seconds.
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child's end, at most ten seconds; 128+N for signal N.
pub fn end_of(child: &mut Child) -> i32 {
    let mut code = None;
    wait("the end of a child", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    let status = code.unwrap();
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
}

/// Reads from a child's stdout until it has said `words`.
pub fn read_until(from: &mut (impl Read + AsFd), words: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0u8; 1];
    while !String::from_utf8_lossy(&text).contains(words) {
        // A terminal whose other end the test itself has open never ends.
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut fds, 60_000u16).unwrap();
        assert!(came > 0, "nothing more after {:?}", String::from_utf8_lossy(&text));
        match from.read(&mut byte) {
            Ok(1..) => text.extend_from_slice(&byte),
            end => panic!("{end:?} after {:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether a process is there and is no zombie.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// Processes whose command line has `words` in it.
pub fn processes(words: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        alive(*pid) && String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    })
    .collect()
}

/// Sends a signal.
pub fn signal(pid: u32, signal: i32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
}

/// Directories of our control groups, `/sheep/…`, of that name.
pub fn groups(id: &str) -> Vec<PathBuf> {
    ["/sys/fs/cgroup/sheep", "/sys/fs/cgroup/unified/sheep"]
        .iter()
        .map(|dir| Path::new(dir).join(id))
        .filter(|dir| dir.exists())
        .collect()
}

/// Asks for a new user namespace, whose root is 100000 outside.
pub fn in_user_namespace(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
}
