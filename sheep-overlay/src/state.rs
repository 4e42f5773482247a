//! State on disk: where it is, how it is written, how it is locked.
//!
//! ```text
//! $SHEEP_DATA_DIR, else /var/lib/sheep (root) or $XDG_DATA_HOME/sheep
//!   version                                       the layout's version; an unknown one is refused, not guessed
//!   lock                                          taken shared to use layers, exclusive to remove one
//!   images/                                       an OCI image layout
//!   layers/sha256/<hex of diffID>/                unpacked once, shared by every image that has it
//!   overlay/<id>/{upper,work,merged,overlay.json,lock}
//!   overlay/<id>/snapshots/<layer>/upper          what a snapshot put aside
//!   containers/<id>/{config.json,container.json,log}
//! ```
//!
//! A document on disk is either whole or absent: [`write_json`] writes a temporary file, syncs, renames, syncs the
//! directory. What can be rebuilt is written with [`Durability::Rebuildable`] and not synced.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{exit, mountinfo, sys};

/// The layout's version, as written to the file `version`.
const LAYOUT_VERSION: &str = "1\n";

/// The data directory, opened and checked.
#[derive(Debug, Clone)]
pub struct DataRoot {
    dir: PathBuf,
}

impl DataRoot {
    /// Opens the data directory: `explicit` (from `--root`), else `$SHEEP_DATA_DIR`, else the default for this user. It
    /// is made, readable by its owner alone, where it does not exist. Errors: not a directory, not writable, or a layout
    /// version that this program does not know.
    pub fn open(explicit: Option<&Path>) -> Result<Self> {
        let wanted = match explicit {
            Some(dir) => dir.to_path_buf(),
            None => default_data_dir()?,
        };
        make_private_dir(&wanted).with_context(|| {
            format!("data directory {} (choose another with --root or $SHEEP_DATA_DIR)", wanted.display())
        })?;
        let dir = fs::canonicalize(&wanted).with_context(|| format!("data directory {}", wanted.display()))?;
        let root = DataRoot { dir };
        root.check_version()?;
        Ok(root)
    }

    /// The directory itself: absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// `images/`: the OCI image layout.
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// `layers/sha256/`: one directory for each unpacked layer, named by the hex digits of its diffID.
    pub fn layers(&self) -> PathBuf {
        self.dir.join("layers/sha256")
    }

    /// `overlay/`: one directory for each overlay.
    pub fn overlays(&self) -> PathBuf {
        self.dir.join("overlay")
    }

    /// `containers/`: one directory for each container.
    pub fn containers(&self) -> PathBuf {
        self.dir.join("containers")
    }

    /// Taken while layers are being put to use (an overlay checks its lowers and writes its record): no layer is removed
    /// meanwhile. Any number of processes hold it at once.
    pub fn lock_layers_for_use(&self) -> Result<Lock> {
        Lock::shared(&self.dir.join("lock"))
    }

    /// Taken while a layer is checked for users and removed: no overlay starts to use one meanwhile.
    pub fn lock_layers_for_removal(&self) -> Result<Lock> {
        Lock::exclusive(&self.dir.join("lock"))
    }

    fn check_version(&self) -> Result<()> {
        let file = self.dir.join("version");
        match fs::read_to_string(&file) {
            Ok(version) if version == LAYOUT_VERSION => Ok(()),
            Ok(version) => bail!(
                "data directory {}: layout version {:?} is not known to this program; use the program that wrote it, or another --root",
                self.dir.display(),
                version.trim_end()
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write_atomic(&file, LAYOUT_VERSION.as_bytes(), Durability::Synced)
                    .with_context(|| file.display().to_string())
            }
            Err(e) => Err(e).with_context(|| file.display().to_string()),
        }
    }
}

fn default_data_dir() -> Result<PathBuf> {
    if let Some(dir) = env_path("SHEEP_DATA_DIR") {
        return Ok(dir);
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/sheep".into());
    }
    if let Some(dir) = env_path("XDG_DATA_HOME") {
        return Ok(dir.join("sheep"));
    }
    match env_path("HOME") {
        Some(home) => Ok(home.join(".local/share/sheep")),
        None => Err(exit::usage("no data directory: set $SHEEP_DATA_DIR, $XDG_DATA_HOME or $HOME, or give --root")),
    }
}

/// The directory for what a reboot may lose (OCI state, fifos): `$SHEEP_RUN_DIR`, else `/run/sheep` (root), else
/// `$XDG_RUNTIME_DIR/sheep`, else `/tmp/sheep-UID`. Made private where absent; one that another user owns is refused.
pub fn run_dir() -> Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let dir = match (env_path("SHEEP_RUN_DIR"), env_path("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => dir,
        (None, _) if uid.is_root() => "/run/sheep".into(),
        (None, Some(runtime)) => runtime.join("sheep"),
        (None, None) => format!("/tmp/sheep-{}", uid.as_raw()).into(),
    };
    make_private_dir(&dir).with_context(|| format!("run directory {}", dir.display()))?;
    let owner = fs::symlink_metadata(&dir).with_context(|| dir.display().to_string())?;
    if !owner.is_dir() || owner.uid() != uid.as_raw() {
        bail!("run directory {}: not a directory of this user's own; set $SHEEP_RUN_DIR", dir.display());
    }
    Ok(dir)
}

/// An environment variable as an absolute path; empty and relative values count as unset, as the XDG specification says.
fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Makes a directory and its parents with mode 0700; one that exists is left as it is.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Whether a file must be on the disk before a command says it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives a power cut: fsync of the file and of its directory.
    Synced,
    /// Whole after a power cut, but perhaps still the old one. Journals keep the order of what is done to names; so that the name
    /// does not come before the content, that is written out first: on ext4 it is waited for, elsewhere the file is synced.
    Ordered,
    /// Like `Ordered`, if the power holds for another moment: the content's write-out is begun, and not waited for.
    Begun,
    /// Whole or absent after a crash of the program; after a power cut it may be old, and can be rebuilt.
    Rebuildable,
}

/// Writes `value` as JSON to `file`, atomically, readable by its owner alone.
pub fn write_json<T: Serialize>(file: &Path, value: &T, durability: Durability) -> Result<()> {
    let mut bytes = serde_json::to_vec(value).with_context(|| file.display().to_string())?;
    bytes.push(b'\n');
    write_atomic(file, &bytes, durability).with_context(|| format!("write {}", file.display()))
}

/// Writes `bytes` to `file` through a temporary file beside it and a rename. On failure the temporary file is removed
/// and the old content stands.
pub fn write_atomic(file: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().unwrap_or(OsStr::new("file")).to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", random_hex()?));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut out| {
        out.write_all(bytes)?;
        match durability {
            Durability::Ordered => settle(&out)?,
            Durability::Synced => out.sync_all()?,
            Durability::Begun => sys::begin_writeback(&out)?,
            Durability::Rebuildable => {}
        }
        fs::rename(&temporary, file)?;
        if durability == Durability::Synced {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    });
    if written.is_err() {
        // The error that matters is the one already held.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Waits until a file's content is such that, whenever the power goes, it is there as soon as a name is that the file gets from
/// now on.
pub fn settle(file: &File) -> io::Result<()> {
    if journals_writeback(file) { sys::write_back(file) } else { file.sync_all() }
}

/// Whether a file whose content was written out and waited for is whole after a power cut as soon as a name that it gets later
/// is there. So it is on ext4: a page counts as written when its extent is noted as written, in a transaction of the journal that is
/// not later than that of the name, and before a transaction is committed the disk is told to make durable what it has.
/// (What ext4 does by itself when a file replaces another, `auto_da_alloc` in ext4(5), begins the write-out and no more: with
/// `dioread_nolock`, the default, the journal does not wait for its end, and the file may be one of zeros.) An fsync
/// would wait for all that was done to the file system of late, by anybody.
fn journals_writeback(file: &File) -> bool {
    let Ok(device) = file.metadata().map(|found| found.dev()) else { return false };
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let is_default = |entry: &mountinfo::Entry| {
        let mut options = entry.options.split(|byte| *byte == b',');
        entry.fs_type == "ext4" && !options.any(|option| option.starts_with(b"data="))
    };
    mountinfo::read().unwrap_or_default().iter().find(|entry| entry.device == device).is_some_and(is_default)
}

/// The moment that a time in a document names: seconds since 1970, and nanoseconds.
pub fn moment(time: &str) -> Result<(i64, i64)> {
    let time: jiff::Timestamp = time.parse().with_context(|| format!("{time:?} is no time"))?;
    Ok((time.as_second(), i64::from(time.subsec_nanosecond())))
}

/// Reads a JSON file. `None` where it does not exist; an error that names the file where it is not what it should be: a
/// state file is never guessed at.
pub fn read_json<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e).with_context(|| file.display().to_string()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .with_context(|| format!("state file {} is corrupt; move it away after a look at it", file.display()))
}

/// A lock on a file, held until dropped. The kernel releases it when the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the exclusive lock on `file`, which is made where absent.
    pub fn exclusive(file: &Path) -> Result<Self> {
        let handle = open_lock(file)?;
        handle.lock().with_context(|| format!("lock {}", file.display()))?;
        Ok(Lock { _file: handle })
    }

    /// Waits for the shared lock on `file`, which is made where absent.
    pub fn shared(file: &Path) -> Result<Self> {
        let handle = open_lock(file)?;
        handle.lock_shared().with_context(|| format!("lock {}", file.display()))?;
        Ok(Lock { _file: handle })
    }

    /// The exclusive lock on `file`, or `None` where another process holds it.
    pub fn try_exclusive(file: &Path) -> Result<Option<Self>> {
        let handle = open_lock(file)?;
        match handle.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: handle })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("lock {}", file.display())),
        }
    }

    /// Whether the file that is locked still stands at `file`: who waited for a lock may get that of a directory which
    /// was renamed away or deleted meanwhile.
    pub fn is_at(&self, file: &Path) -> bool {
        match (self._file.metadata(), fs::symlink_metadata(file)) {
            (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

/// Opens a file that is there to be locked, and makes it where it is absent.
pub(crate) fn open_lock(file: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("lock {}", file.display()))
}

/// The id of the running boot: mounts and pids of another boot are gone.
pub fn boot_id() -> Result<String> {
    let mut text = String::new();
    File::open("/proc/sys/kernel/random/boot_id")
        .and_then(|mut file| file.read_to_string(&mut text))
        .context("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim_end().to_owned())
}

/// A new random id: twelve hexadecimal digits. The caller claims it by making a directory of that name.
pub fn new_id() -> Result<String> {
    random_hex().context("random id")
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0u8; 6];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Checks a name for an overlay or a container: a letter or digit, then up to 127 letters, digits, `_`, `.`, `-`. It
/// becomes a directory name, so nothing else gets through. Errors with usage (2).
pub fn check_name(name: &str) -> Result<()> {
    let rest_is_fine = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if rest_is_fine && name.len() <= 128 && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(exit::usage(format!(
        "{name:?} is not a name: a letter or digit, then letters, digits, '_', '.', '-' (128 at most)"
    )))
}

/// The time now, as documents carry it: RFC 3339, UTC.
pub fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> PathBuf {
        let dir = env::temp_dir().join(format!("sheep-state-{}", new_id().unwrap()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn an_unknown_layout_version_is_refused() {
        let dir = scratch();
        DataRoot::open(Some(&dir)).unwrap();
        DataRoot::open(Some(&dir)).unwrap();
        fs::write(dir.join("version"), "2\n").unwrap();
        let error = format!("{:#}", DataRoot::open(Some(&dir)).unwrap_err());
        assert!(error.contains("layout version \"2\""), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn json_is_whole_or_absent() {
        let dir = scratch();
        let file = dir.join("a.json");
        assert_eq!(read_json::<Vec<u8>>(&file).unwrap(), None);
        write_json(&file, &vec![1u8, 2], Durability::Synced).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&file).unwrap(), Some(vec![1, 2]));
        fs::write(&file, "[1,").unwrap();
        assert!(format!("{:#}", read_json::<Vec<u8>>(&file).unwrap_err()).contains("corrupt"));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_stay_inside_their_directory() {
        for good in ["a", "ov1", "3f2a", "a.b-c_d"] {
            check_name(good).unwrap();
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "a/b", "../x", "-x", "a b", "a\n", "ä", &long] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
