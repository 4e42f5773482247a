//! Simulated power cuts, and kills, at random moments of `apply` and `--undo`.
//!
//! A cut: the whole runs on a file system in a file, which is cloned (reflink, so in one instant) while a command works; the
//! clone is then mounted in the place of the original, and has just what the disk had at that moment: what was not yet
//! written back is lost.
//!
//! `SHEEP_CUTS` and `SHEEP_KILLS` say how many, where more are wanted than each run has time for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{World, sh};

/// How many of something, if the environment does not say otherwise.
fn count(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// A number that differs from call to call; which one does not matter.
fn some_number(below: u64) -> u64 {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_le_bytes(bytes) % below.max(1)
}

/// Every path of a tree, with type, permissions, owner, size, time and content.
fn picture(dir: &Path) -> BTreeMap<PathBuf, String> {
    let listing = sh(&format!("cd {} && find . -printf '%P\\t%y %m %U:%G %T@ %l\\n'", dir.display()));
    let look = |line: &str| {
        let (path, attributes) = line.split_once('\t').unwrap();
        let content = fs::read(dir.join(path)).unwrap_or_default();
        (PathBuf::from(path), format!("{attributes} {}", String::from_utf8_lossy(&content)))
    };
    listing.lines().map(look).collect()
}

/// Fails with what differs, where a tree is neither of two.
#[track_caller]
fn is_one_of(
    now: &BTreeMap<PathBuf, String>,
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
    what: &str,
) -> bool {
    if now == before || now == after {
        return now == after;
    }
    let differ = |other: &BTreeMap<PathBuf, String>| {
        let paths = now.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
        let lines = paths.into_iter().filter(|path| now.get(*path) != other.get(*path));
        lines.map(|path| format!("{path:?}: {:?} / {:?}\n", now.get(path), other.get(path))).collect::<String>()
    };
    panic!("{what}\nagainst before:\n{}\nagainst after:\n{}", differ(before), differ(after));
}

fn start(world: &World, args: &[&str]) -> Child {
    world.command(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A lower with some files in `dir`, and deeds that touch all kinds of names.
fn lower(dir: &Path) {
    sh(&format!(
        "mkdir -p {0} && cd {0} && for d in a b c; do mkdir $d; for i in $(seq 12); do echo $d $i > $d/$i; done; done; \
         ln a/1 b/link && mkdir -p gone/deep && echo x > gone/deep/x && chmod 4755 c/1",
        dir.display()
    ));
}

const DEEDS: &str = "for i in $(seq 6); do echo new $i > a/$i; rm b/$i; done; rm -r gone; mkdir -p fresh/deep; \
    for i in $(seq 10); do echo fresh $i > fresh/deep/$i; done; ln fresh/deep/1 fresh/link; mv c/2 c/renamed; chmod 700 c; \
    rm c/3; mkdir c/3; echo in > c/3/in; ln -s nowhere c/link; setfattr -n user.k -v v c/4; truncate -s 40k a/7";

#[test]
fn p48_kill_9_in_the_middle_of_apply_and_undo() {
    let world = World::root();
    let low = world.dir.join("low");
    lower(&low);
    let before = picture(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && {DEEDS}", merged.display()));
    let after = picture(&merged);
    // How long to wait at most: longer after each kill, shorter where it was done before.
    let mut most = 10_000;
    let (mut applied, mut whole, mut killed) = (false, 0, 0);
    let rounds = count("SHEEP_KILLS", 160);
    for round in 0..rounds {
        let args: &[&str] = if applied { &["apply", "ov", "--undo"] } else { &["apply", "ov"] };
        let mut child = start(&world, args);
        std::thread::sleep(Duration::from_micros(some_number(most)));
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        let done = child.wait().unwrap().success();
        killed += usize::from(!done);
        most = if done { most * 9 / 10 } else { most * 21 / 20 };
        // The next command of any kind mends it.
        let next: &[&str] = if round % 2 == 0 { &["gc"] } else { &["ls"] };
        let ran = world.run(next).ok();
        assert_eq!(ran.err, "", "round {round}");
        let now = picture(&low);
        let is_after = is_one_of(&now, &before, &after, &format!("round {round}, {args:?}"));
        assert!(!done || is_after != applied, "round {round}: it said that it was done");
        whole += usize::from(is_after != applied);
        applied = is_after;
        let kept = world.data.join("applied");
        let kept = if kept.exists() { crate::harness::names_in(&kept) } else { Vec::new() };
        let done = kept.iter().filter(|name| *name != ".lock").count();
        assert_eq!(done, usize::from(applied), "round {round}: {kept:?}");
    }
    eprintln!("killed {killed} times; {whole} of all were done");
    assert!(killed > rounds / 8 && whole > rounds / 50, "killed {killed} times, done {whole} times");
}

/// A file system in a file that can be cloned in an instant, mounted on `disk` of a world.
struct Disk {
    world: World,
    /// The file system that has the images: XFS, which can clone.
    shelf: PathBuf,
}

impl Disk {
    fn new(kind: &str) -> Self {
        let mut world = World::root();
        let shelf = world.dir.join("shelf");
        let point = world.dir.join("disk");
        sh(&format!(
            "cd {dir} && mkdir memory shelf disk && mount -t tmpfs none memory && truncate -s 2g memory/xfs && \
             mkfs.xfs -q -m reflink=1 memory/xfs && mount -o loop memory/xfs shelf && truncate -s 320m shelf/base && mkfs.{kind} -q shelf/base",
            dir = world.dir.display()
        ));
        world.data = point.join("data");
        Disk { world, shelf }
    }

    fn mount(&self, image: &str) {
        // While a mount namespace of somebody else's keeps the one before, XFS takes no second one of the same id.
        sh(&format!(
            "for i in $(seq 100); do mount -o loop {0} {1} 2>/dev/null && exit; sleep 0.1; done; mount -o loop {0} {1}",
            self.shelf.join(image).display(),
            self.world.dir.join("disk").display()
        ));
    }

    fn umount(&self) {
        // Somebody who looks at all mounts may keep it busy for a moment, or keep a copy of it beyond that.
        sh(&format!(
            "sync -f {0}; for i in $(seq 50); do umount {0} 2>/dev/null && exit; sleep 0.1; done; umount {0}",
            self.world.dir.join("disk").display()
        ));
    }

    fn clone(&self, from: &str, to: &str) {
        let (from, to) = (self.shelf.join(from), self.shelf.join(to));
        let _ = fs::remove_file(&to);
        let (from, to) = (fs::File::open(from).unwrap(), fs::File::create(to).unwrap());
        rustix::fs::ioctl_ficlone(&to, &from).unwrap();
    }
}

/// Another program on the same disk, which syncs a file of its own all the time: that makes the names durable that others
/// changed, and not the content of their files.
struct Others {
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Others {
    fn start(path: PathBuf) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let seen = end.clone();
        let thread = std::thread::spawn(move || {
            let file = fs::File::create(path).unwrap();
            while !seen.load(Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap();
                file.sync_all().unwrap();
            }
        });
        Others { end, thread }
    }

    fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Cuts the power at random moments of a command that starts with a base image; gives how often what it does was done.
fn cuts(
    disk: &Disk,
    base: &str,
    args: &[&str],
    cuts: usize,
    look: impl Fn() -> BTreeMap<PathBuf, String>,
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> usize {
    // How long to wait at most: longer after each cut before the end, shorter after each that came too late.
    let mut most = 10_000;
    let mut done = 0;
    for round in 1..=cuts {
        disk.clone(base, "run");
        disk.mount("run");
        let others = Others::start(disk.world.dir.join("disk/other"));
        let mut child = start(&disk.world, args);
        std::thread::sleep(Duration::from_micros(some_number(most)));
        let early = child.try_wait().unwrap().is_none();
        disk.clone("run", "cut");
        most = if early { most * 21 / 20 } else { most * 9 / 10 };
        assert!(child.wait().unwrap().success(), "{args:?}");
        others.end();
        disk.umount();
        disk.mount("cut");
        let ran = disk.world.run(&["gc"]).ok();
        assert_eq!(ran.err, "", "cut {round}");
        done += usize::from(is_one_of(&look(), before, after, &format!("cut {round} of {args:?}")));
        disk.umount();
    }
    done
}

fn power_cuts(kind: &str) {
    let disk = Disk::new(kind);
    let world = &disk.world;
    let low = world.dir.join("disk/low");
    disk.mount("base");
    lower(&low);
    let before = picture(&low);
    let merged = world.mount("ov", &[low.to_str().unwrap()]);
    sh(&format!("cd {} && {DEEDS}", merged.display()));
    let after = picture(&merged);
    world.run(&["umount", "--keep", "ov"]).ok();
    disk.umount();
    disk.clone("base", "applied");
    disk.mount("applied");
    world.run(&["apply", "ov"]).ok();
    assert!(is_one_of(&picture(&low), &before, &after, "applied"));
    disk.umount();

    let number = count("SHEEP_CUTS", 16) / 4;
    let look = || picture(&low);
    let done = cuts(&disk, "base", &["apply", "ov"], number, look, &before, &after);
    let undone = number - cuts(&disk, "applied", &["apply", "--undo"], number, look, &before, &after);
    eprintln!("{kind}: {number} cuts of apply, {done} done; {number} of undo, {undone} done");

    // What the overlay shows is the same before and after; a reset throws it away.
    disk.clone("base", "twice");
    disk.mount("twice");
    world.run(&["snapshot", "ov"]).ok();
    world.run(&["mount", "--id", "ov"]).ok();
    sh(&format!("cd {} && echo later > a/1 && rm -r fresh", world.merged("ov").display()));
    let later = picture(&world.merged("ov"));
    world.run(&["umount", "--keep", "ov"]).ok();
    world.run(&["snapshot", "ov"]).ok();
    disk.umount();
    let view = || {
        world.run(&["mount", "--id", "ov"]).ok();
        let view = picture(&world.merged("ov"));
        world.run(&["umount", "--keep", "ov"]).ok();
        view
    };
    cuts(&disk, "base", &["snapshot", "ov"], number, view, &after, &after);
    cuts(&disk, "twice", &["squash", "ov"], number, view, &later, &later);
    let reset = cuts(&disk, "twice", &["reset", "ov@1"], number, view, &later, &after);
    eprintln!("{kind}: {number} cuts each of snapshot, squash and reset, {reset} resets done");
}

#[test]
fn power_cuts_on_ext4() {
    power_cuts("ext4");
}

#[test]
fn power_cuts_on_xfs() {
    power_cuts("xfs");
}

#[test]
fn p48_kill_9_in_the_middle_of_all_that_moves_an_upper() {
    let world = World::root();
    lower(&world.dir.join("low"));
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && {DEEDS}", merged.display()));
    let mut now = picture(&merged);
    // What the overlay was at each snapshot; number 0 is what it began with.
    let mut at_snapshot = BTreeMap::from([(0, picture(&world.dir.join("low")))]);
    let (mut most, mut killed) = (10_000, 0);
    let rounds = count("SHEEP_KILLS", 120);
    for round in 0..rounds {
        if some_number(3) == 0 {
            fs::write(merged.join(format!("a/{}", some_number(4))), format!("round {round}")).unwrap();
            now = picture(&merged);
        }
        let verbs: [&[&str]; 6] = [
            &["snapshot", "ov"],
            &["squash", "ov"],
            &["umount", "--keep", "ov"],
            &["mount", "--id", "ov"],
            &["reset", "ov"],
            &["gc"],
        ];
        let args = verbs[some_number(6) as usize];
        let mut child = start(&world, args);
        std::thread::sleep(Duration::from_micros(some_number(most)));
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        let early = child.wait().unwrap().code().is_none();
        killed += usize::from(early);
        most = if early { most * 21 / 20 } else { most * 9 / 10 };
        let ran = world.run(&["gc"]).ok();
        assert!(
            ran.err.is_empty() || ran.err.contains("ov stays: not mounted any more"),
            "round {round}, {args:?}: {ran:?}"
        );
        if world.state("ov").as_deref() != Some("mounted") {
            world.run(&["mount", "--id", "ov"]).ok();
        }
        let head = world.run(&["inspect", "ov"]).json()["overlay"]["head"].as_u64().unwrap_or(0);
        let view = picture(&merged);
        let before = if args[0] == "reset" { at_snapshot.get(&head).unwrap_or(&now) } else { &now };
        is_one_of(&view, &now, before, &format!("round {round}, {args:?}"));
        now = view;
        at_snapshot.entry(head).or_insert_with(|| now.clone());
    }
    eprintln!("killed {killed} times; {} states", at_snapshot.len());
    assert!(killed > rounds / 10, "killed {killed} times");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}
