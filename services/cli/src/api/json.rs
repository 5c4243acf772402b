//! A message as JSON, as the gateway answers it: fields named and ordered as in the protos, every one present, enums as bare
//! words, instants as RFC 3339, integers beyond ±2^53 as strings. So what `-o json` prints can be given again by `--file`.

use chrono::{DateTime, SecondsFormat};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};
use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeSeq as _, Serializer};

use super::text::is_hidden;
use super::value::WHOLE_MAX;
use super::words;

/// The text of a message.
pub(crate) fn text(message: &DynamicMessage, pretty: bool) -> String {
    let shown = Shown(message);
    let text = if pretty { serde_json::to_string_pretty(&shown) } else { serde_json::to_string(&shown) };
    // Writing to memory fails for nothing but a key that is no string, which there is none of.
    escaped(&text.unwrap_or_else(|error| format!("{{\"unshowable\": \"{error}\"}}")))
}

/// What would change the look of a terminal, escaped: such letters can only be within strings, where JSON has a form for them.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_hidden(letter) && letter != '\n' {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

struct Shown<'a>(&'a DynamicMessage);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(message) = self;
        let descriptor = message.descriptor();
        let only = |name: &str| descriptor.get_field_by_name(name);
        match descriptor.full_name() {
            "google.protobuf.Timestamp" => serializer.serialize_str(&instant(message)),
            "google.protobuf.Value" => any(message, serializer),
            "google.protobuf.Struct" => shown_or_null(message, only("fields"), serializer),
            "google.protobuf.ListValue" => shown_or_null(message, only("values"), serializer),
            // Durations, wrappers, masks: there are none yet; prost-reflect knows their forms.
            name if name.starts_with("google.protobuf.") => message.serialize(serializer),
            _ => {
                let mut map = serializer.serialize_map(None)?;
                for field in descriptor.fields() {
                    let of_choice = field.containing_oneof().is_some_and(|choice| !choice.is_synthetic());
                    if message.has_field(&field) || !field.supports_presence() {
                        map.serialize_entry(field.name(), &ShownValue(&field, &message.get_field(&field)))?;
                    } else if !of_choice {
                        map.serialize_entry(field.name(), &())?;
                    }
                }
                map.end()
            }
        }
    }
}

fn shown_or_null<S: Serializer>(
    message: &DynamicMessage,
    field: Option<FieldDescriptor>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match field {
        Some(field) => ShownValue(&field, &message.get_field(&field)).serialize(serializer),
        None => serializer.serialize_unit(),
    }
}

/// A google.protobuf.Value: whichever of its fields is set.
fn any<S: Serializer>(message: &DynamicMessage, serializer: S) -> Result<S::Ok, S::Error> {
    match message.fields().next() {
        Some((field, _)) if field.name() == "null_value" => serializer.serialize_unit(),
        Some((field, value)) => ShownValue(&field, value).serialize(serializer),
        None => serializer.serialize_unit(),
    }
}

struct ShownValue<'a>(&'a FieldDescriptor, &'a Value);

impl Serialize for ShownValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(field, value) = self;
        match value {
            Value::List(list) => {
                let mut elements = serializer.serialize_seq(Some(list.len()))?;
                for element in list {
                    elements.serialize_element(&ShownValue(field, element))?;
                }
                elements.end()
            }
            Value::Map(entries) => {
                let Kind::Message(entry) = field.kind() else { return serializer.serialize_unit() };
                let of_value = entry.map_entry_value_field();
                let mut sorted: Vec<(String, &Value)> =
                    entries.iter().map(|(key, value)| (key_text(key), value)).collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                let mut map = serializer.serialize_map(Some(sorted.len()))?;
                for (key, value) in sorted {
                    map.serialize_entry(&key, &ShownValue(&of_value, value))?;
                }
                map.end()
            }
            Value::Message(message) => Shown(message).serialize(serializer),
            Value::EnumNumber(number) => match field.kind() {
                Kind::Enum(of) => serializer.serialize_str(&words::word_of(&of, *number)),
                _ => serializer.serialize_i32(*number),
            },
            Value::Bool(flag) => serializer.serialize_bool(*flag),
            Value::I32(number) => serializer.serialize_i32(*number),
            Value::U32(number) => serializer.serialize_u32(*number),
            Value::I64(number) if number.unsigned_abs() <= WHOLE_MAX => serializer.serialize_i64(*number),
            Value::U64(number) if *number <= WHOLE_MAX => serializer.serialize_u64(*number),
            Value::I64(number) => serializer.collect_str(number),
            Value::U64(number) => serializer.collect_str(number),
            Value::F32(number) => self::number(f64::from(*number), serializer),
            Value::F64(number) => self::number(*number, serializer),
            Value::String(text) => serializer.serialize_str(text),
            // The gateway does not start with a field of bytes, which have no form here.
            Value::Bytes(_) => serializer.serialize_unit(),
        }
    }
}

/// `30`, not `30.0`, as far as a double holds whole numbers.
fn number<S: Serializer>(number: f64, serializer: S) -> Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let is_whole = number.fract() == 0.0 && number.abs() <= EXACT;
    if is_whole && !(number == 0.0 && number.is_sign_negative()) {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within ±2^53")]
        return serializer.serialize_i64(number as i64);
    }
    serializer.serialize_f64(number)
}

/// With 0, 3, 6 or 9 digits of a second.
pub(crate) fn instant(message: &DynamicMessage) -> String {
    let timestamp: prost_types::Timestamp = message.transcode_to().unwrap_or_default();
    let nanos = u32::try_from(timestamp.nanos).unwrap_or_default();
    let at = DateTime::from_timestamp(timestamp.seconds, nanos);
    at.map_or_else(|| timestamp.to_string(), |at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
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

#[cfg(test)]
mod tests {
    use super::super::catalog::pool;
    use super::super::value;
    use super::*;

    #[test]
    fn what_is_shown_can_be_given_again() {
        let job = pool().unwrap().get_message_by_name("carillon.v1.Job").unwrap();
        let given = r#"{"name":"n\u001b\u009b","type":"CRON","max_retries":0,"payload":{"a":[1,null,1e300,-0.5],"b":"\u202e"},
            "execute_at":"2027-12-01T10:00:00.500Z","exclusions":[{"date":"2026-12-24"}]}"#;
        let mut mistakes = Vec::new();
        let message = value::message(&job, &value::parse(given).unwrap(), "", &mut mistakes).unwrap();
        let shown = text(&message, false);
        assert!(
            shown.starts_with(
                r#"{"id":"","name":"n\u001b\u009b","description":"","type":"CRON","status":"UNSPECIFIED","#
            ),
            "{shown}"
        );
        assert!(shown.contains(r#""key":null"#) && shown.contains(r#""max_retries":0"#), "{shown}");
        assert!(shown.contains(r#""payload":{"a":[1,null,1e+300,-0.5],"b":"\u202e"}"#), "{shown}");
        assert!(shown.contains(r#""execute_at":"2027-12-01T10:00:00.500Z""#) && shown.is_ascii(), "{shown}");
        let again = value::message(&job, &value::parse(&shown).unwrap(), "", &mut mistakes).unwrap();
        assert_eq!((text(&again, false), mistakes), (shown, Vec::new()));
        assert_eq!(text(&message, true).lines().nth(1), Some("  \"id\": \"\","));
    }
}
