//! Blobs and manifests on their way to a registry.
//!
//! A blob that is there is not sent; one that another repository of the same registry has is mounted, where the registry does that.
//! A small one is sent with one request, another as one stream (PATCH), which goes on, where it breaks off, after what the registry
//! says it has. Many registries say then that they have nothing: what breaks off in the middle of a request they throw away, and
//! docker-registry (the distribution project's, up to 2.8 at least) with it all of that upload. From then on the blob is sent in
//! chunks, one request each: where a proxy keeps a request back until it is whole, as most do, no more than a chunk is lost then.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use ureq::SendBody;
use ureq::http::{Method, StatusCode};

use super::http::{Answer, Ask, TRIES, Unreachable, Waits, is_unreachable};
use super::{Repository, url};
use crate::oci::{Descriptor, Digest};
use crate::stream::Counted;

/// A blob of up to so many bytes is sent with one request.
const SMALL: u64 = 256 << 10;
/// How much one request has of a blob that is sent in chunks. Stores that registries lie on take no parts below 5 MiB.
const CHUNK: u64 = 8 << 20;

/// How a blob came there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was there.
    Had,
    /// From another repository.
    Mounted,
    /// Byte by byte.
    Uploaded,
}

impl Repository {
    /// Whether the registry has something of this repository.
    fn has(&self, rest: &str, what: String) -> Result<Option<Answer>> {
        let mut ask = Ask::get(self.url(rest), what);
        ask.method = Method::HEAD;
        let answer = self.send(&ask)?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.failed()),
        }
    }

    /// Makes sure that the registry has a blob, which is in `file`. The repository `near` may have it already.
    pub fn push_blob(
        &self,
        descriptor: &Descriptor,
        file: &Path,
        near: Option<&str>,
        came: &Arc<AtomicU64>,
    ) -> Result<Sent> {
        let digest = &descriptor.digest;
        if let Some(answer) = self.has(&format!("blobs/{digest}"), format!("blob {digest}"))? {
            if answer.length().is_some_and(|length| length != descriptor.size) {
                bail!(
                    "{}: it has {} bytes there, and here {}",
                    answer.place(),
                    answer.length().unwrap_or(0),
                    descriptor.size
                );
            }
            came.store(descriptor.size, Ordering::Relaxed);
            return Ok(Sent::Had);
        }
        let mut source = File::open(file).with_context(|| file.display().to_string())?;
        let found = source.metadata().with_context(|| file.display().to_string())?.len();
        if found != descriptor.size {
            bail!(
                "{} has {found} bytes, and its manifest says {}; 'sheep-images verify' says more",
                file.display(),
                descriptor.size
            );
        }
        let mut waits = Waits::new(TRIES);
        let mut upload = match self.begin(digest, near)? {
            Begun::Mounted => {
                came.store(descriptor.size, Ordering::Relaxed);
                return Ok(Sent::Mounted);
            }
            Begun::At { location, .. } => Upload { location, has: 0, most: u64::MAX },
        };
        loop {
            let before = upload.has;
            let error = match self.upload(descriptor, &mut source, &mut upload, came) {
                Ok(()) => return Ok(Sent::Uploaded),
                Err(error) if is_unreachable(&error) => error,
                Err(error) => return Err(error),
            };
            if !waits.wait() {
                return Err(error);
            }
            // What the registry has of it; where it has forgotten it, it begins anew.
            match self.progress(&upload.location)? {
                Some((location, has)) => upload = Upload { location, has, ..upload },
                None => match self.begin(digest, None)? {
                    Begun::Mounted => return Ok(Sent::Mounted),
                    Begun::At { location, least } => upload = Upload { location, has: 0, most: CHUNK.max(least) },
                },
            }
            let has = upload.has;
            if has > descriptor.size {
                bail!("{}: blob {digest}: it has {has} bytes, and there are {}", self.host(), descriptor.size);
            }
            waits.got_through(has.saturating_sub(before));
        }
    }

    /// Begins an upload, or mounts the blob.
    fn begin(&self, digest: &Digest, from: Option<&str>) -> Result<Begun> {
        let mut url = self.url("blobs/uploads/");
        if let Some(from) = from {
            url = url::with_query(&url::with_query(&url, "mount", digest.as_str()), "from", from);
        }
        let what = format!("upload of blob {digest}");
        let ask = Ask { method: Method::POST, url: url.clone(), headers: Vec::new(), body: Vec::new(), what };
        let answer = self.send(&ask)?;
        match answer.status {
            StatusCode::CREATED if from.is_some() => Ok(Begun::Mounted),
            StatusCode::ACCEPTED => {
                let least = answer.header("oci-chunk-min-length").and_then(|least| least.parse().ok()).unwrap_or(0);
                Ok(Begun::At { location: location(&answer, &url)?, least })
            }
            _ => Err(answer.failed()),
        }
    }

    /// Sends what is missing of an upload, and closes it. Where that fails, `upload` says how far it is known to have come.
    fn upload(
        &self,
        descriptor: &Descriptor,
        source: &mut File,
        upload: &mut Upload,
        came: &Arc<AtomicU64>,
    ) -> Result<()> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let what = format!("upload of blob {digest}");
        let mut close = Vec::new();
        came.store(upload.has, Ordering::Relaxed);
        if upload.has == 0 && size <= SMALL {
            source.rewind()?;
            source.read_to_end(&mut close)?;
            came.store(size, Ordering::Relaxed);
        }
        while close.is_empty() && upload.has < size {
            let now = (size - upload.has).min(upload.most);
            source.seek(SeekFrom::Start(upload.has))?;
            let mut headers =
                vec![("content-type", "application/octet-stream".to_owned()), ("content-length", now.to_string())];
            if now < size {
                headers.push(("content-range", format!("{}-{}", upload.has, upload.has + now - 1)));
            }
            let url = upload.location.clone();
            let ask = Ask { method: Method::PATCH, url, headers, body: Vec::new(), what: what.clone() };
            let mut body = Counted { inner: source.try_clone()?.take(now), came: Arc::clone(came) };
            let answer = self.send_once(&ask, SendBody::from_reader(&mut body))?;
            upload.location = match answer.status {
                StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => location(&answer, &ask.url)?,
                // It has less, or more, than it said: it is asked again.
                StatusCode::RANGE_NOT_SATISFIABLE => return Err(Unreachable(format!("{:#}", answer.failed())).into()),
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    return Err(Unreachable(format!("{:#}", answer.failed())).into());
                }
                _ => return Err(answer.failed()),
            };
            upload.has += now;
        }
        let url = url::with_query(&upload.location, "digest", digest.as_str());
        let headers = vec![("content-type", "application/octet-stream".to_owned())];
        let ask = Ask { method: Method::PUT, url, headers, body: close, what };
        let answer = self.send(&ask)?;
        match answer.status {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(answer.failed()),
        }
    }

    /// Where an upload is to go on, and how many bytes of it are there; `None` where the registry does not know it.
    fn progress(&self, at: &str) -> Result<Option<(String, u64)>> {
        let answer = self.send(&Ask::get(at.to_owned(), "upload".to_owned()))?;
        if answer.status != StatusCode::NO_CONTENT && answer.status != StatusCode::ACCEPTED {
            return Ok(None);
        }
        // "0-0" is also what a registry says that has nothing: one byte is not told from none.
        let last = answer
            .header("range")
            .and_then(|range| range.trim_start_matches("bytes=").split_once('-')?.1.parse::<u64>().ok());
        let has = last.filter(|last| *last > 0).map_or(0, |last| last + 1);
        if has == 0 {
            return Ok(None);
        }
        Ok(Some((location(&answer, at).unwrap_or_else(|_| at.to_owned()), has)))
    }

    /// Puts a manifest or an index in the repository, under a tag or its digest. One that is there already is not sent.
    pub fn push_manifest(&self, descriptor: &Descriptor, bytes: &[u8], version: &str) -> Result<Sent> {
        let what = format!("manifest {}:{version}", self.path());
        let url = format!("manifests/{version}");
        let mut ask = Ask::get(self.url(&url), what.clone());
        ask.method = Method::HEAD;
        ask.headers.push(("accept", descriptor.media_type.clone()));
        let answer = self.send(&ask)?;
        if answer.status == StatusCode::OK && answer.header("docker-content-digest") == Some(descriptor.digest.as_str())
        {
            return Ok(Sent::Had);
        }
        let headers = vec![("content-type", descriptor.media_type.clone())];
        let ask = Ask { method: Method::PUT, url: self.url(&url), headers, body: bytes.to_vec(), what };
        let answer = self.send(&ask)?;
        if !answer.status.is_success() {
            return Err(answer.failed());
        }
        if let Some(said) = answer.header("docker-content-digest")
            && said != descriptor.digest.as_str()
        {
            bail!("{}: the registry calls it {said}, and it is {}", answer.place(), descriptor.digest);
        }
        Ok(Sent::Uploaded)
    }

    /// Sends a stream, which cannot be sent again.
    fn send_once(&self, ask: &Ask, body: SendBody<'_>) -> Result<Answer> {
        // Where the token has been good for long enough the upload is refused: then it is gone on with.
        let sent = self.authorization_for(&ask.url);
        let answer = self.client.once(ask, &ask.url, sent.as_deref(), body)?;
        if answer.status == StatusCode::UNAUTHORIZED
            && self.doorman.answer_to(&self.client, &self.base, &answer, sent.as_deref())?.is_some()
        {
            return Err(Unreachable(format!("{:#}", answer.failed())).into());
        }
        Ok(answer)
    }
}

/// What became of the beginning of an upload.
enum Begun {
    Mounted,
    /// It goes on there, with no request of fewer than `least` bytes but the last one (distribution-spec, "Pushing a blob in chunks").
    At {
        location: String,
        least: u64,
    },
}

/// An upload on its way.
struct Upload {
    /// Where it goes on.
    location: String,
    /// So many bytes are there.
    has: u64,
    /// So many bytes go with one request.
    most: u64,
}

fn location(answer: &Answer, base: &str) -> Result<String> {
    let said = answer.header("location").unwrap_or_default();
    let Some(location) = url::resolve(base, said) else {
        bail!("{}: it sends us on to {said:?}, which leads nowhere", answer.place());
    };
    if base.starts_with("https:") && !location.starts_with("https:") {
        bail!("{}: it sends us from https on to http, at {}", answer.place(), url::host(&location));
    }
    Ok(location)
}
