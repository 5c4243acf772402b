//! The connection pool of one process.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

use crate::Result;

/// How a process connects.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// `postgres://user:password@host:port/database?sslmode=…`
    pub url: String,
    /// Shown by Postgres in `pg_stat_activity`.
    pub application_name: String,
    /// Connections at most.
    pub connections_max: u32,
    /// How long a caller waits for a connection before it is told that Postgres is unavailable.
    pub acquire_timeout: Duration,
    /// For connections that only run the hot batch statements: plans are made once and always walk from the batch into the
    /// primary keys. Left to itself the planner, seeing a young and empty partition, caches a sequential scan, and keeps it
    /// while the partition grows.
    pub nested_loops_only: bool,
}

impl StoreOptions {
    /// The defaults for `url`: 8 connections, 5 s to wait for one.
    pub fn new(url: impl Into<String>, application_name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            application_name: application_name.into(),
            connections_max: 8,
            acquire_timeout: Duration::from_secs(5),
            nested_loops_only: false,
        }
    }

    /// What sqlx needs to connect.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions> {
        let mut options = PgConnectOptions::from_str(&self.url)?
            .application_name(&self.application_name)
            .statement_cache_capacity(200);
        if self.nested_loops_only {
            options = options.options([
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("enable_seqscan", "off"),
                ("plan_cache_mode", "force_generic_plan"),
                ("jit", "off"),
            ]);
        }
        Ok(options)
    }
}

/// A handle on Postgres, cheap to clone. Statements are in the modules of this crate.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) pool: PgPool,
    connect: Box<PgConnectOptions>,
}

impl Store {
    /// A handle that connects when it is first used: a Postgres that is not there yet is no error here.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub fn connect_lazily(options: &StoreOptions) -> Result<Self> {
        let connect = options.connect_options()?;
        let pool = PgPoolOptions::new()
            .max_connections(options.connections_max)
            .acquire_timeout(options.acquire_timeout)
            // A hot flush need not ask first whether the connection lives: if it does not, the flush fails and is run again.
            .test_before_acquire(!options.nested_loops_only)
            .connect_lazy_with(connect.clone());
        Ok(Self { pool, connect: Box::new(connect) })
    }

    /// Makes one connection of its own, for whoever waits for Postgres: unlike the pool, which only says that it timed out,
    /// this says why there is none.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] with the cause.
    pub async fn reach(&self) -> Result<()> {
        let connection = PgConnection::connect_with(&self.connect).await?;
        Ok(connection.close().await?)
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
