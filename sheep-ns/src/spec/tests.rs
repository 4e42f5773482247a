//! Tables: flags and an image in, pieces of config.json out.

use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: SpecFlags,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// An image with something of everything.
fn input() -> Input {
    let config = json!({"config": {
        "Env": ["PATH=/image/bin", "A=image", "B=image"], "Entrypoint": ["/entry", "-e"], "Cmd": ["cmd", "arg"],
        "WorkingDir": "/work", "User": "ann"}});
    Input { rootfs: "/merged".into(), read_only: false, image_config: Some(config) }
}

fn bare() -> Input {
    Input { rootfs: "/merged".into(), ..Input::default() }
}

fn seen() -> Seen {
    Seen { env: vec![("MINE".into(), "own".into())], ..Seen::default() }
}

fn built(input: &Input, seen: &Seen, line: &[&str]) -> Result<Value> {
    let line = Line::try_parse_from(["spec"].iter().chain(line))?;
    Ok(serde_json::to_value(build(&line.flags, &line.args, input, seen)?).unwrap())
}

/// One piece of what a command line gives.
fn piece(input: &Input, line: &[&str], pointer: &str) -> Value {
    let config = built(input, &seen(), line).unwrap_or_else(|error| panic!("{line:?}: {error:#}"));
    config.pointer(pointer).cloned().unwrap_or(Value::Null)
}

#[test]
fn args_by_dockers_rules() {
    for (line, want) in [
        (&[][..], json!(["/entry", "-e", "cmd", "arg"])),
        (&["sh", "-c", "x"], json!(["/entry", "-e", "sh", "-c", "x"])),
        (&["--no-entrypoint", "sh"], json!(["sh"])),
        (&["--no-entrypoint"], json!(["cmd", "arg"])),
        (&["--", "-x"], json!(["/entry", "-e", "-x"])),
    ] {
        assert_eq!(piece(&input(), line, "/process/args"), want, "{line:?}");
    }
    assert_eq!(piece(&bare(), &["true"], "/process/args"), json!(["true"]));
    for line in [&[][..], &[""]] {
        let error = built(&bare(), &seen(), line).unwrap_err();
        assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{line:?}");
    }
}

#[test]
fn environment() {
    for (line, want) in [
        (&["x"][..], json!(["PATH=/image/bin", "A=image", "B=image", "HOME=/"])),
        (&["-e", "A=flag", "-e", "C=1=2", "x"], json!(["PATH=/image/bin", "A=flag", "B=image", "C=1=2", "HOME=/"])),
        (&["-e", "MINE", "-e", "B", "x"], json!(["PATH=/image/bin", "A=image", "MINE=own", "HOME=/"])),
        (
            &["-e", "HOME=/h", "-e", "A=", "-t", "x"],
            json!(["PATH=/image/bin", "A=", "B=image", "HOME=/h", "TERM=xterm"]),
        ),
    ] {
        assert_eq!(piece(&input(), line, "/process/env"), want, "{line:?}");
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(piece(&bare(), &["x"], "/process/env"), json!([path, "HOME=/"]));
    assert!(built(&bare(), &seen(), &["-e", "=x", "x"]).is_err());
    let mut at_home = seen();
    at_home.identity.home = Some("/home/ann".into());
    assert_eq!(built(&bare(), &at_home, &["x"]).unwrap()["process"]["env"], json!([path, "HOME=/home/ann"]));
}

#[test]
fn single_pieces() {
    for (line, pointer, want) in [
        (&["x"][..], "/ociVersion", json!("1.0.2")),
        (&["x"], "/process/cwd", json!("/work")),
        (&["-w", "/other", "x"], "/process/cwd", json!("/other")),
        (&["x"], "/process/terminal", Value::Null),
        (&["-t", "x"], "/process/terminal", json!(true)),
        (&["x"], "/process/noNewPrivileges", json!(true)),
        (&["--rlimit", "core=0", "x"], "/process/rlimits", json!([{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}])),
        (&["x"], "/root", json!({"path": "/merged"})),
        (&["--read-only", "x"], "/root", json!({"path": "/merged", "readonly": true})),
        (&["x"], "/hostname", json!("sheep")),
        (&["--hostname", "h1", "x"], "/hostname", json!("h1")),
        (&["--label", "a=b=c", "--label", "d", "x"], "/annotations", json!({"a": "b=c", "d": ""})),
        (
            &["x"],
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}, {"type": "network"}]),
        ),
        (
            &["--network", "host", "x"],
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}]),
        ),
        (&["x"], "/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}]})),
        (&["--pids-limit", "-1", "x"], "/linux/resources/pids", json!({"limit": -1})),
        (&["--cgroups-path", "/a/b", "x"], "/linux/cgroupsPath", json!("/a/b")),
        (&["x"], "/linux/uidMappings", Value::Null),
        (
            &["-v", "/src:/dst:ro", "x"],
            "/mounts/7",
            json!({"destination": "/dst", "type": "bind", "source": "/src", "options": ["rbind", "rprivate", "rro"]}),
        ),
        (
            &["x"],
            "/mounts/0",
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        ),
        (
            &["x"],
            "/linux/readonlyPaths",
            json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
        ),
        (&["x"], "/linux/maskedPaths/3", json!("/proc/kcore")),
    ] {
        assert_eq!(piece(&input(), line, pointer), want, "{line:?} {pointer}");
    }
}

#[test]
fn who_it_is_and_what_it_may() {
    let identity = Identity { uid: 7, gid: 8, additional_gids: vec![9], home: None };
    let config = built(&bare(), &Seen { identity: identity.clone(), ..seen() }, &["x"]).unwrap();
    assert_eq!(config["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": [9]}));
    let capabilities = &config["process"]["capabilities"];
    assert_eq!(capabilities["bounding"].as_array().unwrap().len(), 14);
    assert_eq!((&capabilities["effective"], &capabilities["ambient"]), (&Value::Null, &Value::Null));

    let root = built(&bare(), &seen(), &["x"]).unwrap();
    assert_eq!(root["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);

    let rootless = built(&bare(), &Seen { identity, rootless: Some((1000, 100)), ..seen() }, &["x"]).unwrap();
    assert_eq!(rootless["process"]["user"], json!({"uid": 7, "gid": 8}));
    assert_eq!(rootless["linux"]["uidMappings"], json!([{"containerID": 7, "hostID": 1000, "size": 1}]));
    assert_eq!(rootless["linux"]["gidMappings"], json!([{"containerID": 8, "hostID": 100, "size": 1}]));
    assert_eq!(rootless["linux"]["resources"], Value::Null);
    assert_eq!(rootless["linux"]["namespaces"][6], json!({"type": "user"}));
}

#[test]
fn what_makes_no_sense() {
    for line in [
        &["-w", "relative", "x"][..],
        &["--hostname", "", "x"],
        &["--hostname", "a b", "x"],
        &["--label", "=v", "x"],
        &["--memory", "lots", "x"],
        &["--rlimit", "nofile=a", "x"],
        &["-v", "src:/dst", "x"],
    ] {
        let error = built(&input(), &seen(), line).unwrap_err();
        assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{line:?}: {error:#}");
    }
    let odd = Input { image_config: Some(json!({"config": {"Cmd": "sh"}})), ..bare() };
    assert!(format!("{:#}", built(&odd, &seen(), &["x"]).unwrap_err()).contains("image.config.config"));
}

#[test]
fn an_absent_root_directory_and_an_absent_volume() {
    let absent = SpecFlags { rootfs: Some("/nowhere/at/all".into()), ..SpecFlags::default() };
    assert_eq!(exit::kind(&from_flags(&absent, &[]).unwrap_err()), Some(exit::Kind::NotFound));
    let volume =
        SpecFlags { rootfs: Some("/".into()), volume: vec!["/nowhere/at/all:/x".into()], ..SpecFlags::default() };
    assert_eq!(exit::kind(&from_flags(&volume, &["x".into()]).unwrap_err()), Some(exit::Kind::NotFound));
    let file = SpecFlags { rootfs: Some("/etc/passwd".into()), ..SpecFlags::default() };
    assert_eq!(exit::kind(&from_flags(&file, &["x".into()]).unwrap_err()), Some(exit::Kind::Usage));
}
