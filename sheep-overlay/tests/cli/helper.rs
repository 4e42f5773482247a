//! mount.sheep: called by itself, by mount(8), and by podman.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{BIN, Ran, World, names_in, ran, sh};

/// Directories with awkward names, and a link called mount.sheep.
fn places(world: &World) -> PathBuf {
    for lower in ["l:o,w\\", "second"] {
        world.lower(lower, &[if lower == "second" { "b" } else { "a" }]);
    }
    sh(&format!(
        "cd {}; mkdir u w m sbin; ln -s {BIN} sbin/mount.sheep; ln -s {BIN} sbin/mount.fuse.sheep",
        world.dir.display()
    ));
    world.dir.clone()
}

fn helper(world: &World, args: &[&str]) -> Ran {
    ran(Command::new(world.dir.join("sbin/mount.sheep")).args(args).current_dir(&world.dir).output().unwrap())
}

/// Runs a script in a mount namespace of its own in which /sbin has the links.
fn with_links(world: &World, script: &str) -> Ran {
    let setup = "mount --make-rprivate / && mount -t overlay sbin -o lowerdir=$PWD/sbin:/usr/sbin /usr/sbin && ";
    let script = format!("{setup}{script}");
    ran(Command::new("unshare").args(["-m", "sh", "-ec", &script]).current_dir(&world.dir).output().unwrap())
}

#[test]
fn p03_p04_by_itself_with_any_names() {
    let world = World::root();
    let dir = places(&world);
    let options = r"lowerdir=l\:o\,w\\:second,upperdir=u,workdir=w";
    let mounted = helper(&world, &["none", "m", "-o", options]).ok();
    assert_eq!(mounted.out + &mounted.err, "");
    assert_eq!(names_in(&dir.join("m")), ["a", "b"]);
    fs::write(dir.join("m/new"), "").unwrap();
    sh(&format!("umount {}/m", dir.display()));
    assert_eq!(names_in(&dir.join("u")), ["new"]);

    // As fuse-overlayfs is called, and read-only without an upper.
    helper(&world, &["-o", r#"lowerdir="l\:o,w\\:second",nosuid,nodev"#, "m"]).ok();
    let options = sh_out(&format!("findmnt -no OPTIONS {}/m", dir.display()));
    assert!(options.starts_with("ro,nosuid,nodev"), "{options}");
    sh(&format!("umount {}/m", dir.display()));

    assert_eq!(helper(&world, &["none", "m", "-f", "-o", "lowerdir=second:u"]).code, 0);
    assert_eq!(names_in(&dir.join("m")), Vec::<String>::new());
    let refused = helper(&world, &["none", "m", "-o", "lowerdir=second,wibble"]);
    assert_eq!((refused.code, refused.err.as_str()), (1, "mount.sheep: wibble: unknown mount option\n"));
    let refused = helper(&world, &["none", "m", "-o", "lowerdir=second:nowhere"]);
    assert_eq!((refused.code, refused.err.lines().count()), (32, 1), "{refused:?}");
    assert!(refused.err.contains("nowhere: no such directory"), "{refused:?}");
    world.is_clean();
}

fn sh_out(script: &str) -> String {
    let done = Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn through_mount8_and_fstab() {
    let world = World::root();
    let dir = places(&world);
    let dir = dir.display();
    let script = format!(
        "mount -t sheep none m -o lowerdir=second,upperdir={dir}/u,workdir={dir}/w,noexec; echo x > m/new; ls m; findmnt -no FSTYPE m; umount m; \
         mount -t fuse.sheep none m -o lowerdir=second:u; ls m; umount m; \
         printf '%s\\n' 'none {dir}/m sheep lowerdir={dir}/second,upperdir={dir}/u,workdir={dir}/w,noauto,nofail,x-a.b=c 0 0' > fstab; \
         mount -T fstab {dir}/m; ls m; umount m"
    );
    let done = with_links(&world, &script).ok();
    assert_eq!(done.out, "b\nnew\noverlay\nb\nnew\nb\nnew\n");
    let failed = with_links(&world, "mount -t sheep none m -o lowerdir=second");
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(failed.err.contains("two lowers"), "{failed:?}");
    world.is_clean();
}

#[test]
fn a_plain_users_own_namespace() {
    let world = World::user();
    places(&world);
    let script = format!(
        "cd {}; sbin/mount.sheep none m -o lowerdir=second,upperdir=u,workdir=w && rm m/b && mkdir m/b && rmdir m/b && ls m; umount m",
        world.dir.display()
    );
    sh(&format!(
        "cd {0}; rm -r sbin/*; ln -s {0}/sheep-overlay sbin/mount.sheep; chown -R sheeptest: second u w m",
        world.dir.display()
    ));
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "sheeptest",
        "--regid",
        "sheeptest",
        "--clear-groups",
        "unshare",
        "-Urm",
        "sh",
        "-ec",
        &script,
    ]);
    let done = ran(command.output().unwrap()).ok();
    assert_eq!(done.out + &done.err, "");
}

#[test]
fn as_podmans_mount_program() {
    let world = World::root();
    places(&world);
    let script = format!(
        "mount --make-rprivate /; [ ! -e /sys/fs/cgroup/unified ] || mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup; mkdir -p tree/bin; cp /bin/busybox tree/bin/busybox; ln -s busybox tree/bin/sh; tar -C tree -cf tree.tar .; \
         podman() {{ command podman --root $PWD/store --runroot $PWD/run --cgroup-manager cgroupfs --storage-driver overlay \
         --storage-opt overlay.mount_program={}/sbin/mount.sheep \"$@\"; }}; \
         podman import -q tree.tar shown >/dev/null; \
         podman run --name c --network none --cgroups=disabled --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 shown sh -c 'echo hi > /new; /bin/busybox cat /new'; \
         cat store/overlay/*/diff/new; podman rm c >/dev/null; podman rmi shown >/dev/null",
        world.dir.display()
    );
    let done =
        ran(Command::new("unshare").args(["-m", "sh", "-ec", &script]).current_dir(&world.dir).output().unwrap());
    assert_eq!(done.out, "hi\nhi\n", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
}
