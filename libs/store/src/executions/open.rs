//! A job's open executions among all that it ever had. How many there are is known exactly (R20), so whoever has found as many
//! looks no further; and what is left of them, behind rows that have ended, is looked for in the oldest batches that are still
//! there: a batch stays until all that it published has ended (decision 0001).

use std::collections::BTreeSet;

use carillon_core::execution::Status;
use sqlx::types::Json;
use uuid::Uuid;

use super::Filter;
use super::list::Wanted;
use crate::{Result, Store, days};

/// Triggers that nobody claimed, at most; of a job that has more they are looked for among the rows.
const TRIGGERS_MAX: usize = 1_000;
/// Batches that are looked into, and executions in them.
const BATCHES_MAX: i64 = 50;
const IN_BATCHES_MAX: i64 = 1_000;

/// In one snapshot: how many were claimed and have not ended; the newest batch (what it and those before it claimed is all of
/// them, since one leader claims after the other, by ever greater numbers); the triggers that match.
const EXECUTIONS_COUNT_OPEN: &str = concat!(
    "
SELECT m.claimed_count - s.finished_count,
       COALESCE((SELECT max(b.number) FROM carillon.dispatch_batches b WHERE b.shard = m.shard), 0),
       ARRAY(SELECT t.execution_id FROM carillon.job_triggers t JOIN carillon.jobs j ON j.id = t.job_id
             CROSS JOIN (SELECT $5::jsonb AS wanted) w
             WHERE t.job_id = m.job_id AND $2 AND t.execution_id >= $3 AND t.execution_id < $4
               AND ",
    trigger_matches!(),
    "
             ORDER BY t.execution_id DESC LIMIT $6)
FROM carillon.job_timers m JOIN carillon.job_stats s ON s.job_id = m.job_id WHERE m.job_id = $1"
);

const BATCHES_OLDEST: &str = "
SELECT i.id FROM (SELECT ids FROM carillon.dispatch_batches WHERE settled_at IS NOT NULL ORDER BY shard, number LIMIT $1) b,
     UNNEST(b.ids) AS i(id) LIMIT $2";

/// Of executions those of a job that are open, and whether they stand as asked for.
const EXECUTIONS_OPEN_AMONG: &str = "
SELECT e.id, e.status = $4 FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id AND {days of e.id}
WHERE e.completed_at IS NULL AND e.job_id = $2 AND e.claim <= $3";

/// A search for what is open of a job, from its newest execution on.
pub(super) struct Open {
    job: Uuid,
    status: Status,
    /// Whether nothing but job and status is asked for.
    is_plain: bool,
    /// So many of those that were open when it began are still to be found, at most.
    left: i64,
    newest: i64,
    /// What waits for its claim, newest first.
    triggers: Vec<Uuid>,
    batches: Batches,
}

/// The batches are looked into once, when the newest rows were not enough.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Batches {
    NotYet,
    Now,
    Done,
}

impl Open {
    /// `None` where it must be looked for as ever.
    pub(super) async fn begin(store: &Store, filter: Wanted<'_>) -> Result<Option<Self>> {
        let (Some(job), Some(status)) = (filter.job, filter.status) else { return Ok(None) };
        if status.is_final() {
            return Ok(None);
        }
        let (from, below) = filter.instants();
        let begun: Option<(i64, i64, Vec<Uuid>)> = sqlx::query_as(EXECUTIONS_COUNT_OPEN)
            .bind(job)
            .bind(filter.may_be_unclaimed())
            .bind(from)
            .bind(below)
            .bind(Json(filter))
            .bind(i64::try_from(TRIGGERS_MAX + 1).unwrap_or(i64::MAX))
            .fetch_optional(&store.pool)
            .await?;
        let Some((left, newest, triggers)) = begun else { return Ok(None) };
        let knows_triggers = triggers.len() <= TRIGGERS_MAX;
        let plain = Filter { job: Some(job), status: Some(status), ..Filter::default() };
        let is_plain = *filter == plain && filter.scope.is_none();
        Ok(knows_triggers.then_some(Self { job, status, is_plain, left, newest, triggers, batches: Batches::NotYet }))
    }

    /// Open ones were found, by these claims: those that were claimed since do not count, so that at worst it is looked further
    /// than it must be. `newest_seen`: the newest rows were among what was looked at.
    pub(super) fn found(&mut self, claims: impl IntoIterator<Item = i64>, newest_seen: bool) {
        if newest_seen && self.batches == Batches::NotYet {
            self.batches = if self.is_plain { Batches::Now } else { Batches::Done };
        }
        let counted = claims.into_iter().filter(|claim| *claim <= self.newest).count();
        self.left -= i64::try_from(counted).unwrap_or(i64::MAX);
    }

    /// If all that is open below `below` is known: what of it matches, newest first.
    pub(super) async fn all_below(&mut self, store: &Store, below: Uuid) -> Result<Option<Vec<Uuid>>> {
        let mut matching: BTreeSet<Uuid> = self.triggers.iter().copied().filter(|id| *id < below).collect();
        if self.left > 0 {
            if self.batches != Batches::Now {
                return Ok(None);
            }
            self.batches = Batches::Done;
            let open = self.in_batches(store, below).await?;
            if i64::try_from(open.len()).unwrap_or(i64::MAX) < self.left {
                return Ok(None);
            }
            matching.extend(open.into_iter().filter(|(_, matches)| *matches).map(|(id, _)| id));
        }
        Ok(Some(matching.into_iter().rev().collect()))
    }

    async fn in_batches(&self, store: &Store, below: Uuid) -> Result<Vec<(Uuid, bool)>> {
        let batches = sqlx::query_scalar(BATCHES_OLDEST).bind(BATCHES_MAX).bind(IN_BATCHES_MAX);
        let mut ids: Vec<Uuid> = batches.fetch_all(&store.pool).await?;
        ids.retain(|id| *id < below);
        let open = sqlx::query_as(days::of(EXECUTIONS_OPEN_AMONG, ids.iter().copied()));
        let open = open.bind(&ids).bind(self.job).bind(self.newest).bind(self.status.as_str());
        Ok(open.fetch_all(&store.pool).await?)
    }
}
