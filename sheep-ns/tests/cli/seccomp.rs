//! Filters of system calls on the real kernel.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::harness::{World, wait};

/// A profile that allows all but what its rules say.
fn allowing(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

fn rule(names: &[&str], action: &str, errno: Option<u32>) -> Value {
    let mut rule = json!({"names": names, "action": action});
    if let Some(errno) = errno {
        rule["errnoRet"] = errno.into();
    }
    rule
}

#[test]
fn the_default_profile_is_in_force_and_can_be_left_out() {
    for world in [World::new(), World::of_user()] {
        let root = world.path("root");
        let run = |flags: &[&str], script: &str| {
            world.run(&[&["exec", "--rootfs", &root], flags, &["--", "sh", "-c", script]].concat())
        };
        let mode = "grep Seccomp: /proc/self/status";
        assert_eq!(run(&[], mode).out, "Seccomp:\t2\n");
        assert_eq!(run(&["--seccomp", "default"], mode).out, "Seccomp:\t2\n");
        assert_eq!(run(&["--seccomp", "unconfined"], mode).out, "Seccomp:\t0\n");
        // swapoff is not permitted by any profile's capability; without a filter the kernel looks for the file first.
        assert!(run(&[], "swapoff /nothing").err.contains("Operation not permitted"));
        // What programs need is there.
        let script = "mkdir /d && mount -t tmpfs t /d 2>/dev/null; ls /d; sleep 0.01; unshare -U true; ip addr >/dev/null; date > /d/now";
        assert_eq!(run(&[], script).code, 0, "{:?}", run(&[], script));
    }
}

#[test]
fn a_profile_from_a_file() {
    let world = World::new();
    let (root, file) = (world.path("root"), world.path("profile.json"));
    let run = |profile: &Value, script: &str| {
        fs::write(&file, profile.to_string()).unwrap();
        world.run(&["exec", "--rootfs", &root, "--seccomp", &file, "--", "sh", "-c", script])
    };
    let ending = run(&allowing(json!([rule(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", Some(77))])), "mkdir /d; echo $?");
    assert!(ending.out == "1\n" && ending.err.contains("File descriptor in bad state"), "77 is EBADFD: {ending:?}");
    let ending = run(&allowing(json!([rule(&["uname"], "SCMP_ACT_KILL", None)])), "exec uname");
    assert_eq!(ending.code, 159, "{ending:?}");
    let ending = run(&allowing(json!([rule(&["uname"], "SCMP_ACT_KILL_PROCESS", None)])), "exec uname");
    assert_eq!(ending.code, 159, "{ending:?}");
    // The form of the engines, with a condition: the file of Debian's podman.
    let ending =
        world.run(&["exec", "--rootfs", &root, "--seccomp", "/usr/share/containers/seccomp.json", "--", "true"]);
    assert_eq!((ending.code, ending.err.as_str()), (0, ""));
    let only_for = json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_TIME"]}},
        {"name": "rmdir", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_TIME"]}}]);
    let ending = run(&allowing(only_for), "mkdir /e && echo made; rmdir /e || echo stays");
    assert_eq!(ending.out, "made\nstays\n", "{ending:?}");
    world.fails(&["exec", "--rootfs", &root, "--seccomp", "/no/such", "--", "true"], 125, "--seccomp /no/such");
    fs::write(&file, "{").unwrap();
    world.fails(&["spec", "--rootfs", &root, "--seccomp", &file, "--", "true"], 2, "profile.json");
    fs::write(&file, allowing(json!([rule(&["mkdir"], "SCMP_ACT_MAYBE", None)])).to_string()).unwrap();
    world.fails(&["spec", "--rootfs", &root, "--seccomp", &file, "--", "true"], 2, "SCMP_ACT_MAYBE");
    world.fails(&["exec", "--seccomp", "default", "someone", "true"], 125, "--seccomp is for");
}

#[test]
fn a_containers_filter_is_what_its_config_says() {
    let world = World::new();
    let mkdir = json!([rule(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", Some(77))]);
    // With no_new_privs the filter is loaded last, and may deny nearly all: execve, and what a shell needs.
    for (nnp, filter) in [(true, allowing(mkdir.clone())), (false, allowing(mkdir))] {
        world.bundle("mkdir /d; echo $?; exec sleep 1000", |config| {
            config["process"]["noNewPrivileges"] = nnp.into();
            config["linux"]["seccomp"] = filter;
        });
        world.create("filtered");
        world.ok(&["start", "filtered"]);
        world.wait_status("filtered", "running");
        let joined = world.run(&["exec", "filtered", "sh", "-c", "mkdir /e; grep Seccomp: /proc/self/status"]);
        assert!(joined.out == "Seccomp:\t2\n" && joined.err.contains("bad state"), "nnp {nnp}: {joined:?}");
        world.ok(&["delete", "--force", "filtered"]);
    }
    assert!(!world.root("d").exists() && !world.root("e").exists());
    world.bundle("grep Seccomp: /proc/self/status", |config| {
        config["linux"].as_object_mut().unwrap().remove("seccomp").unwrap();
    });
    assert_eq!(world.ok(&["run", "--bundle", &world.path("bundle"), "filtered"]), "Seccomp:\t0\n");
    // A filter that ends the process on its way, where it has to be loaded early.
    world.bundle("true", |config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["linux"]["seccomp"] = allowing(json!([rule(&["setresuid"], "SCMP_ACT_KILL_PROCESS", None)]));
    });
    world.fails(&["create", "--bundle", &world.path("bundle"), "filtered"], 1, "noNewPrivileges it is loaded last");
    assert_eq!(world.leftovers(), [""; 0]);
    world.bundle("true", |config| config["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_PDP11"]));
    world.fails(&["create", "--bundle", &world.path("bundle"), "filtered"], 2, "SCMP_ARCH_PDP11");
}

#[test]
fn names_of_no_call_are_told_under_debug() {
    let world = World::new();
    let (file, log) = (world.path("profile.json"), world.path("log"));
    fs::write(&file, allowing(json!([rule(&["frobnicate"], "SCMP_ACT_ERRNO", None)])).to_string()).unwrap();
    let (root, debug) = (world.path("root"), ["--log", &log, "--debug"]);
    let exec = ["exec", "--rootfs", &root, "--seccomp", &file, "--", "true"];
    world.ok(&exec);
    assert!(!fs::exists(&log).unwrap());
    world.ok(&[&debug[..], &exec].concat());
    assert!(fs::read_to_string(&log).unwrap().contains("frobnicate is no system call"));
}

/// What an agent gets: the descriptor, and the container process state.
fn receive(listener: &UnixListener) -> (OwnedFd, Value) {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait("the agent's call", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut socket, _) = accepted.unwrap();
    let mut bytes = vec![0u8; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let n =
        recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    bytes.truncate(n);
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    socket.read_to_end(&mut bytes).unwrap();
    (fd.unwrap(), serde_json::from_slice(&bytes).unwrap())
}

/// Answers the next question: the call gives this error. Gives the asking process's id.
fn answer(questions: &OwnedFd, error: i32) -> u32 {
    let script = format!(
        "import fcntl, struct, sys\n\
         b = bytearray(80)\n\
         fcntl.ioctl(0, 0xc0502100, b)\n\
         id, pid = struct.unpack_from('QI', b)\n\
         fcntl.ioctl(0, 0xc0182101, bytearray(struct.pack('QqiI', id, 0, -{error}, 0)))\n\
         print(pid)"
    );
    let stdin = File::from(questions.try_clone().unwrap());
    let output = std::process::Command::new("/usr/bin/python3").args(["-c", &script]).stdin(stdin).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn an_agent_is_there_before_the_privileges_go() {
    let world = World::new();
    let socket = world.path("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    world.bundle("mkdir /d; exec sleep 1000", |config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
            "syscalls": [rule(&["mkdir", "mkdirat"], "SCMP_ACT_NOTIFY", None)]});
    });
    world.create("early");
    let (questions, state) = receive(&listener);
    assert_eq!((&state["pid"], &state["metadata"]), (&world.state("early")["pid"], &Value::Null));
    world.ok(&["start", "early"]);
    answer(&questions, 17);
    world.wait_status("early", "running");
    assert_eq!(world.run(&["delete", "--force", "early"]).code, 0);
}

#[test]
fn an_agent_gets_the_questions_and_answers() {
    let world = World::new();
    let socket = world.path("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "mine",
        // With what would send the descriptor, and what ends the way to the program.
        "syscalls": [rule(&["mkdir", "mkdirat", "sendmsg", "sendto"], "SCMP_ACT_NOTIFY", None)]});
    world.bundle("sleep 0.1; mkdir /d; exec sleep 1000", |config| {
        config["linux"]["seccomp"] = filter.clone();
        config["annotations"] = json!({"a": "b"});
    });
    world.create("asked");
    let pid = world.state("asked")["pid"].clone();
    world.ok(&["start", "asked"]);
    let (questions, state) = receive(&listener);
    assert_eq!((&state["fds"], &state["pid"], &state["metadata"]), (&json!(["seccompFd"]), &pid, &json!("mine")));
    let told = &state["state"];
    let want = json!({"ociVersion": told["ociVersion"], "id": "asked", "status": "creating", "pid": pid,
        "bundle": world.path("bundle"), "annotations": {"a": "b"}});
    assert_eq!((told, &state["ociVersion"]), (&want, &told["ociVersion"]));
    // mkdir is a child of the shell, and asks: it comes after the first process.
    assert!(i64::from(answer(&questions, 77)) > pid.as_i64().unwrap());
    assert!(!world.root("d").exists());
    // A process that joins is asked about, too, by a descriptor of its own.
    let mut joined = world.ns(&["exec", "asked", "mkdir", "/e"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let (own, state) = receive(&listener);
    assert_eq!(state["state"]["status"], "running");
    answer(&own, 13);
    assert_eq!(joined.wait().unwrap().code(), Some(1));
    world.ok(&["delete", "--force", "asked"]);
    // Nobody there: nothing is made.
    drop(listener);
    world.fails(&["create", "--bundle", &world.path("bundle"), "asked"], 1, "listenerPath");
    assert_eq!(world.leftovers(), [""; 0]);
}
