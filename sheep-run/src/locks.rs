//! The two locks of a container (record.rs tells what they mean).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::record::no_such_container;

/// How often a lock that cannot be waited for with a time limit is tried again.
const POLL: Duration = Duration::from_millis(4);

/// Makes the lock of a container that is being made, and takes it.
pub fn make(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = open(&path, true).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    leave_exit_code(&file, None);
    Ok(file)
}

/// The lock of a container, held while a command changes it. Waits for whoever has it. Errors with not found (3) when
/// the container is gone, also when it went while we waited.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    loop {
        let file = open(&path, false).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no_such_container(),
            _ => anyhow::Error::new(error).context(path.display().to_string()),
        })?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        // Removing renames the directory first, so the path says whether this is still the container's lock.
        match fs::metadata(&path) {
            Ok(now) if is_same(&file, &now)? => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_such_container()),
            Err(error) => return Err(error).context(path.display().to_string()),
        }
    }
}

/// The lock of a container if nobody has it now.
pub fn try_lock(dir: &Path) -> Option<File> {
    let path = dir.join("lock");
    let file = open(&path, false).ok()?;
    file.try_lock().ok()?;
    let now = fs::metadata(&path).ok()?;
    is_same(&file, &now).ok()?.then_some(file)
}

fn is_same(file: &File, other: &fs::Metadata) -> Result<bool> {
    let own = file.metadata().context("lock")?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Becomes the container's supervisor. The siblings started from here on inherit the lock, so that it is held until
/// the last of them has ended, even if this process is killed. The container's own lock must be held.
pub fn supervise(dir: &Path) -> Result<File> {
    let path = dir.join("supervisor");
    let file = open(&path, true).with_context(|| path.display().to_string())?;
    // A reader may be trying the lock at this moment; it lets go at once.
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    fcntl_setfd(file.as_fd(), FdFlags::empty()).context("supervisor")?;
    Ok(file)
}

/// Whether and how a container is looked after.
#[derive(Debug)]
pub enum Supervision {
    /// Nothing of it is at work and nothing is left to do.
    Settled,
    /// Somebody is there; the file can be waited on with [`until_unsupervised`].
    Supervised(File),
    /// Its supervisor died, or the machine went down: [`crate::repair`] has to look.
    Abandoned,
}

/// Asks whether somebody looks after the container. The answer holds for as long as the container's lock is held.
pub fn supervision(dir: &Path) -> Result<Supervision> {
    let path = dir.join("supervisor");
    let file = match open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Supervision::Settled),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Supervision::Abandoned),
        Err(TryLockError::WouldBlock) => Ok(Supervision::Supervised(file)),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Waits until the supervisor has gone, at most until `deadline`. Gives whether it has.
pub fn until_unsupervised(file: &File, deadline: Instant) -> bool {
    loop {
        if file.try_lock_shared().is_ok() {
            let _ = file.unlock();
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL);
    }
}

/// Writes a container's exit code into its lock file, or blanks it there. It is found there after the directory of a
/// container with `--rm` is gone, by a `wait` that has the file open; and after a disk was too full for the record.
pub fn leave_exit_code(mut lock: &File, code: Option<i32>) {
    let text = code.map_or(String::new(), |code| code.to_string());
    // Always as long as it was made, so that it takes no room that is not there. What else might fail here is not worth
    // losing the container's end for.
    let _ = lock.seek(SeekFrom::Start(0)).and_then(|_| lock.write_all(format!("{text:<15}\n").as_bytes()));
}

/// The exit code in a lock file: `None` where there is none.
pub fn left_exit_code(mut lock: &File) -> Option<i32> {
    let mut text = String::new();
    lock.seek(SeekFrom::Start(0)).and_then(|_| lock.read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Claim, Wanted, claim, remove_dir, tests::home};
    use sheep_overlay::exit;

    #[test]
    fn a_supervisor_is_seen_until_it_lets_go() {
        let (home, scratch) = home();
        let Claim { record, lock: held, supervisor } = claim(&home, Wanted::default(), |_| Ok(())).unwrap();
        assert!(matches!(supervision(&record.dir).unwrap(), Supervision::Supervised(_)));
        assert!(try_lock(&record.dir).is_none());
        drop(supervisor);
        drop(held);
        // A child of another test may have the descriptor for a moment, between its fork and its exec.
        while !matches!(supervision(&record.dir).unwrap(), Supervision::Abandoned) {
            sleep(POLL);
        }
        let held = lock(&record.dir).unwrap();
        leave_exit_code(&held, Some(7));
        remove_dir(&record.dir).unwrap();
        assert_eq!(left_exit_code(&held), Some(7), "it outlives the directory");
        assert!(matches!(supervision(&record.dir).unwrap(), Supervision::Settled));
        assert_eq!(exit::kind(&lock(&record.dir).unwrap_err()), Some(exit::Kind::NotFound));
        fs::remove_dir_all(scratch).unwrap();
    }
}
