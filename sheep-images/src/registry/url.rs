//! Where requests go: URLs, and where a `Location` or a `Link` leads from one (RFC 3986, as far as registries use it).

/// The part of a URL up to its path: `https://host:port`. Empty where it is none.
pub fn origin(url: &str) -> &str {
    let Some(start) = url.find("://").map(|at| at + 3) else { return "" };
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The host of a URL with its port, as people write it.
pub fn host(url: &str) -> &str {
    origin(url).split_once("://").map_or("", |(_, host)| host)
}

/// Where a reference leads that came in an answer to a request to `base`; `None` where that is nowhere that HTTP leads to.
pub fn resolve(base: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let lower = reference.to_ascii_lowercase();
    if reference.is_empty() || reference.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return None;
    }
    let url = if lower.starts_with("http://") || lower.starts_with("https://") {
        let at = reference.find("://")?;
        format!("{}{}", &lower[..at], &reference[at..])
    } else if let Some(rest) = reference.strip_prefix("//") {
        format!("{}://{rest}", base.split_once("://")?.0)
    } else if reference.starts_with('/') {
        format!("{}{reference}", origin(base))
    } else if reference.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        return None;
    } else {
        let path = base.split(['?', '#']).next().unwrap_or_default();
        if reference.starts_with('?') {
            format!("{path}{reference}")
        } else {
            let dir = path[origin(base).len()..].rfind('/').map_or(origin(base), |at| &path[..origin(base).len() + at]);
            format!("{dir}/{reference}")
        }
    };
    // Names and passwords in a URL are nobody's business here, and hide what the host is.
    let host = host(&url);
    (!host.is_empty() && !host.contains('@')).then_some(url)
}

/// A URL with one more query.
pub fn with_query(url: &str, key: &str, value: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}{key}={}", escape(value))
}

/// Text as a part of a query.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Whether a host, with or without a port, is this very machine: nobody can listen in on the way there.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Where the next page is, as a `Link` header says it (RFC 8288): `</v2/x/tags/list?last=b&n=2>; rel="next"`.
pub fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            let (key, value) = parameter.trim().split_once('=').unwrap_or_default();
            key.eq_ignore_ascii_case("rel") && value.trim_matches('"').eq_ignore_ascii_case("next")
        };
        parameters.split(';').any(is_next).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve() {
        let base = "https://r.io:5000/v2/a/blobs/uploads/1?x=y";
        for (reference, want) in [
            ("/v2/b", Some("https://r.io:5000/v2/b")),
            ("http://other/x?y", Some("http://other/x?y")),
            ("HTTPS://other/x", Some("https://other/x")),
            ("//other/x", Some("https://other/x")),
            ("2?z", Some("https://r.io:5000/v2/a/blobs/uploads/2?z")),
            ("?z", Some("https://r.io:5000/v2/a/blobs/uploads/1?z")),
            ("/x#frag", Some("https://r.io:5000/x")),
            ("file:///etc/passwd", None),
            ("javascript:x", None),
            ("https://user:pw@other/x", None),
            ("https:///x", None),
            ("", None),
            ("/a b", None),
        ] {
            assert_eq!(resolve(base, reference).as_deref(), want, "{reference}");
        }
        assert_eq!(resolve("https://r.io", "x").as_deref(), Some("https://r.io/x"));
    }

    #[test]
    fn hosts_and_queries() {
        assert_eq!(host("http://a:1/b/c"), "a:1");
        assert_eq!(origin("https://a?b"), "https://a");
        assert_eq!(with_query("u", "k", "a:b/c d"), "u?k=a%3Ab%2Fc%20d");
        assert_eq!(with_query("u?a=b", "k", "v"), "u?a=b&k=v");
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.org", "127.0.0.1.evil.org", "10.0.0.1:5000", "[fe80::1]:1", "", "evil.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn links() {
        assert_eq!(next_link("</v2/x?n=2&last=b>; rel=\"next\""), Some("/v2/x?n=2&last=b"));
        assert_eq!(next_link("</a>; rel=prev, </b>; title=x; rel=next"), Some("/b"));
        assert_eq!(next_link("</a>; rel=prev"), None);
        assert_eq!(next_link("nonsense"), None);
    }
}
