//! Pax extended headers: records `LENGTH KEY=VALUE\n`, whose values may hold any byte.

/// The records of a header, in order; for a key that is there twice, the last one holds. `None` where it is malformed.
pub fn records(mut data: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        // GNU tar takes a NUL for the end, too.
        if data.iter().all(|&b| b == 0) {
            break;
        }
        let blank = data.iter().position(|&b| b == b' ')?;
        let length: usize = decimal(&data[..blank])?.try_into().ok()?;
        let record = data.get(..length)?;
        let body = record.get(blank + 1..)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|&b| b == b'=')?;
        if equals == 0 {
            return None;
        }
        found.push((&body[..equals], &body[equals + 1..]));
        data = &data[length..];
    }
    Some(found)
}

/// A number of decimal digits alone.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time: seconds since 1970 with sign and fraction, as (seconds, nanoseconds from 0 on upwards).
pub fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The attribute's name in a `SCHILY.xattr.` key: GNU tar writes `=` and `%` as `%3D` and `%25`.
pub fn xattr_name(key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, skip) = match rest {
            [b'%', b'3', b'D', ..] => (b'=', 3),
            [b'%', b'2', b'5', ..] => (b'%', 3),
            _ => (first, 1),
        };
        name.push(byte);
        rest = if skip == 1 { tail } else { &rest[skip..] };
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_hold_any_byte() {
        let data = b"19 path=a\nb=c\xff\0 d\n\n12 size=1=2\n7 uid=\n";
        let want: Vec<(&[u8], &[u8])> = vec![(b"path", b"a\nb=c\xff\0 d\n"), (b"size", b"1=2"), (b"uid", b"")];
        assert_eq!(records(data), Some(want));
        assert_eq!(records(b""), Some(vec![]));
        assert_eq!(records(b"\0\0"), Some(vec![]));
        for bad in [&b"x"[..], b"99 a=b\n", b"6 a=b", b" a=b\n", b"5 ab\n", b"6 =ab\n", b"-6 a=b\n", b"0 a=b\n"] {
            assert_eq!(records(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            (&b"0"[..], Some((0, 0))),
            (b"12.5", Some((12, 500_000_000))),
            (b"12.123456789987", Some((12, 123_456_789))),
            (b"-1", Some((-1, 0))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"1.", Some((1, 0))),
            (b".5", None),
            (b"1.x", None),
            (b"", None),
            (b"+1", None),
        ] {
            assert_eq!(time(text), want, "{text:?}");
        }
        assert_eq!(xattr_name(b"user.a%3Db%25c%41"), b"user.a=b%c%41");
    }
}
