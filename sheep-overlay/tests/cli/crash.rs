//! Processes that are killed at any moment, and processes that want the same thing at the same moment.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{World, names_in};

fn start(world: &World, args: &[&str]) -> Child {
    world.command(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A number that differs from call to call; which one does not matter.
fn some_number(below: u64) -> u64 {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_le_bytes(bytes) % below
}

fn end_after_a_moment(mut child: Child, signal: Signal, below_micros: u64) -> Option<i32> {
    std::thread::sleep(Duration::from_micros(some_number(below_micros)));
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().code()
}

/// Everything that `ls` shows can be unmounted, and then nothing is left.
fn settles(world: &World) {
    let list = world.run(&["ls", "--json"]).ok();
    assert_eq!(list.err, "");
    if !list.out.is_empty() {
        world.run_with(&list.out, &["umount", "-"]).ok();
    }
    world.is_clean();
}

#[test]
fn kill_9_in_the_middle_of_mount() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.lower("top", &["b"]);
    for round in 0..80 {
        let child = start(&world, &["mount", "--id", "ov", "low", "top"]);
        end_after_a_moment(child, Signal::KILL, 6000);
        let list = world.run(&["ls"]).ok();
        assert_eq!(list.err, "", "round {round}");
        // Either it is not there at all, or it is whole.
        match world.in_overlay_dir().as_slice() {
            [] => assert!(world.mounts().is_empty(), "round {round}"),
            [id] => {
                assert_eq!((id.as_str(), world.state("ov").as_deref()), ("ov", Some("mounted")), "round {round}");
                assert_eq!(names_in(&world.merged("ov")), ["a", "b"]);
                world.run(&["umount", "ov"]).ok();
            }
            other => panic!("round {round}: {other:?}"),
        }
        world.is_clean();
    }
}

#[test]
fn kill_9_in_the_middle_of_umount() {
    let world = World::root();
    world.lower("low", &["a"]);
    for _ in 0..60 {
        let merged = world.mount("ov", &["low"]);
        for n in 0..30 {
            fs::create_dir(merged.join(format!("d{n}"))).unwrap();
            fs::write(merged.join(format!("d{n}/f")), "").unwrap();
        }
        end_after_a_moment(start(&world, &["umount", "ov"]), Signal::KILL, 6000);
        settles(&world);
    }
}

#[test]
fn kill_9_in_the_middle_of_keep_and_take_up() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("precious"), "data").unwrap();
    for round in 0..60 {
        let volatile: &[&str] =
            if round % 2 == 0 { &["mount", "--id", "ov"] } else { &["mount", "--id", "ov", "--volatile"] };
        end_after_a_moment(start(&world, &["umount", "--keep", "ov"]), Signal::KILL, 5000);
        end_after_a_moment(start(&world, volatile), Signal::KILL, 8000);
        // Whatever it is now, it can be mounted, and nothing is lost.
        if world.state("ov").unwrap() != "mounted" {
            world.run(&["mount", "--id", "ov"]).ok();
        }
        assert_eq!(fs::read_to_string(merged.join("precious")).unwrap(), "data", "round {round}");
        assert_eq!(world.mounts().len(), 1, "round {round}");
    }
    settles(&world);
}

#[test]
fn ctrl_c_leaves_a_whole_overlay_or_none() {
    let world = World::root();
    world.lower("low", &["a"]);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP].repeat(12) {
        let code = end_after_a_moment(start(&world, &["mount", "--id", "ov", "low"]), signal, 4000);
        if code == Some(0) {
            world.run(&["umount", "ov"]).ok();
        }
        // No help of `ls` here: the interrupted process cleans up itself.
        world.is_clean();
    }
}

#[test]
fn of_two_umounts_one_wins() {
    let world = World::root();
    world.lower("low", &["a"]);
    for _ in 0..30 {
        world.mount("ov", &["low"]);
        let pair = [start(&world, &["umount", "ov"]), start(&world, &["umount", "ov"])];
        let mut codes = pair.map(|mut child| child.wait().unwrap().code().unwrap());
        codes.sort();
        assert_eq!(codes, [0, 3]);
        world.is_clean();
    }
}

#[test]
fn of_two_mounts_of_a_new_id_one_wins() {
    let world = World::root();
    world.lower("low", &["a"]);
    for _ in 0..30 {
        let pair = [(); 2].map(|()| start(&world, &["mount", "--id", "ov", "low"]));
        let mut codes = pair.map(|mut child| child.wait().unwrap().code().unwrap());
        codes.sort();
        assert_eq!(codes, [0, 4]);
        assert_eq!(world.mounts().len(), 1);
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn p01_of_two_mounts_of_a_kept_id_one_wins() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    for _ in 0..30 {
        world.run(&["umount", "--keep", "ov"]).ok();
        let pair = [(); 2].map(|()| start(&world, &["mount", "--id", "ov"]));
        let mut codes = pair.map(|mut child| child.wait().unwrap().code().unwrap());
        codes.sort();
        assert_eq!(codes, [0, 4]);
        assert_eq!(world.mounts().len(), 1);
    }
}

#[test]
fn many_at_once_on_one_data_directory() {
    let world = World::root();
    world.lower("low", &["a"]);
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..15 {
                    let document = world.run(&["mount", "low"]).ok().out;
                    assert_eq!(world.run(&["ls"]).ok().err, "", "worker {worker}");
                    world.run_with(&document, &["umount", "-"]).ok();
                }
            });
        }
    });
    world.is_clean();
}
