//! sheep-ns/src/seccomp/numbers.rs: system call numbers by name, from the kernel's headers as the crate linux-raw-sys
//! (which rustix brings along) has them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where the table goes, in the repository.
pub const FILE: &str = "sheep-ns/src/seccomp/numbers.rs";

/// The architectures, in the order of `seccomp::words::Arch`: the crate's names.
const ARCHITECTURES: [&str; 6] = ["x86_64", "x86", "x32", "aarch64", "arm", "riscv64"];

/// The table as a Rust source file.
pub fn table(repository: &Path) -> Result<Vec<u8>> {
    let (source, version) = headers(repository)?;
    let mut names: BTreeMap<String, [i32; ARCHITECTURES.len()]> = BTreeMap::new();
    for (index, architecture) in ARCHITECTURES.iter().enumerate() {
        let file = source.join("src").join(architecture).join("general.rs");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for (name, number) in text.lines().filter_map(constant) {
            let row = names.entry(name.to_owned()).or_insert([-1; ARCHITECTURES.len()]);
            if let Some(place) = row.get_mut(index) {
                *place = number;
            }
        }
    }
    if names.len() < 400 {
        bail!("linux-raw-sys {version} has only {} system calls: its form has changed", names.len());
    }
    let mut text = format!(
        "//! System call numbers by name; -1 where an architecture has no such call.\n//!\n\
         //! Generated from linux-raw-sys {version}, which has them from the kernel's headers, by 'cargo run -p xtask -- syscalls'.\n\n\
         /// How many architectures the table has: those of `words::Arch`, in its order.\n\
         pub const ARCHITECTURES: usize = {};\n\n\
         /// Name, then the number for each of {}; sorted by name.\n\
         #[rustfmt::skip]\n\
         pub static NUMBERS: [(&str, [i32; ARCHITECTURES]); {}] = [\n",
        ARCHITECTURES.len(),
        ARCHITECTURES.join(", "),
        names.len(),
    );
    for (name, numbers) in &names {
        let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
        writeln!(text, "    (\"{name}\", [{}]),", numbers.join(", "))?;
    }
    text.push_str("];\n");
    Ok(text.into_bytes())
}

/// `pub const __NR_read: u32 = 0;`, and Arm's own calls, `__ARM_NR_cacheflush`. What is no call is left out.
fn constant(line: &str) -> Option<(&str, i32)> {
    let (name, value) = line.trim().strip_prefix("pub const __")?.split_once(": u32 = ")?;
    let name = name.strip_prefix("NR_").or_else(|| name.strip_prefix("ARM_NR_"))?;
    let is_call = !matches!(name, "OABI_SYSCALL_BASE" | "SYSCALL_MASK" | "SYSCALL_BASE" | "BASE" | "COMPAT_BASE");
    Some((name, value.trim_end_matches(';').parse().ok()?)).filter(|_| is_call)
}

/// The directory and the version of linux-raw-sys, as cargo has resolved it for this workspace.
fn headers(repository: &Path) -> Result<(PathBuf, String)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(repository)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    let package = packages.iter().find(|package| package["name"] == "linux-raw-sys");
    let package = package.context("linux-raw-sys is no dependency of the workspace any more")?;
    let manifest = Path::new(package["manifest_path"].as_str().context("cargo metadata: no path")?);
    let version = package["version"].as_str().context("cargo metadata: no version")?;
    Ok((manifest.parent().context("manifest_path")?.to_owned(), version.to_owned()))
}
