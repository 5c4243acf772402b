//! The dispatcher: one replica leads its shard and makes stream entries of what is due, the others stand by.
//!
//! - [`election`] stands by until the shard's lock is free, then leads until its session is lost.
//! - [`leader`] is a term: certify Redis ([`certify`]), send what the last leader left, then claim ([`claim`]), publish and settle;
//!   `rate` is how fast it claims, `glance` when it reads again what is near.
//! - `foresight` searches timetables, beside the claims: no claim does; `read_ahead` reads what jobs mean that fire soon, for the
//!   first time.
//! - [`decide`] says what a claim leads to (pure), [`outgoing`] writes the entries, `streams` knows
//!   what room there is for them.
//! - [`reconcile`] publishes again what Redis has lost; [`withdraw`] ends what was cancelled and nobody reads; `attention`
//!   completes jobs; [`chores`] keep the house, [`retention`] keeps the days; `zones` follows time zones whose rules change.
//!
//! What it must not know: how a handler runs, and any SQL or Redis command.

mod attention;
pub mod certify;
pub mod chores;
pub mod claim;
pub mod config;
pub mod decide;
pub mod definitions;
pub mod election;
mod foresight;
mod glance;
pub mod leader;
mod metrics;
mod misplaced;
pub mod outgoing;
mod patience;
mod publish;
mod rate;
mod read_ahead;
pub mod reconcile;
pub mod retention;
mod streams;
pub mod withdraw;
mod zones;

pub use config::Config;

use std::time::Duration;

use carillon_kit::Process;
use carillon_store::leader_session::refuse_pooler;
use carillon_store::{Error, Schema, Store, StoreOptions};
use carillon_stream::{Redis, RedisOptions};
use tokio::sync::watch;
use tracing::info;

/// Stands by and leads until the process is told to stop.
///
/// # Errors
/// When a part cannot go on.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    metrics::describe();
    let options = StoreOptions {
        schema: Schema::new(&config.postgres.schema).map_err(|rule| anyhow::anyhow!("postgres.schema {rule}"))?,
        connections_max: config.postgres.connections_max,
        acquire_timeout: config.postgres.acquire_timeout,
        ..StoreOptions::new(config.postgres.url.expose(), process.name())
    };
    info!("time zones from {}", carillon_core::schedule::database_description());
    let store = Store::connect_lazily(&options)?;
    // Its statements read whole days: they have a connection, and more time, of their own.
    let upkeep = StoreOptions { connections_max: 1, statement_max: retention::STATEMENT_MAX, ..options.clone() };
    let upkeep = Store::connect_lazily(&upkeep)?;
    let kept = (&config.retention).into();
    let redis = Redis::connect_lazily(RedisOptions {
        namespace: config.redis.namespace.clone(),
        shard: config.dispatcher.shard,
        ..RedisOptions::new(config.redis.url.expose())
    })?;
    let schema = process.readiness().flag("schema");
    schema.down("waiting for the current one (`carillon migrate`)");
    // Leading or standing by, it is ready while it reaches both.
    process.keep_ready("postgres", store.clone(), |store| async move { store.ping().await });
    process.keep_ready("redis", redis.clone(), |redis| async move { redis.ping().await });
    // First of all: anything else that is asked through such a pooler fails now and then, and does not say why.
    let refused = process.wait_for("postgres", || async {
        match refuse_pooler(&options).await {
            Err(error @ Error::FailedPrecondition { .. }) => Ok(Some(error)),
            outcome => outcome.map(|()| None),
        }
    });
    if let Some(error) = refused.await? {
        return Err(error.into());
    }
    process.wait_for("postgres with the current schema (`carillon migrate`)", || migrated(&store)).await?;
    schema.up();

    let mut tasks = process.tasks();
    let shutdown = process.shutdown();
    let withdrawal = withdraw::Withdrawal::new(&config, store.clone(), redis.clone(), shutdown.clone())?;
    let unread = withdrawal.handle();
    let (leads, led) = watch::channel(false);
    let stands = process.readiness().flag("election");
    let election =
        election::Election::new(config, options, store.clone(), redis.clone(), unread, leads, stands, shutdown.clone());
    tasks.spawn("election", election.run());
    tasks.spawn("attention", attention::run(store.clone(), redis.clone(), shutdown.clone()));
    tasks.spawn("withdrawal", withdrawal.run());
    tasks.spawn("zones", zones::run(store.clone(), redis.clone(), led, shutdown.clone()));
    tasks.spawn("chores", chores::run(store, redis, shutdown.clone()));
    tasks.spawn("retention", retention::run(upkeep, kept, shutdown));
    tasks.run().await
}

/// Whether the schema is there.
async fn migrated(store: &Store) -> anyhow::Result<()> {
    store.reach().await?;
    if store.is_migrated().await? {
        return Ok(());
    }
    anyhow::bail!("the schema is older than this program");
}

/// How often a leader says something on its session, and looks round (R2, R3).
pub(crate) const TICK: Duration = Duration::from_secs(1);
