//! A world of its own for each test: a data directory, a run directory and the four binaries on PATH.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Outcome {
    /// Asserts success and gives stdout without its last newline.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Asserts a failure with this code and exactly one line on stderr that contains `text`.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "one line is expected: {}", self.stderr);
    }
}

pub struct World {
    pub dir: PathBuf,
    uid: u32,
}

impl World {
    /// A world with the image `minimal`, whose commands run as root.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        let world = Self::bare(0);
        world.sh("sheep-images bootstrap >/dev/null").ok();
        world
    }

    /// The same for the throw-away user.
    pub fn user() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root, to become sheeptest: run scripts/test as root");
        let user = nix::unistd::User::from_name("sheeptest").unwrap().expect("no user sheeptest: run scripts/setup");
        let world = Self::bare(user.uid.as_raw());
        world.sh("sheep-images bootstrap >/dev/null 2>&1").ok();
        world
    }

    fn bare(uid: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-run-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        nix::unistd::chown(&dir, Some(uid.into()), Some(uid.into())).unwrap();
        link_binaries(&dir.join("bin"));
        World { dir, uid }
    }

    /// Runs a shell script to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        let mut child = self.start(script);
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = thread::spawn(move || read_text(&mut err));
        let output = thread::spawn(move || read_text(&mut out));
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                // The shell leads a process group of its own, so this ends nobody else.
                let _ = killpg(pid_of(&child), Signal::SIGKILL);
                panic!("still running after two minutes: {script}");
            }
            thread::sleep(Duration::from_millis(1));
        };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Outcome { stdout: output.join().unwrap(), stderr: errors.join().unwrap(), code }
    }

    /// Starts a shell script in a process group of its own and does not wait.
    pub fn start(&self, script: &str) -> Child {
        // A test run may be somebody's background job, with signals ignored; a shell cannot undo that itself.
        let mut command = Command::new("/usr/bin/env");
        command.args(["--default-signal", "/bin/bash", "-c", script]).current_dir(&self.dir).env_clear();
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.dir.join("bin").display()));
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8");
        command.env("SHEEP_DATA_DIR", self.dir.join("data")).env("SHEEP_RUN_DIR", self.dir.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if self.uid != 0 {
            command.uid(self.uid).gid(self.uid);
        }
        command.spawn().unwrap()
    }

    /// One field of a container, as jq prints it.
    #[track_caller]
    pub fn field(&self, name: &str, field: &str) -> String {
        self.sh(&format!("sheep-run inspect {name} | jq -c '{field}'")).ok()
    }

    pub fn mounts(&self) -> Vec<String> {
        // Somebody else's mount points may have any name.
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let table = String::from_utf8_lossy(&table);
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        targets.filter(|target| Path::new(target).starts_with(&self.dir)).map(str::to_owned).collect()
    }

    pub fn entries(&self, below: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.join(below)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// The processes whose command line names this world, and what it says.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&*self.dir.to_string_lossy()) {
                found.push((pid, line));
            }
        }
        found
    }

    /// The monitors of this world.
    pub fn monitors(&self) -> Vec<i32> {
        self.processes().into_iter().filter(|(_, line)| line.contains(" monitor ")).map(|(pid, _)| pid).collect()
    }

    /// Kills the monitors of this world, which nobody but this test started, and waits until they are gone.
    pub fn kill_monitors(&self) {
        eventually("the monitors are gone", || {
            let monitors = self.monitors();
            for &pid in &monitors {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            monitors.is_empty()
        });
    }

    /// Asserts that nothing of any container is left: no mount, directory, OCI state, control group or process.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        assert_eq!(self.entries("data/overlay"), Vec::<String>::new());
        assert_eq!(self.entries("data/containers"), Vec::<String>::new());
        assert_eq!(self.entries("run/ns"), Vec::<String>::new());
        eventually("no process is left", || self.processes().is_empty());
    }

    #[track_caller]
    pub fn assert_no_cgroup(&self, id: &str) {
        for tree in ["/sys/fs/cgroup/unified/sheep", "/sys/fs/cgroup/sheep"] {
            assert!(!Path::new(tree).join(id).exists(), "the cgroup of {id} is left");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            // A failing test must not leave the machine with containers and mounts; what matters was said.
            self.sh("sheep-run ps -a --json | jq -r .container.id | xargs -r sheep-run rm -f; sheep-ns list -q | xargs -r -n 1 sheep-ns delete --force; true");
            for (pid, _) in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            for mount in self.mounts().iter().rev() {
                let _ = Command::new("umount").arg("-l").arg(mount).status();
            }
        }
        if self.mounts().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Puts the four binaries where every user can reach them.
fn link_binaries(to: &Path) {
    let own = Path::new(env!("CARGO_BIN_EXE_sheep-run"));
    fs::create_dir(to).unwrap();
    for name in ["sheep-images", "sheep-overlay", "sheep-ns", "sheep-run"] {
        let from = own.with_file_name(name);
        assert!(from.exists(), "{} is not built: run cargo build --workspace", from.display());
        if fs::hard_link(&from, to.join(name)).is_err() {
            fs::copy(&from, to.join(name)).unwrap();
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits until `condition` holds; fails the test with `what` when it does not within twenty seconds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child's end; a hang fails the test.
#[track_caller]
pub fn end_of(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the command has ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn read_text(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
