//! A world of its own for each test: a data directory, a run directory and the four binaries on PATH, used through a
//! shell as a person would use them, as root or as the throw-away user `sheeptest`.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The four programs.
const PROGRAMS: [&str; 4] = ["sheep-images", "sheep-overlay", "sheep-ns", "sheep-run"];

/// No test command takes longer than this on a slow, shared machine; one that does has hung.
const PATIENCE: Duration = Duration::from_secs(240);

/// Shell: waits until all layers are on the disk, and the marks of those that were not are gone.
pub const SETTLED: &str = "until ! ls data/layers/sha256/.unsynced-* >/dev/null 2>&1; do sleep 0.05; done";

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    /// The exit code, 128+N for signal N.
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

/// A test's own world.
pub struct World {
    /// The world's directory; also the working directory of its commands.
    pub dir: PathBuf,
    bin: PathBuf,
    uid: u32,
    gid: u32,
}

impl World {
    /// A world whose commands run as root.
    pub fn root() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test as root");
        Self::new(0, 0)
    }

    /// A world whose commands run as the throw-away user.
    pub fn user() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root, to become sheeptest: run scripts/test as root");
        let user = nix::unistd::User::from_name("sheeptest")
            .expect("passwd")
            .expect("there is no user sheeptest: run scripts/setup, or useradd -m sheeptest");
        Self::new(user.uid.as_raw(), user.gid.as_raw())
    }

    /// Where the four binaries are, reachable by every user in a world of [`World::user`].
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    fn new(uid: u32, gid: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-e2e-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("a world's directory");
        nix::unistd::chown(&dir, Some(uid.into()), Some(gid.into())).expect("chown");
        let mut bin = built_dir();
        if uid != 0 {
            // The user may not be able to reach the directory that they were built in.
            let reachable = dir.join("bin");
            fs::create_dir(&reachable).expect("bin");
            for program in PROGRAMS {
                fs::copy(bin.join(program), reachable.join(program)).expect("copy");
            }
            bin = reachable;
        }
        World { dir, bin, uid, gid }
    }

    /// A world with the image `minimal` in it.
    pub fn with_image(self) -> Self {
        self.sh("sheep-images bootstrap >/dev/null").ok();
        self
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Runs a shell script to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        let mut child = self.start(script);
        let (mut out, mut err) = (child.stdout.take().expect("stdout"), child.stderr.take().expect("stderr"));
        let errors = thread::spawn(move || read_text(&mut err));
        let output = thread::spawn(move || read_text(&mut out));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() > deadline {
                // The shell leads a process group of its own, so this ends nobody else.
                let _ = nix::sys::signal::killpg(pid_of(&child), nix::sys::signal::Signal::SIGKILL);
                panic!("still running after {PATIENCE:?}: {script}");
            }
            thread::sleep(Duration::from_millis(2));
        };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let stdout = output.join().expect("stdout");
        let stderr = errors.join().expect("stderr");
        Outcome { stdout, stderr, code }
    }

    /// Starts a shell script in a process group of its own and does not wait.
    pub fn start(&self, script: &str) -> Child {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", script]).current_dir(&self.dir).env_clear();
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bin.display()));
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8").env("SCRIPTS", scripts_dir());
        command.env("SHEEP_DATA_DIR", self.data()).env("SHEEP_RUN_DIR", self.dir.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if self.uid != 0 {
            command.uid(self.uid).gid(self.gid);
        }
        command.spawn().expect("bash")
    }

    /// Every mount point below this world, as this process sees it.
    pub fn mounts(&self) -> Vec<String> {
        mounts_below(&self.dir)
    }

    /// The names in a directory of the data directory, sorted; none where it does not exist. Hidden ones count too.
    pub fn entries(&self, below_data: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data().join(below_data)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Asserts that nothing of any container is left: no mount, no directory, no OCI state, no cgroup of `ids`.
    #[track_caller]
    pub fn assert_nothing_left(&self, ids: &[&str]) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        assert_eq!(self.entries("overlay"), Vec::<String>::new());
        assert_eq!(self.entries("containers"), Vec::<String>::new());
        let states = fs::read_dir(self.dir.join("run/ns")).map(|entries| entries.count()).unwrap_or(0);
        assert_eq!(states, 0, "OCI state is left");
        for id in ids {
            for tree in ["/sys/fs/cgroup/unified/sheep", "/sys/fs/cgroup/sheep"] {
                assert!(!Path::new(tree).join(id).exists(), "the cgroup of {id} is left");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() && self.data().join("containers").exists() {
            // What a failing test left running would outlive it; how that goes changes nothing of the failure.
            let _ = self.start("sheep-run ps -a --json | jq -r .container.id | xargs -r sheep-run rm -f").wait();
        }
        let left = self.mounts();
        for mount in left.iter().rev() {
            // A failing test must not leave the machine with mounts; what matters is said below.
            let _ = nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        if mounts_below(&self.dir).is_empty() {
            // Directories of mode 000 (overlay's work) are no obstacle to root.
            let _ = fs::remove_dir_all(&self.dir);
        }
        if !thread::panicking() {
            assert!(left.is_empty(), "mounts are left: {left:?}");
        }
    }
}

/// The repository's scripts.
pub fn scripts_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("scripts")
}

/// Where cargo, or whoever set `$SHEEP_BIN_DIR`, put the four binaries.
fn built_dir() -> PathBuf {
    let dir = std::env::var_os("SHEEP_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("this program's path");
        test.ancestors().nth(2).expect("target/PROFILE").to_path_buf()
    });
    for program in PROGRAMS {
        assert!(dir.join(program).exists(), "{program} is not in {}: run cargo build --workspace", dir.display());
    }
    dir
}

/// Waits until `condition` holds; fails the test with `what` when it does not within twenty seconds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The child's process id, for signals.
pub fn pid_of(child: &Child) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
    let prefix = dir.as_os_str().as_bytes();
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .filter(|target| target.starts_with(prefix))
        .map(|target| String::from_utf8_lossy(target).replace("\\040", " "))
        .collect()
}

fn read_text(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}
