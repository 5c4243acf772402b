//! From civil time to instants: where a zone's clock shows what a cron line asks for, and what becomes of local times
//! that a change of the clocks swallows (a gap) or shows twice (an overlap).
//!
//! The zone is walked span by span of constant offset. Within a span civil time and real time run side by side, so the
//! line's next civil time is the next instant, unless it lies beyond the span. At the border:
//!
//! - **gap** (the offset grows): the civil times between are shown by no clock. With [`DstGap::RunAfter`] a line that
//!   asks for any of them fires at the border itself, once, however many they are.
//! - **overlap** (the offset shrinks): the civil times between are shown by both spans. [`DstOverlap::First`] leaves them
//!   out of the second, [`DstOverlap::Last`] out of the first.
//!
//! Whichever rules: instants come in order, each strictly after the one before, and none is early; that holds by
//! construction, since a span is only ever searched forwards and every span begins where the last one ended.

use super::cron::CronLine;
use super::spec::{DstGap, DstOverlap};
use super::zone::Zone;

/// What a timetable does at changes of the clocks. `None`: Debian cron's rule, by the line's own form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DstRule {
    pub(crate) gap: Option<DstGap>,
    pub(crate) overlap: Option<DstOverlap>,
}

impl DstRule {
    pub(crate) fn gap_of(self, line: &CronLine) -> DstGap {
        self.gap.unwrap_or(if line.is_fixed_time() { DstGap::RunAfter } else { DstGap::Skip })
    }

    pub(crate) fn overlap_of(self, line: &CronLine) -> DstOverlap {
        self.overlap.unwrap_or(if line.is_fixed_time() { DstOverlap::First } else { DstOverlap::Both })
    }
}

/// The line's first instant at or after `from`; both are UTC seconds.
pub(crate) fn next_from(line: &CronLine, zone: &Zone, rule: DstRule, from: i64) -> Option<i64> {
    let (gap, overlap) = (rule.gap_of(line), rule.overlap_of(line));
    // An instant before the years of schedules stands for their beginning, whatever the zone's offset there.
    let from = from.max(super::civil::FIRST - 2 * super::civil::DAY);
    let mut index = zone.index(from);
    let mut span = zone.span(index)?;
    // A border belongs to the change that made it: a swallowed time fires at the border.
    if span.at == from && index > 0 {
        index -= 1;
        span = zone.span(index)?;
    }
    let mut civil_from = from + i64::from(span.offset);
    // The civil time before which the second pass of an overlap has nothing new.
    if overlap == DstOverlap::First && index > 0 {
        let before = i64::from(zone.span(index - 1)?.offset);
        civil_from = civil_from.max(span.at.saturating_add(before.max(i64::from(span.offset))));
    }
    let mut next = line.next_civil(civil_from)?;
    loop {
        let offset = i64::from(span.offset);
        let Some(following) = zone.span(index + 1) else {
            return Some(next - offset);
        };
        let offset_after = i64::from(following.offset);
        let civil_end = following.at + offset;
        let civil_begin = following.at + offset_after;
        // Of an overlap's first pass, nothing is taken where the last pass counts.
        let taken_until = if overlap == DstOverlap::Last { civil_end.min(civil_begin) } else { civil_end };
        if next < taken_until {
            return Some(next - offset);
        }
        if civil_begin > civil_end && next < civil_begin && gap == DstGap::RunAfter && next >= civil_end {
            return Some(following.at);
        }
        let begin = match overlap {
            DstOverlap::First => civil_begin.max(civil_end),
            DstOverlap::Last | DstOverlap::Both => civil_begin,
        };
        // The search goes on where the next clock begins. What was found stands unless that clock begins behind the
        // place where this one was searched from, or beyond what was found.
        if begin < civil_from || begin > next {
            next = line.next_civil(begin)?;
        }
        civil_from = begin;
        (index, span) = (index + 1, following);
    }
}
