//! JSON to protobuf, by descriptors alone.
//!
//! Why not the reader of prost-reflect: it stops at the first mistake and names none by its path. This one reads on: what is
//! wrong is left out of the message and remembered with its path and rule, so that the call can answer with these and with
//! its own objections in one go.

use std::collections::{BTreeMap, HashMap, HashSet};

use carillon_core::error::{FieldViolation, quoted};
use carillon_core::limits::{JOBS_AT_ONCE_MAX, LIST_MAX, VALUE_DEPTH_MAX};
use carillon_proto::field_named;
use carillon_proto::json::{NULL_VALUE, is_wrapper};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::document::Json;
use super::scalar;
use crate::counts::too_long;

/// More mistakes than anybody mends in one go are counted and not listed,
const VIOLATIONS_MAX: usize = 50;
/// but for the first one of each element of the longest list, and what comes behind it: where elements stand each by itself, each
/// is to be known to be wrong, and so is the request.
const ELEMENTS_MAX: usize = JOBS_AT_ONCE_MAX;

/// What could not be read.
#[derive(Clone, Debug)]
pub(crate) struct Mistake {
    pub(crate) violation: FieldViolation,
    /// How many more there are behind it that are not listed: of the same element, if it is of one.
    pub(crate) unlisted: usize,
}

impl Mistake {
    pub(crate) fn new(field: &str, rule: impl Into<String>) -> Self {
        Self { violation: FieldViolation::new(field, rule), unlisted: 0 }
    }
}

/// What was wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(crate) fn add(&mut self, field: &str, rule: impl Into<String>) {
        // `jobs[3` of `jobs[3].name`.
        let element = |path: &str| path.split_once(']').map(|(element, _)| element.to_owned());
        let last = self.0.last().and_then(|last| element(&last.violation.field));
        let is_of_another = || last.is_some() && last != element(field);
        let kept = self.0.len();
        if kept < VIOLATIONS_MAX || kept < VIOLATIONS_MAX + ELEMENTS_MAX && is_of_another() {
            self.0.push(Mistake::new(field, rule));
        } else if let Some(last) = self.0.last_mut() {
            last.unlisted += 1;
        }
    }

    pub(crate) fn into_list(self) -> Vec<Mistake> {
        self.0
    }
}

/// Reads an object into a new message. `path` is where it stands: empty at the top.
pub(crate) fn message(
    descriptor: &MessageDescriptor,
    json: &Json,
    path: &str,
    mistakes: &mut Mistakes,
) -> Option<DynamicMessage> {
    if let Some(read) = well_known(descriptor, json, path, mistakes) {
        return read;
    }
    let Json::Object(object) = json else {
        mistakes.add(if path.is_empty() { "body" } else { path }, format!("must be an object, is {}", json.shown()));
        return None;
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut given = HashSet::with_capacity(object.len());
    for (name, json) in object {
        let Some(field) = field_named(descriptor, name) else {
            mistakes.add(&join(path, name), format!("is not a field of {}", descriptor.name()));
            continue;
        };
        // Not whether it has a value: null has none, and a zero may look like none.
        if !given.insert(field.number()) {
            mistakes.add(&join(path, name), "is given twice, in both spellings");
            continue;
        }
        let at = join(path, field.name());
        let Some(value) = field_value(&field, json, &at, mistakes) else { continue };
        match rival(&field, &message) {
            Some(other) => mistakes.add(&at, format!("must not be given together with {}", other.name())),
            None => message.set_field(&field, value),
        }
    }
    Some(message)
}

/// The field that was given already where only one of several may be.
pub(crate) fn rival(field: &FieldDescriptor, message: &DynamicMessage) -> Option<FieldDescriptor> {
    let choice = field.containing_oneof()?;
    choice.fields().find(|other| other.number() != field.number() && message.has_field(other))
}

/// Reads a body that is one field of a request. A field of the request that is named in it is told where it belongs.
pub(crate) fn body_message(
    descriptor: &MessageDescriptor,
    json: &Json,
    request: &MessageDescriptor,
    mistakes: &mut Mistakes,
) -> Option<DynamicMessage> {
    let Json::Object(object) = json else { return message(descriptor, json, "", mistakes) };
    let is_misplaced = |name: &str| field_named(descriptor, name).is_none() && field_named(request, name).is_some();
    let (misplaced, rest): (Vec<_>, Vec<_>) = object.iter().partition(|(name, _)| is_misplaced(name));
    if misplaced.is_empty() {
        return message(descriptor, json, "", mistakes);
    }
    for (name, _) in misplaced {
        mistakes.add(name, "is no part of the body here: give it as a parameter of the query");
    }
    let rest = rest.into_iter().map(|(name, json)| (name.clone(), json.clone())).collect();
    message(descriptor, &Json::Object(rest), "", mistakes)
}

/// The fields of `descriptor` that an object names, null or not.
pub(crate) fn fields_given(descriptor: &MessageDescriptor, json: &Json) -> Vec<String> {
    let Json::Object(object) = json else { return Vec::new() };
    object.keys().filter_map(|name| field_named(descriptor, name)).map(|field| field.name().to_owned()).collect()
}

fn field_value(field: &FieldDescriptor, json: &Json, path: &str, mistakes: &mut Mistakes) -> Option<Value> {
    if field.is_map() {
        return map(field, json, path, mistakes);
    }
    if *json == Json::Null && !takes_null(field) {
        return None;
    }
    if !field.is_list() {
        return single(field, json, path, mistakes);
    }
    let Json::List(elements) = json else {
        mistakes.add(path, format!("must be a list, is {}", json.shown()));
        return None;
    };
    if elements.len() > LIST_MAX {
        mistakes.add(path, too_long(elements.len()));
        return None;
    }
    let mut list = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        // What cannot be read keeps its place, so that mistakes that are found later name the right one.
        let read = single(field, element, &format!("{path}[{index}]"), mistakes);
        list.push(read.unwrap_or_else(|| Value::default_value(&field.kind())));
    }
    Some(Value::List(list))
}

fn single(field: &FieldDescriptor, json: &Json, path: &str, mistakes: &mut Mistakes) -> Option<Value> {
    if let Kind::Message(descriptor) = field.kind() {
        return message(&descriptor, json, path, mistakes).map(Value::Message);
    }
    scalar::from_json(&field.kind(), json).map_err(|rule| mistakes.add(path, rule)).ok()
}

fn map(field: &FieldDescriptor, json: &Json, path: &str, mistakes: &mut Mistakes) -> Option<Value> {
    let Kind::Message(entry) = field.kind() else { return None };
    let object = match json {
        Json::Null => return None,
        Json::Object(object) => object,
        other => {
            mistakes.add(path, format!("must be an object, is {}", other.shown()));
            return None;
        }
    };
    let mut entries = HashMap::with_capacity(object.len());
    for (key, json) in object {
        let at = format!("{path}[{}]", quoted(key));
        let read_key = scalar::from_text(&entry.map_entry_key_field().kind(), key).map(Value::into_map_key);
        match read_key {
            Ok(Some(read_key)) if entries.contains_key(&read_key) => {
                mistakes.add(&at, "is given twice, written otherwise");
            }
            Ok(Some(read_key)) => {
                if let Some(value) = single(&entry.map_entry_value_field(), json, &at, mistakes) {
                    entries.insert(read_key, value);
                }
            }
            Ok(None) => mistakes.add(&at, "cannot be a key"),
            Err(rule) => mistakes.add(&at, rule),
        }
    }
    Some(Value::Map(entries))
}

/// Whether null is a value of it, and not that it has none.
fn takes_null(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(descriptor) => descriptor.full_name() == "google.protobuf.Value",
        Kind::Enum(descriptor) => descriptor.full_name() == NULL_VALUE,
        _ => false,
    }
}

/// Messages whose JSON is not an object of their fields. `None`: an ordinary message.
fn well_known(
    descriptor: &MessageDescriptor,
    json: &Json,
    path: &str,
    mistakes: &mut Mistakes,
) -> Option<Option<DynamicMessage>> {
    let read = match (descriptor.full_name(), json) {
        ("google.protobuf.Timestamp" | "google.protobuf.Duration", Json::Text(text)) => {
            scalar::time_from_text(descriptor, text)
        }
        ("google.protobuf.Timestamp" | "google.protobuf.Duration", _) => {
            Err(scalar::time_rule(descriptor, &json.shown()))
        }
        ("google.protobuf.Struct" | "google.protobuf.ListValue" | "google.protobuf.Value", _)
            if json.is_deeper_than(VALUE_DEPTH_MAX) =>
        {
            Err(format!("must not be nested deeper than {VALUE_DEPTH_MAX} levels"))
        }
        (scalar::MASK, Json::Text(text)) => scalar::mask_from_text(descriptor, text),
        (scalar::MASK, _) => Err(format!("must be names of fields with commas between them, is {}", json.shown())),
        ("google.protobuf.Struct", Json::Object(object)) => Ok(structure(descriptor, object, path, mistakes)),
        ("google.protobuf.Struct", _) => Err(format!("must be an object, is {}", json.shown())),
        ("google.protobuf.ListValue", Json::List(elements)) => Ok(list_value(descriptor, elements, path, mistakes)),
        ("google.protobuf.ListValue", _) => Err(format!("must be a list, is {}", json.shown())),
        ("google.protobuf.Value", _) => Ok(any_value(descriptor, json, path, mistakes)),
        (name, _) if is_wrapper(name) => wrapped(descriptor, json),
        _ => return None,
    };
    Some(read.map_err(|rule| mistakes.add(path, rule)).ok())
}

fn wrapped(descriptor: &MessageDescriptor, json: &Json) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(descriptor.clone());
    if let Some(field) = descriptor.get_field_by_name("value") {
        message.set_field(&field, scalar::from_json(&field.kind(), json)?);
    }
    Ok(message)
}

fn structure(
    descriptor: &MessageDescriptor,
    object: &BTreeMap<String, Json>,
    path: &str,
    mistakes: &mut Mistakes,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let Some(field) = descriptor.get_field_by_name("fields") else { return message };
    let Kind::Message(entry) = field.kind() else { return message };
    let Kind::Message(value) = entry.map_entry_value_field().kind() else { return message };
    let mut entries = HashMap::with_capacity(object.len());
    for (key, json) in object {
        let read = any_value(&value, json, &join(path, key), mistakes);
        entries.insert(MapKey::String(key.clone()), Value::Message(read));
    }
    message.set_field(&field, Value::Map(entries));
    message
}

fn list_value(
    descriptor: &MessageDescriptor,
    elements: &[Json],
    path: &str,
    mistakes: &mut Mistakes,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let Some(field) = descriptor.get_field_by_name("values") else { return message };
    let Kind::Message(value) = field.kind() else { return message };
    let read = |(index, element): (usize, &Json)| {
        Value::Message(any_value(&value, element, &format!("{path}[{index}]"), mistakes))
    };
    message.set_field(&field, Value::List(elements.iter().enumerate().map(read).collect()));
    message
}

fn any_value(descriptor: &MessageDescriptor, json: &Json, path: &str, mistakes: &mut Mistakes) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let (name, value) = match json {
        Json::Null => ("null_value", Some(Value::EnumNumber(0))),
        Json::Bool(flag) => ("bool_value", Some(Value::Bool(*flag))),
        Json::Text(text) => ("string_value", Some(Value::String(text.clone()))),
        Json::Number(number) => {
            let double = number.kept_double().map_err(|rule| mistakes.add(path, rule));
            ("number_value", double.ok().map(Value::F64))
        }
        Json::List(elements) => {
            let inner = inner_message(descriptor, "list_value");
            ("list_value", inner.map(|inner| Value::Message(list_value(&inner, elements, path, mistakes))))
        }
        Json::Object(object) => {
            let inner = inner_message(descriptor, "struct_value");
            ("struct_value", inner.map(|inner| Value::Message(structure(&inner, object, path, mistakes))))
        }
        // Refused before, with all that it lies in.
        Json::TooDeep => ("null_value", None),
    };
    if let (Some(field), Some(value)) = (descriptor.get_field_by_name(name), value) {
        message.set_field(&field, value);
    }
    message
}

fn inner_message(descriptor: &MessageDescriptor, field: &str) -> Option<MessageDescriptor> {
    match descriptor.get_field_by_name(field)?.kind() {
        Kind::Message(inner) => Some(inner),
        _ => None,
    }
}

fn join(path: &str, name: &str) -> String {
    const NAME_CHARS_MAX: usize = 100;
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}
