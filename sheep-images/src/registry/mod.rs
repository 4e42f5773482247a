//! Registries: the client's side of the OCI distribution specification 1.1, and of the distribution project's tokens.
//!
//! ```text
//! url · challenge        pure: where an answer leads, what it asks for
//! http                   requests: tried again, redirected, said in one line where they fail
//! credentials            podman's and docker's files, and their helpers
//! auth                   what a request needs to be let in
//! manifest · blob        what comes in: documents, checked; blobs, gone on with where they broke off
//! upload                 what goes out
//! ```

pub mod auth;
pub mod blob;
pub mod challenge;
pub mod credentials;
pub mod http;
pub mod manifest;
pub mod upload;
pub mod url;

use std::collections::BTreeSet;
use std::env;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sheep_overlay::exit;
use ureq::http::StatusCode;

use crate::cli::RegistryArgs;
use crate::reference::{DEFAULT_DOMAIN, Name};
use auth::Doorman;
use http::{Answer, Ask, Client};

/// Where the registry is that is meant where none is named.
pub const HUB_HOST: &str = "registry-1.docker.io";
/// The variable that names a mirror.
const MIRROR: &str = "SHEEP_IMAGES_MIRROR";
/// A page of tags is not longer, and there are not more of them.
const TAGS_MAX: u64 = 16 << 20;
const PAGES: usize = 10_000;

/// A repository in a registry, and how we come in there.
pub struct Repository {
    client: Arc<Client>,
    /// `https://registry-1.docker.io`
    base: String,
    /// `library/alpine`
    path: String,
    doorman: Doorman,
}

/// The client that the options ask for.
pub fn client(args: &RegistryArgs) -> Result<Arc<Client>> {
    let timeout = Duration::from_secs(args.timeout.max(1));
    Ok(Arc::new(Client::new(args.ca.as_deref(), timeout)?))
}

/// Where a registry is. Without encryption it is spoken with only on this very machine, or where that is asked for.
pub fn base(registry: &str, args: &RegistryArgs) -> String {
    let host = if registry == DEFAULT_DOMAIN { HUB_HOST } else { registry };
    let plain = args.insecure || (url::is_loopback(host) && args.ca.is_none());
    format!("{}://{host}", if plain { "http" } else { "https" })
}

/// The repository of a name; `doing` is what is to be done there: `pull`, or `pull,push`.
pub fn repository(client: &Arc<Client>, name: &Name, args: &RegistryArgs, doing: &'static str) -> Repository {
    at(client, name.domain(), name.path(), args, doing)
}

fn at(client: &Arc<Client>, registry: &str, path: &str, args: &RegistryArgs, doing: &'static str) -> Repository {
    Repository {
        client: Arc::clone(client),
        base: base(registry, args),
        path: path.to_owned(),
        doorman: Doorman::new(registry, path, doing),
    }
}

/// The mirror's repository of a name of Docker Hub, where a mirror is named.
pub fn mirror(client: &Arc<Client>, name: &Name, args: &RegistryArgs) -> Result<Option<Repository>> {
    if name.domain() != DEFAULT_DOMAIN {
        return Ok(None);
    }
    let Some(mirror) = args.mirror.clone().or_else(|| env::var(MIRROR).ok()).filter(|mirror| !mirror.is_empty()) else {
        return Ok(None);
    };
    // As the registry's part of a name, so that nothing else gets into a URL.
    let is_host = Name::parse(&format!("{mirror}/x")).is_ok_and(|name| name.domain() == mirror);
    if !is_host {
        return Err(exit::usage(format!("--mirror {mirror}: write HOST or HOST:PORT")));
    }
    Ok(Some(at(client, &mirror, name.path(), args, "pull")))
}

/// A page of tags.
#[derive(Deserialize)]
struct Tags {
    // Some registries say null for none.
    tags: Option<Vec<String>>,
}

impl Repository {
    /// The registry's host, with its port.
    pub fn host(&self) -> &str {
        url::host(&self.base)
    }

    /// The repository in it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The URL of something in the repository.
    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.path)
    }

    /// Sends a request, with what it needs to be let in; to another host than the registry's, as an upload may lead there, with
    /// nothing.
    pub fn send(&self, ask: &Ask) -> Result<Answer> {
        if url::origin(&ask.url) != self.base {
            return self.client.send(ask, None);
        }
        self.doorman.let_in(&self.client, &self.base, ask)
    }

    /// What a request to a URL is sent with.
    fn authorization_for(&self, to: &str) -> Option<String> {
        self.doorman.authorization().filter(|_| url::origin(to) == self.base)
    }

    /// From now on, asks for what reading another repository needs, too.
    pub fn also_reads(&self, path: &str) {
        self.doorman.also_reads(path);
    }

    /// The tags of the repository, a page at a time.
    pub fn tags(&self, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut url = self.url("tags/list");
        let mut seen = BTreeSet::new();
        loop {
            let answer = self.send(&Ask::get(url.clone(), format!("tags of {}", self.path)))?;
            if answer.status != StatusCode::OK {
                return Err(answer.failed());
            }
            let place = answer.place();
            let next = answer.header("link").and_then(url::next_link).map(str::to_owned);
            let page: Tags = serde_json::from_slice(&answer.read(TAGS_MAX)?).with_context(|| place.clone())?;
            for tag in page.tags.unwrap_or_default() {
                each(&tag)?;
            }
            let Some(next) = next else { return Ok(()) };
            url = url::resolve(&url, &next)
                .filter(|next| url::origin(next) == self.base)
                .with_context(|| format!("{place}: its next page is at {next:?}"))?;
            if !seen.insert(url.clone()) || seen.len() > PAGES {
                bail!("{place}: its pages have no end");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn where_a_name_leads() {
        let hub = "https://registry-1.docker.io/v2";
        for (name, insecure, ca, want) in [
            ("alpine", false, false, &*format!("{hub}/library/alpine/manifests/latest")),
            ("alpine:3.20", false, false, &format!("{hub}/library/alpine/manifests/3.20")),
            ("docker.io/alpine", false, false, &format!("{hub}/library/alpine/manifests/latest")),
            ("docker.io/library/alpine", false, false, &format!("{hub}/library/alpine/manifests/latest")),
            ("index.docker.io/library/alpine", false, false, &format!("{hub}/library/alpine/manifests/latest")),
            ("me/tool", false, false, &format!("{hub}/me/tool/manifests/latest")),
            ("alpine", false, true, &format!("{hub}/library/alpine/manifests/latest")),
            ("quay.io/me/tool:v1", false, false, "https://quay.io/v2/me/tool/manifests/v1"),
            ("alpine.example/x", false, false, "https://alpine.example/v2/x/manifests/latest"),
            ("10.0.0.1:5000/x", false, false, "https://10.0.0.1:5000/v2/x/manifests/latest"),
            ("10.0.0.1:5000/x", true, false, "http://10.0.0.1:5000/v2/x/manifests/latest"),
            ("localhost:5000/x", false, false, "http://localhost:5000/v2/x/manifests/latest"),
            ("127.0.0.1:5000/x", false, true, "https://127.0.0.1:5000/v2/x/manifests/latest"),
        ] {
            let ca = ca.then(|| PathBuf::from("ca.pem"));
            let args = RegistryArgs { ca, insecure, mirror: None, timeout: 30 };
            let client = Arc::new(Client::new(None, Duration::from_secs(30)).unwrap());
            let name = Name::parse(name).unwrap();
            let url = repository(&client, &name, &args, "pull").url(&format!("manifests/{}", name.tag()));
            assert_eq!(url, want, "{name:?}");
            // Only of docker.io is there a mirror.
            let args = RegistryArgs { mirror: Some("localhost:1".to_owned()), ..args };
            let mirror = mirror(&client, &name, &args).unwrap().map(|mirror| mirror.url(""));
            let scheme = if args.ca.is_some() { "https" } else { "http" };
            let of_hub = want.starts_with(hub).then(|| format!("{scheme}://localhost:1/v2/{}/", name.path()));
            assert_eq!(mirror, of_hub, "{name:?}");
        }
    }
}
