//! Terminals: between two of them, over a console socket, and what is left of ours.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::harness::{World, end_of, read_until, signal, wait};

/// A terminal of 33 lines and 77 columns: the end of who sits at it, and the end of the programs.
fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (File::from(master), slave)
}

fn at(slave: &OwnedFd, world: &World, args: &[&str]) -> Child {
    let end = || Stdio::from(slave.try_clone().unwrap());
    world.ns(args).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
}

fn is_raw(slave: &OwnedFd) -> bool {
    !tcgetattr(slave).unwrap().local_modes.contains(LocalModes::ICANON)
}

#[test]
fn between_two_terminals() {
    let world = World::new();
    let (mut master, slave) = terminal();
    let script = "tty; stty size; test -c /dev/console && echo console; read line; echo \"got $line\"; \
        trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done";
    let mut child = at(&slave, &world, &["exec", "-t", "--rootfs", &world.path("root"), "--", "sh", "-c", script]);
    assert_eq!(read_until(&mut master, "console\r\n"), "/dev/pts/0\r\n33 77\r\nconsole\r\n");
    assert!(is_raw(&slave), "ours is raw meanwhile");
    master.write_all(b"typed\n").unwrap();
    read_until(&mut master, "got typed\r\nready\r\n");
    tcsetwinsize(&slave, Winsize { ws_row: 11, ws_col: 22, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    signal(child.id(), 28);
    read_until(&mut master, "11 22\r\n");
    assert_eq!(end_of(&mut child), 4);
    assert!(!is_raw(&slave), "ours is as it was");
}

#[test]
fn keys_are_signals_and_ours_is_restored_after_one() {
    let world = World::new();
    let (mut master, slave) = terminal();
    let root = world.path("root");
    let mut child = at(
        &slave,
        &world,
        &[
            "exec",
            "-t",
            "--rootfs",
            &root,
            "--",
            "sh",
            "-c",
            "trap 'exit 5' INT; echo ready; while :; do sleep 0.01; done",
        ],
    );
    read_until(&mut master, "ready");
    master.write_all(b"\x03").unwrap();
    assert_eq!(end_of(&mut child), 5);
    assert!(!is_raw(&slave));
    let mut child =
        at(&slave, &world, &["exec", "-t", "--rootfs", &root, "--", "sh", "-c", "echo steady; exec sleep 1000"]);
    read_until(&mut master, "steady");
    assert!(is_raw(&slave));
    signal(child.id(), 15);
    assert_eq!(end_of(&mut child), 143);
    assert!(!is_raw(&slave), "also after a signal");
    let mut child = at(&slave, &world, &["exec", "-t", "--rootfs", &root, "--", "nosuch"]);
    assert_eq!(end_of(&mut child), 127);
    assert!(!is_raw(&slave), "also when nothing was started");
}

#[test]
fn in_a_container_and_by_its_user() {
    let world = World::new();
    let (mut master, slave) = terminal();
    world.bundle("id -u; tty; stty size; echo x > /dev/stdout; exit 6", |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        config["process"]["consoleSize"] = json!({"height": 5, "width": 6});
    });
    let mut child = at(&slave, &world, &["run", "--bundle", &world.path("bundle"), "terminal-1"]);
    assert_eq!(read_until(&mut master, "x\r\n"), "1000\r\n/dev/pts/0\r\n5 6\r\nx\r\n");
    assert_eq!(end_of(&mut child), 6);
    world.bundle("exec sleep 1000", |_| {});
    world.create("terminal-2");
    world.ok(&["start", "terminal-2"]);
    let mut child = at(&slave, &world, &["exec", "-t", "terminal-2", "sh", "-c", "tty; stty size; exit 7"]);
    assert_eq!(read_until(&mut master, "33 77\r\n"), "/dev/pts/0\r\n33 77\r\n");
    assert_eq!(end_of(&mut child), 7);
}

#[test]
fn input_and_output_that_are_no_terminals() {
    let world = World::new();
    let run = |script: &str, input: &[u8]| {
        let mut child = world
            .ns(&["exec", "-t", "--rootfs", &world.path("root"), "--", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    assert_eq!(run("stty -echo; cat", b""), b"");
    assert!(run("cat", b"a line\n").ends_with(b"a line\r\n"));
    // Everything arrives, in both directions, also what is written last.
    assert_eq!(run("head -c 3000000 /dev/zero | tr '\\0' x", b"").len(), 3_000_000);
    let mut child = world
        .ns(&[
            "exec",
            "-t",
            "--rootfs",
            &world.path("root"),
            "--",
            "sh",
            "-c",
            "stty raw -echo; echo ready; head -c 1000000 | wc -c",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Before that, the terminal would keep no more than a line.
    read_until(child.stdout.as_mut().unwrap(), "ready");
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&[b'y'; 1_000_000]));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.stdout.ends_with(b"1000000\n"), "{:?}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn over_a_console_socket() {
    let world = World::new();
    world.bundle("tty; read line; echo \"got $line\"", |config| config["process"]["terminal"] = json!(true));
    let bundle = world.path("bundle");
    world.fails(&["create", "--bundle", &bundle, "console-1"], 2, "--console-socket");
    world.fails(&["create", "--bundle", &bundle, "--console-socket", "/no/such", "console-1"], 1, "/no/such");
    // Longer than a socket's address can be.
    let dir = world.dir.join("a-long-name".repeat(12));
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink(&dir, world.dir.join("s")).unwrap();
    let listener = UnixListener::bind(world.dir.join("s/socket")).unwrap();
    let socket = dir.join("socket").display().to_string();
    let console = |args: &[&str]| {
        world.ok(args);
        let (connection, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 64];
        recvmsg(connection.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .unwrap();
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        File::from(fd.expect("a descriptor"))
    };
    let mut master = console(&["create", "--bundle", &bundle, "--console-socket", &socket, "console-1"]);
    world.ok(&["start", "console-1"]);
    master.write_all(b"typed\n").unwrap();
    let said = read_until(&mut master, "got typed\r\n");
    assert!(said.contains("/dev/pts/0\r\n"), "{said}");
    world.wait_status("console-1", "stopped");
    world.ok(&["delete", "console-1"]);
    world.bundle("exec sleep 1000", |_| {});
    world.fails(&["create", "--bundle", &bundle, "--console-socket", &socket, "console-2"], 2, "no terminal");
    world.create("console-2");
    world.ok(&["start", "console-2"]);
    let process = world.path("process.json");
    let own = json!({"args": ["sh", "-c", "tty; exec sleep 1000"], "env": ["PATH=/bin"], "cwd": "/", "terminal": true});
    std::fs::write(&process, own.to_string()).unwrap();
    let exec = ["exec", "--process", &process, "--detach", "--console-socket", &socket, "console-2"];
    let mut master = console(&exec);
    read_until(&mut master, "/dev/pts/0\r\n");
    world.ok(&["delete", "--force", "console-2"]);
    let mut rest = Vec::new();
    wait("the terminal's end", || master.read_to_end(&mut rest).is_err() || rest.is_empty());
}
