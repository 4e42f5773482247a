//! `login` and `logout`: a name and a password for a registry, tried there, and written where podman and others find them.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use sheep_overlay::exit;
use ureq::http::StatusCode;

use crate::cli::{Login, Logout};
use crate::reference::{DEFAULT_DOMAIN, Name};
use crate::registry::auth::Doorman;
use crate::registry::credentials::{self, Credentials};
use crate::registry::http::{Ask, Client};
use crate::registry::{self, HUB_HOST, base};

/// Runs `login`.
pub fn run(args: &Login) -> Result<()> {
    let registry = registry_name(&args.server)?;
    let work = || -> Result<()> {
        let user = match &args.user {
            Some(user) => user.clone(),
            None if args.password_stdin => return Err(exit::usage("--password-stdin needs --user")),
            None => ask("User name: ", true)?,
        };
        let password = if args.password_stdin { from_stdin()? } else { ask("Password: ", false)? };
        if user.is_empty() || user.contains(':') || password.is_empty() {
            return Err(exit::usage("a user name has at least one letter and no ':', and a password is not empty"));
        }
        let client = registry::client(&args.registry)?;
        check(&client, &registry, args, &user, &password)?;
        let file = credentials::own_file()?;
        credentials::write(&file, &registry, Some((&user, &password)))?;
        exit::warn("sheep-images", &format!("login {registry}: {user} is let in; noted in {}", file.display()));
        Ok(())
    };
    work().with_context(|| format!("login {registry}"))
}

/// Runs `logout`.
pub fn out(args: &Logout) -> Result<()> {
    let registry = registry_name(&args.server)?;
    let work = || -> Result<()> {
        let file = credentials::own_file()?;
        if !credentials::write(&file, &registry, None)? {
            return Err(exit::not_found(format!("nobody is noted for it in {}", file.display())));
        }
        Ok(())
    };
    work().with_context(|| format!("logout {registry}"))
}

/// A registry as the files name it.
fn registry_name(text: &str) -> Result<String> {
    let host = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let host = if host == HUB_HOST { DEFAULT_DOMAIN } else { host };
    let name = Name::parse(&format!("{host}/x")).ok().filter(|name| name.path().trim_start_matches("library/") == "x");
    name.map(|name| name.domain().to_owned())
        .ok_or_else(|| exit::usage(format!("{text}: a registry is HOST or HOST:PORT")))
}

/// Asks the registry whether it lets them in.
fn check(client: &Arc<Client>, registry: &str, args: &Login, user: &str, password: &str) -> Result<()> {
    let base = base(registry, &args.registry);
    let doorman = Doorman::with(registry, Credentials::Password(user.to_owned(), password.to_owned()));
    let ask = Ask::get(format!("{base}/v2/"), "login".to_owned());
    let answer = doorman.let_in(client, &base, &ask)?;
    match answer.status {
        StatusCode::OK if doorman.authorization().is_none() => {
            exit::warn(
                "sheep-images",
                &format!("login {registry}: it lets everybody in, so the password was not tried"),
            );
            Ok(())
        }
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!("the user name or the password is wrong"),
        _ => Err(answer.failed()),
    }
}

fn from_stdin() -> Result<String> {
    if io::stdin().is_terminal() {
        return Err(exit::usage("stdin is a terminal; without --password-stdin the password is asked for"));
    }
    let mut text = String::new();
    io::stdin().take(64 << 10).read_to_string(&mut text).context("stdin")?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The terminal as it was, to be so again.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    /// Keys are read one by one, and Ctrl-C as one of them: nothing can end us before the terminal is as it was.
    fn new(terminal: &'a File) -> Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut modes = before.clone();
        modes.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(terminal, OptionalActions::Flush, &modes)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Asks for a line on the terminal, whatever stdin and stdout are.
fn ask(what: &str, shown: bool) -> Result<String> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|_| {
        exit::usage("there is no terminal to ask on; give --user, and the password on stdin with --password-stdin")
    })?;
    terminal.write_all(what.as_bytes())?;
    let line = {
        let quiet = Quiet::new(&terminal)?;
        read_line(quiet.terminal, shown)
    };
    terminal.write_all(b"\n")?;
    line
}

fn read_line(mut terminal: &File, shown: bool) -> Result<String> {
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        if terminal.read(&mut key)? == 0 {
            bail!("the terminal is gone");
        }
        match key[0] {
            b'\n' | b'\r' => return String::from_utf8(line).context("not UTF-8"),
            // Ctrl-C, Ctrl-D, Ctrl-\
            3 | 4 | 28 => bail!("given up"),
            8 | 127 => {
                // A character may be several bytes.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                if shown {
                    terminal.write_all(b"\x08 \x08")?;
                }
            }
            // Ctrl-U
            21 if !shown => line.clear(),
            byte if byte >= b' ' => {
                line.push(byte);
                if shown {
                    terminal.write_all(&key)?;
                }
            }
            _ => {}
        }
    }
}
