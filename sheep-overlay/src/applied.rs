//! What `apply` did to a directory, kept so that it can be undone: `applied/<id>/` in the data directory.
//!
//! To apply changes is a transaction. Everything new is first made in *slots*, numbered names on the file system of the
//! target, and synced with the journal that says which slot belongs to which path. Then each slot changes places with what is at its path,
//! by one rename each ([`steps`]), so that a slot afterwards holds what was there before. Last the directory of the
//! transaction gets its final name, which is what makes it done:
//!
//! - `applied/.new-<id>`: under way. Found without its process, it is rolled back: each slot that has changed places does so again.
//! - `applied/<id>`: done. Its slots are what `apply --undo` puts back.
//! - `applied/.undo-<id>`: being undone; found without its process, that is finished.
//! - `applied/.gone-<id>`: being deleted.
//!
//! File systems with a journal of their metadata (ext4, XFS, btrfs) make renames durable in their order, so this
//! holds for a power cut as for a kill.
//!
//! One lock for all of `applied/` is held from the first look at the target to the end, so what is found there by who has the lock
//! belongs to nobody who lives.

pub mod known;
pub mod steps;

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, fstat, mkdirat, openat, renameat, syncfs};
use serde::{Deserialize, Serialize};

use crate::child::{After, Place as Namespace};
use crate::doc::{DocPath, UserNamespace};
use crate::state::{self, DataRoot, Durability, Lock};
use crate::{PROGRAM, child, exit, remove};
use steps::{Directory, Step};

const NEW: &str = ".new-";
const UNDO: &str = ".undo-";
const GONE: &str = ".gone-";
/// The directory for slots on a file system that the data directory is not on.
pub const ABROAD: &str = ".sheep-applied";
const VERSION: u32 = 1;

/// What was, or is to be, done to a target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// The journal's own format.
    pub version: u32,
    /// The overlay whose changes these are.
    pub overlay: String,
    /// When, RFC 3339 UTC.
    pub created: String,
    /// How many changes.
    pub changes: usize,
    /// Whether the target is the lower that they were made over.
    pub own: bool,
    /// The user namespace whose rights it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// The directories that are changed.
    pub places: Vec<Place>,
    /// What changes places, by the numbers of the slots.
    pub steps: Vec<Step>,
    /// Directories whose attributes change.
    pub directories: Vec<Directory>,
}

/// A directory that is changed, on one file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Its path.
    pub target: DocPath,
    /// Its inode number, by which it is known again.
    pub ino: u64,
    /// Where it is in the merged view, without a leading slash.
    pub prefix: DocPath,
    /// Where its slots are, if not in the transaction's own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<DocPath>,
}

/// All of `applied/`, locked.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Lock,
}

/// A transaction's directory.
#[derive(Debug)]
pub struct Transaction {
    /// Its id.
    pub id: String,
    /// Where it is now.
    pub dir: PathBuf,
}

/// A transaction that is done.
#[derive(Debug)]
pub struct Done {
    /// Its id.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What was done.
    pub journal: Journal,
}

impl Done {
    /// The moment at which all was done, by the clock of its file system: what changed later was changed by others.
    pub fn finished(&self) -> Result<(i64, i64)> {
        let file = self.dir.join("finished");
        let found = fs::metadata(&file).with_context(|| file.display().to_string())?;
        Ok((found.mtime(), found.mtime_nsec()))
    }

    /// When it was done, in seconds since 1970.
    pub fn created(&self) -> Result<i64> {
        Ok(state::moment(&self.journal.created)?.0)
    }
}

fn store_dir(root: &DataRoot) -> PathBuf {
    root.path().join("applied")
}

impl Store {
    /// Waits for the lock, and then mends what killed commands left.
    pub fn open(root: &DataRoot) -> Result<Self> {
        let dir = store_dir(root);
        state::make_private_dir(&dir).with_context(|| dir.display().to_string())?;
        let lock = Lock::exclusive(&dir.join(".lock"))?;
        let store = Store { dir, _lock: lock };
        store.mend(root)?;
        Ok(store)
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<Transaction> {
        let id = state::new_id()?;
        let dir = self.dir.join(format!("{NEW}{id}"));
        for made in [dir.clone(), dir.join("slots")] {
            state::make_private_dir(&made).with_context(|| format!("mkdir {}", made.display()))?;
        }
        Ok(Transaction { id, dir })
    }

    /// From here on a transaction is done.
    pub fn finish(&self, transaction: &Transaction) -> Result<()> {
        self.rename(&transaction.dir, &self.dir.join(&transaction.id))
    }

    /// From here on a transaction that is done is to be undone.
    pub fn begin_undo(&self, done: &Done) -> Result<Transaction> {
        let dir = self.dir.join(format!("{UNDO}{}", done.id));
        self.rename(&done.dir, &dir)?;
        Ok(Transaction { id: done.id.clone(), dir })
    }

    /// Deletes a transaction, with all that is in its slots.
    pub fn discard(&self, transaction: &Transaction, journal: Option<&Journal>) -> Result<()> {
        let gone = self.dir.join(format!("{GONE}{}", transaction.id));
        self.rename(&transaction.dir, &gone)?;
        delete(&gone, journal)
    }

    /// Deletes what a transaction that is done keeps: it cannot be undone any more.
    pub fn forget(&self, done: &Done) -> Result<()> {
        let transaction = Transaction { id: done.id.clone(), dir: done.dir.clone() };
        self.discard(&transaction, Some(&done.journal))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Makes all that was done in `applied/` durable.
    pub fn sync(&self) -> Result<()> {
        Ok(syncfs(open_dir(&self.dir)?)?)
    }

    /// Rolls back, finishes and deletes what dead processes left. What cannot be is reported, and left to the next command.
    fn mend(&self, root: &DataRoot) -> Result<()> {
        for name in leftovers(&self.dir)? {
            if let Err(error) = self.mend_one(root, &name) {
                let what = format!("what a killed 'apply' left in {}", self.dir.join(&name).display());
                exit::print_line(PROGRAM, &error.context(what));
            }
        }
        Ok(())
    }

    fn mend_one(&self, root: &DataRoot, name: &str) -> Result<()> {
        let dir = self.dir.join(name);
        let id = [NEW, UNDO, GONE].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or_default().to_owned();
        let transaction = Transaction { id, dir };
        let Some(journal) = read(&transaction.dir)? else {
            // Before there is a journal nothing is touched.
            return delete(&transaction.dir, None);
        };
        if name.starts_with(GONE) {
            return delete(&transaction.dir, Some(&journal));
        }
        let left = with_rights(&journal, || {
            let mut work = steps::Work::open(&transaction.dir, &journal)?;
            let keep: Option<Vec<usize>> = state::read_json(&transaction.dir.join("keep.json"))?;
            let left = work.backward(&journal, &keep.unwrap_or_default())?;
            work.sync()?;
            known::note_back(root, &transaction.dir, &journal)?;
            Ok(left)
        })?;
        if left.is_empty() {
            return self.discard(&transaction, Some(&journal));
        }
        exit::warn(
            PROGRAM,
            &format!(
                "an interrupted 'apply' was rolled back, but {} was changed meanwhile and is left as it is; what it was before is in {}",
                left.join(", "),
                self.dir.join(&transaction.id).display()
            ),
        );
        self.finish(&transaction)
    }

    /// All that is done and can be undone, the newest first.
    pub fn all(&self) -> Result<Vec<Done>> {
        all_in(&self.dir)
    }
}

/// All that is done in `applied/`, the newest first, looked at without the lock.
pub fn all(root: &DataRoot) -> Result<Vec<Done>> {
    all_in(&store_dir(root))
}

fn all_in(dir: &Path) -> Result<Vec<Done>> {
    let mut all = Vec::new();
    for name in names(dir)? {
        let Some(id) = name.to_str().filter(|name| state::check_name(name).is_ok()) else { continue };
        let dir = dir.join(id);
        if let Some(journal) = read(&dir)? {
            all.push(Done { id: id.to_owned(), dir, journal });
        }
    }
    all.sort_by(|a, b| b.journal.created.cmp(&a.journal.created));
    Ok(all)
}

/// Mends what killed commands left, where there is anything, and no living command is at it.
pub fn mend(root: &DataRoot) -> Result<()> {
    let dir = store_dir(root);
    if leftovers(&dir)?.is_empty() {
        return Ok(());
    }
    match Lock::try_exclusive(&dir.join(".lock"))? {
        Some(lock) => Store { dir, _lock: lock }.mend(root),
        None => Ok(()),
    }
}

impl Transaction {
    /// Writes the journal, beside the one that counts.
    pub fn write(&self, journal: &Journal) -> Result<()> {
        state::write_json(&self.dir.join("journal.next"), journal, Durability::Rebuildable)
    }

    /// Makes what was written last, and all else on its file system, durable, and then lets it count. So a journal that counts is
    /// whole, and is there before any name that is changed later on the same file system.
    pub fn sync(&self) -> Result<()> {
        let dir = open_dir(&self.dir)?;
        syncfs(&dir)?;
        renameat(&dir, c"journal.next", &dir, c"journal.json").context("rename the journal")
    }

    /// Notes the moment at which all was done: the time of an empty file, which is as durable as the name it has.
    pub fn note_moment(&self) -> Result<()> {
        let file = self.dir.join("finished");
        fs::File::create(&file).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Where the slots of a target are made: in the transaction's directory if that is on the same mount, else in a hidden
    /// directory as far up as there may be one. `near` is a directory, from the target on, that has all changes. Gives
    /// what the journal says of it.
    pub fn place(&self, target: &Path, prefix: &Path, near: &Path) -> Result<Place> {
        let ino = fs::metadata(target).with_context(|| target.display().to_string())?.ino();
        let mut place = Place { target: target.into(), ino, prefix: prefix.into(), slots: None };
        let wanted = mount_of(target)?;
        if mount_of(&self.dir)? == wanted {
            return Ok(place);
        }
        let near = target.join(near);
        let mut above: Vec<&Path> = near.ancestors().collect();
        above.reverse();
        let mut refusal = None;
        for dir in above {
            if !mount_of(dir).is_ok_and(|mount| mount == wanted) {
                continue;
            }
            let slots = dir.join(ABROAD).join(&self.id);
            match steps::keeping_times(dir, || make_abroad(dir, &self.id)) {
                Ok(()) => {
                    place.slots = Some(slots.into());
                    return Ok(place);
                }
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) => {
                Err(error).with_context(|| format!("{}: no place for new files beside it", target.display()))
            }
            None => bail!("{}: it is not there any more", target.display()),
        }
    }

    /// The directory of a place's slots, opened.
    pub fn slots(&self, place: &Place) -> Result<OwnedFd> {
        open_slots(&self.dir, place)
    }
}

/// Makes a directory for slots in `dir/.sheep-applied`. What stands there already must be ours alone: nobody else may
/// put anything in it.
fn make_abroad(dir: &Path, id: &str) -> io::Result<()> {
    let own = dir.join(ABROAD);
    match fs::DirBuilder::new().mode(0o700).create(&own) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let opened = openat(CWD, &own, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|e| io::Error::other(format!("{}: {e}", own.display())))?;
    if !is_ours_alone(&opened)? {
        return Err(io::Error::other(format!("{} belongs to somebody else; move it away", own.display())));
    }
    Ok(mkdirat(&opened, id, Mode::RWXU)?)
}

fn is_ours_alone(dir: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(dir)?;
    Ok(stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0)
}

/// Opens the slots of a place. Where others could have put another directory in their place it must be ours alone.
pub fn open_slots(dir: &Path, place: &Place) -> Result<OwnedFd> {
    let path = slots(dir, place);
    let opened = openat(CWD, &path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let opened = opened.with_context(|| path.display().to_string())?;
    if place.slots.is_some() && !is_ours_alone(&opened)? {
        bail!("{}: somebody else has replaced it", path.display());
    }
    Ok(opened)
}

/// Opens the target of a place, which must be the directory that it was.
pub fn open_target(place: &Place) -> Result<OwnedFd> {
    let opened = open_dir(&place.target)?;
    if fstat(&opened)?.st_ino != place.ino {
        bail!(
            "{}: it is another directory than before (is something mounted on it, or not mounted any more?)",
            place.target.display()
        );
    }
    Ok(opened)
}

fn slots(dir: &Path, place: &Place) -> PathBuf {
    place.slots.as_ref().map_or_else(|| dir.join("slots"), |slots| slots.0.clone())
}

/// The number of the mount that a directory is on (`STATX_MNT_ID`), and its file system.
fn mount_of(dir: &Path) -> Result<(u64, u32, u32)> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let found = statx(CWD, dir, AtFlags::empty(), StatxFlags::MNT_ID).with_context(|| dir.display().to_string())?;
    Ok((found.stx_mnt_id, found.stx_dev_major, found.stx_dev_minor))
}

/// The journal in a transaction's directory; `None` where there is none.
fn read(dir: &Path) -> Result<Option<Journal>> {
    let file = dir.join("journal.json");
    let journal: Option<Journal> = state::read_json(&file)?;
    match journal {
        Some(journal) if journal.version != VERSION => {
            bail!("{}: version {} is not known to this program", file.display(), journal.version)
        }
        journal => Ok(journal),
    }
}

/// A journal in which nothing stands yet.
pub fn journal(overlay: &crate::doc::Overlay) -> Journal {
    Journal {
        version: VERSION,
        overlay: overlay.id.clone(),
        created: state::now(),
        changes: 0,
        own: false,
        user_namespace: overlay.user_namespace.clone(),
        places: Vec::new(),
        steps: Vec::new(),
        directories: Vec::new(),
    }
}

/// Does `act` with the rights that a transaction took.
pub fn with_rights<T: Serialize + serde::de::DeserializeOwned>(
    journal: &Journal,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match &journal.user_namespace {
        Some(namespace) if !rustix::process::geteuid().is_root() => {
            child::run(Namespace::New(namespace, false), After::End, act).map(|(done, _)| done)
        }
        _ => act(),
    }
}

/// Deletes a transaction's directory and its slots.
fn delete(dir: &Path, journal: Option<&Journal>) -> Result<()> {
    let act = || -> Result<()> {
        for place in journal.iter().flat_map(|journal| &journal.places) {
            if let Some(slots) = &place.slots {
                delete_abroad(slots)?;
            }
        }
        // The journal goes last: it says what else there is.
        remove::tree(dir, c"slots")?;
        remove_dir(dir)
    };
    match journal {
        Some(journal) => with_rights(journal, act),
        None => act(),
    }
}

fn delete_abroad(slots: &Path) -> Result<()> {
    let (Some(own), Some(name)) = (slots.parent(), slots.file_name()) else { return Ok(()) };
    if !own.ends_with(ABROAD) || fs::symlink_metadata(own).is_err() {
        return Ok(());
    }
    remove::tree(own, &CString::new(name.as_bytes())?)?;
    // Others' slots may still be in it.
    if let Some(above) = own.parent() {
        let _ = steps::keeping_times(above, || fs::remove_dir(own));
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    remove::tree(parent, &CString::new(name.as_bytes())?)
}

/// The names in `applied/` of what is neither done nor a lock.
fn leftovers(dir: &Path) -> Result<Vec<String>> {
    let begins = |name: &String| [NEW, UNDO, GONE].iter().any(|prefix| name.starts_with(prefix));
    Ok(names(dir)?.into_iter().filter_map(|name| name.into_string().ok()).filter(begins).collect())
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry.with_context(|| dir.display().to_string())?.file_name())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| dir.display().to_string()),
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory for reading.
pub fn open_dir(dir: &Path) -> Result<OwnedFd> {
    openat(CWD, dir, DIRECTORY, Mode::empty()).with_context(|| dir.display().to_string())
}
