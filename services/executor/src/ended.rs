//! What came of an attempt, before the recorder has it.

use carillon_core::execution::AttemptEnd;
use carillon_core::retry::Again;
use carillon_store::recorder::LogLine;
use chrono::{DateTime, Utc};

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub end: AttemptEnd,
    /// When another attempt follows, if one does.
    pub again: Again,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: DateTime<Utc>,
    /// JSON text.
    pub result: Option<String>,
    pub error: Option<String>,
    pub error_stack: Option<String>,
    pub reason: Option<String>,
    /// JSON text, if the handler has changed it.
    pub metadata: Option<String>,
    pub logs: Vec<LogLine>,
}

impl Ended {
    /// One whose handler never started, or is not waited for.
    pub(crate) fn without_run(end: AttemptEnd, ended_at: DateTime<Utc>) -> Self {
        Self {
            end,
            again: Again::ByPolicy,
            started_at: None,
            ended_at,
            result: None,
            error: None,
            error_stack: None,
            reason: None,
            metadata: None,
            logs: Vec::new(),
        }
    }
}
