//! Listing jobs, in the order of their creation (that of their ids) or of their last or next run, by any of their fields: see
//! [`crate::scan`], [`crate::sorted`].
//!
//! Key, platform, tag, handler, status and type have an index that is in the order of the list, and by the one that leads past the
//! fewest rows the list is looked for; whatever else is asked for is looked for among the rows. The way is not left to the planner:
//! `carillon.page_of_jobs` in `migrations/0001` walks along an index.

use std::ops::Deref;
use std::time::Duration;

use carillon_core::ids;
use carillon_core::job::{JobStatus, JobType, Priority};
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::Job;
use super::rows::{JOBS_SELECT, JobRow};
use crate::scan::{COUNTED_MAX, Counted, Direction, LOOKED_AT_MAX, Looked, Place, Scan, Scanned, Window};
use crate::sorted::{Gathered, JOBS_LOOKED_AT_MAX, Key};
use crate::{Result, Scope, Store};

/// Where there are several ways to a page, each is counted up to so many rows: one that leads past more is as good as any other.
const COUNTED_OF_A_WAY: i32 = 2_000;
/// So many are looked at in two halves.
const HALVED_MIN: usize = 1_000;

/// One row that says what was seen, since a row for each is dearer than to look at it. The function's rows are in its order. Behind
/// a full page there may be more.
const JOBS_LOOK: &str = "
    SELECT COALESCE(array_agg(id) FILTER (WHERE matches), '{}'), count(*), (array_agg(id))[$3]
    FROM carillon.page_of_jobs($1, $2, $3, $4, $5, $6)";

/// All that match, up to `$7`, with what they are ordered by, and how many rows were looked at and match. `OFFSET 0`: a probe of the
/// primary key for each, whatever the planner thinks of joins.
macro_rules! jobs_gather {
    ($key:literal) => {
        concat!(
            "
    WITH looked AS MATERIALIZED (SELECT id, status, matches FROM carillon.page_of_jobs($1, $2, $3, $4, $5, $6)),
         counted AS MATERIALIZED (SELECT count(*) AS rows, count(*) FILTER (WHERE matches) AS matching FROM looked),
         keyed AS (
             SELECT l.id, k.key FROM looked l LEFT JOIN LATERAL (",
            $key,
            " OFFSET 0) k ON true
             WHERE l.matches AND (SELECT matching FROM counted) <= $7)
    SELECT (SELECT rows FROM counted), (SELECT matching FROM counted), COALESCE(array_agg(id), '{}'), COALESCE(array_agg(key), '{}')
    FROM keyed"
        )
    };
}
const JOBS_GATHER_LAST_RUNS: &str =
    jobs_gather!("SELECT last_run_at AS key FROM carillon.job_stats WHERE job_id = l.id");
/// Of a job that is not active nothing is to come.
const JOBS_GATHER_NEXT_RUNS: &str =
    jobs_gather!("SELECT fire_at AS key FROM carillon.job_timers WHERE job_id = l.id AND l.status = 'ACTIVE'");

/// Which jobs to list, those that match all of it, and in which order. By these names `carillon.page_of_jobs` reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filter<'a> {
    /// Of this type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,
    /// Of this status; without it all but deleted ones.
    #[serde(rename = "statuses", serialize_with = "statuses")]
    pub status: Option<JobStatus>,
    /// Of this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
    /// With this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<&'a str>,
    /// Of this platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_id: Option<&'a str>,
    /// Whose name contains this, in upper or lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// Whose name begins with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_prefix: Option<&'a str>,
    /// That run this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler_name: Option<&'a str>,
    /// In this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<&'a str>,
    /// Of this priority.
    #[serde(serialize_with = "rank", skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Created at this instant or later.
    #[serde(skip)]
    pub created_from: Option<DateTime<Utc>>,
    /// Created before this instant.
    #[serde(skip)]
    pub created_before: Option<DateTime<Utc>>,
    /// In this order.
    #[serde(skip)]
    pub order: Order,
}

/// What jobs are ordered by.
pub type Order = crate::scan::Order<By>;

/// What jobs may be ordered by. But for the first all that match must be gathered: [`crate::Error::TooWide`] if that is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Their creation.
    #[default]
    Created,
    /// The end of their latest execution.
    LastRun,
    /// Their next instant.
    NextRun,
}

/// What to look for, as `carillon.page_of_jobs` reads it.
#[derive(Clone, Copy, Serialize)]
struct Wanted<'a> {
    #[serde(flatten)]
    filter: Filter<'a>,
    /// Of these platforms, or of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a [String]>,
}

impl<'a> Deref for Wanted<'a> {
    type Target = Filter<'a>;

    fn deref(&self) -> &Filter<'a> {
        &self.filter
    }
}

impl Wanted<'_> {
    /// From the first to before the last id of the instants that are asked for.
    fn instants(&self) -> (Uuid, Uuid) {
        (self.created_from.map_or(Uuid::nil(), ids::first_at), self.created_before.map_or(Uuid::max(), ids::first_at))
    }

    /// Whether what leads past the fewest rows is not known beforehand.
    const fn has_ways(&self) -> bool {
        self.scope.is_some() || self.filter.tag.is_some() || self.filter.handler_name.is_some()
    }
}

/// Lists jobs. What is looked at is `jobs` alone; the page that was found is read with the rest.
///
/// # Errors
/// [`crate::Error::TooWide`]; or if Postgres is unavailable.
pub async fn list(store: &Store, scope: &Scope, filter: Filter<'_>, window: Window) -> Result<Scanned<Job>> {
    let direction = filter.order.direction;
    let filter = Wanted { filter, scope: scope.platforms() };
    if filter.order.by == By::Created {
        let found = find(store, filter, window).await?;
        return read(store, found, |job| Place::behind(job.id)).await;
    }
    let gathered = gather(store, filter).await?;
    read(store, gathered.page(direction, window), |job| gathered.place_of(direction, job.id)).await
}

/// How many jobs match, up to [`COUNTED_MAX`] and for as long as `budget` allows.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn count(store: &Store, scope: &Scope, filter: Filter<'_>, budget: Duration) -> Result<Counted> {
    let filter = Wanted { filter: Filter { order: Order::default(), ..filter }, scope: scope.platforms() };
    let window = Window { limit: COUNTED_MAX, from: Place::first(0), budget };
    Ok(Counted::from(&find(store, filter, window).await?))
}

async fn find(store: &Store, filter: Wanted<'_>, window: Window) -> Result<Scanned<Uuid>> {
    let way = if filter.has_ways() { Some(way(store, filter, COUNTED_OF_A_WAY, true).await?.way) } else { None };
    let mut scan = Scan::new(window, LOOKED_AT_MAX);
    loop {
        let (behind, rows) = scan.next();
        if let Some(found) = scan.seen(look(store, filter, way.as_deref(), behind, rows).await?) {
            return Ok(found);
        }
    }
}

/// All that match, with what they are ordered by: two halves of it at once, since each of ten thousand has a row of its own to be read.
async fn gather(store: &Store, filter: Wanted<'_>) -> Result<Gathered> {
    let mut gathered = Gathered::among(JOBS_LOOKED_AT_MAX);
    // Counted along an index, before any row is looked at.
    let Way { way, passed, middle } = way(store, filter, too_many(), false).await?;
    gathered.require_among(passed)?;
    let (from, below) = filter.instants();
    let middle = middle.filter(|_| passed >= HALVED_MIN).unwrap_or(below);
    let rest = async {
        if middle < below { gather_between(store, filter, &way, middle, below).await } else { Ok(Part::default()) }
    };
    let (part, rest) = tokio::try_join!(gather_between(store, filter, &way, from, middle), rest)?;
    gathered.require_few(part.matching + rest.matching)?;
    gathered.more(part.entries, part.looked_at)?;
    gathered.more(rest.entries, rest.looked_at)?;
    Ok(gathered)
}

/// So many rows are looked at where more are than may be.
fn too_many() -> i32 {
    i32::try_from(JOBS_LOOKED_AT_MAX).unwrap_or(i32::MAX).saturating_add(1)
}

/// Some of what is to be sorted.
#[derive(Default)]
struct Part {
    entries: Vec<(Key, Uuid)>,
    looked_at: usize,
    /// Where these are too many to be sorted there are no entries.
    matching: usize,
}

async fn gather_between(store: &Store, filter: Wanted<'_>, way: &str, from: Uuid, below: Uuid) -> Result<Part> {
    let statement = match filter.order.by {
        By::LastRun => JOBS_GATHER_LAST_RUNS,
        By::NextRun | By::Created => JOBS_GATHER_NEXT_RUNS,
    };
    let (looked_at, matching, ids, keys): (i64, i64, Vec<Uuid>, Vec<Option<DateTime<Utc>>>) = sqlx::query_as(statement)
        .bind(from)
        .bind(below)
        .bind(too_many())
        .bind(filter.order.direction == Direction::Ascending)
        .bind(Json(filter))
        .bind(way)
        .bind(i64::from(COUNTED_MAX))
        .fetch_one(&store.pool)
        .await?;
    let as_size = |number: i64| usize::try_from(number).unwrap_or_default();
    Ok(Part {
        entries: keys.into_iter().map(micros).zip(ids).collect(),
        looked_at: as_size(looked_at),
        matching: as_size(matching),
    })
}

fn micros(at: Option<DateTime<Utc>>) -> Key {
    at.map(|at| at.timestamp_micros())
}

/// How to go along an index.
struct Way {
    /// By which field.
    way: String,
    /// Past how many rows, as far as they were counted.
    passed: usize,
    /// One of them, about half of them on either side; not of an ordered way.
    middle: Option<Uuid>,
}

/// The way that leads past the fewest rows, counted to `most`. `ordered`: it must be in the order of ids.
async fn way(store: &Store, filter: Wanted<'_>, most: i32, ordered: bool) -> Result<Way> {
    let (from, below) = filter.instants();
    let (way, passed, middle): (String, i32, Option<Uuid>) =
        sqlx::query_as("SELECT way, passed, middle FROM carillon.way_to_jobs($1, $2, $3, $4, $5)")
            .bind(from)
            .bind(below)
            .bind(most)
            .bind(ordered)
            .bind(Json(filter))
            .fetch_one(&store.pool)
            .await?;
    Ok(Way { way, passed: usize::try_from(passed).unwrap_or_default(), middle })
}

async fn read(store: &Store, found: Scanned<Uuid>, place: impl Fn(&Job) -> Place) -> Result<Scanned<Job>> {
    if found.items.is_empty() {
        return Ok(Scanned { items: Vec::new(), next: found.next });
    }
    let statement =
        |_: &[Uuid]| AssertSqlSafe(format!("{JOBS_SELECT} WHERE j.id = ANY ($1) ORDER BY array_position($1, j.id)"));
    let read = |row: &PgRow| {
        let row: JobRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), Job::try_from(row)?))
    };
    found.read(&store.pool, statement, read, place).await
}

async fn look(store: &Store, filter: Wanted<'_>, way: Option<&str>, behind: Option<Uuid>, rows: i32) -> Result<Looked> {
    let direction = filter.order.direction;
    let (least, below) = filter.instants();
    let (from, below) = direction.rest(least, below, behind);
    let (matching, looked_at, behind): (Vec<Uuid>, i64, Option<Uuid>) = sqlx::query_as(JOBS_LOOK)
        .bind(from)
        .bind(below)
        .bind(rows)
        .bind(direction == Direction::Ascending)
        .bind(Json(filter))
        .bind(way)
        .fetch_one(&store.pool)
        .await?;
    Ok(Looked { matching, behind, rows: usize::try_from(looked_at).unwrap_or_default() })
}

fn statuses<S: Serializer>(status: &Option<JobStatus>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let wanted =
        JobStatus::ALL.iter().filter(|one| status.map_or(**one != JobStatus::Cancelled, |wanted| wanted == **one));
    serializer.collect_seq(wanted.map(|status| status.as_str()))
}

fn rank<S: Serializer>(priority: &Option<Priority>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    priority.map(Priority::rank).serialize(serializer)
}
