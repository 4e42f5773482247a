//! What a container wrote comes back as it was.

use crate::harness::{World, eventually};

#[test]
fn both_streams_and_the_end_of_following() {
    let world = World::new();
    world
        .sh("sheep-run run --name talk -d minimal sh -c 'echo out; echo err >&2; printf tail'; sheep-run wait talk")
        .ok();
    let outcome = world.sh("sheep-run logs talk");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\ntail", "err\n"));
    assert_eq!(world.sh("sheep-run logs -f talk 2>/dev/null").ok(), "out\ntail", "-f ends with the container");
    let line = world.sh("sheep-run logs --timestamps talk 2>/dev/null | head -n 1").ok();
    assert!(line.starts_with("20") && line.ends_with("Z out"), "{line}");
    let id = world.sh("sheep-run inspect --print id talk").ok();
    let keys = world.sh(&format!("jq -c keys_unsorted data/containers/{id}/log | sort -u")).ok();
    assert_eq!(keys, "[\"time\",\"stream\",\"log\",\"partial\"]\n[\"time\",\"stream\",\"log\"]");
    world.sh("sheep-run rm talk").ok();
    world.sh("sheep-run run --name slow -d minimal sh -c 'for i in 1 2 3; do echo $i; sleep 0.3; done'").ok();
    assert_eq!(world.sh("sheep-run logs -f slow").ok(), "1\n2\n3");
    world.sh("sheep-run wait slow; sheep-run rm slow").ok();
    world.assert_nothing_left();
}

#[test]
fn any_bytes_in_any_number() {
    let world = World::new();
    let make = "i=0; while [ $i -lt 2000 ]; do echo \"line $i of the log\"; i=$((i+1)); done; head -c 100000 /dev/zero | tr \"\\\\0\" x; echo; printf \"\\\\377\\\\376\\\\001\\\\000\\n\"";
    for (name, flags) in [("bg", "-d"), ("fg", "")] {
        let outcome = world.sh(&format!("sheep-run run --name {name} {flags} minimal sh -c '{make}' >direct; sheep-run wait {name}; sheep-run logs {name} >logged"));
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        world.sh(&format!("sh -c '{make}' >want; cmp want logged")).ok();
    }
    world.sh("cmp want direct").ok();
    let id = world.sh("sheep-run inspect --print id bg").ok();
    assert_eq!(
        world.sh(&format!("jq -r 'select(.log|type==\"object\").log|keys[0]' data/containers/{id}/log")).ok(),
        "base64"
    );
    let longest = world
        .sh(&format!("jq 'select(.log|type==\"string\").log|length' data/containers/{id}/log | sort -n | tail -n 1"))
        .ok();
    assert_eq!(longest, "16384", "a long line is cut in pieces");
    world.sh("sheep-run rm bg fg").ok();
    world.assert_nothing_left();
}

#[test]
fn a_corrupt_line_costs_that_line() {
    let world = World::new();
    world.sh("sheep-run run --name c minimal sh -c 'echo one; sleep 0.05; echo two'").ok();
    let id = world.sh("sheep-run inspect --print id c").ok();
    world
        .sh(&format!(
            "sed -i '1a rubbish {{' data/containers/{id}/log && printf '{{\"time\"' >>data/containers/{id}/log"
        ))
        .ok();
    let outcome = world.sh("sheep-run logs c");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "one\ntwo\n"));
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    world.sh("sheep-run rm c").ok();
    world.assert_nothing_left();
}

#[test]
fn a_reader_that_leaves() {
    let world = World::new();
    assert_eq!(world.sh("sheep-run run --name y minimal yes | head -n 1").ok(), "y", "the program ends too");
    eventually("it has ended", || world.field("y", ".container.status") == "\"stopped\"");
    let outcome = world.sh("set -o pipefail; sheep-run logs y | head -n 1; sheep-run ps -a | head -n 0");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    world.sh("sheep-run rm y").ok();
    world.sh("sheep-run run --rm --name n minimal true").ok();
    world.assert_nothing_left();
}
