//! From held to running: at its instant, on threads that live, shown RUNNING if it lasts (R9, R10, R23).

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use carillon_core::execution::AttemptEnd;
use carillon_store::recorder::Started;
use metrics::histogram;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Engine, SHOWN_AFTER, timeout_of};
use crate::beginning::Beginning;
use crate::boottime;
use crate::handler::Logs;
use crate::in_hand::{Item, Key, Running, State};
use crate::message::Message;
use crate::to_record::ToRecord;

impl Engine {
    /// R23: an ordinary or taken entry waits for its instant.
    pub(super) fn hold(&mut self, key: Key) {
        let Some(item) = self.items.get_mut(&key) else { return };
        item.state = State::Held;
        if self.drain.is_some() {
            return self.hand_over(vec![key]);
        }
        let at = self.shared.incarnation.clock().get().surely_reached(item.entry.not_before);
        self.starts.push(Reverse((at, key)));
    }

    /// R23: what waits for its instant waits for it by the clock that the database has now.
    pub(super) fn follow_the_clock(&mut self) {
        let clock = self.shared.incarnation.clock().get();
        if self.clock.contradicts(&clock) {
            warn!("the database's clock was set: what waits for its instant is reckoned anew");
            let held = self.items.iter().filter(|(_, item)| matches!(item.state, State::Held));
            let held = held.map(|(key, item)| Reverse((clock.surely_reached(item.entry.not_before), *key)));
            self.starts = held.collect();
        }
        self.clock = clock;
    }

    pub(super) fn start_due(&mut self, now: Instant) {
        if !self.shared.incarnation.may_start(self.shared.lease) {
            // R9: nothing starts; what is due is looked at again when the contact is back.
            return;
        }
        while let Some(Reverse((at, key))) = self.starts.peek().copied()
            && at <= now
        {
            self.starts.pop();
            let Some(item) = self.items.get(&key) else { continue };
            // Of one that nobody offers the payload is not fetched.
            let lacks_payload =
                || item.entry.payload.is_none() && self.shared.registry.get(&item.entry.handler).is_some();
            if !matches!(item.state, State::Held) || item.waits_for_word || lacks_payload() {
                continue;
            }
            let surely = self.shared.incarnation.clock().get().surely_reached(item.entry.not_before);
            if surely > now {
                // The clock was measured anew since.
                self.starts.push(Reverse((surely, key)));
            } else {
                self.start(key);
            }
        }
    }

    pub(super) fn start(&mut self, key: Key) {
        let clock = self.shared.incarnation.clock().clone();
        let Some(item) = self.items.get_mut(&key) else { return };
        let Some(handler) = self.shared.registry.get(&item.entry.handler) else {
            let offered = self.shared.registry.names().join(", ");
            let why = format!("no executor offers the handler \"{}\" (this one offers {offered})", item.entry.handler);
            self.finish_unstarted(key, AttemptEnd::Failed { retry: false }, &why);
            return;
        };
        let cancelled = CancellationToken::new();
        let context = self.shared.context(&item.entry, cancelled.clone(), Arc::new(Logs::default()));
        let Some((threads, set)) = self.shared.threads.newest() else { return };
        let beginning = Arc::new(Beginning::default());
        let (engine, begins) = (self.own.clone(), Arc::clone(&beginning));
        let (spawned_at, patience) = (boottime::now(), self.shared.window / 2);
        let task = threads.spawn(async move {
            // R9, here too: what stood still between the engine's look and this line has not started.
            if boottime::now().saturating_sub(spawned_at) > patience {
                if begins.take_back() {
                    let _ = engine.send(Message::NotBegun(key));
                }
                return;
            }
            let started_at = clock.now();
            if !begins.begin(started_at) {
                return;
            }
            if context.attempt == 1 {
                let late = (started_at - context.scheduled_at).to_std().unwrap_or_default();
                histogram!("carillon_execution_lateness_seconds").record(late.as_secs_f64());
            }
            let ended = crate::runner::run(handler, context, started_at).await;
            // The engine outlives every handler that is waited for.
            let _ = engine.send(Message::Ended(key, Box::new(ended)));
        });
        let abort = task.abort_handle();
        let spawned = Instant::now();
        item.state =
            State::Running(Running { beginning, spawned, set, cancelled, abort, stopping: None, shown: false });
        self.deadlines.set(key, spawned + timeout_of(&item.entry));
        self.to_show.push_back((spawned + SHOWN_AFTER, key));
    }

    /// What waits behind handlers that block their threads goes to the threads that were started in their place.
    pub(super) fn move_from_blocked_threads(&mut self, now: Instant) {
        let Some((_, newest)) = self.shared.threads.newest() else { return };
        let stuck = self.items.values().filter(|item| match &item.state {
            State::Running(running) if running.set < newest && running.spawned + SHOWN_AFTER <= now => {
                running.beginning.take_back()
            }
            _ => false,
        });
        let stuck: Vec<Key> = stuck.map(Item::key).collect();
        for key in stuck {
            self.hold(key);
        }
    }

    /// A handler that came to its first instruction too late.
    pub(super) fn not_begun(&mut self, key: Key) {
        if let Some(item) = self.items.get_mut(&key)
            && let State::Running(running) = &item.state
            // Of another spawn of the same entry: that one was taken back and moved meanwhile.
            && running.beginning.is_taken_back()
        {
            item.doubt(Instant::now());
            if self.drain.is_some() {
                self.hand_over(vec![key]);
            }
        }
    }

    /// R10: what outlived a flush is shown RUNNING.
    pub(super) fn show_running(&mut self, now: Instant) {
        while let Some((at, key)) = self.to_show.front().copied()
            && at <= now
        {
            self.to_show.pop_front();
            let Some(item) = self.items.get_mut(&key) else { continue };
            let (held, revision, is_taken) = (item.held(), item.entry.revision, item.take > 0);
            let State::Running(running) = &mut item.state else { continue };
            match running.beginning.begun() {
                Some(begun) if begun.instant + SHOWN_AFTER <= now => {
                    // One that was taken says RUNNING already.
                    if !is_taken && !std::mem::replace(&mut running.shown, true) {
                        let what = Started { held, started_at: begun.at, revision };
                        let _ = self.recorder.send(ToRecord::Started(key, what));
                    }
                }
                // Its turn on a thread came late, or is still to come.
                _ => self.to_show.push_back((now + SHOWN_AFTER, key)),
            }
        }
    }
}
