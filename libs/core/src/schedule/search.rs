//! The search for instants: each source by itself past the exclusions, then the earliest of all.
//!
//! Every search ends: a source's candidates end with the years of schedules or the bounds of the timetable, and where
//! exclusions carry it on and on, it is *cut* after [`LOOKS_MAX`] looks at them. A cut is no answer to "is anything to come?",
//! so it is kept apart from the end ([`Step`]): it names the last candidate that was looked at, at which nothing fires, and
//! whoever asks goes on from there when that moment has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cron::CronLine;
use super::exclusion::{Asker, Exclusions, turned};
use super::interval;
use super::resolve::{self, DstRule};
use super::zone::Zone;

/// How many looks at exclusions one search has, all sources together; some 30 ms. A look is one exclusion asked about one
/// candidate; what is excluded is mostly left in leaps of a day, and of any number of days where dates are excluded, so with
/// a handful of patterns this is centuries. It is there for timetables made to cost something.
pub const LOOKS_MAX: usize = 1_000_000;
/// What a candidate costs besides: to be found.
const LOOKS_OF_A_CANDIDATE: usize = 2;

/// The parsed form of a timetable. Times in milliseconds.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) sources: Box<[Source]>,
    pub(crate) zone: Arc<Zone>,
    /// Both included.
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) rule: DstRule,
    pub(crate) exclusions: Exclusions,
    /// Whether what `H` chose is of a particular job, and not an example.
    pub(crate) job_is_named: bool,
    /// How many looks at exclusions one search has.
    pub(crate) looks: usize,
    /// A search had no looks left.
    pub(crate) was_cut: AtomicBool,
}

/// One parsed spec.
#[derive(Debug)]
pub(crate) enum Source {
    Line(CronLine),
    Every { interval: i64, anchor: i64 },
    Once(i64),
}

/// Where a search ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The instant it looked for.
    Fire(i64),
    /// It was cut at this candidate, which is excluded; nothing fires before.
    Cut(i64),
    /// Nothing is there.
    End,
}

impl Step {
    pub(crate) fn at(self) -> Option<i64> {
        match self {
            Step::Fire(at) | Step::Cut(at) => Some(at),
            Step::End => None,
        }
    }

    pub(crate) fn fire(self) -> Option<i64> {
        match self {
            Step::Fire(at) => Some(at),
            Step::Cut(_) | Step::End => None,
        }
    }
}

impl Inner {
    /// The first instant at or after `from`.
    ///
    /// Each source is searched with patience of its own, so that one which is wholly excluded cannot use up what another
    /// needs.
    pub(crate) fn next_from(&self, from: i64) -> Step {
        let from = from.max(self.start);
        let mut end = self.end;
        let mut first = Step::End;
        for source in &self.sources {
            let step = self.search(source, from, end, &mut self.share());
            if let Some(at) = step.at() {
                // Of the others, only what is earlier matters.
                (first, end) = (step, at);
            }
        }
        first
    }

    fn share(&self) -> usize {
        self.looks / self.sources.len().max(1)
    }

    /// The first instant of one source from `from` to `end`. At least one candidate is looked at, whatever `looks_left`, so
    /// that a search which is taken up again gets ahead.
    fn search(&self, source: &Source, mut from: i64, end: i64, looks_left: &mut usize) -> Step {
        loop {
            let Some(at) = self.next_of(source, from).filter(|at| *at <= end) else { return Step::End };
            if self.exclusions.is_empty() {
                return Step::Fire(at);
            }
            let second = at.div_euclid(1_000);
            let mut looks = LOOKS_OF_A_CANDIDATE;
            let Some(until) = self.exclusions.until(second, || self.asker(source, second), &mut looks) else {
                return Step::Fire(at);
            };
            let Some(left) = looks_left.checked_sub(looks) else {
                *looks_left = 0;
                self.was_cut.store(true, Ordering::Relaxed);
                return Step::Cut(at);
            };
            *looks_left = left;
            from = until.saturating_mul(1_000);
        }
    }

    /// The first candidate of one source at or after `from`, exclusions left aside.
    pub(crate) fn next_of(&self, source: &Source, from: i64) -> Option<i64> {
        match source {
            Source::Line(line) => {
                let second = from.div_euclid(1_000) + i64::from(from.rem_euclid(1_000) != 0);
                resolve::next_from(line, &self.zone, self.rule, second)?.checked_mul(1_000)
            }
            Source::Every { interval, anchor } => interval::next_from(*interval, *anchor, from),
            Source::Once(at) => (*at >= from).then_some(*at),
        }
    }

    /// What is known of a source's candidates after `second`.
    fn asker(&self, source: &Source, second: i64) -> Asker {
        const MINUTE: i64 = 60_000;
        match source {
            Source::Line(line) => {
                let index = self.zone.index(second);
                // Within a span they are what the fields say; what a gap moves stands at the border of one.
                let offset = self.zone.span(index).map_or(1, |span| i64::from(span.offset));
                Asker { minutes: turned(line.minutes, -offset), until: self.zone.end(index) }
            }
            Source::Every { interval, anchor } if interval % MINUTE == 0 => {
                let first = anchor.div_euclid(MINUTE).rem_euclid(60);
                let steps = (0..60).map(|step| (first + step * (interval / MINUTE % 60)) % 60);
                Asker { minutes: steps.fold(0, |minutes, minute| minutes | 1 << minute), until: i64::MAX }
            }
            Source::Every { .. } | Source::Once(_) => Asker::ANY,
        }
    }
}

/// The instants from some point on, one after the other. What each source has next is kept, so that a step searches only
/// the sources that the last one took an instant from.
pub(crate) struct Walk<'t> {
    inner: &'t Inner,
    /// What each source has at or after `from`; `None`: not searched yet.
    heads: Vec<Option<Step>>,
    from: i64,
    end: i64,
    looks_left: usize,
}

impl<'t> Walk<'t> {
    /// From `from` to `end`, both included, with so many looks at exclusions in all.
    pub(crate) fn new(inner: &'t Inner, from: i64, end: i64, looks: usize) -> Self {
        let (from, end) = (from.max(inner.start), end.min(inner.end));
        Self { inner, heads: vec![None; inner.sources.len()], from, end, looks_left: looks }
    }

    /// The next instant. After a cut the walk can go on behind it, as long as it has looks left.
    pub(crate) fn step(&mut self) -> Step {
        for (head, source) in self.heads.iter_mut().zip(&self.inner.sources) {
            if head.is_none() {
                let share = self.inner.share().min(self.looks_left);
                let mut left = share;
                *head = Some(self.inner.search(source, self.from, self.end, &mut left));
                self.looks_left -= share - left;
            }
        }
        let Some(first) = self.heads.iter().flatten().filter_map(|step| step.at()).min() else { return Step::End };
        let mut found = Step::Cut(first);
        for head in &mut self.heads {
            if head.and_then(Step::at) == Some(first) {
                if head.and_then(Step::fire).is_some() {
                    found = Step::Fire(first);
                }
                *head = None;
            }
        }
        match first.checked_add(1) {
            Some(from) => self.from = from,
            None => self.heads.fill(Some(Step::End)),
        }
        found
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.looks_left == 0
    }
}
