//! `doctor`: what works here, what does not, and why.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Ran, World, ran, sh};

fn findings(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(findings: &'a [Value], backend: &str) -> &'a Value {
    findings.iter().find(|finding| finding["backend"] == backend).unwrap()
}

#[test]
fn p24_each_backend_is_tried() {
    let world = World::root();
    let found = findings(&world.run(&["doctor", "--json"]));
    for backend in ["kernel", "kernel, userns", "fuse", "copy"] {
        assert_eq!(of(&found, backend)["works"], true, "{found:?}");
    }
    assert_eq!(of(&found, "kernel")["default"], true);
    assert_eq!(found.iter().filter(|finding| finding["default"] == true).count(), 1);
    assert!(of(&found, "btrfs")["remedy"].as_str().unwrap().contains("subvolume"));
    let table = world.run(&["doctor"]).ok().out;
    assert!(table.contains("kernel           works what 'mount' takes here"), "{table}");
    assert!(!table.contains(".doctor-"), "{table}");
    let left = std::fs::read_dir(&world.data)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".doctor"));
    assert_eq!(left.count(), 0);
    world.is_clean();
}

#[test]
fn an_ordinary_users_findings() {
    let world = World::user();
    let found = findings(&world.run(&["doctor", "--json"]));
    assert_eq!(of(&found, "kernel")["works"], false);
    assert_eq!(of(&found, "kernel, userns")["default"], true);
    let fuse = of(&found, "fuse");
    assert!(fuse["works"] == true || fuse["remedy"].as_str().unwrap().contains("/dev/fuse"), "{fuse}");
    world.is_clean();
}

#[test]
fn file_systems_that_share() {
    let world = World::root();
    sh(&format!(
        "cd {}; mkdir fs; truncate -s 512M image; mkfs.btrfs -q image; mount -o loop image fs",
        world.dir.display()
    ));
    let found = findings(&world.run(&["--root", "fs/data", "doctor", "--json"]));
    for backend in ["btrfs", "reflink"] {
        assert_eq!(of(&found, backend)["works"], true, "{found:?}");
    }
    sh(&format!("umount {}/fs", world.dir.display()));
    world.is_clean();
}

#[test]
fn without_user_namespaces_and_on_an_overlay() {
    let world = World::user();
    let dir = world.dir.display();
    let script = format!(
        "mkdir -p {dir}/host && mount --rbind / {dir}/host && exec chroot {dir}/host setpriv --reuid sheeptest --regid sheeptest \
         --clear-groups env SHEEP_DATA_DIR={} {dir}/sheep-overlay doctor --json",
        world.data.display()
    );
    let found = findings(&ran(Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap()));
    let userns = of(&found, "kernel, userns");
    assert_eq!(userns["works"], false);
    assert!(userns["remedy"].as_str().unwrap().contains("chroot"), "{userns}");
    assert_eq!(of(&found, "copy")["default"], true);
    sh(&format!("rmdir {dir}/host"));

    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    let inner = merged.join("data");
    let found = findings(&world.run(&["--root", inner.to_str().unwrap(), "doctor", "--json"]));
    let kernel = of(&found, "kernel");
    assert_eq!(kernel["works"], false);
    assert!(kernel["remedy"].as_str().unwrap().contains("it is overlay"), "{kernel}");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn none_allowed() {
    let world = World::root();
    // In a user namespace that may have none below it.
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces; SHEEP_DATA_DIR={} {} doctor --json",
        world.data.display(),
        crate::harness::BIN
    );
    let found = findings(&ran(Command::new("unshare").args(["-Urm", "sh", "-c", &script]).output().unwrap()));
    let remedy = of(&found, "kernel, userns")["remedy"].as_str().unwrap().to_owned();
    assert!(remedy.contains("max_user_namespaces"), "{remedy}");
    assert_eq!(of(&found, "kernel")["works"], true, "{found:?}");
}
