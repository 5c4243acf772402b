//! What is to come, for the leader's agenda: the next instants of every line.

use carillon_core::agenda::{Slot, Source};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::Result;
use crate::leader_session::LeaderSession;

/// The first instants of every line until `$2`: `$3` of each line at most, and `$4` of all together, which the lines that have
/// some share evenly. The lines, each with its first instant, are found by skipping through the index (one descent a line), so
/// the cost grows with the lines and the instants returned, not with the jobs.
const TIMERS_UPCOMING: &str = "
WITH RECURSIVE timer_lines AS (
    (SELECT queue, priority, fire_at AS first FROM carillon.job_timers WHERE shard = $1 AND fire_at IS NOT NULL
     ORDER BY queue, priority, fire_at LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority, n.first FROM timer_lines l CROSS JOIN LATERAL (
        SELECT queue, priority, fire_at AS first FROM carillon.job_timers
        WHERE shard = $1 AND fire_at IS NOT NULL AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority, fire_at LIMIT 1) n
), trigger_lines AS (
    (SELECT queue, priority, fire_at AS first FROM carillon.job_triggers WHERE shard = $1
     ORDER BY queue, priority, fire_at LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority, n.first FROM trigger_lines l CROSS JOIN LATERAL (
        SELECT queue, priority, fire_at AS first FROM carillon.job_triggers
        WHERE shard = $1 AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority, fire_at LIMIT 1) n
), retry_lines AS (
    (SELECT queue, priority, due_at AS first FROM carillon.execution_retries WHERE shard = $1
     ORDER BY queue, priority, due_at LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority, n.first FROM retry_lines l CROSS JOIN LATERAL (
        SELECT queue, priority, due_at AS first FROM carillon.execution_retries
        WHERE shard = $1 AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority, due_at LIMIT 1) n
), lines AS (
    SELECT 0 AS source, queue, priority FROM timer_lines WHERE first <= $2
    UNION ALL
    SELECT 1, queue, priority FROM trigger_lines WHERE first <= $2
    UNION ALL
    SELECT 2, queue, priority FROM retry_lines WHERE first <= $2
), each AS (
    SELECT greatest(1, least($3, $4 / greatest(1, count(*)))) AS room FROM lines
)
SELECT at.source, at.queue, at.priority, at.at, (SELECT room FROM each) AS room FROM (
    SELECT l.source, l.queue, l.priority, t.at FROM lines l CROSS JOIN LATERAL (
        SELECT fire_at AS at FROM carillon.job_timers
        WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND fire_at <= $2
        ORDER BY fire_at LIMIT (SELECT room FROM each)) t
    WHERE l.source = 0
    UNION ALL
    SELECT l.source, l.queue, l.priority, t.at FROM lines l CROSS JOIN LATERAL (
        SELECT fire_at AS at FROM carillon.job_triggers
        WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND fire_at <= $2
        ORDER BY fire_at LIMIT (SELECT room FROM each)) t
    WHERE l.source = 1
    UNION ALL
    SELECT l.source, l.queue, l.priority, t.at FROM lines l CROSS JOIN LATERAL (
        SELECT due_at AS at FROM carillon.execution_retries
        WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND due_at <= $2
        ORDER BY due_at LIMIT (SELECT room FROM each)) t
    WHERE l.source = 2
) at
ORDER BY at.at LIMIT $4";

/// How many instants are read at once.
#[derive(Clone, Copy, Debug)]
pub struct UpcomingMax {
    /// Of one line.
    pub of_line: i64,
    /// Of all lines together.
    pub of_all: i64,
}

/// The next instants.
#[derive(Clone, Debug, Default)]
pub struct Upcoming {
    /// Each with where it would be found.
    pub instants: Vec<(Slot, DateTime<Utc>)>,
    /// Until when this is complete.
    pub complete_until: Option<DateTime<Utc>>,
}

impl LeaderSession {
    /// The instants until `until`, as many as `max` says, in their order.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn timers_upcoming(&mut self, until: DateTime<Utc>, max: UpcomingMax) -> Result<Upcoming> {
        let rows = sqlx::query(TIMERS_UPCOMING)
            .bind(self.shard)
            .bind(until)
            .bind(max.of_line)
            .bind(max.of_all)
            .fetch_all(&mut self.connection)
            .await?;
        let mut upcoming = Upcoming { instants: Vec::with_capacity(rows.len()), complete_until: Some(until) };
        let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= max.of_all;
        let mut counts = std::collections::HashMap::<Slot, i64>::new();
        for row in rows {
            let source = match row.try_get::<i32, _>("source")? {
                0 => Source::Timer,
                1 => Source::Trigger,
                _ => Source::Retry,
            };
            let line = Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?));
            let at: DateTime<Utc> = row.try_get("at")?;
            let count = counts.entry((source, line.clone())).or_default();
            *count += 1;
            if *count >= row.try_get::<i64, _>("room")? {
                upcoming.complete_until = upcoming.complete_until.map(|known| known.min(at));
            }
            upcoming.instants.push(((source, line), at));
        }
        if full && let Some((_, last)) = upcoming.instants.last() {
            upcoming.complete_until = upcoming.complete_until.map(|known| known.min(*last));
        }
        Ok(upcoming)
    }
}
