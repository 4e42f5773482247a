//! Making what is to be put at its place: in the slots, with all attributes, and durable before the first name changes.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Stat, fstat};

use super::conflict::Judge;
use super::plan::Plan;
use super::target::Target;
use crate::applied::steps::{Attributes, Directory, Step, Times, slot_name, stat};
use crate::applied::{Journal, Transaction};
use crate::carry::{Carrier, attributes};
use crate::diff::escaped;
use crate::doc::DocPath;
use crate::inode::Inode;
use crate::paths::{join, split};
use crate::shown::Shown;
use crate::stack::open_within;

/// What a file is to have in the place of what the overlay shows: of files of which only some of the changes are wanted.
pub type Instead = std::collections::HashMap<Vec<u8>, Vec<u8>>;

/// Makes all that a plan needs, and completes the journal. Gives what was at each step's path.
pub fn make(
    plan: &Plan,
    judge: &Judge<'_>,
    target: &Target,
    shown: &Shown,
    instead: &Instead,
    transaction: &Transaction,
    journal: &mut Journal,
) -> Result<Vec<Option<Stat>>> {
    let mut numbers = vec![None; target.places().len()];
    for (number, place) in target.places().iter().enumerate() {
        let inside = |path: &[u8]| {
            let (of, inside) = target.place_of(path);
            (of == number).then(|| inside.to_vec())
        };
        let touched: Vec<Vec<u8>> = plan.directories.keys().filter_map(|path| inside(path)).collect();
        if touched.is_empty() {
            continue;
        }
        let near = common(&touched);
        numbers[number] = Some(journal.places.len());
        journal.places.push(transaction.place(&place.path, path_of(&place.prefix), path_of(&near))?);
        if journal.places.last().is_some_and(|place| place.slots.is_some()) {
            // What is left elsewhere must be known.
            transaction.write(journal)?;
            transaction.sync()?;
        }
    }
    let number_of = |path: &[u8]| -> Result<(usize, DocPath)> {
        let (place, inside) = target.place_of(path);
        let number = numbers[place].context("a change in no place")?;
        Ok((number, path_of(inside).into()))
    };
    let slots = journal.places.iter().map(|place| transaction.slots(place)).collect::<Result<Vec<_>>>()?;
    let mut carriers: Vec<Carrier<'_>> = slots.iter().map(|slots| Carrier::new(slots.as_fd())).collect();
    for (number, planned) in plan.steps.iter().enumerate() {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let (place, path) = number_of(&planned.path)?;
        fill(planned, number, slots[place].as_fd(), &mut carriers[place], shown, instead)?;
        let new = stat(slots[place].as_fd(), &slot_name(number))?;
        let (old_times, new_times) =
            (planned.old.as_ref().and_then(Times::of_directory), new.as_ref().and_then(Times::of_directory));
        let (old, overruled) = (planned.old.map(|stat| stat.st_ino), planned.overruled);
        journal.steps.push(Step {
            place,
            path,
            old,
            new: new.map(|stat| stat.st_ino),
            old_times,
            new_times,
            overruled,
        });
    }
    for (path, whole) in &plan.directories {
        let (place, inside) = number_of(path)?;
        let (old, new, anothers) =
            directory(judge, target, shown, path, *whole).with_context(|| format!("/{}", escaped(path)))?;
        journal.directories.push(Directory { place, path: inside, old, new, anothers });
    }
    transaction.write(journal)?;
    Ok(plan.steps.iter().map(|planned| planned.old).collect())
}

/// The attributes of a directory that stays: now, and as they are to be; and whether somebody else has changed it.
fn directory(
    judge: &Judge<'_>,
    target: &Target,
    shown: &Shown,
    path: &[u8],
    whole: bool,
) -> Result<(Attributes, Attributes, bool)> {
    let dir = target.open(path)?;
    let old = Attributes::of(dir.as_fd())?;
    let mut new = old.clone();
    let is_anothers = judge.is_anothers(path, &fstat(&dir)?);
    match shown.entry(path)? {
        Some(entry) if FileType::from_raw_mode(entry.stat.st_mode) == FileType::Directory => {
            let dir = open_within(entry.dir.as_fd(), entry.name.to_bytes())?;
            let wanted = Attributes::of(dir.as_fd())?;
            if whole {
                new = wanted.clone();
            }
            new.times = wanted.times;
        }
        _ => {}
    }
    // What others did in it counts too.
    if is_anothers {
        let now = jiff::Timestamp::now();
        new.times.modified = (now.as_second(), u64::from(now.subsec_nanosecond().unsigned_abs()));
    }
    Ok((old, new, is_anothers))
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Makes what one slot is to hold.
fn fill(
    planned: &super::plan::Planned,
    number: usize,
    slots: BorrowedFd<'_>,
    carrier: &mut Carrier<'_>,
    shown: &Shown,
    instead: &Instead,
) -> Result<()> {
    let slot = slot_name(number);
    let mut directories = Vec::new();
    for path in &planned.contents {
        let describe = || format!("/{}", escaped(path));
        let entry = shown.must(path)?;
        let inside = path.strip_prefix(&planned.path[..]).unwrap_or_default();
        let place = [slot.to_bytes(), inside].concat();
        let (above, name) = split(&place);
        let (dir, name) = (open_within(slots, above)?, CString::new(name)?);
        match instead.get(path) {
            Some(content) => carrier.put_content(&entry, dir.as_fd(), &name, content),
            None => carrier.put(&entry, dir.as_fd(), &name, &place),
        }
        .with_context(describe)?;
        if FileType::from_raw_mode(entry.stat.st_mode) == FileType::Directory {
            directories.push((place, entry));
        }
    }
    let mut names = Vec::new();
    // What is in a directory sets its times: the deepest first.
    for (place, entry) in directories.into_iter().rev() {
        let made: OwnedFd = open_within(slots, &place)?;
        let from = open_within(entry.dir.as_fd(), entry.name.to_bytes())?;
        attributes(Inode::Open(from.as_fd()), Inode::Open(made.as_fd()), &entry.stat, &mut names)
            .with_context(|| format!("/{}", escaped(&place)))?;
    }
    Ok(())
}

/// The deepest directory that all paths are in, or are.
fn common(paths: &[Vec<u8>]) -> Vec<u8> {
    let Some((first, rest)) = paths.split_first() else { return Vec::new() };
    let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut common = parts(first);
    for path in rest {
        let same = common.iter().zip(parts(path)).take_while(|(a, b)| **a == *b).count();
        common.truncate(same);
    }
    common.iter().fold(Vec::new(), |path, part| join(&path, part))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_directory_that_all_are_in() {
        let table: [(&[&str], &str); 4] =
            [(&["a/b", "a/c"], "a"), (&["a/b/c"], "a/b/c"), (&["a/b", "ab"], ""), (&["", "a"], "")];
        for (paths, want) in table {
            let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
            assert_eq!(super::common(&paths), want.as_bytes(), "{paths:?}");
        }
    }
}
