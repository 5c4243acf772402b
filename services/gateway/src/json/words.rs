//! Names of enum values: in the descriptors `JOB_STATUS_ACTIVE`, as the style of protobuf wants it, in JSON `ACTIVE`. An
//! alias (`allow_alias`) is understood on input; the first name of a number is the one that is answered.

use prost_reflect::EnumDescriptor;

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

/// Full name, short name and number of each value, in the order of the proto (prost-reflect itself orders aliases anyhow).
fn values<'a>(descriptor: &'a EnumDescriptor, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str, i32)> {
    descriptor.enum_descriptor_proto().value.iter().map(move |value| {
        let name = value.name();
        (name, name.strip_prefix(prefix).unwrap_or(name), value.number())
    })
}

/// The word of `number`, if it has one.
pub(crate) fn word_of(descriptor: &EnumDescriptor, number: i32) -> Option<String> {
    let prefix = prefix(descriptor);
    values(descriptor, &prefix).find(|value| value.2 == number).map(|value| value.1.to_owned())
}

/// The number of a word, in any case, with or without the prefix, or given as a number.
pub(crate) fn number_of(descriptor: &EnumDescriptor, word: &str) -> Option<i32> {
    let prefix = prefix(descriptor);
    values(descriptor, &prefix)
        .find(|(full, short, number)| {
            word.eq_ignore_ascii_case(full) || word.eq_ignore_ascii_case(short) || word == number.to_string()
        })
        .map(|value| value.2)
}

/// The words that may be given, for an error.
pub(crate) fn allowed(descriptor: &EnumDescriptor) -> String {
    let prefix = prefix(descriptor);
    let mut seen = vec![0];
    let mut words = Vec::new();
    for (_, short, number) in values(descriptor, &prefix) {
        if !seen.contains(&number) {
            seen.push(number);
            words.push(short);
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
