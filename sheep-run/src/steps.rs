//! The steps a container is made of, as command lines of the siblings: plain data, made by pure functions, so that
//! `run` executes and `explain` prints the same.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};
use sheep_overlay::doc::Document;
use sheep_overlay::exit;
use sheep_overlay::state::{Durability, write_atomic};

use crate::cli::{Backend, Making, Network, Pull};
use crate::record::{Claim, Home, Wanted};
use crate::signals::Signals;
use crate::tool::{self, IMAGES, NS, OVERLAY, Step};

/// The kernel's default period, which `--cpus` and `--cpu-quota` are parts of.
const CPU_PERIOD: i64 = 100_000;
/// How a sibling ends that has not found what was named.
const NOT_FOUND: i32 = 3;

/// What a container is made of, its flags checked and made ready for the siblings.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image's reference.
    pub image: OsString,
    /// When it is got from its registry.
    pub pull: Pull,
    /// The command; empty for the image's own.
    pub command: Vec<OsString>,
    /// The record's part.
    pub wanted: Wanted,
    /// Flags of `sheep-ns spec`.
    spec: Vec<OsString>,
    has_hostname: bool,
    backend: Option<Backend>,
}

/// Checks the flags and makes a plan of them. Nothing is started and nothing written.
pub fn plan(making: &Making) -> Result<Plan> {
    let mut words = making.image_and_command.iter().cloned();
    let image = words.next().ok_or_else(|| exit::usage("no image is named"))?;
    let mut spec = Vec::new();
    let mut flag = |name: &str, value: &OsStr| spec.extend([name.into(), value.to_owned()]);
    for variable in environment(making)? {
        flag("--env", &variable);
    }
    for volume in &making.volume {
        flag("--volume", &absolute_volume(volume)?);
    }
    if let Some(dir) = &making.workdir {
        flag("--cwd", dir);
    }
    let labels = making.label.iter().map(|label| label.split_once('=').unwrap_or((label, "")));
    let labels: BTreeMap<String, String> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    for (key, value) in &labels {
        flag("--label", format!("{key}={value}").as_ref());
    }
    if let Some(size) = &making.memory {
        flag("--memory", bytes(size)?.to_string().as_ref());
    }
    let quota = match &making.cpus {
        Some(cpus) => Some(quota_of(cpus)?),
        None => making.cpu_quota,
    };
    if let Some(quota) = quota {
        flag("--cpu-quota", quota.to_string().as_ref());
        flag("--cpu-period", CPU_PERIOD.to_string().as_ref());
    }
    let numbers = [
        ("--cpu-shares", making.cpu_shares.map(|n| n.to_string())),
        ("--pids-limit", making.pids_limit.map(|n| n.to_string())),
    ];
    let texts = [("--user", making.user.clone()), ("--hostname", making.hostname.clone())];
    for (name, value) in numbers.into_iter().chain(texts) {
        if let Some(value) = value {
            flag(name, value.as_ref());
        }
    }
    if let Some(profile) = &making.seccomp {
        let is_word = profile == "default" || profile == "unconfined";
        let file = if is_word { profile.into() } else { std::path::absolute(profile).context("--seccomp")? };
        flag("--seccomp", file.as_os_str());
    }
    if making.network == Some(Network::Host) {
        flag("--network", "host".as_ref());
    }
    spec.extend(making.read_only.then(|| "--read-only".into()));
    spec.extend(making.tty.then(|| "--tty".into()));
    let wanted =
        Wanted { name: making.name.clone(), remove: making.rm, interactive: making.interactive, labels, log: true };
    let has_hostname = making.hostname.is_some();
    // What is made here is not to be had anywhere else, and a digest alone says of no registry.
    let pull = if making.pull == Pull::Missing && is_of_here(&image) { Pull::Never } else { making.pull };
    Ok(Plan { image, pull, command: words.collect(), wanted, spec, has_hostname, backend: making.backend })
}

/// Whether an image's name is one of this machine only: what `sheep-images bootstrap` makes, or a digest or the beginning of one,
/// as lists show it.
fn is_of_here(image: &OsStr) -> bool {
    let image = image.as_bytes();
    let is_hex = |text: &[u8]| text.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    image == b"minimal"
        || image == b"minimal:latest"
        || image.starts_with(b"sha256:")
        || (image.len() >= 12 && is_hex(image))
}

/// Looks whether the image is here: ends with 3 where it is not.
pub fn look(home: &Home, plan: &Plan) -> Step {
    let mut step = with_root(IMAGES, home.data.path(), ["inspect"]);
    step.args.push(plan.image.clone());
    step
}

/// Gets the image from its registry, and unpacks it: prints what [`unpack`] does.
pub fn pull(home: &Home, plan: &Plan) -> Step {
    let mut step = with_root(IMAGES, home.data.path(), ["pull"]);
    step.args.push(plan.image.clone());
    step
}

/// Unpacks the image: prints the document with `image`.
pub fn unpack(home: &Home, plan: &Plan) -> Step {
    let mut step = with_root(IMAGES, home.data.path(), ["unpack"]);
    step.args.push(plan.image.clone());
    step
}

/// Mounts the image's layers: takes the document, and adds `overlay`.
pub fn mount(home: &Home, plan: &Plan, id: &str, volatile: bool) -> Step {
    let mut step = with_root(OVERLAY, home.data.path(), ["mount", "-", "--id", id]);
    step.args.extend(volatile.then(|| "--volatile".into()));
    if let Some(backend) = plan.backend {
        let name = match backend {
            Backend::Auto => "auto",
            Backend::Kernel => "kernel",
            Backend::Copy => "copy",
        };
        step.args.extend(["--backend".into(), name.into()]);
    }
    step
}

/// Mounts a stopped container's layers and changes again.
pub fn mount_again(home: &Home, id: &str) -> Step {
    with_root(OVERLAY, home.data.path(), ["mount", "--id", id])
}

/// Unmounts; without `keep` the changes go as well.
pub fn umount(home: &Home, id: &str, keep: bool) -> Step {
    let mut step = with_root(OVERLAY, home.data.path(), ["umount"]);
    step.args.extend(keep.then(|| "--keep".into()));
    step.args.push(id.into());
    step
}

/// Lists the overlays.
pub fn overlays(home: &Home) -> Step {
    with_root(OVERLAY, home.data.path(), ["ls", "--json"])
}

/// Makes config.json from the document.
pub fn spec(plan: &Plan, id: &str) -> Step {
    let mut step = Step::new(NS, ["spec", "--from", "-"]);
    step.args.extend(plan.spec.iter().cloned());
    if !plan.has_hostname {
        step.args.extend(["--hostname".into(), id.into()]);
    }
    if !plan.command.is_empty() {
        step.args.push("--".into());
        step.args.extend(plan.command.iter().cloned());
    }
    step
}

/// Runs the bundle to its end. `keep` leaves the state and the control group, to look into.
pub fn run(home: &Home, bundle: &Path, id: &str, keep: bool) -> Step {
    let mut step = with_root(NS, &home.states, ["run"]);
    step.args.extend(keep.then(|| "--keep".into()));
    bundle_args(&mut step, bundle);
    step.args.push(id.into());
    step
}

/// Makes the container; its program waits for [`start`].
pub fn create(home: &Home, bundle: &Path, id: &str, console_socket: Option<&Path>) -> Step {
    let mut step = with_root(NS, &home.states, ["create"]);
    bundle_args(&mut step, bundle);
    if let Some(socket) = console_socket {
        step.args.extend(["--console-socket".into(), socket.into()]);
    }
    step.args.push(id.into());
    step
}

fn bundle_args(step: &mut Step, bundle: &Path) {
    step.args.extend(["--bundle".into(), bundle.into(), "--pid-file".into(), bundle.join("pid").into()]);
}

/// Starts the program of a created container.
pub fn start(home: &Home, id: &str) -> Step {
    with_root(NS, &home.states, ["start", id])
}

/// Prints the OCI state.
pub fn state(home: &Home, id: &str) -> Step {
    with_root(NS, &home.states, ["state", id])
}

/// Sends a signal.
pub fn kill(home: &Home, id: &str, signal: &str) -> Step {
    with_root(NS, &home.states, ["kill", id, signal])
}

/// Deletes the OCI state and the control group; kills what still runs.
pub fn delete(home: &Home, id: &str) -> Step {
    with_root(NS, &home.states, ["delete", "--force", id])
}

fn with_root<const N: usize>(tool: &'static str, root: &Path, args: [&str; N]) -> Step {
    let mut step = Step::new(tool, ["--root".as_ref(), root.as_os_str()]);
    step.args.extend(args.map(OsString::from));
    step
}

/// Unpack, mount, spec: everything up to a bundle that can be run. The record has it all afterwards; it is not saved.
/// On an error the caller undoes what was done.
pub fn prepare(home: &Home, plan: &Plan, claim: &mut Claim, volatile: bool, signals: &Signals) -> Result<()> {
    let id = claim.record.container.id.clone();
    let image = image(home, plan, signals)?;
    let mounted = tool::make(&mount(home, plan, &id, volatile), Some(&image), signals)?;
    let config = tool::make(&spec(plan, &id), Some(&mounted), signals)?;
    let file = claim.record.dir.join("config.json");
    // Like the record at this point: after a power cut, a container that was being made is undone.
    let durability = if claim.record.container.remove { Durability::Rebuildable } else { Durability::Synced };
    write_atomic(&file, &config, durability).with_context(|| format!("write {}", file.display()))?;
    claim.record.adopt(Document::parse(&mounted).context("what sheep-overlay printed")?);
    claim.record.adopt_config(&config)
}

/// The image, unpacked, wherever it comes from.
fn image(home: &Home, plan: &Plan, signals: &Signals) -> Result<Vec<u8>> {
    if plan.pull != Pull::Always {
        let unpacked = tool::make(&unpack(home, plan), None, signals);
        match unpacked {
            Err(error) if plan.pull == Pull::Missing && tool::code_of(&error) == Some(NOT_FOUND) => {}
            done => return done,
        }
    }
    tool::make_shown(&pull(home, plan), signals)
}

/// The variables that `--env-file` and `--env` set, as `NAME=VALUE`, in their order.
fn environment(making: &Making) -> Result<Vec<OsString>> {
    let mut variables = Vec::new();
    for file in &making.env_file {
        let text = fs::read(file).with_context(|| format!("--env-file {}", file.display()))?;
        let parsed = parse_env_file(&text, |name| env::var_os(name));
        variables.extend(parsed.map_err(|why| exit::usage(format!("--env-file {}: {why}", file.display())))?);
    }
    variables.extend(named_variables(&making.env)?);
    Ok(variables)
}

/// `--env`: `NAME=VALUE`, or `NAME` for the value it has here; one that is not set here is left out, as in docker.
pub fn named_variables(given: &[OsString]) -> Result<Vec<OsString>> {
    let mut variables = Vec::new();
    for variable in given {
        match variable.as_bytes().iter().position(|&b| b == b'=') {
            Some(0) => return Err(exit::usage(format!("--env {}: the name is missing", variable.display()))),
            None if variable.is_empty() => return Err(exit::usage("--env: the name is missing")),
            Some(_) => variables.push(variable.clone()),
            None => variables.extend(env::var_os(variable).map(|value| join(variable, &value))),
        }
    }
    Ok(variables)
}

fn join(name: &OsStr, value: &OsStr) -> OsString {
    OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat())
}

/// An environment file in docker's format: a variable a line, taken literally (no quotes, no escapes); `NAME` alone has
/// the value `lookup` gives, and is left out where that is none; lines that begin with `#` and empty ones are skipped.
fn parse_env_file(text: &[u8], lookup: impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<OsString>, String> {
    let mut variables = Vec::new();
    for (number, line) in text.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let equals = line.iter().position(|&b| b == b'=');
        let name = &line[..equals.unwrap_or(line.len())];
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(format!("line {}: {:?} is not a name", number + 1, String::from_utf8_lossy(name)));
        }
        match equals {
            Some(_) => variables.push(OsString::from_vec(line.to_vec())),
            None => {
                let name = OsStr::from_bytes(name);
                variables.extend(lookup(name).map(|value| join(name, &value)));
            }
        }
    }
    Ok(variables)
}

/// `-v SRC:DST[:ro|:rw]` with SRC made absolute. Errors: no DST, a DST that is not absolute, an SRC that is not there.
fn absolute_volume(volume: &OsStr) -> Result<OsString> {
    let wrong = |why: &str| exit::usage(format!("-v {}: {why}", volume.display()));
    let bytes = volume.as_bytes();
    let (rest, read_only) = match (bytes.strip_suffix(b":ro"), bytes.strip_suffix(b":rw")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => (bytes, false),
    };
    let colon = rest.iter().rposition(|&b| b == b':').ok_or_else(|| wrong("SRC:DST is expected"))?;
    let (source, target) = (&rest[..colon], &rest[colon + 1..]);
    if source.is_empty() || !target.starts_with(b"/") {
        return Err(wrong("SRC:DST is expected, DST an absolute path"));
    }
    let source = std::path::absolute(OsStr::from_bytes(source)).map_err(|error| wrong(&error.to_string()))?;
    fs::metadata(&source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            exit::not_found(format!("-v {}: no such file or directory on this host", source.display()))
        }
        _ => anyhow::Error::new(error).context(format!("-v {}", source.display())),
    })?;
    let suffix: &[u8] = if read_only { b":ro" } else { b"" };
    Ok(OsString::from_vec([source.as_os_str().as_bytes(), b":", target, suffix].concat()))
}

/// A size in bytes: digits, then k, m, g or t (powers of 1024), then perhaps b or ib.
fn bytes(size: &str) -> Result<u64> {
    let wrong = || exit::usage(format!("-m {size}: a size is expected, such as 64m or 2g"));
    let lower = size.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(wrong)
}

/// `--cpus` as microseconds in each period.
fn quota_of(cpus: &str) -> Result<i64> {
    let wrong = || exit::usage(format!("--cpus {cpus}: a number of processors is expected, such as 1.5"));
    let number: f64 = cpus.parse().map_err(|_| wrong())?;
    let quota = number * CPU_PERIOD as f64;
    // The kernel takes 1 ms at least.
    if quota.is_finite() && (1000.0..1e12).contains(&quota) { Ok(quota.round() as i64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_here_is_not_looked_for_elsewhere() {
        for image in ["minimal", "minimal:latest", "sha256:00", "0123456789ab", &"f".repeat(64)] {
            assert!(is_of_here(image.as_ref()), "{image}");
        }
        for image in ["alpine", "minimal:v2", "localhost:5000/minimal", "cafe", "decade", "debian:12"] {
            assert!(!is_of_here(image.as_ref()), "{image}");
        }
    }

    #[test]
    fn sizes() {
        let table = [("1", 1), ("32m", 32 << 20), ("32M", 32 << 20), ("2g", 2 << 30), ("4kb", 4096), ("1GiB", 1 << 30)];
        for (text, want) in table {
            assert_eq!(bytes(text).unwrap(), want, "{text}");
        }
        for bad in ["", "m", "lots", "-1", "1.5g", "0", "1x", "99999999999t"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(quota_of("1.5").unwrap(), 150_000);
        assert_eq!(quota_of("0.01").unwrap(), 1000);
        for bad in ["", "x", "0", "-1", "nan", "inf", "0.001"] {
            assert!(quota_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_files_are_literal() {
        let text = b"# comment\n\n A=b c \nQUOTED=\"x\"\nHERE\nNOT_HERE\nEMPTY=\nX=a=b\r\n";
        let got = parse_env_file(text, |name| (name == "HERE").then(|| "yes".into())).unwrap();
        assert_eq!(got, ["A=b c ", "QUOTED=\"x\"", "HERE=yes", "EMPTY=", "X=a=b"]);
        for bad in [&b"=x"[..], b"A B=c"] {
            assert!(parse_env_file(bad, |_| None).is_err());
        }
    }

    #[test]
    fn volumes_become_absolute() {
        assert_eq!(absolute_volume("/usr:/u".as_ref()).unwrap(), "/usr:/u");
        assert_eq!(absolute_volume("/usr:/u:ro".as_ref()).unwrap(), "/usr:/u:ro");
        assert_eq!(absolute_volume("/usr:/u:rw".as_ref()).unwrap(), "/usr:/u");
        let here = env::current_dir().unwrap();
        let some = std::fs::read_dir(&here).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
        let volume = absolute_volume(format!("{some}:/u").as_ref()).unwrap();
        assert_eq!(volume, format!("{}/{some}:/u", here.display()).as_str());
        for bad in ["/usr", "/usr:", ":/u", "/usr:u", "/nosuch:/u", ""] {
            assert!(absolute_volume(bad.as_ref()).is_err(), "{bad}");
        }
    }
}
