# shellcheck shell=bash
# What the scripts of a machine are written in.
export CONTAINERS_CONF=$DIR/containers.conf PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/work LC_ALL=C

# A root directory that is this machine's alone.
cp -a "$DIR/box" box

# t COMMAND...: one step. What is compared is its output, its exit code, and what its errors say that engines act on.
t() {
    local code=0 word=
    printf '== %s\n' "$*"
    "$@" >out 2>err || code=$?
    # Names that are chosen anew each time.
    sed -E 's/\b[0-9a-f]{64}\b/ID/g; s/\b[0-9a-f]{12}\b/ID/g; s/\r$//' out
    # podman cannot enable controllers that are not there, and says so with every runtime; runc warns where it was too late to kill.
    grep -v -e 'Failed to add conmon to cgroupfs sandbox cgroup' -e 'level=warning msg="os: process already finished"' err >err.rest || true
    if [ -s err.rest ]; then
        for word in 'command that was not found' 'permission denied' 'no such container' 'state improper'; do
            ! grep -qi "$word" err.rest || echo "stderr: $word"
        done
        echo 'stderr: something'
    fi
    printf -- '-> %s\n' "$code"
    # For whoever looks into a failure; not compared.
    { printf -- '-- %s\n' "$*"; cat err.rest; } >&2
}

# until_ok COMMAND...: waits until it succeeds.
until_ok() {
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.05
    done
    echo "in vain: $*"
}

# says WORDS COMMAND...: whether the output of the command has the words.
says() {
    local words=$1
    shift
    [[ $("$@" 2>&1) == *"$words"* ]]
}

# on_a_terminal COMMAND...: its stdin, stdout and stderr are a terminal, where nobody types.
mkfifo keyboard
exec 9<>keyboard
on_a_terminal() {
    SHELL=/bin/bash script -qec "$(printf '%q ' "$@")" /dev/null <&9 | tr -d '\0' | sed '/Failed to add conmon/d; /resize pty/d'
}
set -o pipefail

podman() {
    command podman --runtime "$RUNTIME" "$@"
}
export -f podman

# box_image: the image localhost/box for podman and buildah.
box_image() {
    command podman import -q "$DIR/box.tar" localhost/box >/dev/null
}
