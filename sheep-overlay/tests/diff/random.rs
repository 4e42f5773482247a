//! Random deeds.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use sheep_overlay::applied::Store;
use sheep_overlay::backend::copy::copy_stack;
use sheep_overlay::cli::Apply;
use sheep_overlay::doc::Overlay;
use sheep_overlay::layer::{self, Marks};
use sheep_overlay::state::DataRoot;
use sheep_overlay::{apply, record};

use crate::trees::{Picture, Scratch, assert_same, picture};
use crate::{Both, exported, plain_lines as lines};

/// xorshift64*: the same sequence for the same seed, everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

const NAMES: [&[u8]; 7] = [b"a", b"b", b"c d", b"e\nf", b"\xff", b"g", b"h\\"];

/// A path that may or may not be there, three levels deep at most.
fn any_path(random: &mut Random) -> PathBuf {
    let depth = 1 + random.below(3);
    (0..depth).map(|_| OsStr::from_bytes(random.pick(&NAMES))).collect()
}

/// Where an added thing may go, or a changed one is: mostly a path that is there.
fn path(random: &mut Random, root: &Path) -> PathBuf {
    let there: Vec<Vec<u8>> = picture(root).into_keys().filter(|path| !path.is_empty()).collect();
    if there.is_empty() || random.below(4) == 0 {
        any_path(random)
    } else {
        PathBuf::from(OsStr::from_bytes(&random.pick(&there)))
    }
}

/// Times that repeat, so that equal ones with unequal content occur.
fn set_time(path: &Path, random: &mut Random) {
    let seconds = 1_000_000_000 + random.below(2) as u64;
    let time = UNIX_EPOCH + Duration::new(seconds, random.pick(&[0, 5, 999_999_999]));
    let _ = File::open(path).and_then(|file| file.set_modified(time));
}

/// Whether the view of some layers (bottom first) has a path.
fn is_shown(layers: &[PathBuf], inside: &Path) -> bool {
    let is_whiteout = |path: &Path| rustix::fs::lstat(path).is_ok_and(|stat| layer::is_device_whiteout(&stat));
    let is_opaque =
        |path: &Path| File::open(path).is_ok_and(|dir| layer::is_opaque(dir, Marks::of_this_process()).unwrap());
    'layers: for root in layers.iter().rev() {
        let (mut path, mut hides) = (root.clone(), false);
        let parts: Vec<_> = inside.components().collect();
        for (number, part) in parts.iter().enumerate() {
            path.push(part);
            match path.symlink_metadata() {
                Err(_) if hides => return false,
                Err(_) => continue 'layers,
                Ok(_) if is_whiteout(&path) => return false,
                Ok(_) if number + 1 == parts.len() => return true,
                Ok(found) if found.is_dir() => hides |= is_opaque(&path),
                Ok(_) => return false,
            }
        }
    }
    false
}

/// A tree to start from; `below` are the layers under it, in which it hides things: what is there, or with `anything` also
/// what is not. (OverlayFS lists such a whiteout and then does not know it, so that mv and cp fail on its directory.)
pub fn make_layer(random: &mut Random, root: &Path, below: &[PathBuf], anything: bool) {
    fs::create_dir_all(root).unwrap();
    for _ in 0..6 + random.below(14) {
        let inside = any_path(random);
        let path = root.join(&inside);
        let Some(parent) = path.parent() else { continue };
        // Opening a FIFO would wait for ever.
        if fs::create_dir_all(parent).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        match random.below(if below.is_empty() { 9 } else { 12 }) {
            0..5 => {
                if fs::write(&path, &b"content"[..random.below(8)]).is_ok() {
                    set_time(&path, random);
                    fs::set_permissions(&path, PermissionsExt::from_mode(random.pick(&[0o644, 0o4755, 0o400])))
                        .unwrap();
                }
            }
            5 => drop(symlink(random.pick(&["target", "a/b"]), &path)),
            6 => drop(mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0)),
            7 => drop(mknodat(CWD, &path, FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3))),
            8 => {
                if fs::create_dir_all(&path).is_ok() {
                    lsetxattr(&path, "user.sheep", b"1", XattrFlags::empty()).unwrap();
                    fs::set_permissions(&path, PermissionsExt::from_mode(random.pick(&[0o755, 0o1777, 0o555])))
                        .unwrap();
                }
            }
            9..11 => {
                let is_opaque = |dir: &Path| {
                    File::open(dir).is_ok_and(|dir| layer::is_opaque(dir, Marks::of_this_process()).unwrap())
                };
                // An opaque directory further up hides all of the layers below as well.
                let opaque = parent.ancestors().take_while(|dir| *dir != root).any(is_opaque);
                let hides = is_shown(below, &inside) && !opaque;
                if hides || anything {
                    layer::make_whiteout(CWD, name.as_c_str()).unwrap();
                }
            }
            _ => {
                // No whiteouts in an opaque directory: the kernel never makes that.
                if fs::create_dir(&path).is_ok() {
                    layer::set_opaque(File::open(&path).unwrap()).unwrap();
                    fs::write(path.join("in opaque"), "x").unwrap();
                }
            }
        }
    }
}

/// A deed, decided once and done in both trees.
#[derive(Debug)]
pub enum Deed {
    Write(PathBuf, &'static str, bool),
    OpenOnly(PathBuf),
    Truncate(PathBuf, u64),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32),
    Xattr(PathBuf, bool),
    Touch(PathBuf, u64, u32),
    Remove(PathBuf),
    Mkdir(PathBuf),
    Recreate(PathBuf),
    Symlink(PathBuf, &'static str),
    Fifo(PathBuf),
    Move(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Rewrite(PathBuf),
    SwapIn(PathBuf),
    Append(PathBuf),
    WriteFarAway(PathBuf),
    Rmdir(PathBuf),
    Device(PathBuf),
    Acl(PathBuf),
    Exchange(PathBuf, PathBuf),
}

pub fn decide(random: &mut Random, root: &Path) -> Deed {
    let at = path(random, root);
    match random.below(24) {
        0 | 1 => Deed::Write(at, random.pick(&["content", "other", "conTent"]), random.below(2) == 0),
        2 => Deed::OpenOnly(at),
        3 => Deed::Truncate(at, random.below(8) as u64),
        4 => Deed::Chmod(at, random.pick(&[0o644, 0o755, 0o700, 0o4755, 0o1777])),
        5 => Deed::Chown(at, random.pick(&[0, 1, 1234])),
        6 => Deed::Xattr(at, random.below(2) == 0),
        7 => Deed::Touch(at, 1_000_000_000 + random.below(2) as u64, random.pick(&[0, 5, 999_999_999])),
        8 | 9 => Deed::Remove(at),
        10 => Deed::Mkdir(at),
        11 => Deed::Recreate(at),
        12 => Deed::Symlink(at, random.pick(&["target", "elsewhere"])),
        13 => Deed::Fifo(at),
        14 | 15 => Deed::Move(at, path(random, root)),
        16 if random.below(2) == 0 => Deed::Link(at, path(random, root)),
        16 => Deed::SwapIn(at),
        17 => Deed::Append(at),
        18 => Deed::WriteFarAway(at),
        19 => Deed::Rmdir(at),
        20 => Deed::Device(at),
        21 => Deed::Acl(at),
        22 => Deed::Exchange(at, path(random, root)),
        _ => Deed::Rewrite(at),
    }
}

/// Does a deed; what is not possible (no such path, a directory in the way) is left undone in both trees alike.
pub fn act(deed: &Deed, root: &Path) -> bool {
    let at = |path: &Path| root.join(path);
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file());
    let remove = |path: &Path| fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
    match deed {
        Deed::Write(path, text, keep_time) => {
            let path = at(path);
            if path.exists() && !is_file(&path) {
                return false;
            }
            let time = fs::metadata(&path).and_then(|stat| stat.modified());
            let Ok(mut file) = File::create(&path) else { return false };
            file.write_all(text.as_bytes()).unwrap();
            match time {
                Ok(time) if *keep_time => file.set_modified(time).is_ok(),
                _ => true,
            }
        }
        Deed::OpenOnly(path) => is_file(&at(path)) && OpenOptions::new().read(true).write(true).open(at(path)).is_ok(),
        Deed::Truncate(path, length) => {
            is_file(&at(path)) && OpenOptions::new().write(true).open(at(path)).unwrap().set_len(*length).is_ok()
        }
        Deed::Chmod(path, mode) => {
            !at(path).is_symlink() && fs::set_permissions(at(path), PermissionsExt::from_mode(*mode)).is_ok()
        }
        Deed::Chown(path, uid) => std::os::unix::fs::lchown(at(path), Some(*uid), None).is_ok(),
        Deed::Xattr(path, set) if *set => lsetxattr(at(path), "trusted.sheep", b"2", XattrFlags::empty()).is_ok(),
        Deed::Xattr(path, _) => rustix::fs::lremovexattr(at(path), "user.sheep").is_ok(),
        Deed::Touch(path, seconds, nanoseconds) => {
            let time = rustix::fs::Timespec { tv_sec: *seconds as i64, tv_nsec: i64::from(*nanoseconds) };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, at(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
        }
        Deed::Remove(path) => remove(&at(path)).is_ok(),
        Deed::Mkdir(path) => fs::create_dir_all(at(path)).is_ok(),
        // What makes an opaque directory.
        Deed::Recreate(path) => remove(&at(path)).is_ok() && fs::create_dir(at(path)).is_ok(),
        Deed::Symlink(path, target) => symlink(target, at(path)).is_ok(),
        Deed::Fifo(path) => mknodat(CWD, at(path), FileType::Fifo, Mode::RWXU, 0).is_ok(),
        // mv(1) copies a directory where OverlayFS will not rename it.
        Deed::Move(from, to) => {
            let (from, to) = (at(from), at(to));
            let moves = from.symlink_metadata().is_ok() && !to.starts_with(&from) && !from.starts_with(&to);
            moves && Command::new("mv").arg("-fT").arg("--").arg(from).arg(to).output().unwrap().status.success()
        }
        Deed::Link(from, to) => is_file(&at(from)) && fs::hard_link(at(from), at(to)).is_ok(),
        Deed::Append(path) => {
            let appended = || OpenOptions::new().append(true).open(at(path))?.write_all(b"more");
            is_file(&at(path)) && appended().is_ok()
        }
        // A hole before it, longer than a block.
        Deed::WriteFarAway(path) => {
            let write = || OpenOptions::new().write(true).open(at(path))?.write_all_at(b"far", 20_000);
            is_file(&at(path)) && write().is_ok()
        }
        Deed::Rmdir(path) => !at(path).is_symlink() && fs::remove_dir(at(path)).is_ok(),
        Deed::Device(path) => {
            mknodat(CWD, at(path), FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3)).is_ok()
        }
        // user::rw-, user:0:r--, group::r--, mask::r--, other::---, as acl(5) has it in an xattr.
        Deed::Acl(path) => {
            let entry = |tag: u16, bits: u16, id: u32| {
                [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            let entries = [
                entry(1, 6, u32::MAX),
                entry(2, 4, 0),
                entry(4, 4, u32::MAX),
                entry(16, 4, u32::MAX),
                entry(32, 0, u32::MAX),
            ];
            let acl = [&2u32.to_le_bytes()[..], &entries.concat()].concat();
            !at(path).is_symlink() && lsetxattr(at(path), "system.posix_acl_access", &acl, XattrFlags::empty()).is_ok()
        }
        // Of files: OverlayFS refuses it for directories of the lowers.
        Deed::Exchange(from, to) => {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let files = is_file(&at(from)) && is_file(&at(to));
            files && rustix::fs::renameat_with(CWD, at(from), CWD, at(to), exchange).is_ok()
        }
        // Another inode, the same to look at: no change.
        Deed::Rewrite(path) => {
            let path = at(path);
            is_file(&path) && {
                let script = "cp -a -- \"$1\" \"$1.new\" && mv -f -- \"$1.new\" \"$1\"";
                Command::new("sh").arg("-c").arg(script).arg("sh").arg(&path).output().unwrap().status.success()
            }
        }
        // The way programs are deployed: a tree beside the old one, then two renames.
        Deed::SwapIn(path) => {
            let path = at(path);
            path.is_dir() && !path.is_symlink() && {
                let script = "cp -a -- \"$1\" \"$1.new\" && find \"$1.new\" -type f -size +3c -exec sh -c 'for f; do \
                    touch -r \"$f\" \"$0\"; printf X | dd of=\"$f\" conv=notrunc status=none; touch -r \"$0\" \"$f\"; \
                    done' \"$2\" {} + ; rm -f \"$2\"; mv -T -- \"$1\" \"$1.old\" && mv -T -- \"$1.new\" \"$1\"";
                let reference = root.join(".reference");
                let mut command = Command::new("sh");
                command.arg("-c").arg(script).arg("sh").arg(&path).arg(reference);
                let done = command.output().unwrap();
                if !done.status.success() {
                    eprintln!("{}", String::from_utf8_lossy(&done.stderr));
                }
                done.status.success()
            }
        }
    }
}

/// The changes that two pictures show.
pub fn expected(before: &Picture, after: &Picture) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let (old, new) = (before.get(path), after.get(path));
        let letter = match (old, new) {
            (None, _) => 'A',
            (Some(_), None) => {
                // One line for a directory; and none below what is no directory any more.
                let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &path[..at]);
                if after.get(parent).is_none_or(|look| look.kind != 'd') {
                    continue;
                }
                'D'
            }
            (Some(old), Some(new)) => {
                let is_dir = old.kind == 'd' && new.kind == 'd';
                let whole = old.mtime.1 == 0 || new.mtime.1 == 0;
                let same_time = old.mtime.0 == new.mtime.0 && (whole || old.mtime.1 == new.mtime.1);
                let same = (old.kind, old.mode, old.owner, old.rdev) == (new.kind, new.mode, new.owner, new.rdev)
                    && (&old.content, &old.xattrs) == (&new.content, &new.xattrs)
                    && (is_dir || same_time);
                if same {
                    continue;
                }
                'M'
            }
        };
        lines.push((path, letter));
    }
    lines.sort();
    let line = |(path, letter): (&Vec<u8>, char)| format!("{letter} /{}", OsStr::from_bytes(path).to_string_lossy());
    lines.into_iter().map(line).collect()
}

/// Does one sequence and gives the number of changes that came of it.
fn sequence(scratch: &mut Scratch, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let dir = scratch.dir().join(seed.to_string());
    let odd = seed.is_multiple_of(4);
    let layers = 1 + random.below(5);
    let lowers: Vec<PathBuf> = (0..layers).map(|layer| dir.join(format!("lower{layer}"))).collect();
    for (layer, root) in lowers.iter().enumerate() {
        make_layer(&mut random, root, &lowers[..layer], odd);
    }
    let both = Both::new(scratch, &dir, &lowers);
    let (kernel, copy) = (&both.kernel.merged, &both.copy.merged);

    let before = picture(copy);
    // Where layers merge, OverlayFS shows directory times of the topmost, like the copy.
    assert_same(&format!("seed {seed}: the copy"), &picture(kernel), &before, |look| look.blocks = 0);
    assert_eq!(lines(&both.kernel), [""; 0], "seed {seed}: an untouched overlay");
    assert_eq!(lines(&both.copy), [""; 0], "seed {seed}: an untouched copy");

    let mut log = String::new();
    for _ in 0..if odd { 0 } else { 3 + random.below(22) } {
        let deed = decide(&mut random, copy);
        let done = (act(&deed, kernel), act(&deed, copy));
        log.push_str(&format!("{deed:?} -> {done:?}\n"));
        assert_eq!(done.0, done.1, "seed {seed}: one of the trees refused a deed:\n{log}");
    }
    let after = picture(copy);
    let context = format!("seed {seed}:\n{log}");
    assert_same(&context, &picture(kernel), &after, |look| {
        (look.blocks, look.mtime, look.link) = (0, (0, 0), None);
    });
    let want = expected(&before, &after);
    assert_eq!(lines(&both.copy), want, "copy, {context}");
    assert_eq!(lines(&both.kernel), want, "kernel, {context}");
    let view = picture(kernel);
    // Half of them: to export in every form, and to look at it, takes as long as all the rest.
    let exported = (seed % 4 >= 2).then(|| {
        exported::all(scratch, &both.copy, &after, &format!("copy, {context}"));
        exported::all(scratch, &both.kernel, &view, &format!("kernel, {context}"))
    });
    scratch.unmount();
    if let Some(exported) = exported {
        let again = exported::all(scratch, &both.kernel, &view, &format!("not mounted, {context}"));
        assert!(exported == again, "{context}");
    }
    assert_eq!(lines(&both.kernel), want, "kernel, not mounted, {context}");
    applied(&dir, &both, &lowers, &view, &after, &context);
    want.len()
}

/// Applies the changes to copies of the lowers, and to the lower itself where it is one; and undoes that.
fn applied(dir: &Path, both: &Both, lowers: &[PathBuf], kernel: &Picture, copy: &Picture, context: &str) {
    let root = DataRoot::open(Some(&dir.join("data"))).unwrap();
    let mut targets: Vec<(&str, &Overlay, &Picture, Option<PathBuf>)> = Vec::new();
    for (name, overlay, view) in [("kernel", &both.kernel, kernel), ("copy", &both.copy, copy)] {
        let target = dir.join(format!("target-{name}"));
        fs::create_dir(&target).unwrap();
        copy_stack(lowers, &target, false).unwrap();
        targets.push((name, overlay, view, Some(target)));
    }
    if lowers.len() == 1 {
        targets.push(("the lower itself", &both.kernel, kernel, None));
    }
    for (name, overlay, view, to) in targets {
        let target = to.as_ref().unwrap_or(&lowers[0]);
        let before = picture(target);
        let asked = |undo: Option<usize>| Apply {
            overlay: undo.is_none().then(|| overlay.id.clone().into()),
            paths: Vec::new(),
            paths_from: None,
            to: to.clone().filter(|_| undo.is_none()),
            dry_run: false,
            interactive: false,
            ours: false,
            theirs: false,
            undo,
            list: false,
            json: false,
            print: None,
        };
        let context = format!("apply, {name}, {context}");
        let store = Store::open(&root).unwrap();
        let done = apply::work(&root, &store, overlay, record::dir_of(overlay), &asked(None));
        let done = done.unwrap_or_else(|e| panic!("{context}: {e:#}"));
        drop(store);
        let (mut made, mut view) = (picture(target), view.clone());
        // A time without a fraction is the same as one with any, to `diff` and so to `apply`.
        for (path, look) in made.iter_mut().filter(|(_, look)| look.kind != 'd') {
            let Some(other) = view.get_mut(path).filter(|other| other.mtime.0 == look.mtime.0) else { continue };
            if look.mtime.1 == 0 || other.mtime.1 == 0 {
                (look.mtime.1, other.mtime.1) = (0, 0);
            }
        }
        // What was deleted is kept, and may be another name of what is there.
        assert_same(&context, &made, &view, |look| look.blocks = 0);
        if done.is_some_and(|done| done.id.is_some()) {
            apply::undo(&root, &asked(Some(1))).unwrap_or_else(|e| panic!("undo, {context}: {e:#}"));
        }
        assert_same(&format!("undo, {context}"), &picture(target), &before, |_| ());
    }
    assert_eq!(fs::read_dir(dir.join("data/applied")).unwrap().count(), 1, "only the lock is left, {context}");
}

/// How long to go on with new sequences, and from which seed: `SHEEP_RANDOM_SECONDS` and, to repeat one, `SHEEP_RANDOM_SEED`.
pub fn asked_for() -> Option<(Duration, u64)> {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let seconds = number("SHEEP_RANDOM_SECONDS")?;
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    Some((Duration::from_secs(seconds), number("SHEEP_RANDOM_SEED").unwrap_or(now >> 8)))
}

/// Does the sequences of some seeds on a file system of its own; or those from the seed that is asked for on.
fn sequences(kind: &str, seeds: std::ops::Range<u64>) {
    let mut scratch = Scratch::on(kind);
    let start = std::time::Instant::now();
    let asked = asked_for();
    let seeds = match asked {
        Some((_, seed)) => seed..u64::MAX,
        None => seeds,
    };
    let (mut changes, mut count) = (0, 0);
    for seed in seeds {
        if asked.is_some_and(|(time, _)| start.elapsed() >= time) {
            break;
        }
        changes += sequence(&mut scratch, seed);
        count += 1;
        let _ = Command::new("rm").arg("-rf").arg(scratch.dir().join(seed.to_string())).status();
    }
    eprintln!("{kind}: {count} sequences, {changes} changes, {:?}", start.elapsed());
    // Among other seeds there are runs of little luck.
    let least = if asked.is_none() { 3 } else { 2 };
    assert!(changes > least * count, "only {changes} changes: the deeds do too little");
}

#[test]
fn both_backends_tell_the_same_on_tmpfs() {
    sequences("tmpfs", 1..400);
}

#[test]
fn both_backends_tell_the_same_on_ext4() {
    sequences("ext4", 1001..1100);
}

/// Runs [`inside_a_user_namespace`] as an ordinary user in a user namespace, from a copy of this program that he can reach.
#[test]
fn p20_p21_an_ordinary_users_overlays_tell_the_same() {
    let scratch = Scratch::new();
    fs::set_permissions(&scratch.path, PermissionsExt::from_mode(0o755)).unwrap();
    let program = scratch.path.join("diff");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_sheep-overlay"), scratch.path.join("sheep-overlay")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "sheeptest", "--regid", "sheeptest", "--clear-groups", "unshare", "-Urm"]).arg(&program);
    command.args(["--exact", "random::inside_a_user_namespace", "--ignored", "--nocapture"]).current_dir("/");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}{said}", String::from_utf8_lossy(&done.stdout));
    eprint!("in a user namespace, {said}");
    assert!(said.contains(" sequences"), "{said}");
}

#[test]
#[ignore = "run by p20_p21_an_ordinary_users_overlays_tell_the_same, in a user namespace"]
fn inside_a_user_namespace() {
    sequences("tmpfs", 2001..2200);
    crate::history::sequences("tmpfs", 3001..3030);
}
