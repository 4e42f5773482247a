//! An image from this host's own files.

use crate::harness::World;

#[test]
fn the_shell_and_the_utilities_run() {
    let world = World::root();
    world.sh("sheep-images bootstrap").ok();
    let layer = world.layer("minimal").display().to_string();
    let inside = |script: &str| world.sh(&format!("chroot {layer} /bin/sh -c '{script}'")).ok();
    assert_eq!(
        inside(
            "echo a b | cut -d\" \" -f2; seq 3 | tail -n 1; echo x y | awk \"{print \\$2}\"; test 1 -lt 2 && echo yes"
        ),
        "b\n3\ny\nyes"
    );
    assert_eq!(
        inside("id -un; id -gn; stat -c %a /tmp /var/tmp /root; ls / | sort | head -n 1"),
        "root\nroot\n1777\n1777\n700\nbin"
    );
    // Whatever is there can start: no library is missing.
    let broken = world.sh(&format!("cd {layer} && for f in usr/bin/* usr/sbin/* bin/* sbin/*; do [ -f $f ] && head -c4 $f | grep -q ELF && chroot . $(readlink -f lib64/ld-linux-x86-64.so.2 2>/dev/null | sed \"s,^$PWD,,\") --verify /$f >/dev/null 2>&1; [ $? -gt 2 ] && echo $f; done; for f in $(find usr/bin usr/sbin -type f); do chroot . /usr/bin/env LD_TRACE_LOADED_OBJECTS=1 /$f </dev/null 2>&1 | grep -H --label=$f 'not found'; done; true"));
    assert_eq!(broken.ok(), "");
    assert_eq!(world.sh(&format!("find {layer} -perm /7000 ! -perm 1777")).ok(), "", "setuid bits are left off");
    assert_eq!(world.sh(&format!("find {layer} ! -user root -o ! -group root")).ok(), "");
    assert_eq!(
        world
            .sh(&format!("ls -A {layer}/etc | tr '\\n' ' '"))
            .ok()
            .split(' ')
            .filter(|name| name.contains("shadow") || name.contains("ssh") || name.contains("resolv"))
            .count(),
        0
    );
    assert_eq!(world.sh(&format!("diff /etc/os-release {layer}/etc/os-release")).ok(), "");
}

#[test]
fn the_same_host_gives_the_same_digest() {
    let world = World::root();
    let first = world.sh("sheep-images bootstrap --print digest").ok();
    let other = World::user();
    assert_eq!(other.sh("umask 077; sheep-images bootstrap other:tag --print digest").ok(), first);
    assert_eq!(world.sh("PATH=/bin:$PATH sheep-images bootstrap again --print digest").ok(), first);
    assert_eq!(world.sh("sheep-images ls | awk '{print $1}'").ok(), "REFERENCE\nminimal:latest\nagain:latest");
    assert_eq!(world.sh("ls data/layers/sha256 | wc -l; ls data/images/blobs/sha256 | wc -l").ok(), "1\n3");
}

#[test]
fn more_programs_and_their_libraries() {
    let world = World::root();
    // A library beside its program found by $ORIGIN, one that needs another, and a script whose interpreter is a script.
    world
        .sh(r#"set -e; mkdir -p app/bin app/lib
            echo 'int two(void) { return 2; }' > two.c && gcc -shared -fPIC -o app/lib/libtwo.so two.c
            echo 'int two(void); int one(void) { return two() - 1; }' > one.c && gcc -shared -fPIC -o app/lib/libone.so one.c -Lapp/lib -ltwo -Wl,-rpath,'$ORIGIN'
            echo '#include <stdio.h>
int one(void); int main(void) { printf("one %d\n", one()); return 0; }' > main.c && gcc -o app/bin/prog main.c -Lapp/lib -lone -Wl,-rpath,'$ORIGIN/../lib' -Wl,--allow-shlib-undefined
            printf '#!/usr/bin/env -S awk -f\nBEGIN { print "awk ran" }\n' > app/bin/script && chmod +x app/bin/script
            printf '#!%s\n' $PWD/app/bin/inner > app/bin/outer && printf '#!/bin/sh\necho inner\n' > app/bin/inner && chmod +x app/bin/outer app/bin/inner
            ln -s prog app/bin/link"#)
        .ok();
    world.sh("sheep-images bootstrap app --bin $PWD/app/bin/link --bin app/bin/script --bin ./app/bin/outer --bin getfattr").ok();
    let layer = world.layer("app").display().to_string();
    // The loader asks /proc for $ORIGIN.
    assert_eq!(world.sh(&format!("unshare -m sh -c 'mount -t proc proc {layer}/proc && chroot {layer} $PWD/app/bin/link'; chroot {layer} $PWD/app/bin/script; chroot {layer} $PWD/app/bin/outer; chroot {layer} getfattr --version | cut -d' ' -f1")).ok(), "one 1\nawk ran\ninner\ngetfattr");
    assert_eq!(world.sh(&format!("readlink {layer}/$PWD/app/bin/link")).ok(), "prog");
}

#[test]
fn what_is_absent_or_wrong_makes_nothing() {
    let world = World::root();
    world.sh("sheep-images ls").ok();
    let before = world.snapshot();
    world.sh("sheep-images bootstrap x --bin /nosuch/program").fails(3, "/nosuch/program");
    world.sh("sheep-images bootstrap x --bin nosuchprogram").fails(3, "nosuchprogram");
    world.sh("sheep-images bootstrap x --bin /etc").fails(2, "not a file");
    world.sh("sheep-images bootstrap Not_A_Name").fails(2, "lower case");
    world
        .sh("printf '#!/nosuch/interpreter\\n' > s && chmod +x s; sheep-images bootstrap x --bin ./s")
        .fails(1, "/nosuch/interpreter");
    world
        .sh("echo 'int f(void){return 1;}' > f.c && gcc -shared -fPIC -o libgone.so f.c && echo 'int f(void); int main(){return f();}' > m.c && gcc -o m m.c -L. -lgone && rm libgone.so")
        .ok();
    world.sh("sheep-images bootstrap x --bin ./m").fails(1, "libgone.so");
    world.sh("head -c 100 /bin/true > cut && chmod +x cut; sheep-images bootstrap x --bin ./cut").fails(1, "ELF");
    assert_eq!(world.snapshot(), before);
}
