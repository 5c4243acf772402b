//! The settings of a dispatcher; `config/default.toml` documents each.

use std::time::Duration;

use carillon_kit::config::{Checks, PostgresConfig, ProtocolConfig, RedisConfig, Settings, duration};
use serde::Deserialize;

/// All settings.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Where Postgres is.
    pub postgres: PostgresConfig,
    /// Where Redis is.
    pub redis: RedisConfig,
    /// The dispatcher's own.
    pub dispatcher: DispatcherConfig,
    /// What all services must agree on.
    pub protocol: ProtocolConfig,
}

/// The dispatcher's own settings.
#[derive(Clone, Debug, Deserialize)]
pub struct DispatcherConfig {
    /// The shard to lead.
    pub shard: i16,
    /// R23: claim so long before the instant.
    #[serde(deserialize_with = "duration")]
    pub lead: Duration,
    /// Fires in one batch, at most.
    pub batch_max: u32,
    /// Entries in one stream, at most.
    pub stream_entries_max: u32,
    /// The safety net under the wake-ups.
    #[serde(deserialize_with = "duration")]
    pub poll: Duration,
    /// An instant later than this counts as missed.
    #[serde(deserialize_with = "duration")]
    pub misfire_threshold: Duration,
}

impl Settings for Config {
    fn check(&self, checks: &mut Checks) {
        self.postgres.check(checks);
        self.redis.check(checks);
        self.protocol.check(checks);
        let own = &self.dispatcher;
        checks.that(own.shard >= 0, "dispatcher.shard", "must be 0 or more");
        checks.that(
            own.lead <= self.protocol.window / 4,
            "dispatcher.lead",
            "must be at most a quarter of protocol.window",
        );
        checks.that((1..=10_000).contains(&own.batch_max), "dispatcher.batch_max", "must be 1 to 10000");
        checks.that(
            (own.batch_max..=1_000_000).contains(&own.stream_entries_max),
            "dispatcher.stream_entries_max",
            "must be at least dispatcher.batch_max, and at most 1000000",
        );
        checks.that(
            own.poll >= Duration::from_millis(100) && own.poll <= Duration::from_secs(60),
            "dispatcher.poll",
            "must be 100ms to 60s",
        );
    }
}
