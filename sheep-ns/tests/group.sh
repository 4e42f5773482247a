# A control group in the host's cgroup2 tree, $group, for a machine of its own; it and all in it are gone when the script that sources
# this has ended, however it has ended. $1 is what its name begins with.
# shellcheck shell=bash
tree=/sys/fs/cgroup
[ ! -e $tree/unified ] || tree=$tree/unified
group=$tree/$1-$$
mkdir "$group"
end() {
    echo 1 >"$group/cgroup.kill"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        ! find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || break
        sleep 0.05
    done
}
trap end EXIT
trap 'exit 130' INT TERM
