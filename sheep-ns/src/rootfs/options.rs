//! Mount options of config.json, as runtime-spec 1.2 lists them, parsed into what the mount API takes. Pure.

use anyhow::Result;

use crate::exit;

/// Mount options, sorted by who takes them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// `bind` (false) or `rbind` (true); `None` for a mount of its own.
    pub bind: Option<bool>,
    /// `MOUNT_ATTR_*` to set on the mount itself.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount itself.
    pub clear: u64,
    /// `MOUNT_ATTR_*` to set on the mount and all under it (`rro`, …).
    pub set_all: u64,
    /// `MOUNT_ATTR_*` to clear on the mount and all under it (`rrw`, …).
    pub clear_all: u64,
    /// `MS_SHARED` and the like, each with whether it is for all mounts under it too; in the order given.
    pub propagation: Vec<(u64, bool)>,
    /// `tmpcopyup`: a tmpfs begins with what it hides.
    pub copy_up: bool,
    /// `idmap` (false) or `ridmap` (true).
    pub idmap: Option<bool>,
    /// What the file system itself takes: a flag, or a key and its value.
    pub data: Vec<(String, Option<String>)>,
}

/// What one word means.
enum Word {
    Nothing,
    Bind(bool),
    Set(u64),
    Clear(u64),
    /// atime modes are one field in the kernel: the whole of it is cleared, then the mode set.
    Atime(u64),
    Propagation(u64, bool),
    CopyUp,
    Idmap(bool),
    Refused(&'static str),
    /// A flag of the super block, which a bind has none of.
    Super(&'static str),
}

use libc::{MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
const ATIME_FIELD: u64 = libc::MOUNT_ATTR__ATIME;

fn word(text: &str) -> Option<Word> {
    use Word::*;
    Some(match text {
        "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion" | "nolazytime" => Nothing,
        "bind" => Bind(false),
        "rbind" => Bind(true),
        "ro" => Set(RDONLY),
        "rw" => Clear(RDONLY),
        "nosuid" => Set(NOSUID),
        "suid" => Clear(NOSUID),
        "nodev" => Set(NODEV),
        "dev" => Clear(NODEV),
        "noexec" => Set(NOEXEC),
        "exec" => Clear(NOEXEC),
        "nodiratime" => Set(NODIRATIME),
        "diratime" => Clear(NODIRATIME),
        "nosymfollow" => Set(NOSYMFOLLOW),
        "symfollow" => Clear(NOSYMFOLLOW),
        "noatime" => Atime(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => Atime(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Atime(libc::MOUNT_ATTR_RELATIME),
        "private" => Propagation(MS_PRIVATE, false),
        "rprivate" => Propagation(MS_PRIVATE, true),
        "shared" => Propagation(MS_SHARED, false),
        "rshared" => Propagation(MS_SHARED, true),
        "slave" => Propagation(MS_SLAVE, false),
        "rslave" => Propagation(MS_SLAVE, true),
        "unbindable" => Propagation(MS_UNBINDABLE, false),
        "runbindable" => Propagation(MS_UNBINDABLE, true),
        "tmpcopyup" => CopyUp,
        "sync" => Super("sync"),
        "dirsync" => Super("dirsync"),
        "mand" => Super("mand"),
        "lazytime" => Super("lazytime"),
        "iversion" => Super("iversion"),
        "remount" => Refused("the root file system is made anew; there is nothing to remount"),
        "idmap" => Idmap(false),
        "ridmap" => Idmap(true),
        "copy-symlink" | "src-nofollow" | "dest-nofollow" => Refused("not supported"),
        _ => return None,
    })
}

/// A word, and whether it is meant for all mounts under it too: rro, rnosuid, rnoatime, ….
fn meaning(option: &str) -> (bool, Option<Word>) {
    match word(option) {
        Some(meaning) => (false, Some(meaning)),
        None => match option.strip_prefix('r').and_then(word) {
            Some(meaning @ (Word::Set(_) | Word::Clear(_) | Word::Atime(_))) => (true, Some(meaning)),
            _ => (false, None),
        },
    }
}

/// The options that this program does something about: of those that mount(8) and the runtime-spec have, all that
/// [`parse`] knows and does not refuse.
pub fn known() -> Vec<String> {
    const PLAIN: &str = "acl async atime bind defaults dev diratime dirsync exec group idmap iversion lazytime loud mand noacl noatime \
        nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow owner private quiet rbind \
        relatime remount ridmap ro rprivate rshared rslave runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup \
        unbindable user copy-symlink src-nofollow dest-nofollow";
    let words = || PLAIN.split_ascii_whitespace().map(str::to_owned);
    let recursive = words().filter_map(|word| Some(format!("r{word}")).filter(|word| meaning(word).0));
    let mut known: Vec<String> = words()
        .filter(|word| matches!(meaning(word).1, Some(meaning) if !matches!(meaning, Word::Refused(_))))
        .chain(recursive)
        .collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// Parses the options of a mount of type `kind`. What the runtime-spec does not list goes to the file system, which
/// refuses what it does not know; a bind has no file system to ask, so there it is an error here.
pub fn parse(kind: Option<&str>, options: &[String]) -> Result<Options> {
    let mut parsed = Options::default();
    for option in options {
        let (recursive, meaning) = meaning(option);
        match meaning {
            Some(Word::Nothing) => {}
            Some(Word::Bind(all)) => parsed.bind = Some(all),
            Some(Word::Set(bit)) => parsed.change(recursive, bit, 0),
            Some(Word::Clear(bit)) => parsed.change(recursive, 0, bit),
            Some(Word::Atime(mode)) => parsed.change(recursive, mode, ATIME_FIELD),
            Some(Word::Propagation(flag, all)) => parsed.propagation.push((flag, all)),
            Some(Word::CopyUp) => parsed.copy_up = true,
            Some(Word::Idmap(all)) => parsed.idmap = Some(all),
            Some(Word::Refused(why)) => return Err(exit::usage(format!("mount option '{option}': {why}"))),
            Some(Word::Super(flag)) => parsed.data.push((flag.to_owned(), None)),
            None => parsed.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.clone(), None),
            }),
        }
    }
    if parsed.bind.is_none() && kind == Some("bind") {
        parsed.bind = Some(false);
    }
    if parsed.bind.is_some() {
        if let Some((key, _)) = parsed.data.first() {
            return Err(exit::usage(format!("mount option '{key}' is not known for a bind mount")));
        }
        if parsed.copy_up {
            return Err(exit::usage("mount option 'tmpcopyup' is for tmpfs, not for a bind mount"));
        }
    } else if parsed.copy_up && kind != Some("tmpfs") {
        return Err(exit::usage(format!("mount option 'tmpcopyup' is for tmpfs, not for {}", kind.unwrap_or("none"))));
    }
    Ok(parsed)
}

impl Options {
    /// The last word on a bit wins, as with mount(8).
    fn change(&mut self, all: bool, set: u64, clear: u64) {
        let (sets, clears) =
            if all { (&mut self.set_all, &mut self.clear_all) } else { (&mut self.set, &mut self.clear) };
        *sets = (*sets & !clear) | set;
        *clears = (*clears & !(set & !ATIME_FIELD)) | clear;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: &str, words: &str) -> Result<Options> {
        parse(Some(kind), &words.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_flags() {
        let table: [(&str, &str, Options); 8] = [
            ("bind", "", Options { bind: Some(false), ..Options::default() }),
            ("bind", "rbind,ridmap", Options { bind: Some(true), idmap: Some(true), ..Options::default() }),
            ("none", "rbind,ro", Options { bind: Some(true), set: RDONLY, ..Options::default() }),
            (
                "none",
                "bind,rro,nosuid",
                Options { bind: Some(false), set: NOSUID, set_all: RDONLY, ..Options::default() },
            ),
            ("bind", "ro,rw", Options { bind: Some(false), clear: RDONLY, ..Options::default() }),
            (
                "bind",
                "noatime,rslave",
                Options {
                    bind: Some(false),
                    set: libc::MOUNT_ATTR_NOATIME,
                    clear: ATIME_FIELD,
                    propagation: vec![(MS_SLAVE, true)],
                    ..Options::default()
                },
            ),
            (
                "tmpfs",
                "nosuid,mode=755,size=64k,tmpcopyup",
                Options {
                    set: NOSUID,
                    copy_up: true,
                    data: vec![("mode".into(), Some("755".into())), ("size".into(), Some("64k".into()))],
                    ..Options::default()
                },
            ),
            ("devpts", "newinstance", Options { data: vec![("newinstance".into(), None)], ..Options::default() }),
        ];
        for (kind, words, want) in table {
            assert_eq!(options(kind, words).unwrap(), want, "{kind} {words}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_done_is_refused_by_name() {
        let table = [
            ("bind", "frobnicate", "'frobnicate' is not known"),
            ("bind", "size=5", "'size' is not known"),
            ("bind", "sync", "'sync' is not known"),
            ("bind", "remount,ro", "'remount'"),
            ("bind", "tmpcopyup", "'tmpcopyup'"),
            ("sysfs", "tmpcopyup", "'tmpcopyup'"),
        ];
        for (kind, words, want) in table {
            let error = options(kind, words).unwrap_err().to_string();
            assert!(error.contains(want), "{kind} {words}: {error}");
        }
    }
}
