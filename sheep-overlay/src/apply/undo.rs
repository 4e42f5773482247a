//! `apply --undo`: what an apply put away is put back; `apply --list`: what can be undone.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Stat, fstat};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::conflict::{Moment, Theirs, any_below};
use crate::applied::known;
use crate::applied::steps::{Step, Work, stat};
use crate::applied::{self, Done, Journal, Store, Transaction};
use crate::diff::{escaped, human};
use crate::doc::{DocPath, Document, name_to_json, write_out};
use crate::inode::changed;
use crate::shown::Entry;
use crate::state::{self, DataRoot, Durability};
use crate::{cli, du, exit, find};

/// What was undone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    /// The ids of what was undone.
    pub undone: Vec<String>,
    /// The directories that were changed.
    pub to: Vec<DocPath>,
    /// How many paths were left as they are.
    pub skipped: usize,
}

/// The file for what a later undo put back.
const AGAIN: &str = "again.json";

/// A step that somebody else's change stands against.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Against {
    step: usize,
    path: DocPath,
    theirs: String,
}

/// Undoes, and prints the document.
pub fn run(root: &DataRoot, args: &cli::Apply) -> Result<()> {
    let mut document = Document::default();
    document.set("apply", &undo(root, args)?)?;
    document.print("apply", args.print.as_deref())
}

/// Undoes the last applies of an overlay, the newest first, or the one of an id, or the last of all.
pub fn undo(root: &DataRoot, args: &cli::Apply) -> Result<Undone> {
    let count = args.undo.unwrap_or(1);
    if count == 0 {
        return Err(exit::usage("--undo=0: there is nothing to be undone"));
    }
    let store = Store::open(root)?;
    let all = store.all()?;
    let mut chosen = choose(root, args, all)?;
    if chosen.len() > count {
        chosen.truncate(count);
    }
    let mut report = Undone { undone: Vec::new(), to: Vec::new(), skipped: 0 };
    for done in chosen {
        let skipped = one(root, &store, &done, args).with_context(|| format!("undo {}", done.id))?;
        report.skipped += skipped;
        report.to.extend(done.journal.places.iter().map(|place| place.target.clone()));
        report.undone.push(done.id);
    }
    report.to.dedup();
    Ok(report)
}

fn choose(root: &DataRoot, args: &cli::Apply, all: Vec<Done>) -> Result<Vec<Done>> {
    let Some(name) = &args.overlay else {
        // Without a name, the last one of all.
        let last = all.into_iter().next().ok_or_else(|| exit::not_found("nothing was applied that could be undone"))?;
        return Ok(vec![last]);
    };
    let text = name.to_string_lossy().into_owned();
    if let Some(at) = all.iter().position(|done| done.id == text) {
        return Ok(all.into_iter().nth(at).into_iter().collect());
    }
    // The overlay may have gone; its name is known still.
    let id = if all.iter().any(|done| done.journal.overlay == text) { text } else { find::by_name(root, name)? };
    let of_it: Vec<Done> = all.into_iter().filter(|done| done.journal.overlay == id).collect();
    if of_it.is_empty() {
        return Err(exit::not_found(format!("{id}: nothing of it was applied that could be undone")));
    }
    Ok(of_it)
}

/// Undoes one; gives how many paths were left as they are.
fn one(root: &DataRoot, store: &Store, done: &Done, args: &cli::Apply) -> Result<usize> {
    let journal = &done.journal;
    let finished = done.finished()?;
    let again: HashSet<(u64, Moment)> = put_back(&done.dir).into_iter().collect();
    let against = applied::with_rights(journal, || judge(done, finished, &again))?;
    if !against.is_empty() && !args.ours && !args.theirs {
        let mut out = Vec::new();
        for one in &against {
            let conflict = json!({ "path": name_to_json(one.path.as_os_str()), "ours": "undo", "theirs": one.theirs });
            out.extend(json!({ "conflict": conflict }).to_string().into_bytes());
            out.push(b'\n');
        }
        write_out(&out)?;
        let noun = if against.len() == 1 { "conflict" } else { "conflicts" };
        return Err(anyhow!(
            "{} {noun}, nothing was changed; --ours puts back what was there before all the same, --theirs leaves these as they are",
            against.len()
        ));
    }
    // What is to stay as it is must be known to who finishes this after a kill.
    let keep: Vec<usize> = against.iter().map(|one| one.step).collect();
    let stays: &[usize] = if args.theirs { &keep } else { &[] };
    state::write_json(&done.dir.join("keep.json"), &stays, Durability::Rebuildable)?;
    store.sync()?;
    let transaction = store.begin_undo(done)?;
    if journal.places.iter().any(|place| place.slots.is_some()) {
        store.sync()?;
    }
    let back = |force: &[usize]| -> Result<()> {
        let mut work = Work::open(&transaction.dir, journal)?;
        for number in force {
            work.force_back(&journal.steps[*number], *number)?;
        }
        work.backward(journal, &keep)?;
        work.sync()
    };
    let force: &[usize] = if args.ours { &keep } else { &[] };
    applied::with_rights(journal, || back(force))?;
    known::note_back(root, &transaction.dir, journal)?;
    tell_earlier(store, &transaction, journal)?;
    store.discard(&transaction, Some(journal))?;
    Ok(if args.ours { 0 } else { keep.len() })
}

/// What later undos put back, in the directory of a transaction. It is not synced: where it is lost with the power, there are
/// conflicts that are none.
fn put_back(dir: &Path) -> Vec<(u64, Moment)> {
    state::read_json(&dir.join(AGAIN)).ok().flatten().unwrap_or_default()
}

/// What one undo puts back, and the directories it does that in, have a new `ctime`. To the undo of an earlier transaction
/// that is to be no change of somebody else.
fn tell_earlier(store: &Store, transaction: &Transaction, journal: &Journal) -> Result<()> {
    let earlier = store.all()?;
    if earlier.is_empty() {
        return Ok(());
    }
    let mut ours = Vec::new();
    let mut work = Work::open(&transaction.dir, journal)?;
    for (number, step) in journal.steps.iter().enumerate() {
        let Ok((at, _, dir, name)) = work.find(step, number) else { continue };
        if let Some(found) = stat(dir.as_fd(), &name)?.filter(|_| at == step.old) {
            ours.push((found.st_ino, changed(&found)));
        }
    }
    for directory in &journal.directories {
        if let Ok(dir) = work.dir(directory.place, directory.path.0.as_os_str().as_bytes()) {
            let found = fstat(&dir)?;
            ours.push((found.st_ino, changed(&found)));
        }
    }
    for earlier in earlier {
        let file = earlier.dir.join(AGAIN);
        let all: Vec<_> = put_back(&earlier.dir).into_iter().chain(ours.iter().copied()).collect();
        state::write_json(&file, &all, Durability::Rebuildable)?;
    }
    Ok(())
}

/// What was changed since by somebody else.
fn judge(done: &Done, finished: Moment, again: &HashSet<(u64, Moment)>) -> Result<Vec<Against>> {
    let mut work = Work::open(&done.dir, &done.journal)?;
    let mut found = Vec::new();
    for (number, step) in done.journal.steps.iter().enumerate() {
        let path = step.path.0.as_os_str().as_bytes();
        let later = |_: &[u8], stat: &Stat| changed(stat) > finished && !again.contains(&(stat.st_ino, changed(stat)));
        if let Some(theirs) = against(&mut work, step, number, &later).with_context(|| format!("/{}", escaped(path)))? {
            let shown = [b"/", path].concat();
            let path = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&shown)).into();
            found.push(Against { step: number, path, theirs: theirs.name().to_owned() });
        }
    }
    Ok(found)
}

fn against(
    work: &mut Work,
    step: &Step,
    number: usize,
    later: &dyn Fn(&[u8], &Stat) -> bool,
) -> Result<Option<Theirs>> {
    let (at, slot, dir, name) = match work.find(step, number) {
        Ok(found) => found,
        Err(error) if error.downcast_ref::<rustix::io::Errno>().is_some() => return Ok(Some(Theirs::NoDirectory)),
        Err(error) => return Err(error),
    };
    // A part that was undone before.
    if slot == step.new {
        return Ok(None);
    }
    if at != step.new {
        return Ok(Some(match (at, step.new) {
            (None, _) => Theirs::Deleted,
            (Some(_), None) => Theirs::Added,
            _ => Theirs::Changed,
        }));
    }
    let Some(found) = stat(dir.as_fd(), &name)? else { return Ok(None) };
    let entry = Entry { dir, name, stat: found };
    Ok(any_below(b"", &entry, later)?.then_some(Theirs::Changed))
}

/// Lists what can be undone, the newest first.
pub fn list(root: &DataRoot, args: &cli::Apply) -> Result<()> {
    let wanted = args.overlay.as_ref().map(|name| name.to_string_lossy().into_owned());
    let is_wanted =
        |done: &Done| wanted.as_ref().is_none_or(|wanted| *wanted == done.journal.overlay || *wanted == done.id);
    let mut out = String::new();
    if !args.json {
        out.push_str("ID            OVERLAY       APPLIED               CHANGES        KEPT  TO\n");
    }
    for done in applied::all(root)?.iter().filter(|done| is_wanted(done)) {
        let journal = &done.journal;
        let kept = kept_by(done)?;
        let to: Vec<&DocPath> = journal.places.iter().map(|place| &place.target).collect();
        if args.json {
            let apply = json!({
                "id": done.id, "overlay": journal.overlay, "created": journal.created, "changes": journal.changes,
                "bytes": kept, "to": to,
            });
            out.push_str(&json!({ "apply": apply }).to_string());
        } else {
            let to: Vec<String> = to.iter().map(|to| escaped(to.as_os_str().as_bytes())).collect();
            let when = journal.created.split('.').next().unwrap_or_default();
            out.push_str(&format!(
                "{:<12}  {:<12}  {when:<20}  {:>7}  {:>10}  {}",
                done.id,
                journal.overlay,
                journal.changes,
                human(kept),
                to.join(" ")
            ));
        }
        out.push('\n');
    }
    write_out(out.as_bytes())
}

/// How many bytes on disk the slots of a transaction take.
pub fn kept_by(done: &Done) -> Result<u64> {
    applied::with_rights(&done.journal, || {
        let mut sum = du::of_tree(&done.dir)?;
        for place in &done.journal.places {
            if let Some(slots) = place.slots.as_ref().filter(|slots| slots.exists()) {
                sum += du::of_tree(slots)?;
            }
        }
        Ok(sum)
    })
}
