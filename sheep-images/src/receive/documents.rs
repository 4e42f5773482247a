//! The beginning of a stream: what says which images come, and what of them does not.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::wire::{Member, Wire};
use crate::import::files::Files;
use crate::not_sent::{self, NotSent};
use crate::oci::{self, Descriptor, Digest, Index, ManifestOrIndex};
use crate::store::{DOCUMENT_MAX, INDEX_DEPTH};

/// What the names of blobs begin with.
const BLOBS: &str = "blobs/sha256/";
/// Documents are kept in memory until their layers have come; no real images have nearly as many.
const ALL_MAX: u64 = 16 * DOCUMENT_MAX;
/// No real images have nearly as many manifests that are still to come.
const EXPECTED_MAX: usize = 10_000;

/// What came before the first layer.
pub struct Documents {
    /// `index.json`.
    pub index: Index,
    /// Manifests and configurations.
    pub files: Files,
    /// The layers of all manifests that came, in the order in which they are to come, each once.
    pub layers: Vec<Descriptor>,
    /// Which of them do not.
    pub not_sent: NotSent,
    /// The first member that is no document.
    pub next: Option<Member>,
}

/// A document that is to come.
enum Expected {
    /// A manifest or an index, and how many indexes led to it.
    Manifest(Descriptor, u32),
    Config(Descriptor),
}

impl Expected {
    fn descriptor(&self) -> &Descriptor {
        match self {
            Expected::Manifest(descriptor, _) | Expected::Config(descriptor) => descriptor,
        }
    }
}

/// Reads them. Each is checked; one that is out of its turn is no document.
pub fn read(wire: &mut Wire) -> Result<Documents> {
    let layout: Value = json(wire, "oci-layout")?;
    if !oci::is_known_layout(&layout) {
        bail!("oci-layout: this version is not known to this program");
    }
    let index: Index = json(wire, "index.json")?;
    let mut next = wire.next_member()?;
    let mut not_sent = NotSent::default();
    if let Some(member) = next.as_ref().filter(|member| member.name == not_sent::MEMBER) {
        not_sent = NotSent::parse(&whole(wire, member)?).context(not_sent::MEMBER)?;
        next = wire.next_member()?;
    }
    for dir in ["blobs/", BLOBS] {
        match next {
            Some(member) if member.name == dir => next = wire.next_member()?,
            other => return Err(unexpected(other.as_ref(), dir)),
        }
    }
    let mut expected: VecDeque<Expected> =
        index.manifests.iter().map(|image| Expected::Manifest(image.clone(), 0)).collect();
    let (mut files, mut layers, mut seen): (HashMap<_, _>, Vec<_>, HashSet<Digest>) = Default::default();
    let mut all = 0;
    while let Some(member) = &next {
        // What other platforms need may not be there.
        let Some(document) = find(&mut expected, member) else { break };
        let descriptor = document.descriptor();
        if member.size != descriptor.size {
            bail!("{}: it has {} bytes, and what points to it says {}", member.name, member.size, descriptor.size);
        }
        let bytes = whole(wire, member)?;
        all += member.size;
        if all > ALL_MAX {
            bail!("more than {ALL_MAX} bytes of manifests and configurations");
        }
        if Digest::of(&bytes) != descriptor.digest {
            bail!("{}: its content is not what its digest says", member.name);
        }
        seen.insert(descriptor.digest.clone());
        if let Expected::Manifest(descriptor, depth) = &document {
            match oci::parse_manifest(descriptor, &bytes).with_context(|| member.name.clone())? {
                ManifestOrIndex::Index(_) if *depth >= INDEX_DEPTH => {
                    bail!("indexes within indexes, {INDEX_DEPTH} deep");
                }
                ManifestOrIndex::Index(index) => {
                    for inner in index.manifests.into_iter().rev() {
                        expected.push_front(Expected::Manifest(inner, depth + 1));
                    }
                }
                ManifestOrIndex::Manifest(manifest) => {
                    expected.push_front(Expected::Config(manifest.config));
                    layers.extend(manifest.layers);
                }
            }
        }
        if expected.len() > EXPECTED_MAX {
            bail!("more than {EXPECTED_MAX} manifests");
        }
        files.insert(member.name.clone(), bytes);
        expected.retain(|other| !seen.contains(&other.descriptor().digest));
        next = wire.next_member()?;
    }
    layers.retain(|layer| seen.insert(layer.digest.clone()));
    Ok(Documents { index, files: Files::Documents(files), layers, not_sent, next })
}

/// The document that a member is; those that should have come before it, and did not, are not waited for any more.
fn find(expected: &mut VecDeque<Expected>, member: &Member) -> Option<Expected> {
    let hex = member.name.strip_prefix(BLOBS)?;
    let at = expected.iter().position(|document| document.descriptor().digest.hex() == hex)?;
    expected.drain(..at);
    expected.pop_front()
}

fn json<T: serde::de::DeserializeOwned>(wire: &mut Wire, name: &str) -> Result<T> {
    match wire.next_member()? {
        Some(member) if member.name == name => {
            serde_json::from_slice(&whole(wire, &member)?).with_context(|| name.to_owned())
        }
        other => Err(unexpected(other.as_ref(), name)),
    }
}

/// What is in the member that came last.
fn whole(wire: &Wire, member: &Member) -> Result<Vec<u8>> {
    if member.size > DOCUMENT_MAX {
        bail!("{}: {} bytes are too many for a document", member.name, member.size);
    }
    let mut bytes = Vec::new();
    wire.content().read_to_end(&mut bytes).with_context(|| member.name.clone())?;
    Ok(bytes)
}

/// Another member came than should have.
pub fn unexpected(member: Option<&Member>, wanted: &str) -> anyhow::Error {
    let came = member.map_or("its end", |member| member.name.as_str());
    anyhow::anyhow!(
        "{came:?} came where {wanted:?} should: it is not what 'sheep-images send' prints; 'sheep-images import' takes archives of others"
    )
}
