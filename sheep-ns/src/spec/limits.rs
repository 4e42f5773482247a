//! Flags that limit: sizes, control group resources, rlimits.

use anyhow::Result;

use crate::exit;
use crate::oci::{Cpu, Memory, Pids, Resources, Rlimit};

use super::SpecFlags;

/// The limits of setrlimit(2), without `RLIMIT_`.
const RLIMITS: [&str; 16] = [
    "AS",
    "CORE",
    "CPU",
    "DATA",
    "FSIZE",
    "LOCKS",
    "MEMLOCK",
    "MSGQUEUE",
    "NICE",
    "NOFILE",
    "NPROC",
    "RSS",
    "RTPRIO",
    "RTTIME",
    "SIGPENDING",
    "STACK",
];

/// A size in bytes: digits, and `k`, `m`, `g` or `t` (also `kb`, `kib`, …) for powers of 1024; `b` is bytes.
pub fn size(text: &str) -> Result<i64> {
    let wrong = || exit::usage(format!("{text:?} is not a size: a number, then k, m, g or nothing"));
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The resources that flags ask for. Zero is "no limit" for all of them.
pub fn resources(flags: &SpecFlags) -> Result<Resources> {
    let mut resources = Resources::default();
    if let Some(text) = &flags.memory {
        let bytes = size(text).map_err(|error| error.context("--memory"))?;
        if bytes > 0 {
            // Memory and swap together: what is asked for is the most it can use, not the most before it swaps.
            resources.memory = Some(Memory { limit: Some(bytes), swap: Some(bytes), ..Memory::default() });
        }
    }
    let quota = flags.cpu_quota.filter(|quota| *quota != 0);
    let period = flags.cpu_period.filter(|period| *period != 0);
    let shares = flags.cpu_shares.filter(|shares| *shares != 0);
    if quota.is_some() || period.is_some() || shares.is_some() {
        resources.cpu = Some(Cpu { quota, period, shares, ..Cpu::default() });
    }
    if let Some(limit) = flags.pids_limit.filter(|limit| *limit != 0) {
        resources.pids = Some(Pids { limit });
    }
    Ok(resources)
}

/// `--rlimit TYPE=SOFT[:HARD]`; the last one of a type counts.
pub fn rlimits(asked: &[String]) -> Result<Vec<Rlimit>> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for text in asked {
        let wrong = |why: &str| exit::usage(format!("--rlimit {text:?}: {why}"));
        let (kind, values) = text.split_once('=').ok_or_else(|| wrong("not of the form TYPE=SOFT[:HARD]"))?;
        let upper = kind.to_ascii_uppercase();
        let kind = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
        if !RLIMITS.contains(&kind) {
            return Err(wrong("no such limit; setrlimit(2) lists them, as 'nofile' for RLIMIT_NOFILE"));
        }
        let number = |text: &str| match text {
            "unlimited" | "-1" => Ok(u64::MAX),
            digits => digits.parse().map_err(|_| wrong("not a number, nor 'unlimited'")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Rlimit { kind: format!("RLIMIT_{kind}"), soft: number(soft)?, hard: number(hard)? };
        if limit.soft > limit.hard {
            return Err(wrong("the soft limit is above the hard one"));
        }
        limits.retain(|other| other.kind != limit.kind);
        limits.push(limit);
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("1b", 1),
            ("32m", 32 << 20),
            ("32M", 32 << 20),
            ("1k", 1024),
            ("2gb", 2 << 30),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "m", "-1", "1.5g", "1x", "1 m", "9223372036854775808", "9223372036854775807k", "ä", "1kk"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resources_of_flags() {
        let json = |flags: SpecFlags| serde_json::to_string(&resources(&flags).unwrap()).unwrap();
        let none = SpecFlags::default();
        assert_eq!(json(none.clone()), "{}");
        assert_eq!(
            json(SpecFlags { memory: Some("32m".into()), pids_limit: Some(20), ..none.clone() }),
            r#"{"memory":{"limit":33554432,"swap":33554432},"pids":{"limit":20}}"#
        );
        assert_eq!(
            json(SpecFlags {
                cpu_quota: Some(50_000),
                cpu_period: Some(100_000),
                cpu_shares: Some(512),
                ..none.clone()
            }),
            r#"{"cpu":{"shares":512,"quota":50000,"period":100000}}"#
        );
        let zero = SpecFlags { memory: Some("0".into()), cpu_quota: Some(0), pids_limit: Some(0), ..none };
        assert_eq!(json(zero), "{}");
    }

    #[test]
    fn rlimits_of_flags() {
        let all = |texts: &[&str]| rlimits(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            serde_json::to_string(
                &all(&["nofile=1024:4096", "RLIMIT_CORE=0", "nproc=5", "nproc=6:unlimited"]).unwrap()
            )
            .unwrap(),
            r#"[{"type":"RLIMIT_NOFILE","hard":4096,"soft":1024},{"type":"RLIMIT_CORE","hard":0,"soft":0},{"type":"RLIMIT_NPROC","hard":18446744073709551615,"soft":6}]"#
        );
        for bad in ["nofile", "nofile=", "files=1", "nofile=5:4", "nofile=a", "nofile=1:2:3", "=1"] {
            assert!(all(&[bad]).is_err(), "{bad}");
        }
    }
}
