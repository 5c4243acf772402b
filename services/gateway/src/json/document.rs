//! Reads a request body as JSON, more strictly than the library does by itself, and without losing anything of it.
//!
//! - A number stays as it was written until the type of its field is known. Libraries make a double of it first, and nobody can
//!   see any more that digits were lost, or whose number was out of range. (A feature of `serde_json` keeps the text, but
//!   for every JSON value of the whole program.)
//! - A key given twice is refused: of two values one would be lost in silence.
//! - What lies deeper than any field allows is read past, not into: so a value that is too deep can be refused by the
//!   name of its field, and no text makes this reader call itself more than [`LEVELS_MAX`] times.

use std::borrow::Cow;
use std::collections::BTreeMap;

use carillon_core::error::{excerpt, quoted};
use carillon_core::limits::VALUE_DEPTH_MAX;
use serde::de::IgnoredAny;

/// Levels of objects and lists that are read: those of a value, and those of the request around it.
const LEVELS_MAX: usize = VALUE_DEPTH_MAX + 8;

/// The largest integer up to which a 64-bit float, and so JSON in most languages, holds every one.
const EXACT_INTEGER_MAX: u128 = 1 << 53;

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

/// A number as it was written, by the grammar of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number(Box<str>);

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

impl Number {
    /// As it was written, shortened.
    pub(crate) fn shown(&self) -> String {
        excerpt(&self.0, 40)
    }

    /// The nearest double; `None` if it is beyond all of them.
    pub(crate) fn double(&self) -> Option<f64> {
        self.0.parse().ok().filter(|double: &f64| double.is_finite())
    }

    /// The whole number that it is; `3.0` and `1e3` are whole too, as far as doubles are exact.
    pub(crate) fn whole(&self) -> Option<i128> {
        if self.is_integer() {
            return self.0.parse().ok();
        }
        let double = self.double()?;
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within ±2^53")]
        (double.fract() == 0.0 && double.abs() <= 9_007_199_254_740_992.0).then_some(double as i128)
    }

    /// As a double, where nothing else holds numbers.
    ///
    /// # Errors
    /// The rule, if something of it would be lost in silence: an integer whose neighbours no double tells from it, what is
    /// beyond all doubles, what is not zero and would become zero. A fraction is not refused: everybody knows that of these
    /// doubles keep the nearest.
    pub(crate) fn kept_double(&self) -> Result<f64, String> {
        let shown = self.shown();
        let double = self.double().ok_or_else(|| {
            format!("the number {shown} is beyond ±1.8e308, more than a double holds: send it as a string")
        })?;
        let is_exact = || self.whole().is_some_and(|whole| whole.unsigned_abs() <= EXACT_INTEGER_MAX);
        if self.is_integer() && !is_exact() {
            return Err(format!("the integer {shown} is beyond ±2^53 and would lose digits: send it as a string"));
        }
        let mantissa = self.0.split(['e', 'E']).next().unwrap_or_default();
        if double == 0.0 && mantissa.contains(|digit| matches!(digit, '1'..='9')) {
            return Err(format!("the number {shown} is nearer to 0 than any double: send it as a string"));
        }
        Ok(double)
    }

    fn is_integer(&self) -> bool {
        !self.0.contains(['.', 'e', 'E'])
    }
}

/// Reads `bytes`; an error says what is wrong and where.
pub(crate) fn parse(bytes: &[u8]) -> Result<Json, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8 from byte {} on", error.valid_up_to()))?;
    let mut reader = Reader { text, at: 0 };
    reader.document().map_err(|Wrong { what, at }| {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        format!("{what} at line {line} column {}", before.len() - line_start + 1)
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
        Ok(Json::Number(Number(self.text.get(start..self.at).unwrap_or_default().into())))
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
        parse(text.as_bytes()).unwrap_err()
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
        assert_eq!(parse(b"\"\xff\"").unwrap_err(), "not UTF-8 from byte 1 on");
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
    fn a_number_is_kept_or_refused_by_what_would_be_lost() {
        let kept = |text: &str| match parse(text.as_bytes()) {
            Ok(Json::Number(number)) => number.kept_double().map(f64::to_bits),
            other => panic!("{text}: {other:?}"),
        };
        for text in [
            "0",
            "-0",
            "-0.0",
            "0e999",
            "9007199254740992",
            "-9007199254740992",
            "1.7976931348623157e308",
            "5e-324",
            "1e22",
            "9007199254740993.0",
            "0.42451918914251396",
            "1E+2",
            "18446744073709551616.0",
        ] {
            assert_eq!(kept(text), Ok(text.parse::<f64>().unwrap().to_bits()), "{text}");
        }
        for (text, rule) in [
            ("9007199254740993", "beyond ±2^53"),
            ("-9007199254740993", "beyond ±2^53"),
            ("18446744073709551617", "beyond ±2^53"),
            (&"9".repeat(300), "beyond ±2^53"),
            (&"9".repeat(400), "beyond ±1.8e308"),
            ("1e400", "beyond ±1.8e308"),
            ("-1e400", "beyond ±1.8e308"),
            ("1e-400", "nearer to 0"),
        ] {
            assert!(kept(text).unwrap_err().contains(rule), "{text}: {:?}", kept(text));
        }
        assert!(kept(&"9".repeat(400)).unwrap_err().len() < 200, "what is shown is short");
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
                (Err(why), Ok(_)) => prop_assert!(why.contains("given twice"), "{}: {}", text, why),
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
