//! What config.json says of a process's share of the machine: scheduling, I/O priority, memory policy, CPUs; and its
//! execution domain. Parsed before the clone; in force just before the process gives up root.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::exit;
use crate::oci;
use crate::sys::{self, SchedAttr};

/// All of it but the CPUs, in the kernel's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    scheduler: Option<SchedAttr>,
    io_priority: Option<u32>,
    personality: Option<libc::c_ulong>,
    memory: Option<(libc::c_int, Vec<u64>)>,
}

const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", libc::SCHED_OTHER as u32),
    ("SCHED_FIFO", libc::SCHED_FIFO as u32),
    ("SCHED_RR", libc::SCHED_RR as u32),
    ("SCHED_BATCH", libc::SCHED_BATCH as u32),
    // Reserved; the kernel refuses it.
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", libc::SCHED_IDLE as u32),
    ("SCHED_DEADLINE", libc::SCHED_DEADLINE as u32),
];

const SCHED_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

const IO_CLASSES: [(&str, u32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

const MEMORY_MODES: [(&str, libc::c_int); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

const MEMORY_FLAGS: [(&str, libc::c_int); 3] =
    [("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];

/// CPUs and memory nodes are numbered below this.
const MOST: usize = 1024;

impl Tuning {
    /// Parses the settings of a process and of its container. Usage (2) for a word the specification does not have, and
    /// for a value that would do nothing.
    pub fn new(process: &oci::Process, linux: &oci::Linux) -> Result<Tuning> {
        Ok(Tuning {
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            personality: linux.personality.as_ref().map(personality).transpose()?,
            memory: linux.memory_policy.as_ref().map(memory).transpose()?,
        })
    }

    /// Puts them in force for this process, while it is still allowed to.
    pub fn apply(&self) -> Result<()> {
        if let Some(attr) = &self.scheduler {
            sys::sched_setattr(attr).context("process.scheduler: sched_setattr")?;
        }
        if let Some(value) = self.io_priority {
            sys::ioprio_set(value).context("process.ioPriority: ioprio_set")?;
        }
        if let Some(domain) = self.personality {
            sys::personality(domain).context("linux.personality")?;
        }
        if let Some((mode, nodes)) = &self.memory {
            sys::set_mempolicy(*mode, nodes).context("linux.memoryPolicy: set_mempolicy")?;
        }
        Ok(())
    }
}

fn named<T: Copy>(what: &str, table: &[(&str, T)], name: &str) -> Result<T> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| exit::usage(format!("{what}: '{name}' is none")))
}

fn scheduler(asked: &oci::Scheduler) -> Result<SchedAttr> {
    let policy = named("process.scheduler.policy", &POLICIES, &asked.policy)?;
    let nice = asked.nice.unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(exit::usage(format!("process.scheduler.nice: {nice} is not from -20 to 19")));
    }
    let mut flags = 0;
    for name in &asked.flags {
        flags |= named("process.scheduler.flags", &SCHED_FLAGS, name)?;
    }
    let times = [asked.runtime, asked.deadline, asked.period].map(Option::unwrap_or_default);
    if policy != libc::SCHED_DEADLINE as u32 && times != [0; 3] {
        return Err(exit::usage(format!(
            "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE, not for {}",
            asked.policy
        )));
    }
    let [runtime, deadline, period] = times;
    let priority = asked.priority.unwrap_or(0);
    Ok(SchedAttr { policy, flags, nice, priority, runtime, deadline, period, ..SchedAttr::default() })
}

fn io_priority(asked: &oci::IoPriority) -> Result<u32> {
    const CLASS_SHIFT: u32 = 13;
    let class = named("process.ioPriority.class", &IO_CLASSES, &asked.class)?;
    match u32::try_from(asked.priority.unwrap_or(0)) {
        Ok(level @ 0..=7) => Ok(class << CLASS_SHIFT | level),
        _ => Err(exit::usage("process.ioPriority.priority: is not from 0 to 7")),
    }
}

fn personality(asked: &oci::Personality) -> Result<libc::c_ulong> {
    if let Some(flag) = asked.flags.first() {
        return Err(exit::usage(format!("linux.personality.flags: '{flag}' is none; the specification has no flags")));
    }
    // linux/personality.h
    let domains = [("LINUX", 0x0000), ("LINUX32", 0x0008)];
    named("linux.personality.domain", &domains, &asked.domain)
}

fn memory(asked: &oci::MemoryPolicy) -> Result<(libc::c_int, Vec<u64>)> {
    let mut mode = named("linux.memoryPolicy.mode", &MEMORY_MODES, &asked.mode)?;
    for name in &asked.flags {
        mode |= named("linux.memoryPolicy.flags", &MEMORY_FLAGS, name)?;
    }
    let mut mask = Vec::new();
    for node in numbers("linux.memoryPolicy.nodes", asked.nodes.as_deref().unwrap_or_default())? {
        mask.resize(mask.len().max(node / 64 + 1), 0u64);
        if let Some(word) = mask.get_mut(node / 64) {
            *word |= 1 << (node % 64);
        }
    }
    Ok((mode, mask))
}

/// The numbers of a list as the kernel writes them: `0-3,7`.
fn numbers(what: &str, list: &str) -> Result<Vec<usize>> {
    let wrong = || exit::usage(format!("{what}: '{list}' is no list like 0-3,7 of numbers below {MOST}"));
    let mut all = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < MOST).ok_or_else(wrong);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

/// The CPUs of a process that joins (`process.execCPUAffinity`).
#[derive(Debug, Clone, Default)]
pub struct Affinity {
    initial: Option<CpuSet>,
    last: Option<CpuSet>,
}

impl Affinity {
    /// Parses it. Usage (2) for what is no list of CPUs.
    pub fn new(asked: Option<&oci::CpuAffinity>) -> Result<Affinity> {
        let set = |what: &str, list: &Option<String>| match list.as_deref() {
            None | Some("") => Ok(None),
            Some(list) => numbers(what, list).map(|cpus| {
                let mut set = CpuSet::new();
                cpus.into_iter().for_each(|cpu| set.set(cpu));
                Some(set)
            }),
        };
        let Some(asked) = asked else { return Ok(Affinity::default()) };
        Ok(Affinity {
            initial: set("process.execCPUAffinity.initial", &asked.initial)?,
            last: set("process.execCPUAffinity.final", &asked.last)?,
        })
    }

    /// For this process, about to clone one into the container's control group.
    pub fn before_the_group(&self) -> Result<()> {
        put(self.initial.as_ref(), "process.execCPUAffinity.initial")
    }

    /// For this process, which is in the group.
    pub fn in_the_group(&self) -> Result<()> {
        put(self.last.as_ref(), "process.execCPUAffinity.final")
    }
}

fn put(cpus: Option<&CpuSet>, what: &str) -> Result<()> {
    match cpus {
        Some(cpus) => sched_setaffinity(None, cpus).with_context(|| format!("{what}: sched_setaffinity")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn tuning(process: Value, linux: Value) -> Result<Tuning> {
        let mut whole = json!({"cwd": "/"});
        whole.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        Tuning::new(&serde_json::from_value(whole).unwrap(), &serde_json::from_value(linux).unwrap())
    }

    #[test]
    fn words_become_the_kernels_numbers() {
        let all = tuning(
            json!({"scheduler": {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
                   "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}}),
            json!({"personality": {"domain": "LINUX32"},
                   "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1,64", "flags": ["MPOL_F_STATIC_NODES"]}}),
        );
        let want = Tuning {
            scheduler: Some(SchedAttr { policy: 3, nice: 5, flags: 1, ..SchedAttr::default() }),
            io_priority: Some(2 << 13 | 6),
            personality: Some(8),
            memory: Some((2 | 1 << 15, vec![3, 1])),
        };
        assert_eq!(all.unwrap(), want);
        assert_eq!(tuning(json!({}), json!({})).unwrap(), Tuning::default());
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        let table = [
            (json!({"scheduler": {"policy": "SCHED_FROB"}}), json!({}), "'SCHED_FROB'"),
            (json!({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}), json!({}), "nice: 20"),
            (json!({"scheduler": {"policy": "SCHED_OTHER", "runtime": 1}}), json!({}), "for SCHED_DEADLINE"),
            (json!({"scheduler": {"policy": "SCHED_OTHER", "flags": ["X"]}}), json!({}), "flags: 'X'"),
            (json!({"ioPriority": {"class": "IOPRIO_CLASS_X"}}), json!({}), "class: 'IOPRIO_CLASS_X'"),
            (json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}), json!({}), "from 0 to 7"),
            (json!({}), json!({"personality": {"domain": "BSD"}}), "'BSD'"),
            (json!({}), json!({"personality": {"domain": "LINUX", "flags": ["X"]}}), "flags: 'X'"),
            (json!({}), json!({"memoryPolicy": {"mode": "MPOL_X"}}), "'MPOL_X'"),
            (json!({}), json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "2-1"}}), "'2-1'"),
            (json!({}), json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-9999999"}}), "below 1024"),
        ];
        for (process, linux, want) in table {
            let error = tuning(process, linux).unwrap_err();
            assert!(error.to_string().contains(want), "{want}: {error}");
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage));
        }
        let affinity = oci::CpuAffinity { initial: Some("1,x".into()), last: None };
        assert!(Affinity::new(Some(&affinity)).unwrap_err().to_string().contains("initial"));
    }
}
