//! containerd 1.6, by `ctr` and its shim for runc.

use crate::harness::World;

/// containerd on the machine, and its tasks as shell functions.
const DAEMON: &str = r#"
cat > config.toml <<END
version = 2
root = "/run/work/root"
state = "/run/work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "/run/work/sock"
END
containerd --config config.toml --log-level error >daemon.log 2>&1 &
daemon=$!
ctr() { command ctr --address /run/work/sock "$@"; }
export -f ctr
until_ok ctr version
run() { ctr run --cpu-shares 0 --runtime io.containerd.runc.v2 --runc-binary "$RUNTIME" "$@"; }
export -f run
# A root directory, for there is no image.
root=$PWD/box
"#;

const END: &str = r#"
t ctr container ls -q
kill $daemon
wait $daemon || true
t find /sys/fs/cgroup -mindepth 2 -type d
t ls state/io.containerd.runtime.v2.task/default
"#;

#[test]
fn tasks() {
    let script = r#"
t run --rm --rootfs $root c0 /bin/sh -c 'echo hi; echo err >&2; id; exit 3'
t run --rm --rootfs $root c1 nosuch
t run --rm --rootfs $root c2 /etc
echo typed | t run --rm --rootfs $root c3 /bin/head -n 1
t run --rm --cwd /tmp --env A=1 --rootfs $root c4 /bin/sh -c 'pwd; echo $A; hostname; grep -E "Cap|NoNew" /proc/self/status'
t run --rm --user 1000:44 --rootfs $root c5 /bin/id
t run --rm --read-only --rootfs $root c6 /bin/touch /x
t run --rm --mount type=bind,src=$root/etc,dst=/m,options=rbind:ro --rootfs $root c7 /bin/sh -c 'ls /m; touch /m/x'
t run --rm --privileged --rootfs $root c8 /bin/grep Cap /proc/self/status
t run --rm --net-host --rootfs $root c9 /bin/ip -o addr show lo
t run --rm --null-io --rootfs $root c10 /bin/sh -c 'exit 4'
t run --rm --cap-add CAP_SYS_ADMIN --cap-drop CAP_KILL --rootfs $root c11 /bin/grep Cap /proc/self/status
t run --rm --device /dev/null --rootfs $root c12 /bin/ls -l /dev/null | tr -s ' ' | cut -d' ' -f1-6
t run --rm --pid-file pid --rootfs $root c13 /bin/true
t grep -c . pid
t on_a_terminal run --rm -t --rootfs $root c14 /bin/sh -c 'tty; test -t 0 && echo terminal; exit 5'
t run --rm --cgroup /elsewhere --rootfs $root c15 /bin/grep 0:: /proc/self/cgroup
t run --rm --rootfs $root c16 /bin/sh -c 'kill -9 $$'
t run --rm --rootfs $root c17 /bin/sh -c 'kill -TERM 1; echo alive'
ip netns add made && ip -n made link add here type veth peer name there
t run --rm --with-ns network:/run/netns/made --rootfs $root c18 /bin/sh -c 'ip -o link | cut -d: -f2 | sort'
"#;
    World::new().same(&format!("{DAEMON}{script}{END}"));
}

#[test]
fn a_life_in_the_background() {
    let script = r#"
t run -d --rootfs $root c /bin/sh -c 'trap "exit 5" TERM; trap "echo usr1 > /tmp/usr1" USR1; while :; do sleep 0.1; done'
status() { ctr task ls | tr -s ' ' | cut -d' ' -f1,3; }
t status
t ctr task exec --exec-id e0 c /bin/sh -c 'echo in; id; pwd; exit 6'
t ctr task exec --exec-id e1 c nosuch
t ctr task exec --exec-id e2 c /etc
t ctr task exec --exec-id e3 --cwd /tmp --user 1000 c /bin/sh -c 'pwd; id'
echo typed | t ctr task exec --exec-id e4 c /bin/head -n 1
t on_a_terminal ctr task exec -t --exec-id e5 c /bin/sh -c 'tty; exit 7'
t ctr task exec -d --exec-id e6 c /bin/sleep 1000
processes() { ctr task ps c | wc -l; }
t processes
t ctr task kill --exec-id e6 --signal KILL c
t ctr task kill --signal USR1 c
until_ok ctr task exec --exec-id e7 c /bin/test -e /tmp/usr1
rm $root/tmp/usr1
t ctr task pause c
t status
t ctr task exec --exec-id e9 c /bin/true
t ctr task resume c
t status
t ctr task exec --exec-id e8 c /bin/echo after
metrics() { ctr task metrics --format json c | tr ',' '\n' | grep -c usage; }
t metrics
t ctr task delete c
t ctr task kill c
until_ok says STOPPED ctr task ls
t status
t ctr task delete c
t status
t ctr container delete c
t run -d --rootfs $root forced /bin/sleep 1000
t ctr task delete --force forced
t ctr container delete forced
t run -d --rootfs $root all /bin/sh -c 'sleep 1000 & sleep 1000'
t ctr task kill --all --signal KILL all
until_ok says STOPPED ctr task ls
t ctr task delete all
t ctr container delete all
t ctr container create --runtime io.containerd.runc.v2 --rootfs $root later /bin/echo later
t ctr task start later
"#;
    World::new().same(&format!("{DAEMON}{script}{END}"));
}
