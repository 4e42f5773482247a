//! What a group has used, in the form of `runc events --stats`, which suites and older engines read: the names are those of
//! cgroup v1, the values cgroup v2's. What a controller that is off would tell is zero.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::Cgroup;
use super::tree::field;

impl Cgroup {
    /// The group's use of processors (nanoseconds), memory (bytes), tasks, block devices and huge pages, with its limits; no
    /// limit is 2^64 - 1, and 0 for tasks.
    pub fn stats(&self) -> Result<Value> {
        let text = |file: &str| Ok::<_, anyhow::Error>(self.read(file)?.unwrap_or_default());
        let pids = match self.read("pids.current")? {
            Some(current) => {
                json!({"current": number(&current), "limit": number(&text("pids.max")?.replace("max", "0"))})
            }
            None => json!({"current": self.pids()?.len(), "limit": 0}),
        };
        let mut cpu = cpu(&text("cpu.stat")?);
        let mut memory = self.memory()?;
        let mut blkio = block_io(&text("io.stat")?);
        for (value, file) in [(&mut cpu, "cpu.pressure"), (&mut memory, "memory.pressure"), (&mut blkio, "io.pressure")]
        {
            if let Some(pressure) = pressure(&text(file)?) {
                value["psi"] = pressure;
            }
        }
        Ok(json!({
            "cpu": cpu,
            "cpuset": {
                "cpus": list(&text("cpuset.cpus.effective")?),
                "cpu_exclusive": 0,
                "mems": list(&text("cpuset.mems.effective")?),
                "mem_hardwall": 0,
                "mem_exclusive": 0,
                "memory_migrate": 0,
                "memory_spread_page": 0,
                "memory_spread_slab": 0,
                "memory_pressure": 0,
                "sched_load_balance": 0,
                "sched_relax_domain_level": 0,
            },
            "memory": memory,
            "pids": pids,
            "blkio": blkio,
            "hugetlb": self.huge_pages()?,
            "intel_rdt": {},
            "network_interfaces": null,
        }))
    }

    fn memory(&self) -> Result<Value> {
        let of = |file: &str| Ok::<_, anyhow::Error>(self.read(file)?.map_or(0, |text| number(&text)));
        let stat = self.read("memory.stat")?.unwrap_or_default();
        let events = self.read("memory.events")?.unwrap_or_default();
        let (used, limit) = (of("memory.current")?, of("memory.max")?);
        // Older engines count memory and swap together.
        let (swap_used, swap_limit) = (of("memory.swap.current")?, of("memory.swap.max")?);
        let raw: Map<String, Value> = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(key, n)| (key.to_owned(), number(n).into()))
            .collect();
        let entry = |limit: u64, used: u64, most: u64, failed: u64| json!({"limit": limit, "usage": used, "max": most, "failcnt": failed});
        let event = |key| field(&events, key).unwrap_or(0);
        Ok(json!({
            "cache": field(&stat, "file").unwrap_or(0),
            "usage": entry(limit, used, of("memory.peak")?, event("max")),
            "swap": entry(swap_limit.saturating_add(limit), swap_used + used, 0, 0),
            "kernel": entry(0, 0, 0, 0),
            "kernelTCP": entry(0, 0, 0, 0),
            "raw": raw,
            "event_count": {
                "low": event("low"), "high": event("high"), "max": event("max"), "oom": event("oom"),
                "oom_kill": event("oom_kill"), "oom_group_kill": event("oom_group_kill"),
            },
        }))
    }

    /// By page size, as the kernel names them: `2MB`.
    fn huge_pages(&self) -> Result<Map<String, Value>> {
        let mut sizes = Map::new();
        for file in self.files()? {
            let Some(size) = file.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".current")) else {
                continue;
            };
            let Some(size) = Some(size).filter(|size| !size.contains('.')) else { continue };
            let used = self.read(&file)?.map_or(0, |text| number(&text));
            let events = self.read(&format!("hugetlb.{size}.events"))?.unwrap_or_default();
            let failed = field(&events, "max").unwrap_or(0);
            sizes.insert(size.to_owned(), json!({"usage": used, "max": 0, "failcnt": failed}));
        }
        Ok(sizes)
    }
}

/// A number; `max` is the largest.
fn number(text: &str) -> u64 {
    let text = text.trim();
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// `cpu.stat`, which counts microseconds.
fn cpu(stat: &str) -> Value {
    let of = |key| field(stat, key).unwrap_or(0);
    json!({
        "usage": {
            "total": of("usage_usec") * 1000, "kernel": of("system_usec") * 1000, "user": of("user_usec") * 1000,
        },
        "throttling": {
            "periods": of("nr_periods"), "throttledPeriods": of("nr_throttled"),
            "throttledTime": of("throttled_usec") * 1000,
        },
    })
}

/// `io.stat`: lines like `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn block_io(stat: &str) -> Value {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in stat.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            table.push(json!({"major": number(major), "minor": number(minor), "op": op, "value": number(value)}));
        }
    }
    json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations})
}

/// A pressure file: lines like `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. `None` where it is empty.
fn pressure(text: &str) -> Option<Value> {
    let mut kinds = Map::new();
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let mut values = Map::new();
        for (key, value) in rest.split(' ').filter_map(|word| word.split_once('=')) {
            let value = if key == "total" { json!(number(value)) } else { json!(value.parse::<f64>().unwrap_or(0.0)) };
            values.insert(key.to_owned(), value);
        }
        kinds.insert(kind.to_owned(), values.into());
    }
    (!kinds.is_empty()).then(|| kinds.into())
}

/// A list of numbers like `0-2,7`.
fn list(text: &str) -> Vec<u16> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        let stat = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n";
        assert_eq!(cpu(stat)["usage"], json!({"total": 5000, "kernel": 2000, "user": 3000}));
        assert_eq!(cpu(stat)["throttling"], json!({"periods": 7, "throttledPeriods": 1, "throttledTime": 9000}));
        let io = block_io("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n");
        assert_eq!(io["ioServiceBytesRecursive"][1], json!({"major": 8, "minor": 0, "op": "Write", "value": 2}));
        assert_eq!(io["ioServicedRecursive"].as_array().unwrap().len(), 2);
        let some = pressure("some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n").unwrap();
        assert_eq!(some, json!({"some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.0, "total": 12}}));
        assert!(pressure("").is_none());
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert!(list("\n").is_empty());
        assert_eq!((number("max\n"), number("4\n")), (u64::MAX, 4));
    }
}
