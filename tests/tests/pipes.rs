//! The tools joined by pipes.

use crate::harness::World;

#[test]
fn an_image_becomes_a_container_by_hand() {
    let world = World::root().with_image();
    let listing = world.sh("sheep-images unpack minimal | sheep-overlay mount - | tee doc | sheep-ns exec --from - -- /bin/sh -c 'echo hi > /x; ls /'").ok();
    assert!(listing.lines().any(|line| line == "x"), "{listing}");
    assert_eq!(world.sh("sheep-overlay diff --from doc").ok(), "A /x");
    world.sh("sheep-overlay umount --from doc").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn the_document_grows_and_keeps_what_it_does_not_know() {
    let world = World::root().with_image();
    let keys = world
        .sh("sheep-images unpack minimal | jq -c '. + {mine: {\"a b\": [1, null]}}' | sheep-overlay mount - | tee doc | jq -c '[keys_unsorted, .mine]'")
        .ok();
    assert_eq!(keys, r#"[["image","mine","overlay"],{"a b":[1,null]}]"#);
    let ids = world.sh("jq -r .overlay.id doc; sheep-overlay umount --keep - < doc | jq -r .overlay.id,.mine").ok();
    let lines: Vec<&str> = ids.lines().collect();
    assert_eq!(lines[0], lines[1]);
    world.sh("sheep-overlay umount --from doc").ok();
}

#[test]
fn a_scratch_directory_in_one_line() {
    let world = World::root();
    world.sh("mkdir src && echo one > src/a && cd \"$(sheep-overlay mount --print merged src)\" && echo two > a && echo new > b && rm -f nothing").ok();
    assert_eq!(world.sh("cat src/a; ls src").ok(), "one\na", "the lower is untouched");
    assert_eq!(world.sh("sheep-overlay diff $(ls data/overlay)").ok(), "M /a\nA /b");
    world.sh("sheep-overlay ls --json | jq -c 'select(.overlay.backend==\"kernel\")' | sheep-overlay umount -").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_program_reads_its_own_stdin_when_the_document_comes_from_a_file() {
    let world = World::root().with_image();
    world.sh("sheep-images unpack minimal | sheep-overlay mount - > doc").ok();
    assert_eq!(world.sh("echo data | sheep-ns exec --from doc -- cat").ok(), "data");
    assert_eq!(world.sh("sheep-ns exec --from - -- cat < doc").ok(), "", "stdin is /dev/null then");
    assert_eq!(world.sh("echo data | sheep-ns exec --from <(cat doc) -- cat").ok(), "data");
    world.sh("sheep-overlay umount - < doc").ok();
}

#[test]
fn names_that_are_not_utf8_go_through_every_pipe() {
    let world = World::root();
    world
        .sh(r#"d=$(printf 'lower\xff\nx:y,z\\'); mkdir "$d" && echo in > "$d/f" && sheep-overlay mount "$d" > doc"#)
        .ok();
    assert_eq!(world.sh(r#"jq -r '.overlay.lower[0] | keys[0]' doc"#).ok(), "base64");
    assert_eq!(world.sh(r#"cat "$(sheep-overlay inspect --print merged - < doc)/f""#).ok(), "in");
    world.sh(r#"touch "$(sheep-overlay inspect --print merged --from doc)/$(printf 'n\xfe\n')""#).ok();
    assert_eq!(
        world.sh("sheep-overlay diff --json --from doc | jq -c '[.change, (.path | keys[0])]'").ok(),
        r#"["added","base64"]"#
    );
    assert_eq!(
        world.sh("sheep-overlay diff --from doc | wc -l").ok(),
        "1",
        "a newline in a name starts no second line"
    );
    world.sh("sheep-overlay umount - < doc").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn a_reader_that_leaves_is_a_quiet_end() {
    let world = World::root();
    world.sh("mkdir src && for i in $(seq 5); do sheep-overlay mount src; done > docs").ok();
    let outcome =
        world.sh("set -o pipefail; sheep-overlay ls --json | true; sheep-overlay ls --json | head -n 1 >/dev/null");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    world.sh("sheep-overlay umount - < docs").ok();
    world.assert_nothing_left(&[]);
}

#[test]
fn an_upstream_failure_is_not_taken_for_success() {
    let world = World::root();
    let outcome = world.sh("set -o pipefail; sheep-images unpack nosuch | sheep-overlay mount -");
    assert_eq!(outcome.code, 2);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(outcome.stderr.contains("sheep-images: ") && outcome.stderr.contains("no document"), "{lines:?}");
    world.assert_nothing_left(&[]);
}

#[test]
fn crun_fits_in_the_place_of_sheep_ns() {
    let world = World::root().with_image();
    world.sh("sheep-images unpack minimal | sheep-overlay mount - > doc && mkdir bundle").ok();
    world.sh("sheep-ns spec --from doc -- /bin/sh -c 'echo from crun; exit 7' | jq 'del(.linux.resources)' > bundle/config.json").ok();
    // crun's device filter wants CAP_SYS_RESOURCE, which not every root has. And it refuses a host that mounts cgroups in
    // hybrid mode; in a mount namespace of its own it sees the v2 tree alone.
    let outcome = world.sh(
        "tree=/sys/fs/cgroup; [ ! -d $tree/unified ] || tree=$tree/unified
         exec unshare -m --propagation private sh -c \"mount --bind $tree /sys/fs/cgroup && exec crun --root run/crun --cgroup-manager=disabled run --bundle bundle e2e-crun-$$\"",
    );
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("from crun\n", 7), "{}", outcome.stderr);
    world.sh("sheep-overlay umount - < doc").ok();
}

#[test]
fn changes_become_an_image() {
    for world in [World::root(), World::user()] {
        world
            .sh("sheep-images bootstrap minimal >/dev/null; sheep-images unpack minimal | sheep-overlay mount - > doc")
            .ok();
        world.sh("cd $(jq -r .overlay.merged doc); echo new > file; mkdir d; echo x > d/x; ln d/x d/y; rm -f bin/false usr/bin/false").ok();
        let document = world
            .sh("sheep-images commit made --env A=b --env PATH=/bin:/usr/bin --label k=v --cmd '[\"/bin/sh\", \"-c\", \"cat /file; echo $A\"]' -w /d -m 'a remark' --author me < doc")
            .ok();
        world.sh(&format!("printf '%s' '{}' > made", document.replace('\'', "'\\''"))).ok();
        let field = |path: &str| world.sh(&format!("jq -c '{path}' made")).ok();
        assert_eq!(field(".image.layers | length"), "2");
        assert_eq!(field(".overlay"), "null", "the overlay lies on the old image");
        assert_eq!(
            field(".image.config.history[-1] | [.created_by, .comment, .author]"),
            r#"["sheep-images commit","a remark","me"]"#
        );
        assert_eq!(field(".image.config.config | [.WorkingDir, .Labels.k]"), r#"["/d","v"]"#);
        // It is an image like any other: run, sent out, read by others, and built upon.
        let id = if world.sh("id -u").ok() == "0" { "" } else { "2>/dev/null" };
        assert_eq!(world.sh(&format!("sheep-run run --rm made {id}")).ok(), "new\nb");
        assert_eq!(
            world.sh("sheep-images export made > made.tar && skopeo inspect oci-archive:made.tar | jq -r .Digest").ok(),
            world.sh("jq -r .image.digest made").ok()
        );
        world.sh("sheep-images unpack made | sheep-overlay mount - > doc2; cd $(jq -r .overlay.merged doc2); test ! -e bin/false; test $(stat -c %h d/x) = 2; echo again > file").ok();
        world.sh("sheep-images commit made < doc2 > /dev/null").ok();
        assert_eq!(world.sh(&format!("sheep-run run --rm made {id}")).ok(), "again\nb");
        // The same changes, the same image.
        let digest = |name: &str| {
            world.sh(&format!("SOURCE_DATE_EPOCH=1000000000 sheep-images commit {name} --print digest < doc2")).ok()
        };
        assert_eq!(digest("one"), digest("two"));
        // A document whose overlay lies on something else.
        let wrong =
            world.sh("jq -c --slurpfile other doc2 '.overlay = $other[0].overlay' doc | sheep-images commit wrong");
        assert_eq!(wrong.code, 2, "{wrong:?}");
        assert!(wrong.stderr.contains("does not lie on the image"), "{wrong:?}");
        assert_eq!(world.sh("echo '{}' | sheep-images commit wrong").code, 2);
        assert_eq!(world.sh("sheep-images commit wrong --env X < doc").code, 2);
        world.sh("sheep-overlay umount --from doc2; sheep-overlay umount --from doc; sheep-images rm made one two minimal; sheep-images ls --json | jq -r .image.digest | xargs -r sheep-images rm").ok();
        world.assert_nothing_left(&[]);
    }
}
