//! How far a command is: told to people on a terminal, to programs that ask for it, and to nobody else.

use crate::harness::World;

/// An archive that comes slowly enough that there is something to tell.
const SLOW: &str = "(for i in 1 2 3 4 5 6; do head -c 3000000 /dev/urandom; sleep 0.15; done) > big; mkdir t; mv big t; tar -cf t.tar -C t .; \
    slow() { (head -c 9000000; sleep 1; cat) < t.tar; }";

#[test]
fn lines_of_json_for_who_asks() {
    let world = World::root();
    let out = world.sh(&format!("{SLOW}; slow | sheep-images import x - --progress json --print digest"));
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(out.stdout.starts_with("sha256:"));
    let lines: Vec<serde_json::Value> = out.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let bytes: Vec<u64> = lines.iter().map(|line| line["progress"]["bytes"].as_u64().unwrap()).collect();
    assert!(bytes.len() > 1 && bytes.is_sorted(), "{bytes:?}");
    let size = std::fs::metadata(world.dir.join("t.tar")).unwrap().len();
    assert_eq!(bytes.last(), Some(&size));
    assert!(lines.iter().all(|line| line["progress"]["name"] == "-" && line["progress"]["total"].is_null()));

    let out = world.sh("rm -r data/layers/sha256/*; sheep-images unpack x --progress json --print digest");
    let last: serde_json::Value = serde_json::from_str(out.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(last["progress"]["total"], size);
    assert!(last["progress"]["name"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn bars_on_a_terminal_only() {
    let world = World::root();
    let on_terminal = |more: &str| {
        let inner =
            "(head -c 9000000; sleep 1; cat) < t.tar | sheep-images import x - --print digest $MORE 2>&1 >digest";
        world.write("inner", format!("stty cols 100 </dev/tty; {inner}"));
        world.sh(&format!("{SLOW}; rm -r t; MORE='{more}' TERM=xterm script -qec 'sh inner' /dev/null"))
    };
    assert!(on_terminal("").ok().contains("MiB/s"));
    assert_eq!(on_terminal("--progress none").ok(), "");
    let piped = world.sh(&format!("{SLOW}; slow | sheep-images import x - --print digest"));
    assert_eq!((piped.code, piped.stderr.as_str()), (0, ""));
}
