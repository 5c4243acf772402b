//! The executor: reads entries, runs their handlers at their instants, records what became of them. Any number of them run
//! side by side; none keeps anything that another could not take over.
//!
//! - [`handler`] is what a user of this crate implements; [`handlers`] come with it.
//! - `reader` reads (R8), `engine` owns what is in hand (R9, R23), `engine/doubt` and `engine/named` say what of it must be
//!   looked up first and `checks` does (R13, R8a), `engine/leave` says what goes to others and `hand_over` does (R18a),
//!   `runner` runs a handler, `recorder` writes and acknowledges (R10 to R12).
//! - `lease` keeps this executor live (R14, R21), `renewal` its entries (R14), `takeover` takes what others have left (R15).
//!
//! What it must not know: when a job fires next, and any SQL or Redis command.

mod beginning;
mod boottime;
mod checks;
pub mod config;
mod ended;
mod engine;
mod failure;
mod hand_over;
pub mod handler;
pub mod handlers;
mod in_hand;
mod incarnation;
mod journal;
mod lease;
mod message;
mod metadata;
mod metrics;
mod progress;
mod reader;
mod recorder;
mod renewal;
mod runner;
mod shared;
mod slots;
mod takeover;
mod threads;
mod to_record;
mod trial;

pub use config::Config;
pub use handler::{Context, Failure, Handler, Registry};

use std::sync::Arc;

use carillon_core::line::Line;
use carillon_kit::Process;
use carillon_store::{Schema, Store, StoreOptions};
use carillon_stream::notices::Topic;
use carillon_stream::{Redis, RedisOptions};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::engine::Engine;
use crate::incarnation::Incarnation;
use crate::lease::Lease;
use crate::progress::Progress;
use crate::reader::ReadingLoop;
use crate::recorder::{Recorder, Writer};
use crate::renewal::Renewal;
use crate::shared::Shared;
use crate::slots::Slots;
use crate::takeover::Takeover;
use crate::threads::HandlerThreads;
use crate::trial::Trial;

/// Runs an executor with the built-in handlers and those of `registry` until the process is told to stop.
///
/// # Errors
/// When a part cannot go on.
pub async fn run(config: Config, process: Process, register: impl FnOnce(Registry) -> Registry) -> anyhow::Result<()> {
    metrics::describe();
    let store = Store::connect_lazily(&store_options(&config, &process)?)?;
    let redis = Redis::connect_lazily(RedisOptions {
        namespace: config.redis.namespace.clone(),
        shard: config.executor.shard,
        ..RedisOptions::new(config.redis.url.expose())
    })?;
    let registry = register(handlers::built_in(&store, &redis, &config.executor.queues));
    let consumer = format!("{}-{}", pod_name(&config.executor.name), &Uuid::new_v4().simple().to_string()[..8]);
    journal::open(&consumer);
    runner::remember_panic_places();

    let ready = process.readiness().flag("executor");
    // It is ready while it reaches both.
    process.keep_ready("postgres", store.clone(), |store| async move { store.ping().await });
    process.keep_ready("redis", redis.clone(), |redis| async move { redis.ping().await });
    let clock = process
        .wait_for("postgres with the current schema (`carillon migrate`)", || async {
            store.reach().await?;
            anyhow::ensure!(store.is_migrated().await?, "the schema is older than this program");
            Ok(store.measure_clock().await?)
        })
        .await?;
    process.wait_for("redis", || redis.reach()).await?;

    let (queues, slots) = (config.executor.queues.clone(), config.executor.slots);
    let shared = Arc::new(Shared {
        lines: Line::all_of(&queues),
        incarnation: Incarnation::begin(Uuid::now_v7(), clock),
        slots: Slots::new(config.executor.bounds()),
        threads: HandlerThreads::start(to_usize(config.executor.handler_threads))?,
        window: config.protocol.window,
        lease: config.protocol.lease,
        grace: process.grace(),
        lost_max: config.executor.lost_max,
        trial: Trial::default(),
        handed_on: Notify::new(),
        registry,
        consumer,
        store,
        redis,
    });
    let parts = Parts::new(&shared, &config, &process, queues, slots)?;
    process
        .wait_for("postgres", || async {
            let worker = parts.lease.worker(shared.incarnation.contact().worker);
            match shared.store.worker_begin(&worker).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    // It may have been written: the next try begins another incarnation.
                    shared.incarnation.succeed(Uuid::now_v7());
                    Err(error)
                }
            }
        })
        .await?;
    ready.up();
    info!(
        consumer = shared.consumer,
        queues = config.executor.queues.join(","),
        slots,
        handlers = shared.registry.names().join(","),
        "serving"
    );
    parts.run(&process, Arc::clone(&shared)).await
}

/// The loops, wired.
struct Parts {
    reader: ReadingLoop,
    engine: Engine,
    recorder: Recorder,
    takeover: Takeover,
    renewal: Renewal,
    lease: Lease,
    progress: Progress,
}

impl Parts {
    fn new(
        shared: &Arc<Shared>,
        config: &Config,
        process: &Process,
        queues: Vec<String>,
        slots: u32,
    ) -> anyhow::Result<Self> {
        // Unbounded by type, bounded in fact: each message stands for a slot in use or an end that waits to be written.
        let (to_engine, from_all) = mpsc::unbounded_channel();
        let (to_recorder, from_engine) = mpsc::unbounded_channel();
        let shutdown = process.shutdown();
        let progress = Progress::default();
        let done = CancellationToken::new();
        let notices = shared.redis.subscribe(&[Topic::JobChanged, Topic::Cancel, Topic::Ended, Topic::HandedOn])?;
        Ok(Self {
            reader: ReadingLoop::new(Arc::clone(shared), to_engine.clone(), shutdown.clone())?,
            engine: Engine::new(Arc::clone(shared), from_all, to_engine.clone(), to_recorder, shutdown.clone()),
            recorder: Recorder::new(
                Writer::new(shared, recorder_store(config, process)?, progress.clone(), to_engine.clone()),
                to_usize(config.executor.flush_max),
                from_engine,
            ),
            takeover: Takeover { shared: Arc::clone(shared), engine: to_engine.clone(), notices, shutdown },
            renewal: Renewal { shared: Arc::clone(shared), engine: to_engine.clone(), done: done.clone() },
            lease: Lease {
                shared: Arc::clone(shared),
                store: lease_store(config, process)?,
                engine: to_engine,
                queues,
                slots: i32::try_from(slots).unwrap_or(i32::MAX),
                done,
            },
            progress,
        })
    }

    /// Runs until the stop, and through the drain: reader and takeover end first, then the engine, once all that has ended is recorded,
    /// with it the recorder, and last the lease, which hands back what is left (R18).
    async fn run(self, process: &Process, shared: Arc<Shared>) -> anyhow::Result<()> {
        let Self { reader, engine, recorder, takeover, renewal, lease, progress } = self;
        let done = lease.done.clone();
        let mut tasks = process.tasks();
        tasks.spawn("handler threads", Arc::clone(&shared.threads).watch(process.shutdown()));
        tasks.spawn("lease", lease.run());
        tasks.spawn("renewal", renewal.run());
        tasks.spawn("progress", progress.show(process.readiness().flag("recorder"), process.shutdown()));
        let (contact, slots) = (shared.incarnation.clone(), shared.slots.clone());
        tasks.spawn("contact", contact.show(shared.lease, process.readiness().flag("incarnation"), process.shutdown()));
        // Boxed: the future of the whole path is large, and there is one.
        tasks.spawn(
            "path",
            Box::pin(async move {
                let ended = CancellationToken::new();
                let path = async {
                    let (reading, taking, running) = tokio::join!(reader.run(), takeover.run(), engine.run());
                    ended.cancel();
                    reading.and(taking).and(running)
                };
                let flush = async {
                    tokio::select! {
                        biased;
                        outcome = recorder.run() => outcome,
                        // The engine has waited for what has ended, as long as there was time (R18).
                        () = ended.cancelled() => {
                            let unrecorded = slots.unrecorded();
                            if unrecorded > 0 {
                                warn!(unrecorded, "not all that has ended could be recorded: it runs again elsewhere");
                            }
                            Ok(())
                        }
                    }
                };
                let (path, flush) = tokio::join!(path, flush);
                // The flush comes before the good-bye; each has a time of its own.
                done.cancel();
                path.and(flush)
            }),
        );
        let outcome = tasks.run().await;
        shared.threads.stop();
        outcome
    }
}

fn store_options(config: &Config, process: &Process) -> anyhow::Result<StoreOptions> {
    Ok(StoreOptions {
        schema: Schema::new(&config.postgres.schema).map_err(|rule| anyhow::anyhow!("postgres.schema {rule}"))?,
        connections_max: config.postgres.connections_max,
        acquire_timeout: config.postgres.acquire_timeout,
        nested_loops_only: true,
        ..StoreOptions::new(config.postgres.url.expose(), process.name())
    })
}

/// For the flushes, of which there is one at a time; the second takes the place of one that is being given up. A flush that
/// finds a lock leaves time to show RUNNING, without it, before W is over (R10).
fn recorder_store(config: &Config, process: &Process) -> anyhow::Result<Store> {
    let options = store_options(config, process)?;
    let lock_max = options.lock_max.min(config.protocol.window / 4);
    Ok(Store::connect_lazily(&StoreOptions { connections_max: 2, lock_max, ..options })?)
}

/// For the beat. It gives up on a statement long before the lease is over.
fn lease_store(config: &Config, process: &Process) -> anyhow::Result<Store> {
    let quarter = config.protocol.lease / 4;
    let options = store_options(config, process)?;
    let options = StoreOptions {
        connections_max: 2,
        acquire_timeout: quarter,
        statement_max: options.statement_max.min(quarter / 2),
        lock_max: options.lock_max.min(quarter / 4),
        ..options
    };
    Ok(Store::connect_lazily(&options)?)
}

fn pod_name(configured: &str) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "executor".into())
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
