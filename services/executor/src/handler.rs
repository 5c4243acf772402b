//! What a handler is: the code that an execution runs.
//!
//! Implement [`Handler`], register it under a name `group:verb`, and start an executor with [`crate::run`]. A handler may be
//! started twice for one execution only when its executor was lost in mid-flight; [`Context::idempotency_key`] is the same
//! then, so that effects outside can be made once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use carillon_core::limits::{LOG_BYTES_MAX, LOG_LINE_BYTES_MAX, LOG_LINE_CHARS_MAX, LOG_LINES_MAX};
use carillon_store::Store;
use carillon_store::recorder::LogLine;
use carillon_store::takes::LastSuccess;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use crate::failure::Failure;
use crate::incarnation::Clock;
use crate::metadata::Metadata;

/// The code that an execution runs.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Runs one attempt. The result is kept with the execution: at most 30 levels deep and 256 KiB of JSON text, else the attempt
    /// fails for good. Its numbers are shown as 64-bit floats; larger integers belong into strings.
    ///
    /// It may run for as long as the job's timeout. When [`Context::cancelled`] is cancelled (timeout, cancel, shutdown) it
    /// should return soon; a second later it is dropped at its next `.await`.
    ///
    /// # Errors
    /// An error fails the attempt; unless it says [`Failure::for_good`], the attempt is tried again while attempts are left.
    async fn run(&self, context: &Context) -> Result<Value, Failure>;
}

/// What a handler knows of its execution.
#[derive(Clone)]
pub struct Context {
    /// The execution.
    pub execution: Uuid,
    /// Its job.
    pub job: Uuid,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The instant that the fire was scheduled for.
    pub scheduled_at: DateTime<Utc>,
    /// Cancelled when the handler shall stop.
    pub cancelled: CancellationToken,
    /// W3C trace context: the one of whoever triggered it, or one made of the execution's id.
    pub traceparent: String,
    pub(crate) payload: Arc<RawValue>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
}

impl Context {
    /// The same for each attempt of this execution: what to hand to others so that they do things once.
    pub fn idempotency_key(&self) -> String {
        self.execution.to_string()
    }

    /// The payload, read as `T`.
    ///
    /// # Errors
    /// A failure for good if it does not fit: trying again would read the same.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(self.payload.get()).map_err(|error| Failure::for_good(format!("payload: {error}")))
    }

    /// Keeps a line with the execution's record.
    pub fn info(&self, message: impl Into<String>) {
        self.log("INFO", message.into());
    }

    /// Keeps a warning with the execution's record.
    pub fn warn(&self, message: impl Into<String>) {
        self.log("WARN", message.into());
    }

    /// Keeps an error with the execution's record.
    pub fn error(&self, message: impl Into<String>) {
        self.log("ERROR", message.into());
    }

    /// The job's last success and its result, if there was one.
    ///
    /// # Errors
    /// If Postgres is unavailable.
    pub async fn last_success(&self) -> Result<Option<LastSuccess>, Failure> {
        Ok(self.store.job_last_success(self.job).await?)
    }

    /// The metadata of this execution: what its trigger gave, with what earlier attempts and this one have set. Empty if nobody
    /// gave or set any.
    ///
    /// # Errors
    /// If Postgres is unavailable; only the first call asks it.
    pub async fn metadata(&self) -> Result<Map<String, Value>, Failure> {
        self.metadata.get(&self.store, self.execution).await
    }

    /// Sets one entry of the metadata; null takes it away. It is written, and shows, when the attempt ends, however it ends, unless
    /// the handler had to be dropped.
    ///
    /// # Errors
    /// A failure for good if the metadata would be larger than 16 KiB of JSON or deeper than 30 levels: it stays as it was, and
    /// the handler may go on. If Postgres is unavailable.
    pub async fn set_metadata(&self, name: impl Into<String>, value: impl Into<Value>) -> Result<(), Failure> {
        self.metadata.set(&self.store, self.execution, name.into(), value.into()).await
    }

    fn log(&self, level: &'static str, message: String) {
        let message = clean(message, LOG_LINE_CHARS_MAX, LOG_LINE_BYTES_MAX);
        self.logs.add(LogLine { timestamp: self.clock.now(), level, message });
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("execution", &self.execution)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// The log lines of one attempt, bounded in number and in bytes.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: Vec<LogLine>,
    bytes: usize,
    dropped: usize,
}

impl Logs {
    fn add(&self, line: LogLine) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = lines.bytes + line.message.len();
        // Once one was dropped all are: what is kept is the beginning, without holes.
        if lines.dropped == 0 && lines.kept.len() < LOG_LINES_MAX - 1 && bytes <= LOG_BYTES_MAX {
            lines.bytes = bytes;
            lines.kept.push(line);
        } else {
            lines.dropped += 1;
        }
    }

    /// Takes the lines out; the last one says how many were dropped.
    pub(crate) fn take(&self, now: DateTime<Utc>) -> Vec<LogLine> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Lines { mut kept, dropped, .. } = std::mem::take(&mut *lines);
        if dropped > 0 {
            kept.push(LogLine {
                timestamp: now,
                level: "WARN",
                message: format!("{dropped} further lines were dropped"),
            });
        }
        kept
    }
}

/// What Postgres can hold, not longer than so many characters and bytes; a text that was cut says so.
pub(crate) fn clean(mut text: String, chars_max: usize, bytes_max: usize) -> String {
    let whole = text.len();
    text.truncate(text.floor_char_boundary(bytes_max));
    let mut is_cut = text.len() < whole;
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    let by_chars = text.char_indices().nth(chars_max).map_or(text.len(), |(end, _)| end);
    let end = text.floor_char_boundary(bytes_max).min(by_chars);
    is_cut |= end < text.len();
    text.truncate(end);
    if is_cut {
        text.push('…');
    }
    text
}

/// The handlers that an executor offers, by name.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: BTreeMap<String, Arc<dyn Handler>>,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler; a second one of the same name replaces the first.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, handler: impl Handler) -> Self {
        self.handlers.insert(name.into(), Arc::new(handler));
        self
    }

    /// The handler of that name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Handler>> {
        self.handlers.get(name).cloned()
    }

    /// All names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.handlers.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.handlers.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_characters_and_without_nul() {
        assert_eq!(clean("a\0b".into(), 10, 10), "a\u{fffd}b");
        assert_eq!(clean("äöü".into(), 2, 10), "äö…");
        assert_eq!(clean("äöü".into(), 3, 6), "äöü");
        assert_eq!(clean("äöü".into(), 3, 5), "äö…");
        assert_eq!(clean("äöü".into(), 3, 0), "…");
        assert_eq!(clean("\0\0\0".into(), 3, 4), "\u{fffd}…", "what replaces it is longer");
    }

    #[test]
    fn log_lines_are_bounded_and_the_last_says_so() {
        let logs = Logs::default();
        for n in 0..LOG_LINES_MAX + 5 {
            logs.add(LogLine { timestamp: DateTime::UNIX_EPOCH, level: "INFO", message: n.to_string() });
        }
        let taken = logs.take(DateTime::UNIX_EPOCH);
        assert_eq!(taken.len(), LOG_LINES_MAX);
        assert_eq!(taken.last().unwrap().message, "6 further lines were dropped");
        for _ in 0..100 {
            let message = "x".repeat(LOG_LINE_BYTES_MAX);
            logs.add(LogLine { timestamp: DateTime::UNIX_EPOCH, level: "INFO", message });
        }
        let taken = logs.take(DateTime::UNIX_EPOCH);
        assert_eq!(taken.len(), LOG_BYTES_MAX / LOG_LINE_BYTES_MAX + 1);
        assert_eq!(taken.last().unwrap().message, "68 further lines were dropped");
    }
}
