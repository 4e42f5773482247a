//! Images that other tools made are run, and what containers made of them goes back to the other tools.

use crate::harness::World;

/// podman and buildah with a store in the world's directory, as shell functions; an image of two layers in it, made by buildah: a
/// shell, a user, settings, and a file that the second layer deletes.
const MAKE: &str = r#"
podman() { command podman --root $PWD/store --runroot $PWD/r --tmpdir $PWD/tmp --storage-driver overlay "$@"; }
buildah() { command buildah --root $PWD/store --runroot $PWD/r --storage-driver overlay "$@"; }
make() {
    set -e
    c=$(buildah from scratch)
    m=$(buildah mount $c)
    mkdir -p $m/bin $m/etc $m/tmp
    cp /bin/busybox $m/bin/busybox
    for a in sh cat id ls echo env; do ln -s busybox $m/bin/$a; done
    echo 'worker:x:1234:1234::/:/bin/sh' > $m/etc/passwd
    echo secret > $m/etc/secret
    buildah umount $c >/dev/null
    base=$(buildah commit -q --rm $c)
    c=$(buildah from $base)
    m=$(buildah mount $c)
    rm $m/etc/secret
    echo hello > $m/etc/greeting
    echo 'cat /etc/greeting; id -u; echo $GREETING $PWD; ls /etc' > $m/bin/says
    echo 'echo mine > /etc/greeting; echo new > /etc/new' > $m/bin/change
    buildah umount $c >/dev/null
    buildah config --env GREETING=hi --user worker --workingdir /tmp --entrypoint '["/bin/sh"]' --cmd /bin/says $c
    buildah commit -q --rm $c app:1
}
trap 'umount -l store/overlay 2>/dev/null; true' EXIT
"#;

const SAYS: &str = "hello\n1234\nhi /tmp\ngreeting\npasswd";

#[test]
fn what_buildah_made_and_podman_saved_is_run() {
    let world = World::root();
    world
        .sh(&format!(
            "{MAKE} (make) && podman save -q --format oci-archive app:1 > oci.tar && podman save -q app:1 > docker.tar"
        ))
        .ok();
    for archive in ["oci.tar", "docker.tar"] {
        world.sh(&format!("sheep-images import app - < {archive}")).ok();
        assert_eq!(world.sh("sheep-run run --rm app").ok(), SAYS, "{archive}");
        world.sh("sheep-images rm app").ok();
    }
}

#[test]
fn what_a_container_made_of_it_runs_there() {
    let world = World::root();
    world.sh(&format!("{MAKE} (make) && podman save -q --format oci-archive app:1 > oci.tar")).ok();
    world.sh("sheep-images import app oci.tar && sheep-run run --name c --user 0 app /bin/change").ok();
    world.sh("sheep-run inspect c | sheep-images commit mine --env GREETING=ho && sheep-run rm c").ok();
    let ours = world.sh("sheep-run run --rm mine").ok();
    assert_eq!(ours, "mine\n1234\nho /tmp\ngreeting\nnew\npasswd");
    let theirs = format!(
        "{MAKE} sheep-images export mine | podman load -q >/dev/null && m=$(podman image mount localhost/mine:latest) && cat $m/etc/greeting && ls $m/etc && podman image umount -a >/dev/null && \
         podman inspect localhost/mine:latest --format '{{{{.User}}}} {{{{.Config.WorkingDir}}}} {{{{.Config.Env}}}}'"
    );
    assert_eq!(world.sh(&theirs).ok(), "mine\ngreeting\nnew\npasswd\nworker /tmp [GREETING=ho]");
}
