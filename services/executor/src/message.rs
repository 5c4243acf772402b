//! What the engine hears from the tasks around it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use carillon_core::take::{self, Then};
use carillon_store::recorder::{Held, Started, Verdict};
use carillon_store::takes::{Adopted, Payload};
use carillon_stream::entry::EntryId;
use carillon_stream::notices::Notice;
use carillon_stream::reader::{Look, Received};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::ended::Ended;
use crate::in_hand::{Key, Origin};

/// One thing that it hears.
#[derive(Debug)]
pub(crate) enum Message {
    /// Entries, with slots filled for them.
    Read(Arrival),
    /// A handler came to its first instruction so late that it was taken back.
    NotBegun(Key),
    /// A handler has ended.
    Ended(Key, Box<Ended>),
    /// R10, R11: what became of what was handed to the recorder.
    Recorded { started: Vec<(Key, Verdict)>, finished: Vec<(Key, Verdict)> },
    /// R13: what became of a check.
    Checked(Vec<(Key, Checked)>),
    /// Payloads that did not travel in their entries.
    Payloads(Vec<Key>, HashMap<Uuid, Payload>),
    /// Payloads that Postgres refused to read some time ago.
    Lacking(Vec<Key>),
    /// R8a: what became of what was named, by the number of the question.
    Reread(u64, Vec<(Held, Reread)>),
    /// Of these running handlers a cancel was requested.
    CancelsRequested(Vec<Held>),
    /// Who offers the handler of an entry, which this executor does not.
    NotOffered(Key, Offer),
    /// R18a: these are another's to start now, or over, or stay pending until this executor has ended; R23a: or on their way to
    /// another line.
    HandedOver(Vec<Key>),
    /// Nothing more is read.
    ReadingEnded,
    /// R23: Redis was looked at while something is held.
    Looked(Look),
    /// A hint.
    Notice(Notice),
    /// R14: which entries to renew, by line.
    WhatIsHeld(oneshot::Sender<Vec<(usize, EntryId)>>),
    /// R21: which handlers have started.
    WhatHasStarted(oneshot::Sender<Vec<Started>>),
    /// R21: which of them the new incarnation owns.
    Reasserted(HashSet<Uuid>, Vec<Held>),
}

/// Entries on their way in.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub entries: Vec<Received>,
    /// Behind a read; `None` for what did not come by one.
    pub look: Option<Look>,
    pub origin: Origin,
    /// When the read was sent, on a clock that goes on while the machine sleeps. When Redis answered it is not known: the answer
    /// may have lain here, unread, while this process stood still.
    pub sent_at: Duration,
    /// When the answer was taken in, on the same clock.
    pub read_at: Duration,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Ask again later.
    Wait,
    /// Somebody alive runs it, or was quicker to take it.
    Leave,
    /// Recorded, or unknown: acknowledge.
    Over,
    /// R23a: released, since it belongs into another line.
    Move,
    /// Taken.
    Taken { take: i32, revision: i64, then: Then },
}

/// What became of an entry that was named (R8a).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reread {
    /// As the row says, without its revision being another.
    Row(take::Reread),
    /// It stays, and is to run with this.
    Adopt(Adopted),
    /// Postgres refused to say: the entry is doubtful (R13).
    Refused,
}

/// Who offers a handler that this executor does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Another, by its name in the consumer groups.
    By(String),
    /// No live executor of that queue.
    Nobody,
}
