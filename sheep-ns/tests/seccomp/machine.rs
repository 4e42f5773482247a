//! Classic BPF run in user space, as the kernel runs a filter: linux/filter.h, and seccomp_check_filter() of
//! kernel/seccomp.c for what is allowed at all.

use sheep_ns::seccomp::bpf::Instruction;

/// `struct seccomp_data`, as far as a filter sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub number: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    /// 32 bits at an offset, little-endian.
    fn load(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 64, "load at {offset}");
        match offset {
            0 => self.number,
            4 => self.arch,
            // The instruction pointer.
            8 | 12 => 0,
            _ => (self.args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
        }
    }
}

/// What the program says about the call, and after how many instructions.
pub fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let mut accumulator = 0u32;
    let mut at = 0;
    for count in 1.. {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.load(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            0x06 => return (k, count),
            other => panic!("instruction {other:#x}"),
        }
    }
    unreachable!("every jump leads forward")
}

/// A program as libseccomp exports it: `struct sock_filter`s.
pub fn parse(bytes: &[u8]) -> Vec<Instruction> {
    assert!(bytes.len().is_multiple_of(8));
    let of = |b: &[u8]| Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    bytes.chunks(8).map(of).collect()
}

/// Whether the architecture is compared with anything else than architectures: the program forgets to load the call's
/// number.
pub fn forgets_the_number(program: &[Instruction], arches: &[u32]) -> bool {
    // What each instruction can find in the accumulator: bit 0 the architecture, bit 1 anything else. Jumps lead forward.
    let mut holds = vec![0u8; program.len() + 256];
    holds[0] = 2;
    for (at, instruction) in program.iter().enumerate() {
        let Instruction { code, jt, jf, k } = *instruction;
        let state = match code {
            0x20 if k == 4 => 1,
            0x20 | 0x54 => 2,
            _ => holds[at],
        };
        match code {
            0x06 => {}
            0x05 => holds[at + 1 + k as usize] |= state,
            0x20 | 0x54 => holds[at + 1] |= state,
            _ => {
                if state & 1 != 0 && !arches.contains(&k) {
                    return true;
                }
                holds[at + 1 + usize::from(jt)] |= state;
                holds[at + 1 + usize::from(jf)] |= state;
            }
        }
    }
    false
}
