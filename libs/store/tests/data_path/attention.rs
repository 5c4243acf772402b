//! H62: a job is completed by whoever looks at its note, exactly, and without waiting for anybody.

use std::time::Duration;

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_store::attention::{self, Looked};
use carillon_store::claim::{Decisions, Moved, MovedTimer, NewExecution};
use carillon_store::{Scope, Store, StoreOptions, cancels, jobs};
use carillon_testkit::wait_until;
use uuid::Uuid;

use crate::bench::{Bench, finished, fire, medium, retry_at, room};
use crate::finish::record_surely;

const LIMIT: Duration = Duration::from_secs(30);

async fn status(bench: &Bench, job: Uuid) -> Result<String> {
    Ok(sqlx::query_scalar("SELECT status FROM jobs WHERE id = $1").bind(job).fetch_one(&bench.pool).await?)
}

async fn note(bench: &Bench, job: Uuid) -> Result<()> {
    sqlx::query("INSERT INTO job_attention (job_id) VALUES ($1)").bind(job).execute(&bench.pool).await?;
    Ok(())
}

async fn end_timetable(bench: &Bench, jobs: &[Uuid]) -> Result<()> {
    sqlx::query("UPDATE job_timers SET fire_at = NULL, exhausted = true WHERE job_id = ANY ($1)")
        .bind(jobs)
        .execute(&bench.pool)
        .await?;
    Ok(())
}

/// Makes every note due.
async fn look(bench: &Bench) -> Result<Looked> {
    sqlx::query("UPDATE job_attention SET look_at = now()").execute(&bench.pool).await?;
    Ok(attention::look(&bench.store, 100).await?)
}

/// Parks the timer for good.
fn exhausted(job: Uuid) -> MovedTimer {
    MovedTimer { job, to: Some(Moved { fire_at: None, exhausted: true, unborn: None }) }
}

#[tokio::test]
async fn a_timetable_that_ends_without_an_execution_leaves_a_note() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut of = Vec::new();
    for _ in 0..4 {
        of.push(bench.job_at(&medium(), Some(now)).await?);
    }
    let [skipping, silent, opening, going_on] = of[..] else { unreachable!() };
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(Source::Timer, &medium(), 10)], now, &[]).await?;
    let skipped = NewExecution { skipped: true, reason: Some("overlap".into()), ..fire(skipping, now, 0) };
    let opened = fire(opening, now, 1);
    let decisions = Decisions {
        executions: vec![skipped.clone(), opened.clone()],
        timers: vec![
            exhausted(skipping),
            exhausted(silent),
            exhausted(opening),
            MovedTimer { job: going_on, to: Some(Moved { fire_at: Some(now), exhausted: false, unborn: None }) },
        ],
        retries: Vec::new(),
    };
    let born = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(born.len(), 2, "what is skipped is born too");
    let mut noted: Vec<Uuid> = sqlx::query_scalar("SELECT job_id FROM job_attention").fetch_all(&bench.pool).await?;
    noted.sort_unstable();
    let mut expected = [skipping, silent];
    expected.sort_unstable();
    assert_eq!(noted, expected, "whoever ends the third one's execution notes it");

    let mut completed = look(&bench).await?.completed;
    completed.sort_unstable();
    assert_eq!(completed, expected);
    assert_eq!(bench.count("job_attention").await?, 0);
    assert_eq!((status(&bench, silent).await?, status(&bench, opening).await?), ("COMPLETED".into(), "ACTIVE".into()));
    Ok(())
}

#[tokio::test]
async fn a_note_stays_until_its_question_is_decided() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(3).await?;
    let held = bench.open(&mut leader, &jobs[..2]).await?;
    for job in &jobs {
        note(&bench, *job).await?;
        note(&bench, *job).await?;
    }
    note(&bench, Uuid::nil()).await?;
    end_timetable(&bench, &jobs[..1]).await?;
    // The timetables of the others go on, and one job does not exist.
    let looked = look(&bench).await?;
    assert_eq!((looked.notes, looked.completed.len()), (7, 0));
    assert_eq!(bench.count("job_attention").await?, 2, "the first one's, both");
    let later: bool = sqlx::query_scalar("SELECT bool_and(look_at > clock_timestamp()) FROM job_attention")
        .fetch_one(&bench.pool)
        .await?;
    assert!(later, "it is not asked at once again");
    assert_eq!(attention::look(&bench.store, 100).await?, Looked::default());

    // No note of whoever ends it: that of before is enough.
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held[0], Status::Success)], &[]).await?;
    assert_eq!(look(&bench).await?.completed, [jobs[0]]);
    assert_eq!((status(&bench, jobs[0]).await?.as_str(), bench.count("job_attention").await?), ("COMPLETED", 0));
    bench.assert_counters().await
}

/// Of a recorder that is just ending the last one nothing is seen yet: the note stays, and nobody waits.
#[tokio::test]
async fn whoever_looks_waits_for_nobody_and_comes_again() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let job = bench.job_of(held.execution).await?;
    end_timetable(&bench, &[job]).await?;
    for table in ["job_stats WHERE job_id", "job_timers WHERE job_id", "jobs WHERE id"] {
        note(&bench, job).await?;
        let mut other = bench.pool.begin().await?;
        let lock = format!("SELECT FROM {table} = $1 FOR UPDATE");
        sqlx::query(sqlx::AssertSqlSafe(lock)).bind(job).execute(&mut *other).await?;
        let looked = tokio::time::timeout(Duration::from_secs(5), look(&bench)).await??;
        assert!(looked.notes > 0 && looked.completed.is_empty(), "{table}: {looked:?}");
        assert!(bench.count("job_attention").await? > 0, "{table}");
        other.rollback().await?;
    }
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Failed)], &[]).await?;
    assert_eq!(look(&bench).await?.completed, [job]);
    assert_eq!(bench.count("job_attention").await?, 0);
    Ok(())
}

#[tokio::test]
async fn many_who_look_and_record_at_once_complete_every_job_once() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(40).await?;
    let held = bench.open(&mut leader, &jobs).await?;
    for job in &jobs {
        end_timetable(&bench, &[*job]).await?;
        note(&bench, *job).await?;
    }
    let recording = async {
        for some in held.chunks(4) {
            let ends: Vec<_> = some.iter().map(|held| finished(*held, Status::Success)).collect();
            bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
        }
        anyhow::Ok(())
    };
    let looking = async || {
        let mut completed = 0;
        let mut rounds = 0;
        while bench.count("job_attention").await? > 0 {
            rounds += 1;
            anyhow::ensure!(rounds < 10_000, "it does not come to an end");
            match look(&bench).await {
                Ok(looked) => completed += looked.completed.len(),
                // Of making the notes due, by two at once.
                Err(error) if error.to_string().contains("deadlock") => {}
                Err(error) => return Err(error),
            }
        }
        anyhow::Ok(completed)
    };
    let ((), one, two) = tokio::try_join!(recording, looking(), looking())?;
    assert_eq!(one + two, 40, "each once");
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE status = 'ACTIVE'").fetch_one(&bench.pool).await?;
    assert_eq!(left, 0);
    bench.assert_counters().await
}

/// Whatever is cancelled may be the last of its job.
#[tokio::test]
async fn a_cancel_of_the_last_execution_completes_its_job() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(2).await?;
    let held = bench.open(&mut leader, &jobs).await?;
    for job in &jobs {
        end_timetable(&bench, &[*job]).await?;
    }
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held[0], Status::Retrying)], &[]).await?;
    cancels::cancel(&bench.store, &Scope::ALL, held[0].execution, "").await?;
    assert_eq!(look(&bench).await?.completed, [jobs[0]], "it was RETRYING and has ended");
    cancels::cancel(&bench.store, &Scope::ALL, held[1].execution, "").await?;
    assert!(look(&bench).await?.completed.is_empty(), "it is only asked to stop");
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held[1], Status::Cancelled)], &[]).await?;
    assert_eq!(look(&bench).await?.completed, [jobs[1]]);
    bench.assert_counters().await
}

/// R16 and R17 at once: either the next attempt is claimed and asked to stop, or it is not claimed.
#[tokio::test]
async fn r17_a_cancel_and_the_claim_of_the_next_attempt_wait_for_each_other() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_retrying(&mut leader).await?;
    let claim = leader.claim(&[room(Source::Retry, &medium(), 10)], retry_at(), &[]).await?;
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    let store = bench.store.clone();
    let cancelled = cancels::cancel(&store, &Scope::ALL, held.execution, "enough");
    let (committed, cancelled) = tokio::join!(claim.commit(1, &decisions, &[]), cancelled);
    let (retried, cancelled) = (committed?.retried, cancelled?);
    assert_eq!(retried.len(), 1, "whoever has the row goes first");
    assert_eq!((cancelled.asked, cancelled.execution.status), (true, Status::Queued));

    let held = bench.open_retrying(&mut leader).await?;
    let cancelled = cancels::cancel(&store, &Scope::ALL, held.execution, "enough").await?;
    assert_eq!((cancelled.asked, cancelled.execution.status), (false, Status::Cancelled));
    assert!(leader.claim(&[room(Source::Retry, &medium(), 10)], retry_at(), &[]).await?.is_empty());
    assert_eq!(bench.count("execution_retries").await?, 0);
    bench.assert_counters().await
}

/// A deletion that died behind its first step is found by its note.
#[tokio::test]
async fn what_a_deletion_left_undone_is_found_by_its_note() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let job = bench.job_of(held.execution).await?;
    assert!(jobs::delete(&bench.store, &Scope::ALL, job).await?);
    assert!(attention::look(&bench.store, 10).await?.deleted.is_empty(), "whoever deletes it goes first");
    let looked = look(&bench).await?;
    let [(id, found)] = looked.deleted[..] else { anyhow::bail!("{looked:?}") };
    assert_eq!(found, job);
    assert_eq!(bench.count("job_attention").await?, 1, "until it is forgotten");
    let mut deleting = jobs::Deleting::of(&bench.store, job);
    let mut asked = Vec::new();
    while let Some(some) = deleting.step().await? {
        asked.extend(some);
    }
    assert_eq!(asked, [held.execution]);
    attention::forget(&bench.store, id).await?;
    wait_until("the note to be gone", LIMIT, || async {
        anyhow::ensure!(bench.count("job_attention").await? == 0, "it is there");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_is_complete_once_its_timetable_has_ended_and_nothing_is_open() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(4).await?;
    let held = bench.open(&mut bench.leader().await?, &jobs).await?;
    end_timetable(&bench, &jobs[..3]).await?;
    sqlx::query("UPDATE jobs SET status = 'PAUSED', paused_at = now() WHERE id = $1")
        .bind(jobs[1])
        .execute(&bench.pool)
        .await?;
    let mut ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Failed)).collect();
    ends[2] = finished(held[2], Status::Retrying);
    bench.store.executions_record(worker, &[], &ends, &jobs).await?;
    let looked = attention::look(&bench.store, 100).await?;
    assert_eq!((looked.notes, &looked.completed[..]), (3, &jobs[..1]), "what waits for its retry is not final");
    assert_eq!(status(&bench, jobs[0]).await?, "COMPLETED");
    assert_eq!(status(&bench, jobs[1]).await?, "PAUSED", "its resume completes it");
    assert_eq!(status(&bench, jobs[2]).await?, "ACTIVE", "its retry is open");
    assert_eq!(status(&bench, jobs[3]).await?, "ACTIVE", "its timetable goes on");
    Ok(())
}

/// Whichever of two executors is the later one, its note makes both seen.
#[tokio::test]
async fn a_job_whose_last_two_executions_end_at_once_is_complete() -> Result<()> {
    let bench = Bench::new().await?;
    let (one, two) = (bench.live_worker().await?, bench.worker("two", chrono::TimeDelta::zero(), false).await?);
    let jobs = bench.jobs(30).await?;
    let mut leader = bench.leader().await?;
    let first = bench.open(&mut leader, &jobs).await?;
    // The same instants again would be doubles: a new instant is a later millisecond.
    let second = loop {
        if let Ok(second) = bench.open(&mut leader, &jobs).await {
            break second;
        }
    };
    end_timetable(&bench, &jobs).await?;
    let other = Store::connect_lazily(&StoreOptions::new(bench.database.url(), "other"))?;
    let one = async {
        for (held, job) in first.iter().zip(&jobs) {
            record_surely(&bench.store, one, &[finished(*held, Status::Success)], &[*job]).await?;
        }
        anyhow::Ok(())
    };
    let two = async {
        for (held, job) in second.iter().zip(&jobs) {
            record_surely(&other, two, &[finished(*held, Status::Success)], &[*job]).await?;
        }
        anyhow::Ok(())
    };
    let (one, two) = tokio::join!(one, two);
    one?;
    two?;
    attention::look(&bench.store, 100).await?;
    for job in &jobs {
        assert_eq!(status(&bench, *job).await?, "COMPLETED");
    }
    bench.assert_counters().await
}

#[tokio::test]
async fn r17a_a_job_whose_last_fire_ended_is_noted_once_and_by_what_was_recorded_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(4).await?;
    let held = bench.open(&mut bench.leader().await?, &jobs).await?;
    let mut ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    ends[1] = finished(held[1], Status::Retrying);
    ends[2].held.claim -= 1;
    for _ in 0..2 {
        bench.store.executions_record(worker, &[], &ends, &jobs[..3]).await?;
    }
    let noted: Vec<Uuid> = sqlx::query_scalar("SELECT job_id FROM job_attention").fetch_all(&bench.pool).await?;
    assert_eq!(noted, [jobs[0]], "neither the retry, nor what was refused, nor a job that goes on");
    Ok(())
}
