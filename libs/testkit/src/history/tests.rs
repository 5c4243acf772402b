//! Each violation is detected, and each excuse counts only where it should.

use carillon_core::ids;
use chrono::TimeDelta;

use super::*;
use crate::journal::{Event, Line};

const JOB: Uuid = Uuid::from_u128(7);

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap()
}

fn fire(ms: i64) -> Uuid {
    ids::execution_for_fire(JOB, at(ms))
}

fn line(ms_due: i64, event: Event, ms: i64, pid: i32) -> Line {
    let (execution, at) = (fire(ms_due), at(ms));
    Line { execution, attempt: 1, job: JOB, event, at, worker: format!("w{pid}"), pid, outcome: None }
}

fn row(ms_due: i64) -> Execution {
    Execution {
        id: fire(ms_due),
        job: JOB,
        scheduled_at: at(ms_due),
        status: Status::Success,
        attempt: 1,
        take: 0,
        claimed: true,
        started_at: Some(at(ms_due + 1)),
        completed_at: Some(at(ms_due + 50)),
    }
}

/// Two fires, at 0 and 100 ms, each run by process 1 for 50 ms.
fn right() -> History {
    let mut history = History {
        jobs: vec![Job {
            id: JOB,
            name: "bell".into(),
            allow_overlap: false,
            claimed_count: 2,
            finished_count: 2,
            success_count: 2,
            failure_count: 0,
        }],
        executions: vec![row(0), row(100)],
        journal: Vec::new(),
        streams: vec![Stream { key: "s".into(), length: 0, pending: 0 }],
        ..History::default()
    };
    for due in [0, 100] {
        history.journal.push(line(due, Event::Start, due + 1, 1));
        history.journal.push(line(due, Event::End, due + 50, 1));
        history.journal.push(line(due, Event::Recorded, due + 53, 1));
        history.expect_fire(JOB, at(due));
    }
    history
}

fn lost(pid: i32, from: i64, until: Option<i64>) -> LostWorker {
    LostWorker { pid, from: at(from), until: until.map(at) }
}

/// The first fire was not recorded, and runs again at 60 ms in process 2, which takes it.
fn run_again(history: &mut History) {
    history.journal.retain(|line| line.execution != fire(0) || line.event != Event::Recorded);
    history.journal.push(line(0, Event::Start, 60, 2));
    history.journal.push(line(0, Event::End, 90, 2));
    history.journal.push(line(0, Event::Recorded, 92, 2));
    history.executions[0].take = 1;
}

#[track_caller]
fn assert_found(history: &History, is: fn(&Violation) -> bool) {
    let violations = history.violations();
    assert!(violations.iter().any(is), "not among {violations:?}");
}

#[test]
fn what_is_right_has_no_violation() {
    assert_eq!(right().violations(), []);
    assert!(right().still_open().is_empty());
    right().assert_kept();
}

#[test]
fn an_expected_fire_without_an_execution_is_lost() {
    let mut history = right();
    history.expect_fire(JOB, at(200));
    assert_found(&history, |found| matches!(found, Violation::Lost(_)));
    let mut history = right();
    history.expect_triggered(Uuid::from_u128(99));
    assert_found(&history, |found| matches!(found, Violation::Lost(_)));
}

#[test]
fn an_execution_that_is_not_final_is_reported() {
    let mut history = right();
    history.executions[1].status = Status::Running;
    assert_found(&history, |found| matches!(found, Violation::NotFinal(_)));
    assert_eq!(history.still_open().len(), 1);
}

#[test]
fn two_executions_of_one_fire_are_a_double_but_a_trigger_beside_it_is_not() {
    let mut history = right();
    let other = Execution { id: Uuid::from_u128(5), ..row(100) };
    history.executions.push(other);
    assert_found(&history, |found| matches!(found, Violation::DoubledFire(_)));
    history.expect_triggered(Uuid::from_u128(5));
    assert!(!history.violations().iter().any(|found| matches!(found, Violation::DoubledFire(_))));
}

#[test]
fn a_second_start_needs_a_lost_worker() {
    let mut history = right();
    run_again(&mut history);
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    assert_found(&history, |found| matches!(found, Violation::DoubledEnd(_)));
    // Frozen from 20 to 55 ms, while it ran.
    history.lost_workers = vec![lost(1, 20, Some(55))];
    assert_eq!(history.violations(), []);
    // Lost after it had ended, but before that was recorded.
    history.lost_workers = vec![lost(1, 51, None)];
    assert_eq!(history.violations(), []);
    // Lost only after the other had started: no excuse.
    history.lost_workers = vec![lost(1, 61, None)];
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    // Back before it had started: no excuse.
    history.lost_workers = vec![lost(1, -50, Some(0))];
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    // Another was lost.
    history.lost_workers = vec![lost(3, 20, None)];
    assert_found(&history, |found| matches!(found, Violation::DoubledEnd(_)));
}

/// R18: the first run ended at 50 ms, and the second began at 60 ms.
#[test]
fn a_stop_excuses_what_it_left_no_time_for() {
    let told = |ms, grace| Stop { pid: 1, at: at(ms), grace: TimeDelta::seconds(grace) };
    let mut history = right();
    run_again(&mut history);
    history.stops = vec![told(20, 20)];
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    assert_found(&history, |found| matches!(found, Violation::DoubledEnd(_)));
    history.stops = vec![told(20, 5)];
    assert_eq!(history.violations(), [], "it ended after it was told, and all of the grace is for the last ends");
    for stop in [told(61, 5), Stop { pid: 3, ..told(20, 5) }] {
        history.stops = vec![stop];
        assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    }
    // Its handler was stopped: no end.
    history.journal.retain(|line| line.event != Event::End || line.pid != 1 || line.execution != fire(0));
    history.stops = vec![told(20, 20)];
    assert_eq!(history.violations(), []);
}

#[test]
fn what_was_recorded_is_excused_by_nothing() {
    let mut history = right();
    run_again(&mut history);
    history.journal.push(line(0, Event::Recorded, 53, 1));
    history.lost_workers = vec![lost(1, 54, None)];
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    assert_found(&history, |found| matches!(found, Violation::DoubledEnd(_)));
}

#[test]
fn who_came_back_excuses_only_after_a_lease_or_a_window_if_redis_lost_data() {
    let mut history = right();
    run_again(&mut history);
    history.bounds = Bounds { window: TimeDelta::milliseconds(20), lease: TimeDelta::milliseconds(200) };
    history.lost_workers = vec![lost(1, 20, Some(55))];
    assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    history.redis_losses = vec![at(30)];
    assert_eq!(history.violations(), []);
    // Long before it started, and after the other had.
    for ms in [-30, 61] {
        history.redis_losses = vec![at(ms)];
        assert_found(&history, |found| matches!(found, Violation::DoubledStart(_)));
    }
    history.bounds.lease = TimeDelta::milliseconds(40);
    assert_eq!(history.violations(), []);
}

#[test]
fn clocks_of_processes_are_set_right() {
    let mut history = right();
    for line in &mut history.journal {
        line.at -= TimeDelta::hours(5);
    }
    assert_found(&history, |found| matches!(found, Violation::Early(_)));
    history.correct_clocks(&HashMap::from([(1, TimeDelta::hours(-5)), (2, TimeDelta::hours(9))]));
    assert_eq!(history.violations(), []);
}

#[test]
fn more_starts_than_takes_are_too_many_even_with_a_lost_worker() {
    let mut history = right();
    run_again(&mut history);
    history.lost_workers = vec![lost(1, 20, None)];
    history.executions[0].take = 0;
    assert_found(&history, |found| matches!(found, Violation::TooManyStarts(_)));
}

#[test]
fn runs_of_a_job_without_overlap_may_not_overlap() {
    let overlapping = |history: &mut History| history.journal[1].at = at(120);
    let mut history = right();
    overlapping(&mut history);
    assert_found(&history, |found| matches!(found, Violation::Overlapped(_)));
    history.lost_workers = vec![lost(1, 20, Some(60))];
    assert_found(&history, |found| matches!(found, Violation::Overlapped(_)));
    history.journal.remove(2);
    assert_eq!(history.violations(), [], "it ran on in a worker that was lost");
    let mut history = right();
    overlapping(&mut history);
    history.jobs[0].allow_overlap = true;
    assert_eq!(history.violations(), []);
}

#[test]
fn a_run_that_was_stopped_ends_when_it_is_recorded() {
    let mut history = right();
    history.journal.remove(1);
    history.executions[0].status = Status::Timeout;
    history.executions[0].completed_at = Some(at(150));
    (history.jobs[0].success_count, history.jobs[0].failure_count) = (1, 1);
    assert_found(&history, |found| matches!(found, Violation::Overlapped(_)));
    history.executions[0].completed_at = Some(at(90));
    assert_eq!(history.violations(), []);
}

#[test]
fn a_start_before_the_instant_is_early() {
    let mut history = right();
    history.journal[3].at = at(100) - TimeDelta::microseconds(1);
    assert_found(&history, |found| matches!(found, Violation::Early(_)));
    let mut history = right();
    history.executions[0].started_at = Some(at(-1));
    assert_found(&history, |found| matches!(found, Violation::Early(_)));
}

#[test]
fn record_and_journal_must_agree() {
    let mut history = right();
    history.executions.remove(0);
    history.expected.clear();
    assert_found(&history, |found| matches!(found, Violation::Unrecorded(_)));
    let mut history = right();
    history.journal.truncate(4);
    assert_found(&history, |found| matches!(found, Violation::Unrecorded(_)));
}

#[test]
fn counters_must_agree_with_the_rows_but_what_is_born_skipped_counts_nowhere() {
    for change in [
        |job: &mut Job| job.claimed_count += 1,
        |job: &mut Job| job.finished_count -= 1,
        |job: &mut Job| job.success_count += 1,
        |job: &mut Job| job.failure_count += 1,
    ] {
        let mut history = right();
        change(&mut history.jobs[0]);
        assert_found(&history, |found| matches!(found, Violation::Miscounted(_)));
    }
    let mut history = right();
    history.executions.push(Execution { status: Status::Skipped, claimed: false, started_at: None, ..row(200) });
    assert_eq!(history.violations(), []);
}

#[test]
fn nothing_may_be_left_behind() {
    for change in [
        |history: &mut History| history.streams[0].length = 1,
        |history: &mut History| history.streams[0].pending = 1,
        |history: &mut History| history.unsettled.push(3),
        |history: &mut History| history.retries_waiting.push(JOB),
        |history: &mut History| history.triggers_waiting.push(JOB),
        |history: &mut History| history.attention_waiting.push(JOB),
        |history: &mut History| history.overdue.push(JOB),
    ] {
        let mut history = right();
        change(&mut history);
        assert_found(&history, |found| matches!(found, Violation::LeftBehind(_)));
        assert_eq!(history.still_open().len(), 1);
    }
}

/// Who asks for it waits: the leader takes its time.
#[test]
fn a_settled_batch_is_to_be_forgotten_and_breaks_no_promise_before() {
    let mut history = right();
    assert_eq!(history.not_forgotten(), None);
    history.kept.extend([3, 4]);
    assert_eq!(history.not_forgotten().as_deref(), Some("2 settled batches are not forgotten, such as 3"));
    assert_eq!((history.violations(), history.still_open()), (vec![], vec![]));
}
