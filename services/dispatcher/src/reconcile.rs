//! R19: what Postgres calls open and Redis does not hold is published again.
//!
//! Walks the settled batches and asks Redis for each very entry; a batch of which nothing is open any more is forgotten on the
//! way. It goes a page at a time, between claims, so that it never matters to a fire how much there is to walk:
//!
//! - *asked for*: a batch that was passed over (R7), at once; one of which somebody had locked a row, some seconds later; and
//!   so each of a page that the server has refused, by itself, so that the one which it is about keeps no other from its look;
//! - the *whole* pass, at once after a certificate or an executor's report, newest first: what is lost is mostly what was
//!   published last, and how old the installation is makes no difference then. Reports that come while it runs share the next;
//! - otherwise the *young*: each batch once, as soon as it has had time to finish, so that forgetting keeps pace with claiming;
//! - and the *old*: whatever is still there, oldest first, round and round.
//!
//! What belongs to a day that somebody has locked as a whole is not asked about: its batches stay, and the walk over the old comes
//! back to them.
//!
//! All of it is this process's memory: a new leader begins anew.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use carillon_core::line::Line;
use carillon_store::open_entries::{Batch, Missing, OpenEntry};
use carillon_stream::entry::EntryId;
use metrics::counter;
use tracing::warn;

use crate::TICK;
use crate::claim::ROWS_OF_ANY_SIZE;
use crate::leader::{End, Leader, delta};

/// A batch younger than this is left alone by the ordinary walk: what it published is most likely still on its way.
const SETTLING: Duration = Duration::from_secs(10);
/// Between the beginnings of two walks over what is old.
const ROUND: Duration = Duration::from_secs(5);
/// After an ordinary page, times what it took: a fifth of the leader's time goes into the walk at most,
const PAUSE: u32 = 4;
/// and a fortieth while there is more to claim than one batch holds. What is left lying is caught up with afterwards.
const PAUSE_BUSY: u32 = 40;
/// Between the beginnings of two whole passes that executors asked for.
const REPORTS_SHARED: Duration = Duration::from_secs(1);
/// From the beginning of a whole pass of which the server has refused a page to that of the next, which answers for it.
const WHOLE_AGAIN: Duration = Duration::from_secs(10 * 60);
/// After this a batch is looked at again of which somebody had locked a row.
pub(crate) const LOCKED_PAUSE: Duration = Duration::from_secs(5);
/// Batches asked for, at most: beyond it the walk over the old finds them.
const ASKED_MAX: usize = 10_000;
/// Batches asked for that are read at once.
const ASKED_PAGE: usize = 16;

/// A batch that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    number: i64,
    /// By itself: a page with it was refused.
    alone: bool,
}

/// Where the walks stand.
#[derive(Debug)]
pub(crate) struct Passes {
    asked: VecDeque<Asked>,
    /// When a whole pass is to begin.
    whole_due: Option<Instant>,
    whole_began: Option<Instant>,
    /// A whole pass is under way, and has looked at all from here on.
    below: Option<i64>,
    /// The certificate that asks for a whole pass, until one is over that began after it,
    certificate: Option<i64>,
    /// and the one that the pass under way answers.
    answers: Option<i64>,
    /// Numbers that were the last ones, and when: what is above the youngest of them that is old enough is young.
    drawn: VecDeque<(Instant, i64)>,
    /// Up to here all were looked at once.
    young: i64,
    /// Up to here the walk over the old has come.
    old: i64,
    old_began: Instant,
    next: Instant,
    /// After a page that the server refused.
    not_before: Instant,
}

impl Default for Passes {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            asked: VecDeque::new(),
            whole_due: None,
            whole_began: None,
            below: None,
            certificate: None,
            answers: None,
            drawn: VecDeque::new(),
            young: 0,
            old: 0,
            old_began: now,
            next: now,
            not_before: now,
        }
    }
}

impl Passes {
    /// The certificate of `number` was written: all that Redis holds is doubtful, also what a pass under way has seen there.
    pub(crate) fn certified(&mut self, number: i64) {
        (self.below, self.answers) = (None, None);
        self.whole_due = Some(Instant::now());
        self.certificate = Some(number);
    }

    /// Begins a whole pass below `newest`.
    fn begin_whole(&mut self, newest: i64, now: Instant) {
        (self.below, self.whole_due, self.whole_began) = (Some(newest), None, Some(now));
        self.answers = self.certificate;
    }

    /// A page of the whole pass was refused, or some of it is of a locked day: what it answers for is not all looked at when it
    /// is over, and another one answers.
    fn leaves_out(&mut self, now: Instant) {
        self.answers = None;
        self.whole_due.get_or_insert(now + WHOLE_AGAIN);
    }

    /// The certificate whose pass is over, if the whole pass is.
    fn whole_is_over(&mut self) -> Option<i64> {
        if self.below.is_some() { None } else { self.answers.take() }
    }

    /// Below this batches have had time to finish: numbers that were drawn so long ago, by this process' own clock. That of the
    /// database may have been set back, and numbers, which never go back (R1), be far ahead of it. What an earlier leader drew is of
    /// before this one's first.
    fn settled_below(&mut self, last: i64, by_clock: i64, now: Instant) -> i64 {
        if self.drawn.back().is_none_or(|(at, _)| now.duration_since(*at) >= TICK) {
            self.drawn.push_back((now, last));
        }
        let is_old = |at: &Instant| now.duration_since(*at) >= SETTLING;
        while self.drawn.get(1).is_some_and(|(at, _)| is_old(at)) {
            self.drawn.pop_front();
        }
        self.drawn.front().filter(|(at, _)| is_old(at)).map_or(by_clock, |(_, number)| by_clock.max(number + 1))
    }

    /// An executor has met something missing. What a pass under way has looked at may have been lost since.
    pub(crate) fn reported(&mut self) {
        let earliest = self.whole_began.map_or_else(Instant::now, |began| began + REPORTS_SHARED);
        self.whole_due.get_or_insert(earliest);
    }

    /// R7: a batch is in Redis, or lost.
    pub(crate) fn ask_for(&mut self, number: i64) {
        self.ask_later(number, Instant::now());
    }

    /// The same, not before `at`.
    pub(crate) fn ask_later(&mut self, number: i64, at: Instant) {
        self.ask(Asked { at, number, alone: false });
    }

    /// The server has refused a page with these batches: nothing is known of any of them.
    fn refused(&mut self, numbers: impl IntoIterator<Item = i64>) {
        let at = Instant::now() + LOCKED_PAUSE;
        for number in numbers {
            self.ask(Asked { at, number, alone: true });
        }
    }

    /// Who asks for it earlier has it looked at earlier: it may have changed since.
    fn ask(&mut self, what: Asked) {
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.number == what.number) {
            (asked.at, asked.alone) = (asked.at.min(what.at), asked.alone || what.alone);
        } else if self.asked.len() < ASKED_MAX {
            self.asked.push_back(what);
        }
    }

    /// When a page is due.
    pub(crate) fn next_page(&self) -> Instant {
        let urgent = if self.below.is_some() { Some(Instant::now()) } else { self.whole_due };
        let asked = self.asked.iter().map(|asked| asked.at).min();
        urgent.into_iter().chain(asked).fold(self.next, Instant::min).max(self.not_before)
    }

    /// Lets it be until then.
    pub(crate) fn pause_until(&mut self, at: Instant) {
        self.not_before = at;
    }

    /// Whether something is to be looked at that does not wait for an idle moment.
    pub(crate) fn is_urgent(&self) -> bool {
        let now = Instant::now();
        let is_due = |at: &Instant| *at <= now;
        is_due(&self.not_before)
            && (self.below.is_some()
                || self.whole_due.as_ref().is_some_and(is_due)
                || self.asked.iter().any(|asked| is_due(&asked.at)))
    }

    fn take_asked(&mut self) -> Vec<i64> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut is_full = false;
        self.asked.retain(|asked| {
            let take = asked.at <= now && !is_full && (due.is_empty() || !asked.alone);
            if take {
                due.push(asked.number);
                is_full = asked.alone || due.len() == ASKED_PAGE;
            }
            !take
        });
        due
    }
}

impl Leader {
    /// Looks at one page of whatever is due.
    ///
    /// # Errors
    /// The session is lost, or another leader leads.
    pub(crate) async fn reconcile_page(&mut self) -> Result<(), End> {
        let began = Instant::now();
        let asked = self.passes.take_asked();
        if !asked.is_empty() {
            let outcome = self.reconcile_asked(&asked).await;
            return self.refused(asked, outcome).map(drop);
        }
        if self.passes.below.is_none() && self.passes.whole_due.is_some_and(|at| at <= began) {
            self.settle().await?;
            let newest = self.session.draw_number().await?;
            self.passes.begin_whole(newest, began);
        }
        if let Some(below) = self.passes.below {
            let page = self.session.batches_settled_down(below).await?;
            // Before anything of it can fail: no page holds up the others.
            self.passes.below = page.last().map(|last| last.number);
            let outcome = self.reconcile(&page).await;
            if matches!(outcome, Ok(false) | Err(End::Refused(_))) {
                self.passes.leaves_out(began);
            }
            self.refused(page.iter().map(|batch| batch.number), outcome)?;
            return self.note_pass().await;
        }
        self.reconcile_ordinarily(began).await
    }

    /// What a pass has found missing is published by then. Without an answer the next leader makes one more.
    async fn note_pass(&mut self) -> Result<(), End> {
        if let Some(certificate) = self.passes.whole_is_over() {
            let redis = self.redis.clone();
            let noted = self.alive(redis.pass_is_over(self.term, certificate)).await?;
            self.note_answer(&noted);
        }
        Ok(())
    }

    async fn reconcile_asked(&mut self, asked: &[i64]) -> Result<bool, End> {
        // R7: looked up once it is marked.
        self.settle().await?;
        let batches = self.session.batches_by_number(asked).await?;
        self.reconcile(&batches).await
    }

    /// What the server has refused is looked at again, one by one.
    fn refused<T>(&mut self, numbers: impl IntoIterator<Item = i64>, outcome: Result<T, End>) -> Result<T, End> {
        if matches!(outcome, Err(End::Refused(_))) {
            self.passes.refused(numbers);
        }
        outcome
    }

    async fn reconcile_ordinarily(&mut self, began: Instant) -> Result<(), End> {
        let by_clock = (self.session.clock().now() - delta(SETTLING)).timestamp_millis();
        let newest = self.passes.settled_below(self.session.last_number(), by_clock, began);
        let mut page = self.session.batches_settled(self.passes.young, newest).await?;
        if let Some(last) = page.last() {
            self.passes.young = last.number;
        } else if self.passes.old > 0 || self.passes.old_began.elapsed() >= ROUND {
            if self.passes.old == 0 {
                self.passes.old_began = began;
            }
            page = self.session.batches_settled(self.passes.old, self.passes.young.saturating_add(1)).await?;
            self.passes.old = page.last().map_or(0, |last| last.number);
        }
        let is_over = page.is_empty();
        let outcome = self.reconcile(&page).await;
        let outcome = self.refused(page.iter().map(|batch| batch.number), outcome);
        let pause = if self.is_busy { PAUSE_BUSY } else { PAUSE };
        self.passes.next = Instant::now() + if is_over { TICK } else { (began.elapsed() * pause).min(TICK) };
        outcome.map(drop)
    }

    /// Answers whether it has looked at all of them: what is of a locked day it passes over.
    async fn reconcile(&mut self, batches: &[Batch]) -> Result<bool, End> {
        if batches.is_empty() {
            return Ok(true);
        }
        let mut batches = batches.to_vec();
        let locked = self.session.leave_locked_days(&mut batches).await?;
        let lease = self.config.protocol.lease;
        // R15: nobody judges another not live before its own contact with Postgres was unbroken for a lease.
        let may_judge = (self.session.age() >= lease).then_some(lease);
        let open = self.session.executions_open_of_batches(&batches, may_judge).await?;
        let mut over: Vec<i64> = batches.iter().map(|batch| batch.number).collect();
        let mut still_open: Vec<i64> = open.iter().map(|(entry, _)| entry.entry).collect();
        still_open.dedup();
        over.retain(|number| still_open.binary_search(number).is_err() && !locked.contains(number));
        if !over.is_empty() {
            self.session.batches_forget(&over).await?;
        }
        // R17b: what all hints have missed is met here.
        self.unread.offer(open.iter().filter(|(entry, _)| entry.is_unwanted).map(|(entry, _)| entry.execution));
        let candidates = open.into_iter().filter(|(_, runs)| !runs).map(|(entry, _)| entry);
        let (misplaced, placed) = candidates.partition(|entry| entry.is_misplaced);
        let mut lost = self.missing(placed).await?;
        lost.extend(self.take_back(misplaced).await?);
        let batch_max = usize::try_from(self.config.dispatcher.batch_max).unwrap_or(usize::MAX);
        for some in lost.chunks(batch_max.clamp(1, ROWS_OF_ANY_SIZE)) {
            self.publish_again(some).await?;
        }
        Ok(locked.is_empty())
    }

    /// Those of `candidates` whose very entry the streams do not hold.
    async fn missing(&mut self, candidates: Vec<OpenEntry>) -> Result<Vec<Missing>, End> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines: Vec<Line> = Vec::new();
        let mut indexes: HashMap<Line, usize> = HashMap::new();
        let mut asked = Vec::with_capacity(candidates.len());
        for entry in &candidates {
            let line = &entry.line;
            let index = *indexes.entry(line.clone()).or_insert_with(|| {
                lines.push(line.clone());
                lines.len() - 1
            });
            asked.push((index, EntryId { number: entry.entry, seq: entry.seq }));
        }
        let redis = self.redis.clone();
        let missing = self.patiently(|| redis.missing(&lines, &asked)).await?;
        let mut lost: Vec<OpenEntry> =
            missing.into_iter().filter_map(|position| candidates.get(position).cloned()).collect();
        // What this version cannot read it cannot publish.
        self.learn_jobs(lost.iter().map(|entry| (entry.job, entry.revision))).await?;
        lost.retain(|entry| self.definitions.get(entry.job, entry.revision).is_some());
        Ok(lost.into_iter().map(Missing::lost).collect())
    }

    async fn publish_again(&mut self, lost: &[Missing]) -> Result<(), End> {
        let number = self.session.draw_number().await?;
        let lease = self.config.protocol.lease;
        let again = self.session.executions_republish(number, self.term, lost, lease).await?;
        let moved = lost.iter().filter(|missing| missing.moves()).count();
        if moved < lost.len() {
            warn!(executions = lost.len() - moved, "redis has lost entries of open executions: publishing them again");
        }
        counter!("carillon_dispatcher_republished_total").increment(again.len() as u64);
        if again.len() < lost.len() {
            // Ended meanwhile, or locked by somebody who may never say what came of it.
            let again: std::collections::HashSet<_> = again.iter().map(|entry| entry.execution).collect();
            let later = Instant::now() + LOCKED_PAUSE;
            for Missing { entry, .. } in lost.iter().filter(|missing| !again.contains(&missing.entry.execution)) {
                self.passes.ask_later(entry.entry, later);
            }
        }
        let mut batch = crate::outgoing::Batch::new(number);
        for entry in &again {
            if let Some(job) = self.definitions.get(entry.job, entry.revision) {
                batch.add_open(entry, &job);
            }
        }
        self.publish_surely(batch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_share_the_pass_after_the_one_that_runs() {
        let mut passes = Passes::default();
        passes.reported();
        let first = passes.whole_due.expect("at once");
        assert!(first <= Instant::now() && passes.is_urgent());
        (passes.whole_due, passes.whole_began, passes.below) = (None, Some(first), Some(7));
        for _ in 0..1_000 {
            passes.reported();
        }
        assert_eq!(passes.whole_due, Some(first + REPORTS_SHARED));
        assert_eq!(passes.below, Some(7), "the one that runs goes on");
        passes.certified(5);
        assert_eq!(passes.below, None, "after a certificate it begins anew");
        assert!(passes.whole_due.is_some_and(|at| at <= Instant::now()));
    }

    #[test]
    fn a_pass_answers_the_certificate_that_was_there_when_it_began() {
        let mut passes = Passes::default();
        passes.certified(5);
        passes.begin_whole(9, Instant::now());
        assert_eq!(passes.whole_is_over(), None, "it is under way");
        passes.certified(7);
        assert_eq!(passes.whole_is_over(), None, "it begins anew");
        passes.begin_whole(9, Instant::now());
        passes.below = None;
        assert_eq!([passes.whole_is_over(), passes.whole_is_over()], [Some(7), None]);
    }

    #[test]
    fn a_pass_of_which_a_page_was_refused_answers_nothing_and_the_next_one_does() {
        let (mut passes, begun) = (Passes::default(), Instant::now());
        passes.certified(5);
        passes.begin_whole(9, begun);
        passes.leaves_out(begun);
        passes.below = None;
        assert_eq!(passes.whole_is_over(), None);
        assert_eq!(passes.whole_due, Some(begun + WHOLE_AGAIN));
        passes.begin_whole(9, begun + WHOLE_AGAIN);
        passes.below = None;
        assert_eq!(passes.whole_is_over(), Some(5));
    }

    #[test]
    fn what_is_young_goes_by_this_process_own_clock_where_the_databases_was_set_back() {
        let (mut passes, begun) = (Passes::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(passes.settled_below(1_000_000, 7, begun), 7, "only the clock is known");
        for second in 1..=12 {
            passes.settled_below(1_000_000 + second, 7, after(second.unsigned_abs()));
        }
        assert_eq!(passes.settled_below(1_000_013, 7, after(13)), 1_000_004);
        assert_eq!(passes.settled_below(1_000_014, 2_000_000, after(14)), 2_000_000, "the clock leads");
        assert!(passes.drawn.len() < 15);
        assert_eq!(passes.settled_below(1_000_015, 7, after(600)), 1_000_015, "the newest that is old enough");
    }

    #[test]
    fn what_was_asked_for_is_bounded_and_taken_when_it_is_due() {
        let mut passes = Passes::default();
        passes.ask_later(1, Instant::now() + LOCKED_PAUSE);
        assert!(!passes.is_urgent());
        for number in 2..40 {
            passes.ask_for(number);
            passes.ask_for(number);
        }
        assert!(passes.is_urgent());
        assert_eq!(passes.take_asked(), (2..18).collect::<Vec<_>>());
        assert_eq!(passes.asked.len(), 1 + 22);
        for number in 0..20_000 {
            passes.ask_for(number);
        }
        assert_eq!(passes.asked.len(), ASKED_MAX);
    }

    #[test]
    fn what_is_to_be_looked_at_later_is_looked_at_at_once_when_it_is_asked_for() {
        let mut passes = Passes::default();
        passes.ask_later(1, Instant::now() + LOCKED_PAUSE);
        passes.ask_for(1);
        passes.ask_later(1, Instant::now() + LOCKED_PAUSE);
        assert_eq!((passes.take_asked(), passes.take_asked()), (vec![1], vec![]));
        passes.refused([2, 3]);
        passes.ask_for(2);
        passes.ask_for(3);
        assert_eq!([passes.take_asked(), passes.take_asked()], [vec![2], vec![3]], "still one by one");
    }

    #[test]
    fn what_a_refused_page_held_is_looked_at_later_one_by_one() {
        let mut passes = Passes::default();
        passes.refused([1, 2, 3]);
        assert!(!passes.is_urgent() && passes.take_asked().is_empty(), "not at once");
        for asked in &mut passes.asked {
            asked.at = Instant::now();
        }
        passes.ask_for(4);
        passes.ask_for(5);
        assert_eq!([passes.take_asked(), passes.take_asked()], [vec![1], vec![2]]);
        // Refused again, it comes behind the others.
        passes.refused([1]);
        assert_eq!([passes.take_asked(), passes.take_asked(), passes.take_asked()], [vec![3], vec![4, 5], vec![]]);
        assert!(passes.asked.iter().all(|asked| asked.number == 1));
    }
}
