//! `linux.resources.devices`: which device nodes work in the group, as a program of type CGROUP_DEVICE that the kernel
//! asks at every mknod and open. This is what keeps a container's root, who may make nodes, off the host's disks.

use anyhow::Result;

use crate::exit;
use crate::oci::DeviceRule;

/// One instruction of the kernel's BPF machine (struct bpf_insn).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Bits of an access (`BPF_DEVCG_ACC_*`).
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// Kinds of nodes (`BPF_DEVCG_DEV_*`).
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// Character devices that work in every container, whatever config.json says: the default nodes, terminals, tun; none
/// is every minor number. As with crun.
const ALWAYS: [(i32, &[i32]); 4] = [(1, &[3, 5, 7, 8, 9]), (5, &[0, 1, 2]), (10, &[200]), (136, &[])];

/// A rule; `None` is "any".
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

// Registers: what is asked for arrives in a struct at r1; the answer is r0.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The accesses no rule has allowed yet; never 0 where a rule begins.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// A program being written. Jumps to the two answers, which stand at its end, get their distance last.
#[derive(Default)]
struct Code {
    list: Vec<Instruction>,
    to_allow: Vec<usize>,
    to_deny: Vec<usize>,
}

impl Code {
    /// Adds a jump to an answer.
    fn answer_if(&mut self, allow: bool, jump: Instruction) {
        if allow { &mut self.to_allow } else { &mut self.to_deny }.push(self.list.len());
        self.list.push(jump);
    }

    /// Lets the jumps at `from` lead to the next instruction.
    fn land(&mut self, from: &[usize]) {
        for at in from {
            self.list[*at].offset = (self.list.len() - at - 1) as i16;
        }
    }

    /// Ends the program: what comes here gets the answer `last`. The kernel takes no instruction that is never reached.
    fn finish(mut self, last: bool) -> Vec<Instruction> {
        let (own, others) = if last {
            (self.to_allow.clone(), self.to_deny.clone())
        } else {
            (self.to_deny.clone(), self.to_allow.clone())
        };
        self.land(&own);
        self.list.extend(answer(last));
        if !others.is_empty() {
            self.land(&others);
            self.list.extend(answer(!last));
        }
        self.list
    }
}

/// The program for the rules. The last rule that speaks of an access decides on it; what no rule speaks of is denied.
/// It is kept short: loading it is a good part of what a start costs. Errors with usage for a rule that makes no sense.
pub fn program(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let rules = rules.iter().map(parse).collect::<Result<Vec<Rule>>>()?;
    let mut code = Code::default();
    // access_type is the accesses in the upper half, the kind in the lower.
    code.list.extend([load(KIND, 0), copy(WANTED, KIND), shift_right(WANTED, 16), and(KIND, 0xffff)]);
    code.list.extend([load(MAJOR, 4), load(MINOR, 8)]);
    // Making a node is not yet using it, and OverlayFS makes one where a file is deleted.
    code.list.push(and(WANTED, !MKNOD));
    code.answer_if(true, skip_if_equal(WANTED, 0));
    always(&mut code);
    for rule in rules.iter().rev() {
        let mut tests = vec![(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        tests.retain(|(_, value)| value.is_some());
        let mut elsewhere = Vec::new();
        for (register, value) in tests {
            elsewhere.push(code.list.len());
            code.list.push(skip_unless_equal(register, value.unwrap_or_default()));
        }
        if rule.access & !MKNOD == ALL & !MKNOD {
            if elsewhere.is_empty() {
                // Nothing gets past this one.
                return Ok(code.finish(rule.allow));
            }
            code.answer_if(rule.allow, skip());
        } else if rule.allow {
            code.list.push(and(WANTED, !rule.access));
            code.answer_if(true, skip_if_equal(WANTED, 0));
        } else {
            code.answer_if(false, skip_if_any(WANTED, rule.access));
        }
        code.land(&elsewhere);
    }
    Ok(code.finish(false))
}

fn always(code: &mut Code) {
    let no_char = code.list.len();
    code.list.push(skip_unless_equal(KIND, CHAR));
    for (major, minors) in ALWAYS {
        if minors.is_empty() {
            code.answer_if(true, skip_if_equal(MAJOR, major));
            continue;
        }
        let other = code.list.len();
        code.list.push(skip_unless_equal(MAJOR, major));
        for minor in minors {
            code.answer_if(true, skip_if_equal(MINOR, *minor));
        }
        code.land(&[other]);
    }
    code.land(&[no_char]);
}

fn parse(rule: &DeviceRule) -> Result<Rule> {
    let wrong = |what: &str| exit::usage(format!("linux.resources.devices: {what}"));
    let kind = match rule.kind.as_deref() {
        None | Some("" | "a") => None,
        Some("b") => Some(BLOCK),
        Some("c" | "u") => Some(CHAR),
        Some(other) => return Err(wrong(&format!("type {other:?} is none of a, b, c, u"))),
    };
    let number = |number: Option<i64>| match number {
        // Go programs write -1 for "any".
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|number| *number >= 0)
            .map(Some)
            .ok_or_else(|| wrong(&format!("{number} is no device number"))),
    };
    // "all kinds" is all devices.
    let (major, minor) = match kind {
        Some(_) => (number(rule.major)?, number(rule.minor)?),
        None => (None, None),
    };
    let mut access = 0;
    for letter in rule.access.as_deref().filter(|letters| !letters.is_empty()).unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(wrong(&format!("access {other:?} is none of r, w, m"))),
        };
    }
    Ok(Rule { allow: rule.allow, kind, major, minor, access })
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
    Instruction { code, registers, offset, immediate }
}

/// `to = *(u32 *)(r1 + offset)`: BPF_LDX | BPF_MEM | BPF_W.
fn load(to: u8, offset: i16) -> Instruction {
    instruction(0x61, to, CONTEXT, offset, 0)
}

/// `to = from`: BPF_ALU64 | BPF_MOV | BPF_X.
fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to >>= bits`: BPF_ALU | BPF_RSH | BPF_K.
fn shift_right(to: u8, bits: i32) -> Instruction {
    instruction(0x74, to, 0, 0, bits)
}

/// `to &= mask`: BPF_ALU | BPF_AND | BPF_K, 32 bits wide.
fn and(to: u8, mask: i32) -> Instruction {
    instruction(0x54, to, 0, 0, mask)
}

/// Skips instructions if `register != value`: BPF_JMP | BPF_JNE | BPF_K.
fn skip_unless_equal(register: u8, value: i32) -> Instruction {
    instruction(0x55, register, 0, 0, value)
}

/// Skips instructions if `register == value`: BPF_JMP | BPF_JEQ | BPF_K.
fn skip_if_equal(register: u8, value: i32) -> Instruction {
    instruction(0x15, register, 0, 0, value)
}

/// Skips instructions if `register & bits`: BPF_JMP | BPF_JSET | BPF_K.
fn skip_if_any(register: u8, bits: i32) -> Instruction {
    instruction(0x45, register, 0, 0, bits)
}

/// Skips instructions: BPF_JMP | BPF_JA.
fn skip() -> Instruction {
    instruction(0x05, 0, 0, 0, 0)
}

/// `r0 = allow; exit`: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT.
fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(0xb7, ANSWER, 0, 0, allow.into()), instruction(0x95, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn allowed(program: &[Instruction], kind: i32, major: u32, minor: u32, access: i32) -> bool {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            let skip = usize::try_from(offset).unwrap();
            match code {
                0x61 => registers[to] = context[skip / 4].into(),
                0xbf => registers[to] = registers[from],
                0x74 => registers[to] = (registers[to] as u32 >> immediate).into(),
                0x54 => registers[to] = (registers[to] as u32 & immediate as u32).into(),
                0x55 if registers[to] != immediate as u64 => at += skip,
                0x15 if registers[to] == immediate as u64 => at += skip,
                0x45 if registers[to] & immediate as u64 != 0 => at += skip,
                0x05 => at += skip,
                0x55 | 0x15 | 0x45 => {}
                0xb7 => registers[to] = immediate as u64,
                0x95 => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_speaks_decides() {
        const RW: i32 = READ | WRITE;
        let deny = r#"{"allow":false,"access":"rwm"}"#;
        for (rules, kind, major, minor, access, want) in [
            // The default: only the default devices.
            (vec![deny], CHAR, 1, 3, RW, true),
            (vec![deny], CHAR, 136, 7, RW, true),
            (vec![deny], CHAR, 10, 229, READ, false),
            (vec![deny], BLOCK, 254, 0, READ, false),
            (vec![deny], BLOCK, 254, 0, MKNOD, true),
            (vec![deny], BLOCK, 254, 0, MKNOD | READ, false),
            (vec![deny], BLOCK, 1, 3, READ, false),
            (vec![], BLOCK, 8, 0, READ, false),
            // More devices.
            (vec![deny, r#"{"allow":true,"type":"c","major":10,"minor":229}"#], CHAR, 10, 229, RW, true),
            (vec![deny, r#"{"allow":true,"type":"c","major":10,"minor":229}"#], CHAR, 10, 228, RW, false),
            (vec![deny, r#"{"allow":true,"type":"c","major":10,"minor":-1,"access":"r"}"#], CHAR, 10, 1, READ, true),
            (vec![deny, r#"{"allow":true,"type":"c","major":10,"access":"r"}"#], CHAR, 10, 1, RW, false),
            (vec![deny, r#"{"allow":true,"type":"b","access":"w"}"#], BLOCK, 8, 1, WRITE, true),
            // Read and write by two rules are read and write.
            (
                vec![
                    deny,
                    r#"{"allow":true,"type":"b","major":8,"access":"r"}"#,
                    r#"{"allow":true,"type":"b","major":8,"access":"w"}"#,
                ],
                BLOCK,
                8,
                1,
                RW,
                true,
            ),
            (vec![deny, r#"{"allow":true,"access":"r"}"#], BLOCK, 8, 1, READ, true),
            (vec![deny, r#"{"allow":true,"access":"r"}"#], BLOCK, 8, 1, RW, false),
            (vec![r#"{"allow":true,"access":"m"}"#, r#"{"allow":false,"type":"c"}"#], CHAR, 1, 1, MKNOD, true),
            (vec![r#"{"allow":true}"#, r#"{"allow":false,"access":"w"}"#], CHAR, 1, 1, WRITE, false),
            // All, and then some not.
            (vec![r#"{"allow":true}"#], BLOCK, 8, 1, RW, true),
            (vec![r#"{"allow":true}"#, r#"{"allow":false,"type":"b","major":8}"#], BLOCK, 8, 1, READ, false),
            (vec![r#"{"allow":true}"#, r#"{"allow":false,"type":"b","major":8}"#], BLOCK, 9, 1, READ, true),
            (vec![r#"{"allow":true}"#, r#"{"allow":false,"type":"b","access":"w"}"#], BLOCK, 9, 1, RW, false),
            (vec![r#"{"allow":true}"#, r#"{"allow":false,"type":"b","access":"w"}"#], BLOCK, 9, 1, READ, true),
            (vec![r#"{"allow":true}"#, deny], BLOCK, 9, 1, READ, false),
        ] {
            let parsed: Vec<DeviceRule> = rules.iter().map(|rule| serde_json::from_str(rule).unwrap()).collect();
            let program = program(&parsed).unwrap();
            assert_eq!(
                allowed(&program, kind, major, minor, access),
                want,
                "{rules:?} {kind} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn the_default_is_short() {
        let deny = DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() };
        assert_eq!(program(&[deny]).unwrap().len(), 26);
    }

    #[test]
    fn what_makes_no_sense() {
        for rule in [
            r#"{"allow":true,"type":"p"}"#,
            r#"{"allow":true,"type":"c","major":-2}"#,
            r#"{"allow":true,"type":"c","minor":4294967296}"#,
            r#"{"allow":true,"access":"x"}"#,
        ] {
            let error = program(&[serde_json::from_str(rule).unwrap()]).unwrap_err();
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{rule}");
        }
    }
}
