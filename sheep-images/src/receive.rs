//! `receive`: images that `send` sends, taken in while they come.
//!
//! Each layer is stored, hashed and unpacked in one pass, and nothing of the stream is put aside first. What is left out of it is taken from
//! the store. Of a stream that is cut, the layers that came whole stay ([`partial`](crate::store::partial)): `have` lists them, so that the
//! next stream need not bring them. Of one that is wrong, nothing stays.

mod documents;
mod wire;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};
use sheep_overlay::exit;

use crate::cli::Receive;
use crate::import::image::{self, blob_name};
use crate::incoming::{self, Origin, Plan, Planned, Taken, Way};
use crate::ls::human_size;
use crate::not_sent;
use crate::oci::{self, Descriptor, Digest};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::Name;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::unpack;
use documents::{Documents, unexpected};
use wire::Wire;

/// Runs the verb.
pub fn run(store: &Store, args: &Receive) -> Result<()> {
    let what = args.name.as_ref().map_or_else(|| "receive".to_owned(), |name| format!("receive {name}"));
    let name = args.name.as_deref().map(Name::parse).transpose()?;
    let mut kept = Kept::default();
    let mut work = || -> Result<Vec<Descriptor>> {
        let mut wire = Wire::new(open(args)?);
        match take_in(store, name.as_ref(), &mut wire, args, &what, &mut kept) {
            Ok(images) => {
                kept.forget_all(store)?;
                Ok(images)
            }
            Err(_) if wire.is_cut() => Err(kept.cut(store)),
            Err(error) => {
                kept.forget_new(store)?;
                Err(error)
            }
        }
    };
    for image in work().with_context(|| what.clone())? {
        let image = store.load(&image).with_context(|| what.clone())?;
        unpack::rest(store, &image, args.limits, args.progress.progress, &what)?;
        store.document(&image)?.print("image", args.print.print.as_deref())?;
    }
    Ok(())
}

fn open(args: &Receive) -> Result<File> {
    match &args.file {
        Some(file) if file != "-" => match File::open(file) {
            Ok(found) => Ok(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(exit::not_found(format!("{}: no such file", file.to_string_lossy())))
            }
            Err(e) => Err(e).with_context(|| file.to_string_lossy().into_owned()),
        },
        _ => {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                return Err(exit::usage("stdin is a terminal; what 'sheep-images send' prints is expected there"));
            }
            Ok(stdin.as_fd().try_clone_to_owned()?.into())
        }
    }
}

fn take_in(
    store: &Store,
    name: Option<&Name>,
    wire: &mut Wire,
    args: &Receive,
    what: &str,
    kept: &mut Kept,
) -> Result<Vec<Descriptor>> {
    let Documents { index, files, layers, not_sent, mut next } = documents::read(wire)?;
    let names = names(&index.manifests, name)?;
    let host = oci::host_platform();
    let plans = index.manifests.iter().map(|image| image::plan(&files, image, &host));
    let images: Vec<(Option<Name>, Plan)> =
        names.into_iter().map(Some).zip(plans.collect::<Result<Vec<_>>>()?).collect();
    let known: HashSet<(&Digest, u64)> = layers.iter().map(|layer| (&layer.digest, layer.size)).collect();
    if let Some(other) = not_sent.layers().iter().find(|blob| !known.contains(&(&blob.digest, blob.size))) {
        bail!("{}: {} is a layer of no image in the stream", not_sent::MEMBER, other.digest);
    }
    let wanted = incoming::distinct(&images)?;
    let numbers = numbers(&wanted)?;
    let progress = Progress::start(args.progress.progress);
    let stage = Stage::new(store)?;
    let way = Way::new(store, &stage, args.limits, &progress)?;
    kept.wanted = wanted.iter().filter_map(|layer| layer.descriptor.clone()).collect();

    // What does not come is held fast first: without it, all that comes is for nothing.
    let (mut linked, mut lacking): (Vec<(usize, &Planned, Origin)>, Vec<&Digest>) = Default::default();
    for layer in layers.iter().filter(|layer| not_sent.names(layer)) {
        let Some(&number) = numbers.get(&layer.digest) else { continue };
        match incoming::link(&way, layer, number)? {
            Some(from) => linked.push((number, wanted[number], from)),
            None => lacking.push(&layer.digest),
        }
    }
    if !lacking.is_empty() {
        return Err(incoming::lacks(&lacking));
    }
    let of_links = parallel::each(&linked, |_, (number, layer, from)| {
        incoming::of_link(&way, layer, *number, *from).with_context(|| layer_name(layer))
    })?;
    let mut taken: Vec<Option<Taken>> = wanted.iter().map(|_| None).collect();
    for ((number, ..), one) in linked.into_iter().zip(of_links) {
        taken[number] = Some(one);
    }

    for layer in layers.iter().filter(|layer| !not_sent.names(layer)) {
        let place = blob_name(&layer.digest);
        let member = next.as_ref().filter(|member| member.name == place);
        match (member, numbers.get(&layer.digest)) {
            (Some(member), Some(&number)) => {
                let one = incoming::one_layer(&way, wanted[number], number, wire.content(), member.size);
                let one = one.with_context(|| layer_name(wanted[number]))?;
                kept.keep(store, &one, &stage, layer)?;
                next = wire.next_member()?;
                taken[number] = Some(one);
            }
            // Of another platform.
            (Some(_), None) => next = wire.next_member()?,
            (None, None) => {}
            (None, Some(_)) => return Err(unexpected(next.as_ref(), &place)),
        }
    }
    if let Some(member) = next {
        bail!("{:?} came, which belongs to no image of the stream", member.name);
    }
    drop(way);
    kept.is_whole = true;
    let taken = taken.into_iter().collect::<Option<Vec<_>>>().context("a layer of an image is not in the stream")?;
    let (images, left_out) = incoming::finish(store, stage, &images, taken)?;
    unpack::tell_left_out(what, left_out);
    Ok(images)
}

fn layer_name(layer: &Planned) -> String {
    let name = layer.descriptor.as_ref().map_or(&layer.diff_id, |descriptor| &descriptor.digest);
    format!("layer {name}")
}

/// What the images of a stream are to be called: as there, or by the name that was given for the only one.
fn names(images: &[Descriptor], given: Option<&Name>) -> Result<Vec<Name>> {
    let digests: BTreeSet<&Digest> = images.iter().map(|image| &image.digest).collect();
    match (digests.len(), given) {
        (0, _) => bail!("there is no image in it"),
        (1, Some(name)) => Ok(images.iter().map(|_| name.clone()).collect()),
        (n, Some(_)) => Err(exit::usage(format!("there are {n} images in the stream; leave out the name"))),
        (_, None) => {
            let mut names: Vec<Name> = Vec::new();
            for image in images {
                let name = image.ref_name().ok_or_else(|| {
                    exit::usage(format!(
                        "image {} has no name in the stream; 'receive NAME' gives it one",
                        image.digest
                    ))
                })?;
                let name = Name::parse(name).context("a name in the stream")?;
                if names.contains(&name) {
                    bail!("two images of the stream are called {}", name.familiar());
                }
                names.push(name);
            }
            Ok(names)
        }
    }
}

/// By its digest, which of the layers each blob is. A blob comes once, so there must be one thing that it is.
fn numbers(wanted: &[&Planned]) -> Result<HashMap<Digest, usize>> {
    let mut numbers = HashMap::new();
    for (number, layer) in wanted.iter().enumerate() {
        let Some(descriptor) = &layer.descriptor else { continue };
        if numbers.insert(descriptor.digest.clone(), number).is_some() {
            bail!("two images of the stream do not agree on what is in layer {}", descriptor.digest);
        }
    }
    Ok(numbers)
}

/// The layers that came whole.
#[derive(Default)]
struct Kept {
    /// Those of the images.
    wanted: Vec<Descriptor>,
    /// Those that this stream brought.
    new: Vec<Descriptor>,
    /// All of the stream came, and nothing was wrong with it.
    is_whole: bool,
}

impl Kept {
    /// Keeps a layer that came and was checked.
    fn keep(&mut self, store: &Store, taken: &Taken, stage: &Stage, layer: &Descriptor) -> Result<()> {
        if let Some(file) = taken.file()
            && store.keep_partial(&stage.file(file), layer)?
        {
            self.new.push(layer.clone());
        }
        Ok(())
    }

    /// The images are there: nothing waits for them any more.
    fn forget_all(&self, store: &Store) -> Result<()> {
        self.wanted.iter().try_for_each(|layer| store.forget_partial(layer))
    }

    /// The stream was wrong: nothing that it brought stays. Where the store is what failed, it need not come again.
    fn forget_new(&self, store: &Store) -> Result<()> {
        if self.is_whole {
            return Ok(());
        }
        self.new.iter().try_for_each(|layer| store.forget_partial(layer))
    }

    /// What is said where the stream was cut.
    fn cut(&self, store: &Store) -> anyhow::Error {
        let there = || self.wanted.iter().filter(|layer| store.partial(layer).is_file());
        let bytes: u64 = there().map(|layer| layer.size).sum();
        let layers = match there().count() {
            0 => return anyhow!("the stream is cut short, before a layer was whole; run the same again"),
            1 => "1 layer".to_owned(),
            n => format!("{n} layers"),
        };
        anyhow!(
            "the stream is cut short; {layers} ({}) came whole and wait for the rest: the same again, with a new list of 'have', moves only that",
            human_size(bytes)
        )
    }
}
