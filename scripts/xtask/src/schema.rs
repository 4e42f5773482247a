//! JSON Schemas (2020-12), from the types that read and write the documents.

use anyhow::{Context, Result};
use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::Files;

/// `document.json`: the document on its way down a pipe. Every key is optional in it, and keys that Sheep does not know
/// pass through.
pub fn files() -> Result<Files> {
    let mut generator = SchemaGenerator::default();
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Document",
        "description": "One JSON object that grows as it goes down a pipe; each tool owns one key.",
        "type": "object",
        "properties": {
            "image": generator.subschema_for::<sheep_images::doc::Image>(),
            "overlay": generator.subschema_for::<sheep_overlay::doc::Overlay>(),
            "container": generator.subschema_for::<sheep_run::record::Container>(),
        },
        "additionalProperties": true,
    });
    document["$defs"] = Value::Object(generator.take_definitions(true));
    Ok(Files::from([("document.json".into(), pretty(&document)?)]))
}

fn pretty(schema: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(schema).context("schema")?;
    bytes.push(b'\n');
    Ok(bytes)
}
