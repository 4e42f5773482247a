//! Processes that are killed at any moment, and processes that want the same thing at the same moment.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{World, kernel, names_in};

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

/// What is in a merged directory: names and contents.
fn shown(world: &World) -> Vec<(String, String)> {
    let merged = world.merged("ov");
    let read = |name: String| (name.clone(), fs::read_to_string(merged.join(name)).unwrap());
    names_in(&merged).into_iter().map(read).collect()
}

/// After a kill: mounts the overlay again where it is not, and gives its state before that.
#[track_caller]
fn mend(world: &World, round: u64) {
    let collected = world.run(&["gc"]);
    assert_eq!(collected.code, 0, "round {round}: {collected:?}");
    let state = world.state("ov").unwrap();
    if state != "mounted" {
        let taken = world.run(&["mount", "--id", "ov"]);
        assert_eq!(taken.code, 0, "round {round}, {state}: {taken:?}");
    }
    assert_eq!(world.mounts().len(), 1, "round {round}");
    let record = world.run(&["inspect", "ov"]).json();
    assert!(record["overlay"].get("pending").is_none(), "round {round}: {record}");
    let mut names = names_in(&world.data.join("overlay/ov"));
    names.retain(|name| !["lock", "merged", "overlay.json", "snapshots", "upper", "work"].contains(&name.as_str()));
    // A temporary file of a record that was being written is of no harm.
    names.retain(|name| !name.starts_with(".overlay.json"));
    assert_eq!(names, [""; 0], "round {round}");
}

#[test]
fn kill_9_in_the_middle_of_snapshot() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    let mut made = 0;
    for round in 0..120 {
        let unmounted = round % 4 == 3;
        fs::write(merged.join(format!("f{}", round % 7)), round.to_string()).unwrap();
        let before = shown(&world);
        if unmounted {
            world.run(&["umount", "--keep", "ov"]).ok();
        }
        end_after_a_moment(start(&world, &["snapshot", "ov"]), Signal::KILL, 25_000);
        mend(&world, round);
        assert_eq!(shown(&world), before, "round {round}");
        // What is written now is written to the upper, and to no layer.
        fs::write(merged.join("now"), round.to_string()).unwrap();
        assert!(world.data.join("overlay/ov/upper/now").exists(), "round {round}");
        fs::remove_file(merged.join("now")).unwrap();
        made = world.run(&["log", "--json", "ov"]).ok().out.lines().count();
        if made > 20 {
            world.run(&["squash", "ov"]).ok();
            assert_eq!(shown(&world), before, "round {round}");
        }
    }
    assert!(made > 0);
    settles(&world);
}

#[test]
fn apply_and_status_after_a_killed_snapshot() {
    for verb in ["apply", "status"] {
        let world = World::root();
        let low = world.lower("low", &["a"]);
        fs::write(world.mount("ov", &["low"]).join("new"), "1").unwrap();
        world.run(&["umount", "--keep", "ov"]).ok();
        // As a kill between the first two renames leaves it.
        let dir = world.data.join("overlay/ov");
        let file = dir.join("overlay.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let snapshot = serde_json::json!({ "number": 1, "parent": 0, "created": record["created"], "layer": "1" });
        record["pending"] = serde_json::json!({ "layer": "1", "snapshot": snapshot, "head": 1 });
        fs::write(&file, record.to_string()).unwrap();
        fs::create_dir_all(dir.join("snapshots/1")).unwrap();
        fs::rename(dir.join("upper"), dir.join("snapshots/1/upper")).unwrap();
        world.run(&[verb, "ov"]).ok();
        assert_eq!(low.join("new").exists(), verb == "apply");
        assert_eq!(world.run(&["log", "--json", "ov"]).ok().out.lines().count(), 1);
        world.run(&["mount", "--id", "ov"]).ok();
        assert_eq!(names_in(&world.merged("ov")), ["a", "new"]);
        world.run(&["umount", "ov"]).ok();
    }
}

#[test]
fn kill_9_in_the_middle_of_reset() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("one"), "1").unwrap();
    world.run(&["snapshot", "ov"]).ok();
    fs::write(merged.join("two"), "2").unwrap();
    world.run(&["snapshot", "ov"]).ok();
    let mut went = 0;
    for round in 0..100 {
        let to = 1 + round % 2;
        world.run(&["reset", &format!("ov@{}", 3 - to)]).ok();
        fs::write(merged.join("three"), round.to_string()).unwrap();
        let before = shown(&world);
        if round % 5 == 4 {
            world.run(&["umount", "--keep", "ov"]).ok();
        }
        end_after_a_moment(start(&world, &["reset", &format!("ov@{to}")]), Signal::KILL, 25_000);
        mend(&world, round);
        let after: Vec<(String, String)> = [("a", "low"), ("one", "1"), ("two", "2")][..1 + to as usize]
            .iter()
            .map(|(name, content)| ((*name).to_owned(), (*content).to_owned()))
            .collect();
        let now = shown(&world);
        assert!(now == before || now == after, "round {round}: {now:?}");
        went += usize::from(now == after);
        assert_eq!(world.run(&["log", "--json", "ov"]).ok().out.lines().count(), 2, "round {round}");
        assert_eq!(names_in(&world.data.join("overlay/ov/snapshots")), ["1", "2"], "round {round}");
    }
    assert!((1..100).contains(&went), "{went} were done");
    settles(&world);
}

#[test]
fn kill_9_in_the_middle_of_squash() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    let mut squashed = 0;
    for round in 0..60 {
        for number in 0..2 {
            for file in 0..20 {
                fs::write(merged.join(format!("f{file}")), format!("{round} {number}")).unwrap();
            }
            fs::write(merged.join(format!("only{number}")), "").unwrap();
            world.run(&["snapshot", "ov"]).ok();
        }
        let before = shown(&world);
        if round % 3 == 2 {
            world.run(&["umount", "--keep", "ov"]).ok();
        }
        end_after_a_moment(start(&world, &["squash", "ov"]), Signal::KILL, 60_000);
        mend(&world, round);
        assert_eq!(shown(&world), before, "round {round}");
        let log = world.run(&["log", "--json", "ov"]).ok().out.lines().count();
        assert_eq!(names_in(&world.data.join("overlay/ov/snapshots")).len(), log, "round {round}");
        squashed += usize::from(log == 1);
    }
    assert!(squashed > 0, "none was done");
    settles(&world);
}

/// The system calls that change something: names, mounts, files, processes.
const CHANGES: [&str; 22] = [
    "rename",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "linkat",
    "move_mount",
    "mount",
    "umount2",
    "mount_setattr",
    "fsmount",
    "open_tree",
    "fsconfig",
    "fsync",
    "syncfs",
    "write",
    "clone",
    "fchmodat",
    "fchownat",
    "utimensat",
    "mknodat",
];

/// Runs a command that is killed at its `number`th call of one kind; false where it has not so many.
fn killed_at(world: &World, (call, number): (&str, usize), args: &[&str]) -> bool {
    let command = world.command(args);
    let mut traced = std::process::Command::new("strace");
    let inject = format!("inject=?{call}:signal=KILL:when={number}");
    traced.args(["-qq", "-o", "/dev/null", "-e", &inject, "--"]).arg(command.get_program()).args(args);
    traced.env("SHEEP_DATA_DIR", &world.data).current_dir(&world.dir);
    let done = traced.stdin(Stdio::null()).output().unwrap();
    // strace ends as the command did.
    assert!(done.status.code().is_none_or(|code| code == 0), "{args:?} at {call} {number}: {done:?}");
    !done.status.success()
}

#[test]
fn killed_at_each_change_of_snapshot_reset_and_squash() {
    let world = World::root();
    world.lower("low", &["a", "d/b"]);
    world.mount("ov", &["low"]);
    for verb in ["snapshot", "reset", "squash"] {
        for mounted in [true, false] {
            let mut count = 0;
            for call in CHANGES {
                for number in 1.. {
                    let place = format!("{verb} {mounted} {call} {number}");
                    if !one_killed(&world, verb, mounted, (call, number), &place) {
                        break;
                    }
                    count += 1;
                }
            }
            assert!(count > 20, "{verb} {mounted}: only {count} changes");
            eprintln!("{verb}, {}: killed at {count} changes", if mounted { "mounted" } else { "kept" });
        }
    }
    settles(&world);
}

/// Makes two snapshots (or one, and a change), has a command killed, and looks whether all is as before or after it.
fn one_killed(world: &World, verb: &str, mounted: bool, at: (&str, usize), place: &str) -> bool {
    let merged = world.merged("ov");
    if world.run(&["log", "--json", "ov"]).ok().out.lines().count() > 1 {
        world.run(&["squash", "ov"]).ok();
    }
    fs::write(merged.join("one"), place).unwrap();
    fs::remove_file(merged.join("a")).ok();
    world.run(&["snapshot", "ov"]).ok();
    fs::write(merged.join("two"), "2").unwrap();
    let base = shown_files(world);
    if verb == "squash" {
        world.run(&["snapshot", "ov"]).ok();
    }
    let before = shown_files(world);
    let after = match verb {
        "reset" => base.into_iter().filter(|(name, _)| name != "two").collect(),
        _ => before.clone(),
    };
    if !mounted {
        world.run(&["umount", "--keep", "ov"]).ok();
    }
    let killed = killed_at(world, at, &[verb, "ov"]);
    mend(world, 0);
    let now = shown_files(world);
    assert!(now == before || now == after, "{place}: {now:?}");
    // What is written now is written to the upper, and to no layer.
    fs::write(merged.join("now"), "").unwrap();
    assert!(world.data.join("overlay/ov/upper/now").exists(), "{place}");
    for name in ["now", "two"] {
        fs::remove_file(merged.join(name)).ok();
    }
    killed
}

/// As [`shown`], of the files alone.
fn shown_files(world: &World) -> Vec<(String, String)> {
    let merged = world.merged("ov");
    let read = |name: String| Some((name.clone(), fs::read_to_string(merged.join(name)).ok()?));
    names_in(&merged).into_iter().filter_map(read).collect()
}

#[test]
fn who_comes_in_while_a_snapshot_is_made_loses_nothing() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("log"), "").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let older = kernel() < (6, 5);
    let (mut made, mut refused) = (0, 0);
    let written = std::thread::scope(|scope| {
        // Always somebody with an open file, but for a moment; longer than a snapshot is patient.
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let file = fs::OpenOptions::new().append(true).open(merged.join("log"));
                // The mount that was to be is taken out again this moment; or there is none for a moment, before Linux 6.5.
                let passes = |error: &std::io::Error| {
                    error.kind() == std::io::ErrorKind::ReadOnlyFilesystem
                        || (older && error.kind() == std::io::ErrorKind::NotFound)
                };
                if file.as_ref().is_err_and(passes) {
                    continue;
                }
                let mut file = file.unwrap();
                std::thread::sleep(Duration::from_millis(some_number(150)));
                std::io::Write::write_all(&mut file, b"x").unwrap();
                written += 1;
                drop(file);
                std::thread::sleep(Duration::from_micros(some_number(20_000)));
            }
            written
        });
        for round in 0..60 {
            let ran = world.run(&["snapshot", "ov"]);
            match ran.code {
                0 => made += 1,
                4 => refused += 1,
                _ => panic!("round {round}: {ran:?}"),
            }
            assert_eq!(world.mounts().len(), 1, "round {round}: {ran:?}");
            assert_eq!(world.state("ov").unwrap(), "mounted", "round {round}: {ran:?}");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap()
    });
    eprintln!("{made} snapshots made, {refused} refused, {written} written");
    assert_eq!(fs::read_to_string(merged.join("log")).unwrap().len(), written);
    assert_eq!(world.run(&["log", "--json", "ov"]).ok().out.lines().count(), made);
    assert!(made > 0, "none was made");
    settles(&world);
}
