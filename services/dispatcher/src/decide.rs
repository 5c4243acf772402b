//! What a claim leads to: which fires become executions, which are skipped, which must wait for their instant, and where the
//! timers move. Pure; the claim's I/O is in `carillon_store::claim`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use carillon_core::gate::Passage;
use carillon_core::ids;
use carillon_core::line::Line;
use carillon_core::misfire::Due;
use carillon_store::claim::{Decisions, DueRetry, DueTimer, DueTrigger, Moved, MovedTimer, NewExecution};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::definitions::{Definitions, Known};
use crate::foresight::Question;

/// What the leader does about a claim.
#[derive(Debug, Default)]
pub struct Decided {
    /// To be written.
    pub decisions: Decisions,
    /// Not to be decided before its instant: an earlier execution is still open.
    pub left: Vec<(Uuid, Line, DateTime<Utc>)>,
    /// Jobs that this version cannot read: left alone.
    pub unreadable: Vec<Uuid>,
    /// Where the timers stand afterwards.
    pub next: Vec<Next>,
    /// Executions after which their job has no instant left.
    pub last: Vec<Uuid>,
}

/// Where a timer stands after a claim.
#[derive(Clone, Debug)]
pub struct Next {
    /// Whose it is, in the revision by which it moved.
    pub job: Arc<Known>,
    /// Where it stands,
    pub line: Line,
    /// and at which instant.
    pub at: DateTime<Utc>,
}

impl Next {
    /// What to look for before it is due, if that can be found before: what comes after it, if it is claimed in time.
    pub(crate) fn question(&self, misfire_threshold: TimeDelta) -> Option<Question> {
        let Self { job, at, .. } = self;
        let (fire_at, until) = (*at, at.checked_add_signed(misfire_threshold)?);
        let question = || Question { job: job.clone(), fire_at, slot: None, now: fire_at, until, misfire_threshold };
        job.is_foreseeable().then(question)
    }
}

/// Decides about all that is due at `now`, or soon. What the timetables say was `foreseen`.
pub fn decide(
    timers: &[DueTimer],
    triggers: &[DueTrigger],
    retries: &[DueRetry],
    known: &Definitions,
    foreseen: &HashMap<Uuid, Due>,
    now: DateTime<Utc>,
) -> Decided {
    let mut deciding =
        Deciding { decided: Decided::default(), opened: HashMap::new(), touched: HashSet::new(), seq: 0 };
    for timer in timers {
        let Some(job) = known.get(timer.job, timer.revision) else {
            deciding.decided.unreadable.push(timer.job);
            continue;
        };
        match foreseen.get(&timer.job) {
            Some(due) => deciding.timer(timer, &job, due, now),
            None => deciding.decided.unreadable.push(timer.job),
        }
    }
    for trigger in triggers {
        match known.get(trigger.job, trigger.revision) {
            Some(job) => deciding.trigger(trigger, &job),
            None => deciding.unreadable_trigger(trigger),
        }
    }
    for retry in retries {
        let seq = deciding.next_seq();
        deciding.decided.decisions.retries.push((*retry, seq));
    }
    deciding.decided
}

struct Deciding {
    decided: Decided,
    /// Executions opened by this very claim: they count too (R20).
    opened: HashMap<Uuid, i64>,
    /// Jobs whose timer row is written.
    touched: HashSet<Uuid>,
    seq: i32,
}

impl Deciding {
    fn timer(&mut self, timer: &DueTimer, job: &Arc<Known>, due: &Due, now: DateTime<Utc>) {
        let definition = &job.definition;
        let gate = definition.gate;
        if gate.is_spent(timer.claimed_count) {
            self.moved(timer, job, None);
            return;
        }
        let Some(fire) = due.fire else {
            self.moved(timer, job, due.next);
            return;
        };
        let open = timer.open + self.opened.get(&timer.job).copied().unwrap_or(0);
        let passage = gate.passage(open, fire <= now);
        if passage == Passage::Waits {
            self.decided.left.push((timer.job, timer.line.clone(), timer.fire_at));
            return;
        }
        let is_opened = passage == Passage::Opens;
        let mut new = NewExecution {
            id: ids::execution_for_fire(timer.job, fire),
            job: timer.job,
            seq: 0,
            line: definition.line.clone(),
            revision: definition.revision,
            platform_id: definition.platform_id.clone(),
            scheduled_at: fire,
            max_retries: definition.max_retries,
            reason: due.missed_from.map(|from| {
                format!(
                    "missed while down from {} to {}: fires once, for the latest instant",
                    rfc3339(from),
                    rfc3339(now)
                )
            }),
            own_payload: false,
            payload: None,
            own_metadata: false,
            trace: None,
            created_by: String::new(),
            skipped: !is_opened,
        };
        let is_last = is_opened && gate.is_last(timer.claimed_count);
        let next = due.next.filter(|_| !is_last);
        if is_opened {
            if next.is_none() {
                self.decided.last.push(new.id);
            }
            self.open(new);
        } else {
            new.reason = Some(gate.reason(open));
            self.decided.decisions.executions.push(new);
        }
        self.moved_or(timer, job, next, due.next.filter(|_| is_last));
    }

    fn trigger(&mut self, trigger: &DueTrigger, job: &Known) {
        let gate = job.definition.gate;
        let open = trigger.open + self.opened.get(&trigger.job).copied().unwrap_or(0);
        let is_opened = gate.passage(open, true) == Passage::Opens;
        let new = NewExecution {
            id: trigger.execution,
            job: trigger.job,
            seq: 0,
            line: job.definition.line.clone(),
            revision: job.definition.revision,
            // Of a global job its own: whoever triggered it.
            platform_id: trigger.platform_id.clone(),
            scheduled_at: trigger.fire_at,
            max_retries: job.definition.max_retries,
            reason: (!is_opened).then(|| gate.reason(open)),
            own_payload: trigger.own_payload,
            payload: trigger.payload.clone(),
            own_metadata: trigger.own_metadata,
            trace: trigger.trace,
            created_by: trigger.created_by.clone(),
            skipped: !is_opened,
        };
        if is_opened {
            self.open(new);
        } else {
            self.decided.decisions.executions.push(new);
        }
        // A trigger moves no timer, but what it opened is counted there.
        if self.touched.insert(trigger.job) {
            self.decided.decisions.timers.push(MovedTimer { job: trigger.job, to: None });
        }
    }

    /// It was promised an outcome, and this is one.
    fn unreadable_trigger(&mut self, trigger: &DueTrigger) {
        self.decided.decisions.executions.push(NewExecution {
            id: trigger.execution,
            job: trigger.job,
            seq: 0,
            line: trigger.line.clone(),
            revision: trigger.revision,
            platform_id: trigger.platform_id.clone(),
            scheduled_at: trigger.fire_at,
            max_retries: 0,
            reason: Some("the definition of this job cannot be read by the running version".into()),
            own_payload: trigger.own_payload,
            payload: trigger.payload.clone(),
            own_metadata: trigger.own_metadata,
            trace: trigger.trace,
            created_by: trigger.created_by.clone(),
            skipped: true,
        });
    }

    fn open(&mut self, new: NewExecution) {
        *self.opened.entry(new.job).or_default() += 1;
        let seq = self.next_seq();
        self.decided.decisions.executions.push(NewExecution { seq, ..new });
    }

    fn moved(&mut self, timer: &DueTimer, job: &Arc<Known>, next: Option<DateTime<Utc>>) {
        self.moved_or(timer, job, next, None);
    }

    fn moved_or(
        &mut self,
        timer: &DueTimer,
        job: &Arc<Known>,
        next: Option<DateTime<Utc>>,
        unborn: Option<DateTime<Utc>>,
    ) {
        let to = Moved { fire_at: next, exhausted: next.is_none(), unborn };
        self.touched.insert(timer.job);
        self.decided.decisions.timers.push(MovedTimer { job: timer.job, to: Some(to) });
        if let Some(at) = next {
            self.decided.next.push(Next { job: job.clone(), line: timer.line.clone(), at });
        }
    }

    const fn next_seq(&mut self) -> i32 {
        self.seq += 1;
        self.seq
    }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carillon_core::gate::Gate;
    use carillon_core::job::Priority;
    use carillon_core::misfire;
    use carillon_core::retry::{Growth, Policy};
    use carillon_core::schedule::{Exclusion, TimetableSpec};
    use carillon_store::definitions::Definition;

    use super::*;

    const JOB: Uuid = Uuid::from_u128(1);

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn line() -> Line {
        Line::new("default", Priority::Medium)
    }

    fn known(open_max: Option<i64>, max_executions: Option<i64>, timetable: TimetableSpec) -> Definitions {
        let mut known = Definitions::default();
        known.learn(vec![Definition {
            job: JOB,
            revision: 1,
            line: line(),
            platform_id: Some("acme".into()),
            handler: "test:echo".into(),
            payload: None,
            timetable: Some(timetable),
            max_retries: 3,
            retry: Policy { delay_ms: 1_000, growth: Growth::default() },
            timeout_ms: 1_000,
            gate: Gate { open_max, max_executions },
        }]);
        known
    }

    fn every_second() -> TimetableSpec {
        TimetableSpec::every(Duration::from_secs(1), at(0))
    }

    fn timer(open: i64) -> DueTimer {
        DueTimer { job: JOB, fire_at: at(5_000), line: line(), revision: 1, claimed_count: 4, open }
    }

    fn trigger(n: u128) -> DueTrigger {
        DueTrigger {
            execution: Uuid::from_u128(n),
            job: JOB,
            fire_at: at(5_000),
            line: line(),
            revision: 1,
            open: 0,
            platform_id: Some("acme".into()),
            own_payload: false,
            payload: None,
            own_metadata: false,
            documents_stored: 0,
            trace: "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01".parse().ok(),
            created_by: "alice".into(),
        }
    }

    const THRESHOLD: TimeDelta = TimeDelta::seconds(30);

    /// With all foreseen that is known.
    fn decided(known: &Definitions, timers: &[DueTimer], triggers: &[DueTrigger], now: DateTime<Utc>) -> Decided {
        let due = |timer: &DueTimer| {
            let job = known.get(timer.job, timer.revision)?;
            Some((timer.job, misfire::resolve(job.timetable.as_ref()?, timer.fire_at, now, THRESHOLD)))
        };
        decide(timers, triggers, &[], known, &timers.iter().filter_map(due).collect(), now)
    }

    fn places(decided: &Decided) -> Vec<(Line, DateTime<Utc>)> {
        decided.next.iter().map(|next| (next.line.clone(), next.at)).collect()
    }

    #[test]
    fn a_fire_ahead_of_its_instant_is_claimed_and_the_timer_moves() {
        let known = known(Some(1), None, every_second());
        let decided = decided(&known, &[timer(0)], &[], at(4_800));
        let new = &decided.decisions.executions[0];
        assert_eq!((new.seq, new.scheduled_at, new.skipped), (1, at(5_000), false));
        assert_eq!(decided.decisions.timers[0].to.unwrap().fire_at, Some(at(6_000)));
        assert_eq!(places(&decided), [(line(), at(6_000))]);
    }

    #[test]
    fn with_an_open_predecessor_it_waits_for_its_instant_and_is_skipped_then() {
        let known = known(Some(1), None, every_second());
        let ahead = decided(&known, &[timer(1)], &[], at(4_800));
        assert_eq!(ahead.left, vec![(JOB, line(), at(5_000))]);
        assert!(ahead.decisions.executions.is_empty() && ahead.decisions.timers.is_empty());
        let then = decided(&known, &[timer(1)], &[], at(5_000));
        let new = &then.decisions.executions[0];
        assert!(new.skipped && new.seq == 0 && new.reason.as_ref().unwrap().contains("overlap"));
        assert_eq!(places(&then), [(line(), at(6_000))]);
    }

    #[test]
    fn concurrency_bounds_what_is_open() {
        let decided = |max| decided(&known(max, None, every_second()), &[timer(3)], &[], at(5_000));
        assert!(!decided(None).decisions.executions[0].skipped);
        assert!(!decided(Some(4)).decisions.executions[0].skipped);
        assert!(decided(Some(3)).decisions.executions[0].skipped);
    }

    #[test]
    fn what_one_claim_opens_counts_for_the_rest_of_it() {
        let known = known(Some(1), None, every_second());
        let decided = decided(&known, &[timer(0)], &[trigger(7), trigger(8)], at(5_000));
        let skipped: Vec<bool> = decided.decisions.executions.iter().map(|new| new.skipped).collect();
        assert_eq!(skipped, vec![false, true, true]);
        assert_eq!(decided.decisions.timers.len(), 1, "one row, one move");
    }

    #[test]
    fn the_last_allowed_execution_ends_the_timetable() {
        let decided = decided(&known(Some(1), Some(5), every_second()), &[timer(0)], &[], at(5_000));
        assert_eq!(decided.last, vec![decided.decisions.executions[0].id]);
        let to = decided.decisions.timers[0].to.unwrap();
        assert!(to.fire_at.is_none() && to.exhausted);
    }

    #[test]
    fn a_one_time_job_is_exhausted_by_its_fire() {
        let known = known(Some(1), None, TimetableSpec::once(at(5_000)));
        let decided = decided(&known, &[timer(0)], &[], at(5_000));
        assert!(decided.decisions.timers[0].to.unwrap().exhausted);
        assert_eq!(decided.last.len(), 1);
    }

    /// What is found elsewhere of a timetable that may be dear.
    fn foreseen(spec: &TimetableSpec, fire_at: DateTime<Utc>) -> HashMap<Uuid, Due> {
        let timetable = carillon_core::schedule::Timetable::parse(spec, JOB).unwrap();
        HashMap::from([(JOB, misfire::resolve(&timetable, fire_at, fire_at, THRESHOLD))])
    }

    /// Ten a second, of which two zones leave none from January to November: more than one search can see past.
    fn cut() -> TimetableSpec {
        let mut spec = TimetableSpec::every(Duration::from_millis(100), at(0));
        spec.exclusions =
            vec![Exclusion::cron("*/2 * * 1-11 *"), Exclusion::cron("1-59/2 * * 1-11 *").in_timezone("Asia/Tokyo")];
        spec
    }

    #[test]
    fn where_a_search_was_cut_nothing_fires_and_the_timer_goes_on() {
        let known = known(Some(1), Some(9), cut());
        let mut due = timer(0);
        for _ in 0..2 {
            let foreseen = foreseen(&cut(), due.fire_at);
            let decided = decide(&[due.clone()], &[], &[], &known, &foreseen, due.fire_at);
            assert!(decided.decisions.executions.is_empty());
            let to = decided.decisions.timers[0].to.unwrap();
            assert!(!to.exhausted && to.fire_at > Some(due.fire_at), "{to:?}");
            due.fire_at = to.fire_at.unwrap();
            assert_eq!(places(&decided), [(line(), due.fire_at)]);
        }
    }

    #[test]
    fn a_job_that_has_nothing_behind_a_cut_is_ended() {
        let mut spec = TimetableSpec { end: Some(at(70_000)), ..every_second() };
        spec.exclusions = vec![Exclusion::cron("1 0 1 1 *")];
        let foreseen = foreseen(&spec, at(61_000));
        let known = known(Some(1), None, spec);
        let due = DueTimer { fire_at: at(61_000), ..timer(0) };
        let decided = decide(&[due], &[], &[], &known, &foreseen, at(61_000));
        assert!(decided.decisions.executions.is_empty() && decided.decisions.timers[0].to.unwrap().exhausted);
    }

    #[test]
    fn an_unreadable_job_is_left_alone() {
        let decided = decided(&Definitions::default(), &[timer(0)], &[], at(5_000));
        assert_eq!(decided.unreadable, vec![JOB]);
        assert!(decided.decisions.timers.is_empty());
    }
}
