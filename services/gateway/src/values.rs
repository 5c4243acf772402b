//! Between the wire's types and those of the store: JSON documents and instants.

use std::fmt;

use carillon_core::error::{FieldViolation, excerpt};
use carillon_core::limits::VALUE_DEPTH_MAX;
use chrono::{DateTime, Utc};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use serde_json::{Map, Number, Value as Json};

/// More mistakes of one document than anybody mends in one go are not listed.
const VIOLATIONS_MAX: usize = 10;

/// A document as JSON. Whole numbers become integers, as they were written.
///
/// # Errors
/// What in it breaks which rule, by its path from `field` on: Postgres holds neither NUL nor infinite numbers, and what is
/// nested too deeply nobody could read again.
pub(crate) fn from_struct(document: Struct, field: &str) -> Result<Json, Vec<FieldViolation>> {
    let mut reading = Reading::default();
    let json = reading.object(document, &Path::Field(field), 1);
    if reading.is_too_deep {
        let rule = format!("must not be nested deeper than {VALUE_DEPTH_MAX} levels");
        return Err(vec![FieldViolation::new(field, rule)]);
    }
    if reading.violations.is_empty() { Ok(json) } else { Err(reading.violations) }
}

/// Where something stands; spelled out only where it is wrong.
enum Path<'a> {
    Field(&'a str),
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Key(outer, key) => write!(f, "{outer}.{}", excerpt(key, 60)),
            Self::Index(outer, index) => write!(f, "{outer}[{index}]"),
        }
    }
}

/// What is wrong so far.
#[derive(Default)]
struct Reading {
    violations: Vec<FieldViolation>,
    is_too_deep: bool,
}

impl Reading {
    fn object(&mut self, document: Struct, path: &Path<'_>, level: usize) -> Json {
        let mut object = Map::new();
        for (key, value) in document.fields {
            let at = Path::Key(path, &key);
            let value = self.value(value, &at, level + 1);
            self.text(&key, &at);
            object.insert(key, value);
        }
        Json::Object(object)
    }

    /// A value; an object or a list would be on this level.
    fn value(&mut self, value: Value, path: &Path<'_>, level: usize) -> Json {
        match value.kind {
            None | Some(Kind::NullValue(_)) => Json::Null,
            Some(Kind::BoolValue(flag)) => Json::Bool(flag),
            Some(Kind::NumberValue(number)) => match from_number(number) {
                Some(number) => Json::Number(number),
                None => self.wrong(path, format!("must be a finite number, is {number}")),
            },
            Some(Kind::StringValue(text)) => {
                self.text(&text, path);
                Json::String(text)
            }
            Some(Kind::ListValue(_) | Kind::StructValue(_)) if level > VALUE_DEPTH_MAX => {
                self.is_too_deep = true;
                Json::Null
            }
            Some(Kind::ListValue(list)) => {
                let values = list.values.into_iter().enumerate();
                Json::Array(values.map(|(at, value)| self.value(value, &Path::Index(path, at), level + 1)).collect())
            }
            Some(Kind::StructValue(inner)) => self.object(inner, path, level),
        }
    }

    fn text(&mut self, text: &str, path: &Path<'_>) {
        if text.contains('\0') {
            self.wrong(path, "must not contain the character NUL".to_owned());
        }
    }

    fn wrong(&mut self, path: &Path<'_>, rule: String) -> Json {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(FieldViolation::new(excerpt(&path.to_string(), 300), rule));
        }
        Json::Null
    }
}

fn from_number(number: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let is_negative_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && number.abs() <= EXACT && !is_negative_zero {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within ±2^53")]
        return Some(Number::from(number as i64));
    }
    Number::from_f64(number)
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
    use carillon_core::json::wire_bytes;
    use proptest::prelude::*;
    use prost::Message;
    use serde_json::json;

    use super::*;

    fn refused(json: Json, kind: Kind) -> Vec<String> {
        let mut document = to_struct(json);
        document.fields.insert("z".to_owned(), Value { kind: Some(kind) });
        let violations = from_struct(document, "payload").unwrap_err();
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_document_reads_back_with_its_integers() {
        let json = json!({"a": 30, "b": [1.5, null, true, "x", -0.0], "c": {"d": -9_007_199_254_740_991_i64}});
        let back = from_struct(to_struct(json.clone()), "payload").unwrap();
        assert_eq!(back.to_string(), json.to_string());
    }

    #[test]
    fn what_postgres_cannot_hold_is_refused_by_its_path() {
        let inner = to_struct(json!({"b": [1, 2, {"c": "\0", "\0": 1}]}));
        assert_eq!(
            refused(json!({"d": 1}), Kind::StructValue(inner)),
            [
                "payload.z.b[2].\u{fffd}: must not contain the character NUL",
                "payload.z.b[2].c: must not contain the character NUL"
            ]
        );
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let rule = format!("payload.z: must be a finite number, is {number}");
            assert_eq!(refused(json!({}), Kind::NumberValue(number)), [rule]);
        }
        let many = ListValue { values: vec![Value { kind: Some(Kind::NumberValue(f64::NAN)) }; 1_000] };
        assert_eq!(refused(json!({}), Kind::ListValue(many)).len(), VIOLATIONS_MAX);
    }

    #[test]
    fn what_is_too_deep_is_refused_by_its_field() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| Json::Array(vec![inner]));
        let read = |levels| from_struct(to_struct(json!({ "a": nested(levels) })), "payload");
        assert!(read(VALUE_DEPTH_MAX - 1).is_ok());
        for levels in [VALUE_DEPTH_MAX, 45] {
            let violations = read(levels).unwrap_err();
            assert_eq!(violations, [FieldViolation::new("payload", "must not be nested deeper than 30 levels")]);
        }
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(|bits| Json::from(f64::from_bits(bits))),
            "[a-zä]{0,200}".prop_map(Json::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::btree_map(".{0,3}", inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_double_keeps_its_bits(bits: u64) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            let document = Struct { fields: [("n".to_owned(), Value { kind: Some(Kind::NumberValue(number)) })].into() };
            let json = from_struct(document, "payload").unwrap();
            prop_assert_eq!(json["n"].as_f64().map(f64::to_bits), Some(bits));
            let Some(Kind::NumberValue(back)) = to_value(json["n"].clone()).kind else { panic!("{json}") };
            prop_assert_eq!(back.to_bits(), bits);
        }

        /// What the store counts, without knowing protobuf, is what is sent.
        #[test]
        fn wire_bytes_are_never_less_than_what_is_sent(json in any_json()) {
            let sent = to_value(json.clone()).encoded_len();
            prop_assert!(sent <= wire_bytes(&json), "{} {}", sent, wire_bytes(&json));
            prop_assert!(wire_bytes(&json) <= sent * 2 + 16, "{} {}", sent, wire_bytes(&json));
        }
    }
}
