//! The compositions in scripts/ that a user can copy.

use crate::harness::World;

fn sheep_try(world: &World) {
    world.sh("mkdir 'my work' && cd 'my work' && echo one > 'a b' && echo gone > gone && mkdir d && echo x > d/x && ln -s d link").ok();
    let deeds =
        "echo two > 'a b'; echo new > c; rm gone; rm -r d; echo file > d; rm link; mkdir link; chmod 750 link; exit 9";
    world.sh(&format!("printf '%s\\n' \"{deeds}\" > deeds")).ok();

    // -n: nothing is done, and the id of what was kept is on stdout.
    let outcome = world.sh("cd 'my work' && $SCRIPTS/sheep-try -n sh ../deeds > ../id; echo $?");
    assert_eq!(outcome.stdout.trim(), "9", "{outcome:?}");
    assert_eq!(
        world.sh("cat 'my work/a b'; ls 'my work'").ok(),
        "one\na b\nd\ngone\nlink",
        "the directory is untouched"
    );
    let summary = world.sh("$SCRIPTS/sheep-try summary $(cat id)").ok();
    for line in ["my work/a b (modified)", "my work/c (added)", "my work/gone (deleted)", "my work/d (replaced)"] {
        assert!(summary.lines().any(|there| there.ends_with(line)), "{line} in {summary}");
    }
    let ignored = world.sh("$SCRIPTS/sheep-try -i 'my work/[cd]$' summary $(cat id)").ok();
    assert!(ignored.contains("/gone") && !ignored.contains("/c ("), "{ignored}");
    assert_eq!(
        world.sh("cd 'my work'; echo cat c | SHELL=/bin/sh $SCRIPTS/sheep-try explore $(cat ../id)").ok(),
        "new"
    );

    world.sh("$SCRIPTS/sheep-try commit $(cat id)").ok();
    assert_eq!(
        world.sh("cd 'my work'; cat 'a b' c d; stat -c %a link; ls").ok(),
        "two\nnew\nfile\n750\na b\nc\nd\nlink"
    );
    world.assert_nothing_left(&[]);

    // -y: done at once; the exit code is kept.
    let outcome = world.sh("cd 'my work' && $SCRIPTS/sheep-try -y sh -c 'rm c; echo z > z; exit 3'");
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert_eq!(world.sh("ls 'my work'").ok(), "a b\nd\nlink\nz");

    // -D: in a directory of its own, more than once.
    world.sh("mkdir box; cd 'my work'; $SCRIPTS/sheep-try -D ../box sh -c 'echo 1 > one'; $SCRIPTS/sheep-try -D ../box sh -c 'ls one; echo 2 > two'").ok();
    assert_eq!(world.sh("ls 'my work'").ok(), "a b\nd\nlink\nz");
    world.sh("$SCRIPTS/sheep-try commit box").ok();
    assert_eq!(world.sh("ls 'my work'").ok(), "a b\nd\nlink\none\ntwo\nz");
    assert_eq!(world.sh("ls -A box/overlay").ok(), "");

    // Nothing changed: nothing is left. -N: no network but lo. -E: hidden.
    assert_eq!(world.sh("$SCRIPTS/sheep-try true").code, 0);
    assert_eq!(world.sh("$SCRIPTS/sheep-try -N sh -c 'grep -c : /proc/net/dev'").ok(), "1");
    assert_eq!(world.sh("$SCRIPTS/sheep-try -n -E $PWD/'my work' ls 'my work' | wc -l").ok(), "1");
    world.sh("sheep-overlay ls --json | sheep-overlay umount - 2>/dev/null; true").ok();
    assert_eq!(world.sh("$SCRIPTS/sheep-try -D nowhere true").code, 2);
    assert_eq!(world.sh("$SCRIPTS/sheep-try").code, 2);
    world.assert_nothing_left(&[]);
}

#[test]
fn sheep_try_as_root() {
    sheep_try(&World::root());
}

#[test]
fn p31_sheep_try_as_a_plain_user() {
    sheep_try(&World::user());
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
