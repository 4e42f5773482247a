//! `doctor`: every backend is tried here, and what does not work is explained.
//!
//! Each trial really makes a merged view in a directory of its own in the data directory, changes it in the ways that tell
//! a whole view from half of one, and looks whether the lower stayed as it was.

mod remedy;
mod trial;

use std::path::Path;

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::doc::{UserNamespace, write_out};
use crate::state::DataRoot;
use crate::{cli, quota, state};
use trial::Trial;

/// What was found out about one backend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    backend: &'static str,
    /// Whether a merged view made by it does all that it should.
    works: bool,
    /// Whether `mount` takes it here, without being asked for another.
    default: bool,
    /// The first thing that did not work, in the kernel's words where it had any.
    reason: Option<String>,
    /// What to do about it.
    remedy: Option<String>,
}

/// Tries the backends and prints what was found: a table, or a document a line. Errors (1) where none works.
pub fn run(root: &DataRoot, args: &cli::Doctor) -> Result<()> {
    let place = trial::Place::make(root)?;
    let mut findings: Vec<Finding> = Vec::new();
    for trial in Trial::ALL {
        let done = place.with(|dir| trial.run(dir));
        let default = done.is_ok() && trial.may_be_default() && !findings.iter().any(|finding| finding.default);
        let reason = done.as_ref().err().map(|error| place.without_its_name(&format!("{error:#}")));
        let remedy = done.err().and_then(|error| remedy::of(trial, &error, root));
        findings.push(Finding { backend: trial.name(), works: reason.is_none(), default, reason, remedy });
    }
    drop(place);
    let mut out = String::new();
    if args.json {
        for finding in &findings {
            out.push_str(&serde_json::to_string(finding)?);
            out.push('\n');
        }
    } else {
        out.push_str(&facts(root));
        findings.iter().for_each(|finding| out.push_str(&row(finding)));
    }
    write_out(out.as_bytes())?;
    match findings.iter().any(|finding| finding.works) {
        true => Ok(()),
        false => Err(anyhow!("doctor: no backend works here")),
    }
}

fn row(finding: &Finding) -> String {
    let mut row = format!("{:<16} {:<5}", finding.backend, if finding.works { "works" } else { "no" });
    if finding.default {
        row.push_str(" what 'mount' takes here");
    }
    if let Some(reason) = &finding.reason {
        row.push_str(&format!(" {reason}"));
    }
    let mut row = row.trim_end().to_owned();
    row.push('\n');
    if let Some(remedy) = &finding.remedy {
        row.push_str(&format!("{:<23}{remedy}\n", ""));
    }
    row
}

/// What else is good to know, for people.
fn facts(root: &DataRoot) -> String {
    let system = rustix::system::uname();
    let user = rustix::process::geteuid().as_raw();
    let namespace = UserNamespace::of_this_user();
    let ids = match (user, namespace.is_single()) {
        (0, _) => "root".to_owned(),
        (_, true) => format!("user {user}, without subordinate ids"),
        (_, false) => {
            let count: u64 = namespace.uids.iter().map(|range| u64::from(range[2])).sum();
            format!("user {user}, with {} subordinate ids", count - 1)
        }
    };
    let quotas = match quota::available(root.path()) {
        Ok(()) => "yes".to_owned(),
        Err(_) => "no, so no --size".to_owned(),
    };
    format!(
        "kernel           {}\nwho              {ids}\ndata directory   {} ({})\nproject quotas   {quotas}\n\n",
        system.release().to_string_lossy(),
        root.path().display(),
        file_system(root.path())
    )
}

/// The name of the file system that a directory is on.
fn file_system(dir: &Path) -> String {
    let table = crate::mountinfo::read().unwrap_or_default();
    let on =
        table.iter().filter(|entry| dir.starts_with(&entry.point)).max_by_key(|entry| entry.point.as_os_str().len());
    on.map_or_else(|| "unknown".to_owned(), |entry| entry.fs_type.clone())
}

/// A name for the trials' directory that no other process has.
fn scratch_name() -> Result<String> {
    Ok(format!(".doctor-{}", state::new_id()?))
}
