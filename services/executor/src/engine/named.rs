//! R8a: the cancelled set and the notices are hints, the row decides. What they name and has not started is read again before
//! it starts, one SELECT a batch; it stays ordinary, since nobody else may start it, and runs with the row's revision. Of what
//! runs it is asked whether its cancel was requested, and that again each lease/4, for hints that were lost.
//!
//! The engine's part of it; the I/O is in `checks.rs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use carillon_core::execution::AttemptEnd;
use carillon_core::take;
use carillon_store::recorder::Held;
use carillon_store::takes::Adopted;
use carillon_stream::notices::Notice;
use serde_json::value::RawValue;
use tracing::error;
use uuid::Uuid;

use super::Engine;
use crate::checks;
use crate::in_hand::{Item, Key, State, Stop};
use crate::message::Reread;

/// Questions after what was named that are under way at once: what is named while Postgres is away, again and again, is asked about
/// when it is back.
const REREADING_MAX: usize = 8;

/// What was named since the last look at it.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By a notice of a cancel.
    cancelled: HashSet<Uuid>,
    /// By the cancelled set, where something is held.
    members: HashSet<Uuid>,
    /// Jobs that were paused, changed or deleted.
    jobs: HashSet<Uuid>,
    /// Notices may have been missed.
    all: bool,
    /// Something that comes is named already.
    come: bool,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.cancelled.is_empty() && self.members.is_empty() && self.jobs.is_empty() && !self.all && !self.come
    }

    fn name(&self, item: &Item) -> bool {
        let execution = &item.entry.execution;
        self.all
            || self.cancelled.contains(execution)
            || self.members.contains(execution)
            || self.jobs.contains(&item.entry.job)
    }

    /// Whether a running handler is to be asked after: the set may name what has long been decided.
    fn ask_after(&self, execution: Uuid) -> bool {
        self.all || self.cancelled.contains(&execution)
    }
}

impl Engine {
    pub(super) fn noticed(&mut self, notice: &Notice) {
        match notice {
            Notice::JobChanged(job) => drop(self.names.jobs.insert(*job)),
            Notice::Cancel(execution) => drop(self.names.cancelled.insert(*execution)),
            Notice::Missed => self.names.all = true,
            Notice::Wake
            | Notice::Due(_)
            | Notice::Lost
            | Notice::Misplaced(_)
            | Notice::Ended
            | Notice::HandedOn(_) => {}
        }
    }

    /// The cancelled set, as a look while something is held showed it.
    pub(super) fn members(&mut self, members: &HashSet<Uuid>) {
        self.names.members.extend(members);
    }

    /// Reads the row of an entry in hand before it starts.
    pub(super) fn name(&mut self, key: Key) {
        let Some(item) = self.items.get_mut(&key) else { return };
        item.named = true;
        if item.hold_back() {
            item.state = State::Named { asked: None };
            self.names.come = true;
        }
    }

    /// Asks about all that was named since; of running handlers also each lease/4.
    pub(super) fn ask_about_named(&mut self, now: Instant) {
        let names = std::mem::take(&mut self.names);
        let ask_all = now >= self.next_ask_running;
        if ask_all {
            self.next_ask_running = now + self.shared.lease / 4;
        }
        if names.is_empty() && !ask_all {
            return self.ask_running();
        }
        self.question += 1;
        // Each holds what it asks about, and waits for Postgres.
        let can_ask = Arc::strong_count(&self.rereading) <= REREADING_MAX;
        let mut asked = Vec::new();
        for item in self.items.values_mut() {
            if names.name(item) {
                item.named = true;
                if item.hold_back() {
                    item.state = State::Named { asked: None };
                }
            }
            match &mut item.state {
                State::Named { asked: None } if !can_ask => self.names.come = true,
                State::Named { asked: question @ None } => {
                    *question = Some(self.question);
                    asked.push((item.held(), item.entry.revision));
                }
                State::Running(running)
                    if running.stopping.is_none() && (ask_all || names.ask_after(item.entry.execution)) =>
                {
                    self.to_ask.insert(item.key());
                }
                _ => {}
            }
        }
        if !asked.is_empty() {
            let token = Arc::clone(&self.rereading);
            checks::reread(&self.shared, self.question, asked, self.own.clone(), token);
        }
        self.ask_running();
    }

    /// One question at a time.
    fn ask_running(&mut self) {
        if self.is_asking || self.to_ask.is_empty() {
            return;
        }
        let running = std::mem::take(&mut self.to_ask);
        let running: Vec<Held> = running.iter().filter_map(|key| self.items.get(key)).map(Item::held).collect();
        self.is_asking = true;
        checks::ask_cancels(&self.shared, running, self.own.clone());
    }

    /// R17: stops the handlers whose cancel was requested.
    pub(super) fn cancels_requested(&mut self, running: &[Held]) {
        self.is_asking = false;
        for held in running {
            let key = Key { execution: held.execution, claim: held.claim };
            let Some(item) = self.items.get_mut(&key) else { continue };
            if item.held() == *held {
                item.named = true;
                self.ask_to_stop(key, Stop::Cancelled);
            }
        }
    }

    /// What the rows say of what was named. An answer to an older question says nothing: it may have been read before the
    /// change that the newer one is about.
    pub(super) fn reread(&mut self, question: u64, answers: Vec<(Held, Reread)>) {
        for (held, answer) in answers {
            let key = Key { execution: held.execution, claim: held.claim };
            let Some(item) = self.items.get_mut(&key) else { continue };
            let is_asked = matches!(item.state, State::Named { asked: Some(asked) } if asked == question);
            if !is_asked || item.held() != held {
                continue;
            }
            match answer {
                Reread::Row(take::Reread::Over) => {
                    checks::acknowledge(&self.shared, item.line, item.id);
                    self.let_go(key);
                }
                Reread::Row(take::Reread::LetGo) => self.let_go(key),
                Reread::Row(take::Reread::Cancel) => {
                    self.finish_unstarted(key, AttemptEnd::Cancelled, "cancelled before it started");
                }
                Reread::Row(take::Reread::Skip) => self.finish_unstarted_as_is(key),
                Reread::Row(take::Reread::Move) => self.give_back(key),
                Reread::Row(take::Reread::Stay) => self.hold(key),
                Reread::Refused => item.doubt(Instant::now()),
                Reread::Adopt(definition) => {
                    item.adopt(definition);
                    if self.shared.registry.get(&item.entry.handler).is_none() {
                        item.waits_for_word = true;
                        let item = &self.items[&key];
                        self.find_offer(key, item);
                    }
                    self.hold(key);
                }
            }
        }
    }
}

impl Item {
    /// R23a: it runs with its row's revision.
    fn adopt(&mut self, definition: Adopted) {
        let Adopted { revision, handler, payload, timeout_ms, max_retries, retry } = definition;
        let Ok(payload) = RawValue::from_string(payload) else {
            error!(execution.id = %self.entry.execution, revision, "a payload in postgres is no JSON");
            return;
        };
        let bounded = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        self.set_payload(Some(payload));
        let entry = &mut self.entry;
        (entry.revision, entry.handler) = (revision, handler);
        entry.timeout_ms = bounded(timeout_ms);
        entry.max_retries = bounded(max_retries);
        (entry.retry_delay_ms, entry.retry_growth) = (retry.delay_ms, retry.growth);
    }
}
