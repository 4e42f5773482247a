//! Classic BPF as seccomp(2) takes it: instructions, and how a program is put together of them. Pure.
//!
//! All jumps lead forward, so a program is written from its end: whatever an instruction leads to is there already, and what
//! several lead to is there once. A conditional jump has 8 bits for its distance; where that is not enough it goes through an
//! unconditional one, which has 32.

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

/// A place in a program: how many instructions are behind the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

/// A return is used again as long as it is no further away than this, so that most jumps to it need no help.
const NEAR: usize = 200;

/// A program, from its end to what was written last.
#[derive(Debug, Default)]
pub struct Program {
    /// The last instruction first.
    code: Vec<Instruction>,
    /// Where each return was written last.
    returns: Vec<(u32, Place)>,
}

impl Program {
    /// The whole of it, in the order in which it runs.
    pub fn finish(mut self) -> Vec<Instruction> {
        self.code.reverse();
        self.code
    }

    fn push(&mut self, instruction: Instruction) -> Place {
        self.code.push(instruction);
        Place(self.code.len() - 1)
    }

    /// How many instructions the next one to be written has to pass over to come to `place`.
    fn distance(&self, place: Place) -> usize {
        self.code.len() - 1 - place.0
    }

    /// Ends with `action`.
    pub fn end(&mut self, action: u32) -> Place {
        let known = self.returns.iter().position(|(known, _)| *known == action);
        if let Some((_, place)) = known.and_then(|at| self.returns.get(at)).copied()
            && self.distance(place) <= NEAR
        {
            return place;
        }
        let place = self.push(Instruction { code: RETURN, jt: 0, jf: 0, k: action });
        match known.and_then(|at| self.returns.get_mut(at)) {
            Some(known) => known.1 = place,
            None => self.returns.push((action, place)),
        }
        place
    }

    fn jump(&mut self, to: Place) -> Place {
        let k = self.distance(to) as u32;
        self.push(Instruction { code: JUMP, jt: 0, jf: 0, k })
    }

    /// An instruction that is no comparison, and goes on at `next`.
    pub fn plain(&mut self, code: u16, k: u32, next: Place) -> Place {
        if self.distance(next) > 0 {
            self.jump(next);
        }
        self.push(Instruction { code, jt: 0, jf: 0, k })
    }

    /// Goes to `then` where the comparison of the accumulator with `k` holds, else to `otherwise`.
    pub fn branch(&mut self, code: u16, k: u32, mut then: Place, mut otherwise: Place) -> Place {
        loop {
            match (u8::try_from(self.distance(then)), u8::try_from(self.distance(otherwise))) {
                (Ok(jt), Ok(jf)) => return self.push(Instruction { code, jt, jf, k }),
                (Err(_), _) => then = self.jump(then),
                (_, Err(_)) => otherwise = self.jump(otherwise),
            }
        }
    }

    /// Ends with `action` where all conditions hold, else goes on at `fails`.
    pub fn rule(&mut self, conditions: &[Condition], action: u32, fails: Place) -> Place {
        let mut next = self.end(action);
        for condition in conditions.iter().rev() {
            let holds = next;
            for (code, k, yes, no) in steps(condition).into_iter().rev() {
                let place = |to| match to {
                    To::Next => next,
                    To::Holds => holds,
                    To::Fails => fails,
                };
                next = match code {
                    LOAD | AND => self.plain(code, k, next),
                    _ => self.branch(code, k, place(yes), place(no)),
                };
            }
        }
        next
    }
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
    /// To the next condition: this one holds.
    Holds,
    /// Out of the rule: it does not.
    Fails,
}

type Step = (u16, u32, To, To);

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
