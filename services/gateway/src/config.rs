//! Settings of the gateway; documented in `config/default.toml`.

use std::net::SocketAddr;
use std::time::Duration;

use carillon_core::limits::QUEUES_MAX_MAX;
use carillon_kit::config::{Checks, POSTGRES, PostgresConfig, REDIS, RedisConfig, SHELL, Settings, duration};
pub use carillon_proto::json::EnumWords;
use carillon_store::Schema;
use serde::Deserialize;

/// The documented defaults, in layers.
pub const DEFAULTS: &[&str] = &[SHELL, POSTGRES, REDIS, include_str!("../config/default.toml")];

/// All settings of the gateway.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[json]`.
    pub json: JsonConfig,
    /// `[postgres]`.
    pub postgres: PostgresConfig,
    /// `[redis]`.
    pub redis: RedisConfig,
}

/// `[json]`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct JsonConfig {
    /// How enum values are answered.
    pub enum_words: EnumWords,
}

/// `[gateway]`.
#[derive(Clone, Debug, Deserialize)]
pub struct GatewayConfig {
    /// Where the API is served.
    pub listen: SocketAddr,
    /// Bytes of JSON text in a payload.
    pub payload_bytes_max: usize,
    /// Bytes of a JSON request.
    pub body_bytes_max: usize,
    /// Names of queues.
    pub queues_max: u32,
    /// Open connections.
    pub connections_max: usize,
    /// Requests at once.
    pub requests_max: usize,
    /// Origins whose pages may ask; `*` is any.
    pub cors_origins: Vec<String>,
    /// Time for Postgres.
    #[serde(deserialize_with = "duration")]
    pub statement_timeout: Duration,
}

impl Settings for Config {
    fn check(&self, checks: &mut Checks) {
        /// What tonic lets a gRPC message have by default; a JSON request becomes one.
        const BODY_BYTES_MAX: usize = 1024 * 1024;
        /// What the other fields of a request take beside its payload.
        const BESIDE_PAYLOAD: usize = 128 * 1024;
        self.postgres.check(checks);
        if let Err(rule) = Schema::new(&self.postgres.schema) {
            checks.refuse("postgres.schema", rule);
        }
        self.redis.check(checks);
        let own = &self.gateway;
        checks.that(own.payload_bytes_max >= 1024, "gateway.payload_bytes_max", "must be 1024 or more");
        checks.that(
            own.body_bytes_max >= own.payload_bytes_max.saturating_add(BESIDE_PAYLOAD),
            "gateway.body_bytes_max",
            format!("must exceed gateway.payload_bytes_max by {BESIDE_PAYLOAD} or more"),
        );
        checks.that(
            own.body_bytes_max <= BODY_BYTES_MAX,
            "gateway.body_bytes_max",
            format!("must be {BODY_BYTES_MAX} or less"),
        );
        checks.that(
            (1..=QUEUES_MAX_MAX).contains(&own.queues_max),
            "gateway.queues_max",
            format!("must be 1 to {QUEUES_MAX_MAX}, is {}", own.queues_max),
        );
        checks.that(own.connections_max > 0, "gateway.connections_max", "must be 1 or more, is 0");
        let is_origin =
            |origin: &String| origin == "*" || origin.starts_with("http://") || origin.starts_with("https://");
        checks.that(
            own.cors_origins.iter().all(|origin| is_origin(origin) && !origin.ends_with('/')),
            "gateway.cors_origins",
            "must be origins, as https://example.com, or *",
        );
        checks.that(own.requests_max > 0, "gateway.requests_max", "must be 1 or more, is 0");
        checks.that(
            own.statement_timeout > self.postgres.acquire_timeout,
            "gateway.statement_timeout",
            "must be longer than postgres.acquire_timeout",
        );
    }
}
