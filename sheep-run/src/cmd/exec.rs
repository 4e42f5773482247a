//! `sheep-run exec`: one more command in a running container.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow};
use sheep_overlay::exit;

use crate::cli::Exec;
use crate::record::Home;
use crate::repair;
use crate::steps::named_variables;
use crate::tool::{NS, Step};

/// Becomes `sheep-ns exec`, whose exit code is the command's. Returns only on an error.
pub fn exec(home: &Home, flags: &Exec) -> Result<u8> {
    let name = flags.name_and_command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    become_ns(home, flags, &name).with_context(|| format!("exec {name}"))
}

fn become_ns(home: &Home, flags: &Exec, name: &str) -> Result<u8> {
    let record = repair::look_up(home, name)?;
    if !record.container.is_running() {
        return Err(exit::busy("it is not running; 'sheep-run start' starts it"));
    }
    let mut step = Step::new(NS, ["--root".as_ref(), home.states.as_os_str(), "exec".as_ref()]);
    step.args.extend(flags.tty.then(|| "--tty".into()));
    step.args.extend(flags.detach.then(|| "--detach".into()));
    for variable in named_variables(&flags.env)? {
        step.args.extend(["--env".into(), variable]);
    }
    if let Some(user) = &flags.user {
        step.args.extend(["--user".into(), user.into()]);
    }
    if let Some(dir) = &flags.workdir {
        step.args.extend(["--cwd".into(), dir.clone()]);
    }
    step.args.push(OsString::from(&record.container.id));
    step.args.extend(flags.name_and_command.iter().skip(1).cloned());
    let mut command = step.command();
    if !flags.interactive {
        command.stdin(Stdio::null());
    }
    // Signals, the terminal and the exit code are then its own: there is nothing to pass on.
    Err(anyhow!(command.exec()).context(format!("start {NS}")))
}
