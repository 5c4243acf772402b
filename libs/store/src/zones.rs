//! Time zones whose rules have changed: which timers stand by the old ones, and where they move.
//!
//! `time_zones` says by which rules the instants of each zone that a timetable names were reckoned. A job that is created notes
//! its zones (`jobs.rs`); where its process has other rules than are noted, it notes that they differ (0), and any leader
//! reckons anew. Only a leader notes rules in place of others, once all timers of the zone stand by its own.

use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use crate::Result;
use crate::leader_session::LeaderSession;

/// Jobs of a page: with the largest timetables it is some 20 MB.
const PAGE: i64 = 200;

/// A zone, and by which rules its instants were reckoned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedZone {
    /// Its name.
    pub name: String,
    /// By which rules; 0: by differing ones.
    pub rules: i64,
}

/// A job that is still to fire at an instant of one of the zones asked for.
#[derive(Clone, Debug)]
pub struct ZonedTimer {
    /// The job.
    pub job: Uuid,
    /// Where its timer stands, or stood when it was paused.
    pub stands_at: DateTime<Utc>,
    /// It is paused.
    pub is_paused: bool,
    /// When it was made, changed, paused or resumed last.
    pub since: DateTime<Utc>,
    /// When it fires. `None`: this version cannot read it, and it does not fire.
    pub timetable: Option<TimetableSpec>,
}

/// Some jobs, in the order of their ids.
#[derive(Debug, Default)]
pub struct ZonedPage {
    /// The last job that was looked at; `None`: there are no further ones.
    pub last: Option<Uuid>,
    /// Those that matter.
    pub timers: Vec<ZonedTimer>,
}

/// Where a timer moves.
#[derive(Clone, Copy, Debug)]
pub struct Reckoned {
    /// The job.
    pub job: Uuid,
    /// It is paused.
    pub is_paused: bool,
    /// Where its timer stands: if it stands elsewhere by now, it is left alone.
    pub from: DateTime<Utc>,
    /// `None`: nothing is to come.
    pub to: Option<DateTime<Utc>>,
}

/// Walks the primary key; a bounded number of rows, whatever matters of them.
const JOBS_ZONED: &str = "
WITH page AS (
    SELECT id, status, timetable, held_at, updated_at FROM jobs WHERE id > $1 ORDER BY id LIMIT $5
)
SELECT p.id, z.* FROM page p LEFT JOIN LATERAL (
    SELECT CASE p.status WHEN 'PAUSED' THEN p.held_at ELSE t.fire_at END AS stands_at, p.status = 'PAUSED' AS is_paused,
           p.updated_at AS since, p.timetable
    FROM job_timers t
    WHERE t.job_id = p.id AND t.shard = $2
      AND (p.status = 'ACTIVE' AND t.fire_at > $4 OR p.status = 'PAUSED' AND p.held_at > $4)
      AND (p.timetable ->> 'timezone' = ANY ($3)
           OR EXISTS (SELECT FROM jsonb_path_query(p.timetable, '$.exclusions[*].*.timezone') AS own(zone)
                      WHERE own.zone #>> '{}' = ANY ($3)))
) z ON true
ORDER BY p.id";

/// Waits for nobody: what somebody has locked, or moved meanwhile, is not answered.
const TIMERS_RECKON: &str = "
WITH wanted AS (
    SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::timestamptz[]) AS w(job_id, stands_at, fire_at)
), free AS MATERIALIZED (
    SELECT t.job_id FROM job_timers t JOIN wanted w ON w.job_id = t.job_id
    WHERE t.fire_at = w.stands_at FOR NO KEY UPDATE OF t SKIP LOCKED
), moved AS (
    UPDATE job_timers t SET fire_at = w.fire_at, exhausted = w.fire_at IS NULL
    FROM wanted w WHERE t.job_id = w.job_id AND w.job_id IN (SELECT job_id FROM free)
    RETURNING t.job_id, t.exhausted
), notes AS (
    INSERT INTO job_attention (job_id) SELECT job_id FROM moved WHERE exhausted
)
SELECT job_id FROM moved";

/// The same for what is paused; it stays at an instant, since its timetable's end is found when it is resumed.
const JOBS_RECKON: &str = "
WITH wanted AS (
    SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::timestamptz[]) AS w(job_id, stands_at, fire_at)
), free AS MATERIALIZED (
    SELECT j.id FROM jobs j JOIN wanted w ON w.job_id = j.id
    WHERE j.held_at = w.stands_at FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE jobs j SET held_at = COALESCE(w.fire_at, j.held_at)
FROM wanted w WHERE j.id = w.job_id AND w.job_id IN (SELECT id FROM free)
RETURNING j.id";

impl LeaderSession {
    /// The zones that timetables name.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn zones(&mut self) -> Result<Vec<NotedZone>> {
        let rows = sqlx::query("SELECT name, rules FROM time_zones").fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| Ok(NotedZone { name: row.try_get("name")?, rules: row.try_get("rules")? })).collect()
    }

    /// The jobs behind `after` that fire by one of `zones`, at an instant that was still to come at `now`.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn zoned_timers(&mut self, after: Uuid, zones: &[String], now: DateTime<Utc>) -> Result<ZonedPage> {
        let rows = sqlx::query(JOBS_ZONED).bind(after).bind(self.shard).bind(zones).bind(now).bind(PAGE);
        let rows = rows.fetch_all(&mut self.connection).await?;
        let mut page = ZonedPage::default();
        for row in &rows {
            let job = row.try_get("id")?;
            page.last = Some(job);
            let Some(stands_at) = row.try_get("stands_at")? else { continue };
            page.timers.push(ZonedTimer {
                job,
                stands_at,
                is_paused: row.try_get("is_paused")?,
                since: row.try_get("since")?,
                timetable: row.try_get::<Json<TimetableSpec>, _>("timetable").ok().map(|Json(timetable)| timetable),
            });
        }
        Ok(page)
    }

    /// Moves timers. Answers how many; the others were locked, or moved by somebody else.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn timers_reckon(&mut self, reckoned: &[Reckoned]) -> Result<usize> {
        let mut moved = 0;
        for (is_paused, statement) in [(false, TIMERS_RECKON), (true, JOBS_RECKON)] {
            let some: Vec<&Reckoned> = reckoned.iter().filter(|one| one.is_paused == is_paused).collect();
            if some.is_empty() {
                continue;
            }
            let rows = sqlx::query(statement)
                .bind(some.iter().map(|one| one.job).collect::<Vec<_>>())
                .bind(some.iter().map(|one| one.from).collect::<Vec<_>>())
                .bind(some.iter().map(|one| one.to).collect::<Vec<_>>())
                .fetch_all(&mut self.connection)
                .await?;
            moved += rows.len();
        }
        Ok(moved)
    }

    /// Notes that all timers of a zone stand by `rules` now, unless somebody has noted something since `seen`.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn zone_note(&mut self, seen: &NotedZone, rules: i64) -> Result<()> {
        sqlx::query("UPDATE time_zones SET rules = $3 WHERE name = $1 AND rules = $2")
            .bind(&seen.name)
            .bind(seen.rules)
            .bind(rules)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}
