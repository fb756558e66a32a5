//! A row as text: one JSON object, a column a line.
//!
//! Null, numbers and text are JSON's own. What JSON has nothing for is an object of one name: `{"blob": "00FF"}`,
//! `{"text": "FF"}` for text that is no UTF-8, `{"real": "inf"}`. True and false may be written, and are 1 and 0.

use super::name::{from_hex, to_hex};
use rusqlite::types::{Value, ValueRef};
use serde_json::{Map, Value as Json, json};

pub(super) fn of_row<'v>(columns: impl Iterator<Item = (&'v str, ValueRef<'v>)>) -> Vec<u8> {
    let mut text = String::from("{");
    for (index, (name, value)) in columns.enumerate() {
        text.push_str(if index > 0 { ",\n  " } else { "\n  " });
        text.push_str(&format!("{}: {}", Json::from(name), of_value(value)));
    }
    text.push_str("\n}\n");
    text.into_bytes()
}

fn of_value(value: ValueRef<'_>) -> Json {
    match value {
        ValueRef::Null => Json::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) if number.is_finite() => number.into(),
        ValueRef::Real(number) => json!({"real": number.to_string()}),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => text.into(),
            Err(_) => json!({"text": to_hex(text)}),
        },
        ValueRef::Blob(bytes) => json!({"blob": to_hex(bytes)}),
    }
}

/// `None` for what a column cannot hold.
pub(super) fn to_value(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Integer((*value).into()),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None if number.is_f64() => Value::Real(number.as_f64()?),
            None => return None,
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(object) if object.len() == 1 => match object.iter().next()? {
            (kind, Json::String(text)) if kind == "blob" => {
                Value::Blob(from_hex(text.to_ascii_uppercase().as_bytes())?)
            }
            (kind, Json::String(text)) if kind == "real" => Value::Real(text.parse().ok()?),
            _ => return None,
        },
        _ => return None,
    })
}

/// What somebody has written so far.
#[derive(Debug, PartialEq)]
pub(super) enum Written {
    Nothing,
    /// More has to follow.
    Part,
    Row(Map<String, Json>),
    Wrong(String),
}

pub(super) fn read(text: &[u8]) -> Written {
    let trimmed = text.trim_ascii();
    match (trimmed.first(), trimmed.last()) {
        (None, _) => return Written::Nothing,
        (Some(b'{'), Some(b'}')) => {}
        (Some(b'{'), _) => return Written::Part,
        _ => return Written::Wrong("is no JSON object".into()),
    }
    match serde_json::from_slice(trimmed) {
        Ok(row) => Written::Row(row),
        Err(error) if error.is_eof() => Written::Part,
        Err(error) => Written::Wrong(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_are_written() {
        let row = [
            ("id", ValueRef::Integer(i64::MIN)),
            ("a \"b\"", ValueRef::Text("ä\n".as_bytes())),
            ("real", ValueRef::Real(1.0)),
            ("far", ValueRef::Real(f64::INFINITY)),
            ("none", ValueRef::Null),
            ("bytes", ValueRef::Blob(b"\x00\xfe")),
        ];
        let text = of_row(row.into_iter());
        let wanted = "{\n  \"id\": -9223372036854775808,\n  \"a \\\"b\\\"\": \"ä\\n\",\n  \"real\": 1.0,\n  \
            \"far\": {\"real\":\"inf\"},\n  \"none\": null,\n  \"bytes\": {\"blob\":\"00FE\"}\n}\n";
        assert_eq!(String::from_utf8(text.clone()).unwrap(), wanted);
        let Written::Row(read) = read(&text) else {
            panic!("{wanted}");
        };
        for (name, value) in row {
            let back = to_value(&read[name]).unwrap();
            assert_eq!(ValueRef::from(&back), value, "{name}");
        }
        for (json, allowed) in [
            (json!(true), true),
            (json!([]), false),
            (json!({"blob": "0"}), false),
            (json!({"blob": "ff"}), true),
            (json!({"a": 1}), false),
            (json!(u64::MAX), false),
        ] {
            assert_eq!(to_value(&json).is_some(), allowed, "{json}");
        }
    }

    #[test]
    fn what_is_not_all_there_is_waited_for() {
        for text in ["{", "{\"a\": {\"blob\": \"\"}", "{\"a\": \"}"] {
            assert_eq!(read(text.as_bytes()), Written::Part, "{text}");
        }
        assert_eq!(read(b" \n"), Written::Nothing);
        for text in ["x", "[1]", "{} {}", "{a}"] {
            assert!(matches!(read(text.as_bytes()), Written::Wrong(_)), "{text}");
        }
    }
}
