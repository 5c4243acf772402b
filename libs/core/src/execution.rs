//! The states of an execution and the one table of what may follow what. Drawn in `docs/states.md`, kept equal by a test.

use crate::job::words;
use std::fmt;
use std::str::FromStr;

use crate::job::UnknownWord;

words! {
    /// Where an execution stands.
    Status {
        /// Claimed, not known to have started. A handler may already run: RUNNING is written only for what outlives a flush.
        Queued = "QUEUED",
        /// Its handler runs at `worker_id`.
        Running = "RUNNING",
        /// An attempt failed, the next one is due at `next_retry_at`.
        Retrying = "RETRYING",
        /// Final: the handler returned a result.
        Success = "SUCCESS",
        /// Final: out of attempts.
        Failed = "FAILED",
        /// Final: out of attempts, and the last one took too long.
        Timeout = "TIMEOUT",
        /// Final: somebody asked for it. No result counts.
        Cancelled = "CANCELLED",
        /// Final: it never started; `reason` says why.
        Skipped = "SKIPPED",
    }
}

impl Status {
    /// Nothing follows, except a retry by hand.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Timeout | Self::Cancelled | Self::Skipped)
    }

    /// What a client may write for it: the words, and `pending` of the first system for QUEUED.
    pub fn from_input(text: &str) -> Result<Self, UnknownWord> {
        if text.eq_ignore_ascii_case("pending") { Ok(Self::Queued) } else { text.parse() }
    }
}

/// How one attempt of a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptEnd {
    /// It returned a result.
    Succeeded,
    /// It returned an error, panicked, or nobody offers the handler; `retry` is false where trying again is pointless.
    Failed {
        /// Whether another attempt may help.
        retry: bool,
    },
    /// It took longer than the job's timeout.
    TimedOut,
    /// It was stopped because somebody asked for it, or never started for that reason.
    Cancelled,
    /// It never started: what asked for it was withdrawn (job paused, changed or deleted) before its instant.
    Skipped,
}

/// The state after an attempt has ended (R11). A requested cancel beats a retry, or the next attempt would start although
/// the cancel was answered (H14).
pub const fn after_attempt(end: AttemptEnd, attempt: u32, max_retries: u32, cancel_requested: bool) -> Status {
    let attempts_left = attempt <= max_retries;
    match end {
        AttemptEnd::Succeeded => Status::Success,
        AttemptEnd::Cancelled => Status::Cancelled,
        AttemptEnd::Skipped => Status::Skipped,
        AttemptEnd::Failed { .. } | AttemptEnd::TimedOut if cancel_requested => Status::Cancelled,
        AttemptEnd::Failed { retry: true } | AttemptEnd::TimedOut if attempts_left => Status::Retrying,
        AttemptEnd::Failed { .. } => Status::Failed,
        AttemptEnd::TimedOut => Status::Timeout,
    }
}

/// Whether the protocol ever writes `to` over `from`. `None` is the birth of the row.
pub const fn may_follow(from: Option<Status>, to: Status) -> bool {
    use Status::{Cancelled, Failed, Queued, Retrying, Running, Skipped, Success, Timeout};
    match (from, to) {
        // R5 claims; an overlapping fire is born SKIPPED; a trigger whose job is deleted before its claim is born CANCELLED.
        (None, Queued | Skipped | Cancelled) => true,
        // R10 and R13 (take); R11; R23.
        (Some(Queued), Running | Success | Failed | Timeout | Retrying | Cancelled | Skipped) => true,
        // R11; R13 takes over from a lost worker.
        (Some(Running), Running | Success | Failed | Timeout | Retrying | Cancelled | Skipped) => true,
        // R16, R17.
        (Some(Retrying), Queued | Cancelled) => true,
        // R16, by hand.
        (Some(Failed | Timeout | Cancelled), Queued) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_attempt_is_retried_while_attempts_are_left() {
        let failed = AttemptEnd::Failed { retry: true };
        assert_eq!(after_attempt(failed, 1, 3, false), Status::Retrying);
        assert_eq!(after_attempt(failed, 3, 3, false), Status::Retrying);
        assert_eq!(after_attempt(failed, 4, 3, false), Status::Failed);
        assert_eq!(after_attempt(failed, 1, 0, false), Status::Failed);
        assert_eq!(after_attempt(AttemptEnd::Failed { retry: false }, 1, 3, false), Status::Failed);
        assert_eq!(after_attempt(AttemptEnd::TimedOut, 1, 1, false), Status::Retrying);
        assert_eq!(after_attempt(AttemptEnd::TimedOut, 2, 1, false), Status::Timeout);
    }

    /// H14: a cancel that was answered is never followed by a new attempt.
    #[test]
    fn a_requested_cancel_beats_a_retry_but_not_a_result() {
        assert_eq!(after_attempt(AttemptEnd::Failed { retry: true }, 1, 3, true), Status::Cancelled);
        assert_eq!(after_attempt(AttemptEnd::TimedOut, 1, 3, true), Status::Cancelled);
        assert_eq!(after_attempt(AttemptEnd::Succeeded, 1, 3, true), Status::Success);
    }

    #[test]
    fn every_end_leads_to_a_state_that_may_follow() {
        let ends = [
            AttemptEnd::Succeeded,
            AttemptEnd::Failed { retry: true },
            AttemptEnd::Failed { retry: false },
            AttemptEnd::TimedOut,
            AttemptEnd::Cancelled,
            AttemptEnd::Skipped,
        ];
        for end in ends {
            for cancel in [false, true] {
                for attempt in 1..5 {
                    let to = after_attempt(end, attempt, 3, cancel);
                    assert!(may_follow(Some(Status::Queued), to) && may_follow(Some(Status::Running), to));
                }
            }
        }
    }

    #[test]
    fn a_success_is_for_ever() {
        for to in Status::ALL {
            assert!(!may_follow(Some(Status::Success), *to));
        }
    }

    /// The page draws the table; this keeps both equal.
    #[test]
    fn the_table_in_the_docs_lists_every_pair() {
        let page = include_str!("../../../docs/states.md");
        let mut documented = std::collections::BTreeSet::new();
        for row in page.lines().filter(|line| line.starts_with("| ")).skip(1) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            for from in cells[0].split(", ") {
                for to in cells[1].split(", ").filter(|to| !to.is_empty()) {
                    documented.insert((from.to_owned(), to.to_owned()));
                }
            }
        }
        let from_all = std::iter::once(None).chain(Status::ALL.iter().copied().map(Some));
        let mut coded = std::collections::BTreeSet::new();
        for from in from_all {
            for to in Status::ALL.iter().filter(|to| may_follow(from, **to)) {
                coded.insert((from.map_or("-".to_owned(), |from| from.to_string()), to.to_string()));
            }
        }
        assert_eq!(documented, coded);
    }

    #[test]
    fn pending_is_understood_as_queued() {
        assert_eq!(Status::from_input("pending"), Ok(Status::Queued));
        assert_eq!(Status::from_input("success"), Ok(Status::Success));
        assert!(Status::from_input("done").is_err());
    }
}
