//! The document: one JSON object that grows as it goes down a pipe.
//!
//! Each tool owns one key (`image`, `overlay`, `container`), reads the others' and passes on what it does not know,
//! unchanged and in its place. Keys are camelCase, paths absolute, layers bottom first, sizes in bytes, times RFC 3339
//! UTC. docs/document.md is the reference for users.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::exit;

/// A path in a document. UTF-8 paths are JSON strings; any other is `{"base64": "…"}` of its bytes, so that no name is
/// lost on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocPath(pub PathBuf);

impl Deref for DocPath {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for DocPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for DocPath {
    fn from(path: PathBuf) -> Self {
        DocPath(path)
    }
}

impl From<&Path> for DocPath {
    fn from(path: &Path) -> Self {
        DocPath(path.to_path_buf())
    }
}

impl Serialize for DocPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        name_to_json(self.0.as_os_str()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DocPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        name_from_json(&value)
            .map(|name| DocPath(name.into()))
            .ok_or_else(|| D::Error::custom("a path is a string or {\"base64\": \"…\"}"))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for DocPath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Path".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A path: a string, or the base64 of its bytes where it is not UTF-8",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "base64": { "type": "string", "contentEncoding": "base64" } },
                    "required": ["base64"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

/// A file name or path as JSON: a string, or `{"base64": "…"}` where it is not UTF-8.
pub fn name_to_json(name: &OsStr) -> Value {
    match name.to_str() {
        Some(text) => Value::from(text),
        None => Value::Object(Map::from_iter([("base64".to_owned(), BASE64.encode(name.as_bytes()).into())])),
    }
}

/// The inverse of [`name_to_json`]; `None` where the value is neither form.
pub fn name_from_json(value: &Value) -> Option<OsString> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Object(map) if map.len() == 1 => {
            let bytes = BASE64.decode(map.get("base64")?.as_str()?).ok()?;
            Some(OsString::from_vec(bytes))
        }
        _ => None,
    }
}

/// The `overlay` key: what `sheep-overlay` owns of a document, and what stands in `overlay/<id>/overlay.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// Twelve hexadecimal digits, or the name given with `--id`.
    pub id: String,
    /// The directory where the stack is seen.
    pub merged: DocPath,
    /// The read-only layers, bottom first.
    pub lower: Vec<DocPath>,
    /// Where changes go. With the copy backend this stays empty: changes are made to the copy itself.
    pub upper: DocPath,
    /// The kernel's scratch space, on the same mount as `upper`.
    pub work: DocPath,
    /// How the merged view is made.
    pub backend: Backend,
    /// Why this backend was taken, in words.
    pub backend_reason: String,
    /// Whether the merged view refuses writes.
    pub read_only: bool,
    /// Whether the kernel skips syncing the upper (`volatile`): fast, and lost with the power.
    pub volatile: bool,
    /// The kernel's unique id of the mount (`STATX_MNT_ID_UNIQUE`); absent while not mounted and for copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_id: Option<u64>,
    /// The boot in which `mount_id` holds (`/proc/sys/kernel/random/boot_id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// When the overlay was made, RFC 3339 UTC.
    pub created: String,
    /// A layer of Sheep's own in the place of a lower that is shown entry by entry (`split`): copies of its entries that are
    /// no directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cover: Option<DocPath>,
    /// The lower is shown entry by entry: its directories are mounts of their own (`mounts`), the rest is in the cover. So
    /// in a user namespace, where the kernel takes no lower with mounts below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub split: bool,
    /// The directory given with `--at`, where `merged` then is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DocPath>,
    /// The mounts below the lower, each with a part of its own in the merged view; parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// What `--hide` takes out of the view, from the merged directory on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<DocPath>,
    /// Whether the marks in the upper are `user.overlay.*` (a mount with `userxattr`) and not `trusted.overlay.*`. A mount
    /// that reads the other ones would show what was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_xattrs: bool,
    /// The user namespace that the overlay is mounted in; absent where an ordinary mount was had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// The process that keeps the namespaces; only while they are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// The changes are in memory, and end with the mount: the size of their tmpfs in bytes, 0 for the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<u64>,
    /// How many bytes the changes may take, by a project quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How the owners of the lowers are shown, as `--idmap` was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<String>,
    /// How the lower is kept from changing, or how changes of it are told; absent where nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// What the overlay lies on in the place of `lower`: a copy of it that nobody changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<DocPath>,
    /// From when on changes of the lower are those of others, where that is not `created`: of a branch, as of what it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// It was unmounted lazily, and may be in use still: nothing is deleted until it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lazy: bool,
    /// The snapshots, in the order they were made. Each lies on another one, so that together they are a tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshot>,
    /// The number of the snapshot that the upper lies on; 0 where it lies on what the overlay began with.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub head: u32,
    /// What the overlay began with, where that is a snapshot of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
    /// The upper is being put aside this moment, or was when a process was killed: the next command ends that or undoes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Overlay {
    /// An overlay in the directory `dir`, on nothing yet: writable, by the kernel, not mounted, made now.
    pub fn new(id: &str, dir: &Path) -> Self {
        Overlay {
            id: id.to_owned(),
            merged: dir.join("merged").into(),
            lower: Vec::new(),
            upper: dir.join("upper").into(),
            work: dir.join("work").into(),
            backend: Backend::Kernel,
            backend_reason: String::new(),
            read_only: false,
            volatile: false,
            mount_id: None,
            boot_id: None,
            created: crate::state::now(),
            cover: None,
            split: false,
            at: None,
            mounts: Vec::new(),
            hide: Vec::new(),
            user_xattrs: false,
            user_namespace: None,
            holder: None,
            tmpfs: None,
            size: None,
            idmap: None,
            freeze: None,
            held: Vec::new(),
            since: None,
            lazy: false,
            snapshots: Vec::new(),
            head: 0,
            branch: None,
            pending: None,
        }
    }

    /// What the overlay lies on, bottom first: the lowers, or what is held in their place.
    pub fn base(&self) -> &[DocPath] {
        if self.held.is_empty() { &self.lower } else { &self.held }
    }
}

/// A snapshot: an upper that was put aside, and is a read-only layer since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its number: 1, 2, 3, … in each overlay.
    pub number: u32,
    /// The snapshot that it lies on; 0 for what the overlay began with.
    pub parent: u32,
    /// When it was made, RFC 3339 UTC.
    pub created: String,
    /// What its maker had to say of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The name of its directory in `snapshots/`, which has `upper`, and `mounts/N/upper` for each part: its number, until
    /// `squash` makes another one.
    pub layer: String,
}

/// What a branch began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Branch {
    /// The overlay that has the snapshot.
    pub of: String,
    /// The snapshot's number.
    pub snapshot: u32,
    /// The layers that the snapshot consists of, bottom first.
    pub layers: Vec<Layer>,
    /// The overlay that has the covers (see `cover`): the first of a line of branches.
    pub origin: String,
}

/// A layer of a snapshot, in the directory of the overlay that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// The id of that overlay.
    pub overlay: String,
    /// The name of its directory in `snapshots/`.
    pub layer: String,
}

/// What is being done while the upper is put aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The name of the directory in `snapshots/` that the upper goes to.
    pub layer: String,
    /// The snapshot that is being made of it; absent where it is thrown away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// The head from then on.
    pub head: u32,
    /// The device of the mount that was there before (major and minor number); absent where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
}

/// A mount below a lower, as a part of the merged view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Where it is, from the merged directory on; begins with `/`.
    pub path: DocPath,
    /// How it is part of the view.
    pub how: How,
    /// What it shows: the lowers of an overlay, bottom first, or the one directory that is bound.
    pub lower: Vec<DocPath>,
    /// Where its changes go; only of an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<DocPath>,
    /// The kernel's scratch space; only of an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<DocPath>,
    /// As `cover` of the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cover: Option<DocPath>,
    /// As `split` of the whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub split: bool,
    /// The root of the topmost lower when the overlay was made; only of an overlay, and not of what is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<MountRoot>,
    /// Why it is not an overlay, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the root of a part was laid on. Where something else is there now, with other attributes (what was mounted there is
/// unmounted), these are no changes of the overlay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MountRoot {
    /// The inode number of the directory.
    pub inode: u64,
    /// Its type and permission bits (`st_mode`).
    pub mode: u32,
}

/// How a mount below a lower is part of the merged view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// By an overlay of its own.
    Overlay,
    /// Bound as it is: proc, sys, dev, and what else is the kernel's own.
    Bind,
    /// Bound, and read-only: OverlayFS does not take it.
    ReadOnly,
    /// A file that is mounted on a file: a copy of it, `upper`, is bound in its place.
    File,
    /// Hidden: something empty is bound over it.
    Hidden,
}

/// What is done about a lower that others change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Freeze {
    /// The overlay lies on a btrfs snapshot of it.
    Btrfs,
    /// The overlay lies on a copy of it that shares all content.
    Reflink,
    /// All that it had is listed.
    Listing,
}

/// A user namespace, by its maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UserNamespace {
    /// Ranges of user ids: the first inside, the first outside, how many.
    pub uids: Vec<[u32; 3]>,
    /// The same of group ids.
    pub gids: Vec<[u32; 3]>,
}

/// The process that keeps the namespaces of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The inode number of its user namespace.
    pub user_namespace: u64,
    /// The inode number of its mount namespace.
    pub mount_namespace: u64,
}

/// How a merged view is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// OverlayFS, mounted by us.
    Kernel,
    /// fuse-overlayfs, an OverlayFS in a process: slower, and seen by every process without being root.
    Fuse,
    /// A snapshot of the lower, which is a btrfs subvolume.
    Btrfs,
    /// A faithful copy of the lowers; reflinked where the file system can.
    Copy,
}

impl Backend {
    /// The name used in documents and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Kernel => "kernel",
            Backend::Fuse => "fuse",
            Backend::Btrfs => "btrfs",
            Backend::Copy => "copy",
        }
    }
}

/// One JSON object on its way down a pipe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document(pub Map<String, Value>);

impl Document {
    /// Reads a document from one line of JSON. Errors with usage (2) when it is not a JSON object.
    pub fn parse(text: &[u8]) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Document(map)),
            Ok(_) => Err(exit::usage("a document is a JSON object, one on a line")),
            Err(error) => Err(exit::usage(format!("not a JSON document: {error}"))),
        }
    }

    /// The part of the document under `key`; `None` when absent. Errors with usage (2) when it is of another shape.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|e| exit::usage(format!("document key '{key}': {e}")))
    }

    /// Like [`Document::get`], but an absent key is an error (2) that says which tool would have supplied it.
    pub fn require<T: DeserializeOwned>(&self, key: &str, supplier: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| exit::usage(format!("the document has no '{key}' key; {supplier} makes one")))
    }

    /// Puts `part` under `key`, in the place the key already has, else last.
    pub fn set<T: Serialize>(&mut self, key: &str, part: &T) -> Result<()> {
        let value = serde_json::to_value(part).with_context(|| format!("document key '{key}'"))?;
        self.0.insert(key.to_owned(), value);
        Ok(())
    }

    /// One field as raw bytes for `--print`: `name` is looked up under `own_key` (`merged`), or from the top when it
    /// has dots (`image.config.Env`). Strings and paths come raw, anything else as JSON. An unknown field is a usage error.
    pub fn field(&self, own_key: &str, name: &str) -> Result<Vec<u8>> {
        let keys: Vec<&str> = if name.contains('.') { name.split('.').collect() } else { vec![own_key, name] };
        let top = keys.first().and_then(|key| self.0.get(*key));
        let value = top
            .and_then(|top| keys.iter().skip(1).try_fold(top, |value, key| value.get(*key)))
            .ok_or_else(|| exit::usage(format!("--print {name}: the document has no such field")))?;
        Ok(match name_from_json(value) {
            Some(raw) => raw.into_vec(),
            None => serde_json::to_vec(value).context("--print")?,
        })
    }

    /// Writes the document to stdout: indented on a terminal, else on one line. With `print`, one field of it instead.
    pub fn print(&self, own_key: &str, print: Option<&str>) -> Result<()> {
        let stdout = io::stdout();
        let mut bytes = match print {
            Some(name) => self.field(own_key, name)?,
            None if stdout.is_terminal() => serde_json::to_vec_pretty(&self.0).context("stdout")?,
            None => self.to_line(),
        };
        if bytes.last() != Some(&b'\n') || print.is_some() {
            bytes.push(b'\n');
        }
        write_out(&bytes)
    }

    /// The document as one line, with its newline.
    pub fn to_line(&self) -> Vec<u8> {
        let mut bytes = Value::Object(self.0.clone()).to_string().into_bytes();
        bytes.push(b'\n');
        bytes
    }
}

/// Writes data to stdout in one go. A reader that went away is an `io::Error` of kind `BrokenPipe` in the chain, which
/// [`exit::report`] takes as a quiet end.
pub fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("stdout")
}

/// Reads every document of a source, one a line: `-` is stdin, anything else a file (also `/dev/fd/63`, as `<(…)`
/// makes it). Empty lines are passed over; a document indented over several lines is read as well. Errors with usage
/// (2) and the place where it is not JSON, and when there is no document at all: a broken pipe upstream must not
/// look like success.
pub fn read_documents(source: &OsStr) -> Result<Vec<Document>> {
    let name = source.to_string_lossy();
    let documents = if source == "-" {
        parse_all(io::stdin().lock())
    } else {
        let file = File::open(source).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => exit::not_found(format!("{name}: no such file; give a document's file, or -")),
            _ => anyhow::Error::new(e).context(name.to_string()),
        })?;
        parse_all(BufReader::new(file))
    }
    .with_context(|| if source == "-" { "stdin".to_owned() } else { name.to_string() })?;
    if documents.is_empty() {
        let place = if source == "-" { "stdin".into() } else { name };
        return Err(exit::usage(format!("{place}: no document; the command before it in the pipe printed none")));
    }
    Ok(documents)
}

/// Like [`read_documents`], for a command that works on exactly one.
pub fn read_document(source: &OsStr) -> Result<Document> {
    let mut documents = read_documents(source)?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        n => Err(exit::usage(format!("{}: {n} documents where one is expected", source.to_string_lossy()))),
    }
}

fn parse_all(mut reader: impl BufRead) -> Result<Vec<Document>> {
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    serde_json::Deserializer::from_slice(&text)
        .into_iter::<Value>()
        .map(|value| match value {
            Ok(Value::Object(map)) => Ok(Document(map)),
            Ok(_) => Err(exit::usage("a document is a JSON object, one on a line")),
            Err(error) => Err(exit::usage(format!("not a JSON document: {error}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_utf8_survive() {
        for raw in [&b"/plain"[..], b"/new\nline", b"/\xff\xfe", b"/\"quoted\\"] {
            let name = OsStr::from_bytes(raw);
            let text = name_to_json(name).to_string();
            let back = name_from_json(&serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(back.as_bytes(), raw);
        }
    }

    #[test]
    fn unknown_keys_pass_in_their_place() {
        let line = br#"{"image":{"digest":"sha256:1"},"mine":[1,2.5,null],"overlay":{"id":"x"}}"#;
        let mut document = Document::parse(line).unwrap();
        document.set("overlay", &serde_json::json!({"id": "y"})).unwrap();
        let want = r#"{"image":{"digest":"sha256:1"},"mine":[1,2.5,null],"overlay":{"id":"y"}}"#;
        assert_eq!(String::from_utf8(document.to_line()).unwrap().trim_end(), want);
    }

    #[test]
    fn a_field_is_raw() {
        let document = Document::parse(br#"{"overlay":{"merged":{"base64":"L/8="},"lower":["/a"]}}"#).unwrap();
        assert_eq!(document.field("overlay", "merged").unwrap(), b"/\xff");
        assert_eq!(document.field("overlay", "overlay.lower").unwrap(), br#"["/a"]"#);
        assert!(document.field("overlay", "nothing").is_err());
    }

    #[test]
    fn several_documents_and_rubbish() {
        assert_eq!(parse_all(&b"{}\n\n{\"a\":\n1}\n"[..]).unwrap().len(), 2);
        for bad in [&b"[]"[..], b"{", b"{} x"] {
            assert_eq!(exit::kind(&parse_all(bad).unwrap_err()), Some(exit::Kind::Usage));
        }
    }
}
