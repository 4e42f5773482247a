//! The same tools as a plain user: they work, or say in one line why not.

use std::process::Command;

use crate::harness::World;

#[test]
fn a_container_by_hand_as_a_plain_user() {
    let world = World::user();
    world.sh("sheep-images bootstrap > /dev/null").ok();
    let outcome = world.sh("sheep-images unpack minimal | sheep-overlay mount - | tee doc | sheep-ns exec --from - -- /bin/sh -c 'echo hi > /x; id -u; hostname'");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout.starts_with("0\n"), "root inside: {outcome:?}");
    assert!(
        outcome.stderr.contains("copied (OverlayFS cannot be had: the next program of a pipe"),
        "the backend and the reason are said: {}",
        outcome.stderr
    );
    assert_eq!(world.sh("jq -r .overlay.backend doc; sheep-overlay diff --from doc").ok(), "copy\nA /x");
    world.sh("sheep-overlay umount --from doc").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_scratch_directory_as_a_plain_user() {
    let world = World::user();
    world.sh("mkdir low && echo one > low/f && sheep-overlay mount low > doc").ok();
    world.sh("id=$(jq -r .overlay.id doc); cd low; sheep-overlay exec $id -- sh -c 'echo two > f; pwd' > ../pwd").ok();
    assert!(world.sh("cat pwd").ok().ends_with("/low"), "the working directory is kept");
    // Another shell sees the same.
    assert_eq!(world.sh("sheep-overlay exec $(jq -r .overlay.id doc) cat f").ok(), "two");
    assert_eq!(world.sh("cat low/f; sheep-overlay diff - < doc").ok(), "one\nM /f");
    world.sh("sheep-overlay umount - < doc").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn the_lifecycle_as_a_plain_user() {
    let world = World::user();
    world.sh("sheep-images bootstrap > /dev/null").ok();
    let outcome = world.sh("sheep-run run --rm minimal sh -c 'id -u; exit 4'");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("0\n", 4), "{}", outcome.stderr);
    world.sh("sheep-run run -d --name u minimal sleep 60 2>/dev/null").ok();
    assert_eq!(world.sh("sheep-run exec u cat /proc/1/comm").ok(), "sleep");
    world.sh("sheep-run rm -f u").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_limit_needs_a_delegated_cgroup() {
    let world = World::user();
    world.sh("sheep-images bootstrap > /dev/null").ok();
    let outcome = world.sh("sheep-run run --rm -m 64m minimal true");
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(outcome.stderr.contains("memory"), "{outcome:?}");
    world.assert_nothing_left(&[]);
}

/// A fresh account, with subordinate ids or without, gone at the end.
struct Account(String);

impl Account {
    fn new(name: &str, subordinate: bool) -> Self {
        let script = format!(
            "userdel -rf {name} 2>/dev/null; useradd -m -s /bin/sh {name} && {{ {subordinate} || sed -i '/^{name}:/d' /etc/subuid /etc/subgid; }}"
        );
        assert!(Command::new("sh").args(["-c", &script]).output().expect("sh").status.success(), "{script}");
        Account(name.to_owned())
    }

    /// Runs a script as this user, in a login's environment.
    fn sh(&self, world: &World, script: &str) -> String {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", world.bin().display());
        let done = Command::new("su")
            .args(["-s", "/bin/sh", "-", &self.0, "-c", &format!("export PATH={path}; set -e; {script}")])
            .output()
            .expect("su");
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // A holder that a failed test leaves would be the next account's of that number.
        let script = format!("ps -u {0} -o pid= | xargs -r kill; userdel -rf {0}", self.0);
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

fn a_build_in_a_scratch(name: &str, subordinate: bool) {
    let world = World::user();
    let user = Account::new(name, subordinate);
    user.sh(
        &world,
        "mkdir -p src/upstream; cd src/upstream; git init -q .; git config user.email a@b; git config user.name a
         printf 'all: out\nout: in\n\tcp in out\n\tchmod 640 out\n' > Makefile; echo content > in; git add .; git commit -qm one
         cd ..; echo mine > note; sheep-overlay mount --print id . > ~/id 2> ~/said",
    );
    // Two shells, one after the other, and two at once.
    user.sh(&world, "cd src; sheep-overlay exec $(cat ~/id) -- git clone -q file://$PWD/upstream work");
    let script = "cd src; id=$(cat ~/id); sheep-overlay exec $id -- make -sC work & sheep-overlay exec $id -- sh -c 'rm note; mkdir note' & wait
         sheep-overlay exec $id -- sh -c 'cd work; git status --short; cat out'; id -un; ls";
    let seen = user.sh(&world, script);
    assert_eq!(seen, format!("?? out\ncontent\n{name}\nnote\nupstream\n"));
    let diff = user.sh(&world, "sheep-overlay diff $(cat ~/id)");
    for line in ["T /note", "A /work/out", "A /work/.git/HEAD"] {
        assert!(diff.lines().any(|there| there == line), "{line} in {diff}");
    }
    let left = "sheep-overlay umount $(cat ~/id); sheep-overlay ls | wc -l; rm -rf ~/* ~/.local; ls -A ~ | grep -vE '^\\.(bash|profile)' | wc -l";
    assert_eq!(user.sh(&world, left), "1\n0\n");
    let holders =
        "ps -u $(id -u) -o stat= -o pid= -o comm= -o args= | grep -v ^Z | grep ' sheep-holder ' | grep -v grep || true";
    assert_eq!(user.sh(&world, holders), "");
}

#[test]
fn git_and_make_from_two_shells_in_a_fresh_account() {
    a_build_in_a_scratch("sheepfresh", true);
}

#[test]
fn git_and_make_from_two_shells_without_subordinate_ids() {
    a_build_in_a_scratch("sheepbare", false);
}
