//! What leaves without a start here: to whoever offers its handler, or, when this executor stops, to whoever has room (R18a).
//!
//! The engine's part of it; the I/O is in `hand_over.rs`.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Engine;
use crate::hand_over::{self, Leaving, MOVE_MAX, To};
use crate::in_hand::{Item, Key, State};
use crate::lease::GOODBYE_MAX;
use crate::message::Offer;
use crate::reader::STOP_PATIENCE;

/// What a stop leaves for the last ends to be recorded, once nothing runs any more.
const LAST_FLUSH_MIN: Duration = Duration::from_secs(2);
/// What a stop waits for Postgres to release what is held.
const RELEASE_MAX: Duration = Duration::from_secs(1);
/// What a stop waits for what leaves: the last read may bring some, which is to be released and moved.
const LEAVING_MAX: Duration = STOP_PATIENCE.saturating_add(RELEASE_MAX).saturating_add(MOVE_MAX);

/// R18: a stop under way, and how long it waits for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// For what leaves: then it stays pending, and the others take it as soon as this executor has ended.
    leaves_until: Instant,
    /// For what runs: then it is stopped and handed back.
    runs_until: Instant,
    /// For what has ended to be recorded: then it runs again elsewhere.
    records_until: Instant,
}

impl Drain {
    /// What comes after a drain has a time of its own: the good-bye to Postgres and to Redis.
    fn begin(now: Instant, grace: Duration) -> Self {
        let for_runs = grace.saturating_sub(LAST_FLUSH_MIN + GOODBYE_MAX).max(grace / 2);
        let runs_until = now + for_runs;
        let leaves_until = now + LEAVING_MAX.min(for_runs);
        Self { leaves_until, runs_until, records_until: runs_until + LAST_FLUSH_MIN }
    }

    /// Which of them is over next.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        [self.leaves_until, self.runs_until, self.records_until].into_iter().filter(|until| *until > now).min()
    }
}

impl Engine {
    /// Forgets an entry: it stays pending where it is, and is looked at again with the others (R8).
    pub(super) fn let_go(&mut self, key: Key) {
        if self.items.remove(&key).is_some() {
            self.deadlines.forget(key);
            self.shared.trial.end(key);
            self.shared.slots.release(1);
        }
    }

    pub(super) fn find_offer(&self, key: Key, item: &Item) {
        hand_over::find_offer(&self.shared, key, item.entry.handler.clone(), item.line, self.own.clone());
    }

    pub(super) fn not_offered(&mut self, key: Key, offer: Offer) {
        let Some(item) = self.items.get_mut(&key) else { return };
        if !item.waits_for_word {
            return;
        }
        let gives_up = match &offer {
            Offer::By(_) => item.give_up(),
            Offer::Nobody => None,
        };
        match (offer, gives_up) {
            (Offer::By(other), Some(Unstarted::Leaves(leaving))) => {
                hand_over::hand_over(&self.shared, vec![leaving], To::Consumer(other), None, self.own.clone());
            }
            // One that was taken stays: its row says that it is ours.
            _ => self.heard_of(key),
        }
    }

    /// It goes on here: to its check, or to its start, which says that nobody offers its handler.
    fn heard_of(&mut self, key: Key) {
        let Some(item) = self.items.get_mut(&key) else { return };
        item.waits_for_word = false;
        match item.state {
            State::Held => self.hold(key),
            State::Doubtful { .. } => self.check_soon = true,
            _ => {}
        }
    }

    /// R18a: what of `keys` can start elsewhere goes there. What was taken stays pending here, since its row names this
    /// executor; so does what is being checked.
    pub(super) fn hand_over(&mut self, keys: Vec<Key>) {
        let mut leaving = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(item) = self.items.get_mut(&key) else { continue };
            match item.give_up() {
                Some(Unstarted::Leaves(goes)) => leaving.push(goes),
                Some(Unstarted::Taken) => self.let_go(key),
                None => {}
            }
        }
        if !leaving.is_empty() {
            hand_over::hand_over(&self.shared, leaving, To::All, Some(RELEASE_MAX), self.own.clone());
        }
    }

    /// R23a: it belongs into another line. What is doubtful was released by its check.
    pub(super) fn give_back(&mut self, key: Key) {
        let Some(item) = self.items.get_mut(&key) else { return };
        match item.give_up() {
            Some(Unstarted::Leaves(leaving)) => hand_over::give_back(&self.shared, leaving, self.own.clone()),
            Some(Unstarted::Taken) | None => {}
        }
    }

    pub(super) fn handed_over(&mut self, key: Key) {
        if self.items.get(&key).is_some_and(|item| matches!(item.state, State::GivenUp)) {
            self.let_go(key);
        }
    }

    /// R18: nothing more starts; what waits is handed over at once, what runs and what is to be recorded gets the grace.
    pub(super) fn begin_drain(&mut self) {
        self.drain = Some(Drain::begin(Instant::now(), self.shared.grace));
        hand_over::offer_nothing(&self.shared);
        let keys: Vec<Key> = self.items.keys().copied().collect();
        self.hand_over(keys);
        let count = |which: fn(&State) -> bool| self.items.values().filter(|item| which(&item.state)).count();
        info!(
            handed_over = count(State::is_leaving),
            running = count(State::is_running),
            unrecorded = count(State::is_ended),
            "stopping: nothing more starts"
        );
    }

    /// Whether a stop that is under way waits for nothing here any more. The engine stays for what has ended until that is recorded:
    /// should the contact break meanwhile, the next incarnation asks it for what was started (R21), and records nothing else.
    pub(super) fn is_drained(&mut self, now: Instant) -> bool {
        let Some(drain) = self.drain else { return false };
        if now >= drain.runs_until {
            self.hand_back_what_runs();
        }
        let any = |which: fn(&State) -> bool| self.items.values().any(|item| which(&item.state));
        if any(State::is_running) || any(State::is_ended) && now < drain.records_until {
            return false;
        }
        // Both have an end of their own, but that a release may be refused for as long as somebody has locked its day.
        self.reading_ended && (now >= drain.leaves_until || !any(State::is_leaving))
    }

    fn hand_back_what_runs(&mut self) {
        let running: Vec<Key> = self.items.values().filter(|item| item.state.is_running()).map(Item::key).collect();
        if !running.is_empty() {
            warn!(handed_back = running.len(), "the grace is over: what still runs is stopped and handed back");
        }
        for key in running {
            if let Some(Item { state: State::Running(running), .. }) = self.items.get(&key) {
                running.cancelled.cancel();
                running.abort.abort();
            }
            self.let_go(key);
        }
    }
}

/// An entry that will not start here.
enum Unstarted {
    /// It goes.
    Leaves(Leaving),
    /// Its row names this executor.
    Taken,
}

impl Item {
    /// Takes it out of what may start, for good. `None`: it has begun, has left already, or is being checked.
    fn give_up(&mut self) -> Option<Unstarted> {
        let ordinary = match &self.state {
            State::Doubtful { checking: true, .. } => return None,
            State::Doubtful { checking: false, .. } => false,
            _ => self.hold_back().then_some(true)?,
        };
        if self.take > 0 {
            return Some(Unstarted::Taken);
        }
        self.state = State::GivenUp;
        let ordinary = ordinary.then(|| self.held());
        Some(Unstarted::Leaves(Leaving { key: self.key(), ordinary, line: self.line, id: self.id }))
    }
}
