//! `health:check`: really asks Postgres and Redis, looks at the streams of the queues served here, and returns what it found.

use std::time::Instant;

use async_trait::async_trait;
use carillon_core::line::Line;
use carillon_store::Store;
use carillon_stream::Redis;
use serde_json::{Map, Value, json};

use crate::handler::{Context, Failure, Handler};

pub(super) struct Check {
    store: Store,
    redis: Redis,
    lines: Vec<Line>,
}

impl Check {
    pub(super) fn new(store: Store, redis: Redis, queues: &[String]) -> Self {
        Self { store, redis, lines: Line::all_of(queues) }
    }
}

#[async_trait]
impl Handler for Check {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let asked = Instant::now();
        self.store.ping().await.map_err(|error| with_cause("postgres does not answer", error))?;
        let postgres_ms = milliseconds(asked);
        let asked = Instant::now();
        let state = self.redis.state(&self.lines).await.map_err(|error| with_cause("redis does not answer", error))?;
        let redis_ms = milliseconds(asked);
        let streams: Map<String, Value> = self
            .lines
            .iter()
            .zip(&state.lengths)
            .map(|(line, length)| (line.to_string(), json!({ "entries": length })))
            .collect();
        if !state.certified {
            context.warn(
                "redis carries no certificate of a leader that fits it: nothing is published until one is written",
            );
        }
        Ok(json!({
            "status": if state.certified { "healthy" } else { "degraded" },
            "postgres": { "answer_ms": postgres_ms },
            "redis": { "answer_ms": redis_ms, "certified": state.certified },
            "streams": streams,
        }))
    }
}

fn with_cause(what: &str, error: impl Into<anyhow::Error>) -> Failure {
    Failure::from(error.into().context(what.to_owned()))
}

/// Milliseconds since, to the microsecond.
fn milliseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1_000_000.0).round() / 1_000.0
}
