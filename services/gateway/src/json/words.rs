//! Names of enum values: in the descriptors `JOB_STATUS_ACTIVE`, as the style of protobuf wants it, in JSON `ACTIVE`. An
//! alias (`allow_alias`) is understood on input; the first name of a number is the one that is answered.

use prost_reflect::{EnumDescriptor, EnumValueDescriptor};

/// What the values' names begin with: `JOB_STATUS_` for `JobStatus`.
fn prefix(descriptor: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for letter in descriptor.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    prefix
}

fn short<'a>(prefix: &str, value: &'a EnumValueDescriptor) -> &'a str {
    value.name().strip_prefix(prefix).unwrap_or_else(|| value.name())
}

/// The word of `number`, if it has one.
pub(crate) fn word_of(descriptor: &EnumDescriptor, number: i32) -> Option<String> {
    let prefix = prefix(descriptor);
    descriptor.values().find(|value| value.number() == number).map(|value| short(&prefix, &value).to_owned())
}

/// The number of a word, in any case, with or without the prefix.
pub(crate) fn number_of(descriptor: &EnumDescriptor, word: &str) -> Option<i32> {
    let prefix = prefix(descriptor);
    let fits = |value: &EnumValueDescriptor| {
        word.eq_ignore_ascii_case(value.name()) || word.eq_ignore_ascii_case(short(&prefix, value))
    };
    descriptor.values().find(fits).map(|value| value.number())
}

/// The words that may be given, for an error.
pub(crate) fn allowed(descriptor: &EnumDescriptor) -> String {
    let prefix = prefix(descriptor);
    let mut seen = vec![0];
    let mut words = Vec::new();
    for value in descriptor.values() {
        if !seen.contains(&value.number()) {
            seen.push(value.number());
            words.push(short(&prefix, &value).to_owned());
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    fn descriptor(name: &str) -> EnumDescriptor {
        DescriptorPool::decode(carillon_proto::FILE_DESCRIPTOR_SET).unwrap().get_enum_by_name(name).unwrap()
    }

    #[test]
    fn words_are_bare_on_output_and_free_on_input() {
        let status = descriptor("carillon.v1.ExecutionStatus");
        assert_eq!(word_of(&status, 1).as_deref(), Some("QUEUED"));
        for word in ["QUEUED", "queued", "EXECUTION_STATUS_QUEUED", "pending", "Pending"] {
            assert_eq!(number_of(&status, word), Some(1), "{word}");
        }
        assert_eq!(number_of(&status, "done"), None);
        assert_eq!(allowed(&descriptor("carillon.v1.Priority")), "LOW, MEDIUM, HIGH, CRITICAL");
        assert_eq!(allowed(&status), "QUEUED, RUNNING, RETRYING, SUCCESS, FAILED, TIMEOUT, CANCELLED, SKIPPED");
    }
}
