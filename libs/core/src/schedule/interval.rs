//! Fixed intervals: how their length is written, and their instants.
//!
//! An interval is real elapsed time: no zone and no change of the clocks touches it. Its instants are the anchor plus
//! whole multiples, computed by division and never by adding to the last fire, so that nothing drifts, however late or
//! seldom anyone asks.

use std::time::Duration;

use super::error::{ScheduleError, quoted};

/// Shortest interval.
pub(crate) const INTERVAL_MS_MIN: u64 = 100;
/// Longest interval: ten years of 365 days and their leap days.
pub(crate) const INTERVAL_MS_MAX: u64 = 3_653 * 24 * 60 * 60 * 1_000;
/// Longest text of an interval that is looked at.
const TEXT_BYTES_MAX: usize = 64;

const ALLOWED: &str = "numbers with units such as 250ms, 90s, 1h30m or 2d";

/// Reads an interval: whole numbers with the units `w`, `d`, `h`, `m`, `s`, `ms`, largest first, each at most once, with or
/// without blanks between them.
pub fn parse_interval(text: &str) -> Result<Duration, ScheduleError> {
    read(text, 0)
}

/// Reads the interval that stands in a text from byte `begin` on. Positions are those of the whole text.
fn read(text: &str, begin: usize) -> Result<Duration, ScheduleError> {
    let wrong = |message: String| Err(ScheduleError::new("interval", message));
    let interval = text.get(begin..).unwrap_or_default().trim();
    if interval.is_empty() || interval.len() > TEXT_BYTES_MAX {
        return wrong(format!("interval: must be {ALLOWED}, is \"{}\"", quoted(interval)));
    }
    let mut rest = interval;
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let before = rest.as_ptr() as usize - text.as_ptr() as usize;
        let position = text.get(..before).unwrap_or_default().chars().count() + 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let Some(unit_ms) = unit_ms(unit).filter(|_| digits > 0) else {
            return wrong(format!("interval: \"{}\" is not {ALLOWED} (at {position})", quoted(rest)));
        };
        if unit_ms >= last_unit {
            return wrong(format!(
                "interval: units go from large to small, each once; \"{unit}\" does not (at {position})"
            ));
        }
        last_unit = unit_ms;
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms));
        let Some(sum) = part.and_then(|part| total.checked_add(part)) else {
            return wrong(too_long(interval));
        };
        total = sum;
        rest = after.trim_start();
    }
    check_interval(total).map_err(|message| ScheduleError::new("interval", message))?;
    Ok(Duration::from_millis(total))
}

fn unit_ms(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "w" => 7 * 24 * 60 * 60 * 1_000,
        "d" => 24 * 60 * 60 * 1_000,
        "h" => 60 * 60 * 1_000,
        "m" => 60 * 1_000,
        "s" => 1_000,
        "ms" => 1,
        _ => return None,
    })
}

fn too_long(text: &str) -> String {
    format!("interval: {} is longer than ten years (3653d)", quoted(text))
}

/// The rule for the length of an interval.
pub(crate) fn check_interval(ms: u64) -> Result<(), String> {
    if ms < INTERVAL_MS_MIN {
        return Err(format!("interval: {ms}ms is shorter than {INTERVAL_MS_MIN}ms"));
    }
    if ms > INTERVAL_MS_MAX {
        return Err(too_long(&format!("{ms}ms")));
    }
    Ok(())
}

/// The interval of an `@every 90s` line; `None` if the text is no such line.
pub(crate) fn every_word(text: &str) -> Option<Result<Duration, ScheduleError>> {
    let word = text.split_whitespace().next().filter(|word| word.eq_ignore_ascii_case("@every"))?;
    Some(read(text, word.as_ptr() as usize - text.as_ptr() as usize + word.len()))
}

/// `@every 90m`, where that can be written.
pub(crate) fn every_hint(number: &str, unit: &str) -> Option<String> {
    let text = format!("{number}{unit}");
    parse_interval(&text).is_ok().then(|| format!("@every {text}"))
}

/// An interval in words and units, the inverse of [`parse_interval`]: `1h 30m`.
pub(crate) fn interval_text(ms: u64) -> String {
    let mut parts = Vec::new();
    let mut rest = ms;
    for unit in ["d", "h", "m", "s", "ms"] {
        let size = unit_ms(unit).unwrap_or(1);
        if rest >= size {
            parts.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    parts.join(" ")
}

/// The first of `anchor + k · interval`, k ≥ 0, that is at or after `from`; all in milliseconds.
pub(crate) fn next_from(interval: i64, anchor: i64, from: i64) -> Option<i64> {
    if from <= anchor {
        return Some(anchor);
    }
    let passed = from.checked_sub(anchor)?;
    let periods = passed / interval + i64::from(passed % interval != 0);
    anchor.checked_add(periods.checked_mul(interval)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_read_and_write() {
        for (text, ms, shown) in [
            ("250ms", 250, "250ms"),
            ("90s", 90_000, "1m 30s"),
            ("1h30m", 5_400_000, "1h 30m"),
            ("2d", 172_800_000, "2d"),
            ("1w", 604_800_000, "7d"),
            ("100ms", 100, "100ms"),
            ("1D2H", 93_600_000, "1d 2h"),
            (" 1h  30m ", 5_400_000, "1h 30m"),
            ("3653d", INTERVAL_MS_MAX, "3653d"),
        ] {
            assert_eq!(parse_interval(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(interval_text(ms), shown);
            assert_eq!(parse_interval(shown), Ok(Duration::from_millis(ms)), "what is shown can be written");
        }
    }

    #[test]
    fn a_wrong_interval_says_what_and_where() {
        let message = |text: &str| parse_interval(text).unwrap_err().message;
        assert_eq!(message("99ms"), "interval: 99ms is shorter than 100ms");
        assert_eq!(message("0s"), "interval: 0ms is shorter than 100ms");
        assert_eq!(message("3654d"), "interval: 315705600000ms is longer than ten years (3653d)");
        assert_eq!(message("5"), "interval: \"5\" is not numbers with units such as 250ms, 90s, 1h30m or 2d (at 1)");
        assert!(message("1h 30").ends_with("(at 4)"));
        assert!(message(" 1 h").ends_with("\"1 h\" is not numbers with units such as 250ms, 90s, 1h30m or 2d (at 2)"));
        assert_eq!(message("5m1h"), "interval: units go from large to small, each once; \"h\" does not (at 3)");
        assert!(message("99999999999999999999d").contains("longer"));
        assert!(message("1.5h").ends_with("(at 1)"));
        assert!(message("-5s").ends_with("(at 1)"));
        assert!(message("5µs").ends_with("(at 1)"));
        assert!(message("").contains("must be"));
    }

    #[test]
    fn an_interval_does_not_drift() {
        assert_eq!(next_from(1_000, 5, 0), Some(5));
        assert_eq!(next_from(1_000, 5, 5), Some(5));
        assert_eq!(next_from(1_000, 5, 6), Some(1_005));
        assert_eq!(next_from(1_000, 5, 1_005), Some(1_005));
        assert_eq!(next_from(1_000, 5, 3_600_000), Some(3_600_005));
        assert_eq!(next_from(1_000, i64::MIN, i64::MAX), None);
    }
}
