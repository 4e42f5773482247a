//! Images from and to registries: Debian's docker-registry, podman and skopeo, and a registry that breaks off and lies.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::World;
use crate::interop::PODMAN;

/// A server, ended when it is not needed any more.
pub struct Server {
    pub port: u16,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a server of the test").local_addr().expect("a server of the test").port()
}

/// Debian's docker-registry, with its files in the world's directory, and `more` in its configuration.
pub fn registry(world: &World, more: &str) -> Server {
    registry_at(world, free_port(), more, "")
}

fn registry_at(world: &World, port: u16, more: &str, http: &str) -> Server {
    let dir = world.dir.join("registry");
    std::fs::create_dir_all(&dir).expect("a server of the test");
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {0}/files}}, delete: {{enabled: true}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n  relativeurls: true\n{http}{more}",
        dir.display()
    );
    let file = dir.join(format!("{port}.yml"));
    std::fs::write(&file, config).expect("a server of the test");
    let log = std::fs::File::create(dir.join(format!("{port}.log"))).expect("a server of the test");
    let program = std::env::var_os("SHEEP_TEST_REGISTRY").unwrap_or_else(|| "docker-registry".into());
    let mut command = Command::new(program);
    command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none").stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a server of the test")).stderr(log);
    let child = command.spawn().expect("docker-registry: run scripts/setup");
    let server = Server { port, child };
    let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    wait_for(|| listens().then_some(()), "docker-registry listens");
    server
}

fn wait_for<T>(look: impl Fn() -> Option<T>, what: &str) -> T {
    for _ in 0..500 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not after 10 seconds: {what}");
}

/// The registry of registry.py, before a real one.
pub struct Between {
    pub server: Server,
    dir: std::path::PathBuf,
}

impl Between {
    pub fn start(world: &World, upstream: u16) -> Self {
        let dir = world.dir.join("between");
        std::fs::create_dir(&dir).expect("a server of the test");
        std::fs::write(dir.join("mode"), "{}").expect("a server of the test");
        std::fs::write(dir.join("registry.py"), include_str!("registry.py")).expect("a server of the test");
        let child = Command::new("/usr/bin/python3")
            .arg(dir.join("registry.py"))
            .arg(&dir)
            .arg(upstream.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("python3");
        let ports = wait_for(|| std::fs::read_to_string(dir.join("ports")).ok(), "registry.py listens");
        let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().expect("a server of the test")).collect();
        Between { server: Server { port: ports[0], child }, dir }
    }

    /// How it behaves from now on; what it noted is forgotten.
    pub fn mode(&self, mode: Value) {
        // What was asked before may not be noted yet.
        std::thread::sleep(Duration::from_millis(100));
        let _ = std::fs::remove_file(self.dir.join("log"));
        std::fs::write(self.dir.join("mode.new"), mode.to_string()).expect("a server of the test");
        std::fs::rename(self.dir.join("mode.new"), self.dir.join("mode")).expect("a server of the test");
    }

    /// The requests that came.
    pub fn log(&self) -> Vec<Value> {
        // What was broken off is noted a moment later.
        std::thread::sleep(Duration::from_millis(100));
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a server of the test")).collect()
    }

    /// The requests for what a path contains.
    pub fn asked(&self, method: &str, part: &str) -> Vec<Value> {
        let is_it = |entry: &Value| {
            entry["method"] == method && entry["path"].as_str().expect("a server of the test").contains(part)
        };
        self.log().into_iter().filter(is_it).collect()
    }
}

/// An image of two layers, `layout:app`, of which the second has four million bytes that do not compress.
pub const LAYOUT: &str = "mkdir -p 1/bin 2/usr; echo one > 1/bin/one; ln -s one 1/bin/link; head -c 4000000 /dev/urandom > 2/usr/big; \
    umoci init --layout layout && umoci new --image layout:app && \
    for l in 1 2; do tar -C $l --format=posix -cf $l.tar . && umoci raw add-layer --image layout:app $l.tar; done";
/// Its bytes, with what a tar adds.
const BIG: u64 = 4_000_000;

/// Puts that image into a registry, by skopeo.
fn fill(world: &World, port: u16) {
    world.sh(&format!("({LAYOUT}) >/dev/null 2>&1; {}", skopeo(port))).ok();
}

fn skopeo(port: u16) -> String {
    format!("skopeo copy -q --dest-tls-verify=false oci:layout:app docker://127.0.0.1:{port}/dir/app:v1 2>&1")
}

/// Asserts that the store has what was asked for, and nothing else.
#[track_caller]
fn assert_app(world: &World, name: &str) {
    let digest = world.sh("jq -r '.manifests[0].digest' layout/index.json").ok();
    assert_eq!(world.sh(&format!("sheep-images inspect {name} --print digest")).ok(), digest);
    world.sh("sheep-images verify").ok();
    let merged =
        world.sh(&format!("sheep-images unpack {name} --to out-{0} --print path", name.replace(['/', ':'], "-"))).ok();
    world.sh(&format!("cmp 2/usr/big {merged}/usr/big && test $(cat {merged}/bin/link) = one && rm -r {merged}")).ok();
    assert_eq!(world.sh("find data/images -name '.partial-*' -o -name '.tmp-*'").ok(), "");
}

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
fn what_lies_is_refused_and_nothing_of_it_stays() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let digest = world.sh("jq -r '.manifests[0].digest' layout/index.json").ok();
    let above = 100_000;
    for (mode, text) in [
        (json!({"flip": 1_000_000, "above": above}), "layer sha256:"),
        // The time in gzip's header, which nobody reads.
        (json!({"flip": 4, "above": above}), "its digest is sha256:"),
        (json!({"flipmanifest": true}), "digest sha256:"),
        (json!({"longer": 7, "above": above}), "and the manifest says"),
        (json!({"shorter": 7, "above": above}), "and the manifest says"),
        (json!({"unsaid": true, "extra": 9, "above": above}), "more comes than the"),
        (
            json!({"say": {"path": "/blobs/", "status": 206, "headers": {"Content-Range": "bytes 0-1/2"}, "body": "xx"}}),
            "206",
        ),
        (json!({"say": {"path": "/blobs/", "status": 404}}), "404 Not Found"),
        (json!({"say": {"path": "/manifests/", "body": "{}", "headers": {"Content-Type": "text/html"}}}), "manifest"),
        (
            json!({"say": {"path": "/manifests/", "body": "not JSON", "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}),
            "not JSON",
        ),
        (
            json!({"say": {"path": "/manifests/", "body": "{\"layers\":[],\"manifests\":[]}", "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}),
            "both a manifest and an index",
        ),
        (
            json!({"say": {"path": "/manifests/", "status": 404, "body": "{\"errors\":[{\"message\":\"a\\nb\\u001b[2J\"}]}"}}),
            "(a\\nb\\u{1b}[2J)",
        ),
    ] {
        between.mode(mode.clone());
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1"));
        assert!(out.code == 1 || out.code == 3, "{mode}: {}", out.stderr);
        let code = out.code;
        assert!(out.stderr.contains(text), "{mode}: {}", out.stderr);
        out.fails(code, "pull");
        assert_eq!(world.sh("sheep-images ls --json; ls data/images/blobs/sha256; find data -name '.tmp-*'; find data -name '.partial-*' -size +100k").ok(), "", "{mode}");
    }
    // Another manifest than the one that was asked for by its digest.
    let other = "{\"schemaVersion\":2,\"config\":{},\"layers\":[]}";
    between.mode(json!({"say": {"path": "/manifests/", "body": other, "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app@{digest}")).fails(1, "what came has the digest");
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
}

#[test]
fn what_breaks_off_is_gone_on_with() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let above = 100_000;
    let blob = |log: Vec<Value>| log.iter().map(|entry| entry["sent"].as_u64().unwrap()).sum::<u64>();
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    assert!(size > BIG);
    for (mode, timeout, at_most) in [
        // Ranges are taken up where it stopped: not a byte comes twice.
        (json!({"cut": 300_000, "above": above}), 30, size),
        (json!({"stall": 1_000_000, "stalls": 2, "above": above}), 1, size + 2 * 300_000),
        (json!({"fail": 3, "status": 500}), 30, size),
        (json!({"fail": 1, "after": 2, "status": 429}), 30, size),
        // Without them it begins again, and still what is there counts.
        (json!({"cut": 3_000_000, "cuts": 2, "norange": true, "above": above}), 30, 3 * size),
    ] {
        between.mode(mode.clone());
        let begun = Instant::now();
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app --timeout {timeout}"));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{mode}");
        let waited = begun.elapsed();
        assert!(mode["after"].is_null() || waited >= Duration::from_secs(2), "{mode}: it came again after {waited:?}");
        assert_app(&world, "app");
        let sent = blob(
            between
                .asked("GET", "/blobs/")
                .into_iter()
                .filter(|entry| entry["sent"].as_u64() > Some(100_000))
                .collect(),
        );
        assert!(sent <= at_most, "{mode}: {sent} bytes came of {size}");
        world.sh("sheep-images rm app").ok();
    }
    // There is an end to it, and it is said; what came stays for the next time.
    for (mode, text) in [
        (json!({"cut": 0, "above": above}), "bytes: "),
        (json!({"fail": 1000, "status": 502}), "manifest dir/app:v1: 502 Bad Gateway, after several tries"),
        (json!({"fail": 1000, "after": 9999}), "503 Service Unavailable"),
        (json!({"cut": 1_500_000, "cuts": 1, "then": 0, "above": above}), "after 1500000 of "),
    ] {
        between.mode(mode.clone());
        let out = world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app"));
        out.fails(1, text);
    }
    between.mode(json!({}));
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    let sent = blob(between.asked("GET", "/blobs/").into_iter().filter(|entry| entry["range"].is_string()).collect());
    assert_eq!(sent, size - 1_500_000);
    assert_app(&world, "app");
}

#[test]
fn killed_in_mid_blob_again_and_again() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    // 64 KiB every 60 ms: the layer takes four seconds.
    between.mode(json!({"slow": 0.06}));
    let came =
        || world.sh("stat -c %s data/images/.partial-* 2>/dev/null | sort -n | tail -1").ok().parse().unwrap_or(0u64);
    let mut kept = vec![0];
    for round in 0..10 {
        let signal = if round % 2 == 0 { "KILL" } else { "INT" };
        let mut child = world.start(&format!("exec sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app"));
        wait_for(|| (came() > kept[round] + 65536).then_some(()), "more of the blob");
        let _ = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        child.wait().unwrap();
        kept.push(came());
        // It is not cleared up with what crashes leave, and is no image.
        assert_eq!(world.sh("sheep-images ls --json; sheep-images gc; find data -name '.tmp-*'").ok(), "");
        assert!(world.sh("ls data/images/.partial-*").code == 0);
    }
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
    // Each asked for what was not on the disk when the one before it was killed, and for nothing else: no byte came to the disk twice.
    // What the server sent beyond that was in the sockets' buffers.
    let asked = between.asked("GET", "/blobs/");
    let from = |entry: &Value| {
        entry["range"].as_str().map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse::<u64>().unwrap())
    };
    let big: Vec<&Value> =
        asked.iter().filter(|entry| entry["sent"].as_u64().unwrap() > 60_000 || !entry["range"].is_null()).collect();
    let firsts: Vec<u64> = big.iter().map(|entry| from(entry)).collect();
    assert_eq!(firsts, kept);
    let last = asked.iter().rfind(|entry| !entry["range"].is_null()).unwrap();
    assert_eq!(from(last) + last["sent"].as_u64().unwrap(), size);
    // One that is damaged is found out, and all of it is got again.
    world.sh("sheep-images rm app").ok();
    let hex = world.sh("ls -S layout/blobs/sha256 | head -1").ok();
    world.sh(&format!("head -c 1000000 /dev/urandom > data/images/.partial-{hex}")).ok();
    world.sh(&format!("sheep-images pull 127.0.0.1:{port}/dir/app:v1 --name app")).ok();
    assert_app(&world, "app");
    // Old ones go.
    world
        .sh(&format!(
            "echo x > data/images/.partial-{hex} && sheep-images gc && touch -d '2 days ago' data/images/.partial-{hex}"
        ))
        .ok();
    assert!(world.sh("sheep-images gc").ok().contains("deleted partial blob"));
    assert_app(&world, "app");
}

#[test]
fn a_registry_killed_ten_times_in_mid_blob() {
    let world = World::root();
    let port = free_port();
    let mut real = registry_at(&world, port, "", "");
    fill(&world, port);
    let size: u64 = world.sh("stat -c %s layout/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    let between = Between::start(&world, port);
    between.mode(json!({"slow": 0.08}));
    let child = world.start(&format!("exec sheep-images pull 127.0.0.1:{}/dir/app:v1 --name app", between.server.port));
    let came =
        || world.sh("stat -c %s data/images/.partial-* 2>/dev/null | sort -n | tail -1").ok().parse().unwrap_or(0u64);
    let broken_off =
        || between.asked("GET", "/blobs/").iter().filter(|entry| entry["sent"].as_u64() > Some(20_000)).count();
    for _ in 0..10 {
        let before = came();
        wait_for(|| (came() > before + 65536).then_some(()), "more of the blob");
        let broke = broken_off();
        drop(real);
        // It stays away until that is noticed.
        wait_for(|| (broken_off() > broke).then_some(()), "the blob broke off");
        real = registry_at(&world, port, "", "");
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_app(&world, "app");
    let asked = between.asked("GET", "/blobs/");
    let broke = asked.iter().filter(|entry| entry["range"].is_string()).count();
    assert!(broke >= 10, "it was in mid-blob {broke} times");
    let sent: u64 = asked.iter().map(|entry| entry["sent"].as_u64().unwrap()).filter(|n| *n > 20_000).sum();
    assert!(sent <= size + 64 * 1024, "{sent} bytes for {size}");
    drop(real);
}

#[test]
fn two_at_once_get_the_same() {
    let world = World::root();
    let real = registry(&world, "");
    fill(&world, real.port);
    let between = Between::start(&world, real.port);
    between.mode(json!({"slow": 0.01}));
    let pull = format!("sheep-images pull 127.0.0.1:{}/dir/app:v1", between.server.port);
    let out = world.sh(&format!(
        "for n in a b c; do {pull} --name $n & p=\"$p $!\"; done; for p in $p; do wait $p || exit 1; done"
    ));
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    assert_app(&world, "a");
    assert_app(&world, "c");
}

/// An image of the store: `app`, with a layer of four million bytes.
pub fn app(world: &World) -> String {
    world.sh("mkdir -p 2/usr 2/bin && head -c 4000000 /dev/urandom > 2/usr/big && echo one > 2/bin/one && tar -C 2 --format=posix -czf t.tgz . && sheep-images import app t.tgz --print digest").ok()
}

#[test]
fn the_others_get_what_we_push_and_we_what_they_push() {
    let world = World::root();
    let real = registry(&world, "");
    let port = real.port;
    let digest = app(&world);
    let out = world.sh(&format!("sheep-images push app 127.0.0.1:{port}/dir/app:v1"));
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    assert_eq!(
        world
            .sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{port}/dir/app:v1 | jq -r .Digest"))
            .ok(),
        digest
    );
    world.sh(&format!("skopeo copy -q --src-tls-verify=false docker://127.0.0.1:{port}/dir/app:v1 oci:back:app")).ok();
    assert_eq!(world.sh("jq -r .manifests[0].digest back/index.json").ok(), digest);
    let podman = format!("{PODMAN}
        podman pull -q --tls-verify=false 127.0.0.1:{port}/dir/app:v1 >/dev/null && podman image inspect --format '{{{{.Digest}}}}' 127.0.0.1:{port}/dir/app:v1
        podman tag 127.0.0.1:{port}/dir/app:v1 127.0.0.1:{port}/podman/app && podman push -q --digestfile podman.digest --tls-verify=false 127.0.0.1:{port}/podman/app
        ctr=$(buildah from --pull-never 127.0.0.1:{port}/dir/app:v1) && buildah config --env X=y $ctr && buildah commit -q --tls-verify=false $ctr docker://127.0.0.1:{port}/buildah/app:v2 >/dev/null");
    let out = world.sh(&podman);
    assert_eq!((out.code, out.stdout.trim()), (0, digest.as_str()), "{}", out.stderr);
    // podman says itself what it pushed; what skopeo pushed it had from a layout, see pulls_what_skopeo_pushed.
    let podmans = world
        .sh(&format!("sheep-images pull 127.0.0.1:{port}/podman/app --name theirs --print digest; cat podman.digest"))
        .ok();
    assert!(matches!(podmans.split_once('\n'), Some((ours, theirs)) if ours == theirs), "{podmans}");
    for reference in ["podman/app", "buildah/app:v2"] {
        let theirs = world
            .sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{port}/{reference} | jq -r .Digest"))
            .ok();
        assert_eq!(
            world.sh(&format!("sheep-images pull 127.0.0.1:{port}/{reference} --name theirs --print digest")).ok(),
            theirs
        );
        world.sh("sheep-images unpack theirs --to theirs --print path && cmp 2/usr/big theirs/usr/big && rm -r theirs && sheep-images verify").ok();
    }
    assert!(world.sh("sheep-images inspect theirs --print image.config.config.Env").ok().contains("X=y"));
}

#[test]
fn what_is_there_is_not_sent_and_what_is_near_is_mounted() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    app(&world);
    let push = format!("sheep-images push app 127.0.0.1:{port}/dir/app:v1 --print digest");
    for mode in [json!({"token": "sheep:pw", "anonymous": true}), json!({})] {
        between.mode(mode);
        world.sh(&push).ok();
    }
    assert!(between.log().iter().all(|entry| entry["method"] == "HEAD"), "{:?}", between.log());
    // By its name here we know where it is there.
    between.mode(json!({"token": "sheep:pw", "anonymous": true}));
    world.sh(&format!("sheep-images tag app 127.0.0.1:{port}/dir/app:v1 && sheep-images push app 127.0.0.1:{port}/other/app --print digest")).ok();
    let mounted = between.asked("POST", "/v2/other/app/blobs/uploads/?mount=sha256");
    assert_eq!(mounted.len(), 2 + mounted.iter().filter(|entry| entry["refused"] == true).count());
    assert!(between.asked("PATCH", "").is_empty() && between.asked("PUT", "/blobs/").is_empty(), "{:?}", between.log());
    world.sh(&format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{}/other/app", real.port)).ok();
    // The image's own name says where it goes.
    world.sh(&format!("sheep-images tag app 127.0.0.1:{port}/own:v7 && sheep-images push 127.0.0.1:{port}/own:v7 && sheep-images inspect --remote 127.0.0.1:{port}/own:v7")).ok();
    world.sh("sheep-images push app").fails(2, "say where: push app REGISTRY/NAME");
    world.sh("sheep-images push nosuch localhost:1/x").fails(3, "no such image");
    world.sh(&format!("sheep-images push app localhost:{port}/x@sha256:{}", "0".repeat(64))).fails(2, "by a tag");
    between.mode(json!({"token": "sheep:pw"}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/secret/app")).fails(1, "token for 127.0.0.1");
    // What is damaged here does not get there.
    world
        .sh("for b in $(ls -S data/images/blobs/sha256 | head -1); do truncate -s -1 data/images/blobs/sha256/$b; done")
        .ok();
    between.mode(json!({}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/new/app")).fails(1, "'sheep-images verify' says more");
}

#[test]
fn a_push_that_breaks_off_goes_on() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    let digest = app(&world);
    let size: u64 = world.sh("stat -c %s data/images/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    for (n, mode) in [
        // A registry that knows what it has, and one that begins anew.
        json!({"cutupload": 1_500_000, "cuts": 2, "uploads": true}),
        json!({"cutupload": 1_500_000, "cuts": 2}),
        json!({"fail": 2}),
        json!({"fail": 1, "status": 429, "after": 1}),
    ]
    .into_iter()
    .enumerate()
    {
        between.mode(mode.clone());
        world.sh(&format!("sheep-images push app 127.0.0.1:{port}/n{n}/app --print digest")).ok();
        assert_eq!(
            world
                .sh(&format!(
                    "skopeo inspect --tls-verify=false docker://127.0.0.1:{}/n{n}/app | jq -r .Digest",
                    real.port
                ))
                .ok(),
            digest
        );
        if mode["cutupload"].is_u64() {
            let patches = between.asked("PATCH", "");
            assert_eq!(patches.len(), 3);
            let received: u64 = patches.iter().map(|entry| entry["received"].as_u64().unwrap()).sum();
            assert!(mode["uploads"].is_null() || received == size, "{received} for {size}");
        }
    }
    between.mode(json!({"cutupload": 1000}));
    world.sh(&format!("sheep-images push app 127.0.0.1:{port}/never/app --timeout 3")).fails(1, "upload of blob");
}

#[test]
fn a_registry_that_forgets_gets_chunks() {
    let world = World::root();
    let real = registry(&world, "");
    let between = Between::start(&world, real.port);
    let port = between.server.port;
    world.sh("mkdir 1 && head -c 20000000 /dev/urandom > 1/big && tar -C 1 --format=posix -czf t.tgz . && sheep-images import app t.tgz").ok();
    let size: u64 = world.sh("stat -c %s data/images/blobs/sha256/* | sort -n | tail -1").ok().parse().unwrap();
    let (cut, chunk) = (3_000_000, 8 << 20);
    // Debian's docker-registry throws away what came of an upload when one of its requests breaks off. Before it a proxy that holds a
    // request back until it is whole, as nginx does, so that only the request is lost; and none, so that all is.
    for (n, (mode, patches, at_most)) in [
        // Once, in the first request: then chunks.
        (json!({"cutupload": cut, "cuts": [1]}), 4, size + cut),
        (json!({"cutupload": cut, "cuts": [1], "buffered": true}), 4, size + cut),
        // Then once in each chunk, of which no other is sent again.
        (json!({"cutupload": cut, "cuts": [1, 2, 4, 6], "buffered": true}), 7, size + 4 * cut),
        (json!({"cutupload": cut, "cuts": [1, 3]}), 6, size + cut + chunk + cut),
    ]
    .into_iter()
    .enumerate()
    {
        between.mode(mode.clone());
        let digest = world.sh(&format!("sheep-images push app 127.0.0.1:{port}/n{n}/app --print digest")).ok();
        let asked = between.asked("PATCH", "");
        let received: u64 = asked.iter().map(|entry| entry["received"].as_u64().unwrap()).sum();
        assert!(received <= at_most, "{mode}: {received} bytes came of {size}");
        assert_eq!(asked.len(), patches, "{mode}");
        assert!(asked[1..].iter().all(|entry| entry["received"].as_u64() <= Some(chunk)), "{mode}: {asked:?}");
        let there = format!("skopeo inspect --tls-verify=false docker://127.0.0.1:{}/n{n}/app", real.port);
        assert_eq!(world.sh(&format!("{there} | jq -r .Digest")).ok(), digest, "{mode}");
    }
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
