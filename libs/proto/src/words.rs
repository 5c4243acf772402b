//! Names of enum values: in the descriptors `JOB_STATUS_ACTIVE`, as the style of protobuf wants it, in JSON `ACTIVE`. An
//! alias (`allow_alias`) is understood on input; the first name of a number is the one that is answered.

use prost_reflect::EnumDescriptor;

/// The words of a name in capitals: `ListJobRevisions` as `list`, `job`, `revisions`.
pub fn camel(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() || words.is_empty() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(letter.to_ascii_lowercase());
        }
    }
    words
}

/// What the values' names begin with: `JOB_STATUS_` for `JobStatus`.
fn prefix(descriptor: &EnumDescriptor) -> String {
    camel(descriptor.name()).join("_").to_ascii_uppercase() + "_"
}

/// Full name, short name and number of each value, in the order of the proto (prost-reflect itself orders aliases anyhow).
fn values<'a>(descriptor: &'a EnumDescriptor, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str, i32)> {
    descriptor.enum_descriptor_proto().value.iter().map(move |value| {
        let name = value.name();
        (name, name.strip_prefix(prefix).unwrap_or(name), value.number())
    })
}

/// The word of `number`, if it has one.
pub fn word_of(descriptor: &EnumDescriptor, number: i32) -> Option<String> {
    let prefix = prefix(descriptor);
    values(descriptor, &prefix).find(|value| value.2 == number).map(|value| value.1.to_owned())
}

/// The number of a word, in any case, with or without the prefix, or given as a number.
pub fn number_of(descriptor: &EnumDescriptor, word: &str) -> Option<i32> {
    let prefix = prefix(descriptor);
    values(descriptor, &prefix)
        .find(|(full, short, number)| {
            word.eq_ignore_ascii_case(full) || word.eq_ignore_ascii_case(short) || word == number.to_string()
        })
        .map(|value| value.2)
}

/// The words that may be given, for an error.
pub fn allowed(descriptor: &EnumDescriptor) -> String {
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

/// A value of an enum that can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// As it is shown.
    pub word: String,
    /// What else is understood: the full name, and names of the same number.
    pub others: Vec<String>,
    /// Its number.
    pub number: i32,
    /// Where it stands in the proto.
    pub place: usize,
}

/// The words of an enum, in the order of the proto; the first name of a number is the one that is shown. What is 0 is "not said".
pub fn words(descriptor: &EnumDescriptor) -> Vec<Word> {
    let prefix = prefix(descriptor);
    let mut words: Vec<Word> = Vec::new();
    for (place, (full, short, number)) in values(descriptor, &prefix).enumerate() {
        match words.iter_mut().find(|word| word.number == number) {
            Some(first) => first.others.extend([short.to_owned(), full.to_owned()]),
            None => words.push(Word { word: short.to_owned(), others: vec![full.to_owned()], number, place }),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(name: &str) -> EnumDescriptor {
        crate::descriptors().get_enum_by_name(name).unwrap()
    }

    #[test]
    fn words_are_bare_on_output_and_free_on_input() {
        let status = descriptor("carillon.v1.ExecutionStatus");
        assert_eq!((word_of(&status, 1).as_deref(), word_of(&status, 99)), (Some("QUEUED"), None));
        let queued = ["QUEUED", "queued", "EXECUTION_STATUS_QUEUED", "execution_status_queued"];
        for word in [queued.as_slice(), &["pending", "Pending", "EXECUTION_STATUS_PENDING", "1"]].concat() {
            assert_eq!(number_of(&status, word), Some(1), "{word}");
        }
        assert_eq!(number_of(&status, "done"), None);
        assert_eq!(allowed(&descriptor("carillon.v1.Priority")), "LOW, MEDIUM, HIGH, CRITICAL");
        assert_eq!(allowed(&status), "QUEUED, RUNNING, RETRYING, SUCCESS, FAILED, TIMEOUT, CANCELLED, SKIPPED");
    }

    #[test]
    fn names_come_apart_at_their_capitals() {
        assert_eq!(camel("ListJobRevisions"), ["list", "job", "revisions"]);
        assert_eq!(camel("Job"), ["job"]);
    }
}
