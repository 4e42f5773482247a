//! `exec` and `enter`: a command that runs in an overlay.
//!
//! It finds the overlay in the place of its lower (see [`crate::view`]), so that the working directory and absolute paths are
//! what they were. An ordinary user's overlay is entered by joining the namespaces of its holder; for root a mount
//! namespace is made for the command. Nothing stays in between: the command takes the place of this process.

use std::env;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::doc::{Overlay, UserNamespace};
use crate::mount::Request;
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::{PROGRAM, cli, exit, find, holder, rotate, take_up, view};

/// Runs a command in an overlay; returns only if it could not.
pub fn exec(root: &DataRoot, args: &cli::Exec) -> Result<()> {
    let [program, rest @ ..] = args.command.as_slice() else { return Err(exit::usage("no COMMAND")) };
    let mut command = Command::new(program);
    command.args(rest);
    Err(run(root, &args.overlay, args.chdir.as_deref(), command))
}

/// Runs a shell in an overlay: `$SHELL`, else /bin/sh.
pub fn enter(root: &DataRoot, args: &cli::Enter) -> Result<()> {
    let shell = env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| OsString::from("/bin/sh"));
    Err(run(root, &args.overlay, args.chdir.as_deref(), Command::new(shell)))
}

fn run(root: &DataRoot, overlay: &std::ffi::OsStr, chdir: Option<&Path>, command: Command) -> anyhow::Error {
    let started = go_in(root, overlay, chdir).map(|(id, cwd)| replace_by(command, &id, &cwd));
    let error = started.unwrap_or_else(|error| error);
    match exit::kind(&error) {
        Some(exit::Kind::NotRun(_)) => error,
        _ => exit::not_run(125, format!("{error:#}")),
    }
}

/// Takes this process into the overlay. Gives its id and the working directory.
fn go_in(root: &DataRoot, name: &std::ffi::OsStr, chdir: Option<&Path>) -> Result<(String, PathBuf)> {
    let id = find::by_name(root, name)?;
    let overlay = mounted(root, &id)?;
    // The directory as it is called here; it may be called so inside as well.
    let from = env::current_dir().ok();
    let mut place = view::place(root, &overlay).unwrap_or_else(|| overlay.merged.0.clone());
    let dir = record::dir(root, &id);
    if overlay.user_namespace.is_some() {
        let Some((_, process)) = holder::find(&dir)? else { return Err(anyhow!("{id}: its holder has just ended")) };
        join(&process).with_context(|| format!("{id}: join the namespaces of its holder"))?;
    } else if place != *overlay.merged {
        place = lay_over(root, &overlay, place, &dir)?;
    }
    let inside = from.and_then(|from| keep_directory(&overlay, &place, &from));
    let cwd = inside.unwrap_or_else(|| place.clone());
    enter_directory(&cwd).or_else(|_| enter_directory(&place))?;
    if let Some(wanted) = chdir {
        enter_directory(wanted)?;
    }
    Ok((id, env::current_dir().unwrap_or(cwd)))
}

fn enter_directory(dir: &Path) -> Result<()> {
    env::set_current_dir(dir).with_context(|| format!("chdir {}", dir.display()))
}

/// The overlay, mounted. One whose holder was killed, or that a restart unmounted, is mounted again.
fn mounted(root: &DataRoot, id: &str) -> Result<Overlay> {
    let dir = record::dir(root, id);
    let overlay = rotate::read(root, id)?;
    match record::state(&overlay)? {
        State::Mounted => Ok(overlay),
        State::Covered => Err(take_up::covered(&overlay)),
        State::Lazy => Err(exit::busy(format!("{id} was unmounted lazily, and is to be deleted"))),
        State::Kept => Err(exit::busy(format!("{id} is kept, not mounted; 'sheep-overlay mount --id {id}' mounts it"))),
        State::Stale => {
            let request = Request { read_only: overlay.read_only, volatile: overlay.volatile, ..Request::default() };
            match take_up::run(root, id, &request) {
                Ok((overlay, _)) => {
                    exit::warn(
                        PROGRAM,
                        &format!("{id} was not mounted any more (its holder was killed, or a restart), and is again"),
                    );
                    Ok(overlay)
                }
                // Another command was quicker.
                Err(error) => match record::read(&dir)? {
                    Some(overlay) if record::state(&overlay)? == State::Mounted => Ok(overlay),
                    _ => Err(error),
                },
            }
        }
    }
}

fn join(process: &OwnedFd) -> Result<()> {
    setns(process.as_fd(), CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

/// Lays the merged view over its place, in a mount namespace for the command alone. An ordinary user who gets no namespace
/// finds it in the merged directory instead.
fn lay_over(root: &DataRoot, overlay: &Overlay, place: PathBuf, dir: &Path) -> Result<PathBuf> {
    if overlay.at.is_some() {
        return Ok(place);
    }
    if rustix::process::geteuid().is_root() {
        // Tells umount that the view may be in use where it does not see it.
        let mark = dir.join("entered");
        std::fs::write(&mark, "").with_context(|| mark.display().to_string())?;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace for the command")?;
        view::cut_off()?;
    } else {
        // In the new namespace nobody is known yet.
        let namespace = UserNamespace::only_self();
        if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
            exit::warn(
                PROGRAM,
                &format!(
                    "no user namespace ({error}): the overlay is in {}, and the lower in its place",
                    overlay.merged.display()
                ),
            );
            return Ok(overlay.merged.0.clone());
        }
        namespace.write_own()?;
    }
    view::keep_lower(root, overlay, dir)?;
    view::show(overlay, &place)?;
    Ok(place)
}

/// Where a working directory is in the view; `None` where it is not in it.
fn keep_directory(overlay: &Overlay, place: &Path, from: &Path) -> Option<PathBuf> {
    if let Ok(inside) = from.strip_prefix(&*overlay.merged) {
        return Some(place.join(inside));
    }
    from.starts_with(place).then(|| from.to_path_buf())
}

/// Whether there is a file of this name, on PATH if it has no slash.
fn is_there(program: &Path) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let has_slash = program.parent().is_some_and(|parent| !parent.as_os_str().is_empty());
    program.exists() && has_slash || !has_slash && env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Executes the command in the place of this process; returns the error if that is not possible.
fn replace_by(mut command: Command, id: &str, cwd: &Path) -> anyhow::Error {
    command.env("SHEEP_OVERLAY", id).env("PWD", cwd);
    let program = command.get_program().to_owned();
    let error = command.exec();
    let name = program.to_string_lossy();
    match error.kind() {
        // A directory on PATH that is closed to this user makes "permission denied" of it.
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied if !is_there(Path::new(&program)) => {
            exit::not_run(127, format!("{name}: no such command in the overlay"))
        }
        _ => exit::not_run(126, format!("{name}: {error}")),
    }
}
