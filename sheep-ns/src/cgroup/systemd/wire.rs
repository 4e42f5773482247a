//! D-Bus messages as bytes: what is sent to systemd, and what of its answers matters here. The D-Bus specification, "Marshaling" and
//! "Message Format"; little-endian, protocol version 1. Pure.

use anyhow::{Context, Result, bail, ensure};

/// So long a message may be (the specification's own limit is 128 MiB; systemd's answers to us have some hundred bytes).
const MESSAGE_MAX: usize = 1 << 20;
/// What of a message is of a fixed length: with it, how long all of it is can be told.
pub const FIXED: usize = 16;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// The value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Str(String),
    /// `au`
    U32s(Vec<u32>),
    /// `as`
    Strs(Vec<String>),
    /// `a(st)`
    Weights(Vec<(String, u64)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Str(_) => "s",
            Value::U32s(_) => "au",
            Value::Strs(_) => "as",
            Value::Weights(_) => "a(st)",
        }
    }
}

/// A property of a unit and its value.
pub type Property = (String, Value);

/// Values one after another, each where its alignment puts it.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// `b`
    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// `s`, and `o`
    pub fn str(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// `g`
    fn signature(&mut self, text: &str) {
        self.0.push(text.len().to_le_bytes()[0]);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array of elements that begin at multiples of `align`; the padding before the first does not count for its length.
    fn array(&mut self, align: usize, write: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(align);
        let begin = self.0.len();
        write(self);
        let bytes = length(self.0.len() - begin).to_le_bytes();
        self.0[at..at + 4].copy_from_slice(&bytes);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::I32(value) => self.u32(value.cast_unsigned()),
            Value::U32(value) => self.u32(*value),
            Value::I64(value) => self.u64(value.cast_unsigned()),
            Value::U64(value) => self.u64(*value),
            Value::Str(text) => self.str(text),
            Value::U32s(values) => self.array(4, |w| values.iter().for_each(|value| w.u32(*value))),
            Value::Strs(texts) => self.array(4, |w| texts.iter().for_each(|text| w.str(text))),
            Value::Weights(weights) => self.array(8, |w| {
                for (path, weight) in weights {
                    w.align(8);
                    w.str(path);
                    w.u64(*weight);
                }
            }),
        }
    }

    /// `a(sv)`
    pub fn properties(&mut self, properties: &[Property]) {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.str(name);
                w.variant(value);
            }
        });
    }

    /// `a(sa(sv))` without anything in it.
    pub fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// Lengths on the wire have 32 bits; nothing here comes near that.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A call of a method.
#[derive(Debug)]
pub struct Call<'a> {
    /// To whom, on a bus.
    pub destination: &'a str,
    /// Of which object.
    pub path: &'a str,
    /// Of which of its interfaces.
    pub interface: &'a str,
    /// Its name.
    pub member: &'a str,
    /// The types of its arguments.
    pub signature: &'a str,
    /// Its arguments.
    pub body: Writer,
}

impl Call<'_> {
    /// The message, with a serial number of the sender's choice other than 0.
    pub fn message(&self, serial: u32) -> Vec<u8> {
        let mut w = Writer(vec![b'l', 1, 0, 1]);
        w.u32(length(self.body.0.len()));
        w.u32(serial);
        w.array(8, |w| {
            for (field, kind, text) in [
                (PATH, "o", self.path),
                (INTERFACE, "s", self.interface),
                (MEMBER, "s", self.member),
                (DESTINATION, "s", self.destination),
            ] {
                w.align(8);
                w.0.push(field);
                w.signature(kind);
                w.str(text);
            }
            w.align(8);
            w.0.push(SIGNATURE);
            w.signature("g");
            w.signature(self.signature);
        });
        w.align(8);
        w.0.extend(&self.body.0);
        w.0
    }
}

/// What a message that came is.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The answer to the call of this serial number, with its first argument where that is text (`s` or `o`); of an array, how many
    /// bytes it has.
    Return(u32, String),
    /// That the call of this serial number failed: the error's name and its message.
    Error(u32, String, String),
    /// A signal's name, and its arguments where they are those of `JobRemoved` (`uoss`): job, unit and result.
    Signal(String, Option<[String; 3]>),
    /// A call, which is of no interest.
    Other,
}

/// How long a message is that begins with these [`FIXED`] bytes.
pub fn message_length(fixed: &[u8; FIXED]) -> Result<usize> {
    let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
    ensure!(fixed[0] == b'l' && fixed[3] == 1, "not a message of D-Bus version 1 in this machine's byte order");
    let (body, fields) = (word(4), word(12));
    let all = fields.checked_add(FIXED).map(|n| n.next_multiple_of(8)).and_then(|n| n.checked_add(body));
    all.filter(|n| *n <= MESSAGE_MAX).context("a message that is too long")
}

/// Reads a message, all of it.
pub fn parse(message: &[u8]) -> Result<Incoming> {
    let mut r = Reader { bytes: message, at: 12 };
    let kind = *message.get(1).context("cut short")?;
    let (mut member, mut error, mut reply, mut signature) = (String::new(), String::new(), 0, String::new());
    let end = r.u32()? as usize + FIXED;
    while r.at < end {
        r.align(8);
        let (field, kind) = (r.u8()?, r.signature()?);
        match (field, kind.as_str()) {
            (MEMBER, "s") => member = r.str()?,
            (ERROR_NAME, "s") => error = r.str()?,
            (REPLY_SERIAL, "u") => reply = r.u32()?,
            (SIGNATURE, "g") => signature = r.signature()?,
            (_, "s" | "o") => drop(r.str()?),
            (_, "u") => drop(r.u32()?),
            (_, "g") => drop(r.signature()?),
            (field, kind) => bail!("header field {field} of type {kind}"),
        }
    }
    r.align(8);
    let mut text = || match signature.as_bytes().first() {
        Some(b's' | b'o') => r.str(),
        Some(b'a') => Ok(r.u32()?.to_string()),
        _ => Ok(String::new()),
    };
    Ok(match kind {
        2 => Incoming::Return(reply, text()?),
        3 => Incoming::Error(reply, error, text()?),
        4 if signature == "uoss" => {
            r.u32()?;
            Incoming::Signal(member, Some([r.str()?, r.str()?, r.str()?]))
        }
        4 => Incoming::Signal(member, None),
        _ => Incoming::Other,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(n).context("cut short")?;
        let taken = self.bytes.get(self.at..end).context("cut short")?;
        self.at = end;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).context("text that is no UTF-8")?;
        self.take(1)?;
        Ok(text)
    }

    fn str(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.u8()?;
        self.text(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(signature: &str, body: Writer) -> Vec<u8> {
        let (destination, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        Call { destination, path, interface: "a.B", member: "Do", signature, body }.message(7)
    }

    /// The example is what `busctl` sends, as the library of systemd writes it.
    #[test]
    fn alignment_and_lengths() {
        let mut body = Writer::default();
        body.str("x");
        body.properties(&[("A".to_owned(), Value::Bool(true)), ("BB".to_owned(), Value::U64(3))]);
        let want: &[u8] = &[
            1, 0, 0, 0, b'x', 0, 0, 0, // "x", padded for the length of the array
            40, 0, 0, 0, 0, 0, 0, 0, // the array's length; padding before its first element does not count
            1, 0, 0, 0, b'A', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0, // "A", a variant of type b
            2, 0, 0, 0, b'B', b'B', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(body.0, want);
        let mut empty = Writer::default();
        empty.no_units();
        assert_eq!(empty.0, [0, 0, 0, 0, 0, 0, 0, 0]);
        let message = call("sa(sv)", body);
        let mut fixed = [0; FIXED];
        fixed.copy_from_slice(&message[..FIXED]);
        assert_eq!(message_length(&fixed).unwrap(), message.len());
        assert_eq!(parse(&message).unwrap(), Incoming::Other);
    }

    fn answer(kind: u8, fields: &[(u8, &str, &str)], reply: u32, signature: &str, body: Writer) -> Vec<u8> {
        let mut w = Writer(vec![b'l', kind, 0, 1]);
        w.u32(length(body.0.len()));
        w.u32(1);
        w.array(8, |w| {
            for (field, kind, text) in fields {
                w.align(8);
                w.0.push(*field);
                w.signature(kind);
                w.str(text);
            }
            w.align(8);
            w.0.push(REPLY_SERIAL);
            w.signature("u");
            w.u32(reply);
            w.align(8);
            w.0.push(SIGNATURE);
            w.signature("g");
            w.signature(signature);
        });
        w.align(8);
        w.0.extend(body.0);
        w.0
    }

    #[test]
    fn what_comes_back() {
        let mut body = Writer::default();
        body.str("/job/1");
        let back = answer(2, &[(DESTINATION, "s", ":1.2")], 9, "o", body);
        assert_eq!(parse(&back).unwrap(), Incoming::Return(9, "/job/1".to_owned()));
        assert_eq!(parse(&answer(2, &[], 9, "", Writer::default())).unwrap(), Incoming::Return(9, String::new()));
        let mut body = Writer::default();
        body.no_units();
        assert_eq!(parse(&answer(2, &[], 9, "a(sus)", body)).unwrap(), Incoming::Return(9, "0".to_owned()));
        let mut body = Writer::default();
        body.str("no such");
        let failed = answer(3, &[(ERROR_NAME, "s", "a.B")], 4, "s", body);
        assert_eq!(parse(&failed).unwrap(), Incoming::Error(4, "a.B".to_owned(), "no such".to_owned()));
        let mut body = Writer::default();
        body.u32(1);
        ["/job/1", "x.scope", "done"].iter().for_each(|text| body.str(text));
        let signal = answer(4, &[(PATH, "o", "/"), (MEMBER, "s", "JobRemoved")], 0, "uoss", body);
        let arguments = ["/job/1", "x.scope", "done"].map(str::to_owned);
        assert_eq!(parse(&signal).unwrap(), Incoming::Signal("JobRemoved".to_owned(), Some(arguments)));
        for cut in 2..signal.len() {
            assert!(parse(&signal[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn lengths_that_lie() {
        let mut fixed = *b"l\x02\0\x01\0\0\0\0\x01\0\0\0\0\0\0\0";
        assert_eq!(message_length(&fixed).unwrap(), FIXED);
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message_length(&fixed).is_err());
        fixed[12..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message_length(&fixed).is_err());
        assert!(message_length(b"B\x02\0\x01\0\0\0\0\x01\0\0\0\0\0\0\0").is_err());
    }
}
