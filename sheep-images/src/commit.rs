//! `commit`: an image from a document with an image and an overlay on it: the image's layers, and one more of the changes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use sheep_overlay::doc::{self, Document, Overlay};
use sheep_overlay::{access, exit, export, rotate};

use crate::cli::{Commit, LimitArgs};
use crate::doc::Image;
use crate::oci::{self, Descriptor, Digest, Manifest};
use crate::reference::Name;
use crate::scratch::Scratch;
use crate::store::stage::Stage;
use crate::store::{LoadedImage, Store};
use crate::stream::{Intake, Known, Stream};
use crate::unpack::{self, Received, Unpacked};

/// Runs the verb.
pub fn run(store: &Store, args: &Commit) -> Result<()> {
    let name = Name::parse(&args.name)?;
    let mut document = doc::read_document(args.from.as_deref().unwrap_or("-".as_ref()))?;
    let image: Image = document.require("image", "'sheep-images unpack'")?;
    let overlay: Overlay = document.require("overlay", "'sheep-overlay mount'")?;
    let work = || -> Result<Descriptor> {
        let base = store.find(&image.digest)?;
        let overlay = rotate::read(store.data(), &overlay.id)?;
        is_on(store, &overlay, &base)?;
        make(store, &name, &base, &overlay, args)
    };
    let made = work().with_context(|| format!("commit {}", args.name))?;
    let made = store.document(&store.load(&made)?)?;
    document.0.insert("image".to_owned(), made.0.get("image").cloned().unwrap_or(Value::Null));
    // The overlay lies on the old image still.
    document.0.shift_remove("overlay");
    Document::print(&document, "image", args.print.print.as_deref())
}

/// Makes sure that an overlay lies on an image: on another, its changes would mean something else.
fn is_on(store: &Store, overlay: &Overlay, image: &LoadedImage) -> Result<()> {
    let paths: Option<Vec<PathBuf>> = store.layer_paths(image).collect::<Result<_>>()?;
    let lowers = overlay.lower.iter().map(|lower| &lower.0);
    if !paths.is_some_and(|paths| paths.iter().eq(lowers)) {
        return Err(exit::usage(format!("overlay {} does not lie on the image of the document", overlay.id)));
    }
    Ok(())
}

fn make(store: &Store, name: &Name, base: &LoadedImage, overlay: &Overlay, args: &Commit) -> Result<Descriptor> {
    let stage = Stage::new(store)?;
    let latest = export::source_date_epoch()?;
    let file = stage.create("layer")?;
    access::with(overlay, |overlay| {
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        export::oci(overlay, latest, &mut out)?;
        Ok(out.flush()?)
    })
    .with_context(|| format!("overlay {}", overlay.id))?;
    let scratch = Scratch::new(&store.layers())?;
    let source = File::open(stage.file("layer"))?;
    let limits = LimitArgs::NONE;
    let Received { summary, left_out, implied } = unpack::receive(
        Stream::start(source, Intake::of_the_store(Known::Nothing, limits.max_ratio)),
        scratch.fd(),
        limits,
    )?;
    unpack::tell_left_out(&format!("commit {}", args.name), left_out);
    let created = oci::created(latest)?;
    let config = serde_json::to_vec(&config(base, &summary.diff_id, &created, args)?)?;
    let config_descriptor = Descriptor::new(oci::CONFIG, Digest::of(&config), config.len() as u64);
    let mut layers: Vec<Descriptor> = base.layers().map(|(layer, _)| layer.clone()).collect();
    let reused = layers.iter().map(|layer| layer.digest.clone()).collect();
    layers.push(Descriptor::new(oci::LAYER, summary.digest.clone(), summary.size));
    let manifest = serde_json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(oci::MANIFEST.to_owned()),
        config: config_descriptor.clone(),
        layers,
    })?;
    let image = Descriptor::new(oci::MANIFEST, Digest::of(&manifest), manifest.len() as u64);
    stage.write("config", &config)?;
    stage.write("manifest", &manifest)?;
    let mut diff_ids: Vec<Digest> = base.layers().map(|(_, diff_id)| diff_id.clone()).collect();
    diff_ids.push(summary.diff_id.clone());
    let chain_id = oci::chain_ids(&diff_ids).pop().context("an image without layers")?;
    let below: Vec<_> = overlay.lower.iter().map(|lower| lower.0.clone()).collect();
    let unpacked = Unpacked { scratch, implied };
    let place = unpacked.complete(&below, &summary.diff_id, &chain_id)?;
    let blobs = [("layer", summary.digest), ("config", config_descriptor.digest), ("manifest", image.digest.clone())];
    let blobs = blobs.map(|(file, digest)| (file.to_owned(), digest));
    stage.publish_image(store, Some(name), &image, blobs.into(), vec![(unpacked.scratch, place)], reused)
}

/// The configuration of the base with one layer more, and what was asked for.
fn config(base: &LoadedImage, diff_id: &Digest, created: &str, args: &Commit) -> Result<Value> {
    let mut config = base.config().clone();
    config["created"] = created.into();
    match config["rootfs"]["diff_ids"].as_array_mut() {
        Some(diff_ids) => diff_ids.push(diff_id.as_str().into()),
        None => bail!("the image's configuration has no layers"),
    }
    let mut history = json!({ "created": created, "created_by": "sheep-images commit" });
    for (key, value) in [("author", &args.author), ("comment", &args.message)] {
        if let Some(value) = value {
            history[key] = value.as_str().into();
        }
    }
    if let Some(author) = &args.author {
        config["author"] = author.as_str().into();
    }
    add_step(&mut config, base.layers().count(), history);
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let settings = &mut config["config"];
    for env in &args.env {
        set_env(settings, env)?;
    }
    for label in &args.label {
        let (key, value) = pair("--label", label)?;
        if !settings["Labels"].is_object() {
            settings["Labels"] = Value::Object(Map::new());
        }
        settings["Labels"][key] = value.into();
    }
    for (key, list) in [("Entrypoint", &args.entrypoint), ("Cmd", &args.cmd)] {
        if let Some(text) = list {
            settings[key] = words(key, text)?;
        }
    }
    for (key, value) in [("WorkingDir", &args.workdir), ("User", &args.user)] {
        if let Some(value) = value {
            settings[key] = value.as_str().into();
        }
    }
    Ok(config)
}

/// Adds a step to the history of an image that has so many layers. One that has no history gets a step for each of them of which
/// nothing is known: the new step would else be taken for that of the lowest.
fn add_step(config: &mut Value, layers: usize, step: Value) {
    match config["history"].as_array_mut() {
        Some(steps) if !steps.is_empty() => steps.push(step),
        _ => config["history"] = std::iter::repeat_n(json!({}), layers).chain([step]).collect(),
    }
}

fn pair<'a>(option: &str, text: &'a str) -> Result<(&'a str, &'a str)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        _ => Err(exit::usage(format!("{option} {text}: write KEY=VALUE"))),
    }
}

/// Sets a variable: in the place that it has, or last.
fn set_env(settings: &mut Value, env: &str) -> Result<()> {
    let (key, _) = pair("--env", env)?;
    let mut list = settings["Env"].as_array().cloned().unwrap_or_default();
    let is_it =
        |value: &Value| value.as_str().and_then(|text| text.split_once('=')).is_some_and(|(name, _)| name == key);
    match list.iter_mut().find(|value| is_it(value)) {
        Some(value) => *value = env.into(),
        None => list.push(env.into()),
    }
    settings["Env"] = list.into();
    Ok(())
}

/// A command as docker's files write it: a JSON list of words, or a line for the shell; empty, none.
fn words(key: &str, text: &str) -> Result<Value> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    if !text.starts_with('[') {
        return Ok(json!(["/bin/sh", "-c", text]));
    }
    let list: Vec<String> = serde_json::from_str(text)
        .map_err(|e| exit::usage(format!("--{} {text}: not a JSON list of words: {e}", key.to_lowercase())))?;
    Ok(json!(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_keep_their_place() {
        let mut settings = json!({ "Env": ["A=1", "PATH=/bin", "B=2"] });
        for env in ["PATH=/x", "C=", "A=2=3"] {
            set_env(&mut settings, env).unwrap();
        }
        assert_eq!(settings["Env"], json!(["A=2=3", "PATH=/x", "B=2", "C="]));
        assert!(set_env(&mut settings, "X").is_err());
    }

    #[test]
    fn a_step_stays_with_its_layer() {
        let step = json!({ "created_by": "x" });
        for (history, layers, want) in [
            (json!(null), 2, json!([{}, {}, step])),
            (json!([]), 1, json!([{}, step])),
            (json!([]), 0, json!([step])),
            (json!([{ "created_by": "a" }]), 1, json!([{ "created_by": "a" }, step])),
        ] {
            let mut config = json!({ "history": history });
            add_step(&mut config, layers, step.clone());
            assert_eq!(config["history"], want);
        }
        let mut config = json!({});
        add_step(&mut config, 1, step.clone());
        assert_eq!(config["history"], json!([{}, step]));
    }

    #[test]
    fn commands_as_lists_and_lines() {
        for (text, want) in
            [("", json!(null)), ("a b", json!(["/bin/sh", "-c", "a b"])), ("[\"a\", \"b c\"]", json!(["a", "b c"]))]
        {
            assert_eq!(words("Cmd", text).unwrap(), want);
        }
        assert!(words("Cmd", "[1]").is_err());
    }
}
