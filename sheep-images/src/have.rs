//! `have`: which blobs this store has, for another one to send what it lacks.
//!
//! The list has a line of JSON for its version, and one for each blob:
//!
//! ```text
//! {"have":{"version":1}}
//! {"have":{"digest":"sha256:…","size":123}}
//! ```
//!
//! Nothing of the blobs is read: one is in the list that is there and as long as it should be. `receive` finds out what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use sheep_overlay::{doc, exit};

use crate::cli;
use crate::not_sent::{self, Blob};
use crate::oci::{Descriptor, Digest};
use crate::store::{Store, position};

/// A list of so many bytes no store has: it names some ten million blobs.
const LONGEST: u64 = 1 << 30;

/// Runs the verb. An image that is damaged is named on stderr, what the others have is listed, and the exit code is 1.
pub fn run(store: &Store, args: &cli::Have) -> Result<()> {
    let index = store.index().context("have")?;
    let mut several = exit::Several::of("sheep-images");
    let mut there = BTreeMap::new();
    let mut add = |what: &str, descriptor: &Descriptor| {
        let of_it = of_image(store, descriptor).with_context(|| format!("have: {what}"));
        several.add(of_it.map(|blobs| there.extend(blobs)));
    };
    if args.references.is_empty() {
        for descriptor in &index.manifests {
            add(descriptor.ref_name().unwrap_or(descriptor.digest.as_str()), descriptor);
        }
    } else {
        // All are looked up before anything is printed.
        let find = |name: &String| position(&index, name).with_context(|| format!("have: {name}"));
        for at in args.references.iter().map(find).collect::<Result<BTreeSet<usize>>>()? {
            let descriptor = &index.manifests[at];
            add(descriptor.ref_name().unwrap_or(descriptor.digest.as_str()), descriptor);
        }
    }
    // What came of an image whose rest is still to come.
    let partials = store.partials().context("have")?.into_iter().filter(|partial| partial.is_whole);
    there.extend(partials.map(|partial| (partial.digest, partial.size)));
    let mut out = not_sent::version_line("have");
    for (digest, size) in there {
        out.push_str(&format!("{}\n", json!({ "have": { "digest": digest, "size": size } })));
    }
    doc::write_out(out.as_bytes())?;
    several.result()
}

/// The blobs of an image that are there, with their sizes.
fn of_image(store: &Store, descriptor: &Descriptor) -> Result<Vec<(Digest, u64)>> {
    let image = store.load(descriptor)?;
    let layers = image.layers().map(|(layer, _)| layer);
    let is_there = |blob: &&Descriptor| store.has(blob);
    let documents = image.documents();
    Ok(documents.into_iter().chain(layers).filter(is_there).map(|blob| (blob.digest.clone(), blob.size)).collect())
}

/// A list that was read.
#[derive(Debug, Default)]
pub struct Have(BTreeMap<Digest, u64>);

impl Have {
    /// Reads a list from a file, or from stdin where that is `-`. Errors with usage (2) where it is none, with not found (3) where the
    /// file is not there.
    pub fn read(from: &OsStr) -> Result<Self> {
        let name = from.to_string_lossy();
        let source: Box<dyn Read> = if from == "-" {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                return Err(exit::usage(
                    "--have -: stdin is a terminal; the list of 'sheep-images have' is expected there",
                ));
            }
            Box::new(stdin.lock())
        } else {
            match File::open(from) {
                Ok(file) => Box::new(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(exit::not_found(format!(
                        "--have {name}: no such file; 'sheep-images have' prints one"
                    )));
                }
                Err(e) => return Err(e).with_context(|| format!("--have {name}")),
            }
        };
        Self::parse(BufReader::new(source.take(LONGEST))).with_context(|| format!("--have {name}"))
    }

    fn parse(source: impl BufRead) -> Result<Self> {
        let mut have = BTreeMap::new();
        let mut is_first = true;
        for (number, line) in source.split(b'\n').enumerate() {
            let line = line?;
            let wrong = |why: String| exit::usage(format!("line {}: {why}", number + 1));
            let value: Value = serde_json::from_slice(&line).map_err(|_| wrong(not_a_list()))?;
            if std::mem::take(&mut is_first) {
                not_sent::check_version(&value, "have").map_err(|e| wrong(format!("{e:#}")))?;
                continue;
            }
            let blob = Blob::deserialize(value.get("have").unwrap_or(&Value::Null)).map_err(|_| wrong(not_a_list()))?;
            have.insert(blob.digest, blob.size);
        }
        if is_first {
            return Err(exit::usage(
                "the list is empty; the 'sheep-images have' that should have made it printed nothing",
            ));
        }
        Ok(Have(have))
    }

    /// Whether a blob is in it.
    pub fn has(&self, blob: &Descriptor) -> bool {
        self.0.get(&blob.digest) == Some(&blob.size)
    }
}

fn not_a_list() -> String {
    "this is no list of 'sheep-images have', or it is cut short".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let digest = Digest::of(b"");
        let first = not_sent::version_line("have");
        let line = format!("{{\"have\":{{\"digest\":\"{digest}\",\"size\":3}}}}\n");
        let have = Have::parse(format!("{first}{line}").as_bytes()).unwrap();
        let blob = |size| Descriptor::new("", digest.clone(), size);
        assert!(have.has(&blob(3)) && !have.has(&blob(4)));
        assert!(!Have::parse(first.as_bytes()).unwrap().has(&blob(3)));
        for (bad, why) in [
            (String::new(), "empty"),
            (line.clone(), "line 1"),
            (first.replace('1', "2"), "version 2"),
            (format!("{first}{}", &line[..40]), "line 2"),
            (format!("{first}\n{line}"), "line 2"),
            (format!("{first}{line}{{\"have\":1}}"), "line 3"),
        ] {
            let error = Have::parse(bad.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{bad}: {error:#}");
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage));
        }
    }
}
