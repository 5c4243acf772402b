//! The incarnations of executors: that they live (R14), that they ended (R18), and what becomes of what a broken connection
//! left in doubt (R21).
//!
//! The beat serves correctness: it is the second witness, beside Redis' idle clock, without which nothing that says RUNNING
//! is taken from anybody.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use carillon_core::ids;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::bounded::Connection;
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

const WORKERS_INSERT: &str =
    "INSERT INTO carillon.workers (id, consumer, queues, handlers, slots) VALUES ($1, $2, $3, $4, $5)";

/// R21: what the incarnation `$2` had started becomes the new one's; each guarded. Also what an incarnation of the same
/// process did whose beginning was committed and never answered: consumer = pod and boot, so it is this very process.
macro_rules! executions_reassert {
    ($locked:literal) => {
        concat!(
            "
WITH free AS MATERIALIZED (
    SELECT e.id, h.started_at, h.revision
    FROM UNNEST($3::uuid[], $4::bigint[], $5::int[], $6::timestamptz[], $8::bigint[]) AS h(id, claim, take, started_at, revision)
    JOIN carillon.job_executions e ON e.id = h.id
    WHERE {days of e.id} AND e.claim = h.claim AND e.take = h.take
      AND (e.status = 'QUEUED'
           OR e.status = 'RUNNING' AND (e.worker_id = $2 OR e.worker_id IN (SELECT id FROM carillon.workers WHERE consumer = $7)))
    FOR NO KEY UPDATE OF e ",
            $locked,
            "
)
UPDATE carillon.job_executions e SET worker_id = $1, status = 'RUNNING', started_at = free.started_at, revision = free.revision
FROM free
WHERE e.id = free.id AND {days of e.id}
RETURNING e.id"
        )
    };
}

const EXECUTIONS_REASSERT: &str = executions_reassert!("");
const EXECUTIONS_REASSERT_FREE: &str = executions_reassert!("SKIP LOCKED");

/// Of those that were started, what still stands under an earlier incarnation of this process.
const EXECUTIONS_LEFT: &str = "
SELECT e.id FROM UNNEST($2::uuid[], $3::bigint[], $4::int[]) AS h(id, claim, take)
JOIN carillon.job_executions e ON e.id = h.id
WHERE {days of e.id} AND e.claim = h.claim AND e.take = h.take
  AND (e.status = 'QUEUED'
       OR e.status = 'RUNNING' AND e.worker_id <> $1 AND e.worker_id IN (SELECT id FROM carillon.workers WHERE consumer = $5))";

/// What becomes of started executions that somebody else has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// They are waited for.
    WaitedFor,
    /// They stay with the earlier incarnation, which lives on beside the new one until [`Store::worker_adopt`] has them all.
    Left,
}

/// What a new incarnation has of what was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Succession {
    /// Its own now.
    pub kept: Vec<Uuid>,
    /// Locked by somebody else, and so the earlier incarnation's still.
    pub left: Vec<Uuid>,
}

impl Store {
    /// Begins an incarnation.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn worker_begin(&self, worker: &Worker) -> Result<()> {
        sqlx::query(WORKERS_INSERT)
            .bind(worker.id)
            .bind(&worker.consumer)
            .bind(&worker.queues)
            .bind(&worker.handlers)
            .bind(worker.slots)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// R14: the beat, of every incarnation of this process that has not ended. Answers the database's clock, or `None` if this
    /// one is no longer known or has ended: then R21.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn worker_beat(&self, worker: Uuid) -> Result<Option<DbClock>> {
        let mut connection = self.pool.acquire().await?;
        let statement = "UPDATE carillon.workers SET seen_at = now() \
                         WHERE consumer = (SELECT consumer FROM carillon.workers WHERE id = $1) AND NOT ended RETURNING id";
        let known: Vec<Uuid> = sqlx::query_scalar(statement).bind(worker).fetch_all(&mut connection).await?;
        if !known.contains(&worker) {
            return Ok(None);
        }
        // Asked for by itself: the UPDATE waits for the disk, which would blur the measurement.
        let sent = Instant::now();
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut connection).await?;
        Ok(Some(DbClock::from_round_trip(sent, Instant::now(), now)))
    }

    /// R21: a new incarnation takes the place of `old`, with every handler that it has started in hand. The handlers of what is
    /// neither kept nor left are to be stopped.
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
    ) -> Result<Succession> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        sqlx::query(WORKERS_INSERT)
            .bind(new.id)
            .bind(&new.consumer)
            .bind(&new.queues)
            .bind(&new.handlers)
            .bind(new.slots)
            .execute(&mut *transaction)
            .await?;
        let succession = reassert_on_conn(&mut transaction, old, new, started, locked).await?;
        transaction.commit().await?;
        Ok(succession)
    }

    /// R21: what an earlier incarnation of this process was left with goes to the one that lives, as far as nobody has it locked;
    /// once nothing is left the earlier ones end.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`], [`crate::Error::Conflict`]: try again.
    pub async fn worker_adopt(&self, worker: &Worker, started: &[Started]) -> Result<Succession> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let succession = reassert_on_conn(&mut transaction, worker.id, worker, started, Locked::Left).await?;
        transaction.commit().await?;
        Ok(succession)
    }

    /// R18a: nobody shall hand anything on to this incarnation any more: it is about to end.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: what is handed on to it waits for its end.
    pub async fn worker_offers_nothing(&self, worker: Uuid) -> Result<()> {
        sqlx::query("UPDATE carillon.workers SET handlers = '{}' WHERE id = $1")
            .bind(worker)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// R18: ends every incarnation of this process; whatever it still holds is free at once.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: it is free after the lease.
    pub async fn worker_end(&self, worker: Uuid) -> Result<()> {
        let statement =
            "UPDATE carillon.workers SET ended = true WHERE consumer = (SELECT consumer FROM carillon.workers
            WHERE id = $1)";
        sqlx::query(statement).bind(worker).execute(&self.pool).await?;
        Ok(())
    }

    /// R15: those of `consumers` of which every incarnation has ended.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumers_ended(&self, consumers: &[String]) -> Result<Vec<String>> {
        let statement =
            "SELECT consumer FROM carillon.workers WHERE consumer = ANY ($1) GROUP BY consumer HAVING bool_and(ended)";
        Ok(sqlx::query_scalar(statement).bind(consumers).fetch_all(&self.pool).await?)
    }

    /// Those of `consumers` that no incarnation has which has not ended and was seen within `unheard`: of whoever was killed there is
    /// only silence, and after a day not even a row.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumers_gone(&self, consumers: &[String], unheard: Duration) -> Result<Vec<String>> {
        let statement = "SELECT c FROM unnest($1::text[]) AS c WHERE NOT EXISTS (SELECT FROM carillon.workers \
                         WHERE consumer = c AND NOT ended AND seen_at > now() - $2::interval)";
        Ok(sqlx::query_scalar(statement).bind(consumers).bind(unheard).fetch_all(&self.pool).await?)
    }

    /// R15: those of `consumers` that have a live incarnation.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumers_live(&self, consumers: &[String], lease: Duration) -> Result<Vec<String>> {
        let statement = "SELECT DISTINCT consumer FROM carillon.workers \
                         WHERE consumer = ANY ($1) AND NOT ended AND seen_at > now() - $2::interval";
        Ok(sqlx::query_scalar(statement).bind(consumers).bind(lease).fetch_all(&self.pool).await?)
    }

    /// One of the executors seen within `lease` that serve `queue` and offer `handler`, by its name in the consumer groups.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn consumer_offering(&self, handler: &str, queue: &str, lease: Duration) -> Result<Option<String>> {
        let statement = "SELECT consumer FROM carillon.workers WHERE NOT ended AND seen_at > now() - $3::interval \
                         AND $1 = ANY (handlers) AND $2 = ANY (queues) ORDER BY random() LIMIT 1";
        let query = sqlx::query_scalar(statement).bind(handler).bind(queue).bind(lease);
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// Forgets incarnations that ended, or were not seen, `older_than` ago. Answers how many.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn workers_forget(&self, older_than: Duration) -> Result<u64> {
        let statement = "DELETE FROM carillon.workers WHERE seen_at < now() - $1::interval";
        Ok(sqlx::query(statement).bind(older_than).execute(&self.pool).await?.rows_affected())
    }
}

async fn reassert_on_conn(
    connection: &mut Connection,
    old: Uuid,
    new: &Worker,
    started: &[Started],
    locked: Locked,
) -> Result<Succession> {
    // A lock on a whole day keeps the others from nothing: what was started of it is left without being looked at.
    let locked_days = match locked {
        Locked::WaitedFor => BTreeSet::new(),
        Locked::Left => {
            let all = started.iter().map(|started| ids::day(started.held.execution)).collect();
            days::locked_on(connection, &all).await?
        }
    };
    let (unseen, seen): (Vec<&Started>, Vec<&Started>) =
        started.iter().partition(|started| locked_days.contains(&ids::day(started.held.execution)));
    let mut succession = match seen[..] {
        [] => Succession::default(),
        _ => reassert_seen_on_conn(connection, old, new, &seen, locked).await?,
    };
    succession.left.extend(unseen.iter().map(|started| started.held.execution));
    if succession.left.is_empty() {
        sqlx::query(
            "UPDATE carillon.workers SET ended = true WHERE (id = $1 OR consumer = $2) AND id <> $3 AND NOT ended",
        )
        .bind(old)
        .bind(&new.consumer)
        .bind(new.id)
        .execute(connection)
        .await?;
    }
    Ok(succession)
}

async fn reassert_seen_on_conn(
    connection: &mut Connection,
    old: Uuid,
    new: &Worker,
    started: &[&Started],
    locked: Locked,
) -> Result<Succession> {
    let reassert = match locked {
        Locked::WaitedFor => EXECUTIONS_REASSERT,
        Locked::Left => EXECUTIONS_REASSERT_FREE,
    };
    let ids: Vec<Uuid> = started.iter().map(|started| started.held.execution).collect();
    let claims: Vec<i64> = started.iter().map(|started| started.held.claim).collect();
    let takes: Vec<i32> = started.iter().map(|started| started.held.take).collect();
    let kept: Vec<Uuid> = sqlx::query_scalar(days::of(reassert, ids.iter().copied()))
        .bind(new.id)
        .bind(old)
        .bind(&ids)
        .bind(&claims)
        .bind(&takes)
        .bind(started.iter().map(|started| started.started_at).collect::<Vec<_>>())
        .bind(&new.consumer)
        .bind(started.iter().map(|started| started.revision).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
    let left: Vec<Uuid> = match locked {
        Locked::WaitedFor => Vec::new(),
        Locked::Left => {
            sqlx::query_scalar(days::of(EXECUTIONS_LEFT, ids.iter().copied()))
                .bind(new.id)
                .bind(&ids)
                .bind(&claims)
                .bind(&takes)
                .bind(&new.consumer)
                .fetch_all(connection)
                .await?
        }
    };
    Ok(Succession { kept, left })
}
