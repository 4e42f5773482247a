//! Random deeds with snapshots in between, by the binary: what is seen is the same before and after each, going back to one
//! shows what was seen then, and `diff` between two is what two pictures tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheep_overlay::diff::{Depth, changes_between};
use sheep_overlay::doc::Overlay;
use sheep_overlay::history::{Point, Span};
use sheep_overlay::record;

use crate::plain;
use crate::random::{Random, act, asked_for, decide, expected, make_layer};
use crate::trees::{Look, Picture, Scratch, assert_same, picture};

/// A data directory, with one overlay in it.
struct World<'a> {
    data: &'a Path,
}

impl World<'_> {
    fn run(&self, args: &[&str]) -> Result<(), String> {
        // Beside a copy of this test there is one of the program: the build directory may be closed to its user.
        let beside = std::env::current_exe().unwrap().with_file_name("sheep-overlay");
        let program = if beside.exists() { beside } else { PathBuf::from(env!("CARGO_BIN_EXE_sheep-overlay")) };
        let done = Command::new(program).args(args).env("SHEEP_DATA_DIR", self.data).output().unwrap();
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
    }

    fn overlay(&self) -> Overlay {
        record::read(&fs::canonicalize(self.data).unwrap().join("overlay/ov")).unwrap().unwrap()
    }
}

/// Does one sequence and gives the number of changes that were compared.
fn sequence(scratch: &Scratch, kind: &str, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let dir = scratch.dir().join(format!("history{seed}"));
    let lowers: Vec<PathBuf> = (0..1 + random.below(3)).map(|layer| dir.join(format!("lower{layer}"))).collect();
    for (layer, root) in lowers.iter().enumerate() {
        make_layer(&mut random, root, &lowers[..layer], false);
    }
    let data = dir.join("data");
    let world = World { data: &data };
    let mut log = String::new();
    let run = |log: &mut String, args: &[&str]| {
        log.push_str(&format!("{args:?}\n"));
        world.run(args).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{log}"));
    };
    let names: Vec<&str> = lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
    run(&mut log, &[&["mount", "--id", "ov", "--scratch"], &names[..]].concat());
    let merged = data.join("overlay/ov/merged");
    // What was seen at each snapshot; at 0, the beginning.
    let mut seen: Vec<Picture> = vec![picture(&merged)];
    let mut compared = 0;
    // How many blocks a file takes beside its content, for instance for its attributes, is the file system's affair.
    let all = |look: &mut Look| look.blocks = if kind == "tmpfs" { look.blocks } else { 0 };
    for _ in 0..2 + random.below(5) {
        for _ in 0..1 + random.below(7) {
            let deed = decide(&mut random, &merged);
            let done = act(&deed, &merged);
            log.push_str(&format!("{deed:?} -> {done}\n"));
        }
        let before = picture(&merged);
        run(&mut log, &["snapshot", "ov"]);
        assert_same(&format!("seed {seed}: after a snapshot\n{log}"), &picture(&merged), &before, all);
        seen.push(before);
        if random.below(3) == 0 {
            let number = random.below(seen.len());
            act(&decide(&mut random, &merged), &merged);
            run(&mut log, &["reset", &format!("ov@{number}")]);
            assert_same(&format!("seed {seed}: back to {number}\n{log}"), &picture(&merged), &seen[number], all);
        }
    }
    let overlay = world.overlay();
    let lines =
        |overlay: &Overlay, from, to| plain(changes_between(overlay, Span { from, to }, Depth::Everything).unwrap());
    for from in 0..seen.len() {
        for to in 0..seen.len() {
            let (a, b) = (Point::Snapshot(from as u32), Point::Snapshot(to as u32));
            let want = expected(&seen[from], &seen[to]);
            assert_eq!(lines(&overlay, a, b), want, "seed {seed}: {from}..{to}\n{log}");
            let kinds = changes_between(&overlay, Span { from: a, to: b }, Depth::Kinds).unwrap();
            let all = changes_between(&overlay, Span { from: a, to: b }, Depth::Everything).unwrap();
            assert_eq!(kinds.len(), all.len(), "seed {seed}: {from}..{to}, only kinds\n{log}");
            compared += want.len();
        }
    }
    act(&decide(&mut random, &merged), &merged);
    let now = picture(&merged);
    assert_eq!(lines(&overlay, Point::Lowers, Point::Now), expected(&seen[0], &now), "seed {seed}\n{log}");
    // One layer for all that the head lies on.
    if sheep_overlay::history::line(&overlay, overlay.head).len() > 1 {
        run(&mut log, &["squash", "ov"]);
        assert_same(&format!("seed {seed}: squashed\n{log}"), &picture(&merged), &now, all);
        let overlay = world.overlay();
        assert_eq!(
            lines(&overlay, Point::Lowers, Point::Now),
            expected(&seen[0], &now),
            "seed {seed}, squashed\n{log}"
        );
        for snapshot in &overlay.snapshots {
            run(&mut log, &["reset", &format!("ov@{}", snapshot.number)]);
            let was = &seen[snapshot.number as usize];
            assert_same(&format!("seed {seed}: squashed, {}\n{log}", snapshot.number), &picture(&merged), was, all);
        }
    }
    run(&mut log, &["umount", "ov"]);
    compared
}

/// Does the sequences of some seeds on a file system of its own; or those from the seed that is asked for on.
pub fn sequences(kind: &str, seeds: std::ops::Range<u64>) {
    let scratch = Scratch::on(kind);
    let start = std::time::Instant::now();
    let asked = asked_for();
    let seeds = match asked {
        Some((_, seed)) => seed..u64::MAX,
        None => seeds,
    };
    let (mut compared, mut count) = (0, 0);
    for seed in seeds {
        if asked.is_some_and(|(time, _)| start.elapsed() >= time) {
            break;
        }
        compared += sequence(&scratch, kind, seed);
        count += 1;
        let _ = Command::new("rm").arg("-rf").arg(scratch.dir().join(format!("history{seed}"))).status();
    }
    eprintln!("{kind}, with snapshots: {count} sequences, {compared} changes, {:?}", start.elapsed());
}

#[test]
fn snapshots_of_random_deeds_on_tmpfs() {
    sequences("tmpfs", 1..80);
}

#[test]
fn snapshots_of_random_deeds_on_ext4() {
    sequences("ext4", 1001..1030);
}
