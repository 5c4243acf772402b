//! Connections on which every statement has an end, at both ends.
//!
//! The server ends a statement that runs or waits for too long, and a session that falls silent inside of a transaction
//! (`pool.rs` and `leader_session.rs` set the timers). That is of no help when the line itself swallows all bytes: so the
//! client gives up a little later by itself, and whatever it gave up on is never used again. Both are built into the types
//! here, and no other connection of this crate runs statements, so that none can be forgotten. For the same reason it is here
//! that a statement gets the name of its schema ([`crate::schema`]).
//!
//! A pool whose line is cut has many connections that are dead without knowing it. Finding out costs a deadline each, so one
//! that ran out makes all that were made before it suspect: they are thrown away unasked.
//!
//! Who waits in vain for a connection is told by the driver that time is up, whether Postgres is away or all connections are in
//! use. Of these two it is the latter if the server has answered others meanwhile ([`Pool::acquire`]).
//!
//! Dropped in the middle of a statement or of a transaction, a connection is given back only once it has answered, within a
//! deadline too; the driver's own pool would wait for that answer without end and keep its place taken meanwhile.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::{BoxFuture, TryFutureExt};
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection as _, Either, Execute, Executor, PgConnection, PgPool, Postgres, Row as _, SqlStr};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::error::is_reported;
use crate::schema::{InSchema, Schema};

/// How long an idle connection may take to say that it lives.
const SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(1);

/// A pool of bounded connections, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pool: PgPool,
    limit: Duration,
    known: Known,
    schema: Schema,
}

/// What the connections of a pool have learned of the server.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Those that were made before this are not used any more.
    suspect_until: Arc<Mutex<Option<Instant>>>,
    /// How many statements it has answered, whatever it said.
    answered: Arc<AtomicU64>,
}

impl Known {
    fn all_are_suspect(&self) {
        *self.suspect_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_suspect(&self, age: Duration) -> bool {
        let until = *self.suspect_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| age > until.elapsed())
    }

    fn has_answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Pool {
    /// A pool that connects when it is first used. `limit` is how long the client waits for an answer; with `ask_first` a
    /// connection that has lain idle is asked for a sign of life before it is used.
    pub(crate) fn new(
        options: PgPoolOptions,
        connect: PgConnectOptions,
        schema: Schema,
        limit: Duration,
        ask_first: bool,
    ) -> Self {
        let known = Known::default();
        let of_all = known.clone();
        let pool = options
            .after_connect(|connection, _| Box::pin(watch_for_client(connection)))
            // The pool's own questions, here and when a connection comes back, wait without limit.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let of_all = of_all.clone();
                Box::pin(async move {
                    if of_all.is_suspect(meta.age) {
                        return Ok(false);
                    }
                    let lives = !ask_first || lives(limit.min(SIGN_OF_LIFE_MAX), connection).await;
                    if !lives {
                        of_all.all_are_suspect();
                    }
                    Ok(lives)
                })
            })
            .after_release(move |connection, _| Box::pin(async move { Ok(lives(limit, connection).await) }))
            .connect_lazy_with(connect);
        Self { pool, limit, known, schema }
    }

    /// One of its connections, for several statements. [`sqlx::Error::PoolTimedOut`] means that all are in use.
    pub(crate) async fn acquire(&self) -> sqlx::Result<Connection> {
        let before = self.known.answers();
        let pooled = match self.pool.acquire().await {
            Err(sqlx::Error::PoolTimedOut) if self.known.answers() == before => return Err(silent()),
            acquired => acquired?,
        };
        Ok(Connection {
            inner: Some(Inner::Pooled(pooled, self.known.clone())),
            schema: self.schema.clone(),
            limit: self.limit,
            interrupted: false,
            rollback_due: false,
        })
    }

    /// Begins a transaction on one of its connections.
    pub(crate) async fn begin(&self) -> sqlx::Result<Transaction<'static>> {
        Transaction::begin(MaybeOwned::Owned(self.acquire().await?)).await
    }

    /// Where all that is ours lies.
    pub(crate) const fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        // Whether the server heard of it makes no difference.
        let _ = timeout(self.limit, self.pool.close()).await;
    }
}

/// A connection on which every statement has an end.
#[derive(Debug)]
pub(crate) struct Connection {
    /// `None`: given up.
    inner: Option<Inner>,
    schema: Schema,
    limit: Duration,
    /// A statement was begun and not heard to its end.
    interrupted: bool,
    /// A transaction was begun and let go of.
    rollback_due: bool,
}

enum Inner {
    Pooled(PoolConnection<Postgres>, Known),
    Own(Box<PgConnection>),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pooled(..) => "Pooled",
            Self::Own(_) => "Own",
        })
    }
}

impl Inner {
    fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Pooled(pooled, _) => pooled,
            Self::Own(own) => own,
        }
    }

    /// Lets go of it without a word: whoever is at the other end does not answer.
    fn abandon(self) {
        match self {
            Self::Pooled(pooled, known) => {
                known.all_are_suspect();
                drop(pooled.detach());
            }
            Self::Own(own) => drop(own),
        }
    }
}

impl Connection {
    /// A connection of its own, outside of any pool.
    pub(crate) async fn connect(options: &PgConnectOptions, schema: &Schema, limit: Duration) -> sqlx::Result<Self> {
        let own = within(limit, async {
            let mut own = PgConnection::connect_with(options).await?;
            watch_for_client(&mut own).await?;
            Ok(own)
        });
        let own = own.await?;
        let inner = Some(Inner::Own(Box::new(own)));
        Ok(Self { inner, schema: schema.clone(), limit, interrupted: false, rollback_due: false })
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&mut self) -> sqlx::Result<Transaction<'_>> {
        Transaction::begin(MaybeOwned::Borrowed(self)).await
    }

    /// Begins a transaction and reads the clock, in one round trip.
    pub(crate) async fn begin_by_the_clock(&mut self) -> sqlx::Result<(Transaction<'_>, DateTime<Utc>)> {
        let mut begun = Transaction::perhaps_begun(MaybeOwned::Borrowed(self));
        let row = sqlx::raw_sql("BEGIN; SELECT clock_timestamp()").fetch_one(&mut *begun).await?;
        let now = row.try_get(0)?;
        Ok((begun, now))
    }

    /// Says goodbye. Of a pooled one that is the way back to its pool.
    pub(crate) async fn close(mut self) -> sqlx::Result<()> {
        match self.inner.take() {
            Some(Inner::Own(own)) => within(self.limit, own.close()).await,
            kept => {
                self.inner = kept;
                Ok(())
            }
        }
    }

    /// A query as it is sent.
    pub(crate) fn in_schema<E>(&self, query: E) -> InSchema<E> {
        self.schema.query(query)
    }

    /// The driver's connection, for one statement, made by [`Connection::in_schema`]; [`Connection::settle`] what came of it.
    pub(crate) async fn lend(&mut self) -> sqlx::Result<(&mut PgConnection, Duration)> {
        if self.rollback_due {
            self.roll_back().await?;
        }
        self.lend_as_it_is()
    }

    fn lend_as_it_is(&mut self) -> sqlx::Result<(&mut PgConnection, Duration)> {
        let Some(inner) = &mut self.inner else { return Err(silent()) };
        self.interrupted = true;
        Ok((inner.connection(), self.limit))
    }

    /// Keeps the connection if the statement has come to an end on it, and gives it up otherwise.
    pub(crate) fn settle<T>(&mut self, outcome: Result<sqlx::Result<T>, Elapsed>) -> sqlx::Result<T> {
        let outcome = outcome.unwrap_or_else(|_| Err(silent()));
        self.interrupted = false;
        if let Some(Inner::Pooled(_, known)) = &self.inner
            && outcome.as_ref().err().is_none_or(is_reported)
        {
            known.has_answered();
        }
        if outcome.as_ref().is_err_and(is_broken)
            && let Some(inner) = self.inner.take()
        {
            inner.abandon();
        }
        outcome
    }

    async fn roll_back(&mut self) -> sqlx::Result<()> {
        let (connection, limit) = self.lend_as_it_is()?;
        let outcome = timeout(limit, connection.execute("ROLLBACK")).await;
        self.settle(outcome)?;
        self.rollback_due = false;
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.interrupted && !self.rollback_due {
            return;
        }
        let Some(Inner::Pooled(mut pooled, known)) = self.inner.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (limit, rollback_due) = (self.limit, self.rollback_due);
        runtime.spawn(async move {
            // Either is answered behind what was left unanswered. The server warns of a ROLLBACK without a transaction.
            let answer =
                async { if rollback_due { pooled.execute("ROLLBACK").await.map(drop) } else { pooled.ping().await } };
            match within(limit, answer).await {
                Ok(()) => {}
                // It lives, and is in the middle of something still: no other is suspect for that.
                Err(error) if is_reported(&error) => drop(pooled.detach()),
                Err(_) => Inner::Pooled(pooled, known).abandon(),
            }
        });
    }
}

/// Makes the server look, while a statement runs or waits, whether its client is still there: what nobody waits for any more
/// ends, with the locks it holds. A server that cannot look (on macOS) ends it when its time is over.
async fn watch_for_client(connection: &mut PgConnection) -> sqlx::Result<()> {
    match connection.execute("SET client_connection_check_interval = '1s'").await {
        Err(sqlx::Error::Database(_)) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The server has ended the session, or the line is gone.
fn is_broken(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed)
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "postgres does not answer"))
}

/// Whether it gives a sign of life; an error that the server reports is one.
async fn lives(limit: Duration, connection: &mut PgConnection) -> bool {
    within(limit, connection.ping()).await.as_ref().err().is_none_or(is_reported)
}

/// `what`, if it comes within `limit`.
async fn within<T>(limit: Duration, what: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(limit, what).await.unwrap_or_else(|_| Err(silent()))
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    /// Reads all rows at once: whoever expects many reads a page at a time.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let rows = async move {
            let query = self.in_schema(query);
            let (connection, limit) = self.lend().await?;
            let outcome = timeout(limit, connection.fetch_many(query).try_collect::<Vec<_>>()).await;
            self.settle(outcome)
        };
        Box::pin(rows.map_ok(|rows| stream::iter(rows).map(Ok)).try_flatten_stream())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let query = self.in_schema(query);
            let (connection, limit) = self.lend().await?;
            let outcome = timeout(limit, connection.fetch_optional(query)).await;
            self.settle(outcome)
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let sql = self.schema.put_into(sql);
            let (connection, limit) = self.lend().await?;
            let outcome = timeout(limit, connection.prepare_with(sql, parameters)).await;
            self.settle(outcome)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<sqlx::Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let sql = self.schema.put_into(sql);
            let (connection, limit) = self.lend().await?;
            let outcome = timeout(limit, connection.describe(sql)).await;
            self.settle(outcome)
        })
    }
}

impl<'p> Executor<'p> for &Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        let rows = async move { pool.acquire().await?.fetch_many(query).try_collect::<Vec<_>>().await };
        Box::pin(rows.map_ok(|rows| stream::iter(rows).map(Ok)).try_flatten_stream())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<sqlx::Describe<Postgres>>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.describe(sql).await })
    }
}

/// A transaction; dropped without [`Transaction::commit`], it is rolled back.
#[derive(Debug)]
pub(crate) struct Transaction<'c> {
    connection: MaybeOwned<'c>,
    open: bool,
}

#[derive(Debug)]
enum MaybeOwned<'c> {
    Owned(Connection),
    Borrowed(&'c mut Connection),
}

impl<'c> Transaction<'c> {
    async fn begin(connection: MaybeOwned<'c>) -> sqlx::Result<Self> {
        let mut begun = Self::perhaps_begun(connection);
        begun.execute("BEGIN").await?;
        Ok(begun)
    }

    /// Dropped or failed while it begins, it may have begun.
    const fn perhaps_begun(connection: MaybeOwned<'c>) -> Self {
        Self { connection, open: true }
    }

    /// Commits. On an error of the line it is not known whether it was; refused by the server it was not, and is open still.
    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        (&mut *self.connection).execute("COMMIT").await?;
        self.open = false;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.connection.rollback_due |= self.open;
    }
}

impl Deref for MaybeOwned<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Owned(owned) => owned,
            Self::Borrowed(borrowed) => borrowed,
        }
    }
}

impl DerefMut for MaybeOwned<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match self {
            Self::Owned(owned) => owned,
            Self::Borrowed(borrowed) => borrowed,
        }
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::{Store, StoreOptions};

    /// So many that the server has begun with some, and with others not.
    const REFUSED: usize = 20;

    /// A COMMIT that the server refuses before it begins with it leaves the transaction open.
    #[tokio::test]
    async fn whoever_follows_a_commit_that_was_cancelled_begins_anew() -> anyhow::Result<()> {
        let database = carillon_testkit::Database::new().await?;
        // One connection, for all; asked for a sign of life before it is used again, and not.
        for nested_loops_only in [true, false] {
            let options = StoreOptions::new(database.url(), "cancelled");
            let store = Store::connect_lazily(&StoreOptions { connections_max: 1, nested_loops_only, ..options })?;
            let (mut refused, began) = (0, Instant::now());
            while refused < REFUSED {
                anyhow::ensure!(began.elapsed() < Duration::from_secs(120), "only {refused} were met");
                let mut over = pin!(database.cancel_statements("cancelled", Duration::from_secs(1), Duration::ZERO));
                while futures_util::poll!(over.as_mut()).is_pending() {
                    match store.pool.begin().await {
                        Ok(begun) => refused += usize::from(begun.commit().await.is_err()),
                        Err(error) => {
                            let code = error.as_database_error().and_then(|said| said.code());
                            assert_eq!(code.as_deref(), Some("57014"), "behind {refused} that were refused: {error}");
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
