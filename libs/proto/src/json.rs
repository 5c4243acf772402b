//! Protobuf to JSON, by descriptors alone: field names as in the protos (snake_case) and in their order, enums as bare words,
//! instants as RFC 3339, bytes in base64, 64-bit integers beyond ±2^53 as strings, numbers of a `google.protobuf.Struct` without
//! a fraction as integers, and every field present: one that is not set is its zero value, `null`, `[]` or `{}`. So clients find
//! each key in each answer.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, SecondsFormat};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};
use serde::ser::{Error, SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use crate::words;

/// A double holds each whole number up to here.
pub const EXACT_MAX: u64 = 1 << 53;

/// The type of a list of fields.
pub const MASK: &str = "google.protobuf.FieldMask";
/// The enum whose only value is null.
pub const NULL_VALUE: &str = "google.protobuf.NullValue";

/// How enum values are written; both are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnumWords {
    /// `ACTIVE`.
    Upper,
    /// `active`, as the first system stored them.
    Lower,
}

/// A message as JSON.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    message: &'a DynamicMessage,
    style: Style,
}

/// How a message is written.
#[derive(Clone, Copy, Debug)]
struct Style {
    /// Whether fields that are not set are written.
    whole: bool,
    words: EnumWords,
}

impl<'a> Shown<'a> {
    /// Every field.
    pub const fn whole(message: &'a DynamicMessage, words: EnumWords) -> Self {
        Self { message, style: Style { whole: true, words } }
    }

    /// Only the fields that are set, as details of an error are written.
    pub const fn set_only(message: &'a DynamicMessage) -> Self {
        Self { message, style: Style { whole: false, words: EnumWords::Upper } }
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.message.descriptor();
        match descriptor.full_name() {
            "google.protobuf.Timestamp" => serializer.serialize_str(&instant(self.message).ok_or_else(unshowable)?),
            "google.protobuf.Duration" => serializer.serialize_str(&duration(self.message)),
            "google.protobuf.Struct" => self.field(&descriptor, "fields", serializer),
            "google.protobuf.ListValue" => self.field(&descriptor, "values", serializer),
            "google.protobuf.Value" => self.any_value(serializer),
            "google.protobuf.Any" => self.any(serializer),
            MASK => serializer.serialize_str(&mask(self.message).ok_or_else(unshowable)?),
            name if is_wrapper(name) => self.field(&descriptor, "value", serializer),
            _ => {
                let mut map = serializer.serialize_map(None)?;
                self.entries(&mut map)?;
                map.end()
            }
        }
    }
}

impl Shown<'_> {
    fn entries<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        for field in self.message.descriptor().fields() {
            if self.message.has_field(&field) {
                let value = self.message.get_field(&field);
                map.serialize_entry(field.name(), &ShownField { field: &field, value: &value, style: self.style })?;
            } else if self.style.whole && field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic()) {
                if field.supports_presence() {
                    map.serialize_entry(field.name(), &())?;
                } else {
                    let value = field.default_value();
                    map.serialize_entry(field.name(), &ShownField { field: &field, value: &value, style: self.style })?;
                }
            }
        }
        Ok(())
    }

    /// The one field that stands for the whole message.
    fn field<S: Serializer>(&self, of: &MessageDescriptor, name: &str, serializer: S) -> Result<S::Ok, S::Error> {
        let field = of.get_field_by_name(name).ok_or_else(unshowable)?;
        let value = self.message.get_field(&field);
        ShownField { field: &field, value: &value, style: self.style }.serialize(serializer)
    }

    fn any_value<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.message.fields().next() {
            Some((field, _)) if field.name() == "null_value" => serializer.serialize_unit(),
            Some((_, Value::F64(number))) => serialize_number(*number, serializer),
            Some((field, value)) => ShownField { field: &field, value, style: self.style }.serialize(serializer),
            None => serializer.serialize_unit(),
        }
    }

    /// `{"@type": …, fields}` of the message inside, which is a detail of an error; a type that is not in the descriptors is
    /// shown by its name alone.
    fn any<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |name: &str| self.message.get_field_by_name(name).map(Cow::into_owned);
        let url = match text("type_url") {
            Some(Value::String(url)) => url,
            _ => String::new(),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("@type", &url)?;
        let name = url.rsplit('/').next().unwrap_or_default();
        let inner = self.message.descriptor().parent_pool().get_message_by_name(name);
        if let (Some(inner), Some(Value::Bytes(bytes))) = (inner, text("value"))
            && let Ok(message) = DynamicMessage::decode(inner, bytes)
        {
            let shown = Shown::set_only(&message);
            if has_own_form(message.descriptor().full_name()) {
                map.serialize_entry("value", &shown)?;
            } else {
                shown.entries(&mut map)?;
            }
        }
        map.end()
    }
}

struct ShownField<'a> {
    field: &'a FieldDescriptor,
    value: &'a Value,
    style: Style,
}

impl Serialize for ShownField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::List(list) => {
                let mut elements = serializer.serialize_seq(Some(list.len()))?;
                for value in list {
                    elements.serialize_element(&ShownField { value, ..*self })?;
                }
                elements.end()
            }
            Value::Map(entries) => {
                let Kind::Message(entry) = self.field.kind() else { return Err(unshowable()) };
                let field = entry.map_entry_value_field();
                let mut sorted: Vec<(String, &Value)> =
                    entries.iter().map(|(key, value)| (key_text(key), value)).collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                let mut map = serializer.serialize_map(Some(sorted.len()))?;
                for (key, value) in sorted {
                    map.serialize_entry(&key, &ShownField { field: &field, value, style: self.style })?;
                }
                map.end()
            }
            Value::Message(message) => Shown { message, style: self.style }.serialize(serializer),
            Value::EnumNumber(number) => match self.field.kind() {
                Kind::Enum(descriptor) if descriptor.full_name() == NULL_VALUE => serializer.serialize_unit(),
                Kind::Enum(descriptor) => match words::word_of(&descriptor, *number) {
                    Some(word) if self.style.words == EnumWords::Lower => {
                        serializer.serialize_str(&word.to_ascii_lowercase())
                    }
                    Some(word) => serializer.serialize_str(&word),
                    None => serializer.serialize_i32(*number),
                },
                _ => serializer.serialize_i32(*number),
            },
            Value::Bool(flag) => serializer.serialize_bool(*flag),
            Value::I32(number) => serializer.serialize_i32(*number),
            Value::U32(number) => serializer.serialize_u32(*number),
            // The one departure from proto3 JSON: what every client reads exactly is a number, as the first system's counters
            // were.
            Value::I64(number) if number.unsigned_abs() <= EXACT_MAX => serializer.serialize_i64(*number),
            Value::U64(number) if *number <= EXACT_MAX => serializer.serialize_u64(*number),
            Value::I64(number) => serializer.collect_str(number),
            Value::U64(number) => serializer.collect_str(number),
            Value::F32(number) if !number.is_finite() => serializer.serialize_str(not_finite(f64::from(*number))),
            Value::F64(number) if !number.is_finite() => serializer.serialize_str(not_finite(*number)),
            Value::F32(number) if is_shown_whole(f64::from(*number)) => {
                serialize_number(f64::from(*number), serializer)
            }
            // Its own shortest digits, which are fewer than those of the double that it also is.
            Value::F32(number) => serializer.serialize_f32(*number),
            Value::F64(number) => serialize_number(*number, serializer),
            Value::String(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => serializer.serialize_str(&BASE64_STANDARD.encode(bytes)),
        }
    }
}

/// `30`, not `30.0`: what came in as an integer goes out as one. Anything else has the shortest digits that read as the same
/// double, and the sign of a zero is kept.
fn serialize_number<S: Serializer>(number: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if !number.is_finite() {
        return serializer.serialize_unit();
    }
    if is_shown_whole(number) {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within ±2^53")]
        return serializer.serialize_i64(number as i64);
    }
    serializer.serialize_f64(number)
}

fn is_shown_whole(number: f64) -> bool {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.fract() == 0.0 && number.abs() <= EXACT && !(number == 0.0 && number.is_sign_negative())
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(flag) => flag.to_string(),
        MapKey::I32(number) => number.to_string(),
        MapKey::I64(number) => number.to_string(),
        MapKey::U32(number) => number.to_string(),
        MapKey::U64(number) => number.to_string(),
        MapKey::String(text) => text.clone(),
    }
}

fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message.get_field_by_name("seconds").and_then(|value| value.as_i64()).unwrap_or(0);
    let nanos = message.get_field_by_name("nanos").and_then(|value| value.as_i32()).unwrap_or(0);
    (seconds, nanos)
}

/// Whether the message is a scalar with presence.
pub fn is_wrapper(full_name: &str) -> bool {
    let name = full_name.strip_prefix("google.protobuf.").and_then(|name| name.strip_suffix("Value"));
    matches!(name, Some("Bool" | "String" | "Int32" | "Int64" | "UInt32" | "UInt64" | "Float" | "Double" | "Bytes"))
}

/// Whether the JSON of the message is another than an object of its fields.
fn has_own_form(full_name: &str) -> bool {
    const OWN: [&str; 6] = ["Timestamp", "Duration", "Struct", "ListValue", "Value", "FieldMask"];
    full_name.strip_prefix("google.protobuf.").is_some_and(|name| OWN.contains(&name)) || is_wrapper(full_name)
}

/// A `google.protobuf.Timestamp` as RFC 3339, with 0, 3, 6 or 9 digits of a second. `None`: of no year that this has.
pub fn instant(message: &DynamicMessage) -> Option<String> {
    let (seconds, nanos) = seconds_and_nanos(message);
    let at = DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?)?;
    Some(at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

fn duration(message: &DynamicMessage) -> String {
    let (seconds, nanos) = seconds_and_nanos(message);
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
    match nanos {
        0 => format!("{sign}{seconds}s"),
        nanos if nanos % 1_000_000 == 0 => format!("{sign}{seconds}.{:03}s", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!("{sign}{seconds}.{:06}s", nanos / 1_000),
        nanos => format!("{sign}{seconds}.{nanos:09}s"),
    }
}

/// `maxRetries,job.tags`. `None`: a path that would not read back.
fn mask(message: &DynamicMessage) -> Option<String> {
    let paths = message.get_field_by_name("paths")?;
    let paths: Option<Vec<String>> = paths.as_list()?.iter().map(|path| capitalised(path.as_str()?)).collect();
    Some(paths?.join(","))
}

/// `max_retries` as `maxRetries`.
fn capitalised(path: &str) -> Option<String> {
    if path.contains(|letter: char| letter.is_ascii_uppercase()) {
        return None;
    }
    let mut words = path.split('_');
    let mut joined = words.next()?.to_owned();
    for word in words {
        joined.push(word.chars().next().filter(char::is_ascii_lowercase)?.to_ascii_uppercase());
        joined.push_str(word.get(1..)?);
    }
    Some(joined)
}

/// A floating point number that JSON has none for.
fn not_finite(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

fn unshowable<E: Error>() -> E {
    E::custom("a value of the answer has no JSON form")
}
