//! R17: the cancel of one execution. What waits (a trigger that nobody claimed, a RETRYING one) ends at once; what is queued
//! or runs is asked to stop, since a handler may be running, and whoever ends it records it CANCELLED. One transaction; the
//! word to the executors follows its COMMIT.

use carillon_core::execution::Status;
use sqlx::Row;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::ends::end_waiting_on;
use crate::executions::{self, Execution};
use crate::jobs::changes::repeat;
use crate::jobs::deletion;
use crate::recorder::read_status;
use crate::{Error, Result, Scope, Store, attention, days};

/// Why an execution was cancelled, where nobody said.
pub const REASON_CANCELLED: &str = "cancelled by request";

/// What came of a cancel.
#[derive(Clone, Debug, PartialEq)]
pub struct Cancelled {
    /// As it stands now.
    pub execution: Execution,
    /// It is asked to stop: executors shall hear of it.
    pub asked: bool,
}

/// Cancels an execution; one that is CANCELLED stays as it is, and so does the reason of one that was asked to stop before.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`]; [`Error::FailedPrecondition`] for one that has ended otherwise; or if Postgres is
/// unavailable.
pub async fn cancel(store: &Store, scope: &Scope, id: Uuid, reason: &str) -> Result<Cancelled> {
    let reason = if reason.is_empty() { REASON_CANCELLED } else { reason };
    repeat(|| Box::pin(cancel_once(store, scope, id, reason))).await
}

async fn cancel_once(store: &Store, scope: &Scope, id: Uuid, reason: &str) -> Result<Cancelled> {
    let mut transaction = store.pool.begin().await?;
    executions::require_own_on(&mut transaction, scope, id).await?;
    let has_ended = !end_waiting_on(&mut transaction, &[id], reason).await?.is_empty();
    let asked = !has_ended && ask_to_stop_on(&mut transaction, id, reason).await?;
    let execution = executions::get_on(&mut *transaction, scope, id).await?;
    transaction.commit().await?;
    Ok(Cancelled { execution, asked })
}

/// Whether it is asked; it may have been before, and be told again.
async fn ask_to_stop_on(connection: &mut Connection, id: Uuid, reason: &str) -> Result<bool> {
    let lock = "SELECT job_id, status FROM carillon.job_executions WHERE id = $1 AND {days of id} FOR NO KEY UPDATE";
    let row = sqlx::query(days::of(lock, [id])).bind(id).fetch_optional(&mut *connection).await?;
    let row = row.ok_or(Error::NotFound { what: "execution", id })?;
    match read_status(row.try_get("status")?)? {
        Status::Cancelled => Ok(false),
        // Since the statement before.
        Status::Retrying => end_waiting_on(connection, &[id], reason).await.map(|_| false),
        Status::Queued | Status::Running => {
            deletion::ask_to_stop_on(connection, &[id], reason).await?;
            attention::note_ended_on(connection, row.try_get("job_id")?).await?;
            Ok(true)
        }
        ended @ (Status::Success | Status::Failed | Status::Timeout | Status::Skipped) => {
            let why = format!("an execution that is {ended} cannot be cancelled: it has ended");
            Err(Error::FailedPrecondition { what: "execution", why })
        }
    }
}
