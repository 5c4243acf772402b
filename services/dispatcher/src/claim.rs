//! R5, R16: what is due is claimed, as far as the streams have room, and decided.
//!
//! What is claimed of a slot is bounded, so whatever stops short of all that is due puts the rest back on the agenda.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use carillon_core::agenda::{Agenda, Due, Slot, Source};
use carillon_core::limits::PAYLOAD_BYTES_IN_ENTRY;
use carillon_core::line::Line;
use carillon_core::misfire;
use carillon_failpoint as failpoint;
use carillon_store::claim::{Claim, Committed, Room};
use carillon_stream::leader::PUBLISH_BYTES_MAX;
use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, histogram};
use tracing::warn;
use uuid::Uuid;

use crate::decide::{Decided, Next, decide};
use crate::definitions::Definitions;
use crate::foresight::{ANSWER_MAX, Answer, Foresight, Found, LANE_FULL_PAUSE, Question, Searched};
use crate::leader::{End, GATHER, Leader, delta};
use crate::outgoing::Batch;

/// Between two looks at a line whose stream is full.
const FULL_PAUSE: TimeDelta = TimeDelta::milliseconds(50);
/// A job that cannot be read is tried again after this.
const UNREADABLE_PAUSE: TimeDelta = TimeDelta::minutes(1);
/// Each line gets at least so much of a batch, however much stands in the lines before it, as far as a batch goes round.
const LINE_SHARE_MIN: i64 = 50;
/// Definitions read by one statement, however large, and how long one claim may read more of them.
pub(crate) const LEARN_AT_ONCE: usize = 200;
const LEARN_MAX: Duration = Duration::from_millis(100);
/// Bytes of the entries of one batch, about: within what one publish takes.
const BATCH_BYTES_MAX: usize = PUBLISH_BYTES_MAX / 8 * 7;
/// Bytes of an entry besides its payload, at most.
const ENTRY_BYTES: usize = 1_024;
/// Rows of one batch, at most, where how large their payloads are is known only afterwards: whatever they are, they fit.
pub(crate) const ROWS_OF_ANY_SIZE: usize = BATCH_BYTES_MAX / (ENTRY_BYTES + PAYLOAD_BYTES_IN_ENTRY);
/// Bytes of triggers' payloads that one claim copies to their executions, but for the first: some tens of milliseconds. Nothing
/// else is claimed meanwhile, and what takes longer than a statement may is refused whole.
const COPIED_BYTES_MAX: u64 = 2 << 20;
/// So of retries.
const RETRIES_MAX: i64 = 1_000;
const _: () = assert!(RETRIES_MAX as usize <= ROWS_OF_ANY_SIZE, "retries fit");
/// A claim waits so long for what is looked for and due by then: without it the claim would have to ask.
const LOOKING_MAX: Duration = Duration::from_millis(20);
/// What was refused by itself is tried again after this.
const REFUSED_PAUSE: TimeDelta = TimeDelta::minutes(1);
/// What belongs to a day that somebody has locked as a whole, after this: such a lock lasts.
const LOCKED_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// So many of those refused are remembered.
const REFUSALS_MAX: usize = 10_000;
/// What is refused again and again for such a lock, at most after this: it goes on soon after the lock has gone.
const REFUSED_BUSY_PAUSE_MAX: TimeDelta = TimeDelta::seconds(8);
/// What could not be claimed for the server's own trouble, or somebody's transaction beside it, after this.
const BUSY_PAUSE: TimeDelta = TimeDelta::seconds(1);

impl Leader {
    /// Claims what is due. `None`: nothing was, or nothing of it may be published yet.
    pub(crate) async fn claim_due(&mut self) -> Result<Option<Batch>, End> {
        self.taking.clear();
        match self.claim_some().await {
            Err(End::Refused(error)) => {
                self.claim_less(&error);
                Ok(None)
            }
            outcome => outcome,
        }
    }

    /// The server has refused a claim: the next ones are halves of it, until what it refuses stands alone. That is set aside.
    fn claim_less(&mut self, error: &carillon_store::Error) {
        self.stumble(error);
        self.claim_max = (self.claim_max / 2).max(1);
        if let [refused] = self.taking[..] {
            let pause = match error {
                // Somebody has locked a whole table: each try is waited for, and several such, tried each second, are all that would
                // be tried.
                carillon_store::Error::Busy(_) => self.refusals.pause(refused),
                // No fault of its own, and soon gone; so is a server that has no room, which refuses every claim alike.
                carillon_store::Error::Conflict(_) if !error.is_of_closed_day() => BUSY_PAUSE,
                _ if error.is_unavailable() => BUSY_PAUSE,
                _ => REFUSED_PAUSE,
            };
            warn!(id = %refused, "a claim of this alone is refused, it is set aside for {} s", pause.num_seconds());
            counter!("carillon_dispatcher_set_aside_total").increment(1);
            let again = self.session.clock().now() + pause;
            self.left.insert(refused, again);
            // Else nobody looks for it before the agenda is read for its own sake.
            for slot in std::mem::take(&mut self.taking_of) {
                self.agenda.note_exactly(slot, again);
            }
        }
    }

    async fn claim_some(&mut self) -> Result<Option<Batch>, End> {
        self.is_busy = false;
        // Between two claims of many: a trigger waits for one at most.
        self.hear_all().await;
        let now = self.session.clock().now();
        let Due { slots, until: due, expected } = self.agenda.take_due(now, self.lead());
        if slots.is_empty() {
            return Ok(None);
        }
        let rooms = self.rooms(slots, now).await?;
        if rooms.is_empty() {
            return Ok(None);
        }
        self.taking_of = rooms.iter().map(|room| (room.source, room.line.clone())).collect();
        self.finish_looking(due).await;
        self.read_ahead.keep(&mut self.definitions).await;
        self.left.retain(|_, at| *at > now);
        let excluded: Vec<Uuid> = self.left.keys().copied().collect();
        let began = Instant::now();
        failpoint::reach("claim:begin").await;
        let mut claim = self.session.claim(&rooms, due, &excluded).await?;
        let threshold = delta(self.config.dispatcher.misfire_threshold);
        claim.take_missed(claim.now.checked_sub_signed(threshold).unwrap_or(DateTime::<Utc>::MIN_UTC));
        self.taking.extend(claim.taken());
        let limited = limited(&rooms, &claim);
        let is_short = limited.is_empty() && (self.taking.len() as u64) < expected;
        self.glance.claimed(began, is_short);
        set_locked_aside(&mut self.left, &mut self.agenda, &rooms, &mut claim, now);
        if claim.is_empty() {
            return Ok(None);
        }
        let mut left_out = learn(&mut self.definitions, &mut claim).await?;
        left_out.extend(copy_few(&mut claim));
        left_out.extend(fit(&self.definitions, &mut claim));
        let foreseen = foresee(&mut self.foresight, &self.definitions, &mut self.left, &mut claim, threshold);
        for (slot, until) in foreseen.later {
            self.agenda.note_exactly(slot, until);
        }
        let foreseen = foreseen.due;
        let decide_all = |claim: &Claim<'_>, known: &Definitions| {
            decide(&claim.timers, &claim.triggers, &claim.retries, known, &foreseen, claim.now)
        };
        let mut decided = decide_all(&claim, &self.definitions);
        if claim.leave_locked(&decided.decisions).await? {
            set_locked_aside(&mut self.left, &mut self.agenda, &rooms, &mut claim, now);
            decided = decide_all(&claim, &self.definitions);
        }
        let number = claim.number;
        self.read_ahead.begin(&claim.timers, due, GATHER * 2);
        let committed = claim.commit(self.term, &decided.decisions, &self.unsettled).await?;
        failpoint::reach("claim:committed").await;
        self.foresight.look_ahead(decided.next.iter().filter_map(|next| next.question(threshold)));
        self.refusals.are_over(&self.taking);
        self.marked.append(&mut self.unsettled);
        self.is_busy = !limited.is_empty();
        for slot in limited.into_iter().chain(left_out) {
            self.agenda.note_exactly(slot, now);
        }
        self.claim_max = self.claim_max.saturating_mul(2).min(self.config.dispatcher.batch_max);
        let batch = self.batch_of(number, &decided, committed).await?;
        if batch.entries.is_empty() && decided.decisions.opens_any() {
            // Each was claimed before (R5), or is left to R19: there is nothing to be sent, and the number would be open for good.
            self.unsettled.push(number);
        }
        self.learn_from(decided, batch.entries.len(), began.elapsed(), now);
        self.streams.expect(&batch);
        Ok(Some(batch).filter(|batch| !batch.entries.is_empty()))
    }

    /// What was committed, as it is published.
    async fn batch_of(&mut self, number: i64, decided: &Decided, committed: Committed) -> Result<Batch, End> {
        let (born, last): (HashSet<Uuid>, HashSet<Uuid>) =
            (committed.born.iter().copied().collect(), decided.last.iter().copied().collect());
        let mut batch = Batch::new(number);
        for new in decided.decisions.executions.iter().filter(|new| !new.skipped && born.contains(&new.id)) {
            if let Some(job) = self.definitions.get(new.job, new.revision) {
                batch.add_new(new, &job, last.contains(&new.id));
            }
        }
        // R16: which revision a retried execution names, its row has told only now.
        self.learn_jobs_of(number, committed.retried.iter().map(|open| (open.job, open.revision))).await?;
        for open in &committed.retried {
            if let Some(job) = self.definitions.get(open.job, open.revision) {
                batch.add_open(open, &job);
            }
        }
        Ok(batch)
    }

    async fn finish_looking(&mut self, due: DateTime<Utc>) {
        let until = tokio::time::Instant::now() + LOOKING_MAX;
        while self.foresight.is_looking_for(due) {
            let Ok(searched) = tokio::time::timeout_at(until, self.foresight.next()).await else { break };
            self.look_again(searched);
        }
    }

    /// Timetables were searched: the timers for which claims had asked are claimed now.
    pub(crate) fn look_again(&mut self, searched: Searched) {
        let now = self.session.clock().now();
        for Answer { question, found } in self.foresight.keep(searched) {
            let Some(slot) = question.slot else { continue };
            let job = question.job.definition.job;
            match found {
                Found::Unreadable => self.set_unreadable_aside(job, now),
                // There is no room for its question.
                Found::Dear => {
                    self.left.insert(job, now + LANE_FULL_PAUSE);
                    self.agenda.note_exactly(slot, now + LANE_FULL_PAUSE);
                }
                Found::Due(_) => {
                    self.left.remove(&job);
                    self.agenda.note_exactly(slot, now);
                }
            }
        }
    }

    /// What its newest definition says is not known, so nothing fires by an older one. Read again when the job is changed, or
    /// after a while: the reader may be a newer version then.
    fn set_unreadable_aside(&mut self, job: Uuid, now: DateTime<Utc>) {
        counter!("carillon_dispatcher_set_aside_total").increment(1);
        self.left.insert(job, now + UNREADABLE_PAUSE);
    }

    fn learn_from(&mut self, decided: Decided, claimed: usize, took: Duration, now: DateTime<Utc>) {
        for Next { line, at, .. } in decided.next {
            if at <= self.horizon {
                self.agenda.note((Source::Timer, line), at);
            }
        }
        for (job, line, at) in decided.left {
            self.left.insert(job, at);
            self.agenda.note_exactly((Source::Timer, line), at);
        }
        for job in decided.unreadable {
            self.set_unreadable_aside(job, now);
        }
        let skipped = decided.decisions.executions.iter().filter(|new| new.skipped).count();
        counter!("carillon_dispatcher_skipped_total").increment(skipped as u64);
        counter!("carillon_dispatcher_claimed_total").increment(claimed as u64);
        histogram!("carillon_dispatcher_claim_seconds").record(took.as_secs_f64());
        self.rate.learn(claimed, self.config.dispatcher.batch_max, took);
    }

    /// How much of each slot may be claimed. What has no room, or no turn, is looked at again later.
    async fn rooms(&mut self, slots: BTreeSet<Slot>, now: DateTime<Utc>) -> Result<Vec<Room>, End> {
        let bound = self.config.dispatcher.stream_entries_max;
        let batch_max = self.claim_max;
        let (slots, waiting) = take_turns(slots, batch_max, &mut self.last_slot);
        for slot in waiting {
            self.agenda.note_exactly(slot, now);
        }
        let unheard = |line: &&Line| self.streams.free(line, bound).is_none_or(|free| free == 0);
        let lines: BTreeSet<&Line> = slots.iter().map(|(_, line)| line).filter(unheard).collect();
        if !lines.is_empty() {
            let lines: Vec<Line> = lines.into_iter().cloned().collect();
            let redis = self.redis.clone();
            let lengths = self.alive(redis.lengths(&lines)).await?;
            self.note_answer(&lengths);
            if let Ok(lengths) = lengths {
                self.streams.hear(&lines, &lengths);
            }
        }
        // A line of which Redis said nothing even now counts as empty: one batch at most is claimed of it, which then waits to
        // be sent, as it would if Redis had gone a moment later.
        let free = |line: &Line| i64::from(self.streams.free(line, bound).unwrap_or(bound));
        let rooms = share_out(&slots, free, batch_max.into());
        let roomy: HashSet<(Source, &Line)> = rooms.iter().map(|room| (room.source, &room.line)).collect();
        for slot in slots.iter().filter(|(source, line)| !roomy.contains(&(*source, line))) {
            self.agenda.note_exactly(slot.clone(), now + FULL_PAUSE);
        }
        Ok(rooms)
    }
}

/// What was refused by itself for somebody's lock on a whole table, and how long it was left then.
#[derive(Debug, Default)]
pub(crate) struct Refusals(HashMap<Uuid, TimeDelta>);

impl Refusals {
    /// How long it is left now: each time twice as long.
    fn pause(&mut self, id: Uuid) -> TimeDelta {
        let pause = self.0.remove(&id).map_or(BUSY_PAUSE, |last| (last * 2).min(REFUSED_BUSY_PAUSE_MAX));
        // Beyond that they begin anew.
        if self.0.len() >= REFUSALS_MAX {
            self.0.clear();
        }
        self.0.insert(id, pause);
        pause
    }

    fn are_over(&mut self, taken: &[Uuid]) {
        if !self.0.is_empty() {
            self.0.retain(|id, _| !taken.contains(id));
        }
    }
}

/// What a claim leaves since somebody has locked its day as a whole: looked for again when it may be over.
fn set_locked_aside(
    left: &mut HashMap<Uuid, DateTime<Utc>>,
    agenda: &mut Agenda,
    rooms: &[Room],
    claim: &mut Claim<'_>,
    now: DateTime<Utc>,
) {
    // Of which line they are, they do not say.
    for room in rooms.iter().filter(|room| claim.put_off && room.source == Source::Retry) {
        agenda.note_exactly((Source::Retry, room.line.clone()), now + LOCKED_PAUSE);
    }
    for (source, line, id) in std::mem::take(&mut claim.set_aside) {
        counter!("carillon_dispatcher_set_aside_total").increment(1);
        left.insert(id, now + LOCKED_PAUSE);
        agenda.note_exactly((source, line), now + LOCKED_PAUSE);
    }
}

/// Those of `slots` whose turn it is, `max` of them, and those that must wait. Where more are due than a batch has rows each
/// gets its turn, one after the other, whatever its priority.
fn take_turns(slots: BTreeSet<Slot>, max: u32, last: &mut Option<Slot>) -> (BTreeSet<Slot>, Vec<Slot>) {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    if slots.len() <= max {
        return (slots, Vec::new());
    }
    let behind = last.take().map_or(Bound::Unbounded, Bound::Excluded);
    let turns: Vec<Slot> = slots.range((behind, Bound::Unbounded)).chain(&slots).take(max).cloned().collect();
    *last = turns.last().cloned();
    let turns = BTreeSet::from_iter(turns);
    let waiting = slots.into_iter().filter(|slot| !turns.contains(slot)).collect();
    (turns, waiting)
}

/// Shares out a batch: by priority, each line no more than `free` says that its stream may still take, all its sources
/// together. Of a stream that is nearly full each source gets its part, so that a herd of timers does not keep a trigger
/// waiting. All together get `batch_max` at most, and there are no more slots than that.
fn share_out(slots: &BTreeSet<Slot>, free: impl Fn(&Line) -> i64, batch_max: i64) -> Vec<Room> {
    let mut by_priority: Vec<&Slot> = slots.iter().collect();
    by_priority.sort_by_key(|(_, line)| Reverse(line.priority));
    let count = i64::try_from(by_priority.len()).unwrap_or(i64::MAX).max(1);
    let share_min = LINE_SHARE_MIN.min(batch_max / count).max(1);
    let mut left_of_batch = batch_max;
    let mut left_of_line: HashMap<&Line, (i64, i64)> = HashMap::new();
    for (_, line) in slots {
        left_of_line.entry(line).or_insert_with(|| (free(line), 0)).1 += 1;
    }
    let mut rooms = Vec::with_capacity(slots.len());
    let mut left_of_retries = RETRIES_MAX;
    for ((source, line), behind) in by_priority.iter().zip((0..count).rev()) {
        let share = (left_of_batch - behind * share_min).max(share_min);
        let Some((free, sources)) = left_of_line.get_mut(line) else { continue };
        // Nobody in front of it took more than was free, so this is never below 0.
        let for_the_others = (*sources - 1) * share_min.min(*free / *sources);
        let mut room = share.min(*free - for_the_others);
        *sources -= 1;
        if *source == Source::Retry {
            room = room.min(left_of_retries);
            left_of_retries -= room;
        }
        if room > 0 {
            *free -= room;
            left_of_batch -= room;
            rooms.push(Room { source: *source, line: line.clone(), room });
        }
    }
    rooms
}

/// Learns what the jobs of a claim mean, for as long as [`LEARN_MAX`]. What it did not come to is left out of the claim, and
/// answered: where to look again.
async fn learn(definitions: &mut Definitions, claim: &mut Claim<'_>) -> Result<HashSet<Slot>, End> {
    let wanted = claim.timers.iter().map(|timer| (timer.job, timer.revision));
    let unknown =
        definitions.unknown(wanted.chain(claim.triggers.iter().map(|trigger| (trigger.job, trigger.revision))));
    let began = Instant::now();
    let mut unread = unknown.as_slice();
    while !unread.is_empty() && (unread.len() == unknown.len() || began.elapsed() < LEARN_MAX) {
        let (some, rest) = unread.split_at(LEARN_AT_ONCE.min(unread.len()));
        definitions.learn(claim.definitions(some).await?);
        unread = rest;
    }
    let unread: HashSet<(Uuid, i64)> = unread.iter().copied().collect();
    Ok(leave_out(claim, |job, revision, _| unread.contains(&(job, revision))))
}

/// Leaves out of a claim the triggers whose payloads are more than one statement copies in good time. Answered is where to look
/// again.
fn copy_few(claim: &mut Claim<'_>) -> HashSet<Slot> {
    let (mut slots, mut copied) = (HashSet::new(), 0);
    claim.triggers.retain(|trigger| {
        let fits = copied == 0 || copied + trigger.documents_stored <= COPIED_BYTES_MAX;
        if fits {
            copied += trigger.documents_stored;
        } else {
            slots.insert((Source::Trigger, trigger.line.clone()));
        }
        fits
    });
    slots
}

/// Leaves out of a claim what does not fit into a batch by its bytes. Answered is where to look again.
fn fit(definitions: &Definitions, claim: &mut Claim<'_>) -> HashSet<Slot> {
    let largest = ENTRY_BYTES + PAYLOAD_BYTES_IN_ENTRY;
    if (claim.timers.len() + claim.triggers.len() + claim.retries.len()) * largest <= BATCH_BYTES_MAX {
        return HashSet::new();
    }
    let mut bytes = claim.retries.len() * largest;
    leave_out(claim, |job, revision, own| {
        let of_job = || definitions.get(job, revision).and_then(|job| job.definition.payload.as_ref().map(String::len));
        bytes += ENTRY_BYTES + own.or_else(of_job).unwrap_or(0);
        bytes > BATCH_BYTES_MAX
    })
}

/// Leaves out of a claim those timers and triggers of which `leave` says so, by job, revision, and bytes of an own payload.
/// They stay where they are. Answered is where to look again.
fn leave_out(claim: &mut Claim<'_>, mut leave: impl FnMut(Uuid, i64, Option<usize>) -> bool) -> HashSet<Slot> {
    let mut slots = HashSet::new();
    claim.timers.retain(|timer| {
        let leaves = leave(timer.job, timer.revision, None);
        if leaves {
            slots.insert((Source::Timer, timer.line.clone()));
        }
        !leaves
    });
    claim.triggers.retain(|trigger| {
        let own = trigger.own_payload.then(|| trigger.payload.as_ref().map_or(0, String::len));
        let leaves = leave(trigger.job, trigger.revision, own);
        if leaves {
            slots.insert((Source::Trigger, trigger.line.clone()));
        }
        !leaves
    });
    slots
}

/// What a claim's timers lead to.
#[derive(Default)]
struct Foreseen {
    /// As far as it was found.
    due: HashMap<Uuid, misfire::Due>,
    /// Where to look again when, for those that could not even be asked about.
    later: Vec<(Slot, DateTime<Utc>)>,
}

/// What a claim's timers lead to, as far as it was found. Those of which nothing is known yet are left out of the claim, asked
/// about, and left alone until the answer comes.
fn foresee(
    foresight: &mut Foresight,
    definitions: &Definitions,
    left: &mut HashMap<Uuid, DateTime<Utc>>,
    claim: &mut Claim<'_>,
    misfire_threshold: TimeDelta,
) -> Foreseen {
    let mut foreseen = Foreseen::default();
    let now = claim.now;
    claim.timers.retain(|timer| {
        let Some(job) = definitions.get(timer.job, timer.revision) else { return true };
        let fire_at = timer.fire_at;
        if let Some(due) = definitions.due(&job, fire_at, now, misfire_threshold) {
            foreseen.due.insert(timer.job, due);
            return true;
        }
        let slot = (Source::Timer, timer.line.clone());
        // However long the search takes, it is used.
        let until = DateTime::<Utc>::MAX_UTC;
        let asked = Question { job, fire_at, slot: Some(slot.clone()), now, until, misfire_threshold };
        let until = foresight.ask(asked);
        if until < now + ANSWER_MAX {
            foreseen.later.push((slot, until));
        }
        left.insert(timer.job, until);
        false
    });
    foreseen
}

/// A slot that gave all it was asked for holds more: it is looked at again, at once.
fn limited(rooms: &[Room], claim: &Claim<'_>) -> Vec<Slot> {
    let mut of_slot: HashMap<(Source, &Line), i64> = HashMap::new();
    let timers = claim.timers.iter().map(|timer| (Source::Timer, &timer.line));
    for slot in timers.chain(claim.triggers.iter().map(|trigger| (Source::Trigger, &trigger.line))) {
        *of_slot.entry(slot).or_default() += 1;
    }
    let count = |room: &&Room| match room.source {
        Source::Timer | Source::Trigger => of_slot.get(&(room.source, &room.line)).copied().unwrap_or(0),
        // Of which line, they do not say: at worst one is looked at in vain.
        Source::Retry => i64::try_from(claim.retries.len()).unwrap_or(i64::MAX),
    };
    rooms.iter().filter(|room| count(room) >= room.room).map(|room| (room.source, room.line.clone())).collect()
}

#[cfg(test)]
mod tests {
    use carillon_core::job::Priority;

    use super::*;

    fn shared_out(slots: &[(Source, &str)], free: i64, batch_max: i64) -> Vec<i64> {
        let slots: BTreeSet<Slot> =
            slots.iter().map(|(source, queue)| (*source, Line::new(*queue, Priority::Medium))).collect();
        share_out(&slots, |_| free, batch_max).iter().map(|room| room.room).collect()
    }

    use Source::{Retry, Timer, Trigger};

    #[test]
    fn a_batch_holds_no_more_than_its_bound_over_all_lines() {
        let slots = |count: usize| -> BTreeSet<Slot> {
            (0..count).map(|n| (Timer, Line::new(format!("{n:05}"), Priority::Medium))).collect()
        };
        for count in [1, 7, 20, 21, 999, 1_000] {
            let rooms = share_out(&slots(count), |_| 20_000, 1_000);
            assert_eq!(rooms.iter().map(|room| room.room).sum::<i64>(), 1_000, "{count} lines");
            assert_eq!(rooms.len(), count, "each has its part");
        }
        let (mut last, mut seen) = (None, BTreeSet::new());
        for turn in 0..10 {
            let (taken, waiting) = take_turns(slots(10_000), 1_000, &mut last);
            assert_eq!((taken.len(), waiting.len()), (1_000, 9_000));
            assert!(waiting.iter().all(|slot| !taken.contains(slot)));
            seen.extend(taken);
            assert_eq!(seen.len(), (turn + 1) * 1_000, "each in its turn");
        }
        assert_eq!(take_turns(slots(3), 1_000, &mut last).0.len(), 3);
    }

    #[test]
    fn what_is_refused_again_and_again_is_left_for_longer_each_time() {
        let (mut refusals, one, other) = (Refusals::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let seconds: Vec<i64> = (0..6).map(|_| refusals.pause(one).num_seconds()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 8, 8]);
        assert_eq!(refusals.pause(other), BUSY_PAUSE);
        refusals.are_over(&[one]);
        assert_eq!((refusals.pause(one), refusals.pause(other)), (BUSY_PAUSE, BUSY_PAUSE * 2));
        for id in 0..20_000 {
            refusals.pause(Uuid::from_u128(id));
        }
        assert!(refusals.0.len() <= REFUSALS_MAX);
    }

    #[test]
    fn the_sources_of_a_line_share_its_room() {
        let all = [(Timer, "a"), (Trigger, "a"), (Retry, "a")];
        assert_eq!(shared_out(&all, 50, 50), [18, 16, 16]);
        assert_eq!(shared_out(&all, 1, 50), [1], "whoever is first");
        assert!(shared_out(&all, 0, 50).is_empty());
        assert_eq!(shared_out(&all, 20_000, 1_000), [900, 50, 50], "in a stream with room only the batch is shared");
    }

    #[test]
    fn lines_have_rooms_of_their_own() {
        assert_eq!(shared_out(&[(Timer, "a"), (Timer, "b")], 50, 1_000), [50, 50]);
        assert_eq!(shared_out(&[(Timer, "a"), (Timer, "b")], 5_000, 1_000), [950, 50]);
    }
}
