//! Configurations from a seed, as wild as both runtimes take them, and a script that says all it can see from inside.
//!
//! What is known to differ, and left out here (crun 1.8.1):
//! - crun makes a path of `readonlyPaths` read-only without what is mounted under it, and forgets the options the mount had.
//! - Without `rootfsPropagation` crun undoes the propagation of single mounts; with an unbindable root it cannot mask.
//! - `rro` and the like on a file are refused by crun; in a user namespace it leaves out the options of bind mounts.
//! - crun makes what is missing in a source that is bound read-only; we write nothing to it and fail.
//! - `HOME=/` for a user without a line in /etc/passwd is ours (and runc's); crun sets none.
//! - In a user namespace our device nodes are bound read-only, so that their mode is safe; crun's session keyring belongs to
//!   the host's root there, and ours to the container's.
//! - A hook that does not read its stdin makes crun fail.

use serde_json::{Value, json};

use crate::harness::{Bundle, base};

/// splitmix64: the same numbers for the same seed on every machine.
pub struct Dice(u64);

impl Dice {
    /// Thrown from a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n`.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Each with a chance of one in two, in their order.
    fn some<'a>(&mut self, of: &[&'a str]) -> Vec<&'a str> {
        of.iter().copied().filter(|_| self.once_in(2)).collect()
    }
}

/// What the program says. Sections are separate, so that a difference names its own.
const PROBE: &str = r#"
section() { echo "== $1"; }
section id; id
section status; grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Umask|Seccomp|SigBlk|SigIgn|SigCgt):' /proc/self/status
section limits; cat /proc/self/limits
section oom; cat /proc/self/oom_score_adj
section env; env | sort
section cwd; pwd; ls -ld . | cut -c1
section fds; ls /proc/self/fd
section names; hostname; cat /proc/sys/kernel/domainname
section session; cut -d' ' -f5-8 /proc/1/stat; cat /proc/1/comm
section namespaces; for kind in ipc mnt net pid uts user cgroup time; do readlink /proc/self/ns/$kind; done
section maps; cat /proc/self/uid_map /proc/self/gid_map
section devices; cd /dev; stat -c '%n %F %a %u %g %t %T' * pts/* 2>/dev/null | sort; for f in *; do [ -L $f ] && readlink $f; done
section sysctl; cat /proc/sys/kernel/msgmax /proc/sys/kernel/shmmni /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max
grep . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/conf/lo/rp_filter 2>&1
section network; grep : /proc/net/dev | cut -d: -f1 | sort; ip addr show lo | grep inet
section mounts; cat /proc/self/mountinfo
section root; ls -A / /etc /real /mnt 2>&1; stat -c '%n %F %a %u %g' / /etc /tmp /mnt/* 2>&1
section writes
for path in /x /etc/x /tmp/x /mnt/a/x /mnt/b/x /mnt/c/x /mnt/a/sub/x /dev/x /dev/shm/x /sys/x; do
    touch $path 2>/dev/null && echo "$path: written" && rm $path; done
for path in /proc/sys/kernel/panic /proc/sysrq-trigger /proc/bus/x /dev/null /dev/full /dev/tty; do
    (echo 1 > $path) 2>/dev/null; echo "$path: $?"; done
section reads; for path in /proc/kcore /proc/timer_list /etc/passwd /etc/group /mnt/file; do
    head -c1 $path >/dev/null 2>&1; echo "$path: $? $(head -c100000 $path 2>/dev/null | head -c1 | wc -c)"; done
"#;

const CAPS: [&str; 15] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_SYS_ADMIN",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
];

/// The configuration of a seed.
pub fn config(seed: u64, bundle: &Bundle) -> Value {
    let dice = &mut Dice::new(seed);
    let mut config = base();
    let users = dice.once_in(6);
    namespaces(dice, &mut config, users);
    process(dice, &mut config, users);
    mounts(dice, &mut config, bundle, users);
    rest(dice, &mut config, bundle, users);
    config
}

fn namespaces(dice: &mut Dice, config: &mut Value, users: bool) {
    let mut list = vec![json!({"type": "mount"})];
    for kind in ["pid", "network", "ipc", "uts"] {
        // A user namespace's root can mount proc, sysfs and mqueue only of namespaces that are its own.
        if users || !dice.once_in(5) {
            list.push(json!({"type": kind}));
        }
    }
    if dice.once_in(3) {
        list.push(json!({"type": "cgroup"}));
    }
    if users {
        list.push(json!({"type": "user"}));
        let first = 100_000 + dice.below(5) * 1000;
        let maps = json!([{"containerID": 0, "hostID": first, "size": 2000}, {"containerID": 5000, "hostID": 7000, "size": 1000}]);
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps;
    }
    // In any order.
    for at in (1..list.len()).rev() {
        list.swap(at, dice.below(at as u64 + 1) as usize);
    }
    config["linux"]["namespaces"] = json!(list);
}

fn has(config: &Value, kind: &str) -> bool {
    config["linux"]["namespaces"].as_array().unwrap().iter().any(|namespace| namespace["type"] == kind)
}

fn process(dice: &mut Dice, config: &mut Value, users: bool) {
    let code = dice.below(4);
    let process = &mut config["process"];
    process["args"] = json!(["sh", "-c", format!("{PROBE}\nexit {code}")]);
    let ids = [0, 0, 1, 1000, 1500, 5001, if users { 1 } else { 65534 }, if users { 2 } else { 4_000_000 }];
    let id = |dice: &mut Dice| ids[dice.below(ids.len() as u64) as usize];
    let mut user = json!({"uid": id(dice), "gid": id(dice)});
    if dice.once_in(2) {
        user["additionalGids"] = json!((0..dice.below(5)).map(|_| id(dice)).collect::<Vec<u32>>());
    }
    if dice.once_in(2) {
        user["umask"] = json!([0, 0o22, 0o27, 0o77, 0o777][dice.below(5) as usize]);
    }
    process["user"] = user;
    let variables =
        ["A=1", "B=", "C=a=b", "D= x  y ", "HOME=/tmp", "É=ü", "LONG=0123456789012345678901234567890123456789"];
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    process["env"] = json!([vec![path], dice.some(&variables)].concat());
    process["cwd"] = json!(dice.one(&["/", "/", "/tmp", "/etc", "/made/for/it", "/proc", "/dev/shm", "/link"]));
    process["noNewPrivileges"] = json!(dice.once_in(2));
    if dice.once_in(2) {
        process["oomScoreAdj"] = json!(dice.below(1001));
    }
    match dice.below(4) {
        0 => drop(process.as_object_mut().unwrap().remove("capabilities")),
        1 => {}
        _ => {
            let bounding = dice.some(&CAPS);
            let permitted = dice.some(&bounding);
            let mut sets = json!({"bounding": bounding, "permitted": permitted, "effective": dice.some(&permitted)});
            if dice.once_in(2) {
                let inheritable = dice.some(&permitted);
                sets["ambient"] = json!(dice.some(&inheritable));
                sets["inheritable"] = json!(inheritable);
            }
            process["capabilities"] = sets;
        }
    }
    let kinds = [
        "CORE",
        "NOFILE",
        "NPROC",
        "STACK",
        "FSIZE",
        "CPU",
        "MEMLOCK",
        "SIGPENDING",
        "MSGQUEUE",
        "DATA",
        "LOCKS",
        "RTTIME",
    ];
    let limits: Vec<Value> = dice
        .some(&kinds)
        .into_iter()
        .map(|kind| {
            // Low enough for a root without CAP_SYS_RESOURCE, high enough for the script.
            let hard = match kind {
                "CORE" | "LOCKS" | "MEMLOCK" | "MSGQUEUE" => dice.below(8000),
                "NOFILE" | "NPROC" | "SIGPENDING" => 256 + dice.below(200),
                _ => 100_000_000 + dice.below(1000),
            };
            json!({"type": format!("RLIMIT_{kind}"), "hard": hard, "soft": hard - dice.below(hard.min(50) + 1)})
        })
        .collect();
    if !limits.is_empty() && dice.once_in(2) {
        process["rlimits"] = json!(limits);
    }
}

const FLAGS: [&str; 8] = ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "strictatime", "ro"];

fn mounts(dice: &mut Dice, config: &mut Value, bundle: &Bundle, users: bool) {
    let list = config["mounts"].as_array_mut().unwrap();
    if dice.once_in(4) {
        list.retain(|mount| mount["type"] != "mqueue");
    }
    if dice.once_in(4) {
        list.retain(|mount| mount["destination"] != "/dev/shm");
    }
    for place in ["/mnt/a", "/mnt/b", "/mnt/c", "/mnt/a/deep", "/mnt/file", "/link/under"] {
        if dice.once_in(2) {
            continue;
        }
        let mut options: Vec<String> = dice.some(&FLAGS).into_iter().map(str::to_owned).collect();
        let atimes = ["noatime", "relatime", "strictatime"];
        // One word on access times, as people write it.
        let mut told = false;
        options.retain(|word| !atimes.contains(&word.as_str()) || !std::mem::replace(&mut told, true));
        let mount = if place == "/mnt/file" || dice.once_in(2) {
            let source = if place == "/mnt/file" { "file" } else { dice.one(&["tree", "opt", "."]) };
            options.push(dice.one(&["bind", "rbind"]).to_owned());
            if dice.once_in(2) {
                let words =
                    ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
                options.push(dice.one(&words).to_owned());
            }
            // crun looks for a directory then.
            if dice.once_in(6) && source != "file" {
                options.push(dice.one(&["rro", "rnosuid", "rnoexec", "rnodev"]).to_owned());
            }
            json!({"destination": place, "type": dice.one(&["bind", "none"]), "source": bundle.host(source), "options": options})
        } else {
            let data = ["mode=755", "mode=1777", "mode=0700", "size=1m", "size=64k", "nr_inodes=50", "uid=3", "gid=4"];
            // One of a kind.
            for word in dice.some(&data) {
                let key = word.split('=').next().unwrap();
                if !options.iter().any(|option| option.starts_with(&format!("{key}="))) {
                    options.push(word.to_owned());
                }
            }
            if place == "/mnt/b" && dice.once_in(3) {
                options.push("tmpcopyup".to_owned());
            }
            json!({"destination": place, "type": "tmpfs", "source": dice.one(&["tmpfs", "none", "mine"]), "options": options})
        };
        list.push(mount);
    }
    // crun leaves out the options of a bind mount in a user namespace.
    for mount in list.iter_mut().filter(|mount| users && mount["source"].as_str().unwrap().starts_with('/')) {
        mount["options"] = json!(["rbind"]);
    }
}

fn rest(dice: &mut Dice, config: &mut Value, bundle: &Bundle, users: bool) {
    config["root"]["readonly"] = json!(dice.once_in(3));
    if dice.once_in(4) {
        config["root"]["path"] = json!(bundle.dir.join("bundle/rootfs"));
    }
    if has(config, "uts") {
        config["hostname"] = json!(dice.one(&["box", "a", "a-longer.name.of-a.host"]));
        if dice.once_in(3) {
            config["domainname"] = json!("example.org");
        }
    } else {
        config.as_object_mut().unwrap().remove("hostname");
    }
    let mut sysctl = serde_json::Map::new();
    for (key, value, kind) in [
        ("kernel.msgmax", "12345", "ipc"),
        ("kernel.shmmni", "77", "ipc"),
        ("kernel.sem", "250 32000 32 129", "ipc"),
        ("fs.mqueue.msg_max", "11", "ipc"),
        ("net.ipv4.ip_forward", "1", "network"),
        ("net.ipv4.ping_group_range", "0 10", "network"),
        ("net.ipv4.conf.lo.rp_filter", "2", "network"),
    ] {
        if has(config, kind) && dice.once_in(3) {
            sysctl.insert(key.to_owned(), json!(value));
        }
    }
    // crun writes them as the user namespace's root, which may not; so do we, but for the network's.
    if !users {
        config["linux"]["sysctl"] = Value::Object(sysctl);
    }
    let hidden = [
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/firmware",
        "/etc/group",
        "/real",
        "/no/where",
    ];
    let guarded =
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/etc", "/tmp", "/no/where"];
    let hidden = dice.some(&hidden);
    let mut guarded = dice.some(&guarded);
    // crun makes only the path itself read-only, and not what is mounted under it; we do both.
    guarded.retain(|path| *path != "/etc" || !hidden.contains(&"/etc/group"));
    config["linux"]["maskedPaths"] = json!(hidden);
    config["linux"]["readonlyPaths"] = json!(guarded);
    // Without one, crun makes all mounts private in the end, also those that asked to be shared; with an unbindable root it
    // can mask nothing.
    config["linux"]["rootfsPropagation"] = json!(dice.one(&["private", "slave", "shared"]));
    if dice.once_in(2) && !users {
        let mut devices = Vec::new();
        for (path, kind, major, minor) in [
            ("/dev/fuse", "c", 10, 229),
            ("/dev/own/loop", "b", 7, 100),
            ("/dev/zero", "c", 1, 5),
            ("/dev/pipe", "p", 0, 0),
            ("/real/kmsg", "u", 1, 11),
        ] {
            if dice.once_in(2) {
                continue;
            }
            let mut device = json!({"path": path, "type": kind});
            if kind != "p" {
                device["major"] = json!(major);
                device["minor"] = json!(minor);
            }
            if dice.once_in(2) {
                device["fileMode"] = json!([0o600, 0o640, 0o666, 0o400][dice.below(4) as usize]);
            }
            if dice.once_in(2) {
                device["uid"] = json!(dice.below(2000));
                device["gid"] = json!(dice.below(2000));
            }
            devices.push(device);
        }
        config["linux"]["devices"] = json!(devices);
    }
    if dice.once_in(3) && !users {
        let file = bundle.dir.join("hooked");
        let kinds = ["prestart", "createRuntime", "createContainer"];
        for kind in dice.some(&kinds) {
            let script = format!("cat >/dev/null; echo {kind} $A >> {}", file.display());
            config["hooks"][kind] = json!([{"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["A=hook"]}]);
        }
    }
    config["annotations"] = json!({"org.example": "x"});
}
