//! From the profile's rules to what becomes of each number of an architecture. Pure.
//!
//! Where several rules are for one call, libseccomp is followed: one without conditions goes before all that have some,
//! and of several without, the first stands. Of those with conditions any may match; where they lead to different actions
//! the order is that of libseccomp's tree: by argument from the last to the first, equality before less before greater,
//! and by value. A rule whose action is the default one is left out, as other runtimes leave it out.

use std::cmp::Ordering;

use anyhow::Result;

use super::bpf::Condition;
use super::numbers::NUMBERS;
use super::words::{self, Arch, NOTIFY, Op};
use crate::exit;
use crate::oci::{Seccomp, SyscallArg};

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The same, whatever its arguments are.
    Action(u32),
    /// What the first rule says whose conditions hold, else the default.
    Rules(Vec<Conditional>),
}

/// A rule with conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditional {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Then this becomes of it.
    pub action: u32,
}

/// Numbers with the same fate: from the first up to the next range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// What becomes of them.
    pub fate: Fate,
}

/// The rules of a profile, their words understood.
#[derive(Debug)]
pub struct Rules<'a> {
    rules: Vec<Parsed<'a>>,
}

#[derive(Debug)]
struct Parsed<'a> {
    names: &'a [String],
    action: u32,
    args: Vec<Argument>,
}

/// A condition, whatever the architecture.
#[derive(Debug, Clone, Copy)]
struct Argument {
    index: u32,
    op: Op,
    mask: u64,
    value: u64,
}

/// Calls that 32-bit x86 has as one, with the number of the call proper as first argument (linux/net.h).
const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// The same for System V IPC (linux/ipc.h).
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// Understands the rules of a profile.
pub fn parse(profile: &Seccomp) -> Result<Rules<'_>> {
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    for rule in &profile.syscalls {
        if rule.names.is_empty() {
            return Err(exit::usage("linux.seccomp: syscalls: a rule without names"));
        }
        let named = |error: anyhow::Error| error.context(format!("syscalls: {}", rule.names.join(", ")));
        let action = words::action(&rule.action, rule.errno_ret).map_err(named)?;
        let args = rule.args.iter().map(argument).collect::<Result<Vec<_>>>().map_err(named)?;
        // Two conditions on one argument cannot both be given to libseccomp, so that other runtimes make a rule of each;
        // profiles are written for that.
        let twice =
            rule.args.iter().enumerate().any(|(at, arg)| rule.args.iter().take(at).any(|a| a.index == arg.index));
        if twice {
            rules.extend(args.into_iter().map(|arg| Parsed { names: &rule.names, action, args: vec![arg] }));
        } else {
            rules.push(Parsed { names: &rule.names, action, args });
        }
    }
    Ok(Rules { rules })
}

fn argument(arg: &SyscallArg) -> Result<Argument> {
    if arg.index > 5 {
        return Err(exit::usage(format!(
            "linux.seccomp: args: index {}: a system call has six arguments, 0 to 5",
            arg.index
        )));
    }
    let (op, masked) = words::op(&arg.op)?;
    let (mask, value) = if masked { (arg.value, arg.value_two & arg.value) } else { (u64::MAX, arg.value) };
    Ok(Argument { index: arg.index, op, mask, value })
}

/// The numbers of a name, one an architecture; `None` where nobody has such a call.
fn numbers(name: &str) -> Option<&'static [i32]> {
    let at = NUMBERS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    NUMBERS.get(at).map(|(_, numbers)| &numbers[..])
}

/// A rule for a number: which call, with which conditions, and what then.
type Entry = (u32, Vec<Condition>, u32);

impl Rules<'_> {
    /// Whether any of them asks the agent.
    pub fn notify(&self) -> bool {
        self.rules.iter().any(|rule| rule.action == NOTIFY)
    }

    /// Names that are no system call on any architecture here.
    pub fn unknown(&self) -> Vec<String> {
        let names = self.rules.iter().flat_map(|rule| rule.names);
        let mut unknown: Vec<String> = names.filter(|name| numbers(name).is_none()).cloned().collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// What becomes of each number on an architecture.
    pub fn ranges(&self, arch: Arch, default: u32) -> Result<Vec<Range>> {
        let mut entries = self.entries(arch, default);
        // Stable: what the profile has first stays first.
        entries.sort_by_key(|(number, ..)| *number);
        let mut ranges = vec![Range { first: 0, fate: Fate::Action(default) }];
        let mut push = |first: u32, fate: Fate| match ranges.last_mut() {
            Some(last) if last.fate == fate && matches!(fate, Fate::Action(_)) => {}
            Some(last) if last.first == first => last.fate = fate,
            _ => ranges.push(Range { first, fate }),
        };
        let mut next = 0;
        for same in entries.chunk_by(|a, b| a.0 == b.0) {
            let Some((number, ..)) = same.first() else { continue };
            if *number > next {
                push(next, Fate::Action(default));
            }
            push(*number, fate(arch, same)?);
            next = number.saturating_add(1);
        }
        push(next, Fate::Action(default));
        Ok(ranges)
    }

    fn entries(&self, arch: Arch, default: u32) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(NUMBERS.len());
        for rule in self.rules.iter().filter(|rule| rule.action != default) {
            for name in rule.names {
                if arch == Arch::X86 {
                    entries.extend(multiplexed(name, rule));
                }
                let number = numbers(name).and_then(|numbers| numbers.get(arch as usize));
                if let Some(number) = number.and_then(|number| u32::try_from(*number).ok()) {
                    let conditions = rule.args.iter().filter_map(|arg| condition(arg, arch.is_wide()));
                    entries.push((number, conditions.collect(), rule.action));
                }
            }
        }
        entries
    }
}

/// A condition as the architecture has it; `None` for one that always holds.
fn condition(arg: &Argument, wide: bool) -> Option<Condition> {
    let Argument { index, op, mask, value } = *arg;
    let (mask, value) = if wide { (mask, value) } else { (mask & u64::from(u32::MAX), value & u64::from(u32::MAX)) };
    (mask != 0).then_some(Condition { index, op, mask, value, wide })
}

/// The rule for the same call by way of socketcall or ipc. Its arguments are in memory there, where no filter can look;
/// what remains of the conditions is what libseccomp lets remain: those on other arguments than the first.
fn multiplexed(name: &str, rule: &Parsed<'_>) -> Option<Entry> {
    let socket = SOCKETCALL.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, call)| ("socketcall", call));
    let ipc = || IPC.iter().find(|(known, _)| *known == name).map(|(_, call)| ("ipc", *call));
    let (through, call) = socket.or_else(ipc)?;
    let number = u32::try_from(*numbers(through)?.get(Arch::X86 as usize)?).ok()?;
    let first = Argument { index: 0, op: Op::Eq, mask: u64::MAX, value: call };
    let others = rule.args.iter().filter(|arg| arg.index != 0);
    let conditions = [&first].into_iter().chain(others).filter_map(|arg| condition(arg, false));
    Some((number, conditions.collect(), rule.action))
}

/// The fate of one number by all rules that are for it.
fn fate(arch: Arch, entries: &[Entry]) -> Result<Fate> {
    if let Some((.., action)) = entries.iter().find(|(_, conditions, _)| conditions.is_empty()) {
        return Ok(Fate::Action(*action));
    }
    let mut rules: Vec<Conditional> = Vec::with_capacity(entries.len());
    for (number, conditions, action) in entries {
        let mut conditions = conditions.clone();
        conditions.sort_by_key(|condition| condition.index);
        match rules.iter().find(|rule| rule.conditions == conditions) {
            Some(same) if same.action == *action => {}
            Some(_) => {
                let name = NUMBERS.iter().find(|(_, numbers)| numbers.get(arch as usize) == Some(&(*number as i32)));
                let name = name.map_or("", |(name, _)| name);
                return Err(exit::usage(format!(
                    "linux.seccomp: syscalls: {name}: two rules with the same arguments and different actions"
                )));
            }
            None => rules.push(Conditional { conditions, action: *action }),
        }
    }
    rules.sort_by(|a, b| order(&a.conditions, &b.conditions));
    Ok(Fate::Rules(rules))
}

/// The order of libseccomp's tree.
fn order(a: &[Condition], b: &[Condition]) -> Ordering {
    let (a, b) = (a.iter().flat_map(nodes), b.iter().flat_map(nodes));
    // The greater node comes first.
    b.cmp(a)
}

/// A condition's nodes in libseccomp's tree, the upper half before the lower: argument, operator, value.
fn nodes(condition: &Condition) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
    let Condition { index, op, value, wide, .. } = *condition;
    let class = match op {
        Op::Eq | Op::Ne => 3,
        Op::Le | Op::Lt => 2,
        Op::Ge | Op::Gt => 1,
    };
    let rank = move |half: u32| if class == 2 { !half } else { half };
    let upper = wide.then(|| (2 * index + 1, class, rank((value >> 32) as u32)));
    upper.into_iter().chain([(2 * index, class, rank(value as u32))])
}
