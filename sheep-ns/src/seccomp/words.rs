//! The words of `linux.seccomp` and what they mean to the kernel (seccomp(2), linux/seccomp.h, linux/audit.h). Pure.

use anyhow::Result;

use crate::exit;

/// An architecture whose system calls a filter can tell apart: those of [`super::numbers`], in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// x86, 64 bits.
    X86_64,
    /// x86, 32 bits.
    X86,
    /// x86 with 64-bit registers and 32-bit pointers. The kernel tells it from [`Arch::X86_64`] by a bit of the number only.
    X32,
    /// Arm, 64 bits.
    Aarch64,
    /// Arm, 32 bits.
    Arm,
    /// RISC-V, 64 bits.
    Riscv64,
}

/// The bit that all numbers of x32 have, and no others of x86.
pub const X32_BIT: u32 = 0x4000_0000;

/// Architecture, its word in config.json, its name in Go (as engines' profiles have it), its number in linux/audit.h.
pub const ARCHES: [(Arch, &str, &str, u32); super::numbers::ARCHITECTURES] = [
    (Arch::X86_64, "SCMP_ARCH_X86_64", "amd64", 0xc000_003e),
    (Arch::X86, "SCMP_ARCH_X86", "x86", 0x4000_0003),
    (Arch::X32, "SCMP_ARCH_X32", "x32", 0xc000_003e),
    (Arch::Aarch64, "SCMP_ARCH_AARCH64", "arm64", 0xc000_00b7),
    (Arch::Arm, "SCMP_ARCH_ARM", "arm", 0x4000_0028),
    (Arch::Riscv64, "SCMP_ARCH_RISCV64", "riscv64", 0xc000_00f3),
];

impl Arch {
    /// That of this program; an error on one that has no table here.
    pub fn native() -> Result<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Arch::X86_64),
            "x86" => Ok(Arch::X86),
            "aarch64" => Ok(Arch::Aarch64),
            "arm" => Ok(Arch::Arm),
            "riscv64" => Ok(Arch::Riscv64),
            other => Err(exit::usage(format!("linux.seccomp: there is no table of system calls for {other} here"))),
        }
    }

    /// By its word, `SCMP_ARCH_X86`.
    pub fn parse(word: &str) -> Result<Arch> {
        ARCHES.iter().find(|(_, known, ..)| *known == word).map(|(arch, ..)| *arch).ok_or_else(|| {
            let known: Vec<&str> = ARCHES.iter().map(|(_, known, ..)| *known).collect();
            exit::usage(format!("linux.seccomp: architectures: {word} is none of {}", known.join(", ")))
        })
    }

    /// The word in config.json.
    pub fn word(self) -> &'static str {
        ARCHES.iter().find(|(arch, ..)| *arch == self).map_or("", |(_, word, ..)| word)
    }

    /// The name that Go, and so engines' profiles, have for it: `amd64`.
    pub fn go_name(self) -> &'static str {
        ARCHES.iter().find(|(arch, ..)| *arch == self).map_or("", |(_, _, name, _)| name)
    }

    /// `seccomp_data.arch` of its calls.
    pub fn audit(self) -> u32 {
        ARCHES.iter().find(|(arch, ..)| *arch == self).map_or(0, |(.., number)| *number)
    }

    /// Whether all 64 bits of an argument count. Of x32's only the lower half does, as with libseccomp.
    pub fn is_wide(self) -> bool {
        matches!(self, Arch::X86_64 | Arch::Aarch64 | Arch::Riscv64)
    }

    /// The architectures whose programs this one runs as well, in engines' profiles.
    pub fn companions(self) -> &'static [Arch] {
        match self {
            Arch::X86_64 => &[Arch::X86, Arch::X32],
            Arch::Aarch64 => &[Arch::Arm],
            _ => &[],
        }
    }
}

/// `SECCOMP_RET_USER_NOTIF`.
pub const NOTIFY: u32 = 0x7fc0_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;

/// Action, the return value of a filter for it (`SECCOMP_RET_*`), and the most that fits into it where it takes a number: the
/// kernel cuts an error number down to 4095; a message to a tracer has 16 bits.
pub const ACTIONS: [(&str, u32, Option<u32>); 9] = [
    ("SCMP_ACT_ALLOW", 0x7fff_0000, None),
    ("SCMP_ACT_ERRNO", 0x0005_0000, Some(4095)),
    ("SCMP_ACT_KILL", 0, None),
    ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS, None),
    ("SCMP_ACT_KILL_THREAD", 0, None),
    ("SCMP_ACT_LOG", 0x7ffc_0000, None),
    ("SCMP_ACT_NOTIFY", NOTIFY, None),
    ("SCMP_ACT_TRACE", 0x7ff0_0000, Some(0xffff)),
    ("SCMP_ACT_TRAP", 0x0003_0000, None),
];

/// The return value of a filter for an action. `errno_ret` is for those that take one, EPERM where it is absent.
pub fn action(word: &str, errno_ret: Option<u32>) -> Result<u32> {
    let Some((_, value, most)) = ACTIONS.iter().find(|(known, ..)| *known == word) else {
        return Err(exit::usage(format!("linux.seccomp: '{word}' is no action")));
    };
    match (most, errno_ret) {
        (None, None) => Ok(*value),
        (None, Some(errno)) => {
            Err(exit::usage(format!("linux.seccomp: errnoRet {errno}: {word} returns no error number")))
        }
        (Some(most), errno) => {
            let errno = errno.unwrap_or(libc::EPERM as u32);
            if errno > *most {
                return Err(exit::usage(format!("linux.seccomp: errnoRet {errno}: {word} takes at most {most}")));
            }
            Ok(value | errno)
        }
    }
}

/// How an argument is compared, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Equal, under a mask that may be all ones.
    Eq,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
}

/// Operator, what it compares, and whether it is the one with a mask.
pub const OPERATORS: [(&str, Op, bool); 7] = [
    ("SCMP_CMP_EQ", Op::Eq, false),
    ("SCMP_CMP_GE", Op::Ge, false),
    ("SCMP_CMP_GT", Op::Gt, false),
    ("SCMP_CMP_LE", Op::Le, false),
    ("SCMP_CMP_LT", Op::Lt, false),
    ("SCMP_CMP_MASKED_EQ", Op::Eq, true),
    ("SCMP_CMP_NE", Op::Ne, false),
];

/// An operator, and whether it is the one with a mask.
pub fn op(word: &str) -> Result<(Op, bool)> {
    let found = OPERATORS.iter().find(|(known, ..)| *known == word);
    found
        .map(|(_, op, masked)| (*op, *masked))
        .ok_or_else(|| exit::usage(format!("linux.seccomp: '{word}' is no comparison")))
}

/// The flag of seccomp(2). `TSYNC` is none here: the filter is loaded by a process with one thread.
pub fn flag(word: &str) -> Result<u32> {
    Ok(match word {
        "SECCOMP_FILTER_FLAG_TSYNC" => 0,
        "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => WAIT_KILLABLE_RECV,
        _ => return Err(exit::usage(format!("linux.seccomp: flags: '{word}' is none"))),
    })
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const NEW_LISTENER: u32 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`; only together with [`NEW_LISTENER`].
pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;
