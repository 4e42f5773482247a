//! Developer tasks: files in docs/ that are generated from the code, so that they cannot say something else than it does,
//! and one source file that is generated from the kernel's headers.

mod man;
mod schema;
mod syscalls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo run -p xtask -- man|schemas|syscalls|all|check
  man      docs/man/: a manual page for each program and each verb
  schemas  docs/schema/: JSON Schemas of the documents
  all      both
  syscalls sheep-ns/src/seccomp/numbers.rs: system call numbers, from the kernel's headers
  check    fail when one of the files of 'all' is not what the code would generate";

/// Generated files: where in the repository, and what is in them.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["man"] => write(&repository, "docs/man", &man::pages()?),
        ["schemas"] => write(&repository, "docs/schema", &schema::files()?),
        ["all"] => {
            write(&repository, "docs/man", &man::pages()?)?;
            write(&repository, "docs/schema", &schema::files()?)
        }
        ["syscalls"] => {
            fs::write(repository.join(syscalls::FILE), syscalls::table(&repository)?).context(syscalls::FILE)
        }
        ["check"] => {
            check(&repository, "docs/man", &man::pages()?)?;
            check(&repository, "docs/schema", &schema::files()?)
        }
        _ => bail!("{USAGE}"),
    }
}

/// Makes `folder` hold exactly `files`.
fn write(repository: &Path, folder: &str, files: &Files) -> Result<()> {
    let folder = repository.join(folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for stale in present(&folder)?.keys().filter(|name| !files.contains_key(*name)) {
        fs::remove_file(folder.join(stale)).with_context(|| stale.display().to_string())?;
    }
    for (name, content) in files {
        fs::write(folder.join(name), content).with_context(|| name.display().to_string())?;
    }
    Ok(())
}

/// Errors unless `folder` holds exactly `files`.
fn check(repository: &Path, folder: &str, files: &Files) -> Result<()> {
    let present = present(&repository.join(folder))?;
    let wrong: Vec<String> = files
        .keys()
        .chain(present.keys().filter(|name| !files.contains_key(*name)))
        .filter(|name| files.get(*name) != present.get(*name))
        .map(|name| format!("{folder}/{}", name.display()))
        .collect();
    if !wrong.is_empty() {
        bail!("not up to date, run 'cargo run -p xtask -- all': {}", wrong.join(", "));
    }
    Ok(())
}

/// The files of a folder; none where there is no such folder.
fn present(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let content = fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
            files.insert(entry.file_name().into(), content);
        }
    }
    Ok(files)
}
