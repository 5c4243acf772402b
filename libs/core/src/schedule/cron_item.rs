//! The seven fields of a cron expression, and a reader that goes through one item of a list from left to right. What the
//! pieces mean is decided in `cron_parse.rs`; here is what a field allows, and the words for a piece that is not so.

use super::civil::YEARS;
use super::error::quoted;

/// One of the seven fields.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// The names of the values from `names_from` on.
    pub(crate) names: &'static [&'static str],
    pub(crate) names_from: u32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Weekday,
    Year,
}

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const fn numbers(name: &'static str, min: u32, max: u32, kind: Kind) -> Field {
    Field { name, min, max, names: &[], names_from: 0, kind }
}

pub(crate) static FIELDS: [Field; 7] = [
    numbers("second", 0, 59, Kind::Second),
    numbers("minute", 0, 59, Kind::Minute),
    numbers("hour", 0, 23, Kind::Hour),
    numbers("day of month", 1, 31, Kind::Day),
    Field { name: "month", min: 1, max: 12, names: MONTHS, names_from: 1, kind: Kind::Month },
    Field { name: "weekday", min: 0, max: 7, names: WEEKDAYS, names_from: 0, kind: Kind::Weekday },
    numbers("year", YEARS.start().unsigned_abs(), YEARS.end().unsigned_abs(), Kind::Year),
];

/// One item of a list, read from left to right.
pub(crate) struct Item<'t> {
    pub(crate) field: &'static Field,
    pub(crate) hash: u32,
    /// Whether it is the whole field.
    pub(crate) alone: bool,
    pub(crate) start: usize,
    pub(crate) word: &'t str,
    pub(crate) at: usize,
}

/// A mistake: the byte of the text it is at, and its words.
pub(crate) struct Mistake(pub(crate) usize, pub(crate) String);

impl Field {
    pub(crate) fn is_day(&self) -> bool {
        matches!(self.kind, Kind::Day | Kind::Weekday)
    }

    /// The last value of a range that has no end of its own. (7 is only another way to write Sunday.)
    pub(crate) fn last(&self) -> u32 {
        if self.kind == Kind::Weekday { 6 } else { self.max }
    }

    /// From one value to another, over the end of the field where the first is the greater.
    pub(crate) fn range(&self, from: u32, to: u32) -> impl Iterator<Item = u32> {
        let from = if self.kind == Kind::Weekday && from > to { from % 7 } else { from };
        let (head, tail) = if from <= to { (from..=to, None) } else { (from..=self.last(), Some(self.min..=to)) };
        head.chain(tail.into_iter().flatten())
    }

    pub(crate) fn allowed(&self) -> String {
        let mut text = format!("{}-{}", self.min, self.max);
        if let (Some(first), Some(last)) = (self.names.first(), self.names.last()) {
            text.push_str(&format!(" or {first}-{last}"));
        }
        text
    }
}

impl<'t> Item<'t> {
    pub(crate) fn peek(&self) -> Option<u8> {
        self.word.as_bytes().get(self.at).copied()
    }

    /// The letters from here on.
    pub(crate) fn letters(&self) -> &'t str {
        let rest = self.rest();
        &rest[..rest.bytes().take_while(u8::is_ascii_alphabetic).count()]
    }

    pub(crate) fn rest(&self) -> &'t str {
        self.word.get(self.at..).unwrap_or_default()
    }

    /// A number or a name within the field.
    pub(crate) fn value(&mut self) -> Result<u32, Mistake> {
        let field = self.field;
        if self.peek().is_some_and(|b| b.is_ascii_digit()) {
            let number = self.digits();
            let value = number.parse().unwrap_or(u32::MAX);
            if value < field.min || value > field.max {
                let words = format!("{} is outside {}", quoted(number), field.allowed());
                return Err(Mistake(self.start + self.at - number.len(), words));
            }
            return Ok(value);
        }
        let letters = self.letters();
        let name = letters.get(..3).unwrap_or(letters);
        let index = field.names.iter().position(|known| known.eq_ignore_ascii_case(name));
        // Four letters can only be a weekday and an L behind it.
        let tail_fits = letters.len() <= 3 || (letters.len() == 4 && letters.ends_with(['l', 'L']));
        match (index, tail_fits) {
            (Some(index), true) => {
                self.at += 3;
                Ok(field.names_from + index as u32)
            }
            _ if self.rest().is_empty() => {
                Err(self.wrong(format!("a value is missing; allowed are {}", field.allowed())))
            }
            (Some(_), false) => Err(self.wrong(format!(
                "{} is not a value; names have three letters, as in {}",
                quoted(letters),
                name.to_ascii_uppercase()
            ))),
            _ => {
                let found = if letters.is_empty() { self.rest() } else { letters };
                Err(self.wrong(format!("{} is not a value; allowed are {}", quoted(found), field.allowed())))
            }
        }
    }

    pub(crate) fn digits(&mut self) -> &'t str {
        let rest = self.rest();
        let digits = &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()];
        self.at += digits.len();
        digits
    }

    /// A plain number with a meaning of its own.
    pub(crate) fn number(&mut self, what: &str, min: u32, max: u32) -> Result<u32, Mistake> {
        let at = self.start + self.at;
        let digits = self.digits();
        match digits.parse() {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            Ok(_) | Err(_) if !digits.is_empty() => {
                Err(Mistake(at, format!("{} is outside {min}-{max} ({what})", quoted(digits))))
            }
            _ => Err(Mistake(at, format!("a number is missing ({what}, {min}-{max})"))),
        }
    }

    /// The step behind a `/`, or `default` if there is none.
    pub(crate) fn step(&mut self, default: u32) -> Result<u32, Mistake> {
        if self.peek() != Some(b'/') {
            return Ok(default);
        }
        self.at += 1;
        let field = self.field;
        let at = self.start + self.at;
        let digits = self.digits();
        let most = field.last() - field.min + 1;
        match digits.parse::<u32>() {
            _ if digits.is_empty() => Err(Mistake(at, format!("a step is missing behind / (1-{most})"))),
            Ok(0) => Err(Mistake(at, format!("a step of 0 stands still; allowed are 1-{most}"))),
            Ok(step) if step <= most => Ok(step),
            // Not read as "the first value only": whoever writes */90 means every 90, which a field cannot say.
            _ => {
                let unit = match field.kind {
                    Kind::Second => "s",
                    Kind::Minute => "m",
                    Kind::Hour => "h",
                    _ => "",
                };
                let hint = super::interval::every_hint(digits, unit).map(|every| format!("; write {every}"));
                let hint = hint.unwrap_or_default();
                Err(Mistake(at, format!("a step of {} is outside 1-{most}{hint}", quoted(digits))))
            }
        }
    }

    pub(crate) fn expect(&mut self, byte: u8, form: &str) -> Result<(), Mistake> {
        if self.peek() != Some(byte) {
            return Err(self.wrong(format!("{} is expected here, as in {form}", char::from(byte))));
        }
        self.at += 1;
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), Mistake> {
        if self.at == self.word.len() {
            return Ok(());
        }
        Err(self.wrong(format!("\"{}\" cannot follow \"{}\"", quoted(self.rest()), quoted(&self.word[..self.at]))))
    }

    pub(crate) fn wrong(&self, words: String) -> Mistake {
        self.wrong_at(self.at, words)
    }

    pub(crate) fn wrong_at(&self, at: usize, words: String) -> Mistake {
        Mistake(self.start + at, words)
    }
}
