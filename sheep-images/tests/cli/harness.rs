//! A world of its own for each test: a directory with a data directory, and the binary on PATH, used through a shell.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    /// The exit code, 128+N for signal N.
    pub code: i32,
}

impl Outcome {
    /// Asserts success, and gives stdout without its last newlines.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Asserts a failure with this code, and exactly one line on stderr that contains `text`.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "one line is expected: {}", self.stderr);
        assert!(self.stderr.starts_with("sheep-images: "), "{}", self.stderr);
    }
}

/// Shell: waits until all layers are on the disk, and the marks of those that were not are gone.
pub const SETTLED: &str = "until ! ls data/layers/sha256/.unsynced-* >/dev/null 2>&1; do sleep 0.05; done";

/// A test's own world.
pub struct World {
    pub dir: PathBuf,
    uid: u32,
    gid: u32,
}

impl World {
    pub fn root() -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
        Self::new(0, 0)
    }

    pub fn user() -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root, to become sheeptest: run scripts/test as root");
        let id = |flag| {
            let out = Command::new("id").args([flag, "sheeptest"]).output().expect("id");
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            text.parse().expect("there is no user sheeptest: run scripts/setup, or useradd -m sheeptest")
        };
        Self::new(id("-u"), id("-g"))
    }

    fn new(uid: u32, gid: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-images-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("a world's directory");
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).expect("chown");
        World { dir, uid, gid }
    }

    /// Runs a shell script to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        let out = self.start(script).wait_with_output().expect("wait");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = out.status.code().unwrap_or_else(|| 128 + out.status.signal().unwrap_or(0));
        Outcome { stdout: text(&out.stdout), stderr: text(&out.stderr), code }
    }

    /// Starts a shell script and does not wait.
    pub fn start(&self, script: &str) -> Child {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", script]).current_dir(&self.dir).env_clear();
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin_dir().display()));
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8").env("SHEEP_DATA_DIR", self.dir.join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.uid != 0 {
            command.uid(self.uid).gid(self.gid);
        }
        command.spawn().expect("bash")
    }

    /// Writes a file of the world.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.dir.join(name);
        fs::write(&path, content).expect("write");
        std::os::unix::fs::chown(&path, Some(self.uid), Some(self.gid)).expect("chown");
    }

    /// Everything in the data directory: names, kinds, sizes, and the index itself; but not what says that the disk is behind.
    #[track_caller]
    pub fn snapshot(&self) -> String {
        self.sh("find data ! -name '.unsynced-*' -printf '%p %y %m %s\\n' 2>/dev/null | sort; cat data/images/index.json 2>/dev/null; true")
            .ok()
    }

    /// Asserts that the store holds nothing: no image, no blob, no layer, nothing half-made.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.sh("sheep-images ls --json").ok(), "");
        let left = "find data/layers/sha256 data/images/blobs/sha256 data/images -maxdepth 1 -mindepth 1 ! -path '*/images/blobs' ! -name index.json ! -name oci-layout ! -name .lock";
        assert_eq!(self.sh(left).ok(), "");
    }

    /// The path of an image's only layer, unpacked.
    #[track_caller]
    pub fn layer(&self, image: &str) -> PathBuf {
        PathBuf::from(self.sh(&format!("sheep-images unpack {image} | jq -r '.image.layers[0].path'")).ok())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A failing test must not leave the machine with mounts.
        for mount in mounts_below(&self.dir).into_iter().rev() {
            let _ = Command::new("umount").arg(mount).status();
        }
        if mounts_below(&self.dir).is_empty() {
            // A failing test leaves what it made, if it cannot be deleted.
            let _ = Command::new("rm").arg("-rf").arg(&self.dir).status();
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.map(PathBuf::from).filter(|target| target.starts_with(dir)).collect()
}

fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        // Where the build's directory is private, another user could not run it there.
        let to = std::env::temp_dir().join(format!("sheep-images-bin-{}", std::process::id()));
        fs::create_dir_all(&to).expect("bin dir");
        fs::copy(env!("CARGO_BIN_EXE_sheep-images"), to.join("sheep-images")).expect("copy");
        fs::set_permissions(&to, Permissions::from_mode(0o755)).expect("chmod");
        to
    })
}
