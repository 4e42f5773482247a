//! Names and passwords for registries, where podman and docker keep them, and their credential helpers.
//!
//! Files are asked in the order in which podman asks them (containers-auth.json(5)); in podman's, a key may also name a part of a
//! registry: `host/org/repo`. Written is podman's file only.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use sheep_overlay::state::{self, Durability, Lock};

use crate::reference::DEFAULT_DOMAIN;

/// How docker calls Docker Hub in its files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a helper gives in the place of a name where the secret is a token to get tokens by.
const IDENTITY: &str = "<token>";

/// Who we are for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password(String, String),
    /// A token by which other tokens are to be had.
    Identity(String),
}

// Secrets get into no message by mistake.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Password(..) => "Password",
            Credentials::Identity(_) => "Identity",
        })
    }
}

/// `Basic …`, for a name and a password.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

/// The file that `login` writes: `$REGISTRY_AUTH_FILE`, else podman's place for this user, which a reboot empties.
pub fn own_file() -> Result<PathBuf> {
    if let Some(file) = set("REGISTRY_AUTH_FILE") {
        return Ok(file.into());
    }
    if let Some(dir) = set("XDG_RUNTIME_DIR") {
        return Ok(PathBuf::from(dir).join("containers/auth.json"));
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(run_file());
    }
    Ok(home()
        .context("neither $XDG_RUNTIME_DIR nor $HOME is set; set $REGISTRY_AUTH_FILE")?
        .join(".config/containers/auth.json"))
}

fn run_file() -> PathBuf {
    PathBuf::from(format!("/run/containers/{}/auth.json", rustix::process::geteuid().as_raw()))
}

fn set(variable: &str) -> Option<std::ffi::OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}

fn home() -> Option<PathBuf> {
    set("HOME").map(PathBuf::from)
}

/// The files that are asked, in this order.
fn files() -> Vec<PathBuf> {
    if let Some(file) = set("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let runtime = set("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("containers/auth.json"));
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".config")));
    let docker = set("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home().map(|home| home.join(".docker")));
    [
        Some(runtime.unwrap_or_else(run_file)),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Who we are for a repository of a registry; `None` where no file says.
pub fn find(registry: &str, path: &str) -> Result<Option<Credentials>> {
    for file in files() {
        let context = || file.display().to_string();
        let Some(config) = read(&file).with_context(context)? else { continue };
        if let Some(found) = look_up(&config, registry, path, &from_helper).with_context(context)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read(file: &Path) -> Result<Option<Value>> {
    match fs::read(file) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Ok(None),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|e| anyhow!("not JSON: {e}"))?)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        // Another user's, as with sudo: what is not for us is not ours.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What a file says: the most exact key, a helper for the registry, and at last the helper for all.
fn look_up(
    config: &Value,
    registry: &str,
    path: &str,
    helper: &dyn Fn(&str, &str) -> Result<Option<Credentials>>,
) -> Result<Option<Credentials>> {
    let server = if registry == DEFAULT_DOMAIN { DOCKER_HUB } else { registry };
    let named = config.get("credHelpers").and_then(|helpers| helpers.get(registry).or_else(|| helpers.get(server)));
    if let Some(name) = named.and_then(Value::as_str) {
        return helper(name, server);
    }
    let none = Map::new();
    let auths = config.get("auths").and_then(Value::as_object).unwrap_or(&none);
    let mut key = format!("{registry}/{path}");
    loop {
        let entry = auths.iter().find(|(name, _)| normal(name) == key);
        if let Some((name, entry)) = entry
            && let Some(found) = decode(entry).with_context(|| format!("auths: {name}"))?
        {
            return Ok(Some(found));
        }
        let Some(at) = key.rfind('/') else { break };
        key.truncate(at);
    }
    match config.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty()) {
        Some(name) => helper(name, server),
        None => Ok(None),
    }
}

/// A key of `auths` as podman writes it: docker's are URLs, and its own name for Docker Hub.
fn normal(key: &str) -> String {
    let (rest, is_url) = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => (rest, true),
        None => (key, false),
    };
    let rest = rest.trim_end_matches('/');
    let host = rest.split('/').next().unwrap_or_default();
    let is_old = is_url || rest.ends_with("/v1") || rest.ends_with("/v2");
    let key = if is_old { host } else { rest };
    match key {
        "index.docker.io" | super::HUB_HOST => DEFAULT_DOMAIN.to_owned(),
        other => other.to_owned(),
    }
}

fn decode(entry: &Value) -> Result<Option<Credentials>> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::Identity(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        // No word of what is in it: it is a secret.
        let bytes = BASE64.decode(auth.trim()).map_err(|_| anyhow!("its auth is not base64"))?;
        let decoded = String::from_utf8(bytes).map_err(|_| anyhow!("its auth is not text"))?;
        let (user, password) = decoded.split_once(':').context("its auth has no ':'")?;
        return Ok(Some(Credentials::Password(user.to_owned(), password.trim_end_matches('\0').to_owned())));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => Some(Credentials::Password(user.to_owned(), password.to_owned())),
        _ => None,
    })
}

/// Asks `docker-credential-NAME get`.
fn from_helper(name: &str, server: &str) -> Result<Option<Credentials>> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        bail!("the credential helper {name:?}: that is no name of a program");
    }
    let program = format!("docker-credential-{name}");
    let context = || program.clone();
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => anyhow!("it is not on PATH"),
            _ => e.into(),
        })
        .with_context(context)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e).with_context(context),
            _ => {}
        }
    }
    let out = child.wait_with_output().with_context(context)?;
    if !out.status.success() {
        let said =
            String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout }).trim().to_owned();
        // The words that docker's own client goes by.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        bail!("{program} get: {}", said.lines().next().unwrap_or("it failed without a word"));
    }
    let found: Value = serde_json::from_slice(&out.stdout).map_err(|_| anyhow!("{program} get: it printed no JSON"))?;
    let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (user, secret) = (text("Username"), text("Secret"));
    Ok(match (user.as_str(), secret.is_empty()) {
        (_, true) => None,
        (IDENTITY, false) => Some(Credentials::Identity(secret)),
        _ => Some(Credentials::Password(user, secret)),
    })
}

/// Writes a name and a password down for a registry, or with `None` takes them out; gives whether there was one before.
pub fn write(file: &Path, registry: &str, credentials: Option<(&str, &str)>) -> Result<bool> {
    let context = || file.display().to_string();
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        if credentials.is_none() && !dir.exists() {
            return Ok(false);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
    }
    // Through a symbolic link to where it leads: it is to stay one.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let _lock = Lock::exclusive(&file.with_file_name(name)).with_context(context)?;
    let mut config = read(&file).with_context(context)?.unwrap_or_else(|| json!({}));
    let top = config.as_object_mut().with_context(|| format!("{}: not a JSON object", file.display()))?;
    let auths = top.entry("auths").or_insert_with(|| json!({}));
    let auths = auths.as_object_mut().with_context(|| format!("{}: auths is not a JSON object", file.display()))?;
    let before = auths.len();
    auths.retain(|key, _| normal(key) != registry);
    let was_there = auths.len() != before;
    match credentials {
        Some((user, password)) => {
            let auth = BASE64.encode(format!("{user}:{password}"));
            auths.insert(registry.to_owned(), json!({ "auth": auth }));
        }
        None if !was_there => return Ok(false),
        None => {}
    }
    let mut bytes = serde_json::to_vec_pretty(&config)?;
    bytes.push(b'\n');
    state::write_atomic(&file, &bytes, Durability::Synced).with_context(context)?;
    Ok(was_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(text: &str) -> Value {
        json!({ "auth": BASE64.encode(text) })
    }

    fn find_in(config: &Value, registry: &str, path: &str) -> Option<Credentials> {
        let helper = |name: &str, server: &str| {
            Ok((name == "good").then(|| Credentials::Password("helped".into(), server.into())))
        };
        look_up(config, registry, path, &helper).unwrap()
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password(user.into(), password.into()))
    }

    #[test]
    fn the_most_exact_key_counts() {
        let config = json!({ "auths": {
            "r.io": auth("all:1"), "r.io/org": auth("org:2"), "r.io/org/repo": auth("repo:3:4"),
            "https://index.docker.io/v1/": auth("hub:5"), "https://old.io": auth("old:6"), "empty.io": {},
            "id.io": { "auth": BASE64.encode("x:"), "identitytoken": "t" },
        } });
        assert_eq!(find_in(&config, "r.io", "org/repo"), password("repo", "3:4"));
        assert_eq!(find_in(&config, "r.io", "org/other"), password("org", "2"));
        assert_eq!(find_in(&config, "r.io", "organ"), password("all", "1"));
        assert_eq!(find_in(&config, "docker.io", "library/x"), password("hub", "5"));
        assert_eq!(find_in(&config, "old.io", "x"), password("old", "6"));
        assert_eq!(find_in(&config, "id.io", "x"), Some(Credentials::Identity("t".into())));
        for absent in ["empty.io", "io", "r.i", "other.r.io"] {
            assert_eq!(find_in(&config, absent, "x"), None, "{absent}");
        }
    }

    #[test]
    fn helpers() {
        let config = json!({ "auths": { "a.io": auth("own:1") }, "credHelpers": { "a.io": "good", "b.io": "none" }, "credsStore": "good" });
        assert_eq!(find_in(&config, "a.io", "x"), password("helped", "a.io"));
        assert_eq!(find_in(&config, "b.io", "x"), None);
        assert_eq!(find_in(&config, "docker.io", "x"), password("helped", DOCKER_HUB));
        assert!(from_helper("../evil", "x").is_err());
    }

    #[test]
    fn what_is_no_secret_says_so_without_saying_it() {
        let config = json!({ "auths": { "a.io": { "auth": "c2VjcmV0" }, "b.io": { "auth": "sec ret" } } });
        for registry in ["a.io", "b.io"] {
            let error = look_up(&config, registry, "x", &|_, _| Ok(None)).unwrap_err();
            let line = format!("{error:#}");
            assert!(line.contains(registry) && !line.contains("secret") && !line.contains("c2Vj"), "{line}");
        }
    }
}
