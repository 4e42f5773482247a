//! `sheep-run run`: unpack, mount, spec, then the container itself, in the foreground or under a monitor.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use sheep_overlay::exit;
use sheep_overlay::state;

use crate::PROGRAM;
use crate::cli::Run;
use crate::cmd::create::{claim, print};
use crate::foreground;
use crate::locks;
use crate::log::Log;
use crate::monitor;
use crate::record::{self, Claim, Home, Status};
use crate::repair::{self, End};
use crate::signals::Signals;
use crate::steps::{self, Plan};
use crate::tool::NS;

/// Runs a command in a new container. Gives the command's exit code; with `-d`, 0 when it runs.
pub fn run(home: &Home, flags: &Run) -> Result<u8> {
    let plan = plan(flags)?;
    if flags.detach { detached(home, flags, &plan) } else { foreground(home, &plan) }
}

/// The plan for a `run`: what goes straight to the caller's terminal or leaves with the container has no log.
pub fn plan(flags: &Run) -> Result<Plan> {
    let mut plan = steps::plan(&flags.making)?;
    plan.wanted.log = flags.detach || !(flags.making.rm || flags.making.tty);
    Ok(plan)
}

fn detached(home: &Home, flags: &Run, plan: &Plan) -> Result<u8> {
    let signals = Signals::hold()?;
    let mut claim = claim(home, plan)?;
    let volatile = plan.wanted.remove;
    let started = steps::prepare(home, plan, &mut claim, volatile, &signals)
        .and_then(|()| monitor::launch(home, &claim.record, &claim.lock, &claim.supervisor));
    if let Err(error) = started {
        return Err(undo(home, &claim.record.dir, error));
    }
    // From here on the container has its monitor, which alone holds the locks.
    let Claim { record, lock, supervisor } = claim;
    drop((lock, supervisor));
    if let Err(interrupted) = signals.check() {
        // A signal that came while it started must not leave it behind.
        super::rm::remove(home, &record.dir, true)?;
        return Err(interrupted);
    }
    print(home, &record.dir, flags.json)?;
    Ok(0)
}

/// Undoes what was done of a container that could not be made, and gives the error back.
pub fn undo(home: &Home, dir: &std::path::Path, error: anyhow::Error) -> anyhow::Error {
    if let Err(left) = repair::discard(home, dir) {
        exit::print_line(PROGRAM, &left.context("undo"));
    }
    error
}

fn foreground(home: &Home, plan: &Plan) -> Result<u8> {
    let signals = Signals::hold_for_foreground()?;
    let mut claim = claim(home, plan)?;
    let log = prepare(home, plan, &mut claim, &signals).map_err(|error| undo(home, &claim.record.dir, error))?;
    let Claim { record, lock, supervisor } = claim;
    // Others may stop it now, or run something in it.
    drop(lock);
    let (dir, id, remove) = (&record.dir, record.container.id.as_str(), record.container.remove);
    let terminal = rustix::termios::tcgetattr(std::io::stdin()).ok().filter(|_| record.container.terminal);
    let command = steps::run(home, dir, id, !remove).command();
    let ended = foreground::run(NS, command, record.container.interactive, log, &signals);
    let killed = ended.as_ref().is_ok_and(|status| status.code().is_none());
    if let Some(terminal) = terminal.filter(|_| killed) {
        // A sheep-ns that was killed could not give the terminal back as it was.
        let _ =
            rustix::termios::tcsetattr(std::io::stdin().as_fd(), rustix::termios::OptionalActions::Drain, &terminal);
    }
    let code = ended.as_ref().ok().and_then(|status| status.code());
    let was_started = record::read_pid(dir).is_some();
    let put_away = locks::lock(dir).and_then(|lock| {
        if !was_started || ended.is_err() {
            return repair::discard(home, dir);
        }
        repair::finish(home, dir, &lock, End { code, signal: None, oom_killed: !remove && repair::oom_killed(id) })
    });
    if let Err(error) = put_away {
        // What the command's end was stays the news; the next command tries again.
        exit::print_line(PROGRAM, &error.context(format!("run {id}: put away")));
    }
    drop(supervisor);
    match code {
        // sheep-ns has said itself what went wrong where it failed.
        Some(code) => Ok(u8::try_from(code).unwrap_or(125)),
        None => match ended {
            Ok(status) => Err(crate::tool::failure(NS, status, None).into()),
            Err(error) => Err(error),
        },
    }
}

fn prepare(home: &Home, plan: &Plan, claim: &mut Claim, signals: &Signals) -> Result<Option<Log>> {
    steps::prepare(home, plan, claim, plan.wanted.remove, signals)?;
    let log = claim.record.container.log.as_ref().map(|path| Log::open(path)).transpose()?;
    claim.record.container.status = Status::Running;
    claim.record.container.started = Some(state::now());
    claim.record.save().context("record")?;
    signals.check()?;
    Ok(log)
}
