//! podman 4.3.

use crate::harness::World;

#[test]
fn run_with_each_option() {
    World::new().same(
        r#"
box_image
run() { t podman run --rm --network none "$@"; }
run localhost/box echo hi
run localhost/box sh -c 'echo out; echo err >&2; exit 3'
echo typed | run -i localhost/box cat
printf 'a\nb\n' | run -i localhost/box sh -c 'read a; echo $a; cat | wc -c'
run --user ann localhost/box id
run --user 1000:44 localhost/box id
run --user 4711 localhost/box sh -c 'id; echo $HOME'
run --group-add 55 --user ann localhost/box id
run --workdir /tmp localhost/box pwd
run --workdir /new/dir localhost/box pwd
run --workdir /etc/passwd localhost/box pwd
run --read-only localhost/box sh -c 'touch /x; touch /tmp/x && echo tmp; touch /run/x && echo run'
run --read-only --read-only-tmpfs=false localhost/box sh -c 'touch /x; touch /tmp/x && echo tmp'
run --tmpfs /scratch:size=1m,mode=1777 localhost/box sh -c 'grep " /scratch " /proc/mounts | cut -d" " -f2,3; stat -c %a /scratch; df -k /scratch | tail -1 | tr -s " " | cut -d" " -f2'
mkdir vol vol/sub; echo v > vol/f
run --volume $PWD/vol:/v localhost/box sh -c 'cat /v/f; echo w > /v/w'
t cat vol/w
run --volume $PWD/vol:/v:ro localhost/box sh -c 'cat /v/f; touch /v/x'
run --volume $PWD/vol:/v:nosuid,noexec localhost/box sh -c 'grep " /v " /proc/mounts | cut -d" " -f4 | tr , "\n" | grep ^no'
run --volume $PWD/vol/f:/etc/new/f localhost/box cat /etc/new/f
run --volume named:/n localhost/box sh -c 'touch /n/x; ls /n'
run --volume named:/n:rslave localhost/box ls /n
run --mount type=bind,src=$PWD/vol,dst=/m,ro=true localhost/box touch /m/x
run --mount type=tmpfs,dst=/m,tmpfs-size=64k localhost/box sh -c 'df -k /m | tail -1 | tr -s " " | cut -d" " -f2'
run --env A=1 --env 'B=x y' localhost/box sh -c 'echo $A $B $container $HOME $PATH'
run --hostname farm localhost/box sh -c 'hostname; cat /etc/hostname'
run --pid host localhost/box sh -c '[ $(ls -d /proc/[0-9]* 2>/dev/null | wc -l) -gt 1 ] && [ $$ != 1 ] && echo host'
run --ipc host localhost/box sh -c 'readlink /proc/self/ns/ipc | wc -c'
run --ipc private localhost/box sh -c 'ls /dev/shm; df -k /dev/shm | tail -1 | tr -s " " | cut -d" " -f2'
run --ipc none localhost/box sh -c 'grep -c " /dev/shm " /proc/mounts'
run --shm-size 1m localhost/box sh -c 'df -k /dev/shm | tail -1 | tr -s " " | cut -d" " -f2'
run --uts host localhost/box sh -c '[ "$(hostname)" = "$0" ] && echo same' "$(hostname)"
run --cgroupns host localhost/box sh -c 'cut -c1-20 /proc/self/cgroup | grep 0::'
run --cgroupns private localhost/box sh -c 'grep 0:: /proc/self/cgroup; touch /sys/fs/cgroup/x; grep " /sys/fs/cgroup " /proc/mounts | cut -d" " -f2-4'
run --cap-add NET_ADMIN localhost/box sh -c 'grep Cap /proc/self/status'
run --cap-drop ALL localhost/box grep Cap /proc/self/status
run --cap-drop ALL --cap-add CHOWN --user ann localhost/box grep Cap /proc/self/status
run --cap-add ALL localhost/box sh -c 'mount -t tmpfs x /tmp && echo mounted'
run --security-opt no-new-privileges localhost/box grep NoNewPrivs /proc/self/status
run --device /dev/null:/dev/nix localhost/box sh -c 'ls -l /dev/nix | cut -c1-10; echo x > /dev/nix && echo written'
run --device /dev/zero:/dev/z:r localhost/box sh -c 'head -c 3 /dev/z | wc -c; echo x > /dev/z'
run localhost/box sh -c 'mknod /tmp/d b 1 0 && cat /tmp/d'
run localhost/box sh -c 'cd /dev; stat -c "%A %t:%T %N" * | grep -v core; readlink /dev/fd'
run --ulimit nofile=100:200 --ulimit core=0 localhost/box sh -c 'ulimit -n; ulimit -Hn; ulimit -c'
run --sysctl kernel.shmmax=12345 --sysctl net.ipv4.ip_forward=1 localhost/box sh -c 'cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward'
run --sysctl kernel.nosuch=1 localhost/box true
run --privileged localhost/box sh -c 'grep -E "CapEff|CapBnd|NoNew" /proc/self/status; [ -e /dev/full ] && echo dev; touch /proc/sys/kernel/x; cat /proc/kcore >/dev/null 2>&1 & kill %1; grep -c " /proc/" /proc/mounts'
run --umask 077 localhost/box sh -c umask
run --oom-score-adj 500 localhost/box cat /proc/self/oom_score_adj
run --entrypoint '["sh", "-c"]' localhost/box 'echo entry'
run --stop-signal 9 --annotation a=b --label c=d localhost/box true
run --security-opt mask=/etc/passwd localhost/box cat /etc/passwd
run --security-opt unmask=ALL localhost/box sh -c 'grep -c " /proc/" /proc/mounts'
run --rootfs $PWD/box sh -c 'echo rootfs; ls /etc/group'
run --rootfs $PWD/box:O sh -c 'touch /new; echo overlay'
run --timezone UTC --no-hosts --add-host a:1.2.3.4 localhost/box true
run --preserve-fds 1 localhost/box ls /proc/self/fd 3</etc/hostname
run localhost/box ls /proc/self/fd
run localhost/box sh -c 'cat /proc/self/mountinfo | cut -d" " -f5,6 | sort | grep -v -e /run/ -e /etc/ -e /proc/[akt] -e /sys/[df][ei]'
run localhost/box sh -c 'cat /proc/self/attr/current >/dev/null; cat /proc/self/status | grep -E "Sig(Blk|Ign)|Umask|Groups"'
t podman ps -aq
t podman volume ls -q
"#,
    );
}

#[test]
fn exit_codes() {
    let outcome = World::new().same(
        r#"
box_image
run() { t podman run --rm --network none "$@"; }
run localhost/box true
run localhost/box false
run localhost/box sh -c 'exit 125'
run localhost/box sh -c 'kill -9 $$'
run localhost/box sh -c 'kill -TERM 1; echo alive'
run localhost/box nosuch
run localhost/box /bin/nosuch
run localhost/box /etc/not-executable
run localhost/box /etc
run --volume /nosuch:/x localhost/box true
run --user nobody localhost/box true
run --nosuch localhost/box true
run localhost/nosuch true
run --device /dev/nosuch localhost/box true
podman run -d --network none --name c localhost/box sleep 1000 >/dev/null
ex() { t podman exec "$@"; }
ex c true
ex c false
ex c sh -c 'exit 125'
ex c sh -c 'kill -9 $$'
ex c nosuch
ex c /bin/nosuch
ex c /etc/not-executable
ex c /etc
ex --user nobody c true
ex --workdir /nosuch c true
ex nobody true
t podman create --name bad --network none localhost/box nosuch
t podman start bad
t podman start --attach bad
t podman inspect --format '{{.State.ExitCode}} {{.State.Status}}' bad
t podman run -d --network none --name bad2 localhost/box nosuch
t podman inspect --format '{{.State.ExitCode}} {{.State.Status}}' bad2
t podman rm -f -t 0 -a
"#,
    );
    // What podman makes of the texts.
    assert!(outcome.contains("run --rm --network none localhost/box nosuch\nstderr: command that was not found\nstderr: something\n-> 127"), "{outcome}");
    assert!(
        outcome.contains(
            "run --rm --network none localhost/box /etc\nstderr: permission denied\nstderr: something\n-> 126"
        ),
        "{outcome}"
    );
}

#[test]
fn a_life_in_the_background() {
    World::new().same(
        r#"
box_image
status() { t podman inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' "$@"; }
t podman run -d --network none --name c localhost/box sh -c 'trap "echo term; exit 5" TERM; trap "echo usr1" USR1; trap "echo hup" HUP; echo begun; while :; do sleep 0.1; done'
until_ok says begun podman logs c
status c
t podman kill --signal USR1 c
until_ok says usr1 podman logs c
t podman kill --signal 1 c
until_ok says hup podman logs c
t podman kill --signal NOSUCH c
t podman pause c
status c
t podman exec c true
t podman pause c
t podman unpause c
status c
t podman unpause c
t podman exec c echo again
t podman pause c
t podman kill --signal KILL c
t podman unpause c
t podman wait c
t podman start c
until_ok says begun podman logs --tail 1 c
t podman pause c
t podman stop -t 1 c
t podman unpause c
t podman stop c
t podman logs c
status c
t podman wait c
t podman kill c
t podman stop c
t podman start c
until_ok says begun podman logs --tail 1 c
status c
t podman restart -t 5 c
until_ok says begun podman logs --tail 1 c
t podman kill c
t podman wait c
status c
t podman rm c
t podman inspect c
t podman run -d --network none --name deaf localhost/box sh -c 'trap "" TERM; echo deaf; while :; do sleep 0.1; done'
until_ok says deaf podman logs deaf
t podman stop -t 1 deaf
status deaf
t podman rm deaf
t podman run -d --network none --name gone localhost/box sleep 1000
t podman rm gone
t podman rm -f -t 0 gone
t podman rm -f gone
t podman run -d --network none --name lines localhost/box sh -c 'for i in 1 2 3; do echo $i; done; exit 7'
t podman wait lines
t podman logs --tail 2 lines
status lines
t podman create --name created --network none localhost/box echo started
status created
t podman start --attach created
status created
t podman create --name init --network none localhost/box echo initialised
t podman init init
status init
t podman start --attach init
t podman create --name thrown --network none localhost/box true
t podman init thrown
t podman rm -f thrown
t podman run -d --network none --name change localhost/box sh -c 'echo changed > /etc/new; rm /etc/group; sleep 1000'
until_ok podman exec change test -e /etc/new
t podman diff change
t podman commit -q change localhost/changed
t podman run --rm --network none localhost/changed cat /etc/new
t podman cp change:/etc/new new
t cat new
t podman export -o tar change
t tar -xOf tar etc/new
t podman top change comm
t podman run -d --network none --name check --health-cmd 'test -e /tmp/healthy' --health-interval disable localhost/box sleep 1000
t podman healthcheck run check
t podman exec check touch /tmp/healthy
t podman healthcheck run check
t podman run -d --network none --name again --restart on-failure:2 localhost/box sh -c 'echo ran; exit 1'
until_ok says 2 podman inspect --format '{{.RestartCount}}' again
until_ok says exited podman inspect --format '{{.State.Status}}' again
t podman logs again
t podman rm -f -t 0 -a
t podman ps -aq
t find /sys/fs/cgroup -name 'libpod-*'
"#,
    );
}

#[test]
fn commands_in_a_container() {
    World::new().same(
        r#"
box_image
podman run -d --network none --name c --env OF=container --cap-add NET_ADMIN localhost/box sh -c 'trap exit TERM; while :; do sleep 0.1; done' >/dev/null
ex() { t podman exec "$@"; }
ex c echo hi
ex c sh -c 'echo out; echo err >&2; exit 9'
ex c sh -c 'echo $OF $HOME $PATH $container; pwd; id; tty; grep -E "Cap|NoNew|Groups" /proc/self/status; ls /proc/self/fd'
echo typed | ex -i c cat
ex --env A=1 --env OF=exec c sh -c 'echo $A $OF'
ex --workdir /tmp c pwd
ex --user ann c sh -c 'id; grep Cap /proc/self/status; echo $HOME'
ex --user 12:34 c sh -c 'id; echo $HOME'
ex --user root:video c id
ex --privileged c grep Cap /proc/self/status
ex --preserve-fds 1 c ls /proc/self/fd 3</etc/hostname
ex c sh -c 'grep 0:: /proc/self/cgroup; cat /proc/1/cmdline | tr "\0" " "'
for kind in pid mnt uts ipc net cgroup; do t podman exec c sh -c "[ \$(readlink /proc/self/ns/$kind) = \$(readlink /proc/1/ns/$kind) ] && echo $kind"; done
t on_a_terminal podman exec -it c sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; echo $TERM; exit 4'
t on_a_terminal podman exec -it --user ann c sh -c 'stat -c %u $(tty)'
t on_a_terminal podman run --rm -it --network none localhost/box sh -c 'tty; stty size; ls -l /dev/console | cut -c1; exit 6'
t podman run --rm -t --network none localhost/box sh -c 'tty; echo to the terminal'
t podman exec -t c tty
ex -d c sh -c 'echo $$ > /tmp/detached; exec sleep 1000'
until_ok podman exec c test -s /tmp/detached
ex c sh -c 'cat /proc/$(cat /tmp/detached)/cmdline | tr "\0" " "'
ex -d c nosuch
t on_a_terminal podman exec -dt c sh -c 'tty > /tmp/tty; sleep 1000'
until_ok podman exec c test -s /tmp/tty
ex c cat /tmp/tty
t podman run -d -t --name tty --network none localhost/box sh -c 'tty; trap exit TERM; while :; do sleep 0.1; done'
until_ok says dev podman logs tty
t podman logs tty
t podman stop tty
ex tty true
t podman stop c
ex c true
t podman rm c
t podman rm tty
"#,
    );
}

#[test]
fn namespaces_shared() {
    World::new().same(
        r#"
box_image
podman pod create --share-parent=false --name p --hostname flock --infra-command '/bin/sleep 1000' --infra-image localhost/box --network none >/dev/null
t podman run -d --pod p --name one localhost/box sh -c 'trap exit TERM; while :; do sleep 0.1; done'
t podman run --rm --pod p localhost/box sh -c 'hostname; [ $$ != 1 ] || echo own pid namespace'
shared() { [ "$(podman run --rm --pod p localhost/box readlink /proc/self/ns/$1)" = "$(podman exec one readlink /proc/self/ns/$1)" ]; }
t shared net
t shared ipc
t shared uts
t podman pod stop -t 1 p
t podman pod start p
t podman exec one hostname
t podman pod kill p
t podman pod rm -f -t 0 p
podman pod create --share-parent=false --name q --share pid,net,ipc,uts --infra-command '/bin/sleep 1000' --infra-image localhost/box --network none >/dev/null
t podman run --rm --pod q localhost/box sh -c 'cat /proc/1/cmdline | tr "\0" " "'
t podman pod rm -f -t 0 q
podman run -d --network none --hostname first --name a localhost/box sh -c 'trap exit TERM; while :; do sleep 0.1; done' >/dev/null
t podman run --rm --network container:a localhost/box ip -o link
t podman run --rm --network none --pid container:a localhost/box sh -c 'cat /proc/1/cmdline | tr "\0" " "'
t podman run --rm --network none --ipc container:a localhost/box true
t podman run --rm --network container:a --uts container:a localhost/box hostname
t podman run --rm --network container:a --pid container:a --ipc container:a localhost/box echo three
ip netns add made && ip -n made link add here type veth peer name there
t podman run --rm --network ns:/run/netns/made localhost/box sh -c 'ip -o link | cut -d: -f2 | sort'
t podman run --rm --network host localhost/box ip -o addr show lo
t podman run --rm --network bridge localhost/box sh -c 'ip -o addr show eth0 | grep -c 10.88.; ip route | grep -c default'
t podman run --rm --network none --userns auto:size=1000 localhost/box true
t podman run --rm --network none --uidmap 0:100000:65536 --gidmap 0:100000:65536 localhost/box sh -c 'id; cat /proc/self/uid_map; touch /x; stat -c %u:%g /x; stat -c %u /etc/passwd'
t podman run --rm --network none --uidmap 0:100000:65536 --user ann localhost/box sh -c 'id; touch /tmp/x; stat -c %u:%g /tmp/x'
t podman run -d --network none --name mapped --uidmap 0:100000:65536 localhost/box sh -c 'trap exit TERM; while :; do sleep 0.1; done'
t podman exec mapped sh -c 'id; cat /proc/self/uid_map; grep Cap /proc/self/status'
t podman exec --user ann mapped sh -c 'id; cat /proc/self/uid_map; grep Cap /proc/self/status'
t on_a_terminal podman exec -it mapped tty
t on_a_terminal podman run -it --rm --network none --uidmap 0:100000:65536 localhost/box sh -c 'tty; stat -c %u $(tty)'
podman rm -f -t 0 -a >/dev/null 2>&1 || true # with runc podman now and then finds a mount busy
"#,
    );
}
