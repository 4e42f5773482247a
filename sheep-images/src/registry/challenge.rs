//! How a registry asks who we are: `WWW-Authenticate` (RFC 9110, 11.6.1; the distribution project's token specification).

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, which is to be had elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// To do what.
        scope: Option<String>,
    },
}

/// Reads the headers of an answer; of several challenges the one for a token comes first.
pub fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let found: Vec<(String, Vec<(String, String)>)> = headers.into_iter().flat_map(schemes).collect();
    let bearer = found.iter().find(|(scheme, _)| scheme == "bearer").and_then(|(_, parameters)| {
        let get = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope").filter(|scope| !scope.is_empty()),
        })
    });
    bearer.or(found.iter().any(|(scheme, _)| scheme == "basic").then_some(Challenge::Basic))
}

/// The schemes of a header with their parameters, names in lower case.
fn schemes(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for part in split(header) {
        let (name, value) = match part.split_once('=') {
            // `Bearer realm=…`: a scheme and its first parameter.
            Some((left, value)) => match left.trim().rsplit_once([' ', '\t']) {
                Some((scheme, name)) => {
                    found.push((scheme.trim().to_ascii_lowercase(), Vec::new()));
                    (name, value)
                }
                None => (left.trim(), value),
            },
            None => {
                found.push((part.trim().to_ascii_lowercase(), Vec::new()));
                continue;
            }
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((name.to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    found
}

/// The parts between commas that stand in no quotes.
fn split(header: &str) -> Vec<&str> {
    let (mut parts, mut from, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in header.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&header[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&header[from..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').map(|rest| rest.strip_suffix('"').unwrap_or(rest)) else {
        return value.to_owned();
    };
    let (mut text, mut escaped) = (String::with_capacity(inner.len()), false);
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            text.push(c);
            escaped = false;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn challenges() {
        let scope = "repository:library/x:pull,push";
        for (header, want) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/token\",service=\"s\",scope=\"repository:library/x:pull,push\"",
                bearer("https://a/token", Some("s"), Some(scope)),
            ),
            ("bearer realm=https://a/t?x, service=s", bearer("https://a/t?x", Some("s"), None)),
            ("Basic realm=\"a, Bearer b\", BEARER  Realm=\"r\"", bearer("r", None, None)),
            ("Bearer realm=\"a\\\"b\", scope=\"\"", bearer("a\"b", None, None)),
            ("Bearer service=\"s\"", None),
            ("Negotiate, Basic realm=x", Some(Challenge::Basic)),
            ("Negotiate abc==", None),
            ("", None),
            ("\"", None),
            (",,=,", None),
        ] {
            assert_eq!(parse([header]), want, "{header}");
        }
        assert_eq!(parse(["Basic realm=x", "Bearer realm=y"]), bearer("y", None, None));
    }
}
