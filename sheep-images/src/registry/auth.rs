//! What a request needs to be let in: a name and a password, or a token that is had for them, or for nothing.
//!
//! The first request is sent with nothing; what is asked for then is kept for the later ones, until it is refused.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::http::{Method, StatusCode};

use super::challenge::{self, Challenge};
use super::credentials::{self, Credentials};
use super::http::{Answer, Ask, Client};
use super::url;

/// A token and what is around it are not longer.
const TOKEN_MAX: u64 = 1 << 20;

/// How we come in at one repository, or at a registry as such.
pub struct Doorman {
    registry: String,
    path: String,
    doing: &'static str,
    /// Other repositories that are to be read, in a push.
    also: Mutex<Vec<String>>,
    /// Ours, in the place of what the files say.
    given: Option<Credentials>,
    /// What the last challenge was answered with.
    answer: Mutex<Option<String>>,
}

impl Doorman {
    /// For a repository, with the credentials that the files have.
    pub fn new(registry: &str, path: &str, doing: &'static str) -> Self {
        Doorman {
            registry: registry.to_owned(),
            path: path.to_owned(),
            doing,
            also: Mutex::default(),
            given: None,
            answer: Mutex::default(),
        }
    }

    /// For a registry as such, with these credentials.
    pub fn with(registry: &str, credentials: Credentials) -> Self {
        Doorman { given: Some(credentials), ..Self::new(registry, "", "") }
    }

    /// From now on, asks for what reading another repository needs, too.
    pub fn also_reads(&self, path: &str) {
        // In this order, as where a challenge is answered.
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut also = self.also.lock().unwrap_or_else(PoisonError::into_inner);
        if !also.iter().any(|other| other == path) {
            also.push(path.to_owned());
            // A token that is there is not good for that.
            *answer = None;
        }
    }

    /// What later requests to the registry are sent with.
    pub fn authorization(&self) -> Option<String> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request, and where it is refused, once more with what the registry asks for.
    pub fn let_in(&self, client: &Client, base: &str, ask: &Ask) -> Result<Answer> {
        let sent = self.authorization();
        let answer = client.send(ask, sent.as_deref())?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match self.answer_to(client, base, &answer, sent.as_deref())? {
            Some(authorization) => client.send(ask, Some(&authorization)),
            None => Ok(answer),
        }
    }

    /// Finds out what a refused request should be sent with; `None` where there is nothing more to be had.
    pub fn answer_to(
        &self,
        client: &Client,
        base: &str,
        refused: &Answer,
        sent: Option<&str>,
    ) -> Result<Option<String>> {
        let Some(challenge) = challenge::parse(refused.all("www-authenticate")) else { return Ok(None) };
        // One at a time: of several layers that are refused at once, the first one gets the token for all.
        let mut kept = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_deref() != sent && kept.is_some() {
            return Ok(kept.clone());
        }
        let credentials = match &self.given {
            Some(given) => Some(given.clone()),
            None => credentials::find(&self.registry, &self.path).context("credentials")?,
        };
        let found = match (challenge, credentials) {
            (Challenge::Basic, Some(Credentials::Password(user, password))) => {
                Some(credentials::basic(&user, &password))
            }
            (Challenge::Basic, Some(Credentials::Identity(_)) | None) => None,
            (Challenge::Bearer { realm, service, scope, .. }, credentials) => {
                let scopes = self.scopes(scope);
                Some(format!("Bearer {}", token(client, base, &realm, service.as_deref(), &scopes, credentials)?))
            }
        };
        // The same again would be refused again.
        let found = found.filter(|found| sent != Some(found));
        kept.clone_from(&found);
        Ok(found)
    }

    /// What a token is to be good for: what the registry said, and what we know to need.
    fn scopes(&self, said: Option<String>) -> Vec<String> {
        let own = (!self.path.is_empty()).then(|| format!("repository:{}:{}", self.path, self.doing));
        let mut scopes: Vec<String> = match (said, own) {
            // A push begins with reading, for which the registry asks for less than it will need.
            (_, Some(own)) if self.doing != "pull" => vec![own],
            (Some(said), _) => said.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect(),
            (None, own) => own.into_iter().collect(),
        };
        let also = self.also.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.extend(also.iter().map(|path| format!("repository:{path}:pull")));
        scopes
    }
}

/// Gets a token, for a name and a password, a token of another kind, or nothing.
fn token(
    client: &Client,
    base: &str,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    credentials: Option<Credentials>,
) -> Result<String> {
    let host = url::host(base);
    let Some(realm) = url::resolve(base, realm) else {
        bail!("{host}: it gives tokens at {realm:?}, which is nowhere")
    };
    // A password goes over no line that the registry itself is not spoken with over.
    if base.starts_with("https:") && !realm.starts_with("https:") {
        bail!("{host}: it gives tokens at {}, without encryption", url::host(&realm));
    }
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(service.map(|service| ("service", service)));
    let what = format!("token for {host}");
    let (ask, authorization) = match &credentials {
        Some(Credentials::Identity(token)) => {
            let scope = scopes.join(" ");
            fields.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "sheep-images")]);
            fields.extend((!scope.is_empty()).then_some(("scope", scope.as_str())));
            let form: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", url::escape(value))).collect();
            let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
            (Ask { method: Method::POST, url: realm, headers, body: form.join("&").into_bytes(), what }, None)
        }
        named => {
            fields.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let authorization = match named {
                Some(Credentials::Password(user, password)) => {
                    fields.push(("account", user));
                    Some(credentials::basic(user, password))
                }
                _ => None,
            };
            let url = fields.iter().fold(realm, |url, (key, value)| url::with_query(&url, key, value));
            (Ask::get(url, what), authorization)
        }
    };
    let answer = client.send(&ask, authorization.as_deref())?;
    if answer.status != StatusCode::OK {
        return Err(answer.failed());
    }
    let place = answer.place();
    let value: Value =
        serde_json::from_slice(&answer.read(TOKEN_MAX)?).with_context(|| format!("{place}: not JSON"))?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let token =
        text("token").or_else(|| text("access_token")).with_context(|| format!("{place}: there is no token in it"))?;
    if token.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        bail!("{place}: its token is none");
    }
    Ok(token.to_owned())
}
