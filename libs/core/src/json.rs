//! JSON values on their way through Postgres and over the wire: payloads, metadata, results.
//!
//! Every finite double comes back with the same 64 bits. Postgres keeps numbers as decimals and writes them out in full, so
//! [`text`] writes them in full too: what is counted here is what is kept there. Decimals know no negative zero; it is
//! written as a number so small that whoever reads it as a double gets the negative zero back. And Postgres' JSON cannot
//! hold U+0000, which becomes U+FFFD.
//!
//! Depth is measured, and deep values are taken apart, without recursion: a handler may return what no stack holds.
//!
//! What is stored may still be older than a bound, or written by hand: [`shown`] reads whatever is there, and puts in the place of
//! a value that no client could read an object that says why. One bad row must not cost the page it stands on.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};
use serde_json::{Map, Value};

use crate::limits::{VALUE_DEPTH_MAX, VALUE_WIRE_BYTES_MAX};

/// The only key of the object that stands for a value which cannot be shown; its value is the reason.
pub const UNREADABLE: &str = "@unreadable";

/// Reads as the double -0.0, and is not zero for Postgres.
const NEGATIVE_ZERO_DIGITS: usize = 324;

/// The value as it is given to Postgres. It must not be deep: see [`is_deeper_than`].
pub fn text(value: &Value) -> String {
    let mut text = Vec::new();
    write(value, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The bytes of [`text`], which may be many more than a client wrote: a number has up to 330 of them.
pub fn text_bytes(value: &Value) -> usize {
    let mut count = Count(0);
    write(value, &mut count);
    count.0
}

fn write(value: &Value, to: impl Write) {
    // Neither counting nor a growing buffer fails.
    let _ = value.serialize(&mut Serializer::with_formatter(to, Plain));
}

struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Numbers without exponent, nothing that Postgres cannot hold.
struct Plain;

impl Formatter for Plain {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value == 0.0 && value.is_sign_negative() {
            return write!(writer, "-0.{:0>NEGATIVE_ZERO_DIGITS$}", 1);
        }
        // The shortest digits that read as the same double, never with an exponent.
        write!(writer, "{value}")
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        let text: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => b"\\b",
            CharEscape::FormFeed => b"\\f",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(0) => "\u{fffd}".as_bytes(),
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(text)
    }
}

/// Whether objects and lists lie in each other on more than `levels` levels: `[]` has one.
pub fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let mut open = vec![(value, 1)];
    while let Some((value, level)) = open.pop() {
        let inner: &mut dyn Iterator<Item = &Value> = match value {
            Value::Array(list) => &mut list.iter(),
            Value::Object(object) => &mut object.values(),
            _ => continue,
        };
        if level > levels {
            return true;
        }
        open.extend(inner.filter(|value| value.is_array() || value.is_object()).map(|value| (value, level + 1)));
    }
    false
}

/// Lets go of a value piece by piece: the ordinary way calls itself on each level, and no stack holds a hundred thousand.
pub fn take_apart(value: Value) {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(list) => open.extend(list),
            Value::Object(object) => open.extend(object.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
}

/// A stored value as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The value, or an object that says why it cannot be shown.
    pub value: Value,
    /// Its bytes as `google.protobuf.Value`.
    pub wire_bytes: usize,
}

/// Reads what Postgres holds, whatever it is: what is nested too deeply, has too many bytes or a number beyond every double
/// becomes `{"@unreadable": reason}`.
pub fn shown(text: &str) -> Shown {
    let value = readable(text)
        .unwrap_or_else(|why| Value::Object(Map::from_iter([(UNREADABLE.to_owned(), Value::String(why))])));
    Shown { wire_bytes: wire_bytes(&value), value }
}

fn readable(text: &str) -> Result<Value, String> {
    let depth = text_depth(text);
    if depth > VALUE_DEPTH_MAX {
        return Err(format!("nested {depth} levels deep: {VALUE_DEPTH_MAX} can be shown"));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let bytes = wire_bytes(&value);
    if bytes > VALUE_WIRE_BYTES_MAX {
        return Err(format!("{bytes} bytes on the wire: {VALUE_WIRE_BYTES_MAX} can be shown"));
    }
    Ok(value)
}

/// Levels of objects and lists in JSON text.
fn text_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The bytes of a value as `google.protobuf.Value`. It must not be deep: see [`is_deeper_than`].
pub fn wire_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 2,
        Value::Number(_) => 9,
        Value::String(text) => field(text.len()),
        Value::Array(list) => field(list.iter().map(|value| field(wire_bytes(value))).sum()),
        Value::Object(object) => {
            let entry = |(key, value): (&String, &Value)| field(field(key.len()) + field(wire_bytes(value)));
            field(object.iter().map(entry).sum())
        }
    }
}

/// A field with a length: tag, length, content.
fn field(content: usize) -> usize {
    let length_bytes = (usize::BITS - content.leading_zeros()).div_ceil(7).max(1);
    1 + usize::try_from(length_bytes).unwrap_or(10) + content
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, level| {
            // Not `json!`, which writes what it is given level by level.
            if level % 2 == 0 {
                Value::Array(vec![inner])
            } else {
                Value::Object(Map::from_iter([("a".to_owned(), inner)]))
            }
        })
    }

    fn read(text: &str) -> Value {
        shown(text).value
    }

    #[test]
    fn corners_among_the_doubles_read_back() {
        for double in [
            0.0,
            -0.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            5e-324,
            -5e-324,
            0.424_519_189_142_513_96,
            9_007_199_254_740_994.0,
            18_446_744_073_709_551_616.0,
            1e22,
        ] {
            let written = text(&json!([double]));
            assert_eq!(read(&written)[0].as_f64().map(f64::to_bits), Some(f64::to_bits(double)), "{written}");
            assert!(!written.contains(['e', 'E']), "{written}");
        }
    }

    #[test]
    fn text_is_counted_as_postgres_writes_it_out() {
        assert_eq!(text(&json!([1e300])), format!("[1{}]", "0".repeat(300)));
        assert_eq!(text(&json!({"a": [0.1, -2.5, 30, true, null]})), r#"{"a":[0.1,-2.5,30,true,null]}"#);
    }

    /// A backslash before `u0000` is text, not an escape.
    #[test]
    fn what_postgres_cannot_hold_is_replaced_and_nothing_else() {
        let value = json!({"a\0": "\\u0000 \0 \u{1} \" \n"});
        let written = text(&value);
        assert_eq!(read(&written), json!({"a\u{fffd}": "\\u0000 \u{fffd} \u{1} \" \n"}));
    }

    #[test]
    fn depth_is_told_and_taken_apart_without_a_stack() {
        assert!(!is_deeper_than(&json!(1), 0) && is_deeper_than(&json!([]), 0) && is_deeper_than(&json!({}), 0));
        assert!(!is_deeper_than(&nested(30), 30) && is_deeper_than(&nested(31), 30));
        let deep = nested(300_000);
        assert!(is_deeper_than(&deep, 299_999) && !is_deeper_than(&deep, 300_000));
        take_apart(deep);
    }

    #[test]
    fn what_cannot_be_shown_says_why() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(read(&deep(30)), serde_json::from_str::<Value>(&deep(30)).unwrap());
        assert_eq!(read(&deep(31)), json!({"@unreadable": "nested 31 levels deep: 30 can be shown"}));
        assert_eq!(read(&deep(100_000)), json!({"@unreadable": "nested 100000 levels deep: 30 can be shown"}));
        assert_eq!(read(r#"["[[[\"[{", "\\"]"#), json!(["[[[\"[{", "\\"]), "what is in strings is not counted");
        let beyond = format!("[1{}]", "0".repeat(400));
        assert!(read(&beyond)[UNREADABLE].as_str().unwrap().starts_with("number out of range"), "{}", read(&beyond));
        let large = format!("\"{}\"", "x".repeat(VALUE_WIRE_BYTES_MAX));
        assert!(read(&large)[UNREADABLE].as_str().unwrap().ends_with("can be shown"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<u64>().prop_map(|bits| Value::from(f64::from_bits(bits))),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_finite_double_reads_back(bits: u64) {
            let double = f64::from_bits(bits);
            prop_assume!(double.is_finite());
            let written = text(&json!(double));
            prop_assert_eq!(read(&written).as_f64().map(f64::to_bits), Some(bits), "{}", written);
        }

        #[test]
        fn the_bytes_are_those_that_are_written(value in any_json()) {
            let written = text(&value);
            prop_assert_eq!(text_bytes(&value), written.len());
            prop_assert!(!is_deeper_than(&value, text_depth(&written)));
            let depth = text_depth(&written);
            prop_assert!(depth == 0 || is_deeper_than(&value, depth - 1));
        }
    }
}
