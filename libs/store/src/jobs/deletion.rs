//! Deleting a job, in steps that each hold few locks for a short time, however much of it is open.
//!
//! The first transaction decides: the job is CANCELLED and its timer stands still, so it never fires again. With it a note is
//! left ([`crate::attention`]): if whoever goes on dies, a dispatcher does. The steps ([`Deleting`]) then end what waits and
//! ask what is queued or runs to stop (R17); each may be done again. What the leader still claims between two steps (a
//! trigger) is open then, and found by a later one.

use std::collections::{HashSet, VecDeque};

use carillon_core::job::JobStatus;
use sqlx::Row;
use uuid::Uuid;

use super::changes::{lock, may_repeat, open_count_on, repeat, stop_timer};
use crate::bounded::Connection;
use crate::days::{ByDay, by_days};
use crate::ends::end_waiting_on;
use crate::history::Walk;
use crate::recorder::read_status;
use crate::{Result, Scope, Store, attention, days};

/// Why an execution was cancelled with its job.
pub const REASON_DELETED: &str = "job deleted";

/// Triggers that are ended together: each may hold a large payload.
const TRIGGERS_AT_ONCE: i64 = 100;
/// Executions whose rows are locked together.
const EXECUTIONS_AT_ONCE: usize = 500;

/// Deletes a job: it never fires again. Answers whether it was this call that did it. What is left of it is ended by
/// [`Deleting`], also if it was deleted before.
///
/// # Errors
/// [`crate::Error::NotFound`]; [`crate::Error::NotOwn`]; or if Postgres is unavailable.
pub async fn delete(store: &Store, scope: &Scope, id: Uuid) -> Result<bool> {
    repeat(|| Box::pin(delete_once(store, scope, id))).await
}

async fn delete_once(store: &Store, scope: &Scope, id: Uuid) -> Result<bool> {
    let mut transaction = store.pool.begin().await?;
    if lock(&mut transaction, scope, id).await?.status == JobStatus::Cancelled {
        return Ok(false);
    }
    stop_timer(&mut transaction, id).await?;
    sqlx::query(
        "UPDATE carillon.jobs SET status = 'CANCELLED', cancelled_at = clock_timestamp(), updated_at = clock_timestamp(),
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

/// What is left to be done for a job that was deleted, whoever did it.
#[derive(Debug)]
pub struct Deleting {
    store: Store,
    job: Uuid,
    /// Triggers first: until none is left the leader may still open an execution.
    triggers_left: bool,
    /// Once the triggers have gone.
    search: Option<Search>,
    found: Vec<Uuid>,
    /// What somebody else had locked, one by one or by its day: after all the rest.
    locked: VecDeque<Uuid>,
}

/// Looks for what is open, newest first, and no further than there is any.
#[derive(Debug)]
struct Search {
    walk: Walk,
    /// At least as many as are to be found.
    left: i64,
}

impl Deleting {
    /// Of `job`, which was deleted.
    pub fn of(store: &Store, job: Uuid) -> Self {
        let store = store.clone();
        Self { store, job, triggers_left: true, search: None, found: Vec::new(), locked: VecDeque::new() }
    }

    /// Does the next step, which looks at few rows and locks fewer, however much there is. Answers which executions are asked
    /// to stop, for executors to hear of; `None`: nothing is left.
    ///
    /// # Errors
    /// If Postgres is unavailable or busy: the step may be done again.
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
            let may_be_more = self.find_open().await?;
            return if may_be_more || self.locked.is_empty() {
                Ok(may_be_more.then(Vec::new))
            } else {
                self.cancel_locked().await.map(Some)
            };
        }
        // Taken out once it is done: whoever calls this may give up meanwhile.
        let rest = self.found.len().saturating_sub(EXECUTIONS_AT_ONCE);
        let some = self.found[rest..].to_vec();
        let free = |some: Vec<Uuid>| {
            let store = self.store.clone();
            async move { cancel_on(&store, &some, EXECUTIONS_LOCK_FREE).await }
        };
        let ByDay { answers, refused, .. } = by_days(some, |id| *id, free).await?;
        self.found.truncate(rest);
        self.locked.extend(refused);
        let mut asked = Vec::new();
        for (_, cancelled) in answers {
            asked.extend(cancelled.asked);
            self.locked.extend(cancelled.locked);
        }
        Ok(Some(asked))
    }

    /// Waits for some of what was locked; what it waits for in vain is the last of them from now on.
    async fn cancel_locked(&mut self) -> Result<Vec<Uuid>> {
        let many = self.locked.len().min(EXECUTIONS_AT_ONCE);
        let some: Vec<Uuid> = self.locked.range(..many).copied().collect();
        let cancelled = cancel_on(&self.store, &some, EXECUTIONS_LOCK).await;
        match &cancelled {
            Ok(_) => drop(self.locked.drain(..many)),
            Err(_) => self.locked.rotate_left(many),
        }
        Ok(cancelled?.asked)
    }

    /// Whether there may be more.
    async fn end_triggers(&self) -> Result<bool> {
        let some: Vec<Uuid> =
            sqlx::query_scalar("SELECT execution_id FROM carillon.job_triggers WHERE job_id = $1 LIMIT $2")
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

    /// Looks at one page. Answers whether there may be more to do.
    async fn find_open(&mut self) -> Result<bool> {
        let mut connection = self.store.pool.acquire().await?;
        let open = open_count_on(&mut connection, self.job).await?;
        let mut search = match self.search.take() {
            Some(search) => search,
            None => Search { walk: Walk::over_open(&mut connection, self.job).await?, left: open },
        };
        // Nothing is opened any more: what has ended since needs no finding.
        search.left = search.left.min(open);
        let search = self.search.insert(search);
        if search.left <= 0 {
            return Ok(false);
        }
        let Some(page) = search.walk.page(&mut connection).await? else { return Ok(false) };
        self.found.extend(page.iter().map(|seen| seen.id));
        search.left -= i64::try_from(page.len()).unwrap_or(i64::MAX);
        Ok(true)
    }
}

/// In the order of ids, so that two who do this at once cannot deadlock.
macro_rules! executions_lock {
    ($locked:literal) => {
        concat!(
            "SELECT id, status FROM carillon.job_executions WHERE id = ANY ($1) AND {days of id} ORDER BY id FOR NO KEY UPDATE",
            $locked
        )
    };
}
const EXECUTIONS_LOCK: &str = executions_lock!("");
const EXECUTIONS_LOCK_FREE: &str = executions_lock!(" SKIP LOCKED");

/// R17. What was withdrawn (R23) is cancelled by it; what was cancelled before keeps its reason.
const EXECUTIONS_ASK_TO_STOP: &str = "
UPDATE carillon.job_executions SET cancel_requested = true, withdrawn = false, reason = $2
WHERE id = ANY ($1) AND {days of id} AND status IN ('QUEUED', 'RUNNING') AND (withdrawn OR NOT cancel_requested)";

/// Asks those of `executions` that are queued or run to stop.
pub(crate) async fn ask_to_stop_on(connection: &mut Connection, executions: &[Uuid], reason: &str) -> Result<()> {
    let ask = sqlx::query(days::of(EXECUTIONS_ASK_TO_STOP, executions.iter().copied()));
    ask.bind(executions).bind(reason).execute(connection).await?;
    Ok(())
}

/// What came of a step.
struct Cancelled {
    /// Asked to stop, now or before.
    asked: Vec<Uuid>,
    /// Locked by somebody else, or gone.
    locked: Vec<Uuid>,
}

/// R17 on `executions`, one transaction; `lock` waits for what is locked, or leaves it. What to do with each is decided once it is
/// locked: one that the recorder made RETRYING meanwhile is ended, not merely asked to stop.
async fn cancel_on(store: &Store, executions: &[Uuid], lock: &'static str) -> Result<Cancelled> {
    let reason = REASON_DELETED;
    let mut transaction = store.pool.begin().await?;
    let rows = sqlx::query(days::of(lock, executions.iter().copied())).bind(executions);
    let rows = rows.fetch_all(&mut *transaction).await?;
    let mut locked: HashSet<Uuid> = executions.iter().copied().collect();
    let (mut retrying, mut asked) = (Vec::new(), Vec::new());
    for row in rows {
        locked.remove(&row.try_get("id")?);
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
    Ok(Cancelled { asked, locked: locked.into_iter().collect() })
}
