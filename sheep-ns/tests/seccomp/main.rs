//! The compiler of system call filters against libseccomp: for the same profile, the same verdict on every call.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod machine;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use machine::Call;
use serde_json::json;
use sheep_ns::oci::{Seccomp, SyscallArg, SyscallRule};
use sheep_ns::seccomp::bpf::Instruction;
use sheep_ns::seccomp::numbers::NUMBERS;
use sheep_ns::seccomp::words::{Arch, X32_BIT, action};
use sheep_ns::seccomp::{compile_for, default, profile};

/// libseccomp, by its Python bindings, in a process of its own.
struct Oracle {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Oracle {
    fn new() -> Oracle {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp/oracle.py");
        // Debian's own interpreter, for which python3-seccomp is made.
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3: scripts/setup test installs it");
        let out = BufReader::new(child.stdout.take().unwrap());
        Oracle { child, out }
    }

    /// libseccomp's program; the error where it takes the profile for none.
    fn program(&mut self, profile: &Seccomp, arches: &[Arch]) -> Result<Vec<Instruction>, String> {
        let words: Vec<&str> = arches.iter().map(|arch| arch.word()).collect();
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{}", json!({"profile": profile, "arches": words})).unwrap();
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "python3-seccomp is missing? scripts/setup test installs it");
        let line = line.trim();
        if line.starts_with("error") {
            return Err(line.to_owned());
        }
        let bytes = (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap());
        Ok(machine::parse(&bytes.collect::<Vec<_>>()))
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Numbers that look random and are the same every time (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A value that conditions are likely to meet.
    fn value(&mut self) -> u64 {
        let values =
            [0, 1, 2, 5, 16, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff, 1 << 32, 5 << 32, (5 << 32) | 5];
        match self.below(4) {
            0 => self.next(),
            1 => u64::from(self.next() as u32 & 0xff),
            2 => u64::MAX - u64::from(self.next() as u32 & 3),
            _ => self.pick(&values),
        }
    }
}

const ACTIONS: [(&str, Option<u32>); 10] = [
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ERRNO", None),
    ("SCMP_ACT_ERRNO", Some(38)),
    ("SCMP_ACT_KILL", None),
    ("SCMP_ACT_KILL_PROCESS", None),
    ("SCMP_ACT_TRAP", None),
    ("SCMP_ACT_TRACE", Some(7)),
    ("SCMP_ACT_LOG", None),
    ("SCMP_ACT_NOTIFY", None),
];

const OPS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

/// Which architectures go together.
const SETS: [&[Arch]; 10] = [
    &[Arch::X86_64],
    &[Arch::X86_64, Arch::X86, Arch::X32],
    &[Arch::X86_64, Arch::X86],
    &[Arch::X86_64, Arch::X32],
    &[Arch::X32],
    &[Arch::X86],
    &[Arch::Aarch64],
    &[Arch::Aarch64, Arch::Arm],
    &[Arch::Arm],
    &[Arch::Riscv64],
];

/// Calls that Debian's libseccomp does not know, or not on all architectures.
const OTHERWISE: [&str; 5] = ["uretprobe", "map_shadow_stack", "memfd_secret", "riscv_hwprobe", "sync_file_range2"];

/// Names that Debian's libseccomp knows as well.
fn known_names() -> Vec<&'static str> {
    let newer =
        |name: &str, numbers: &[i32]| OTHERWISE.contains(&name) || numbers.iter().any(|n| (457..1000).contains(n));
    NUMBERS.iter().filter(|(name, numbers)| !newer(name, numbers)).map(|(name, _)| *name).collect()
}

fn random_profile(random: &mut Random, arches: &[Arch], names: &[&str]) -> Seccomp {
    let (default_action, default_errno_ret) = random.pick(&ACTIONS);
    let mut profile = Seccomp {
        default_action: default_action.into(),
        default_errno_ret,
        architectures: arches.iter().map(|arch| arch.word().to_owned()).collect(),
        listener_path: Some("/s".into()),
        ..Seccomp::default()
    };
    // Few enough names that rules meet at one call, and at times as many as a real profile has.
    let size = random.pick(&[3, 10, 300]);
    let few: Vec<&str> = (0..size).map(|_| random.pick(names)).collect();
    // Either a call has rules of one action, as in profiles that people write, or anything goes.
    let one_action = random.pick(&ACTIONS);
    let mixed = random.one_in(2);
    for _ in 0..1 + random.below(size.min(40)) {
        let (action, errno_ret) = if mixed { random.pick(&ACTIONS) } else { one_action };
        let many = if random.one_in(3) { 1 + random.below(8) } else { 1 };
        let names = (0..many).map(|_| random.pick(&few).to_owned().into()).collect();
        let count = random.pick(&[0, 0, 1, 1, 1, 2, 3]);
        let arg = |random: &mut Random| SyscallArg {
            index: random.below(6) as u32,
            value: random.value(),
            value_two: random.value(),
            op: random.pick(&OPS).into(),
        };
        let args = (0..count).map(|_| arg(random)).collect();
        profile.syscalls.push(SyscallRule { names, action: action.into(), errno_ret, args });
    }
    profile
}

fn random_call(random: &mut Random, profile: &Seccomp, arches: &[Arch]) -> Call {
    let from = if random.one_in(12) { random.pick(&SETS) } else { arches };
    let arch = random.pick(from);
    let rule = random.pick(&profile.syscalls);
    let name = random.pick(&rule.names);
    let row = NUMBERS.iter().find(|(known, _)| *known == name).unwrap().1;
    let number = match random.below(12) {
        0 => random.next() as u32,
        1 => u32::MAX,
        2 => random.below(480) as u32,
        3 => X32_BIT | random.below(600) as u32,
        4 => (row[arch as usize] as u32).wrapping_add(1),
        // socketcall and ipc.
        5 if arch == Arch::X86 => random.pick(&[102, 117]),
        _ => row[arch as usize] as u32,
    };
    let mut args = [0; 6].map(|_: u64| random.value());
    for arg in &rule.args {
        let near =
            [arg.value, arg.value_two, arg.value.wrapping_add(1), arg.value.wrapping_sub(1), arg.value ^ (1 << 32)];
        if !random.one_in(6) {
            args[arg.index as usize] = random.pick(&near);
        }
    }
    if number == 102 || number == 117 {
        args[0] = random.below(25) as u64;
    }
    let number = if number == u32::MAX && random.one_in(2) { row[arch as usize] as u32 } else { number };
    Call { number, arch: arch.audit(), args }
}

/// The rules of a profile that are for a call's number, with what the conditions look at of an argument.
fn rules_for<'a>(profile: &'a Seccomp, arches: &[Arch], call: &Call) -> (Vec<&'a SyscallRule>, u64) {
    let is = |arch: &Arch| arch.audit() == call.arch && (*arch == Arch::X32) == (call.number & X32_BIT != 0);
    let Some(arch) = arches.iter().find(|arch| is(arch)) else { return (Vec::new(), 0) };
    let names: Vec<&str> = NUMBERS
        .iter()
        .filter(|(_, row)| row[*arch as usize] as u32 == call.number && call.number != u32::MAX)
        .map(|(name, _)| *name)
        .collect();
    let of_it = |rule: &&SyscallRule| rule.names.iter().any(|name| names.contains(&&**name));
    (profile.syscalls.iter().filter(of_it).collect(), if arch.is_wide() { u64::MAX } else { u64::from(u32::MAX) })
}

/// Whether a rule's conditions hold: all of them, or any where two are on one argument.
fn holds(rule: &SyscallRule, call: &Call, bits: u64) -> bool {
    let one = |arg: &SyscallArg| {
        let (seen, value, two) = (call.args[arg.index as usize] & bits, arg.value & bits, arg.value_two & bits);
        match arg.op.as_str() {
            "SCMP_CMP_NE" => seen != value,
            "SCMP_CMP_LT" => seen < value,
            "SCMP_CMP_LE" => seen <= value,
            "SCMP_CMP_EQ" => seen == value,
            "SCMP_CMP_GE" => seen >= value,
            "SCMP_CMP_GT" => seen > value,
            _ => seen & value == two & value,
        }
    };
    if splits(rule) { rule.args.iter().any(one) } else { rule.args.iter().all(one) }
}

fn splits(rule: &SyscallRule) -> bool {
    rule.args.iter().enumerate().any(|(at, arg)| rule.args[..at].iter().any(|other| other.index == arg.index))
}

/// Whether libseccomp merges rules for this call whose conditions are more than equality: its tree then loses some of
/// what they say (a rule `a < 5` beside a rule `a == 7` is enough), or gives them another precedence.
fn is_merged(rules: &[&SyscallRule]) -> bool {
    let several = rules.len() > 1 || rules.iter().any(|rule| splits(rule));
    let unequal = |arg: &SyscallArg| !matches!(arg.op.as_str(), "SCMP_CMP_EQ" | "SCMP_CMP_MASKED_EQ");
    several && rules.iter().any(|rule| rule.args.iter().any(unequal))
}

#[test]
fn the_same_verdict_as_libseccomp() {
    let mut oracle = Oracle::new();
    let mut random = Random(0x5ee9_5ee9_5ee9_5ee9);
    let names = known_names();
    let (mut compared, mut forgetful, mut merged, mut merged_otherwise) = (0, 0, 0, 0);
    for _ in 0..700 {
        let arches = random.pick(&SETS);
        let profile = random_profile(&mut random, arches, &names);
        let theirs = oracle.program(&profile, arches);
        let ours = compile_for(&profile, arches[0]);
        let (ours, theirs) = match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => (ours.program, theirs),
            // Contradictions, and more that libseccomp does not put into its tree.
            (_, Err(error)) if error.contains("-17") || error.contains("-22") => continue,
            (ours, theirs) => panic!("{}\nours: {ours:?}\nlibseccomp: {theirs:?}", json!(profile)),
        };
        let audits: Vec<u32> = arches.iter().map(|arch| arch.audit()).collect();
        assert!(!machine::forgets_the_number(&ours, &audits));
        // libseccomp 2.5.4 makes such programs, of one profile in thirty; they compare the architecture with a number.
        let theirs = Some(theirs).filter(|theirs| !machine::forgets_the_number(theirs, &audits));
        forgetful += u32::from(theirs.is_none());
        compared += u32::from(theirs.is_some());
        for _ in 0..120 {
            let call = random_call(&mut random, &profile, arches);
            let verdict = machine::run(&ours, &call).0;
            let (rules, bits) = rules_for(&profile, arches, &call);
            let what = || format!("{arches:?} default {} {call:x?}\n{}", profile.default_action, json!(rules));
            // What the rules themselves say, where they say one thing.
            let through_another = call.arch == Arch::X86.audit() && matches!(call.number, 102 | 117);
            if rules.iter().any(|rule| holds(rule, &call, bits)) && !through_another {
                let those = rules.iter().filter(|rule| holds(rule, &call, bits));
                let mut said = those.map(|rule| action(&rule.action, rule.errno_ret).unwrap());
                assert!(said.any(|said| said == verdict), "{verdict:#x} is what no rule says: {}", what());
            }
            let Some(theirs) = &theirs else { continue };
            let other = machine::run(theirs, &call).0;
            if is_merged(&rules) {
                merged += 1;
                merged_otherwise += u32::from(verdict != other);
            } else {
                assert_eq!(verdict, other, "ours {verdict:#x}, libseccomp's {other:#x}: {}", what());
            }
        }
    }
    assert!(compared >= 500, "only {compared} profiles compared");
    assert!(forgetful < 70, "{forgetful} programs of libseccomp that forget the number");
    assert!(merged_otherwise * 100 < merged, "of {merged} calls with merged rules {merged_otherwise} end otherwise");
}

/// Debian's own copy of the profile, that of podman.
const PODMANS: &str = "/usr/share/containers/seccomp.json";

#[test]
fn the_default_profile_is_podmans_with_the_calls_of_newer_kernels() {
    let text = std::fs::read(PODMANS).expect("golang-github-containers-common: scripts/setup test installs it");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let some = ["CAP_CHOWN", "CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"];
    let many =
        ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_SYS_RAWIO"];
    let mut random = Random(7);
    let mut oracle = Oracle::new();
    for (arch, bounding) in [(Arch::X86_64, names(&[])), (Arch::X86_64, names(&some)), (Arch::Aarch64, names(&many))] {
        let ours = default::profile(arch, &bounding);
        let theirs = profile::parse(&text, PODMANS, arch, &bounding).unwrap();
        let ours = compile_for(&ours, arch).unwrap().program;
        let theirs = compile_for(&theirs, arch).unwrap().program;
        let mut newer = std::collections::BTreeSet::new();
        for arch in [arch].iter().chain(arch.companions()) {
            for (name, row) in NUMBERS.iter().filter(|(_, row)| row[*arch as usize] >= 0) {
                for _ in 0..20 {
                    let args = [0; 6].map(|_: u64| random.value());
                    let call = Call { number: row[*arch as usize] as u32, arch: arch.audit(), args };
                    if machine::run(&ours, &call).0 != machine::run(&theirs, &call).0 {
                        newer.insert(*name);
                    }
                }
            }
        }
        let rest: Vec<&&str> = newer.iter().filter(|name| !NEWER.contains(*name)).collect();
        assert!(rest.is_empty(), "{rest:?} differ for {bounding:?}");
    }
    // And libseccomp would make the same of it.
    let mut profile = default::profile(Arch::X86_64, &names(&some));
    let known = known_names();
    profile.syscalls.iter_mut().for_each(|rule| rule.names.retain(|name| known.contains(&&**name)));
    let arches = [Arch::X86_64, Arch::X86, Arch::X32];
    let theirs = oracle.program(&profile, &arches).unwrap();
    let ours = compile_for(&profile, Arch::X86_64).unwrap().program;
    let (mut steps, mut their_steps, mut calls) = (0, 0, 0);
    for arch in arches {
        for number in (0..600).map(|n| if arch == Arch::X32 { n | X32_BIT } else { n }) {
            for _ in 0..5 {
                let args = [0; 6].map(|_: u64| random.value());
                let call = Call { number, arch: arch.audit(), args };
                let (a, b) = (machine::run(&ours, &call), machine::run(&theirs, &call));
                assert_eq!(a.0, b.0, "{arch:?} {call:x?}");
                (steps, their_steps, calls) = (steps + a.1, their_steps + b.1, calls + 1);
            }
        }
    }
    println!(
        "{} instructions, libseccomp {}; {} a call, {}",
        ours.len(),
        theirs.len(),
        steps / calls,
        their_steps / calls
    );
    assert!(ours.len() < theirs.len() && steps < their_steps);
}

/// What the kernel has now and Debian's profile does not name, and what podman allows since.
const NEWER: [&str; 23] = [
    "cachestat",
    "fchmodat2",
    "file_getattr",
    "file_setattr",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "getxattrat",
    "io_pgetevents",
    "io_pgetevents_time64",
    "listmount",
    "listxattrat",
    "map_shadow_stack",
    "mseal",
    "open_tree_attr",
    "quotactl_fd",
    "removexattrat",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "setxattrat",
    "statmount",
    "uretprobe",
];

/// How long it takes to make the filter of the default profile: run with --ignored --nocapture, --release.
#[test]
#[ignore = "a measurement"]
fn time_of_compiling() {
    let names: Vec<String> = sheep_ns::caps::DEFAULT.map(String::from).to_vec();
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        let profile = default::profile(Arch::X86_64, &names);
        std::hint::black_box(sheep_ns::seccomp::compile(&profile).unwrap());
    }
    println!("{:?} a compilation", start.elapsed() / 1000);
}
