//! The settings of a dispatcher; `config/default.toml` documents each.

use std::time::Duration;

use carillon_core::shard::SHARDS;
use carillon_kit::config::{Checks, PostgresConfig, ProtocolConfig, RedisConfig, Settings, duration};
use carillon_store::Schema;
use carillon_store::retention::Retention;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer};

/// A repeated `request_id` must still find what it led to.
const KEPT_MIN: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// How long what is over is kept.
    pub retention: RetentionConfig,
}

/// `[retention]`.
#[derive(Clone, Debug, Deserialize)]
pub struct RetentionConfig {
    /// Executions and their attempts.
    #[serde(deserialize_with = "duration")]
    pub executions: Duration,
    /// Log lines.
    #[serde(deserialize_with = "duration")]
    pub logs: Duration,
    /// Jobs that were completed or deleted; `None`: for ever.
    #[serde(deserialize_with = "duration_or_off")]
    pub jobs: Option<Duration>,
}

impl RetentionConfig {
    fn check(&self, checks: &mut Checks) {
        let repeats = "must be at least 7d: a repeated request_id must still find what it led to";
        checks.that(self.executions >= KEPT_MIN, "retention.executions", repeats);
        checks.that(self.jobs.is_none_or(|jobs| jobs >= KEPT_MIN), "retention.jobs", repeats);
        checks.that(
            self.logs >= DAY && self.logs <= self.executions,
            "retention.logs",
            "must be at least 1d and at most retention.executions",
        );
    }
}

impl From<&RetentionConfig> for Retention {
    fn from(config: &RetentionConfig) -> Self {
        Self { executions: config.executions, logs: config.logs, jobs: config.jobs }
    }
}

fn duration_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let written = String::deserialize(deserializer)?;
    if written.trim() == "off" {
        return Ok(None);
    }
    duration(written.into_deserializer()).map(Some)
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
    /// A stream that is empty leaves when nothing was appended to it for so long and nobody serves it.
    #[serde(deserialize_with = "duration")]
    pub stream_unused: Duration,
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
        if let Err(rule) = Schema::new(&self.postgres.schema) {
            checks.refuse("postgres.schema", rule);
        }
        self.redis.check(checks);
        self.protocol.check(checks);
        self.retention.check(checks);
        let own = &self.dispatcher;
        checks.that(
            u16::try_from(own.shard).is_ok_and(|shard| shard < SHARDS),
            "dispatcher.shard",
            "must be 0: there is one",
        );
        checks.that(
            own.lead <= self.protocol.window / 4,
            "dispatcher.lead",
            "must be at most a quarter of protocol.window",
        );
        checks.that((1..=5_000).contains(&own.batch_max), "dispatcher.batch_max", "must be 1 to 5000");
        checks.that(
            (own.batch_max..=1_000_000).contains(&own.stream_entries_max),
            "dispatcher.stream_entries_max",
            "must be at least dispatcher.batch_max, and at most 1000000",
        );
        checks.that(
            own.stream_unused >= Duration::from_secs(60 * 60) && own.stream_unused <= DAY * 365,
            "dispatcher.stream_unused",
            "must be 1h to 365d",
        );
        checks.that(
            own.poll >= Duration::from_millis(100) && own.poll <= Duration::from_secs(60),
            "dispatcher.poll",
            "must be 100ms to 60s",
        );
    }
}

#[cfg(test)]
mod tests {
    use carillon_kit::config::{self, Problems, load};

    use super::*;

    fn loaded(given: &[(&str, &str)]) -> Result<Config, Problems> {
        let service = carillon_kit::Service {
            name: "carillon-dispatcher",
            about: "",
            version: "",
            defaults: &[config::SHELL, config::POSTGRES, config::REDIS, include_str!("../config/default.toml")],
        };
        let servers =
            [("CARILLON_POSTGRES_URL", "postgres://u@localhost/d"), ("CARILLON_REDIS_URL", "redis://localhost")];
        let given = servers.iter().chain(given).map(|(name, value)| ((*name).into(), (*value).into()));
        Ok(load(&service, None, given)?.config)
    }

    #[test]
    fn a_schema_is_called_by_a_plain_name() {
        assert_eq!(loaded(&[]).unwrap().postgres.schema, "carillon");
        assert_eq!(loaded(&[("CARILLON_POSTGRES_SCHEMA", "bells")]).unwrap().postgres.schema, "bells");
        for refused in ["Bells", "a\"b", "pg_bells"] {
            let problems = loaded(&[("CARILLON_POSTGRES_SCHEMA", refused)]).unwrap_err().to_string();
            assert!(problems.contains("postgres.schema: must"), "{problems}");
        }
    }

    #[test]
    fn history_is_kept_for_ninety_days_its_lines_for_fourteen_and_jobs_for_ever() {
        let kept = loaded(&[]).unwrap().retention;
        assert_eq!((kept.executions, kept.logs, kept.jobs), (DAY * 90, DAY * 14, None));
        let kept = loaded(&[("CARILLON_RETENTION_JOBS", "30d"), ("CARILLON_RETENTION_EXECUTIONS", "14d")]).unwrap();
        assert_eq!(kept.retention.jobs, Some(DAY * 30));
    }

    #[test]
    fn what_a_repeated_request_must_still_find_is_kept_for_seven_days() {
        for (name, setting) in
            [("CARILLON_RETENTION_EXECUTIONS", "retention.executions"), ("CARILLON_RETENTION_JOBS", "retention.jobs")]
        {
            let problems = loaded(&[(name, "6d"), ("CARILLON_RETENTION_LOGS", "1d")]).unwrap_err().to_string();
            assert!(problems.contains(setting) && problems.contains("at least 7d"), "{problems}");
            assert!(loaded(&[(name, "7d"), ("CARILLON_RETENTION_LOGS", "1d")]).is_ok(), "{name}");
        }
        for logs in ["23h", "91d"] {
            let problems = loaded(&[("CARILLON_RETENTION_LOGS", logs)]).unwrap_err().to_string();
            assert!(problems.contains("retention.logs"), "{problems}");
        }
        assert!(loaded(&[("CARILLON_RETENTION_JOBS", "never")]).is_err());
    }
}
