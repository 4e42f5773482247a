//! Where the loader looks for a library: ld.so(8), ldconfig(8), and for musl its path file.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::elf::{self, Elf};

/// Where loaders look without being told to, on the distributions there are. The loader's own directory comes first, and
/// with it the multiarch one.
const DEFAULT_DIRS: &[&str] = &[
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/i386-linux-gnu",
    "/usr/lib/i386-linux-gnu",
    "/lib/arm-linux-gnueabihf",
    "/usr/lib/arm-linux-gnueabihf",
    "/lib/riscv64-linux-gnu",
    "/usr/lib/riscv64-linux-gnu",
    "/lib/powerpc64le-linux-gnu",
    "/usr/lib/powerpc64le-linux-gnu",
    "/lib/s390x-linux-gnu",
    "/usr/lib/s390x-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/lib32",
    "/usr/lib32",
];
const CONF_DEPTH: u32 = 8;

/// The host's search path beyond what is built into the loader.
#[derive(Debug, Clone, Default)]
pub struct SearchPath {
    configured: Vec<PathBuf>,
}

/// A library that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where the loader finds it.
    pub path: PathBuf,
    /// Whether it does so only with the host's configuration (/etc/ld.so.conf).
    pub by_configuration: bool,
}

impl SearchPath {
    /// Reads /etc/ld.so.conf and what it includes, and musl's path files.
    pub fn of_host() -> Self {
        let mut configured = Vec::new();
        read_conf(Path::new("/etc/ld.so.conf"), &mut configured, 0);
        for file in glob(Path::new("/etc/ld-musl-*.path")) {
            let text = fs::read(file).unwrap_or_default();
            let dirs = text.split(|&b| b == b':' || b == b'\n').filter(|dir| dir.starts_with(b"/"));
            configured.extend(dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))));
        }
        SearchPath { configured }
    }

    /// Finds the library `name` for the object `by` at `place`. `inherited` is the DT_RPATH of those that loaded `by`;
    /// `loader_dir` is where the program's loader is.
    pub fn find(
        &self,
        name: &[u8],
        by: &Elf,
        place: &[PathBuf],
        inherited: &[PathBuf],
        loader_dir: Option<&Path>,
    ) -> Option<Found> {
        let fits = |path: &Path| elf::read(path).is_ok_and(|found| found.kind == by.kind);
        if name.contains(&b'/') {
            let path = PathBuf::from(OsStr::from_bytes(name));
            return fits(&path).then_some(Found { path, by_configuration: false });
        }
        let name = OsStr::from_bytes(name);
        // DT_RPATH counts only where there is no DT_RUNPATH, and is handed down; DT_RUNPATH is not.
        let own = match &by.runpath {
            Some(list) => expand(list, place),
            None => [&expand(&by.rpath, place)[..], inherited].concat(),
        };
        let defaults = || loader_dir.into_iter().chain(DEFAULT_DIRS.iter().map(Path::new));
        let in_dirs = |dirs: &mut dyn Iterator<Item = &Path>| dirs.map(|dir| dir.join(name)).find(|path| fits(path));
        if let Some(path) = in_dirs(&mut own.iter().map(PathBuf::as_path)) {
            return Some(Found { path, by_configuration: false });
        }
        if let Some(path) = in_dirs(&mut self.configured.iter().map(PathBuf::as_path)) {
            let by_configuration = !path.parent().is_some_and(|dir| defaults().any(|known| known == dir));
            return Some(Found { path, by_configuration });
        }
        in_dirs(&mut defaults()).map(|path| Found { path, by_configuration: false })
    }
}

/// Replaces `$ORIGIN` (each of the places an object may be found at) and `$LIB`. `$PLATFORM` directories hold faster
/// copies of what is elsewhere as well, and are passed over.
pub fn expand(list: &[Vec<u8>], origins: &[PathBuf]) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for entry in list {
        let Ok(text) = std::str::from_utf8(entry) else { continue };
        if text.contains("PLATFORM") {
            continue;
        }
        let has_origin = text.contains("$ORIGIN") || text.contains("${ORIGIN}");
        let origins = if has_origin { origins } else { &[PathBuf::from("/")][..] };
        for origin in origins {
            let Some(origin) = origin.to_str() else { continue };
            let text = text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
            let libs: &[&str] = if text.contains("$LIB") || text.contains("${LIB}") {
                &["lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib/i386-linux-gnu"]
            } else {
                &[""]
            };
            for lib in libs {
                let dir = PathBuf::from(text.replace("${LIB}", lib).replace("$LIB", lib));
                if dir.is_absolute() && !dirs.contains(&dir) {
                    dirs.push(dir);
                }
            }
        }
    }
    dirs
}

fn read_conf(file: &Path, dirs: &mut Vec<PathBuf>, depth: u32) {
    // A host without this file has only the default directories.
    let Ok(text) = fs::read_to_string(file) else { return };
    if depth > CONF_DEPTH {
        return;
    }
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        if let Some(pattern) = line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) {
            let base = file.parent().unwrap_or(Path::new("/"));
            for included in glob(&base.join(pattern.trim())) {
                read_conf(&included, dirs, depth + 1);
            }
        } else if line.starts_with('/') {
            dirs.push(line.trim_end_matches('/').into());
        }
    }
}

/// The files that a path with one `*` in its last part stands for, sorted.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (pattern.parent(), pattern.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else { return vec![pattern.to_path_buf()] };
    let fits =
        |name: &str| name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after);
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpaths() {
        let list = |text: &str| text.split(':').map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
        let origins = [PathBuf::from("/o"), PathBuf::from("/p")];
        for (text, want) in [
            ("$ORIGIN/../lib:/x", vec!["/o/../lib", "/p/../lib", "/x"]),
            ("${ORIGIN}", vec!["/o", "/p"]),
            ("/a/$PLATFORM:relative", vec![]),
        ] {
            let want: Vec<PathBuf> = want.into_iter().map(PathBuf::from).collect();
            assert_eq!(expand(&list(text), &origins), want, "{text}");
        }
        assert!(expand(&list("/usr/$LIB"), &origins).contains(&PathBuf::from("/usr/lib")));
    }

    #[test]
    fn configuration_files() {
        let dir = std::env::temp_dir().join(format!("sheep-conf-{}", sheep_overlay::state::new_id().unwrap()));
        fs::create_dir_all(dir.join("d")).unwrap();
        fs::write(dir.join("conf"), "# remark\n/one/ # why\ninclude d/*.conf\nhwcap 0 x\n").unwrap();
        fs::write(dir.join("d/b.conf"), "/three\n").unwrap();
        fs::write(dir.join("d/a.conf"), format!("/two\ninclude {}\n", dir.join("d/a.conf").display())).unwrap();
        fs::write(dir.join("d/x.other"), "/no\n").unwrap();
        let mut dirs = Vec::new();
        read_conf(&dir.join("conf"), &mut dirs, 0);
        dirs.dedup();
        assert_eq!(dirs, ["/one", "/two", "/three"].map(PathBuf::from));
        fs::remove_dir_all(dir).unwrap();
    }
}
