"""Profiles in, libseccomp's programs out: one JSON object a line, one line of hexadecimal (or 'error ...') a profile.

Rules are added as crun and runc add them: not those with the default action, and each condition on its own where two are
on one argument."""
import json
import os
import sys
import tempfile

import seccomp

OPS = {
    "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_LT": seccomp.LT, "SCMP_CMP_LE": seccomp.LE, "SCMP_CMP_EQ": seccomp.EQ,
    "SCMP_CMP_GE": seccomp.GE, "SCMP_CMP_GT": seccomp.GT, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ,
}
ARCHES = {
    "SCMP_ARCH_X86_64": seccomp.Arch.X86_64, "SCMP_ARCH_X86": seccomp.Arch.X86, "SCMP_ARCH_X32": seccomp.Arch.X32,
    "SCMP_ARCH_AARCH64": seccomp.Arch.AARCH64, "SCMP_ARCH_ARM": seccomp.Arch.ARM,
    "SCMP_ARCH_RISCV64": seccomp.Arch.RISCV64,
}
# As the C int that the bindings take.
KILL_PROCESS = 0x80000000 - (1 << 32)


def action(word, errno):
    plain = {
        "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": KILL_PROCESS, "SCMP_ACT_TRAP": 0x30000,
        "SCMP_ACT_LOG": 0x7ffc0000, "SCMP_ACT_ALLOW": 0x7fff0000, "SCMP_ACT_NOTIFY": 0x7fc00000,
    }
    if word in plain:
        return plain[word]
    return {"SCMP_ACT_ERRNO": 0x50000, "SCMP_ACT_TRACE": 0x7ff00000}[word] | (1 if errno is None else errno)


def arg(condition):
    two = condition.get("valueTwo", 0)
    return seccomp.Arg(condition["index"], OPS[condition["op"]], condition["value"], two)


def program(profile, arches):
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    filter = seccomp.SyscallFilter(default)
    filter.set_attr(seccomp.Attr.ACT_BADARCH, KILL_PROCESS)
    native = seccomp.Arch.X86_64
    for word in arches:
        if ARCHES[word] != native:
            filter.add_arch(ARCHES[word])
    if "SCMP_ARCH_X86_64" not in arches:
        filter.remove_arch(native)
    for rule in profile.get("syscalls", []):
        then = action(rule["action"], rule.get("errnoRet"))
        if then == default:
            continue
        args = rule.get("args", [])
        indices = [condition["index"] for condition in args]
        groups = [args] if len(set(indices)) == len(indices) else [[condition] for condition in args]
        for name in rule["names"]:
            for group in groups:
                filter.add_rule(then, name, *[arg(condition) for condition in group])
    with tempfile.TemporaryFile() as file:
        filter.export_bpf(file)
        return os.pread(file.fileno(), 1 << 20, 0)


for line in sys.stdin:
    case = json.loads(line)
    try:
        print(program(case["profile"], case["arches"]).hex(), flush=True)
    except Exception as error:
        print("error", repr(error), flush=True)
