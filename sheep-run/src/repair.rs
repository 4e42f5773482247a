//! What is done after a container's end, by whoever sees it: the monitor, `run` in the foreground, or, when those were
//! killed, the next command. Every part may be done twice, so it does not matter where somebody was cut off.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use sheep_overlay::{exit, state};

use crate::PROGRAM;
use crate::locks::{self, Supervision};
use crate::record::{self, Home, Record, Status};
use crate::steps;
use crate::tool;

/// How a container ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    /// Its exit code, 128+N for signal N; `None` where nobody saw it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
}

/// Records a container's end, then takes away what only a running container needs; with `--rm`, everything. `lock` is
/// the container's lock, held.
pub fn finish(home: &Home, dir: &Path, lock: &File, end: End) -> Result<()> {
    locks::leave_exit_code(lock, end.code);
    let mut record = Record::reload(dir)?;
    if record.container.remove {
        return discard(home, dir);
    }
    record.container.status = Status::Stopped;
    record.container.pid = None;
    record.container.exit_code = end.code;
    record.container.signal = end.signal;
    record.container.oom_killed = end.oom_killed;
    record.container.finished = Some(state::now());
    if let Some(overlay) = record.document.0.get_mut("overlay").and_then(Value::as_object_mut) {
        // What names the mount goes with it.
        overlay.retain(|key, _| !["mountId", "bootId"].contains(&key.as_str()));
    }
    // The exit code first: what comes after can be made up for by the next command, a lost exit code cannot.
    record.save()?;
    keep(home, dir)
}

/// Takes away what only a running container needs: the OCI state with its control group, and the mount. The changes
/// stay.
pub fn keep(home: &Home, dir: &Path) -> Result<()> {
    let id = id_of(dir);
    forget_state(home, id)?;
    unmount(home, id, true)?;
    for name in ["pid", "supervisor"] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| dir.join(name).display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes away a container with everything it has. Processes that still run are killed.
pub fn discard(home: &Home, dir: &Path) -> Result<()> {
    let id = id_of(dir);
    forget_state(home, id)?;
    unmount(home, id, false)?;
    record::remove_dir(dir)
}

fn id_of(dir: &Path) -> &str {
    // Only directories with names that `check_name` lets through are containers.
    dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn forget_state(home: &Home, id: &str) -> Result<()> {
    if home.has_state(id) { tool::settle(&steps::delete(home, id)).map(|_| ()) } else { Ok(()) }
}

fn unmount(home: &Home, id: &str, keep: bool) -> Result<()> {
    if !home.has_overlay(id) {
        return Ok(());
    }
    match tool::settle(&steps::umount(home, id, keep)) {
        // Killed half-way: any command of sheep-overlay clears such things away.
        Err(error) if tool::code_of(&error) == Some(3) => tool::settle(&steps::overlays(home)).map(|_| ()),
        result => result.map(|_| ()),
    }
}

/// Whether the container's first process runs, as `sheep-ns` sees it.
pub fn is_alive(home: &Home, id: &str) -> Result<bool> {
    if !home.has_state(id) {
        return Ok(false);
    }
    let state = match tool::settle(&steps::state(home, id)) {
        Ok(state) => state,
        Err(error) if tool::code_of(&error) == Some(3) => return Ok(false),
        Err(error) => return Err(error),
    };
    let state: Value = serde_json::from_slice(&state).with_context(|| format!("what sheep-ns state {id} printed"))?;
    Ok(state["status"].as_str().is_some_and(|status| status != "stopped"))
}

/// Finishes what a killed command or monitor left of a container, if anything. A container that runs on without its
/// monitor is left running. Waits for whoever is at work on the container; one that is gone is fine.
pub fn repair(home: &Home, dir: &Path) -> Result<()> {
    if !matches!(locks::supervision(dir)?, Supervision::Abandoned) {
        return Ok(());
    }
    match locks::lock(dir) {
        Ok(lock) => repair_locked(home, dir, &lock),
        Err(error) if exit::kind(&error) == Some(exit::Kind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// [`repair`] with the container's lock held by the caller.
pub fn repair_locked(home: &Home, dir: &Path, lock: &File) -> Result<()> {
    if !matches!(locks::supervision(dir)?, Supervision::Abandoned) {
        return Ok(());
    }
    let Some(record) = Record::load(dir)? else { return record::sweep(home) };
    // If this command is killed too, the next one waits for the sibling it has at work.
    let _supervisor = locks::supervise(dir)?;
    match record.container.status {
        Status::Creating => discard(home, dir),
        Status::Running if is_alive(home, id_of(dir))? => Ok(()),
        Status::Running => finish(home, dir, lock, End { code: locks::left_exit_code(lock), ..End::default() }),
        Status::Stopped if record.container.remove => discard(home, dir),
        Status::Created | Status::Stopped => keep(home, dir),
    }
}

/// The record of a container as it is in reality. `None` when it is gone. Does not wait: where another command is at
/// work on the container, the record is shown as it stands.
pub fn view(home: &Home, dir: &Path) -> Result<Option<Record>> {
    let mut repaired = try_repair(home, dir);
    let mut record = Record::load(dir)?;
    if has_died(home, dir, record.as_ref())? {
        // It ended after that look at it; or its end cannot be put on record, for want of room perhaps.
        repaired = try_repair(home, dir);
        record = Record::load(dir)?;
        if let Some(Record { container, .. }) = record.as_mut().filter(|record| record.container.is_running()) {
            (container.status, container.pid) = (Status::Stopped, None);
        }
    }
    if let Err(error) = repaired {
        exit::print_line(PROGRAM, &error.context(format!("repair {}", id_of(dir))));
    }
    Ok(record)
}

fn try_repair(home: &Home, dir: &Path) -> Result<()> {
    match locks::supervision(dir)? {
        Supervision::Abandoned => locks::try_lock(dir).map_or(Ok(()), |lock| repair_locked(home, dir, &lock)),
        _ => Ok(()),
    }
}

fn has_died(home: &Home, dir: &Path, record: Option<&Record>) -> Result<bool> {
    let runs = record.is_some_and(|record| record.container.is_running());
    Ok(runs && matches!(locks::supervision(dir)?, Supervision::Abandoned) && !is_alive(home, id_of(dir))?)
}

/// Finds a container by name and gives its record as it is in reality.
pub fn look_up(home: &Home, name: &str) -> Result<Record> {
    let dir = record::find(home, name)?;
    view(home, &dir)?.ok_or_else(record::no_such_container)
}

/// Whether the kernel killed a process of the container for want of memory. To be asked before its control group goes.
pub fn oom_killed(id: &str) -> bool {
    let Some(tree) = cgroup2_mount() else { return false };
    let events = fs::read_to_string(tree.join("sheep").join(id).join("memory.events")).unwrap_or_default();
    counts_oom_kill(&events)
}

fn counts_oom_kill(events: &str) -> bool {
    events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
}

fn cgroup2_mount() -> Option<PathBuf> {
    // Other mount points may have names that are not UTF-8.
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let table = String::from_utf8_lossy(&table);
    let is_cgroup2 = |line: &&str| line.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("cgroup2 "));
    table.lines().find(is_cgroup2).and_then(|line| line.split(' ').nth(4)).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_events_are_read() {
        assert!(counts_oom_kill("low 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!counts_oom_kill("low 0\noom 3\noom_kill 0\n"));
        assert!(!counts_oom_kill(""));
    }
}
