//! What follows for a group that was not written, until all of it is, or what stands in its way is set aside alone.

use std::time::Duration;

use carillon_store::Error;

/// After a deadlock or serialization failure; doubled with each further one of the same group.
const CONFLICT_PAUSE: Duration = Duration::from_millis(2);
/// So many in a row are no chance any more.
const CONFLICTS_MAX: u32 = 6;

/// Where a group stands that was not written.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub items: usize,
    /// Nothing is left in it that Postgres could refuse.
    pub plain: bool,
    /// Postgres would take it plain, and was asked for all of it once more.
    pub rehearsed: bool,
    /// Locked rows were left out.
    pub unlocked: bool,
    /// How often it failed before.
    pub tries: u32,
}

/// What follows for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The same.
    Again,
    /// The same, without what is locked.
    Unlocked,
    /// In two halves: it is too large, or one of them spoils it.
    Split,
    /// The same, once Postgres has shown that it would take it plain: else the cause lies elsewhere, and it is set aside. Asked
    /// for all of it first and then for the plain one only, a refusal of Postgres' own that ends in between would pass for one
    /// of the result.
    Rehearse,
    /// Without what Postgres refuses.
    Plain,
    /// Later, by itself.
    Aside,
}

/// Why it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Postgres did not answer, or could not.
    Away,
    /// Somebody else was in the way, and is gone by now.
    Conflict,
    /// Somebody else is in the way, or it took too long.
    Busy,
    /// Postgres does not take it.
    Refused,
}

impl From<&Error> for Why {
    fn from(error: &Error) -> Self {
        match error {
            error if error.is_unavailable() => Self::Away,
            Error::Conflict(_) => Self::Conflict,
            Error::Busy(_) => Self::Busy,
            _ => Self::Refused,
        }
    }
}

/// Decides, and after which pause.
pub(super) fn after(why: Why, at: At) -> (Next, Duration) {
    let next = match (why, at) {
        (Why::Conflict, At { tries: ..CONFLICTS_MAX, .. }) => {
            return (Next::Again, CONFLICT_PAUSE * (1 << at.tries));
        }
        // The first time it is an outage. What fails again and again may be what Postgres fails of.
        (Why::Away, At { tries: 0, .. } | At { items: 1, tries: ..=3, .. }) => Next::Again,
        // Whoever leaves out what is locked waits for nobody: then it is a whole table, or there is too much of it.
        (Why::Conflict | Why::Busy, At { unlocked: false, .. }) => Next::Unlocked,
        (Why::Away | Why::Refused, At { items: 2.., .. }) => Next::Split,
        (Why::Refused, At { plain: false, rehearsed: false, .. }) => Next::Rehearse,
        (Why::Refused, At { plain: false, .. }) => Next::Plain,
        _ => Next::Aside,
    };
    (next, Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: At = At { items: 1, plain: false, rehearsed: false, unlocked: false, tries: 0 };

    /// Refused, taken plain, refused again: only then it is the result's.
    #[test]
    fn a_result_is_given_up_only_after_postgres_has_refused_it_beside_a_plain_one_that_it_takes() {
        assert_eq!(after(Why::Refused, ONE).0, Next::Rehearse);
        assert_eq!(after(Why::Refused, At { rehearsed: true, ..ONE }).0, Next::Plain);
        assert_eq!(after(Why::Refused, At { rehearsed: true, plain: true, ..ONE }).0, Next::Aside);
    }

    #[test]
    fn whatever_fails_is_set_aside_alone_in_the_end() {
        for why in [Why::Away, Why::Conflict, Why::Busy, Why::Refused] {
            let (mut at, mut steps) = (At { items: 1_000, ..ONE }, 0);
            loop {
                let (next, pause) = after(why, at);
                assert!(pause < Duration::from_secs(1));
                at.tries += 1;
                steps += 1;
                match next {
                    Next::Again => {}
                    Next::Unlocked => at.unlocked = true,
                    Next::Split => at = At { items: at.items / 2, tries: 0, ..at },
                    Next::Rehearse => at.rehearsed = true,
                    Next::Plain => at.plain = true,
                    Next::Aside => break,
                }
                assert!(steps < 100, "{why:?} never ends");
            }
            assert_eq!(at.plain, why == Why::Refused, "a result is given up for nothing but its own sake");
        }
    }

    #[test]
    fn a_lock_is_neither_an_outage_nor_a_conflict() {
        let at = At { items: 7, ..ONE };
        assert_eq!(after(Why::Busy, at), (Next::Unlocked, Duration::ZERO));
        assert_eq!(after(Why::Busy, At { unlocked: true, ..at }), (Next::Aside, Duration::ZERO));
        assert_eq!(after(Why::Conflict, at), (Next::Again, CONFLICT_PAUSE));
        assert_eq!(after(Why::Away, at), (Next::Again, Duration::ZERO));
    }
}
