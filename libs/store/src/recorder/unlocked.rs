//! A flush that waits for no lock: what somebody else has locked, a row or a whole day, is left out and said so, the rest is
//! written.
//!
//! Everybody locks in one order, executions by id, then statistics by job; whoever skips what is locked can't be part of a
//! deadlock in any order. Three statements more than the ordinary flush: for when that one has found something locked.

use std::collections::{BTreeSet, HashMap, HashSet};

use carillon_core::ids;
use sqlx::Row;
use uuid::Uuid;

use super::{Finished, Held, Started, Verdict, finish_on_conn, ids_of, judge_on_conn, mark_running_on_conn, refs};
use crate::bounded::Connection;
use crate::{Result, Store, days};

/// As strong as the lock of an UPDATE that changes no key.
const EXECUTIONS_LOCK: &str = "
SELECT e.id, e.job_id FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id
WHERE {days of e.id}
ORDER BY e.id FOR NO KEY UPDATE OF e SKIP LOCKED";

/// Those of the jobs whose statistics somebody else has locked. A job without a row has none to lock.
const JOB_STATS_LOCK: &str = "
WITH mine AS MATERIALIZED (
    SELECT s.job_id FROM UNNEST($1::uuid[]) AS i(job_id) JOIN carillon.job_stats s ON s.job_id = i.job_id
    ORDER BY s.job_id FOR NO KEY UPDATE OF s SKIP LOCKED
)
SELECT s.job_id FROM UNNEST($1::uuid[]) AS i(job_id) JOIN carillon.job_stats s ON s.job_id = i.job_id
WHERE s.job_id NOT IN (SELECT job_id FROM mine)";

impl Store {
    /// As [`Store::executions_record`], but waits for no row and for no day: what somebody else has locked is [`Verdict::Locked`]. Of
    /// what ended and only its job's statistics are locked, it is recorded that it runs.
    ///
    /// # Errors
    /// As [`Store::executions_record`]; [`crate::Error::Busy`] if a whole table other than that of a day is locked.
    pub async fn executions_record_unlocked(
        &self,
        worker: Uuid,
        started: &[Started],
        finished: &[Finished],
        ended_jobs: &[Uuid],
    ) -> Result<(Vec<Verdict>, Vec<Verdict>)> {
        let verdicts = self.record_unlocked_by(Some(worker), started, finished, ended_jobs).await?;
        carillon_failpoint::reach("record:committed").await;
        Ok(verdicts)
    }

    /// Without a worker (R17b) nothing is `started`, and only what is QUEUED is finished.
    pub(crate) async fn record_unlocked_by(
        &self,
        worker: Option<Uuid>,
        started: &[Started],
        finished: &[Finished],
        ended_jobs: &[Uuid],
    ) -> Result<(Vec<Verdict>, Vec<Verdict>)> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let free = free_on_conn(&mut transaction, started, finished).await?;
        let (free_started, locked): (Vec<&Started>, Vec<&Started>) =
            started.iter().partition(|started| free.rows.contains(&started.held.execution));
        let (free_finished, locked_finished): (Vec<&Finished>, Vec<&Finished>) =
            finished.iter().partition(|finished| free.is_whole(finished.held.execution));
        let mut left_out: Vec<Held> = locked.iter().map(|started| started.held).collect();
        left_out.extend(locked_finished.iter().map(|finished| finished.held));
        left_out.retain(|held| free.may_be_read(held.execution));
        let marked = match worker {
            Some(worker) => {
                // R10: whoever meets the entry again within the lease must see that it was started, whoever holds the
                // statistics.
                let ran: Vec<Started> = locked_finished
                    .iter()
                    .filter(|finished| free.rows.contains(&finished.held.execution))
                    .copied()
                    .filter_map(Started::of)
                    .collect();
                mark_running_on_conn(&mut transaction, worker, &refs(&ran)).await?;
                mark_running_on_conn(&mut transaction, worker, &free_started).await?
            }
            None => Vec::new(),
        };
        let recorded = finish_on_conn(&mut transaction, worker, &free_finished, ended_jobs).await?;
        let left_out = look_at_locked_on_conn(&mut transaction, worker, &left_out).await?;
        carillon_failpoint::reach("record:commit").await;
        transaction.commit().await?;

        let (mut marked, mut recorded, mut left_out) = (marked.into_iter(), recorded.into_iter(), left_out.into_iter());
        let mut of_left_out = |execution| if free.may_be_read(execution) { left_out.next() } else { None };
        let locked = Verdict::Locked;
        let started = started.iter().map(|started| {
            let execution = started.held.execution;
            let verdict = if free.rows.contains(&execution) { marked.next() } else { of_left_out(execution) };
            verdict.unwrap_or(locked)
        });
        let started = started.collect();
        let finished = finished.iter().map(|finished| {
            let execution = finished.held.execution;
            let verdict = if free.is_whole(execution) { recorded.next() } else { of_left_out(execution) };
            verdict.unwrap_or(locked)
        });
        Ok((started, finished.collect()))
    }
}

/// What this transaction has locked.
struct Free {
    rows: HashSet<Uuid>,
    /// Of these rows the statistics are locked by somebody else.
    without_stats: HashSet<Uuid>,
    /// Days that somebody else has locked as a whole: who reads there may have to wait.
    locked_days: BTreeSet<u64>,
}

impl Free {
    fn is_whole(&self, execution: Uuid) -> bool {
        self.rows.contains(&execution) && !self.without_stats.contains(&execution)
    }

    fn may_be_read(&self, execution: Uuid) -> bool {
        !self.locked_days.contains(&ids::day(execution))
    }
}

async fn free_on_conn(connection: &mut Connection, started: &[Started], finished: &[Finished]) -> Result<Free> {
    let mut held: Vec<Held> = started.iter().map(|started| started.held).collect();
    held.extend(finished.iter().map(|finished| finished.held));
    let all_days: BTreeSet<u64> = held.iter().map(|held| ids::day(held.execution)).collect();
    let locked_days = days::locked_on(connection, &all_days).await?;
    held.retain(|held| !locked_days.contains(&ids::day(held.execution)));
    let mut job_of = HashMap::with_capacity(held.len());
    if !held.is_empty() {
        let rows = sqlx::query(days::of(EXECUTIONS_LOCK, ids_of(&held)))
            .bind(held.iter().map(|held| held.execution).collect::<Vec<_>>())
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            job_of.insert(row.try_get::<Uuid, _>("id")?, row.try_get::<Uuid, _>("job_id")?);
        }
    }
    let jobs = finished.iter().filter_map(|finished| job_of.get(&finished.held.execution).copied());
    let jobs: HashSet<Uuid> = jobs.collect();
    let mut locked: HashSet<Uuid> = HashSet::new();
    if !jobs.is_empty() {
        let jobs: Vec<Uuid> = jobs.into_iter().collect();
        let rows: Vec<Uuid> = sqlx::query_scalar(JOB_STATS_LOCK).bind(jobs).fetch_all(connection).await?;
        locked.extend(rows);
    }
    let without_stats = job_of.iter().filter(|(_, job)| locked.contains(*job)).map(|(id, _)| *id).collect();
    Ok(Free { rows: job_of.into_keys().collect(), without_stats, locked_days })
}

/// What was not locked may as well be gone or over; what still looks as if it were to be written is locked.
async fn look_at_locked_on_conn(
    connection: &mut Connection,
    worker: Option<Uuid>,
    held: &[Held],
) -> Result<Vec<Verdict>> {
    let seen = judge_on_conn(connection, worker, held, HashMap::new()).await?;
    let verdicts = seen.into_iter().map(|verdict| match verdict {
        Verdict::Over { .. } => verdict,
        Verdict::Recorded(_) | Verdict::Lost | Verdict::Running { .. } | Verdict::Locked => Verdict::Locked,
    });
    Ok(verdicts.collect())
}
