//! Looking at images: their steps, their very documents, what each layer has, what differs.

use crate::harness::World;
use crate::maker::{Block, tar};

/// Brings an image of these layers in under a name: an OCI layout, made by hand, with this history.
pub fn import(world: &World, name: &str, layers: &[Vec<u8>], history: &str) {
    let mut script = String::from(
        "set -e; rm -rf lay; mkdir -p lay/blobs/sha256; cd lay/blobs/sha256; put() { d=$(sha256sum < $1 | cut -d' ' -f1); s=$(stat -c %s $1); mv $1 $d; }; l=; f=\n",
    );
    for (n, archive) in layers.iter().enumerate() {
        world.write(&format!("layer{n}"), archive);
        script += &format!(
            "cp ../../../layer{n} x; put x; l=\"$l,{{\\\"mediaType\\\":\\\"application/vnd.oci.image.layer.v1.tar\\\",\\\"digest\\\":\\\"sha256:$d\\\",\\\"size\\\":$s}}\"; f=\"$f,\\\"sha256:$d\\\"\"\n"
        );
    }
    world.write("history", history);
    script += r#"
        echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[${f#,}]}$(cat ../../../history)}" > x; put x
        echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$d\",\"size\":$s},\"layers\":[${l#,}]}" > x; put x
        echo "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$d\",\"size\":$s}]}" > ../../index.json
        echo '{"imageLayoutVersion":"1.0.0"}' > ../../oci-layout; cd ../../..
    "#;
    script += &format!("sheep-images import {name} lay");
    world.sh(&script).ok();
}

fn base() -> Vec<u8> {
    tar()
        .dir(b"d")
        .file(b"d/kept", b"1")
        .file(b"d/changed", b"before")
        .file(b"d/same", b"same")
        .file(b"d/gone", b"12345")
        .file(b"d-x", b"sorts before what is in d")
        .dir(b"o")
        .file(b"o/old", b"123")
        .dir(b"was-dir")
        .file(b"was-dir/inner", b"1234")
        .file(b"\xff", b"no UTF-8")
        .symlink(b"link", b"d/kept")
        .block(Block::new(b"null", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
        .end()
}

fn middle() -> Vec<u8> {
    tar()
        .dir(b"d")
        .file(b"d/changed", b"after!")
        .file(b"d/same", b"same")
        .block(Block::new(b"d/kept", b'0').with(100, b"0000600\0").size(1))
        .content(b"1")
        .file(b"d/.wh.gone", b"")
        .dir(b"o")
        .file(b"o/.wh..wh..opq", b"")
        .file(b"o/new", b"x")
        .file(b"was-dir", b"a file now")
        .symlink(b"link", b"/elsewhere")
        .end()
}

fn top() -> Vec<u8> {
    tar().dir(b"o").dir(b"was-dir").file(b"was-dir/again", b"").file(b"d-x", b"new").file(b".wh.null", b"").end()
}

#[test]
fn history_with_layers() {
    let world = World::root();
    let history = r#","history":[{"created":"2020-01-02T03:04:05Z","created_by":"ADD base\n\u001b[2J","comment":"first"},{"created_by":"ENV A=b","empty_layer":true,"author":"me"},{"created":"2020-01-03T00:00:00Z","created_by":"RUN x"}]"#;
    import(&world, "h", &[base(), middle()], history);
    let table = world.sh("sheep-images history h").ok();
    let layers = world.sh("sheep-images inspect h | jq -r '.image.layers[].diffId[7:19]'").ok();
    let layers: Vec<&str> = layers.lines().collect();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>().join(" "), "CREATED LAYER SIZE COMMENT CREATED BY");
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[1].starts_with("2020-01-03 00:00") && lines[1].contains(layers[1]) && lines[1].ends_with("RUN x"));
    assert!(lines[2].starts_with("- ") && lines[2].contains(" 0 B ") && lines[2].ends_with("ENV A=b"), "{table}");
    assert!(lines[3].contains(layers[0]) && lines[3].ends_with("ADD base\\n\\u{1b}[2J"), "{table}");
    let json = world.sh("sheep-images history h --json | jq -c '[.layer, .size, .createdBy, .emptyLayer, .comment, .author, (.digest == .diffId and .digest != null)]'").ok();
    let sizes = world.sh("sheep-images inspect h | jq '.image.layers[].size'").ok();
    let sizes: Vec<&str> = sizes.lines().collect();
    assert_eq!(
        json,
        format!(
            "[2,{},\"RUN x\",false,null,null,true]\n[null,0,\"ENV A=b\",true,null,\"me\",false]\n[1,{},\"ADD base\\n\\u001b[2J\",false,\"first\",null,true]",
            sizes[1], sizes[0]
        )
    );
    world.sh("sheep-images history nosuch").fails(3, "history nosuch: no such image");
    assert_eq!(world.sh("sheep-images history h | head -c 0; echo ${PIPESTATUS[0]}").ok(), "0");
}

#[test]
fn a_history_that_does_not_match_is_not_guessed_at() {
    let world = World::root();
    import(&world, "less", &[base(), middle()], r#","history":[{"created_by":"RUN x"}]"#);
    let outcome = world.sh("sheep-images history less --json | jq -c '[.layer, .createdBy]'");
    assert_eq!(outcome.stdout, "[null,\"RUN x\"]\n[2,null]\n[1,null]\n");
    assert_eq!(
        outcome.stderr,
        "sheep-images: history less: it tells of 1 step with a layer, and the image has 2 layers: which belong together cannot be told\n"
    );
    import(&world, "none", &[base()], "");
    assert_eq!(world.sh("sheep-images history none --json | jq -c '[.layer, .createdBy]'").ok(), "[1,null]");
    import(&world, "wrong", &[base()], r#","history":{"a":1}"#);
    world.sh("sheep-images history wrong").fails(1, "history wrong: the configuration's history");
}

#[test]
fn the_very_documents() {
    let world = World::root();
    import(&world, "h", &[base()], "");
    let digest = world.sh("sheep-images inspect h --print digest").ok();
    assert_eq!(world.sh("sheep-images inspect h --raw | sha256sum | cut -d' ' -f1").ok(), digest[7..]);
    assert_eq!(world.sh("sheep-images inspect --raw h | sha256sum | cut -d' ' -f1").ok(), digest[7..]);
    world.sh("sheep-images inspect h --raw=manifest | cmp - data/images/blobs/sha256/$(sheep-images inspect h --print digest | cut -d: -f2)").ok();
    let config = world.sh("sheep-images inspect h --raw | jq -r .config.digest").ok();
    assert_eq!(world.sh("sheep-images inspect h --raw=config | sha256sum | cut -d' ' -f1").ok(), config[7..]);
    assert_eq!(world.sh("sheep-images inspect h --raw --print digest").code, 2);
    assert_eq!(world.sh("sheep-images inspect h --raw=layers").code, 2);
}

#[test]
fn a_tree_of_layers() {
    let world = World::root();
    import(&world, "t", &[base(), middle(), top()], "");
    let rows = world.sh("sheep-images tree t --json | jq -c '[.path, .layer, .change, .what, .hiddenBy]'").ok();
    let want = [
        r#"["/",1,"added",null,null]"#,
        r#"["/",2,"same",null,null]"#,
        r#"["/",3,"same",null,null]"#,
        r#"["/d",1,"added",null,null]"#,
        r#"["/d",2,"same",null,null]"#,
        r#"["/d-x",1,"added",null,3]"#,
        r#"["/d-x",3,"modified",["content","size"],null]"#,
        r#"["/d/changed",1,"added",null,2]"#,
        r#"["/d/changed",2,"modified",["content"],null]"#,
        r#"["/d/gone",1,"added",null,2]"#,
        r#"["/d/gone",2,"deleted",null,null]"#,
        r#"["/d/kept",1,"added",null,2]"#,
        r#"["/d/kept",2,"modified",["mode"],null]"#,
        r#"["/d/same",1,"added",null,2]"#,
        r#"["/d/same",2,"same",null,null]"#,
        r#"["/link",1,"added",null,2]"#,
        r#"["/link",2,"modified",["target"],null]"#,
        r#"["/null",1,"added",null,3]"#,
        r#"["/null",3,"deleted",null,null]"#,
        r#"["/o",1,"added",null,2]"#,
        r#"["/o",2,"opaque",null,null]"#,
        r#"["/o",3,"same",null,null]"#,
        r#"["/o/new",2,"added",null,null]"#,
        r#"["/o/old",1,"added",null,2]"#,
        r#"["/was-dir",1,"added",null,2]"#,
        r#"["/was-dir",2,"type",null,3]"#,
        r#"["/was-dir",3,"type",null,null]"#,
        r#"["/was-dir/again",3,"added",null,null]"#,
        r#"["/was-dir/inner",1,"added",null,2]"#,
        r#"[{"base64":"L/8="},1,"added",null,null]"#,
    ];
    assert_eq!(rows, want.join("\n"));
    // What is not hidden is what the kernel shows of the same layers.
    let lowers = world.sh("sheep-images unpack t | jq -r '[.image.layers[].path] | reverse | join(\":\")'").ok();
    world.sh(&format!("mkdir m && mount -t overlay -o ro,lowerdir={lowers} none m")).ok();
    let shown = world.sh("cd m && find . -mindepth 1 | LC_ALL=C sort | sed 's,^.,,' | grep -av $'\\xff'").ok();
    let seen = world.sh("sheep-images tree t --json | jq -r 'select(.hiddenBy == null and .change != \"deleted\") | .path | strings' | grep -v '^/$' | LC_ALL=C sort -u").ok();
    assert_eq!(seen, shown);
    world.sh("umount m").ok();

    let keys = world.sh("sheep-images tree t /null --json --layer 1 | jq -c .; sheep-images tree t link --layer 2 --json | jq -c 'del(.diffId)'").ok();
    let diff_id = world.sh("sheep-images inspect t | jq -r '.image.layers[0].diffId'").ok();
    assert_eq!(
        keys,
        format!(
            "{{\"path\":\"/null\",\"layer\":1,\"diffId\":\"{diff_id}\",\"change\":\"added\",\"type\":\"charDevice\",\"mode\":\"0644\",\"uid\":0,\"gid\":0,\"mtime\":\"1970-01-01T00:00:01Z\",\"device\":\"1:3\",\"hiddenBy\":3}}\n\
             {{\"path\":\"/link\",\"layer\":2,\"change\":\"modified\",\"what\":[\"target\"],\"type\":\"symlink\",\"mode\":\"0777\",\"uid\":0,\"gid\":0,\"size\":10,\"mtime\":\"1970-01-01T00:00:01Z\",\"target\":\"/elsewhere\"}}"
        )
    );
    // A part of it, and a layer of it.
    assert_eq!(
        world.sh("sheep-images tree t was-dir --layer 1 | tr -s ' '").ok(),
        " SIZE LAYER PATH\nA 1 /was-dir (hidden by 2)\nA 4 B 1 /was-dir/inner (hidden by 2)"
    );
    assert_eq!(world.sh("sheep-images tree t /o/old | tail -1 | tr -s ' '").ok(), "A 3 B 1 /o/old (hidden by 2)");
    assert_eq!(world.sh(&format!("sheep-images tree t d --layer {} --json | wc -l", &diff_id[..19])).ok(), "5");
    assert_eq!(world.sh(&format!("sheep-images tree t d --layer {} --json | wc -l", &diff_id[7..])).ok(), "5");
    world.sh("sheep-images tree t /nosuch/x").fails(3, "no layer has /nosuch/x");
    world.sh("sheep-images tree t ../x").fails(2, "no '..'");
    world.sh("sheep-images tree t --layer 4").fails(3, "--layer 4: the image has 3 layers");
    world.sh("sheep-images tree nosuch").fails(3, "tree nosuch: no such image");
    assert_eq!(world.sh("sheep-images tree t | head -n 1; echo ${PIPESTATUS[0]}").ok(), "       SIZE  LAYER  PATH\n0");
    let dir = world.sh("sheep-images inspect t | jq -r '.image.layers[1].path'").ok();
    world
        .sh(&format!("rm -r {dir}; sheep-images tree t"))
        .fails(1, "is not unpacked; 'sheep-images unpack t:latest' first");
}

#[test]
fn a_tree_of_many_layers_needs_few_descriptors() {
    let world = World::root();
    let deep = |n: usize| (0..n).map(|_| "dddd").collect::<Vec<_>>().join("/");
    let layers: Vec<Vec<u8>> = (0..40)
        .map(|n| {
            let path = deep(40);
            tar().pax(b'x', &[(b"path", format!("{path}/f{n}").as_bytes())]).file(b"x", b"1").end()
        })
        .collect();
    import(&world, "deep", &layers, "");
    let outcome = world.sh(
        "ulimit -n 200; sheep-images tree deep --json | jq -r 'select(.type==\"file\").layer' | sort -n | uniq | wc -l",
    );
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("40\n", ""));
}

#[test]
fn a_user_sees_the_same_tree() {
    let world = World::user();
    import(&world, "t", &[base(), middle(), top()], "");
    let rows = world.sh("sheep-images tree t --json | jq -c 'select(.hiddenBy) | [.path, .layer, .hiddenBy]'").ok();
    assert_eq!(
        rows,
        "[\"/d-x\",1,3]\n[\"/d/changed\",1,2]\n[\"/d/gone\",1,2]\n[\"/d/kept\",1,2]\n[\"/d/same\",1,2]\n[\"/link\",1,2]\n[\"/o\",1,2]\n[\"/o/old\",1,2]\n[\"/was-dir\",1,2]\n[\"/was-dir\",2,3]\n[\"/was-dir/inner\",1,2]"
    );
    assert_eq!(world.sh("sheep-images diff t t").ok(), "");
}

#[test]
fn differences_of_images() {
    let world = World::root();
    import(&world, "a", &[base(), middle()], "");
    import(&world, "b", &[base(), middle(), top()], "");
    import(&world, "c", &[base()], "");
    // An image of one layer, with what b shows: nothing is shared, and all is compared.
    let lowers = world.sh("sheep-images unpack b | jq -r '[.image.layers[].path] | reverse | join(\":\")'").ok();
    world.sh(&format!("mkdir m && mount -t overlay -o ro,lowerdir={lowers} none m && tar -C m --format=posix -cf flat.tar . && umount m && sheep-images import flat flat.tar")).ok();
    assert_eq!(world.sh("sheep-images diff a b").ok(), "M /d-x\nD /null\nT /was-dir\nA /was-dir/again");
    assert_eq!(world.sh("sheep-images diff b a").ok(), "M /d-x\nA /null\nT /was-dir");
    assert_eq!(
        world.sh("sheep-images diff c a").ok(),
        "M /d/changed\nD /d/gone\nM /d/kept\nM /link\nA /o/new\nD /o/old\nT /was-dir"
    );
    assert_eq!(world.sh("sheep-images diff b flat; sheep-images diff flat b; sheep-images diff a a").ok(), "");
    assert_eq!(world.sh("sheep-images diff c flat").ok(), world.sh("sheep-images diff c b").ok());
    assert_eq!(
        world.sh("sheep-images diff c a --json d | jq -c '[.path,.change,.what]'").ok(),
        "[\"/d/changed\",\"modified\",[\"content\"]]\n[\"/d/gone\",\"deleted\",null]\n[\"/d/kept\",\"modified\",[\"mode\"]]"
    );
    assert_eq!(world.sh("sheep-images diff c a /link d/gone").ok(), "D /d/gone\nM /link");
    // Bytes are compared where size and time say nothing.
    world.write("x.tar", tar().file(b"f", b"one").end());
    world.write("y.tar", tar().file(b"f", b"two").end());
    world.sh("sheep-images import x x.tar && sheep-images import y y.tar").ok();
    assert_eq!(world.sh("sheep-images diff x y").ok(), "M /f");
    world.sh("sheep-images diff x nosuch").fails(3, "diff x nosuch: nosuch: no such image");
    world.sh("sheep-images diff x y /g").fails(3, "neither has /g");
    assert_eq!(world.sh("sheep-images diff x").code, 2);
    let dir = world.sh("sheep-images inspect y | jq -r '.image.layers[0].path'").ok();
    world.sh(&format!("rm -r {dir}; sheep-images diff x y")).fails(1, "'sheep-images unpack y:latest' first");
}

#[test]
fn a_layer_that_hides_all_below_its_root() {
    for world in [World::root(), World::user()] {
        let base =
            tar().dir(b"d").file(b"d/old", b"1").file(b"gone", b"1").symlink(b"link", b"d").file(b"stays", b"1").end();
        let top = tar()
            .block(Block::new(b"./", b'5').with(100, b"0000700\0"))
            .dir(b"d")
            .file(b"d/new", b"2")
            .file(b"stays", b"22")
            .file(b".wh..wh..opq", b"")
            .end();
        import(&world, "both", &[base.clone(), top.clone()], "");
        import(&world, "alone", &[top], "");
        // The archive alone shows what the two together do, but for what is not there any more.
        assert_eq!(world.sh("sheep-images diff both alone").ok(), "");
        world.sh("sheep-images verify").ok();
        let lowers = world.sh("sheep-images unpack both | jq -r '[.image.layers[].path] | reverse | join(\":\")'").ok();
        let mount = format!(
            "mkdir m && mount -t overlay -o ro,userxattr,lowerdir={lowers} none m && find m | LC_ALL=C sort && stat -c '%a %Y' m"
        );
        let mount = if world.sh("id -u").ok() == "0" {
            format!("{}; umount m", mount.replace("userxattr,", ""))
        } else {
            format!("unshare -Urm sh -c '{}'", mount.replace('\'', "\""))
        };
        assert_eq!(world.sh(&mount).ok(), "m\nm/d\nm/d/new\nm/stays\n700 1");
        assert_eq!(
            world.sh("sheep-images tree both --json | jq -c 'select(.layer == 2) | [.path, .change]'").ok(),
            "[\"/\",\"opaque\"]\n[\"/d\",\"added\"]\n[\"/d/new\",\"added\"]\n[\"/gone\",\"deleted\"]\n[\"/link\",\"deleted\"]\n[\"/stays\",\"added\"]"
        );
        world.sh("sheep-images rm both alone").ok();
        world.assert_empty();
    }
}
