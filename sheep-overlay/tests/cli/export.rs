//! `export`: the layers are read by another tool, and give the merged view.

use std::fs;
use std::process::Command;

use crate::harness::{World, sh};

fn out(script: &str) -> String {
    let done = Command::new("bash").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// All that a layer carries, of a tree: a line an entry, and the contents.
fn picture(dir: &str) -> String {
    let list = "find . -mindepth 1 -printf '%p %y %m %U %G %n %l' \\( -type f -printf ' %s %T@' -o -type c -printf ' %T@' -o -true \\) -printf '\\n'";
    out(&format!(
        "cd {dir}; {list} | sed 's/ d \\(....*\\) [0-9]* $/ d \\1/' | LC_ALL=C sort; find . -type f -exec md5sum {{}} + | LC_ALL=C sort; getfattr -dR -h -m- . 2>/dev/null"
    ))
}

const LOWER: &str = "mkdir -p d/sub whole/in same; echo a > d/a; echo b > d/sub/b; echo c > whole/in/c; echo gone > gone; ln -s d link; echo file > tolink; \
    echo x > moved; echo plain > same/plain; ln same/plain same/hard; chown 5:6 same; chmod 750 same; touch -d @1000000000.123456789 d/a";
const DEEDS: &str = "echo changed >> d/a; rm gone; rm -r whole; mkdir whole; echo n > whole/new; rm link; mkdir link; chmod 700 link; rm tolink; ln -s /etc tolink; \
    mv moved here; chown 7:8 d/sub; chmod 4755 d/sub/b; setfattr -n user.sheep -v woolly d/sub/b; mkfifo fifo; mknod dev c 1 3; \
    echo long > same/$(printf 'n%.0s' {1..150}); echo uml > same/$(printf '\\303\\244'); ln same/$(printf '\\303\\244') same/second; \
    touch -d @1500000000.5 here; setcap cap_net_raw+ep d/sub/b; mkdir -p deep/$(printf 'd%.0s' {1..90})/$(printf 'e%.0s' {1..90}); chown 3000000:3000000 fifo";

#[test]
fn umoci_reads_our_layers() {
    for backend in ["kernel", "copy"] {
        let world = World::root();
        let dir = world.dir.display();
        out(&format!("mkdir {dir}/low; cd {dir}/low; {LOWER}"));
        let merged = world.run(&["mount", "--backend", backend, "--id", "ov", "--print", "merged", "low"]).ok().out;
        out(&format!("cd {}; {DEEDS}", merged.trim_end()));
        let export = |file: &str| {
            let done = world.command(&["export", "ov"]).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            fs::write(world.dir.join(file), done.stdout).unwrap();
        };
        export("layer.tar");
        out(&format!(
            "cd {dir}; tar -C low --format=posix -cf base.tar .; umoci init --layout img; umoci new --image img:t; \
             umoci raw add-layer --image img:t base.tar; umoci raw add-layer --image img:t layer.tar; umoci unpack --image img:t bundle"
        ));
        assert_eq!(picture(&format!("{dir}/bundle/rootfs")), picture(merged.trim_end()), "{backend}");
        // The same changes, the same bytes; mounted or not.
        world.run(&["umount", "--keep", "ov"]).ok();
        export("again.tar");
        assert!(
            fs::read(world.dir.join("layer.tar")).unwrap() == fs::read(world.dir.join("again.tar")).unwrap(),
            "{backend}"
        );
        let early = world.command(&["export", "ov"]).env("SOURCE_DATE_EPOCH", "1400000000").output().unwrap();
        fs::write(world.dir.join("early.tar"), early.stdout).unwrap();
        let times = out(&format!(
            "cd {dir}; TZ=UTC tar --full-time -tvf early.tar | awk '$4 > \"2014-05-13\"' | grep -v ' 2014-05-13 16:53:20 ' | wc -l"
        ));
        assert_eq!(times, "0\n");
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn p40_what_a_layer_cannot_carry_is_named() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join(".wh.a"), "").unwrap();
    world.run(&["export", "ov"]).fails(1, &["/.wh.a", "cannot carry"]);
    fs::remove_file(merged.join(".wh.a")).unwrap();
    sh(&format!("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{}/s\")'", merged.display()));
    let ran = world.run(&["export", "ov"]);
    ran.fails(1, &["/s", "a socket"]);
    assert_eq!(ran.out, "", "nothing is written before it is known to be whole");
    fs::remove_file(merged.join("s")).unwrap();
    let ran = world.command(&["export", "ov"]).env("SOURCE_DATE_EPOCH", "soon").output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    world.run(&["export", "nothing"]).fails(3, &["nothing"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn an_ordinary_users_layer_has_the_owners_that_he_sees() {
    let world = World::user();
    let low = world.lower("low", &["a", "b"]);
    sh(&format!("chown -R sheeptest: {}", low.display()));
    world.run(&["mount", "--id", "ov", "low"]).ok();
    world.run(&["exec", "ov", "sh", "-c", "echo x > a; rm b; mkdir d"]).ok();
    let list = out(&format!(
        "cd {}; SHEEP_DATA_DIR={} setpriv --reuid sheeptest --regid sheeptest --clear-groups ./sheep-overlay export ov | tar -tvf - | awk '{{print $1, $2, $6}}'; id -u sheeptest",
        world.dir.display(),
        world.data.display()
    ));
    let id = list.lines().last().unwrap();
    let want = format!("-rw------- 0/0 .wh.b\n-rw-r--r-- {id}/{id} a\ndrwxr-xr-x {id}/{id} d/\n{id}\n");
    assert_eq!(list, want);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}
