//! Names of images, as docker reads them: `[DOMAIN/]PATH[:TAG]`, with `docker.io/library/` and `:latest` unsaid.
//!
//! The grammar is that of the distribution project's package `reference`. A digest (`sha256:…`, a prefix of its
//! hexadecimal digits, or `NAME@sha256:…`) also names an image, where one is looked up.

use anyhow::Result;
use sheep_overlay::exit;

use crate::oci::Digest;

/// The registry that is meant where none is named.
pub const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// A name with its tag, complete: `docker.io`, `library/minimal`, `latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    domain: String,
    path: String,
    tag: String,
}

impl Name {
    /// Parses a name; what is left unsaid gets docker's defaults. Errors with usage (2), saying what is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| exit::usage(format!("{text:?} is not an image name: {why}"));
        let (domain, rest) = split_domain(text);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, tag),
            None => (rest, DEFAULT_TAG),
        };
        if !domain.is_empty() && !is_domain(domain) {
            return Err(wrong("the registry is HOST or HOST:PORT"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("it must be in lower case"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(wrong("it is lower-case letters and digits, parted by '.', '_', '__', '-' or '/'"));
        }
        if !is_tag(tag) {
            return Err(wrong("a tag is up to 128 letters, digits, '_', '.', '-', and begins with none of '.', '-'"));
        }
        let domain = match domain {
            "" | "index.docker.io" => DEFAULT_DOMAIN,
            other => other,
        };
        let official = domain == DEFAULT_DOMAIN && !path.contains('/');
        let unsaid = path.strip_prefix(OFFICIAL).unwrap_or(path);
        if domain == DEFAULT_DOMAIN && unsaid.len() == 64 && unsaid.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong("64 hexadecimal digits are a digest"));
        }
        let path = if official { format!("{OFFICIAL}{path}") } else { path.to_owned() };
        if domain.len() + 1 + path.len() > LONGEST_NAME {
            return Err(wrong("it is longer than 255 bytes"));
        }
        Ok(Name { domain: domain.to_owned(), path, tag: tag.to_owned() })
    }

    /// Whether it is a name of an official image of Docker Hub, or of an image that was made here and got no registry.
    pub fn is_official(&self) -> bool {
        self.domain == DEFAULT_DOMAIN && self.path.starts_with(OFFICIAL)
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in its registry: `library/minimal`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name as people write it: without the default registry, with the tag. Read again, it is this name.
    pub fn familiar(&self) -> String {
        let Name { domain, path, tag } = self;
        // `library/library/x` has one part too many to be left unsaid, and `docker.io/a.b/c` without its registry would be of
        // another.
        let alone = path.strip_prefix(OFFICIAL).filter(|rest| !rest.contains('/'));
        match alone {
            Some(rest) if domain == DEFAULT_DOMAIN => format!("{rest}:{tag}"),
            _ if domain == DEFAULT_DOMAIN && split_domain(path).0.is_empty() => format!("{path}:{tag}"),
            _ => format!("{domain}/{path}:{tag}"),
        }
    }
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its name; where only a digest was given with it, the tag is `latest` and stands for nothing.
    pub name: Name,
    /// Whether a tag was given, or is to be taken for given: there is no digest.
    pub has_tag: bool,
    /// Its digest, where that was given.
    pub digest: Option<Digest>,
}

impl Remote {
    /// Parses `NAME[:TAG][@DIGEST]`. Errors with usage (2).
    pub fn parse(text: &str) -> Result<Self> {
        let Some((text, digest)) = text.split_once('@') else {
            return Ok(Remote { name: Name::parse(text)?, has_tag: true, digest: None });
        };
        let digest = Digest::parse(digest).map_err(|e| exit::usage(format!("{text}: {e:#}")))?;
        let (_, rest) = split_domain(text);
        Ok(Remote { name: Name::parse(text)?, has_tag: rest.contains(':'), digest: Some(digest) })
    }

    /// What a registry calls it: its digest, else its tag.
    pub fn version(&self) -> &str {
        self.digest.as_ref().map_or(self.name.tag(), Digest::as_str)
    }
}

/// What a user named an image by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A name only.
    Name(Name),
    /// A whole digest, with or without a name before it.
    Digest(Digest),
    /// What may be a prefix of a digest's hexadecimal digits; a name where it can be one as well.
    Prefix {
        /// Lower-case hexadecimal digits.
        hex: String,
        /// The same text as a name. An image of that name comes first.
        name: Option<Name>,
    },
}

impl Reference {
    /// Parses what a user typed. Errors with usage (2).
    pub fn parse(text: &str) -> Result<Self> {
        if let Some((name, digest)) = text.split_once('@') {
            Name::parse(name)?;
            return Digest::parse(digest).map(Reference::Digest).map_err(|e| exit::usage(format!("{text:?}: {e:#}")));
        }
        if let Some(hex) = text.strip_prefix("sha256:") {
            return match Digest::parse(text) {
                Ok(digest) => Ok(Reference::Digest(digest)),
                Err(_) if is_prefix(hex) => Ok(Reference::Prefix { hex: hex.to_owned(), name: Name::parse(text).ok() }),
                Err(e) => Err(exit::usage(format!("{text:?}: {e:#}"))),
            };
        }
        if is_prefix(text) {
            return match Digest::parse(&format!("sha256:{text}")) {
                Ok(digest) => Ok(Reference::Digest(digest)),
                Err(_) => Ok(Reference::Prefix { hex: text.to_owned(), name: Name::parse(text).ok() }),
            };
        }
        Name::parse(text).map(Reference::Name)
    }
}

/// The registry's part of a name: what stands before the first `/`, if it can be a host. `a/b` is a path.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("", text),
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Letters and digits, parted by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    text.len() <= LONGEST_TAG
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_docker_reads_them() {
        for (text, familiar) in [
            ("minimal", "minimal:latest"),
            ("minimal:v1", "minimal:v1"),
            ("docker.io/library/minimal", "minimal:latest"),
            ("index.docker.io/library/minimal:x", "minimal:x"),
            ("docker.io/minimal", "minimal:latest"),
            ("library/minimal", "minimal:latest"),
            ("me/tool", "me/tool:latest"),
            ("docker.io/me/tool:1.0-rc_1", "me/tool:1.0-rc_1"),
            ("quay.io/me/tool", "quay.io/me/tool:latest"),
            ("localhost/tool", "localhost/tool:latest"),
            ("localhost:5000/tool", "localhost:5000/tool:latest"),
            ("localhost:5000/a/b/c:T", "localhost:5000/a/b/c:T"),
            ("Host/tool", "Host/tool:latest"),
            ("f/a__b.c-d--e", "f/a__b.c-d--e:latest"),
            ("my.host/x", "my.host/x:latest"),
            ("abc123", "abc123:latest"),
            ("docker.io/library/library/x", "library/library/x:latest"),
            ("docker.io/localhost/x", "docker.io/localhost/x:latest"),
            ("docker.io/a.b/x", "docker.io/a.b/x:latest"),
        ] {
            assert_eq!(Name::parse(text).unwrap().familiar(), familiar, "{text}");
            let again = Name::parse(familiar).unwrap();
            assert_eq!((again.familiar().as_str(), &again), (familiar, &Name::parse(text).unwrap()));
        }
    }

    #[test]
    fn what_is_not_a_name() {
        let long = "a".repeat(256);
        let hex = "0".repeat(64);
        let tag = format!("a:{}", "t".repeat(129));
        let official = format!("docker.io/library/{hex}");
        for text in [
            "", ":", "a:", ":tag", "A", "a/B", "-a", "a-", "a..b", "a___b", "a._b", "/a", "a/", "a//b", "../a",
            "a/../b", "a b", "a\n", "a:b:c", "a:.t", "a:-t", "ä", "a@b", "h.o:x/a", "-h.o/a", &long, &hex, &tag,
            &official,
        ] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn images_in_registries() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        for (text, version, has_tag) in [
            ("localhost:5000/a".to_owned(), "latest", true),
            ("localhost:5000/a:x".to_owned(), "x", true),
            (format!("localhost:5000/a@{digest}"), digest.as_str(), false),
            (format!("a:x@{digest}"), digest.as_str(), true),
        ] {
            let remote = Remote::parse(&text).unwrap();
            assert_eq!((remote.version(), remote.has_tag), (version, has_tag), "{text}");
        }
        for text in ["a@", "a@sha256:0", "@sha256:0", "a@x@y", "sha256:"] {
            assert!(Remote::parse(text).is_err(), "{text}");
        }
        let name = Name::parse("alpine").unwrap();
        assert_eq!((name.domain(), name.path(), name.tag()), ("docker.io", "library/alpine", "latest"));
    }

    #[test]
    fn digests_and_prefixes() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        for text in [format!("sha256:{hex}"), hex.clone(), format!("minimal@sha256:{hex}")] {
            assert_eq!(Reference::parse(&text).unwrap(), Reference::Digest(digest.clone()), "{text}");
        }
        let Reference::Prefix { hex, name } = Reference::parse("abc").unwrap() else { panic!() };
        assert_eq!((hex.as_str(), name.unwrap().familiar().as_str()), ("abc", "abc:latest"));
        assert!(matches!(Reference::parse("sha256:0123").unwrap(), Reference::Prefix { .. }));
        assert!(matches!(Reference::parse("minimal").unwrap(), Reference::Name(_)));
        for text in ["sha256:../..", "sha256:", "sha256:XYZ", "a@sha256:12", "@sha256:00", "sha256:ABC"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
