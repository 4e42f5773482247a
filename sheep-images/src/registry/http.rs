//! Requests: sent again where that may help, followed where they are sent on, and said in one line where they fail.
//!
//! Redirects are followed here, and not by the HTTP library, so that it is seen in one place who gets to know what: another
//! host never gets an `Authorization`, and nothing that began encrypted goes on in the clear.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use sheep_overlay::exit;
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;
use ureq::{Agent, AsSendBody, Body};

use super::url;

/// How often something is tried.
pub const TRIES: u32 = 5;
/// After so many bytes a connection was worth it.
const PROGRESS: u64 = 64 << 10;
/// Before it is tried again, the first time; then twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Who asks us to come back later than this is told no.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 5;
/// So much of an answer that says what is wrong is read.
const ERROR_MAX: u64 = 64 << 10;
/// So much of it is shown.
const SHOWN: usize = 200;
const USER_AGENT: &str = concat!("sheep-images/", env!("CARGO_PKG_VERSION"));

/// Something that another try later may get: a registry that cannot be reached, breaks off or is overloaded.
#[derive(Debug)]
pub struct Unreachable(pub String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Whether an error says that another try later may help.
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Unreachable>())
}

/// A request without a body, or with a short one.
#[derive(Debug, Clone)]
pub struct Ask {
    /// How.
    pub method: Method,
    /// Of what.
    pub url: String,
    /// With these headers, but for `Authorization`.
    pub headers: Vec<(&'static str, String)>,
    /// What is sent; for other methods than GET and HEAD.
    pub body: Vec<u8>,
    /// In words, for who reads of a failure: `manifest library/x:latest`.
    pub what: String,
}

impl Ask {
    /// A request for what is at a URL.
    pub fn get(url: String, what: String) -> Self {
        Ask { method: Method::GET, url, headers: Vec::new(), body: Vec::new(), what }
    }
}

/// An HTTP client: settings, and connections that are used again.
pub struct Client {
    /// For this very machine, without encryption: no proxy knows it, and no roots are asked for.
    plain: Agent,
    /// For all others. The system's roots are some 150 files, and reading them takes longer than a request to a registry nearby: they
    /// are read when they are needed.
    trusting: OnceLock<Agents>,
    /// Roots that the system has not.
    own: Vec<Certificate<'static>>,
    timeout: Duration,
    tries: u32,
}

/// Those that know which roots to trust.
struct Agents {
    through_proxy: Agent,
    /// For this very machine.
    direct: Agent,
}

impl Client {
    /// A client that trusts the system's roots, and those in the file `ca`, and gives up a connection on which nothing
    /// comes for `timeout`.
    pub fn new(ca: Option<&Path>, timeout: Duration) -> Result<Self> {
        let own = match ca {
            Some(file) => certificates(file).with_context(|| format!("--ca {}", file.display()))?,
            None => Vec::new(),
        };
        let plain = agent(Agent::config_builder().proxy(None), timeout);
        Ok(Client { plain, trusting: OnceLock::new(), own, timeout, tries: TRIES })
    }

    fn trusting(&self) -> &Agents {
        self.trusting.get_or_init(|| {
            // What of the system's roots cannot be read is not trusted; a registry that needs it is refused by name.
            let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
                .certs
                .iter()
                .map(|root| Certificate::from_der(root.as_ref()).to_owned())
                .collect();
            roots.extend(self.own.iter().cloned());
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::Specific(Arc::new(roots)))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            let builder = || Agent::config_builder().tls_config(tls.clone());
            Agents { through_proxy: agent(builder(), self.timeout), direct: agent(builder().proxy(None), self.timeout) }
        })
    }

    /// Who sends a request to a host.
    fn agent(&self, url: &str, host: &str) -> &Agent {
        match (url::is_loopback(host), url.starts_with("http:")) {
            (true, true) => &self.plain,
            (true, false) => &self.trusting().direct,
            (false, _) => &self.trusting().through_proxy,
        }
    }

    /// Sends a request, again where that may help, and follows where it is sent on. Gives whatever answer there is at the end,
    /// but for one that says to come again later: that is an error. What it needs to be let in is sent to the request's own host only.
    pub fn send(&self, ask: &Ask, authorization: Option<&str>) -> Result<Answer> {
        let mut waits = Waits::new(self.tries);
        loop {
            let failure = match self.follow(ask, authorization) {
                Ok(answer) => match answer.retry_after() {
                    None => return Ok(answer),
                    Some(after) => {
                        let error = answer.failed();
                        if let Some(after) = after {
                            waits.at_least(after);
                        }
                        error
                    }
                },
                Err(error) if is_unreachable(&error) => error,
                Err(error) => return Err(error),
            };
            if !waits.wait() {
                return Err(failure);
            }
        }
    }

    fn follow(&self, ask: &Ask, authorization: Option<&str>) -> Result<Answer> {
        let (mut url, mut authorization) = (ask.url.clone(), authorization);
        for _ in 0..=REDIRECTS {
            let answer = match ask.method {
                Method::GET | Method::HEAD => self.once(ask, &url, authorization, ())?,
                _ => self.once(ask, &url, authorization, &ask.body)?,
            };
            let leads_on = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !leads_on || !(ask.method == Method::GET || ask.method == Method::HEAD) {
                return Ok(answer);
            }
            let host = url::host(&url);
            let to = answer.header("location").unwrap_or_default().to_owned();
            let Some(next) = url::resolve(&url, &to) else {
                bail!("{host}: {}: it sends us on to {to:?}, which leads nowhere", ask.what);
            };
            if url.starts_with("https:") && !next.starts_with("https:") {
                bail!("{host}: {}: it sends us from https on to http, at {}", ask.what, url::host(&next));
            }
            if url::origin(&next) != url::origin(&url) {
                authorization = None;
            }
            url = next;
        }
        bail!("{}: {}: it sends us on and on", url::host(&ask.url), ask.what)
    }

    /// Sends a request once.
    pub fn once(&self, ask: &Ask, url: &str, authorization: Option<&str>, body: impl AsSendBody) -> Result<Answer> {
        let host = url::host(url).to_owned();
        let place = || format!("{host}: {}", ask.what);
        let mut request = Request::builder().method(ask.method.clone()).uri(url);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(body).with_context(place)?;
        match self.agent(url, &host).run(request) {
            Ok(response) => Ok(Answer::new(response, host, ask)),
            Err(error) => Err(failure(&error, &place(), url)),
        }
    }
}

fn agent(builder: ConfigBuilder<AgentScope>, timeout: Duration) -> Agent {
    builder
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(USER_AGENT)
        .timeout_connect(Some(timeout))
        .timeout_recv_response(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .build()
        .new_agent()
}

/// How long to wait between tries, and how often.
#[derive(Debug)]
pub struct Waits {
    left: u32,
    next: Duration,
    least: Duration,
}

impl Waits {
    /// Before the first of `tries`.
    pub fn new(tries: u32) -> Self {
        Waits { left: tries, next: FIRST_WAIT, least: Duration::ZERO }
    }

    /// So many bytes got through since the last try: where that was worth a connection, what breaks off now is a new misfortune.
    pub fn got_through(&mut self, bytes: u64) {
        if bytes >= PROGRESS {
            *self = Self::new(TRIES);
        }
    }

    /// The next wait is to be so long.
    fn at_least(&mut self, wait: Duration) {
        self.least = wait;
    }

    /// Waits before the next try; `false` where there is none, or it would be too long.
    pub fn wait(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let wait = self.next.max(self.least);
        if self.left == 0 || wait > LONGEST_WAIT {
            return false;
        }
        thread::sleep(wait);
        (self.next, self.least) = (self.next * 2, Duration::ZERO);
        true
    }
}

/// What came back.
pub struct Answer {
    /// How it went.
    pub status: StatusCode,
    headers: HeaderMap,
    body: Body,
    host: String,
    what: String,
}

impl Answer {
    fn new(response: Response<Body>, host: String, ask: &Ask) -> Self {
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body, host, what: ask.what.clone() }
    }

    /// A header, where it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers of a name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    /// How many bytes it says to have.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Who it came from, and what it was to be.
    pub fn place(&self) -> String {
        format!("{}: {}", self.host, self.what)
    }

    /// Whether it says to come again; when, where it says so.
    fn retry_after(&self) -> Option<Option<Duration>> {
        matches!(self.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
            .then(|| self.header("retry-after").and_then(after))
    }

    /// The body, as it comes.
    pub fn into_reader(self) -> impl Read + Send + 'static {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// The body, whole; more than `most` bytes are refused.
    pub fn read(self, most: u64) -> Result<Vec<u8>> {
        let place = self.place();
        if self.length().is_some_and(|length| length > most) {
            bail!("{place}: it has more than {most} bytes");
        }
        let said = self.length();
        let mut bytes = Vec::new();
        let read = self.into_reader().take(most + 1).read_to_end(&mut bytes);
        read.map_err(|e| Unreachable(format!("{place}: {e}")))?;
        if bytes.len() as u64 > most {
            bail!("{place}: it has more than {most} bytes");
        }
        if said.is_some_and(|said| said != bytes.len() as u64) {
            return Err(Unreachable(format!("{place}: it broke off after {} bytes", bytes.len())).into());
        }
        Ok(bytes)
    }

    /// The answer as an error: who, what, the status, and what the registry says of it.
    pub fn failed(self) -> anyhow::Error {
        let (status, place) = (self.status, self.place());
        let again = self.retry_after().is_some();
        let mut bytes = Vec::new();
        // What of it comes is enough.
        let _ = self.into_reader().take(ERROR_MAX).read_to_end(&mut bytes);
        let reason = status.canonical_reason().unwrap_or("unknown");
        let said = said(&bytes).map_or(String::new(), |said| format!(" ({said})"));
        let line = format!("{place}: {} {reason}{said}", status.as_u16());
        match status.as_u16() {
            404 => exit::not_found(line),
            // In the words of Go's and nginx's servers.
            400 if ["HTTPS server", "HTTPS port"]
                .iter()
                .any(|words| String::from_utf8_lossy(&bytes).contains(words)) =>
            {
                anyhow!("{line}; it speaks TLS: --ca FILE gives its root certificate, and is enough to make us do so")
            }
            401 | 403 => {
                let host = place.split(": ").next().unwrap_or_default().to_owned();
                anyhow!("{line}; 'sheep-images login {host}' for what is not for all")
            }
            _ if again => Unreachable(format!("{line}, after several tries")).into(),
            _ => anyhow!("{line}"),
        }
    }
}

/// What a registry says is wrong (distribution-spec, "Error Codes"), short.
fn said(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    let first = value.get("errors").and_then(|errors| errors.get(0));
    let said = match first {
        Some(error) => text(error, "message").or_else(|| text(error, "code")),
        None => text(&value, "details").or_else(|| text(&value, "message")).or_else(|| text(&value, "error")),
    }?;
    Some(said.chars().take(SHOWN).collect())
}

/// A `Retry-After`: seconds, or a time.
fn after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    then.duration_since(jiff::Timestamp::now()).try_into().ok()
}

/// What went wrong below HTTP, in our words.
fn failure(error: &ureq::Error, place: &str, url: &str) -> anyhow::Error {
    let again = |why: String| anyhow::Error::from(Unreachable(format!("{place}: {why}")));
    match error {
        ureq::Error::Io(e) if is_certificate(e) => anyhow!("{place}: {e}{}", distrusted(&e.to_string())),
        ureq::Error::Rustls(e) => anyhow!("{place}: {e}{}", distrusted(&e.to_string())),
        ureq::Error::Io(e) => again(e.to_string()),
        ureq::Error::Timeout(_) => again("nothing came any more (--timeout)".to_owned()),
        ureq::Error::ConnectionFailed => again("no connection".to_owned()),
        ureq::Error::HostNotFound => again("there is no host of that name".to_owned()),
        ureq::Error::Protocol(e) if url.starts_with("http:") => anyhow!("{place}: it does not speak HTTP: {e}"),
        other => anyhow!("{place}: {other}"),
    }
}

fn is_certificate(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

fn distrusted(why: &str) -> &'static str {
    if why.contains("UnknownIssuer") { "; a root of your own is given with --ca FILE" } else { "" }
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = fs::read(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => exit::not_found("no such file"),
        _ => e.into(),
    })?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| anyhow!("not a PEM file: {e}"))? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(exit::usage("there is no certificate in it; PEM is expected"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says() {
        for (body, want) in [
            (r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#, Some("no such repository")),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(said(body.as_bytes()).as_deref(), want);
        }
    }

    #[test]
    fn times_to_come_again() {
        assert_eq!(after("3"), Some(Duration::from_secs(3)));
        assert!(after("Fri, 31 Dec 1999 23:59:59 GMT").is_none_or(|wait| wait.is_zero()));
        assert_eq!(after("soon"), None);
        let mut waits = Waits::new(2);
        assert!(waits.wait() && !waits.wait());
        let mut waits = Waits::new(5);
        waits.at_least(Duration::from_secs(3600));
        assert!(!waits.wait());
    }
}
