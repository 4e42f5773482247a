//! File names, arguments and environment in JSON.

use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A string of bytes the kernel takes: a path, an argument, a variable of the environment. A JSON string where it is
/// UTF-8, as the specification has it; else `{"base64": "…"}` as in Sheep's documents, so that no name is lost. Other
/// runtimes refuse a config.json with the second form, which they could not have been given at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub OsString);

impl Name {
    /// The value as JSON.
    pub fn to_json(&self) -> Value {
        match self.0.to_str() {
            Some(text) => Value::from(text),
            None => Value::Object(Map::from_iter([("base64".to_owned(), BASE64.encode(self.0.as_bytes()).into())])),
        }
    }

    /// The inverse of [`Name::to_json`]; `None` where the value is neither form.
    pub fn from_json(value: &Value) -> Option<Name> {
        match value {
            Value::String(text) => Some(Name(text.into())),
            Value::Object(map) if map.len() == 1 => {
                let bytes = BASE64.decode(map.get("base64")?.as_str()?).ok()?;
                Some(Name(OsString::from_vec(bytes)))
            }
            _ => None,
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The value as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Deref for Name {
    type Target = OsStr;
    fn deref(&self) -> &OsStr {
        &self.0
    }
}

impl AsRef<OsStr> for Name {
    fn as_ref(&self) -> &OsStr {
        &self.0
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl<T: Into<OsString>> From<T> for Name {
    fn from(value: T) -> Self {
        Name(value.into())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => self.to_json().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Name::from_json(&value).ok_or_else(|| D::Error::custom("expected a string or {\"base64\": \"…\"}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_utf8_survive() {
        for (bytes, json) in
            [(&b"/plain"[..], r#""/plain""#), (b"/new\nline", r#""/new\nline""#), (b"/\xff", r#"{"base64":"L/8="}"#)]
        {
            let name = Name::from(OsStr::from_bytes(bytes));
            assert_eq!(serde_json::to_string(&name).unwrap(), json);
            assert_eq!(serde_json::from_str::<Name>(json).unwrap(), name);
        }
        for bad in ["1", "null", "{}", r#"{"base64":"!"}"#, r#"{"base64":"L/8=","x":1}"#] {
            assert!(serde_json::from_str::<Name>(bad).is_err(), "{bad}");
        }
    }
}
