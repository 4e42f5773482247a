//! Signals to a `run` in the foreground.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};

use crate::harness::{World, end_of, eventually, pid_of};

const PATIENT: &str = "trap \"echo got term; exit 5\" TERM; trap \"echo got int; exit 6\" INT; trap \"echo got usr1\" USR1; echo ready; while :; do sleep 0.02; done";

#[test]
fn they_are_passed_on() {
    let world = World::new();
    for flags in ["--rm", ""] {
        for (signal, code) in [(Signal::SIGTERM, 5), (Signal::SIGINT, 6)] {
            let mut child = world.start(&format!("exec sheep-run run {flags} minimal sh -c '{PATIENT}' >out"));
            eventually("it is ready", || world.sh("cat out").stdout == "ready\n");
            kill(pid_of(&child), Signal::SIGUSR1).unwrap();
            eventually("it got USR1", || world.sh("cat out").stdout == "ready\ngot usr1\n");
            kill(pid_of(&child), signal).unwrap();
            assert_eq!(end_of(&mut child).code(), Some(code));
            world.sh(": >out").ok();
        }
    }
    world.sh("sheep-run ps -a --json | jq -r .container.id | xargs sheep-run rm").ok();
    world.assert_nothing_left();
}

#[test]
fn stop_and_exec_reach_it_from_elsewhere() {
    let world = World::new();
    for flags in ["--rm", ""] {
        let mut child = world.start(&format!("exec sheep-run run {flags} --name f minimal sh -c '{PATIENT}' >out"));
        eventually("it is ready", || world.sh("cat out").stdout == "ready\n");
        assert_eq!(world.field("f", ".container.status"), "\"running\"");
        assert_ne!(world.field("f", ".container.pid"), "null");
        assert_eq!(world.sh("sheep-run exec f cat /proc/1/comm").ok(), "sh");
        world.sh("sheep-run rm f").fails(4, "running");
        world.sh("sheep-run stop f").ok();
        assert_eq!(end_of(&mut child).code(), Some(5));
        world.sh("sheep-run rm -f f 2>/dev/null; : >out").ok();
        world.assert_nothing_left();
    }
}

#[test]
fn an_interrupt_on_the_way_undoes_the_steps() {
    let world = World::new();
    for (n, flags) in ["--rm", "", "-d"].into_iter().cycle().take(36).enumerate() {
        let begin = Instant::now();
        let mut child = world.start(&format!("exec sheep-run run {flags} --name i minimal sleep 60"));
        thread::sleep(Duration::from_millis(3) * u32::try_from(n / 3).unwrap());
        // As Ctrl-C does: everything in the foreground gets it.
        killpg(pid_of(&child), if n % 2 == 0 { Signal::SIGINT } else { Signal::SIGTERM }).unwrap();
        thread::sleep(Duration::from_millis(1));
        if flags == "-d" {
            let status = end_of(&mut child);
            if status.code() == Some(0) {
                world.sh("sheep-run rm -f i").ok();
            }
        } else {
            // A container whose first process pays no attention to SIGTERM goes on, as it should; it is removed.
            let _ = kill(pid_of(&child), Signal::SIGTERM);
            thread::sleep(Duration::from_millis(30));
            world.sh("sheep-run rm -f i");
            let status = end_of(&mut child);
            assert!(status.code().is_some() || status.signal().is_some());
            world.sh("sheep-run rm -f i");
        }
        world.assert_nothing_left();
        // Nobody waits for a lock that it holds itself.
        assert!(begin.elapsed() < Duration::from_secs(15), "{n} {flags} took {:?}", begin.elapsed());
    }
}
