//! The filter of system calls: `linux.seccomp` of config.json becomes a program of classic BPF.
//!
//! [`compile`] and everything it uses is pure. The result does with every call what libseccomp's program for the same
//! profile does, which the tests prove with libseccomp itself, and is a tenth of its size: for each architecture a binary
//! search over *ranges* of numbers with the same fate.
//!
//! | file | what is in it |
//! |---|---|
//! | `words.rs` | the words of the specification, and the kernel's numbers for them |
//! | `numbers.rs` | system call numbers by name; generated |
//! | `rules.rs` | names become numbers, rules for one call are put into order |
//! | `bpf.rs` | instructions, and how they are put together |
//! | `mod.rs` | the whole program |
//! | `default.rs` | the profile that `exec`, `spec` and `sheep-run run` give a command |
//! | `profile.rs` | the files that docker and podman take with `--security-opt seccomp=` |
//! | `agent.rs` | who answers for `SCMP_ACT_NOTIFY` |

pub mod agent;
pub mod bpf;
pub mod default;
pub mod numbers;
pub mod profile;
mod rules;
pub mod words;

use anyhow::Result;

use self::bpf::{Instruction, JEQ, JGE, LOAD, OFFSET_ARCH, OFFSET_NUMBER, Place, Program};
use self::rules::{Fate, Range};
use self::words::{Arch, KILL_PROCESS, NEW_LISTENER, WAIT_KILLABLE_RECV, X32_BIT};
use crate::exit;
use crate::oci::Seccomp;

/// A filter, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: Vec<Instruction>,
    /// Flags for seccomp(2).
    pub flags: u32,
    /// Who answers for `SCMP_ACT_NOTIFY`, where it asks.
    pub listener: Option<Listener>,
    /// Names of system calls that no architecture here has: they have no rule, and are for the log. Profiles list calls of
    /// newer kernels and other architectures.
    pub unknown: Vec<String>,
}

/// An agent that answers for a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its socket.
    pub path: String,
    /// What it is told besides.
    pub metadata: Option<String>,
}

/// The most instructions the kernel takes (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// Compiles a profile for the architecture of this program and those the profile names. Errors with usage: a word that
/// means nothing here, an error number for an action that has none, rules that contradict each other, a program that the
/// kernel would not take for its length.
pub fn compile(profile: &Seccomp) -> Result<Filter> {
    compile_for(profile, Arch::native()?)
}

/// [`compile`], with the architecture that is native.
pub fn compile_for(profile: &Seccomp, native: Arch) -> Result<Filter> {
    let default = words::action(&profile.default_action, profile.default_errno_ret)?;
    let mut arches = vec![native];
    for word in &profile.architectures {
        let arch = Arch::parse(word)?;
        if !arches.contains(&arch) {
            arches.push(arch);
        }
    }
    let rules = rules::parse(profile)?;
    let mut program = Program::default();
    // From another architecture than the profile names: as bad as a call can be.
    let mut place = program.end(KILL_PROCESS);
    for (index, arch) in arches.iter().enumerate().rev() {
        let seen = arches.iter().take(index).any(|other| other.audit() == arch.audit());
        if !seen {
            let found = search(&mut program, &ranges(&rules, &arches, *arch, default)?, default);
            let block = program.plain(LOAD, OFFSET_NUMBER, found);
            place = program.branch(JEQ, arch.audit(), block, place);
        }
    }
    program.plain(LOAD, OFFSET_ARCH, place);
    let program = program.finish();
    if program.len() > MOST {
        let length = program.len();
        return Err(exit::usage(format!(
            "linux.seccomp: the program would have {length} instructions, and the kernel takes {MOST}; use fewer rules with arguments"
        )));
    }
    let asks = rules.notify() || default == words::NOTIFY;
    let listener = if asks { Some(listener(profile)?) } else { None };
    Ok(Filter { flags: flags(profile, asks)?, listener, program, unknown: rules.unknown() })
}

fn listener(profile: &Seccomp) -> Result<Listener> {
    let path =
        profile.listener_path.clone().filter(|path| !path.is_empty()).ok_or_else(|| {
            exit::usage("linux.seccomp: SCMP_ACT_NOTIFY needs a listenerPath, the socket of who answers")
        })?;
    Ok(Listener { path, metadata: profile.listener_metadata.clone() })
}

fn flags(profile: &Seccomp, asks: bool) -> Result<u32> {
    let mut flags = if asks { NEW_LISTENER } else { 0 };
    for word in &profile.flags {
        flags |= words::flag(word)?;
    }
    Ok(if asks { flags } else { flags & !WAIT_KILLABLE_RECV })
}

/// The fates of all numbers that come with the audit number of `arch`. x86_64 and x32 have the same, and share the numbers.
fn ranges(rules: &rules::Rules, arches: &[Arch], arch: Arch, default: u32) -> Result<Vec<Range>> {
    let of = |arch: Arch| match arches.contains(&arch) {
        true => rules.ranges(arch, default),
        // -1 is nobody's call, but a tracer's word for "skip it".
        false => Ok(vec![
            Range { first: 0, fate: Fate::Action(KILL_PROCESS) },
            Range { first: u32::MAX, fate: Fate::Action(default) },
        ]),
    };
    if arch.audit() != Arch::X32.audit() {
        return of(arch);
    }
    let mut all: Vec<Range> = of(Arch::X86_64)?.into_iter().filter(|range| range.first < X32_BIT).collect();
    let upper = of(Arch::X32)?;
    // The range that reaches over the border begins anew at it.
    let over = upper.iter().rev().find(|range| range.first <= X32_BIT).cloned();
    all.extend(over.map(|range| Range { first: X32_BIT, ..range }));
    all.extend(upper.into_iter().filter(|range| range.first > X32_BIT));
    Ok(all)
}

/// Finds the number's range by halves.
fn search(program: &mut Program, ranges: &[Range], default: u32) -> Place {
    match ranges {
        [] => program.end(default),
        [range] => match &range.fate {
            Fate::Action(action) => program.end(*action),
            Fate::Rules(rules) => {
                let end = program.end(default);
                rules.iter().rev().fold(end, |next, rule| program.rule(&rule.conditions, rule.action, next))
            }
        },
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let border = upper.first().map_or(0, |range| range.first);
            let upper = search(program, upper, default);
            let lower = search(program, lower, default);
            program.branch(JGE, border, upper, lower)
        }
    }
}

#[cfg(test)]
mod tests;
