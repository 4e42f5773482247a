//! Images that are not here come from their registry, or do not.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::World;

/// Debian's docker-registry, ended when it is not needed any more.
struct Registry {
    port: u16,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(world: &World) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port").port();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}/files}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            world.dir.display()
        );
        let file = world.dir.join("registry.yml");
        std::fs::write(&file, config).expect("registry.yml");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Registry { port, child: command.spawn().expect("docker-registry: run scripts/setup") };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen");
    }
}

#[test]
fn missing_always_and_never() {
    let world = World::new();
    let registry = Registry::start(&world);
    let image = format!("127.0.0.1:{}/dir/tools", registry.port);
    world.sh(&format!("sheep-images push minimal {image}:v1 --print digest")).ok();
    let run = |flags: &str, image: &str| world.sh(&format!("sheep-run run --rm {flags} {image} echo hi"));
    run("--pull never", &format!("{image}:v1")).fails(125, "no such image");
    let out = run("", &format!("{image}:v1"));
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (0, "hi\n", ""));
    run("--pull never", &format!("{image}:v1")).ok();
    run("", &format!("{image}:v2"))
        .fails(125, &format!("{image}:v2: pull {image}:v2: 127.0.0.1:{}: manifest", registry.port));
    // Another image under the same name is seen by who asks.
    world.sh("sheep-run run --name c minimal touch /new && sheep-run inspect c | sheep-images commit other && sheep-run rm c").ok();
    world.sh(&format!("sheep-images push other {image}:v1")).ok();
    let look = |flags: &str| world.sh(&format!("sheep-run run --rm {flags} {image}:v1 test -e /new")).code;
    assert_eq!((look(""), look("--pull missing"), look("--pull always"), look("")), (1, 1, 0, 0));
    // The script does the same.
    world.sh(&format!("sheep-images rm {image}:v1")).ok();
    for flags in ["", "--pull always", "--pull never"] {
        let script = world.sh(&format!("sheep-run explain run --rm {flags} {image}:v1 echo hi > plan && shellcheck -S warning -s sh plan && sh plan"));
        assert_eq!((script.code, script.stdout.as_str()), (0, "hi\n"), "{flags}: {}", script.stderr);
    }
    // What was made here is looked for here only.
    drop(registry);
    world.sh("sheep-images rm minimal other").ok();
    run("", "minimal").fails(125, "minimal: no such image");
    run("--pull always", &format!("{image}:v1")).fails(125, "Connection refused");
    world.assert_nothing_left();
}
