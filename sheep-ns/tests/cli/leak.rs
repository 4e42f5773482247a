//! After a thousand starts everything is as it was before the first.

use std::fs;

use crate::harness::{World, groups, processes};

/// What a start could leave: mounts, control groups, files of the state, processes.
fn leavings(world: &World, marker: &str) -> (usize, Vec<String>, Vec<String>, Vec<i32>) {
    let place = world.dir.display().to_string();
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&place)).count();
    let trees = ["/sys/fs/cgroup/sheep", "/sys/fs/cgroup/unified/sheep"];
    let names = trees.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    let groups = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let groups = groups.filter(|name| name.starts_with(marker)).collect();
    (mounts, groups, world.leftovers(), processes(marker))
}

#[test]
fn a_thousand_starts() {
    let world = World::new();
    let bundle = world.path("bundle");
    // The marker is in each command line: of sheep-ns as the id, of what it runs as an argument.
    world.bundle("exec true leak-inside", |_| {});
    world.ok(&["run", "--bundle", &bundle, "leak-0"]);
    let before = leavings(&world, "leak-");
    assert_eq!(before, (0, vec![], vec![], vec![]));
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let (world, bundle) = (&world, &bundle);
            scope.spawn(move || {
                for number in 0..450 {
                    let id = format!("leak-{lane}-{number}");
                    let status = world.ns(&["run", "--bundle", bundle, &id]).status().unwrap();
                    assert!(status.success(), "{id}: {status}");
                }
                for number in 450..500 {
                    // One is started, the other is thrown away before.
                    let id = format!("leak-{lane}-{number}");
                    world.create(&id);
                    if number % 2 == 0 {
                        world.ok(&["start", &id]);
                    }
                    world.ok(&["delete", "--force", &id]);
                }
            });
        }
    });
    assert_eq!(leavings(&world, "leak-"), before);
}

#[test]
fn hundreds_of_commands_in_one_container() {
    let world = World::new();
    world.bundle("exec sleep 1000", |_| {});
    world.create("many-0");
    world.ok(&["start", "many-0"]);
    let pid = world.state("many-0")["pid"].as_i64().unwrap();
    let seen = || {
        let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count();
        let group = groups("many-0").first().map(|dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap());
        (count("fd"), count("task"), mounts, group, world.leftovers().len())
    };
    let before = seen();
    for _ in 0..100 {
        world.ok(&["exec", "many-0", "true"]);
        world.ok(&["exec", "--detach", "many-0", "true"]);
        assert_eq!(world.run(&["exec", "many-0", "nosuch"]).code, 127);
    }
    crate::harness::wait("the ends of those in the background", || seen() == before);
}
