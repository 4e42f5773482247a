//! Profiles in files: `linux.seccomp` as the specification has it, or the form that docker and podman take with
//! `--security-opt seccomp=FILE`. The latter has architectures in `archMap`, and rules that are only for some
//! architectures, capabilities or kernels. Pure.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use super::words::Arch;
use crate::exit;
use crate::oci::{Seccomp, SyscallRule};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Engine {
    #[serde(flatten)]
    plain: Plain,
    #[serde(default)]
    arch_map: Option<Vec<Companions>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

/// What both forms have.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plain {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
}

/// An architecture, and those whose programs it runs as well.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Companions {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    /// The form of old files: one name.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    includes: Option<Only>,
    #[serde(default)]
    excludes: Option<Only>,
}

/// What a rule is for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Only {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// The profile in a file's text for a process with this bounding set. `name` is the file's, for messages.
pub fn parse(text: &[u8], name: &str, arch: Arch, bounding: &[String]) -> Result<Seccomp> {
    let wrong = |error: serde_json::Error| exit::usage(format!("--seccomp {name}: {error}"));
    let engine: Engine = serde_json::from_slice(text).map_err(wrong)?;
    let mut syscalls = Vec::new();
    for rule in engine.syscalls.unwrap_or_default() {
        let (includes, excludes) = (rule.includes.unwrap_or_default(), rule.excludes.unwrap_or_default());
        if !is_for(&includes, arch, bounding) || is_kept_from(&excludes, arch, bounding) {
            continue;
        }
        let mut fields = serde_json::Map::from_iter(rule.rest);
        let names: Vec<String> =
            rule.names.into_iter().flatten().chain(rule.name).filter(|name| !name.is_empty()).collect();
        fields.insert("names".to_owned(), names.into());
        syscalls.push(serde_json::from_value::<SyscallRule>(fields.into()).map_err(wrong)?);
    }
    let mut architectures = engine.plain.architectures.unwrap_or_default();
    for companions in engine.arch_map.unwrap_or_default() {
        if companions.architecture == arch.word() {
            architectures.push(companions.architecture);
            architectures.extend(companions.sub_architectures.unwrap_or_default());
        }
    }
    Ok(Seccomp {
        default_action: engine.plain.default_action,
        default_errno_ret: engine.plain.default_errno_ret,
        architectures,
        flags: engine.plain.flags.unwrap_or_default(),
        listener_path: engine.plain.listener_path,
        listener_metadata: engine.plain.listener_metadata,
        syscalls,
    })
}

fn is_for(only: &Only, arch: Arch, bounding: &[String]) -> bool {
    // A kernel as new as any profile asks for (4.8) is there: this program needs a newer one.
    let arches = only.arches.as_deref().unwrap_or_default();
    let caps = only.caps.as_deref().unwrap_or_default();
    (arches.is_empty() || arches.iter().any(|name| name == arch.go_name()))
        && caps.iter().all(|name| bounding.iter().any(|has| has.eq_ignore_ascii_case(name)))
}

fn is_kept_from(only: &Only, arch: Arch, bounding: &[String]) -> bool {
    let any = |names: &Option<Vec<String>>, has: &dyn Fn(&str) -> bool| names.iter().flatten().any(|name| has(name));
    only.min_kernel.is_some()
        || any(&only.arches, &|name| name == arch.go_name())
        || any(&only.caps, &|name| bounding.iter().any(|has| has.eq_ignore_ascii_case(name)))
}
