//! The incarnations of executors: that they live (R14), that they ended (R18), and what becomes of what a broken connection
//! left in doubt (R21).
//!
//! The beat serves correctness: it is the second witness, beside Redis' idle clock, without which nothing that says RUNNING
//! is taken from anybody.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::clock::DbClock;
use crate::recorder::Started;
use crate::{Result, Store, days};

/// One incarnation of an executor.
#[derive(Clone, Debug)]
pub struct Worker {
    /// A new one for each incarnation.
    pub id: Uuid,
    /// Its name in the consumer groups: pod and boot.
    pub consumer: String,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// The names of the handlers it offers.
    pub handlers: Vec<String>,
    /// Executions that it holds at once.
    pub slots: i32,
}

const WORKER_INSERT: &str = "INSERT INTO workers (id, consumer, queues, handlers, slots) VALUES ($1, $2, $3, $4, $5)";

/// R21: what the incarnation `$2` had started becomes the new one's; each guarded. Also what an incarnation of the same
/// process did whose beginning was committed and never answered: consumer = pod and boot, so it is this very process.
macro_rules! executions_reassert {
    ($locked:literal) => {
        concat!(
            "
WITH free AS MATERIALIZED (
    SELECT e.id, h.started_at, h.revision
    FROM UNNEST($3::uuid[], $4::bigint[], $5::int[], $6::timestamptz[], $8::bigint[]) AS h(id, claim, take, started_at, revision)
    JOIN job_executions e ON e.id = h.id
    WHERE {days of e.id} AND e.claim = h.claim AND e.take = h.take
      AND (e.status = 'QUEUED'
           OR e.status = 'RUNNING' AND (e.worker_id = $2 OR e.worker_id IN (SELECT id FROM workers WHERE consumer = $7)))
    FOR NO KEY UPDATE OF e ",
            $locked,
            "
)
UPDATE job_executions e SET worker_id = $1, status = 'RUNNING', started_at = free.started_at, revision = free.revision
FROM free
WHERE e.id = free.id AND {days of e.id}
RETURNING e.id"
        )
    };
}

const EXECUTIONS_REASSERT: &str = executions_reassert!("");
const EXECUTIONS_REASSERT_FREE: &str = executions_reassert!("SKIP LOCKED");

/// What becomes of started executions that somebody else has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// They are waited for.
    WaitedFor,
    /// They are left out: nobody's any more, for whoever takes them next.
    LeftOut,
}

impl Store {
    /// Begins an incarnation.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn worker_begin(&self, worker: &Worker) -> Result<()> {
        sqlx::query(WORKER_INSERT)
            .bind(worker.id)
            .bind(&worker.consumer)
            .bind(&worker.queues)
            .bind(&worker.handlers)
            .bind(worker.slots)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// R14: the beat. Answers the database's clock, or `None` if this incarnation is no longer known or has ended: then R21.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn worker_beat(&self, worker: Uuid) -> Result<Option<DbClock>> {
        let mut connection = self.pool.acquire().await?;
        let statement = "UPDATE workers SET seen_at = now() WHERE id = $1 AND NOT ended RETURNING id";
        let known = sqlx::query(statement).bind(worker).fetch_optional(&mut connection).await?;
        if known.is_none() {
            return Ok(None);
        }
        // Asked for by itself: the UPDATE waits for the disk, which would blur the measurement.
        let sent = Instant::now();
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut connection).await?;
        Ok(Some(DbClock::from_round_trip(sent, Instant::now(), now)))
    }

    /// R21: a new incarnation takes the place of `old`, with every handler that it has started in hand. Answers the
    /// executions that are its own now; the handlers of the others are to be stopped.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: try again with another new incarnation. [`crate::Error::Busy`]: somebody has locked one that
    /// was to be waited for.
    pub async fn worker_succeed(
        &self,
        old: Uuid,
        new: &Worker,
        started: &[Started],
        locked: Locked,
    ) -> Result<Vec<Uuid>> {
        let reassert = match locked {
            Locked::WaitedFor => EXECUTIONS_REASSERT,
            Locked::LeftOut => EXECUTIONS_REASSERT_FREE,
        };
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        sqlx::query(WORKER_INSERT)
            .bind(new.id)
            .bind(&new.consumer)
            .bind(&new.queues)
            .bind(&new.handlers)
            .bind(new.slots)
            .execute(&mut *transaction)
            .await?;
        let ids: Vec<Uuid> = started.iter().map(|started| started.held.execution).collect();
        let kept: Vec<Uuid> = sqlx::query_scalar(days::of(reassert, ids.iter().copied()))
            .bind(new.id)
            .bind(old)
            .bind(ids)
            .bind(started.iter().map(|started| started.held.claim).collect::<Vec<_>>())
            .bind(started.iter().map(|started| started.held.take).collect::<Vec<_>>())
            .bind(started.iter().map(|started| started.started_at).collect::<Vec<_>>())
            .bind(&new.consumer)
            .bind(started.iter().map(|started| started.revision).collect::<Vec<_>>())
            .fetch_all(&mut *transaction)
            .await?;
        sqlx::query("UPDATE workers SET ended = true WHERE (id = $1 OR consumer = $2) AND id <> $3")
            .bind(old)
            .bind(&new.consumer)
            .bind(new.id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(kept)
    }

    /// R18a: nobody shall hand anything on to this incarnation any more: it is about to end.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: what is handed on to it waits for its end.
    pub async fn worker_offers_nothing(&self, worker: Uuid) -> Result<()> {
        sqlx::query("UPDATE workers SET handlers = '{}' WHERE id = $1").bind(worker).execute(&self.pool).await?;
        Ok(())
    }

    /// R18: ends an incarnation; whatever it still holds is free at once.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: it is free after the lease.
    pub async fn worker_end(&self, worker: Uuid) -> Result<()> {
        sqlx::query("UPDATE workers SET ended = true WHERE id = $1").bind(worker).execute(&self.pool).await?;
        Ok(())
    }

    /// R15: those of `consumers` of which every incarnation has ended.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumers_ended(&self, consumers: &[String]) -> Result<Vec<String>> {
        let statement =
            "SELECT consumer FROM workers WHERE consumer = ANY ($1) GROUP BY consumer HAVING bool_and(ended)";
        Ok(sqlx::query_scalar(statement).bind(consumers).fetch_all(&self.pool).await?)
    }

    /// R15: those of `consumers` that have a live incarnation.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumers_live(&self, consumers: &[String], lease: Duration) -> Result<Vec<String>> {
        let statement = "SELECT DISTINCT consumer FROM workers \
                         WHERE consumer = ANY ($1) AND NOT ended AND seen_at > now() - $2::interval";
        Ok(sqlx::query_scalar(statement).bind(consumers).bind(lease).fetch_all(&self.pool).await?)
    }

    /// One of the executors seen within `lease` that serve `queue` and offer `handler`, by its name in the consumer groups.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumer_offering(&self, handler: &str, queue: &str, lease: Duration) -> Result<Option<String>> {
        let statement = "SELECT consumer FROM workers WHERE NOT ended AND seen_at > now() - $3::interval \
                         AND $1 = ANY (handlers) AND $2 = ANY (queues) ORDER BY random() LIMIT 1";
        let query = sqlx::query_scalar(statement).bind(handler).bind(queue).bind(lease);
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// Forgets incarnations that ended, or were not seen, `older_than` ago. Answers how many.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn workers_forget(&self, older_than: Duration) -> Result<u64> {
        let statement = "DELETE FROM workers WHERE seen_at < now() - $1::interval";
        Ok(sqlx::query(statement).bind(older_than).execute(&self.pool).await?.rows_affected())
    }
}
