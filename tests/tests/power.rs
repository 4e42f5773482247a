//! Simulated power cuts while an image comes in and while one is unpacked. The whole runs on a file system in a file, which is
//! cloned in an instant (by reflink) while the command works; the clone has what the disk had at that moment. It is then mounted
//! in its place, and looked at in a boot of another id.
//!
//! `SHEEP_CUTS` says how many, where more are wanted than each run has time for.

use crate::harness::World;

/// Files of many sizes, so that some are on the disk when others are not; and another program that syncs a file of its own all
/// the time, which makes names durable and not the content of other files.
const SETUP: &str = r#"
set -e
mkdir memory shelf disk want
mount -t tmpfs none memory
truncate -s 3g memory/xfs && mkfs.xfs -q -m reflink=1 memory/xfs && mount -o loop memory/xfs shelf
for i in $(seq 300); do head -c $((i * 61)) /dev/urandom > want/$i; done
for i in 1 2 3 4; do head -c 3000000 /dev/urandom > want/big$i; done
tar -C want -czf t.tgz .
truncate -s 320m shelf/base && mkfs.$KIND -q shelf/base && mount -o $OPTIONS shelf/base disk
export SHEEP_DATA_DIR=$PWD/disk/data
sheep-images ls
if [ "$VERB" = unpack ]; then sheep-images import x t.tgz --print digest; rm -r disk/data/layers/sha256/*; fi
sync -f disk && umount_disk
"#;

/// A loop device, or who waits for a disk, may hold it for a moment.
const UMOUNT: &str = "umount_disk() { for i in $(seq 100); do umount ${1-disk} 2>/dev/null && return; sleep 0.1; done; umount ${1-disk}; }";

const CUT: &str = r#"
set -e
export SHEEP_DATA_DIR=$PWD/disk/data
echo 11111111-2222-3333-4444-555555555555 > boot
most=100000
done=0 torn=0
# Nothing outlives a failure.
trap 'kill $others 2>/dev/null || true' EXIT
for round in $(seq $CUTS); do
    # New files: a loop device may hold the old ones still.
    rm -f shelf/run shelf/cut
    cp --reflink=always shelf/base shelf/run
    mount -o $OPTIONS shelf/run disk
    ( while [ -e disk/data ]; do dd if=/dev/zero of=disk/other bs=1 count=1 conv=notrunc,fsync status=none; done ) &
    others=$!
    sheep-images $COMMAND >/dev/null &
    command=$!
    sleep 0.$(printf %06d $(( (RANDOM * 32768 + RANDOM) % most )))
    cp --reflink=always shelf/run shelf/cut
    # About as many cuts before the end of the command as after it: the disk is behind.
    if kill -0 $command 2>/dev/null; then most=$((most * 11 / 10)); else most=$((most * 10 / 11)); fi
    wait $command
    kill $others && wait $others || true
    # What waits for the disk must not meet the next disk.
    for i in $(seq 100); do ls disk/data/layers/sha256/.unsynced-* >/dev/null 2>&1 || break; sleep 0.05; done
    umount_disk
    mount -o $OPTIONS shelf/cut disk
    if ls disk/data/layers/sha256/.unsynced-* >/dev/null 2>&1; then torn=$((torn + 1)); fi
    unshare -m sh -e -c '
        mount --bind boot /proc/sys/kernel/random/boot_id
        test -z "$(sheep-images ls --json 2>&1 >/dev/null)"
        if sheep-images ls --json | grep -q .; then
            layer=$(sheep-images unpack x | jq -r ".image.layers[0].path")
            rsync -aHAXn --delete --checksum --itemize-changes want/ "$layer/" > differs
            test ! -s differs
            echo whole > result
        else
            test -z "$(ls disk/data/images/blobs/sha256 disk/data/layers/sha256 | grep -v : )"
            echo none > result
        fi
        for i in $(seq 100); do ls disk/data/layers/sha256/.unsynced-* >/dev/null 2>&1 || break; sleep 0.05; done
    ' || { echo "cut $round: $(cat differs 2>/dev/null | head -5)"; find disk/data -ls; exit 1; }
    if [ "$(cat result)" = whole ]; then done=$((done + 1)); fi
    umount_disk
done
echo "$KIND, $COMMAND: $CUTS cuts, the image there after $done, a layer marked after $torn" >&2
umount_disk shelf && umount_disk memory
"#;

fn cuts(kind: &str, command: &str) {
    let world = World::root();
    let cuts = std::env::var("SHEEP_CUTS").unwrap_or_else(|_| "10".to_owned());
    let verb = command.split(' ').next().unwrap_or_default();
    // All clones of an XFS have one id.
    let options = if kind == "xfs" { "loop,nouuid" } else { "loop" };
    let before = format!("KIND={kind} OPTIONS={options} VERB={verb} COMMAND='{command}' CUTS={cuts}; {UMOUNT}");
    world.sh(&format!("{before}; {SETUP}")).ok();
    let out = world.sh(&format!("{before}; {CUT}"));
    eprint!("{}", out.stderr);
    out.ok();
}

#[test]
fn an_import_on_ext4() {
    cuts("ext4", "import x t.tgz");
}

#[test]
fn an_import_on_xfs() {
    cuts("xfs", "import x t.tgz");
}

#[test]
fn an_unpack_on_ext4() {
    cuts("ext4", "unpack x");
}

#[test]
fn an_unpack_on_xfs() {
    cuts("xfs", "unpack x");
}
