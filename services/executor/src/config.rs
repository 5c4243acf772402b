//! The settings of an executor; `config/default.toml` documents each.

use carillon_core::shard::SHARDS;
use carillon_kit::config::{Checks, PostgresConfig, ProtocolConfig, RedisConfig, Settings};
use carillon_store::Schema;
use serde::Deserialize;

use crate::slots::Bounds;

/// All settings.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Where Postgres is.
    pub postgres: PostgresConfig,
    /// Where Redis is.
    pub redis: RedisConfig,
    /// The executor's own.
    pub executor: ExecutorConfig,
    /// What all services must agree on.
    pub protocol: ProtocolConfig,
}

/// The executor's own settings.
#[derive(Clone, Debug, Deserialize)]
pub struct ExecutorConfig {
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// Executions held or running at once.
    pub slots: u32,
    /// Name in the consumer groups; empty = the host name.
    pub name: String,
    /// Threads that run handlers.
    pub handler_threads: u32,
    /// Ended attempts in one transaction, at most.
    pub flush_max: u32,
    /// Ended attempts waiting to be written, at most.
    pub unrecorded_max: u32,
    /// Bytes of results, errors and log lines that wait to be written, at most.
    pub unrecorded_bytes_max: u32,
    /// Bytes of what is held or running (payloads), at most; 4096 for each slot at least.
    pub in_hand_bytes_max: u32,
    /// R13: an execution that killed this many executors fails.
    pub lost_max: i16,
    /// The shard whose streams are read.
    pub shard: i16,
}

/// Four times what an entry weighs without its payload (`in_hand::weight_of`).
const IN_HAND_BYTES_OF_A_SLOT: u32 = 4_096;

impl ExecutorConfig {
    /// How much may be in hand.
    pub(crate) fn bounds(&self) -> Bounds {
        let to_usize = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Bounds {
            slots: to_usize(self.slots),
            unrecorded_max: to_usize(self.unrecorded_max),
            unrecorded_bytes_max: to_usize(self.unrecorded_bytes_max),
            in_hand_bytes_max: to_usize(self.in_hand_bytes_max),
        }
    }
}

impl Settings for Config {
    fn check(&self, checks: &mut Checks) {
        self.postgres.check(checks);
        if let Err(rule) = Schema::new(&self.postgres.schema) {
            checks.refuse("postgres.schema", rule);
        }
        self.redis.check(checks);
        self.protocol.check(checks);
        let own = &self.executor;
        checks.that(!own.queues.is_empty() && own.queues.len() <= 100, "executor.queues", "must name 1 to 100 queues");
        for queue in &own.queues {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
            let right = (1..=63).contains(&queue.len()) && queue.chars().all(fits);
            checks.that(right, "executor.queues", format!("\"{queue}\" must be 1 to 63 of a-z, 0-9, '_', '.', '-'"));
        }
        checks.that((1..=100_000).contains(&own.slots), "executor.slots", "must be 1 to 100000");
        checks.that((1..=1_000).contains(&own.handler_threads), "executor.handler_threads", "must be 1 to 1000");
        checks.that((1..=10_000).contains(&own.flush_max), "executor.flush_max", "must be 1 to 10000");
        checks.that(
            own.unrecorded_max >= own.flush_max,
            "executor.unrecorded_max",
            "must be at least executor.flush_max",
        );
        checks.that(own.unrecorded_bytes_max >= 1 << 20, "executor.unrecorded_bytes_max", "must be at least 1048576");
        checks.that(own.in_hand_bytes_max >= 1 << 20, "executor.in_hand_bytes_max", "must be at least 1048576");
        // Half of it is for payloads that are fetched, of which none would be if all slots held entries without theirs.
        checks.that(
            own.in_hand_bytes_max / IN_HAND_BYTES_OF_A_SLOT >= own.slots,
            "executor.in_hand_bytes_max",
            format!("must be at least {IN_HAND_BYTES_OF_A_SLOT} for each of executor.slots"),
        );
        checks.that(own.lost_max >= 1, "executor.lost_max", "must be at least 1");
        checks.that(
            u16::try_from(own.shard).is_ok_and(|shard| shard < SHARDS),
            "executor.shard",
            "must be 0: there is one",
        );
    }
}
