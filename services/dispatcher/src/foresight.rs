//! What timetables say, found outside of any claim and off the runtime's threads, then used by the claim that the timer is due
//! for. It is kept with the job's definition ([`Known::foresee`]).
//!
//! Of an ordinary job what comes next is looked for as soon as its timer has moved, so that it is there before it is due. Of
//! any other timer, and of the first that a leader sees of a job, nothing is known yet: the claim that meets it leaves it where
//! it is and asks here; as soon as the answer is there the timer is looked at again. Nobody else waits for it.
//!
//! There are three lanes, each with a task that goes on while it has questions. Ordinary timetables are searched in
//! microseconds. One with exclusions may cost 30 ms, and forty times as much after an outage; one with a thousand of them is
//! 100 KiB to read. Of those the quick lane has 16,000 looks at exclusions for each; a job that needs more is set aside into the
//! slow one, where there is a pause between two searches as long as the last took. So a thousand of the dearest cost half a core,
//! and hold up others with exclusions for some seconds, those without not at all.
//! Nothing here outlives the term: the tasks end with it.

mod search;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use carillon_core::agenda::Slot;
use carillon_core::misfire::Due;
use carillon_store::Store;
use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, gauge, histogram};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use crate::definitions::Known;
use search::{search_dear, search_ordinary};

/// Questions that a task takes at once. Of the slow ones it is one: what they cost is to be seen between two.
const ORDINARY_AT_ONCE: usize = 1_000;
const QUICK_AT_ONCE: usize = 250;
/// Questions waiting in one lane, at most: what does not fit is asked again by the claim that meets it next.
const WAITING_MAX: usize = 20_000;
/// Jobs remembered as slow.
const SLOW_MAX: usize = 20_000;
/// Answers on their way. The lanes wait when the leader does not fetch them.
const ANSWERS_MAX: usize = 64;
/// Until then a timer is left alone that could not be asked for, and one that was.
pub(crate) const LANE_FULL_PAUSE: TimeDelta = TimeDelta::seconds(5);
pub(crate) const ANSWER_MAX: TimeDelta = TimeDelta::minutes(60);

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) job: Arc<Known>,
    /// Where its timer stands.
    pub(crate) fire_at: DateTime<Utc>,
    /// Where to look again once it is answered. `None`: nobody waits for it yet.
    pub(crate) slot: Option<Slot>,
    /// The database's time at which the timer is, or will be, claimed.
    pub(crate) now: DateTime<Utc>,
    /// Until when the answer holds.
    pub(crate) until: DateTime<Utc>,
    pub(crate) misfire_threshold: TimeDelta,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) question: Question,
    pub(crate) found: Found,
}

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Due(Due),
    /// The quick lane had not looks enough.
    Dear,
    /// This version cannot read the timetable, or Postgres did not give it.
    Unreadable,
}

/// What a lane found in one go.
#[derive(Debug)]
pub(crate) struct Searched {
    answers: Vec<Answer>,
    pace: Pace,
    took: Duration,
    /// The lane is free.
    is_last: bool,
}

#[derive(Clone, Copy, Debug)]
enum Pace {
    Ordinary,
    Quick,
    Slow,
}

/// Questions that wait for one task.
#[derive(Debug)]
struct Lane {
    pace: Pace,
    waiting: VecDeque<Question>,
    /// Until its last answers are kept.
    is_busy: bool,
    task: Option<JoinHandle<()>>,
}

impl Lane {
    const fn new(pace: Pace) -> Self {
        Self { pace, waiting: VecDeque::new(), is_busy: false, task: None }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The lanes, and what is on its way in them.
#[derive(Debug)]
pub(crate) struct Foresight {
    ordinary: Lane,
    quick: Lane,
    slow: Lane,
    /// Of whose timers an answer is waited for.
    asked: HashSet<Uuid>,
    /// The first instant of all that is looked ahead.
    soonest: Option<DateTime<Utc>>,
    known_slow: HashSet<Uuid>,
    store: Store,
    found: mpsc::Receiver<Searched>,
    finder: mpsc::Sender<Searched>,
}

impl Foresight {
    pub(crate) fn new(store: Store) -> Self {
        let (finder, found) = mpsc::channel(ANSWERS_MAX);
        Self {
            ordinary: Lane::new(Pace::Ordinary),
            quick: Lane::new(Pace::Quick),
            slow: Lane::new(Pace::Slow),
            asked: HashSet::new(),
            soonest: None,
            known_slow: HashSet::new(),
            store,
            found,
            finder,
        }
    }

    /// Asks, unless the job is asked about already. Answers until when its timer is to be left alone, unless an answer comes
    /// before.
    pub(crate) fn ask(&mut self, question: Question) -> DateTime<Utc> {
        let (job, now) = (question.job.definition.job, question.now);
        if !self.asked.contains(&job) {
            let pace = match &question.job.timetable {
                Some(_) => Pace::Ordinary,
                None if self.known_slow.contains(&job) => Pace::Slow,
                None => Pace::Quick,
            };
            let lane = self.lane(pace);
            if lane.waiting.len() >= WAITING_MAX {
                return now + LANE_FULL_PAUSE;
            }
            lane.waiting.push_back(question);
            self.asked.insert(job);
            self.work();
        }
        now + ANSWER_MAX
    }

    /// Looks for what timers lead to that have just moved. What does not fit is asked for when it is due.
    pub(crate) fn look_ahead(&mut self, questions: impl Iterator<Item = Question>) {
        for question in questions {
            if self.ordinary.waiting.len() >= WAITING_MAX {
                break;
            }
            self.soonest = Some(self.soonest.map_or(question.fire_at, |soonest| soonest.min(question.fire_at)));
            self.ordinary.waiting.push_back(question);
        }
        self.work();
    }

    /// Whether something is being looked for that is due by `due` itself: a claim that does not wait for it must ask.
    pub(crate) fn is_looking_for(&self, due: DateTime<Utc>) -> bool {
        self.soonest.is_some_and(|soonest| soonest <= due)
    }

    /// Waits for answers. Nothing is lost if it is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Searched {
        match self.found.recv().await {
            Some(searched) => searched,
            // Never: it holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Answers that are there already.
    pub(crate) fn try_next(&mut self) -> Option<Searched> {
        self.found.try_recv().ok()
    }

    /// Keeps answers until the claims that they are for, gives the lanes their next questions, and returns what is answered.
    pub(crate) fn keep(&mut self, searched: Searched) -> Vec<Answer> {
        histogram!("carillon_dispatcher_search_seconds").record(searched.took.as_secs_f64());
        self.lane(searched.pace).is_busy &= !searched.is_last;
        let mut answered = Vec::with_capacity(searched.answers.len());
        for Answer { question, found } in searched.answers {
            let job = question.job.definition.job;
            match &found {
                Found::Dear => {
                    if self.known_slow.len() < SLOW_MAX && self.known_slow.insert(job) {
                        warn!(job.id = %job, "its timetable is dear to search, it is set aside: its fires may be late");
                        counter!("carillon_dispatcher_set_aside_total").increment(1);
                    }
                    if self.slow.waiting.len() < WAITING_MAX {
                        self.slow.waiting.push_back(question);
                        continue;
                    }
                    // Asked again by the claim that meets it next.
                }
                Found::Due(due) => question.job.foresee(question.fire_at, due.clone(), question.until),
                Found::Unreadable => {}
            }
            if question.slot.is_some() {
                self.asked.remove(&job);
            }
            answered.push(Answer { question, found });
        }
        self.work();
        answered
    }

    const fn lane(&mut self, pace: Pace) -> &mut Lane {
        match pace {
            Pace::Ordinary => &mut self.ordinary,
            Pace::Quick => &mut self.quick,
            Pace::Slow => &mut self.slow,
        }
    }

    /// Gives each lane that is free its next questions.
    fn work(&mut self) {
        for lane in [&mut self.ordinary, &mut self.quick, &mut self.slow] {
            if lane.is_busy {
                continue;
            }
            let at_once = match lane.pace {
                Pace::Ordinary => ORDINARY_AT_ONCE,
                Pace::Quick => QUICK_AT_ONCE,
                Pace::Slow => 1,
            };
            let questions: VecDeque<Question> = lane.waiting.drain(..at_once.min(lane.waiting.len())).collect();
            if questions.is_empty() {
                if matches!(lane.pace, Pace::Ordinary) {
                    self.soonest = None;
                }
                continue;
            }
            let (store, finder) = (self.store.clone(), self.finder.clone());
            lane.is_busy = true;
            lane.task = Some(match lane.pace {
                Pace::Ordinary => tokio::spawn(search_ordinary(questions, finder)),
                Pace::Quick | Pace::Slow => tokio::spawn(search_dear(questions, lane.pace, store, finder)),
            });
        }
        gauge!("carillon_dispatcher_searches_waiting").set(u32::try_from(self.asked.len()).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::agenda::Source;
    use carillon_core::gate::Gate;
    use carillon_core::job::Priority;
    use carillon_core::line::Line;
    use carillon_core::retry::{Growth, Policy};
    use carillon_core::schedule::{Exclusion, LOOKS_MAX, TimetableSpec};
    use carillon_store::StoreOptions;
    use carillon_store::definitions::Definition;
    use chrono::{Datelike as _, Timelike as _};

    use super::search::{QUICK_LOOKS, search};
    use super::*;
    use crate::definitions::Definitions;

    fn question(timetable: TimetableSpec, now: DateTime<Utc>) -> Question {
        let line = Line::new("default", Priority::Medium);
        let definition = Definition {
            job: Uuid::from_u128(1),
            revision: 1,
            line: line.clone(),
            platform_id: None,
            handler: "test:echo".into(),
            payload: None,
            timetable: Some(timetable),
            max_retries: 0,
            retry: Policy { delay_ms: 1_000, growth: Growth::default() },
            timeout_ms: 1,
            gate: Gate::default(),
        };
        Question {
            job: Arc::new(Known::new(definition, None)),
            fire_at: now,
            slot: Some((Source::Timer, line)),
            now,
            until: DateTime::<Utc>::MAX_UTC,
            misfire_threshold: THRESHOLD,
        }
    }

    #[test]
    fn the_quick_lane_finds_what_the_slow_one_finds_or_says_that_it_cannot() {
        let now = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let mut calendar = TimetableSpec::cron("0 9 * * 1-5", "Europe/Berlin");
        calendar.exclusions = (1..=28).map(|day| Exclusion::cron(format!("* * {day} 12 *"))).collect();
        let asked = question(calendar.clone(), now);
        let Found::Due(quick) = search(&calendar, QUICK_LOOKS, &asked) else { panic!("an ordinary calendar") };
        let Found::Due(slow) = search(&calendar, LOOKS_MAX, &asked) else { panic!("an ordinary calendar") };
        assert_eq!(quick, slow);

        // Ten a second, of which two zones leave none from January to November.
        let mut dear = TimetableSpec::every(Duration::from_millis(100), now);
        dear.exclusions =
            vec![Exclusion::cron("*/2 * * 1-11 *"), Exclusion::cron("1-59/2 * * 1-11 *").in_timezone("Asia/Tokyo")];
        let asked = question(dear.clone(), now);
        assert_eq!(search(&dear, QUICK_LOOKS, &asked), Found::Dear);
        assert!(matches!(search(&dear, LOOKS_MAX, &asked), Found::Due(_)));
    }

    /// Daily, and all days but today's are excluded, behind 998 exclusions that have nothing to do with them: what is next is
    /// a month off, and costs a thousand looks for each day until then.
    fn rarely(now: DateTime<Utc>) -> TimetableSpec {
        let mut spec = TimetableSpec::every(Duration::from_secs(24 * 60 * 60 + 1), now);
        let other = |n: u32| format!("{} {} * * *", n % 60, (now.hour() + 2 + n / 60) % 24);
        let days: Vec<String> = (1..=31).filter(|day| *day != now.day()).map(|day| day.to_string()).collect();
        spec.exclusions = (0..998).map(|n| Exclusion::cron(other(n))).collect();
        spec.exclusions.push(Exclusion::cron(format!("* * {} * *", days.join(","))));
        spec
    }

    /// It is searched with looks enough, in the slow lane, and so is whatever is asked of it later.
    #[tokio::test]
    async fn what_the_quick_lane_sets_aside_is_found_by_the_slow_one() {
        let now = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let mut foresight = foresight();
        let asked = question(rarely(now), now);
        assert_eq!(foresight.ask(asked.clone()), now + ANSWER_MAX, "it is left alone until there is an answer");
        let searched = foresight.next().await;
        assert_eq!(searched.answers[0].found, Found::Dear);
        assert!(foresight.keep(searched).is_empty());
        assert!(asked.job.due(now, now, THRESHOLD).is_none(), "not known yet");
        let searched = foresight.next().await;
        assert_eq!(foresight.keep(searched).len(), 1);
        let due = asked.job.due(now, now, THRESHOLD).expect("found");
        assert_eq!(due.fire, Some(now));
        assert!(due.next.is_some_and(|next| next > now + TimeDelta::days(27)), "{due:?}");
        foresight.ask(asked);
        assert!(matches!(foresight.next().await.answers[0].found, Found::Due(_)), "it is known to be dear");
    }

    fn foresight() -> Foresight {
        let options = StoreOptions::new("postgres://nobody@localhost/none", "test");
        Foresight::new(Store::connect_lazily(&options).unwrap())
    }

    /// Of an ordinary job, as a leader knows it.
    fn ordinary(n: u128, fire_at: DateTime<Utc>) -> Question {
        let asked = question(TimetableSpec::cron("* * * * *", "Europe/Berlin"), fire_at);
        let mut definition = asked.job.definition.clone();
        definition.job = Uuid::from_u128(n);
        let mut known = Definitions::default();
        known.learn(vec![definition]);
        Question { job: known.get(Uuid::from_u128(n), 1).unwrap(), ..asked }
    }

    #[tokio::test]
    async fn what_is_looked_ahead_is_known_before_it_is_due_and_holds_until_something_may_have_been_missed() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let next = at + TimeDelta::minutes(1);
        let mut foresight = foresight();
        let looked: Vec<Question> =
            (0..2_500).map(|n| Question { slot: None, until: at + THRESHOLD, ..ordinary(n, at) }).collect();
        foresight.look_ahead(looked.iter().cloned());
        assert!(foresight.is_looking_for(at) && !foresight.is_looking_for(at - TimeDelta::milliseconds(1)));
        let mut answered = 0;
        while foresight.is_looking_for(at) {
            let searched = foresight.next().await;
            answered += foresight.keep(searched).len();
        }
        assert_eq!(answered, looked.len(), "in more than one go");
        for question in &looked {
            let due = Due { fire: Some(at), next: Some(next), missed_from: None };
            assert_eq!(question.job.due(at, at + THRESHOLD, THRESHOLD), Some(due));
            assert_eq!(question.job.due(at, at + THRESHOLD + TimeDelta::milliseconds(1), THRESHOLD), None);
            assert_eq!(question.job.due(next, next, THRESHOLD), None);
        }
    }

    #[tokio::test]
    async fn a_claim_that_meets_an_ordinary_timer_unawares_is_answered_at_once() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let late = at + TimeDelta::minutes(30);
        let mut foresight = foresight();
        let asked: Vec<Question> = (0..3).map(|n| Question { now: late, ..ordinary(n, at) }).collect();
        for question in &asked {
            foresight.ask(question.clone());
        }
        let mut answered = 0;
        while answered < asked.len() {
            let searched = foresight.next().await;
            answered += foresight.keep(searched).iter().filter(|answer| answer.question.slot.is_some()).count();
        }
        let due = asked[0].job.due(at, late, THRESHOLD).expect("found");
        assert_eq!((due.fire, due.missed_from), (Some(late), Some(at)));
    }

    #[test]
    fn what_was_found_of_one_revision_serves_for_another_of_the_same_timetable() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let asked = question(TimetableSpec::cron("* * * * *", "UTC"), at);
        let of_revision = |revision, schedule| {
            let timetable = Some(TimetableSpec::cron(schedule, "UTC"));
            carillon_store::definitions::Definition { revision, timetable, ..asked.job.definition.clone() }
        };
        let mut known = Definitions::default();
        known.learn((1..=30).map(|revision| of_revision(revision, "* * * * *")).collect());
        known.learn(vec![of_revision(31, "*/2 * * * *")]);
        let (job, due) = (asked.job.definition.job, Due { fire: Some(at), next: None, missed_from: None });
        let find = |revision| known.due(&known.get(job, revision).unwrap(), at, at, THRESHOLD);
        assert_eq!(find(30), None);
        known.get(job, 26).unwrap().foresee(at, due.clone(), at);
        assert_eq!((find(26), find(30), find(31)), (Some(due.clone()), Some(due), None));
        assert_eq!(known.unknown([(job, 99)].into_iter()), [(job, 99)]);
        assert!(known.get(job, 23).is_none() && known.get(job, 24).is_some(), "the newest are kept");
    }

    /// What the quick lane sets aside finds the slow one full: it is let go of, and asked about again.
    #[tokio::test]
    async fn the_slow_lane_takes_no_more_than_a_full_lane_holds() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let mut foresight = foresight();
        let asked = question(rarely(at), at);
        let dear = |count: usize| Searched {
            pace: Pace::Quick,
            answers: (0..count).map(|_| Answer { question: asked.clone(), found: Found::Dear }).collect(),
            is_last: true,
            took: Duration::ZERO,
        };
        foresight.slow.is_busy = true;
        assert!(foresight.keep(dear(WAITING_MAX)).is_empty());
        let full = foresight.keep(dear(3));
        assert_eq!((full.len(), foresight.slow.waiting.len()), (3, WAITING_MAX));
        assert!(full.iter().all(|answer| answer.found == Found::Dear));
        assert!(!foresight.asked.contains(&asked.job.definition.job));
    }

    /// However many dear ones wait, ordinary ones are asked about.
    #[tokio::test]
    async fn a_full_lane_is_full_for_its_own() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let mut foresight = foresight();
        let dear = question(rarely(at), at);
        let of_job = |n: usize| {
            let job = Uuid::from_u128(u128::try_from(n).unwrap() + 10);
            let definition =
                carillon_store::definitions::Definition { job, timetable: None, ..dear.job.definition.clone() };
            Question { job: Arc::new(Known::new(definition, None)), ..dear.clone() }
        };
        let full = (0..WAITING_MAX + QUICK_AT_ONCE + 1).map(|n| foresight.ask(of_job(n))).last();
        assert_eq!(full, Some(at + LANE_FULL_PAUSE));
        assert_eq!(foresight.ask(ordinary(1, at)), at + ANSWER_MAX);
    }

    #[test]
    fn what_is_known_stays_known_until_it_is_asked_for_again() {
        let at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let large = |n: u128| {
            let asked = question(TimetableSpec::cron("* * * * *", "UTC"), at);
            let payload = Some("x".repeat(1 << 20));
            carillon_store::definitions::Definition { job: Uuid::from_u128(n), payload, ..asked.job.definition.clone() }
        };
        let mut known = Definitions::default();
        known.learn((0..200).map(large).collect());
        assert!(
            (0..200).all(|n| known.get(Uuid::from_u128(n), 1).is_some()),
            "a claim goes on with all that it has learned"
        );
        assert_eq!(known.unknown((0..200).map(|n| (Uuid::from_u128(n), 1))).len(), 200, "then it begins anew");
    }

    const THRESHOLD: TimeDelta = TimeDelta::seconds(30);
}
