//! The document that `sheep-images` and `sheep-overlay` hand down a pipe, as far as this program looks into it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::exit;
use crate::oci::Name;

/// What is taken out of a document.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    /// `overlay.merged`: the root directory.
    pub rootfs: Name,
    /// `overlay.readOnly`.
    pub read_only: bool,
    /// `image.config`: the OCI image configuration, where the document has an image.
    pub image_config: Option<Value>,
}

/// Reads exactly one document from `-` (stdin) or a file (also `/dev/fd/63`, as `<(…)` makes it). Errors with usage (2)
/// when it is not a document with an overlay, with not found (3) when there is no such file.
pub fn read(source: &OsStr) -> Result<Input> {
    let mut text = Vec::new();
    let name = if source == "-" { "stdin".into() } else { source.to_string_lossy() };
    if source == "-" {
        io::stdin().lock().read_to_end(&mut text).context("stdin")?;
    } else {
        File::open(source).and_then(|mut file| file.read_to_end(&mut text)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => exit::not_found(format!("{name}: no such file; give a document's file, or -")),
            _ => anyhow::Error::new(e).context(name.to_string()),
        })?;
    }
    parse(&text).map_err(|error| error.context(name.into_owned()))
}

fn parse(text: &[u8]) -> Result<Input> {
    let mut documents = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let document = match documents.next() {
        Some(Ok(Value::Object(map))) => map,
        Some(Ok(_)) => return Err(exit::usage("a document is a JSON object, one on a line")),
        Some(Err(error)) => return Err(exit::usage(format!("not a JSON document: {error}"))),
        None => return Err(exit::usage("no document; the command before it in the pipe printed none")),
    };
    match documents.next() {
        None => {}
        Some(Ok(_)) => return Err(exit::usage("more than one document where one is expected")),
        Some(Err(error)) => return Err(exit::usage(format!("not a JSON document: {error}"))),
    }
    let overlay = document
        .get("overlay")
        .ok_or_else(|| exit::usage("the document has no 'overlay' key; sheep-overlay mount makes one"))?;
    let rootfs = overlay
        .get("merged")
        .and_then(Name::from_json)
        .filter(|path| path.as_path().is_absolute())
        .ok_or_else(|| exit::usage("document key 'overlay.merged': not an absolute path"))?;
    let read_only = match overlay.get("readOnly") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(value)) => *value,
        Some(_) => return Err(exit::usage("document key 'overlay.readOnly': not true or false")),
    };
    let image_config = match document.get("image").and_then(|image| image.get("config")) {
        None | Some(Value::Null) => None,
        Some(config @ Value::Object(_)) => Some(config.clone()),
        Some(_) => return Err(exit::usage("document key 'image.config': not an object")),
    };
    Ok(Input { rootfs, read_only, image_config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken() {
        let text =
            br#"{"image":{"config":{"config":{"Cmd":["sh"]}}},"overlay":{"merged":{"base64":"L/8="},"readOnly":true}}"#;
        let input = parse(text).unwrap();
        assert_eq!(input.rootfs.as_bytes(), b"/\xff");
        assert!(input.read_only);
        assert_eq!(input.image_config.unwrap()["config"]["Cmd"][0], "sh");
        assert_eq!(parse(b"{\"overlay\":\n{\"merged\":\"/m\"}}\n").unwrap().image_config, None);
    }

    #[test]
    fn what_is_refused() {
        for (text, want) in [
            ("", "no document"),
            ("[]", "JSON object"),
            ("{", "not a JSON document"),
            (r#"{"overlay":{"merged":"/m"}} {}"#, "more than one"),
            (r#"{"overlay":{"merged":"/m"}} x"#, "not a JSON document"),
            ("{}", "no 'overlay' key"),
            (r#"{"overlay":{}}"#, "overlay.merged"),
            (r#"{"overlay":{"merged":"m"}}"#, "overlay.merged"),
            (r#"{"overlay":{"merged":"/m","readOnly":1}}"#, "overlay.readOnly"),
            (r#"{"overlay":{"merged":"/m"},"image":{"config":1}}"#, "image.config"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains(want), "{text}: {error:#}");
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{text}");
        }
    }
}
