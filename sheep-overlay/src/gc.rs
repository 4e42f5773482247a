//! `gc`: what killed commands, lazy umounts and restarts left behind.

use anyhow::{Context, Result};

use crate::doc::{self, Overlay};
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::{PROGRAM, applied, apply, cli, exit, mountpoint, rotate, squash, tmpfs, umount};

/// What there is to be done about an overlay.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Fine,
    /// It is deleted, and why.
    Delete(&'static str),
    /// It stays, and why.
    Stay(String),
}

/// Deletes what is of no use to anybody: half-made and half-deleted overlays, those that were unmounted lazily and are in
/// use no more, and those whose changes were in memory and are gone. Stale ones hold changes: they stay, and are named,
/// unless `--stale` is given. Each deletion is a line on stdout.
pub fn run(root: &DataRoot, args: &cli::Gc) -> Result<()> {
    let limits = Limits::of(args)?;
    if !args.dry_run {
        record::reap(root)?;
    }
    let mut several = exit::Several::of(PROGRAM);
    for id in record::ids(root)? {
        several.add(one(root, &id, args).with_context(|| format!("gc: {id}")));
    }
    several.add(undo_layers(root, args, limits).context("gc: what 'apply --undo' needs"));
    several.result()
}

/// How much 'apply' may keep for '--undo'.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// In seconds.
    age: i64,
    /// In bytes.
    size: u64,
}

impl Limits {
    fn of(args: &cli::Gc) -> Result<Self> {
        let age = seconds(&args.undo_age).ok_or_else(|| {
            exit::usage(format!("--undo-age {}: write a number with s, m, h, d or w: 30d", args.undo_age))
        })?;
        let size = args.undo_size.as_ref().map_or(Ok(u64::MAX), |text| tmpfs::size(text, "--undo-size "))?;
        Ok(Limits { age, size })
    }
}

/// Deletes what 'apply' keeps for '--undo', once it is too old or too much.
fn undo_layers(root: &DataRoot, args: &cli::Gc, limits: Limits) -> Result<()> {
    // Nothing was ever applied: then nothing is made either.
    if applied::all(root)?.is_empty() {
        return Ok(());
    }
    let store = applied::Store::open(root)?;
    let now = jiff::Timestamp::now().as_second();
    let mut sum = 0u64;
    for done in store.all()? {
        let old = now.saturating_sub(done.created()?) > limits.age;
        let kept = match limits.size {
            u64::MAX => 0,
            _ => apply::kept_by(&done)?,
        };
        let why = match (old, sum.saturating_add(kept) > limits.size) {
            (true, _) => format!("older than {}", args.undo_age),
            (false, true) => format!("more than {}", args.undo_size.as_deref().unwrap_or_default()),
            (false, false) => {
                sum += kept;
                continue;
            }
        };
        let deleted = if args.dry_run { "" } else { "deleted " };
        if !args.dry_run {
            store.forget(&done)?;
        }
        doc::write_out(format!("{deleted}{}: undo of {}, {why}\n", done.id, done.journal.overlay).as_bytes())?;
    }
    Ok(())
}

/// A time as it is written on the command line.
fn seconds(text: &str) -> Option<i64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        'w' => 7 * 86400,
        _ => return None,
    };
    text[..text.len() - 1].parse::<i64>().ok().filter(|number| *number >= 0)?.checked_mul(unit)
}

fn one(root: &DataRoot, id: &str, args: &cli::Gc) -> Result<()> {
    let dir = record::dir(root, id);
    let Some(mut overlay) = record::read(&dir)? else { return Ok(()) };
    if !args.dry_run {
        if overlay.pending.is_some() {
            overlay = rotate::read(root, id)?;
        }
        squash::sweep(root, id)?;
    }
    match judge(&overlay, args.stale)? {
        Verdict::Fine => Ok(()),
        Verdict::Stay(why) => {
            exit::warn(PROGRAM, &format!("gc: {id} stays: {why}"));
            Ok(())
        }
        Verdict::Delete(why) => {
            let mut line = String::new();
            if !args.dry_run {
                if let Err(error) = umount::drop_overlay(root, id) {
                    return match record::exists(root, id.as_ref()) {
                        true => Err(error),
                        // Another one was quicker.
                        false => Ok(()),
                    };
                }
                line.push_str("deleted ");
            }
            line.push_str(&format!("{id}: {why}\n"));
            doc::write_out(line.as_bytes())
        }
    }
}

fn judge(overlay: &Overlay, stale_too: bool) -> Result<Verdict> {
    let dir = record::dir_of(overlay);
    Ok(match record::state(overlay)? {
        State::Mounted | State::Kept => Verdict::Fine,
        State::Covered => Verdict::Stay("something else is mounted over it".to_owned()),
        State::Lazy => match umount::still_in_use(overlay, dir)? {
            Some(who) => Verdict::Stay(format!("unmounted lazily, and in use by {who}")),
            None => Verdict::Delete("unmounted lazily, and in use no more"),
        },
        State::Stale => {
            let in_memory = overlay.tmpfs.is_some() && mountpoint::at(&dir.join("tmpfs"))?.is_none();
            match umount::still_in_use(overlay, dir)? {
                Some(who) => {
                    Verdict::Stay(format!("its holder was killed, and it is in use by {who}; 'exec' mends it"))
                }
                None if in_memory => Verdict::Delete("its changes were in memory, and are gone"),
                None if stale_too => Verdict::Delete("stale"),
                None => Verdict::Stay(format!(
                    "not mounted any more, with its changes; 'mount --id {0}' takes it up, 'umount {0}' drops it",
                    overlay.id
                )),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages() {
        let table = [
            ("30d", Some(2_592_000)),
            ("0s", Some(0)),
            ("1w", Some(604_800)),
            ("", None),
            ("d", None),
            ("-1d", None),
            ("3ß", None),
        ];
        for (text, want) in table {
            assert_eq!(super::seconds(text), want, "{text}");
        }
    }
}
