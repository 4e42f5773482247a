//! Tables: profiles in, errors and pieces of programs out. That whole programs say what they should is proved against
//! libseccomp, in tests/seccomp.

use serde_json::{Value, json};

use super::*;
use crate::exit::{Kind, kind};

fn profile(value: Value) -> Seccomp {
    serde_json::from_value(value).unwrap()
}

fn compiled(value: Value) -> Result<Filter> {
    compile_for(&profile(value), Arch::X86_64)
}

#[test]
fn a_profile_without_rules() {
    let filter = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38})).unwrap();
    let insn = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let want = [
        insn(0x20, 0, 0, 4),
        insn(0x15, 0, 4, 0xc000_003e),
        insn(0x20, 0, 0, 0),
        // Numbers of x32 end the process; -1 is left to the default.
        insn(0x35, 0, 1, 0x4000_0000),
        insn(0x35, 0, 1, 0xffff_ffff),
        insn(0x06, 0, 0, 0x0005_0026),
        insn(0x06, 0, 0, 0x8000_0000),
    ];
    assert_eq!((filter.program.as_slice(), filter.flags, filter.listener.is_some()), (&want[..], 0, false));
}

#[test]
fn unknown_names_are_left_out_and_told() {
    let rule = json!({"names": ["read", "frobnicate", "arm_fadvise64_64", "frobnicate"], "action": "SCMP_ACT_ERRNO"});
    let filter = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})).unwrap();
    assert_eq!(filter.unknown, ["frobnicate"]);
}

#[test]
fn flags_and_listeners() {
    let notify = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
    for (flags, syscalls, path, want) in [
        (json!([]), json!(null), "", 0),
        (
            json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]),
            json!([]),
            "",
            6,
        ),
        (json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), json!([]), "/s", 0),
        (json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), notify, "/s", 40),
    ] {
        let value =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "syscalls": syscalls, "listenerPath": path});
        assert_eq!(compiled(value).unwrap().flags, want, "{flags}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let arg = |index: u32, op: &str| {
        rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": index, "value": 1, "op": op}]}))
    };
    let many: Vec<Value> = (0..1500)
        .map(|n| json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"}]}))
        .collect();
    let contrary = json!([
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]);
    for (value, want) in [
        (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "'SCMP_ACT_MAYBE' is no action"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "returns no error number"),
        (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}), "at most 4095"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}),
            "SCMP_ARCH_S390X is none of",
        ),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["FAST"]}), "flags: 'FAST'"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "listenerPath"),
        (rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})), "without names"),
        (rule(json!({"names": ["read"], "action": "ERRNO"})), "read: linux.seccomp: 'ERRNO'"),
        (arg(6, "SCMP_CMP_EQ"), "index 6"),
        (arg(0, "EQ"), "'EQ' is no comparison"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many}), "the kernel takes 4096"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": contrary}), "read: two rules with the same arguments"),
    ] {
        let error = compiled(value).unwrap_err();
        assert!(format!("{error:#}").contains(want), "{want}: {error:#}");
        assert_eq!(kind(&error), Some(Kind::Usage), "{error:#}");
    }
}

#[test]
fn names_are_sorted() {
    assert!(numbers::NUMBERS.is_sorted_by(|(a, _), (b, _)| a < b));
}
