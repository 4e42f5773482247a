//! `verify`: checks that everything in the store is what it should be, and mends what can be mended.
//!
//! It looks without a lock, for it may take long, and others go on meanwhile. What seems wrong is looked at once more under the lock,
//! under which images come and go, before it is said to be wrong, and that is where it is mended.

mod blobs;
mod layers;
mod report;
mod trees;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sheep_overlay::exit;

use crate::cli::Verify;
use crate::interrupt;
use crate::oci::{self, Config, Descriptor, Digest, ManifestOrIndex};
use crate::store::{INDEX_DEPTH, Store, familiar, position};
use report::{Problem, Report};

/// What is done about a damaged blob: it cannot be made from nothing.
const AGAIN: &str = "import or fetch the image again";

/// A blob that images need.
#[derive(Debug, Clone, Default)]
struct Need {
    /// What it is to them.
    kind: &'static str,
    /// How long those who point to it say it is.
    size: u64,
    /// The images.
    images: Vec<String>,
    /// What leads to it from the index.
    from: Vec<Digest>,
}

/// All that images need, by digest.
type Needs = BTreeMap<Digest, Need>;

/// Runs the verb.
pub fn run(store: &Store, args: &Verify) -> Result<()> {
    let mut report = Report::new(args.json);
    let index = store.index().context("verify")?;
    let mut several = exit::Several::of("sheep-images");
    let mut chosen: Vec<Descriptor> = Vec::new();
    for reference in &args.references {
        match position(&index, reference) {
            Ok(at) => chosen.push(index.manifests[at].clone()),
            Err(error) => several.add(Err(error.context(format!("verify {reference}")))),
        }
    }
    let all = args.references.is_empty();
    if all {
        chosen = index.manifests.clone();
    }
    let mut needs = Needs::new();
    for descriptor in &chosen {
        entry(store, descriptor, args.repair, &mut needs, &mut report).context("verify")?;
    }
    if all {
        for digest in store.listed(&store.blobs()).context("verify")? {
            needs.entry(digest).or_default();
        }
    }
    let bad = blobs::check(store, &needs, args.repair, &mut report).context("verify")?;
    several.add(layers::check(store, &chosen, &bad, args.repair, &mut report).context("verify"));
    if all {
        several.add(leftovers(store, args.repair, &mut report).context("verify"));
    }
    several.add(report.result());
    several.result()
}

/// Follows an entry of the index to all that it needs.
fn entry(store: &Store, top: &Descriptor, repair: bool, needs: &mut Needs, report: &mut Report) -> Result<()> {
    let name = top.ref_name().map_or_else(|| top.digest.to_string(), familiar);
    if !store.blob(&top.digest).exists() {
        return missing(store, top, &name, repair)?.map_or(Ok(()), |problem| report.tell(problem));
    }
    let mut pending = vec![(top.clone(), 0)];
    while let Some((descriptor, depth)) = pending.pop() {
        // Of an image for several platforms, other tools store only the one they need.
        if depth > 0 && !store.blob(&descriptor.digest).exists() {
            continue;
        }
        let mut need = |kind, descriptor: &Descriptor| {
            let need = needs.entry(descriptor.digest.clone()).or_default();
            (need.kind, need.size) = (kind, descriptor.size);
            need.images.push(name.clone());
            need.from.push(top.digest.clone());
        };
        need("manifest", &descriptor);
        let wrong = |what: String| Problem::of("manifest", &descriptor.digest, &store.blob(&descriptor.digest), what);
        // One that cannot be read is found with the other blobs.
        let Ok(bytes) = store.read_blob(&descriptor) else { continue };
        match oci::parse_manifest(&descriptor, &bytes) {
            Err(error) => report.tell(wrong(format!("{error:#}")).in_image(&name).remedy(AGAIN))?,
            Ok(ManifestOrIndex::Index(_)) if depth == INDEX_DEPTH => {
                report.tell(wrong("indexes within indexes".to_owned()).in_image(&name))?;
            }
            Ok(ManifestOrIndex::Index(index)) => pending.extend(index.manifests.into_iter().map(|d| (d, depth + 1))),
            Ok(ManifestOrIndex::Manifest(manifest)) => {
                need("config", &manifest.config);
                manifest.layers.iter().for_each(|layer| need("layer", layer));
                let Ok(bytes) = store.read_blob(&manifest.config) else { continue };
                let what = match serde_json::from_slice::<Config>(&bytes) {
                    Err(error) => format!("not an image configuration: {error}"),
                    Ok(config) if config.rootfs.diff_ids.len() != manifest.layers.len() => {
                        format!(
                            "it names {} layers, and the manifest {}",
                            config.rootfs.diff_ids.len(),
                            manifest.layers.len()
                        )
                    }
                    Ok(_) => continue,
                };
                let digest = &manifest.config.digest;
                let problem = Problem::of("config", digest, &store.blob(digest), what);
                report.tell(problem.in_image(&name).remedy(AGAIN))?;
            }
        }
    }
    Ok(())
}

/// An entry that leads to nothing. It may be dropped: nothing can be told of the image but its name.
fn missing(store: &Store, top: &Descriptor, name: &str, repair: bool) -> Result<Option<Problem>> {
    let _commit = interrupt::commit();
    let _lock = store.lock()?;
    let mut index = store.index()?;
    let at = index.manifests.iter().position(|other| other == top);
    let Some(at) = at.filter(|_| !store.blob(&top.digest).exists()) else { return Ok(None) };
    let problem = Problem::of("index", &top.digest, &store.blob(&top.digest), "its manifest is missing".to_owned());
    let problem = problem.in_image(name);
    if !repair {
        return Ok(Some(problem.remedy(&format!("{AGAIN}, or --repair drops the name"))));
    }
    index.manifests.remove(at);
    store.write_index(&index)?;
    Ok(Some(problem.repaired("dropped from the index")))
}

/// What crashes left is no damage: the next command clears it away.
fn leftovers(store: &Store, repair: bool, report: &mut Report) -> Result<()> {
    let mut found: Vec<PathBuf> = Vec::new();
    let tell = |path: &Path| {
        found.push(path.to_path_buf());
        Ok(())
    };
    let stay = store.clear_up_telling(!repair, tell)?;
    found.iter().try_for_each(|path| report.tell_leftover(path, repair))?;
    stay.iter().try_for_each(|path| report.tell_leftover(path, false))
}

/// The error at the end.
fn summary(left: u64) -> anyhow::Error {
    anyhow!("verify: {left} {} found", if left == 1 { "problem" } else { "problems" })
}
