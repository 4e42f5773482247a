//! `apply`: changes are made to the lower, all or none; conflicts; undo; and what happens when something goes wrong.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{World, mode, names_in, sh};

/// All that `find` can tell of a tree but for what names of the same file there are elsewhere; with checksums.
fn listing(dir: &Path) -> String {
    sh(&format!(
        "cd {} && find . -type d -printf '%p %y %m %U:%G %T@\\n' | sort && \
         find . ! -type d -printf '%p %y %m %U:%G %s %T@ %l\\n' | sort && find . -type f -exec sha256sum {{}} + | sort \
         && find . -print0 | sort -z | xargs -0 getfattr -hd -m - 2>/dev/null | grep -v overlay || :",
        dir.display()
    ))
}

/// Later than what was made before: the kernel's clock of files has ticked.
fn tick() {
    std::thread::sleep(Duration::from_millis(15));
}

fn documents(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Nothing is left of transactions but these, done.
#[track_caller]
fn kept(world: &World, count: usize) {
    let dir = world.data.join("applied");
    if count == 0 && !dir.exists() {
        return;
    }
    let names = names_in(&dir);
    let done = names.iter().filter(|name| !name.starts_with('.')).count();
    assert_eq!((done, names.len()), (count, count + 1), "{names:?}");
}

#[test]
fn changes_are_made_and_undone() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "d/x", "gone/y", "kept/z"]);
    sh(&format!("cd {} && ln a d/a2 && setfattr -n user.k -v v kept/z && chmod 4755 b", low.display()));
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && echo new > a && rm b && rm -r gone && mkdir -p n/m && echo q > n/m/q && ln n/m/q n/q2 && mv d/x d/y && \
         chmod 700 d && rm -r kept && echo file > kept && mkfifo n/fifo && truncate -s 64M n/sparse && printf x >> n/sparse && \
         setfattr -n user.k -v w d && ln -s /nowhere n/link && mknod n/null c 1 3",
        merged.display()
    ));
    let want = listing(&merged);
    let dry = world.run(&["apply", "ov", "--dry-run"]).ok();
    assert_eq!(dry.out, world.run(&["diff", "ov"]).ok().out);
    assert_eq!(listing(&low), before, "a dry run changes nothing");

    let document = world.run(&["apply", "ov"]).json();
    assert_eq!(document["apply"]["changes"], dry.out.lines().count());
    assert_eq!(document["apply"]["to"][0], low.to_str().unwrap());
    assert_eq!(document["overlay"]["id"], "ov");
    let ino = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    assert_eq!(ino(&low.join("n/m/q")), ino(&low.join("n/q2")), "hard links stay");
    assert_eq!(listing(&low), want);
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(low.join("n/sparse")).unwrap()) < 64, "holes stay");
    assert_eq!(listing(&merged), want, "the overlay shows the same as before");
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "");
    kept(&world, 1);

    let list = world.run(&["apply", "--list", "--json"]).json();
    assert_eq!(list["apply"]["id"], document["apply"]["id"]);
    assert!(list["apply"]["bytes"].as_u64().unwrap() > 0);
    assert!(world.run(&["apply", "--list"]).ok().out.contains(low.to_str().unwrap()));

    let undone = world.run(&["apply", "ov", "--undo"]).json();
    assert_eq!(undone["apply"]["undone"][0], document["apply"]["id"]);
    assert_eq!(listing(&low), before, "byte by byte, and every attribute");
    kept(&world, 0);
    world.run(&["apply", "ov", "--undo"]).fails(3, &["ov", "nothing of it was applied"]);
    // And once more: what was undone is no conflict.
    world.run(&["apply", "ov"]).ok();
    assert_eq!(listing(&low), want);
}

#[test]
fn what_an_overlay_left_can_be_undone_when_it_is_gone() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("a"), "one").unwrap();
    let first = world.run(&["apply", "ov", "--print", "id"]).ok().out;
    fs::write(merged.join("a"), "two").unwrap();
    fs::write(merged.join("b"), "").unwrap();
    world.run(&["apply", "ov"]).ok();
    world.run(&["umount", "ov"]).ok();
    // Not in their order: the second stands against it.
    let ran = world.run(&["apply", first.trim(), "--undo"]);
    ran.refuses(1, &["1 conflict", "--ours"]);
    assert_eq!(documents(&ran.out)[0]["conflict"]["path"], "/a");
    let undone = world.run(&["apply", "ov", "--undo=2"]).json();
    assert_eq!(undone["apply"]["undone"].as_array().unwrap().len(), 2);
    assert_eq!(listing(&low), before);
    world.run(&["apply", "--undo"]).fails(3, &["nothing was applied"]);
    world.run(&["apply", "ov", "--undo=0"]).refuses(2, &["--undo=0"]);
}

#[test]
fn some_paths_alone() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "d/x"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && echo 1 > a && echo 1 > b && mkdir -p n/m && echo 1 > n/m/f && echo 1 > n/g && mv d/x y",
        merged.display()
    ));
    world.run(&["apply", "ov", "/nothing"]).fails(3, &["/nothing", "nothing changed there"]);
    world.run(&["apply", "ov", "../a"]).fails(2, &["'..'"]);
    world.run(&["apply", "ov", "a"]).ok();
    assert_eq!(
        (fs::read(low.join("a")).unwrap(), fs::read(low.join("b")).unwrap()),
        (b"1\n".to_vec(), b"low".to_vec())
    );
    // A directory that is new goes along, with nothing else in it; a path in the merged directory is understood.
    world.run(&["apply", "ov", merged.join("n/m/f").to_str().unwrap()]).ok();
    assert_eq!(names_in(&low.join("n")), ["m"]);
    // Both ends of a rename.
    world.run(&["apply", "ov", "/d"]).ok();
    assert_eq!((names_in(&low.join("d")).len(), low.join("y").exists()), (0, true));
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "M /b\nA /n/g\n");
    // Or exactly those of a list.
    let ran = world.run_with("/b\0/c\0", &["apply", "ov", "--paths-from", "-"]);
    ran.fails(3, &["/c: nothing changed there"]);
    world.run_with("/b\0", &["apply", "ov", "--paths-from", "-"]).ok();
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "A /n/g\n");
    world.run(&["apply", "ov"]).ok();
    assert_eq!(listing(&low), listing(&merged));
    kept(&world, 5);
    world.run(&["apply", "ov", "--undo=9"]).ok();
    assert_eq!(names_in(&low), ["a", "b", "d"]);
}

#[test]
fn what_was_changed_since_is_a_conflict() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "c", "dir/x", "dir/y", "same", "mode"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && echo ours > a && echo ours > c && echo ours > fine && rm b && rm -r dir && echo same > same && chmod 600 mode",
        merged.display()
    ));
    tick();
    sh(&format!(
        "cd {} && echo theirs > a && echo theirs > b && echo theirs > dir/x && echo same > same && chmod 640 mode",
        low.display()
    ));
    let before = listing(&low);
    let ran = world.run(&["apply", "ov"]);
    ran.refuses(1, &["apply ov: 4 conflicts, nothing was changed", "--ours", "--theirs"]);
    let conflicts: Vec<(String, String, String)> = documents(&ran.out)
        .iter()
        .map(|one| {
            let part = |name: &str| one["conflict"][name].as_str().unwrap().to_owned();
            (part("path"), part("ours"), part("theirs"))
        })
        .collect();
    let want = [("/a", "modified"), ("/b", "deleted"), ("/dir", "deleted"), ("/mode", "modified")]
        .map(|(path, ours)| (path.to_owned(), ours.to_owned(), "changed".to_owned()));
    assert_eq!(conflicts, want);
    assert_eq!(listing(&low), before);
    let dry = world.run(&["apply", "ov", "--dry-run"]);
    dry.refuses(1, &["4 conflicts"]);
    assert!(dry.out.contains("C /a (changed)\n") && dry.out.contains("A /fine\n"), "{}", dry.out);

    let document = world.run(&["apply", "ov", "--theirs"]).json();
    assert_eq!((&document["apply"]["changes"], &document["apply"]["skipped"]), (&3.into(), &4.into()));
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "theirs\n");
    assert!(low.join("dir/x").exists() && low.join("fine").exists());
    // What was applied is not in the way of the rest.
    world.run(&["apply", "ov", "--ours"]).ok();
    assert_eq!((fs::read_to_string(low.join("a")).unwrap(), low.join("dir").exists()), ("ours\n".to_owned(), false));
    assert_eq!(listing(&low), listing(&merged));
    world.run(&["apply", "ov", "--undo=2"]).ok();
    assert_eq!(listing(&low), before, "theirs is put back as well");
    assert_eq!(world.run(&["apply", "ov", "--ours", "--theirs"]).code, 2);
}

#[test]
fn undo_does_not_take_what_was_made_since() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "c"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo 1 > a && echo 1 > b && rm c && mkdir n", merged.display()));
    world.run(&["apply", "ov"]).ok();
    tick();
    sh(&format!("cd {} && echo later >> a && echo new > c && echo more > n/more", low.display()));
    let between = listing(&low);
    let ran = world.run(&["apply", "ov", "--undo"]);
    ran.refuses(1, &["3 conflicts", "nothing was changed"]);
    let theirs = |at: usize| documents(&ran.out)[at]["conflict"]["theirs"].clone();
    assert_eq!((theirs(0), theirs(1), theirs(2)), ("changed".into(), "added".into(), "changed".into()), "{}", ran.out);
    assert_eq!(listing(&low), between);
    let document = world.run(&["apply", "ov", "--undo", "--theirs"]).json();
    assert_eq!(document["apply"]["skipped"], 3);
    let read = |name: &str| fs::read_to_string(low.join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c")), ("1\nlater\n".into(), "low".into(), "new\n".into()));
    assert!(low.join("n/more").exists());
    kept(&world, 0);
}

#[test]
fn undo_puts_back_all_the_same_where_it_is_told_to() {
    let world = World::root();
    let low = world.lower("low", &["a", "c"]);
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo 1 > a && rm c", merged.display()));
    world.run(&["apply", "ov"]).ok();
    tick();
    sh(&format!("cd {} && echo later >> a && echo new > c", low.display()));
    world.run(&["apply", "ov", "--undo", "--ours"]).ok();
    // Only the time of the directory is that of the last change in it.
    let plain = |text: &str| text.lines().filter(|line| !line.starts_with(". ")).collect::<Vec<_>>().join("\n");
    assert_eq!(plain(&listing(&low)), plain(&before));
    kept(&world, 0);
}

#[test]
fn another_directory_is_compared_with_what_the_lowers_had() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "c", "d/x", "d/y"]);
    let top = world.lower("top", &["t"]);
    let merged = world.mount("ov", &["low", "top"]);
    world.run(&["apply", "ov"]).fails(2, &["2 lowers", "--to DIR"]);
    sh(&format!(
        "cd {} && echo 1 > a && rm b && rm -r d && mkdir -p n && echo 1 > n/f && echo 1 > c",
        merged.display()
    ));
    sh(&format!(
        "cd {} && mkdir to && cp -a low/. top/. to/ && echo theirs > to/c && mkdir to/n && echo 2 > to/n/other",
        world.dir.display()
    ));
    let to = world.dir.join("to");
    world.run(&["apply", "ov", "--to", "nowhere"]).fails(3, &["--to nowhere"]);
    world.run(&["apply", "ov", "--to", "to/a"]).fails(2, &["not a directory"]);
    let ran = world.run(&["apply", "ov", "--to", "to"]);
    ran.refuses(1, &["1 conflict"]);
    assert_eq!(documents(&ran.out)[0]["conflict"]["path"], "/c");
    world.run(&["apply", "ov", "--to", "to", "--ours"]).ok();
    assert_eq!(names_in(&to), ["a", "c", "n", "t"]);
    assert_eq!(
        (names_in(&to.join("n")), fs::read_to_string(to.join("c")).unwrap()),
        (vec!["f".into(), "other".into()], "1\n".into())
    );
    assert_eq!((names_in(&low).len(), names_in(&top).len()), (4, 1), "the lowers are as they were");
    // Again: all is there already.
    world.run(&["apply", "ov", "--to", "to"]).ok();
    // A directory that lacks what is above a change.
    fs::create_dir(world.dir.join("empty")).unwrap();
    fs::write(merged.join("n/g"), "").unwrap();
    let ran = world.run(&["apply", "ov", "/a", "--to", "empty"]);
    ran.refuses(1, &["1 conflict"]);
    assert_eq!(documents(&ran.out)[0]["conflict"]["theirs"], "deleted");
    world.run(&["apply", "ov", "/n", "--to", "empty"]).ok();
    assert_eq!(names_in(&world.dir.join("empty/n")), ["f", "g"]);
}

#[test]
fn what_must_not_be_changed_is_refused() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("a"), "1").unwrap();
    assert_eq!(world.run(&["apply"]).code, 2);
    world.run(&["apply", "nothing"]).fails(3, &["nothing: no such overlay"]);
    world.run(&["apply", "ov", "--to", "data/overlay"]).fails(2, &["data directory"]);
    let inside = world.run(&["exec", "ov", "--", crate::harness::BIN, "apply", "ov"]);
    inside.refuses(2, &["inside of the overlay"]);
    // Over another's upper or a layer of an image: others use it as it is.
    world.run(&["umount", "--keep", "ov"]).ok();
    let below = world.data.join("overlay/ov/upper");
    world.mount("second", &[below.to_str().unwrap()]);
    fs::write(world.merged("second").join("b"), "1").unwrap();
    world.run(&["apply", "second"]).fails(2, &["belongs to the data directory", "--to"]);
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "low");
}

#[test]
fn interactive_by_file_and_by_hunk() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "c"]);
    sh(&format!("seq 40 > {}/text", low.display()));
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && echo 1 > a && rm b && rm c && sed -i 's/^3$/three/; s/^20$/twenty/; s/^39$/39!/' text && mkdir n && echo x > n/x && echo y > z",
        merged.display()
    ));
    let ran = world.run_with("y\n", &["apply", "ov", "-i"]);
    ran.refuses(2, &["no answer, nothing was changed"]);
    assert_eq!(listing(&low), before);
    // a: yes, b: no, c: asks for help first, then yes, n: no (and with it n/x), text: the first and the last hunk, z: no.
    let ran = world.run_with("y\nn\n?\ny\nn\nwhat\np\ns\ny\nn\ny\nq\n", &["apply", "ov", "-i"]).ok();
    assert!(
        ran.err.contains("M /a  apply it? [y,n,a,q,p,s,?]") && ran.err.contains("D /b  apply it? [y,n,a,q,?]"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("q leave it") && ran.err.contains("-20\n+twenty"), "{}", ran.err);
    assert_eq!(names_in(&low), ["a", "b", "text"]);
    let text = fs::read_to_string(low.join("text")).unwrap();
    assert!(text.contains("three") && text.contains("39!") && !text.contains("twenty"), "{text}");
    // What is left is told, and goes on from there.
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "D /b\nA /n\nA /n/x\nM /text\nA /z\n");
    world.run_with("a\n", &["apply", "ov", "--interactive"]).ok();
    assert_eq!(listing(&low), listing(&merged));
    world.run(&["apply", "ov", "--undo=2"]).ok();
    assert_eq!(listing(&low), before);
}

#[test]
fn p47_a_link_in_the_way_leads_nowhere() {
    let world = World::root();
    let low = world.lower("low", &["d/x", "e/x", "fine"]);
    let outside = world.lower("outside", &["x"]);
    let untouched = || {
        assert_eq!((fs::read_to_string(outside.join("x")).unwrap(), names_in(&outside).len()), ("outside".into(), 1));
    };
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo ours > d/x && echo ours > d/new && rm e/x && echo ours > fine", merged.display()));
    let swap = format!("mv d e .. && ln -s {o} d && ln -s {o} e", o = outside.display());
    sh(&format!(
        "cd {} && cp -a low to && cd to && mkdir ../away && mv d e ../away && ln -s {o} d && ln -s {o} e",
        world.dir.display(),
        o = outside.display()
    ));
    tick();
    sh(&format!("cd {} && {swap}", low.display()));
    let before = listing(&low);
    world.run(&["apply", "ov"]).refuses(1, &["conflicts"]);
    assert_eq!(listing(&low), before);
    untouched();
    // The links themselves are replaced.
    world.run(&["apply", "ov", "--ours"]).ok();
    untouched();
    assert!(low.join("d/new").exists() && !low.join("d").is_symlink() && !low.join("e").is_symlink());
    world.run(&["apply", "ov", "--undo"]).ok();
    assert_eq!(listing(&low), before);
    // In a directory that is another one there is nothing to replace them with.
    sh(&format!("cd {} && rm d e && mv ../d ../e .", low.display()));
    let ran = world.run(&["apply", "ov", "--to", "to"]);
    ran.refuses(1, &["conflicts"]);
    assert!(documents(&ran.out).iter().all(|one| one["conflict"]["theirs"] == "notADirectory"), "{}", ran.out);
    world.run(&["apply", "ov", "--to", "to", "--ours"]).refuses(1, &["--theirs leaves these as they are"]);
    world.run(&["apply", "ov", "--to", "to", "--theirs"]).ok();
    untouched();
    assert_eq!(fs::read_to_string(world.dir.join("to/fine")).unwrap(), "ours\n");
}

#[test]
fn p44_what_cannot_be_replaced_undoes_the_rest() {
    let world = World::root();
    let low = world.lower("low", &["a", "fixed", "z"]);
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo 1 > a && echo 1 > fixed && rm z", merged.display()));
    sh(&format!("chattr +i {}", low.join("fixed").display()));
    // The flag is set by who stamps the file.
    let ran = world.run(&["apply", "ov", "--ours"]);
    ran.refuses(1, &["/fixed", "Operation not permitted"]);
    assert_eq!(listing(&low), before, "all as it was");
    kept(&world, 0);
    sh(&format!("chattr -i {}", low.join("fixed").display()));
    world.run(&["apply", "ov", "--ours"]).ok();
    assert_eq!(listing(&low), listing(&merged));
}

#[test]
fn something_mounted_in_the_way_is_left_alone() {
    let world = World::root();
    let low = world.lower("low", &["a", "m/x", "f"]);
    let merged = world.mount("ov", &["--no-recursive", "low"]);
    sh(&format!("cd {} && echo 1 > a && echo 1 > m/x && echo 1 > f && echo 1 > m/y", merged.display()));
    sh(&format!("cd {0} && mount -t tmpfs none m && mount --bind a f", low.display()));
    let ran = world.run(&["apply", "ov"]);
    ran.refuses(1, &["3 conflicts"]);
    assert!(documents(&ran.out).iter().all(|one| one["conflict"]["theirs"] == "mounted"), "{}", ran.out);
    world.run(&["apply", "ov", "--theirs"]).ok();
    sh(&format!("cd {0} && umount m f", low.display()));
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "1\n");
    assert_eq!(
        (fs::read_to_string(low.join("m/x")).unwrap(), fs::read_to_string(low.join("f")).unwrap()),
        ("low".into(), "low".into())
    );
}

#[test]
fn a_target_on_another_file_system_and_one_that_is_full() {
    let world = World::root();
    let low = world.dir.join("low");
    fs::create_dir(&low).unwrap();
    sh(&format!(
        "mount -t tmpfs -o size=1m none {0} && mkdir {0}/in && echo a > {0}/in/a && echo b > {0}/b",
        low.display()
    ));
    tick();
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo 1 > in/a && rm b && mkdir -p in/n", merged.display()));
    world.run(&["apply", "ov"]).ok();
    assert_eq!(names_in(&low), [".sheep-applied", "in"]);
    world.run(&["apply", "ov", "--undo"]).ok();
    assert_eq!(listing(&low), before, "the place for it is gone again, and left no trace in the times");
    fs::write(merged.join("big"), vec![7; 3 << 20]).unwrap();
    world.run(&["apply", "ov"]).refuses(1, &["/big", "No space left on device"]);
    assert_eq!(listing(&low), before);
    kept(&world, 0);
    fs::remove_file(merged.join("big")).unwrap();
    world.run(&["apply", "ov"]).ok();
    world.run(&["gc", "--undo-age", "0s", "--dry-run"]).ok();
    assert!(low.join(".sheep-applied").exists());
    tick();
    std::thread::sleep(Duration::from_secs(1));
    let collected = world.run(&["gc", "--undo-age", "0s"]).ok().out;
    assert!(collected.starts_with("deleted ") && collected.contains("undo of ov, older than 0s"), "{collected}");
    assert_eq!(names_in(&low), ["in"]);
    kept(&world, 0);
    world.run(&["umount", "ov"]).ok();
}

#[test]
fn nobody_else_can_put_things_in_the_place_of_what_is_applied() {
    let world = World::root();
    let low = world.dir.join("low");
    // A file system whose top belongs to somebody else, who has prepared something.
    for script in [
        "mkdir .sheep-applied && chown sheeptest: .sheep-applied",
        "ln -s /tmp .sheep-applied",
        "mkdir -m 777 .sheep-applied",
    ] {
        sh(&format!("mkdir -p {0} && mount -t tmpfs none {0} && cd {0} && echo a > a && {script}", low.display()));
        let merged = world.mount("ov", &["low"]);
        fs::write(merged.join("a"), "1").unwrap();
        world.run(&["apply", "ov"]).refuses(1, &[".sheep-applied"]);
        assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "a\n", "{script}");
        kept(&world, 0);
        world.run(&["umount", "ov"]).ok();
        sh(&format!("umount {}", low.display()));
    }
}

#[test]
fn undo_knows_the_directory_again() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    fs::write(merged.join("a"), "1").unwrap();
    world.run(&["apply", "ov"]).ok();
    world.run(&["umount", "ov"]).ok();
    sh(&format!("cd {} && mv low elsewhere && mkdir low", world.dir.display()));
    world.run(&["apply", "--undo"]).refuses(1, &["low: it is another directory than before"]);
    kept(&world, 1);
    sh(&format!("cd {} && rmdir low && mv elsewhere low", world.dir.display()));
    world.run(&["apply", "--undo"]).ok();
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "low");
}

#[test]
fn gc_keeps_the_newest_of_what_is_too_much() {
    let world = World::root();
    world.lower("low", &["a", "b"]);
    let merged = world.mount("ov", &["low"]);
    for round in 0..3u8 {
        fs::write(merged.join("a"), vec![round; 400 << 10]).unwrap();
        world.run(&["apply", "ov"]).ok();
    }
    world.run(&["gc", "--undo-age", "never"]).refuses(2, &["--undo-age never"]);
    world.run(&["gc", "--undo-size", "much"]).refuses(2, &["--undo-size much"]);
    world.run(&["gc"]).ok();
    kept(&world, 3);
    let out = world.run(&["gc", "--undo-size", "600k"]).ok().out;
    // The first put away "low" alone, and still fits beside the third.
    assert_eq!(out.lines().count(), 1, "{out}");
    kept(&world, 2);
}

#[test]
fn whole_trees_are_applied_to_what_is_mounted() {
    let world = World::root();
    let low = world.lower("low", &["a", "m/hidden"]);
    sh(&format!("mount -t tmpfs none {0}/m && echo t > {0}/m/t && chmod 755 {0}/m", low.display()));
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && echo 1 > a && echo 1 > m/t && echo 1 > m/u", merged.display()));
    world.run(&["apply", "ov"]).ok();
    assert_eq!(
        (fs::read_to_string(low.join("m/t")).unwrap(), fs::read_to_string(low.join("a")).unwrap()),
        ("1\n".into(), "1\n".into())
    );
    world.run(&["apply", "ov", "--undo"]).ok();
    assert_eq!(
        (fs::read_to_string(low.join("m/t")).unwrap(), names_in(&low.join("m"))),
        ("t\n".into(), vec!["t".to_owned()])
    );
    world.run(&["umount", "ov"]).ok();
}

#[test]
fn p43_p45_p49_everything_is_carried() {
    let world = World::root();
    let low = world.lower("low", &["cap", "suid", "plain"]);
    sh(&format!("cd {} && setcap cap_net_raw+ep cap && chmod 4755 suid && mkfifo pipe", low.display()));
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && setcap cap_net_admin+ep cap && chown 12:34 suid && chmod 6711 suid && setfacl -m u:12:r plain && \
         mkdir acl && setfacl -d -m g:34:rx acl && touch -d '1999-01-02 03:04:05.678901234' plain acl && \
         mknod block b 7 250 && python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")' && rm pipe && \
         mkdir closed && echo s > closed/s && chmod 000 closed && dd if=/dev/zero of=hole bs=1 count=1 seek=8M status=none && \
         cp cap cap2 && setcap cap_sys_admin+ep cap2 && touch -h -d '2001-01-01' block && ln -s x l && touch -h -d 2002-02-02 l",
        merged.display()
    ));
    let want = listing(&merged);
    let caps = |dir: &Path| sh(&format!("cd {} && getcap cap cap2; getfacl plain acl", dir.display()));
    let want_caps = caps(&merged);
    world.run(&["apply", "ov"]).ok();
    assert_eq!((listing(&low), caps(&low)), (want, want_caps));
}

#[test]
fn ctrl_c_leaves_all_as_it_was() {
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::root();
    let low = world.lower("low", &["a", "b"]);
    let merged = world.mount("ov", &["low"]);
    sh(&format!("cd {} && for i in $(seq 300); do echo $i > n$i; done; echo 1 > a; rm b", merged.display()));
    let before = listing(&low);
    for micros in [500, 2000, 5000, 9000, 14000] {
        let mut child = world.command(&["apply", "ov"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(micros));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        if child.wait().unwrap().success() {
            assert_eq!(listing(&low), listing(&merged));
            world.run(&["apply", "ov", "--undo"]).ok();
        }
        assert_eq!(listing(&low), before);
        kept(&world, 0);
    }
}

#[test]
fn p46_an_ordinary_user_applies_his_changes_in_closed_directories() {
    let world = World::user();
    let low = world.lower("low", &["a", "closed/x", "closed/y", "d/z"]);
    sh(&format!("cd {0} && chmod 555 closed && chown -R sheeptest: .", low.display()));
    let before = listing(&low);
    world.run(&["mount", "--id", "ov", "low"]).ok();
    let script = "echo 1 > a; chmod 755 closed; rm closed/x; echo 1 > closed/y; chmod 555 closed; rm -r d; mkdir -p n/m; echo 1 > n/m/f; ln n/m/f n/g";
    world.run(&["exec", "ov", "--", "sh", "-ec", script]).ok();
    world.run(&["apply", "ov"]).ok();
    assert_eq!(names_in(&low), ["a", "closed", "n"]);
    assert_eq!((names_in(&low.join("closed")), mode(&low.join("closed"))), (vec!["y".to_owned()], 0o555));
    world.run(&["apply", "ov", "--undo"]).ok();
    assert_eq!(listing(&low), before);
    kept(&world, 0);
    // What is not his own he cannot change, and then nothing is.
    sh(&format!("cd {0} && mkdir other && echo o > other/o && chmod 755 other", low.display()));
    world.run(&["exec", "ov", "--", "sh", "-c", "echo 2 > a"]).ok();
    world.run(&["umount", "ov"]).ok();
    world.run(&["mount", "--id", "copy", "--backend", "copy", "low"]).ok();
    fs::write(world.merged("copy").join("a"), "2").unwrap();
    fs::write(world.merged("copy").join("other/new"), "2").unwrap();
    let before = listing(&low);
    world.run(&["apply", "copy"]).refuses(1, &["/other", "ermi"]);
    assert_eq!(listing(&low), before);
    kept(&world, 0);
    world.run(&["apply", "copy", "/a"]).ok();
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "2");
}

#[test]
fn what_snapshots_put_aside_is_applied_with_the_rest() {
    let world = World::root();
    let low = world.lower("low", &["a", "b", "c", "d/x", "d/y"]);
    let before = listing(&low);
    let merged = world.mount("ov", &["low"]);
    sh(&format!(
        "cd {} && echo 1 > a && rm b && mkdir n && echo 1 > n/f && ln n/f n/g && rm -r d && mkdir d && echo 1 > d/z",
        merged.display()
    ));
    world.run(&["snapshot", "ov"]).ok();
    sh(&format!(
        "cd {} && echo 2 > b && rm n/f && rm -r d && chmod 700 n && echo 2 > c && touch -d 2001-01-01 .",
        merged.display()
    ));
    world.run(&["snapshot", "ov"]).ok();
    sh(&format!("cd {} && echo 3 > n/h", merged.display()));
    let want = listing(&merged);
    world.run(&["apply", "ov"]).ok();
    assert_eq!(listing(&low), want);
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "");
    world.run(&["apply", "ov", "--undo"]).ok();
    assert_eq!(listing(&low), before);
    // A branch is applied to the same lower, and knows what was changed since the overlay was made that it began with.
    tick();
    fs::write(low.join("a"), "theirs").unwrap();
    tick();
    world.run(&["mount", "--branch", "ov@1", "--id", "branch"]).ok();
    world.run(&["apply", "branch"]).refuses(1, &["1 conflict"]);
    assert_eq!(world.run(&["status", "branch"]).out, "M /a\n");
    world.run(&["apply", "branch", "/a", "--ours"]).ok();
    let want = listing(&world.merged("branch"));
    world.run(&["apply", "branch"]).ok();
    assert_eq!(listing(&low), want);
    assert_eq!(world.run(&["status", "branch"]).ok().out, "");
}

#[test]
fn p39_whiteouts_by_xattr_hide_in_what_is_compared_too() {
    let world = World::root();
    world.lower("low", &["d/hidden", "d/kept", "d/other"]);
    let top = world.lower("top", &["d/new"]);
    // As mkfs.erofs and others write them where there are no devices: an empty file with a mark, in a directory with another.
    sh(&format!(
        "cd {} && touch d/hidden && setfattr -n trusted.overlay.whiteout -v y d/hidden && setfattr -n trusted.overlay.opaque -v x d && \
         setfattr -n user.overlay.whiteout -v y d/hidden && setfattr -n user.overlay.opaque -v x d",
        top.display()
    ));
    let merged = world.mount("ov", &["low", "top"]);
    assert_eq!(names_in(&merged.join("d")), ["kept", "new", "other"]);
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "");
    let to = world.dir.join("to");
    sh(&format!("cp -a {0} {1} && echo x > {1}/d/hidden", merged.display(), to.display()));
    sh(&format!("cd {} && echo more > d/hidden && rm d/kept && echo more > d/new", merged.display()));
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "A /d/hidden\nD /d/kept\nM /d/new\n");
    // To the view, the hidden file is none: one at its place is somebody else's.
    let ran = world.run(&["apply", "ov", "--to", "to"]);
    ran.refuses(1, &["1 conflict"]);
    assert_eq!(documents(&ran.out)[0]["conflict"]["theirs"], "added");
    world.run(&["apply", "ov", "--to", "to", "--ours"]).ok();
    assert_eq!(names_in(&to.join("d")), ["hidden", "new", "other"]);
    assert_eq!(fs::read_to_string(to.join("d/hidden")).unwrap(), "more\n");
}

#[test]
fn p50_a_stale_map_does_not_hide_the_change() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    let merged = world.mount("ov", &["low"]);
    // Who mapped the file before it was copied up goes on to see the lower's; what is compared and applied is the upper's.
    let script = "import mmap, os, sys\n\
        f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
        open(sys.argv[1], 'r+b').write(b'new')\n\
        print(m[:].decode(), open(sys.argv[1]).read())\n";
    let out = sh(&format!("python3 -c \"{script}\" {}", merged.join("a").display()));
    assert_eq!(out, "low new\n");
    assert_eq!(world.run(&["diff", "ov"]).ok().out, "M /a\n");
    world.run(&["apply", "ov"]).ok();
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "new");
}

#[test]
fn what_others_own_is_kept_and_counted() {
    let world = World::user();
    let low = world.lower("low", &["a"]);
    sh(&format!("chown -R sheeptest: {}", low.display()));
    let holder = world.run(&["mount", "--id", "ov", "low"]).json()["overlay"]["holder"]["pid"].clone();
    let user = "setpriv --reuid sheeptest --regid sheeptest --clear-groups";
    let inside = |script: &str| {
        sh(&format!("{user} nsenter -U -m -t {holder} sh -ec 'cd {}; {script}'", low.display()));
    };
    // Of another user of the namespace: to the one who applies it, it is closed.
    inside("mkdir d; head -c 300000 /dev/urandom > d/f; chmod 600 d/f; chown -R 5:5 d; chmod 700 d");
    world.run(&["apply", "ov"]).ok();
    inside("rm -r d");
    world.run(&["apply", "ov"]).ok();
    let listed = world.run(&["apply", "--list", "--json"]).ok().out;
    assert!(documents(&listed)[0]["apply"]["bytes"].as_u64().unwrap() > 300_000, "{listed}");
    world.run(&["apply", "--undo"]).ok();
    assert_eq!(fs::metadata(low.join("d/f")).unwrap().len(), 300_000);
    world.run(&["umount", "ov"]).ok();
}

#[test]
fn what_cannot_be_noted_is_applied_all_the_same() {
    let world = World::root();
    let low = world.lower("low", &["a"]);
    fs::write(world.mount("ov", &["low"]).join("a"), "1").unwrap();
    fs::create_dir(world.data.join("overlay/ov/applied.json")).unwrap();
    let ran = world.run(&["apply", "ov"]).ok();
    assert!(ran.err.contains("all is applied") && ran.err.contains("applied.json"), "{ran:?}");
    assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "1");
    kept(&world, 1);
    world.run(&["umount", "ov"]).ok();
}

#[test]
fn gc_names_all_that_it_cannot_do() {
    let world = World::root();
    world.lower("low", &["a"]);
    fs::write(world.mount("ov", &["low"]).join("a"), "1").unwrap();
    world.run(&["apply", "ov"]).ok();
    let broken = world.data.join("overlay/broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("overlay.json"), "{").unwrap();
    let done = names_in(&world.data.join("applied")).into_iter().find(|name| !name.starts_with('.')).unwrap();
    let journal = world.data.join("applied").join(done).join("journal.json");
    let whole = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, "{").unwrap();
    let ran = world.run(&["gc"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("broken") && ran.err.contains("journal.json"), "{}", ran.err);
    fs::write(&journal, whole).unwrap();
    fs::remove_dir_all(&broken).unwrap();
    world.run(&["umount", "ov"]).ok();
}
