//! The searches themselves, in tasks of their own; each sends what it found and is over.

use std::time::{Duration, Instant};

use carillon_core::misfire::{self, Due};
use carillon_core::schedule::{LOOKS_MAX, Timetable, TimetableSpec};
use carillon_store::Store;
use tokio::sync::mpsc;
use tracing::error;
use uuid::Uuid;

use super::{Answer, Found, Pace, Question, Searched};

/// Ordinary timetables are searched for so long in one go.
const ORDINARY_MAX: Duration = Duration::from_millis(20);
/// Looks at exclusions that each search of the quick lane has; some 0.5 ms. A dozen calendars of holidays need a hundredth.
pub(super) const QUICK_LOOKS: usize = 16_000;
/// Tries to read a long timetable, with [`READ_PAUSE`] between them.
const READS_MAX: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// Answers ordinary questions, as far as the time suffices.
pub(super) async fn search_many(questions: Vec<Question>, finder: mpsc::Sender<Searched>) {
    let began = Instant::now();
    let asked = questions.clone();
    let searched = tokio::task::spawn_blocking(move || {
        let search = |question: &Question| match &question.job.timetable {
            Some(timetable) => Found::Due(resolve(timetable, question)),
            None => Found::Unreadable,
        };
        let in_time =
            |(n, question)| if n == 0 || began.elapsed() < ORDINARY_MAX { search(question) } else { Found::Unanswered };
        asked.iter().enumerate().map(in_time).collect::<Vec<Found>>()
    });
    // If one panicked there is no answer for any.
    let mut found = searched.await.unwrap_or_default().into_iter();
    let answer = |question| Answer { question, found: found.next().unwrap_or(Found::Unreadable) };
    let answers = questions.into_iter().map(answer).collect();
    // If it fails, whoever asked is gone with the term.
    let _ = finder.send(Searched { answers, pace: Pace::Ordinary, took: began.elapsed() }).await;
}

/// Answers one question about a timetable that may be dear.
pub(super) async fn search_one(question: Question, pace: Pace, store: Store, finder: mpsc::Sender<Searched>) {
    let began = Instant::now();
    let definition = &question.job.definition;
    let spec = match &definition.timetable {
        Some(spec) => Some(spec.clone()),
        None => read(&store, definition.job, definition.revision).await,
    };
    let looks = if matches!(pace, Pace::Slow) { LOOKS_MAX } else { QUICK_LOOKS };
    let asked = question.clone();
    let searched = tokio::task::spawn_blocking(move || match spec {
        Some(spec) => search(&spec, looks, &asked),
        None => Found::Unreadable,
    });
    // One that panicked has no answer.
    let found = searched.await.unwrap_or(Found::Unreadable);
    let took = began.elapsed();
    if matches!(pace, Pace::Slow) {
        tokio::time::sleep(took).await;
    }
    // If it fails, whoever asked is gone with the term.
    let _ = finder.send(Searched { answers: vec![Answer { question, found }], pace, took }).await;
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

fn resolve(timetable: &Timetable, question: &Question) -> Due {
    misfire::resolve(timetable, question.fire_at, question.now, question.misfire_threshold)
}

pub(super) fn search(spec: &TimetableSpec, looks: usize, question: &Question) -> Found {
    let job = question.job.definition.job;
    match Timetable::parse_accepted(spec, job, looks) {
        Ok(timetable) => {
            let due = resolve(&timetable, question);
            if timetable.was_cut() && looks < LOOKS_MAX { Found::Dear } else { Found::Due(due) }
        }
        Err(errors) => {
            let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
            error!(job.id = %job, "its timetable cannot be read, it does not fire: {}", why.join("; "));
            Found::Unreadable
        }
    }
}
