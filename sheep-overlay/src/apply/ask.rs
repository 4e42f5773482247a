//! `apply --interactive`: each change is shown, and applied if the answer is yes; of a text, hunk by hunk.
//!
//! Questions go to stderr, answers come from stdin, a line each. Without an answer (the end of stdin) nothing is changed.

use std::collections::HashSet;
use std::io::{BufRead, Read, Write};

use anyhow::{Context, Result};
use rustix::fs::FileType;

use super::stage::Instead;
use super::target::{Target, There};
use crate::carry::open_file;
use crate::diff::{Change, Hunks, Kind, is_text, line};
use crate::exit;
use crate::paths::{above, bare};
use crate::shown::{Entry, Shown};

/// Larger texts are not shown hunk by hunk.
const MUCH: i64 = 16 << 20;

const HELP: &str = "y apply it · n leave it · a apply it and all that follow · q leave it and all that follow
p show what changed in the text · s choose hunk by hunk · ? this
";
const HELP_HUNK: &str = "y make this change · n leave it · a make it and the others in this file · d leave it and the others in this file · ? this
";

/// The answers of the user.
struct Questions {
    answers: std::io::Lines<std::io::StdinLock<'static>>,
}

impl Questions {
    /// Asks until there is an answer that is one of these letters; help is shown for `?`.
    fn ask(&mut self, question: &str, letters: &str, help: &str) -> Result<char> {
        let list: Vec<String> = letters.chars().map(String::from).collect();
        loop {
            eprint!("{question} [{},?] ", list.join(","));
            std::io::stderr().flush().ok();
            let answer = self.answers.next().transpose().context("stdin")?;
            if crate::sys::interrupted() {
                return Err(anyhow::anyhow!("interrupted"));
            }
            let Some(answer) = answer else {
                eprintln!();
                return Err(exit::usage("no answer, nothing was changed"));
            };
            match answer.trim().chars().next() {
                Some(letter) if letters.contains(letter) => return Ok(letter),
                _ => eprint!("{help}"),
            }
        }
    }
}

/// Asks for each of the changes whether it is wanted. Gives those that are, and the contents of files that are wanted in part.
pub fn choose<'a>(changes: &[&'a Change], shown: &Shown, target: &Target) -> Result<(Vec<&'a Change>, Instead)> {
    let mut questions = Questions { answers: std::io::stdin().lock().lines() };
    let mut instead = Instead::new();
    let mut wanted = Vec::new();
    let mut rest = None;
    // What belongs in a directory that is not wanted cannot be wanted.
    let mut left: HashSet<Vec<u8>> = HashSet::new();
    for change in changes {
        let path = bare(&change.path);
        if above(&path).any(|dir| left.contains(dir)) {
            continue;
        }
        let texts = texts(change, &path, shown, target)?;
        let letters = if texts.is_some() { "ynaqps" } else { "ynaq" };
        let yes = loop {
            let answer = match rest {
                Some(answer) => answer,
                None => questions.ask(&format!("{}  apply it?", line(change)), letters, HELP)?,
            };
            match (answer, &texts) {
                ('y', _) => break true,
                ('n', _) => break false,
                ('p', Some((old, new))) => {
                    for hunk in Hunks::of(old, new).0 {
                        show(&hunk.text);
                    }
                }
                ('s', Some((old, new))) => match hunk_by_hunk(&mut questions, old, new)? {
                    Some(content) => {
                        instead.insert(path.clone(), content);
                        break true;
                    }
                    None => break false,
                },
                (letter, _) => {
                    rest = Some(if letter == 'a' { 'y' } else { 'n' });
                }
            }
        };
        if yes {
            wanted.push(*change);
        } else if change.makes_directory() {
            left.insert(path);
        }
    }
    Ok((wanted, instead))
}

/// The content of a text before and now; `None` for what is no modified text.
fn texts(change: &Change, path: &[u8], shown: &Shown, target: &Target) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    if change.kind != Kind::Modified || change.file_type != FileType::RegularFile {
        return Ok(None);
    }
    let There::Entry(there) = target.look(path)? else { return Ok(None) };
    match (text(&there)?, text(&shown.must(path)?)?) {
        (Some(old), Some(new)) if old != new => Ok(Some((old, new))),
        _ => Ok(None),
    }
}

fn text(entry: &Entry) -> Result<Option<Vec<u8>>> {
    let is_file = FileType::from_raw_mode(entry.stat.st_mode) == FileType::RegularFile;
    if !is_file || entry.stat.st_size > MUCH {
        return Ok(None);
    }
    let mut content = Vec::new();
    std::fs::File::from(open_file(&entry.dir, &entry.name, &entry.stat)?).read_to_end(&mut content)?;
    Ok(is_text(&content).then_some(content))
}

/// The content with the hunks that are wanted; `None` if none is.
fn hunk_by_hunk(questions: &mut Questions, old: &[u8], new: &[u8]) -> Result<Option<Vec<u8>>> {
    let hunks = Hunks::of(old, new);
    let mut chosen = vec![false; hunks.0.len()];
    let mut rest = None;
    for (hunk, chosen) in hunks.0.iter().zip(&mut chosen) {
        let answer = match rest {
            Some(answer) => answer,
            None => {
                show(&hunk.text);
                questions.ask("make this change?", "ynad", HELP_HUNK)?
            }
        };
        rest = match answer {
            'a' => Some('y'),
            'd' => Some('n'),
            _ => rest,
        };
        *chosen = matches!(answer, 'y' | 'a');
    }
    Ok(chosen.contains(&true).then(|| hunks.some(old, new, &chosen)))
}

/// Shows lines of a text, harmless to a terminal.
fn show(text: &[u8]) {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let plain: String = String::from_utf8_lossy(line)
            .chars()
            .flat_map(|c| if c.is_control() && c != '\t' { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
            .collect();
        eprintln!("{plain}");
    }
}
