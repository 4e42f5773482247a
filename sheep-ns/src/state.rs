//! Containers on record: `<root>/<id>/`, which a reboot may lose.
//!
//! ```text
//! state.json      the record; absent while the container is being made
//! creating.json   the record while it is being made; becomes state.json by a rename when all is well
//! config.json     the configuration it was made from
//! start.sock      its first process waits here for `start`; absent once it was started
//! ```
//!
//! Who makes, starts or deletes a container holds a lock on the directory itself; the kernel releases it when the holder
//! dies. A directory without state.json that nobody holds was left by one that died: whoever meets it clears it away.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, CWD, FlockOperation, Mode, OFlags, RenameFlags, access, flock, open, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Cgroup};
use crate::exit;
use crate::hooks::Hooks;
use crate::oci::{self, Name, State, Status};
use crate::process::Process;

const STATE: &str = "state.json";
const CREATING: &str = "creating.json";
const CONFIG: &str = "config.json";

/// The name of the socket where a created container waits.
pub const START: &str = "start.sock";

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: Name,
    /// The annotations of config.json.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Its first process; absent until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Its control group, where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// systemd's scope in which that is, where it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Whether it has a pid namespace of its own: then nothing of it outlives its first process.
    #[serde(default)]
    pub own_pid_namespace: bool,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Who made it.
    pub owner: u32,
}

impl Record {
    /// What is told of it at a point of its life; `pid` is its first process, 0 without one.
    pub fn state(&self, status: Status, pid: i32) -> State {
        State { pid, ..State::new(status, &self.id, self.bundle.clone(), self.annotations.clone()) }
    }
}

/// The directory of all containers' state.
#[derive(Debug, Clone)]
pub struct StateRoot {
    dir: PathBuf,
}

impl StateRoot {
    /// Opens it: `explicit` (from `--root`), else `$SHEEP_RUN_DIR/ns`, `/run/sheep/ns` for root (of a user namespace where it may),
    /// `$XDG_RUNTIME_DIR/sheep/ns`, `/tmp/sheep-UID/ns`. Made, for its owner alone, where it is missing; another user's
    /// is refused.
    pub fn open(explicit: Option<&Path>) -> Result<StateRoot> {
        let dir =
            std::path::absolute(explicit.map_or_else(default_dir, Path::to_path_buf)).context("state directory")?;
        let name = || format!("state directory {} (choose another with --root)", dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(name)?;
        let owner = fs::metadata(&dir).with_context(name)?.uid();
        if owner != geteuid().as_raw() {
            bail!("state directory {}: belongs to user {owner}; choose another with --root", dir.display());
        }
        Ok(StateRoot { dir })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Claims a new id: its directory is made and locked. Busy (4) where there is a container of that name; what one that
    /// died in the making has left is cleared away.
    pub fn claim(&self, id: &str) -> Result<Locked> {
        check_id(id)?;
        let path = self.path(id);
        for _ in 0..50 {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| path.display().to_string()),
            }
            let Some(dir) = Locked::take(&path, Wait::No)? else {
                // In the hands of a `list` that looks for leftovers, which is a moment's matter; or of another maker.
                std::thread::sleep(std::time::Duration::from_millis(4));
                continue;
            };
            if path.join(STATE).exists() {
                return Err(exit::busy(format!("container {id} exists already; take another id, or delete it")));
            }
            if path.join(CONFIG).exists() || path.join(CREATING).exists() {
                clear(&path)?;
                continue;
            }
            return Ok(dir);
        }
        Err(exit::busy(format!("container {id} is being made or deleted by another command")))
    }

    /// Locks an existing container and reads its record. Not found (3) where there is none.
    pub fn lock(&self, id: &str) -> Result<(Locked, Record)> {
        check_id(id)?;
        let path = self.path(id);
        let Some(dir) = Locked::take(&path, Wait::Yes)? else { return Err(absent(id)) };
        match read_record(&path)? {
            Some(record) => Ok((dir, record)),
            None => {
                clear(&path)?;
                Err(absent(id))
            }
        }
    }

    /// Removes a container whose record cannot be read (`why`): all that can be done for it.
    pub fn discard(&self, id: &str, why: anyhow::Error) -> Result<()> {
        let Some(dir) = Locked::take(&self.path(id), Wait::Yes)? else { return Ok(()) };
        exit::warn("sheep-ns", &format!("delete: {why:#}; removed without a look for its processes"));
        dir.remove()
    }

    /// A container's record, without a lock. Not found (3) where there is none.
    pub fn read(&self, id: &str) -> Result<Record> {
        check_id(id)?;
        match read_record(&self.path(id))? {
            Some(record) => Ok(record),
            None => Err(absent(id)),
        }
    }

    /// The configuration a container was made from.
    pub fn config(&self, id: &str) -> Result<oci::Config> {
        read_config(&self.path(id).join(CONFIG)).map(|(config, _)| config)
    }

    /// A container's hooks, where it has any.
    pub fn hooks(&self, record: &Record) -> Result<Option<Hooks>> {
        hooks_of(&self.path(&record.id), record)
    }

    /// A container's status now.
    pub fn status(&self, record: &Record) -> Result<Status> {
        let alive = match &record.process {
            Some(process) => process.open()?.is_some(),
            None => false,
        };
        if !alive {
            return Ok(Status::Stopped);
        }
        if self.path(&record.id).join(START).exists() {
            return Ok(Status::Created);
        }
        let frozen = match &record.cgroup {
            Some(path) => Cgroup::open(path)?.map(|group| group.is_frozen()).transpose()?.unwrap_or(false),
            None => false,
        };
        Ok(if frozen { Status::Paused } else { Status::Running })
    }

    /// The state as `state` prints it.
    pub fn state(&self, record: &Record) -> Result<State> {
        let status = self.status(record)?;
        let pid = if status == Status::Stopped { 0 } else { record.process.as_ref().map_or(0, |process| process.pid) };
        Ok(record.state(status, pid))
    }

    /// Every container on record, by id. What was left by one that died in the making is cleared away.
    pub fn all(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| self.dir.display().to_string())? {
            let path = entry.with_context(|| self.dir.display().to_string())?.path();
            if let Some(record) = read_record(&path)? {
                records.push(record);
            } else if path.is_dir()
                && let Some(_lock) = Locked::take(&path, Wait::No)?
                && !path.join(STATE).exists()
            {
                clear(&path)?;
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }
}

fn default_dir() -> PathBuf {
    let of = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Root of a user namespace, as rootless podman makes one, is an ordinary user to the host's /run.
    let is_root = geteuid().is_root();
    let has_run = || ["/run/sheep", "/run"].iter().any(|dir| access(*dir, Access::WRITE_OK).is_ok());
    match (of("SHEEP_RUN_DIR"), of("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => dir.join("ns"),
        (None, own) if is_root && (own.is_none() || has_run()) => "/run/sheep/ns".into(),
        (None, Some(dir)) => dir.join("sheep/ns"),
        (None, None) => format!("/tmp/sheep-{}/ns", geteuid().as_raw()).into(),
    }
}

fn absent(id: &str) -> anyhow::Error {
    exit::not_found(format!("container {id} does not exist; 'sheep-ns list' shows what there is"))
}

/// Checks an id: it becomes a directory's name. Usage (2) otherwise.
pub fn check_id(id: &str) -> Result<()> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    if id.bytes().all(fine)
        && id.len() <= 255
        && id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return Ok(());
    }
    Err(exit::usage(format!("{id:?} is no container id: letters, digits, '_', '.', '+', '-', not '.' or '-' first")))
}

fn read_record(dir: &Path) -> Result<Option<Record>> {
    read_json(&dir.join(STATE))
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e).with_context(|| file.display().to_string()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .with_context(|| format!("state file {} is corrupt; 'sheep-ns delete --force' clears it away", file.display()))
}

/// Reads a config.json; also gives its bytes.
pub fn read_config(file: &Path) -> Result<(oci::Config, Vec<u8>)> {
    let bytes = fs::read(file).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => exit::not_found(format!("{}: no such file or directory", file.display())),
        _ => anyhow::Error::from(e).context(file.display().to_string()),
    })?;
    let config = serde_json::from_slice(&bytes).map_err(|e| exit::usage(format!("{}: {e}", file.display())))?;
    Ok((config, bytes))
}

/// Removes what a creation that died has left: its process, its control group, its directory.
fn clear(dir: &Path) -> Result<()> {
    match read_json::<Record>(&dir.join(CREATING)) {
        Ok(Some(record)) => {
            destroy(&record)?;
            poststop(dir, &record);
        }
        // It died before it was on record: its control group, if there is one, is where the configuration puts it.
        Ok(None) => {
            let id = dir.file_name().unwrap_or_default().to_string_lossy();
            if let Ok((config, _)) = read_config(&dir.join(CONFIG)) {
                cgroup::remove_unused(&config.linux.unwrap_or_default(), &id)?;
            }
        }
        // A record that cannot be read names nothing that could be killed.
        Err(_) => {}
    }
    fs::remove_dir_all(dir).with_context(|| dir.display().to_string())
}

fn hooks_of(dir: &Path, record: &Record) -> Result<Option<Hooks>> {
    let (config, _) = read_config(&dir.join(CONFIG))?;
    Ok(config.hooks.map(|lists| Hooks { lists, state: record.state(Status::Creating, 0) }))
}

/// Without a configuration that can be read there are no hooks to call: it goes before the rest does.
fn poststop(dir: &Path, record: &Record) {
    if let Ok(Some(hooks)) = hooks_of(dir, record) {
        hooks.poststop();
    }
}

/// Kills what is alive of a container and removes its control group; returns when the first process is gone.
fn destroy(record: &Record) -> Result<()> {
    let group = match &record.cgroup {
        Some(path) => Cgroup::open(path)?,
        None => None,
    };
    if let Some(group) = &group {
        group.kill()?;
    }
    if let Some(process) = &record.process {
        process.kill()?;
    }
    if let Some(group) = group {
        group.remove()?;
    }
    match (&record.scope, &record.cgroup) {
        (Some(scope), Some(path)) => cgroup::end_scope(scope, path),
        _ => Ok(()),
    }
}

/// A container's directory, locked by this process.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    dir: OwnedFd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Yes,
    No,
}

impl Locked {
    /// `None`: there is no such directory, or (with `Wait::No`) somebody else has it.
    fn take(path: &Path, wait: Wait) -> Result<Option<Locked>> {
        loop {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match open(path, flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(e) => return Err(e).with_context(|| path.display().to_string()),
            };
            let operation = match wait {
                Wait::Yes => FlockOperation::LockExclusive,
                Wait::No => FlockOperation::NonBlockingLockExclusive,
            };
            match flock(&dir, operation) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e).with_context(|| format!("lock {}", path.display())),
            }
            // The directory locked may have been removed, and another made, meanwhile.
            let held = rustix::fs::fstat(&dir).with_context(|| path.display().to_string())?;
            if fs::symlink_metadata(path).is_ok_and(|now| now.ino() == held.st_ino && now.dev() == held.st_dev) {
                return Ok(Some(Locked { path: path.to_path_buf(), dir }));
            }
        }
    }

    /// The configuration, as it was read.
    pub fn write_config(&self, bytes: &[u8]) -> Result<()> {
        write_atomic(&self.path.join(CONFIG), bytes)
    }

    /// The record, while the container is being made.
    pub fn write_creating(&self, record: &Record) -> Result<()> {
        let mut bytes = serde_json::to_vec(record).context("state")?;
        bytes.push(b'\n');
        write_atomic(&self.path.join(CREATING), &bytes)
    }

    /// The container is there: the record made last is its record.
    pub fn finish(&self) -> Result<()> {
        fs::rename(self.path.join(CREATING), self.path.join(STATE)).with_context(|| self.path.display().to_string())
    }

    /// Lets others have it. Explicit, since a child that still has a copy of the descriptor would hold it too.
    pub fn unlock(self) -> Result<()> {
        flock(&self.dir, FlockOperation::Unlock).with_context(|| format!("unlock {}", self.path.display()))
    }

    /// A path for the socket of `start` that is short enough for a socket's address.
    pub fn start_socket(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}/{START}", self.dir.as_fd().as_raw_fd()).into()
    }

    /// The container was started.
    pub fn started(&self) -> Result<()> {
        match fs::remove_file(self.path.join(START)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| self.path.display().to_string()),
            _ => Ok(()),
        }
    }

    /// Ends what is left of a container, calls its poststop hooks, and forgets it. Also one that is stopped: without a pid
    /// namespace, others may have outlived the first process.
    pub fn delete(self, record: &Record) -> Result<()> {
        destroy(record)?;
        poststop(&self.path, record);
        self.remove()
    }

    /// Removes the directory. The record goes first: half-removed is not there.
    pub fn remove(self) -> Result<()> {
        match fs::rename(self.path.join(STATE), self.path.join(CREATING)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| self.path.display().to_string());
            }
            _ => {}
        }
        // So that whoever finds the rest, should this be killed here, calls no hook a second time.
        let _ = fs::remove_file(self.path.join(CONFIG));
        fs::remove_dir_all(&self.path).with_context(|| self.path.display().to_string())
    }
}

/// Writes a file whole or not at all. It need not outlive the boot, so nothing is synced.
pub fn write_atomic(file: &Path, bytes: &[u8]) -> Result<()> {
    write(file, bytes, RenameFlags::empty()).with_context(|| format!("write {}", file.display()))
}

/// The same, and never in the place of one that is there: busy (4) then.
pub fn write_new(file: &Path, bytes: &[u8]) -> Result<()> {
    write(file, bytes, RenameFlags::NOREPLACE).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exit::busy(format!("{}: is there already; remove it first", file.display())),
        _ => anyhow::Error::from(error).context(format!("write {}", file.display())),
    })
}

fn write(file: &Path, bytes: &[u8], flags: RenameFlags) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)
        .and_then(|mut out| out.write_all(bytes))
        .and_then(|()| Ok(renameat_with(CWD, &temporary, CWD, file, flags)?));
    if written.is_err() {
        // The error that matters is the one already held.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_inside_their_directory() {
        for good in ["a", "c1", "A.b+c-d_e", "_x", &"a".repeat(255)] {
            check_id(good).unwrap();
        }
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b", "a\n", "ä", ".hidden", &"a".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_maker_at_a_time_and_leftovers_go() {
        let dir = env::temp_dir().join(format!("sheep-ns-state-{}", std::process::id()));
        let root = StateRoot::open(Some(&dir)).unwrap();
        let held = root.claim("c1").unwrap();
        assert_eq!(exit::kind(&root.claim("c1").unwrap_err()), Some(exit::Kind::Busy));
        held.write_config(b"{}").unwrap();
        drop(held);
        let again = root.claim("c1").unwrap();
        assert!(!dir.join("c1").join(CONFIG).exists());
        again.write_config(b"{}").unwrap();
        drop(again);
        assert_eq!(root.all().unwrap(), []);
        assert!(!dir.join("c1").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
