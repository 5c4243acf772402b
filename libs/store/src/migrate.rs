//! Brings the schema to this version. Migrations only move forward and are safe while older processes still run.

use sqlx::Connection as _;
use sqlx::migrate::Migrator;

use crate::{Result, Store, partitions};

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Versions applied by this run, with their names.
    pub applied: Vec<(i64, String)>,
    /// The newest version known to this program.
    pub newest: i64,
}

impl Store {
    /// Applies what is missing, one transaction each, and makes the partitions of the days to come. Several at once wait
    /// for each other on an advisory lock of sqlx.
    ///
    /// # Errors
    /// If Postgres is unavailable, or holds a schema newer or other than this program knows.
    pub async fn migrate(&self) -> Result<Migrated> {
        let before = self.applied_versions().await?;
        // On a connection of its own: an index of a large table takes its time, and so may another who migrates.
        let options = self.connect.as_ref().clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        let mut connection = sqlx::PgConnection::connect_with(&options).await?;
        MIGRATOR.run(&mut connection).await.map_err(|error| crate::Error::from(sqlx::Error::from(error)))?;
        connection.close().await?;
        partitions::make_ahead(self).await?;
        let applied = MIGRATOR
            .iter()
            .filter(|migration| !before.contains(&migration.version))
            .map(|migration| (migration.version, migration.description.to_string()))
            .collect();
        Ok(Migrated { applied, newest: newest_version() })
    }

    /// Whether every migration that this program knows has been applied.
    ///
    /// # Errors
    /// If Postgres is unavailable.
    pub async fn is_migrated(&self) -> Result<bool> {
        Ok(self.applied_versions().await?.contains(&newest_version()))
    }

    async fn applied_versions(&self) -> Result<Vec<i64>> {
        let exists: bool =
            sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&self.pool).await?;
        if !exists {
            return Ok(Vec::new());
        }
        Ok(sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(&self.pool).await?)
    }
}

/// The newest version known to this program.
pub fn newest_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}
