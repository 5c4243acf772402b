//! What this executor has in hand: every entry that it has read and not yet let go of.

use std::sync::Arc;
use std::time::Instant;

use carillon_store::recorder::{Held, Started};
use carillon_stream::entry::{Entry, EntryId};
use chrono::{DateTime, Utc};
use metrics::counter;
use serde_json::value::RawValue;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::beginning::Beginning;
use crate::slots::Weight;

/// An attempt of an execution: what two entries that mean the same share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub execution: Uuid,
    /// R0.
    pub claim: i64,
}

/// How an entry came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By a read of new entries.
    New,
    /// From one's own pending entries (R8), or from another's (R15): always doubtful.
    Pending,
}

/// One entry in hand.
#[derive(Debug)]
pub(crate) struct Item {
    /// Index of its line.
    pub line: usize,
    /// Its id in the stream.
    pub id: EntryId,
    /// What it says.
    pub entry: Entry,
    /// R0: 0 for an ordinary one, else as it was taken.
    pub take: i32,
    /// The cancelled set, or a notice, named it: it leaves the set with its end (R8a).
    pub named: bool,
    /// This executor does not offer its handler, and waits for word of who does: until then it is neither taken nor started.
    pub waits_for_word: bool,
    /// Where it stands.
    pub state: State,
    /// What it counts for in `Slots`.
    pub weight: Weight,
    /// The newest entry of the same claim that came meanwhile.
    pub newer: Option<Newer>,
}

/// An entry of what is in hand already: published again (R19).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newer {
    pub line: usize,
    pub id: EntryId,
    pub came: Instant,
}

/// Where an entry in hand stands.
#[derive(Debug)]
pub(crate) enum State {
    /// To be checked in Postgres before it starts (R13).
    Doubtful {
        /// From when the wait for every healthy executor's RUNNING counts.
        since: Instant,
        /// A check is under way.
        checking: bool,
        /// When to check it (again).
        due: Instant,
    },
    /// R8a: named by the cancelled set or a notice. Not started before its row was read again; with the number of the question.
    Named { asked: Option<u64> },
    /// Waits for its instant (R23), for its payload, or for word of who offers its handler.
    Held,
    /// R18a: taken out of what may start, for good; its release, and its way to another, are being written.
    GivenUp,
    /// Its handler runs, or is about to.
    Running(Running),
    /// Its end waits to be written.
    Ended {
        /// When its handler started, if it did.
        started_at: Option<DateTime<Utc>>,
    },
}

impl State {
    pub(crate) const fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    pub(crate) const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        matches!(self, Self::GivenUp)
    }
}

/// A handler that was spawned.
#[derive(Debug)]
pub(crate) struct Running {
    /// Decided by its first instruction, or by its being taken back.
    pub beginning: Arc<Beginning>,
    pub spawned: Instant,
    /// On which set of threads.
    pub set: usize,
    pub cancelled: CancellationToken,
    pub abort: AbortHandle,
    /// Why it was asked to stop.
    pub stopping: Option<Stop>,
    /// R10: RUNNING is on its way to Postgres.
    pub shown: bool,
}

/// Why a handler is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It took too long.
    TimedOut,
    /// A cancel was requested.
    Cancelled,
    /// Somebody else has its execution, or it is over: nothing of it is recorded.
    Lost,
}

impl Item {
    pub(crate) const fn key(&self) -> Key {
        Key { execution: self.entry.execution, claim: self.entry.claim }
    }

    pub(crate) const fn held(&self) -> Held {
        Held { execution: self.entry.execution, claim: self.entry.claim, take: self.take }
    }

    /// Keeps or gives up the payload.
    pub(crate) fn set_payload(&mut self, payload: Option<Box<RawValue>>) {
        self.entry.payload = payload;
        self.weight.set(weight_of(&self.entry));
    }

    /// R10: that its handler has started, with the revision that came with the entry (H114).
    pub(crate) const fn started(&self, started_at: DateTime<Utc>) -> Started {
        Started { held: self.held(), started_at, revision: self.entry.revision }
    }

    /// R18a, R8a: whether it may start for all that is known, and has not; if it was about to, it never will.
    pub(crate) fn hold_back(&self) -> bool {
        match &self.state {
            State::Held | State::Named { .. } => true,
            State::Running(running) => running.beginning.take_back(),
            State::Doubtful { .. } | State::GivenUp | State::Ended { .. } => false,
        }
    }

    /// Another entry of it has come. It stays pending; the newest takes over if what is in hand is found superseded.
    pub(crate) fn note_newer(&mut self, newer: Newer) {
        let known = self.newer.map_or(self.id.number, |known| known.id.number.max(self.id.number));
        if newer.id.number > known {
            self.newer = Some(newer);
        }
    }

    /// R13a: this entry is superseded. Says whether the newer one that has come took its place, to be checked in turn: left to the
    /// next listing of what is pending it would start up to a quarter of the lease later.
    pub(crate) fn gives_way(&mut self) -> bool {
        let Some(newer) = self.newer.take() else { return false };
        (self.line, self.id) = (newer.line, newer.id);
        self.doubt(newer.came);
        true
    }

    /// R13: to be checked before it starts, counted from `since`.
    pub(crate) fn doubt(&mut self, since: Instant) {
        self.state = State::Doubtful { since, checking: false, due: Instant::now() };
        counter!("carillon_executor_doubtful_total").increment(1);
    }
}

/// Bytes that an entry takes while it is in hand: twice its payload, since its handler has one too.
pub(crate) fn weight_of(entry: &Entry) -> usize {
    /// The rest of it, and of what stands beside it.
    const FIXED: usize = 1_024;
    FIXED + 2 * entry.payload.as_ref().map_or(0, |payload| payload.get().len())
}
