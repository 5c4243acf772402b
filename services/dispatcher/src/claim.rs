//! R5, R16: what is due is claimed, as far as the streams have room, and decided.
//!
//! What is claimed of a slot is bounded, so whatever stops short of all that is due puts the rest back on the agenda.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use carillon_core::agenda::{Agenda, Due, Slot, Source};
use carillon_core::line::Line;
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
        let mut claim = self.session.claim(&rooms, due, &excluded).await?;
        if claim.is_empty() {
            return Ok(None);
        }
        let wanted = claim.timers.iter().map(|timer| (timer.job, Some(timer.revision)));
        let wanted = wanted.chain(claim.triggers.iter().map(|trigger| (trigger.job, Some(trigger.revision))));
        let wanted = wanted.chain(claim.retries.iter().map(|retry| (retry.job, None)));
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
        self.unsettled.clear();
        let (born, last): (HashSet<Uuid>, HashSet<Uuid>) =
            (committed.born.iter().copied().collect(), decided.last.iter().copied().collect());
        let mut batch = Batch::new(number);
        for new in decided.decisions.executions.iter().filter(|new| !new.skipped && born.contains(&new.id)) {
            if let Some(job) = self.definitions.get(&new.job) {
                batch.add_new(new, &job, last.contains(&new.id));
            }
        }
        for open in &committed.retried {
            if let Some(job) = self.definitions.get(&open.job) {
                batch.add_open(open, &job);
            }
        }
        self.learn_from(decided, batch.entries.len(), began.elapsed(), now);
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

    /// How much of each slot may be claimed: what its stream may still hold, and a share of the batch by priority.
    async fn rooms(&mut self, slots: &BTreeSet<Slot>, now: DateTime<Utc>) -> Result<Vec<Room>, End> {
        let bound = u64::from(self.config.dispatcher.stream_entries_max);
        let full = |lengths: &HashMap<Line, u64>, line: &Line| lengths.get(line).is_some_and(|length| *length >= bound);
        if slots.iter().any(|(_, line)| full(&self.lengths, line)) {
            let lines: Vec<Line> = slots.iter().map(|(_, line)| line.clone()).collect();
            let redis = self.redis.clone();
            if let Ok(lengths) = self.alive(redis.lengths(&lines)).await? {
                self.hear_lengths(&lines, &lengths);
            }
        }
        let mut by_priority: Vec<&Slot> = slots.iter().collect();
        by_priority.sort_by_key(|(_, line)| Reverse(line.priority));
        let mut left_of_batch = i64::from(self.config.dispatcher.batch_max);
        let mut rooms = Vec::with_capacity(slots.len());
        for (index, (source, line)) in by_priority.iter().enumerate() {
            let length = self.lengths.entry(line.clone()).or_default();
            let free = i64::try_from(bound.saturating_sub(*length)).unwrap_or(i64::MAX);
            if free == 0 {
                self.agenda.note_exactly((*source, line.clone()), now + FULL_PAUSE);
                continue;
            }
            let behind = i64::try_from(by_priority.len() - index - 1).unwrap_or(0);
            let share = (left_of_batch - behind * LINE_SHARE_MIN).max(LINE_SHARE_MIN);
            let room = free.min(share);
            left_of_batch -= room;
            rooms.push(Room { source: *source, line: line.clone(), room });
        }
        Ok(rooms)
    }
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
