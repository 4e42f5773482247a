//! The record of a container: `containers/<id>/container.json`, and the two locks beside it.
//!
//! | file | what it is |
//! |---|---|
//! | `container.json` | the whole document: `image`, `overlay`, `container` |
//! | `config.json` | the OCI configuration; with container.json's directory it is the bundle |
//! | `log` | what the container wrote (log.rs) |
//! | `pid` | the first process's id, written by `sheep-ns` |
//! | `lock` | held while a command changes the container; the last exit code is written into it as well |
//! | `supervisor` | locked for as long as somebody looks after the container |
//!
//! The supervisor is the command that makes the container, then the monitor (or `run` in the foreground). It holds the
//! lock from before the first step until after the last, and so do the siblings it has at work, who inherit the
//! descriptor. The kernel lets go of a lock when its holders die, however they die. So a `supervisor` file that nobody
//! has locked means: something was broken off here, and [`crate::repair`] finishes it. There are no process ids to be
//! mistaken for a stranger's, and no boot ids to compare.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sheep_overlay::doc::{DocPath, Document};
use sheep_overlay::exit;
use sheep_overlay::state::{self, DataRoot, Durability, Lock, make_private_dir};

use crate::locks;

/// The key of the document that this program owns.
pub const KEY: &str = "container";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Home {
    /// The data directory.
    pub data: DataRoot,
    /// The directory of the OCI states, which `sheep-ns` gets as `--root`.
    pub states: PathBuf,
}

impl Home {
    /// Opens the data directory `root`, or the default one.
    pub fn open(root: Option<&Path>) -> Result<Self> {
        Ok(Home { data: DataRoot::open(root)?, states: state::run_dir()?.join("ns") })
    }

    /// The bundle of the container `id`.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.data.containers().join(id)
    }

    /// Whether `sheep-ns` may know of the container: saves a process where it does not.
    pub fn has_state(&self, id: &str) -> bool {
        self.states.join(id).symlink_metadata().is_ok()
    }

    /// Whether there is anything of an overlay with this id, be it half made: saves a process where there is not.
    pub fn has_overlay(&self, id: &str) -> bool {
        let names = fs::read_dir(self.data.overlays()).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(id))
    }

    /// Taken while a container's directory and first record are made, and its name compared with all others.
    pub fn lock_names(&self) -> Result<Lock> {
        Lock::exclusive(&self.data.path().join("containers.lock"))
    }
}

/// What became of a container so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A command is making it; if that is broken off, it is undone.
    Creating,
    /// Made, never started.
    Created,
    /// Its first process was started.
    Running,
    /// Its first process has ended.
    Stopped,
}

/// The `container` key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Twelve hexadecimal digits; the overlay's and the OCI container's id as well.
    pub id: String,
    /// The name given, else the id.
    pub name: String,
    /// What became of it so far.
    pub status: Status,
    /// The first process, while it runs.
    pub pid: Option<u32>,
    /// How it ended: its exit code, 128+N for signal N; null before that, and where nobody saw the end.
    pub exit_code: Option<i32>,
    /// The signal that ended it, where one did and the monitor saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// When it was made.
    pub created: String,
    /// When it was last started.
    pub started: Option<String>,
    /// When it last ended.
    pub finished: Option<String>,
    /// Its directory: config.json, container.json, log.
    pub bundle: DocPath,
    /// Its log; absent where none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<DocPath>,
    /// The command and its arguments, the image's entrypoint included.
    pub command: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is removed when it has ended (`--rm`).
    pub remove: bool,
    /// Whether stdin is kept open (`--interactive`).
    pub interactive: bool,
    /// Whether the program has a terminal (`--tty`).
    pub terminal: bool,
}

impl Container {
    /// Whether it runs, as far as the record knows.
    pub fn is_running(&self) -> bool {
        self.status == Status::Running
    }
}

/// A record in memory.
#[derive(Debug, Clone)]
pub struct Record {
    /// The bundle.
    pub dir: PathBuf,
    /// The whole document; its `container` key is as old as the last load or save.
    pub document: Document,
    /// What this program owns of it.
    pub container: Container,
}

impl Record {
    /// Reads a record. `None` where there is none; an error that names the file where it is corrupt.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("container.json");
        let Some(map) = state::read_json::<Map<String, Value>>(&file)? else { return Ok(None) };
        let document = Document(map);
        let mut container: Container = document.require(KEY, "sheep-run").map_err(|why| {
            anyhow!("state file {} is corrupt: {why}; 'sheep-run rm -f' removes the container", file.display())
        })?;
        if container.is_running() && container.pid.is_none() {
            container.pid = read_pid(dir);
        }
        Ok(Some(Record { dir: dir.to_path_buf(), document, container }))
    }

    /// Like [`Record::load`], for a container that was there a moment ago.
    pub fn reload(dir: &Path) -> Result<Self> {
        Self::load(dir)?.ok_or_else(no_such_container)
    }

    /// Writes the record. It survives a power cut, unless the container goes with `--rm` anyway.
    pub fn save(&mut self) -> Result<()> {
        let durability = if self.container.remove { Durability::Rebuildable } else { Durability::Synced };
        self.save_as(durability)
    }

    /// Writes the record with a choice of what a power cut may do to it.
    pub fn save_as(&mut self, durability: Durability) -> Result<()> {
        self.document.set(KEY, &self.container)?;
        state::write_json(&self.dir.join("container.json"), &self.document.0, durability)
    }

    /// Takes over every key of a document but our own.
    pub fn adopt(&mut self, document: Document) {
        let own = self.document.0.shift_remove(KEY);
        self.document.0.extend(document.0.into_iter().filter(|(key, _)| key != KEY));
        self.document.0.extend(own.map(|own| (KEY.to_owned(), own)));
    }

    /// Takes from config.json what the record shows of it.
    pub fn adopt_config(&mut self, config: &[u8]) -> Result<()> {
        let config: Value = serde_json::from_slice(config).context("config.json")?;
        let process = &config["process"];
        let words = process["args"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.container.command = words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        self.container.terminal = process["terminal"].as_bool().unwrap_or(false);
        Ok(())
    }

    /// The document as others get it, its `container` key up to date.
    pub fn to_document(&self) -> Result<Document> {
        let mut document = self.document.clone();
        document.set(KEY, &self.container)?;
        Ok(document)
    }
}

/// The first process's id, as `sheep-ns` wrote it.
pub fn read_pid(dir: &Path) -> Option<u32> {
    fs::read_to_string(dir.join("pid")).ok()?.trim().parse().ok()
}

/// The error for a container that is not (or no longer) there.
pub fn no_such_container() -> anyhow::Error {
    exit::not_found("no such container; 'sheep-run ps -a' shows what there is")
}

/// A container that exists from now on, with both its locks held by this process.
#[derive(Debug)]
pub struct Claim {
    /// Its first record, status `creating`.
    pub record: Record,
    /// The command lock.
    pub lock: File,
    /// The supervisor's lock.
    pub supervisor: File,
}

/// What is known of a container before its first step.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `--name`
    pub name: Option<String>,
    /// `--rm`
    pub remove: bool,
    /// `--interactive`
    pub interactive: bool,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// Whether a log is kept.
    pub log: bool,
}

/// Claims an id, and the name if one is wanted: makes the directory, takes both locks, writes the first record. Errors
/// with busy (4) where another container has the name; `in_the_way` may repair that container first.
pub fn claim(home: &Home, wanted: Wanted, in_the_way: impl Fn(&Path) -> Result<()>) -> Result<Claim> {
    if let Some(name) = &wanted.name {
        state::check_name(name)?;
    }
    // All of this happens under the lock of names. So a directory without a record is either being made by the holder
    // of that lock, or left by somebody who was killed.
    let containers = home.data.containers();
    make_private_dir(&containers).with_context(|| containers.display().to_string())?;
    let _names = home.lock_names()?;
    if let Some(name) = &wanted.name {
        name_is_free(home, name, &in_the_way)?;
    }
    let (id, dir) = make_dir(home)?;
    let claimed = first_record(wanted, id, &dir);
    if claimed.is_err() {
        // The error that matters is the one already held.
        let _ = fs::remove_dir_all(&dir);
    }
    claimed
}

fn first_record(wanted: Wanted, id: String, dir: &Path) -> Result<Claim> {
    let lock = locks::make(dir)?;
    let supervisor = locks::supervise(dir)?;
    let container = Container {
        name: wanted.name.unwrap_or_else(|| id.clone()),
        id,
        status: Status::Creating,
        pid: None,
        exit_code: None,
        signal: None,
        oom_killed: false,
        created: state::now(),
        started: None,
        finished: None,
        bundle: dir.into(),
        log: wanted.log.then(|| dir.join("log").into()),
        command: Vec::new(),
        labels: wanted.labels,
        remove: wanted.remove,
        interactive: wanted.interactive,
        terminal: false,
    };
    let mut record = Record { dir: dir.to_path_buf(), document: Document::default(), container };
    // A container that is still being made is undone after a power cut, so nothing is lost with its record.
    record.save_as(Durability::Rebuildable)?;
    Ok(Claim { record, lock, supervisor })
}

fn make_dir(home: &Home) -> Result<(String, PathBuf)> {
    loop {
        let id = state::new_id()?;
        let dir = home.bundle(&id);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok((id, dir)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| dir.display().to_string()),
        }
    }
}

fn name_is_free(home: &Home, name: &str, in_the_way: &impl Fn(&Path) -> Result<()>) -> Result<()> {
    for dir in dirs(home)? {
        // A corrupt record has no name to defend; 'ps' says what is the matter with it.
        if Record::load(&dir).ok().flatten().is_none_or(|record| record.container.name != name) {
            continue;
        }
        in_the_way(&dir)?;
        if let Some(Record { container, .. }) = Record::load(&dir)? {
            return Err(exit::busy(format!("the name {name} is in use by container {}", container.id)));
        }
    }
    if home.bundle(name).exists() {
        return Err(exit::busy(format!("the name {name} is the id of container {name}")));
    }
    Ok(())
}

/// The directories of all containers, in no order. Ones that are being removed are left out.
pub fn dirs(home: &Home) -> Result<Vec<PathBuf>> {
    Ok(entries(home)?.into_iter().filter(|(name, _)| !name.starts_with('.')).map(|(_, dir)| dir).collect())
}

fn entries(home: &Home) -> Result<Vec<(String, PathBuf)>> {
    let containers = home.data.containers();
    let entries = match fs::read_dir(&containers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| containers.display().to_string())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| containers.display().to_string())?;
        // Whatever has no name that we could have given is not ours to touch.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Finds a container by its name, its id, or a unique prefix of its id. Errors with not found (3), or usage (2) where
/// a prefix fits several.
pub fn find(home: &Home, name: &str) -> Result<PathBuf> {
    state::check_name(name).map_err(|_| no_such_container())?;
    let whole = home.bundle(name);
    if whole.is_dir() {
        return Ok(whole);
    }
    let dirs = dirs(home)?;
    let has_name =
        |dir: &&PathBuf| Record::load(dir).ok().flatten().is_some_and(|record| record.container.name == name);
    if let Some(dir) = dirs.iter().find(has_name) {
        return Ok(dir.clone());
    }
    let has_prefix = |dir: &&PathBuf| dir.file_name().is_some_and(|id| id.to_string_lossy().starts_with(name));
    let mut fitting = dirs.iter().filter(has_prefix);
    match (fitting.next(), fitting.next()) {
        (Some(dir), None) => Ok(dir.clone()),
        (Some(_), Some(_)) => Err(exit::usage("more than one container has an id that begins so")),
        (None, _) => Err(no_such_container()),
    }
}

/// Takes a container's directory away: first out of sight in one step, so that nobody finds half of it.
pub fn remove_dir(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let hidden = dir.with_file_name(format!(".rm-{name}"));
    match fs::rename(dir, &hidden) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("remove {}", dir.display())),
    }
    remove_hidden(&hidden)
}

fn remove_hidden(hidden: &Path) -> Result<()> {
    match fs::remove_dir_all(hidden) {
        // Another command may be sweeping it away at the same time.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", hidden.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what killed commands left: directories half removed, and ones that never got a record.
pub fn sweep(home: &Home) -> Result<()> {
    let is_bare = |dir: &Path| dir.join("container.json").symlink_metadata().is_err();
    for (name, dir) in entries(home)? {
        if name.starts_with(".rm-") {
            remove_hidden(&dir)?;
        } else if is_bare(&dir) && dir.is_dir() && state::check_name(&name).is_ok() {
            let _names = home.lock_names()?;
            if is_bare(&dir) {
                remove_dir(&dir)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn home() -> (Home, PathBuf) {
        let dir = std::env::temp_dir().join(format!("sheep-run-record-{}", state::new_id().unwrap()));
        fs::create_dir(&dir).unwrap();
        let data = DataRoot::open(Some(&dir)).unwrap();
        fs::create_dir(data.containers()).unwrap();
        (Home { data, states: dir.join("ns") }, dir)
    }

    fn named(name: &str) -> Wanted {
        Wanted { name: Some(name.to_owned()), ..Wanted::default() }
    }

    #[test]
    fn names_are_claimed_once_and_found() {
        let (home, scratch) = home();
        let one = claim(&home, named("one"), |_| Ok(())).unwrap();
        let error = claim(&home, named("one"), |_| Ok(())).unwrap_err();
        assert_eq!(exit::kind(&error), Some(exit::Kind::Busy));
        assert!(error.to_string().contains(&one.record.container.id));
        let id = &one.record.container.id;
        for name in ["one", id, &id[..6]] {
            assert_eq!(find(&home, name).unwrap(), one.record.dir);
        }
        for absent in ["two", "../x", ".."] {
            assert_eq!(exit::kind(&find(&home, absent).unwrap_err()), Some(exit::Kind::NotFound), "{absent}");
        }
        fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn what_killed_commands_left_is_swept() {
        let (home, scratch) = home();
        fs::create_dir_all(home.bundle(".rm-0123/x")).unwrap();
        fs::create_dir(home.bundle("4567")).unwrap();
        let kept = claim(&home, named("kept"), |_| Ok(())).unwrap();
        sweep(&home).unwrap();
        assert_eq!(entries(&home).unwrap(), [(kept.record.container.id.clone(), kept.record.dir.clone())]);
        fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn a_corrupt_record_is_named() {
        let (home, scratch) = home();
        let claimed = claim(&home, named("bad"), |_| Ok(())).unwrap();
        for bad in ["{\"container\":", "{\"container\":{\"id\":1}}", "{}"] {
            fs::write(claimed.record.dir.join("container.json"), bad).unwrap();
            let error = format!("{:#}", Record::load(&claimed.record.dir).unwrap_err());
            assert!(error.contains("container.json") && error.contains("corrupt"), "{error}");
        }
        fs::remove_dir_all(scratch).unwrap();
    }
}
