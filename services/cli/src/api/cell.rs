//! The value of a field as text for people, and its colour. Colours are written always: `anstream` takes them out where the output
//! is no terminal, or NO_COLOR is set.

use carillon_proto::words;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};

use super::json;

pub(crate) const RESET: &str = "\u{1b}[0m";
pub(crate) const DIM: &str = "\u{1b}[2m";
/// Between two columns.
pub(crate) const GAP: &str = "  ";

/// What a field holds; empty if it says nothing.
pub(crate) fn text_of(message: &DynamicMessage, field: &FieldDescriptor) -> String {
    if !message.has_field(field) {
        return String::new();
    }
    match message.get_field(field).as_ref() {
        Value::List(values) => {
            let texts: Vec<String> = values.iter().map(|value| text(field, value)).collect();
            texts.join(", ")
        }
        value => text(field, value),
    }
}

fn text(field: &FieldDescriptor, value: &Value) -> String {
    match value {
        Value::Bool(flag) => flag.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(of) => words::word_of(&of, *number).unwrap_or_else(|| number.to_string()),
            _ => number.to_string(),
        },
        Value::Message(message) => of_message(message),
        Value::List(_) | Value::Map(_) => String::new(),
    }
}

/// A time as itself, all else as JSON; an object without fields says nothing.
fn of_message(message: &DynamicMessage) -> String {
    if message.descriptor().full_name() == "google.protobuf.Timestamp" {
        return carillon_proto::json::instant(message).unwrap_or_default();
    }
    let text = json::text(message, false);
    if text == "{}" { String::new() } else { text }
}

/// Begins the colour of a word of an enum, by what it means for whoever watches; empty for one that means nothing special.
pub(crate) fn colour(field: &FieldDescriptor, text: &str) -> &'static str {
    if !matches!(field.kind(), Kind::Enum(_)) {
        return "";
    }
    match text {
        "ACTIVE" | "SUCCESS" => "\u{1b}[32m",
        "PAUSED" | "RETRYING" | "SKIPPED" => "\u{1b}[33m",
        "FAILED" | "TIMEOUT" => "\u{1b}[31m",
        "QUEUED" | "RUNNING" => "\u{1b}[36m",
        "CANCELLED" | "COMPLETED" => DIM,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use carillon_proto::descriptors;

    use super::*;

    #[test]
    fn a_word_that_this_program_does_not_know_yet_is_its_number() {
        let of = descriptors().get_message_by_name("carillon.v1.Execution").unwrap();
        let field = of.get_field_by_name("status").unwrap();
        for (number, shown) in [(1, "QUEUED"), (99, "99")] {
            let mut execution = DynamicMessage::new(of.clone());
            execution.set_field(&field, Value::EnumNumber(number));
            assert_eq!(text_of(&execution, &field), shown);
        }
    }
}
