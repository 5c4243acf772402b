//! Every minute or second of a span, asked in local time. Slow and obvious.

use std::collections::BTreeMap;

use carillon_core::schedule::{DstGap, DstOverlap};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::fields::Expression;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) gap: Option<DstGap>,
    pub(crate) overlap: Option<DstOverlap>,
}

/// What a span's edges must show beyond it: the longest change of clocks there is (a day) and a little.
const MARGIN: i64 = 26 * 3_600;

/// The instants from `from` to `to`, both included and multiples of `step`, at which `expression` fires.
pub(crate) fn fires(expression: &Expression, zone: &TimeZone, rules: Rules, from: i64, to: i64, step: i64) -> Vec<i64> {
    // Beyond the span, only what stands within a day of a change of the clocks matters.
    let offsets =
        (from - MARGIN..=to + MARGIN).step_by(900).map(|at| zone.to_offset(jiff::Timestamp::from_second(at).unwrap()));
    let calm = offsets.collect::<std::collections::HashSet<_>>().len() == 1;
    let margin = if calm { 0 } else { MARGIN };
    let mut fires = fires_on(&clock(zone, from - margin, to + margin, step), expression, rules, step);
    fires.retain(|at| (from..=to).contains(at));
    fires
}

/// What the wall shows at each `step`.
pub(crate) fn clock(zone: &TimeZone, from: i64, to: i64, step: i64) -> Vec<(i64, DateTime)> {
    let local = |at: i64| zone.to_datetime(jiff::Timestamp::from_second(at).unwrap());
    (from..=to).step_by(step as usize).map(|at| (at, local(at))).collect()
}

/// The instants among those of a clock at which `expression` fires. (Those at its edges lack what lies beyond.)
pub(crate) fn fires_on(clock: &[(i64, DateTime)], expression: &Expression, rules: Rules, step: i64) -> Vec<i64> {
    let fixed = expression.fixed_time();
    let gap = rules.gap.unwrap_or(if fixed { DstGap::RunAfter } else { DstGap::Skip });
    let overlap = rules.overlap.unwrap_or(if fixed { DstOverlap::First } else { DstOverlap::Both });
    let mut passes: BTreeMap<DateTime, Vec<i64>> = BTreeMap::new();
    for (at, shown) in clock {
        if expression.fits(*shown) {
            passes.entry(*shown).or_default().push(*at);
        }
    }
    let mut fires = Vec::new();
    for times in passes.values() {
        match overlap {
            DstOverlap::First => fires.push(times[0]),
            DstOverlap::Last => fires.push(times[times.len() - 1]),
            DstOverlap::Both => fires.extend(times),
        }
    }
    if gap == DstGap::RunAfter {
        for pair in clock.windows(2) {
            // Local times that the clock leaps over between one look and the next.
            let mut skipped = pair[0].1.checked_add(jiff::Span::new().seconds(step)).unwrap();
            while skipped < pair[1].1 {
                if expression.fits(skipped) {
                    fires.push(pair[1].0);
                }
                skipped = skipped.checked_add(jiff::Span::new().seconds(step)).unwrap();
            }
        }
    }
    fires.sort_unstable();
    fires.dedup();
    fires
}

/// The midnights, in UTC, of the days from `first` up to `end` (days since 1970) whose date fits.
pub(crate) fn days_at_midnight(expression: &Expression, first: i64, end: i64) -> Vec<i64> {
    let epoch = Date::constant(1970, 1, 1);
    let mut date = epoch.checked_add(jiff::Span::new().days(first)).unwrap();
    let mut fires = Vec::new();
    for day in first..end {
        if date.year() < 2400 && expression.fits_date(date) {
            fires.push(day * 86_400);
        }
        date = date.tomorrow().unwrap();
    }
    fires
}
