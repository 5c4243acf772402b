//! Values of fields from what a person gives: from the text of a flag and from JSON, in one meaning, that of the gateway's JSON:
//! names of fields in both spellings, enums as words in any case, instants as RFC 3339, null for what is not set.
//!
//! The ranges and rules of a field are the server's; here only its type is read. Every mistake is kept with its place, so that they
//! are told together.

use std::collections::HashMap;

use carillon_proto::json::EXACT_MAX;
use carillon_proto::{field_named, words};
use chrono::{DateTime, Utc};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::Value as Json;

use super::catalog::is_ordinary;

/// What is wrong, a line each.
pub(crate) type Mistakes = Vec<String>;

/// From the text of a flag; whatever is no scalar and no time is JSON.
pub(crate) fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Bool => text.parse().map(Value::Bool).map_err(|_| "must be true or false".to_owned()),
        Kind::Enum(of) => {
            let number = words::number_of(of, text).map(Value::EnumNumber);
            number.ok_or_else(|| format!("must be one of {}", words::allowed(of)))
        }
        Kind::Float => text.parse().map(Value::F32).map_err(|_| "must be a number".to_owned()),
        Kind::Double => text.parse().map(Value::F64).map_err(|_| "must be a number".to_owned()),
        Kind::Bytes => Err("is bytes, which cannot be given here".to_owned()),
        Kind::Message(of) => match of.full_name() {
            "google.protobuf.Timestamp" => instant(of, text),
            "google.protobuf.Duration" => well_known(of, Json::String(text.to_owned())),
            _ => of_message(of, text),
        },
        _ => whole(kind, text),
    }
}

fn of_message(of: &MessageDescriptor, text: &str) -> Result<Value, String> {
    let json = parse(text)?;
    let mut mistakes = Mistakes::new();
    let read = message(of, &json, "", &mut mistakes);
    match read {
        Some(read) if mistakes.is_empty() => Ok(Value::Message(read)),
        _ => Err(mistakes.join("; ")),
    }
}

/// Reads JSON, and refuses a whole number that a double would change without a word: that is what numbers of a payload are.
pub(crate) fn parse(text: &str) -> Result<Json, String> {
    let json = serde_json::from_str(text).map_err(|error| no_json(&error))?;
    exact(text).map(|()| json)
}

/// The same of one value after another.
pub(crate) fn parse_all(text: &str) -> Result<Vec<Json>, String> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Json>();
    let values = values.collect::<Result<Vec<Json>, _>>().map_err(|error| no_json(&error))?;
    exact(text).map(|()| values)
}

fn no_json(error: &serde_json::Error) -> String {
    format!("is no JSON: {error}")
}

fn exact(text: &str) -> Result<(), String> {
    match inexact(text) {
        Some(number) => Err(format!("has the number {number}, which 64-bit floats do not hold: give it as a string")),
        None => Ok(()),
    }
}

/// The first whole number beyond ±2^53 in a text that is JSON.
fn inexact(text: &str) -> Option<&str> {
    let (mut rest, mut in_string) = (text, false);
    while let Some(first) = rest.chars().next() {
        let number = if in_string { 0 } else { rest.find(|letter| !is_of_number(letter)).unwrap_or(rest.len()) };
        if number > 0 {
            let (number, after) = rest.split_at(number);
            let digits = number.trim_start_matches('-');
            let is_whole = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            if is_whole && !digits.parse::<u64>().is_ok_and(|whole| whole <= EXACT_MAX) {
                return Some(number);
            }
            rest = after;
            continue;
        }
        let mut after = rest.chars();
        after.next();
        match first {
            '"' => in_string = !in_string,
            '\\' if in_string => {
                after.next();
            }
            _ => {}
        }
        rest = after.as_str();
    }
    None
}

/// `true` and `null` have such letters too; they are no whole numbers.
fn is_of_number(letter: char) -> bool {
    letter.is_ascii_digit() || matches!(letter, '-' | '+' | '.' | 'e' | 'E')
}

/// A field's value. `None`: it is not set, or a mistake says why it cannot be.
pub(crate) fn of_field(field: &FieldDescriptor, json: &Json, at: &str, mistakes: &mut Mistakes) -> Option<Value> {
    if field.is_map() {
        return map(field, json, at, mistakes);
    }
    let is_any = matches!(field.kind(), Kind::Message(of) if of.full_name() == "google.protobuf.Value");
    if json.is_null() && !is_any {
        return None;
    }
    if !field.is_list() {
        return single(&field.kind(), json, at, mistakes);
    }
    let Json::Array(elements) = json else {
        mistakes.push(format!("{at}: must be a list"));
        return None;
    };
    let read = elements.iter().enumerate();
    let read = read.filter_map(|(index, json)| single(&field.kind(), json, &format!("{at}[{index}]"), mistakes));
    Some(Value::List(read.collect()))
}

fn map(field: &FieldDescriptor, json: &Json, at: &str, mistakes: &mut Mistakes) -> Option<Value> {
    let Kind::Message(entry) = field.kind() else { return None };
    let entries = match json {
        Json::Object(entries) => entries,
        Json::Null => return None,
        _ => {
            mistakes.push(format!("{at}: must be an object"));
            return None;
        }
    };
    let mut map: HashMap<MapKey, Value> = HashMap::with_capacity(entries.len());
    for (key, json) in entries {
        let place = format!("{at}.{key}");
        match from_text(&entry.map_entry_key_field().kind(), key).map(Value::into_map_key) {
            Ok(Some(key)) => {
                if let Some(value) = single(&entry.map_entry_value_field().kind(), json, &place, mistakes) {
                    map.insert(key, value);
                }
            }
            Ok(None) => mistakes.push(format!("{place}: cannot be a key")),
            Err(rule) => mistakes.push(format!("{place}: {rule}")),
        }
    }
    Some(Value::Map(map))
}

fn single(kind: &Kind, json: &Json, at: &str, mistakes: &mut Mistakes) -> Option<Value> {
    let read = match (kind, json) {
        (Kind::Message(of), _) => return message(of, json, at, mistakes).map(Value::Message),
        (Kind::Bool, Json::Bool(flag)) => Ok(Value::Bool(*flag)),
        (Kind::String, Json::String(text)) => Ok(Value::String(text.clone())),
        (Kind::Bool, _) => Err("must be true or false".to_owned()),
        (Kind::String, _) => Err("must be a string".to_owned()),
        (Kind::Enum(_), Json::Number(number)) => match number.as_i64().map(i32::try_from) {
            Some(Ok(number)) => Ok(Value::EnumNumber(number)),
            _ => from_text(kind, &number.to_string()),
        },
        (_, Json::String(text)) => from_text(kind, text),
        (_, Json::Number(number)) => from_text(kind, &number.to_string()),
        (_, json) => from_text(kind, &json.to_string()),
    };
    read.map_err(|rule| mistakes.push(told(at, &rule))).ok()
}

/// A message from JSON. `at` is where it stands, empty at the top.
pub(crate) fn message(
    of: &MessageDescriptor,
    json: &Json,
    at: &str,
    mistakes: &mut Mistakes,
) -> Option<DynamicMessage> {
    if !is_ordinary(of) {
        let read = match (of.full_name(), json) {
            ("google.protobuf.Timestamp", Json::String(text)) => instant(of, text),
            ("google.protobuf.Timestamp", _) => Err(INSTANT.to_owned()),
            _ => well_known(of, json.clone()),
        };
        return match read {
            Ok(Value::Message(read)) => Some(read),
            Ok(_) => None,
            Err(rule) => {
                mistakes.push(told(at, &rule));
                None
            }
        };
    }
    let Json::Object(entries) = json else {
        mistakes.push(told(at, "must be an object"));
        return None;
    };
    let mut read = DynamicMessage::new(of.clone());
    for (name, json) in entries {
        let place = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match field_named(of, name) {
            None => mistakes.push(format!("{place}: is not a field of {}", of.name())),
            Some(field) if read.has_field(&field) => {
                mistakes.push(format!("{place}: is given twice, in both spellings"))
            }
            Some(field) => {
                if let Some(value) = of_field(&field, json, &place, mistakes) {
                    read.set_field(&field, value);
                }
            }
        }
    }
    Some(read)
}

fn told(at: &str, rule: &str) -> String {
    if at.is_empty() { rule.to_owned() } else { format!("{at}: {rule}") }
}

fn whole(kind: &Kind, text: &str) -> Result<Value, String> {
    // JSON may write 3 as 3.0.
    let text = text.strip_suffix(".0").unwrap_or(text);
    let read = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => text.parse().ok().map(Value::I32),
        Kind::Uint32 | Kind::Fixed32 => text.parse().ok().map(Value::U32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => text.parse().ok().map(Value::I64),
        Kind::Uint64 | Kind::Fixed64 => text.parse().ok().map(Value::U64),
        _ => return Err("cannot be given here".to_owned()),
    };
    let is_signed = !matches!(kind, Kind::Uint32 | Kind::Fixed32 | Kind::Uint64 | Kind::Fixed64);
    let is_long = !matches!(kind, Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 | Kind::Uint32 | Kind::Fixed32);
    let bits = if is_long { 64 } else { 32 };
    let least = if is_signed { "" } else { " from 0 on" };
    read.ok_or_else(|| format!("must be a whole number{least}, of at most {bits} bits"))
}

const INSTANT: &str = "must be an instant as RFC 3339 has it, such as 2027-12-01T10:00:00Z";

fn instant(of: &MessageDescriptor, text: &str) -> Result<Value, String> {
    let wrong = || INSTANT.to_owned();
    // `2027-12-01 10:00:00Z` is not RFC 3339, but the library would take it.
    if text.as_bytes().get(10).is_none_or(|separator| !separator.eq_ignore_ascii_case(&b't')) {
        return Err(wrong());
    }
    let at = DateTime::parse_from_rfc3339(text).map_err(|_| wrong())?.with_timezone(&Utc);
    // A leap second reads as nanoseconds beyond a second; protobuf has none.
    let nanos = i32::try_from(at.timestamp_subsec_nanos()).ok().filter(|nanos| *nanos < 1_000_000_000);
    let timestamp = prost_types::Timestamp { seconds: at.timestamp(), nanos: nanos.ok_or_else(wrong)? };
    let mut message = DynamicMessage::new(of.clone());
    message.transcode_from(&timestamp).map_err(|error| error.to_string())?;
    Ok(Value::Message(message))
}

/// By the reader of prost-reflect, which knows their forms.
fn well_known(of: &MessageDescriptor, json: Json) -> Result<Value, String> {
    let read = DynamicMessage::deserialize(of.clone(), json).map_err(|error| match of.full_name() {
        "google.protobuf.Struct" => "must be a JSON object".to_owned(),
        "google.protobuf.Duration" => "must be seconds with an s, such as 1.5s".to_owned(),
        _ => error.to_string(),
    })?;
    Ok(Value::Message(read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::descriptors;

    fn job() -> MessageDescriptor {
        descriptors().get_message_by_name("carillon.v1.Job").unwrap()
    }

    fn read(text: &str) -> (Option<DynamicMessage>, Mistakes) {
        let mut mistakes = Mistakes::new();
        let message = message(&job(), &parse(text).unwrap(), "", &mut mistakes);
        (message, mistakes)
    }

    #[test]
    fn words_of_enums_are_free_when_given_and_named_when_refused() {
        let status = Kind::Enum(carillon_proto::descriptors().get_enum_by_name("carillon.v1.ExecutionStatus").unwrap());
        for text in ["QUEUED", "queued", "pending", "EXECUTION_STATUS_PENDING", "execution_status_queued", "1"] {
            assert_eq!(from_text(&status, text), Ok(Value::EnumNumber(1)), "{text}");
        }
        let rule = from_text(&status, "done").unwrap_err();
        assert_eq!(rule, "must be one of QUEUED, RUNNING, RETRYING, SUCCESS, FAILED, TIMEOUT, CANCELLED, SKIPPED");
    }

    #[test]
    fn a_job_reads_as_the_gateway_reads_it() {
        let text = r#"{"name": "n", "maxRetries": 3.0, "priority": "high", "tags": ["a"], "next_run": null,
            "payload": {"a": [1, null, {"b": 0.1}]}, "exclusions": [{"date": "2026-12-24"}],
            "execute_at": "2027-12-01T11:00:00+01:00"}"#;
        let (job, mistakes) = read(text);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let job: carillon_proto::v1::Job = job.unwrap().transcode_to().unwrap();
        assert_eq!((job.name.as_str(), job.max_retries, job.priority), ("n", Some(3), 3));
        assert_eq!(job.execute_at.unwrap().seconds, 1_827_655_200);
        assert_eq!(job.exclusions[0].date.as_deref(), Some("2026-12-24"));
        assert_eq!(job.payload.unwrap().fields.len(), 1);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let (_, mistakes) = read(
            r#"{"nme": 1, "max_retries": -1, "priority": "urgent", "tags": "a", "exclusions": [{"day": 1}],
                "execute_at": "tomorrow", "payload": [1], "allow_overlap": "yes"}"#,
        );
        let places: Vec<&str> = mistakes.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
        let wanted =
            ["allow_overlap", "exclusions[0].day", "execute_at", "max_retries", "nme", "payload", "priority", "tags"];
        assert_eq!(places, wanted, "{mistakes:?}");
    }

    #[test]
    fn a_number_that_would_change_is_refused() {
        for (text, refused) in [
            ("{\"a\": 9007199254740992}", None),
            ("{\"a\": 9007199254740993}", Some("9007199254740993")),
            ("{\"a\": [-123456789012345678901234567890]}", Some("-123456789012345678901234567890")),
            ("{\"a\": \"9007199254740993\", \"\\\"9007199254740993\": 1e300, \"b\": 0.1}", None),
        ] {
            assert_eq!(inexact(text), refused, "{text}");
            assert_eq!(parse(text).is_err(), refused.is_some(), "{text}");
        }
    }

    #[test]
    fn text_is_read_by_its_type() {
        assert_eq!(from_text(&Kind::Uint32, "3"), Ok(Value::U32(3)));
        assert!(from_text(&Kind::Uint32, "-3").is_err() && from_text(&Kind::Uint32, "4294967296").is_err());
        assert_eq!(from_text(&Kind::Bool, "false"), Ok(Value::Bool(false)));
        let kind = |name: &str| job().get_field_by_name(name).unwrap().kind();
        for text in ["2027-12-01", "2027-12-01 10:00:00Z", "now", "", "2016-12-31T23:59:60Z"] {
            assert!(from_text(&kind("execute_at"), text).is_err(), "{text}");
        }
        assert_eq!(from_text(&kind("payload"), "[1]"), Err("must be a JSON object".to_owned()));
        assert!(from_text(&kind("payload"), "{\"a\": 1}").is_ok());
        assert!(from_text(&kind("payload"), "{").unwrap_err().starts_with("is no JSON"));
    }
}
