//! R13, the decision of check-and-take: what to do about a doubtful entry, from what Postgres shows of its execution; and
//! R8a, what becomes of an ordinary one that was named.
//!
//! Pure: the executor reads the rows of a batch in one SELECT, asks here for each, and writes what comes out in one UPDATE
//! that compares every value seen, so that two deciders cannot both win.

use uuid::Uuid;

use crate::execution::Status;

/// What Postgres shows of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its state.
    pub status: Status,
    /// R0.
    pub claim: i64,
    /// R0: number of the batch whose entry stands for it now.
    pub entry: i64,
    /// R0.
    pub take: i32,
    /// R23a: the definition that it is to run with.
    pub revision: i64,
    /// How many workers were lost while they ran this attempt.
    pub lost: i16,
    /// Who runs it, where it is RUNNING.
    pub worker: Option<Uuid>,
    /// That worker has a row, has not ended and was seen within the lease.
    pub worker_live: bool,
    /// That worker handed back (R18): its loss counts as nobody's fault.
    pub worker_ended: bool,
    /// R17.
    pub cancel_requested: bool,
    /// R23.
    pub withdrawn: bool,
    /// R23a: its revision names another line than the one in which its entry stands.
    pub misplaced: bool,
}

impl Seen {
    /// R18a: nobody has started it, and nobody may under a lower take: R16 sets take 0, and a take says RUNNING.
    pub fn is_released(&self) -> bool {
        self.status == Status::Queued && self.take > 0
    }

    /// R23a: what runs stays where it is.
    fn waits_elsewhere(&self) -> bool {
        self.status == Status::Queued && self.misplaced
    }

    /// Recorded, or claimed anew: `claim` is of the past.
    fn is_over(&self, claim: i64) -> bool {
        self.claim != claim || self.status.is_final() || self.status == Status::Retrying
    }
}

/// An attempt that may be lost so many times more before it is given up is suspected of being what its workers died of;
const SUSPECT_BEFORE: i16 = 2;
/// not after a single loss, though: one may die of anything.
const SUSPECT_LOST_MIN: i16 = 2;

/// Whether an attempt that is to start, and whose workers died `lost` times, may be what they died of: then it is not started
/// beside another such one, which would be lost with it time and again. Of those that are taken together, or on trial, the one
/// that was lost most often was so `worst` times: where that is often, each that was lost at all may be the cause, since one that
/// kills before its RUNNING is written is counted once less than what dies with it. Often is seen from the end, `lost_max`:
/// executors that are lost one after the other for another reason are to cost no more than a lease each.
pub fn is_suspect(lost: i16, worst: i16, lost_max: i16) -> bool {
    let often = SUSPECT_LOST_MIN.max(lost_max.saturating_sub(SUSPECT_BEFORE));
    lost >= often || lost > 0 && worst >= often
}

/// What the decider knows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Decider {
    /// Its incarnation.
    pub me: Uuid,
    /// Long enough since the entry came (W, by R13) for every healthy executor to have written RUNNING.
    pub waited: bool,
    /// Its own contact with Postgres was unbroken for a lease: it may judge others not live (R15).
    pub may_judge: bool,
    /// An execution whose workers died this often is poison.
    pub lost_max: i16,
}

/// What to do about the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The attempt is recorded, or unknown, or another entry stands for it (R13a): acknowledge (R12).
    Over,
    /// Somebody alive runs it: leave it pending, forget it.
    Leave,
    /// Too early to say: ask again later.
    Wait,
    /// R13a, R23a: whoever may take it may not run it, since it belongs into another line: release it, delete its entry, and let the
    /// leader know.
    Move,
    /// Take it, then do as `then` says.
    Take {
        /// The holder died: its loss counts.
        count_lost: bool,
        /// What follows.
        then: Then,
        /// How often workers have died running it, this time counted ([`is_suspect`]).
        lost: i16,
    },
}

/// What follows a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Start the handler (at its instant).
    Start,
    /// Record it CANCELLED: that was asked for.
    Cancel,
    /// Record it SKIPPED: it was withdrawn before its instant.
    Skip,
    /// Record it FAILED: it killed too many workers.
    Fail,
}

/// Decides about an entry of batch `number` that carries `claim`. `row` is `None` where Postgres knows no such execution.
pub fn decide(row: Option<&Seen>, claim: i64, number: i64, decider: Decider) -> Verdict {
    let Some(row) = row else { return Verdict::Over };
    if row.is_over(claim) {
        return Verdict::Over;
    }
    let mine = row.status == Status::Running && row.worker == Some(decider.me);
    // R13a: published again since; whoever the row names stays with the copy that it took (H120).
    if number < row.entry && !mine {
        return Verdict::Over;
    }
    let mut count_lost = false;
    if row.status == Status::Running {
        if !mine && row.worker_live {
            return Verdict::Leave;
        }
        if !mine && !row.worker_ended && !decider.may_judge {
            return Verdict::Wait;
        }
        count_lost = !mine && !row.worker_ended;
    } else if !decider.waited && !row.is_released() {
        return Verdict::Wait;
    }
    let lost = row.lost + i16::from(count_lost);
    let then = if row.withdrawn && row.status == Status::Queued {
        Then::Skip
    } else if row.cancel_requested {
        Then::Cancel
    } else if lost >= decider.lost_max {
        Then::Fail
    } else {
        Then::Start
    };
    if then == Then::Start && row.waits_elsewhere() {
        return Verdict::Move;
    }
    Verdict::Take { count_lost, then, lost }
}

/// R8a: what becomes of an unstarted entry that the cancelled set or a notice named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reread {
    /// The attempt is recorded, or unknown: acknowledge (R12).
    Over,
    /// Somebody else has it: leave it pending, forget it.
    LetGo,
    /// Record it CANCELLED (R11).
    Cancel,
    /// Record it SKIPPED (R11): it was withdrawn before its instant.
    Skip,
    /// It stays what it is, with the row's revision.
    Stay,
    /// R23a: it belongs into another line by its revision: release it, delete its entry, and let the leader know.
    Move,
}

/// R8a: decides about an entry in hand that carries `claim`. An ordinary one (`take` 0) is nobody else's to start, so it needs
/// no wait; one that `me` took (R13) says so in its row.
pub fn reread(row: Option<&Seen>, claim: i64, take: i32, me: Uuid) -> Reread {
    let Some(row) = row else { return Reread::Over };
    if row.is_over(claim) {
        return Reread::Over;
    }
    let holder = if take == 0 { row.status == Status::Queued } else { row.worker == Some(me) };
    if row.take != take || !holder {
        return Reread::LetGo;
    }
    match (row.cancel_requested, row.withdrawn && row.status == Status::Queued) {
        (false, _) if row.waits_elsewhere() => Reread::Move,
        (false, _) => Reread::Stay,
        (true, false) => Reread::Cancel,
        (true, true) => Reread::Skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);
    const DECIDER: Decider = Decider { me: ME, waited: true, may_judge: true, lost_max: 5 };

    fn queued() -> Seen {
        Seen {
            status: Status::Queued,
            claim: 7,
            entry: 7,
            take: 0,
            revision: 1,
            lost: 0,
            worker: None,
            worker_live: false,
            worker_ended: false,
            cancel_requested: false,
            withdrawn: false,
            misplaced: false,
        }
    }

    fn running(worker: Uuid, worker_live: bool) -> Seen {
        Seen { status: Status::Running, worker: Some(worker), worker_live, ..queued() }
    }

    const START: Verdict = Verdict::Take { count_lost: false, then: Then::Start, lost: 0 };

    #[test]
    fn r23a_what_belongs_into_another_line_is_not_started_in_this_one() {
        let misplaced = Seen { misplaced: true, ..queued() };
        assert_eq!(decide(Some(&misplaced), 7, 7, DECIDER), Verdict::Move);
        let early = Decider { waited: false, ..DECIDER };
        assert_eq!(decide(Some(&misplaced), 7, 7, early), Verdict::Wait, "somebody may have started it");
        assert_eq!(decide(Some(&Seen { take: 1, ..misplaced.clone() }), 7, 7, early), Verdict::Move, "nobody has");
        assert_eq!(reread(Some(&misplaced), 7, 0, ME), Reread::Move);
        // H119, H117: its entry in the old line stands for nothing any more.
        assert_eq!(decide(Some(&Seen { entry: 8, ..misplaced.clone() }), 7, 7, DECIDER), Verdict::Over);
        // What runs stays, and what is to end ends here.
        let lost = Seen { misplaced: true, ..running(OTHER, false) };
        assert_eq!(decide(Some(&lost), 7, 7, DECIDER), Verdict::Take { count_lost: true, then: Then::Start, lost: 1 });
        assert_eq!(reread(Some(&Seen { misplaced: true, take: 1, ..running(ME, true) }), 7, 1, ME), Reread::Stay);
        let cancelled = Seen { cancel_requested: true, ..misplaced };
        assert_eq!(reread(Some(&cancelled), 7, 0, ME), Reread::Cancel);
    }

    #[test]
    fn what_is_recorded_or_unknown_is_over() {
        assert_eq!(decide(None, 7, 7, DECIDER), Verdict::Over);
        for status in Status::ALL.iter().filter(|status| status.is_final() || **status == Status::Retrying) {
            assert_eq!(decide(Some(&Seen { status: *status, ..queued() }), 7, 7, DECIDER), Verdict::Over);
        }
        assert_eq!(decide(Some(&queued()), 8, 7, DECIDER), Verdict::Over, "another claim of the same execution");
    }

    /// H6, H8: a QUEUED row may be run by a healthy executor that has not written RUNNING yet.
    #[test]
    fn a_queued_one_is_not_taken_before_every_healthy_executor_had_time_to_write() {
        assert_eq!(decide(Some(&queued()), 7, 7, Decider { waited: false, ..DECIDER }), Verdict::Wait);
        assert_eq!(decide(Some(&queued()), 7, 7, DECIDER), START);
    }

    #[test]
    fn a_running_one_is_left_to_its_live_worker_and_taken_from_a_dead_one() {
        assert_eq!(decide(Some(&running(OTHER, true)), 7, 7, DECIDER), Verdict::Leave);
        let dead = running(OTHER, false);
        assert_eq!(decide(Some(&dead), 7, 7, DECIDER), Verdict::Take { count_lost: true, then: Then::Start, lost: 1 });
        assert_eq!(decide(Some(&dead), 7, 7, Decider { may_judge: false, ..DECIDER }), Verdict::Wait);
    }

    #[test]
    fn what_an_ended_worker_handed_back_is_taken_at_once_and_counts_as_nobodys_fault() {
        let handed_back = Seen { worker_ended: true, ..running(OTHER, false) };
        assert_eq!(decide(Some(&handed_back), 7, 7, Decider { may_judge: false, ..DECIDER }), START);
    }

    #[test]
    fn ones_own_that_is_not_in_hand_is_taken() {
        assert_eq!(decide(Some(&running(ME, true)), 7, 7, DECIDER), START);
    }

    #[test]
    fn what_several_workers_died_with_is_suspected_and_all_that_was_lost_with_it() {
        for lost_max in [1, 2, 3, 4] {
            assert!(!is_suspect(1, 1, lost_max), "one loss says nothing");
            assert!(is_suspect(2, 2, lost_max) && is_suspect(1, 2, lost_max));
            assert!(!is_suspect(0, 9, lost_max), "what was never lost is none");
        }
        assert!(!is_suspect(2, 2, 5), "two executors were lost one after the other");
        assert!(is_suspect(3, 3, 5) && is_suspect(1, 3, 5), "two starts are left to tell it from its neighbours");
    }

    #[test]
    fn poison_fails_at_last() {
        let row = Seen { lost: 4, ..running(OTHER, false) };
        assert_eq!(decide(Some(&row), 7, 7, DECIDER), Verdict::Take { count_lost: true, then: Then::Fail, lost: 5 });
    }

    #[test]
    fn a_cancel_beats_a_start_and_what_was_withdrawn_in_time_is_skipped() {
        let cancelled = Seen { cancel_requested: true, ..queued() };
        assert_eq!(
            decide(Some(&cancelled), 7, 7, DECIDER),
            Verdict::Take { count_lost: false, then: Then::Cancel, lost: 0 }
        );
        let withdrawn = Seen { withdrawn: true, ..cancelled.clone() };
        assert_eq!(
            decide(Some(&withdrawn), 7, 7, DECIDER),
            Verdict::Take { count_lost: false, then: Then::Skip, lost: 0 }
        );
        let started = Seen { withdrawn: true, cancel_requested: true, ..running(OTHER, false) };
        assert_eq!(
            decide(Some(&started), 7, 7, DECIDER),
            Verdict::Take { count_lost: true, then: Then::Cancel, lost: 1 }
        );
    }

    /// H119: a copy that came back must not start what stands in another entry by now.
    #[test]
    fn h119_a_superseded_copy_is_over() {
        let again = Seen { entry: 9, ..queued() };
        assert_eq!(decide(Some(&again), 7, 7, DECIDER), Verdict::Over);
        assert_eq!(decide(Some(&again), 7, 9, DECIDER), START, "the very entry");
        assert_eq!(decide(Some(&Seen { take: 1, ..again.clone() }), 7, 7, DECIDER), Verdict::Over, "released");
        for live in [true, false] {
            let elsewhere = Seen { entry: 9, ..running(OTHER, live) };
            assert_eq!(decide(Some(&elsewhere), 7, 7, DECIDER), Verdict::Over, "RUNNING elsewhere");
        }
    }

    /// H120: dropped by the one whom the row names, nobody would ever start it.
    #[test]
    fn h120_a_superseded_copy_stays_with_whom_the_row_names() {
        let mine = Seen { entry: 9, take: 1, ..running(ME, true) };
        assert_eq!(decide(Some(&mine), 7, 7, DECIDER), START);
    }

    #[test]
    fn r13a_what_was_released_is_taken_without_a_wait() {
        let hasty = Decider { waited: false, may_judge: false, ..DECIDER };
        let released = Seen { take: 1, ..queued() };
        assert!(released.is_released() && !queued().is_released() && !running(OTHER, true).is_released());
        assert_eq!(decide(Some(&released), 7, 7, hasty), START);
        let cancelled = Seen { cancel_requested: true, ..released.clone() };
        assert_eq!(
            decide(Some(&cancelled), 7, 7, hasty),
            Verdict::Take { count_lost: false, then: Then::Cancel, lost: 0 }
        );
        assert_eq!(decide(Some(&queued()), 7, 7, hasty), Verdict::Wait, "not released");
    }

    #[test]
    fn r8a_an_ordinary_one_stays_ordinary_as_long_as_its_row_says_so() {
        let ordinary = |row: &Seen| reread(Some(row), 7, 0, ME);
        assert_eq!(reread(None, 7, 0, ME), Reread::Over, "unknown");
        assert_eq!(ordinary(&queued()), Reread::Stay);
        assert_eq!(ordinary(&Seen { revision: 2, ..queued() }), Reread::Stay);
        let cancelled = Seen { cancel_requested: true, ..queued() };
        assert_eq!(ordinary(&cancelled), Reread::Cancel);
        assert_eq!(ordinary(&Seen { withdrawn: true, ..cancelled }), Reread::Skip);
        assert_eq!(ordinary(&Seen { take: 1, ..queued() }), Reread::LetGo, "released, or taken and released");
        assert_eq!(ordinary(&Seen { take: 1, ..running(OTHER, true) }), Reread::LetGo);
        assert_eq!(ordinary(&running(OTHER, true)), Reread::LetGo, "started elsewhere");
        assert_eq!(ordinary(&Seen { claim: 8, ..queued() }), Reread::Over, "claimed anew");
        for status in Status::ALL.iter().filter(|status| status.is_final() || **status == Status::Retrying) {
            assert_eq!(ordinary(&Seen { status: *status, ..queued() }), Reread::Over);
        }
    }

    #[test]
    fn r8a_a_taken_one_stays_as_long_as_it_is_ones_own() {
        let taken = |row: &Seen| reread(Some(row), 7, 1, ME);
        let mine = Seen { take: 1, ..running(ME, true) };
        assert_eq!(taken(&mine), Reread::Stay);
        assert_eq!(taken(&Seen { cancel_requested: true, withdrawn: true, ..mine.clone() }), Reread::Cancel);
        assert_eq!(taken(&Seen { take: 2, ..running(OTHER, true) }), Reread::LetGo);
        assert_eq!(taken(&Seen { take: 1, ..running(OTHER, true) }), Reread::LetGo);
        assert_eq!(taken(&Seen { status: Status::Success, ..mine }), Reread::Over);
    }
}
