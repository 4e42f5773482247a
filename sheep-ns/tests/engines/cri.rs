//! containerd's CRI, which is all that Kubernetes asks of a machine's engine: pods and their containers, called for as a kubelet does.

use std::fs;

use crate::harness::World;

const CLIENT: &str = include_str!("cri.py");

/// containerd with its CRI on the machine. Where there are no controllers there are no groups, either: it gives every pod a weight.
const DAEMON: &str = r#"
grep -q memory /sys/fs/cgroup/cgroup.controllers && no_groups=false || no_groups=true
mkdir cni logs
cat > cni/10-test.conflist <<END
{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}]}
END
cat > config.toml <<END
version = 2
root = "/run/work/root"
state = "/run/work/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "/run/work/sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/box:latest"
disable_cgroup = $no_groups
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/run/work/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "$RUNTIME"
END
podman import -q --change 'CMD ["sleep","1000000"]' --change 'ENV PATH=/bin' "$DIR/box.tar" localhost/box >/dev/null
podman save -q --format docker-archive -o box.tar localhost/box
containerd --config config.toml --log-level warn >daemon.log 2>&1 &
daemon=$!
export CRI=/run/work/sock IMAGE=localhost/box:latest
cri() { /usr/bin/python3 "$DIR/cri.py" "$@"; }
until_ok cri version
ctr --address $CRI -n k8s.io images import box.tar >/dev/null
until_ok says localhost/box ctr --address $CRI -n k8s.io images ls -q
# Without a pod nothing of the rest makes sense, and waiting for it takes long.
pod() { t cri pod "$@"; [ -e "id-$1" ] || { cat daemon.log >&2; grep "" /sys/fs/cgroup/cgroup.* >&2; exit 1; }; }
c() { local name=$1; shift; t cri create pod own "$name" "$@"; t cri start "$name"; }
# stdout and stderr reach the log in any order.
log() { cut -d' ' -f2- logs/"$1".log | sort -s -k 1,1; }
ends() { until_ok says exited cri state "$1"; t cri state "$1"; t log "$1"; t cri rm "$1"; }
"#;

const END: &str = r#"
t cri stop-pod pod
t cri rm-pod pod
t ctr --address $CRI -n k8s.io containers ls -q
kill $daemon
wait $daemon || true
t find /sys/fs/cgroup -mindepth 2 -type d
t ls state/io.containerd.runtime.v2.task/k8s.io
t sh -c 'ip -o link | grep -c veth'
cat daemon.log >&2
"#;

#[test]
fn pods() {
    let script = r#"
pod pod own
c hello '{"command": ["sh", "-c", "echo hi; echo err >&2; id; hostname; exit 3"], "env": {"A": "1"}}'
ends hello
c network '{"command": ["sh", "-c", "ip -o -4 addr | tr -s \" \" | cut -d\" \" -f2,4 | sed s/99.0.[0-9]*/99.0.N/; cat /etc/hosts | wc -l"]}'
ends network
c user '{"command": ["sh", "-c", "id -u; pwd; grep -E \"Cap|NoNew|Seccomp:\" /proc/self/status"], "user": 1000, "cwd": "/tmp", "nnp": true, "seccomp": true}'
ends user
c strict '{"command": ["sh", "-c", "touch /x; cat /etc/passwd | wc -l; ls /masked; grep Cap /proc/self/status"], "readonly": true, "masked": ["/etc"], "add": ["SYS_PTRACE"], "drop": ["KILL", "CHOWN"]}'
ends strict
c mounts "{\"command\": [\"sh\", \"-c\", \"ls /m; touch /m/x\"], \"mounts\": [[\"$PWD/box/etc\", \"/m\", true]]}"
ends mounts
pod open privileged
t cri create open privileged all '{"command": ["sh", "-c", "grep -E \"Cap|Seccomp:\" /proc/self/status; ls /dev | grep -v core"], "privileged": true}'
t cri start all
ends all
t cri stop-pod open
t cri rm-pod open
c terminal '{"command": ["sh", "-c", "tty; test -t 1 && echo terminal"], "tty": true}'
ends terminal
t cri create pod own none '{"command": ["nosuch"]}'
t cri start none
t cri state none
t cri rm none
c web '{"command": ["sh", "-c", "trap \"exit 0\" TERM; while :; do sleep 0.1; done"]}'
t cri state web
t cri exec web sh -c 'echo in; echo err >&2; id; exit 6'
t cri exec web nosuch
c beside '{"command": ["sh", "-c", "ps | grep -c [s]leep"], "pid": "pod"}'
ends beside
t cri rm web
t cri exec web true
c left '{"command": ["sleep", "1000"]}'
c stubborn '{"command": ["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"]}'
t cri stop stubborn 1
t cri state stubborn
c stopped '{"command": ["sh", "-c", "trap \"exit 7\" TERM; while :; do sleep 0.1; done"]}'
until_ok cri exec stopped true
t cri stop stopped 10
t cri state stopped
pod on-host host
t cri create on-host host ip '{"command": ["sh", "-c", "ip -o link | cut -d: -f2 | cut -d@ -f1 | sed s/veth.*/veth/ | sort"]}'
t cri start ip
ends ip
t cri stop-pod on-host
t cri rm-pod on-host
"#;
    let seen = same(script);
    assert!(seen.contains("10.99.0.N") && seen.contains("exited 3 Error"), "{seen}");
}

#[test]
#[ignore = "needs controllers: for scripts/vm test"]
fn limits_of_a_pod() {
    let script = r#"
pod pod own
c limited '{"command": ["sleep", "1000"], "memory": 33554432}'
t cri used limited
group() { cat "$(find /sys/fs/cgroup/kubepods/pod-pod -name "$(cat id-limited)")"/memory.max; }
t group
t cri limit limited 67108864
t group
c greedy '{"command": ["sh", "-c", "head -c 100m /dev/zero | tail -c 100m | wc -c"], "memory": 16777216}'
ends greedy
"#;
    // For the group that the test's machine has: this virtual machine is the test's, too.
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids").unwrap();
    let seen = same(script);
    for words in ["memory is used", "\n33554432\n", "\n67108864\n", "exited 0 OOMKilled"] {
        assert!(seen.contains(words), "{words:?}: {seen}");
    }
}

fn same(script: &str) -> String {
    let world = World::new();
    world.put("cri.py", CLIENT);
    world.same(&format!("{DAEMON}{script}{END}"))
}
