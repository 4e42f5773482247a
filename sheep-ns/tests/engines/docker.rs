//! dockerd 20.10, with the runtime as its own (`--add-runtime`).

use crate::harness::World;

/// dockerd on the machine, with its own containerd.
const DAEMON: &str = r#"
export DOCKER_HOST=unix:///run/work/docker.sock
dockerd --host $DOCKER_HOST --data-root /run/work/docker --exec-root /run/work/exec --pidfile /run/work/docker.pid --storage-driver vfs \
    --iptables=false --ip6tables=false --bridge none --exec-opt native.cgroupdriver=cgroupfs --add-runtime chosen="$RUNTIME" --default-runtime chosen \
    --log-level warn >daemon.log 2>&1 &
daemon=$!
until_ok docker version
tar -C "$DIR/box" -c . | docker import - box >/dev/null
run() { docker run --network none "$@"; }
# What docker prints of a runtime's error goes to its output.
quiet() { "$@" >/dev/null; }
"#;

const END: &str = r#"
t docker ps -aq
kill $daemon
wait $daemon || true
t find /sys/fs/cgroup/docker -mindepth 1 -type d
t find /run -name state.json
"#;

#[test]
fn containers() {
    let script = r#"
t run --rm box sh -c 'echo hi; echo err >&2; id; exit 3'
t run --rm box nosuch
t run --rm box /etc
echo typed | t run --rm -i box head -n 1
t run --rm -w /tmp -e A=1 --hostname h box sh -c 'pwd; echo $A; hostname; grep -E "Cap|NoNew|Seccomp" /proc/self/status'
t run --rm -u 1000:44 box id
t run --rm -u ann box id
t run --rm --read-only box touch /x
t run --rm -v $PWD/box/etc:/m:ro box sh -c 'ls /m; touch /m/x'
t run --rm --tmpfs /t:size=1m box sh -c 'df -k /t | tail -n 1 | tr -s " " | cut -d" " -f2'
t run --rm --privileged box grep -E 'Cap|Seccomp:' /proc/self/status
t run --rm --cap-add SYS_ADMIN --cap-drop KILL box grep Cap /proc/self/status
t run --rm --security-opt no-new-privileges box grep NoNew /proc/self/status
t run --rm --security-opt seccomp=unconfined box grep Seccomp: /proc/self/status
t run --rm --ulimit nofile=100:200 --ulimit core=0 box sh -c 'ulimit -n; ulimit -Hn; ulimit -c'
t run --rm --sysctl kernel.shmmax=12345 box cat /proc/sys/kernel/shmmax
t run --rm --shm-size 1m box sh -c 'df -k /dev/shm | tail -n 1 | tr -s " " | cut -d" " -f2'
t run --rm --pid host box sh -c 'test $$ -gt 1 && echo of the host'
t run --rm --ipc host --uts host box hostname
t run --rm --init box sh -c 'cat /proc/1/comm'
t run --rm --group-add 44 box id
t run --rm --oom-score-adj 100 box cat /proc/self/oom_score_adj
t run --rm --device /dev/null:/dev/other box sh -c 'echo > /dev/other && echo written'
t on_a_terminal run --rm -t box sh -c 'tty; test -t 0 && echo terminal; exit 5'
t run --rm box sh -c 'kill -9 $$'
t run --rm box sh -c 'kill -TERM 1; echo alive'
t run --rm --memory 10m box true
"#;
    World::new().same(&format!("{DAEMON}{script}{END}"));
}

#[test]
fn a_life_in_the_background() {
    let script = r#"
run -d --name one box sh -c 'trap "exit 5" TERM; trap "echo usr1 > /tmp/usr1" USR1; echo began; while :; do sleep 0.1; done' >/dev/null
status() { docker ps -a --format '{{.Names}} {{.State}}'; }
t status
until_ok says began docker logs one
t docker exec one sh -c 'echo in; id; pwd; exit 6'
t quiet docker exec one nosuch
t quiet docker exec one /etc
t docker exec -u 1000 -w /tmp -e B=2 one sh -c 'id; pwd; echo $B'
echo typed | t docker exec -i one head -n 1
t on_a_terminal docker exec -t one sh -c 'tty; exit 7'
t quiet docker exec --privileged one grep CapEff /proc/self/status
docker exec -d one sleep 1000
processes() { docker top one -o comm | sort | uniq -c | tr -s ' '; }
until_ok says sleep docker top one
t docker kill -s USR1 one
until_ok docker exec one test -e /tmp/usr1
t docker pause one
t status
t docker exec one true
t docker unpause one
t status
t docker inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.HostConfig.Runtime}}' one
t docker stats --no-stream --format '{{.Name}}' one
t docker update --restart no one
t docker cp one:/etc/passwd -
t docker diff one
t docker stop one
t docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' one
t docker start one
until_ok says running status
t docker restart -t 0 one
t docker kill one
t docker wait one
t quiet docker commit one made
t docker rm one
t run --rm made cat /tmp/usr1
run -d --name two --health-cmd 'test -e /tmp/well' --health-interval 100ms --health-start-period 0s --health-retries 1 box sh -c 'trap "exit 0" TERM; while :; do sleep 0.1; done' >/dev/null
until_ok says unhealthy docker inspect two
docker exec two touch /tmp/well
health() { docker inspect -f '{{.State.Health.Status}}' two; }
is_well() { [ "$(health)" = healthy ]; }
until_ok is_well
t health
t docker rm -f two
"#;
    World::new().same(&format!("{DAEMON}{script}{END}"));
}

#[test]
fn steps_of_a_build() {
    let script = r#"
mkdir context
cat >context/Dockerfile <<'END2'
FROM box
RUN echo made > /made && id
USER ann
RUN id -un > /tmp/who
ENTRYPOINT ["sh", "-c"]
END2
build() { DOCKER_BUILDKIT=0 docker build --network none -q -t built context | wc -l; }
t build
t run --rm built 'cat /made /tmp/who; id -u'
"#;
    World::new().same(&format!("{DAEMON}{script}{END}"));
}
