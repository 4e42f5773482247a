//! Which backend makes a new overlay: they are tried in order, and what was refused on the way is told.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use rustix::io::Errno;

use crate::assemble;
use crate::backend::btrfs;
use crate::backend::copy::{self, Summary};
use crate::backend::fuse;
use crate::backend::kernel::{self, Refused};
use crate::child::{self, After, Place};
use crate::cli::BackendChoice;
use crate::doc::{Backend, Overlay, UserNamespace};
use crate::lowers::{self, Lower};
use crate::mount::Request;
use crate::parts::Wanted;
use crate::state::DataRoot;
use crate::{PROGRAM, exit, holder, mountpoint, record, remove, unmapped, upper, view};

/// A way to make a merged view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// OverlayFS: by this process as root, else in a user namespace that a holder keeps.
    Kernel,
    /// fuse-overlayfs.
    Fuse,
    /// A btrfs snapshot.
    Snapshot,
    Copy,
}

/// Makes the merged view of a new overlay whose directory is there, and notes how. On failure nothing is mounted.
pub fn fill(root: &DataRoot, overlay: &mut Overlay, lowers: &[Lower], request: &Request) -> Result<()> {
    let choice = request.backend.unwrap_or(BackendChoice::Auto);
    let mut refusals: Vec<String> = Vec::new();
    let mut ways = ways(overlay, choice);
    if request.visible {
        ways = if rustix::process::geteuid().is_root() { vec![Way::Kernel, Way::Fuse] } else { vec![Way::Fuse] };
    }
    if request.of_image && ways.len() > 1 && !rustix::process::geteuid().is_root() {
        ways.remove(0);
        refusals.push("the next program of a pipe does not see an ordinary user's mount".to_owned());
    }
    for way in ways {
        let before = overlay.clone();
        let done = match way {
            Way::Kernel if rustix::process::geteuid().is_root() => by_kernel(root, overlay, lowers, request),
            Way::Kernel => by_holder(root, overlay, lowers, request),
            Way::Fuse => by_fuse(overlay, lowers, request),
            Way::Snapshot => by_snapshot(overlay, lowers, choice, &refusals),
            Way::Copy => return by_copy(overlay, lowers, choice, &refusals),
        };
        let Err(error) = done else { return Ok(()) };
        *overlay = before;
        match error.downcast_ref::<Refused>() {
            Some(refused) if refused.a_copy_may_do() => refusals.push(format!("{refused}")),
            Some(refused) => return Err(fault(refused, error.to_string(), lowers)),
            None => return Err(error),
        }
        start_anew(record::dir_of(overlay))?;
    }
    Err(anyhow!(refusals.join("; ")))
}

/// The ways to be tried.
fn ways(overlay: &Overlay, choice: BackendChoice) -> Vec<Way> {
    // A copy shows all that there is, as it is.
    let overlayfs_only =
        overlay.tmpfs.is_some() || overlay.size.is_some() || overlay.idmap.is_some() || !overlay.hide.is_empty();
    match choice {
        BackendChoice::Auto if overlayfs_only || overlay.branch.is_some() => vec![Way::Kernel],
        BackendChoice::Auto => vec![Way::Kernel, Way::Snapshot, Way::Copy],
        BackendChoice::Fuse => vec![Way::Fuse],
        BackendChoice::Btrfs => vec![Way::Snapshot],
        BackendChoice::Kernel => vec![Way::Kernel],
        _ => vec![Way::Copy],
    }
}

fn wanted<'a>(overlays: &'a Path, dir: &'a Path, request: &Request, user_namespace: bool) -> Wanted<'a> {
    Wanted { dir, overlays, recursive: request.recursive, user_namespace }
}

fn by_kernel(root: &DataRoot, overlay: &mut Overlay, lowers: &[Lower], request: &Request) -> Result<()> {
    let (overlays, dir) = (root.overlays(), record::dir_of(overlay).to_path_buf());
    assemble::make(overlay, lowers, wanted(&overlays, &dir, request, kernel::in_user_namespace()))?;
    overlay.backend_reason = "OverlayFS is to be had".to_owned();
    Ok(())
}

/// OverlayFS in a user namespace, which a child makes and keeps.
fn by_holder(root: &DataRoot, overlay: &mut Overlay, lowers: &[Lower], request: &Request) -> Result<()> {
    let (overlays, dir) = (root.overlays(), record::dir_of(overlay).to_path_buf());
    let mut namespace = UserNamespace::of_this_user();
    loop {
        not_seen_here(overlay, &dir)?;
        unmapped::explain(lowers, &namespace);
        let made = child::run(Place::New(&namespace, true), After::Hold(&holder::file(&dir)), || {
            let lowers = lowers::open_again(lowers)?;
            let mut overlay = overlay.clone();
            overlay.user_namespace = Some(namespace.clone());
            view::keep_lower(root, &overlay, &dir)?;
            assemble::make(&mut overlay, &lowers, wanted(&overlays, &dir, request, true))?;
            if let Some(place) = view::place(root, &overlay) {
                view::show(&overlay, &place)?;
            }
            overlay.backend_reason = "OverlayFS in a user namespace is to be had".to_owned();
            Ok(overlay)
        });
        match made {
            Ok((made, pid)) => {
                *overlay = made;
                overlay.holder = Some(holder::describe(pid.as_raw())?);
                return Ok(());
            }
            Err(error) if !namespace.is_single() && child::is_unmapped(&error) => {
                exit::warn(PROGRAM, &format!("mount: only your own id is mapped ({error:#})"));
                namespace = UserNamespace::only_self();
                start_anew(&dir)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What other processes see of a holder's overlay: a directory that nobody writes into by mistake.
fn not_seen_here(overlay: &Overlay, dir: &Path) -> Result<()> {
    let merged = dir.join("merged");
    let text = format!("This overlay is mounted in a namespace of its own.\nsheep-overlay enter {}\n", overlay.id);
    std::fs::write(merged.join("NOT-SEEN-HERE"), text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o500);
    std::fs::set_permissions(&merged, mode)?;
    Ok(())
}

/// Makes the directories of an overlay empty again after a way that failed.
fn start_anew(dir: &Path) -> Result<()> {
    for name in ["merged", "upper", "work", "cover", "mounts", "tmpfs", "lower", "holder"] {
        remove::tree(dir, &CString::new(name)?)?;
    }
    for name in ["merged", "upper", "work"] {
        rustix::fs::mkdir(dir.join(name), rustix::fs::Mode::RWXU)?;
    }
    Ok(())
}

/// An error of the kernel backend, with its exit code.
pub fn fault(refused: &Refused, message: String, lowers: &[Lower]) -> anyhow::Error {
    match lowers::nested(lowers) {
        Some((inner, outer)) if refused.is_loop() => {
            exit::usage(format!("lower {} lies inside lower {}", inner.display(), outer.display()))
        }
        _ => anyhow!(message),
    }
}

fn by_fuse(overlay: &mut Overlay, lowers: &[Lower], request: &Request) -> Result<()> {
    if let Some(top) = lowers.last() {
        upper::take_attributes(top, &overlay.upper)?;
    }
    overlay.backend = Backend::Fuse;
    mount_fuse(overlay)?;
    overlay.backend_reason = match request.visible {
        true => "asked for with --visible".to_owned(),
        false => "asked for with --backend fuse".to_owned(),
    };
    Ok(())
}

/// Mounts by fuse-overlayfs what is recorded, and notes the mount's id. It sees what is mounted below a lower as it is.
pub fn mount_fuse(overlay: &mut Overlay) -> Result<()> {
    let lowers: Vec<PathBuf> = overlay.base().iter().map(|lower| lower.0.clone()).collect();
    let links = record::dir_of(overlay).join("links");
    let mounted = fuse::mount(
        &fuse::Stack {
            lowers: &lowers,
            upper: &overlay.upper,
            work: &overlay.work,
            merged: &overlay.merged,
            read_only: overlay.read_only,
            volatile: overlay.volatile,
        },
        &links,
    )?;
    overlay.mount_id = mounted.and_then(|mount| mount.id);
    Ok(())
}

fn by_snapshot(overlay: &mut Overlay, lowers: &[Lower], choice: BackendChoice, refusals: &[String]) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let refused = |reason: &str| Err(Refused::new(Errno::INVAL, "btrfs snapshot", reason).into());
    let [only] = lowers else { return refused("it shows one lower only") };
    if (overlay.read_only || overlay.at.is_some()) && !root {
        return refused("--read-only and --at need root with it");
    }
    btrfs::snapshot(&only.path, record::dir_of(overlay), c"merged")?;
    overlay.backend = Backend::Btrfs;
    overlay.backend_reason = match choice {
        BackendChoice::Auto => format!("OverlayFS cannot be had: {}", refusals.join("; ")),
        _ => "asked for with --backend btrfs".to_owned(),
    };
    overlay.volatile = false;
    bind_copy(overlay)
}

fn by_copy(overlay: &mut Overlay, lowers: &[Lower], choice: BackendChoice, refusals: &[String]) -> Result<()> {
    let refused = match choice {
        BackendChoice::Auto => format!("OverlayFS cannot be had: {}", refusals.join("; ")),
        BackendChoice::Reflink => "asked for with --backend reflink".to_owned(),
        _ => "asked for with --backend copy".to_owned(),
    };
    let root = rustix::process::geteuid().is_root();
    if overlay.read_only && !root {
        return Err(anyhow!("{refused}; and --read-only needs root with a copy"));
    }
    if overlay.at.is_some() && !root {
        return Err(anyhow!("{refused}; and --at needs root with a copy"));
    }
    let made = record::dir_of(overlay).join("merged");
    let paths: Vec<PathBuf> = lowers.iter().map(|lower| lower.path.clone()).collect();
    let summary = copy::copy_stack(&paths, &made, choice == BackendChoice::Reflink)?;
    overlay.backend = Backend::Copy;
    overlay.backend_reason = refused;
    overlay.volatile = false;
    bind_copy(overlay)?;
    if let Some(line) = copy_line(choice, &overlay.backend_reason, &summary) {
        exit::warn(PROGRAM, &format!("mount: {line}"));
    }
    Ok(())
}

/// Puts a copy into its place, where that is not its own directory or where it is not to be written.
pub fn bind_copy(overlay: &mut Overlay) -> Result<()> {
    let made = record::dir_of(overlay).join("merged");
    if overlay.at.is_some() || overlay.read_only {
        mountpoint::bind(&made, &overlay.merged, overlay.read_only)?;
        overlay.mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
    }
    Ok(())
}

/// The line for stderr: always where the user did not ask for a copy, else only where it is not a faithful one.
fn copy_line(choice: BackendChoice, reason: &str, summary: &Summary) -> Option<String> {
    let mut losses = Vec::new();
    if summary.owners_lost > 0 {
        losses.push(format!("{} owners not kept", summary.owners_lost));
    }
    if summary.xattrs_lost > 0 {
        losses.push(format!("{} extended attributes not kept", summary.xattrs_lost));
    }
    if summary.devices_left_out > 0 {
        losses.push(format!("{} devices left out", summary.devices_left_out));
    }
    let losses = losses.join(", ");
    match (choice, losses.is_empty()) {
        (BackendChoice::Copy, true) => None,
        (BackendChoice::Copy, false) => Some(format!("the copy is not complete without root: {losses}")),
        (_, true) => Some(format!("the lowers were copied ({reason})")),
        (_, false) => Some(format!("the lowers were copied ({reason}); without root: {losses}")),
    }
}
