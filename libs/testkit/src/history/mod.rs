//! The judge. From what Postgres records, what handlers wrote into their journal and what is left in Redis, it says which
//! promise was broken. Pure over [`History`]; [`History::load`] reads one.
//!
//! What it needs to be told: which fires were expected, which triggers were answered, which workers the test lost (killed,
//! froze, cut off from Postgres) when, and when Redis lost data. Only a lost worker excuses a second start or an overlap, and
//! only of the very executions in flight: started there, and not recorded by it. One that was recorded is never excused, and
//! one that came back is excused only if it was away for a lease, or for W where Redis lost data meanwhile (promise 3). A worker
//! that was told to stop is lost for what it could not end within its grace, and for nothing that it ended in time (R18).

mod check;
mod load;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;

use carillon_core::execution::Status;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::journal;

/// All that is known of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Jobs with their counters.
    pub jobs: Vec<Job>,
    /// All executions.
    pub executions: Vec<Execution>,
    /// What handlers did.
    pub journal: Vec<journal::Line>,
    /// What is left in the streams.
    pub streams: Vec<Stream>,
    /// Batches that were not settled.
    pub unsettled: Vec<i64>,
    /// Batches that were settled and are still there, but for the newest, which stays (R3).
    pub kept: Vec<i64>,
    /// Rows of `execution_retries`.
    pub retries_waiting: Vec<Uuid>,
    /// Rows of `job_triggers`: ids of executions that were asked for and not claimed.
    pub triggers_waiting: Vec<Uuid>,
    /// Rows of `job_attention`: jobs that nobody has looked at.
    pub attention_waiting: Vec<Uuid>,
    /// Jobs whose timer is due and not claimed.
    pub overdue: Vec<Uuid>,
    /// Told by the test: instants for which a job must have exactly one execution.
    pub expected: Vec<(Uuid, DateTime<Utc>)>,
    /// Told by the test: executions that a trigger call returned.
    pub triggered: HashSet<Uuid>,
    /// Told by the test: workers that it lost.
    pub lost_workers: Vec<LostWorker>,
    /// Told by the test: workers that it told to stop, and that could record what they ended until their grace was over.
    pub stops: Vec<Stop>,
    /// Told by the test: when Redis lost what it held, or some of it.
    pub redis_losses: Vec<DateTime<Utc>>,
    /// Told by the test: how long a worker that came back must have been away. Without, any time will do.
    pub bounds: Bounds,
}

/// The two durations that the promises hang on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// W.
    pub window: TimeDelta,
    /// Of an executor.
    pub lease: TimeDelta,
}

/// A job as far as it is judged.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: Uuid,
    /// Its name, for messages.
    pub name: String,
    /// Whether executions of it may run at once.
    pub allow_overlap: bool,
    /// `job_timers.claimed_count`.
    pub claimed_count: i64,
    /// `job_stats.finished_count`.
    pub finished_count: i64,
    /// `job_stats.success_count`.
    pub success_count: i64,
    /// `job_stats.failure_count`.
    pub failure_count: i64,
}

/// An execution as far as it is judged.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub job: Uuid,
    /// Its instant.
    pub scheduled_at: DateTime<Utc>,
    /// Where it stands.
    pub status: Status,
    /// The current attempt.
    pub attempt: u32,
    /// How often the current attempt was taken over (R13).
    pub take: u32,
    /// Whether it was ever published. One born SKIPPED was not, and counts nowhere.
    pub claimed: bool,
    /// The recorded start.
    pub started_at: Option<DateTime<Utc>>,
    /// The recorded end.
    pub completed_at: Option<DateTime<Utc>>,
}

/// What is left in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its key.
    pub key: String,
    /// Entries.
    pub length: i64,
    /// Of those, delivered and not acknowledged.
    pub pending: i64,
}

/// A worker that the test killed, froze, or cut off from Postgres; or told to stop, with whatever it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWorker {
    /// Its process.
    pub pid: i32,
    /// Since when.
    pub from: DateTime<Utc>,
    /// Until when it was frozen or cut off; none: it is dead (or told to end), or still frozen or cut off.
    pub until: Option<DateTime<Utc>>,
}

impl LostWorker {
    /// One that is lost as of now.
    pub fn from_now(pid: i32) -> Self {
        Self { pid, from: Utc::now(), until: None }
    }

    /// The same, back as of now.
    #[must_use]
    pub fn back(mut self) -> Self {
        self.until = Some(Utc::now());
        self
    }
}

/// A worker that was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its process.
    pub pid: i32,
    /// When it was told.
    pub at: DateTime<Utc>,
    /// Its `shutdown.grace`.
    pub grace: TimeDelta,
}

/// A broken promise. Its text names what one needs to look it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A fire was due, or a trigger was answered, and there is no execution.
    Lost(String),
    /// An execution did not reach a final state.
    NotFinal(String),
    /// A fire has two executions.
    DoubledFire(String),
    /// A handler was started again although nobody was lost.
    DoubledStart(String),
    /// A handler ran to its end twice although nobody was lost.
    DoubledEnd(String),
    /// More starts of an attempt than one and its takes.
    TooManyStarts(String),
    /// Handlers of a job without overlap ran at once.
    Overlapped(String),
    /// A handler started before its instant.
    Early(String),
    /// Something ran of which there is no record, or SUCCESS is recorded of what did not run.
    Unrecorded(String),
    /// The counters of a job do not agree with its executions.
    Miscounted(String),
    /// Something is left in Redis or in the working tables after all was done.
    LeftBehind(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, what) = match self {
            Self::Lost(what) => ("lost", what),
            Self::NotFinal(what) => ("not final", what),
            Self::DoubledFire(what) => ("doubled fire", what),
            Self::DoubledStart(what) => ("started twice", what),
            Self::DoubledEnd(what) => ("ran to its end twice", what),
            Self::TooManyStarts(what) => ("too many starts", what),
            Self::Overlapped(what) => ("overlapped", what),
            Self::Early(what) => ("started early", what),
            Self::Unrecorded(what) => ("unrecorded", what),
            Self::Miscounted(what) => ("miscounted", what),
            Self::LeftBehind(what) => ("left behind", what),
        };
        write!(f, "{kind}: {what}")
    }
}

impl History {
    /// Tells by how much the wall clocks of processes were ahead, by process id: what they wrote is set right.
    pub fn correct_clocks(&mut self, ahead: &HashMap<i32, TimeDelta>) {
        for line in &mut self.journal {
            if let Some(ahead) = ahead.get(&line.pid) {
                line.at -= *ahead;
            }
        }
    }

    /// This history, in which `job` must have exactly one execution for `at`.
    pub fn expect_fire(&mut self, job: Uuid, at: DateTime<Utc>) {
        self.expected.push((job, at));
    }

    /// This history, in which a call returned `execution` for a trigger.
    pub fn expect_triggered(&mut self, execution: Uuid) {
        self.triggered.insert(execution);
    }

    /// How many executions stand in `status`.
    pub fn count(&self, status: Status) -> usize {
        self.executions.iter().filter(|execution| execution.status == status).count()
    }

    /// Panics with all violations, if there are any.
    ///
    /// # Panics
    /// If a promise was broken.
    pub fn assert_kept(&self) {
        let violations = self.violations();
        let shown: Vec<String> = violations.iter().take(50).map(ToString::to_string).collect();
        assert!(
            violations.is_empty(),
            "{} violations in {} executions, {} journal lines:\n{}",
            violations.len(),
            self.executions.len(),
            self.journal.len(),
            shown.join("\n")
        );
    }
}
