//! Between the wire's types and those of the store: JSON documents and instants.

use chrono::{DateTime, Utc};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use serde_json::{Map, Number, Value as Json};

/// A document as JSON. Whole numbers become integers, as they were written.
///
/// # Errors
/// The rule that a value inside breaks: Postgres holds neither NUL nor infinite numbers.
pub(crate) fn from_struct(document: Struct) -> Result<Json, String> {
    let mut object = Map::new();
    for (key, value) in document.fields {
        require_no_nul(&key)?;
        object.insert(key, from_value(value)?);
    }
    Ok(Json::Object(object))
}

fn from_value(value: Value) -> Result<Json, String> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(flag)) => Json::Bool(flag),
        Some(Kind::NumberValue(number)) => Json::Number(from_number(number)?),
        Some(Kind::StringValue(text)) => {
            require_no_nul(&text)?;
            Json::String(text)
        }
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(from_value).collect::<Result<_, _>>()?),
        Some(Kind::StructValue(inner)) => from_struct(inner)?,
    })
}

fn from_number(number: f64) -> Result<Number, String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within ±2^53")]
        return Ok(Number::from(number as i64));
    }
    Number::from_f64(number).ok_or_else(|| "must hold finite numbers only".to_owned())
}

fn require_no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("must not contain the character NUL".to_owned()) } else { Ok(()) }
}

/// JSON as a document; what is not an object becomes an empty one.
pub(crate) fn to_struct(json: Json) -> Struct {
    match json {
        Json::Object(object) => {
            Struct { fields: object.into_iter().map(|(key, value)| (key, to_value(value))).collect() }
        }
        _ => Struct::default(),
    }
}

/// JSON as a value.
pub(crate) fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(to_value).collect() }),
        object @ Json::Object(_) => Kind::StructValue(to_struct(object)),
    };
    Value { kind: Some(kind) }
}

/// An instant for the wire.
pub(crate) fn to_timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0) }
}

/// A count for the wire, where 32 bits are a number in JSON and 64 would be a string.
pub(crate) fn to_count(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_back_with_its_integers() {
        let json = serde_json::json!({"a": 30, "b": [1.5, null, true, "x"], "c": {"d": -9_007_199_254_740_991_i64}});
        let back = from_struct(to_struct(json.clone())).unwrap();
        assert_eq!(back.to_string(), json.to_string());
    }

    #[test]
    fn what_postgres_cannot_hold_is_refused() {
        let with = |kind| from_struct(Struct { fields: [("a".to_owned(), Value { kind: Some(kind) })].into() });
        assert!(with(Kind::NumberValue(f64::NAN)).is_err());
        assert!(with(Kind::NumberValue(f64::INFINITY)).is_err());
        assert!(with(Kind::StringValue("\0".to_owned())).is_err());
        assert!(from_struct(Struct { fields: [("\0".to_owned(), Value { kind: None })].into() }).is_err());
        assert_eq!(with(Kind::NumberValue(1e300)).unwrap().to_string(), "{\"a\":1e+300}");
    }
}
