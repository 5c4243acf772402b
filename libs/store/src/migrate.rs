//! Brings the schema to this version. Migrations only move forward and are safe while older processes still run.
//!
//! Which of them were applied is noted in the schema itself, so two installations in one database know nothing of each other.

use sqlx::migrate::{Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqlSafeStr as _, SqlStr};

use crate::{Result, Schema, Store, partitions};

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// What sqlx notes in which of them were applied.
const APPLIED: &str = "carillon._sqlx_migrations";

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Versions applied by this run, with their names.
    pub applied: Vec<(i64, String)>,
    /// The newest version known to this program.
    pub newest: i64,
}

impl Store {
    /// Makes the schema if it is missing, applies what is missing in it, one transaction each, and makes the partitions of the
    /// days to come. Several at once wait for each other on an advisory lock of the schema's own.
    ///
    /// # Errors
    /// If Postgres is unavailable, or holds a schema newer or other than this program knows.
    pub async fn migrate(&self) -> Result<Migrated> {
        let before = self.applied_versions().await?;
        // On a connection of its own: an index of a large table takes its time, and so may another who migrates.
        let options = self.connect.as_ref().clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        let mut connection = PgConnection::connect_with(&options).await?;
        let schema = self.pool.schema();
        lock(schema, &mut connection).await?;
        make_schema(schema, &mut connection).await?;
        let ran = migrator(schema).run(&mut connection).await;
        ran.map_err(|error| crate::Error::from(sqlx::Error::from(error)))?;
        // And so lets go of the lock.
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
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('carillon._sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.pool)
            .await?;
        if !exists {
            return Ok(Vec::new());
        }
        Ok(sqlx::query_scalar("SELECT version FROM carillon._sqlx_migrations WHERE success")
            .fetch_all(&self.pool)
            .await?)
    }
}

async fn lock(schema: &Schema, connection: &mut PgConnection) -> Result<()> {
    let lock = "SELECT pg_advisory_lock(hashtextextended('carillon.migrations', 0))";
    sqlx::query(schema.put_into(lock.into_sql_str())).execute(connection).await?;
    Ok(())
}

/// Not by `IF NOT EXISTS`, which asks for the right to make schemas even where there is nothing to make: an administrator may
/// have made it for a user who has no such right.
async fn make_schema(schema: &Schema, connection: &mut PgConnection) -> Result<()> {
    let exists = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)");
    if !exists.bind(schema.name()).fetch_one(&mut *connection).await? {
        // The name was checked.
        let make = format!("CREATE SCHEMA \"{}\"", schema.name());
        sqlx::raw_sql(AssertSqlSafe(make)).execute(connection).await?;
    }
    Ok(())
}

/// The migrations as they are run in `schema`. Their checksums are those of the files, whatever it is called.
fn migrator(schema: &Schema) -> Migrator {
    let put = |migration: &Migration| Migration { sql: schema.put_into(migration.sql.clone()), ..migration.clone() };
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().map(put).collect());
    migrator.dangerous_set_table_name(schema.put_into(SqlStr::from_static(APPLIED)).as_str().to_owned());
    migrator.set_locking(false);
    migrator
}

/// The newest version known to this program.
pub fn newest_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}
