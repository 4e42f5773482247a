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

/// What works in every container, after the rules of config.json: the default device nodes, terminals, tun; and making
/// any node (which is not yet using it), since OverlayFS makes one where a file is deleted. As with crun.
const ALWAYS: [(i32, Option<i32>, Option<i32>, i32); 12] = [
    (CHAR, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHAR, Some(1), Some(3), ALL),
    (CHAR, Some(1), Some(5), ALL),
    (CHAR, Some(1), Some(7), ALL),
    (CHAR, Some(1), Some(8), ALL),
    (CHAR, Some(1), Some(9), ALL),
    (CHAR, Some(5), Some(0), ALL),
    (CHAR, Some(5), Some(1), ALL),
    (CHAR, Some(5), Some(2), ALL),
    (CHAR, Some(10), Some(200), ALL),
    (CHAR, Some(136), None, ALL),
];

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
/// The accesses no rule has allowed yet.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program for the rules. The last rule that speaks of an access decides on it; what no rule speaks of is denied.
/// Errors with usage for a rule that makes no sense.
pub fn program(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let mut all = rules.iter().map(parse).collect::<Result<Vec<Rule>>>()?;
    all.extend(ALWAYS.map(|(kind, major, minor, access)| Rule { allow: true, kind: Some(kind), major, minor, access }));
    // access_type is the accesses in the upper half, the kind in the lower.
    let mut code = vec![
        load(KIND, 0),
        copy(WANTED, KIND),
        shift_right(WANTED, 16),
        and(KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in all.iter().rev() {
        let mut body = Vec::new();
        let mut tests = vec![(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        tests.retain(|(_, value)| value.is_some());
        if tests.is_empty() && rule.access == ALL {
            // Nothing gets past this one, and the kernel takes no instruction that is never reached.
            code.extend(answer(rule.allow));
            return Ok(code);
        }
        if rule.allow {
            body.extend([and(WANTED, !rule.access), skip_unless_equal(WANTED, 0, 2)]);
        } else {
            body.extend([copy(SCRATCH, WANTED), and(SCRATCH, rule.access), skip_if_equal(SCRATCH, 0, 2)]);
        }
        body.extend(answer(rule.allow));
        let mut left = body.len() + tests.len();
        for (register, value) in tests {
            left -= 1;
            code.push(skip_unless_equal(register, value.unwrap_or_default(), left as i16));
        }
        code.extend(body);
    }
    code.extend(answer(false));
    Ok(code)
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

/// Skips `by` instructions if `register != value`: BPF_JMP | BPF_JNE | BPF_K.
fn skip_unless_equal(register: u8, value: i32, by: i16) -> Instruction {
    instruction(0x55, register, 0, by, value)
}

/// Skips `by` instructions if `register == value`: BPF_JMP | BPF_JEQ | BPF_K.
fn skip_if_equal(register: u8, value: i32, by: i16) -> Instruction {
    instruction(0x15, register, 0, by, value)
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
                0x55 | 0x15 => {}
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
