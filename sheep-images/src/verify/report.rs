//! What `verify` says.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value, json};
use sheep_overlay::diff::escaped;
use sheep_overlay::doc::{self, DocPath, name_to_json};
use sheep_overlay::exit;

use crate::oci::Digest;

/// Something that is not as it should be.
#[derive(Debug)]
pub(super) struct Problem {
    kind: &'static str,
    digest: Digest,
    /// The file or directory in the store.
    path: PathBuf,
    /// Where in a layer, from its root on.
    inside: Option<Vec<u8>>,
    what: String,
    images: Vec<String>,
    remedy: Option<String>,
    repaired: bool,
}

impl Problem {
    pub(super) fn of(kind: &'static str, digest: &Digest, path: &Path, what: String) -> Self {
        let (digest, path) = (digest.clone(), path.to_path_buf());
        Problem { kind, digest, path, inside: None, what, images: Vec::new(), remedy: None, repaired: false }
    }

    pub(super) fn in_image(mut self, name: &str) -> Self {
        self.images.push(name.to_owned());
        self
    }

    pub(super) fn at(mut self, inside: &[u8]) -> Self {
        self.inside = Some([b"/", inside].concat());
        self
    }

    /// What the user can do about it.
    pub(super) fn remedy(mut self, text: &str) -> Self {
        self.remedy = Some(text.to_owned());
        self
    }

    /// What was done about it.
    pub(super) fn repaired(mut self, text: &str) -> Self {
        self.repaired = true;
        self.remedy(text)
    }

    fn line(&self) -> String {
        let mut line = format!("{} {}", self.kind, self.digest);
        if !self.images.is_empty() {
            line.push_str(&format!(" of {}", self.images.join(", ")));
        }
        if let Some(inside) = &self.inside {
            line.push_str(&format!(": {}", escaped(inside)));
        }
        line.push_str(&format!(": {}", escaped(self.what.as_bytes())));
        if let Some(remedy) = &self.remedy {
            line.push_str(&format!("; {remedy}"));
        }
        line.push('\n');
        line
    }

    fn document(&self) -> Value {
        let mut document = Map::new();
        let mut set = |key: &str, value: Value| drop(document.insert(key.to_owned(), value));
        set("kind", self.kind.into());
        set("digest", self.digest.as_str().into());
        set("images", self.images.clone().into());
        set("path", name_to_json(self.path.as_os_str()));
        if let Some(inside) = &self.inside {
            use std::os::unix::ffi::OsStrExt;
            set("inside", name_to_json(std::ffi::OsStr::from_bytes(inside)));
        }
        set("what", self.what.as_str().into());
        if let Some(remedy) = &self.remedy {
            set("remedy", remedy.as_str().into());
        }
        set("repaired", self.repaired.into());
        Value::Object(document)
    }
}

/// What was found so far.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    /// How many problems there are still.
    left: u64,
    /// Why one could not be mended: somebody uses the layer.
    busy: Option<String>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Report { json, left: 0, busy: None }
    }

    /// Prints a problem.
    pub(super) fn tell(&mut self, problem: Problem) -> Result<()> {
        self.left += u64::from(!problem.repaired);
        let line = if self.json { format!("{}\n", problem.document()) } else { problem.line() };
        doc::write_out(line.as_bytes())
    }

    /// Notes that a layer is in use, so that it could not be mended.
    pub(super) fn busy(&mut self, why: String) {
        if let Some(earlier) = self.busy.replace(why) {
            exit::warn("sheep-images", &format!("verify: {earlier}"));
        }
    }

    /// Prints what a crash left, which is no problem.
    pub(super) fn tell_leftover(&mut self, path: &Path, repaired: bool) -> Result<()> {
        let remedy = if repaired { "deleted" } else { "the next command clears it away" };
        let line = match self.json {
            true => {
                let path = DocPath(path.to_path_buf());
                json!({ "kind": "leftover", "path": path, "remedy": remedy, "repaired": repaired }).to_string()
            }
            false => format!("leftover {}; {remedy}", path.display()),
        };
        doc::write_out(format!("{line}\n").as_bytes())
    }

    /// Whether all is well.
    pub(super) fn result(self) -> Result<()> {
        match (self.busy, self.left) {
            (Some(why), _) => Err(exit::busy(format!("verify: {why}"))),
            (None, 0) => Ok(()),
            (None, left) => Err(super::summary(left)),
        }
    }
}
