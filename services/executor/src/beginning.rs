//! Whether a spawned handler has begun. Between the spawn and its first instruction it may wait, behind handlers that block
//! their threads or through a stall of this process, and as long as it does it has not started (R9): the engine may take it
//! back. Which of both happens is decided once.

use std::sync::OnceLock;
use std::time::Instant;

use chrono::{DateTime, Utc};

/// When a handler began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// By the database's clock.
    pub at: DateTime<Utc>,
    /// What its timeout counts from.
    pub instant: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Beginning(OnceLock<Option<Begun>>);

impl Beginning {
    /// Called by the handler's task first of all. `false`: it was taken back and must not run.
    pub(crate) fn begin(&self, at: DateTime<Utc>) -> bool {
        self.0.set(Some(Begun { at, instant: Instant::now() })).is_ok()
    }

    /// `true`: it has not begun, and never will.
    pub(crate) fn take_back(&self) -> bool {
        self.0.set(None).is_ok()
    }

    /// When it began.
    pub(crate) fn begun(&self) -> Option<Begun> {
        self.0.get().copied().flatten()
    }

    pub(crate) fn is_taken_back(&self) -> bool {
        self.0.get() == Some(&None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_or_is_taken_back_and_never_both() {
        let (begins, taken) = (Beginning::default(), Beginning::default());
        assert!(begins.begin(DateTime::UNIX_EPOCH) && !begins.take_back() && !begins.begin(DateTime::UNIX_EPOCH));
        assert!(begins.begun().is_some() && !begins.is_taken_back());
        assert!(taken.take_back() && !taken.begin(DateTime::UNIX_EPOCH) && !taken.take_back());
        assert!(taken.begun().is_none() && taken.is_taken_back());
    }
}
