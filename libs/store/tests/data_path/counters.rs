//! R20 and promise 5: claimed − finished is the number of open rows, whatever is repeated, refused, lost or done at once.

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_store::claim::{Decisions, NewExecution};
use carillon_store::leader_session::LeaderSession;
use carillon_store::recorder::Held;
use carillon_store::{Error, Store, StoreOptions};
use uuid::Uuid;

use crate::bench::{Bench, finished, fire, medium, parked, retry_at, room};

const JOBS: usize = 12;
const ROUNDS: u64 = 25;

/// The same each time, and never twice the same in a row.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Claims timers, triggers and retries of every job, skips some, and now and then loses the claim on the way.
async fn claim(bench: &Bench, leader: &mut LeaderSession, jobs: &[Uuid], dice: &mut Dice) -> Result<Vec<Held>> {
    let now = bench.now().await?;
    sqlx::query("UPDATE job_timers SET fire_at = $1").bind(now).execute(&bench.pool).await?;
    bench.trigger(jobs[usize::try_from(dice.throw(JOBS as u64))?], now).await?;
    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 1_000));
    let claim = leader.claim(&rooms, retry_at(), &[]).await?;
    if dice.throw(4) == 0 {
        drop(claim);
        // It lets go of its locks with the session's next word.
        leader.say_something().await?;
        return Ok(Vec::new());
    }
    let number = claim.number;
    let mut decisions = Decisions::default();
    let mut seq = 0;
    let mut next = || {
        seq += 1;
        seq
    };
    for timer in &claim.timers {
        let skipped = dice.throw(3) == 0;
        // Repeats an instant at times: a double.
        let at = timer.fire_at - chrono::TimeDelta::milliseconds(i64::try_from(dice.throw(50))?);
        let new = fire(timer.job, at, if skipped { 0 } else { next() });
        decisions.executions.push(NewExecution { skipped, ..new });
        decisions.timers.push(parked(timer.job));
    }
    for trigger in &claim.triggers {
        let new = fire(trigger.job, trigger.fire_at, next());
        decisions.executions.push(NewExecution { id: trigger.execution, ..new });
    }
    for retry in &claim.retries {
        decisions.retries.push((*retry, next()));
    }
    let published: Vec<Uuid> = decisions.executions.iter().filter(|new| !new.skipped).map(|new| new.id).collect();
    let committed = claim.commit(1, &decisions, &[]).await?;
    let born = committed.born.into_iter().filter(|id| published.contains(id));
    let all = born.chain(committed.retried.into_iter().map(|retry| retry.execution));
    Ok(all.map(|execution| Held { execution, claim: number, take: 0 }).collect())
}

#[tokio::test]
async fn r20_counters_stay_exact_while_everything_is_repeated() -> Result<()> {
    let bench = Bench::new().await?;
    let jobs = bench.jobs(JOBS).await?;
    let worker = bench.live_worker().await?;
    let second = Store::connect_lazily(&StoreOptions::new(bench.database.url(), "second"))?;
    let mut leader = bench.leader().await?;
    let mut dice = Dice(20_261_124);
    let mut open: Vec<Held> = Vec::new();
    let mut recorded_twice = 0;
    for _ in 0..ROUNDS {
        open.extend(claim(&bench, &mut leader, &jobs, &mut dice).await?);
        let ends: Vec<_> = open
            .iter()
            .filter_map(|held| match dice.throw(6) {
                0 => Some(finished(*held, Status::Success)),
                1 => Some(finished(*held, Status::Failed)),
                2 | 3 => Some(finished(*held, Status::Retrying)),
                4 => Some(finished(*held, Status::Cancelled)),
                _ => None,
            })
            .collect();
        // The same flush from two connections at once, and once more afterwards: its outcome was never known.
        let (one, two) = tokio::join!(
            bench.store.executions_record(worker, &[], &ends, &[]),
            second.executions_record(worker, &[], &ends, &[])
        );
        for outcome in [one, two] {
            match outcome {
                Ok(_) | Err(Error::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bench.store.executions_record(worker, &[], &ends, &[]).await?;
        recorded_twice += ends.len();
        open.retain(|held| !ends.iter().any(|end| end.held == *held));
        bench.assert_counters().await?;
    }
    assert!(recorded_twice > 50, "the dice do nothing: {recorded_twice}");
    let (claimed, done): (i64, i64) = sqlx::query_as(
        "SELECT sum(claimed_count)::bigint, sum(finished_count)::bigint FROM job_timers JOIN job_stats USING (job_id)",
    )
    .fetch_one(&bench.pool)
    .await?;
    assert!(claimed > 50 && done > 20, "{claimed} claimed, {done} finished");
    Ok(())
}

#[tokio::test]
async fn r20_the_database_refuses_a_job_without_its_timer_s_and_statistics_companions_to_outlive_it() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    bench.trigger(job, bench.now().await?).await?;
    sqlx::query("DELETE FROM jobs WHERE id = $1").bind(job).execute(&bench.pool).await?;
    let left = (bench.count("job_timers").await?, bench.count("job_stats").await?, bench.count("job_triggers").await?);
    assert_eq!(left, (0, 0, 0));
    Ok(())
}
