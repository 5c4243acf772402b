//! What timetables say that may be dear to search: found outside of any claim and off the runtime's threads, then used by the
//! claim that the timer is due for.
//!
//! An ordinary timetable is searched in microseconds, by the claim itself. One with exclusions may cost 30 ms, and forty times
//! as much after an outage; one with a thousand of them is 100 KiB to read. The first claim that meets such a timer leaves it
//! where it is and asks here; as soon as the answer is there the timer is looked at again. Nobody else waits for it.
//!
//! There are two lanes, a job at a time in each. In the quick one a search has [`QUICK_LOOKS`]; a job that needs more is set
//! aside into the slow one, where there is a pause between two searches as long as the last took. So a thousand of the dearest
//! cost half a core, and hold up others with exclusions for some seconds, those without not at all.
//! Nothing here outlives the term: the tasks end with it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::agenda::Slot;
use carillon_core::misfire::{self, Due};
use carillon_core::schedule::{LOOKS_MAX, Timetable, TimetableSpec};
use carillon_store::Store;
use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, gauge, histogram};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};
use uuid::Uuid;

use crate::definitions::Known;

/// Looks at exclusions that each search of the quick lane has; some 0.5 ms. A dozen calendars of holidays need a hundredth.
const QUICK_LOOKS: usize = 16_000;
/// Questions waiting, at most: what does not fit is asked again by the claim that meets it next.
const WAITING_MAX: usize = 20_000;
/// Jobs remembered as slow.
const SLOW_MAX: usize = 20_000;
/// Answers on their way. Both lanes wait when the leader does not fetch them.
const ANSWERS_MAX: usize = 64;
/// Until then a timer is left alone that could not be asked for, and one that was.
const FULL_PAUSE: TimeDelta = TimeDelta::seconds(5);
const ANSWER_MAX: TimeDelta = TimeDelta::minutes(60);
/// Tries to read a long timetable, with [`READ_PAUSE`] between them.
const READS_MAX: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) job: Arc<Known>,
    /// Where its timer stands.
    pub(crate) fire_at: DateTime<Utc>,
    /// Where to look again once it is answered.
    pub(crate) slot: Slot,
    /// The database's time.
    pub(crate) now: DateTime<Utc>,
    pub(crate) misfire_threshold: TimeDelta,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) job: Uuid,
    pub(crate) revision: i64,
    pub(crate) fire_at: DateTime<Utc>,
    pub(crate) slot: Slot,
    pub(crate) found: Found,
    took: Duration,
}

/// What became of a question.
#[derive(Debug)]
pub(crate) enum Found {
    Due(Due),
    /// The quick lane had not looks enough.
    Dear(Box<Question>),
    /// This version cannot read the timetable, or Postgres did not give it.
    Unreadable,
}

/// The two lanes, and what they have found.
#[derive(Debug)]
pub(crate) struct Foresight {
    quick: VecDeque<Question>,
    slow: VecDeque<Question>,
    asked: HashSet<Uuid>,
    answered: HashMap<Uuid, Answer>,
    known_slow: HashSet<Uuid>,
    store: Store,
    answers: mpsc::Receiver<Answer>,
    answer: mpsc::Sender<Answer>,
    lanes: [Option<JoinHandle<()>>; 2],
}

impl Drop for Foresight {
    fn drop(&mut self) {
        for lane in self.lanes.iter().flatten() {
            lane.abort();
        }
    }
}

impl Foresight {
    pub(crate) fn new(store: Store) -> Self {
        let (answer, answers) = mpsc::channel(ANSWERS_MAX);
        Self {
            quick: VecDeque::new(),
            slow: VecDeque::new(),
            asked: HashSet::new(),
            answered: HashMap::new(),
            known_slow: HashSet::new(),
            store,
            answers,
            answer,
            lanes: [None, None],
        }
    }

    /// Takes what was found for a timer that stands at `fire_at`. An answer for another instant or revision is of the past.
    pub(crate) fn take(&mut self, job: Uuid, revision: i64, fire_at: DateTime<Utc>) -> Option<Due> {
        let answer = self.answered.remove(&job)?;
        match answer.found {
            Found::Due(due) if (answer.revision, answer.fire_at) == (revision, fire_at) => Some(due),
            _ => None,
        }
    }

    /// Asks, unless the job is asked about already. Answers until when its timer is to be left alone, unless an answer comes
    /// before.
    pub(crate) fn ask(&mut self, question: Question) -> DateTime<Utc> {
        let (job, now) = (question.job.definition.job, question.now);
        if !self.asked.contains(&job) {
            if self.asked.len() >= WAITING_MAX {
                return now + FULL_PAUSE;
            }
            self.asked.insert(job);
            let lane = if self.known_slow.contains(&job) { &mut self.slow } else { &mut self.quick };
            lane.push_back(question);
            self.work();
        }
        now + ANSWER_MAX
    }

    /// Waits for an answer. Nothing is lost if it is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Never: it holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// An answer that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Keeps an answer until the claim that it is for, and gives the lane its next question.
    pub(crate) fn keep(&mut self, answer: Answer) {
        histogram!("carillon_dispatcher_search_seconds").record(answer.took.as_secs_f64());
        match answer.found {
            Found::Dear(question) => {
                if self.known_slow.len() < SLOW_MAX && self.known_slow.insert(answer.job) {
                    warn!(job.id = %answer.job, "its timetable is dear to search, it is set aside: its fires may be late");
                    counter!("carillon_dispatcher_set_aside_total").increment(1);
                }
                self.slow.push_back(*question);
            }
            Found::Due(_) => {
                self.asked.remove(&answer.job);
                self.answered.insert(answer.job, answer);
            }
            Found::Unreadable => {
                self.asked.remove(&answer.job);
            }
        }
        self.work();
    }

    /// Gives each lane that is idle its next question.
    fn work(&mut self) {
        for (lane, waiting, is_slow) in [(0, &mut self.quick, false), (1, &mut self.slow, true)] {
            let is_busy = self.lanes[lane].as_ref().is_some_and(|task| !task.is_finished());
            if is_busy {
                continue;
            }
            let Some(question) = waiting.pop_front() else { continue };
            self.lanes[lane] = Some(tokio::spawn(work(question, self.store.clone(), self.answer.clone(), is_slow)));
        }
        gauge!("carillon_dispatcher_searches_waiting").set(u32::try_from(self.asked.len()).unwrap_or(u32::MAX));
    }
}

/// Answers one question.
async fn work(question: Question, store: Store, answers: mpsc::Sender<Answer>, is_slow: bool) {
    let began = Instant::now();
    let definition = &question.job.definition;
    let (job, revision) = (definition.job, definition.revision);
    let spec = match &definition.timetable {
        Some(spec) => Some(spec.clone()),
        None => read(&store, job, revision).await,
    };
    let (fire_at, slot) = (question.fire_at, question.slot.clone());
    let looks = if is_slow { LOOKS_MAX } else { QUICK_LOOKS };
    let searched = tokio::task::spawn_blocking(move || match spec {
        Some(spec) => search(&spec, looks, question),
        None => Found::Unreadable,
    });
    // One that panicked has no answer.
    let found = searched.await.unwrap_or(Found::Unreadable);
    let took = began.elapsed();
    if is_slow {
        tokio::time::sleep(took).await;
    }
    // If it fails, whoever asked is gone with the term.
    let _ = answers.send(Answer { job, revision, fire_at, slot, found, took }).await;
}

async fn read(store: &Store, job: Uuid, revision: i64) -> Option<TimetableSpec> {
    for _ in 0..READS_MAX {
        match store.timetable(job, revision).await {
            Ok(timetable) => return timetable,
            Err(problem) => {
                error!(job.id = %job, "its timetable cannot be read: {:#}", anyhow::Error::from(problem));
                tokio::time::sleep(READ_PAUSE).await;
            }
        }
    }
    None
}

fn search(spec: &TimetableSpec, looks: usize, question: Question) -> Found {
    let job = question.job.definition.job;
    match Timetable::parse_accepted(spec, job, looks) {
        Ok(timetable) => {
            let due = misfire::resolve(&timetable, question.fire_at, question.now, question.misfire_threshold);
            if timetable.was_cut() && looks < LOOKS_MAX { Found::Dear(Box::new(question)) } else { Found::Due(due) }
        }
        Err(errors) => {
            let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
            error!(job.id = %job, "its timetable cannot be read, it does not fire: {}", why.join("; "));
            Found::Unreadable
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::agenda::Source;
    use carillon_core::job::Priority;
    use carillon_core::line::Line;
    use carillon_core::schedule::Exclusion;
    use carillon_store::StoreOptions;
    use carillon_store::definitions::Definition;
    use chrono::{Datelike as _, Timelike as _};

    use super::*;

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
            retry_delay_ms: 0,
            timeout_ms: 1,
            open_max: None,
            max_executions: None,
        };
        Question {
            job: Arc::new(Known { definition, timetable: None }),
            fire_at: now,
            slot: (Source::Timer, line),
            now,
            misfire_threshold: TimeDelta::seconds(30),
        }
    }

    #[test]
    fn the_quick_lane_finds_what_the_slow_one_finds_or_says_that_it_cannot() {
        let now = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let mut calendar = TimetableSpec::cron("0 9 * * 1-5", "Europe/Berlin");
        calendar.exclusions = (1..=28).map(|day| Exclusion::cron(format!("* * {day} 12 *"))).collect();
        let asked = question(calendar.clone(), now);
        let Found::Due(quick) = search(&calendar, QUICK_LOOKS, asked.clone()) else { panic!("an ordinary calendar") };
        let Found::Due(slow) = search(&calendar, LOOKS_MAX, asked) else { panic!("an ordinary calendar") };
        assert_eq!(quick, slow);

        // Ten a second, of which two zones leave none from January to November.
        let mut dear = TimetableSpec::every(Duration::from_millis(100), now);
        dear.exclusions =
            vec![Exclusion::cron("*/2 * * 1-11 *"), Exclusion::cron("1-59/2 * * 1-11 *").in_timezone("Asia/Tokyo")];
        let asked = question(dear.clone(), now);
        assert!(matches!(search(&dear, QUICK_LOOKS, asked.clone()), Found::Dear(_)));
        assert!(matches!(search(&dear, LOOKS_MAX, asked), Found::Due(_)));
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
        let store = Store::connect_lazily(&StoreOptions::new("postgres://nobody@localhost/none", "test")).unwrap();
        let mut foresight = Foresight::new(store);
        let asked = question(rarely(now), now);
        let (job, until) = (asked.job.definition.job, foresight.ask(asked.clone()));
        assert_eq!(until, now + ANSWER_MAX, "it is left alone until there is an answer");
        let answer = foresight.next().await;
        assert!(matches!(answer.found, Found::Dear(_)), "{answer:?}");
        foresight.keep(answer);
        assert!(foresight.take(job, 1, now).is_none(), "not known yet");
        let answer = foresight.next().await;
        foresight.keep(answer);
        let due = foresight.take(job, 1, now).expect("found");
        assert_eq!(due.fire, Some(now));
        assert!(due.next.is_some_and(|next| next > now + TimeDelta::days(27)), "{due:?}");
        foresight.ask(asked);
        assert!(matches!(foresight.next().await.found, Found::Due(_)), "it is known to be dear");
    }
}
