//! `pull`: an image from a registry.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use sheep_overlay::exit;

use crate::cli::{Pull, RegistryArgs};
use crate::import;
use crate::incoming::{self, Begun, Plan, Planned, Source, Way};
use crate::interrupt;
use crate::oci::{self, Descriptor, Digest};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::{Name, Remote};
use crate::registry::blob::{Asked, Download};
use crate::registry::http::is_unreachable;
use crate::registry::{self, Repository};
use crate::store::beginning::Beginning;
use crate::store::stage::Stage;
use crate::store::{self, LoadedImage, Store};
use crate::unpack;

/// So many layers come at once: one alone seldom gets all that the line has.
const AT_ONCE: usize = 4;

/// Runs the verb.
pub fn run(store: &Store, args: &Pull) -> Result<()> {
    let what = format!("pull {}", args.reference);
    let image = pull(store, args, &what).with_context(|| what.clone())?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

fn pull(store: &Store, args: &Pull, what: &str) -> Result<LoadedImage> {
    let remote = Remote::parse(&args.reference)?;
    let name = match &args.name {
        Some(name) => Some(Name::parse(name)?),
        None => remote.has_tag.then(|| remote.name.clone()),
    };
    let platform = args.platform.as_deref().map_or_else(|| Ok(oci::host_platform()), import::platform)?;
    let (repository, found) = find(&args.registry, &remote, |repository| repository.manifest(&remote, &platform))?;
    let progress = Progress::start(args.progress.progress);
    if let Some(image) = there(store, &found.descriptor, name.as_ref())? {
        if !args.no_unpack {
            let left_out = unpack::ensure(store, &image, args.limits, &progress)?;
            unpack::tell_left_out(what, left_out);
        }
        return Ok(image);
    }
    let repository = Arc::new(repository);
    let asked = Mutex::new(ask_ahead(store, &repository, &found.manifest.layers));
    let config = repository.config(&found.manifest.config)?;
    let diff_ids = incoming::diff_ids(&config, found.manifest.layers.len())?;
    let planned = |(descriptor, diff_id): (&Descriptor, _)| Planned {
        name: descriptor.digest.to_string(),
        descriptor: Some(descriptor.clone()),
        diff_id,
    };
    let plan = Plan {
        layers: found.manifest.layers.iter().zip(diff_ids).map(planned).collect(),
        manifest: Some((found.descriptor, found.bytes)),
        config,
        config_descriptor: found.manifest.config,
    };
    let open = |layer: &Planned| {
        let descriptor = layer.descriptor.as_ref().context("a layer without a digest")?;
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&descriptor.digest);
        download(store, &repository, descriptor, asked)
    };
    let mut stage = Stage::new(store)?;
    stage.unproven = args.no_unpack;
    let images = [(name, plan)];
    let layers = incoming::distinct(&images)?;
    let way = Way::new(store, &stage, args.limits, &progress)?;
    let taken = parallel::each_of(AT_ONCE, &layers, |number, layer| {
        incoming::one_download(&way, layer, number, open).with_context(|| format!("layer {}", layer.name))
    })?;
    drop(way);
    let (images, left_out) = incoming::finish(store, stage, &images, taken)?;
    drop(progress);
    unpack::tell_left_out(what, left_out);
    let image = store.load(images.first().context("an image that was taken in")?)?;
    if !args.no_unpack {
        unpack::rest(store, &image, args.limits, args.progress.progress, what)?;
    }
    Ok(image)
}

/// Asks the mirror, where there is one, and then the registry itself. A mirror that has not got it, or is not there, is no error.
pub fn find<T>(
    args: &RegistryArgs,
    remote: &Remote,
    ask: impl Fn(&Repository) -> Result<T>,
) -> Result<(Repository, T)> {
    let client = registry::client(args)?;
    if let Some(mirror) = registry::mirror(&client, &remote.name, args)? {
        match ask(&mirror) {
            Ok(found) => return Ok((mirror, found)),
            Err(error) if is_unreachable(&error) || exit::kind(&error) == Some(exit::Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    let repository = registry::repository(&client, &remote.name, args, "pull");
    let found = ask(&repository)?;
    Ok((repository, found))
}

/// An image that the store has, all of it; it gets its name.
fn there(store: &Store, manifest: &Descriptor, name: Option<&Name>) -> Result<Option<LoadedImage>> {
    let _commit = interrupt::commit();
    let _lock = store.lock()?;
    let mut index = store.index()?;
    let Some(found) = index.manifests.iter().find(|there| there.digest == manifest.digest).cloned() else {
        return Ok(None);
    };
    // What is damaged is got again.
    let Ok(image) = store.load(&found) else { return Ok(None) };
    if !image.layers().all(|(layer, _)| store.has(layer)) {
        return Ok(None);
    }
    let mut found = found;
    if let Some(name) = name {
        let familiar = name.familiar();
        let has_name = |there: &Descriptor| {
            there.digest == found.digest && there.ref_name().map(store::familiar).as_deref() == Some(&familiar)
        };
        if !index.manifests.iter().any(has_name) {
            store::set_name(&mut index, found.clone(), name);
            store.write_index(&index)?;
        }
        found.set_ref_name(Some(&familiar));
    } else {
        found.set_ref_name(None);
    }
    Ok(Some(store.load(&found)?))
}

/// Asks for the first layers, while it is not known yet what is to be in them: they are on their way when the configuration is here.
fn ask_ahead(store: &Store, repository: &Arc<Repository>, layers: &[Descriptor]) -> HashMap<Digest, Asked> {
    let mut asked = HashMap::new();
    for layer in layers {
        let is_here = layer.size == 0 || store.has(layer) || Beginning::is_there(store, &layer.digest);
        if asked.len() < AT_ONCE && !is_here && !asked.contains_key(&layer.digest) {
            asked.insert(layer.digest.clone(), Asked::ahead(repository, layer));
        }
    }
    asked
}

/// A layer on its way: what came of it before, and the rest.
fn download(
    store: &Store,
    repository: &Arc<Repository>,
    descriptor: &Descriptor,
    asked: Option<Asked>,
) -> Result<Source> {
    let gave_up = Arc::new(AtomicBool::new(false));
    let (digest, size) = (&descriptor.digest, descriptor.size);
    if size == 0 {
        bail!("a layer of no bytes is none");
    }
    match Beginning::open(store, digest, size)? {
        Some(beginning) => {
            let file = beginning.file.try_clone()?;
            let reader = Download::new(repository, descriptor, Some(file), beginning.begun, asked, &gave_up);
            Ok(Source { reader: Box::new(reader), size, begun: Some(Begun { beginning, gave_up }) })
        }
        // Another process is getting the same; whoever is first puts it in its place.
        None => {
            let reader = Download::new(repository, descriptor, None, 0, asked, &gave_up);
            Ok(Source { reader: Box::new(reader), size, begun: None })
        }
    }
}
