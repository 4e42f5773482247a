//! The compositions in scripts/ that a user can copy.

use crate::harness::World;

#[test]
fn sheep_try_keeps_the_exit_status_and_the_directory() {
    let world = World::root();
    world.sh("mkdir 'my work' && echo one > 'my work/a b'").ok();
    let outcome = world.sh("cd 'my work' && $SCRIPTS/sheep-try -n sh -c 'echo two > \"a b\"; echo new > c; exit 9'");
    assert_eq!(outcome.code, 9, "{outcome:?}");
    assert!(format!("{}{}", outcome.stdout, outcome.stderr).contains("M /a b"), "{outcome:?}");
    assert_eq!(world.sh("cat 'my work/a b'; ls 'my work'").ok(), "one\na b", "the directory is untouched");
    world.assert_nothing_left(&[]);
}

#[test]
fn ci_step_runs_on_a_fresh_overlay() {
    let world = World::root();
    world.sh("mkdir work && echo src > work/main.c").ok();
    let outcome = world.sh("cd work && $SCRIPTS/ci-step build -- sh -c 'cp main.c out && cat out'");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("src"), "{outcome:?}");
    assert_eq!(world.sh("cd work && $SCRIPTS/ci-step test -- sh -c 'test ! -e out; exit 6'").code, 6);
    assert_eq!(world.sh("ls work").ok(), "main.c");
    world.assert_nothing_left(&[]);
}
