//! Listing executions, of one job or of all, in the order of their instants (that of their ids; [`crate::scan`]) or of what the
//! recorder wrote of them ([`crate::sorted`]).
//!
//! Failures are found by the table of failures, what is open of a job as in [`super::open`] and of all as in
//! [`super::maybe_open`], all else among the rows, a range of
//! days at a time ([`super::ranges`]). The way is not left to the planner: `carillon.page_of_executions` and
//! `carillon.page_of_failures` in `migrations/0002` walk along an index.

use std::ops::Deref;
use std::time::Duration;

use carillon_core::execution::Status;
use carillon_core::ids;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::maybe_open::MaybeOpen;
use super::open::Open;
use super::ranges::{Range, Ranges};
use super::{EXECUTIONS_SELECT, Execution, ExecutionRow, TRIGGERS_SELECT};
use crate::scan::{
    COUNTED_MAX, Counted, Direction, LOOKED_AT_DEAR_MAX, LOOKED_AT_MAX, Looked, Place, Scan, Scanned, Window,
};
use crate::sorted::{DEAR_LOOKED_AT_MAX, EXECUTIONS_LOOKED_AT_MAX, Gathered, Key};
use crate::{Result, Scope, Store, days, jobs};

/// Which executions to list, those that match all of it, and in which order. By these names `carillon.page_of_executions` reads
/// it.
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
    /// In this order.
    #[serde(rename = "order", serialize_with = "order")]
    pub order: Order,
}

/// What executions are ordered by.
pub type Order = crate::scan::Order<By>;

/// What executions may be ordered by. But for the first all that match must be gathered: [`crate::Error::TooWide`] if that is too
/// much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Their instant.
    #[default]
    Scheduled,
    /// Their end.
    Completed,
    /// How long their latest attempt ran.
    Duration,
}

fn order<S: Serializer>(order: &Order, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match order.by {
        By::Scheduled => serializer.serialize_none(),
        By::Completed => serializer.serialize_str("COMPLETED"),
        By::Duration => serializer.serialize_str("DURATION"),
    }
}

/// What to look for, as `carillon.page_of_executions` reads it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Wanted<'a> {
    #[serde(flatten)]
    pub(super) filter: Filter<'a>,
    /// Of these platforms, or of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<&'a [String]>,
}

impl Wanted<'_> {
    /// From the first to before the last id of the instants that are asked for.
    pub(super) fn instants(&self) -> (Uuid, Uuid) {
        let from = self.scheduled_from.map_or(Uuid::nil(), ids::first_at);
        (from, self.scheduled_before.map_or(Uuid::max(), ids::first_at))
    }
}

impl<'a> Deref for Wanted<'a> {
    type Target = Filter<'a>;

    fn deref(&self) -> &Filter<'a> {
        &self.filter
    }
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
    fn is_dear(&self) -> bool {
        if self.is_of_failures() {
            self.order.by == By::Duration
                || self.tag.is_some()
                || self.queue.is_some()
                || self.worker_id.is_some()
                || self.error.is_some()
        } else {
            self.tag.is_some() || self.handler_name.is_some()
        }
    }
}

/// A trigger leaves `job_triggers` and enters `job_executions` in one transaction: one statement over both sees it once.
macro_rules! look {
    ($way:literal) => {
        concat!(
            "
SELECT id, matches, open_by, sort_key FROM (
    SELECT id, matches, open_by, sort_key FROM carillon.page_of_executions($1, $2, $3, $4, $5, $6)
    UNION ALL
    (SELECT t.execution_id, COALESCE(",
            trigger_matches!(),
            ", false),
            NULL::bigint, NULL::bigint
     FROM carillon.job_triggers t JOIN carillon.jobs j ON j.id = t.job_id CROSS JOIN (SELECT $6::jsonb AS wanted) w
     WHERE $7 AND ($1::uuid IS NULL OR t.job_id = $1) AND t.execution_id >= $2 AND t.execution_id < $3
     ORDER BY t.execution_id ",
            $way,
            " LIMIT $4)
) both_kinds ORDER BY id ",
            $way,
            " LIMIT $4"
        )
    };
}

/// What failed was claimed.
macro_rules! look_at_failures {
    ($way:literal) => {
        concat!(
            "SELECT id, matches, NULL::bigint, sort_key FROM carillon.page_of_failures($1, $2, $3, $4, $5, $6)
             WHERE NOT $7 ORDER BY id ",
            $way
        )
    };
}

/// Lists executions.
///
/// # Errors
/// [`crate::Error::NotFound`] for an unknown job; [`crate::Error::TooWide`]; or if Postgres is unavailable.
pub async fn list(store: &Store, scope: &Scope, filter: Filter<'_>, window: Window) -> Result<Scanned<Execution>> {
    if let Some(job) = filter.job.filter(|_| !scope.is_all()) {
        // Before anything of it is looked at, which takes the longer the more there is.
        jobs::require(store, scope, job).await?;
    }
    let filter = Wanted { filter, scope: scope.platforms() };
    if filter.order.by == By::Scheduled {
        let found = find(store, filter, window).await?;
        return read(store, scope, filter, found, |execution| Place::behind(execution.id)).await;
    }
    let gathered = gather(store, filter).await?;
    let direction = filter.order.direction;
    read(store, scope, filter, gathered.page(direction, window), |execution| gathered.place_of(direction, execution.id))
        .await
}

/// How many executions match, up to [`COUNTED_MAX`] and for as long as `budget` allows.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn count(store: &Store, scope: &Scope, filter: Filter<'_>, budget: Duration) -> Result<Counted> {
    let filter = Wanted { filter: Filter { order: Order::default(), ..filter }, scope: scope.platforms() };
    let window = Window { limit: COUNTED_MAX, from: Place::first(0), budget };
    Ok(Counted::from(&find(store, filter, window).await?))
}

fn ranges(filter: Wanted<'_>) -> Ranges {
    let (from, below) = filter.instants();
    let ranges = Ranges::new(filter.order.direction, from, below, Utc::now());
    // What failed was due.
    if filter.is_of_failures() { ranges.until_now() } else { ranges }
}

async fn find(store: &Store, filter: Wanted<'_>, window: Window) -> Result<Scanned<Uuid>> {
    let mut scan = Scan::new(window, if filter.is_dear() { LOOKED_AT_DEAR_MAX } else { LOOKED_AT_MAX });
    if let Some(maybe_open) = MaybeOpen::gather(store, filter).await? {
        return maybe_open.find(store, filter, scan).await;
    }
    let mut ranges = ranges(filter);
    // By its count alone who begins with the newest one knows how many are left.
    let is_first = window.from.behind.is_none() && filter.order.direction == Direction::Descending;
    let mut open = if is_first { Open::begin(store, filter).await? } else { None };
    loop {
        let (behind, rows) = scan.next();
        let range = ranges.next(behind);
        if let Some(open) = &mut open
            && let Some(matching) = open.all_below(store, range.below).await?
            && let Some(found) = scan.seen(Looked { matching, behind: None, rows: 1 })
        {
            return Ok(found);
        }
        let Seen { entries, rows, claims, behind } = look(store, filter, range, rows).await?;
        if let Some(open) = &mut open {
            open.found(claims, range.is_of_days);
        }
        let behind = behind.or_else(|| ranges.done(range));
        let matching = entries.into_iter().map(|(_, id)| id).collect();
        if let Some(found) = scan.seen(Looked { matching, behind, rows }) {
            return Ok(found);
        }
    }
}

/// All that match, with what they are ordered by.
async fn gather(store: &Store, filter: Wanted<'_>) -> Result<Gathered> {
    let (rows, rows_max) = if filter.is_dear() {
        (LOOKED_AT_DEAR_MAX, DEAR_LOOKED_AT_MAX)
    } else {
        (LOOKED_AT_MAX, EXECUTIONS_LOOKED_AT_MAX)
    };
    let mut gathered = Gathered::among(rows_max);
    let mut ranges = ranges(filter);
    let mut behind = None;
    loop {
        let range = ranges.next(behind);
        let seen = look(store, filter, range, rows).await?;
        behind = seen.behind.or_else(|| ranges.done(range));
        gathered.more(seen.entries, seen.rows)?;
        if behind.is_none() {
            return Ok(gathered);
        }
    }
}

async fn read(
    store: &Store,
    scope: &Scope,
    filter: Wanted<'_>,
    found: Scanned<Uuid>,
    place: impl Fn(&Execution) -> Place,
) -> Result<Scanned<Execution>> {
    if found.items.is_empty() {
        if let Some(job) = filter.job {
            jobs::require(store, scope, job).await?;
        }
        return Ok(Scanned { items: Vec::new(), next: found.next });
    }
    let template = format!(
        "SELECT * FROM ({EXECUTIONS_SELECT} WHERE e.id = ANY ($1) AND {{days of e.id}} \
         UNION ALL {TRIGGERS_SELECT} WHERE t.execution_id = ANY ($1)) AS both_kinds ORDER BY array_position($1, id)"
    );
    let statement = |ids: &[Uuid]| days::of(&template, ids.iter().copied());
    let read = |row: &PgRow| {
        let row: ExecutionRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), Execution::try_from(row)?))
    };
    found.read(&store.pool, statement, read, place).await
}

/// What a statement has seen.
struct Seen {
    /// Those that match.
    entries: Vec<(Key, Uuid)>,
    /// How many it looked at.
    rows: usize,
    /// Which batches claimed those that are open.
    claims: Vec<i64>,
    /// Where it ended before the end of its range.
    behind: Option<Uuid>,
}

async fn look(store: &Store, filter: Wanted<'_>, range: Range, rows: i32) -> Result<Seen> {
    let ascending = filter.order.direction == Direction::Ascending;
    let statement = match (filter.is_of_failures(), ascending) {
        (true, false) => look_at_failures!("DESC"),
        (true, true) => look_at_failures!("ASC"),
        (false, false) => look!("DESC"),
        (false, true) => look!("ASC"),
    };
    let seen: Vec<(Uuid, bool, Option<i64>, Option<i64>)> = sqlx::query_as(statement)
        .bind(filter.job)
        .bind(range.from)
        .bind(range.below)
        .bind(rows)
        .bind(ascending)
        .bind(Json(filter))
        .bind(filter.may_be_unclaimed())
        .fetch_all(&store.pool)
        .await?;
    let is_full = seen.len() >= usize::try_from(rows).unwrap_or(usize::MAX);
    Ok(Seen {
        behind: seen.last().filter(|_| is_full).map(|(id, ..)| *id),
        rows: seen.len(),
        claims: seen.iter().filter_map(|(_, _, open_by, _)| *open_by).collect(),
        entries: seen.into_iter().filter(|(_, matches, ..)| *matches).map(|(id, _, _, key)| (key, id)).collect(),
    })
}
