//! --visible: fuse-overlayfs, for a plain user in a mount namespace in which /dev/fuse is open to him.

use std::process::Command;

use crate::harness::{Ran, World, names_in, ran, sh};

/// Runs a script as the plain user, with $S for sheep-overlay, where /dev/fuse can be used by all.
fn with_fuse(world: &World, script: &str) -> Ran {
    let setup = format!(
        "mount --make-rprivate /; mkdir -p dev; mount -t tmpfs -o mode=755,dev none dev; mknod dev/fuse c 10 229; chmod 666 dev/fuse; \
         mount --bind dev/fuse /dev/fuse; umount -l dev; rmdir dev; \
         exec setpriv --reuid sheeptest --regid sheeptest --clear-groups env SHEEP_DATA_DIR={} S={}/sheep-overlay sh -ec '{script}'",
        world.data.display(),
        world.dir.display()
    );
    ran(Command::new("unshare").args(["-m", "sh", "-ec", &setup]).current_dir(&world.dir).output().unwrap())
}

#[test]
fn a_plain_users_other_processes_see_it() {
    let world = World::user();
    let low = world.lower("l:o,w", &["a", "gone", "d/x", "e/y"]);
    world.lower("top", &["b"]);
    sh(&format!("chown -R sheeptest: {} {}/top", low.display(), world.dir.display()));
    let script = "m=$($S mount --visible --id ov --print merged l:o,w top); ls $m; cd $m; echo more >> a; rm gone; rm -r d; mkdir d; rm e/y; echo n > n; cd /; \
        $S ls | tail -1 | tr -s \" \" | cut -d \" \" -f 1-4; $S diff ov; $S umount --keep ov > /dev/null; ls $m; $S diff ov; $S mount --id ov --print id; cat $m/n; \
        $S exec ov -- cat n; (cd $m; exec sleep 60) & sleep 0.2; $S umount ov || echo $?; kill $!; wait; $S umount ov; ls $SHEEP_DATA_DIR/overlay; pgrep -u $(id -u) -f \"fuse-overlayfs.*$SHEEP_DATA_DIR\" || echo none";
    let ran = with_fuse(&world, script).ok();
    let diff = "M /a\nO /d\nD /d/x\nD /e/y\nD /gone\nA /n\n";
    assert_eq!(ran.out, format!("a\nb\nd\ne\ngone\nov mounted fuse 2\n{diff}{diff}ov\nn\nn\n4\nnone\n"), "{ran:?}");
    assert!(ran.err.contains("in use by sleep"), "{ran:?}");
    assert_eq!(names_in(&low), ["a", "d", "e", "gone"]);
}

#[test]
fn what_fuse_overlayfs_wrote_is_exported() {
    let world = World::user();
    let low = world.lower("low", &["a", "gone", "d/x", "e/y", "e/z"]);
    sh(&format!("chown -R sheeptest: {} {}", low.display(), world.dir.display()));
    let list = "export ov | tar -tf - | LC_ALL=C sort | tr \"\\n\" \" \"; echo; $S export ov --as tar | tar -tf - | LC_ALL=C sort | tr \"\\n\" \" \"; echo";
    let script = format!(
        "m=$($S mount --visible --id ov --print merged low); (cd $m; echo more >> a; rm gone; rm -r d; mkdir d; rm e/y; echo n > n); \
        $S {list}; $S umount --keep ov > /dev/null; $S {list}; $S export ov --as dir --to made > /dev/null; \
        $S mount --id again --print id low made; $S exec again ls . d e | tr \"\\n\" \" \"; $S umount again ov; ls $SHEEP_DATA_DIR/overlay"
    );
    let ran = with_fuse(&world, &script).ok();
    let lists = "./ .wh.gone a d/ d/.wh..wh..opq e/ e/.wh.y n \n./ a d/ e/ e/z n \n";
    assert_eq!(ran.out, format!("{lists}{lists}again\n.: a d e n  d:  e: z "), "{ran:?}");
}

#[test]
fn a_killed_server_is_mended() {
    let world = World::user();
    let low = world.lower("low", &["a"]);
    sh(&format!("chown -R sheeptest: {}", low.display()));
    let script = "m=$($S mount --backend fuse --id ov --print merged low); touch $m/new; kill $(pgrep -u $(id -u) -f \"fuse-overlayfs.*$m\"); sleep 0.3; \
        $S ls | tail -1 | cut -c 5-9; $S mount --id ov --print id; ls $m; $S umount ov";
    let ran = with_fuse(&world, script).ok();
    assert_eq!(ran.out, "stale\nov\na\nnew\n", "{ran:?}");
}

#[test]
fn without_access_to_fuse_it_is_refused_with_the_reason() {
    let world = World::user();
    let low = world.lower("low", &["a"]);
    sh(&format!("chown -R sheeptest: {}", low.display()));
    if rustix::fs::stat("/dev/fuse").unwrap().st_mode & 0o006 == 0 {
        world.run(&["mount", "--visible", "low"]).fails(1, &["fuse-overlayfs"]);
    }
    world.run(&["mount", "--visible", "--hide", "a", "low"]).fails(2, &["--hide", "fuse"]);
    world.run(&["mount", "--visible", "--backend", "copy", "low"]).fails(2, &["--visible"]);
    world.is_clean();
}

#[test]
fn as_root_a_mount_is_visible_anyway() {
    let world = World::root();
    world.lower("low", &["a"]);
    assert_eq!(world.run(&["mount", "--visible", "--id", "ov", "low"]).json()["overlay"]["backend"], "kernel");
    world.run(&["umount", "ov"]).ok();
    let document = world.run(&["mount", "--backend", "fuse", "--read-only", "--id", "ov", "low"]).json();
    assert_eq!(document["overlay"]["backend"], "fuse");
    assert!(std::fs::write(world.merged("ov").join("b"), "").is_err());
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}
