//! What is handed to the recorder.

use carillon_store::recorder::{Finished, Started};
use carillon_stream::EntryId;
use uuid::Uuid;

use crate::in_hand::Key;

/// Something to be written.
#[derive(Debug)]
pub(crate) enum ToRecord {
    /// R10: a handler that outlived a flush.
    Started(Key, Started),
    /// R11.
    Finished(Box<FinishedEntry>),
}

impl ToRecord {
    pub(crate) fn key(&self) -> Key {
        match self {
            Self::Started(key, _) => *key,
            Self::Finished(end) => end.entry.key,
        }
    }

    pub(crate) fn execution(&self) -> Uuid {
        self.key().execution
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Started(..) => 0,
            Self::Finished(end) => end.entry.bytes,
        }
    }
}

/// The end of an attempt, and the entry that stands for it.
#[derive(Debug)]
pub(crate) struct FinishedEntry {
    pub entry: Acknowledgement,
    pub finished: Finished,
}

/// What is acknowledged once its end is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledgement {
    pub key: Key,
    pub line: usize,
    pub id: EntryId,
    pub job: Uuid,
    pub attempt: u32,
    /// The job has no fire after this one.
    pub last: bool,
    /// A cancel stood in Redis' set for it.
    pub was_cancelled: bool,
    /// What it counts for in `Slots` until it is written.
    pub bytes: usize,
    /// Nothing is left of it that Postgres could refuse.
    pub plain: bool,
}

/// Bytes that an end holds until it is written.
pub(crate) fn weight(end: &Finished) -> usize {
    /// The rest of an end, and of a log line.
    const FIXED: usize = 512;
    const FIXED_OF_LINE: usize = 64;
    let texts = [&end.result, &end.error, &end.error_stack, &end.reason, &end.metadata];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    let logs: usize = end.logs.iter().map(|line| line.message.len() + FIXED_OF_LINE).sum();
    FIXED + texts + logs
}
