//! What makes an unstarted entry doubtful, and what becomes of it: it starts only after a check in Postgres (R8, R9, R13, R23).
//!
//! The engine's part of it; the I/O is in `checks.rs`.

use std::time::Instant;

use carillon_core::execution::AttemptEnd;
use carillon_core::take::Then;
use carillon_stream::reader::Look;
use metrics::counter;
use tracing::warn;
use uuid::Uuid;

use super::Engine;
use crate::boottime;
use crate::checks::{self, Asked};
use crate::ended::Ended;
use crate::in_hand::{Item, Key, State};
use crate::message::Checked;

impl Engine {
    /// R9: a process that stood still makes doubtful what it had read and not started.
    pub(super) fn guard_against_stalls(&mut self) {
        let awake = boottime::now();
        let gap = awake.saturating_sub(self.last_awake);
        self.last_awake = awake;
        if gap > self.shared.window / 2 {
            warn!(
                gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX),
                "this process stood still: what it held is checked"
            );
            self.stalled_until = awake;
            self.doubt_all_unstarted();
        }
    }

    pub(super) fn doubt_all_unstarted(&mut self) {
        self.doubt(|_| true);
    }

    pub(super) fn doubt(&mut self, which: impl Fn(&Item) -> bool) {
        let now = Instant::now();
        for item in self.items.values_mut() {
            if which(item) && item.hold_back() {
                item.doubt(now);
            }
        }
    }

    /// R23: while anything is held, Redis is looked at each W/4.
    pub(super) fn look_while_holding(&self) {
        let held = self.items.values().filter(|item| matches!(item.state, State::Held));
        let held: Vec<Uuid> = held.map(|item| item.entry.execution).collect();
        if !held.is_empty() {
            checks::look(&self.shared, held, self.own.clone());
        }
    }

    pub(super) fn looked(&mut self, look: &Look) {
        // One that was taken says RUNNING here: whatever Redis forgets, nobody else starts it.
        self.doubt(|item| item.take == 0 && (!look.certified || item.id.number <= look.doubt));
        self.members(&look.cancelled);
    }

    /// R13, the I/O of which is in `checks.rs`.
    pub(super) fn check_doubtful(&mut self, now: Instant) {
        let contact = self.shared.incarnation.contact();
        if !self.shared.incarnation.may_start(self.shared.lease) {
            return;
        }
        let mut asked = Vec::new();
        for (key, item) in self.items.iter_mut().filter(|(_, item)| !item.waits_for_word) {
            if let State::Doubtful { since, checking, due } = &mut item.state
                && !*checking
                && *due <= now
            {
                // Counted only while one's own contact is unbroken.
                let waited = now.saturating_duration_since((*since).max(contact.since)) >= self.shared.window;
                *checking = true;
                let (number, revision) = (item.id.number, item.entry.revision);
                asked.push(Asked { key: *key, number, revision, waited });
            }
        }
        if !asked.is_empty() {
            checks::check(&self.shared, asked, self.own.clone());
        }
    }

    pub(super) fn checked(&mut self, checked: Vec<(Key, Checked)>) {
        for (key, outcome) in checked {
            let Some(item) = self.items.get_mut(&key) else { continue };
            let State::Doubtful { checking, due, .. } = &mut item.state else { continue };
            *checking = false;
            // The beat of the checks, a little early.
            *due = Instant::now() + self.shared.window / 8;
            match outcome {
                Checked::Wait if self.drain.is_some() => self.hand_over(vec![key]),
                Checked::Wait => {}
                Checked::Leave => self.let_go(key),
                Checked::Over => {
                    checks::acknowledge(&self.shared, item.line, item.id);
                    if !item.gives_way() {
                        self.let_go(key);
                    }
                }
                Checked::Move => self.give_back(key),
                Checked::Taken { take, revision, then } => {
                    item.take = take;
                    counter!("carillon_executor_taken_total").increment(1);
                    match then {
                        // Named while it was looked at, or changed before: its row is read under its take.
                        Then::Start if item.named || item.entry.revision != revision => {
                            item.state = State::Held;
                            self.name(key);
                        }
                        Then::Start => {
                            if item.entry.payload.is_none() {
                                // Asked for again: it may have been looked for before it was taken, in vain.
                                self.lacking.push_back(key);
                            }
                            self.hold(key);
                        }
                        Then::Cancel => {
                            self.finish_unstarted(key, AttemptEnd::Cancelled, "cancelled before it started")
                        }
                        Then::Skip => self.finish_unstarted_as_is(key),
                        Then::Fail => self.finish_unstarted(
                            key,
                            AttemptEnd::Failed { retry: false },
                            "every executor that ran it died: it is not run again",
                        ),
                    }
                }
            }
        }
    }

    /// R23: the reason was written by whoever withdrew it.
    pub(super) fn finish_unstarted_as_is(&mut self, key: Key) {
        let ended = Ended::without_run(AttemptEnd::Skipped, self.shared.incarnation.clock().now());
        self.shared.slots.release(1);
        self.hand_to_recorder(key, ended);
    }
}
