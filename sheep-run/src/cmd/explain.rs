//! `sheep-run explain run …`: the `run` as a shell script of the commands it is made of.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use sheep_overlay::doc::write_out;

use crate::cli::{Pull, Run};
use crate::cmd::run::plan;
use crate::record::Home;
use crate::steps::{self, Plan};
use crate::tool::{self, IMAGES, NS, OVERLAY, Step};

/// Stands for the container's id while the commands are made; no word of a user is this by chance.
const ID: &str = "\u{1}id\u{1}";

/// Prints the script; nothing else happens.
pub fn explain(home: &Home, flags: &Run) -> Result<u8> {
    let plan = plan(flags)?;
    write_out(&script(home, flags, &plan, &search_path()))?;
    Ok(0)
}

fn script(home: &Home, flags: &Run, plan: &Plan, path: &[PathBuf]) -> Vec<u8> {
    let mut script = Script { text: Vec::new(), bundle: home.bundle(ID) };
    let remove = flags.making.rm;
    script.line(HEADER);
    script.line(match (flags.detach, remove) {
        (true, _) => DETACHED,
        (false, true) => REMOVED,
        (false, false) => KEPT,
    });
    script.line("set -eu");
    if !path.is_empty() {
        let dirs: Vec<Vec<u8>> = path.iter().map(|dir| quote(dir.as_os_str())).collect();
        script.push(&[b"PATH=", dirs.join(&b':').as_slice(), b":$PATH\nexport PATH\n"].concat());
    }
    script.line("\n# An id and a name of its own, and a directory for the bundle.");
    script.push(b"id=$(");
    script.step(&claim(home, plan));
    script.line(") || exit 125");
    script.push(b"dir=");
    script.push(&quote(home.data.containers().as_os_str()));
    script.line("/$id");
    script.line("\n# Whatever fails or interrupts it from here on, the steps before are undone, the last first.");
    script.line("undo() {\n    code=$?\n    trap - EXIT\n    trap '' INT TERM HUP");
    for step in [steps::delete(home, ID), steps::umount(home, ID, false), sheep_run(home, ["rm", "-f", ID])] {
        script.push(b"    ");
        script.step(&step);
        script.line(" >/dev/null 2>&1 || :");
    }
    script
        .line("    exit \"$code\"\n}\ntrap undo EXIT\ntrap 'exit 130' INT\ntrap 'exit 143' TERM\ntrap 'exit 129' HUP");
    script.line("\n# The image's layers, a copy-on-write directory on them, and the OCI configuration.");
    script.image(home, plan);
    script.push(b"doc=$(printf '%s\\n' \"$doc\" | ");
    // As in run and create: only what goes anyway, and right now, is not worth a sync.
    script.step(&steps::mount(home, plan, ID, remove));
    script.line(") || exit 125");
    script.push(b"printf '%s\\n' \"$doc\" | ");
    script.step(&steps::spec(plan, ID));
    script.line(" >\"$dir/config.json\" || exit 125");
    script.push(b"printf '%s\\n' \"$doc\" | ");
    script.step(&sheep_run(home, ["record", "--from", "-", ID]));
    script.line(" || exit 125\n");
    if flags.detach {
        script.detached(home, flags.json)
    } else {
        script.foreground(home, flags)
    }
    script.text
}

const HEADER: &str = "#!/bin/sh
# What this 'sheep-run run' does, as the commands it is made of. Values of -e NAME and --env-file are those of now.";

const DETACHED: &str = "# Run by sh it does the same, in one more step: 'run' hands the mounted directory to the monitor, a script cannot; so it
# makes the container as 'create' does and starts it. The container is in 'sheep-run ps', with its log and exit code.";

const REMOVED: &str = "# Run by sh it does the same: the container's output, its exit code, and nothing left. While it runs, 'sheep-run ps -a'
# calls it Created, and only 'sheep-ns list' knows that it runs: 'sheep-run stop' and 'exec' need the real 'run'.";

const KEPT: &str = "# Run by sh it does the same: the container's output, its exit code, and a stopped container with its log and changes
# that 'sheep-run start' starts again. While it runs, 'sheep-run ps -a' calls it Created, and only 'sheep-ns list' knows
# that it runs: 'sheep-run stop' and 'exec' need the real 'run'.";

struct Script {
    text: Vec<u8>,
    bundle: PathBuf,
}

impl Script {
    /// Unpacks the image, or gets it from its registry first.
    fn image(&mut self, home: &Home, plan: &Plan) {
        let (unpack, pull) = (steps::unpack(home, plan), steps::pull(home, plan));
        let (condition, first, second) = match plan.pull {
            Pull::Never => (None, unpack, None),
            Pull::Always => (None, pull, None),
            Pull::Missing => (Some(steps::look(home, plan)), unpack, Some(pull)),
        };
        if let Some(look) = condition {
            self.push(b"if ");
            self.step(&look);
            self.line(" >/dev/null 2>&1 || [ $? != 3 ]; then");
        }
        for (step, is_second) in [Some(first), second].into_iter().flatten().zip([false, true]) {
            if is_second {
                self.line("else");
            }
            self.push(b"doc=$(");
            self.step(&step);
            self.line(") || exit 125");
        }
        if plan.pull == Pull::Missing {
            self.line("fi");
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
    }

    fn line(&mut self, text: &str) {
        self.push(text.as_bytes());
        self.push(b"\n");
    }

    /// A command line, without a newline.
    fn step(&mut self, step: &Step) {
        self.push(step.tool.as_bytes());
        for arg in &step.args {
            self.push(b" ");
            let word = self.word(arg);
            self.push(&word);
        }
    }

    fn word(&self, arg: &OsStr) -> Vec<u8> {
        if arg == ID {
            return b"\"$id\"".to_vec();
        }
        match Path::new(arg).strip_prefix(&self.bundle) {
            Ok(rest) if rest.as_os_str().is_empty() => b"\"$dir\"".to_vec(),
            Ok(rest) => [b"\"$dir\"/", quote(rest.as_os_str()).as_slice()].concat(),
            Err(_) => quote(arg),
        }
    }

    fn detached(&mut self, home: &Home, json: bool) {
        self.line("# Under a monitor, which keeps the log and the exit code. Prints the id.");
        self.step(&steps::umount(home, ID, true));
        self.line(" >/dev/null || exit 125");
        let mut start = sheep_run(home, ["start"]);
        start.args.extend(json.then(|| "--json".into()));
        start.args.push(ID.into());
        self.step(&start);
        self.line(" || exit 125\ntrap - EXIT");
    }

    fn foreground(&mut self, home: &Home, flags: &Run) {
        let (remove, making) = (flags.making.rm, &flags.making);
        let has_log = !(remove || making.tty);
        self.line("# The container, in the foreground.\ncode=0");
        if has_log {
            self.step(&sheep_run(home, ["tee", ID]));
            self.push(b" ");
        }
        let bundle = self.bundle.clone();
        self.step(&steps::run(home, &bundle, ID, !remove));
        self.push(if making.interactive { b"" } else { b" </dev/null" });
        self.line(" || code=$?");
        self.line("# Where it could not even be made, everything is undone.\n[ -e \"$dir/pid\" ] || exit \"$code\"");
        if remove {
            self.line("\n# Nothing stays.");
            self.step(&steps::umount(home, ID, false));
            self.push(b"\n");
            self.step(&sheep_run(home, ["rm", ID]));
            self.push(b"\n");
        } else {
            self.line("\n# The changes and the log stay.");
            self.step(&steps::delete(home, ID));
            self.push(b"\n");
            self.step(&steps::umount(home, ID, true));
            self.line(" >/dev/null");
            self.step(&sheep_run(home, ["record", "--ended"]));
            self.push(b" \"$code\" \"$id\"\n");
        }
        self.line("trap - EXIT\nexit \"$code\"");
    }
}

fn sheep_run<const N: usize>(home: &Home, words: [&str; N]) -> Step {
    let mut step = Step::new(crate::PROGRAM, ["--root".as_ref(), home.data.path().as_os_str()]);
    step.args.extend(words.map(OsString::from));
    step
}

fn claim(home: &Home, plan: &Plan) -> Step {
    let mut step = sheep_run(home, ["record"]);
    if let Some(name) = &plan.wanted.name {
        step.args.extend(["--name".into(), name.into()]);
    }
    for (key, value) in &plan.wanted.labels {
        step.args.extend(["--label".into(), format!("{key}={value}").into()]);
    }
    step.args.extend(plan.wanted.remove.then(|| "--rm".into()));
    step.args.extend(plan.wanted.interactive.then(|| "--interactive".into()));
    step.args.extend((!plan.wanted.log).then(|| "--no-log".into()));
    step
}

/// The directories where the four programs are, without those that PATH finds anyway.
fn search_path() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let siblings = [IMAGES, OVERLAY, NS].map(|name| tool::find(name).parent().map(Path::to_path_buf));
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in siblings.into_iter().chain([own]).flatten() {
        if dir.is_absolute() && !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// A word as a POSIX shell reads it back: plain where it can be, else in single quotes.
fn quote(word: &OsStr) -> Vec<u8> {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"_./:=@%+,-".contains(b);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return bytes.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in bytes {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        for word in [&b"plain"[..], b"", b"it's", b"a b\n$HOME `x` \\ \"", b"\xff*", b"-e", b"A=b c", b"~", b"#"] {
            let script = [b"printf %s ", quote(OsStr::from_bytes(word)).as_slice()].concat();
            let out = Command::new("/bin/sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            assert_eq!(out.stdout, word);
        }
    }
}
