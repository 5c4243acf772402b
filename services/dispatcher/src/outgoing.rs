//! Entries as they are published: what Postgres says of an execution, and what its job means in the revision that the row
//! names, put together.

use carillon_core::line::Line;
use carillon_store::claim::NewExecution;
use carillon_store::open_entries::OpenEntry;
use carillon_stream::entry::{Entry, VERSION};
use carillon_stream::leader::Outgoing;
use serde_json::value::RawValue;
use tracing::error;

use crate::definitions::Known;

/// A batch, ready to be sent any number of times.
#[derive(Clone, Debug)]
pub struct Batch {
    /// R1.
    pub number: i64,
    /// The lines that it touches.
    pub lines: Vec<Line>,
    /// Its entries, by place.
    pub entries: Vec<Outgoing>,
}

impl Batch {
    /// An empty one.
    pub const fn new(number: i64) -> Self {
        Self { number, lines: Vec::new(), entries: Vec::new() }
    }

    /// Adds an execution that this batch has claimed; `job` in the revision that it names.
    pub fn add_new(&mut self, new: &NewExecution, job: &Known, last: bool) {
        let definition = &job.definition;
        let payload = if new.own_payload { new.payload.as_ref() } else { definition.payload.as_ref() };
        let entry = Entry {
            version: VERSION,
            execution: new.id,
            claim: self.number,
            attempt: 1,
            again: false,
            job: new.job,
            revision: definition.revision,
            handler: definition.handler.clone(),
            scheduled_at: new.scheduled_at,
            not_before: new.scheduled_at,
            timeout_ms: definition.timeout_ms.unsigned_abs(),
            max_retries: new.max_retries.unsigned_abs(),
            retry_delay_ms: definition.retry.delay_ms,
            retry_growth: definition.retry.growth,
            last,
            payload: payload.and_then(|text| raw(text)),
            traceparent: new.trace.map(|trace| trace.to_string()),
        };
        self.add(new.seq, &new.line, &entry);
    }

    /// Adds an execution that is open already: a retry, or one that is sent again. `job` in the revision that it names.
    pub fn add_open(&mut self, open: &OpenEntry, job: &Known) {
        let definition = &job.definition;
        let payload = if open.own_payload { open.payload.as_ref() } else { definition.payload.as_ref() };
        let is_retry = open.attempt > 1;
        let entry = Entry {
            version: VERSION,
            execution: open.execution,
            claim: open.claim,
            attempt: u32::from(open.attempt.unsigned_abs()),
            again: open.claim != self.number,
            job: open.job,
            revision: definition.revision,
            handler: definition.handler.clone(),
            scheduled_at: open.scheduled_at,
            not_before: open.next_retry_at.filter(|_| is_retry).unwrap_or(open.scheduled_at),
            timeout_ms: definition.timeout_ms.unsigned_abs(),
            max_retries: open.max_retries.unsigned_abs(),
            retry_delay_ms: definition.retry.delay_ms,
            retry_growth: definition.retry.growth,
            // Whether it is the job's last is not known any more: whoever finishes it looks.
            last: true,
            payload: payload.and_then(|text| raw(text)),
            traceparent: open.trace.map(|trace| trace.to_string()),
        };
        self.add(open.seq, &open.line, &entry);
    }

    fn add(&mut self, seq: i32, line: &Line, entry: &Entry) {
        let index = self.lines.iter().position(|known| known == line).unwrap_or_else(|| {
            self.lines.push(line.clone());
            self.lines.len() - 1
        });
        match entry.encode() {
            Ok(text) => self.entries.push(Outgoing { line: index, seq, text }),
            // Cannot happen for this type; if it does, reconcile finds that the entry is missing and says so again.
            Err(error) => error!(execution.id = %entry.execution, "an entry cannot be written: {error}"),
        }
    }
}

fn raw(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).ok()
}
