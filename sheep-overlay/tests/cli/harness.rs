//! A world of its own for each test: a temporary directory with a data directory, gone at the end with all its mounts.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

pub const BIN: &str = env!("CARGO_BIN_EXE_sheep-overlay");

/// A directory under /tmp with `data` (the data directory) and `low` in it.
pub struct World {
    pub dir: PathBuf,
    pub data: PathBuf,
    user: Option<&'static str>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The one document on stdout.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks the exit code and that stderr is one line with these words in it.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "one line: {self:?}");
        assert!(self.err.starts_with("sheep-overlay: "), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} in {self:?}");
        }
    }

    /// Like [`Ran::fails`], where warnings may stand before the last line.
    #[track_caller]
    pub fn refuses(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        let last = self.err.lines().last().unwrap_or_default();
        for word in words {
            assert!(last.contains(word), "{word:?} in {self:?}");
        }
    }

    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl World {
    /// For tests that mount.
    pub fn root() -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
        Self::named(OsStr::new("plain"))
    }

    /// The commands run as a plain user.
    pub fn user() -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
        if !Command::new("id").args(["-u", "sheeptest"]).output().unwrap().status.success() {
            Command::new("useradd").args(["-m", "sheeptest"]).status().unwrap();
        }
        let mut world = Self::named(OsStr::new("user"));
        // The build directory may be closed to that user.
        fs::copy(BIN, world.dir.join("sheep-overlay")).unwrap();
        sh(&format!("chown sheeptest: {0} && chmod 755 {0}", world.dir.display()));
        world.user = Some("sheeptest");
        world
    }

    /// Whether the commands run as a plain user.
    pub fn is_user(&self) -> bool {
        self.user.is_some()
    }

    /// A world whose directory ends in `name`.
    pub fn named(name: &OsStr) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut full = format!("/tmp/overlay-test-{}-{count}-", std::process::id()).into_bytes();
        full.extend_from_slice(name.as_bytes());
        let dir = PathBuf::from(std::ffi::OsString::from_vec(full));
        fs::create_dir(&dir).unwrap();
        let data = dir.join("data");
        World { dir, data, user: None }
    }

    /// The binary under test, where the user of this world can reach it.
    pub fn program(&self) -> &'static str {
        match self.user {
            None => BIN,
            Some(_) => Box::leak(self.dir.join("sheep-overlay").display().to_string().into_boxed_str()),
        }
    }

    /// A command line of the binary under test, with this world's data directory.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = match self.user {
            None => Command::new(BIN),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
                command.arg(self.dir.join("sheep-overlay"));
                command
            }
        };
        command.args(args).current_dir(&self.dir).env("SHEEP_DATA_DIR", &self.data).env_remove("SHEEP_RUN_DIR");
        command
    }

    /// Runs the binary under test in the world's directory.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        ran(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    /// Like [`World::run`], with something on stdin.
    pub fn run_with<S: AsRef<OsStr>>(&self, input: &str, args: &[S]) -> Ran {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }

    /// Makes a directory with files in it, `name` being also their content.
    pub fn lower(&self, name: &str, files: &[&str]) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        for file in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        dir
    }

    /// Mounts under an id and gives the merged directory.
    #[track_caller]
    pub fn mount(&self, id: &str, lowers: &[&str]) -> PathBuf {
        let mut args = vec!["mount", "--id", id, "--print", "merged"];
        args.extend(lowers);
        PathBuf::from(self.run(&args).ok().out.trim_end())
    }

    /// The merged directory of an id.
    pub fn merged(&self, id: &str) -> PathBuf {
        self.data.join("overlay").join(id).join("merged")
    }

    /// The state column of `ls` for an id.
    pub fn state(&self, id: &str) -> Option<String> {
        let table = self.run(&["ls"]).ok().out;
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(id))?;
        row.split_whitespace().nth(1).map(str::to_owned)
    }

    /// What stands in the data directory's `overlay/`.
    pub fn in_overlay_dir(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data.join("overlay")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The mount points below this world's directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.dir)
    }

    /// Nothing mounted, nothing in `overlay/`.
    #[track_caller]
    pub fn is_clean(&self) {
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        assert_eq!(self.in_overlay_dir(), Vec::<String>::new());
    }
}

impl World {
    /// After a test that failed: ends what would keep its overlays for ever.
    fn end_holders(&self) {
        for id in self.in_overlay_dir() {
            let record = fs::read(self.data.join("overlay").join(id).join("overlay.json")).unwrap_or_default();
            let record: Value = serde_json::from_slice(&record).unwrap_or_default();
            let Some(pid) = record["holder"]["pid"].as_u64() else { continue };
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sheep-holder\n") {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_holders();
        for point in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = Command::new("chattr").args(["-R", "-i"]).arg(&self.dir).stderr(Stdio::null()).status();
        let _ = Command::new("rm").arg("-rf").arg(&self.dir).status();
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points
        .map(|field| {
            let mut raw = Vec::new();
            let mut rest = field;
            while let Some((first, tail)) = rest.split_first() {
                rest = tail;
                if *first == b'\\' {
                    let digits = std::str::from_utf8(&tail[..3]).unwrap();
                    raw.push(u8::from_str_radix(digits, 8).unwrap());
                    rest = &tail[3..];
                } else {
                    raw.push(*first);
                }
            }
            PathBuf::from(OsStr::from_bytes(&raw))
        })
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// The version of the kernel.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Runs a shell script that must succeed.
#[track_caller]
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(script).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The names in a directory, sorted.
pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Waits until something holds; fails after ten seconds.
#[track_caller]
pub fn until(mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < end, "waited in vain");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
