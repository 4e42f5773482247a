# A machine with systemd: machine.sh DIR SCRIPT, as root. The script is a service of it; its output is in DIR/out and DIR/err, and its
# exit code is this one's.
#
# systemd is process 1 of namespaces of its own, its control groups are a child of the host's cgroup2 tree, alone at /sys/fs/cgroup,
# and its units are the few that are written here; so everything is gone when the script has ended, however it has ended.
# shellcheck shell=bash source=/dev/null disable=SC2154
set -eu
export DIR=$1 SCRIPT=$2

inside() {
    mount -t proc proc /proc
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # As systemd has it that is the first of a machine.
    mount --make-rshared /
    for place in /run /var/lib/containers /var/tmp; do
        mkdir -p "$place"
        mount -t tmpfs -o mode=755 tmpfs "$place"
    done
    chmod 1777 /var/tmp
    local units=/run/units
    mkdir -p $units /run/none /run/dbus
    mount --bind /run/none /usr/lib/systemd/system-generators
    cat >$units/test.target <<END
[Unit]
Wants=test.service
END
    cat >$units/test.service <<END
[Unit]
Wants=dbus.socket
After=dbus.socket
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash -eu $SCRIPT
StandardOutput=file:$DIR/out
StandardError=file:$DIR/err
Environment=DIR=$DIR PATH=/usr/sbin:/usr/bin:/sbin:/bin
END
    printf '[Unit]\n' | tee $units/sysinit.target >$units/basic.target
    cat >$units/dbus.socket <<END
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
    cat >$units/dbus.service <<END
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
END
    # A user's own systemd.
    cat >$units/user@.service <<END
[Service]
Type=notify
User=%i
Slice=user.slice
ExecStart=/lib/systemd/systemd --user --unit=test.target --log-target=console
Environment=XDG_RUNTIME_DIR=/run/user/%i SYSTEMD_UNIT_PATH=$units/user
StandardOutput=file:$DIR/user
StandardError=file:$DIR/user
Delegate=yes
END
    mkdir $units/user
    printf '[Unit]\n' >$units/user/basic.target
    printf '[Unit]\nWants=dbus.socket\nAfter=dbus.socket\n' >$units/user/test.target
    printf '[Socket]\nListenStream=%%t/bus\n' >$units/user/dbus.socket
    printf '[Service]\nType=notify\nNotifyAccess=main\nExecStart=%s\n' \
        '/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only' >$units/user/dbus.service
    # The group that has children must have no processes; systemd sees to those that it can see.
    touch "$DIR/up"
    while grep -qx 0 /sys/fs/cgroup/cgroup.procs; do sleep 0.01; done
    # Beside those that are begun meanwhile, and what is set of them.
    export container=sheep SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:$units
    exec /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no
}

if [ "${3-}" = inside ]; then
    inside
fi
. "$DIR/group.sh" sheep-systemd
# The groups of the tree get what controllers there are.
if controllers=$(sed 's/^./+&/; s/ / +/g' "$tree/cgroup.controllers") && [ -n "$controllers" ]; then
    echo "$controllers" >"$tree/cgroup.subtree_control"
fi
trap '[ -z "${patience-}" ] || pkill -KILL -P "$patience" || true; end' EXIT
rm -f "$DIR/up"
# The group is entered first: the namespace begins where its maker is.
sh -c 'echo $$ >"$1"/cgroup.procs; shift; exec "$@"' sh "$group" \
    unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child --propagation private bash "$0" "$DIR" "$SCRIPT" inside >"$DIR/log" 2>&1 &
machine=$!
until [ -e "$DIR/up" ] || ! kill -0 $machine 2>/dev/null; do sleep 0.01; done
echo $machine >"$tree$(sed -n 's/^0:://p' /proc/self/cgroup)/cgroup.procs"
# Not for ever. In the background, since a wait can be interrupted.
(sleep 240 && echo "not done after 240 s" >>"$DIR/log" && kill -KILL $machine) 2>/dev/null &
patience=$!
wait $machine
