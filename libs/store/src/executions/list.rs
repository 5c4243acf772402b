//! Listing executions, newest first (ids are ordered by scheduled instant), of one job or of all: see [`crate::scan`].
//!
//! Failures are found by the table of failures, what is open of a job as in [`super::open`], all else among the rows. A statement looks at a range of days, of one at first and then of ever more: it touches the partitions of that range alone.
//! The way is not left to the planner: `carillon_page_of_executions` and `carillon_page_of_failures` in `migrations/0002` walk down
//! an index.

use carillon_core::execution::Status;
use carillon_core::ids;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::open::Open;
use super::{Execution, ExecutionRow, SELECT_CLAIMED, SELECT_TRIGGERED, require_job};
use crate::scan::{LOOKED_AT_DEAR_MAX, LOOKED_AT_MAX, Looked, Scan, Scanned, Window};
use crate::{Result, Store, days};

/// Which executions to list: those that match all of it. By these names `carillon_page_of_executions` reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filter<'a> {
    /// Of this job.
    #[serde(skip)]
    pub job: Option<Uuid>,
    /// That stand so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Of this platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_id: Option<&'a str>,
    /// In this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<&'a str>,
    /// That run this, by the revision of their job that they name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler_name: Option<&'a str>,
    /// With this tag of their job, by that revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<&'a str>,
    /// That this executor runs or ran last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<Uuid>,
    /// Whose error contains this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// That failed by this fault ([`carillon_core::fingerprint`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<&'a str>,
    /// Scheduled at this instant or later.
    #[serde(skip)]
    pub scheduled_from: Option<DateTime<Utc>>,
    /// Scheduled before this instant.
    #[serde(skip)]
    pub scheduled_before: Option<DateTime<Utc>>,
    /// Ended at this instant or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_from: Option<DateTime<Utc>>,
    /// Ended before this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_before: Option<DateTime<Utc>>,
}

impl Filter<'_> {
    /// Whether a trigger that is not claimed yet may match: nobody ran it, and nothing came of it.
    pub(super) const fn may_be_unclaimed(&self) -> bool {
        matches!(self.status, None | Some(Status::Queued))
            && self.worker_id.is_none()
            && self.error.is_none()
            && self.fingerprint.is_none()
            && self.completed_from.is_none()
            && self.completed_before.is_none()
    }

    /// Whether all that matches has failed.
    const fn is_of_failures(&self) -> bool {
        matches!(self.status, Some(Status::Failed | Status::Timeout)) || self.fingerprint.is_some()
    }

    /// Whether each row that is looked at needs another one to be looked up.
    const fn is_dear(&self) -> bool {
        if self.is_of_failures() {
            self.tag.is_some() || self.queue.is_some() || self.worker_id.is_some() || self.error.is_some()
        } else {
            self.tag.is_some() || self.handler_name.is_some()
        }
    }
}

/// A trigger leaves `job_triggers` and enters `job_executions` in one transaction: one statement over both sees it once.
const LOOK: &str = "
SELECT id, matches, open_by FROM (
    SELECT id, matches, open_by FROM carillon_page_of_executions($1, $2, $3, $4, $5)
    UNION ALL
    (SELECT t.execution_id,
            COALESCE(($5 ->> 'platform_id' IS NULL OR t.platform_id = $5 ->> 'platform_id')
                 AND ($5 ->> 'queue' IS NULL OR t.queue = $5 ->> 'queue')
                 AND ($5 ->> 'handler_name' IS NULL OR j.handler_name = $5 ->> 'handler_name')
                 AND ($5 ->> 'tag' IS NULL OR j.tags @> ARRAY[$5 ->> 'tag']), false),
            NULL::bigint
     FROM job_triggers t JOIN jobs j ON j.id = t.job_id
     WHERE $6 AND ($1::uuid IS NULL OR t.job_id = $1) AND t.execution_id >= $2 AND t.execution_id < $3
     ORDER BY t.execution_id DESC LIMIT $4)
) both_kinds ORDER BY id DESC LIMIT $4";

/// What failed was claimed.
const LOOK_AT_FAILURES: &str =
    "SELECT id, matches, NULL::bigint FROM carillon_page_of_failures($1, $2, $3, $4, $5) WHERE NOT $6 ORDER BY id DESC";

/// What is scheduled later than this is one range. A day more than what is claimed ahead needs, for clocks that differ.
const AHEAD_MAX: TimeDelta = TimeDelta::days(2);
/// Days in one range, at most; what is older is one range.
const DAYS_MAX: u64 = 64;

/// Lists executions.
///
/// # Errors
/// [`crate::Error::NotFound`] for an unknown job; or if Postgres is unavailable.
pub async fn list(store: &Store, filter: Filter<'_>, window: Window) -> Result<Scanned<Execution>> {
    let least = filter.scheduled_from.map_or(Uuid::nil(), ids::first_at);
    let future = ids::first_at(Utc::now() + AHEAD_MAX);
    let most = filter.scheduled_before.map_or(Uuid::max(), ids::first_at);
    // What failed was due.
    let most = if filter.is_of_failures() { most.min(future) } else { most };
    let mut scan = Scan::new(window, if filter.is_dear() { LOOKED_AT_DEAR_MAX } else { LOOKED_AT_MAX });
    // By its count alone who begins with the newest one knows how many are left.
    let is_first = window.from.below == Uuid::max();
    let mut open = if is_first { Open::begin(store, filter, least, most).await? } else { None };
    let mut days = 1;
    let found = loop {
        let (below, rows) = scan.next();
        let below = below.min(most);
        if let Some(open) = &mut open
            && let Some(matching) = open.all_below(store, below).await?
            && let Some(found) = scan.seen(Looked { matching, below: None, was_empty: false })
        {
            break found;
        }
        // Little lies there, however far it reaches.
        let is_future = below > future;
        let from = if is_future { future } else { days_before(below, days) }.max(least);
        let (looked, claims) = look(store, filter, from, below, rows).await?;
        if let Some(open) = &mut open {
            open.found(claims, !is_future);
        }
        if !is_future && looked.below.is_none() {
            days = days.saturating_mul(2);
        }
        // The range is done; what is older may hold more.
        let older = (from > least).then_some(from);
        if let Some(found) = scan.seen(Looked { below: looked.below.or(older), ..looked }) {
            break found;
        }
    };
    if found.items.is_empty() {
        if let Some(job) = filter.job {
            require_job(store, job).await?;
        }
        return Ok(Scanned { items: Vec::new(), next: found.next });
    }
    let statement = format!(
        "SELECT * FROM ({SELECT_CLAIMED} WHERE e.id = ANY ($1) AND {{days of e.id}} \
         UNION ALL {SELECT_TRIGGERED} WHERE t.execution_id = ANY ($1)) AS both_kinds ORDER BY id DESC"
    );
    let query = sqlx::query(days::of(&statement, found.items.iter().copied())).bind(found.items.clone());
    let read = |row: &PgRow| {
        let row: ExecutionRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), Execution::try_from(row)?))
    };
    found.read(&store.pool, query, read, |execution| execution.id).await
}

/// The first id of the day that lies `days` before the one of the last id below `below`.
fn days_before(below: Uuid, days: u64) -> Uuid {
    if days > DAYS_MAX {
        return Uuid::nil();
    }
    let day = ids::day(Uuid::from_u128(below.as_u128().saturating_sub(1)));
    ids::first_of_day(day.saturating_sub(days - 1))
}

/// With what it has seen it answers which batches claimed those of it that are open.
async fn look(store: &Store, filter: Filter<'_>, from: Uuid, below: Uuid, rows: i32) -> Result<(Looked, Vec<i64>)> {
    let statement = if filter.is_of_failures() { LOOK_AT_FAILURES } else { LOOK };
    let seen: Vec<(Uuid, bool, Option<i64>)> = sqlx::query_as(statement)
        .bind(filter.job)
        .bind(from)
        .bind(below)
        .bind(rows)
        .bind(Json(filter))
        .bind(filter.may_be_unclaimed())
        .fetch_all(&store.pool)
        .await?;
    let was_empty = seen.is_empty();
    let is_full = seen.len() >= usize::try_from(rows).unwrap_or(usize::MAX);
    let last = seen.last().filter(|_| is_full).map(|(id, ..)| *id);
    let claims = seen.iter().filter_map(|(.., open_by)| *open_by).collect();
    let matching = seen.into_iter().filter(|(_, matches, _)| *matches).map(|(id, ..)| id).collect();
    Ok((Looked { matching, below: last, was_empty }, claims))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn ranges_of_days_grow_and_the_last_one_is_all_that_is_older() {
        let at = |days: i64, ms: i64| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(days) + TimeDelta::milliseconds(ms);
        let first = |days| ids::first_at(at(days, 0));
        let noon = ids::execution_for_fire(Uuid::nil(), at(100, 43_200_000));
        assert_eq!(days_before(noon, 1), first(100));
        assert_eq!(days_before(noon, 4), first(97));
        assert_eq!(days_before(first(100), 1), first(99), "a whole day lies below its first id");
        assert_eq!(days_before(noon, 128), Uuid::nil());
        assert_eq!(days_before(ids::execution_for_fire(Uuid::nil(), at(0, 5)), 1), Uuid::nil());
    }
}
