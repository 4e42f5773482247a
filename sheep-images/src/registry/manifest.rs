//! Manifests and other documents of a registry: read whole, and checked against their digests and sizes.

use anyhow::{Result, bail};
use ureq::http::StatusCode;

use super::Repository;
use super::http::Ask;
use crate::doc::Platform;
use crate::oci::{self, Descriptor, Digest, Index, Manifest, ManifestOrIndex};
use crate::reference::Remote;
use crate::store::{DOCUMENT_MAX, INDEX_DEPTH, choose};
use sheep_overlay::exit;

/// What we can read, best first.
const ACCEPT: [&str; 4] = [oci::INDEX, oci::MANIFEST, oci::DOCKER_INDEX, oci::DOCKER_MANIFEST];

/// A manifest, with the bytes that its digest is of.
#[derive(Debug)]
pub struct Found {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// It, as it came.
    pub bytes: Vec<u8>,
    /// It, read.
    pub manifest: Manifest,
}

impl Repository {
    /// The manifest of an image; of an image for several platforms the one for `platform`. What it is called by is not
    /// believed, but checked.
    pub fn manifest(&self, remote: &Remote, platform: &Platform) -> Result<Found> {
        let (mut descriptor, mut bytes) = self.document(remote.version(), remote.digest.as_ref(), None)?;
        for _ in 0..INDEX_DEPTH {
            let what = || format!("{}: manifest {}", self.host(), descriptor.digest);
            let parsed = oci::parse_manifest(&descriptor, &bytes).map_err(|e| e.context(what()))?;
            let index = match parsed {
                ManifestOrIndex::Manifest(manifest) => {
                    if descriptor.media_type.is_empty() {
                        descriptor.media_type = manifest.media_type.clone().unwrap_or_else(|| oci::MANIFEST.to_owned());
                    }
                    return Ok(Found { descriptor, bytes, manifest });
                }
                ManifestOrIndex::Index(index) => index,
            };
            let Some(chosen) = choose(&index, platform).cloned() else { return Err(no_platform(&index, platform)) };
            (descriptor, bytes) = self.document(chosen.digest.as_str(), Some(&chosen.digest), Some(&chosen))?;
        }
        bail!("{}: {}: indexes within indexes, {INDEX_DEPTH} deep", self.host(), self.path())
    }

    fn document(
        &self,
        version: &str,
        digest: Option<&Digest>,
        known: Option<&Descriptor>,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let joint = if digest.is_some() { '@' } else { ':' };
        let what = format!("manifest {}{joint}{version}", self.path());
        let mut ask = Ask::get(self.url(&format!("manifests/{version}")), what);
        ask.headers.push(("accept", ACCEPT.join(", ")));
        let answer = self.send(&ask)?;
        if answer.status != StatusCode::OK {
            return Err(answer.failed());
        }
        let place = answer.place();
        let said = answer.header("docker-content-digest").map(str::to_owned);
        let content_type = answer.header("content-type").unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = answer.read(DOCUMENT_MAX)?;
        let found = Digest::of(&bytes);
        if let Some(digest) = digest
            && *digest != found
        {
            bail!("{place}: what came has the digest {found}");
        }
        if let Some(said) = said
            && Digest::parse(&said).is_ok_and(|said| said != found)
        {
            bail!("{place}: the registry calls it {said}, and what came has the digest {found}");
        }
        if let Some(known) = known
            && known.size != bytes.len() as u64
        {
            bail!("{place}: it has {} bytes, and the index says {}", bytes.len(), known.size);
        }
        // Where the header is of no use, the document's own word counts, and before both that of the index.
        let media_type = match known {
            Some(known) if !known.media_type.is_empty() => known.media_type.clone(),
            _ if ACCEPT.contains(&content_type.as_str()) => content_type,
            _ => String::new(),
        };
        Ok((Descriptor::new(&media_type, found, bytes.len() as u64), bytes))
    }

    /// A blob that is a document: an image's configuration.
    pub fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let what = format!("configuration {}", descriptor.digest);
        let answer = self.send(&Ask::get(self.url(&format!("blobs/{}", descriptor.digest)), what))?;
        if answer.status != StatusCode::OK {
            return Err(answer.failed());
        }
        let place = answer.place();
        let bytes = answer.read(descriptor.size.min(DOCUMENT_MAX))?;
        if bytes.len() as u64 != descriptor.size {
            bail!("{place}: it has {} bytes, and the manifest says {}", bytes.len(), descriptor.size);
        }
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            bail!("{place}: what came has the digest {found}");
        }
        Ok(bytes)
    }
}

/// That there is none for a platform, and for which there is.
fn no_platform(index: &Index, wanted: &Platform) -> anyhow::Error {
    let Platform { os, architecture } = wanted;
    exit::not_found(format!("there is no image for {os}/{architecture}, but for {}", index.platforms()))
}
