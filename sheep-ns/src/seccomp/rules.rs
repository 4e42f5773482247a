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
    rules: Vec<Parsed>,
    /// The names of all of them, in the profile's order.
    calls: Vec<Call<'a>>,
}

#[derive(Debug)]
struct Parsed {
    action: u32,
    args: Vec<Argument>,
}

/// A name, looked up once.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    name: &'a str,
    /// One number an architecture; `None` where nobody has such a call.
    numbers: Option<&'static [i32]>,
    /// Which of the rules it is in.
    rule: usize,
}

impl Call<'_> {
    fn number(&self, arch: Arch) -> Option<u32> {
        self.numbers.and_then(|numbers| numbers.get(arch as usize)).and_then(|number| u32::try_from(*number).ok())
    }
}

/// A condition, whatever the architecture.
#[derive(Debug, Clone, Copy)]
struct Argument {
    index: u32,
    op: Op,
    mask: u64,
    value: u64,
}

/// Calls that 32-bit x86 has as one, socketcall (linux/net.h) or ipc (linux/ipc.h): that one, and the number of the call
/// proper, its first argument.
fn through(name: &str) -> Option<(&'static str, u64)> {
    Some(match name {
        "socket" => ("socketcall", 1),
        "bind" => ("socketcall", 2),
        "connect" => ("socketcall", 3),
        "listen" => ("socketcall", 4),
        "accept" => ("socketcall", 5),
        "getsockname" => ("socketcall", 6),
        "getpeername" => ("socketcall", 7),
        "socketpair" => ("socketcall", 8),
        "send" => ("socketcall", 9),
        "recv" => ("socketcall", 10),
        "sendto" => ("socketcall", 11),
        "recvfrom" => ("socketcall", 12),
        "shutdown" => ("socketcall", 13),
        "setsockopt" => ("socketcall", 14),
        "getsockopt" => ("socketcall", 15),
        "sendmsg" => ("socketcall", 16),
        "recvmsg" => ("socketcall", 17),
        "accept4" => ("socketcall", 18),
        "recvmmsg" => ("socketcall", 19),
        "sendmmsg" => ("socketcall", 20),
        "semop" => ("ipc", 1),
        "semget" => ("ipc", 2),
        "semctl" => ("ipc", 3),
        "semtimedop" => ("ipc", 4),
        "msgsnd" => ("ipc", 11),
        "msgrcv" => ("ipc", 12),
        "msgget" => ("ipc", 13),
        "msgctl" => ("ipc", 14),
        "shmat" => ("ipc", 21),
        "shmdt" => ("ipc", 22),
        "shmget" => ("ipc", 23),
        "shmctl" => ("ipc", 24),
        _ => return None,
    })
}

/// Understands the rules of a profile.
pub fn parse(profile: &Seccomp) -> Result<Rules<'_>> {
    let names = profile.syscalls.iter().map(|rule| rule.names.len()).sum();
    let (mut rules, mut calls) = (Vec::with_capacity(profile.syscalls.len()), Vec::with_capacity(names));
    let mut near = 0;
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
        let alternatives = if twice { args.into_iter().map(|arg| vec![arg]).collect() } else { vec![args] };
        for args in alternatives {
            let of_it =
                rule.names.iter().map(|name| Call { name, numbers: numbers(name, &mut near), rule: rules.len() });
            calls.extend(of_it);
            rules.push(Parsed { action, args });
        }
    }
    Ok(Rules { rules, calls })
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

/// The numbers of a name, one an architecture; `None` where nobody has such a call. `near` is where the last one was found:
/// profiles have their names sorted as the table has them, so that the next one is mostly not far behind.
fn numbers(name: &str, near: &mut usize) -> Option<&'static [i32]> {
    let next = NUMBERS.iter().enumerate().skip(*near).take(4).find(|(_, (known, _))| *known == name);
    let at = match next {
        Some((at, _)) => at,
        None => NUMBERS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?,
    };
    *near = at + 1;
    NUMBERS.get(at).map(|(_, numbers)| &numbers[..])
}

impl Rules<'_> {
    /// Whether any of them asks the agent.
    pub fn notify(&self) -> bool {
        self.rules.iter().any(|rule| rule.action == NOTIFY)
    }

    /// Names that are no system call on any architecture here.
    pub fn unknown(&self) -> Vec<String> {
        let unknown = self.calls.iter().filter(|call| call.numbers.is_none());
        let mut unknown: Vec<String> = unknown.map(|call| call.name.to_owned()).collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// What becomes of each number on an architecture.
    pub fn ranges(&self, arch: Arch, default: u32) -> Result<Vec<Range>> {
        // By number, and what the profile has first stays first.
        let mut entries = self.entries(arch, default);
        entries.sort_unstable();
        let mut ranges = Vec::with_capacity(128);
        ranges.push(Range { first: 0, fate: Fate::Action(default) });
        let mut push = |first: u32, fate: Fate| match ranges.last_mut() {
            Some(last) if last.fate == fate && matches!(fate, Fate::Action(_)) => {}
            Some(last) if last.first == first => last.fate = fate,
            _ => ranges.push(Range { first, fate }),
        };
        let mut next = 0;
        for same in entries.chunk_by(|a, b| a.number() == b.number()) {
            let Some(number) = same.first().map(Entry::number) else { continue };
            if number > next {
                push(next, Fate::Action(default));
            }
            push(number, self.fate(arch, number, same)?);
            next = number.saturating_add(1);
        }
        push(next, Fate::Action(default));
        Ok(ranges)
    }

    fn entries(&self, arch: Arch, default: u32) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.calls.len());
        for (index, call) in self.calls.iter().enumerate() {
            if self.rules.get(call.rule).is_none_or(|rule| rule.action == default) {
                continue;
            }
            if arch == Arch::X86 {
                entries.extend(multiplexer(call.name).map(|(number, _)| Entry::new(number, index)));
            }
            entries.extend(call.number(arch).map(|number| Entry::new(number, index)));
        }
        entries
    }

    /// The fate of one number by all entries that are for it.
    fn fate(&self, arch: Arch, number: u32, entries: &[Entry]) -> Result<Fate> {
        let mut fates: Vec<Conditional> = Vec::new();
        for entry in entries {
            let Some(call) = self.calls.get(entry.call()) else { continue };
            let Some(rule) = self.rules.get(call.rule) else { continue };
            let conditions = conditions(arch, number, call, rule);
            if conditions.is_empty() {
                return Ok(Fate::Action(rule.action));
            }
            fates.push(Conditional { conditions, action: rule.action });
        }
        let mut rules: Vec<Conditional> = Vec::new();
        for mut new in fates {
            new.conditions.sort_by_key(|condition| condition.index);
            match rules.iter().find(|rule| rule.conditions == new.conditions) {
                Some(same) if same.action == new.action => {}
                Some(_) => {
                    let name = NUMBERS.iter().find(|(_, numbers)| numbers.get(arch as usize) == Some(&(number as i32)));
                    let name = name.map_or("", |(name, _)| name);
                    return Err(exit::usage(format!(
                        "linux.seccomp: syscalls: {name}: two rules with the same arguments and different actions"
                    )));
                }
                None => rules.push(new),
            }
        }
        rules.sort_by(|a, b| order(&a.conditions, &b.conditions));
        Ok(Fate::Rules(rules))
    }
}

/// A number that a rule is for, and by which of the profile's names; in the order of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u64);

impl Entry {
    fn new(number: u32, call: usize) -> Entry {
        Entry(u64::from(number) << 32 | call as u64)
    }

    fn number(&self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn call(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Under which conditions a rule is for a number that one of its names has.
fn conditions(arch: Arch, number: u32, call: &Call<'_>, rule: &Parsed) -> Vec<Condition> {
    let condition = |arg: &Argument| condition(arg, arch.is_wide());
    if call.number(arch) == Some(number) {
        return rule.args.iter().filter_map(condition).collect();
    }
    // The same call by way of socketcall or ipc. Its arguments are in memory there, where no filter can look; what remains of the
    // conditions is what libseccomp lets remain: those on other arguments than the first.
    let which =
        multiplexer(call.name).map(|(_, which)| Argument { index: 0, op: Op::Eq, mask: u64::MAX, value: which });
    which.iter().chain(rule.args.iter().filter(|arg| arg.index != 0)).filter_map(condition).collect()
}

/// The number of the call through which 32-bit x86 has a call as well, and that one's first argument.
fn multiplexer(name: &str) -> Option<(u32, u64)> {
    let (through, which) = through(name)?;
    let number = numbers(through, &mut 0)?.get(Arch::X86 as usize)?;
    Some((u32::try_from(*number).ok()?, which))
}

/// A condition as the architecture has it; `None` for one that always holds.
fn condition(arg: &Argument, wide: bool) -> Option<Condition> {
    let Argument { index, op, mask, value } = *arg;
    let (mask, value) = if wide { (mask, value) } else { (mask & u64::from(u32::MAX), value & u64::from(u32::MAX)) };
    (mask != 0).then_some(Condition { index, op, mask, value, wide })
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
