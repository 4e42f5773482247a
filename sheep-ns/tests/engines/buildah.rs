//! buildah 1.28: `RUN` and `buildah run`.

use crate::harness::World;

#[test]
fn steps_of_a_build() {
    World::new().same(
        r#"
box_image
export BUILDAH_RUNTIME=$RUNTIME BUILDAH_ISOLATION=oci
b() { t buildah "$@"; }
t buildah from --name w localhost/box
b run w -- sh -c 'echo hi; id; pwd; exit 3'
b run w -- nosuch
b run w -- /etc
b run --user ann w -- id
b run --workingdir /tmp w -- pwd
b run --env A=1 w -- sh -c 'echo $A'
b run --hostname farm w -- hostname
b run --cap-add CAP_SYS_ADMIN w -- grep Cap /proc/self/status
b run --cap-drop CAP_CHOWN w -- grep Cap /proc/self/status
mkdir vol; echo v > vol/f
b run --volume $PWD/vol:/v:ro w -- sh -c 'cat /v/f; touch /v/x'
b run --network none w -- ip -o link
b run --network host w -- ip -o addr show lo
echo typed | b run w -- cat
b run w -- sh -c 'echo kept > /kept'
b run w -- cat /kept
t on_a_terminal buildah --log-level error run -t w -- sh -c 'tty; exit 4'
cat > Containerfile <<'END'
FROM localhost/box
ENV A=1
WORKDIR /work
RUN echo $A > a && id -u >> a
USER ann
RUN id -un >> /tmp/who
USER root
RUN --mount=type=tmpfs,target=/scratch sh -c 'grep -c " /scratch " /proc/mounts > /scratches'
END
t buildah build --layers=false -q -t localhost/built .
t podman run --rm --network none localhost/built cat /work/a /tmp/who /scratches
printf 'FROM localhost/box\nRUN exit 7\n' > Containerfile
t buildah build --layers=false -q .
t buildah rm -a
"#,
    );
}
