//! `export`: the layers are read by another tool, and give the merged view.

use std::fs;
use std::process::Command;

use crate::harness::{World, kernel, names_in, sh, until};

fn out(script: &str) -> String {
    let done = Command::new("bash").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// All that a layer carries, of a tree: a line an entry, and the contents.
fn picture(dir: &str) -> String {
    let list = "find . -mindepth 1 -printf '%p %y %m %U %G %n %l' \\( -type f -printf ' %s %T@' -o -type c -printf ' %T@' -o -true \\) -printf '\\n'";
    out(&format!(
        "cd {dir}; {list} | sed 's/ d \\(....*\\) [0-9]* $/ d \\1/' | LC_ALL=C sort; find . -type f -exec md5sum {{}} + | LC_ALL=C sort; getfattr -dR -h -m '^(security|system|trusted\\.[^o]|user\\.[^o])' . 2>/dev/null"
    ))
}

const LOWER: &str = "mkdir -p d/sub whole/in same; echo a > d/a; echo b > d/sub/b; echo c > whole/in/c; echo gone > gone; ln -s d link; echo file > tolink; \
    echo x > moved; echo plain > same/plain; ln same/plain same/hard; chown 5:6 same; chmod 750 same; touch -d @1000000000.123456789 d/a";
const DEEDS: &str = "echo changed >> d/a; rm gone; rm -r whole; mkdir whole; echo n > whole/new; rm link; mkdir link; chmod 700 link; rm tolink; ln -s /etc tolink; \
    mv moved here; chown 7:8 d/sub; chmod 4755 d/sub/b; setfattr -n user.sheep -v woolly d/sub/b; mkfifo fifo; mknod dev c 1 3; \
    echo long > same/$(printf 'n%.0s' {1..150}); echo uml > same/$(printf '\\303\\244'); ln same/$(printf '\\303\\244') same/second; \
    touch -d @1500000000.5 here; setcap cap_net_raw+ep d/sub/b; mkdir -p deep/$(printf 'd%.0s' {1..90})/$(printf 'e%.0s' {1..90}); chown 3000000:3000000 fifo";

/// The tools that the tests below read our layers with.
fn need(tools: &[&str]) {
    for tool in tools {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output().unwrap();
        assert!(found.status.success(), "{tool} is not installed: scripts/setup test installs what the tests need");
    }
}

#[test]
fn umoci_reads_our_layers() {
    need(&["umoci"]);
    let mut layers = Vec::new();
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
        layers.push(fs::read(world.dir.join("early.tar")).unwrap());
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
    assert!(layers[0] == layers[1], "the same deeds, in overlays of two kinds and at two times");
}

/// An image of two layers, a lower and our export of the changes, as `img:t` in the world's directory.
fn image(world: &World) -> std::path::PathBuf {
    let dir = world.dir.display();
    out(&format!("mkdir {dir}/low; cd {dir}/low; {LOWER}"));
    let merged = world.mount("ov", &["low"]);
    out(&format!("cd {}; {DEEDS}", merged.display()));
    let layer = world.command(&["export", "ov"]).output().unwrap();
    assert!(layer.status.success(), "{}", String::from_utf8_lossy(&layer.stderr));
    fs::write(world.dir.join("layer.tar"), layer.stdout).unwrap();
    out(&format!(
        "cd {dir}; tar -C low --format=posix -cf base.tar .; umoci init --layout img; umoci new --image img:t; \
         umoci raw add-layer --image img:t base.tar; umoci raw add-layer --image img:t layer.tar"
    ));
    merged
}

#[test]
fn podman_reads_our_layers_and_gives_them_back() {
    need(&["umoci", "podman"]);
    let world = World::root();
    let merged = image(&world);
    let podman = format!("podman --root {0}/store --runroot {0}/run --storage-driver overlay", world.dir.display());
    // What is pulled is what the overlay shows; what podman saves has the layer's bytes again, which it checks itself.
    let mounted = out(&format!(
        "cd {}; {podman} pull -q oci:img:t >/dev/null; id=$({podman} images -q); {podman} image mount $id; \
         {podman} save -q --format oci-dir -o saved $id >&2",
        world.dir.display()
    ));
    assert_eq!(picture(mounted.trim_end()), picture(&merged.display().to_string()));
    let saved = out(&format!(
        "cd {}; skopeo inspect --config oci:saved | tr -d ' \\n' | grep -o 'sha256:[0-9a-f]*' | tail -1; sha256sum < layer.tar | cut -c 1-64",
        world.dir.display()
    ));
    let sums: Vec<&str> = saved.lines().collect();
    assert_eq!(sums[0], format!("sha256:{}", sums[1]));
    out(&format!(
        "cd {}; {podman} image umount -a >/dev/null; umount -l store/overlay 2>/dev/null || true",
        world.dir.display()
    ));
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn podman_runs_an_image_with_our_layer() {
    need(&["umoci", "podman", "crun", "busybox"]);
    let world = World::root();
    let dir = world.dir.display();
    out(&format!(
        "mkdir -p {dir}/low/bin {dir}/low/srv/old {dir}/low/etc; cd {dir}/low; cp /bin/busybox bin/busybox; \
         for i in sh find stat sha256sum sort; do ln -s busybox bin/$i; done; echo x > srv/gone; echo y > srv/old/y; echo z > srv/kept; chmod 4755 srv/kept"
    ));
    let merged = world.mount("ov", &["low"]);
    out(&format!(
        "cd {}; rm srv/gone; rm -r srv/old; mkdir srv/old; echo new > srv/old/n; ln srv/old/n srv/link; chown 12:34 srv/link; \
         chmod 640 srv/kept; ln -s kept srv/to; touch -d '2001-02-03 04:05:06' srv/old; printf '#!/bin/sh\\necho ran; exit 7\\n' > bin/new; chmod 755 bin/new",
        merged.display()
    ));
    let look = "find srv bin | sort | while read f; do stat -c '%n %a %u:%g %h %s %Y %F' $f; done; find srv -type f -exec sha256sum {} + | sort; bin/new || echo $?";
    let want = out(&format!("chroot {} /bin/sh -c 'cd /; {}'", merged.display(), look.replace('\'', "'\\''")));
    assert!(want.contains("srv/old/n 644 12:34 2 4") && want.ends_with("ran\n7\n"), "{want}");
    let script = format!(
        "mount --make-rprivate /; [ ! -e /sys/fs/cgroup/unified ] || mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup; cd {dir}; \
         tar -C low --format=posix -cf base.tar .; {} export ov > layer.tar; umoci init --layout img; umoci new --image img:t; \
         umoci raw add-layer --image img:t base.tar; umoci raw add-layer --image img:t layer.tar; \
         podman() {{ command podman --root $PWD/store --runroot $PWD/run --cgroup-manager cgroupfs --storage-driver overlay \"$@\"; }}; \
         podman pull -q oci:img:t > id; podman run --rm --network none --cgroups=disabled --ulimit nofile=4096:4096 \
         --ulimit nproc=4096:4096 $(cat id) sh -c \"$LOOK\"; umount -l store/overlay 2>/dev/null || true",
        crate::harness::BIN
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", &script]).current_dir("/").env("LOOK", format!("cd /; {look}"));
    let done = crate::harness::ran(command.env("SHEEP_DATA_DIR", &world.data).output().unwrap());
    assert_eq!((done.code, &done.out), (0, &want), "{}", done.err);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn skopeo_keeps_the_digests_of_our_layers() {
    need(&["umoci", "skopeo"]);
    let world = World::root();
    image(&world);
    let said = out(&format!(
        "cd {}; skopeo copy -q oci:img:t oci:copied:t; skopeo copy -q oci:copied:t oci-archive:copied.tar:t; \
         for i in oci:img:t oci:copied:t oci-archive:copied.tar:t; do skopeo inspect --raw $i | sha256sum; done | uniq | wc -l; \
         skopeo inspect --config oci:copied:t | grep -c \"sha256:$(sha256sum < layer.tar | cut -c 1-64)\"",
        world.dir.display()
    ));
    assert_eq!(said, "1\n1\n");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

/// Exports a tar and unpacks it; gives where, and what was said on stderr.
fn unpacked(world: &World, to: &str) -> (String, String) {
    let done = world.command(&["export", "ov", "--as", "tar"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    fs::write(world.dir.join("whole.tar"), done.stdout).unwrap();
    let at = world.dir.join(to).display().to_string();
    out(&format!(
        "mkdir {at}; tar --xattrs --xattrs-include='*' --numeric-owner -C {at} -xpf {}/whole.tar",
        world.dir.display()
    ));
    (at, said)
}

#[test]
fn all_that_is_shown_as_a_tar() {
    for backend in ["kernel", "copy", "fuse"] {
        let world = World::root();
        let dir = world.dir.display();
        out(&format!("mkdir {dir}/low; cd {dir}/low; {LOWER}"));
        world.lower("top", &["d/other"]);
        let merged = match backend {
            // fuse-overlayfs is taken by root only where it is asked for, and is not written to as root.
            "fuse" => {
                world
                    .run(&[
                        "mount",
                        "--backend",
                        "fuse",
                        "--read-only",
                        "--id",
                        "ov",
                        "--print",
                        "merged",
                        "low",
                        "top",
                    ])
                    .ok()
                    .out
            }
            _ => world.run(&["mount", "--backend", backend, "--id", "ov", "--print", "merged", "low", "top"]).ok().out,
        };
        if backend != "fuse" {
            // In a plain tar it is a name like others.
            out(&format!("cd {}; {DEEDS}; echo x > .wh.x", merged.trim_end()));
        }
        let (at, said) = unpacked(&world, "mounted");
        assert_eq!(said, "");
        let want = picture(merged.trim_end());
        assert_eq!(picture(&at), want, "{backend}");
        if backend != "fuse" {
            world.run(&["umount", "--keep", "ov"]).ok();
            assert_eq!(picture(&unpacked(&world, "kept").0), want, "{backend}, kept");
        }
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn a_tar_has_what_is_mounted_and_not_what_is_hidden() {
    let world = World::root();
    world.lower("low", &["t/under", "file", "d/f", "secret/key", "proc/x", "d/deep/er/under"]);
    let dir = world.dir.display();
    fs::write(world.dir.join("mounted"), "mounted").unwrap();
    sh(&format!(
        "cd {dir}/low; mount -t tmpfs tmpfs t; echo t > t/t; mount --bind ../mounted file; mount -t proc proc proc; \
         mount -t tmpfs tmpfs d/deep/er"
    ));
    world.run(&["mount", "--id", "ov", "--hide", "secret", "low"]).ok();
    let merged = world.merged("ov");
    sh(&format!("cd {}; echo n > t/n; echo n > d/deep/er/n; chmod 700 d/deep/er", merged.display()));
    for to in ["mounted-view", "kept"] {
        let (at, said) = unpacked(&world, to);
        assert_eq!(said, "sheep-overlay: export: /proc is the kernel's own, and exported as an empty directory\n");
        let list = out(&format!(
            "cd {at}; find . -mindepth 1 | LC_ALL=C sort | tr '\\n' ' '; cat file t/t d/deep/er/n; stat -c %a d/deep/er"
        ));
        assert_eq!(
            list,
            "./d ./d/deep ./d/deep/er ./d/deep/er/n ./d/f ./file ./proc ./t ./t/n ./t/t mountedt\nn\n700\n"
        );
        // Of the changes those alone that are in what is mounted: the way to them was never copied up.
        let list = out(&format!(
            "cd {dir}; SHEEP_DATA_DIR={} {} export ov | tar -tf -",
            world.data.display(),
            world.program()
        ));
        assert_eq!(list, "./\nd/\nd/deep/\nd/deep/er/\nd/deep/er/n\nt/\nt/n\n");
        if to == "mounted-view" {
            world.run(&["umount", "--keep", "ov"]).ok();
        }
    }
    world.run(&["mount", "--id", "ov"]).ok();
    sh(&format!("echo more >> {}/file", merged.display()));
    world.run(&["export", "ov"]).fails(1, &["/file", "mounted on another file", "--as tar"]);
    world.run(&["umount", "ov"]).ok();
    sh(&format!("cd {dir}/low; umount t file proc d/deep/er"));
    world.is_clean();
}

#[test]
fn changes_as_a_directory_are_a_lower() {
    for backend in ["kernel", "copy"] {
        let world = World::root();
        let dir = world.dir.display();
        out(&format!("mkdir {dir}/low; cd {dir}/low; {LOWER}"));
        world.run(&["mount", "--backend", backend, "--id", "ov", "low"]).ok();
        let merged = world.merged("ov").display().to_string();
        out(&format!("cd {merged}; {DEEDS}; echo x > .wh.x; truncate -s 64M sparse; echo end >> sparse"));
        sh(&format!("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{merged}/socket\")'"));
        let printed = world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok().out;
        assert_eq!(printed, format!("{dir}/made\n"));
        // p42: a whiteout inside an opaque directory confuses the kernel.
        assert_eq!(
            out(&format!("cd {dir}/made; getfattr --only-values -n trusted.overlay.opaque whole; find whole -type c")),
            "y"
        );
        let again = world.mount("again", &["low", "made"]);
        assert_eq!(picture(&again.display().to_string()), picture(&merged), "{backend}");
        // p43: holes stay holes.
        let blocks: u64 = out(&format!("stat -c %b {dir}/made/sparse")).trim_end().parse().unwrap();
        assert!(blocks < 100, "{blocks}");
        world.run(&["umount", "again", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn a_directory_is_made_whole_or_not_at_all() {
    let world = World::user();
    let low = world.lower("low", &["a", "gone"]);
    sh(&format!(
        "cd {}; chown -R sheeptest: low; mkdir full empty; touch full/x; chown sheeptest: full empty",
        world.dir.display()
    ));
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let deeds = "rm gone; mkdir d; for i in $(seq 3000); do echo $i > d/$i; done";
    world.run(&["exec", "ov", "sh", "-c", deeds]).ok();
    world.run(&["export", "ov", "--as", "dir"]).fails(2, &["--to"]);
    world.run(&["export", "ov", "--to", "x"]).fails(2, &["--as dir"]);
    world.run(&["export", "ov", "--as", "dir", "--to", "full"]).fails(4, &["full", "not empty"]);
    world.run(&["export", "ov", "--as", "dir", "--to", "low/a"]).fails(4, &["low/a"]);
    world.run(&["export", "ov", "--as", "dir", "--to", "no/where"]).fails(1, &["no/where"]);
    let before = names_in(&world.dir);
    let mut child = world.command(&["export", "ov", "--as", "dir", "--to", "made"]).spawn().unwrap();
    until(|| names_in(&world.dir).iter().any(|name| name.starts_with(".made.")));
    // A Ctrl-C reaches the child in the user namespace too.
    sh(&format!("pkill -INT -P {0}; kill -INT {0}", child.id()));
    assert!(!child.wait().unwrap().success());
    assert_eq!(names_in(&world.dir), before);
    for to in ["empty", "made"] {
        world.run(&["export", "ov", "--as", "dir", "--to", to]).ok();
        world.run(&["mount", "--id", "again", "low", to]).ok();
        assert_eq!(world.run(&["exec", "again", "sh", "-c", "ls; ls d | wc -l"]).ok().out, "a\nd\n3000\n");
        world.run(&["umount", "again"]).ok();
    }
    world.run(&["umount", "ov"]).ok();
    assert_eq!(names_in(&low), ["a", "gone"]);
    world.is_clean();
}

#[test]
fn what_is_changed_meanwhile_is_found() {
    let world = World::root();
    world.lower("low", &["a", "z"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("head -c 60M /dev/urandom > {}/big", merged.display()));
    let busy = |script: &str| {
        let script =
            format!("cd {}; while test ! -e {}/stop; do {script}; done", merged.display(), world.dir.display());
        Command::new("sh").args(["-c", &script]).spawn().unwrap()
    };
    // In place and keeping all times, too: then only the content tells.
    let in_place = "n=$((n+1)); printf %03d $((n%1000)) > /dev/shm/export-$$; dd if=/dev/shm/export-$$ of=big conv=notrunc status=none; touch -d @5 big";
    for (script, words) in [
        ("echo more >> z", ["/z", "changed"]),
        ("n=$((n+1)); echo > new$n", ["/new", "it is new"]),
        (in_place, ["/big", "changed"]),
    ] {
        let mut writer = busy(script);
        std::thread::sleep(std::time::Duration::from_millis(100));
        let ran = world.run(&["export", "ov"]);
        fs::write(world.dir.join("stop"), "").unwrap();
        writer.wait().unwrap();
        fs::remove_file(world.dir.join("stop")).unwrap();
        ran.fails(1, &words);
        assert_eq!(ran.out, "");
        sh(&format!("cd {}; rm -f new*; rm -f /dev/shm/export-{}", merged.display(), writer.id()));
    }
    world.command(&["export", "ov"]).stdout(std::process::Stdio::null()).status().unwrap();
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p35_p42_what_an_opaque_directory_still_has_is_in_the_layer() {
    let world = World::root();
    world.lower("low", &["d/same", "d/gone", "d/sub/same", "d/sub/gone"]);
    for backend in ["kernel", "copy"] {
        world.run(&["mount", "--backend", backend, "--id", "ov", "low"]).ok();
        // As it was, in a directory that is another one: no change, but hidden by the mark.
        sh(&format!("cd {}; cp -a d new; rm -r d; mv new d; rm d/gone d/sub/gone", world.merged("ov").display()));
        assert!(world.run(&["diff", "ov"]).ok().out.starts_with("O /d\nD /d/gone\n"));
        let list = out(&format!("SHEEP_DATA_DIR={} {} export ov | tar -tf -", world.data.display(), world.program()));
        let want = "./\nd/\nd/.wh..wh..opq\nd/same\nd/sub/\n";
        assert!(list.starts_with(want) && list.contains("d/sub/same\n") && !list.contains("gone"), "{backend}: {list}");
        world.run(&["umount", "ov"]).ok();
    }
    world.is_clean();
}

#[test]
fn p36_p37_uppers_that_need_their_lowers_are_refused() {
    let world = World::root();
    world.lower("low", &["a", "d/x"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {}; touch a; chmod 700 d", merged.display()));
    world.run(&["umount", "--keep", "ov"]).ok();
    let upper = world.data.join("overlay/ov/upper");
    for (file, mark, word) in [("a", "metacopy", "metacopy"), ("d", "redirect", "redirect")] {
        sh(&format!("setfattr -n trusted.overlay.{mark} -v x {}/{file}", upper.display()));
        for form in [&["oci"][..], &["tar"], &["dir", "--to", "made"]] {
            let ran = world.run(&[&["export", "ov", "--as"][..], form].concat());
            assert!(ran.code == 1 && ran.err.contains(word), "{form:?}: {}", ran.err);
            assert!(ran.out.is_empty(), "{form:?}");
        }
        sh(&format!("setfattr -x trusted.overlay.{mark} {}/{file}", upper.display()));
    }
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p41_notes_of_overlayfs_are_no_data() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {}; setfattr -n user.overlay.origin -v x a; setfattr -n user.fuseoverlayfs.x -v x a; setfattr -n user.mine -v x a",
        merged.display()
    ));
    for form in ["oci", "tar"] {
        let tar = world.command(&["export", "ov", "--as", form]).output().unwrap().stdout;
        let names: Vec<_> =
            tar.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(1)).collect();
        let xattrs: Vec<_> = names.iter().filter(|name| name.starts_with(b"SCHILY")).collect();
        assert_eq!(xattrs, [&b"SCHILY.xattr.user.mine=x"], "{form}");
    }
    world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok();
    let made = world.dir.join("made");
    assert_eq!(out(&format!("cd {}; getfattr -m- a | grep -v '^#'", made.display())), "user.mine\n\n");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p43_holes_are_left_out_of_a_tar() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    let long = "n".repeat(120);
    out(&format!(
        "cd {}; truncate -s 64M hole; cp hole end; echo end >> end; cp hole ä; printf x | dd of=ä bs=1 seek=9M conv=notrunc status=none; \
         cp --sparse=always ä {long}; mkdir d; cp --sparse=always ä d/{long}; ln hole d/second",
        merged.display()
    ));
    let (at, _) = unpacked(&world, "at");
    assert_eq!(picture(&at), picture(&merged.display().to_string()));
    let size = fs::metadata(world.dir.join("whole.tar")).unwrap().len();
    assert!(size < 200_000, "{size}");
    let used: u64 = out(&format!("du -sk {at} | cut -f 1")).trim_end().parse().unwrap();
    assert!(used < 1000, "{used}");
    // Other readers of the same: Python's, and Go's in umoci.
    need(&["umoci"]);
    out(&format!(
        "cd {}; umoci init --layout img; umoci new --image img:t; umoci raw add-layer --image img:t whole.tar; umoci unpack --image img:t bundle",
        world.dir.display()
    ));
    assert_eq!(picture(&world.dir.join("bundle/rootfs").display().to_string()), picture(&at));
    out(&format!(
        "cd {0}; python3 -c 'import tarfile; tarfile.open(\"whole.tar\").extractall(\"python\")'; cmp python/ä at/ä; cmp python/d/{long} at/d/{long}",
        world.dir.display()
    ));
    // In a layer they are zeros: podman would give it another digest when it sends it on.
    let layer = world.command(&["export", "ov"]).output().unwrap().stdout;
    assert!(layer.len() > 5 * (64 << 20), "{}", layer.len());
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p49_what_must_not_be_opened_is_not() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {}; mkfifo fifo; mknod dev c 240 7; mknod block b 240 7", merged.display()));
    for form in [&["oci"][..], &["tar"], &["dir", "--to", "made"]] {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=open,openat,openat2", "-o", "trace"]).arg(world.program());
        command.args(["export", "ov", "--as"]).args(form).current_dir(&world.dir).env("SHEEP_DATA_DIR", &world.data);
        assert!(command.output().unwrap().status.success(), "{form:?}");
        let trace = fs::read_to_string(world.dir.join("trace")).unwrap();
        assert!(
            trace.contains("openat") && !["\"fifo\"", "\"dev\"", "\"block\""].iter().any(|name| trace.contains(name)),
            "{form:?}: {trace}"
        );
    }
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
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
    world.run(&["export", "ov", "--as", "tar"]).fails(1, &["/s", "a socket"]);
    fs::remove_file(merged.join("s")).unwrap();
    sh(&format!("setfattr -n user.a=b -v x {}/a", merged.display()));
    world.run(&["export", "ov"]).fails(1, &["/a", "'='", "user.a=b"]);
    sh(&format!("setfattr -x user.a=b {}/a", merged.display()));
    let ran = world.command(&["export", "ov"]).env("SOURCE_DATE_EPOCH", "soon").output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    world.run(&["export", "nothing"]).fails(3, &["nothing"]);
    world.run(&["umount", "ov"]).ok();
    // Nor that such a file was deleted: a mark of a mark.
    world.lower("marked", &[".wh.b"]);
    let merged = world.mount("ov", &["marked"]);
    fs::remove_file(merged.join(".wh.b")).unwrap();
    world.run(&["export", "ov"]).fails(1, &["/.wh.b", "cannot carry"]);
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
    let want = format!(
        "drwxr-xr-x {id}/{id} ./\n-rw-r--r-- {id}/{id} a\n-rw------- 0/0 .wh.b\ndrwxr-xr-x {id}/{id} d/\n{id}\n"
    );
    assert_eq!(list, want);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

/// The paths in an archive, sorted.
fn listed(world: &World, args: &[&str]) -> String {
    let done = world.command(&[&["export", "ov"][..], args].concat()).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    fs::write(world.dir.join("list.tar"), done.stdout).unwrap();
    out(&format!("tar -tf {}/list.tar | LC_ALL=C sort | tr '\\n' ' '", world.dir.display()))
}

#[test]
fn overlays_of_every_kind_are_exported() {
    for (world, is_root) in [(World::root(), true), (World::user(), false)] {
        let low = world.lower("low", &["a", "gone", "d/x"]);
        sh(&format!("chown -R sheeptest: {}", low.display()));
        for kind in [&["--scratch"][..], &["--tmpfs"], &["--at", "low"], &["--backend", "copy"]] {
            if kind == ["--tmpfs"] && !is_root && kernel() < (6, 6) {
                // A tmpfs holds no attributes of users there.
                world.run(&["mount", "--tmpfs", "--id", "ov", "low"]).fails(1, &["cannot hold opaque marks"]);
                continue;
            }
            let kind_and_more = [kind, &["--id", "ov", "low"]].concat();
            world.run(&[&["mount"][..], &kind_and_more].concat()).ok();
            let said =
                world.run(&["exec", "ov", "sh", "-ec", "echo more >> a; rm gone; mkdir d/new; ls | tr '\\n' ' '"]);
            assert_eq!(said.ok().out, "a d ", "{kind:?}");
            let want = ("./ .wh.gone a d/ d/new/ ", "./ a d/ d/new/ d/x ");
            let look = || (listed(&world, &[]), listed(&world, &["--as", "tar"]));
            let (layer, whole) = look();
            assert_eq!((&*layer, &*whole), want, "{kind:?}");
            // Those who are inside see the same.
            let inside = "$0 export . | tar -tf - | LC_ALL=C sort | tr '\\n' ' '";
            assert_eq!(world.run(&["exec", "ov", "sh", "-c", inside, world.program()]).ok().out, want.0, "{kind:?}");
            if kind != ["--tmpfs"] {
                world.run(&["umount", "--keep", "ov"]).ok();
                let (layer, whole) = look();
                assert_eq!((&*layer, &*whole), want, "kept, {kind:?}");
            }
            world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok();
            assert_eq!(names_in(&world.dir.join("made")), ["a", "d", "gone"]);
            sh(&format!("rm -r {}/made", world.dir.display()));
            world.run(&["umount", "ov"]).ok();
        }
        world.is_clean();
    }
}

#[test]
fn owners_are_those_that_the_overlay_shows() {
    // Mapped ones: what was changed, and what was not.
    let world = World::root();
    let low = world.lower("low", &["a", "b"]);
    sh(&format!("chown -R 7:8 {}", low.display()));
    world.run(&["mount", "--id", "ov", "--idmap", "b:0:1000:100", "low"]).ok();
    sh(&format!("echo more >> {}/b", world.merged("ov").display()));
    let want = out(&format!("cd {}; stat -c '%u:%g' . a b", world.merged("ov").display()));
    assert!(want.ends_with("1007:1008\n1007:1008\n"), "{want}");
    for _ in 0..2 {
        let (at, _) = unpacked(&world, "at");
        assert_eq!(out(&format!("cd {at}; stat -c '%u:%g' . a b")), want);
        sh(&format!("rm -r {at}"));
        world.run(&["umount", "--keep", "ov"]).ok();
    }
    world.run(&["umount", "ov"]).ok();
    world.is_clean();

    // Those that an ordinary user's namespace does not map he cannot export; root can.
    let world = World::user();
    let low = world.lower("low", &["a", "b"]);
    sh(&format!("chown sheeptest: {0}/a {0}/b; chmod 777 {0}", low.display()));
    world.run(&["mount", "--id", "ov", "low"]).ok();
    world.run(&["exec", "ov", "sh", "-c", "echo more >> b; rm a"]).ok();
    for form in [&["oci"][..], &["tar"], &["dir", "--to", "made"]] {
        let ran = world.run(&[&["export", "ov", "--as"][..], form].concat());
        ran.fails(1, &["/: its owner is not known here", "--root"]);
    }
    let list = out(&format!(
        "{} --root {} export ov | tar --numeric-owner -tvf - | awk '{{print $2, $6}}'",
        crate::harness::BIN,
        world.data.display()
    ));
    let id = out("id -u sheeptest");
    assert!(list.ends_with(&format!("0/0 .wh.a\n{0}/{0} b\n", id.trim_end())), "{list}");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn deep_and_wide_trees_are_exported() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    // A path longer than the kernel takes in one piece, and more directories than descriptors.
    out(&format!(
        "cd {}; for i in $(seq 1500); do mkdir wide$i; echo $i > wide$i/f; done; for i in $(seq 600); do mkdir deep-deep; cd -P deep-deep; done; echo bottom > f; ln f g",
        merged.display()
    ));
    for form in ["oci", "tar"] {
        let list = listed(&world, &["--as", form]);
        assert_eq!(list.matches("wide").count(), 2 * 1500, "{form}");
        assert!(list.contains(&format!("{}g ", "deep-deep/".repeat(600))), "{form}");
    }
    world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok();
    assert_eq!(out(&format!("cd {}/made; find . -name f -links 2 -printf '%d\\n'", world.dir.display())), "601\n");
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn nobody_who_reads_on_is_a_quiet_end() {
    let world = World::root();
    world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("head -c 1M /dev/zero > {}/zeros", merged.display()));
    for form in ["oci", "tar"] {
        let said = out(&format!(
            "set -o pipefail; cd {}; SHEEP_DATA_DIR={} {} export ov --as {form} 2>&1 | head -c 0; echo $?",
            world.dir.display(),
            world.data.display(),
            world.program()
        ));
        assert_eq!(said, "0\n", "{form}");
    }
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p45_p46_what_is_set_last_stays() {
    for world in [World::root(), World::user()] {
        let low = world.lower("low", &["ro/below"]);
        sh(&format!("chmod 555 {0}/ro; chown -R sheeptest: {0}", low.display()));
        world.run(&["mount", "--id", "ov", "low"]).ok();
        let deeds = "chmod 755 ro; for f in suid caps; do echo $f > ro/$f; done; chmod 4755 ro/suid; chmod 711 ro/caps; \
            mkdir ro/deep; echo f > ro/deep/f; touch -d @1000000000.000000001 ro/suid ro/deep/f ro/deep; chmod 500 ro/deep; \
            touch -d @1000000000.5 ro; chmod 555 ro";
        world.run(&["exec", "ov", "sh", "-ec", deeds]).ok();
        let list = "find . -mindepth 1 -printf '%p %m %T@\\n' | LC_ALL=C sort; cat ro/suid";
        let seen = world.run(&["exec", "ov", "sh", "-ec", list]).ok().out;
        assert!(seen.contains("./ro 555 1000000000.5000000000\n./ro/below"), "{seen}");
        let (at, _) = unpacked(&world, "at");
        assert_eq!(out(&format!("cd {at}; {list}")), seen);
        world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok();
        world.run(&["mount", "--id", "again", "low", "made"]).ok();
        assert_eq!(world.run(&["exec", "again", "sh", "-ec", list]).ok().out, seen);
        world.run(&["umount", "again", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn changes_that_were_put_aside_are_exported_too() {
    let world = World::root();
    let dir = world.dir.display();
    out(&format!("mkdir {dir}/low; cd {dir}/low; {LOWER}"));
    let export = |form: &str| {
        let mut command = world.command(&["export", "ov", "--as", form]);
        let done = command.env("SOURCE_DATE_EPOCH", "1400000000").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    let mut exported = Vec::new();
    for snapshot in [true, false] {
        let merged = world.mount("ov", &["low"]).display().to_string();
        out(&format!("cd {merged}; {DEEDS}; mkdir gone-again; ln here link/here"));
        if snapshot {
            world.run(&["snapshot", "ov"]).ok();
        }
        out(&format!(
            "cd {merged}; rm -r gone-again whole; echo more >> d/a; chmod 600 d/sub/b; mkdir whole; echo > whole/newer"
        ));
        let (layer, whole) = (export("oci"), export("tar"));
        if snapshot {
            assert_eq!(picture(&unpacked(&world, "at").0), picture(&merged));
            world.run(&["export", "ov", "--as", "dir", "--to", "made"]).ok();
            let again = world.mount("again", &["low", "made"]);
            assert_eq!(picture(&again.display().to_string()), picture(&merged));
            world.run(&["umount", "again"]).ok();
        }
        world.run(&["umount", "--keep", "ov"]).ok();
        assert!(layer == export("oci") && whole == export("tar"), "snapshot: {snapshot}");
        exported.push((layer, whole));
        world.run(&["umount", "ov"]).ok();
    }
    assert!(exported[0] == exported[1], "the same deeds, with a snapshot between them and without");
    world.is_clean();
}
