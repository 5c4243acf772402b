//! A job's executions, from the newest day on, a page at a time: for whoever looks for the few that are open among all that it ever had.
//!
//! No index names the status (decision 0001), so what is open is found by looking at rows, and a job may have millions. A
//! statement looks at [`LOOKED_AT_MAX`] of them at most, in the partition of one day; a walk goes on where the one before
//! ended, and may be given up at any point. How many are open is known exactly (R20): once so many were found there are no
//! more, and nobody looks further.

use std::collections::VecDeque;
use std::ops::Range;

use carillon_core::ids;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bounded::Connection;
use crate::partitions::{self, Table};
use crate::{Error, Result};

/// Rows looked at by one statement, at most.
pub(crate) const LOOKED_AT_MAX: i32 = 10_000;
/// A page that took too long is made smaller, down to this.
const LOOKED_AT_MIN: i32 = 100;
/// What a claim has taken ahead lies within a second or two; a day is for a clock that was set back since.
const AHEAD_MAX: TimeDelta = TimeDelta::days(1);

/// One of a job's executions.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Seen {
    pub(crate) id: Uuid,
    status: String,
    pub(crate) revision: i64,
    pub(crate) claim: Option<i64>,
    pub(crate) cancel_requested: bool,
    place: i64,
}

impl Seen {
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.status.as_str(), "QUEUED" | "RUNNING" | "RETRYING")
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.status == "QUEUED"
    }
}

/// Of the page's rows those that are open, or all of them, and in any case the last of a page that is full.
const EXECUTIONS_PAGE_OF_JOB: &str = "
SELECT p.id, p.status, p.revision, p.claim, p.cancel_requested, p.place
FROM carillon.page_of_job($1, $2, $3, $4) WITH ORDINALITY AS p(id, status, revision, claim, cancel_requested, place)
WHERE $5 OR p.place = $4 OR p.status IN ('QUEUED', 'RUNNING', 'RETRYING')
ORDER BY p.place";

/// A walk down the executions of a job.
#[derive(Debug)]
pub(crate) struct Walk {
    job: Uuid,
    /// Stretches of ids, each from the first and below the second: a page stays within one.
    stretches: VecDeque<(Uuid, Uuid)>,
    looked_at_max: i32,
    with_final: bool,
}

impl Walk {
    /// Over all that is open of `job`, day by day.
    ///
    /// # Errors
    /// If Postgres is unavailable.
    pub(crate) async fn over_open(connection: &mut Connection, job: Uuid) -> Result<Self> {
        Ok(Self::of(job, stretches(&partitions::days_on(connection, Table::Executions).await?)))
    }

    /// Over all executions of `job`, whatever their state, that are dated within `span`, day by day; and over all others. `days` are
    /// those that have a partition.
    pub(crate) fn over_all(job: Uuid, days: &[NaiveDate], span: Range<DateTime<Utc>>) -> [Self; 2] {
        let span = ids::first_at(span.start)..ids::first_at(span.end);
        cut(stretches(days), &span).map(|stretches| Self { with_final: true, ..Self::of(job, stretches) })
    }

    /// Over what is open of `job` and was claimed ahead, as seen at `now`.
    pub(crate) fn ahead(job: Uuid, now: DateTime<Utc>) -> Self {
        let last = now.checked_add_signed(AHEAD_MAX).unwrap_or(DateTime::<Utc>::MAX_UTC);
        Self::of(job, VecDeque::from([(ids::first_at(now), ids::first_at(last))]))
    }

    fn of(job: Uuid, stretches: VecDeque<(Uuid, Uuid)>) -> Self {
        Self { job, stretches, looked_at_max: LOOKED_AT_MAX, with_final: false }
    }

    /// The next page, of which the final ones are left out unless they were asked for; it may well be empty. `None`: all was
    /// looked at.
    ///
    /// # Errors
    /// If Postgres is unavailable; [`Error::Busy`] if it took too long: the next page is smaller.
    pub(crate) async fn page(&mut self, connection: &mut Connection) -> Result<Option<Vec<Seen>>> {
        let Some((from, below)) = self.stretches.front().copied() else { return Ok(None) };
        let page = sqlx::query_as(EXECUTIONS_PAGE_OF_JOB)
            .bind(self.job)
            .bind(from)
            .bind(below)
            .bind(self.looked_at_max)
            .bind(self.with_final);
        let page: Vec<Seen> = match page.fetch_all(connection).await.map_err(Error::from) {
            Ok(page) => page,
            Err(error) => {
                if matches!(error, Error::Busy(_)) {
                    self.looked_at_max = (self.looked_at_max / 2).max(LOOKED_AT_MIN);
                }
                return Err(error);
            }
        };
        match (page.last(), self.stretches.front_mut()) {
            (Some(last), Some(stretch)) if last.place >= i64::from(self.looked_at_max) => stretch.1 = last.id,
            _ => drop(self.stretches.pop_front()),
        }
        self.looked_at_max = self.looked_at_max.saturating_mul(2).min(LOOKED_AT_MAX);
        Ok(Some(page.into_iter().filter(|seen| self.with_final || seen.is_open()).collect()))
    }
}

/// All ids that there are: each day that has a partition, newest first; then, since little lies there, what is after, between
/// and before these, in the default one. A day that gets its partition, or loses it, meanwhile is found all the same.
fn stretches(days: &[NaiveDate]) -> VecDeque<(Uuid, Uuid)> {
    let first = |day: NaiveDate| ids::first_at(day.and_time(NaiveTime::MIN).and_utc());
    let mut stretches = VecDeque::with_capacity(days.len() + 2);
    let mut between = Vec::new();
    let mut from = Uuid::nil();
    for day in days {
        let below = first(day.checked_add_days(Days::new(1)).unwrap_or(*day));
        if from < first(*day) {
            between.push((from, first(*day)));
        }
        stretches.push_front((first(*day), below));
        from = below;
    }
    between.push((from, Uuid::max()));
    stretches.extend(between.into_iter().rev());
    stretches
}

/// What of some stretches lies within `span`, and what does not, each in their order.
fn cut(stretches: VecDeque<(Uuid, Uuid)>, span: &Range<Uuid>) -> [VecDeque<(Uuid, Uuid)>; 2] {
    let (mut within, mut others) = (VecDeque::new(), VecDeque::new());
    for (from, below) in stretches {
        let (first, end) = (span.start.clamp(from, below), span.end.clamp(from, below));
        let end = end.max(first);
        for (part, is_within) in [((end, below), false), ((first, end), true), ((from, first), false)] {
            if part.0 < part.1 {
                if is_within { &mut within } else { &mut others }.push_back(part);
            }
        }
    }
    [within, others]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What such a statement reads depends on the job's age, and on what the planner believes: this module is in place of it.
    #[test]
    fn no_other_statement_looks_for_executions_by_their_job() {
        let mut looked_into = 0;
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let source = std::fs::read_to_string(&path).unwrap();
                let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                // From the table's name to the end of its clause, by which it is restricted.
                for (at, _) in source.match_indices("job_executions") {
                    let clause = &source[at..];
                    let end = ["\";", "RETURNING", "ORDER BY", "\n)"].iter().filter_map(|end| clause.find(end)).min();
                    let clause = &clause[..end.unwrap_or(clause.len()).min(400)];
                    let by_job = clause.contains("WHERE job_id =") || clause.contains("WHERE e.job_id =");
                    assert!(!by_job, "{}: {clause}", path.display());
                    looked_into += 1;
                }
            }
        }
        assert!(looked_into > 20);
    }

    #[test]
    fn stretches_leave_out_no_id_and_name_one_day_each() {
        let day = |n: u64| NaiveDate::from_ymd_opt(2025, 3, 1).unwrap() + Days::new(n);
        for (days, default) in [(vec![], 1), (vec![day(0)], 2), (vec![day(0), day(1), day(5)], 3)] {
            let stretches = stretches(&days);
            assert_eq!(stretches.len(), days.len() + default);
            assert!(stretches.iter().take(days.len()).is_sorted_by(|newer, older| newer > older));
            let mut ascending: Vec<(Uuid, Uuid)> = stretches.into_iter().collect();
            ascending.sort_unstable();
            assert_eq!((ascending[0].0, ascending[ascending.len() - 1].1), (Uuid::nil(), Uuid::max()));
            assert!(ascending.iter().all(|(from, below)| from < below));
            assert!(ascending.windows(2).all(|pair| pair[0].1 == pair[1].0));
        }
    }

    #[test]
    fn what_lies_within_a_span_and_what_does_not_are_all_of_it() {
        let day = |n: u64| NaiveDate::from_ymd_opt(2025, 3, 1).unwrap() + Days::new(n);
        let noon = |n: u64| ids::first_at(day(n).and_hms_opt(12, 0, 0).unwrap().and_utc());
        let days: Vec<NaiveDate> = [0, 1, 2, 5, 6].map(day).to_vec();
        let all = stretches(&days);
        for (from, to, within) in [(1, 5, 4), (1, 1, 0), (2, 1, 0), (10, 20, 1), (3, 4, 1)] {
            let [inside, outside] = cut(all.clone(), &(noon(from)..noon(to)));
            assert_eq!(inside.len(), within, "from {from} to {to}");
            assert!(inside.iter().all(|(first, below)| noon(from) <= *first && *below <= noon(to)));
            let mut ascending: Vec<(Uuid, Uuid)> = inside.into_iter().chain(outside).collect();
            ascending.sort_unstable();
            assert_eq!((ascending[0].0, ascending[ascending.len() - 1].1), (Uuid::nil(), Uuid::max()));
            assert!(ascending.windows(2).all(|pair| pair[0].1 == pair[1].0));
        }
    }
}
