//! Classic BPF as seccomp(2) takes it: instructions, and the pieces a filter is made of. Pure.
//!
//! All jumps lead forward and are relative, so that a piece of code can be put anywhere. A conditional jump has 8 bits for
//! its distance; where that is not enough it goes through an unconditional one, which has 32.

use super::words::Op;

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to pass over where a comparison holds.
    pub jt: u8,
    /// And where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// The accumulator becomes 32 bits of `seccomp_data` at offset k.
pub const LOAD: u16 = 0x20;
/// The accumulator is masked with k.
pub const AND: u16 = 0x54;
/// Goes on k instructions further.
pub const JUMP: u16 = 0x05;
/// Whether the accumulator is k.
pub const JEQ: u16 = 0x15;
/// Whether it is greater.
pub const JGT: u16 = 0x25;
/// Whether it is greater or equal.
pub const JGE: u16 = 0x35;
/// Ends with k.
pub const RETURN: u16 = 0x06;

/// Offset of the call's number in `seccomp_data`.
pub const OFFSET_NUMBER: u32 = 0;
/// Offset of the architecture.
pub const OFFSET_ARCH: u32 = 4;

/// Offset of an argument's lower half; the upper is behind it, for all architectures here are little-endian.
fn offset_arg(index: u32) -> u32 {
    16 + 8 * index
}

/// An instruction that is no comparison.
pub fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// `then` where the comparison of the accumulator holds, else `otherwise`. Both pieces must end in a return.
pub fn branch(code: u16, k: u32, then: &[Instruction], otherwise: &[Instruction]) -> Vec<Instruction> {
    let mut out = Vec::with_capacity(then.len() + otherwise.len() + 2);
    match u8::try_from(otherwise.len()) {
        Ok(distance) => out.push(Instruction { code, jt: distance, jf: 0, k }),
        Err(_) => {
            out.push(Instruction { code, jt: 0, jf: 1, k });
            out.push(plain(JUMP, otherwise.len() as u32));
        }
    }
    out.extend_from_slice(otherwise);
    out.extend_from_slice(then);
    out
}

/// A condition on an argument, ready for its architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// How.
    pub op: Op,
    /// For [`Op::Eq`], what counts of the argument; else all ones.
    pub mask: u64,
    /// What it is compared with.
    pub value: u64,
    /// Whether the upper half counts.
    pub wide: bool,
}

/// Where a comparison leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// The next instruction.
    Next,
    /// Behind this condition: it holds.
    Holds,
    /// Behind the whole rule: it does not.
    Fails,
}

type Step = (u16, u32, To, To);

/// Ends with `action` where all conditions hold, else goes on behind. At most 6 conditions of at most 6 instructions
/// each, so that every distance fits into 8 bits.
pub fn rule(conditions: &[Condition], action: u32) -> Vec<Instruction> {
    let steps: Vec<Vec<Step>> = conditions.iter().map(steps).collect();
    let end = steps.iter().map(Vec::len).sum::<usize>() + 1;
    let mut out = Vec::with_capacity(end);
    let mut behind = 0;
    for condition in &steps {
        behind += condition.len();
        for (code, k, yes, no) in condition {
            let here = out.len() + 1;
            let distance = |to: &To| match to {
                To::Next => 0,
                To::Holds => (behind - here) as u8,
                To::Fails => (end - here) as u8,
            };
            out.push(Instruction { code: *code, jt: distance(yes), jf: distance(no), k: *k });
        }
    }
    out.push(plain(RETURN, action));
    out
}

/// A comparison of 64 bits is one of the upper halves, and where they are equal, one of the lower.
fn steps(condition: &Condition) -> Vec<Step> {
    use To::{Fails, Holds, Next};
    let Condition { index, op, mask, value, wide } = *condition;
    let (low, high) = (value as u32, (value >> 32) as u32);
    let load_low = (LOAD, offset_arg(index), Next, Next);
    let load_high = (LOAD, offset_arg(index) + 4, Next, Next);
    let mut steps = Vec::with_capacity(6);
    if op == Op::Eq {
        for (load, mask, value) in [(load_high, (mask >> 32) as u32, high), (load_low, mask as u32, low)] {
            if mask == 0 || (load == load_high && !wide) {
                continue;
            }
            steps.push(load);
            if mask != u32::MAX {
                steps.push((AND, mask, Next, Next));
            }
            steps.push((JEQ, value, Next, Fails));
        }
        return steps;
    }
    // What follows from the upper halves being greater, from their being less, and how the lower halves decide.
    let (greater, less, code, yes, no) = match op {
        Op::Gt => (Holds, Fails, JGT, Next, Fails),
        Op::Ge => (Holds, Fails, JGE, Next, Fails),
        Op::Lt => (Fails, Holds, JGE, Fails, Next),
        Op::Le => (Fails, Holds, JGT, Fails, Next),
        Op::Ne | Op::Eq => (Holds, Holds, JEQ, Fails, Next),
    };
    if wide {
        steps.push(load_high);
        if greater != less {
            steps.push((JGT, high, greater, Next));
        }
        steps.push((JEQ, high, Next, less));
    }
    steps.push(load_low);
    steps.push((code, low, yes, no));
    steps
}
