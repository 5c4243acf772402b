//! The searches themselves, in tasks of their own, off the runtime's threads. A task sends what it has found every now and then,
//! and at last that it is over.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use carillon_core::misfire::{self, Due};
use carillon_core::schedule::{LOOKS_MAX, Timetable, TimetableSpec};
use carillon_store::Store;
use tokio::sync::mpsc;
use tracing::error;
use uuid::Uuid;

use super::{Answer, Found, Pace, Question, Searched};

/// After so long what was found is sent.
const SEND_EACH: Duration = Duration::from_millis(20);
/// Looks at exclusions that each search of the quick lane has; some 0.5 ms. A dozen calendars of holidays need a hundredth.
pub(super) const QUICK_LOOKS: usize = 16_000;
/// Tries to read a long timetable, with [`READ_PAUSE`] between them.
const READS_MAX: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// Answers ordinary questions.
pub(super) async fn search_ordinary(questions: VecDeque<Question>, finder: mpsc::Sender<Searched>) {
    let mut left = questions;
    loop {
        let began = Instant::now();
        let Ok((answers, rest)) = tokio::task::spawn_blocking(move || search_some(left)).await else { return };
        left = rest;
        let is_last = left.is_empty();
        let searched = Searched { answers, pace: Pace::Ordinary, took: began.elapsed(), is_last };
        // If it fails, whoever asked is gone with the term.
        if finder.send(searched).await.is_err() || is_last {
            return;
        }
    }
}

/// Those that it comes to in time, and the rest.
fn search_some(mut left: VecDeque<Question>) -> (Vec<Answer>, VecDeque<Question>) {
    let (began, mut answers) = (Instant::now(), Vec::new());
    while let Some(question) = left.pop_front() {
        let found = found_by(|| match &question.job.timetable {
            Some(timetable) => Found::Due(resolve(timetable, &question)),
            None => Found::Unreadable,
        });
        answers.push(Answer { question, found });
        if began.elapsed() >= SEND_EACH {
            break;
        }
    }
    (answers, left)
}

/// Answers questions about timetables that may be dear, one by one.
pub(super) async fn search_dear(
    questions: VecDeque<Question>,
    pace: Pace,
    store: Store,
    finder: mpsc::Sender<Searched>,
) {
    let (mut left, mut answers, mut sent) = (questions, Vec::new(), Instant::now());
    while let Some(question) = left.pop_front() {
        let began = Instant::now();
        answers.push(search_one(question, pace, &store).await);
        if matches!(pace, Pace::Slow) {
            tokio::time::sleep(began.elapsed()).await;
        }
        let is_last = left.is_empty();
        if !is_last && sent.elapsed() < SEND_EACH {
            continue;
        }
        let searched = Searched { answers: std::mem::take(&mut answers), pace, took: sent.elapsed(), is_last };
        // If it fails, whoever asked is gone with the term.
        if finder.send(searched).await.is_err() {
            return;
        }
        sent = Instant::now();
    }
}

async fn search_one(question: Question, pace: Pace, store: &Store) -> Answer {
    let definition = &question.job.definition;
    let spec = match &definition.timetable {
        Some(spec) => Some(spec.clone()),
        None => read(store, definition.job, definition.revision).await,
    };
    let Some(spec) = spec else { return Answer { question, found: Found::Unreadable } };
    let looks = if matches!(pace, Pace::Slow) { LOOKS_MAX } else { QUICK_LOOKS };
    let asked = question.clone();
    let searched = tokio::task::spawn_blocking(move || found_by(|| search(&spec, looks, &asked))).await;
    Answer { question, found: searched.unwrap_or(Found::Unreadable) }
}

/// One that panics has no answer, and takes no other with it.
fn found_by(search: impl FnOnce() -> Found) -> Found {
    catch_unwind(AssertUnwindSafe(search)).unwrap_or(Found::Unreadable)
}

async fn read(store: &Store, job: Uuid, revision: i64) -> Option<TimetableSpec> {
    for _ in 0..READS_MAX {
        match store.revision_timetable(job, revision).await {
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
