//! Reads a request body as JSON, more strictly than the library does by itself, and without losing anything of it.
//!
//! - A number stays as it was written until the type of its field is known. Libraries make a double of it first, and nobody can
//!   see any more that digits were lost, or whose number was out of range. (A feature of `serde_json` keeps the text, but
//!   for every JSON value of the whole program.)
//! - A key given twice is refused: of two values one would be lost in silence.
//! - What lies deeper than any field allows is read past, not into: so a value that is too deep can be refused by the
//!   name of its field, and no text makes this reader call itself more than [`LEVELS_MAX`] times.
//! - So many values and no more: two bytes may be one, and take hundreds once they are read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use carillon_core::error::quoted;
use carillon_core::limits::{VALUE_DEPTH_MAX, VALUES_MAX};
use serde::de::IgnoredAny;

use super::number::Number;
use crate::counts::too_many;

/// Levels of objects and lists that are read: those of a value, and those of the request around it.
const LEVELS_MAX: usize = VALUE_DEPTH_MAX + 8;

/// What some editors write before a text. It is no part of JSON (RFC 8259, 8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// JSON as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
    /// An object or a list that lies too deep to be anything.
    TooDeep,
}

impl Json {
    /// Whether objects and lists lie in each other on more than `levels` levels, this one counted.
    pub(crate) fn is_deeper_than(&self, levels: usize) -> bool {
        let Some(inner) = levels.checked_sub(1) else {
            return matches!(self, Self::List(_) | Self::Object(_) | Self::TooDeep);
        };
        match self {
            Self::List(list) => list.iter().any(|value| value.is_deeper_than(inner)),
            Self::Object(object) => object.values().any(|value| value.is_deeper_than(inner)),
            Self::TooDeep => true,
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => false,
        }
    }

    /// What it is, for an error.
    pub(crate) fn shown(&self) -> Cow<'static, str> {
        match self {
            Self::Null => "null".into(),
            Self::Bool(flag) => flag.to_string().into(),
            Self::Number(number) => number.shown().into(),
            Self::Text(text) => quoted(text).into(),
            Self::List(_) => "a list".into(),
            Self::Object(_) => "an object".into(),
            Self::TooDeep => "nested too deeply".into(),
        }
    }
}

/// Why bytes are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// They are no JSON: what is wrong, and where.
    NotJson(String),
    /// There are more than [`VALUES_MAX`] values.
    TooMany,
}

impl Unread {
    /// The rule that they break.
    pub(crate) fn rule(self) -> String {
        match self {
            Self::NotJson(why) => format!("is not JSON: {why}"),
            Self::TooMany => too_many(),
        }
    }
}

/// Reads `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Json, Unread> {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        return Err(Unread::NotJson("it begins with a byte order mark (EF BB BF): leave it out".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Unread::NotJson(format!("not UTF-8 from byte {} on", error.valid_up_to())))?;
    let mut reader = Reader { text, at: 0, values: 0 };
    reader.document().map_err(|Wrong { what, at }| {
        if reader.values > VALUES_MAX {
            return Unread::TooMany;
        }
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Unread::NotJson(format!("{what} at line {line} column {}", before.len() - line_start + 1))
    })
}

/// A mistake and the byte where it is.
struct Wrong {
    what: Cow<'static, str>,
    at: usize,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// How many it has met.
    values: usize,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Json, Wrong> {
        let value = self.value(1)?;
        self.skip_space();
        if self.at < self.text.len() { Err(self.wrong("trailing characters")) } else { Ok(value) }
    }

    /// A value; an object or a list would be on this level.
    fn value(&mut self, level: usize) -> Result<Json, Wrong> {
        self.skip_space();
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(self.wrong("too many values"));
        }
        match self.peek() {
            Some(b'{' | b'[') if level > LEVELS_MAX => self.too_deep(),
            Some(b'{') => self.object(level),
            Some(b'[') => self.list(level),
            Some(b'"') => self.string().map(Json::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => self.word(),
            None => Err(self.wrong("the text ends where a value is expected")),
        }
    }

    fn object(&mut self, level: usize) -> Result<Json, Wrong> {
        self.at += 1;
        let mut entries = BTreeMap::new();
        if self.takes(b'}') {
            return Ok(Json::Object(entries));
        }
        loop {
            self.skip_space();
            let at = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.wrong("expected a key in quotation marks"));
            }
            let key = self.string()?;
            if entries.contains_key(&key) {
                return Err(Wrong { what: format!("the key {} is given twice", quoted(&key)).into(), at });
            }
            if !self.takes(b':') {
                return Err(self.wrong("expected `:`"));
            }
            entries.insert(key, self.value(level + 1)?);
            if self.takes(b'}') {
                return Ok(Json::Object(entries));
            }
            if !self.takes(b',') {
                return Err(self.wrong("expected `,` or `}`"));
            }
        }
    }

    fn list(&mut self, level: usize) -> Result<Json, Wrong> {
        self.at += 1;
        let mut list = Vec::new();
        if self.takes(b']') {
            return Ok(Json::List(list));
        }
        loop {
            list.push(self.value(level + 1)?);
            if self.takes(b']') {
                return Ok(Json::List(list));
            }
            if !self.takes(b',') {
                return Err(self.wrong("expected `,` or `]`"));
            }
        }
    }

    fn string(&mut self) -> Result<String, Wrong> {
        let start = self.at;
        let mut end = start + 1;
        let mut is_plain = true;
        loop {
            match self.text.as_bytes().get(end) {
                None => return Err(Wrong { what: "the text ends in a string".into(), at: start }),
                Some(b'"') => break,
                Some(b'\\') => {
                    is_plain = false;
                    end += 2;
                }
                Some(byte) => {
                    is_plain &= *byte >= b' ';
                    end += 1;
                }
            }
        }
        self.at = end + 1;
        if is_plain {
            return Ok(self.text.get(start + 1..end).unwrap_or_default().to_owned());
        }
        let quoted = self.text.get(start..=end).unwrap_or_default();
        serde_json::from_str(quoted).map_err(|error| Wrong { what: without_place(&error).into(), at: start })
    }

    fn number(&mut self) -> Result<Json, Wrong> {
        let start = self.at;
        self.skips(b"-");
        if !self.skips(b"0") {
            self.digits()?;
        }
        if self.skips(b".") {
            self.digits()?;
        }
        if self.skips(b"eE") {
            self.skips(b"+-");
            self.digits()?;
        }
        Ok(Json::Number(Number::written(self.text.get(start..self.at).unwrap_or_default())))
    }

    fn digits(&mut self) -> Result<(), Wrong> {
        let start = self.at;
        while self.skips(b"0123456789") {}
        if self.at == start { Err(self.wrong("expected a digit")) } else { Ok(()) }
    }

    fn word(&mut self) -> Result<Json, Wrong> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.wrong("expected value"))
    }

    /// Reads past a value, without a stack.
    fn too_deep(&mut self) -> Result<Json, Wrong> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(IgnoredAny)) => {
                self.at += values.byte_offset();
                Ok(Json::TooDeep)
            }
            Some(Err(error)) => Err(self.wrong(without_place(&error))),
            None => Err(self.wrong("expected value")),
        }
    }

    fn wrong(&self, what: impl Into<Cow<'static, str>>) -> Wrong {
        Wrong { what: what.into(), at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.skips(b" \t\r\n") {}
    }

    /// Reads past one of these bytes, if it is the next.
    fn skips(&mut self, any: &[u8]) -> bool {
        let is_next = self.peek().is_some_and(|byte| any.contains(&byte));
        self.at += usize::from(is_next);
        is_next
    }

    /// The same, after spaces.
    fn takes(&mut self, byte: u8) -> bool {
        self.skip_space();
        self.skips(&[byte])
    }
}

/// The library's words without its line and column, which count from somewhere inside.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn refused(text: &str) -> String {
        let Err(Unread::NotJson(why)) = parse(text.as_bytes()) else { panic!("{text} is read") };
        why
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        assert_eq!(refused(r#"{"a":1,"a":2}"#), "the key \"a\" is given twice at line 1 column 8");
        assert_eq!(refused("{\n\"a\" 1}"), "expected `:` at line 2 column 5");
        assert_eq!(refused("{} x"), "trailing characters at line 1 column 4");
        assert_eq!(refused(""), "the text ends where a value is expected at line 1 column 1");
        assert_eq!(refused("[1 2]"), "expected `,` or `]` at line 1 column 4");
        assert_eq!(refused("{\"a\": nul}"), "expected value at line 1 column 7");
        assert_eq!(refused("[-]"), "expected a digit at line 1 column 3");
        assert_eq!(
            refused(r#"["\ud800x"]"#),
            "unexpected end of hex escape at line 1 column 2",
            "half a surrogate pair"
        );
        assert_eq!(parse(b"\"\xff\""), Err(Unread::NotJson("not UTF-8 from byte 1 on".to_owned())));
    }

    #[test]
    fn what_is_too_deep_is_read_past() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (levels, too_deep) in [(1, false), (30, false), (31, true), (LEVELS_MAX + 1, true), (100_000, true)] {
            let read = parse(format!("{{\"a\":{},\"b\":1}}", nested(levels)).as_bytes()).unwrap();
            let Json::Object(object) = read else { panic!("{read:?}") };
            assert_eq!(object["a"].is_deeper_than(VALUE_DEPTH_MAX), too_deep, "{levels}");
            assert_eq!(object["b"].shown(), "1", "what follows is read");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse(format!("{}\"\\x\"{}", "[".repeat(99), "]".repeat(99)).as_bytes()).is_err());
    }

    #[test]
    fn so_many_values_are_read_and_no_more() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(parse(list(VALUES_MAX - 1).as_bytes()).is_ok());
        assert_eq!(parse(list(VALUES_MAX).as_bytes()), Err(Unread::TooMany), "the list is one too");
        assert_eq!(parse(format!("[{}", "{\"\":0},".repeat(VALUES_MAX)).as_bytes()), Err(Unread::TooMany));
    }

    #[test]
    fn a_byte_order_mark_is_called_by_its_name() {
        assert!(refused("\u{feff}{}").contains("byte order mark"));
        assert_eq!(
            parse("\"\u{feff}\"".as_bytes()),
            Ok(Json::Text("\u{feff}".to_owned())),
            "in a text it is a character"
        );
    }

    /// What `serde_json` made of the same text.
    fn is_same(own: &Json, theirs: &Value) -> bool {
        match (own, theirs) {
            (Json::Null, Value::Null) => true,
            (Json::Bool(a), Value::Bool(b)) => a == b,
            (Json::Number(a), Value::Number(b)) => a.double().map(f64::to_bits) == b.as_f64().map(f64::to_bits),
            (Json::Text(a), Value::String(b)) => a == b,
            (Json::List(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
            (Json::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_same(a, b)))
            }
            _ => false,
        }
    }

    proptest! {
        /// The library is the oracle: the same texts are JSON, and mean the same.
        #[test]
        fn it_reads_what_the_library_reads(text in r#"[\[\]{}:,"a0-9.eE+\- \\uDd8tnrl\n\x01ä]{0,40}"#) {
            let theirs = serde_json::from_str::<Value>(&text);
            match (parse(text.as_bytes()), &theirs) {
                (Ok(own), Ok(theirs)) => prop_assert!(is_same(&own, theirs), "{:?} {:?}", own, theirs),
                (Err(_), Err(_)) => {}
                (Err(why), Ok(_)) => prop_assert!(why.clone().rule().contains("given twice"), "{}: {:?}", text, why),
                (Ok(_), Err(why)) => prop_assert!(why.to_string().contains("out of range"), "{}: {}", text, why),
            }
        }

        #[test]
        fn it_reads_what_the_library_writes(value in written(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let own = parse(text.as_bytes()).unwrap();
            prop_assert!(is_same(&own, &value), "{:?} {}", own, value);
        }
    }

    fn written() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(|bits| Value::from(f64::from_bits(bits))),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }
}
