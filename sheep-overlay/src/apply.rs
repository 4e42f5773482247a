//! `apply`: the changes of an overlay, all or some, made to the directory that they were made over, or to another one.
//!
//! Either all of them are made or none, whatever fails and whenever the power goes (see [`crate::applied`]); what stands
//! against them is found before anything is touched; and what was there before is kept, to be put back with `--undo`.

mod ask;
mod conflict;
mod plan;
mod stage;
mod target;
mod undo;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::applied::known::{self, Known};
use crate::applied::steps::{Work, stat};
use crate::applied::{self, Journal, Store, Transaction};
use crate::diff::{self, Change};
use crate::doc::{Document, Overlay, name_to_json, write_out};
use crate::paths::{above, bare, is_below};
use crate::record::{self, State};
use crate::shown::Shown;
use crate::state::DataRoot;
use crate::{PROGRAM, access, cli, exit, find, rotate, sys};
use conflict::{Judge, Theirs};
use plan::Plan;
use stage::Instead;
use target::{Target, There};

pub use undo::{kept_by, list, undo};

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The id of the transaction; none where nothing was to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When, RFC 3339 UTC.
    pub created: String,
    /// The directories that were changed.
    pub to: Vec<crate::doc::DocPath>,
    /// How many changes were made.
    pub changes: usize,
    /// How many were not, because of conflicts.
    pub skipped: usize,
}

/// A change, and what stands against it.
struct Judged<'a> {
    change: &'a Change,
    against: Option<Theirs>,
}

/// Applies, undoes, or lists what was applied.
pub fn run(root: &DataRoot, args: &cli::Apply) -> Result<()> {
    if args.list {
        return list(root, args);
    }
    sys::catch_interrupts()?;
    let done = match args.undo {
        Some(_) => undo::run(root, args),
        None => apply(root, args),
    };
    // All is as it was: the signal may end the program now.
    done.inspect_err(|_| sys::die_of_interrupt())
}

fn apply(root: &DataRoot, args: &cli::Apply) -> Result<()> {
    let name = args.overlay.as_ref().ok_or_else(|| exit::usage("say which overlay's changes are to be applied"))?;
    let id = find::by_name(root, name)?;
    let dir = record::dir(root, &id);
    record::reap(root)?;
    let _lock = record::lock(root, &id)?.ok_or_else(|| find::no_such(&id))?;
    let overlay = rotate::settled(&dir, record::read(&dir)?.ok_or_else(|| find::no_such(&id))?)?;
    if crate::view::from_here(&overlay, &dir)?.lower != overlay.lower {
        return Err(exit::usage(format!("{id}: this is inside of the overlay; apply its changes from outside")));
    }
    let store = Store::open(root)?;
    let report = access::with(&overlay, |overlay| work(root, &store, overlay, &dir, args))
        .with_context(|| format!("apply {id}"))?;
    let Some(report) = report else { return Ok(()) };
    let mut document = Document::default();
    document.set("overlay", &record::as_seen(overlay.clone(), record::state(&overlay)?))?;
    document.set("apply", &report)?;
    document.print("apply", args.print.as_deref())
}

/// Does all of it, with the rights that it takes (see [`access::with`]). `dir` is the overlay's own directory. Nothing is
/// given where only a look was asked for.
pub fn work(
    root: &DataRoot,
    store: &Store,
    overlay: &Overlay,
    dir: &Path,
    args: &cli::Apply,
) -> Result<Option<Report>> {
    let target = match &args.to {
        Some(to) => Target::directory(root, to)?,
        None => Target::of_lowers(root, overlay)?,
    };
    let changes = diff::changes(overlay)?;
    let chosen = match &args.paths_from {
        Some(file) => listed(&changes, file)?,
        None => choose(&changes, &args.paths, overlay, &target)?,
    };
    let shown = Shown::open(overlay)?;
    let mut known = Known::read(dir);
    let judges = Judge::new(overlay, dir, &target, &shown, &known)?;
    let judged = judge(&chosen, &judges)?;
    if args.dry_run {
        return preview(&judged, args).map(|()| None);
    }
    let wanted = resolve(&judged, args)?;
    let (wanted, instead) =
        if args.interactive { ask::choose(&wanted, &shown, &target)? } else { (wanted, Instead::new()) };
    let overruled: HashSet<&Path> =
        judged.iter().filter(|one| one.against.is_some()).map(|one| one.change.path.as_path()).collect();
    let mut plan = Plan::new(&wanted, &overruled, &target)?;
    if args.paths.is_empty() && args.paths_from.is_none() && !args.interactive {
        for (path, stat) in shown.directories()? {
            if !plan.directories.contains_key(&path) && !plan.is_made(&path) && judges.only_times(&path, &stat)? {
                plan.directories.insert(path, false);
            }
        }
    }
    warn_of_others(root, overlay, &plan, &target)?;
    let mut journal = applied::journal(overlay);
    journal.changes = wanted.len();
    journal.own = target.own;
    let report = |id| Report {
        id,
        created: journal.created.clone(),
        to: target.places().iter().map(|place| place.path.clone().into()).collect(),
        changes: wanted.len(),
        skipped: judged.len() - wanted.len(),
    };
    if plan.steps.is_empty() && plan.directories.is_empty() {
        return Ok(Some(report(None)));
    }
    let transaction = store.begin()?;
    let id = transaction.id.clone();
    let report = report(Some(id));
    let done = stage::make(&plan, &judges, &target, &shown, &instead, &transaction, &mut journal)
        .and_then(|seen| commit(store, &transaction, &journal, &seen));
    if let Err(error) = done {
        give_up(root, store, &transaction, &journal);
        return Err(error);
    }
    if target.own {
        // It is applied: an error here would say that it is not.
        if let Err(error) = note(&plan, &journal, &target, &mut known).and_then(|()| known.write(dir)) {
            let what =
                "all is applied, but that it was could not be noted, and later applies may see conflicts that are none";
            exit::warn(PROGRAM, &format!("apply: {what}: {error:#}"));
        }
    }
    Ok(Some(report))
}

/// The changes that are asked for.
fn choose<'a>(changes: &'a [Change], paths: &[PathBuf], overlay: &Overlay, target: &Target) -> Result<Vec<&'a Change>> {
    let mut chosen = vec![paths.is_empty(); changes.len()];
    for path in paths {
        let wanted = bare(&from_top(path, overlay, target)?);
        let mut any = false;
        for (chosen, change) in chosen.iter_mut().zip(changes) {
            let is_it = |path: &Path| {
                let path = bare(path);
                path == wanted || is_below(&path, &wanted)
            };
            if is_it(&change.path) || change.from.as_deref().is_some_and(is_it) {
                (*chosen, any) = (true, true);
            }
        }
        if !any {
            return Err(exit::not_found(format!("{}: nothing changed there", path.display())));
        }
    }
    with_directories(changes, &mut chosen);
    Ok(changes.iter().zip(chosen).filter_map(|(change, chosen)| chosen.then_some(change)).collect())
}

/// The changes of exactly the paths in a file, each ended by a NUL.
fn listed<'a>(changes: &'a [Change], file: &Path) -> Result<Vec<&'a Change>> {
    let name = file.display();
    let mut text = Vec::new();
    match file.to_str() {
        Some("-") => std::io::stdin().lock().read_to_end(&mut text).context("stdin")?,
        _ => std::fs::File::open(file)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => exit::not_found(format!("--paths-from {name}: no such file")),
                _ => anyhow::Error::new(e).context(format!("--paths-from {name}")),
            })?
            .read_to_end(&mut text)
            .with_context(|| name.to_string())?,
    };
    let wanted: HashSet<&[u8]> = text.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    let mut chosen: Vec<bool> =
        changes.iter().map(|change| wanted.contains(change.path.as_os_str().as_bytes())).collect();
    let found = chosen.iter().filter(|chosen| **chosen).count();
    if found < wanted.len() {
        let there: HashSet<&[u8]> = changes.iter().map(|change| change.path.as_os_str().as_bytes()).collect();
        let missing = wanted.iter().find(|path| !there.contains(**path)).map(|path| diff::escaped(path));
        return Err(exit::not_found(format!("{}: nothing changed there", missing.unwrap_or_default())));
    }
    with_directories(changes, &mut chosen);
    Ok(changes.iter().zip(chosen).filter_map(|(change, chosen)| chosen.then_some(change)).collect())
}

/// What is in a directory that is new goes with the directory.
fn with_directories(changes: &[Change], chosen: &mut [bool]) {
    let made = changes.iter().enumerate().filter(|(_, change)| change.makes_directory());
    let made: HashMap<Vec<u8>, usize> = made.map(|(at, change)| (bare(&change.path), at)).collect();
    for (at, change) in changes.iter().enumerate() {
        if chosen[at] {
            above(&bare(&change.path)).filter_map(|dir| made.get(dir)).for_each(|dir| chosen[*dir] = true);
        }
    }
}

/// A path as `diff` prints it; one in the merged directory, or in the target, is understood too.
fn from_top(path: &Path, overlay: &Overlay, target: &Target) -> Result<PathBuf> {
    let plain: PathBuf = path.components().filter(|part| *part != std::path::Component::CurDir).collect();
    if plain.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(exit::usage(format!("{}: write the path without '..'", path.display())));
    }
    if let Ok(inside) = plain.strip_prefix(&*overlay.merged) {
        return Ok(Path::new("/").join(inside));
    }
    for place in target.places().iter().rev().filter(|place| place.path != Path::new("/")) {
        if let Ok(inside) = plain.strip_prefix(&place.path) {
            return Ok(Path::new("/").join(std::ffi::OsStr::from_bytes(&place.prefix)).join(inside));
        }
    }
    Ok(Path::new("/").join(plain))
}

/// What stands against each change. Below a directory that is to be new nothing can.
fn judge<'a>(changes: &[&'a Change], judge: &Judge<'_>) -> Result<Vec<Judged<'a>>> {
    let mut judged: Vec<Judged<'a>> = Vec::with_capacity(changes.len());
    let mut fresh: HashSet<Vec<u8>> = HashSet::new();
    let mut closed: HashMap<Vec<u8>, Theirs> = HashMap::new();
    for change in changes {
        let path = bare(&change.path);
        let against = if above(&path).any(|dir| fresh.contains(dir)) {
            None
        } else if let Some(theirs) = above(&path).find_map(|dir| closed.get(dir)) {
            Some(*theirs)
        } else {
            let against = judge.against(change).with_context(|| change.path.display().to_string())?;
            match against {
                Some(theirs) if change.makes_directory() => drop(closed.insert(path.clone(), theirs)),
                None if change.makes_directory() && judge.is_free(&path)? => drop(fresh.insert(path.clone())),
                _ => {}
            }
            against
        };
        judged.push(Judged { change, against });
    }
    Ok(judged)
}

/// Prints what would be done, and what stands against it.
fn preview(judged: &[Judged<'_>], args: &cli::Apply) -> Result<()> {
    let mut out = Vec::new();
    for one in judged {
        let text = match (one.against, args.json) {
            (None, false) => diff::line(one.change),
            (None, true) => diff::document(one.change).to_string(),
            (Some(theirs), false) => format!("C {} ({})", &diff::line(one.change)[2..], theirs.name()),
            (Some(theirs), true) => conflict_document(one.change, theirs).to_string(),
        };
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
    }
    write_out(&out)?;
    refusal(judged, args).map_or(Ok(()), Err)
}

fn conflict_document(change: &Change, theirs: Theirs) -> Value {
    let mut conflict = json!({
        "path": name_to_json(change.path.as_os_str()),
        "ours": change.kind.name(),
        "theirs": theirs.name(),
    });
    if let Some(from) = &change.from {
        conflict["from"] = name_to_json(from.as_os_str());
    }
    json!({ "conflict": conflict })
}

/// Whether a conflict is not decided by the options.
fn is_open(theirs: Theirs, args: &cli::Apply) -> bool {
    !(args.theirs || args.ours && theirs.can_be_overruled())
}

/// The error for conflicts that nobody decided.
fn refusal(judged: &[Judged<'_>], args: &cli::Apply) -> Option<anyhow::Error> {
    let open: Vec<Theirs> =
        judged.iter().filter_map(|one| one.against).filter(|theirs| is_open(*theirs, args)).collect();
    let advice = match open.iter().any(|theirs| theirs.can_be_overruled()) {
        true => "--ours takes the overlay's side, --theirs leaves these as they are",
        false => "--theirs leaves these as they are",
    };
    let noun = if open.len() == 1 { "conflict" } else { "conflicts" };
    (!open.is_empty()).then(|| anyhow!("{} {noun}, nothing was changed; {advice}", open.len()))
}

/// The changes that are to be made. Conflicts that nobody decided are printed, and are an error.
fn resolve<'a>(judged: &[Judged<'a>], args: &cli::Apply) -> Result<Vec<&'a Change>> {
    if let Some(error) = refusal(judged, args) {
        let mut out = Vec::new();
        for one in judged {
            if let Some(theirs) = one.against.filter(|theirs| is_open(*theirs, args)) {
                out.extend(conflict_document(one.change, theirs).to_string().into_bytes());
                out.push(b'\n');
            }
        }
        write_out(&out)?;
        return Err(error);
    }
    let is_wanted = |one: &&Judged<'_>| one.against.is_none_or(|theirs| args.ours && theirs.can_be_overruled());
    Ok(judged.iter().filter(is_wanted).map(|one| one.change).collect())
}

/// Others that lie on the same directory will see some of it.
fn warn_of_others(root: &DataRoot, overlay: &Overlay, plan: &Plan, target: &Target) -> Result<()> {
    let paths: Vec<PathBuf> = plan.steps.iter().map(|planned| target.full(&planned.path)).collect();
    for id in record::ids(root)?.into_iter().filter(|id| *id != overlay.id) {
        let Ok(Some(other)) = record::read(&record::dir(root, &id)) else { continue };
        let overlaps = |lower: &Path| paths.iter().any(|path| path.starts_with(lower) || lower.starts_with(path));
        if !record::is_copy(&other)
            && other.lower.iter().any(|lower| overlaps(lower))
            && record::state(&other)? == State::Mounted
        {
            exit::warn(
                PROGRAM,
                &format!("apply: overlay {id} is mounted over the same directory, and may show a mixture from now on"),
            );
        }
    }
    Ok(())
}

/// What is staged is made durable, then all names change, then that is made durable, and then it is done.
fn commit(
    store: &Store,
    transaction: &Transaction,
    journal: &Journal,
    seen: &[Option<rustix::fs::Stat>],
) -> Result<()> {
    let mut work = Work::open(&transaction.dir, journal)?;
    let abroad = journal.places.iter().any(|place| place.slots.is_some());
    if abroad {
        work.sync()?;
    }
    transaction.sync()?;
    if abroad {
        store.sync()?;
    }
    work.forward(journal, seen)?;
    transaction.note_moment()?;
    if abroad {
        work.sync()?;
    }
    store.finish(transaction)?;
    store.sync()
}

/// Takes back what is done of a transaction that failed, and deletes it.
fn give_up(root: &DataRoot, store: &Store, transaction: &Transaction, journal: &Journal) {
    let back = || -> Result<()> {
        // Without a journal nothing was touched.
        if transaction.dir.join("journal.json").exists() {
            let mut work = Work::open(&transaction.dir, journal)?;
            let left = work.backward(journal, &[])?;
            work.sync()?;
            known::note_back(root, &transaction.dir, journal)?;
            if !left.is_empty() {
                exit::warn(PROGRAM, &format!("undo: {} was changed meanwhile, and is left as it is", left.join(", ")));
                return store.finish(transaction);
            }
        }
        store.discard(transaction, Some(journal))
    };
    if let Err(error) = back() {
        exit::print_line(PROGRAM, &error.context("undo (the next command tries again)"));
    }
}

/// Notes what is in the target now, so that it is known to be ours.
fn note(plan: &Plan, journal: &Journal, target: &Target, known: &mut Known) -> Result<()> {
    let mut look = |path: &[u8]| -> Result<()> {
        let found = match target.look(path)? {
            There::Entry(entry) => stat(entry.dir.as_fd(), &entry.name)?,
            There::Nothing | There::NoDirectory(_) => None,
        };
        known.note(path, found.as_ref());
        Ok(())
    };
    for planned in &plan.steps {
        look(&planned.path)?;
        for path in &planned.contents {
            look(path)?;
        }
    }
    // What another did to a directory stays his, where only something in it was changed.
    let directories = plan.directories.iter().zip(&journal.directories);
    let ours = directories.filter(|((_, whole), directory)| **whole || !directory.anothers);
    ours.map(|((path, _), _)| path).try_for_each(|path| look(path))
}
