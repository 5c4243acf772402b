//! What the tests of a dispatcher in this process begin with.

use std::time::Duration;

use carillon_dispatcher::Config;
use carillon_dispatcher::config::{DispatcherConfig, RetentionConfig};
use carillon_kit::config::{PostgresConfig, ProtocolConfig, RedisConfig, SecretUrl};
use carillon_testkit::Database;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A dispatcher on these servers, with batches of a hundred and streams of a thousand.
pub(crate) fn config(database: &Database, redis_url: &str, protocol: ProtocolConfig) -> Config {
    Config {
        postgres: PostgresConfig {
            url: SecretUrl::new(database.url()),
            schema: "carillon".into(),
            connections_max: 4,
            acquire_timeout: Duration::from_secs(5),
        },
        redis: RedisConfig { url: SecretUrl::new(redis_url), namespace: "carillon".into() },
        dispatcher: DispatcherConfig {
            shard: 0,
            lead: Duration::from_millis(200),
            batch_max: 100,
            stream_entries_max: 1_000,
            poll: Duration::from_millis(200),
            stream_unused: DAY,
            misfire_threshold: Duration::from_secs(600),
        },
        protocol,
        retention: RetentionConfig { executions: DAY * 90, logs: DAY * 14, jobs: None },
    }
}
