//! Servers for the tests of registries: Debian's docker-registry, one that breaks off and lies, and what is in them.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::World;

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

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a server of the test").local_addr().expect("a server of the test").port()
}

/// Debian's docker-registry, with its files in the world's directory, and `more` in its configuration.
pub fn registry(world: &World, more: &str) -> Server {
    registry_at(world, free_port(), more, "")
}

pub fn registry_at(world: &World, port: u16, more: &str, http: &str) -> Server {
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

pub fn wait_for<T>(look: impl Fn() -> Option<T>, what: &str) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not after a minute: {what}");
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
pub const BIG: u64 = 4_000_000;

/// Puts that image into a registry, by skopeo.
pub fn fill(world: &World, port: u16) {
    world.sh(&format!("({LAYOUT}) >/dev/null 2>&1; {}", skopeo(port))).ok();
}

pub fn skopeo(port: u16) -> String {
    format!("skopeo copy -q --dest-tls-verify=false oci:layout:app docker://127.0.0.1:{port}/dir/app:v1 2>&1")
}

/// Asserts that the store has what was asked for, and nothing else.
#[track_caller]
pub fn assert_app(world: &World, name: &str) {
    let digest = world.sh("jq -r '.manifests[0].digest' layout/index.json").ok();
    assert_eq!(world.sh(&format!("sheep-images inspect {name} --print digest")).ok(), digest);
    world.sh("sheep-images verify").ok();
    let merged =
        world.sh(&format!("sheep-images unpack {name} --to out-{0} --print path", name.replace(['/', ':'], "-"))).ok();
    world.sh(&format!("cmp 2/usr/big {merged}/usr/big && test $(cat {merged}/bin/link) = one && rm -r {merged}")).ok();
    assert_eq!(world.sh("find data/images -name '.partial-*' -o -name '.tmp-*'").ok(), "");
}

/// An image of the store: `app`, with a layer of four million bytes.
pub fn app(world: &World) -> String {
    world.sh("mkdir -p 2/usr 2/bin && head -c 4000000 /dev/urandom > 2/usr/big && echo one > 2/bin/one && tar -C 2 --format=posix -czf t.tgz . && sheep-images import app t.tgz --print digest").ok()
}
