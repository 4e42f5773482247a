//! The same config.json run by crun and by sheep-ns: same output, same exit code, nothing on stderr where all is well.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod generate;
mod harness;

use std::process::Command;

use harness::{Bundle, Ending, base, mounted_under};
use serde_json::{Value, json};

/// The masked paths of the base that are there.
const MASKED: [&str; 5] = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];

/// What a case may differ in from the base, and how its outputs are compared.
struct Case {
    name: &'static str,
    config: Value,
    stdin: &'static str,
    terminal: bool,
    /// Applied to both outputs before they are compared.
    normal: fn(&str) -> String,
}

/// A case that runs `script` with sh.
fn sh(name: &'static str, script: &str) -> Case {
    args(name, &["sh", "-c", script])
}

/// A case that runs a program.
fn args(name: &'static str, args: &[&str]) -> Case {
    let mut config = base();
    config["process"]["args"] = json!(args);
    Case { name, config, stdin: "", terminal: false, normal: str::to_owned }
}

impl Case {
    /// Sets one value of the configuration, by JSON pointer; parents are made as needed.
    fn set(mut self, pointer: &str, value: Value) -> Case {
        let place = pointer.trim_start_matches('/').split('/').fold(&mut self.config, |value, key| {
            match (key.parse::<usize>(), value.is_array()) {
                (Ok(index), true) => &mut value[index],
                _ => &mut value[key],
            }
        });
        *place = value;
        self
    }

    fn unset(mut self, parent: &str, key: &str) -> Case {
        self.config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        self
    }

    fn mount(mut self, mount: Value) -> Case {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    fn without_namespace(mut self, kind: &str) -> Case {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
        self
    }

    fn stdin(mut self, text: &'static str) -> Case {
        self.stdin = text;
        self
    }

    fn normal(mut self, normal: fn(&str) -> String) -> Case {
        self.normal = normal;
        self
    }

    fn on_a_terminal(mut self) -> Case {
        self.terminal = true;
        // script(1) writes the end of its input to the terminal, which shows it somewhere.
        self.normal = |text| text.replace("^@", "").replace('\0', "");
        self.set("/process/terminal", json!(true))
    }
}

/// How a group of cases is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    /// With 0, the same output, and nothing on stderr.
    Success,
    /// With the same code and the same output.
    Same,
    /// Not with 0, and with one line on stderr: crun ends with 1 where sheep-ns follows docker's 125, 126, 127.
    Failure,
}

/// Runs every case with both, and fails with all differences at once.
fn compare(bundle: &Bundle, cases: Vec<Case>, want: Want) {
    let mut differences = Vec::new();
    for case in cases {
        bundle.configure(&case.config);
        let crun = || bundle.crun(case.stdin, case.terminal);
        // At the end of a terminal crun at times prints an error of its own to it, in colour; often where the machine is slow.
        let crun = (0..9).map(|_| crun()).find(|ending| !ending.stdout.contains("\u{1b}[")).unwrap_or_else(crun);
        let sheep = bundle.sheep(case.stdin, case.terminal);
        let seen = |ending: &Ending| (ending.code, (case.normal)(&ending.stdout), ending.stderr.clone());
        let (theirs, ours) = (seen(&crun), seen(&sheep));
        let alike = match want {
            Want::Success => theirs == ours && ours.0 == 0 && ours.2.is_empty(),
            Want::Same => theirs == ours,
            Want::Failure => theirs.0 != 0 && ours.0 != 0 && ours.1.is_empty() && ours.2.lines().count() == 1,
        };
        if !alike {
            differences.push(format!("== {}\ncrun:  {theirs:?}\nsheep: {ours:?}", case.name));
        }
    }
    assert!(!mounted_under(&bundle.dir), "something is left mounted");
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

/// mountinfo without what differs from run to run: ids, device numbers, peer group numbers, sizes chosen by the kernel.
fn mountinfo(text: &str) -> String {
    mountinfo_but(text, &MASKED)
}

/// The same, with these paths masked.
fn mountinfo_but(text: &str, masked: &[&str]) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let peers: Vec<&str> = left[6..].iter().map(|field| field.split(':').next().unwrap_or_default()).collect();
            let right: Vec<&str> = right.split(' ').collect();
            let super_options: Vec<&str> = right[2]
                .split(',')
                .filter(|option| !option.starts_with("nr_inodes=") && *option != "inode64")
                .collect();
            if masked.contains(&left[4]) {
                // What hides a path differs; that it hides it, and cannot be written, is compared.
                return Some(format!("{} hidden {}", left[4], left[5].split(',').next().unwrap_or_default()));
            }
            // The root directory is the same, and may be reached through a mount of crun's view.
            let from = if left[4] == "/" { "" } else { left[3] };
            let peers = peers.join(",");
            Some(format!(
                "{} {from} {} {peers} {} {} {}",
                left[4],
                left[5],
                right[0],
                right[1],
                super_options.join(",")
            ))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn the_process() {
    let bundle = Bundle::new();
    let all = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"];
    compare(
        &bundle,
        vec![
            args("env", &["env"]).set("/process/env", json!(["PATH=/bin", "A=1", "B=x y", "C=", "D=a=b", "É=ü"])).normal(sorted),
            args("env with a home", &["env"]).set("/process/env", json!(["PATH=/bin", "HOME=/elsewhere"])),
            args("home of a user", &["env"]).set("/process/user/uid", json!(1000)),
            args("cwd", &["pwd"]).set("/process/cwd", json!("/tmp")),
            sh("cwd that is not there", "pwd; ls -ld . | cut -c1-10").set("/process/cwd", json!("/new/dir")),
            args("user and groups", &["id"])
                .set("/process/user", json!({"uid": 1000, "gid": 44, "additionalGids": [7, 1000, 9]})),
            sh("groups", "grep -E 'Uid|Gid|Groups' /proc/self/status").set("/process/user", json!({"uid": 5, "gid": 6})),
            sh("default capabilities", "grep Cap /proc/self/status"),
            sh("no capabilities at all", "grep Cap /proc/self/status").unset("/process", "capabilities"),
            sh("capabilities of a user", "grep Cap /proc/self/status").set("/process/user/uid", json!(1000)),
            sh("ambient capabilities of a user", "grep Cap /proc/self/status")
                .set("/process/user/uid", json!(1000))
                .set(
                    "/process/capabilities",
                    json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all}),
                ),
            sh("ambient that is not inheritable", "grep Cap /proc/self/status")
                .set("/process/capabilities", json!({"bounding": all, "effective": all, "permitted": all, "ambient": all})),
            sh("an unknown capability", "grep Cap /proc/self/status")
                .set("/process/capabilities", json!({"bounding": ["CAP_FLY", "CAP_KILL"], "permitted": ["CAP_KILL"]})),
            sh("no_new_privs", "grep NoNewPrivs /proc/self/status"),
            sh("new privileges", "grep NoNewPrivs /proc/self/status").unset("/process", "noNewPrivileges"),
            sh("no filter, no signal masked", "grep -E 'Seccomp:|SigBlk|SigIgn|SigCgt' /proc/1/status"),
            args("limits", &["cat", "/proc/self/limits"]).set(
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                       {"type": "RLIMIT_NPROC", "soft": 500, "hard": 600}, {"type": "RLIMIT_STACK", "soft": 1048576, "hard": 2097152}]),
            ),
            sh("umask", "umask; touch /tmp/u; stat -c %a /tmp/u; rm /tmp/u").set("/process/user/umask", json!(0o77)),
            sh("default umask", "umask"),
            args("oom score", &["cat", "/proc/self/oom_score_adj"]).set("/process/oomScoreAdj", json!(321)),
            args("arguments as they are", &["printf", "%s|", "", "a b", "new\nline", "é\u{1}\t\"'\\", "*", "--"]),
            args("found on the container's PATH", &["only-here"])
                .set("/process/env", json!(["PATH=/nowhere:/opt"]))
                .mount(json!({"destination": "/opt", "source": bundle.host("opt"), "type": "bind", "options": ["bind"]})),
            args("stdin", &["cat"]).stdin("first\nsecond\n"),
            sh("descriptors", "ls /proc/self/fd"),
            sh("process and session", "cut -d' ' -f1,4-8 /proc/self/stat"),
            sh("pid 1", "echo $$; cat /proc/1/comm"),
            sh("a 32-bit execution domain", "cat /proc/self/personality; uname -m")
                .set("/linux/personality", json!({"domain": "LINUX32"})),
            sh("annotations change nothing", "echo ok").set("/annotations", json!({"a.b": "c"})),
            sh("stdout can be opened again by a user", "echo hello > /dev/stdout; echo $?").set("/process/user/uid", json!(1000)),
        ],
        Want::Success,
    );
}

#[test]
fn endings() {
    let bundle = Bundle::new();
    compare(
        &bundle,
        vec![
            args("true", &["true"]),
            args("false", &["false"]),
            sh("7", "echo out; exit 7"),
            sh("255", "exit 255"),
            sh("a child's signal", "exec 2>/dev/null; sh -c 'kill -KILL $$'; echo $?"),
            sh("killed by a signal", "kill -TERM $$; sleep 5").without_namespace("pid"),
            sh("killed by SIGKILL", "kill -KILL $$; sleep 5").without_namespace("pid"),
            sh("pid 1 is not killed by itself", "kill -TERM $$; echo still here"),
            sh("orphans end with pid 1", "sleep 100 & echo started"),
        ],
        Want::Same,
    );
}

#[test]
fn what_cannot_run() {
    let bundle = Bundle::new();
    compare(
        &bundle,
        vec![
            args("no such command", &["nosuch"]),
            args("no such path", &["/bin/nosuch"]),
            args("a directory", &["/etc"]),
            args("not executable", &["/etc/not-executable"]),
            args("no executable format", &["/etc/no-format"]),
            args("no such directory to be in", &["true"]).set("/process/cwd", json!("/etc/passwd")),
            args("an empty command", &[]),
            args("no root directory", &["true"]).set("/root/path", json!("nowhere")),
            args("a capability we lack", &["true"]).set("/process/capabilities/effective", json!(["CAP_SYS_ADMIN"])),
            args("an unknown limit", &["true"])
                .set("/process/rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}])),
            args("a volume that is not there", &["true"]).mount(
                json!({"destination": "/x", "type": "bind", "source": bundle.host("absent"), "options": ["bind"]}),
            ),
            args("a parameter of the host", &["true"]).set("/linux/sysctl", json!({"kernel.panic": "1"})),
        ],
        Want::Failure,
    );
}

#[test]
fn names_and_namespaces() {
    let bundle = Bundle::new();
    let links = "for n in ipc mnt net pid uts user cgroup time; do readlink /proc/self/ns/$n; done";
    compare(
        &bundle,
        vec![
            sh("hostname", "hostname; cat /proc/sys/kernel/hostname"),
            sh("domainname", "cat /proc/sys/kernel/domainname").set("/domainname", json!("example.org")),
            sh("the network of its own", "grep : /proc/net/dev | cut -d: -f1; ip addr show lo"),
            sh("the host's network", "readlink /proc/self/ns/net; grep : /proc/net/dev | cut -d: -f1")
                .without_namespace("network"),
            sh("the host's ipc", "readlink /proc/self/ns/ipc").without_namespace("ipc"),
            sh("the host's names", "readlink /proc/self/ns/uts; hostname")
                .without_namespace("uts")
                .unset("", "hostname"),
            sh("the host's processes", "readlink /proc/self/ns/pid; test $$ -gt 1; echo $?").without_namespace("pid"),
            sh("what is not its own", links).normal(|text| {
                text.lines()
                    .filter(|line| ["user", "cgroup", "time"].iter().any(|kind| line.starts_with(kind)))
                    .collect()
            }),
            sh("a network that is joined", "readlink /proc/self/ns/net")
                .set("/linux/namespaces/1", json!({"type": "network", "path": "/proc/self/ns/net"})),
            sh(
                "a user namespace",
                "id -u; cat /proc/self/uid_map /proc/self/gid_map; grep CapEff /proc/self/status; ls -ldn /proc/1",
            )
            .with_user_namespace(),
            sh("kernel parameters", "cat /proc/sys/kernel/msgmax /proc/sys/kernel/sem /proc/sys/net/ipv4/ip_forward")
                .set(
                    "/linux/sysctl",
                    json!({"kernel.msgmax": "12345", "kernel.sem": "250 32000 32 129", "net.ipv4.ip_forward": "1"}),
                ),
            sh("loopback is up", "ping -c1 -w1 127.0.0.1 >/dev/null 2>&1; cat /sys/class/net/lo/operstate"),
        ],
        Want::Success,
    );
}

impl Case {
    /// A user namespace with its own root; the root directory belongs to nobody inside, as far as that goes.
    fn with_user_namespace(mut self) -> Case {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        self
    }
}

#[test]
fn the_file_system() {
    let bundle = Bundle::new();
    std::fs::create_dir_all(bundle.dir.join("host/tree/sub")).unwrap();
    let stat = "stat -c '%n %F %a %u %g'";
    compare(
        &bundle,
        vec![
            sh("mounts", "cat /proc/self/mountinfo").normal(mountinfo),
            sh("a root that is read-only", "touch /x 2>/dev/null; echo $?; touch /dev/shm/x; echo $?").set("/root/readonly", json!(true)),
            sh("its mounts", "cat /proc/self/mountinfo").set("/root/readonly", json!(true)).normal(mountinfo),
            sh("a root that is writable", "touch /x; echo $?; rm /x"),
            sh("an absolute root", "ls /").set("/root/path", json!(bundle.dir.join("bundle/rootfs"))),
            sh("masked", "wc -c < /proc/keys; wc -c < /proc/timer_list; ls -A /sys/firmware /proc/acpi 2>&1; stat -c %F /proc/keys"),
            sh("read-only paths", "echo 1 2>/dev/null > /proc/sys/kernel/panic; echo $?; echo h 2>/dev/null > /proc/sysrq-trigger; echo $?"),
            sh("read-only sysfs", "echo 1 2>/dev/null > /sys/kernel/uevent_seqnum; echo $?; touch /sys/x 2>/dev/null; echo $?"),
            sh("devices", &format!("cd /dev; {stat} * pts/* | sort; for f in *; do [ -c $f ] && stat -c '%n %t %T' $f; [ -L $f ] && readlink $f; done; true"))
                .normal(sorted),
            sh("a device more", &format!("{stat} /dev/fuse /dev/pipe; stat -c '%t %T' /dev/fuse")).set(
                "/linux/devices",
                json!([{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
                       {"type": "p", "path": "/dev/pipe", "fileMode": 0o600}]),
            ),
            sh("devices work", "echo x > /dev/null; head -c4 /dev/zero | wc -c; head -c4 /dev/urandom | wc -c; echo x 2>/dev/null > /dev/full; echo $?"),
            sh("a tmpfs with options", &format!("{stat} /t; grep ' /t ' /proc/self/mountinfo")).mount(json!({"destination": "/t", "type": "tmpfs", "source": "mine",
                "options": ["mode=1770", "size=1m", "noexec", "nosuid", "nodev", "noatime", "uid=5"]})).normal(last_mountinfo),
            sh("a directory read-only", "cat /b/file; touch /b/x 2>/dev/null; echo $?")
                .mount(json!({"destination": "/b", "type": "bind", "source": bundle.host("."), "options": ["rbind", "ro"]})),
            sh("a file", "cat /made/new/file; grep made /proc/self/mountinfo")
                .mount(json!({"destination": "/made/new/file", "type": "none", "source": bundle.host("file"), "options": ["bind", "ro", "nosuid"]}))
                .normal(last_mountinfo),
            sh("bind options", "grep ' /b ' /proc/self/mountinfo").mount(json!({"destination": "/b", "type": "bind", "source": bundle.host("tree"),
                "options": ["rbind", "rprivate", "nodev", "noexec", "nosuid", "relatime"]})).normal(mountinfo),
            sh("recursively read-only", "grep ' /b ' /proc/self/mountinfo").mount(json!({"destination": "/b", "type": "bind", "source": bundle.host("tree"),
                "options": ["rbind", "rro"]})).normal(mountinfo),
            sh("through a link in the root directory", "grep -c ' /real/sub ' /proc/self/mountinfo; ls /real")
                .mount(json!({"destination": "/link/sub", "type": "tmpfs", "source": "tmpfs"})),
            sh("a mount on a mount", "grep ' /t' /proc/self/mountinfo")
                .mount(json!({"destination": "/t", "type": "tmpfs", "source": "one"}))
                .mount(json!({"destination": "/t/deep/er", "type": "tmpfs", "source": "two", "options": ["ro"]}))
                .normal(mountinfo),
            sh("copied up", "ls /etc; touch /etc/x; echo $?")
                .mount(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})),
            sh("slave propagation of the root", "grep ' / / \\| / ' /proc/self/mountinfo").set("/linux/rootfsPropagation", json!("slave")).normal(mountinfo),
            sh("shared memory and queues", &format!("{stat} /dev/shm /dev/mqueue /dev/pts /dev/ptmx; echo x > /dev/shm/a; cat /dev/shm/a")),
        ],
        Want::Success,
    );
}

/// Only the last line is mountinfo.
fn last_mountinfo(text: &str) -> String {
    let (first, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text));
    format!("{first}\n{}", mountinfo(last))
}

/// A case whose configuration `sheep-ns spec` writes.
fn spec(bundle: &Bundle, name: &'static str, flags: &[&str], script: &str) -> Case {
    let rootfs = bundle.dir.join("bundle/rootfs");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sheep-ns"));
    command.args(["spec", "--rootfs"]).arg(rootfs).args(flags).args(["--", "sh", "-c", script]);
    let output = command.env("FROM_HERE", "host's").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
    Case { config: serde_json::from_slice(&output.stdout).unwrap(), ..sh(name, script) }
}

#[test]
fn what_spec_writes() {
    let bundle = Bundle::new();
    let volume = format!("{}:/vol:ro", bundle.host("."));
    let cases = [
        ("nothing asked", &[][..], "id; pwd; env; hostname; grep -E 'Cap|NoNew' /proc/self/status"),
        ("its mounts", &[], "cut -d' ' -f5- /proc/self/mountinfo | grep -v ' / / '"),
        ("devices", &[], "cd /dev; stat -c '%n %F %a %u %g %t %T' * | sort"),
        ("a user", &["-u", "ann"], "id; env; grep Cap /proc/self/status; touch /tmp/mine && rm /tmp/mine"),
        ("a number and a group", &["-u", "4242:video"], "id; env"),
        ("environment", &["-e", "A=b c", "-e", "FROM_HERE", "-e", "PATH=/bin"], "env"),
        ("a working directory", &["-w", "/made/here"], "pwd"),
        ("a volume", &["-v", &volume], "cat /vol/file; touch /vol/x 2>/dev/null; echo $?"),
        ("read-only", &["--read-only"], "touch /x 2>/dev/null; echo $?; touch /dev/shm/x; echo $?"),
        ("a name", &["--hostname", "other"], "hostname"),
        ("the host's network", &["--network", "host"], "readlink /proc/self/ns/net"),
        (
            "limits of the process",
            &["--rlimit", "nofile=64:128", "--rlimit", "core=0"],
            "ulimit -n; ulimit -Hn; ulimit -c",
        ),
        ("labels", &["--label", "a=b"], "echo ok"),
        (
            "the group's files",
            &[],
            "cat /proc/self/cgroup | grep ^0; ls /sys/fs/cgroup/cgroup.procs; echo 0 2>/dev/null > /sys/fs/cgroup/cgroup.procs; echo $?",
        ),
    ];
    let cases = cases.map(|(name, flags, script)| spec(&bundle, name, flags, script).normal(spec_normal));
    compare(&bundle, cases.into(), Want::Success);
}

/// Sorted; of a mount, what hides a path is left out, as in [`mountinfo`].
fn spec_normal(text: &str) -> String {
    let hidden = |line: &&str| !["/proc/", "/sys/firmware", "/sys/devices"].iter().any(|path| line.starts_with(path));
    sorted(&text.lines().filter(hidden).collect::<Vec<_>>().join("\n"))
}

#[test]
fn terminals() {
    let bundle = Bundle::new();
    compare(
        &bundle,
        vec![
            sh("a terminal", "tty; test -t 0 && test -t 1 && test -t 2; echo $?").on_a_terminal(),
            sh("the console", "stat -c '%F %a %u %g' /dev/console; echo to-console > /dev/console").on_a_terminal(),
            sh("its owner", "stat -c '%u %g %a' $(tty)").on_a_terminal().set("/process/user/uid", json!(1000)),
            sh("its size", "stty size").on_a_terminal().set("/process/consoleSize", json!({"height": 33, "width": 99})),
            sh("no terminal", "tty; echo $?").set("/process/terminal", json!(false)),
            sh("exit code on a terminal", "exit 9").on_a_terminal(),
            sh("job control", "cut -d' ' -f5-8 /proc/self/stat; ps -o pid,tty,stat | grep -c pts").on_a_terminal(),
        ],
        Want::Same,
    );
}

/// Sections of what the probe said, normalized: the same inside means the same text.
fn sections(text: &str, config: &Value) -> Vec<(String, String)> {
    let masked: Vec<&str> =
        config["linux"]["maskedPaths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    let users = config["linux"]["uidMappings"].is_array();
    let host = |link: &str| {
        let kind = link.split(':').next().unwrap_or_default();
        std::fs::read_link(format!("/proc/self/ns/{kind}")).is_ok_and(|own| own.to_str() == Some(link))
    };
    let mut parts = text.split("== ").filter_map(|part| part.split_once('\n'));
    let first = parts.next().map(|(name, body)| (name.to_owned(), body.to_owned()));
    let rest = parts.map(|(name, body)| {
        let body = match name {
            "mounts" => {
                let nodes = |line: &&str| !users || !line.contains(" devtmpfs ");
                mountinfo_but(body, &masked).lines().filter(nodes).collect::<Vec<_>>().join("\n")
            }
            "env" => body.lines().filter(|line| *line != "HOME=/").collect::<Vec<_>>().join("\n"),
            "namespaces" => {
                let told = |link: &str| {
                    if host(link) { link.to_owned() } else { link.split(':').next().unwrap().to_owned() + " new" }
                };
                body.lines().map(told).collect::<Vec<_>>().join("\n")
            }
            _ => body.to_owned(),
        };
        (name.to_owned(), body)
    });
    first.into_iter().chain(rest).collect()
}

/// Lines that only one of the two has.
fn only_in(a: &str, b: &str) -> String {
    a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join(" | ")
}

/// Configurations that nobody has thought of, half of them in each of two threads. The first seed is SHEEP_CRUN_SEED, their
/// number SHEEP_CRUN_RUNS; a single one is shown with what was seen.
fn generated(part: u64) {
    let of = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (first, all) = (of("SHEEP_CRUN_SEED", 1), of("SHEEP_CRUN_RUNS", 220));
    let runs = if part == 0 { all - all / 2 } else { all / 2 };
    let first = first + part * (all - all / 2);
    let bundle = Bundle::new();
    // All there, so that nobody makes anything in what is read-only, or belongs to somebody else.
    for dir in ["host/tree/sub", "host/tree/deep", "host/opt/deep", "host/deep"] {
        std::fs::create_dir_all(bundle.dir.join(dir)).unwrap();
    }
    for dir in ["proc", "sys", "dev", "mnt/a/deep", "mnt/b", "mnt/c", "real/under", "made/for/it"] {
        std::fs::create_dir_all(bundle.dir.join("bundle/rootfs").join(dir)).unwrap();
    }
    std::fs::write(bundle.dir.join("bundle/rootfs/mnt/file"), "").unwrap();
    let hooked = || {
        let log = std::fs::read_to_string(bundle.dir.join("hooked")).unwrap_or_default();
        let _ = std::fs::remove_file(bundle.dir.join("hooked"));
        log
    };
    let mut differences = Vec::new();
    let mut succeeded = 0;
    for seed in first..first + runs {
        let config = generate::config(seed, &bundle);
        bundle.configure(&config);
        let (crun, crun_hooks) = (bundle.crun("", false), hooked());
        let (sheep, sheep_hooks) = (bundle.sheep("", false), hooked());
        if all == 1 {
            println!("{config:#}\n{}\n{}", crun.stdout, sheep.stdout);
        }
        let mut told = Vec::new();
        if crun_hooks != sheep_hooks {
            told.push(format!("hooks: crun {crun_hooks:?}, sheep {sheep_hooks:?}"));
        }
        if crun.code != sheep.code || crun.stderr.is_empty() != sheep.stderr.is_empty() {
            told.push(format!("crun {} {:?}, sheep {} {:?}", crun.code, crun.stderr, sheep.code, sheep.stderr));
        } else {
            succeeded += u64::from(!crun.stdout.is_empty());
        }
        let (theirs, ours) = (sections(&crun.stdout, &config), sections(&sheep.stdout, &config));
        for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours).filter(|(theirs, ours)| theirs != ours) {
            told.push(format!("{name}: crun {}; sheep {}", only_in(theirs, ours), only_in(ours, theirs)));
        }
        if !told.is_empty() {
            differences.push(format!("seed {seed}: {}", told.join("\n    ")));
        }
    }
    assert!(!mounted_under(&bundle.dir), "something is left mounted");
    assert!(differences.is_empty(), "{} differ of {runs}\n{}", differences.len(), differences.join("\n"));
    assert!(succeeded >= runs * 9 / 10, "only {succeeded} of {runs} ran");
}

#[test]
fn generated_first_half() {
    generated(0);
}

#[test]
fn generated_second_half() {
    generated(1);
}
