//! `history`: the steps in which an image was made, newest first, each with the layer that it added.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sheep_overlay::diff::escaped;
use sheep_overlay::{doc, exit};

use crate::cli::History;
use crate::ls::{human_size, minute, table};
use crate::store::{LoadedImage, Store};

/// A step, or a layer of which no step is known.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// The layer's place in the image, from 1 at the bottom.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_id: Option<String>,
    /// Of the layer as it is stored, in bytes; 0 of a step that added none.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// What the configuration says of the step; absent where it says nothing of the layer.
    #[serde(flatten)]
    step: Option<Step>,
}

/// An entry of a configuration's `history` (image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "camelCase"))]
struct Step {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

/// Runs the verb.
pub fn run(store: &Store, args: &History) -> Result<()> {
    let what = || format!("history {}", args.reference);
    let image = store.find(&args.reference).with_context(what)?;
    let steps = steps(&image).with_context(what)?;
    let layers: Vec<Row> = image.layers().enumerate().map(|(at, layer)| layer_row(at, layer)).collect();
    let filled = steps.iter().filter(|step| !step.empty_layer).count();
    if filled != layers.len() {
        let (steps, layers) = (count(filled, "step", "steps"), count(layers.len(), "layer", "layers"));
        exit::warn(
            "sheep-images",
            &format!(
                "{}: it tells of {steps} with a layer, and the image has {layers}: which belong together cannot be told",
                what()
            ),
        );
    }
    let mut rows = rows(steps, layers);
    rows.reverse();
    doc::write_out(&if args.json { lines(&rows)? } else { for_people(&rows).into_bytes() })
}

fn steps(image: &LoadedImage) -> Result<Vec<Step>> {
    match image.config().get("history") {
        None | Some(serde_json::Value::Null) => Ok(Vec::new()),
        Some(list) => Deserialize::deserialize(list).context("the configuration's history"),
    }
}

fn layer_row(at: usize, (descriptor, diff_id): (&crate::oci::Descriptor, &crate::oci::Digest)) -> Row {
    Row {
        layer: Some(at + 1),
        digest: Some(descriptor.digest.to_string()),
        diff_id: Some(diff_id.to_string()),
        size: Some(descriptor.size),
        step: None,
    }
}

/// The steps with their layers, oldest first. Where there are more of the ones than of the others it cannot be told which belong
/// together: then they stand by themselves, the layers first.
fn rows(steps: Vec<Step>, layers: Vec<Row>) -> Vec<Row> {
    if steps.iter().filter(|step| !step.empty_layer).count() != layers.len() {
        let alone = |step: Step| Row { size: step.empty_layer.then_some(0), step: Some(step), ..Row::default() };
        return layers.into_iter().chain(steps.into_iter().map(alone)).collect();
    }
    let mut layers = layers.into_iter();
    let with_layer = |step: Step| match step.empty_layer {
        true => Row { size: Some(0), step: Some(step), ..Row::default() },
        false => Row { step: Some(step), ..layers.next().unwrap_or_default() },
    };
    steps.into_iter().map(with_layer).collect()
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn lines(rows: &[Row]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut out, row)?;
        out.push(b'\n');
    }
    Ok(out)
}

fn for_people(rows: &[Row]) -> String {
    let mut cells = vec![["CREATED", "LAYER", "SIZE", "COMMENT", "CREATED BY"].map(str::to_owned)];
    for row in rows {
        let step = row.step.clone().unwrap_or_default();
        let text = |text: Option<String>| text.map_or_else(|| "-".to_owned(), |text| escaped(text.as_bytes()));
        let layer = row.diff_id.as_deref().map(|digest| digest.trim_start_matches("sha256:")[..12].to_owned());
        cells.push([
            step.created.as_deref().map_or_else(|| "-".to_owned(), |time| escaped(minute(time).as_bytes())),
            layer.unwrap_or_else(|| "-".to_owned()),
            row.size.map_or_else(|| "-".to_owned(), human_size),
            text(step.comment.filter(|text| !text.is_empty())),
            text(step.created_by),
        ]);
    }
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_get_their_layers_or_none() {
        let layer = |n| Row { layer: Some(n), size: Some(7), ..Row::default() };
        let step = |by: &str, empty_layer| Step { created_by: Some(by.to_owned()), empty_layer, ..Step::default() };
        let shown = |steps, layers| -> Vec<(Option<usize>, Option<u64>, Option<String>)> {
            let by = |row: &Row| row.step.as_ref().and_then(|step| step.created_by.clone());
            rows(steps, layers).iter().map(|row| (row.layer, row.size, by(row))).collect()
        };
        let by = |text: &str| Some(text.to_owned());
        assert_eq!(
            shown(vec![step("a", false), step("env", true), step("b", false)], vec![layer(1), layer(2)]),
            [(Some(1), Some(7), by("a")), (None, Some(0), by("env")), (Some(2), Some(7), by("b"))]
        );
        assert_eq!(
            shown(vec![step("b", false)], vec![layer(1), layer(2)]),
            [(Some(1), Some(7), None), (Some(2), Some(7), None), (None, None, by("b"))]
        );
        assert_eq!(shown(Vec::new(), vec![layer(1)]), [(Some(1), Some(7), None)]);
        assert_eq!(shown(vec![step("a", false)], Vec::new()), [(None, None, by("a"))]);
    }
}
