//! What the parts of an executor share.

use std::sync::Arc;
use std::time::Duration;

use carillon_core::execution::{AttemptEnd, Status, after_attempt};
use carillon_core::line::Line;
use carillon_store::Store;
use carillon_store::recorder::Finished;
use carillon_stream::{Entry, Redis};
use chrono::TimeDelta;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ended::Ended;
use crate::handler::{Context, Logs, Registry};
use crate::in_hand::Item;
use crate::incarnation::Incarnation;
use crate::slots::Slots;
use crate::threads::HandlerThreads;
use crate::to_record::{Acknowledgement, FinishedEntry, weight};
use crate::trial::Trial;

/// See the module.
pub(crate) struct Shared {
    pub store: Store,
    pub redis: Redis,
    pub registry: Registry,
    /// In the order of their indexes.
    pub lines: Vec<Line>,
    /// Name in the consumer groups.
    pub consumer: String,
    pub incarnation: Incarnation,
    pub slots: Slots,
    pub threads: Arc<HandlerThreads>,
    /// W.
    pub window: Duration,
    pub lease: Duration,
    pub grace: Duration,
    pub lost_max: i16,
    pub trial: Trial,
    /// R18a: something was handed on to this executor.
    pub handed_on: Notify,
}

impl Shared {
    /// What the handler of `entry` is told.
    pub(crate) fn context(&self, entry: &Entry, cancelled: CancellationToken, logs: Arc<Logs>) -> Context {
        let payload = entry.payload.clone().unwrap_or_else(|| RawValue::NULL.to_owned());
        Context {
            execution: entry.execution,
            job: entry.job,
            attempt: entry.attempt,
            scheduled_at: entry.scheduled_at,
            cancelled,
            traceparent: entry.traceparent.clone().unwrap_or_else(|| own_traceparent(entry)),
            payload: Arc::from(payload),
            logs,
            metadata: Arc::default(),
            store: self.store.clone(),
            clock: self.incarnation.clock().clone(),
        }
    }

    /// What is recorded of an attempt's end.
    pub(crate) fn finished(&self, item: &Item, ended: Ended, was_cancelled: bool) -> FinishedEntry {
        let entry = &item.entry;
        let status = after_attempt(ended.end, entry.attempt, entry.max_retries, false);
        let next_retry_at = (status == Status::Retrying).then(|| {
            let delay = ended.again.delay(entry.retry(), entry.attempt, rand::random());
            ended.ended_at + TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX)
        });
        let line = &self.lines[item.line];
        let timed_out = ended.end == AttemptEnd::TimedOut;
        let finished = Finished {
            held: item.held(),
            attempt: i16::try_from(entry.attempt).unwrap_or(i16::MAX),
            handler: entry.handler.clone(),
            revision: entry.revision,
            status,
            timed_out,
            started_at: ended.started_at,
            ended_at: ended.ended_at,
            next_retry_at,
            queue: line.queue.clone(),
            priority: line.priority.rank(),
            result: ended.result,
            error: ended.error,
            error_stack: ended.error_stack,
            reason: ended.reason,
            metadata: ended.metadata,
            logs: ended.logs,
        };
        let entry = Acknowledgement {
            key: item.key(),
            line: item.line,
            id: item.id,
            job: entry.job,
            attempt: entry.attempt,
            last: entry.last,
            was_cancelled,
            bytes: weight(&finished),
            plain: false,
        };
        FinishedEntry { entry, finished }
    }
}

/// Of an execution that nobody's trace led to: its trace is its id, its span says which attempt.
fn own_traceparent(entry: &Entry) -> String {
    format!("00-{}-{:016x}-01", entry.execution.simple(), entry.attempt.max(1))
}
