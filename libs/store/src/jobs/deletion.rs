//! Deleting a job, in steps that each hold few locks for a short time, however much of it is open.
//!
//! The first transaction decides: the job is CANCELLED and its timer stands still, so it never fires again. With it a note is
//! left ([`crate::attention`]): if whoever goes on dies, a dispatcher does. The steps ([`Deleting`]) then end what waits and
//! ask what is queued or runs to stop (R17); each may be done again. What the leader still claims between two steps (a
//! trigger) is open then, and found by a later one.

use carillon_core::job::JobStatus;
use sqlx::Row;
use uuid::Uuid;

use super::changes::{lock, may_repeat, stop_timer};
use crate::bounded::Connection;
use crate::ends::end_waiting_on;
use crate::recorder::read_status;
use crate::{Result, Store, attention, days};

/// Why an execution was cancelled with its job.
pub const REASON_DELETED: &str = "job deleted";

/// Triggers that are ended together: each may hold a large payload.
const TRIGGERS_AT_ONCE: i64 = 100;
/// Executions whose rows are locked together.
const EXECUTIONS_AT_ONCE: usize = 500;
/// Ids that are looked up together.
const IDS_AT_ONCE: i64 = 10_000;

/// Deletes a job: it never fires again. Answers whether it was this call that did it. What is left of it is ended by
/// [`Deleting`], also if it was deleted before.
///
/// # Errors
/// [`crate::Error::NotFound`]; or if Postgres is unavailable.
pub async fn delete(store: &Store, id: Uuid) -> Result<bool> {
    let mut attempt = 1;
    loop {
        match Box::pin(delete_once(store, id)).await {
            Err(error) if may_repeat(&error, attempt).await => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn delete_once(store: &Store, id: Uuid) -> Result<bool> {
    let mut transaction = store.pool.begin().await?;
    if lock(&mut transaction, id).await?.status == JobStatus::Cancelled {
        return Ok(false);
    }
    stop_timer(&mut transaction, id).await?;
    sqlx::query(
        "UPDATE jobs SET status = 'CANCELLED', cancelled_at = clock_timestamp(), updated_at = clock_timestamp(),
                         paused_at = NULL, held_at = NULL
         WHERE id = $1",
    )
    .bind(id)
    .execute(&mut *transaction)
    .await?;
    attention::note_deleted_on(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(true)
}

/// What is left to be done for a job that was deleted.
#[derive(Debug)]
pub struct Deleting {
    store: Store,
    job: Uuid,
    /// Triggers first: until none is left the leader may still open an execution.
    triggers_left: bool,
    /// How many were open when the triggers had gone, less those that were looked up: at least as many as are to come.
    open_left: Option<i64>,
    /// The last that was looked up: they come newest first.
    behind: Uuid,
    found: Vec<Uuid>,
}

/// How many are open is exact in one snapshot (R20). No index names the status: the open ones are looked for newest first,
/// and no further than there are any.
const EXECUTIONS_OPEN: &str = "
SELECT id FROM job_executions
WHERE job_id = $1 AND id < $2 AND status IN ('QUEUED', 'RUNNING', 'RETRYING')
ORDER BY id DESC LIMIT least($3, $4)";

const OPEN_COUNT: &str = "
SELECT t.claimed_count - s.finished_count FROM job_timers t JOIN job_stats s ON s.job_id = t.job_id WHERE t.job_id = $1";

impl Deleting {
    /// Of `job`, which was deleted.
    pub fn of(store: &Store, job: Uuid) -> Self {
        let store = store.clone();
        Self { store, job, triggers_left: true, open_left: None, behind: Uuid::max(), found: Vec::new() }
    }

    /// Does the next step. Answers which executions are asked to stop, for executors to hear of; `None`: nothing is left.
    ///
    /// # Errors
    /// If Postgres is unavailable: the step may be done again.
    pub async fn step(&mut self) -> Result<Option<Vec<Uuid>>> {
        let mut attempt = 1;
        loop {
            match Box::pin(self.step_once()).await {
                Err(error) if may_repeat(&error, attempt).await => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn step_once(&mut self) -> Result<Option<Vec<Uuid>>> {
        if self.triggers_left {
            self.triggers_left = self.end_triggers().await?;
            return Ok(Some(Vec::new()));
        }
        if self.found.is_empty() {
            self.find_open().await?;
        }
        if self.found.is_empty() {
            return Ok(None);
        }
        let some = &self.found[self.found.len().saturating_sub(EXECUTIONS_AT_ONCE)..];
        let asked = cancel_on(&self.store, some, REASON_DELETED).await?;
        self.found.truncate(self.found.len() - some.len());
        Ok(Some(asked))
    }

    /// Whether there may be more.
    async fn end_triggers(&self) -> Result<bool> {
        let some: Vec<Uuid> = sqlx::query_scalar("SELECT execution_id FROM job_triggers WHERE job_id = $1 LIMIT $2")
            .bind(self.job)
            .bind(TRIGGERS_AT_ONCE)
            .fetch_all(&self.store.pool)
            .await?;
        if some.is_empty() {
            return Ok(false);
        }
        let mut connection = self.store.pool.acquire().await?;
        end_waiting_on(&mut connection, &some, REASON_DELETED).await?;
        Ok(true)
    }

    async fn find_open(&mut self) -> Result<()> {
        let left = match self.open_left {
            Some(left) => left,
            None => {
                let open: Option<i64> =
                    sqlx::query_scalar(OPEN_COUNT).bind(self.job).fetch_optional(&self.store.pool).await?;
                open.unwrap_or(0)
            }
        };
        self.found = sqlx::query_scalar(EXECUTIONS_OPEN)
            .bind(self.job)
            .bind(self.behind)
            .bind(IDS_AT_ONCE)
            .bind(left.max(0))
            .fetch_all(&self.store.pool)
            .await?;
        self.behind = self.found.last().copied().unwrap_or(Uuid::nil());
        self.open_left = Some(left - i64::try_from(self.found.len()).unwrap_or(i64::MAX));
        Ok(())
    }
}

/// In the order of ids, so that two who do this at once cannot deadlock.
const EXECUTIONS_LOCK: &str = "
SELECT id, status FROM job_executions WHERE id = ANY ($1) AND {days of id} ORDER BY id FOR NO KEY UPDATE";

/// R17. What was withdrawn (R23) is cancelled by it; what was cancelled before keeps its reason.
const EXECUTIONS_ASK_TO_STOP: &str = "
UPDATE job_executions SET cancel_requested = true, withdrawn = false, reason = $2
WHERE id = ANY ($1) AND {days of id} AND status IN ('QUEUED', 'RUNNING') AND (withdrawn OR NOT cancel_requested)";

/// Asks those of `executions` that are queued or run to stop.
pub(crate) async fn ask_to_stop_on(connection: &mut Connection, executions: &[Uuid], reason: &str) -> Result<()> {
    let ask = sqlx::query(days::of(EXECUTIONS_ASK_TO_STOP, executions.iter().copied()));
    ask.bind(executions).bind(reason).execute(connection).await?;
    Ok(())
}

/// R17 on `executions`, one transaction. What to do with each is decided once it is locked: one that the recorder made
/// RETRYING meanwhile is ended, not merely asked to stop. Answers with those that are asked to, now or before.
async fn cancel_on(store: &Store, executions: &[Uuid], reason: &str) -> Result<Vec<Uuid>> {
    let mut transaction = store.pool.begin().await?;
    let locked = sqlx::query(days::of(EXECUTIONS_LOCK, executions.iter().copied())).bind(executions);
    let rows = locked.fetch_all(&mut *transaction).await?;
    let (mut retrying, mut asked) = (Vec::new(), Vec::new());
    for row in rows {
        match read_status(row.try_get("status")?)? {
            carillon_core::execution::Status::Retrying => retrying.push(row.try_get("id")?),
            open if !open.is_final() => asked.push(row.try_get("id")?),
            _ => {}
        }
    }
    if !asked.is_empty() {
        ask_to_stop_on(&mut transaction, &asked, reason).await?;
    }
    if !retrying.is_empty() {
        end_waiting_on(&mut transaction, &retrying, reason).await?;
    }
    transaction.commit().await?;
    Ok(asked)
}
