//! Whether anything grows that should not: the leader's claim and its look ahead with the jobs in the timetable, the
//! completion with the rows of history. Calls the store's own statements, as leader and executor do, in a shard of its own;
//! each figure is of a batch of 1,000.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::claim::{Decisions, Moved, MovedTimer, NewExecution, Room};
use carillon_store::leader_session::{Candidate, LeaderSession};
use carillon_store::recorder::{Finished, Held, Verdict};
use carillon_store::upcoming::UpcomingMax;
use carillon_store::{Store, StoreOptions};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::jobs::{self, Job, PAYLOAD};
use crate::options::Plan;
use crate::product::line;
use crate::report::{Report, ScalePoint, progress};
use crate::servers::{Database, Servers};

/// A shard that no dispatcher leads.
const SHARD: i16 = 8;
/// Fires in a batch.
const BATCH: usize = 1_000;
/// Batches measured at each size, after [`WARM_UP`] that are not.
const SAMPLES: usize = 25;
const WARM_UP: usize = 5;
/// Rows of history in one INSERT.
const HISTORY_AT_ONCE: u64 = 200_000;

/// Rows as the product leaves them, `$3` of them at even distances from `$1` to `$2`.
const HISTORY: &str = "
INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, attempt, max_retries, status, scheduled_at, started_at,
                            completed_at, duration_ms, worker_id, result)
SELECT 0, (lpad(to_hex((extract(epoch FROM h.at) * 1000)::bigint), 12, '0') || '8' || substr(h.hash, 1, 3) || '8'
        || substr(h.hash, 4, 15))::uuid,
       ($4::uuid[])[1 + h.n % cardinality($4::uuid[])], 1, 1, 1, 1, 3, 'SUCCESS', h.at, h.at, h.at, 0, $5, $6::jsonb
FROM (
    SELECT n, $1::timestamptz + ($2::timestamptz - $1::timestamptz) * (n::float8 / $3::float8) AS at, md5(n || $1::text) AS hash
    FROM generate_series(1, $3::bigint) AS n
) h
ON CONFLICT DO NOTHING";

struct Scale {
    database: Database,
    session: LeaderSession,
    recorder: Store,
    worker: Uuid,
    jobs: Vec<Uuid>,
}

/// What one batch took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    upcoming: Duration,
    claim: Duration,
    commit: Duration,
    record: Duration,
}

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails.
pub async fn run(servers: &Servers, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("scale").await?;
    let mut scale = Scale::new(database).await?;
    for timers in &plan.timers {
        scale.grow_timers(usize::try_from(*timers)?).await?;
        let samples = scale.measure(&format!("{timers} timers")).await?;
        report.scale.push(point("claim", *timers, 0, &samples, |sample| sample.claim + sample.commit));
        report.scale.push(point("look ahead", *timers, 0, &samples, |sample| sample.upcoming));
        if Some(timers) == plan.timers.last() {
            report.scale.push(point("completion", *timers, 0, &samples, |sample| sample.record));
        }
    }
    let timers = plan.timers.last().copied().unwrap_or_default();
    let mut rows = 0;
    for history in plan.history.iter().filter(|rows| **rows > 0) {
        scale.grow_history(rows, *history).await?;
        rows = *history;
        let samples = scale.measure(&format!("{history} rows of history")).await?;
        report.scale.push(point("completion", timers, *history, &samples, |sample| sample.record));
        report.scale.push(point("claim", timers, *history, &samples, |sample| sample.claim + sample.commit));
    }
    if plan.statements {
        report.note_statements("scale", scale.database.costliest().await?);
    }
    scale.session.resign().await;
    scale.recorder.close().await;
    scale.database.pool.close().await;
    Ok(())
}

fn point(
    what: &'static str,
    timers: u64,
    history: u64,
    samples: &[Sample],
    of: impl Fn(&Sample) -> Duration,
) -> ScalePoint {
    let millis: Vec<f64> = samples.iter().map(|sample| of(sample).as_secs_f64() * 1_000.0).collect();
    ScalePoint::of(what, timers, history, BATCH, &millis)
}

impl Scale {
    async fn new(database: Database) -> Result<Self> {
        let options = StoreOptions::new(database.url.as_str(), "carillon-bench");
        let candidate = Candidate::connect(&options, SHARD).await?;
        let session = candidate.try_lead().await?.map_err(|_| anyhow!("somebody leads shard {SHARD}"))?;
        let recorder = Store::connect_lazily(&StoreOptions { nested_loops_only: true, ..options })?;
        Ok(Self { database, session, recorder, worker: Uuid::from_u128(8), jobs: Vec::new() })
    }

    /// Until there are `count`, at random instants of the next thirty days.
    async fn grow_timers(&mut self, count: usize) -> Result<()> {
        let now = jobs::now(&self.database.pool).await?;
        let have = self.jobs.len();
        let ids = jobs::new_ids(count - have, now);
        let far = |id: &Uuid| {
            let random = i64::try_from(id.as_u128() % (30 * 86_400_000)).unwrap_or_default();
            now + TimeDelta::hours(2) + TimeDelta::milliseconds(random)
        };
        let jobs: Vec<Job> = ids.iter().map(|id| Job::far_away(*id, far(id))).collect();
        progress(&format!("scale: writing jobs up to {count}"));
        let mut told = Instant::now();
        let pool = self.database.pool.clone();
        let writing = jobs::insert(&pool, SHARD, &jobs, |done| {
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                progress(&format!("scale: {} of {count} jobs are written", have + done));
            }
        });
        self.alive(writing).await?;
        self.jobs.extend(ids);
        let database = self.database.clone();
        self.alive(async move { database.tidy().await }).await
    }

    /// From `have` rows to `want`, of the hours since midnight, so that they lie where today's are.
    async fn grow_history(&mut self, have: u64, want: u64) -> Result<()> {
        let now = jobs::now(&self.database.pool).await?;
        let midnight = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        let until = now - TimeDelta::minutes(1);
        let from = midnight.min(until - TimeDelta::minutes(10));
        let part = |rows: u64| {
            let share = TimeDelta::milliseconds(
                (until - from).num_milliseconds() * i64::try_from(rows).unwrap_or_default()
                    / i64::try_from(want).unwrap_or(1),
            );
            from + share
        };
        let some_jobs: Vec<Uuid> = self.jobs.iter().copied().step_by(self.jobs.len() / 1_000 + 1).collect();
        let mut done = have;
        let mut told = Instant::now();
        progress(&format!("scale: writing rows of history up to {want}"));
        while done < want {
            let rows = HISTORY_AT_ONCE.min(want - done);
            let (pool, worker) = (self.database.pool.clone(), self.worker);
            let (first, last, jobs) = (part(done), part(done + rows), some_jobs.clone());
            self.alive(async move {
                let insert = sqlx::query(HISTORY).bind(first).bind(last).bind(i64::try_from(rows)?);
                insert.bind(jobs).bind(worker).bind(PAYLOAD).execute(&pool).await?;
                Ok(())
            })
            .await?;
            done += rows;
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                progress(&format!("scale: {done} of {want} rows of history are written"));
            }
        }
        let database = self.database.clone();
        self.alive(async move { database.tidy().await }).await
    }

    async fn measure(&mut self, what: &str) -> Result<Vec<Sample>> {
        progress(&format!("scale: measuring with {what}"));
        let mut samples = Vec::with_capacity(SAMPLES);
        for number in 0..WARM_UP + SAMPLES {
            let sample = self.one_batch(number).await?;
            if number >= WARM_UP {
                samples.push(sample);
            }
        }
        Ok(samples)
    }

    async fn one_batch(&mut self, number: usize) -> Result<Sample> {
        let due = self.make_due(number).await?;
        let max = UpcomingMax { of_line: 5_000, of_all: 20_000 };
        let began = Instant::now();
        self.session.timers_upcoming(due + TimeDelta::seconds(10), max).await?;
        let upcoming = began.elapsed();

        let began = Instant::now();
        let room = Room { source: Source::Timer, line: line(), room: i64::try_from(BATCH)? };
        let claimed = self.session.claim(&[room], due, &[]).await?;
        let claim = began.elapsed();
        ensure!(claimed.timers.len() == BATCH, "{} of {BATCH} timers were claimed", claimed.timers.len());
        let batch_number = claimed.number;
        let decisions = decisions(claimed.timers.iter().map(|timer| timer.job), due);
        let began = Instant::now();
        let committed = claimed.commit(1, &decisions, &[]).await?;
        let commit = began.elapsed();
        ensure!(committed.born.len() == BATCH, "{} of {BATCH} executions were born", committed.born.len());

        let finished: Vec<Finished> =
            committed.born.iter().map(|execution| finished(*execution, batch_number, due)).collect();
        let began = Instant::now();
        let (_, verdicts) = self.recorder.executions_record(self.worker, &[], &finished, &[]).await?;
        let record = began.elapsed();
        let recorded = verdicts.iter().all(|verdict| *verdict == Verdict::Recorded(Status::Success));
        ensure!(recorded, "not every execution was recorded");
        Ok(Sample { upcoming, claim, commit, record })
    }

    /// Timers of jobs from all over the table, other ones each time.
    async fn make_due(&self, number: usize) -> Result<DateTime<Utc>> {
        let step = self.jobs.len() / BATCH;
        let chosen: Vec<Uuid> = self.jobs.iter().skip(number % step).step_by(step).take(BATCH).copied().collect();
        let now = jobs::now(&self.database.pool).await?;
        let due = DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now);
        let update = sqlx::query("UPDATE job_timers SET fire_at = $1 WHERE job_id = ANY ($2)").bind(due).bind(chosen);
        update.execute(&self.database.pool).await?;
        Ok(due)
    }

    /// The server ends a leader's session that is silent for three seconds.
    async fn alive<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::pin!(what);
        loop {
            tokio::select! {
                outcome = &mut what => return outcome,
                () = tokio::time::sleep(Duration::from_secs(1)) => { self.session.say_something().await?; }
            }
        }
    }
}

fn decisions(jobs: impl Iterator<Item = Uuid>, due: DateTime<Utc>) -> Decisions {
    let mut decisions = Decisions::default();
    let far = due + TimeDelta::days(20);
    for (seq, job) in (1..).zip(jobs) {
        decisions.executions.push(NewExecution {
            id: ids::execution_for_fire(job, due),
            job,
            seq,
            line: line(),
            revision: 1,
            platform_id: None,
            scheduled_at: due,
            max_retries: 3,
            reason: None,
            own_payload: false,
            payload: None,
            own_metadata: false,
            trace: None,
            created_by: String::new(),
            skipped: false,
        });
        decisions
            .timers
            .push(MovedTimer { job, to: Some(Moved { fire_at: Some(far), exhausted: false, unborn: None }) });
    }
    decisions
}

/// The end of one that ran.
pub fn finished(execution: Uuid, claim: i64, at: DateTime<Utc>) -> Finished {
    Finished {
        held: Held { execution, claim, take: 0 },
        attempt: 1,
        handler: "bench:echo".into(),
        revision: 1,
        status: Status::Success,
        timed_out: false,
        started_at: Some(at),
        ended_at: at,
        next_retry_at: None,
        queue: line().queue,
        priority: 1,
        result: Some(PAYLOAD.to_owned()),
        error: None,
        error_stack: None,
        reason: None,
        metadata: None,
        logs: Vec::new(),
    }
}
