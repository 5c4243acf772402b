//! Names of the protos as people say them: `MaxRetries` in words, `max_retries` as `max-retries`, the value
//! `JOB_STATUS_ACTIVE` of an enum as `ACTIVE`, which is how the API shows it.

use prost_reflect::EnumDescriptor;

/// `ListJobRevisions` as `list`, `job`, `revisions`.
pub(crate) fn camel(name: &str) -> Vec<String> {
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

/// `max_retries` as `max-retries`.
pub(crate) fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

/// A value of an enum that can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// As it is shown.
    pub(crate) word: String,
    /// What else is understood: the full name, and names of the same number.
    pub(crate) others: Vec<String>,
    pub(crate) number: i32,
    /// Where it stands in the proto.
    pub(crate) place: usize,
}

/// The words of an enum, in the order of the proto; the first name of a number is the one that is shown. What is 0 is "not said".
pub(crate) fn words(of: &EnumDescriptor) -> Vec<Word> {
    let prefix = camel(of.name()).join("_").to_ascii_uppercase() + "_";
    let mut words: Vec<Word> = Vec::new();
    for (place, value) in of.enum_descriptor_proto().value.iter().enumerate() {
        let (full, number) = (value.name().to_owned(), value.number());
        let short = full.strip_prefix(&prefix).unwrap_or(&full).to_owned();
        match words.iter_mut().find(|word| word.number == number) {
            Some(first) => first.others.extend([short, full]),
            None => words.push(Word { word: short, others: vec![full], number, place }),
        }
    }
    words
}

/// How a number is shown; one that this program does not know yet as itself.
pub(crate) fn word_of(of: &EnumDescriptor, number: i32) -> String {
    let known = words(of).into_iter().find(|word| word.number == number);
    known.map_or_else(|| number.to_string(), |word| word.word)
}

/// The number of a word, in any case, or given as a number.
pub(crate) fn number_of(of: &EnumDescriptor, text: &str) -> Result<i32, String> {
    let words = words(of);
    let is_meant = |name: &String| name.eq_ignore_ascii_case(text);
    let is_meant =
        |word: &&Word| is_meant(&word.word) || word.others.iter().any(is_meant) || word.number.to_string() == text;
    if let Some(word) = words.iter().find(is_meant) {
        return Ok(word.number);
    }
    let choices: Vec<&str> = words.iter().filter(|word| word.number != 0).map(|word| word.word.as_str()).collect();
    Err(format!("must be one of {}", choices.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::catalog::pool;
    use super::*;

    #[test]
    fn words_are_bare_when_shown_and_free_when_given() {
        let status = pool().unwrap().get_enum_by_name("carillon.v1.ExecutionStatus").unwrap();
        assert_eq!(word_of(&status, 1), "QUEUED");
        assert_eq!(word_of(&status, 99), "99");
        for text in ["QUEUED", "queued", "pending", "EXECUTION_STATUS_PENDING", "execution_status_queued", "1"] {
            assert_eq!(number_of(&status, text), Ok(1), "{text}");
        }
        let rule = number_of(&status, "done").unwrap_err();
        assert_eq!(rule, "must be one of QUEUED, RUNNING, RETRYING, SUCCESS, FAILED, TIMEOUT, CANCELLED, SKIPPED");
    }

    #[test]
    fn names_come_apart_at_their_capitals() {
        assert_eq!(camel("ListJobRevisions"), ["list", "job", "revisions"]);
        assert_eq!(camel("Job"), ["job"]);
        assert_eq!(kebab("retry_delay_ms"), "retry-delay-ms");
    }
}
