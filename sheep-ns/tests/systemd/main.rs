//! Control groups by systemd: a real one, which is process 1 of namespaces of its own. What needs controllers is in the machine of
//! `scripts/vm test`.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "../cli/harness.rs"]
#[allow(dead_code, reason = "shared with the tests that need no systemd")]
mod harness;

use std::fs;
use std::process::{Command, Stdio};

use harness::{NS, World};
use serde_json::{Value, json};

/// Where the tests' scripts find it all, and how they look.
const STEPS: &str = r#"
cd "$DIR"
die() { echo "$*" >&2; exit 1; }
show() { systemctl show -P "$2" "$1"; }
groups() { find /sys/fs/cgroup -name '*.scope' -not -name init.scope; }
gone() { for i in $(seq 200); do [ "$(groups)" ] || return 0; sleep 0.05; done; for g in $(groups); do systemctl status --no-pager "${g##*/}"; find $g -name cgroup.procs -exec grep -H . {} +; done >&2; die "left: $(groups)"; }
fails() { code=$1 words=$2; shift 2; got=0; said=$("$@" 2>&1 >/dev/null) || got=$?; [ $got = $code ] && [[ $said = *"$words"* ]] || die "$*: $got: $said"; }
"#;

/// Runs a script in a machine with systemd; gives its output.
fn machine(world: &World, script: &str) -> String {
    let place = world.path("script");
    fs::write(&place, format!("NS='{NS} --root {0}/state'\n{STEPS}\n{script}", world.dir.display())).unwrap();
    fs::write(world.dir.join("machine.sh"), include_str!("machine.sh")).unwrap();
    fs::write(world.dir.join("group.sh"), include_str!("../group.sh")).unwrap();
    let mut command = Command::new("bash");
    command.arg(world.path("machine.sh")).arg(&world.dir).arg(&place).stdin(Stdio::null());
    let status = command.status().unwrap();
    let text = |name: &str| fs::read_to_string(world.dir.join(name)).unwrap_or_default();
    assert!(
        status.success(),
        "{status}\n{}\n{}\n{}\n{}",
        text("out"),
        text("err"),
        text("log"),
        text("user") + &text("killed")
    );
    assert_eq!(text("err"), "");
    text("out")
}

/// A bundle whose group is in `machine.slice`, changed by `change`.
fn bundle(world: &World, script: &str, change: impl FnOnce(&mut Value)) {
    world.bundle(script, |config| {
        config["linux"]["cgroupsPath"] = json!("machine-a.slice:pre:fix");
        // Where there is no controller for them, limits are refused.
        if let Some(resources) = config["linux"]["resources"].as_object_mut() {
            resources.retain(|name, _| name == "devices");
        }
        change(config);
    });
}

#[test]
fn a_containers_life() {
    let world = World::new();
    bundle(&world, "cat /proc/self/cgroup | sed -n 's/^0:://p'; exec sleep 1000", |config| {
        config["linux"]["resources"]["pids"] = json!({"limit": -1});
        config["annotations"] =
            json!({"org.systemd.property.TimeoutStopSec": "1", "org.systemd.property.CollectMode": "'inactive'"});
    });
    let seen = machine(
        &world,
        r#"
        before=$(cat /proc/self/cgroup)
        $NS --systemd-cgroup create -b bundle c >out.c
        [ "$before" = "$(cat /proc/self/cgroup)" ]
        for p in ControlGroup Slice Delegate TasksMax TimeoutStopUSec CollectMode Description ActiveState; do echo "$p: $(show pre-fix.scope $p)"; done
        scope=/sys/fs/cgroup$(show pre-fix.scope ControlGroup)
        find $scope -mindepth 1 -type d
        cat $scope/cgroup.procs
        [ "$(cat $scope/container/cgroup.procs)" = "$(jq .process.pid state/c/state.json)" ]
        $NS --systemd-cgroup start c
        until [ -s out.c ]; do sleep 0.02; done; cat out.c
        $NS pause c; $NS state c | jq -r .status; grep frozen $scope/container/cgroup.events; $NS resume c
        $NS --systemd-cgroup exec c sh -c "sed -n 's/^0:://p' /proc/self/cgroup"
        fails 4 'exists already' $NS --systemd-cgroup create -b bundle c
        fails 4 'in use by another container' $NS --systemd-cgroup create -b bundle other
        $NS list -q
        # A reload of systemd takes nothing away.
        systemctl daemon-reload; show pre-fix.scope ActiveState
        [ "$(cat $scope/container/cgroup.procs)" = "$(jq .process.pid state/c/state.json)" ]
        $NS delete --force c
        groups
        # At once again, under the same name.
        for i in 1 2 3; do $NS --cgroup-manager=systemd create -b bundle c; $NS delete -f c; done
        # systemd itself ends it.
        $NS --systemd-cgroup run -d -b bundle c >/dev/null; systemctl stop pre-fix.scope; $NS state c | jq -r .status; $NS delete c
        gone; ls state
        "#,
    );
    let at = "/machine.slice/machine-a.slice/pre-fix.scope";
    let want = format!(
        "ControlGroup: {at}\nSlice: machine-a.slice\nDelegate: yes\nTasksMax: infinity\nTimeoutStopUSec: 1s\nCollectMode: inactive\n\
         Description: container c\nActiveState: active\n/sys/fs/cgroup{at}/container\n/\npaused\nfrozen 1\n/\nc\nactive\nstopped\n"
    );
    assert_eq!(seen, want);
}

#[test]
fn in_the_foreground_and_what_fails() {
    let world = World::new();
    bundle(&world, "exit 7", |_| {});
    let seen = machine(
        &world,
        r#"
        before=$(cat /proc/self/cgroup)
        code=0; $NS --systemd-cgroup run -b bundle c || code=$?; echo $code
        gone
        # What fails leaves no scope, and systemd none that failed.
        jq '.process.args = ["nosuch"]' bundle/config.json >c && mv c bundle/config.json
        fails 127 nosuch $NS --systemd-cgroup run -b bundle c
        gone
        jq '.linux.cgroupsPath = "/a/b"' bundle/config.json >c && mv c bundle/config.json
        fails 2 SLICE:PREFIX:NAME $NS --systemd-cgroup create -b bundle c
        jq '.linux.cgroupsPath = "a.slice:b:c" | .annotations = {"org.systemd.property.NoSuch": "true"}' bundle/config.json >c && mv c bundle/config.json
        fails 2 systemd-cgroup $NS create -b bundle c
        fails 1 NoSuch $NS --systemd-cgroup create -b bundle c
        gone
        # Killed in the middle, at any time.
        jq 'del(.annotations) | .process.args = ["sleep", "1000"]' bundle/config.json >c && mv c bundle/config.json
        for i in $(seq 40); do
            $NS --systemd-cgroup create -b bundle c & sleep 0.0$((RANDOM % 60 + 10)); kill -KILL $! 2>/dev/null || true; wait $! || true
            $NS delete -f c
            gone
        done 2>killed
        systemctl --failed --no-legend; ls state
        [ "$before" = "$(cat /proc/self/cgroup)" ]
        "#,
    );
    assert_eq!(seen, "7\n");
    // Without systemd.
    let create = world.ns(&["--systemd-cgroup", "create", "-b", &world.path("bundle"), "c"]);
    let ending = harness::among_private_mounts(&create, "mount -t tmpfs none /run && exec \"$@\"");
    let said = String::from_utf8_lossy(&ending.stderr);
    assert!(ending.status.code() == Some(1) && said.contains("--cgroup-manager=cgroupfs"), "{ending:?}");
    assert!(world.leftovers().is_empty());
}

#[test]
fn an_ordinary_user() {
    let world = World::of_user();
    bundle(&world, "echo up; exec sleep 1000", |config| config["linux"]["cgroupsPath"] = json!("app.slice:pre:fix"));
    let seen = machine(
        &world,
        r#"
        uid=$(id -u sheeptest); mkdir -p /run/user/$uid; chown sheeptest /run/user/$uid
        systemctl start dbus.service user@$uid.service
        as() { setpriv --reuid sheeptest --regid sheeptest --clear-groups env XDG_RUNTIME_DIR=/run/user/$uid "$@"; }
        NS="as $DIR/sheep-ns --root $DIR/state"
        # From outside the user's own groups, where only the system's systemd can move it; and from within.
        own=/sys/fs/cgroup/user.slice/user@$uid.service/own
        mkdir $own && chown -R sheeptest $own
        for way in /sys/fs/cgroup/system.slice/test.service $own; do
            echo 0 >$way/cgroup.procs
            $NS --systemd-cgroup create -b "$DIR/bundle" c >/dev/null
            scope=$(find /sys/fs/cgroup -name pre-fix.scope); echo "${scope#/sys/fs/cgroup}"
            find $scope -name cgroup.procs | while read -r f; do echo "${f#$scope/} $(wc -l <$f)"; done | sort
            $NS start c; $NS state c | jq -r .status
            $NS delete --force c
            for i in $(seq 100); do [ -e $scope ] || break; sleep 0.05; done
            [ ! -e $scope ]
        done
        code=0; $NS --systemd-cgroup run -b "$DIR/bundle" c >"$DIR/up" & until grep -q up "$DIR/up"; do sleep 0.05; done
        as "$DIR/sheep-ns" --root "$DIR/state" kill c KILL; wait $! || echo $?
        # Without the units that it would end by, it has to be killed.
        echo 0 >/sys/fs/cgroup/system.slice/test.service/cgroup.procs; systemctl kill -s KILL user@$uid.service
        "#,
    );
    // From within it goes back, as root does.
    let first = "/user.slice/user@UID.service/app.slice/pre-fix.scope\ncgroup.procs 0\ncontainer/cgroup.procs 1\nruntime/cgroup.procs 0\nrunning\n";
    let second = first.replace("runtime/cgroup.procs 0\n", "");
    let uid = seen.split('@').nth(1).and_then(|rest| rest.split('.').next()).unwrap_or_default().to_owned();
    assert_eq!(seen, format!("{first}{second}137\n").replace("UID", &uid));
}

#[test]
#[ignore = "for scripts/vm test"]
fn limits_and_weights() {
    let world = World::new();
    bundle(&world, "exec sleep 1000", |config| {
        let limits = json!({
            "memory": {"limit": 64 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 2048, "quota": 20_000, "period": 100_000},
            "pids": {"limit": 20},
            "blockIO": {"weight": 500},
        });
        config["linux"]["resources"].as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    });
    let seen = machine(
        &world,
        r#"
        $NS --systemd-cgroup create -b bundle c
        scope=/sys/fs/cgroup$(show pre-fix.scope ControlGroup)
        look() {
            for p in CPUWeight IOWeight MemoryLow TasksMax; do echo "$p=$(show pre-fix.scope $p)"; done
            (cd $scope && grep . cpu.weight memory.low memory.max pids.max container/cpu.weight container/memory.low container/memory.max container/cpu.max container/pids.max)
        }
        look
        $NS update --memory 96m --cpu-share 512 --pids-limit 30 c
        # What systemd thinks of it stays so.
        systemctl daemon-reload
        look
        # All or nothing: a value that is refused changes nothing.
        fails 1 weight $NS update --resources - c <<<'{"cpu": {"shares": 4096}, "unified": {"cpu.weight": "70000"}}'
        look | grep -i cpu.\\?weight
        $NS delete --force c; gone
        # What is too much ends it.
        jq '.process.args[2] = "dd if=/dev/zero of=/dev/shm/x bs=1048576 count=50 2>/dev/null" | .linux.resources.memory = {"limit": 33554432, "swap": 33554432}' bundle/config.json >new && mv new bundle/config.json
        code=0; $NS --systemd-cgroup run -b bundle c || code=$?; echo $code; gone
        # One shot, without a bundle.
        $NS --systemd-cgroup exec --rootfs root -m 48m -- sh -c 'cat /proc/self/cgroup /sys/fs/cgroup/memory.max'; gone
        "#,
    );
    // The group has them, and of what it shares with others the scope, too.
    let looks = |weight: u32, io: u32, memory: u32, pids: u32| {
        format!(
            "CPUWeight={weight}\nIOWeight={io}\nMemoryLow=33554432\nTasksMax={pids}\ncpu.weight:{weight}\nmemory.low:33554432\nmemory.max:max\n\
             pids.max:{pids}\ncontainer/cpu.weight:{weight}\ncontainer/memory.low:33554432\ncontainer/memory.max:{memory}\n\
             container/cpu.max:20000 100000\ncontainer/pids.max:{pids}\n"
        )
    };
    let want = looks(79, 4950, 64 << 20, 20)
        + &looks(20, 4950, 96 << 20, 30)
        + "CPUWeight=20\ncpu.weight:20\ncontainer/cpu.weight:20\n137\n0::/\n50331648\n";
    assert_eq!(seen, want);
}

#[test]
fn podman_as_it_is_on_such_a_host() {
    let world = World::new();
    let conf = "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\npids_limit = 0\n\
                [engine]\ncgroup_manager = \"systemd\"\nevents_logger = \"none\"\n";
    fs::write(world.dir.join("containers.conf"), conf).unwrap();
    let script = format!("runtime={NS}\n")
        + r#"
        systemctl start dbus.service
        export CONTAINERS_CONF=$DIR/containers.conf
        p() { podman --storage-driver vfs --runtime $runtime "$@"; }
        tar -C root -c . | p import -q - box:1 >/dev/null
        p run --rm --network none box:1 sh -c 'echo ran; exit 5' || echo $?
        id=$(p run -d --name c --network none box:1 sh -c 'trap "exit 0" TERM; while :; do sleep 0.1; done')
        scope=libpod-$id.scope
        for p in Slice ActiveState; do show $scope $p; done
        [ "$(p inspect -f '{{.State.CgroupPath}}' c)" = "$(show $scope ControlGroup)" ] || p inspect -f '{{.State.CgroupPath}}' c
        p exec c sh -c 'echo exec'
        p pause c >/dev/null; p inspect -f '{{.State.Status}}' c; p unpause c >/dev/null
        p stop -t 20 c >/dev/null; p inspect -f '{{.State.Status}} {{.State.ExitCode}}' c
        p start c >/dev/null; p kill -s KILL c >/dev/null; p wait c; p rm c >/dev/null
        # As the containers of a pod are.
        id=$(p run -d --cgroup-parent machine-a.slice --name d --network none box:1 sleep 1000)
        show libpod-$id.scope Slice
        p rm -f -t 0 d >/dev/null
        gone; systemctl --failed --no-legend
        "#;
    let seen = machine(&world, &script);
    assert_eq!(seen, "ran\n5\nmachine.slice\nactive\nexec\npaused\nexited 0\n137\nmachine-a.slice\n");
}

#[test]
fn docker_as_it_is_on_such_a_host() {
    let world = World::new();
    let script = format!("runtime={NS}\n")
        + r#"
        systemctl start dbus.service
        # A service, as on such a host; its containers are not in its group.
        systemd-run -q --unit docker-test -p StandardError=file:$DIR/dockerd.log /usr/sbin/dockerd --host unix:///run/docker.sock --data-root /run/docker-data \
            --exec-root /run/docker-exec --pidfile /run/docker.pid --storage-driver vfs --iptables=false --ip6tables=false --bridge none \
            --exec-opt native.cgroupdriver=systemd --add-runtime sheep=$runtime --default-runtime sheep --log-level warn
        export DOCKER_HOST=unix:///run/docker.sock
        for i in $(seq 200); do docker version >/dev/null 2>&1 && break; sleep 0.05; done
        tar -C root -c . | docker import - box >/dev/null
        docker run --rm --network none box sh -c 'echo ran; exit 5' || echo $?
        id=$(docker run -d --name one --network none box sh -c 'trap "exit 0" TERM; while :; do sleep 0.1; done')
        show docker-$id.scope Slice; show docker-$id.scope ActiveState
        docker exec one sh -c 'echo exec'
        docker pause one >/dev/null; docker inspect -f '{{.State.Status}}' one; docker unpause one >/dev/null
        docker stop -t 20 one >/dev/null; docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' one
        docker start one >/dev/null; docker rm -f one >/dev/null
        id=$(docker run -d --cgroup-parent machine-a.slice --name two --network none box sleep 1000)
        show docker-$id.scope Slice
        docker rm -f two >/dev/null
        gone
        systemctl stop docker-test.service
        "#;
    let seen = machine(&world, &script);
    assert_eq!(seen, "ran\n5\nsystem.slice\nactive\nexec\npaused\nexited 0\nmachine-a.slice\n");
}

/// Runs a script in which `p` is the podman of an ordinary user, who has a systemd; gives its output.
fn users_podman(world: &World, script: &str) -> String {
    let conf = "[containers]\npids_limit = 0\n[engine]\ncgroup_manager = \"systemd\"\nevents_logger = \"none\"\n";
    fs::write(world.dir.join("containers.conf"), conf).unwrap();
    let begin = r#"
        uid=$(id -u sheeptest); mkdir -p /run/user/$uid home; chown sheeptest /run/user/$uid home
        systemctl start dbus.service user@$uid.service
        p() {
            setpriv --reuid sheeptest --regid sheeptest --clear-groups env -C home HOME="$DIR/home" XDG_RUNTIME_DIR=/run/user/$uid \
                DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$uid/bus CONTAINERS_CONF="$DIR/containers.conf" \
                podman --storage-driver vfs --runtime "$DIR/sheep-ns" "$@"
        }
        left() { find /sys/fs/cgroup -name 'libpod-*'; }
        tar -C root -c . | p import -q - localhost/box:1 >/dev/null
        "#;
    let end = "
        for i in $(seq 100); do [ \"$(left)\" ] || break; sleep 0.05; done; left
        systemctl kill -s KILL user@$uid.service
        ";
    machine(world, &format!("{begin}{script}{end}"))
}

#[test]
fn podman_of_an_ordinary_user() {
    let world = World::of_user();
    let seen = users_podman(
        &world,
        r#"
        p run --rm --network none box:1 sh -c 'echo ran; exit 5' || echo $?
        id=$(p run -d --name c --network none box:1 sh -c 'trap "exit 0" TERM; echo up; while :; do sleep 0.1; done')
        group=$(p inspect -f '{{.State.CgroupPath}}' c); group=${group/$uid/UID}; echo "${group/$id/ID}"
        until p logs c | grep up; do sleep 0.05; done
        p exec c sh -c 'id -u; cat /proc/self/uid_map | wc -l'
        p pause c >/dev/null; p inspect -f '{{.State.Status}}' c; p unpause c >/dev/null
        p stop -t 20 c >/dev/null; p inspect -f '{{.State.Status}} {{.State.ExitCode}}' c
        p start c >/dev/null; p kill -s KILL c >/dev/null; p wait c; p rm c >/dev/null
        "#,
    );
    let group = "/user.slice/user@UID.service/user.slice/libpod-ID.scope";
    assert_eq!(seen, format!("ran\n5\n{group}\nup\n0\n2\npaused\nexited 0\n137\n"));
}

#[test]
#[ignore = "for scripts/vm test"]
fn limits_of_an_ordinary_users_podman() {
    let world = World::of_user();
    let seen = users_podman(
        &world,
        r#"
        p run -d --name c --network none --memory 64m --memory-reservation 32m --cpus 0.5 --pids-limit 20 --cpu-shares 2048 box:1 sleep 1000 >/dev/null
        cd /sys/fs/cgroup$(p inspect -f '{{.State.CgroupPath}}' c); grep . cpu.weight container/{memory.max,memory.low,cpu.max,pids.max}; cd "$DIR"
        p rm -f -t 0 c >/dev/null
        # Whether it says why differs: systemd is often faster to take the group away than podman is to look, with crun as well.
        code=0; p run --name c --network none --memory 32m --memory-swap 32m box:1 sh -c 'dd if=/dev/zero of=/dev/shm/x bs=1048576 count=50 2>/dev/null' || code=$?
        echo $code; p rm c >/dev/null
        "#,
    );
    let limits = "cpu.weight:79\ncontainer/memory.max:67108864\ncontainer/memory.low:33554432\ncontainer/cpu.max:50000 100000\ncontainer/pids.max:20\n";
    assert_eq!(seen, format!("{limits}137\n"));
}
