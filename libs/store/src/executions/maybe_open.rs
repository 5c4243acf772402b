//! What is open of all jobs, however much history lies behind it: it stands in a batch that is still there (decision 0001), or among
//! the retries or the triggers. Where these are many, what is open is no rarity, and is found among the newest rows.

use std::collections::{BTreeSet, HashSet};

use sqlx::types::Json;
use uuid::Uuid;

use super::list::Wanted;
use crate::scan::{Direction, Looked, Scan, Scanned};
use crate::{Result, Store, days};

/// How many may be open at most, by each of the three.
const MAYBE_MAX: i64 = 20_000;

/// In one snapshot, or what is just being claimed would stand nowhere. What is left of old batches has ended.
const EXECUTIONS_MAYBE_OPEN: &str = "
    (SELECT i.id FROM carillon.dispatch_batches b CROSS JOIN UNNEST(b.ids) AS i(id) LIMIT $1)
    UNION ALL (SELECT execution_id FROM carillon.execution_retries LIMIT $1)
    UNION ALL (SELECT execution_id FROM carillon.job_triggers LIMIT $1)";

/// Of some those that match.
const EXECUTIONS_MATCHING: &str = concat!(
    "
SELECT e.id FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id AND {days of e.id}
CROSS JOIN (SELECT $2::jsonb AS wanted) w
WHERE e.status = w.wanted ->> 'status'
  AND (w.wanted ->> 'platform_id' IS NULL OR e.platform_id = w.wanted ->> 'platform_id')
  AND (w.wanted -> 'scope' IS NULL OR e.platform_id IS NULL OR (w.wanted -> 'scope') ? e.platform_id)
  AND (w.wanted ->> 'queue' IS NULL OR e.queue = w.wanted ->> 'queue')
  AND (w.wanted ->> 'worker_id' IS NULL OR e.worker_id = (w.wanted ->> 'worker_id')::uuid)
  AND (w.wanted ->> 'error' IS NULL OR position(w.wanted ->> 'error' IN e.error) > 0)
  AND (w.wanted ->> 'handler_name' IS NULL AND w.wanted ->> 'tag' IS NULL OR (
      SELECT (w.wanted ->> 'handler_name' IS NULL OR r.definition ->> 'handler_name' = w.wanted ->> 'handler_name')
         AND (w.wanted ->> 'tag' IS NULL OR r.definition -> 'tags' ? (w.wanted ->> 'tag'))
      FROM carillon.job_revisions r WHERE r.job_id = e.job_id AND r.revision = e.revision))
UNION ALL
SELECT t.execution_id FROM carillon.job_triggers t JOIN carillon.jobs j ON j.id = t.job_id
CROSS JOIN (SELECT $2::jsonb AS wanted) w
WHERE $3 AND t.execution_id = ANY ($1) AND ",
    trigger_matches!()
);

/// Among these is all that is open, in the order of the list.
pub(super) struct MaybeOpen(Vec<Uuid>);

impl MaybeOpen {
    /// `None` where it must be looked for as ever.
    pub(super) async fn gather(store: &Store, filter: Wanted<'_>) -> Result<Option<Self>> {
        let is_asked_for = filter.status.is_some_and(|status| !status.is_final())
            && filter.job.is_none()
            && filter.fingerprint.is_none()
            && filter.completed_from.is_none()
            && filter.completed_before.is_none();
        if !is_asked_for {
            return Ok(None);
        }
        let maybe = sqlx::query_scalar(EXECUTIONS_MAYBE_OPEN).bind(MAYBE_MAX + 1).fetch_all(&store.pool).await?;
        if i64::try_from(maybe.len()).is_ok_and(|len| len > MAYBE_MAX) {
            return Ok(None);
        }
        let (from, below) = filter.instants();
        let ids: BTreeSet<Uuid> = maybe.into_iter().filter(|id| (from..below).contains(id)).collect();
        Ok(Some(Self(match filter.order.direction {
            Direction::Ascending => ids.into_iter().collect(),
            Direction::Descending => ids.into_iter().rev().collect(),
        })))
    }

    /// The page that `scan` looks for.
    pub(super) async fn find(self, store: &Store, filter: Wanted<'_>, mut scan: Scan) -> Result<Scanned<Uuid>> {
        loop {
            let (behind, rows) = scan.next();
            let is_passed = |id: &Uuid| match (filter.order.direction, behind) {
                (_, None) => false,
                (Direction::Ascending, Some(behind)) => *id <= behind,
                (Direction::Descending, Some(behind)) => *id >= behind,
            };
            let rest = &self.0[self.0.partition_point(is_passed)..];
            let looked_at = &rest[..rest.len().min(usize::try_from(rows).unwrap_or(0))];
            let statement = days::of(EXECUTIONS_MATCHING, looked_at.iter().copied());
            let statement = sqlx::query_scalar(statement).bind(looked_at).bind(Json(filter));
            let matching = statement.bind(filter.may_be_unclaimed()).fetch_all(&store.pool).await?;
            let matching: HashSet<Uuid> = matching.into_iter().collect();
            let looked = Looked {
                matching: looked_at.iter().copied().filter(|id| matching.contains(id)).collect(),
                behind: looked_at.last().copied().filter(|_| looked_at.len() < rest.len()),
                rows: looked_at.len(),
            };
            if let Some(found) = scan.seen(looked) {
                return Ok(found);
            }
        }
    }
}
