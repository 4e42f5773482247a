//! Cases by name. The numbers (`p32_…`) are those of the list of overlay pitfalls.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use sheep_overlay::backend::copy::note::Note;

use crate::trees::{Scratch, sh};
use crate::{Both, lines};

/// One lower made by a script, its overlay and its copy.
fn both(lower: &str) -> (Scratch, Both) {
    let mut scratch = Scratch::on("tmpfs");
    let dir = scratch.dir().to_path_buf();
    fs::create_dir(dir.join("lower")).unwrap();
    sh(&format!("cd {}/lower; {lower}", dir.display()));
    let both = Both::new(&mut scratch, &dir, &[dir.join("lower")]);
    (scratch, both)
}

/// Does `deeds` in both, and checks what changed.
fn check(lower: &str, deeds: &str, want: &[&str]) {
    let (_scratch, both) = both(lower);
    for overlay in [&both.kernel, &both.copy] {
        sh(&format!("cd {}; {deeds}", overlay.merged.display()));
        assert_eq!(lines(overlay), want, "{}: {deeds}", overlay.id);
    }
}

#[test]
fn p32_a_file_opened_for_writing_is_no_change() {
    let (_scratch, both) = both("echo one > f; touch empty");
    for overlay in [&both.kernel, &both.copy] {
        for name in ["f", "empty"] {
            OpenOptions::new().read(true).write(true).open(overlay.merged.join(name)).unwrap();
        }
        assert_eq!(lines(overlay), [""; 0], "{}", overlay.id);
    }
    assert!(both.kernel.upper.join("f").exists(), "the kernel copied it up");
}

#[test]
fn p33_each_attribute_is_a_change_of_its_own() {
    let lower = "for f in mode owner xattr acl time same; do echo x > $f; done; setfattr -n user.a -v 1 xattr";
    let deeds = "chmod 600 mode; chown 7 owner; setfattr -x user.a xattr; setfacl -m u:9:r acl; touch -d @5 time; \
                 chmod +x same; chmod -x same";
    check(
        lower,
        &format!("touch -d @9 same; {deeds}"),
        &["M /acl", "M /mode", "M /owner", "M /same", "M /time", "M /xattr"],
    );
    check("mkdir d; touch -d @1 d; ln -s t l", "touch d; chown -h 3 l", &["M /l"]);
    check(
        "mkdir d; mkdir e; mkdir f",
        "chmod 700 d; setfattr -n user.x -v y e; touch f/new",
        &["M /d", "M /e", "A /f/new"],
    );
}

#[test]
fn p34_a_change_of_type_is_one_line_and_what_is_new_below() {
    check(
        "mkdir -p d/e; touch d/e/f g",
        "rm -r d; echo > d; rm g; mkdir g; touch g/new",
        &["T /d", "T /g", "A /g/new"],
    );
    check("touch a; ln -s x b", "rm a b; mkfifo a; mknod b c 1 3", &["T /a", "T /b"]);
    check("touch f", "rm f; mkdir f", &["T /f"]);
}

#[test]
fn p35_a_directory_made_anew_is_compared_with_the_old_one() {
    let lower = "mkdir -p d/sub; echo 1 > d/same; echo 2 > d/gone; touch d/sub/x";
    let deeds = "cp -a d/same /tmp/.$$; rm -r d; mkdir d; mv /tmp/.$$ d/same; touch d/new";
    check(lower, deeds, &["O /d", "D /d/gone", "A /d/new", "D /d/sub"]);
    check(lower, "rm -r d; mkdir -p d/sub", &["O /d", "D /d/gone", "D /d/same", "O /d/sub", "D /d/sub/x"]);
    check(lower, "rm -r d/sub; mkdir d/sub; touch d/sub/x; chmod 700 d/sub", &["O /d/sub", "M /d/sub/x"]);
    check(lower, "mkdir new; mkdir new/inner", &["A /new", "A /new/inner"]);
    check(lower, "rm -r d", &["D /d"]);
    check(lower, "mv d e", &["D /d", "A /e", "A /e/gone", "A /e/same", "A /e/sub", "A /e/sub/x"]);
}

/// Equal names, sizes and times, as reproducible builds have them: only the content tells that the trees were swapped.
#[test]
fn a_tree_swapped_for_one_that_looks_the_same_is_seen() {
    let lower = "mkdir -p app/lib new/lib; echo 1.2.3 > app/lib/version; echo 1.2.4 > new/lib/version; \
                 touch -d @7 */lib/version";
    check(lower, "mv app old; mv new app; rm -r old", &["O /app", "O /app/lib", "M /app/lib/version", "D /new"]);
    check(
        lower,
        "mv app/lib old; mv new/lib app/lib; mv old new/lib",
        &["O /app/lib", "M /app/lib/version", "O /new/lib", "M /new/lib/version"],
    );
}

/// The ctime of an inode that was changed in the very moment after the copying may be that of the copying.
#[test]
fn a_change_at_once_after_the_copy_is_seen() {
    for round in 0..50 {
        let scratch = Scratch::new();
        let dir = scratch.path.as_path();
        sh(&format!("cd {}; mkdir lower copy copy/merged; echo one > lower/f; touch -d @1 lower/f", dir.display()));
        let lower = dir.join("lower");
        let copy = crate::overlay(&dir.join("copy"), sheep_overlay::doc::Backend::Copy, std::slice::from_ref(&lower));
        sheep_overlay::backend::copy::copy_stack(&[lower], &copy.merged, false).unwrap();
        fs::write(copy.merged.join("f"), "two\n").unwrap();
        let file = OpenOptions::new().write(true).open(copy.merged.join("f")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
        assert_eq!(lines(&copy), ["M /f"], "round {round}");
    }
}

/// That what was not touched is not read: else `diff` of a big copy would take as long as the copying.
#[test]
fn what_was_not_touched_is_not_compared() {
    let (_scratch, both) = both("mkdir -p a/b; echo one > a/b/f; echo two > g");
    // A lower is not to change under its copy; here it shows who looks. Small as the tree is, it was all copied in the
    // last tick of the clock, of which the note says nothing: give it a later one.
    let (mut note, _) = Note::read(&both.copy.merged).unwrap();
    let copied = both.copy.merged.with_file_name("copied");
    let text = fs::read(&copied).unwrap();
    let directories = &text[text.iter().position(|byte| *byte == b'\n').unwrap()..];
    note.to.0 += 1;
    fs::write(&copied, [&serde_json::to_vec(&note).unwrap(), directories].concat()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sh(&format!("cd {}; echo ONE > a/b/f; touch {}/new", both.copy.lower[0].display(), both.copy.merged.display()));
    assert_eq!(lines(&both.copy), ["A /new"]);
}

#[test]
fn hard_links_stay_together_in_a_copy_alone() {
    let (_scratch, both) = both("echo 1 > a; ln a b");
    for overlay in [&both.kernel, &both.copy] {
        sh(&format!("echo 2 >> {}/a", overlay.merged.display()));
    }
    assert_eq!(lines(&both.kernel), ["M /a"], "OverlayFS breaks them");
    assert_eq!(lines(&both.copy), ["M /a", "M /b"]);
    check("echo 1 > a", "ln a b", &["M /a", "A /b"]);
}

/// OverlayFS with `index=off` breaks the links of what it copies up.
#[test]
fn p38_a_broken_hard_link_alone_is_no_change() {
    let (_scratch, both) = both("echo 1 > a; ln a b");
    for overlay in [&both.kernel, &both.copy] {
        OpenOptions::new().read(true).write(true).open(overlay.merged.join("a")).unwrap();
        assert_eq!(lines(overlay), [""; 0], "{}", overlay.id);
        fs::remove_file(overlay.merged.join("b")).unwrap();
        assert_eq!(lines(overlay), ["D /b"], "{}", overlay.id);
    }
}

#[test]
fn p37_what_was_moved_unchanged_is_a_rename() {
    let lower = "mkdir d; echo one > d/f; ln -s t l; mkfifo p; echo 0123456789 > big; touch -d @9 big";
    check(lower, "mv d/f g; mv l d/l; mv p q", &["R /l -> /d/l", "R /d/f -> /g", "R /p -> /q"]);
    check(lower, "mv big new; echo x >> new; touch -d @9 new", &["D /big", "A /new"]);
    check(lower, "mv big new; chmod 600 new", &["D /big", "A /new"]);
    check(lower, "mv big new; touch big", &["M /big", "A /new"]);
    check(lower, "mv d e", &["D /d", "A /e", "A /e/f"]);
    check(lower, "mv big d/big; mkdir x; mv d/big x/bag", &["A /x", "R /big -> /x/bag"]);
}

/// Files that look the same: which became which is told by the inode where it can be, else it is always the same guess.
#[test]
fn renames_among_files_that_look_the_same() {
    let lower = "for f in 1 2 3; do echo x > $f; touch -d @9 $f; done; echo y > 4; touch -d @9 4; mkdir d";
    let (_scratch, two) = both(lower);
    sh(&format!("cd {}; mv 1 b; mv 2 a; mv 4 c", two.kernel.merged.display()));
    assert_eq!(lines(&two.kernel), ["R /2 -> /a", "R /1 -> /b", "R /4 -> /c"]);
    sh(&format!("cd {}; mv 1 b; mv 2 a; mv 4 c", two.copy.merged.display()));
    assert_eq!(lines(&two.copy), ["R /1 -> /a", "R /2 -> /b", "R /4 -> /c"]);
    check(lower, "mv 2 d; rm 1 3", &["D /1", "D /3", "R /2 -> /d/2"]);
}

/// What a change is, in full.
#[test]
fn what_changed_is_told_apart() {
    let lower = "for f in mode owner xattr acl time big same both; do echo x > $f; touch -d @9 $f; done; ln -s a link; \
                 mknod dev c 1 3; touch -d @9 dev; touch -h -d @9 link; mkdir dir new; echo z > new/gone";
    let deeds = "chmod 600 mode; chown 7 owner; setfattr -n user.a -v 1 xattr; setfacl -m u:9:r acl; touch -d @5 time; \
                 echo xx > big; touch -d @9 big; echo y > same; touch -d @9 same; echo yy > both; chmod 640 both; \
                 ln both more; ln -sfn b link; touch -h -d @9 link; rm dev; mknod dev c 1 5; touch -d @9 dev; \
                 setfacl -d -m u:9:r dir; rm -r new; mkdir -m 700 new; chown 5 new";
    let want = [
        ("/acl", vec!["acl"]),
        ("/big", vec!["content", "size"]),
        ("/both", vec!["content", "size", "mode", "times", "links"]),
        ("/dev", vec!["device"]),
        ("/dir", vec!["acl"]),
        ("/link", vec!["target"]),
        ("/mode", vec!["mode"]),
        ("/more", vec![]),
        ("/new", vec!["mode", "owner"]),
        ("/new/gone", vec![]),
        ("/owner", vec!["owner"]),
        ("/same", vec!["content"]),
        ("/time", vec!["times"]),
        ("/xattr", vec!["xattr"]),
    ];
    let (_scratch, both) = both(lower);
    for overlay in [&both.kernel, &both.copy] {
        sh(&format!("cd {}; {deeds}", overlay.merged.display()));
        let found = sheep_overlay::diff::changes(overlay).unwrap();
        let found: Vec<(&str, Vec<&str>)> = found
            .iter()
            .map(|change| (change.path.to_str().unwrap(), change.what.iter().map(|a| a.name()).collect()))
            .collect();
        assert_eq!(found, want, "{}", overlay.id);
    }
}

/// The table looks no closer than it must; what it says is the same.
#[test]
fn both_depths_tell_the_same_kinds() {
    use sheep_overlay::diff::{Depth, changes_to};
    let (_scratch, both) =
        both("mkdir d e; for f in 1 2 3; do echo $f > d/$f; echo $f > e/$f; done; echo m > m; echo l > l");
    for overlay in [&both.kernel, &both.copy] {
        sh(&format!(
            "cd {}; mv d/1 one; echo x > d/2; rm -r e; mkdir e; echo 1 > e/1; chmod 600 m; ln l k; rm d/3; mkdir d/3",
            overlay.merged.display()
        ));
        let kinds = |depth| -> Vec<_> {
            let changes = changes_to(overlay, depth).unwrap();
            changes.into_iter().map(|change| (change.path, change.kind, change.from, change.layer)).collect()
        };
        assert_eq!(kinds(Depth::Kinds), kinds(Depth::Everything), "{}", overlay.id);
        assert_eq!(kinds(Depth::Kinds).len(), 10, "{}", overlay.id);
    }
}

#[test]
fn a_tree_deeper_than_there_are_descriptors() {
    let (_scratch, both) = both("touch f");
    for overlay in [&both.kernel, &both.copy] {
        let script = "i=0; while [ $i -lt 1500 ]; do mkdir d e; cd d; i=$((i+1)); done; touch end";
        sh(&format!("cd {}; {script}", overlay.merged.display()));
        let found = sheep_overlay::diff::changes(overlay).unwrap();
        assert_eq!(found.len(), 3001, "{}", overlay.id);
    }
}

#[test]
fn as_a_plain_user_what_could_not_be_kept_is_no_change() {
    crate::trees::need_root();
    let scratch = Scratch::new();
    let dir = scratch.path.display();
    sh(&format!(
        "cd {dir}; mkdir lower; cd lower; echo x > suid; chmod 4755 suid; mknod null c 1 3; mkdir d; echo y > d/f; \
         cp /bin/true cap; setcap cap_net_raw+ep cap; mkfifo p; ln -s t l; chown 12:12 d; mkdir {dir}/home; \
         chown sheeptest {dir}/home; chmod 755 {dir}"
    ));
    let as_user = |script: &str| {
        let script = format!(
            "export SHEEP_DATA_DIR={dir}/home/data; s() {{ {} \"$@\"; }}; {script}",
            env!("CARGO_BIN_EXE_sheep-overlay")
        );
        let output = Command::new("setpriv")
            .args(["--reuid=sheeptest", "--regid=sheeptest", "--init-groups", "sh", "-ec", &script])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{script}\n{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (_, said) = as_user(&format!("s mount --backend copy --id ov {dir}/lower > /dev/null"));
    assert!(said.contains("1 devices left out"), "{said}");
    assert_eq!(as_user("s diff ov").0, "");
    let (changes, _) = as_user(
        "cd $SHEEP_DATA_DIR/overlay/ov/merged; touch new; echo z >> d/f; rm cap; chmod 755 p; chmod 700 suid; s diff ov",
    );
    assert_eq!(changes, "D /cap\nM /d/f\nA /new\nM /p\nM /suid\n");
    let merged = scratch.path.join("home/data/overlay/ov/merged");
    assert_eq!(fs::metadata(merged.join("suid")).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn output_is_lines_or_documents() {
    let (scratch, both) = both("touch 'line\nbreak'");
    fs::remove_file(both.copy.merged.join("line\nbreak")).unwrap();
    fs::write(both.copy.merged.join("ü"), "").unwrap();
    let data = scratch.dir().join("data");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheep-overlay"));
        let output = command.env("SHEEP_DATA_DIR", &data).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let lower = both.copy.lower[0].to_str().unwrap();
    let merged = run(&["mount", "--backend", "copy", "--id", "ov", "--print", "merged", lower]);
    sh(&format!("cd '{}'; rm -- 'line\nbreak'; touch ü \"$(printf '\\377')\"", merged.trim_end()));
    assert_eq!(run(&["diff", "ov"]), "D /line\\nbreak\nA /ü\nA /\\xff\n");
    let documents = format!(
        "{{\"path\":\"/line\\nbreak\",\"change\":\"deleted\",\"layer\":\"{lower}\",\"oldSize\":0}}\n\
         {{\"path\":\"/ü\",\"change\":\"added\",\"size\":0}}\n\
         {{\"path\":{{\"base64\":\"L/8=\"}},\"change\":\"added\",\"size\":0}}\n"
    );
    assert_eq!(run(&["diff", "--json", "ov"]), documents);
    run(&["umount", "ov"]);
}
