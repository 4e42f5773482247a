//! The program's arguments, environment and working directory, by docker's rules.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;

use crate::exit;
use crate::oci::Name;

use super::{ImageDefaults, Isolate, Seen, SpecFlags};

/// Where programs are looked for in a container whose image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Entrypoint and command: a command on the command line replaces the image's Cmd, never its Entrypoint.
pub fn args(command: &[OsString], image: &ImageDefaults, no_entrypoint: bool) -> Result<Vec<Name>> {
    let entrypoint = image.entrypoint.as_deref().filter(|_| !no_entrypoint).unwrap_or_default();
    let mut args = entrypoint.to_vec();
    if command.is_empty() {
        args.extend_from_slice(image.cmd.as_deref().unwrap_or_default());
    } else {
        args.extend(command.iter().cloned().map(Name::from));
    }
    match args.first() {
        None => Err(exit::usage("no command: the image names none; give one")),
        Some(program) if program.is_empty() => Err(exit::usage("the command's name is empty")),
        Some(_) => Ok(args),
    }
}

/// The image's environment, then `-e`; PATH, HOME, and with a terminal TERM where nobody has set them.
pub fn env(flags: &SpecFlags, image: &ImageDefaults, seen: &Seen) -> Result<Vec<Name>> {
    let mut env: Vec<Name> = Vec::new();
    let isolate = &flags.isolate;
    if isolate.keep_env {
        for (name, value) in &seen.env {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            env.push(Name(variable));
        }
    }
    for variable in image.env.as_deref().unwrap_or_default().iter().filter(|_| !isolate.clearenv) {
        set(&mut env, variable.clone());
    }
    env.retain(|variable| !is_unset(isolate, name_of(variable)));
    for asked in &flags.env {
        let name = name_of(asked);
        if name.is_empty() {
            return Err(exit::usage(format!("--env {}: no name before the '='", asked.display())));
        }
        if name.len() < asked.len() {
            set(&mut env, Name(asked.clone()));
            continue;
        }
        // Our own value; unset here means unset there, whatever the image says.
        match seen.env.iter().find(|(own, _)| own == asked) {
            Some((_, value)) => {
                let mut variable = asked.clone();
                variable.push("=");
                variable.push(value);
                set(&mut env, Name(variable));
            }
            None => env.retain(|variable| name_of(variable) != name),
        }
    }
    let mut defaults = vec![Name::from(PATH)];
    if flags.tty {
        defaults.push("TERM=xterm".into());
    }
    let mut home = OsString::from("HOME=");
    home.push(seen.identity.home.as_deref().unwrap_or(OsStr::new("/")));
    defaults.push(Name(home));
    for default in defaults {
        if isolate.clearenv || is_unset(isolate, name_of(&default)) {
            continue;
        }
        if !env.iter().any(|variable| name_of(variable) == name_of(&default)) {
            env.push(default);
        }
    }
    Ok(env)
}

fn is_unset(isolate: &Isolate, name: &[u8]) -> bool {
    isolate.unsetenv.iter().any(|unset| unset.as_bytes() == name)
}

/// The bytes before the first `=`.
fn name_of(variable: &OsStr) -> &[u8] {
    variable.as_bytes().split(|b| *b == b'=').next().unwrap_or_default()
}

/// Replaces the variable of that name in its place, or adds it.
fn set(env: &mut Vec<Name>, variable: Name) {
    match env.iter_mut().find(|known| name_of(known) == name_of(&variable)) {
        Some(known) => *known = variable,
        None => env.push(variable),
    }
}

/// `--cwd`, else the image's WorkingDir, else the root directory.
pub fn cwd(asked: Option<&OsStr>, image: &ImageDefaults) -> Result<Name> {
    let from_image = image.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let cwd = Name::from(asked.or(from_image).unwrap_or(OsStr::new("/")));
    if !cwd.as_path().is_absolute() {
        return Err(exit::usage(format!("working directory {}: not an absolute path", cwd.display())));
    }
    Ok(cwd)
}
