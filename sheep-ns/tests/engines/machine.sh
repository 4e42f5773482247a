# A machine of its own for one engine and one runtime: machine.sh DIR RUNTIME SCRIPT, as root. The script gets RUNTIME.
#
# Mounts, network, processes and control groups are in namespaces of their own, and all that engines write to fixed places is
# on file systems that nobody else sees; so everything is gone when the script has ended, however it has ended. The control
# groups are a child of the host's cgroup2 tree, alone at /sys/fs/cgroup as on a machine without version 1.
# shellcheck shell=bash source=/dev/null disable=SC2154
set -eu
export DIR=$1 RUNTIME=$2 SCRIPT=$3

inside() {
    mount -t proc proc /proc
    for place in /run /dev/shm /var/lib/containers /var/lib/cni /var/lib/containerd /var/tmp /opt; do
        # Not on a file system that is hidden: an engine may not be installed.
        mkdir -p "$place"
        mount -t tmpfs -o mode=755 tmpfs "$place"
    done
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # Where there are controllers, the group that has children has no processes.
    mkdir /sys/fs/cgroup/test
    echo $$ >/sys/fs/cgroup/test/cgroup.procs
    ip link set lo up
    mkdir /run/work
    cd /run/work
    . "$DIR/steps.sh"
    . "$SCRIPT"
}

if [ "${4-}" = inside ]; then
    inside
    exit
fi
. "$DIR/group.sh" sheep-engines
# The group is entered first: the namespace begins where its maker is. In the background, since a wait can be interrupted.
sh -c 'echo $$ >"$1"/cgroup.procs; shift; exec "$@"' sh "$group" timeout --signal=KILL 900 \
    unshare --mount --net --pid --cgroup --fork --kill-child --propagation private bash "$0" "$DIR" "$RUNTIME" "$SCRIPT" inside &
machine=$!
if [ -n "$(cat "$group/cgroup.controllers")" ]; then
    # Those who wait for the machine make room, too.
    until [ -d "$group/test" ] || ! kill -0 $machine 2>/dev/null; do sleep 0.05; done
    mkdir "$group/outer"
    # Read before it is changed.
    mapfile -t processes <"$group/cgroup.procs"
    for process in "${processes[@]}"; do echo "$process" >"$group/outer/cgroup.procs" || true; done
fi
wait $machine
