//! A program and all it needs to start: loader, libraries and their libraries, the interpreter of a script.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::elf::{self, Elf};
use super::find_tool;
use super::libraries::{self, SearchPath};
use super::tree::Tree;

/// Scripts run by scripts; the kernel goes no deeper either.
const SCRIPT_DEPTH: u32 = 4;

/// What was looked at already.
#[derive(Debug, Clone)]
pub struct Closure {
    search: SearchPath,
    /// Objects with the search path they were loaded under: the same library may be asked for in two ways.
    seen: BTreeSet<(PathBuf, Vec<PathBuf>)>,
    needs_configuration: bool,
}

/// An object to be looked at.
struct Object {
    /// Where the loader found it.
    path: PathBuf,
    /// DT_RPATH of those that loaded it.
    inherited: Vec<PathBuf>,
    loader_dir: Option<PathBuf>,
}

impl Closure {
    /// Nothing looked at yet.
    pub fn new() -> Self {
        Closure { search: SearchPath::of_host(), seen: BTreeSet::new(), needs_configuration: false }
    }

    /// Adds a program and what it needs.
    pub fn add(&mut self, tree: &mut Tree, program: &Path) -> Result<()> {
        self.add_program(tree, program, 0)
    }

    fn add_program(&mut self, tree: &mut Tree, program: &Path, depth: u32) -> Result<()> {
        let real = tree.add_way(program)?;
        let mut head = [0; 256];
        let mut filled = 0;
        let mut file = File::open(&real).with_context(|| real.display().to_string())?;
        loop {
            match file.read(&mut head[filled..]).with_context(|| real.display().to_string())? {
                0 => break,
                n => filled += n,
            }
        }
        let head = &head[..filled];
        if head.starts_with(b"\x7fELF") {
            return self.add_objects(tree, program);
        }
        let Some(line) = head.strip_prefix(b"#!") else { return Ok(()) };
        if depth >= SCRIPT_DEPTH {
            bail!("{}: scripts run by scripts, {SCRIPT_DEPTH} deep", real.display());
        }
        for interpreter in interpreters(line)? {
            self.add_program(tree, &interpreter, depth + 1)
                .with_context(|| format!("interpreter {}", interpreter.display()))?;
        }
        Ok(())
    }

    /// Adds the libraries of an ELF program, breadth first as the loader does.
    fn add_objects(&mut self, tree: &mut Tree, program: &Path) -> Result<()> {
        let mut queue =
            VecDeque::from([Object { path: program.to_path_buf(), inherited: Vec::new(), loader_dir: None }]);
        let mut sonames: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut missing: Vec<(Vec<u8>, PathBuf)> = Vec::new();
        while let Some(object) = queue.pop_front() {
            let real = tree.add_way(&object.path)?;
            let elf = elf::read(&real)?;
            sonames.extend(elf.soname.clone());
            sonames.extend(real.file_name().map(|name| name.as_bytes().to_vec()));
            if !self.seen.insert((real.clone(), object.inherited.clone())) {
                continue;
            }
            let mut loader_dir = object.loader_dir;
            if let Some(interpreter) = &elf.interpreter {
                let loader = tree.add_way(Path::new(OsStr::from_bytes(interpreter))).context("its loader")?;
                loader_dir = loader.parent().map(Path::to_path_buf);
            }
            let origins: Vec<PathBuf> =
                [&object.path, &real].iter().filter_map(|path| path.parent()).map(Path::to_path_buf).collect();
            let inherited = handed_down(&elf, &origins, &object.inherited);
            for name in &elf.needed {
                match self.search.find(name, &elf, &origins, &object.inherited, loader_dir.as_deref()) {
                    Some(found) => {
                        self.needs_configuration |= found.by_configuration;
                        queue.push_back(Object {
                            path: found.path,
                            inherited: inherited.clone(),
                            loader_dir: loader_dir.clone(),
                        });
                    }
                    None => missing.push((name.clone(), real.clone())),
                }
            }
        }
        // What one object cannot find itself another may have loaded under that name.
        match missing.iter().find(|(name, _)| !sonames.contains(name)) {
            None => Ok(()),
            Some((name, by)) => {
                bail!("the library {}, which {} needs, is not found", String::from_utf8_lossy(name), by.display())
            }
        }
    }

    /// Adds the loader's configuration if something is found only with it.
    pub fn finish(&self, tree: &mut Tree) -> Result<()> {
        for file in ["/etc/ld.so.cache", "/etc/ld.so.conf"] {
            if self.needs_configuration && Path::new(file).is_file() {
                tree.add_way(Path::new(file))?;
            }
        }
        Ok(())
    }
}

fn handed_down(elf: &Elf, origins: &[PathBuf], inherited: &[PathBuf]) -> Vec<PathBuf> {
    if elf.runpath.is_some() {
        return inherited.to_vec();
    }
    let mut dirs = libraries::expand(&elf.rpath, origins);
    dirs.extend(inherited.iter().filter(|dir| !elf.rpath.iter().any(|own| own == dir.as_os_str().as_bytes())).cloned());
    dirs
}

/// The programs that a script's first line names: the interpreter, and where that is `env` what env runs.
fn interpreters(line: &[u8]) -> Result<Vec<PathBuf>> {
    let line = line.split(|&b| b == b'\n').next().unwrap_or(line);
    let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let Some(first) = words.next() else { return Ok(Vec::new()) };
    let first = PathBuf::from(OsStr::from_bytes(first));
    if first.file_name() != Some(OsStr::new("env")) {
        return Ok(vec![first]);
    }
    let Some(program) = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'=')) else {
        return Ok(vec![first]);
    };
    let program = OsStr::from_bytes(program);
    let path = find_tool(program).with_context(|| format!("{} is not found", program.to_string_lossy()))?;
    Ok(vec![first, path])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        let paths = |line: &[u8]| interpreters(line).unwrap();
        assert_eq!(paths(b"/bin/sh\nrest"), [PathBuf::from("/bin/sh")]);
        assert_eq!(paths(b" /bin/sh -e\n"), [PathBuf::from("/bin/sh")]);
        assert_eq!(paths(b"/usr/bin/env -S A=b sh -x"), [PathBuf::from("/usr/bin/env"), PathBuf::from("/bin/sh")]);
        assert_eq!(paths(b"\n"), [] as [PathBuf; 0]);
        assert!(interpreters(b"/usr/bin/env nosuchprogram").is_err());
    }
}
