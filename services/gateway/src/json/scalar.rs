//! Scalars, enums, bytes and instants from JSON and from text (a query parameter, a path segment, the key of a map). Each error
//! is the rule that is broken and what was found instead.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use carillon_core::error::quoted;
use carillon_core::limits::MASK_PATHS_MAX;
use carillon_proto::json::NULL_VALUE;
use carillon_proto::words;
use chrono::{DateTime, Utc};
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, Value};

use super::document::{self, Json};
use super::number::Number;

pub(crate) use carillon_proto::json::MASK;

/// The rule for bytes.
const BASE64: &str = "must be bytes in base64";

/// From a JSON value, by the proto3 mapping: integers also as strings, enums as words or numbers.
pub(crate) fn from_json(kind: &Kind, json: &Json) -> Result<Value, String> {
    match (kind, json) {
        (Kind::Bool, Json::Bool(flag)) => Ok(Value::Bool(*flag)),
        (Kind::Bool, _) => Err(format!("must be true or false, is {}", json.shown())),
        (Kind::String, Json::Text(text)) => Ok(Value::String(text.clone())),
        (Kind::String, _) => Err(format!("must be a string, is {}", json.shown())),
        (Kind::Enum(_), Json::Text(text)) => from_text(kind, text),
        (Kind::Enum(descriptor), Json::Number(number)) => number
            .whole()
            .and_then(|number| i32::try_from(number).ok())
            .filter(|number| descriptor.get_value(*number).is_some())
            .map(Value::EnumNumber)
            .ok_or_else(|| format!("must be one of {}, is {}", words::allowed(descriptor), json.shown())),
        (Kind::Enum(descriptor), Json::Null) if descriptor.full_name() == NULL_VALUE => Ok(Value::EnumNumber(0)),
        (Kind::Enum(descriptor), _) => {
            Err(format!("must be one of {}, is {}", words::allowed(descriptor), json.shown()))
        }
        (Kind::Float | Kind::Double, Json::Number(number)) => float(kind, number.double(), &json.shown()),
        (Kind::Bytes, Json::Text(text)) => bytes(text),
        (Kind::Bytes, _) => Err(format!("{BASE64}, is {}", json.shown())),
        (_, Json::Text(text)) => from_text(kind, text),
        (_, Json::Number(number)) => integer(kind, number.whole(), &json.shown()),
        (_, _) => integer(kind, None, &json.shown()),
    }
}

/// From text.
pub(crate) fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(format!("must be true or false, is {}", quoted(text))),
        },
        Kind::Enum(descriptor) => words::number_of(descriptor, text)
            .map(Value::EnumNumber)
            .ok_or_else(|| format!("must be one of {}, is {}", words::allowed(descriptor), quoted(text))),
        Kind::Bytes => bytes(text),
        Kind::Float | Kind::Double => {
            let named = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];
            match named.into_iter().find(|(name, _)| *name == text) {
                Some((_, number)) => Ok(in_precision(kind, number)),
                None => float(kind, number(text).and_then(|number| number.double()), &quoted(text)),
            }
        }
        Kind::Message(descriptor) if descriptor.full_name() == MASK => {
            mask_from_text(descriptor, text).map(Value::Message)
        }
        Kind::Message(descriptor) => time_from_text(descriptor, text).map(Value::Message),
        _ => integer(kind, number(text).and_then(|number| number.whole()), &quoted(text)),
    }
}

/// A number as JSON has it, and nothing around it: `1e1` is one, `+1`, `01` and ` 1` are not.
fn number(text: &str) -> Option<Number> {
    match document::parse(text.as_bytes()) {
        Ok(Json::Number(number)) if !text.starts_with(char::is_whitespace) && !text.ends_with(char::is_whitespace) => {
            Some(number)
        }
        _ => None,
    }
}

fn integer(kind: &Kind, number: Option<i128>, found: &str) -> Result<Value, String> {
    let (least, most) = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Kind::Uint32 | Kind::Fixed32 => (0, i128::from(u32::MAX)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (i128::from(i64::MIN), i128::from(i64::MAX)),
        Kind::Uint64 | Kind::Fixed64 => (0, i128::from(u64::MAX)),
        _ => return Err("cannot be given in JSON".to_owned()),
    };
    let read = number.filter(|number| (least..=most).contains(number)).and_then(|number| match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number.try_into().ok().map(Value::I32),
        Kind::Uint32 | Kind::Fixed32 => number.try_into().ok().map(Value::U32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number.try_into().ok().map(Value::I64),
        _ => number.try_into().ok().map(Value::U64),
    });
    read.ok_or_else(|| format!("must be a whole number from {least} to {most}, is {found}"))
}

fn float(kind: &Kind, number: Option<f64>, found: &str) -> Result<Value, String> {
    let is_finite = |value: &Value| match value {
        Value::F32(number) => number.is_finite(),
        _ => true,
    };
    number.map(|number| in_precision(kind, number)).filter(is_finite).ok_or_else(|| {
        let most = if *kind == Kind::Float { "±3.4e38" } else { "±1.8e308" };
        format!("must be a number within {most}, or one of \"NaN\", \"Infinity\", \"-Infinity\", is {found}")
    })
}

fn in_precision(kind: &Kind, number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "the field has that precision")]
    if *kind == Kind::Float { Value::F32(number as f32) } else { Value::F64(number) }
}

/// Base64 by either alphabet, padded or not.
fn bytes(text: &str) -> Result<Value, String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let standard = text.replace('-', "+").replace('_', "/");
    match GeneralPurpose::new(&alphabet::STANDARD, config).decode(standard) {
        Ok(bytes) => Ok(Value::Bytes(bytes.into())),
        Err(_) => Err(format!("{BASE64}, is {}", quoted(text))),
    }
}

/// The rule for an instant or a duration.
pub(crate) fn time_rule(descriptor: &MessageDescriptor, found: &str) -> String {
    match descriptor.full_name() {
        "google.protobuf.Timestamp" => {
            format!("must be an instant as RFC 3339 has it, such as \"2027-12-01T10:00:00Z\", is {found}")
        }
        "google.protobuf.Duration" => format!("must be seconds with an s, such as \"1.5s\", is {found}"),
        _ => "cannot be given as text".to_owned(),
    }
}

/// An instant (`2027-12-01T10:00:00Z`, years 1 to 9999) or a duration (`1.5s`).
pub(crate) fn time_from_text(descriptor: &MessageDescriptor, text: &str) -> Result<DynamicMessage, String> {
    let parts = match descriptor.full_name() {
        "google.protobuf.Timestamp" => instant(text),
        "google.protobuf.Duration" => duration(text),
        _ => None,
    };
    let (seconds, nanos) = parts.ok_or_else(|| time_rule(descriptor, &quoted(text)))?;
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, value) in [("seconds", Value::I64(seconds)), ("nanos", Value::I32(nanos))] {
        if let Some(field) = descriptor.get_field_by_name(name) {
            message.set_field(&field, value);
        }
    }
    Ok(message)
}

/// Fields separated by commas, in either spelling: `max_retries,timeoutMs`.
pub(crate) fn mask_from_text(descriptor: &MessageDescriptor, text: &str) -> Result<DynamicMessage, String> {
    let paths: Vec<String> = text.split(',').filter(|path| !path.is_empty()).map(|path| snake(path.trim())).collect();
    if paths.len() > MASK_PATHS_MAX {
        return Err(too_many_paths(paths.len()));
    }
    Ok(mask(descriptor, paths))
}

/// What is said of a mask of so many fields.
pub(crate) fn too_many_paths(paths: usize) -> String {
    format!("must name at most {MASK_PATHS_MAX} fields, names {paths}")
}

/// A list of these fields.
pub(crate) fn mask(descriptor: &MessageDescriptor, paths: impl IntoIterator<Item = String>) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    if let Some(field) = descriptor.get_field_by_name("paths") {
        message.set_field(&field, Value::List(paths.into_iter().map(Value::String).collect()));
    }
    message
}

fn snake(path: &str) -> String {
    let mut snake = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn instant(text: &str) -> Option<(i64, i32)> {
    // Years 1 to 9999, as google.protobuf.Timestamp has it.
    const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    // The library takes more: a blank or a small letter, digits beyond the ninth, which it drops, other signs for a minus.
    let digits_of_fraction = || {
        let (_, fraction) = text.split_once('.').unwrap_or_default();
        fraction.bytes().take_while(u8::is_ascii_digit).count()
    };
    let is_strict = text.as_bytes().get(10) == Some(&b'T') && text.is_ascii() && !text.ends_with('z');
    if !is_strict || digits_of_fraction() > 9 {
        return None;
    }
    let at = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
    // A leap second reads as nanoseconds beyond a second; protobuf has none.
    let nanos = i32::try_from(at.timestamp_subsec_nanos()).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SECONDS.contains(&at.timestamp()).then_some((at.timestamp(), nanos))
}

fn duration(text: &str) -> Option<(i64, i32)> {
    const SECONDS_MAX: i64 = 315_576_000_000;
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 || number.ends_with('.') {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|seconds| *seconds <= SECONDS_MAX)?;
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_rfc_3339_has_them() {
        assert_eq!(instant("1970-01-01T00:00:01Z"), Some((1, 0)));
        assert_eq!(instant("1970-01-01T02:00:01.5+02:00"), Some((1, 500_000_000)));
        for text in [
            // As the mapping of proto3 has it: its letters are capitals.
            "1970-01-01t00:00:01Z",
            "1970-01-01T00:00:01z",
            "1970-01-01T00:00:01.0000000001Z",
            "1970-01-01T00:00:01\u{2212}02:00",
            "1970-01-01 00:00:01Z",
            "1970-01-01",
            "1970-01-01T00:00:01",
            "10000-01-01T00:00:00Z",
            "",
            "now",
            "2016-12-31T23:59:60Z",
            "0000-01-01T00:00:00Z",
            "2027-02-30T00:00:00Z",
        ] {
            assert_eq!(instant(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_seconds() {
        assert_eq!(duration("1.5s"), Some((1, 500_000_000)));
        assert_eq!(duration("-0.25s"), Some((0, -250_000_000)));
        for text in ["1", "s", "1.s", ".5s", "1m", "1.0000000001s", "--1s", "999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn integers_keep_to_their_range() {
        let read = |kind: &Kind, text: &str| from_json(kind, &document::parse(text.as_bytes()).unwrap());
        assert_eq!(read(&Kind::Uint32, "3.0"), Ok(Value::U32(3)));
        assert_eq!(read(&Kind::Uint32, "\"7\""), Ok(Value::U32(7)));
        assert_eq!(read(&Kind::Uint64, "18446744073709551615"), Ok(Value::U64(u64::MAX)));
        assert!(read(&Kind::Int64, "18446744073709551615").is_err());
        assert_eq!(read(&Kind::Uint32, "-1"), Err("must be a whole number from 0 to 4294967295, is -1".to_owned()));
        for text in ["1.5", "1e300", "1e400", "true", "99999999999999999999999999999999999999999"] {
            assert!(read(&Kind::Uint32, text).is_err(), "{text}");
        }
    }
}
