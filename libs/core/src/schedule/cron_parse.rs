//! Reads a cron expression: from text to a [`CronLine`], or to every mistake in it.
//!
//! A mistake names the field, what was found, what is allowed, and the position as the author counts it: characters of
//! the text as given, from 1. One item of a list gives at most one mistake and reading goes on with the next, so that all
//! mistakes come together. The text is bounded, every item is read once from left to right, and no value expands to more
//! than the field holds: the cost is linear in at most 1 KiB.

use super::cron::{ALL_60, ALL_DAYS, ALL_HOURS, ALL_MONTHS, ALL_WEEKDAYS, CronLine, Extra, Flags, YearSet};
use super::cron_item::{FIELDS, Field, Item, Kind, Mistake};
use super::error::{ERRORS_MAX, quoted};

/// Longest expression that is read.
pub(crate) const EXPRESSION_BYTES_MAX: usize = 1_024;

/// What an expression can be.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Fields, or a word that stands for fields.
    Line(CronLine),
    /// `@every`, with its milliseconds.
    Every(u64),
}

/// Reads an expression. `hash` is where `H` takes its values from: four bytes a field.
pub(crate) fn parse(text: &str, hash: impl FnOnce() -> [u8; 32]) -> Result<Parsed, Vec<String>> {
    let one = |message: String| Err(vec![message]);
    if text.len() > EXPRESSION_BYTES_MAX {
        return one(format!("schedule: is {} bytes long, at most {EXPRESSION_BYTES_MAX} are allowed", text.len()));
    }
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return one("schedule: is empty; five fields are needed, such as 0 2 * * *".to_owned());
    }
    if trimmed.starts_with('@') {
        return parse_word(text, trimmed);
    }
    for prefix in ["TZ=", "CRON_TZ="] {
        if trimmed.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
            return one(format!("schedule: {prefix} is not read here; put the zone into the field timezone (at 1)"));
        }
    }
    let fields: Vec<(usize, &str)> = words(text).collect();
    let first = match fields.len() {
        5 => 1,
        6 | 7 => 0,
        count => {
            return one(format!(
                "schedule: {count} field{} found, 5 to 7 are allowed: [second] minute hour day-of-month month weekday [year]",
                if count == 1 { "" } else { "s" }
            ));
        }
    };
    parse_fields(text, &fields, first, hash)
}

/// The text's words with the byte each begins at.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_whitespace().map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

fn parse_word(text: &str, trimmed: &str) -> Result<Parsed, Vec<String>> {
    if let Some(interval) = super::interval::every_word(text) {
        return match interval {
            Ok(interval) => Ok(Parsed::Every(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX))),
            Err(error) => Err(vec![format!("@every: {}", error.message.trim_start_matches("interval: "))]),
        };
    }
    let fields = match trimmed.to_ascii_lowercase().as_str() {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        "@reboot" => {
            return Err(vec![
                "schedule: @reboot has no meaning here: jobs do not belong to a machine (at 1)".to_owned(),
            ]);
        }
        _ => {
            return Err(vec![format!(
                "schedule: {} is not one of @yearly @annually @monthly @weekly @daily @midnight @hourly @every (at 1)",
                quoted(trimmed)
            )]);
        }
    };
    parse(fields, || [0; 32]) // None of these has an H.
}

fn parse_fields(
    text: &str,
    fields: &[(usize, &str)],
    first: usize,
    hash: impl FnOnce() -> [u8; 32],
) -> Result<Parsed, Vec<String>> {
    // Only a text with an H pays for the hash. (The letter also occurs in THU and MAR, which cost it in vain.)
    let hash = if fields.iter().any(|(_, field)| field.contains(['h', 'H'])) { hash() } else { [0; 32] };
    let mut reader = Reader {
        text,
        line: CronLine {
            seconds: if first == 1 { 1 } else { 0 },
            minutes: 0,
            hours: 0,
            days: 0,
            months: 0,
            weekdays: 0,
            flags: Flags::default(),
            extra: None,
        },
        years: YearSet::default(),
        every_year: fields.len() < 7,
        errors: Vec::new(),
    };
    for (index, (start, word)) in (first..).zip(fields) {
        let hash = u32::from_be_bytes([hash[4 * index], hash[4 * index + 1], hash[4 * index + 2], hash[4 * index + 3]]);
        reader.field(&FIELDS[index], hash, *start, word);
    }
    let Reader { mut line, years, every_year, mut errors, .. } = reader;
    if let (6, Some((_, last))) = (fields.len(), fields.last())
        && last.len() == 4
        && last.bytes().all(|b| b.is_ascii_digit())
    {
        errors.push("schedule: six fields begin with seconds; to give a year, write all seven".to_owned());
    }
    if !errors.is_empty() {
        errors.truncate(ERRORS_MAX);
        return Err(errors);
    }
    if !every_year {
        line.extra.get_or_insert_default().years = Some(years);
    }
    Ok(Parsed::Line(line))
}

struct Reader<'t> {
    text: &'t str,
    line: CronLine,
    years: YearSet,
    every_year: bool,
    errors: Vec<String>,
}

impl Reader<'_> {
    fn field(&mut self, field: &'static Field, hash: u32, start: usize, word: &str) {
        if word.starts_with(['*', '?']) {
            match field.kind {
                Kind::Minute => self.line.flags.set(Flags::MINUTE_STAR),
                Kind::Hour => self.line.flags.set(Flags::HOUR_STAR),
                Kind::Day => self.line.flags.set(Flags::DAY_STAR),
                Kind::Weekday => self.line.flags.set(Flags::WEEKDAY_STAR),
                Kind::Second | Kind::Month | Kind::Year => {}
            }
        }
        let mut at = start;
        for item in word.split(',') {
            let item = Item { field, hash, alone: item.len() == word.len(), start: at, word: item, at: 0 };
            at += item.word.len() + 1;
            if let Err(Mistake(byte, words)) = self.item(item)
                && self.errors.len() < ERRORS_MAX
            {
                let position = self.text[..byte].chars().count() + 1;
                self.errors.push(format!("{}: {words} (at {position})", field.name));
            }
        }
    }

    fn item(&mut self, mut item: Item<'_>) -> Result<(), Mistake> {
        let field = item.field;
        match item.peek() {
            None => return Err(item.wrong_at(0, format!("a value is missing; allowed are {}", field.allowed()))),
            Some(b'*') => {
                item.at += 1;
                let step = item.step(1)?;
                item.end()?;
                if step == 1 {
                    self.all(field);
                } else {
                    self.range(field, field.min, field.last(), step, 0);
                }
                return Ok(());
            }
            Some(b'?') => {
                if !field.is_day() {
                    return Err(
                        item.wrong_at(0, "? is for day of month and weekday only; write * for every value".to_owned())
                    );
                }
                item.at += 1;
                item.end()?;
                if !item.alone {
                    return Err(item.wrong_at(0, "? stands alone in its field".to_owned()));
                }
                self.all(field);
                return Ok(());
            }
            Some(b) if b.is_ascii_alphabetic() => {
                let letters = item.letters();
                if letters.eq_ignore_ascii_case("H") {
                    return self.hashed(item);
                }
                if letters.eq_ignore_ascii_case("L") || letters.eq_ignore_ascii_case("LW") {
                    return self.last_day(item);
                }
            }
            Some(_) => {}
        }
        self.values(item)
    }

    /// `a`, `a-b`, with or without a step; `aW`, `aL`, `a#n`.
    fn values(&mut self, mut item: Item<'_>) -> Result<(), Mistake> {
        let field = item.field;
        let from = item.value()?;
        match item.peek().map(|b| b.to_ascii_uppercase()) {
            Some(b'W') => {
                if field.kind != Kind::Day {
                    return Err(item.wrong("W, the nearest working day, belongs to day of month".to_owned()));
                }
                item.at += 1;
                item.end()?;
                self.extra().nearest |= 1 << from;
                return Ok(());
            }
            Some(b'L') => {
                if field.kind != Kind::Weekday {
                    return Err(item.wrong("a value before L, the last of the month, belongs to weekday".to_owned()));
                }
                item.at += 1;
                item.end()?;
                self.extra().last_weekdays |= 1 << (from % 7);
                return Ok(());
            }
            Some(b'#') => {
                if field.kind != Kind::Weekday {
                    return Err(item.wrong("#, the nth of the month, belongs to weekday".to_owned()));
                }
                item.at += 1;
                let nth = item.number("# of the month", 1, 5)?;
                item.end()?;
                self.extra().nth_weekdays[nth as usize - 1] |= 1 << (from % 7);
                return Ok(());
            }
            Some(b'-') => {
                item.at += 1;
                let to = item.value()?;
                if field.kind == Kind::Year && to < from {
                    return Err(item.wrong_at(0, format!("{from}-{to} runs backwards")));
                }
                let step = item.step(1)?;
                item.end()?;
                self.range(field, from, to, step, 0);
            }
            Some(b'/') => {
                let step = item.step(1)?;
                item.end()?;
                let from = if field.kind == Kind::Weekday { from % 7 } else { from };
                self.range(field, from, field.last(), step, 0);
            }
            _ => {
                item.end()?;
                self.insert(field, from);
            }
        }
        Ok(())
    }

    /// `H`, `H/n`, `H(a-b)`, `H(a-b)/n`.
    fn hashed(&mut self, mut item: Item<'_>) -> Result<(), Mistake> {
        let field = item.field;
        if field.kind == Kind::Year {
            return Err(item.wrong("H is not for years: it would leave a single one".to_owned()));
        }
        item.at += 1;
        // Every month has 28 days: an H must not pick one that some months lack.
        let (mut from, mut to) = (field.min, if field.kind == Kind::Day { 28 } else { field.last() });
        if item.peek() == Some(b'(') {
            item.at += 1;
            from = item.value()?;
            item.expect(b'-', "H(a-b)")?;
            to = item.value()?;
            item.expect(b')', "H(a-b)")?;
        }
        let step = item.step(0)?;
        item.end()?;
        let length = field.range(from, to).count() as u32;
        if step == 0 {
            let nth = (item.hash % length) as usize;
            self.range(field, from, to, length, nth);
        } else {
            self.range(field, from, to, step, (item.hash % step.min(length)) as usize);
        }
        self.line.flags.set(Flags::HASHED);
        Ok(())
    }

    /// `L`, `L-n`, `LW` in day of month.
    fn last_day(&mut self, mut item: Item<'_>) -> Result<(), Mistake> {
        match item.field.kind {
            Kind::Day => {}
            Kind::Weekday => {
                return Err(item.wrong("L needs a weekday before it, such as 5L for the last Friday".to_owned()));
            }
            _ => return Err(item.wrong("L, the last of the month, is for day of month and weekday only".to_owned())),
        }
        if item.letters().len() == 2 {
            item.at += 2;
            item.end()?;
            self.extra().last_workday = true;
            return Ok(());
        }
        item.at += 1;
        let mut before = 0;
        if item.peek() == Some(b'-') {
            item.at += 1;
            before = item.number("days before the last", 1, 30)?;
        }
        item.end()?;
        self.extra().from_last |= 1 << before;
        Ok(())
    }

    fn all(&mut self, field: &'static Field) {
        let line = &mut self.line;
        match field.kind {
            Kind::Second => line.seconds = ALL_60,
            Kind::Minute => line.minutes = ALL_60,
            Kind::Hour => line.hours = ALL_HOURS,
            Kind::Day => line.days = ALL_DAYS,
            Kind::Month => line.months = ALL_MONTHS,
            Kind::Weekday => line.weekdays = ALL_WEEKDAYS,
            Kind::Year => self.every_year = true,
        }
    }

    fn range(&mut self, field: &'static Field, from: u32, to: u32, step: u32, skip: usize) {
        for value in field.range(from, to).skip(skip).step_by(step as usize) {
            self.insert(field, value);
        }
    }

    fn insert(&mut self, field: &'static Field, value: u32) {
        let line = &mut self.line;
        match field.kind {
            Kind::Second => line.seconds |= 1 << value,
            Kind::Minute => line.minutes |= 1 << value,
            Kind::Hour => line.hours |= 1 << value,
            Kind::Day => line.days |= 1 << value,
            Kind::Month => line.months |= 1 << value,
            Kind::Weekday => line.weekdays |= 1 << (value % 7),
            Kind::Year => self.years.insert(value.cast_signed()),
        }
    }

    fn extra(&mut self) -> &mut Extra {
        self.line.extra.get_or_insert_default()
    }
}
