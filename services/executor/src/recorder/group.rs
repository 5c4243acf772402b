//! What is written in one transaction: of one day (one partition), in the order of the ids, bounded by bytes.

use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::recorder::{Finished, Started};
use metrics::counter;
use tracing::error;
use uuid::Uuid;

use crate::handler::clean;
use crate::in_hand::Key;
use crate::to_record::{Acknowledgement, FinishedEntry, ToRecord};

/// Bytes of results, errors and log lines in one transaction. One end alone may have more: what a handler returns and says is
/// bounded where it arises.
const BYTES_MAX: usize = 4 << 20;
/// Characters of Postgres' reason that are kept with an end that it refused.
const REASON_CHARS_MAX: usize = 1_000;

/// A group, in columns as the store takes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// Of `started`.
    pub keys: Vec<Key>,
    pub started: Vec<Started>,
    /// Of `finished`.
    pub entries: Vec<Acknowledgement>,
    pub finished: Vec<Finished>,
}

impl Group {
    pub(super) const fn len(&self) -> usize {
        self.started.len() + self.finished.len()
    }

    /// Those of its jobs that have no fire to come.
    pub(super) fn ended_jobs(&self) -> Vec<Uuid> {
        let ends = self.entries.iter().zip(&self.finished);
        ends.filter(|(entry, end)| entry.last && end.status.is_final()).map(|(entry, _)| entry.job).collect()
    }

    fn push(&mut self, item: ToRecord) {
        match item {
            ToRecord::Started(key, started) => {
                self.keys.push(key);
                self.started.push(started);
            }
            ToRecord::Finished(end) => {
                self.entries.push(end.entry);
                self.finished.push(end.finished);
            }
        }
    }

    /// All of it, one by one.
    pub(super) fn into_items(self) -> impl Iterator<Item = ToRecord> {
        let started = self.keys.into_iter().zip(self.started).map(|(key, started)| ToRecord::Started(key, started));
        let ends = self.entries.into_iter().zip(self.finished);
        started.chain(ends.map(|(entry, finished)| ToRecord::Finished(Box::new(FinishedEntry { entry, finished }))))
    }

    /// Two groups, neither of them empty if this one has two or more.
    pub(super) fn halves(mut self) -> [Self; 2] {
        let half = self.len() / 2;
        let starts = half.min(self.started.len());
        let ends = half - starts;
        let second = Self {
            keys: self.keys.split_off(starts),
            started: self.started.split_off(starts),
            entries: self.entries.split_off(ends),
            finished: self.finished.split_off(ends),
        };
        [self, second]
    }

    /// Whether nothing is left in it that Postgres could refuse.
    pub(super) fn is_plain(&self) -> bool {
        self.entries.iter().all(|entry| entry.plain)
    }

    /// What Postgres refuses gives way to the plain reason. What did not fail before has failed now, for good: another attempt
    /// would most likely end in the same.
    pub(super) fn make_plain(&mut self, why: &str) {
        for (entry, end) in self.entries.iter_mut().zip(&mut self.finished) {
            entry.plain = true;
            if matches!(end.status, Status::Success | Status::Retrying) {
                end.status = Status::Failed;
            }
            end.next_retry_at = None;
            let why = format!("what came of this attempt cannot be written to postgres: {why}");
            end.error = Some(clean(why, REASON_CHARS_MAX, 4 * REASON_CHARS_MAX));
            end.result = None;
            end.error_stack = None;
            end.reason = None;
            end.metadata = None;
            end.logs.clear();
        }
    }

    /// That what came of it is given up: it was written without.
    pub(super) fn tell_given_up(&self) {
        for end in &self.finished {
            let why = end.error.as_deref().unwrap_or_default();
            error!(execution.id = %end.held.execution, "postgres refuses what came of an execution, which fails: {why}");
            counter!("carillon_executor_unwritable_total").increment(1);
        }
    }
}

/// Sorts what is to be written into groups.
pub(super) fn groups(mut items: Vec<ToRecord>) -> Vec<Group> {
    items.sort_unstable_by_key(ToRecord::execution);
    let mut groups = Vec::with_capacity(1);
    let (mut group, mut bytes, mut day) = (Group::default(), 0, 0);
    for item in items {
        let (its_day, its_bytes) = (ids::day(item.execution()), item.bytes());
        if group.len() > 0 && (its_day != day || bytes + its_bytes > BYTES_MAX) {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        day = its_day;
        bytes += its_bytes;
        group.push(item);
    }
    if group.len() > 0 {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::super::tests::{ended, started};
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn at(ms: i64, n: u32) -> Uuid {
        let at = DateTime::from_timestamp_millis(ms).unwrap();
        carillon_core::ids::execution_for_trigger(Uuid::nil(), &n.to_string(), at)
    }

    #[test]
    fn a_group_is_of_one_day_in_order_and_bounded_by_bytes() {
        let mut items = vec![ended(at(20_001 * DAY_MS, 0)), started(at(20_000 * DAY_MS, 1))];
        for n in 0..8 {
            let mut end = ended(at(20_000 * DAY_MS + i64::from(7 - n), n));
            if let ToRecord::Finished(end) = &mut end {
                end.entry.bytes = BYTES_MAX / 4;
            }
            items.push(end);
        }
        let count = items.len();
        let groups = groups(items);
        assert_eq!(groups.iter().map(Group::len).sum::<usize>(), count);
        assert_eq!(groups.iter().map(Group::len).collect::<Vec<_>>(), [5, 4, 1]);
        for group in &groups {
            let ids: Vec<Uuid> = group.finished.iter().map(|end| end.held.execution).collect();
            assert!(ids.is_sorted());
            assert_eq!(ids.iter().map(|id| ids::day(*id)).collect::<std::collections::HashSet<_>>().len(), 1);
        }
    }

    #[test]
    fn one_that_is_larger_than_a_group_is_a_group() {
        let mut end = ended(at(DAY_MS, 0));
        if let ToRecord::Finished(end) = &mut end {
            end.entry.bytes = 2 * BYTES_MAX;
        }
        assert_eq!(groups(vec![end, ended(at(DAY_MS, 1))]).len(), 2);
    }

    #[test]
    fn halves_lose_nothing_and_neither_is_empty() {
        for (starts, ends) in [(0, 2), (1, 1), (2, 0), (3, 4), (7, 1), (1, 7)] {
            let items = (0..starts).map(|n| started(at(DAY_MS, n)));
            let items = items.chain((0..ends).map(|n| ended(at(DAY_MS, 100 + n))));
            let group = groups(items.collect()).pop().unwrap();
            let all = group.len();
            let [one, two] = group.halves();
            assert!(one.len() > 0 && two.len() > 0, "{starts}, {ends}");
            assert_eq!(one.len() + two.len(), all);
            for half in [&one, &two] {
                assert_eq!((half.keys.len(), half.entries.len()), (half.started.len(), half.finished.len()));
            }
        }
    }

    #[test]
    fn what_is_refused_fails_with_the_reason_and_nothing_of_it_is_kept() {
        for (status, expected) in [
            (Status::Success, Status::Failed),
            (Status::Retrying, Status::Failed),
            (Status::Timeout, Status::Timeout),
            (Status::Cancelled, Status::Cancelled),
        ] {
            let mut group = groups(vec![ended(at(DAY_MS, 0))]).pop().unwrap();
            group.finished[0].status = status;
            group.finished[0].result = Some("{}".into());
            assert!(!group.is_plain());
            group.make_plain("no\0 such thing");
            let end = &group.finished[0];
            assert!(group.is_plain());
            assert_eq!(end.status, expected);
            assert!(end.error.as_ref().unwrap().ends_with("postgres: no\u{fffd} such thing"));
            assert_eq!((&end.result, end.logs.len(), end.next_retry_at), (&None, 0, None));
        }
    }
}
