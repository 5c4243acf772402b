//! Jobs: creating one and reading it here; creating many in [`many`]; listing them in [`list`](mod@list), changing them in
//! [`update`](mod@update), pausing and resuming in [`changes`], deleting in [`deletion`].
//!
//! A job is three rows: `jobs` (the definition), `job_timers` (what the claim moves) and `job_stats` (what the recorder adds
//! to). They are born in one statement and live as long as each other, so nobody who reads one asks whether the others are
//! there. With them its first revision is born ([`crate::revisions`]).

pub(crate) mod changes;
pub(crate) mod deletion;
mod list;
mod many;
pub(crate) mod rows;
pub(crate) mod update;

use carillon_core::shard::shard_of;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, QueryBuilder};
use uuid::Uuid;

pub use changes::{Paused, REASON_PAUSED, pause, resume};
pub use deletion::{Deleting, REASON_DELETED, delete};
pub use list::{By, Filter, Order, count, list};
pub use many::{Many, check_many, create_many};
pub use rows::{Definition, Job, NewJob};
pub use update::{REASON_CHANGED, Update, Updated, check_update, update};

use crate::document::ToWrite;
use crate::idempotency::{self, Key};
use crate::scope::may_read;
use crate::{Error, Result, Scope, Store, queues};
use rows::{JOBS_SELECT, JobRow};

/// What is born with the rows of `job`, which `given` has the first instant and the shard of: the revision, the timer, the statistics;
/// and a note, if there is no instant.
macro_rules! born_with_jobs {
    () => {
        concat!(
            "revision AS (
        INSERT INTO carillon.job_revisions (job_id, revision, definition, created_by, created_at)
        SELECT id, revision, ",
            crate::revisions::definition_of!("job"),
            ", created_by, created_at FROM job
    ), timer AS (
        INSERT INTO carillon.job_timers (job_id, shard, fire_at, queue, priority, revision, exhausted)
        SELECT id, given.shard, given.fire_at, job.queue, job.priority, job.revision,
               given.fire_at IS NULL AND job.type <> 'EVENT'
        FROM job JOIN given USING (id)
        RETURNING job_id, exhausted
    ), note AS (
        INSERT INTO carillon.job_attention (job_id) SELECT job_id FROM timer WHERE exhausted
    ), stats AS (
        INSERT INTO carillon.job_stats (job_id) SELECT id FROM job
    )"
        )
    };
}
use born_with_jobs;

/// One statement, so one transaction and one round trip: the idempotency key first, since a conflict on it must stop the rest.
/// Nothing is written if the name of the queue is not known ([`crate::queues`]). `$1` is the row by its columns, of which
/// `{columns}` are named: what an older program does not know has its default.
const JOBS_INSERT: &str = concat!(
    "
    WITH new AS MATERIALIZED (
        SELECT * FROM jsonb_populate_record(NULL::carillon.jobs, $1::jsonb)
    ), given AS (
        SELECT id, $7::timestamptz AS fire_at, $8::smallint AS shard FROM new
    ), queue AS (
        SELECT name AS known FROM carillon.queues WHERE name = (SELECT queue FROM new) FOR KEY SHARE
    ), key AS (
        INSERT INTO carillon.idempotency_keys (space, key, fingerprint, resource_id)
        SELECT $4::text, $5::text, $6::bytea, new.id FROM queue, new WHERE $5::text IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING resource_id
    ), job AS (
        INSERT INTO carillon.jobs ({columns}, payload, metadata)
        SELECT {columns}, $2::jsonb, $3::jsonb
        FROM queue, new WHERE $5::text IS NULL OR EXISTS (SELECT FROM key)
        RETURNING *
    ), ",
    born_with_jobs!(),
    "
    SELECT EXISTS (SELECT FROM queue) AS queue_is_known, EXISTS (SELECT FROM job) AS created"
);

/// Tries to write a job whose key another one has and then has no more.
const KEY_TRIES: usize = 3;

/// Creates a job with its timer, its statistics and its idempotency key. If that key was taken meanwhile, answers with the
/// job that it led to.
///
/// # Errors
/// [`Error::KeyReused`] if the idempotency key was taken by another request; [`Error::AlreadyExists`] if another job has its
/// key; [`Error::QueuesExhausted`] if its queue would be one too many; [`Error::NotOwn`] if it is of a platform that is not the
/// caller's; or if Postgres is unavailable.
pub async fn create(store: &Store, scope: &Scope, new: NewJob, key: Option<&Key>) -> Result<Job> {
    new.require_own(scope)?;
    // One whose holder is deleted just now is free the next time.
    for _ in 0..KEY_TRIES {
        let mut inserted = insert(&store.pool, &new, key).await?;
        if inserted == Inserted::QueueUnknown {
            inserted = insert_with_queue(store, &new, key).await?;
        }
        match inserted {
            Inserted::Job => return Ok(new.into_job()),
            Inserted::KeyTaken => {
                if let Some(id) = holder(store, &new.definition).await? {
                    return Err(Error::AlreadyExists { what: "job", id });
                }
            }
            Inserted::Repeated | Inserted::QueueUnknown => break,
        }
    }
    let known = idempotency::begin(store, scope, key).await?.known;
    get(store, scope, known.unwrap_or(new.id)).await
}

/// Refuses a job that [`create`] would refuse, as things stand.
///
/// # Errors
/// As there.
pub async fn check_new(store: &Store, scope: &Scope, new: &NewJob) -> Result<()> {
    new.require_own(scope)?;
    if let Some(id) = holder(store, &new.definition).await? {
        return Err(Error::AlreadyExists { what: "job", id });
    }
    let mut connection = store.pool.acquire().await?;
    queues::check_on_conn(&mut connection, &new.definition.queue, new.queues_max).await
}

/// The job that has the key of `definition`.
///
/// # Errors
/// If Postgres is unavailable.
async fn holder(store: &Store, definition: &Definition) -> Result<Option<Uuid>> {
    let Some(key) = &definition.key else { return Ok(None) };
    let holder = "SELECT id FROM carillon.jobs
                  WHERE platform_id IS NOT DISTINCT FROM $1 AND key = $2 AND status <> 'CANCELLED'";
    Ok(sqlx::query_scalar(holder).bind(&definition.platform_id).bind(key).fetch_optional(&store.pool).await?)
}

/// What became of an INSERT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inserted {
    /// It is written.
    Job,
    /// Nothing is: the idempotency key is known.
    Repeated,
    /// Nothing is: the name of its queue is not known.
    QueueUnknown,
    /// Nothing is: another job has its key.
    KeyTaken,
}

async fn insert_with_queue(store: &Store, new: &NewJob, key: Option<&Key>) -> Result<Inserted> {
    let mut transaction = store.pool.begin().await?;
    queues::add_on_conn(&mut transaction, &new.definition.queue, new.queues_max).await?;
    let inserted = insert(&mut *transaction, new, key).await?;
    // A job that was not written leaves no name behind either.
    if inserted == Inserted::Job {
        transaction.commit().await?;
    }
    Ok(inserted)
}

async fn insert(executor: impl sqlx::PgExecutor<'_>, new: &NewJob, key: Option<&Key>) -> Result<Inserted> {
    let unwritable = |error: serde_json::Error| Error::Unreadable { what: "new job", why: error.to_string() };
    let row = new.row().map_err(unwritable)?;
    let statement = JOBS_INSERT.replace("{columns}", &rows::columns_of(&row));
    let outcome = sqlx::query_as(AssertSqlSafe(statement))
        .bind(Json(&row))
        .bind(ToWrite(&new.definition.payload))
        .bind(ToWrite(&new.definition.metadata))
        .bind(key.map(Key::kept_in))
        .bind(key.map(|key| &key.key))
        .bind(key.map(|key| &key.fingerprint))
        .bind(new.fire_at)
        .bind(shard_of(new.id))
        .fetch_one(executor)
        .await;
    let constraint_of =
        |error: &sqlx::Error| error.as_database_error().and_then(|error| error.constraint().map(str::to_owned));
    match outcome {
        Ok((false, _)) => Ok(Inserted::QueueUnknown),
        Ok((true, true)) => Ok(Inserted::Job),
        Ok((true, false)) => Ok(Inserted::Repeated),
        Err(error) if constraint_of(&error).as_deref() == Some("jobs_key") => Ok(Inserted::KeyTaken),
        Err(error) => Err(error.into()),
    }
}

/// Reads one job.
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub async fn get(store: &Store, scope: &Scope, id: Uuid) -> Result<Job> {
    get_on(&store.pool, scope, id).await
}

/// Reads one job for whoever is about to change it.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`] for one that the caller may see and not change; or if Postgres is unavailable.
pub async fn get_own(store: &Store, scope: &Scope, id: Uuid) -> Result<Job> {
    let job = get(store, scope, id).await?;
    // What it belongs to, it does for ever.
    scope.require_own(job.definition.platform_id.as_deref(), "job", id)?;
    Ok(job)
}

const JOBS_EXIST: &str =
    concat!("SELECT EXISTS (SELECT FROM carillon.jobs WHERE id = $1 AND ", may_read!("platform_id", "$2"), ")");

/// Whether there is a job.
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub(crate) async fn require(store: &Store, scope: &Scope, id: Uuid) -> Result<()> {
    let exists: bool = sqlx::query_scalar(JOBS_EXIST).bind(id).bind(scope.platforms()).fetch_one(&store.pool).await?;
    if exists { Ok(()) } else { Err(Error::NotFound { what: "job", id }) }
}

async fn get_on(executor: impl sqlx::PgExecutor<'_>, scope: &Scope, id: Uuid) -> Result<Job> {
    let mut query = QueryBuilder::new(JOBS_SELECT);
    query.push(" WHERE j.id = ").push_bind(id);
    scope.push_may_read(&mut query, "j.platform_id");
    let row: Option<JobRow> = query.build_query_as().fetch_optional(executor).await?;
    row.ok_or(Error::NotFound { what: "job", id })?.try_into()
}
