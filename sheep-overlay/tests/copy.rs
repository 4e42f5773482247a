//! The copy backend on real file systems.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "trees/mod.rs"]
mod trees;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sheep_overlay::backend::copy::{Summary, copy_stack};
use trees::{Scratch, assert_same, need_root, picture, sh};

/// Everything a tree can have, made in the current directory.
const EVERYTHING: &str = r#"
    umask 022
    mkdir -p dir/sub .hidden "$(printf 'odd\n\377name')" readonly closed sticky setgid acl
    echo content > file; echo more > "$(printf 'odd\n\377name')/$(printf '\001')"
    : > empty; printf x > .hidden/one
    head -c 300000 /dev/urandom > big
    ln -s file link; ln -s /nowhere/at/all dangling; ln -s "$(printf 'a%.0s' $(seq 1000))" long
    ln file dir/hard1; ln file dir/sub/hard2; ln -P link dir/hardlink
    truncate -s 5M hole; printf data | dd of=hole bs=1 seek=3000000 conv=notrunc status=none
    truncate -s 1M onlyhole
    printf start > tail; truncate -s 3M tail
    mkfifo fifo; mknod null c 1 3; mknod disk b 7 0; ln null dir/null2
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
    echo s > suid; chmod 4755 suid; echo g > sgid; chmod 2755 sgid; chmod 1777 sticky; chmod 2775 setgid
    cp /bin/true cap; setcap cap_net_raw+ep cap; chmod 4555 cap
    echo secret > secret; chmod 000 secret; chown 1234:4321 secret dir/sub suid; chown -h 7:8 link
    echo u > group; chmod 664 group; chmod 0444 empty
    setfattr -n user.note -v "$(head -c 2000 /dev/zero | tr '\0' n)" file
    setfattr -n user.note -v 1 dir; setfattr -n user.empty dir; setfattr -n user.ro -v 1 empty
    setfattr -h -n trusted.mine -v 1 link; setfattr -n trusted.mine -v 1 fifo; setfattr -n trusted.mine -v 1 null
    setfattr -n trusted.overlay.origin -v gone file; setfattr -n user.overlay.impure -v y dir
    echo acl > aclfile; setfacl -m u:12:rw,g:34:r aclfile
    setfacl -m u:12:rwx acl; setfacl -d -m u:12:rwx,g::--- acl; echo inside > acl/inherits; mkdir acl/subdir
    echo r > readonly/file; chmod 555 readonly; touch closed/f; chmod 000 closed
    for i in $(seq 300); do echo $i > dir/sub/many$i; done
    touch -h -d '1999-12-31 23:59:59.123456789' link dangling
    touch -d '1969-12-31 23:00:00.5' empty; touch -d '2038-01-20 00:00:00.000000001' big fifo null
    find . -depth -type d -exec touch -d '2001-02-03 04:05:06.789012345' {} +
"#;

fn make(dir: &Path, script: &str) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    sh(&format!("cd {}; {script}", dir.display()));
    dir.to_path_buf()
}

/// Copies into `dir/merged`, which is made.
fn copy(lowers: &[&Path], dir: &Path) -> anyhow::Result<Summary> {
    let merged = dir.join("merged");
    fs::create_dir_all(&merged).unwrap();
    let lowers: Vec<PathBuf> = lowers.iter().map(|lower| lower.to_path_buf()).collect();
    copy_stack(&lowers, &merged, false)
}

fn rsync_sees_no_difference(a: &Path, b: &Path) {
    for (a, b) in [(a, b), (b, a)] {
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--filter=-x trusted.overlay.*"]);
        let output = rsync.args(["--filter=-x user.overlay.*"]).arg(a.join("")).arg(b.join("")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.is_empty(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn everything_is_kept_on(kind: &str) -> Summary {
    let scratch = Scratch::on(kind);
    let dir = scratch.dir();
    let lower = make(&dir.join("lower"), EVERYTHING);
    let before = picture(&lower);
    let summary = copy(&[&lower], &dir.join("copy")).unwrap();
    let merged = dir.join("copy/merged");
    // The blocks too: holes are where they were.
    assert_same(kind, &before, &picture(&merged), |look| {
        // xfs may keep some preallocated at the end of a file for a while.
        look.blocks = if kind == "xfs" { 0 } else { look.blocks };
    });
    rsync_sees_no_difference(&lower, &merged);
    assert_same("the lower is as it was", &before, &picture(&lower), |_| {});
    assert_eq!(Summary { reflinked: false, ..summary }, Summary::default());
    summary
}

#[test]
fn everything_is_kept_on_ext4() {
    assert!(!everything_is_kept_on("ext4").reflinked);
}

#[test]
fn everything_is_kept_on_tmpfs() {
    assert!(!everything_is_kept_on("tmpfs").reflinked);
}

#[test]
fn everything_is_kept_and_content_shared_on_xfs() {
    assert!(everything_is_kept_on("xfs").reflinked);
}

#[test]
fn everything_is_kept_and_content_shared_on_btrfs() {
    assert!(everything_is_kept_on("btrfs").reflinked);
}

#[test]
fn from_one_file_system_to_another() {
    let (from, to) = (Scratch::on("xfs"), Scratch::on("ext4"));
    let lower = make(&from.dir().join("lower"), EVERYTHING);
    let summary = copy(&[&lower], &to.dir().join("copy")).unwrap();
    assert_eq!(summary, Summary::default());
    assert_same("xfs to ext4", &picture(&lower), &picture(&to.dir().join("copy/merged")), |look| look.blocks = 0);
}

#[test]
fn shared_content_takes_no_room() {
    let scratch = Scratch::on("xfs");
    let lower = make(&scratch.dir().join("lower"), "head -c 50000000 /dev/urandom > big");
    let free = || rustix::fs::statvfs(scratch.dir()).unwrap().f_bfree;
    sh("sync");
    let before = free();
    assert!(copy(&[&lower], &scratch.dir().join("copy")).unwrap().reflinked);
    sh("sync");
    assert!(before - free() < 1000, "50 MB shared took {} blocks", before - free());
}

#[test]
fn the_merged_view_of_layers() {
    let mut scratch = Scratch::on("tmpfs");
    let dir = scratch.dir().to_path_buf();
    let bottom = make(
        &dir.join("1"),
        "mkdir -p a/b gone opaque/sub t; echo 1 > a/f; echo 1 > a/b/g; touch opaque/hidden file; ln a/f t/link",
    );
    let middle = make(
        &dir.join("2"),
        "mkdir -p a/b opaque t; mknod gone c 0 0; setfattr -n trusted.overlay.opaque -v y opaque; echo 2 > a/f; touch opaque/new; chmod 700 a; mknod t/link c 0 0",
    );
    let top = make(
        &dir.join("3"),
        "mkdir -p a t file; mknod a/b c 0 0; touch file/inside; setfattr -n trusted.overlay.opaque -v x t; \
         touch t/marked t/plain; setfattr -n trusted.overlay.whiteout -v y t/marked",
    );
    copy(&[&bottom, &middle, &top], &dir.join("copy")).unwrap();
    let names: Vec<_> =
        picture(&dir.join("copy/merged")).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(names, ["", "a", "a/f", "file", "file/inside", "opaque", "opaque/new", "t", "t/plain"]);
    assert_eq!(fs::read_to_string(dir.join("copy/merged/a/f")).unwrap(), "2\n");
    assert_eq!(fs::metadata(dir.join("copy/merged/a")).unwrap().mode() & 0o777, 0o755, "the topmost counts");

    let kernel = make(&dir.join("kernel"), "mkdir upper work merged");
    scratch.overlay(&[bottom, middle, top], &kernel);
    let (kernel, copy) = (picture(&kernel.join("merged")), picture(&dir.join("copy/merged")));
    assert_same("the kernel's view", &kernel, &copy, |look| (look.blocks, look.mtime) = (0, (0, 0)));
}

#[test]
fn layers_that_only_overlayfs_could_read_are_refused() {
    need_root();
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let bottom = make(&dir.join("1"), "mkdir old; touch old/f");
    let moved =
        make(&dir.join("2"), "mknod old c 0 0; mkdir new old2; setfattr -n trusted.overlay.redirect -v old new");
    let meta = make(&dir.join("3"), "truncate -s 5 f; setfattr -n trusted.overlay.metacopy f");
    fs::create_dir(bottom.join("new")).unwrap();
    let error = format!("{:#}", copy(&[&bottom, &moved], &dir.join("a")).unwrap_err());
    assert!(error.contains("/2/new") && error.contains("overlay.redirect"), "{error}");
    let error = format!("{:#}", copy(&[&meta], &dir.join("b")).unwrap_err());
    assert!(error.contains("/3/f") && error.contains("overlay.metacopy"), "{error}");
}

#[test]
fn what_is_mounted_below_a_lower_is_left_out() {
    need_root();
    let mut scratch = Scratch::on("tmpfs");
    let dir = scratch.dir().to_path_buf();
    let lower = make(&dir.join("lower"), "mkdir m; touch m/under file; chmod 750 m");
    sh(&format!("cd {}; mount -t tmpfs none m; touch m/over; mount --bind /etc/passwd file", lower.display()));
    copy(&[&lower], &dir.join("copy")).unwrap();
    sh(&format!("cd {}; umount m file", lower.display()));
    assert_same("mounts", &picture(&lower), &picture(&dir.join("copy/merged")), |_| {});
    scratch.unmount();
}

#[test]
fn a_lower_that_holds_the_copy_is_not_copied_into_itself() {
    let scratch = Scratch::new();
    let lower = make(scratch.dir(), "mkdir -p data/overlay/x; touch f");
    copy(&[&lower], &lower.join("data/overlay/x")).unwrap();
    let merged = lower.join("data/overlay/x/merged");
    let names: Vec<_> = picture(&merged).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(names, ["", "data", "data/overlay", "data/overlay/x", "f"]);
}

#[test]
fn a_destination_that_hands_down_attributes() {
    need_root();
    let scratch = Scratch::new();
    let lower = make(&scratch.dir().join("lower"), EVERYTHING);
    let dir = scratch.dir().join("copy");
    fs::create_dir(&dir).unwrap();
    sh(&format!("cd {}; chgrp 99 .; chmod 2777 .; setfacl -d -m u:55:rwx .", dir.display()));
    copy(&[&lower], &dir).unwrap();
    assert_same("inherited", &picture(&lower), &picture(&dir.join("merged")), |_| {});
}

#[test]
fn wide_deep_and_many_with_few_descriptors() {
    let scratch = Scratch::new();
    let lower = make(
        &scratch.dir().join("lower"),
        "mkdir wide; cd wide; seq -f d%.0f 3000 | xargs mkdir; seq -f f%.0f 20000 | xargs touch; cd ..; touch first; \
         i=0; while [ $i -lt 2000 ]; do mkdir d e f; cd d; i=$((i+1)); done; touch end; ln end ../e/link; ln end other",
    );
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert!(limit.current.is_some_and(|n| n < 1 << 21));
    copy(&[&lower], &scratch.dir().join("copy")).unwrap();
    let merged = scratch.dir().join("copy/merged");
    let list = "find . -printf '%y %m %n %T@ %p\\n' | sort | sha256sum";
    let sum = |dir: &Path| {
        let output = Command::new("sh").arg("-c").arg(format!("cd {}; {list}", dir.display())).output().unwrap();
        assert!(output.stderr.is_empty());
        output.stdout
    };
    assert_eq!(sum(&lower), sum(&merged));
    assert_eq!(fs::read_dir(merged.join("wide")).unwrap().count(), 23000);
}

#[test]
fn a_full_file_system_is_named() {
    let scratch = Scratch::on("tmpfs");
    sh(&format!("mount -o remount,size=20M {}", scratch.dir().display()));
    let lower = make(&scratch.dir().join("lower"), "head -c 12000000 /dev/urandom > big");
    let error = format!("{:#}", copy(&[&lower], &scratch.dir().join("copy")).unwrap_err());
    assert!(error.contains("copy/merged/big: ") && error.contains("No space left"), "{error}");
}

#[test]
fn a_lower_that_changes_meanwhile_is_an_error_that_names_the_file() {
    let scratch = Scratch::new();
    let lower = make(&scratch.dir().join("lower"), "head -c 80000000 /dev/zero | tr '\\0' x > big");
    let big = lower.join("big");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let file = fs::OpenOptions::new().write(true).open(&big).unwrap();
                file.set_len(70_000_000).unwrap();
                file.set_len(80_000_000).unwrap();
            }
        });
        let error = copy(&[&lower], &scratch.dir().join("copy")).map(|_| String::new());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("lower/big: ") && error.contains("while it was copied"), "{error}");
    });
}

#[test]
fn as_a_plain_user_what_cannot_be_kept_is_counted_and_what_cannot_be_read_is_named() {
    need_root();
    let scratch = Scratch::new();
    let dir = scratch.dir().display();
    let lower = make(&scratch.dir().join("lower"), EVERYTHING);
    sh(&format!("cd {dir}; chmod 755 .; mkdir home; chown sheeptest home"));
    let mount = |id: &str| {
        let script = format!(
            "SHEEP_DATA_DIR={dir}/home/data exec {} mount --backend copy --id {id} {dir}/lower",
            env!("CARGO_BIN_EXE_sheep-overlay")
        );
        let mut command = Command::new("setpriv");
        command.args(["--reuid=sheeptest", "--regid=sheeptest", "--init-groups", "sh", "-ec", &script]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = mount("unreadable");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("lower/secret: Permission denied") || said.contains("lower/closed: Permission denied"),
        "{said}"
    );
    assert!(!scratch.dir().join("home/data/overlay/unreadable").exists(), "nothing is left behind");

    sh(&format!("cd {}; chmod 600 secret; chown sheeptest secret closed; chmod 500 closed", lower.display()));
    let (code, said) = mount("fine");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("3 devices left out") && said.contains("owners not kept"), "{said}");
    let merged = scratch.dir().join("home/data/overlay/fine/merged");
    let mut wanted = picture(&lower);
    wanted.retain(|_, look| !matches!(look.kind, 'c' | 'b'));
    let user = fs::metadata(&merged).unwrap();
    assert_same("as a plain user", &wanted, &picture(&merged), |look| {
        look.owner = (user.uid(), user.gid());
        look.mode &= if look.kind == 'd' { !0 } else { 0o1777 };
        look.xattrs.retain(|name, _| !name.starts_with(b"trusted.") && name != b"security.capability");
    });
}
