//! The OCI runtime specification's JSON, Linux part: plain data, as the files have it.

pub mod config;
pub mod features;
pub mod name;
pub mod seccomp;
pub mod state;

pub use config::*;
pub use name::Name;
pub use seccomp::{Seccomp, SyscallArg, SyscallRule};
pub use state::{State, Status};

/// The version of the runtime specification these types follow, as containers' states give it.
pub const VERSION: &str = "1.2.0";

/// The `ociVersion` of the config.json that we write: the oldest that has all we use, since runtimes refuse versions that
/// they do not know (crun 1.8 takes nothing after 1.0).
pub const WRITTEN_VERSION: &str = "1.0.2";

#[cfg(test)]
mod tests {
    use super::*;

    /// One of everything; what is read is written again, so nothing is lost between `spec`, `jq` and `run`.
    const WHOLE: &str = r#"{"ociVersion":"1.2.0","process":{"terminal":true,"consoleSize":{"height":24,"width":80},
        "user":{"uid":1,"gid":2,"umask":18,"additionalGids":[5,6]},"args":["sh"],"env":["A=b"],"cwd":"/",
        "capabilities":{"bounding":["CAP_CHOWN"],"ambient":["CAP_KILL"]},
        "rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":18446744073709551615}],"noNewPrivileges":true,
        "oomScoreAdj":-5,"scheduler":{"policy":"SCHED_OTHER"},"ioPriority":{"class":"IOPRIO_CLASS_IDLE"},
        "execCPUAffinity":{"initial":"0"},"apparmorProfile":"p","selinuxLabel":"l"},
        "root":{"path":"rootfs","readonly":true},"hostname":"h","domainname":"d",
        "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"],
        "uidMappings":[{"containerID":0,"hostID":1000,"size":10}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}],
        "hooks":{"poststop":[{"path":"/x"}]},"annotations":{"a":"b"},
        "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"},{"type":"mount"},
        {"type":"ipc"},{"type":"uts"},{"type":"user"},{"type":"cgroup"},{"type":"time"}],
        "uidMappings":[{"containerID":0,"hostID":1000,"size":1}],"gidMappings":[{"containerID":0,"hostID":1000,"size":1}],
        "timeOffsets":{"monotonic":{"secs":-3,"nanosecs":4}},
        "devices":[{"type":"c","path":"/dev/fuse","major":10,"minor":229,"fileMode":438,"uid":0,"gid":0}],
        "cgroupsPath":"/a/b","resources":{"devices":[{"allow":false,"access":"rwm"}],
        "memory":{"limit":1,"reservation":2,"swap":-1,"kernel":4,"kernelTCP":5,"swappiness":6,"disableOOMKiller":false,
        "useHierarchy":true,"checkBeforeUpdate":true},"cpu":{"shares":1024,"quota":-1,"burst":1,"period":100000,
        "realtimeRuntime":1,"realtimePeriod":2,"cpus":"0-1","mems":"0","idle":1},"pids":{"limit":10},
        "blockIO":{"weight":10,"leafWeight":11,"weightDevice":[{"major":8,"minor":0,"weight":500,"leafWeight":300}],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],"throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2}],
        "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":3}],"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":4}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":7}],"network":{"classID":1},
        "rdma":{"mlx5":{"hcaHandles":3,"hcaObjects":4}},"unified":{"memory.high":"1"}},
        "rootfsPropagation":"slave","seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86"],
        "flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/s","listenerMetadata":"m","syscalls":[{"names":["read"],
        "action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":0,"value":18446744073709551615,"valueTwo":2,
        "op":"SCMP_CMP_MASKED_EQ"}]}]},"sysctl":{"kernel.msgmax":"1"},
        "maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"],"mountLabel":"m","intelRdt":{"closID":"g"},
        "personality":{"domain":"LINUX32"},"netDevices":{"eth1":{},"eth2":{"name":"eth0"}},
        "memoryPolicy":{"mode":"MPOL_BIND","nodes":"0","flags":["MPOL_F_STATIC_NODES"]}},"vm":{"kernel":{"path":"/k"}}}"#;

    #[test]
    fn what_is_read_is_written_again() {
        let config: Config = serde_json::from_str(WHOLE).unwrap();
        let want: serde_json::Value = serde_json::from_str(WHOLE).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), want);
    }

    #[test]
    fn absent_is_absent() {
        let least = r#"{"ociVersion":"1.0.0","process":{"user":{"uid":0,"gid":0},"cwd":"/"},"linux":{}}"#;
        let config: Config = serde_json::from_str(least).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), least);
        assert!(serde_json::from_str::<Config>(r#"{"ociVersion":"1","linux":{"namespaces":[{"type":"x"}]}}"#).is_err());
    }
}
