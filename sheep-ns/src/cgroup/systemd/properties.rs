//! Properties of a scope: those that annotations ask for, and those that limits need. Pure.

use std::collections::BTreeMap;

use anyhow::Result;

use super::wire::{Property, Value};
use crate::cgroup::files::Setting;
use crate::exit;

/// What an annotation's name begins with that is a property of the scope, as runc and crun have it.
const ANNOTATION: &str = "org.systemd.property.";

/// What a group shares with the groups beside it has to be said of the scope: in the group below it there is nobody to share with. So
/// weights and protections are the scope's, too; and it gets no number of tasks of systemd's own choice, where one was asked for.
pub fn of_settings(settings: &[Setting]) -> Vec<Property> {
    let mut weights = Vec::new();
    let mut found: Vec<Property> = Vec::new();
    for setting in settings {
        let number = || if setting.value == "max" { Some(u64::MAX) } else { setting.value.parse().ok() };
        let (name, value) = match setting.file.as_str() {
            "cpu.weight" => ("CPUWeight", number()),
            // systemd.resource-control(5): the special value `idle`.
            "cpu.idle" if setting.value == "1" => ("CPUWeight", Some(0)),
            "memory.low" => ("MemoryLow", number()),
            "memory.min" => ("MemoryMin", number()),
            "pids.max" => ("TasksMax", number()),
            "io.weight" | "io.bfq.weight" => match own_scale(setting).rsplit_once(' ') {
                None => ("IOWeight", number()),
                Some(("default", weight)) => ("IOWeight", weight.parse().ok()),
                Some((device, weight)) => {
                    weights.extend(weight.parse().ok().map(|weight| (format!("/dev/block/{device}"), weight)));
                    continue;
                }
            },
            _ => continue,
        };
        found.retain(|(other, _)| other != name);
        found.extend(value.map(|value| (name.to_owned(), Value::U64(value))));
    }
    if !weights.is_empty() {
        found.push(("IODeviceWeight".to_owned(), Value::Weights(weights)));
    }
    found
}

/// A weight on the io controller's own scale, which is systemd's, too.
fn own_scale(setting: &Setting) -> &str {
    setting.otherwise.as_ref().map_or(&setting.value, |(_, value)| value)
}

/// The properties that annotations ask for: `org.systemd.property.NAME` with a value in GVariant's text form, as far as properties of
/// scopes need it: `true`, `'text'`, `['texts']`, and numbers, of which the type may stand before them (`uint64 5`). A NAME that ends
/// in `Sec` is seconds, and becomes `USec`. Usage (2) for what is none of that.
pub fn asked(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else { continue };
        let bad = |why: &str| exit::usage(format!("annotation {key}: {text:?}: {why}"));
        if name.len() < 2 || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad("no name of a property"));
        }
        let value = value(text.trim()).ok_or_else(|| bad("write true, false, 'text', ['texts'], 5, or 'uint64 5'"))?;
        // The way of these is ours to say.
        if ["PIDs", "Delegate", "Slice"].contains(&name) {
            return Err(bad("this program sets it itself"));
        }
        found.push(match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            None => (name.to_owned(), value),
            Some(stem) => {
                let seconds = match value {
                    Value::I32(n) => u64::try_from(n).ok(),
                    Value::I64(n) => u64::try_from(n).ok(),
                    Value::U32(n) => Some(n.into()),
                    Value::U64(n) => Some(n),
                    _ => None,
                };
                let micros =
                    seconds.and_then(|n| n.checked_mul(1_000_000)).ok_or_else(|| bad("no number of seconds"))?;
                (format!("{stem}USec"), Value::U64(micros))
            }
        });
    }
    Ok(found)
}

fn value(text: &str) -> Option<Value> {
    if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let texts = list.split(',').map(str::trim).filter(|text| !text.is_empty()).map(quoted);
        return texts.collect::<Option<Vec<_>>>().map(Value::Strs);
    }
    match text.split_once(' ').map(|(kind, number)| (kind, number.trim())) {
        _ if text == "true" || text == "false" => Some(Value::Bool(text == "true")),
        _ if text.starts_with(['\'', '"']) => quoted(text).map(Value::Str),
        Some(("int32", number)) => number.parse().ok().map(Value::I32),
        Some(("uint32", number)) => number.parse().ok().map(Value::U32),
        Some(("int64", number)) => number.parse().ok().map(Value::I64),
        Some(("uint64", number)) => number.parse().ok().map(Value::U64),
        _ => text.parse().ok().map(Value::I32),
    }
}

/// Text in quotes, without a quote or a backslash in it.
fn quoted(text: &str) -> Option<String> {
    let inside = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))?;
    (!inside.contains(['\'', '"', '\\'])).then(|| inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_text() {
        for (text, want) in [
            ("true", Some(Value::Bool(true))),
            ("37", Some(Value::I32(37))),
            ("uint64 10000000", Some(Value::U64(10_000_000))),
            ("int64 -1", Some(Value::I64(-1))),
            ("'inactive'", Some(Value::Str("inactive".to_owned()))),
            ("['a.service', \"b\"]", Some(Value::Strs(vec!["a.service".to_owned(), "b".to_owned()]))),
            ("[]", Some(Value::Strs(Vec::new()))),
            ("word", None),
            ("'", None),
            ("'a\\'", None),
            ("uint64 -1", None),
            ("99999999999", None),
        ] {
            assert_eq!(value(text), want, "{text}");
        }
        let one = |name: &str, text: &str| asked(&BTreeMap::from([(format!("{ANNOTATION}{name}"), text.to_owned())]));
        let want = vec![("TimeoutStopUSec".to_owned(), Value::U64(3_000_000))];
        assert_eq!(one("TimeoutStopSec", "3").unwrap(), want);
        assert_eq!(one("TimeoutStopUSec", "uint64 3000000").unwrap(), want);
        assert_eq!(one("KillSignal", "37").unwrap(), [("KillSignal".to_owned(), Value::I32(37))]);
        for (name, text) in [("TimeoutStopSec", "'x'"), ("PIDs", "1"), ("A b", "1"), ("X", "true"), ("After", "word")] {
            assert!(one(name, text).is_err(), "{name}");
        }
        assert_eq!(asked(&BTreeMap::from([("other".to_owned(), "x".to_owned())])).unwrap(), []);
    }

    #[test]
    fn what_is_shared_is_the_scopes() {
        let of = |json: &str| of_settings(&crate::cgroup::files::files(&serde_json::from_str(json).unwrap()).unwrap());
        let number = |name: &str, n: u64| (name.to_owned(), Value::U64(n));
        assert_eq!(of(r#"{"memory": {"limit": 5000000}, "cpu": {"quota": 50000, "period": 100000, "cpus": "0"}}"#), []);
        assert_eq!(of(r#"{"pids": {"limit": -1}}"#), [number("TasksMax", u64::MAX)]);
        assert_eq!(
            of(r#"{"pids": {"limit": 7}, "memory": {"reservation": 9}}"#),
            [number("MemoryLow", 9), number("TasksMax", 7)]
        );
        assert_eq!(of(r#"{"cpu": {"shares": 2048}}"#).len(), 1);
        assert_eq!(of(r#"{"cpu": {"idle": 1}}"#), [number("CPUWeight", 0)]);
        let io = of(r#"{"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 100}]}}"#);
        assert_eq!(io[0], number("IOWeight", 4950));
        assert!(matches!(&io[1].1, Value::Weights(all) if all[0].0 == "/dev/block/8:0"), "{io:?}");
    }
}
