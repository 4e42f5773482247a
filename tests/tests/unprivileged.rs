//! The same tools as a plain user: they work, or say in one line why not.

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
