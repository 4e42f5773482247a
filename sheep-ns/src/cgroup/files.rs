//! `linux.resources` as files of the cgroup v2 tree and what is written to them. Pure; what cgroup v2 cannot express is
//! an error that names the setting.

use anyhow::{Result, bail};

use crate::exit;
use crate::oci::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// The period of `cpu.max` where none is asked for, in microseconds: the kernel's own.
const DEFAULT_PERIOD: u64 = 100_000;

/// One write to one file of the group's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller whose file it is; `cgroup` for those every group has.
    pub controller: String,
    /// File name in the group's directory.
    pub file: String,
    /// What is written.
    pub value: String,
    /// The setting in words, for errors: `memory limit`.
    pub what: &'static str,
    /// File and value to use where the first file does not exist.
    pub otherwise: Option<(String, String)>,
}

impl Setting {
    fn new(what: &'static str, file: impl Into<String>, value: impl ToString) -> Setting {
        let file = file.into();
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        Setting { controller, file, value: value.to_string(), what, otherwise: None }
    }

    /// Whether it is the weight that engines write for every container: as much as any other. Without a controller for
    /// weights that is so.
    pub fn is_ordinary_weight(&self) -> bool {
        self.file == "cpu.weight" && self.value == weight_of_shares(1024).to_string()
    }

    /// Whether a new group has this value anyway.
    pub fn is_default(&self) -> bool {
        match self.value.as_str() {
            "max" => self.file.ends_with(".max"),
            "0" => ["memory.low", "cpu.idle", "cpu.max.burst"].contains(&self.file.as_str()),
            value => self.file == "cpu.max" && value == format!("max {DEFAULT_PERIOD}"),
        }
    }
}

/// The settings for `resources`, in the order they are to be written. Limits that are zero or negative are `max`.
/// Errors with usage where a value makes no sense or cgroup v2 has nothing like it.
pub fn files(resources: &Resources) -> Result<Vec<Setting>> {
    let mut out = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_files(memory, &mut out)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_files(cpu, &mut out)?;
    }
    if let Some(pids) = &resources.pids {
        out.push(Setting::new("pids limit", "pids.max", limit(pids.limit)));
    }
    if let Some(block_io) = &resources.block_io {
        io_files(block_io, &mut out)?;
    }
    for huge in &resources.hugepage_limits {
        if huge.page_size.is_empty() || !huge.page_size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(exit::usage(format!("linux.resources.hugepageLimits: {:?} is no page size", huge.page_size)));
        }
        out.push(Setting::new("huge page limit", format!("hugetlb.{}.max", huge.page_size), huge.limit));
    }
    for (device, rdma) in &resources.rdma {
        let handles = rdma.hca_handles.map_or("max".to_owned(), |n| n.to_string());
        let objects = rdma.hca_objects.map_or("max".to_owned(), |n| n.to_string());
        let value = format!("{device} hca_handle={handles} hca_object={objects}");
        out.push(Setting::new("rdma limit", "rdma.max", value));
    }
    if resources.network.as_ref().is_some_and(is_something) {
        bail!(v1_only("network (classID, priorities)"));
    }
    unified_files(resources, &mut out)?;
    Ok(out)
}

fn memory_files(memory: &Memory, out: &mut Vec<Setting>) -> Result<()> {
    for (name, asked) in [
        ("memory.kernel", memory.kernel.is_some_and(|n| n > 0)),
        ("memory.kernelTCP", memory.kernel_tcp.is_some_and(|n| n > 0)),
        ("memory.swappiness", memory.swappiness.is_some()),
        ("memory.disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ("memory.useHierarchy: false", memory.use_hierarchy == Some(false)),
    ] {
        if asked {
            bail!(v1_only(name));
        }
    }
    if let Some(bytes) = memory.limit {
        out.push(Setting::new("memory limit", "memory.max", limit(bytes)));
    }
    match memory.swap {
        // Both together are unlimited where the first is.
        None if memory.limit.is_some_and(|bytes| bytes < 0) => {
            out.push(Setting::new("swap limit", "memory.swap.max", "max"));
        }
        None | Some(0) => {}
        Some(swap) if swap < 0 => out.push(Setting::new("swap limit", "memory.swap.max", "max")),
        // The configuration counts memory and swap together, cgroup v2 counts swap alone.
        Some(swap) => match memory.limit {
            Some(bytes) if bytes > 0 && swap >= bytes => {
                out.push(Setting::new("swap limit", "memory.swap.max", swap - bytes));
            }
            Some(bytes) if bytes > 0 => {
                return Err(exit::usage(format!(
                    "linux.resources.memory.swap: {swap} is less than the memory limit, {bytes}; it counts both"
                )));
            }
            _ => return Err(exit::usage("linux.resources.memory.swap: cannot be set without memory.limit")),
        },
    }
    if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
        out.push(Setting::new("memory reservation", "memory.low", bytes.max(0)));
    }
    Ok(())
}

fn cpu_files(cpu: &Cpu, out: &mut Vec<Setting>) -> Result<()> {
    if cpu.realtime_runtime.is_some_and(|n| n != 0) || cpu.realtime_period.is_some_and(|n| n != 0) {
        bail!(v1_only("cpu.realtimeRuntime and realtimePeriod"));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        out.push(Setting::new("cpu shares", "cpu.weight", weight_of_shares(shares)));
    }
    if let Some(idle) = cpu.idle {
        if !(0..=1).contains(&idle) {
            return Err(exit::usage(format!("linux.resources.cpu.idle: {idle} is neither 0 nor 1")));
        }
        out.push(Setting::new("cpu idle", "cpu.idle", idle));
    }
    let quota = cpu.quota.filter(|quota| *quota > 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some_and(|quota| quota < 1000) {
        return Err(exit::usage("linux.resources.cpu.quota: at least 1000 microseconds"));
    }
    if period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
        return Err(exit::usage("linux.resources.cpu.period: 1000 to 1000000 microseconds"));
    }
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
        out.push(Setting::new("cpu limit", "cpu.max", value));
    } else if cpu.quota.is_some() {
        out.push(Setting::new("cpu limit", "cpu.max", "max"));
    }
    if let Some(burst) = cpu.burst {
        out.push(Setting::new("cpu burst", "cpu.max.burst", burst));
    }
    for (what, file, list) in [("cpuset", "cpuset.cpus", &cpu.cpus), ("cpuset", "cpuset.mems", &cpu.mems)] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { continue };
        if !list.bytes().all(|b| b.is_ascii_digit() || b"-,: ".contains(&b)) {
            return Err(exit::usage(format!("linux.resources.cpu: {list:?} is no list like 0-2,7")));
        }
        out.push(Setting::new(what, file, list));
    }
    Ok(())
}

/// `cpu.weight` (1 to 10000) for shares (2 to 262144), as crun 1.8 converts them; what is outside is the nearest end.
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

fn io_files(io: &BlockIo, out: &mut Vec<Setting>) -> Result<()> {
    let leaf = |weight: Option<u16>| weight.is_some_and(|weight| weight != 0);
    if leaf(io.leaf_weight) || io.weight_device.iter().any(|device| leaf(device.leaf_weight)) {
        bail!(v1_only("blockIO.leafWeight"));
    }
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        out.push(io_weight("default", weight)?);
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            out.push(io_weight(&format!("{}:{}", device.major, device.minor), weight)?);
        }
    }
    let rates: [(&str, &[ThrottleDevice]); 4] = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in rates {
        for device in devices {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            let value = format!("{}:{} {key}={rate}", device.major, device.minor);
            out.push(Setting::new("io limit", "io.max", value));
        }
    }
    Ok(())
}

/// BFQ takes the configuration's weight (10 to 1000) as it is; the io controller's own scale is 1 to 10000.
fn io_weight(device: &str, weight: u16) -> Result<Setting> {
    if !(10..=1000).contains(&weight) {
        return Err(exit::usage(format!("linux.resources.blockIO.weight: {weight} is not between 10 and 1000")));
    }
    let scaled = 1 + (u32::from(weight) - 10) * 9999 / 990;
    let mut setting = Setting::new("io weight", "io.bfq.weight", format!("{device} {weight}"));
    setting.otherwise = Some(("io.weight".to_owned(), format!("{device} {scaled}")));
    Ok(setting)
}

/// `unified` is written as it is, last, so that it has the last word; the names stay inside the group's directory and
/// off the files that move processes.
fn unified_files(resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    for (file, value) in &resources.unified {
        let wrong = |why: &str| Err(exit::usage(format!("linux.resources.unified: {file:?} {why}")));
        let well_formed = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        match file.split_once('.') {
            Some((controller, rest)) if well_formed && !controller.is_empty() && !rest.is_empty() => {}
            _ => return wrong("is not of the form controller.file"),
        }
        if file.starts_with("cgroup.") && !file.starts_with("cgroup.max.") {
            return wrong("is not a limit");
        }
        // Files of several lines take one line a write.
        out.extend(value.lines().map(|line| Setting::new("unified", file.as_str(), line)));
    }
    Ok(())
}

fn limit(value: i64) -> String {
    if value > 0 { value.to_string() } else { "max".to_owned() }
}

fn is_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Object(map) => map.values().any(is_something),
        serde_json::Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

fn v1_only(name: &str) -> anyhow::Error {
    exit::usage(format!("linux.resources.{name}: cgroup v2 has no such setting"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<Vec<String>> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let one = |setting: &Setting| format!("{}:{}={}", setting.controller, setting.file, setting.value);
        Ok(files(&resources)?.iter().map(one).collect())
    }

    #[test]
    fn what_is_written() {
        for (json, want) in [
            ("{}", &[][..]),
            (r#"{"memory":{"limit":33554432}}"#, &["memory:memory.max=33554432"]),
            (r#"{"memory":{"limit":-1}}"#, &["memory:memory.max=max", "memory:memory.swap.max=max"]),
            (r#"{"memory":{"limit":0,"swap":0,"kernel":-1,"disableOOMKiller":false}}"#, &["memory:memory.max=max"]),
            (r#"{"memory":{"reservation":-1}}"#, &["memory:memory.low=0"]),
            (r#"{"cpu":{"burst":0,"idle":0}}"#, &["cpu:cpu.idle=0", "cpu:cpu.max.burst=0"]),
            (r#"{"memory":{"limit":100,"swap":100}}"#, &["memory:memory.max=100", "memory:memory.swap.max=0"]),
            (r#"{"memory":{"limit":100,"swap":300}}"#, &["memory:memory.max=100", "memory:memory.swap.max=200"]),
            (r#"{"memory":{"swap":-1}}"#, &["memory:memory.swap.max=max"]),
            (r#"{"memory":{"reservation":7,"useHierarchy":true}}"#, &["memory:memory.low=7"]),
            (r#"{"cpu":{"quota":50000}}"#, &["cpu:cpu.max=50000 100000"]),
            (r#"{"cpu":{"quota":50000,"period":200000}}"#, &["cpu:cpu.max=50000 200000"]),
            (r#"{"cpu":{"period":200000}}"#, &["cpu:cpu.max=max 200000"]),
            (r#"{"cpu":{"quota":-1}}"#, &["cpu:cpu.max=max"]),
            (r#"{"cpu":{"quota":0,"period":0,"shares":0}}"#, &["cpu:cpu.max=max"]),
            (r#"{"cpu":{"shares":1024}}"#, &["cpu:cpu.weight=39"]),
            (r#"{"cpu":{"shares":2,"idle":1}}"#, &["cpu:cpu.weight=1", "cpu:cpu.idle=1"]),
            (r#"{"cpu":{"quota":2000,"burst":5}}"#, &["cpu:cpu.max=2000 100000", "cpu:cpu.max.burst=5"]),
            (r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#, &["cpuset:cpuset.cpus=0-1", "cpuset:cpuset.mems=0"]),
            (r#"{"pids":{"limit":20}}"#, &["pids:pids.max=20"]),
            (r#"{"pids":{"limit":0}}"#, &["pids:pids.max=max"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids:pids.max=max"]),
            (r#"{"blockIO":{"weight":1000}}"#, &["io:io.bfq.weight=default 1000"]),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}],
                    "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                &["io:io.max=8:0 rbps=5", "io:io.max=8:16 wiops=max"],
            ),
            (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#, &["hugetlb:hugetlb.2MB.max=9"]),
            (r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#, &["rdma:rdma.max=mlx5_1 hca_handle=3 hca_object=max"]),
            (r#"{"network":{}}"#, &[]),
            (
                r#"{"unified":{"memory.high":"5"},"memory":{"limit":9}}"#,
                &["memory:memory.max=9", "memory:memory.high=5"],
            ),
            (r#"{"unified":{"io.max":"8:0 rbps=1\n8:1 rbps=2"}}"#, &["io:io.max=8:0 rbps=1", "io:io.max=8:1 rbps=2"]),
            (r#"{"unified":{"cgroup.max.depth":"2"}}"#, &["cgroup:cgroup.max.depth=2"]),
        ] {
            assert_eq!(written(json).unwrap(), want, "{json}");
        }
    }

    #[test]
    fn what_is_refused_by_name() {
        for (json, want) in [
            (r#"{"memory":{"kernel":5}}"#, "memory.kernel"),
            (r#"{"memory":{"kernelTCP":5}}"#, "memory.kernelTCP"),
            (r#"{"memory":{"swappiness":0}}"#, "memory.swappiness"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller"),
            (r#"{"memory":{"useHierarchy":false}}"#, "memory.useHierarchy"),
            (r#"{"memory":{"swap":5}}"#, "without memory.limit"),
            (r#"{"memory":{"limit":10,"swap":5}}"#, "less than the memory limit"),
            (r#"{"cpu":{"realtimeRuntime":1}}"#, "realtimeRuntime"),
            (r#"{"cpu":{"quota":999}}"#, "cpu.quota"),
            (r#"{"cpu":{"period":999}}"#, "cpu.period"),
            (r#"{"cpu":{"period":1000001}}"#, "cpu.period"),
            (r#"{"cpu":{"idle":2}}"#, "cpu.idle"),
            (r#"{"cpu":{"cpus":"0\n1"}}"#, "no list"),
            (r#"{"network":{"classID":1}}"#, "network"),
            (r#"{"blockIO":{"leafWeight":10}}"#, "leafWeight"),
            (r#"{"blockIO":{"weight":5}}"#, "blockIO.weight"),
            (r#"{"hugepageLimits":[{"pageSize":"../x","limit":9}]}"#, "page size"),
            (r#"{"unified":{"../x.max":"1"}}"#, "controller.file"),
            (r#"{"unified":{"memory":"1"}}"#, "controller.file"),
            (r#"{"unified":{".max":"1"}}"#, "controller.file"),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, "not a limit"),
            (r#"{"unified":{"cgroup.kill":"1"}}"#, "not a limit"),
        ] {
            let error = written(json).unwrap_err();
            assert!(format!("{error:#}").contains(want), "{json}: {error:#}");
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{json}");
        }
    }

    #[test]
    fn shares_as_crun_converts_them() {
        for (shares, weight) in
            [(1, 1), (2, 1), (512, 20), (1024, 39), (2048, 79), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
