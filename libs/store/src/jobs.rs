//! Jobs: creating, reading and listing them here; pausing and resuming in [`changes`], deleting in [`deletion`].
//!
//! A job is three rows: `jobs` (the definition), `job_timers` (what the claim moves) and `job_stats` (what the recorder adds
//! to). They are born in one statement and live as long as each other, so nobody who reads one asks whether the others are
//! there. With them its first revision is born ([`crate::revisions`]).

pub(crate) mod changes;
pub(crate) mod deletion;
pub(crate) mod rows;

use carillon_core::job::{JobStatus, JobType};
use carillon_core::shard::shard_of;
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;

pub use changes::{Paused, REASON_PAUSED, pause, resume};
pub use deletion::{Deleting, REASON_DELETED, delete};
pub use rows::{Definition, Job, NewJob};

use crate::document::ToWrite;
use crate::idempotency::{self, Key};
use crate::page::{self, Page, Slice};
use crate::revisions::definition_of;
use crate::{Error, Result, Store, queues};
use rows::{JobRow, SELECT_JOB, TimetableWritten};

/// One statement, so one transaction and one round trip: the key first, since a conflict on it must stop the rest. Nothing is
/// written if the name of the queue is not known ([`crate::queues`]).
const INSERT_JOB: &str = concat!(
    "
    WITH queue AS (
        SELECT name FROM queues WHERE name = $14 FOR KEY SHARE
    ), key AS (
        INSERT INTO idempotency_keys (scope, key, fingerprint, resource_id)
        SELECT $26::text, $27::text, $28::bytea, $1 FROM queue WHERE $27::text IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING resource_id
    ), job AS (
        INSERT INTO jobs (id, name, description, type, status, schedule, timezone, timetable, start_date, end_date,
                          max_executions, handler_name, handler_type, payload, queue, priority, max_retries,
                          retry_delay_ms, timeout_ms, concurrency, allow_overlap, tags, metadata, platform_id,
                          created_by, created_at, updated_at)
        SELECT $1, $2, $3, $4, 'ACTIVE', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
               $22, $23, $24, $25, $25
        FROM queue WHERE $27::text IS NULL OR EXISTS (SELECT FROM key)
        RETURNING *
    ), revision AS (
        INSERT INTO job_revisions (job_id, revision, definition, created_by, created_at)
        SELECT id, revision, ",
    definition_of!("job"),
    ", created_by, created_at FROM job
    ), timer AS (
        INSERT INTO job_timers (job_id, shard, fire_at, queue, priority, revision, exhausted)
        SELECT id, $30, $29::timestamptz, queue, priority, revision, $29::timestamptz IS NULL AND $4 <> 'EVENT' FROM job
        RETURNING job_id, exhausted
    ), note AS (
        INSERT INTO job_attention (job_id) SELECT job_id FROM timer WHERE exhausted
    ), stats AS (
        INSERT INTO job_stats (job_id) SELECT id FROM job
    )
    SELECT EXISTS (SELECT FROM queue) AS queue_is_known, EXISTS (SELECT FROM job) AS created"
);

/// Creates a job with its timer, its statistics and its idempotency key. If the key was taken meanwhile, answers with the
/// job that it led to.
///
/// # Errors
/// [`Error::KeyReused`] if the key was taken by another request; [`Error::QueuesExhausted`] if its queue would be one too many; or
/// if Postgres is unavailable.
pub async fn create(store: &Store, new: NewJob, key: Option<&Key>) -> Result<Job> {
    // Boxed: its thirty values would make every caller's future large.
    let (queue_is_known, mut created) = Box::pin(insert(&store.pool, &new, key)).await?;
    if !queue_is_known {
        created = Box::pin(insert_with_queue(store, &new, key)).await?;
    }
    if created {
        return Ok(new.into_job());
    }
    let known = idempotency::begin(store, key).await?.known;
    get(store, known.unwrap_or(new.id)).await
}

async fn insert_with_queue(store: &Store, new: &NewJob, key: Option<&Key>) -> Result<bool> {
    let mut transaction = store.pool.begin().await?;
    queues::add_on_conn(&mut transaction, &new.definition.queue, new.queues_max).await?;
    let (_, created) = insert(&mut *transaction, new, key).await?;
    // A job that was not written leaves no name behind either.
    if created {
        transaction.commit().await?;
    }
    Ok(created)
}

/// Whether the name of the queue is known, and whether the job was written.
async fn insert(executor: impl sqlx::PgExecutor<'_>, new: &NewJob, key: Option<&Key>) -> Result<(bool, bool)> {
    let job = &new.definition;
    let outcome = sqlx::query_as(INSERT_JOB)
        .bind(new.id)
        .bind(&job.name)
        .bind(&job.description)
        .bind(job.job_type.as_str())
        .bind(&job.schedule)
        .bind(&job.timezone)
        .bind(Json(TimetableWritten { timetable: &new.timetable, schedules: &job.schedules }))
        .bind(job.start_date)
        .bind(job.end_date)
        .bind(job.max_executions)
        .bind(&job.handler_name)
        .bind(job.handler_type.as_str())
        .bind(ToWrite(&job.payload))
        .bind(&job.queue)
        .bind(job.priority.rank())
        .bind(job.max_retries)
        .bind(job.retry_delay_ms)
        .bind(job.timeout_ms)
        .bind(job.concurrency)
        .bind(job.allow_overlap)
        .bind(&job.tags)
        .bind(ToWrite(&job.metadata))
        .bind(&job.platform_id)
        .bind(&job.created_by)
        .bind(new.created_at)
        .bind(key.map(|key| &key.scope))
        .bind(key.map(|key| &key.key))
        .bind(key.map(|key| &key.fingerprint))
        .bind(new.fire_at)
        .bind(shard_of(new.id))
        .fetch_one(executor)
        .await?;
    Ok(outcome)
}

/// Reads one job.
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub async fn get(store: &Store, id: Uuid) -> Result<Job> {
    get_on(&store.pool, id).await
}

async fn get_on(executor: impl sqlx::PgExecutor<'_>, id: Uuid) -> Result<Job> {
    let mut query = QueryBuilder::new(SELECT_JOB);
    query.push(" WHERE j.id = ").push_bind(id);
    let row: Option<JobRow> = query.build_query_as().fetch_optional(executor).await?;
    row.ok_or(Error::NotFound { what: "job", id })?.try_into()
}

/// Which jobs to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this type.
    pub job_type: Option<JobType>,
    /// Only those of this status; without it all but deleted ones.
    pub status: Option<JobStatus>,
}

/// Lists jobs, newest first (ids are ordered by creation). The page is cut on `jobs` alone before the others are joined.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn list(store: &Store, filter: Filter, slice: Slice) -> Result<Page<Job>> {
    let mut query = QueryBuilder::new(SELECT_JOB);
    query.push(" WHERE j.id IN (SELECT id FROM jobs WHERE ");
    match filter.status {
        Some(status) => query.push("status = ").push_bind(status.as_str()),
        None => query.push("status <> 'CANCELLED'"),
    };
    if let Some(job_type) = filter.job_type {
        query.push(" AND type = ").push_bind(job_type.as_str());
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(slice.limit_and_one());
    query.push(" OFFSET ").push_bind(i64::from(slice.offset)).push(") ORDER BY j.id DESC");
    // Boxed: a wide row would make every caller's future large.
    Box::pin(page::collect(&store.pool, query.build(), slice, |row| {
        let row: JobRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), row.try_into()?))
    }))
    .await
}
