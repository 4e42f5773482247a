//! `update`: other limits for a container that runs.

use std::io::Read;

use anyhow::{Context, Result};

use super::{group_of, state_root};
use crate::cli::{Global, Update};
use crate::exit;
use crate::oci::{BlockIo, Cpu, Memory, Pids, Resources, Status};
use crate::spec::limits::size;

/// `update`. All limits are put in force, or none. Busy (4) where the container does not run any more.
pub fn run(global: &Global, args: &Update) -> Result<u8> {
    let resources = match &args.resources {
        Some(file) => {
            if *args != (Update { resources: Some(file.clone()), id: args.id.clone(), ..Update::default() }) {
                return Err(exit::usage("--resources: the file names all limits; give no other"));
            }
            read(file)?
        }
        None => of_flags(args)?,
    };
    let root = state_root(global)?;
    let (_dir, record) = root.lock(&args.id)?;
    if root.status(&record)? == Status::Stopped {
        return Err(exit::busy(format!("container {} is stopped; nothing is left to limit", args.id)));
    }
    // The rules of its making are in force; engines send them along.
    let made = root.config(&args.id)?.linux.and_then(|linux| linux.resources).unwrap_or_default();
    if !resources.devices.is_empty() && resources.devices != made.devices {
        return Err(exit::usage("devices: the rules are those of the container's making; make a new one for others"));
    }
    group_of(&record, "update")?
        .update(&resources, record.scope.as_deref())
        .with_context(|| format!("container {}", args.id))?;
    Ok(0)
}

/// A file with the OCI's `resources`, or `-`.
fn read(file: &std::path::Path) -> Result<Resources> {
    let name = || format!("--resources {}", file.display());
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).with_context(name)?;
    } else {
        bytes = std::fs::read(file).with_context(name)?;
    }
    serde_json::from_slice(&bytes).map_err(|e| exit::usage(format!("{}: {e}", name())))
}

fn of_flags(args: &Update) -> Result<Resources> {
    let bytes = |text: &Option<String>, flag: &str| match text.as_deref() {
        None => Ok(None),
        Some("-1") => Ok(Some(-1)),
        Some(text) => size(text).map(Some).map_err(|error| error.context(flag.to_owned())),
    };
    let memory = Memory {
        limit: bytes(&args.memory, "--memory")?,
        swap: bytes(&args.memory_swap, "--memory-swap")?,
        reservation: bytes(&args.memory_reservation, "--memory-reservation")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        quota: args.cpu_quota,
        period: args.cpu_period,
        shares: args.cpu_share,
        burst: args.cpu_burst,
        idle: args.cpu_idle,
        cpus: args.cpuset_cpus.clone(),
        mems: args.cpuset_mems.clone(),
        ..Cpu::default()
    };
    let resources = Resources {
        memory: Some(memory).filter(|memory| *memory != Memory::default()),
        cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
        pids: args.pids_limit.map(|limit| Pids { limit }),
        block_io: args.blkio_weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    };
    if resources == Resources::default() {
        return Err(exit::usage("no limit given; 'sheep-ns update --help' shows the flags"));
    }
    Ok(resources)
}
