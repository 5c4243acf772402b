//! Checks the fields of a request and collects all that is wrong, so that a client mends everything in one go. What the JSON
//! side could not read comes first; a field that is wrong already is not reported a second time as missing.
//!
//! Each check returns a value in any case: the neutral one where the field is wrong. It is never used, since
//! [`Checks::finish`] refuses the request.

use carillon_core::error::{FieldViolation, quoted};
use carillon_core::limits::{VALUE_WIRE_BYTES_MAX, WORD_CHARS_MAX};
use carillon_core::{fingerprint, json};
use chrono::{DateTime, Utc};
use prost_types::{Struct, Timestamp};
use serde_json::Value;
use tonic::{Request, Status};
use uuid::Uuid;

use crate::error_response::invalid;
use crate::json::KnownMistakes;
use crate::values;

/// The field of what is wrong as a whole.
pub(super) const WHOLE: &str = "body";

/// What is wrong with a request so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    violations: Vec<FieldViolation>,
    /// How many of them, the first ones, the JSON side found.
    known: usize,
    /// Behind each of these, how many more it found that are only counted.
    unlisted: Vec<usize>,
}

/// All that is wrong with a request, or with an element of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wrong {
    pub(crate) violations: Vec<FieldViolation>,
    /// How many more there are.
    pub(crate) unlisted: usize,
}

impl Wrong {
    pub(crate) fn add(&mut self, other: Self) {
        self.violations.extend(other.violations);
        self.unlisted += other.unlisted;
    }

    pub(crate) fn refusal(&self) -> Status {
        invalid(&self.violations, self.unlisted)
    }
}

impl Checks {
    /// Begins with what the JSON side found.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let known = request.extensions().get::<KnownMistakes>();
        let known = known.map(|known| known.0.as_slice()).unwrap_or_default();
        Self {
            violations: known.iter().map(|mistake| mistake.violation.clone()).collect(),
            known: known.len(),
            unlisted: known.iter().map(|mistake| mistake.unlisted).collect(),
        }
    }

    /// What is wrong with each of the first `count` elements of a list, by its paths inside of it; the rest stays here.
    pub(crate) fn split(&mut self, list: &str, count: usize) -> Vec<Self> {
        let mut parts = vec![Self::default(); count];
        let found = std::mem::take(self);
        let unlisted = found.unlisted.into_iter().chain(std::iter::repeat(0));
        for (violation, unlisted) in found.violations.into_iter().zip(unlisted) {
            let inner = element_of(&violation.field, list).filter(|(place, _)| *place < count);
            let (part, violation) = match inner.and_then(|(place, inner)| Some((parts.get_mut(place)?, inner))) {
                Some((part, "")) => (part, FieldViolation::new(WHOLE, violation.rule)),
                Some((part, inner)) => (part, FieldViolation::new(inner, violation.rule)),
                None => (&mut *self, violation),
            };
            part.violations.push(violation);
            part.unlisted.push(unlisted);
            part.known += 1;
        }
        parts
    }

    /// What the JSON side found, as bytes: what it could not read is in no message, and is a part of the request all the same.
    pub(crate) fn known_bytes(&self) -> impl Iterator<Item = u8> {
        let known = self.violations.iter().take(self.known).zip(&self.unlisted);
        known.flat_map(|(violation, unlisted)| format!("{violation}\0{unlisted}\0").into_bytes())
    }

    /// All that is wrong.
    pub(crate) fn into_wrong(self) -> Wrong {
        Wrong { unlisted: self.unlisted.iter().sum(), violations: self.violations }
    }

    /// Reports `rule` against `field`, unless the field, something inside of it, or the whole body is wrong already.
    pub(crate) fn refuse(&mut self, field: &str, rule: impl Into<String>) {
        if !self.is_wrong(field) {
            self.violations.push(FieldViolation::new(field, rule));
        }
    }

    /// Whether the field, something inside of it, or the whole body is wrong already.
    pub(crate) fn is_wrong(&self, field: &str) -> bool {
        self.violations.iter().any(|violation| violation.field == WHOLE || lies_in(&violation.field, field))
    }

    /// Reports `rule` against `field` unless `holds`.
    pub(crate) fn that(&mut self, holds: bool, field: &str, rule: impl Into<String>) {
        if !holds {
            self.refuse(field, rule);
        }
    }

    /// Reports mistakes in a timetable.
    pub(crate) fn schedule(&mut self, violations: impl IntoIterator<Item = FieldViolation>) {
        for violation in violations {
            // Not `refuse`: several mistakes of one expression are all worth knowing. But what the JSON side could not read
            // is not in the message, so nothing that is found there was written by the client.
            let unread = |known: &FieldViolation| {
                lies_in(&known.field, &violation.field) || lies_in(&violation.field, &known.field)
            };
            let (known, _) = self.violations.split_at(self.known);
            if !known.iter().any(unread) && !self.violations.contains(&violation) {
                self.violations.push(violation);
            }
        }
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Refuses the request if anything is wrong.
    pub(crate) fn finish(self) -> Result<(), Status> {
        if self.violations.is_empty() { Ok(()) } else { Err(self.into_wrong().refusal()) }
    }

    /// A text of `least` to `most` characters that Postgres can hold.
    pub(crate) fn text(&mut self, field: &str, text: &str, least: usize, most: usize) -> String {
        let length = text.chars().count();
        if length == 0 && least > 0 {
            self.refuse(field, "must be given");
        } else if length < least || length > most {
            // What is not given has none, and is no value of it.
            let span = if least == 0 { format!("at most {most}") } else { format!("{least} to {most}") };
            self.refuse(field, format!("must be {span} characters long, is {length}"));
        } else if least > 0 && text.trim().is_empty() {
            self.refuse(field, "must not be blank");
        }
        self.that(!text.contains('\0'), field, "must not contain the character NUL");
        text.to_owned()
    }

    /// A text that may be left out, and is given: an empty one is neither.
    pub(crate) fn given_text(&mut self, field: &str, text: &str, most: usize) -> String {
        if text.is_empty() {
            self.refuse(field, format!("is empty: leave it out, or give 1 to {most} characters"));
        }
        self.text(field, text, 0, most);
        self.that(text.is_empty() || !text.trim().is_empty(), field, "must not be blank");
        text.to_owned()
    }

    /// A text that is looked for; `None` if it is not given.
    pub(crate) fn part<'a>(&mut self, field: &str, text: &'a str) -> Option<&'a str> {
        self.text(field, text, 0, WORD_CHARS_MAX);
        Some(text).filter(|text| !text.is_empty())
    }

    /// A fingerprint that is looked for; `None` if it is not given.
    pub(crate) fn fingerprint<'a>(&mut self, field: &str, text: &'a str) -> Option<&'a str> {
        let given = Some(text).filter(|text| !text.is_empty())?;
        let digits = fingerprint::CHARS;
        let rule = format!("must be {digits} hex digits in lower case, is {}", quoted(given));
        self.that(fingerprint::is_one(given), field, rule);
        Some(given)
    }

    /// A name made of the characters a-z, 0-9, `_`, `.`, `-`.
    pub(crate) fn plain_word(&mut self, field: &str, text: &str, most: usize) -> String {
        let plain = !text.is_empty() && text.len() <= most && text.bytes().all(is_plain);
        self.that(plain, field, format!("must be 1 to {most} characters of a-z, 0-9, _ . -, is {}", quoted(text)));
        text.to_owned()
    }

    /// A name of the form `group:verb`.
    pub(crate) fn handler_name(&mut self, field: &str, text: &str, most: usize) -> String {
        let parts = || text.split(':');
        if text.is_empty() {
            self.refuse(field, "must be given");
        } else if text.len() > most
            || parts().count() < 2
            || !parts().all(|part| !part.is_empty() && part.bytes().all(is_plain))
        {
            let rule = format!(
                "must be group:verb, at most {most} characters, each part of a-z, 0-9, _ . -, is {}",
                quoted(text)
            );
            self.refuse(field, rule);
        }
        text.to_owned()
    }

    /// A UUID.
    pub(crate) fn id(&mut self, field: &str, text: &str) -> Uuid {
        let read = Some(text).filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok());
        read.unwrap_or_else(|| {
            self.refuse(field, format!("must be a UUID, is {}", quoted(text)));
            Uuid::nil()
        })
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(&mut self, field: &str, number: u32, least: u32, most: u32) -> u32 {
        self.that((least..=most).contains(&number), field, format!("must be {least} to {most}, is {number}"));
        number
    }

    /// A number from `least` to `most`, or else the default.
    pub(crate) fn count_or(&mut self, field: &str, given: Option<u32>, default: u32, least: u32, most: u32) -> i32 {
        let number = given.map_or(default, |given| self.number(field, given, least, most));
        // Within the limits; beyond them the request is refused.
        i32::try_from(number).unwrap_or(i32::MAX)
    }

    /// An instant, cut off to the millisecond.
    pub(crate) fn instant(&mut self, field: &str, timestamp: Option<Timestamp>) -> Option<DateTime<Utc>> {
        // Years 1 to 9999.
        const NANOS_OF_A_MILLISECOND: u32 = 1_000_000;
        const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
        let timestamp = timestamp?;
        let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        let at = nanos
            .filter(|_| SECONDS.contains(&timestamp.seconds))
            .and_then(|nanos| DateTime::from_timestamp(timestamp.seconds, nanos - nanos % NANOS_OF_A_MILLISECOND));
        self.that(at.is_some(), field, "must be an instant of the years 1 to 9999");
        at
    }

    /// A JSON object of at most `bytes_max` bytes of text, with its numbers written out as Postgres does; `{}` if not given.
    pub(crate) fn document(&mut self, field: &str, document: Option<Struct>, bytes_max: usize) -> Value {
        let Some(document) = document else { return Value::Object(serde_json::Map::new()) };
        let json = match values::from_struct(document, field) {
            Ok(json) => json,
            Err(violations) => {
                for violation in violations {
                    self.refuse(&violation.field, violation.rule);
                }
                return Value::Null;
            }
        };
        let (bytes, on_the_wire) = (json::text_bytes(&json), json::wire_bytes(&json));
        self.that(bytes <= bytes_max, field, format!("must be at most {bytes_max} bytes of JSON, is {bytes}"));
        self.that(
            on_the_wire <= VALUE_WIRE_BYTES_MAX,
            field,
            format!("must be at most {VALUE_WIRE_BYTES_MAX} bytes as a google.protobuf.Struct, is {on_the_wire}"),
        );
        json
    }
}

/// Whether the path `inner` is `outer` or leads into it.
fn lies_in(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The place of an element of `list`, and the path inside of it: 3 and `name` of `jobs[3].name`.
fn element_of<'a>(path: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (place, inner) = path.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
    Some((place.parse().ok()?, inner.strip_prefix('.').unwrap_or(inner)))
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Mistake;

    fn rules(check: impl FnOnce(&mut Checks)) -> Vec<String> {
        let mut checks = Checks::default();
        check(&mut checks);
        checks.violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn handler_names_are_group_and_verb() {
        for name in ["cleanup:old_traces", "a:b", "kb:reindex:full", "x-1.y:z"] {
            assert!(rules(|checks| drop(checks.handler_name("handler_name", name, 200))).is_empty(), "{name}");
        }
        for name in
            ["", "cleanup", "a:", ":b", "a::b", "A:b", "a b:c", "ä:b", "a:b\0", &format!("a:{}", "b".repeat(200))]
        {
            assert_eq!(rules(|checks| drop(checks.handler_name("handler_name", name, 200))).len(), 1, "{name}");
        }
    }

    #[test]
    fn ids_are_uuids_in_their_usual_form() {
        let mut checks = Checks::default();
        assert_eq!(checks.id("id", "01a3185c-5000-8a28-b6b7-19d8e4ba20a5").get_version_num(), 8);
        assert!(checks.is_clean());
        for id in ["", "7", "01a3185c50008a28b6b719d8e4ba20a5", "{01a3185c-5000-8a28-b6b7-19d8e4ba20a5}", "\u{0}"] {
            assert_eq!(
                rules(|checks| {
                    checks.id("id", id);
                })
                .len(),
                1,
                "{id}"
            );
        }
    }

    #[test]
    fn instants_are_cut_to_the_millisecond_downwards() {
        let mut checks = Checks::default();
        let at = checks.instant("from", Some(Timestamp { seconds: 1, nanos: 2_999_999 })).unwrap();
        assert_eq!(at.timestamp_subsec_nanos(), 2_000_000);
        let before = checks.instant("from", Some(Timestamp { seconds: -2, nanos: 999_999_999 })).unwrap();
        assert_eq!((before.timestamp(), before.timestamp_subsec_millis()), (-2, 999));
        // Years that no 64 bits of nanoseconds reach, and the ends of all.
        for seconds in [-62_135_596_800, -11_676_096_001, 10_413_792_001, 253_402_300_799] {
            let far = checks.instant("from", Some(Timestamp { seconds, nanos: 123_999_999 })).unwrap();
            assert_eq!((far.timestamp(), far.timestamp_subsec_nanos()), (seconds, 123_000_000));
        }
        assert!(checks.is_clean());
        for (seconds, nanos) in [(i64::MAX, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 0)] {
            assert_eq!(
                rules(|checks| {
                    checks.instant("from", Some(Timestamp { seconds, nanos }));
                })
                .len(),
                1
            );
        }
    }

    #[test]
    fn texts_are_bounded_in_characters_and_hold_no_nul() {
        assert_eq!(rules(|checks| drop(checks.text("name", "", 1, 5))), ["name: must be given"]);
        assert_eq!(
            rules(|checks| drop(checks.text("name", "äöüßéx", 1, 5))),
            ["name: must be 1 to 5 characters long, is 6"]
        );
        assert!(rules(|checks| drop(checks.text("name", "äöüßé", 1, 5))).is_empty());
        for (text, rule) in [
            ("", "is empty: leave it out, or give 1 to 5 characters"),
            (" ", "must not be blank"),
            ("abcdef", "must be at most 5 characters long, is 6"),
            ("a\0", "must not contain the character NUL"),
        ] {
            assert_eq!(rules(|checks| drop(checks.given_text("key", text, 5))), [format!("key: {rule}")]);
        }
        assert!(rules(|checks| drop(checks.given_text("key", "a", 5))).is_empty());
        let may_be_left_out = rules(|checks| drop(checks.text("request_id", "äöüßéx", 0, 5)));
        assert_eq!(may_be_left_out, ["request_id: must be at most 5 characters long, is 6"]);
        assert_eq!(rules(|checks| drop(checks.text("name", "  ", 1, 5))), ["name: must not be blank"]);
        assert_eq!(
            rules(|checks| drop(checks.text("name", "a\0", 1, 5))),
            ["name: must not contain the character NUL"]
        );
    }

    #[test]
    fn what_is_not_listed_is_counted_where_it_stands() {
        let mistake = |field: &str, unlisted| Mistake { unlisted, ..Mistake::new(field, "is odd") };
        let known = vec![mistake("jobs[0].a", 3), mistake("jobs[1]", 0), mistake("nmae", 5)];
        let mut request = Request::new(());
        request.extensions_mut().insert(KnownMistakes(std::sync::Arc::new(known)));
        let mut checks = Checks::of(&request);
        checks.refuse("name", "must be given");
        let parts = checks.split("jobs", 2);
        let told = |checks: Checks| {
            let Wrong { violations, unlisted } = checks.into_wrong();
            (violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>().join(" "), unlisted)
        };
        assert_eq!(told(checks), ("nmae name".to_owned(), 5));
        let parts: Vec<_> = parts.into_iter().map(told).collect();
        assert_eq!(parts, [("a".to_owned(), 3), ("body".to_owned(), 0)]);
    }

    #[test]
    fn a_field_is_not_reported_twice() {
        let found = rules(|checks| {
            checks.refuse("tags[2]", "must be a string");
            checks.refuse("tags", "must be given");
            checks.refuse("tag", "must be given");
        });
        assert_eq!(found, ["tags[2]: must be a string", "tag: must be given"]);
    }
}
