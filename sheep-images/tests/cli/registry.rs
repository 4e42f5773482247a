//! Images from and to registries: docker-registry, podman and skopeo; passwords, tokens, TLS, mirrors. What breaks off and lies is in broken.rs, pushes are in push.rs.

use serde_json::{Value, json};

use crate::harness::World;
use crate::interop::PODMAN;
use crate::servers::*;

#[test]
fn pulls_what_skopeo_pushed() {
    for world in [World::root(), World::user()] {
        let real = registry(&world, "");
        let root_made = World::root();
        fill(&root_made, real.port);
        let between = Between::start(&root_made, real.port);
        let port = between.server.port;
        let reference = format!("127.0.0.1:{port}/dir/app:v1");
        let out = world.sh(&format!("sheep-images pull {reference}"));
        assert_eq!(out.code, 0, "{}", out.stderr);
        assert!(out.stderr.is_empty() || out.stderr.contains("as an unprivileged user"), "{}", out.stderr);
        let document: Value = serde_json::from_str(&out.stdout).unwrap();
        assert_eq!(document["image"]["reference"], reference.as_str());
        let digest = document["image"]["digest"].as_str().unwrap().to_owned();
        assert_eq!(root_made.sh("jq -r '.manifests[0].digest' layout/index.json").ok(), digest);
        world.sh("sheep-images verify").ok();
        // Each layer came once, and the manifest.
        assert_eq!(between.asked("GET", "/manifests/").len(), 1);
        assert_eq!(between.asked("GET", "/blobs/").len(), 3);
        // What is there costs one request, by whichever name.
        for (what, name) in [
            (reference.clone(), reference.clone()),
            (format!("{reference} --name here"), "here:latest".to_owned()),
            (format!("127.0.0.1:{port}/dir/app@{digest}"), String::new()),
        ] {
            between.mode(json!({}));
            let again: Value = serde_json::from_str(&world.sh(&format!("sheep-images pull {what}")).ok()).unwrap();
            assert_eq!(again["image"]["reference"].as_str().unwrap_or_default(), name);
            assert_eq!(between.log().len(), 1, "{:?}", between.log());
        }
        // Under no name where none was given.
        world
            .sh(&format!("sheep-images rm {reference} here && sheep-images pull 127.0.0.1:{port}/dir/app@{digest}"))
            .ok();
        assert_eq!(
            world.sh("sheep-images ls --json | jq -r '.image | .reference, .digest'").ok(),
            format!("null\n{digest}")
        );
    }
}

#[test]
fn layers_are_asked_for_while_the_configuration_comes() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let of = |what: &str| {
        world
            .sh(&format!(
                "jq -r '{what}' layout/blobs/sha256/$(jq -r '.manifests[0].digest' layout/index.json | cut -d: -f2)"
            ))
            .ok()
    };
    let (config, layers) = (of(".config.digest"), of(".layers[].digest"));
    let pull = format!("sheep-images pull 127.0.0.1:{}/dir/app:v1", between.server.port);
    for (layer, more) in layers.lines().zip(["--no-unpack", ""]) {
        between.mode(json!({"hold": {"path": config, "until": layer}}));
        world.sh(&format!("{pull} --name of{} {more}", more.len())).ok();
        assert_eq!(between.asked("GET", "/blobs/").len(), 3, "each once");
        world.sh("sheep-images verify && rm -r data").ok();
    }
    // One that is damaged on the way is told of as ever, and nothing is left.
    between
        .mode(json!({"hold": {"path": config, "until": layers.lines().next()}, "say": {"path": config, "body": "{}"}}));
    world.sh(&pull).fails(1, "configuration");
    assert_eq!(
        world.sh("find data/images data/layers -type f ! -name .lock ! -name index.json ! -name oci-layout").ok(),
        ""
    );
}

/// Another image in `layout`: `liar`, which calls the first layer of `app` by the digest of what is in the second.
const LIAR: &str = r#"
    put() { set -- "$(sha256sum < $1 | cut -c-64)" "$1" && cp $2 layout/blobs/sha256/$1 && echo "{\"digest\":\"sha256:$1\",\"size\":$(stat -c %s $2)}"; }
    at() { echo layout/blobs/sha256/$(jq -r "$1.digest" $2 | cut -d: -f2); }
    m=$(at .manifests[0] layout/index.json) && jq -c '.rootfs.diff_ids |= [.[1]]' $(at .config $m) > c && config=$(put c) &&
    jq -c --argjson new "$config" '.config += $new | .layers |= [.[0]]' $m > m && manifest=$(put m) &&
    jq -c --argjson new "$manifest" '.manifests += [.manifests[0] + $new + {"annotations": {"org.opencontainers.image.ref.name": "liar"}}]' layout/index.json > i && mv i layout/index.json"#;

#[test]
fn stored_only_and_looked_into_when_it_is_unpacked() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let app = format!("127.0.0.1:{port}/dir/app:v1");
    let paths =
        |name: &str| world.sh(&format!("sheep-images inspect {name} | jq -c '.image.layers | map(.path)'")).ok();
    let marks = || world.sh("find data/images -name '.unproven-*' | wc -l").ok();
    // A damaged one does not come in.
    between.mode(json!({"flip": 1_000_000, "above": 100_000}));
    world.sh(&format!("sheep-images pull --no-unpack {app}")).fails(1, "its digest is sha256:");
    assert_eq!(world.sh("sheep-images ls --json; ls data/images/blobs/sha256; find data -name '.tmp-*'").ok(), "");
    // Another process is getting one of the layers.
    between.mode(json!({}));
    let held = world.sh("jq -r .manifests[0].digest layout/index.json | cut -d: -f2 | xargs -I{} jq -r .layers[1].digest layout/blobs/sha256/{} | cut -d: -f2").ok();
    world
        .sh(&format!(
            "rm -f data/images/.partial-*; flock data/images/.partial-{held} sheep-images pull --no-unpack {app} && rm data/images/.partial-{held}"
        ))
        .ok();
    assert_eq!((between.asked("GET", "/manifests/").len(), between.asked("GET", "/blobs/").len()), (1, 3));
    assert_eq!((paths(&app).as_str(), marks().as_str()), ("[null,null]", "1"));
    assert_eq!(world.sh("ls data/layers/sha256 && sheep-images verify").ok(), "");
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull --no-unpack {app} && sheep-images push {app} 127.0.0.1:{port}/copy/app")).ok();
    assert_eq!((between.asked("GET", "").len(), between.asked("GET", "/dir/").len()), (1, 1));
    // Of a layer that is there, from another blob, it is not taken on trust that this one is the same.
    world.sh("sheep-images import one 1.tar").ok();
    assert_eq!(paths(&app), "[null,null]");
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull {app}")).ok();
    assert_eq!((between.log().len(), marks().as_str()), (1, "0"));
    assert!(!paths(&app).contains("null"));
    assert_app(&world, &app);
    // One that lies gets nothing of what is in the other's layers, and teaches the store nothing.
    let push = format!("skopeo copy -q --dest-tls-verify=false oci:layout:liar docker://127.0.0.1:{port}/dir/liar:v1");
    world.sh(&format!("{LIAR} && {push}")).ok();
    let liar = format!("127.0.0.1:{port}/dir/liar:v1");
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull --no-unpack {liar}")).ok();
    assert_eq!(between.log().len(), 2, "what the store has does not come once more");
    for what in ["pull", "unpack", "unpack --to out", "export --format rootfs -o out"] {
        let (verb, more) = what.split_once(' ').unwrap_or((what, ""));
        world.sh(&format!("sheep-images {verb} {liar} {more}")).fails(1, "unpacked it is sha256:");
    }
    world.sh("sheep-images import x layout --ref liar").fails(1, "unpacked it is sha256:");
    assert_eq!((paths(&liar).as_str(), marks().as_str()), ("[null]", "1"));
    assert_app(&world, &app);
    world.sh(&format!("sheep-images rm {liar}")).ok();
    assert_eq!(marks(), "0");
}

#[test]
fn several_platforms_and_dockers_types() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let port = real.port;
    let repository = format!("127.0.0.1:{port}/dir/app");
    world
        .sh(&format!(
            "skopeo copy -q --format v2s2 --dest-tls-verify=false oci:layout:app docker://{repository}:docker"
        ))
        .ok();
    world.sh(&format!("sheep-images pull {repository}:docker --name docker && sheep-images verify && sheep-images push docker {repository}:again")).ok();
    let of = |tag: &str| {
        world.sh(&format!("skopeo inspect --tls-verify=false docker://{repository}:{tag} | jq -r .Digest")).ok()
    };
    assert_eq!(of("docker"), of("again"));
    // An index of both, as images for two platforms.
    world.write("put.py", "import json, sys, urllib.request as u\nat, tags = sys.argv[1], sys.argv[2:]\n\
        types = 'application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'\n\
        list = []\n\
        for tag, arch in zip(tags, ['amd64', 's390x']):\n    \
            a = u.urlopen(u.Request(at + tag, headers={'Accept': ', '.join(types)}))\n    \
            list.append({'mediaType': a.headers['Content-Type'], 'digest': a.headers['Docker-Content-Digest'], 'size': len(a.read()), 'platform': {'os': 'linux', 'architecture': arch}})\n\
        type = 'application/vnd.oci.image.index.v1+json'\n\
        body = json.dumps({'schemaVersion': 2, 'mediaType': type, 'manifests': list}).encode()\n\
        print(u.urlopen(u.Request(at + 'both', body, {'Content-Type': type}, method='PUT')).headers['Docker-Content-Digest'])\n");
    let index =
        world.sh(&format!("/usr/bin/python3 put.py http://127.0.0.1:{port}/v2/dir/app/manifests/ v1 docker")).ok();
    let host = if cfg!(target_arch = "x86_64") { "" } else { "--platform linux/amd64" };
    for (what, tag) in [
        (format!("{repository}:both {host}"), "v1"),
        (format!("{repository}@{index} --platform linux/s390x"), "docker"),
    ] {
        assert_eq!(world.sh(&format!("sheep-images pull {what} --print digest")).ok(), of(tag), "{what}");
        assert_eq!(world.sh(&format!("sheep-images inspect --remote {what} --print digest")).ok(), of(tag), "{what}");
    }
    world
        .sh(&format!("sheep-images pull {repository}:both --platform linux/riscv64"))
        .fails(3, "there is no image for linux/riscv64, but for linux/amd64, linux/s390x");
}

#[test]
fn what_is_not_there_or_cannot_be_reached_is_one_line() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let port = real.port;
    for (reference, code, text) in [
        (
            format!("127.0.0.1:{port}/dir/app:v2"),
            3,
            format!("127.0.0.1:{port}: manifest dir/app:v2: 404 Not Found (manifest unknown)"),
        ),
        (format!("127.0.0.1:{port}/other"), 3, "404".to_owned()),
        (format!("127.0.0.1:{port}/dir/app:v1 --platform linux/s390x"), 0, String::new()),
        (format!("127.0.0.1:{port}/dir/app@sha256:{}", "0".repeat(64)), 3, "404".to_owned()),
        (format!("127.0.0.1:{port}/Dir/app"), 2, "lower case".to_owned()),
        (format!("127.0.0.1:{}/dir/app", free_port()), 1, "Connection refused".to_owned()),
        (format!("127.0.0.1:{port}/dir/app --ca nosuch"), 3, "--ca nosuch: no such file".to_owned()),
        (format!("127.0.0.1:{port}/dir/app --platform x"), 2, "--platform x".to_owned()),
        (
            "no.such.invalid/x --timeout 5".to_owned(),
            1,
            "no.such.invalid: manifest x:latest: failed to lookup".to_owned(),
        ),
        ("x --mirror http://a/".to_owned(), 2, "--mirror http://a/".to_owned()),
    ] {
        let out = world.sh(&format!("sheep-images pull {reference} --print digest"));
        if code == 0 { drop(out.ok()) } else { out.fails(code, &text) }
    }
}

#[test]
fn a_mirror_comes_first_and_the_registry_after_it() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let port = real.port;
    world
        .sh(&format!(
            "skopeo copy -q --dest-tls-verify=false oci:layout:app docker://127.0.0.1:{port}/library/app:latest"
        ))
        .ok();
    world.sh(&format!("sheep-images pull app --mirror 127.0.0.1:{port}")).ok();
    assert_app(&world, "app");
    world
        .sh(&format!(
            "sheep-images rm app; SHEEP_IMAGES_MIRROR=127.0.0.1:{port} sheep-images pull docker.io/library/app"
        ))
        .ok();
    assert_app(&world, "app");
    // No proxy stands between us and this very machine.
    let proxies = "HTTP_PROXY=http://127.0.0.1:1 http_proxy=http://127.0.0.1:1 ALL_PROXY=http://127.0.0.1:1";
    world.sh(&format!("{proxies} sheep-images pull app --mirror 127.0.0.1:{port}")).ok();
    // Only of docker.io.
    world.sh(&format!("sheep-images pull 127.0.0.1:{}/app --mirror 127.0.0.1:{port}", free_port())).fails(1, "refused");
}

#[test]
fn passwords_and_their_files() {
    let world = World::root();
    world.sh("htpasswd -Bbn sheep 'se:cret' > htpasswd").ok();
    let auth = format!("auth: {{htpasswd: {{realm: x, path: {}/htpasswd}}}}\n", world.dir.display());
    let real = registry(&world, &auth);
    let port = real.port;
    world.sh(&format!("({LAYOUT}) >/dev/null 2>&1; skopeo copy -q --dest-creds 'sheep:se:cret' --dest-tls-verify=false oci:layout:app docker://127.0.0.1:{port}/dir/app:v1")).ok();
    let pull = format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --print digest");
    let login = |with: &str| format!("export XDG_RUNTIME_DIR=$PWD/run-dir; {with}; {pull}");
    world
        .sh(&login("true"))
        .fails(1, &format!("401 Unauthorized (authentication required); 'sheep-images login 127.0.0.1:{port}'"));
    world.write(
        "helper",
        format!("#!/bin/sh\nread s\ntest \"$1 $s\" = 'get 127.0.0.1:{port}' && echo '{{\"Username\":\"sheep\",\"Secret\":\"se:cret\"}}'\n"),
    );
    let auth = "$(printf sheep:se:cret | base64)";
    let wrong = "$(printf sheep:wrong | base64)";
    for (what, script) in [
        ("podman's", format!("mkdir -p run-dir/containers; echo '{{\"auths\":{{\"127.0.0.1:{port}/dir\":{{\"auth\":\"'{auth}'\"}}}}}}' > run-dir/containers/auth.json")),
        ("a more exact key", format!("mkdir -p run-dir/containers; echo '{{\"auths\":{{\"127.0.0.1:{port}\":{{\"auth\":\"'{wrong}'\"}},\"127.0.0.1:{port}/dir/app\":{{\"auth\":\"'{auth}'\"}}}}}}' > run-dir/containers/auth.json")),
        ("docker's", format!("mkdir -p .docker; echo '{{\"auths\":{{\"http://127.0.0.1:{port}/v1/\":{{\"auth\":\"'{auth}'\"}}}}}}' > .docker/config.json")),
        ("$DOCKER_CONFIG", format!("mkdir d; export DOCKER_CONFIG=$PWD/d; echo '{{\"auths\":{{\"127.0.0.1:{port}\":{{\"auth\":\"'{auth}'\"}}}}}}' > d/config.json")),
        ("$REGISTRY_AUTH_FILE", format!("export REGISTRY_AUTH_FILE=$PWD/f; echo '{{\"auths\":{{\"127.0.0.1:{port}\":{{\"auth\":\"'{auth}'\"}}}}}}' > f")),
        ("a helper", format!("mkdir -p .docker p; echo '{{\"credHelpers\":{{\"127.0.0.1:{port}\":\"t\"}}}}' > .docker/config.json; PATH=$PWD/p:$PATH
            cp helper p/docker-credential-t; chmod +x p/docker-credential-t")),
    ] {
        let out = world.sh(&login(&script));
        assert!(out.code == 0 && out.stderr.is_empty(), "{what}: {}", out.stderr);
        world.sh(&login(&format!("{script}; sheep-images rm 127.0.0.1:{port}/dir/app:v1"))).ok();
        world.sh(&format!("sheep-images rm 127.0.0.1:{port}/dir/app:v1; rm -rf run-dir .docker d f p")).ok();
    }
    for (script, text) in [
        (
            format!(
                "mkdir -p .docker; echo '{{\"auths\":{{\"127.0.0.1:{port}\":{{\"auth\":\"'{wrong}'\"}}}}}}' > .docker/config.json"
            ),
            "401",
        ),
        ("mkdir -p .docker; echo '{' > .docker/config.json".to_owned(), ".docker/config.json: not JSON"),
        (
            format!(
                "mkdir -p .docker; echo '{{\"credHelpers\":{{\"127.0.0.1:{port}\":\"absent\"}}}}' > .docker/config.json"
            ),
            "docker-credential-absent: it is not on PATH",
        ),
    ] {
        world.sh(&login(&script)).fails(1, text);
    }
    assert_eq!(
        world
            .sh("rm -r .docker; find data/images -name '.partial*' -o -name '.tmp-*'; ls data/images/blobs/sha256")
            .ok(),
        ""
    );
}

#[test]
fn tls_with_a_root_of_our_own() {
    let world = World::root();
    world.sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=Sheep test' 2>/dev/null
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out csr.pem -subj /CN=localhost 2>/dev/null
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\n' > ext
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem 2>/dev/null
        openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 2 -subj '/CN=Other' 2>/dev/null; mkdir cas; cp ca.pem cas/ca.crt").ok();
    let tls = format!("  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}\n", world.dir.display());
    let real = registry_at(&world, free_port(), "", &tls);
    let port = real.port;
    world.sh(&format!("({LAYOUT}) >/dev/null 2>&1; skopeo copy -q --dest-cert-dir cas oci:layout:app docker://localhost:{port}/dir/app:v1")).ok();
    world.sh(&format!("sheep-images pull localhost:{port}/dir/app:v1 --ca ca.pem --name app")).ok();
    assert_app(&world, "app");
    world
        .sh(&format!("sheep-images pull localhost:{port}/dir/app:v1 --ca other.pem"))
        .fails(1, "UnknownIssuer; a root of your own is given with --ca FILE");
    world
        .sh(&format!("sheep-images pull localhost:{port}/dir/app:v1"))
        .fails(1, &format!("localhost:{port}: manifest dir/app:v1: 400 Bad Request; it speaks TLS: --ca FILE"));
    world
        .sh(&format!(
            "SSL_CERT_FILE=$PWD/ca.pem sheep-images pull localhost:{port}/dir/app:v1 --ca other.pem --print digest"
        ))
        .ok();
    world
        .sh(&format!("sheep-images pull localhost:{port}/dir/app:v1 --ca ca.key"))
        .fails(2, "there is no certificate in it");
}

#[test]
fn tokens() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let reference = format!("127.0.0.1:{port}/dir/app:v1");
    let pull = format!("sheep-images pull {reference} --print digest");
    // For nothing, with one token for all; and renewed when it is not good any more.
    for (uses, tokens) in [(100, 1), (2, 2)] {
        between.mode(json!({"token": "sheep:pw", "anonymous": true, "uses": uses}));
        world.sh(&format!("{pull} && sheep-images rm {reference}")).ok();
        assert_eq!(between.asked("GET", "/token").len(), tokens);
    }
    between.mode(json!({"token": "sheep:pw"}));
    world.sh(&pull).fails(1, "token for 127.0.0.1");
    let file = |entry: &str| {
        format!("mkdir -p .docker; echo '{{\"auths\":{{\"127.0.0.1:{port}\":{entry}}}}}' > .docker/config.json")
    };
    world
        .sh(&format!("{}; {pull} && sheep-images rm {reference}", file("{\"username\":\"sheep\",\"password\":\"pw\"}")))
        .ok();
    // The password goes to where tokens are, and nowhere else.
    let with_password = between
        .log()
        .into_iter()
        .filter(|entry| entry["authorization"].as_str().is_some_and(|a| a.starts_with("Basic")));
    assert!(with_password.map(|entry| entry["path"].as_str().unwrap().starts_with("/token")).eq([true]));
    world.sh(&format!("{}; {pull} && sheep-images rm {reference}", file("{\"identitytoken\":\"refresh\"}"))).ok();
    world
        .sh(&format!("{}; {pull}", file("{\"username\":\"sheep\",\"password\":\"no\"}")))
        .fails(1, "incorrect username or password");
}

#[test]
fn another_host_gets_no_password() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let reference = format!("127.0.0.1:{port}/dir/app:v1");
    let elsewhere = "http://localhost:PORT";
    // Who it is for is told by the port, too: the other host has another one, and would be let in by the same password.
    let auth = format!("{{\"auths\":{{\"127.0.0.1:{port}\":{{\"username\":\"sheep\",\"password\":\"pw\"}}}}}}");
    world.sh("mkdir .docker").ok();
    world.write(".docker/config.json", auth);
    for (n, (mode, kind)) in [(json!({"token": "sheep:pw"}), "Bearer token"), (json!({"basic": "sheep:pw"}), "Basic ")]
        .into_iter()
        .enumerate()
    {
        let with = |key: &str| {
            let mut mode = mode.clone();
            mode[key] = elsewhere.into();
            mode
        };
        between.mode(with("redirect"));
        world.sh(&format!("sheep-images pull {reference} --name app")).ok();
        assert_app(&world, "app");
        // The blobs come from there; and what is sent goes there, each in as many requests as it has.
        for (log, requests) in [(between.log(), 3), {
            between.mode(with("uploadsgo"));
            world.sh(&format!("sheep-images push app 127.0.0.1:{port}/to{n}/app")).ok();
            (between.log(), 4)
        }] {
            let (there, here): (Vec<&Value>, Vec<&Value>) = log.iter().partition(|entry| entry["elsewhere"] == true);
            assert_eq!(there.len(), requests, "{there:?}");
            assert!(there.iter().all(|entry| entry["authorization"].is_null()), "{there:?}");
            let let_in = |entry: &&Value| entry["authorization"].as_str().is_some_and(|found| found.starts_with(kind));
            assert!(here.into_iter().any(|entry| let_in(&entry)), "{log:?}");
        }
        world.sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{}/to{n}/app", real.port)).ok();
        world.sh("sheep-images rm app; sheep-images gc").ok();
    }
    world.sh("rm -r .docker").ok();
    for (to, text) in [
        ("ftp://x", "leads nowhere"),
        ("http://a:b@localhost:PORT", "leads nowhere"),
        (&format!("http://127.0.0.1:{port}"), "on and on"),
    ] {
        between.mode(json!({"redirect": to}));
        world.sh(&format!("sheep-images rm app 2>/dev/null; sheep-images pull {reference} --name app")).fails(1, text);
    }
    world.assert_empty();
}

#[test]
fn logins_are_tried_and_noted_for_all() {
    let world = World::root();
    world.sh("htpasswd -Bbn sheep 'se:cret' > htpasswd").ok();
    let auth = format!("auth: {{htpasswd: {{realm: x, path: {}/htpasswd}}}}\n", world.dir.display());
    let real = registry(&world, &auth);
    let port = real.port;
    let own = |script: &str| world.sh(&format!("export REGISTRY_AUTH_FILE=$PWD/auth/auth.json; {script}"));
    let login = format!("sheep-images login 127.0.0.1:{port} --user sheep --password-stdin");
    own(&format!("echo wrong | {login}")).fails(1, "the user name or the password is wrong");
    assert!(!world.dir.join("auth/auth.json").exists());
    let out = own(&format!("echo 'se:cret' | {login}"));
    assert!(
        out.code == 0 && out.stdout.is_empty() && out.stderr.contains("sheep is let in; noted in"),
        "{}",
        out.stderr
    );
    assert!(!out.stderr.contains("cret"));
    assert_eq!(own("stat -c %a auth/auth.json auth").ok(), "600\n700");
    assert_eq!(own(&format!("{PODMAN}podman login --get-login 127.0.0.1:{port}")).ok(), "sheep");
    app(&world);
    own(&format!("sheep-images push app 127.0.0.1:{port}/dir/app && sheep-images pull 127.0.0.1:{port}/dir/app --name again && sheep-images ls-remote 127.0.0.1:{port}/dir/app")).ok();
    // podman's logins are ours, and the others' entries stay.
    own(&format!("{PODMAN}podman login -u sheep -p se:cret --tls-verify=false localhost:{port} && sheep-images ls-remote localhost:{port}/dir/app && sheep-images logout 127.0.0.1:{port}")).ok();
    own(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app")).fails(1, "401");
    own(&format!("sheep-images ls-remote localhost:{port}/dir/app")).ok();
    own(&format!("sheep-images logout 127.0.0.1:{port}")).fails(3, "nobody is noted");
    own(&format!("sheep-images login 127.0.0.1:{port}")).fails(2, "there is no terminal to ask on");
    own("echo x | sheep-images login 'a/b' --user u --password-stdin").fails(2, "HOST or HOST:PORT");
    // On a terminal it asks, and what is typed is not shown.
    world.write("type", format!("stty echo </dev/tty; sheep-images login 127.0.0.1:{port}"));
    let out =
        own("(sleep 0.7; echo sheep; sleep 0.3; echo se:cret; sleep 0.7) | setsid script -qec 'sh type' /dev/null");
    assert!(
        out.stdout.contains("is let in") && out.stdout.contains("Password:") && !out.stdout.contains("cret"),
        "{}",
        out.stdout
    );
}

#[test]
fn tags_and_images_without_a_pull() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let digest = app(&world);
    for tag in ["v1", "v2", "latest"] {
        world.sh(&format!("sheep-images push app 127.0.0.1:{port}/dir/app:{tag}")).ok();
    }
    assert_eq!(world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app | sort")).ok(), "latest\nv1\nv2");
    let link = "</v2/dir/app/tags/list?last=z&n=2>; rel=\"next\"";
    between.mode(json!({"say": {"path": "/tags/list", "unless": "?", "body": "{\"tags\":[\"y\",\"z\"]}", "headers": {"Link": link}}}));
    let listed =
        world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app --json | jq -r '.tag.reference'")).ok();
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(listed.starts_with(&format!("127.0.0.1:{port}/dir/app:y\n")), "{listed}");
    between.mode(json!({"say": {"path": "/tags/list", "body": "{\"tags\":[\"y\"]}", "headers": {"Link": link}}}));
    world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app")).fails(1, "its pages have no end");
    between.mode(json!({"say": {"path": "/tags/list", "body": "{\"tags\":null}"}}));
    assert_eq!(world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app")).ok(), "");
    between.mode(json!({}));
    world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/nosuch")).fails(3, "404");
    world.sh(&format!("sheep-images ls-remote 127.0.0.1:{port}/dir/app:v1")).fails(2, "without a tag");
    // All but the paths is as in the store.
    let without = "jq -S 'del(.image.layers[].path, .image.reference)'";
    let there =
        world.sh(&format!("sheep-images inspect --remote 127.0.0.1:{port}/dir/app:v1 | tee remote | {without}")).ok();
    assert_eq!(there, world.sh(&format!("sheep-images inspect app | {without}")).ok());
    assert_eq!(world.sh("jq '.image.layers[].path' remote").ok(), "null");
    assert_eq!(
        world
            .sh(&format!("sheep-images inspect --remote --raw 127.0.0.1:{port}/dir/app:v1 | sha256sum | cut -c-64"))
            .ok(),
        digest["sha256:".len()..]
    );
    assert!(between.asked("GET", "/blobs/").iter().all(|entry| entry["sent"].as_u64() < Some(10_000)));
    world.sh(&format!("sheep-images inspect --remote 127.0.0.1:{port}/dir/app:v9")).fails(3, "404");
    // What is for a registry only is not passed over where none is asked.
    for option in ["--ca ca.pem", "--insecure", "--mirror localhost:1", "--timeout 30", "--platform linux/amd64"] {
        let out = world.sh(&format!("sheep-images inspect app {option}"));
        assert!(out.code == 2 && out.stderr.contains("--remote"), "{option}: {} {}", out.code, out.stderr);
        assert_eq!(out.stdout, "");
    }
}
