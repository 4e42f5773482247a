//! Flags that say how much of the host a command sees and what it may, beside those of docker: one line in place of a
//! bubblewrap script.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::caps;
use crate::exit;
use crate::oci::{Capabilities, Mount, Name, NamespaceKind};

use super::limits;

/// Shared by `spec` and `exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Isolate {
    /// Namespaces that stay the caller's: net, pid, ipc, uts, cgroup (a list, repeatable)
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub share: Vec<Shared>,
    /// A new user namespace also for root: no capability counts outside of it, and no other user is in it
    #[arg(long)]
    pub map_root: bool,
    /// Mount a host file or directory inside, at the same path where no other is given (repeatable)
    #[arg(long, value_name = "SRC[:DST]")]
    pub bind: Vec<OsString>,
    /// The same, read-only (repeatable)
    #[arg(long, value_name = "SRC[:DST]")]
    pub ro_bind: Vec<OsString>,
    /// An empty directory in memory (repeatable)
    #[arg(long, value_name = "DST[:SIZE]")]
    pub tmpfs: Vec<OsString>,
    /// One more capability than the default ones, or all (repeatable)
    #[arg(long, value_name = "CAP|all", value_delimiter = ',')]
    pub cap_add: Vec<String>,
    /// One less, or none but those of --cap-add: all (repeatable)
    #[arg(long, value_name = "CAP|all", value_delimiter = ',')]
    pub cap_drop: Vec<String>,
    /// Begin with this program's environment
    #[arg(long, conflicts_with = "clearenv")]
    pub keep_env: bool,
    /// Begin with no environment: without the image's variables and PATH; HOME there always is
    #[arg(long)]
    pub clearenv: bool,
    /// Take a variable away (repeatable)
    #[arg(long, value_name = "NAME")]
    pub unsetenv: Vec<OsString>,
    /// User id inside, without a look at the root directory's users
    #[arg(long, value_name = "UID", conflicts_with = "user")]
    pub uid: Option<u32>,
    /// Group id inside
    #[arg(long, value_name = "GID", conflicts_with = "user")]
    pub gid: Option<u32>,
}

/// A namespace that can stay the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shared {
    /// Network, as with --network host.
    Net,
    /// Process ids.
    Pid,
    /// System V IPC and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// The root of the control groups.
    Cgroup,
}

impl Isolate {
    /// The first of these flags that is given, for who does not take them.
    pub fn given(&self) -> Option<&'static str> {
        let table = [
            (!self.share.is_empty(), "--share"),
            (self.map_root, "--map-root"),
            (!self.bind.is_empty(), "--bind"),
            (!self.ro_bind.is_empty(), "--ro-bind"),
            (!self.tmpfs.is_empty(), "--tmpfs"),
            (!self.cap_add.is_empty(), "--cap-add"),
            (!self.cap_drop.is_empty(), "--cap-drop"),
            (self.keep_env, "--keep-env"),
            (self.clearenv, "--clearenv"),
            (!self.unsetenv.is_empty(), "--unsetenv"),
            (self.uid.is_some(), "--uid"),
            (self.gid.is_some(), "--gid"),
        ];
        table.iter().find(|(given, _)| *given).map(|(_, flag)| *flag)
    }

    /// Whether a namespace stays the caller's.
    pub fn shares(&self, kind: NamespaceKind) -> bool {
        self.share.iter().any(|shared| match shared {
            Shared::Net => kind == NamespaceKind::Network,
            Shared::Pid => kind == NamespaceKind::Pid,
            Shared::Ipc => kind == NamespaceKind::Ipc,
            Shared::Uts => kind == NamespaceKind::Uts,
            Shared::Cgroup => kind == NamespaceKind::Cgroup,
        })
    }

    /// What is mounted, with the flag that says so. Whether the sources exist is for the caller to see.
    pub fn mounts(&self) -> Result<Vec<(Mount, &'static str)>> {
        let mut mounts = Vec::new();
        for (flag, texts, access) in [("--bind", &self.bind, "rw"), ("--ro-bind", &self.ro_bind, "rro")] {
            for text in texts {
                mounts.push((bind(flag, text, access)?, flag));
            }
        }
        for text in &self.tmpfs {
            mounts.push((tmpfs(text)?, "--tmpfs"));
        }
        Ok(mounts)
    }

    /// The capabilities: the default set with the changes. Only root has them in force; for others they are what setuid
    /// programs could get. `held` is what there is at all, for `all`.
    pub fn capabilities(&self, uid: u32, held: &[String]) -> Result<Capabilities> {
        let is_all = |name: &String| name.eq_ignore_ascii_case("all");
        let mut set: Vec<String> = caps::DEFAULT.map(String::from).to_vec();
        if self.cap_drop.iter().any(is_all) {
            set.clear();
        }
        for name in self.cap_drop.iter().filter(|name| !is_all(name)) {
            let name = known("--cap-drop", name)?;
            set.retain(|other| *other != name);
        }
        for name in &self.cap_add {
            let names = if is_all(name) { held.to_vec() } else { vec![known("--cap-add", name)?] };
            for name in names {
                // What is taken away by name stays away.
                let dropped = self.cap_drop.iter().any(|drop| same(drop, &name));
                if !set.contains(&name) && !dropped {
                    set.push(name);
                }
            }
        }
        let own = if uid == 0 { set.clone() } else { Vec::new() };
        Ok(Capabilities { bounding: set, effective: own.clone(), permitted: own, ..Capabilities::default() })
    }
}

/// `net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are the same.
fn known(flag: &str, name: &str) -> Result<String> {
    caps::NAMES
        .iter()
        .find(|known| same(name, known))
        .map(|known| (*known).to_owned())
        .ok_or_else(|| exit::usage(format!("{flag} {name}: no such capability; capabilities(7) lists them")))
}

fn same(name: &str, known: &str) -> bool {
    known.eq_ignore_ascii_case(name) || known.get(4..).is_some_and(|short| short.eq_ignore_ascii_case(name))
}

fn absolute(flag: &str, text: &OsStr, path: &[u8], what: &str) -> Result<Name> {
    let name = Name(OsString::from_vec(path.to_vec()));
    if !name.as_path().is_absolute() || (what == "DST" && name.as_path().file_name().is_none()) {
        return Err(exit::usage(format!("{flag} {}: {what} is not an absolute path of something", text.display())));
    }
    Ok(name)
}

fn bind(flag: &str, text: &OsStr, access: &str) -> Result<Mount> {
    let fields: Vec<&[u8]> = text.as_bytes().split(|b| *b == b':').collect();
    let (source, destination) = match fields[..] {
        [both] => (both, both),
        [source, destination] => (source, destination),
        _ => return Err(exit::usage(format!("{flag} {}: not of the form SRC[:DST]", text.display()))),
    };
    Ok(Mount {
        source: Some(absolute(flag, text, source, "SRC")?),
        destination: absolute(flag, text, destination, "DST")?,
        kind: Some("bind".to_owned()),
        options: ["rbind", "rprivate", access].map(str::to_owned).to_vec(),
        ..Mount::default()
    })
}

fn tmpfs(text: &OsStr) -> Result<Mount> {
    let mut fields = text.as_bytes().splitn(2, |b| *b == b':');
    let destination = absolute("--tmpfs", text, fields.next().unwrap_or_default(), "DST")?;
    let mut options: Vec<String> = ["nosuid", "nodev", "mode=755"].map(str::to_owned).to_vec();
    if let Some(size) = fields.next() {
        let bytes = limits::size(&String::from_utf8_lossy(size)).map_err(|error| error.context("--tmpfs"))?;
        options.push(format!("size={bytes}"));
    }
    Ok(Mount { destination, kind: Some("tmpfs".to_owned()), source: Some("tmpfs".into()), options, ..Mount::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_flags() {
        let flags = Isolate {
            bind: vec!["/a".into()],
            ro_bind: vec!["/b:/c".into()],
            tmpfs: vec!["/d:16m".into(), "/e".into()],
            ..Isolate::default()
        };
        let mounts: Vec<Mount> = flags.mounts().unwrap().into_iter().map(|(mount, _)| mount).collect();
        let text = serde_json::to_string(&mounts).unwrap();
        assert_eq!(
            text,
            r#"[{"destination":"/a","type":"bind","source":"/a","options":["rbind","rprivate","rw"]},{"destination":"/c","type":"bind","source":"/b","options":["rbind","rprivate","rro"]},{"destination":"/d","type":"tmpfs","source":"tmpfs","options":["nosuid","nodev","mode=755","size=16777216"]},{"destination":"/e","type":"tmpfs","source":"tmpfs","options":["nosuid","nodev","mode=755"]}]"#
        );
        for bad in ["a", "/a:b", "/a:/", "/", "/a:/b:ro", ""] {
            assert!(bind("--bind", OsStr::new(bad), "rw").is_err(), "{bad}");
        }
        for bad in ["a", "/", "/a:lots", "/a:1m:2"] {
            assert!(tmpfs(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn capabilities_of_flags() {
        let held = ["CAP_CHOWN", "CAP_BPF", "CAP_SYS_ADMIN"].map(str::to_owned);
        let set = |add: &[&str], drop: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let flags = Isolate { cap_add: list(add), cap_drop: list(drop), ..Isolate::default() };
            flags.capabilities(0, &held).map(|sets| sets.effective.join(" "))
        };
        let default = caps::DEFAULT.join(" ");
        assert_eq!(set(&[], &[]).unwrap(), default);
        assert_eq!(set(&["net_admin"], &["all"]).unwrap(), "CAP_NET_ADMIN");
        assert_eq!(set(&["ALL"], &["all", "cap_bpf"]).unwrap(), "CAP_CHOWN CAP_SYS_ADMIN");
        assert_eq!(set(&["CAP_BPF", "chown"], &[]).unwrap(), format!("{default} CAP_BPF"));
        assert_eq!(set(&[], &["Chown"]).unwrap(), default.replace("CAP_CHOWN ", ""));
        assert!(set(&["fly"], &[]).is_err() && set(&[], &["CAP_"]).is_err());
        let nobody = Isolate::default().capabilities(7, &held).unwrap();
        assert_eq!((nobody.bounding.len(), nobody.effective.len()), (14, 0));
    }
}
