//! Executions that a stream entry stands for, as the leader publishes them again: an unsettled batch of an earlier term
//! (R7), or what Redis has lost (R19).

use std::time::Duration;

use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::trace::TraceContext;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Result;
use crate::definitions::{Definition, definitions_by_revision_on_conn};
use crate::leader_session::{LeaderSession, bounded};

/// What an entry says of its execution; the rest is in the revision of the job's definition that it names.
#[derive(Clone, Debug)]
pub struct OpenEntry {
    /// The execution.
    pub execution: Uuid,
    /// Its job.
    pub job: Uuid,
    /// The definition that it runs with.
    pub revision: i64,
    /// Queue and priority of the stream that its entry stands in.
    pub line: Line,
    /// R0: batch that claimed the attempt.
    pub claim: i64,
    /// R0: batch that published it.
    pub entry: i64,
    /// R0: place in that batch.
    pub seq: i32,
    /// Which attempt.
    pub attempt: i16,
    /// Retries after the first.
    pub max_retries: i32,
    /// The instant of the fire.
    pub scheduled_at: DateTime<Utc>,
    /// The instant of the retry, where it is one.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// Trace of whoever asked for it.
    pub trace: Option<TraceContext>,
    /// It has a payload of its own (a trigger's).
    pub own_payload: bool,
    /// That payload, where it is small enough to travel.
    pub payload: Option<String>,
}

/// A batch of the past.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number.
    pub number: i64,
    /// What it published, by place.
    pub ids: Vec<Uuid>,
}

pub(crate) fn read_open_entry(row: &PgRow) -> Result<OpenEntry> {
    Ok(OpenEntry {
        execution: row.try_get("id")?,
        job: row.try_get("job_id")?,
        revision: row.try_get("revision")?,
        line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
        claim: row.try_get("claim")?,
        entry: row.try_get("entry")?,
        seq: row.try_get("seq")?,
        attempt: row.try_get("attempt")?,
        max_retries: row.try_get("max_retries")?,
        scheduled_at: row.try_get("scheduled_at")?,
        next_retry_at: row.try_get("next_retry_at")?,
        trace: read_trace(row)?,
        own_payload: row.try_get("own_payload")?,
        payload: row.try_get("payload")?,
    })
}

/// What [`read_open_entry`] reads, of `job_executions e`.
macro_rules! open_entry_columns {
    () => {
        "e.id, e.job_id, e.revision, e.queue, e.priority, e.claim, e.entry, e.seq, e.attempt, e.max_retries, e.scheduled_at,
       e.next_retry_at, e.trace_id, e.parent_span_id, e.trace_flags, e.payload IS NOT NULL AS own_payload,
       CASE WHEN octet_length(e.payload::text) <= 4096 THEN e.payload::text END AS payload"
    };
}
pub(crate) use open_entry_columns;

/// The columns `trace_id`, `parent_span_id`, `trace_flags`. A trace of which no span is known cannot be handed on.
pub(crate) fn read_trace(row: &PgRow) -> Result<Option<TraceContext>> {
    let (trace, parent): (Option<String>, Option<String>) = (row.try_get("trace_id")?, row.try_get("parent_span_id")?);
    let flags = u8::try_from(row.try_get::<i16, _>("trace_flags")?).unwrap_or_default();
    Ok(trace.zip(parent).and_then(|(trace, parent)| TraceContext::of_parts(&trace, &parent, flags).ok()))
}

/// Those of a batch that are still open under it. A live worker's RUNNING is left out where `$3` asks for it: nobody is
/// called not live before this session's contact with Postgres was unbroken for a lease.
const OPEN_OF_BATCH: &str = concat!(
    "
SELECT ",
    open_entry_columns!(),
    ",
       e.status = 'RUNNING' AND ($3::interval IS NULL OR EXISTS (
           SELECT FROM workers w WHERE w.id = e.worker_id AND NOT w.ended AND w.seen_at > now() - $3::interval)) AS runs
FROM UNNEST($1::uuid[]) AS i(id) JOIN job_executions e ON e.id = i.id
WHERE e.entry = $2 AND e.status IN ('QUEUED', 'RUNNING')
ORDER BY e.seq"
);

/// R19, the write: guarded by all that was seen.
const REPUBLISH: &str = concat!(
    "
WITH batch AS (
    INSERT INTO dispatch_batches (shard, number, term, ids) VALUES ($1, $2, $3, $4::uuid[])
)
UPDATE job_executions e SET entry = $2, seq = r.seq
FROM UNNEST($4::uuid[], $5::bigint[], $6::bigint[], $7::int[]) AS r(id, claim, entry, seq)
WHERE e.id = r.id AND e.claim = r.claim AND e.entry = r.entry
  AND (e.status = 'QUEUED' OR e.status = 'RUNNING' AND NOT EXISTS (
      SELECT FROM workers w WHERE w.id = e.worker_id AND NOT w.ended AND w.seen_at > now() - $8::interval))
RETURNING ",
    open_entry_columns!()
);

impl LeaderSession {
    /// R7: the batches of which it is not known that they are in Redis, ascending.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_unsettled(&mut self) -> Result<Vec<Batch>> {
        self.batches("SELECT number, ids FROM dispatch_batches WHERE shard = $1 AND number > $2 AND settled_at IS NULL ORDER BY number LIMIT $3", 0, 10_000).await
    }

    /// R19: settled batches behind `after`, ascending, whose executions may still be open.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_settled(&mut self, after: i64, limit: i64) -> Result<Vec<Batch>> {
        self.batches("SELECT number, ids FROM dispatch_batches WHERE shard = $1 AND number > $2 AND settled_at IS NOT NULL ORDER BY number LIMIT $3", after, limit).await
    }

    async fn batches(&mut self, statement: &'static str, after: i64, limit: i64) -> Result<Vec<Batch>> {
        let rows =
            bounded(sqlx::query(statement).bind(self.shard).bind(after).bind(limit).fetch_all(&mut self.connection))
                .await?;
        rows.iter().map(|row| Ok(Batch { number: row.try_get("number")?, ids: row.try_get("ids")? })).collect()
    }

    /// Whether the database knows a batch of this number (R3: whether it fits what Redis remembers).
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batch_exists(&mut self, number: i64) -> Result<bool> {
        bounded(
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM dispatch_batches WHERE shard = $1 AND number = $2)")
                .bind(self.shard)
                .bind(number)
                .fetch_one(&mut self.connection),
        )
        .await
    }

    /// The open executions of `batch`, each with whether it runs at a worker that is not to be judged dead: with `lease`
    /// given, one that was seen within it; without, any.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn open_of_batch(&mut self, batch: &Batch, lease: Option<Duration>) -> Result<Vec<(OpenEntry, bool)>> {
        let rows = bounded(
            sqlx::query(OPEN_OF_BATCH).bind(&batch.ids).bind(batch.number).bind(lease).fetch_all(&mut self.connection),
        )
        .await?;
        rows.iter().map(|row| Ok((read_open_entry(row)?, row.try_get("runs")?))).collect()
    }

    /// R19: makes `lost` entries stand in a new batch `number`, one after the other from place 1. Answers those that were
    /// still as seen; the rest has moved on by itself.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn republish(
        &mut self,
        number: i64,
        term: i64,
        lost: &[OpenEntry],
        lease: Duration,
    ) -> Result<Vec<OpenEntry>> {
        let seqs: Vec<i32> = (1..).take(lost.len()).collect();
        let mut transaction = bounded(self.connection.begin()).await?;
        let rows = bounded(
            sqlx::query(REPUBLISH)
                .bind(self.shard)
                .bind(number)
                .bind(term)
                .bind(lost.iter().map(|entry| entry.execution).collect::<Vec<_>>())
                .bind(lost.iter().map(|entry| entry.claim).collect::<Vec<_>>())
                .bind(lost.iter().map(|entry| entry.entry).collect::<Vec<_>>())
                .bind(seqs)
                .bind(lease)
                .fetch_all(&mut *transaction),
        )
        .await?;
        let republished = rows.iter().map(read_open_entry).collect::<Result<Vec<_>>>()?;
        bounded(transaction.commit()).await?;
        Ok(republished)
    }

    /// R7: notes that these batches are in Redis, or never will be.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn settle(&mut self, numbers: &[i64]) -> Result<()> {
        bounded(
            sqlx::query("UPDATE dispatch_batches SET settled_at = now() WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NULL")
                .bind(self.shard)
                .bind(numbers)
                .execute(&mut self.connection),
        )
        .await?;
        Ok(())
    }

    /// Forgets batches of which nothing is open any more; the newest row is kept for ever (R3 compares it with Redis).
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn forget_batches(&mut self, numbers: &[i64]) -> Result<()> {
        bounded(
            sqlx::query(
                "DELETE FROM dispatch_batches WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NOT NULL \
                 AND number < (SELECT max(number) FROM dispatch_batches WHERE shard = $1)",
            )
            .bind(self.shard)
            .bind(numbers)
            .execute(&mut self.connection),
        )
        .await?;
        Ok(())
    }

    /// Reads what jobs mean, each in a revision, outside of a claim.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn definitions(&mut self, wanted: &[(Uuid, i64)]) -> Result<Vec<Definition>> {
        definitions_by_revision_on_conn(&mut self.connection, wanted).await
    }
}
