//! What this executor is to Postgres right now: its incarnation, whether its contact is unbroken, and the database's clock.
//!
//! R14, R21: a broken connection ends an incarnation. Whoever notices says so with [`Incarnation::broke`] and waits with
//! [`Incarnation::unbroken`]; `lease.rs` makes the next one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use carillon_kit::Flag;
use carillon_store::clock::DbClock;
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// To start nothing for so long is no hiccup any more.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The state of the contact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contact {
    /// The incarnation.
    pub worker: Uuid,
    /// No connection broke since this incarnation began.
    pub unbroken: bool,
    /// Since when.
    pub since: Instant,
    /// The last beat that Postgres has taken.
    pub last_beat: Instant,
}

/// The contact, shared by all parts of the executor.
#[derive(Clone, Debug)]
pub(crate) struct Incarnation {
    contact: watch::Sender<Contact>,
    clock: Clock,
    left: Arc<Mutex<Left>>,
}

/// Executions that an earlier incarnation of this process was left with.
pub(crate) type Left = Arc<HashSet<Uuid>>;

/// The database's clock, shared.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<Mutex<DbClock>>);

impl Clock {
    pub(crate) fn get(&self) -> DbClock {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.get().now()
    }

    fn hear(&self, newer: DbClock) {
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *clock = clock.or_better(newer);
    }
}

impl Incarnation {
    /// The first.
    pub(crate) fn begin(worker: Uuid, clock: DbClock) -> Self {
        let now = Instant::now();
        let contact = Contact { worker, unbroken: true, since: now, last_beat: now };
        Self { contact: watch::Sender::new(contact), clock: Clock(Arc::new(Mutex::new(clock))), left: Arc::default() }
    }

    pub(crate) fn contact(&self) -> Contact {
        *self.contact.borrow()
    }

    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// R14: Postgres has taken a beat that was sent at `sent`. After a time without one, though no connection broke, this process may
    /// have been judged dead, and so may others whose beats were refused as well: the contact begins anew, and nobody is judged before
    /// it has lasted (R15).
    pub(crate) fn beat(&self, sent: Instant, clock: DbClock, lease: Duration) {
        self.clock.hear(clock);
        self.contact.send_modify(|contact| {
            if sent.saturating_duration_since(contact.last_beat) >= lease / 2 {
                contact.since = Instant::now();
            }
            contact.last_beat = sent;
        });
    }

    /// A connection to Postgres broke, or its outcome is not known.
    pub(crate) fn broke(&self, worker: Uuid) {
        self.contact.send_if_modified(|contact| {
            let news = contact.unbroken && contact.worker == worker;
            contact.unbroken &= !news;
            news
        });
    }

    /// What this process started and had locked by somebody else when its incarnation began: still its own, by the earlier one.
    pub(crate) fn left(&self) -> Left {
        Arc::clone(&self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn leave(&self, left: impl IntoIterator<Item = Uuid>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(left.into_iter().collect());
    }

    /// R21: the next incarnation.
    pub(crate) fn succeed(&self, worker: Uuid) {
        let now = Instant::now();
        self.contact.send_replace(Contact { worker, unbroken: true, since: now, last_beat: now });
    }

    /// R9: whether anything may be read or started.
    pub(crate) fn may_start(&self, lease: Duration) -> bool {
        let contact = self.contact();
        contact.unbroken && contact.last_beat.elapsed() < lease / 2
    }

    /// Keeps the flag as [`Self::may_start`] says until the stop: whoever may start nothing for long can't do its own work, though
    /// Postgres may answer it elsewhere.
    pub(crate) async fn show(self, lease: Duration, flag: Flag, stop: CancellationToken) -> anyhow::Result<()> {
        let mut idle_since: Option<Instant> = None;
        let works = || {
            if self.may_start(lease) {
                idle_since = None;
                return true;
            }
            idle_since.get_or_insert_with(Instant::now).elapsed() < IDLE_MAX
        };
        let why = format!("no beat was taken for {} s: nothing is started", IDLE_MAX.as_secs());
        flag.follow(works, why, stop).await;
        Ok(())
    }

    /// Waits until the contact is unbroken, and says as whom.
    pub(crate) async fn unbroken(&self) -> Contact {
        let mut changes = self.contact.subscribe();
        loop {
            let contact = *changes.borrow_and_update();
            if contact.unbroken || changes.changed().await.is_err() {
                return contact;
            }
        }
    }

    /// Waits until the contact breaks.
    pub(crate) async fn broken(&self) {
        let mut changes = self.contact.subscribe();
        while changes.borrow_and_update().unbroken {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Hears of each change.
    pub(crate) fn changes(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R15: though no connection broke, others may have been refused their beats as long as this one was.
    #[test]
    fn after_a_time_without_a_beat_the_contact_begins_anew() {
        let lease = Duration::from_secs(20);
        let clock = || DbClock::from_round_trip(Instant::now(), Instant::now(), Utc::now());
        let incarnation = Incarnation::begin(Uuid::nil(), clock());
        let began = incarnation.contact().since;
        incarnation.beat(began + lease / 4, clock(), lease);
        incarnation.beat(began + lease / 2, clock(), lease);
        assert_eq!(incarnation.contact().since, began);
        incarnation.beat(began + lease * 2, clock(), lease);
        let contact = incarnation.contact();
        assert!(contact.since > began && contact.unbroken);
        assert_eq!(contact.worker, Uuid::nil(), "it is the same incarnation still");
    }
}
