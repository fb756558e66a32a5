//! The names of tables and rows as names of files.
//!
//! A row is called as its primary key: the values of the columns, with commas between them. `/`, `,`, `%`, control
//! characters and a leading dot are written `%XX`. A value of another kind than its column is meant for has its kind in
//! front: `%i` an integer, `%r` a real number, `%t` text, `%x` the bytes of a blob in hexadecimal digits, `%n` null. So
//! no two keys have one name, and each name stands for one key at most.

use rusqlite::types::{Value, ValueRef};

/// What a column makes of the values that are put there, as SQLite decides by the name of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affinity {
    Numeric,
    Text,
    None,
}

impl Affinity {
    pub(super) fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Self::Numeric
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || declared.is_empty() {
            Self::None
        } else {
            Self::Numeric
        }
    }
}

/// Longest name of a file.
pub(super) const NAME_BYTES_MAX: usize = 255;

pub(super) fn escape(text: &[u8], to: &mut Vec<u8>) {
    let start = to.len();
    for byte in text {
        let plain = !byte.is_ascii_control() && !b"/,%".contains(byte);
        match plain && !(*byte == b'.' && to.len() == start) {
            true => to.push(*byte),
            false => to.extend(format!("%{byte:02X}").into_bytes()),
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

pub(super) fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let pairs = text.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

pub(super) fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        match byte {
            b'%' => {
                text.extend(from_hex(after.get(..2)?)?);
                rest = &after[2..];
            }
            _ => {
                text.push(*byte);
                rest = after;
            }
        }
    }
    Some(text)
}

fn encode(value: ValueRef<'_>, affinity: Affinity, to: &mut Vec<u8>) {
    let mut kind = |kind: &[u8], plain: bool| {
        if !plain {
            to.extend_from_slice(kind);
        }
    };
    let numeric = affinity == Affinity::Numeric;
    match value {
        ValueRef::Null => kind(b"%n", false),
        ValueRef::Integer(number) => {
            kind(b"%i", numeric);
            to.extend(number.to_string().into_bytes());
        }
        ValueRef::Real(number) => {
            kind(b"%r", numeric);
            to.extend(format!("{number:?}").into_bytes());
        }
        ValueRef::Text(text) => {
            // An empty name is none.
            kind(b"%t", !numeric && !text.is_empty());
            escape(text, to);
        }
        ValueRef::Blob(bytes) => {
            kind(b"%x", false);
            to.extend(to_hex(bytes).into_bytes());
        }
    }
}

pub(super) fn of_key<'v>(key: impl Iterator<Item = (ValueRef<'v>, Affinity)>) -> Vec<u8> {
    let mut name = Vec::new();
    for (index, (value, affinity)) in key.enumerate() {
        if index > 0 {
            name.push(b',');
        }
        encode(value, affinity, &mut name);
    }
    name
}

/// The values that a name may stand for: numbers are text that SQLite takes for what the column holds. Whether the row
/// that is found is called so is for the caller to check.
pub(super) fn to_key(name: &[u8], columns: usize) -> Option<Vec<Value>> {
    let text = |bytes: &[u8]| String::from_utf8(unescape(bytes)?).ok();
    let value = |part: &[u8]| {
        let number = |part: &[u8]| std::str::from_utf8(part).ok().map(str::to_owned);
        Some(match part {
            b"%n" => Value::Null,
            [b'%', b'i', rest @ ..] => Value::Integer(number(rest)?.parse().ok()?),
            [b'%', b'r', rest @ ..] => Value::Real(number(rest)?.parse().ok()?),
            [b'%', b'x', rest @ ..] => Value::Blob(from_hex(rest)?),
            [b'%', b't', rest @ ..] => Value::Text(text(rest)?),
            part => Value::Text(text(part)?),
        })
    };
    let values: Option<Vec<Value>> = name.split(|byte| *byte == b',').map(value).collect();
    values.filter(|values| values.len() == columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_name_of_its_own() {
        let (n, t, x) = (Affinity::Numeric, Affinity::Text, Affinity::None);
        let name = |value: ValueRef<'_>, affinity| {
            String::from_utf8(of_key([(value, affinity)].into_iter())).unwrap()
        };
        for (value, affinity, wanted) in [
            (ValueRef::Integer(-7), n, "-7"),
            (ValueRef::Integer(7), x, "%i7"),
            (ValueRef::Real(1.0), n, "1.0"),
            (ValueRef::Real(0.5), t, "%r0.5"),
            (ValueRef::Text(b"a/b,c%"), t, "a%2Fb%2Cc%25"),
            (ValueRef::Text(b"..x."), t, "%2E.x."),
            (ValueRef::Text(b"7"), n, "%t7"),
            (ValueRef::Text(b""), t, "%t"),
            (ValueRef::Blob(b"\x00\xff"), x, "%x00FF"),
            (ValueRef::Null, t, "%n"),
        ] {
            assert_eq!(name(value, affinity), wanted);
            let key = to_key(wanted.as_bytes(), 1).unwrap();
            let same = match (&key[0], value) {
                (Value::Text(text), ValueRef::Integer(number)) => *text == number.to_string(),
                (Value::Text(text), ValueRef::Real(number)) => text.parse() == Ok(number),
                (key, value) => ValueRef::from(key) == value,
            };
            assert!(same, "{wanted}: {key:?}");
        }
        let two = [(ValueRef::Integer(1), n), (ValueRef::Text(b"x,y"), t)];
        assert_eq!(of_key(two.into_iter()), b"1,x%2Cy");
        for (name, columns) in [
            ("1,2", 1),
            ("1", 2),
            ("%", 1),
            ("%zz", 1),
            ("%2f", 1),
            ("%xA", 1),
        ] {
            assert_eq!(to_key(name.as_bytes(), columns), None, "{name}");
        }
    }
}
