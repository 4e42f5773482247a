//! What the teaching runtime got wrong when it was run, and must stay right here.

use std::path::Path;

use crate::harness::World;

#[test]
fn a_bare_command_is_looked_up_and_named_when_absent() {
    let world = World::root().with_image();
    assert_eq!(world.sh("sheep-run run --rm minimal echo found").ok(), "found");
    world.sh("sheep-run run --rm minimal nosuchcommand").fails(127, "nosuchcommand");
}

#[test]
fn the_image_has_its_libraries_and_a_size() {
    let world = World::root().with_image();
    assert_eq!(world.sh("sheep-run run --rm minimal sh -c 'ls / | sort | head -n 1; echo a b | cut -d\" \" -f2; seq 3 | tail -n 1'").ok().lines().last(), Some("3"));
    assert_eq!(world.sh("sheep-images inspect minimal | jq '.image.layers[0].size > 1000000'").ok(), "true");
}

#[test]
fn the_container_is_confined() {
    let world = World::root().with_image();
    let out = world
        .sh("sheep-run run --rm minimal sh -c 'grep CapEff /proc/self/status | cut -f2; grep NoNewPrivs /proc/self/status | cut -f2; stat -c %a /dev/null; ls -d /dev/pts /dev/shm; touch /sys/x 2>/dev/null || echo sys; (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo proc; ls /proc | grep -c \"^[0-9]\"; ls /dev | wc -l'")
        .ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..7], ["00000000a80425fb", "1", "666", "/dev/pts", "/dev/shm", "sys", "proc"], "{out}");
    assert!(lines[7].parse::<u32>().unwrap() <= 4, "only its own processes: {out}");
}

#[test]
fn import_keeps_what_the_archive_says() {
    let world = World::root();
    world.sh("mkdir t && cp /bin/true t/suid && chown 1234:4321 t/suid && chmod 4755 t/suid && mknod t/dev c 1 3 && touch -d '2001-02-03 04:05:06.789' t/suid && mkfifo t/pipe && tar -C t --format=pax -cf t.tar .").ok();
    let path = world.sh("sheep-images import t t.tar | jq -r .image.layers[0].path").ok();
    assert!(Path::new(&path).is_dir());
    assert_eq!(
        world
            .sh(&format!("rsync -aHAXn --checksum --itemize-changes t/ {path}/; stat -c '%a %u %g %Y' {path}/suid"))
            .ok(),
        "4755 1234 4321 981173106"
    );
}

#[test]
fn images_are_removed_by_name_and_tag() {
    let world = World::root().with_image();
    world.sh("sheep-images tag minimal other:v1 && sheep-images rm minimal:latest").ok();
    assert_eq!(world.sh("sheep-run run --rm other:v1 echo still").ok(), "still");
    world.sh("sheep-images rm other:v1").ok();
    assert_eq!(world.entries("layers/sha256"), Vec::<String>::new());
}

#[test]
fn a_network_namespace_is_the_containers_own() {
    let world = World::root().with_image();
    let before = world.sh("ls /sys/class/net | sort").ok();
    assert_eq!(
        world.sh("sheep-run run --rm minimal sh -c 'cat /proc/net/dev | grep -c :'").ok(),
        "1",
        "lo and nothing else"
    );
    assert_eq!(world.sh("ls /sys/class/net | sort").ok(), before);
}

#[test]
fn a_program_starts_with_every_signal_at_its_default() {
    let world = World::root().with_image();
    let ignored = world
        .sh("trap '' HUP INT QUIT PIPE; sheep-run run --rm minimal sh -c 'grep SigIgn /proc/self/status | cut -f2'")
        .ok();
    // The real-time signals (33 and up) are the C library's affair.
    assert_eq!(u64::from_str_radix(&ignored, 16).unwrap() & 0x7fff_ffff, 0, "{ignored}");
}
