//! The verbs themselves, on a bundle that `sheep-ns spec` made: engines call the one as they call the other.

use crate::harness::{NS, World};

#[test]
fn the_verbs_of_the_specification() {
    let script = r#"
mkdir bundle
mv box bundle/rootfs
$NS spec --bundle bundle -- sh -c 'echo hi; id -u; exit 3'
runtime() { "$RUNTIME" --root state "$@"; }
run() { t runtime "$@"; }
pids_agree() { [ "$(cat pid)" = "$(runtime state c | jq .pid)" ]; }
run run --bundle bundle one
jq '.process.args = ["sh", "-c", "trap \"exit 5\" TERM; while :; do sleep 0.1; done"] | .annotations = {"a": "b"}' bundle/config.json > changed
mv changed bundle/config.json
state() { runtime state "$1" | jq -c '{id, status, bundle, annotations, stopped: (.pid == 0)}'; }
list() { runtime list -f json | jq -c 'map({id, status, bundle, stopped: (.pid == 0)})'; }
is() { [ "$(runtime state c | jq -r .status)" = "$1" ]; }
# A container that stays has the stdout of who made it.
run create --bundle bundle --pid-file pid c </dev/null
t state c
t list
t pids_agree
run start c
t state c
run list -q
run exec c sh -c 'echo in; exit 4'
run exec --user 1000:44 --cwd /tmp --env A=b c sh -c 'id; pwd; echo $A'
run exec --cap CAP_NET_ADMIN --no-new-privs --additional-gids 7 c sh -c 'grep -E "CapEff|CapBnd|NoNewPrivs|Groups" /proc/self/status'
echo '{"args": ["sh", "-c", "echo process; id"], "cwd": "/", "user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "env": ["PATH=/bin"]}' > process
run exec --process process c
run exec --detach --pid-file exec-pid c sleep 1000
t kill -0 "$(cat exec-pid)" | sed 's/[0-9]*//g'
run kill c TERM
until_ok is stopped
t state c
run delete c
run list -q
run run --detach --bundle bundle d
until_ok says running runtime state d
run kill --all d KILL
until_ok says stopped runtime state d
run delete d
run run --detach --bundle bundle e
run delete --force e
run delete --force e
t find state -mindepth 1
t find /sys/fs/cgroup -mindepth 2 -type d
"#;
    World::new().same(&format!("NS={NS}\n{script}"));
}
