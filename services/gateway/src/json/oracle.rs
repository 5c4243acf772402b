//! The reader and the writer of JSON, held to the reference over the table in `tests/oracle/cases.txt`: what the reference
//! answers stands in it, made by `tests/oracle/reference.py` (`make contract` looks whether it is still so). So this needs no
//! Python.

use carillon_proto::json::{EXACT_MAX, EnumWords, Shown};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

use super::document;
use super::request::{self, Mistakes};

const TABLE: &str = include_str!("../../tests/oracle/cases.txt");
const KINDS: &[u8] = include_bytes!("../../tests/oracle/kinds.binpb");

/// What becomes of a text: the bytes of the message and its JSON, or that it is refused.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Read(DynamicMessage, Option<Value>),
    Refused,
}

/// A case of the table.
struct Case {
    descriptor: MessageDescriptor,
    line: &'static str,
    reference: Answer,
    /// What is done here instead.
    departure: Option<Answer>,
}

/// The bytes that a line stands for: `⟦ef bb bf⟧` are bytes, `⟦30×[⟧` is a text so often.
fn text_of(line: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let mut parts = line.split('⟦');
    text.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let (escape, rest) = part.split_once('⟧').unwrap();
        match escape.split_once('×') {
            Some((count, repeated)) => text.extend(repeated.repeat(count.parse().unwrap()).bytes()),
            None => text.extend(bytes_of(&escape.replace(' ', ""))),
        }
        text.extend(rest.bytes());
    }
    text
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.trim_matches('-').as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// `refused`, or the bytes and what is shown.
fn answer(descriptor: &MessageDescriptor, written: &str) -> Answer {
    if written == "refused" {
        return Answer::Refused;
    }
    let (bytes, shown) = written.split_once(' ').unwrap_or((written, ""));
    let message = DynamicMessage::decode(descriptor.clone(), bytes_of(bytes).as_slice()).unwrap();
    Answer::Read(message, serde_json::from_str(shown).ok())
}

fn cases() -> Vec<Case> {
    let (kinds, own) = (DescriptorPool::decode(KINDS).unwrap(), carillon_proto::descriptors());
    let mut cases: Vec<Case> = Vec::new();
    let mut descriptor = None;
    let mut line = "";
    for text in TABLE.lines() {
        if let Some(name) = text.strip_prefix(":: ") {
            descriptor = kinds.get_message_by_name(name).or_else(|| own.get_message_by_name(name));
            assert!(descriptor.is_some(), "there is no {name}");
        } else if let Some(reference) = text.strip_prefix("    = ") {
            let descriptor = descriptor.clone().unwrap();
            cases.push(Case { reference: answer(&descriptor, reference), descriptor, line, departure: None });
        } else if let Some(departure) = text.strip_prefix("    ! ") {
            let (instead, why) = departure.split_once(" -- ").expect("a departure has a reason");
            assert!(why.len() > 10, "{text}");
            let case = cases.last_mut().unwrap();
            case.departure = Some(answer(&case.descriptor, instead));
        } else if !text.is_empty() && !text.starts_with('#') {
            line = text;
        }
    }
    cases
}

fn read(descriptor: &MessageDescriptor, text: &[u8]) -> Answer {
    let Ok(json) = document::parse(text) else { return Answer::Refused };
    let mut mistakes = Mistakes::default();
    let message = request::message(descriptor, &json, "", &mut mistakes);
    match message.filter(|_| mistakes.into_list().is_empty()) {
        Some(message) => {
            // A list of fields may name what has no camelCase.
            let shown = serde_json::to_string(&Shown::set_only(&message)).ok();
            let shown = shown.map(|text| serde_json::from_str(&text).unwrap());
            Answer::Read(message, shown)
        }
        None => Answer::Refused,
    }
}

impl Answer {
    /// As the table has it.
    fn written(&self) -> String {
        match self {
            Self::Refused => "refused".to_owned(),
            Self::Read(message, shown) => {
                let bytes: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
                let shown = shown.as_ref().map(Value::to_string).unwrap_or_default();
                format!("{} {shown}", if bytes.is_empty() { "-" } else { &bytes })
            }
        }
    }

    /// Whether both are the same; the texts too where the other has one.
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused, Self::Refused) => true,
            (Self::Read(message, shown), Self::Read(wanted, wanted_shown)) => {
                // NaN is like nothing, not like itself, but has the same bytes.
                let is_same = message == wanted || message.encode_to_vec() == wanted.encode_to_vec();
                let shown = shown.as_ref().zip(wanted_shown.as_ref());
                is_same && shown.is_none_or(|(shown, wanted)| is_shown_as(shown, wanted))
            }
            _ => false,
        }
    }
}

/// Whether this is what the reference writes, but for the departures that stand everywhere.
fn is_shown_as(own: &Value, theirs: &Value) -> bool {
    match (own, theirs) {
        (Value::Number(own), Value::String(theirs)) => {
            own.to_string() == *theirs && theirs.parse::<i64>().is_ok_and(|number| number.unsigned_abs() <= EXACT_MAX)
        }
        // What a double is, not how it is written: `1` is `1.0`.
        (Value::Number(own), Value::Number(theirs)) => {
            own.as_f64().map(f64::to_bits) == theirs.as_f64().map(f64::to_bits)
        }
        (Value::String(own), Value::String(theirs)) => {
            own == theirs || theirs.strip_suffix(own).is_some_and(|prefix| prefix.ends_with('_'))
        }
        (Value::Array(own), Value::Array(theirs)) => {
            own.len() == theirs.len() && own.iter().zip(theirs).all(|(own, theirs)| is_shown_as(own, theirs))
        }
        (Value::Object(own), Value::Object(theirs)) => {
            own.len() == theirs.len()
                && own.iter().all(|(key, own)| theirs.get(key).is_some_and(|theirs| is_shown_as(own, theirs)))
        }
        (own, theirs) => own == theirs,
    }
}

#[test]
fn json_is_read_and_written_as_the_reference_does() {
    let cases = cases();
    assert!(cases.len() >= 700, "{}", cases.len());
    let mut wrong = Vec::new();
    for Case { descriptor, line, reference, departure } in &cases {
        let own = read(descriptor, &text_of(line));
        if !own.agrees(departure.as_ref().unwrap_or(reference)) {
            let wanted = departure.as_ref().unwrap_or(reference).written();
            wrong.push(format!("{line}\n  wanted {wanted}\n  was    {}", own.written()));
        } else if departure.is_some() && own.agrees(reference) {
            wrong.push(format!("{line}\n  is no departure"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// What is written reads back. With every field shown, null stands for what is not there, of which a `google.protobuf.Value`
/// makes a null.
#[test]
fn what_is_written_is_read_again() {
    for Case { descriptor, line, reference, departure } in cases() {
        let Answer::Read(message, Some(_)) = departure.unwrap_or(reference) else { continue };
        let again = |shown: Shown<'_>| read(&descriptor, &serde_json::to_vec(&shown).unwrap());
        let back = again(Shown::set_only(&message));
        assert!(back.agrees(&Answer::Read(message.clone(), None)), "{line}: {back:?}");
        for words in [EnumWords::Upper, EnumWords::Lower] {
            assert_ne!(again(Shown::whole(&message, words)), Answer::Refused, "{line}");
        }
    }
}
