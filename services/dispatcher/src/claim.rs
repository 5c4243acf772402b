//! R5, R16: what is due is claimed, as far as the streams have room, and decided.
//!
//! What is claimed of a slot is bounded, so whatever stops short of all that is due puts the rest back on the agenda.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use carillon_core::agenda::{Agenda, Due, Slot, Source};
use carillon_core::line::Line;
use carillon_failpoint as failpoint;
use carillon_store::claim::{Claim, Room};
use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, histogram};
use uuid::Uuid;

use crate::decide::{Decided, decide};
use crate::leader::{ENDED_MAX, End, Leader, delta};
use crate::outgoing::Batch;

/// Between two looks at a line whose stream is full.
const FULL_PAUSE: TimeDelta = TimeDelta::milliseconds(50);
/// A job that cannot be read is tried again after this.
const UNREADABLE_PAUSE: TimeDelta = TimeDelta::minutes(1);
/// Each line gets at least so much of a batch, however much stands in the lines before it.
const LINE_SHARE_MIN: i64 = 50;

impl Leader {
    /// Claims what is due. `None`: nothing was, or nothing of it may be published yet.
    pub(crate) async fn claim_due(&mut self) -> Result<Option<Batch>, End> {
        let now = self.session.clock().now();
        let Due { slots, until: due } = self.agenda.take_due(now, self.lead());
        if slots.is_empty() {
            return Ok(None);
        }
        let rooms = self.rooms(&slots, now).await?;
        if rooms.is_empty() {
            return Ok(None);
        }
        self.left.retain(|_, at| *at > now);
        let excluded: Vec<Uuid> = self.left.keys().copied().collect();
        let began = Instant::now();
        failpoint::reach("claim:begin").await;
        let mut claim = self.session.claim(&rooms, due, &excluded).await?;
        if claim.is_empty() {
            return Ok(None);
        }
        let wanted = claim.timers.iter().map(|timer| (timer.job, timer.revision));
        let wanted = wanted.chain(claim.triggers.iter().map(|trigger| (trigger.job, trigger.revision)));
        let unknown = self.definitions.unknown(wanted);
        if !unknown.is_empty() {
            let learned = claim.definitions(&unknown).await?;
            self.definitions.learn(learned);
        }
        let threshold = delta(self.config.dispatcher.misfire_threshold);
        let decided = decide(&claim.timers, &claim.triggers, &claim.retries, &self.definitions, claim.now, threshold);
        note_limited(&mut self.agenda, &rooms, &claim, now);
        let number = claim.number;
        let committed = claim.commit(self.term, &decided.decisions, &self.unsettled).await?;
        failpoint::reach("claim:committed").await;
        self.unsettled.clear();
        let (born, last): (HashSet<Uuid>, HashSet<Uuid>) =
            (committed.born.iter().copied().collect(), decided.last.iter().copied().collect());
        let mut batch = Batch::new(number);
        for new in decided.decisions.executions.iter().filter(|new| !new.skipped && born.contains(&new.id)) {
            if let Some(job) = self.definitions.get(new.job, new.revision) {
                batch.add_new(new, &job, last.contains(&new.id));
            }
        }
        // R16: which revision a retried execution names, its row has told only now.
        self.learn_jobs(committed.retried.iter().map(|open| (open.job, open.revision))).await?;
        for open in &committed.retried {
            if let Some(job) = self.definitions.get(open.job, open.revision) {
                batch.add_open(open, &job);
            }
        }
        self.learn_from(decided, batch.entries.len(), began.elapsed(), now);
        self.streams.expect(&batch);
        Ok(Some(batch).filter(|batch| !batch.entries.is_empty()))
    }

    fn learn_from(&mut self, decided: Decided, claimed: usize, took: Duration, now: DateTime<Utc>) {
        for (line, at) in decided.next {
            if at <= self.horizon {
                self.agenda.note((Source::Timer, line), at);
            }
        }
        for (job, line, at) in decided.left {
            self.left.insert(job, at);
            self.agenda.note_exactly((Source::Timer, line), at);
        }
        for job in decided.unreadable {
            self.left.insert(job, now + UNREADABLE_PAUSE);
        }
        if self.ended_by_skip.len() < ENDED_MAX {
            self.ended_by_skip.extend(decided.ended_by_skip);
        }
        let skipped = decided.decisions.executions.iter().filter(|new| new.skipped).count();
        counter!("carillon_dispatcher_skipped_total").increment(skipped as u64);
        counter!("carillon_dispatcher_claimed_total").increment(claimed as u64);
        histogram!("carillon_dispatcher_claim_seconds").record(took.as_secs_f64());
        if claimed > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let rate = claimed as f64 / took.as_secs_f64().max(1e-6);
            self.rate = 0.8 * self.rate + 0.2 * rate;
        }
    }

    /// How much of each slot may be claimed. What has no room is looked at again later.
    async fn rooms(&mut self, slots: &BTreeSet<Slot>, now: DateTime<Utc>) -> Result<Vec<Room>, End> {
        let bound = self.config.dispatcher.stream_entries_max;
        if slots.iter().any(|(_, line)| self.streams.free(line, bound).is_none_or(|free| free == 0)) {
            let lines: Vec<Line> = slots.iter().map(|(_, line)| line.clone()).collect();
            let redis = self.redis.clone();
            if let Ok(lengths) = self.alive(redis.lengths(&lines)).await? {
                self.streams.hear(&lines, &lengths);
            }
        }
        // A line of which Redis said nothing even now counts as empty: one batch at most is claimed of it, which then waits to
        // be sent, as it would if Redis had gone a moment later.
        let free = |line: &Line| i64::from(self.streams.free(line, bound).unwrap_or(bound));
        let rooms = share_out(slots, free, self.config.dispatcher.batch_max.into());
        for slot in slots.iter().filter(|slot| !rooms.iter().any(|room| (room.source, &room.line) == (slot.0, &slot.1)))
        {
            self.agenda.note_exactly(slot.clone(), now + FULL_PAUSE);
        }
        Ok(rooms)
    }
}

/// Shares out a batch: by priority, each line no more than `free` says that its stream may still take, all its sources
/// together. Of a stream that is nearly full each source gets its part, so that a herd of timers does not keep a trigger
/// waiting.
fn share_out(slots: &BTreeSet<Slot>, free: impl Fn(&Line) -> i64, batch_max: i64) -> Vec<Room> {
    let mut by_priority: Vec<&Slot> = slots.iter().collect();
    by_priority.sort_by_key(|(_, line)| Reverse(line.priority));
    let mut left_of_batch = batch_max;
    let mut left_of_line: HashMap<&Line, (i64, i64)> = HashMap::new();
    for (_, line) in slots {
        left_of_line.entry(line).or_insert_with(|| (free(line), 0)).1 += 1;
    }
    let mut rooms = Vec::with_capacity(slots.len());
    for (index, (source, line)) in by_priority.iter().enumerate() {
        let behind = i64::try_from(by_priority.len() - index - 1).unwrap_or(0);
        let share = (left_of_batch - behind * LINE_SHARE_MIN).max(LINE_SHARE_MIN);
        let Some((free, sources)) = left_of_line.get_mut(line) else { continue };
        // Nobody in front of it took more than was free, so this is never below 0.
        let for_the_others = (*sources - 1) * LINE_SHARE_MIN.min(*free / *sources);
        let room = share.min(*free - for_the_others);
        *sources -= 1;
        if room > 0 {
            *free -= room;
            left_of_batch -= room;
            rooms.push(Room { source: *source, line: line.clone(), room });
        }
    }
    rooms
}

/// A slot that gave all it was asked for holds more: it is looked at again, at once.
fn note_limited(agenda: &mut Agenda, rooms: &[Room], claim: &Claim<'_>, now: DateTime<Utc>) {
    for room in rooms {
        let got = match room.source {
            Source::Timer => claim.timers.iter().filter(|timer| timer.line == room.line).count(),
            Source::Trigger => claim.triggers.len(),
            Source::Retry => claim.retries.len(),
        };
        if i64::try_from(got).unwrap_or(i64::MAX) >= room.room {
            agenda.note_exactly((room.source, room.line.clone()), now);
        }
    }
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
