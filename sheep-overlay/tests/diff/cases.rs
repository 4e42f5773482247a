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
        &["M /d", "M /g", "A /g/new"],
    );
    check("touch a; ln -s x b", "rm a b; mkfifo a; mknod b c 1 3", &["M /a", "M /b"]);
}

#[test]
fn p35_a_directory_made_anew_is_compared_with_the_old_one() {
    let lower = "mkdir -p d/sub; echo 1 > d/same; echo 2 > d/gone; touch d/sub/x";
    let deeds = "cp -a d/same /tmp/.$$; rm -r d; mkdir d; mv /tmp/.$$ d/same; touch d/new";
    check(lower, deeds, &["D /d/gone", "A /d/new", "D /d/sub"]);
    check(lower, "rm -r d", &["D /d"]);
    check(lower, "mv d e", &["D /d", "A /e", "A /e/gone", "A /e/same", "A /e/sub", "A /e/sub/x"]);
}

/// Equal names, sizes and times, as reproducible builds have them: only the content tells that the trees were swapped.
#[test]
fn a_tree_swapped_for_one_that_looks_the_same_is_seen() {
    let lower = "mkdir -p app/lib new/lib; echo 1.2.3 > app/lib/version; echo 1.2.4 > new/lib/version; \
                 touch -d @7 */lib/version";
    check(lower, "mv app old; mv new app; rm -r old", &["M /app/lib/version", "D /new"]);
    check(lower, "mv app/lib old; mv new/lib app/lib; mv old new/lib", &["M /app/lib/version", "M /new/lib/version"]);
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
        sheep_overlay::backend::copy::copy_stack(&[lower], &copy.merged).unwrap();
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
    check("echo 1 > a", "ln a b", &["A /b"]);
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
    let documents = "{\"path\":\"/line\\nbreak\",\"change\":\"deleted\"}\n{\"path\":\"/ü\",\"change\":\"added\"}\n\
                     {\"path\":{\"base64\":\"L/8=\"},\"change\":\"added\"}\n";
    assert_eq!(run(&["diff", "--json", "ov"]), documents);
    run(&["umount", "ov"]);
}
