//! Executions that a stream entry stands for, as the leader publishes them again: an unsettled batch of an earlier term
//! (R7), or what Redis has lost (R19).

use std::collections::BTreeSet;
use std::time::Duration;

use carillon_core::ids;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::trace::TraceContext;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::definitions::{Definition, definitions_by_revision_on_conn};
use crate::leader_session::LeaderSession;
use crate::{Result, days};

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
    /// R17b: it is to end without a start, once nobody can have started it.
    pub is_unwanted: bool,
    /// R23a: it waits in another line than its revision names.
    pub is_misplaced: bool,
    /// R0.
    pub take: i32,
    /// It has a payload of its own (a trigger's).
    pub own_payload: bool,
    /// That payload, where it is small enough to travel.
    pub payload: Option<String>,
}

/// R19: an entry that Redis does not hold, or that was taken back there to go to another line (R23a).
#[derive(Clone, Debug)]
pub struct Missing {
    /// As it was seen.
    pub entry: OpenEntry,
    /// Queue and priority of the stream that it is published to.
    pub to: Line,
    /// R6a: nobody has read it, nobody will. So it is released: whoever reads the new one need not wait for anybody's RUNNING.
    pub unread: bool,
}

impl Missing {
    /// Redis does not hold it; it stays in its line.
    pub fn lost(entry: OpenEntry) -> Self {
        Self { to: entry.line.clone(), entry, unread: false }
    }

    /// Whether it goes to another line than the one that it stands in.
    pub fn moves(&self) -> bool {
        self.to != self.entry.line
    }
}

/// A batch of the past.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number.
    pub number: i64,
    /// What it published, by place.
    pub ids: Vec<Uuid>,
}

fn read_batch(row: &PgRow) -> Result<Batch> {
    Ok(Batch { number: row.try_get("number")?, ids: row.try_get("ids")? })
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
        is_unwanted: row.try_get("is_unwanted")?,
        is_misplaced: row.try_get("is_misplaced")?,
        take: row.try_get("take")?,
        own_payload: row.try_get("own_payload")?,
        payload: row.try_get("payload")?,
    })
}

/// What [`read_open_entry`] reads, of `job_executions e`. A payload that is kept packed may be the largest there is, and to unpack
/// thousands takes longer than a statement may: it is fetched by whoever starts it.
macro_rules! open_entry_columns {
    () => {
        "e.id, e.job_id, e.revision, e.queue, e.priority, e.claim, e.entry, e.seq, e.attempt, e.max_retries, e.scheduled_at,
       e.next_retry_at, e.trace_id, e.parent_span_id, e.trace_flags, e.status = 'QUEUED' AND e.cancel_requested AS is_unwanted,
       e.status = 'QUEUED' AND e.misplaced AND NOT e.cancel_requested AS is_misplaced, e.take,
       e.payload IS NOT NULL AS own_payload,
       CASE WHEN pg_column_compression(e.payload) IS NULL AND pg_column_size(e.payload) <= 4096
                 AND octet_length(e.payload::text) <= 4096 THEN e.payload::text END AS payload"
    };
}
pub(crate) use open_entry_columns;

/// The columns `trace_id`, `parent_span_id`, `trace_flags`. A trace of which no span is known cannot be handed on.
pub(crate) fn read_trace(row: &PgRow) -> Result<Option<TraceContext>> {
    let (trace, parent): (Option<String>, Option<String>) = (row.try_get("trace_id")?, row.try_get("parent_span_id")?);
    let flags = u8::try_from(row.try_get::<i16, _>("trace_flags")?).unwrap_or_default();
    Ok(trace.zip(parent).and_then(|(trace, parent)| TraceContext::of_parts(&trace, &parent, flags).ok()))
}

/// Batches of one page, at most.
const BATCHES_PAGE: i64 = 512;
/// Bytes of ids in one page, about, and one batch more: 2,000 executions are looked at in some 10 ms.
const BATCHES_PAGE_BYTES: i64 = 32 * 1024;
/// So in a page of the ordinary walk, which nobody waits for: a trigger that comes meanwhile waits for 3 ms at most.
const BATCHES_PAGE_BYTES_ORDINARY: i64 = 8 * 1024;

/// A page of batches, ascending. How large the ids are is asked of the row's header, so none is read that is not answered.
const BATCHES_UP: &str = "
SELECT number, ids FROM (
    SELECT number, ids, sum(pg_column_size(ids)) OVER (ORDER BY number) - pg_column_size(ids) AS before
    FROM (SELECT number, ids FROM carillon.dispatch_batches
          WHERE shard = $1 AND number > $2 AND number < $3 AND settled_at IS NOT NULL ORDER BY number LIMIT $4) page
) sized
WHERE before < $5 ORDER BY number";

/// As [`BATCHES_UP`], descending.
const BATCHES_DOWN: &str = "
SELECT number, ids FROM (
    SELECT number, ids, sum(pg_column_size(ids)) OVER (ORDER BY number DESC) - pg_column_size(ids) AS before
    FROM (SELECT number, ids FROM carillon.dispatch_batches
          WHERE shard = $1 AND number > $2 AND number < $3 AND settled_at IS NOT NULL ORDER BY number DESC LIMIT $4) page
) sized
WHERE before < $5 ORDER BY number DESC";

/// As [`BATCHES_UP`], of those that are not known to be in Redis.
const BATCHES_UNSETTLED: &str = "
SELECT number, ids FROM (
    SELECT number, ids, sum(pg_column_size(ids)) OVER (ORDER BY number) - pg_column_size(ids) AS before
    FROM (SELECT number, ids FROM carillon.dispatch_batches
          WHERE shard = $1 AND number > $2 AND number < $3 AND settled_at IS NULL ORDER BY number LIMIT $4) page
) sized
WHERE before < $5 ORDER BY number";

const BATCHES_SETTLE: &str = "
WITH free AS MATERIALIZED (
    SELECT number FROM carillon.dispatch_batches WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
), settled AS (
    UPDATE carillon.dispatch_batches SET settled_at = now() WHERE shard = $1 AND number IN (SELECT number FROM free)
)
SELECT number FROM carillon.dispatch_batches
WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NULL AND number NOT IN (SELECT number FROM free)";

/// Those of some batches that are still open under them: one probe of the primary key for each id, in the partitions of their
/// days only. A live worker's RUNNING is left out where `$3` asks for it: nobody is called not live before this
/// session's contact with Postgres was unbroken for a lease.
const EXECUTIONS_OPEN_OF_BATCHES: &str = concat!(
    "
SELECT ",
    open_entry_columns!(),
    ",
       e.status = 'RUNNING' AND ($3::interval IS NULL OR EXISTS (
           SELECT FROM carillon.workers w WHERE w.id = e.worker_id AND NOT w.ended AND w.seen_at > now() - $3::interval)) AS runs
FROM UNNEST($1::uuid[], $2::bigint[]) AS i(id, number) JOIN carillon.job_executions e ON e.id = i.id
WHERE {days of e.id} AND e.entry = i.number AND e.status IN ('QUEUED', 'RUNNING')
ORDER BY e.entry, e.seq"
);

/// R19, the write: guarded by all that was seen. What somebody else has locked is left out: waiting for it, the leader would
/// wait for whoever holds the lock, dead or alive, with the lock of the shard in its hands. What goes to another line (R23a) goes
/// there by the revision that was seen, and is released (R18a) where nobody has read it.
const EXECUTIONS_REPUBLISH: &str = concat!(
    "
WITH batch AS (
    INSERT INTO carillon.dispatch_batches (shard, number, term, ids) VALUES ($1, $2, $3, $4::uuid[])
), seen AS MATERIALIZED (
    SELECT e.id, r.seq, r.queue, r.priority, r.moves, r.released
    FROM UNNEST($4::uuid[], $5::bigint[], $6::bigint[], $7::int[], $9::text[], $10::smallint[], $11::bool[], $12::bool[],
                $13::bigint[], $14::int[])
      AS r(id, claim, entry, seq, queue, priority, moves, released, revision, take)
    JOIN carillon.job_executions e ON e.id = r.id
    WHERE {days of e.id} AND e.claim = r.claim AND e.entry = r.entry
      AND (NOT r.moves OR e.status = 'QUEUED' AND e.revision = r.revision AND e.take = r.take)
      AND (e.status = 'QUEUED' OR e.status = 'RUNNING' AND NOT EXISTS (
          SELECT FROM carillon.workers w WHERE w.id = e.worker_id AND NOT w.ended AND w.seen_at > now() - $8::interval))
    FOR UPDATE OF e SKIP LOCKED
)
UPDATE carillon.job_executions e
SET entry = $2, seq = seen.seq, queue = seen.queue, priority = seen.priority, misplaced = e.misplaced AND NOT seen.moves,
    take = e.take + seen.released::int
FROM seen
WHERE e.id = seen.id AND {days of e.id}
RETURNING ",
    open_entry_columns!()
);

impl LeaderSession {
    /// R7: a page of the batches behind `after` of which it is not known that they are in Redis, ascending.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_unsettled(&mut self, after: i64) -> Result<Vec<Batch>> {
        self.batches(BATCHES_UNSETTLED, after, i64::MAX, BATCHES_PAGE_BYTES).await
    }

    /// R19: a page of the settled batches between `after` and `below`, ascending, whose executions may still be open.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_settled(&mut self, after: i64, below: i64) -> Result<Vec<Batch>> {
        self.batches(BATCHES_UP, after, below, BATCHES_PAGE_BYTES_ORDINARY).await
    }

    /// As [`LeaderSession::batches_settled`], of all below `below`, the newest first.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_settled_down(&mut self, below: i64) -> Result<Vec<Batch>> {
        self.batches(BATCHES_DOWN, i64::MIN, below, BATCHES_PAGE_BYTES).await
    }

    /// R19: these very batches, as far as they are there and settled.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_by_number(&mut self, numbers: &[i64]) -> Result<Vec<Batch>> {
        let rows = sqlx::query(
            "SELECT number, ids FROM carillon.dispatch_batches \
                 WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NOT NULL ORDER BY number",
        )
        .bind(self.shard)
        .bind(numbers)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(read_batch).collect()
    }

    async fn batches(&mut self, statement: &'static str, after: i64, below: i64, bytes: i64) -> Result<Vec<Batch>> {
        let rows = sqlx::query(statement)
            .bind(self.shard)
            .bind(after)
            .bind(below)
            .bind(BATCHES_PAGE)
            .bind(bytes)
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(read_batch).collect()
    }

    /// Whether the database knows a batch of this number (R3: whether it fits what Redis remembers).
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batch_exists(&mut self, number: i64) -> Result<bool> {
        let exists = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM carillon.dispatch_batches WHERE shard = $1 AND number = $2)",
        );
        Ok(exists.bind(self.shard).bind(number).fetch_one(&mut self.connection).await?)
    }

    /// Leaves out of `batches` what belongs to a day before today that somebody has locked as a whole: of a question that waits for
    /// that table in vain nothing is answered. Answers the numbers of the batches of which something was left out, ascending.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn leave_locked_days(&mut self, batches: &mut [Batch]) -> Result<BTreeSet<i64>> {
        let over =
            days::over(self.clock().now(), batches.iter().flat_map(|batch| batch.ids.iter().copied().map(ids::day)));
        let locked = days::locked_on(&mut self.connection, &over).await?;
        let mut left = BTreeSet::new();
        if locked.is_empty() {
            return Ok(left);
        }
        for batch in batches {
            let before = batch.ids.len();
            batch.ids.retain(|id| !locked.contains(&ids::day(*id)));
            if batch.ids.len() < before {
                left.insert(batch.number);
            }
        }
        Ok(left)
    }

    /// The open executions of `batches`, by batch and place, each with whether it runs at a worker that is not to be judged
    /// dead: with `lease` given, one that was seen within it; without, any.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn executions_open_of_batches(
        &mut self,
        batches: &[Batch],
        lease: Option<Duration>,
    ) -> Result<Vec<(OpenEntry, bool)>> {
        let ids = || batches.iter().flat_map(|batch| batch.ids.iter().copied());
        let numbers = batches.iter().flat_map(|batch| batch.ids.iter().map(|_| batch.number));
        let rows = sqlx::query(days::of(EXECUTIONS_OPEN_OF_BATCHES, ids()))
            .bind(ids().collect::<Vec<_>>())
            .bind(numbers.collect::<Vec<_>>())
            .bind(lease)
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| Ok((read_open_entry(row)?, row.try_get("runs")?))).collect()
    }

    /// R19: makes `lost` entries stand in a new batch `number`, one after the other from place 1, each in the line that it goes to.
    /// Answers those that were still as seen; the rest has moved on by itself, or is locked, by itself or with its day, and is to be
    /// looked at again.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn executions_republish(
        &mut self,
        number: i64,
        term: i64,
        lost: &[Missing],
        lease: Duration,
    ) -> Result<Vec<OpenEntry>> {
        let over = days::over(self.clock().now(), lost.iter().map(|missing| ids::day(missing.entry.execution)));
        let mut transaction = self.connection.begin().await?;
        let locked = days::locked_on(&mut transaction, &over).await?;
        let is_free = |missing: &&Missing| !locked.contains(&ids::day(missing.entry.execution));
        let lost: Vec<&Missing> = lost.iter().filter(is_free).collect();
        let seqs: Vec<i32> = (1..).take(lost.len()).collect();
        let entries = || lost.iter().map(|missing| &missing.entry);
        let rows = sqlx::query(days::of(EXECUTIONS_REPUBLISH, entries().map(|entry| entry.execution)))
            .bind(self.shard)
            .bind(number)
            .bind(term)
            .bind(entries().map(|entry| entry.execution).collect::<Vec<_>>())
            .bind(entries().map(|entry| entry.claim).collect::<Vec<_>>())
            .bind(entries().map(|entry| entry.entry).collect::<Vec<_>>())
            .bind(seqs)
            .bind(lease)
            .bind(lost.iter().map(|missing| missing.to.queue.clone()).collect::<Vec<_>>())
            .bind(lost.iter().map(|missing| missing.to.priority.rank()).collect::<Vec<_>>())
            .bind(lost.iter().map(|missing| missing.moves()).collect::<Vec<_>>())
            .bind(lost.iter().map(|missing| missing.unread && missing.moves()).collect::<Vec<_>>())
            .bind(entries().map(|entry| entry.revision).collect::<Vec<_>>())
            .bind(entries().map(|entry| entry.take).collect::<Vec<_>>())
            .fetch_all(&mut *transaction)
            .await?;
        let republished = rows.iter().map(read_open_entry).collect::<Result<Vec<_>>>()?;
        transaction.commit().await?;
        Ok(republished)
    }

    /// R7: notes that these batches are in Redis, or never will be. Answers those that are not noted yet, since somebody has
    /// locked them: they keep no other waiting, nor a claim.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_settle(&mut self, numbers: &[i64]) -> Result<Vec<i64>> {
        Ok(sqlx::query_scalar(BATCHES_SETTLE).bind(self.shard).bind(numbers).fetch_all(&mut self.connection).await?)
    }

    /// Forgets batches of which nothing is open any more; the newest row is kept for ever (R3 compares it with Redis), and one
    /// that somebody has locked until the next time: it keeps no other waiting.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn batches_forget(&mut self, numbers: &[i64]) -> Result<()> {
        sqlx::query(
            "DELETE FROM carillon.dispatch_batches WHERE shard = $1 AND number = ANY (ARRAY( \
                 SELECT number FROM carillon.dispatch_batches WHERE shard = $1 AND number = ANY ($2) AND settled_at IS NOT NULL \
                 FOR UPDATE SKIP LOCKED)) \
                 AND number < (SELECT max(number) FROM carillon.dispatch_batches WHERE shard = $1)",
        )
        .bind(self.shard)
        .bind(numbers)
        .execute(&mut self.connection)
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
