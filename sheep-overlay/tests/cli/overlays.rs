//! Mounting, looking, unmounting.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{World, kernel, mode, names_in, sh};

#[test]
fn a_stack_is_one_tree_and_goes_without_a_trace() {
    let world = World::root();
    let low = world.lower("low", &["a", "both", "dir/x"]);
    let top = world.lower("top", &["b", "both"]);
    let document = world.run(&["mount", "--id", "ov", "low", "top"]).json();
    let overlay = &document["overlay"];
    assert_eq!(overlay["id"], "ov");
    assert_eq!(overlay["backend"], "kernel");
    assert_eq!(overlay["lower"], json!([low, top]), "bottom first, absolute");
    let merged = world.merged("ov");
    assert_eq!(overlay["merged"], json!(merged));
    assert_eq!(names_in(&merged), ["a", "b", "both", "dir"]);
    assert_eq!(fs::read_to_string(merged.join("both")).unwrap(), "top", "the last lower hides the others");

    fs::write(merged.join("new"), "1").unwrap();
    fs::remove_file(merged.join("a")).unwrap();
    fs::remove_dir_all(merged.join("dir")).unwrap();
    fs::create_dir(merged.join("dir")).unwrap();
    assert_eq!(names_in(&merged.join("dir")), Vec::<String>::new());
    assert_eq!(names_in(&low), ["a", "both", "dir"], "the lowers are not touched");
    assert_eq!(world.state("ov").unwrap(), "mounted");

    let ran = world.run(&["umount", "ov"]).ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    world.is_clean();
    assert_eq!(names_in(&low), ["a", "both", "dir"]);
}

#[test]
fn two_overlays_on_one_lower_do_not_see_each_other() {
    let world = World::root();
    world.lower("low", &["a"]);
    let (one, two) = (world.mount("one", &["low"]), world.mount("two", &["low"]));
    fs::write(one.join("x"), "").unwrap();
    assert_eq!(names_in(&two), ["a"]);
    world.run(&["umount", "one", "two"]).ok();
    world.is_clean();
}

#[test]
fn the_root_of_the_tree_looks_like_the_topmost_lower() {
    let world = World::root();
    world.lower("low", &[]);
    world.lower("top", &[]);
    sh(&format!(
        "cd {}; chmod 2771 top; chown 12:34 top; setfattr -n user.colour -v blue top; setfacl -m u:7:rx top; \
         setfattr -n trusted.overlay.opaque -v y top; touch -d '2001-02-03 04:05:06' top",
        world.dir.display()
    ));
    let merged = world.mount("ov", &["low", "top"]);
    let seen = sh(&format!(
        "cd {0}; stat -c '%a %u %g %Y' {1} top; getfattr --absolute-names -d {1}; getfacl -nc {1} top",
        world.dir.display(),
        merged.display()
    ));
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert!(seen.contains("user.colour=\"blue\""), "{seen}");
    assert_eq!(seen.matches("user:7:r-x").count(), 2, "{seen}");
    let upper = world.data.join("overlay/ov/upper");
    let all = sh(&format!("getfattr --absolute-names -m - -d {}", upper.display()));
    assert!(!all.contains("overlay.opaque"), "{all}");
}

#[test]
fn documents_pass_through() {
    let world = World::root();
    let (low, top) = (world.lower("low", &["a"]), world.lower("top", &["b"]));
    let input = json!({
        "mine": {"kept": [1, null]},
        "image": {"digest": "sha256:0", "layers": [{"diffId": "1", "path": low}, {"diffId": "2", "path": top}], "config": {}},
        "last": true
    })
    .to_string();
    let ran = world.run_with(&input, &["mount", "-", "--id", "ov"]);
    let document = ran.json();
    assert_eq!(document["overlay"]["lower"], json!([low, top]));
    let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["mine", "image", "last", "overlay"]);
    assert_eq!(document["mine"], json!({"kept": [1, null]}));
    assert_eq!(ran.out.lines().count(), 1, "one line where it is not a terminal");

    // The same document on its way through the other verbs.
    fs::write(world.dir.join("doc"), &ran.out).unwrap();
    let looked_up = world.run(&["inspect", "--from", "doc"]).json();
    assert_eq!(looked_up, document);
    assert_eq!(world.run(&["inspect", "--from", "doc", "--print", "image.digest"]).out, "sha256:0\n");
    let kept = world.run(&["umount", "--keep", "--from", "doc"]).json();
    assert_eq!(kept["mine"], document["mine"]);
    assert_eq!(kept["overlay"]["mountId"], Value::Null);
    let again = world.run_with(&kept.to_string(), &["mount", "-"]).json();
    assert_eq!(again["overlay"]["id"], "ov", "a document with an overlay means that overlay");
    assert_eq!(again["last"], true);
    world.run_with(&again.to_string(), &["umount", "-"]).ok();
    world.is_clean();
    world.run(&["umount", "--from", "doc"]).fails(3, &["ov", "no such overlay"]);
    // Its overlay is gone, so the document makes another on the same layers.
    let other = world.run(&["mount", "--from", "doc"]).json();
    assert_ne!(other["overlay"]["id"], "ov");
    assert_eq!(other["overlay"]["lower"], json!([low, top]));
}

#[test]
fn one_field_is_printed_raw() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let merged = world.run(&["mount", "--id", "ov", "--print", "merged", "low"]).ok().out;
    assert_eq!(merged, format!("{}\n", world.merged("ov").display()));
    assert_eq!(world.run(&["inspect", "ov", "--print", "readOnly"]).out, "false\n");
    assert_eq!(world.run(&["inspect", "ov", "--print", "overlay.lower"]).out, format!("[\"{}\"]\n", low.display()));
    world.run(&["inspect", "ov", "--print", "nothing"]).fails(2, &["nothing"]);
}

#[test]
fn a_field_that_does_not_exist_leaves_no_mount() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.run(&["mount", "--print", "nothing", "low"]).fails(2, &["nothing"]);
    world.is_clean();
}

#[test]
fn a_mount_that_nobody_hears_of_is_undone() {
    let world = World::root();
    world.lower("low", &["a"]);
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let status = world.command(&["mount", "low"]).stdout(full()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    world.is_clean();
    // One that was taken up is kept.
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("new"), "").unwrap();
    world.run(&["umount", "--keep", "ov"]).ok();
    let status = world.command(&["mount", "--id", "ov"]).stdout(full()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(world.state("ov").unwrap(), "kept");
    world.mount("ov", &[]);
    assert_eq!(names_in(&merged), ["a", "new"]);
}

#[test]
fn overlays_are_named_by_id_prefix_or_path() {
    let world = World::root();
    world.lower("low", &["dir/x"]);
    for id in ["alpha", "alpine", "beta"] {
        world.mount(id, &["low"]);
    }
    let id = |name: &str| world.run(&["inspect", name, "--print", "id"]);
    assert_eq!(id("alpha").out, "alpha\n");
    assert_eq!(id("alph").out, "alpha\n");
    assert_eq!(id("b").out, "beta\n");
    id("alp").fails(2, &["alpha, alpine"]);
    id("gamma").fails(3, &["gamma", "no such overlay"]);
    let inside = world.merged("beta").join("dir");
    assert_eq!(id(inside.to_str().unwrap()).out, "beta\n");
    assert_eq!(id("data/overlay/beta/merged").out, "beta\n", "relative");
    assert_eq!(id("data/overlay/beta").out, "beta\n");
    id("data/overlay/beta/upper").fails(3, &["no such overlay"]);
    id("low").fails(3, &["no such overlay"]);
    let here = world.command(&["inspect", ".", "--print", "id"]).current_dir(&inside).output().unwrap();
    assert_eq!(here.stdout, b"beta\n");
    // Several: it goes on after an error, and the first error makes the exit code.
    let ran = world.run(&["umount", "alpha", "gamma", "/low", "beta"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.err.lines().count(), 2, "{ran:?}");
    world.run(&["ls"]).ok();
    assert_eq!(world.in_overlay_dir(), ["alpine"]);
}

#[test]
fn umount_from_within_is_not_busy_by_itself() {
    let world = World::root();
    world.lower("low", &["dir/x"]);
    let merged = world.mount("ov", &["low"]);
    let status = world.command(&["umount", "."]).current_dir(&merged).status().unwrap();
    assert_eq!(status.code(), Some(0));
    world.is_clean();
}

#[test]
fn lists_are_documents() {
    let world = World::root();
    world.lower("low", &["a"]);
    assert_eq!(world.run(&["ls", "--json"]).ok().out, "");
    assert_eq!(world.run(&["ls"]).ok().out, "ID  STATE  BACKEND  LOWERS  CREATED  MERGED\n");
    world.mount("one", &["low"]);
    world.mount("two", &["low"]);
    world.run(&["umount", "--keep", "two"]).ok();
    let list = world.run(&["ls", "--json"]).ok().out;
    let documents: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(documents.len(), 2);
    assert!(documents[0]["overlay"]["mountId"].is_u64());
    assert_eq!(documents[1]["overlay"].get("mountId"), None);
    assert_eq!(documents[1]["overlay"].get("bootId"), None);
    assert_eq!(documents[0], world.run(&["inspect", "one"]).json());
    world.run_with(&list, &["umount", "-"]).ok();
    world.is_clean();
}

#[test]
fn p25_read_only_with_one_lower_and_with_several() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.lower("top", &["b"]);
    for lowers in [&["low"][..], &["low", "top"]] {
        let mut args = vec!["mount", "--id", "ov", "--read-only"];
        args.extend(lowers);
        assert_eq!(world.run(&args).json()["overlay"]["readOnly"], true);
        let merged = world.merged("ov");
        assert_eq!(names_in(&merged).len(), lowers.len());
        let refused = fs::write(merged.join("new"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        world.run(&["umount", "ov"]).ok();
        world.is_clean();
    }
}

#[test]
fn p26_the_mount_is_private() {
    let world = World::root();
    world.lower("low", &["a"]);
    let data = world.data.display();
    sh(&format!("mkdir {data}; mount --bind {data} {data}; mount --make-private {data}; mount --make-shared {data}"));
    world.mount("ov", &["low"]);
    let line = sh(&format!("grep {} /proc/self/mountinfo | grep merged", world.dir.display()));
    assert!(!line.contains("shared:"), "{line}");
    assert!(line.contains(&format!("upperdir={data}/overlay/ov/upper")), "final paths are seen: {line}");
    world.run(&["umount", "ov"]).ok();
    sh(&format!("umount {data}"));
    world.is_clean();
}

#[test]
fn p08_five_hundred_lowers() {
    let world = World::root();
    // Before Linux 6.5 all their names must fit into a page.
    let count = if kernel() < (6, 5) { 200 } else { 500 };
    let names: Vec<String> = (0..count).map(|n| format!("l/{n}")).collect();
    for name in &names {
        world.lower(name, &[]);
        fs::write(world.dir.join(name).join(name.replace('/', "")), name).unwrap();
    }
    let mut args = vec!["mount", "--id", "ov", "--backend", "kernel"];
    args.extend(names.iter().map(String::as_str));
    let ran = world.command(&args);
    // Few descriptors to begin with.
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -Sn 128; exec \"$@\"", "sh"])
        .arg(ran.get_program())
        .args(ran.get_args())
        .current_dir(&world.dir)
        .env("SHEEP_DATA_DIR", &world.data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names_in(&world.merged("ov")).len(), count);
    world.run(&["umount", "ov"]).ok();
    world.is_clean();
}

#[test]
fn p08_the_501st_lower_is_refused() {
    let world = World::root();
    let names: Vec<String> = (0..501).map(|n| format!("l/{n}")).collect();
    for name in &names {
        world.lower(name, &[]);
    }
    let mut args = vec!["mount"];
    args.extend(names.iter().map(String::as_str));
    world.run(&args).fails(2, &["501", "500"]);
    world.is_clean();
}

#[test]
fn p13_a_lower_may_hold_the_data_directory() {
    let world = World::root();
    world.lower("low", &["a"]);
    fs::create_dir(&world.data).unwrap();
    let merged = world.run(&["mount", "--print", "merged", "."]).ok().out;
    let merged = std::path::Path::new(merged.trim_end());
    fs::write(merged.join("new"), "").unwrap();
    assert!(merged.join("low/a").exists());
    assert!(!world.dir.join("new").exists());
    world.run(&["umount", merged.to_str().unwrap()]).ok();
    world.is_clean();
}

#[test]
fn p09_two_levels_stack_and_a_third_is_copied() {
    let world = World::root();
    world.lower("low", &["a"]);
    let one = world.mount("one", &["low"]);
    let two = world.mount("two", &[one.to_str().unwrap()]);
    assert_eq!(names_in(&two), ["a"]);
    let refused = world.run(&["mount", "--id", "three", "--backend", "kernel", two.to_str().unwrap()]);
    refused.fails(1, &["mount", "nvalid argument"]);
    assert_eq!(world.in_overlay_dir(), ["one", "two"]);
    let copied = world.run(&["mount", "--id", "three", two.to_str().unwrap()]);
    assert_eq!(copied.json()["overlay"]["backend"], "copy");
    assert_eq!(names_in(&world.merged("three")), ["a"]);
}

#[test]
fn p20_in_a_user_namespace_directories_can_be_made_over_deleted_ones() {
    let world = World::root();
    world.lower("low", &["dir/x"]);
    let script = format!(
        "m=$({} --root {} mount --backend kernel --print merged low); rm -r $m/dir; mkdir $m/dir; ls -A $m/dir; \
         grep -o userxattr /proc/self/mountinfo; {} --root {} umount $m",
        crate::harness::BIN,
        world.data.display(),
        crate::harness::BIN,
        world.data.display(),
    );
    let output = std::process::Command::new("unshare")
        .args(["-Urm", "sh", "-ec", &script])
        .current_dir(&world.dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"userxattr\n");
    world.is_clean();
}

#[test]
fn the_data_directory_is_its_owners_alone() {
    let world = World::root();
    world.lower("low", &["a"]);
    world.mount("ov", &["low"]);
    for dir in ["", "overlay", "overlay/ov", "overlay/ov/work"] {
        assert_eq!(mode(&world.data.join(dir)), 0o700, "{dir}");
    }
    for file in ["overlay/ov/overlay.json", "overlay/ov/lock"] {
        assert_eq!(mode(&world.data.join(file)), 0o600, "{file}");
    }
}
