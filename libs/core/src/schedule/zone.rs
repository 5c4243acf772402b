//! Time zones: the one place that looks into a time zone database.
//!
//! A name is looked up in the system's zone files first and in the copy that jiff carries second. What comes back is a
//! flat table of every change of offset in the years that schedules know, made once per zone and process and shared by
//! all schedules of that zone.
//!
//! Why a table and not jiff at each step: a search crosses changes in both directions and asks for the change *before*
//! and *after* an instant; in a sorted table that is one binary search and neighbours, some ten nanoseconds, and a
//! schedule keeps one pointer. And within one process a zone never changes under a running schedule: a new time zone
//! database takes effect at the next start, when a leader reckons anew what stands by other rules ([`zone_rules`]). A test
//! compares the table with jiff's own answers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use super::civil;
use super::error::{ScheduleError, quoted};

/// Longest name that is looked up. The longest of IANA has 32 characters.
const NAME_BYTES_MAX: usize = 64;

/// From `at` on, local time is UTC plus `offset` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) at: i64,
    pub(crate) offset: i32,
}

/// One time zone: its name as the database spells it, and its offsets.
#[derive(Debug)]
pub(crate) struct Zone {
    name: String,
    /// Never empty. The first begins before everything (`i64::MIN`); neighbours differ in offset.
    spans: Box<[Span]>,
}

impl Zone {
    /// Looks a zone up by its IANA name or alias; case does not matter.
    pub(crate) fn get(name: &str) -> Result<Arc<Zone>, ScheduleError> {
        if let Some(zone) = known().get(name) {
            return Ok(Arc::clone(zone));
        }
        let tz = lookup(name).map_err(|message| ScheduleError::new("timezone", message))?;
        let canonical = tz.iana_name().unwrap_or("UTC").to_owned();
        if let Some(zone) = known().get(&canonical) {
            return Ok(Arc::clone(zone));
        }
        let zone = Arc::new(Zone { spans: spans_of(&tz), name: canonical.clone() });
        // Kept under the database's own spelling only, so that odd spellings cannot fill the memory.
        let mut zones = ZONES.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(zones.entry(canonical).or_insert(zone)))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Index of the span that holds the UTC second `at`.
    pub(crate) fn index(&self, at: i64) -> usize {
        self.spans.partition_point(|span| span.at <= at).saturating_sub(1)
    }

    /// The span at `index`.
    pub(crate) fn span(&self, index: usize) -> Option<Span> {
        self.spans.get(index).copied()
    }

    /// Offset in force at the UTC second `at`.
    pub(crate) fn offset(&self, at: i64) -> i32 {
        self.spans[self.index(at)].offset
    }

    /// When the span at `index` ends and the next one begins.
    pub(crate) fn end(&self, index: usize) -> i64 {
        self.spans.get(index + 1).map_or(i64::MAX, |next| next.at)
    }
}

/// A number for what the database in use says of all its zones: where it is another one, instants that were reckoned may be
/// others. Every zone file is read for it, which takes some tenths of a second, and none is kept.
pub fn zone_rules() -> i64 {
    let mut hash = Sha256::new();
    for name in NAMES.iter() {
        let Ok(zone) = lookup(name) else { continue };
        hash.update(name);
        for span in spans_of(&zone) {
            hash.update(span.at.to_be_bytes());
            hash.update(span.offset.to_be_bytes());
        }
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    i64::from_be_bytes(first)
}

static ZONES: LazyLock<RwLock<HashMap<String, Arc<Zone>>>> = LazyLock::new(RwLock::default);

fn known() -> std::sync::RwLockReadGuard<'static, HashMap<String, Arc<Zone>>> {
    ZONES.read().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that `name` is a time zone that a schedule may use.
pub fn check_timezone(name: &str) -> Result<(), ScheduleError> {
    Zone::get(name).map(drop)
}

/// The name of a time zone as the database spells it, in whatever case it was written; `None` if there is none.
pub fn timezone_name(name: &str) -> Option<String> {
    Zone::get(name).ok().map(|zone| zone.name.clone())
}

/// Which time zone database is in use, for the log at start: `2025b from /usr/share/zoneinfo`.
pub fn database_description() -> String {
    let debug = format!("{:?}", jiff::tz::db());
    if debug.contains("Bundled") {
        return "the copy bundled with this program (no time zone files on this system)".to_owned();
    }
    let directory = std::env::var("TZDIR").unwrap_or_else(|_| "/usr/share/zoneinfo".to_owned());
    // Of the files that distributions ship beside the zones, these two tell the version.
    let version = ["tzdata.zi", "+VERSION"].iter().find_map(|file| version_in(&Path::new(&directory).join(file)));
    let mut text = version.unwrap_or_else(|| "an unknown version".to_owned());
    let _ = write!(text, " from {directory}");
    text
}

fn version_in(file: &Path) -> Option<String> {
    use std::io::{BufRead as _, BufReader, Read as _};
    let mut line = String::new();
    BufReader::new(std::fs::File::open(file).ok()?.take(80)).read_line(&mut line).ok()?;
    let version = line.trim().trim_start_matches("# version ");
    (!version.is_empty()).then(|| version.to_owned())
}

fn lookup(name: &str) -> Result<jiff::tz::TimeZone, String> {
    const EXAMPLE: &str = "an IANA time zone name such as Europe/Berlin";
    if name.is_empty() {
        return Err(format!("timezone: must be {EXAMPLE}, is empty"));
    }
    let lower = name.to_ascii_lowercase();
    let shape = name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b));
    if !is_odd(&lower)
        && shape
        && let Ok(tz) = jiff::tz::db().get(name)
    {
        return Ok(tz);
    }
    let mut message = format!("timezone: \"{}\" is not {EXAMPLE}", quoted(name));
    if let Some((is_ahead, hours, minutes)) = fixed_offset(&lower) {
        let fixed = format!("Etc/GMT{}{hours}", if is_ahead { '-' } else { '+' });
        if minutes == 0 && jiff::tz::db().get(&fixed).is_ok() {
            let _ = write!(message, "; this fixed offset is written {fixed}, its sign reversed");
        } else {
            message.push_str("; fixed offsets are whole hours, Etc/GMT-14 (ahead of UTC) to Etc/GMT+12");
        }
    } else if let Some(near) = shape.then(|| nearest(&lower)).flatten() {
        let _ = write!(message, "; did you mean {near}?");
    }
    Err(message)
}

/// Files that lie beside the zones but are none: the machine's own zone would mean another thing on each machine, "right/" counts
/// leap seconds, "posix/" is a second copy.
fn is_odd(lower: &str) -> bool {
    ["localtime", "posixrules", "factory", "local", "etc/unknown"].contains(&lower)
        || lower.starts_with("right/")
        || lower.starts_with("posix/")
}

/// All names. To list them, every file is opened, which takes some ten milliseconds: done once in a process, and only where
/// they are asked for (for the hint to whoever wrote a wrong one, say).
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let names = jiff::tz::db().available().map(|name| name.as_str().to_owned());
    names.filter(|name| !is_odd(&name.to_ascii_lowercase())).collect()
});

/// Sign, hours and minutes of `+02:00`, `-5`, `utc+0530`, `gmt+1`.
fn fixed_offset(lower: &str) -> Option<(bool, u8, u8)> {
    let rest = ["utc", "gmt"].iter().find_map(|zone| lower.strip_prefix(zone)).unwrap_or(lower);
    let (is_ahead, rest) = match rest.strip_prefix('+') {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix('-')?),
    };
    let (hours, minutes) =
        rest.split_once(':').unwrap_or_else(|| rest.split_at_checked(rest.len().min(2)).unwrap_or((rest, "")));
    let number = |digits: &str| {
        let is_one = digits.len() <= 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        if is_one { digits.parse().ok() } else { None }
    };
    Some((is_ahead, number(hours)?, if minutes.is_empty() { 0 } else { number(minutes)? }))
}

/// The known name that `lower` is most likely meant to be: the same city without its region, or a slip of the keyboard. Of a
/// short name anything is two slips away.
fn nearest(lower: &str) -> Option<&'static str> {
    let slips_max = match lower.len() {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    let distance = |known: &str| {
        let known = known.to_ascii_lowercase();
        let city = known.rsplit('/').next().unwrap_or_default();
        if city == lower { 0 } else { edits(lower, &known) }
    };
    let near = NAMES.iter().map(|name| (distance(name), name.as_str())).filter(|(distance, _)| *distance <= slips_max);
    near.min().map(|(_, name)| name)
}

/// How many letters must be changed, added or left out to make one text of the other.
fn edits(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Every change of offset that local times of [`civil::YEARS`] can meet. Changes of the abbreviation alone are left out.
fn spans_of(tz: &jiff::tz::TimeZone) -> Box<[Span]> {
    // A month on either side covers every offset.
    const MARGIN: i64 = 31 * civil::DAY;
    let Ok(from) = jiff::Timestamp::from_second(civil::FIRST - MARGIN) else { return Box::new([]) };
    let first = Span { at: i64::MIN, offset: tz.to_offset(from).seconds() };
    let mut spans = vec![first];
    let mut offset = first.offset;
    for change in tz.following(from) {
        let at = change.timestamp().as_second();
        if at > civil::LAST + MARGIN {
            break;
        }
        if change.offset().seconds() != offset {
            offset = change.offset().seconds();
            spans.push(Span { at, offset });
        }
    }
    spans.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_found_in_any_case() {
        for (asked, name) in [
            ("Europe/Berlin", "Europe/Berlin"),
            ("europe/berlin", "Europe/Berlin"),
            ("Asia/Calcutta", "Asia/Calcutta"),
            ("US/Eastern", "US/Eastern"),
            ("UTC", "UTC"),
            ("utc", "UTC"),
            ("Etc/GMT-2", "Etc/GMT-2"),
        ] {
            assert_eq!(Zone::get(asked).unwrap().name(), name);
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_likely_one() {
        let message = |name| check_timezone(name).unwrap_err().message;
        assert_eq!(
            message("Europe/Berlim"),
            "timezone: \"Europe/Berlim\" is not an IANA time zone name such as Europe/Berlin; did you mean Europe/Berlin?"
        );
        assert!(message("Sydney").ends_with("did you mean Australia/Sydney?"), "{}", message("Sydney"));
        assert!(message("+02:00").contains("Etc/GMT-2"));
        for (offset, hint) in [
            ("+02:00", "this fixed offset is written Etc/GMT-2, its sign reversed"),
            ("UTC-5", "this fixed offset is written Etc/GMT+5, its sign reversed"),
            ("GMT+01", "this fixed offset is written Etc/GMT-1, its sign reversed"),
            ("+0530", "whole hours, Etc/GMT-14 (ahead of UTC) to Etc/GMT+12"),
            ("-13:00", "whole hours, Etc/GMT-14 (ahead of UTC) to Etc/GMT+12"),
        ] {
            assert!(message(offset).ends_with(hint), "{}", message(offset));
        }
        // Names that are near to nothing but by being short, and signs without an offset.
        for name in ["localtime", "Factory", "abc", "X", "zz", "CE", "Moon", "+", "-", "+x", "+123:00", "-1:2:3"] {
            assert!(message(name).ends_with("such as Europe/Berlin"), "{}", message(name));
        }
        assert!(message("Zulo").ends_with("did you mean Zulu?"), "{}", message("Zulo"));
        assert!(message("").ends_with("is empty"));
        for odd in ["right/Europe/Berlin", "posix/UTC", "localtime", "Factory", "../../etc/passwd", "Europe/Berlin\0"] {
            assert!(check_timezone(odd).is_err(), "{odd:?}");
        }
        assert!(check_timezone(&"x".repeat(10_000)).unwrap_err().message.len() < 200);
    }

    #[test]
    fn the_table_agrees_with_jiff_in_every_zone() {
        for name in jiff::tz::db().available() {
            let Ok(zone) = Zone::get(name.as_str()) else { continue };
            let tz = jiff::tz::db().get(name.as_str()).unwrap();
            // An odd step of some 53 days, so that all hours and seasons are met, and the edges of each span.
            let steps = (civil::FIRST..civil::LAST).step_by(4_600_337);
            let edges = zone.spans.iter().skip(1).flat_map(|span| [span.at - 1, span.at]);
            for at in steps.chain(edges) {
                let expected = tz.to_offset(jiff::Timestamp::from_second(at).unwrap()).seconds();
                assert_eq!(zone.offset(at), expected, "{} at {at}", name.as_str());
            }
            assert!(zone.spans.windows(2).all(|pair| pair[0].at < pair[1].at && pair[0].offset != pair[1].offset));
        }
    }

    #[test]
    fn the_rules_of_the_database_are_the_same_number_each_time() {
        assert_eq!(zone_rules(), zone_rules());
        assert!(NAMES.len() > 300, "{}", NAMES.len());
    }

    #[test]
    fn the_database_in_use_can_be_named() {
        let text = database_description();
        assert!(text.contains("from /") || text.contains("bundled"), "{text}");
    }
}
