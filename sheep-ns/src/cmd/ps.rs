//! `ps`: the processes of a container, with their numbers on this side.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

use super::{print, state_root};
use crate::cgroup::Cgroup;
use crate::cli::{Global, ListFormat, Ps};
use crate::exit;
use crate::oci::Status;
use crate::state::Record;

/// `ps`. The table is that of ps(1), run with the options given (`-ef` without any), cut down to the container.
pub fn run(global: &Global, args: &Ps) -> Result<u8> {
    let root = state_root(global)?;
    let record = root.read(&args.id)?;
    let pids = match root.status(&record)? {
        // Without a pid namespace, others may have outlived the first process.
        Status::Stopped if record.cgroup.is_none() => Vec::new(),
        _ => pids(&record)?,
    };
    let text = match args.format {
        ListFormat::Json => format!("{}\n", serde_json::to_string(&pids).context("ps")?),
        ListFormat::Table => {
            let default = ["-ef".into()];
            let options = if args.options.is_empty() { &default[..] } else { &args.options };
            let ps = Command::new("ps").args(options).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
            let output = ps.context("run ps (Debian's package procps); --format json does without")?;
            if !output.status.success() {
                return Err(anyhow!("ps ended with {}", output.status));
            }
            rows(&String::from_utf8_lossy(&output.stdout), &pids)?
        }
    };
    print(text.as_bytes())?;
    Ok(0)
}

/// The lines of a table of ps(1) with a column PID that are about these processes, and the header.
fn rows(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_ascii_whitespace().position(|word| word == "PID");
    let column = column.ok_or_else(|| exit::usage("ps: these options give a table without a column PID"))?;
    let about = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(header).chain(lines.filter(about)).map(|line| format!("{line}\n")).collect())
}

/// The processes of a container: those of its control group. Where it has none, those of its pid namespace, and what they started.
fn pids(record: &Record) -> Result<Vec<i32>> {
    let mut pids: Vec<i32> = match (&record.cgroup, &record.process) {
        (Some(path), _) => match Cgroup::open(path)? {
            Some(group) => group.pids()?.iter().map(|pid| pid.as_raw_nonzero().get()).collect(),
            None => Vec::new(),
        },
        (None, Some(process)) if record.own_pid_namespace => of_namespace(process.pid)?,
        (None, _) => {
            return Err(exit::usage(
                "the container has neither a control group nor a pid namespace to find its processes by",
            ));
        }
    };
    pids.sort_unstable();
    Ok(pids)
}

/// The processes of the pid namespace that `first` is the first one of. A namespace within it hides its processes behind another name,
/// but not whose children they are.
fn of_namespace(first: i32) -> Result<Vec<i32>> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(first) else { return Ok(Vec::new()) };
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let name = entry.context("/proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that is gone meanwhile is none.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse::<i32>().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut found: BTreeSet<i32> =
        parents.iter().map(|(pid, _)| *pid).filter(|pid| namespace(*pid).as_ref() == Some(&wanted)).collect();
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return Ok(found.into_iter().collect());
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_table() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init 12\nroot   12     1 sleep 1\nroot  112    12 sh\n";
        assert_eq!(rows(table, &[12]).unwrap(), "UID   PID  PPID CMD\nroot   12     1 sleep 1\n");
        assert_eq!(rows(table, &[]).unwrap(), "UID   PID  PPID CMD\n");
        assert_eq!(exit::kind(&rows("CMD\nsh\n", &[1]).unwrap_err()), Some(exit::Kind::Usage));
    }
}
