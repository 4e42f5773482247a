//! `why`, `du` and the forms of `diff`, through the binary.

use serde_json::Value;

use crate::harness::{World, sh};

#[test]
fn why_names_the_layer_and_what_it_hides() {
    let world = World::root();
    for lower in ["low", "top"] {
        world.lower(lower, &["both", "d/x", &format!("only-{lower}")]);
    }
    world.run(&["mount", "--id", "ov", "low", "top"]).ok();
    let merged = world.merged("ov");
    sh(&format!("cd {}; echo n > both; rm only-low; rm -r d; mkdir d; touch 'new\nline'", merged.display()));
    let dir = world.dir.display();
    let upper = world.data.join("overlay/ov/upper");
    let upper = upper.display();
    let why = |path: &str| world.run(&["why", "ov", path]).ok().out;
    let changed = format!("{upper}/both");
    assert_eq!(
        why("/both"),
        format!(
            "/both: from {changed}\n  hides {dir}/top/both (no directory, and above it: {changed})\n  \
             hides {dir}/low/both (no directory, and above it: {changed})\n"
        )
    );
    assert_eq!(why("only-top"), format!("/only-top: from {dir}/top/only-top\n"));
    assert_eq!(
        why("only-low"),
        format!("/only-low: deleted\n  hides {dir}/low/only-low (a whiteout: {upper}/only-low)\n")
    );
    assert_eq!(
        why("d"),
        format!(
            "/d: from {upper}/d\n  hides {dir}/top/d (an opaque directory: {upper}/d)\n  hides {dir}/low/d (an opaque directory: {upper}/d)\n"
        )
    );
    assert!(why(merged.join("both").to_str().unwrap()).starts_with("/both: from"));
    assert_eq!(why("new\nline"), format!("/new\\nline: from {upper}/new\\nline\n"));
    assert_eq!(why("/").lines().count(), 3, "the root merges");
    let json: Value = world.run(&["why", "--json", "ov", "d/x"]).json();
    assert_eq!((json["from"].is_null(), json["hidden"].as_array().unwrap().len()), (true, 2));
    world.run(&["why", "ov", "nowhere"]).fails(3, &["/nowhere", "no layer"]);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn du_counts_the_changes_alone() {
    for world in [World::root(), World::user()] {
        let low = world.lower("low", &["big"]);
        sh(&format!("head -c 3000000 /dev/zero > {0}/big; chown -R sheeptest: {0}", low.display()));
        world.run(&["mount", "--id", "ov", "low"]).ok();
        let deeds = "head -c 500000 /dev/urandom > new; ln new again; mkdir d; truncate -s 1G hole; rm big";
        world.run(&["exec", "ov", "sh", "-ec", deeds]).ok();
        let du = world.run(&["du", "--json", "ov"]).json();
        assert_eq!(du["overlay"]["id"], "ov");
        assert_eq!((&du["du"]["files"], &du["du"]["apparent"]), (&4.into(), &(500_000u64 + (1 << 30)).into()));
        let bytes = du["du"]["bytes"].as_u64().unwrap();
        assert!((500_000..800_000).contains(&bytes), "{bytes}");
        let table = world.run(&["du", "ov"]).ok().out;
        assert_eq!(table.lines().count(), 2, "{table}");
        world.run(&["du", "no-such"]).fails(3, &["no-such"]);
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn the_forms_of_diff() {
    let world = World::root();
    world.lower("low", &["a", "gone", "old"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {}; echo longer > a; rm gone; mv old renamed; touch 'new\nline'", merged.display()));
    let diff = |form: &[&str]| world.run(&[&["diff", "ov"], form].concat()).ok().out;
    assert_eq!(diff(&[]), "M /a\nD /gone\nA /new\\nline\nR /old -> /renamed\n");
    assert_eq!(diff(&["--name-only", "-z"]), "/a\0/gone\0/new\nline\0/renamed\0");
    assert!(
        diff(&["--stat"]).ends_with("1 added, 1 modified, 1 deleted, 1 renamed; +4 B -3 B\n"),
        "{}",
        diff(&["--stat"])
    );
    let lines: Vec<Value> = diff(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["what"], serde_json::json!(["content", "size", "times"]));
    assert_eq!(lines[0]["layer"], world.dir.join("low").to_str().unwrap());
    assert_eq!(lines[3]["from"], "/old");
    world.run(&["diff", "-z", "ov"]).code.eq(&2).then_some(()).unwrap();
    world.run(&["umount", "ov"]).ok();
}

/// What git knows of a tree: files with their content and whether they are executable, links with their targets.
const AS_GIT_SEES_IT: &str = "find . -type f -printf '%p %m ' -exec md5sum {} \\; -o -type l -printf '%p -> %l\\n' | \
    sed 's/ \\([0-7]*\\)[0-7][0-7] / \\1 /' | LC_ALL=C sort";

fn out(script: &str) -> String {
    let done = std::process::Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn git_applies_a_patch() {
    for backend in ["kernel", "copy"] {
        let world = World::root();
        let dir = world.dir.display();
        out(&format!(
            "mkdir {dir}/low; cd {dir}/low; seq 40 > long; printf 'no end' > noend; mkdir d; echo x > d/gone; echo y > d/stays; \
             mkdir whole; echo a > whole/a; mkdir whole/sub; echo b > whole/sub/b; echo run > script; ln -s long link; echo f > filetolink; \
             echo moved along > old; printf 'q' > \"quo\\\"te\"; echo 's p' > 's p'; : > empty; head -c 3000 /dev/zero > binary; cp -a . ../copy"
        ));
        let merged = world.run(&["mount", "--backend", backend, "--id", "ov", "--print", "merged", "low"]).ok().out;
        let deeds = "sed -i '5d;20s/20/twenty/;39,40d' long; echo 0 > n; cat long >> n; mv n long; printf 'no end\nnow' > noend; rm d/gone; \
            rm -r whole; chmod +x script; rm link; ln -s elsewhere link; rm filetolink; ln -s long filetolink; mv old new; \
            echo more >> 'quo\"te'; echo t >> 's p'; echo no longer > empty; : > created; printf '\\377 odd' > \"$(printf 'o\\303\\244 d\\t')\"; \
            echo z > d/new; mkdir newdir; echo 1 > newdir/f; chmod +x newdir/f";
        out(&format!("cd {}; {deeds}", merged.trim_end()));
        let ran = world.run(&["diff", "--patch", "ov"]).ok();
        assert!(ran.err.is_empty() || ran.err.contains("cannot carry"), "{ran:?}");
        // As bytes: a patch is no more UTF-8 than the files are.
        let patch = world.command(&["diff", "--patch", "ov"]).output().unwrap().stdout;
        std::fs::write(world.dir.join("patch"), patch).unwrap();
        out(&format!("cd {dir}/copy; git apply --whitespace=nowarn ../patch"));
        let tree = |place: &str| out(&format!("cd {place}; {AS_GIT_SEES_IT}"));
        assert_eq!(tree(&format!("{dir}/copy")), tree(merged.trim_end()), "{backend}: {}", ran.out);

        // What git cannot carry is named, and no harm to the patch.
        out(&format!(
            "cd {}; echo >> binary; setfattr -n user.a -v b script; mkfifo fifo; mkdir emptydir",
            merged.trim_end()
        ));
        let ran = world.run(&["diff", "--patch", "ov"]).ok();
        for note in [
            "# no text, or too much: /binary",
            "# xattr changed: /script",
            "# a special file: /fifo",
            "# a directory: /emptydir",
        ] {
            assert!(ran.out.contains(note), "{note} in {}", ran.out);
        }
        // As bytes: a patch is no more UTF-8 than the files are.
        let patch = world.command(&["diff", "--patch", "ov"]).output().unwrap().stdout;
        std::fs::write(world.dir.join("patch"), patch).unwrap();
        out(&format!("cd {dir}/low; git apply --whitespace=nowarn ../patch"));
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}
