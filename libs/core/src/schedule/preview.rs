//! The next instants of a timetable, as a person wants to see them before anything is created: each with the time on the
//! wall, and with a note where a change of the clocks moved, merged, doubled or skipped something; and where there are
//! fewer than asked for, why.
//!
//! A note is about the stretch from the instant before (or the preview's start) to this one, so that a skipped time is
//! told of at the next instant that is shown, or, if there is none, in the reason.

use chrono::{DateTime, FixedOffset, Utc};

use super::preview_note::{first_skipped, note};
use super::search::{Inner, LOOKS_MAX, Step, Walk};
use super::timetable::{LAST_MS, Timetable, ceil_ms, instant, utc};

/// Most instants that one preview shows.
pub const PREVIEW_MAX: usize = 1_000;
/// How often one preview looks at exclusions; some 0.2 s.
const PREVIEW_LOOKS_MAX: usize = 16 * LOOKS_MAX;

/// What a timetable has to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// In order.
    pub fires: Vec<PreviewFire>,
    /// Why there are fewer than asked for, if so.
    pub reason: Option<String>,
}

/// One instant of a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewFire {
    /// When.
    pub at: DateTime<Utc>,
    /// The same in the timetable's zone, RFC 3339 with the offset.
    pub local: String,
    /// What a change of the clocks did to this instant or since the one before, if anything.
    pub note: Option<String>,
}

/// The first `count` instants at or after `from`, at most [`PREVIEW_MAX`].
pub fn preview(timetable: &Timetable, from: DateTime<Utc>, count: usize) -> Preview {
    let inner = &*timetable.0;
    let from_ms = ceil_ms(from);
    let mut walk = Walk::new(inner, from_ms, LAST_MS, PREVIEW_LOOKS_MAX);
    let mut since = from_ms.max(inner.start);
    let mut fires = Vec::new();
    while fires.len() < count.min(PREVIEW_MAX) {
        let step = walk.step();
        if let (Step::Fire(ms), Some(at)) = (step, step.at().and_then(instant)) {
            let note = note(inner, ceil_second(since), ms);
            fires.push(PreviewFire { at, local: local(inner, at), note });
            since = ms + 1;
            continue;
        }
        if matches!(step, Step::Cut(_)) && !walk.is_spent() {
            continue;
        }
        let why = match step {
            Step::Cut(at) => cut(at),
            Step::Fire(_) | Step::End => ended(timetable, from_ms, since, fires.last()),
        };
        let nothing = match instant(from_ms) {
            Some(from) if fires.is_empty() => format!("no fire from {} on", utc(from)),
            _ => "no further fire".to_owned(),
        };
        return Preview { fires, reason: Some(format!("{nothing}: {why}")) };
    }
    Preview { fires, reason: None }
}

fn cut(at: i64) -> String {
    let at = instant(at).map(utc).unwrap_or_default();
    format!("the exclusions leave so little that the search was cut at {at}; look again from there")
}

/// Why nothing is left from `since` on.
fn ended(timetable: &Timetable, from: i64, since: i64, last_shown: Option<&PreviewFire>) -> String {
    let inner = &*timetable.0;
    if inner.sources.is_empty() {
        return "it never fires by time".to_owned();
    }
    let mut why = Vec::new();
    if last_shown.is_none()
        && let Some(from) = instant(from)
        && let Some(last) = timetable.last_at_or_before(from, DateTime::<Utc>::MIN_UTC)
    {
        why.push(format!("its last instant was {}", utc(last)));
    }
    let candidate_from = |from| inner.sources.iter().filter_map(|source| inner.next_of(source, from)).min();
    let goes_on = candidate_from(inner.end.saturating_add(1)).is_some();
    if goes_on {
        why.push(match instant(inner.end) {
            Some(end) if inner.end < LAST_MS => format!("end_date is {}", utc(end)),
            _ => "everything ends with the year 9999".to_owned(),
        });
    }
    if candidate_from(since).is_some_and(|at| at <= inner.end) {
        why.push(format!("all that would come{} is excluded", if goes_on { " until then" } else { "" }));
    }
    let skipped = first_skipped(inner, ceil_second(since), inner.end.div_euclid(1_000));
    why.extend(skipped.map(|times| format!("skipped: {times}")));
    match last_shown {
        Some(last) if why.is_empty() => format!("its last instant is {}", utc(last.at)),
        None if why.is_empty() => "it has no instants".to_owned(),
        _ => why.join("; "),
    }
}

/// The first second at or after a millisecond: changes of the clocks happen on seconds.
fn ceil_second(ms: i64) -> i64 {
    ms.div_euclid(1_000) + i64::from(ms.rem_euclid(1_000) != 0)
}

fn local(inner: &Inner, at: DateTime<Utc>) -> String {
    match FixedOffset::east_opt(inner.zone.offset(at.timestamp())) {
        Some(offset) => at.with_timezone(&offset).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, false),
        None => utc(at),
    }
}
