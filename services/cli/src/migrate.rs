//! `carillon migrate`: brings the schema of a database to this version. One job of a deployment runs it, not each process.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use carillon_kit::config::{LogConfig, LogFormat, SecretUrl};
use carillon_store::{Store, StoreOptions};
use tokio_util::sync::CancellationToken;

use crate::BadArguments;

/// Bring the schema of a Postgres database to the version of this program.
///
/// Waits for a Postgres that is not there yet. Applies what is missing, each migration in a transaction, and says which;
/// several at once wait for each other. Exit codes: 0 done (also if there was nothing to do), 1 failed, 64 bad arguments,
/// 130 interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the database is: postgres://user:password@host:port/database. DATABASE_URL is used if this is not given.
    #[arg(long, value_name = "URL", env = "CARILLON_POSTGRES_URL", hide_env_values = true)]
    postgres_url: Option<String>,
    /// How long to wait for Postgres, in seconds. Without it: until it is there.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let given = arguments.postgres_url.filter(|url| !url.is_empty());
    let url = given.or_else(|| std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()));
    let Some(url) = url else {
        bail!(BadArguments("which database? Set CARILLON_POSTGRES_URL, or give --postgres-url".into()))
    };
    log_to_stdout();
    let shutdown = CancellationToken::new();
    carillon_kit::shutdown::listen(shutdown.clone())?;
    let store = connect(&url, &shutdown, arguments.wait.map(Duration::from_secs)).await?;
    anstream::println!("migrating {}", SecretUrl::new(&url));
    let migrated = store.migrate().await.context("cannot migrate")?;
    for (version, name) in &migrated.applied {
        anstream::println!("applied  {version:04} {name}");
    }
    if migrated.applied.is_empty() {
        anstream::println!("nothing to do, the schema is at version {:04}", migrated.newest);
    } else {
        anstream::println!("the schema is at version {:04}", migrated.newest);
    }
    store.close().await;
    Ok(())
}

/// A store that is not connected yet.
pub(crate) fn store(url: &str) -> Result<Store> {
    let shown = SecretUrl::new(url);
    shown.check_postgres().map_err(|rule| BadArguments(format!("CARILLON_POSTGRES_URL (or --postgres-url) {rule}")))?;
    let mut options = StoreOptions::new(url, "carillon");
    options.connections_max = 2;
    Store::connect_lazily(&options).with_context(|| format!("cannot read the URL {shown}"))
}

/// A store that answers. Waits for it, saying so.
async fn connect(url: &str, shutdown: &CancellationToken, limit: Option<Duration>) -> Result<Store> {
    let store = store(url)?;
    let what = format!("Postgres at {}", SecretUrl::new(url));
    let there = carillon_kit::wait_for(&what, shutdown, || async { store.reach().await.map_err(anyhow::Error::new) });
    match limit {
        Some(limit) => match tokio::time::timeout(limit, there).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!("{what} did not answer within {limit:?}"),
        },
        None => there.await?,
    }
    Ok(store)
}

/// Lines of the waiting helper reach the terminal.
pub(crate) fn log_to_stdout() {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,carillon_kit=info".into());
    carillon_kit::telemetry::install(&LogConfig { level, format: LogFormat::Human });
}
