//! The gateway: the API of Carillon over gRPC, gRPC-Web and JSON on one port.
//!
//! It decides nothing about when and where something runs. A request is checked, becomes statements in Postgres (one
//! transaction a call), and word goes out through Redis. Any number of gateways run side by side and share nothing.
//!
//! - Postgres away: it starts all the same and answers UNAVAILABLE / 503 with a hint when to try again; `/readyz` says so.
//! - Redis away: everything works; dispatcher and executors find changes by polling, so they take effect later.
//! - Killed: a request without an answer may or may not have been done; `request_id` makes asking again safe.
//!
//! `grpc/` holds the services, `json/` derives HTTP and JSON from the descriptors, `server.rs` puts both on the port,
//! `error_response.rs` is the one table of codes.

#![warn(missing_docs)]

mod admission;
mod backend;
mod calls;
pub mod config;
mod counts;
mod deadline;
mod error_response;
mod grpc;
mod headers;
mod health;
mod json;
mod observe;
mod openapi;
mod opening;
mod places;
mod reason;
mod server;
mod sizes;
mod spoken;
mod transport;
mod unpack;
mod values;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use carillon_core::limits::JOBS_AT_ONCE_BYTES_MAX;
use carillon_kit::Process;
use carillon_store::{Schema, Store, StoreOptions};
use carillon_stream::{Redis, RedisOptions};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tracing::info;

use admission::Admission;
use backend::Backend;
pub use config::Config;
use json::Transcoder;
pub use json::describe_routes;
use server::Front;

/// What closing the connections may take.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Serves the API on `listener` until the process is stopped; returns after requests in flight have ended.
///
/// # Errors
/// If a URL cannot be read, the descriptors cannot be turned into routes, or a part ends early.
pub async fn run(config: Config, process: Process, listener: TcpListener) -> anyhow::Result<()> {
    info!("time zones from {}", carillon_core::schedule::database_description());
    observe::describe();
    let own = config.gateway;
    let store = Store::connect_lazily(&StoreOptions {
        schema: Schema::new(&config.postgres.schema).map_err(|rule| anyhow!("postgres.schema {rule}"))?,
        connections_max: config.postgres.connections_max,
        acquire_timeout: config.postgres.acquire_timeout,
        ..StoreOptions::new(config.postgres.url.expose(), process.name())
    })
    .context("postgres.url cannot be read")?;
    let redis = Redis::connect_lazily(RedisOptions {
        namespace: config.redis.namespace,
        ..RedisOptions::new(config.redis.url.expose())
    })
    .context("redis.url cannot be read")?;

    let (reporter, health) = tonic_health::server::health_reporter();
    let watch = health::Watch::new(process.clone(), store.clone(), reporter);
    let backend =
        Backend::new(store.clone(), redis.clone(), own.statement_timeout, own.payload_bytes_max, own.queues_max);
    let backend = Arc::new(backend);
    let admission = Arc::new(Admission::new(own.requests_max));
    // The same services twice, since what a JSON body becomes may be larger than it was.
    let called = grpc::services(&backend, sizes::MESSAGE_OF_JSON_BYTES_MAX).prepare();
    let json = Transcoder::new(called, own.body_bytes_max, config.json.enum_words, Arc::clone(&admission));
    let json = json.map_err(|why| anyhow!(why))?;
    let services = with_reflection(grpc::services(&backend, JOBS_AT_ONCE_BYTES_MAX))?.add_service(health);
    let front = Front::new(services, json, admission);

    let address = listener.local_addr().context("the listener has no address")?;
    info!(gateway.listen = %address, "serving gRPC and JSON");
    let mut tasks = process.tasks();
    tasks.spawn("health", watch.run());
    let shutdown = process.shutdown();
    tasks.spawn("server", async move {
        server::serve(listener, front, own.connections_max, &own.cors_origins, shutdown).await;
        Ok(())
    });
    let outcome = tasks.run().await;
    // The answers are out: a goodbye to a neighbour that does not answer is not worth waiting for.
    let goodbyes = async { tokio::join!(redis.close(), store.close()) };
    let _ = tokio::time::timeout(GOODBYE_MAX, goodbyes).await;
    outcome
}

/// Adds the reflection service, which shows the API and the health service; in its older form too, which Python's client speaks.
fn with_reflection(services: Routes) -> anyhow::Result<Routes> {
    let shown = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(carillon_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (newer, older) = (shown().build_v1(), shown().build_v1alpha());
    let unshown = "the descriptors cannot be shown by reflection";
    Ok(services.add_service(newer.context(unshown)?).add_service(older.context(unshown)?))
}
