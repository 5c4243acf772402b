//! How long a gateway takes for a page of a list among 1,000,000 jobs and 10,000,000 executions, over JSON, one call after the
//! other: what is asked for most, and the worst that can be asked for, a rare match among all of it.
//!
//! Jobs and executions are written, in shapes that make lists hard: one job has half of all executions, of which three have
//! failed and one, the oldest, runs; one job in 100,000 is of a rare type; names, tags and errors of which there are a handful,
//! or none. Each call is asked for as a client would, and its answer read. A page that is cut, or empty, is an answer too: what
//! is asked is that it comes in time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_servers::Process;
use chrono::{DateTime, TimeDelta, Utc};
use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use crate::asked::Asked;
use crate::create::gateway;
use crate::jobs;
use crate::options::{Lists, Plan};
use crate::product::Binaries;
use crate::quantiles::Lateness;
use crate::report::{Report, progress};
use crate::servers::Servers;

/// Rows of one INSERT.
const AT_ONCE: u32 = 100_000;
/// Before anything is counted: connections are made, plans are kept, pages are read.
const BEFORE: u32 = 5;
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What the first system promised, and what is asked of all others.
const FIRST_SYSTEM: Asked = Asked::AtMost(20.0);
const OTHERS: Asked = Asked::AtMost(50.0);

/// The id of the `n`th thing, made so many microseconds after `began` each.
const ID: &str = "
CREATE FUNCTION bench_id(began timestamptz, step_us bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(((extract(epoch FROM began) * 1000)::bigint + n * step_us / 1000)), 12, '0') || '8'
            || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid
$$";

/// `$3` jobs from number `$4` on. The first one is that with half of all executions.
const JOBS: &str = "
WITH job AS (
    INSERT INTO jobs (id, name, type, status, timetable, handler_name, queue, priority, tags, platform_id, created_at,
                      paused_at, completed_at)
    SELECT bench_id($1, $2, n), CASE WHEN n % 200000 = 7 THEN 'the needle ' ELSE 'nightly report ' END || n,
           CASE WHEN n % 100000 = 9 THEN 'EVENT' WHEN n % 3 = 0 THEN 'CRON' WHEN n % 3 = 1 THEN 'ONE_TIME' ELSE 'RECURRING' END,
           CASE WHEN n % 5000 = 3 THEN 'PAUSED' WHEN n % 3 = 1 THEN 'COMPLETED' ELSE 'ACTIVE' END,
           $5, CASE WHEN n % 200 = 5 THEN 'group:rare' ELSE 'group:verb' || n % 50 END, 'default', n % 4,
           ARRAY['all', 'tag' || n % 1000], 'platform' || n % 100,
           $1::timestamptz + n * $2 * interval '1 microsecond', CASE WHEN n % 5000 = 3 THEN now() END,
           CASE WHEN n % 5000 <> 3 AND n % 3 = 1 THEN now() END
    FROM generate_series($4::bigint, $4::bigint + $3::bigint - 1) AS n
    RETURNING *
), revision AS (
    INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(job) FROM job
), tag AS (
    INSERT INTO job_tags (tag, job_id) SELECT unnest(tags), id FROM job
), timer AS (
    INSERT INTO job_timers (job_id, shard, fire_at, queue, priority, claimed_count)
    SELECT id, 0, CASE WHEN status = 'ACTIVE' THEN now() + random() * interval '1 day' + interval '1 day' END, queue, priority,
           CASE WHEN id = bench_id($1, $2, 0) THEN 1 ELSE 0 END FROM job
)
INSERT INTO job_stats (job_id, last_run_at) SELECT id, now() - random() * interval '1 day' FROM job";

/// `$3` executions from number `$4` on, every second one of the first job, one in 1,400 of the second. One in 500 has failed, but of
/// the first job three and of the second none. `$5`, `$6`: the jobs' beginning and step; `$7`: how many jobs; `$8`: how many
/// executions.
const EXECUTIONS: &str = "
WITH row AS (
    SELECT n, bench_id($1, $2, n) AS id, $1::timestamptz + n * $2 * interval '1 microsecond' AS at,
           bench_id($5, $6, CASE WHEN n % 2 = 0 THEN 0 WHEN n % 1400 = 3 THEN 1
                                 ELSE 2 + (n / 2 * 7919) % ($7::bigint - 2) END) AS job_id,
           CASE WHEN n = 0 THEN 'RUNNING'
                WHEN n % 2 = 1 AND n % 500 = 1 OR n IN (2, 4, $8::bigint / 4 * 2) THEN 'FAILED' ELSE 'SUCCESS' END AS status
    FROM generate_series($4::bigint, $4::bigint + $3::bigint - 1) AS n
), failure AS (
    INSERT INTO execution_failures (execution_id, job_id, status, ended_at, platform_id, handler_name, fingerprint)
    SELECT id, job_id, status, at, 'platform1', 'group:verb1',
           CASE WHEN n % 2 = 0 THEN '0123456789abcdef' ELSE substr(md5((n / 500 % 20)::text), 1, 16) END
    FROM row WHERE status = 'FAILED'
)
INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, attempt, max_retries, status, scheduled_at, started_at,
                            completed_at, duration_ms, worker_id, result, error, platform_id)
SELECT 0, id, job_id, 1, 1, 1, 1, 3, status, at, at, CASE WHEN n > 0 THEN at END, CASE WHEN n > 0 THEN n % 1000 END,
       '00000000-0000-0000-0000-000000000008', CASE WHEN status = 'SUCCESS' THEN $9::jsonb END,
       CASE WHEN status = 'FAILED' THEN 'no answer within ' || n % 90 || ' s' END, 'platform1'
FROM row";

/// Orders among more than can be looked at: these alone may be refused, and must be.
const TOO_WIDE: [&str; 2] = ["jobs?tag=all&order_by=next_run", "jobs?name=needle&order_by=next_run"];

/// A call, what is asked of it.
struct Call {
    path: String,
    asked: Asked,
}

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or a call is refused.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("lists").await?;
    let now = jobs::now(&database.pool).await?;
    let filled = fill(&database.pool, plan.lists, now).await?;
    let (mut gateway, url) = gateway(servers, binaries, &database, "lists", plan).await?;
    for call in filled.calls() {
        if !plan.wants_row(&call.path) {
            continue;
        }
        let took = measure(&url, &call, plan.lists.calls, &gateway).await?;
        let row = call.path.replace(&filled.first.to_string(), "FIRST").replace(&filled.second.to_string(), "SECOND");
        report.figures.add("lists", &row, "p99", (took.p99_ms, "ms"), call.asked);
        report.figures.add("lists", &row, "longest", (took.max_ms, "ms"), Asked::Nothing);
    }
    if plan.statements {
        report.note_statements("lists", database.costliest().await?);
    }
    gateway.signal(Signal::SIGTERM);
    database.pool.close().await;
    let ended = tokio::task::spawn_blocking(move || gateway.wait(Duration::from_secs(10)).is_some()).await?;
    ensure!(ended, "the gateway does not stop");
    Ok(())
}

/// What was written.
struct Filled {
    /// The job with half of all executions,
    first: Uuid,
    /// and the one with one in 1,000.
    second: Uuid,
    /// The day in which most of them lie.
    day: DateTime<Utc>,
}

async fn fill(pool: &PgPool, lists: Lists, now: DateTime<Utc>) -> Result<Filled> {
    sqlx::raw_sql(ID).execute(pool).await?;
    let created = now - TimeDelta::days(30);
    let jobs_step = TimeDelta::days(29).num_microseconds().unwrap_or_default() / i64::from(lists.jobs);
    // Of yesterday's and today's hours, so that they lie where rows of days are.
    let midnight = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    let began = midnight - TimeDelta::hours(23);
    let step = (now - began).num_microseconds().unwrap_or_default() / i64::from(lists.executions);
    progress(&format!("lists: writing {} jobs", lists.jobs));
    for from in (0..lists.jobs).step_by(AT_ONCE as usize) {
        let mut transaction = pool.begin().await?;
        // Each row refers to one of the same statement: nothing to check, and no trigger to write the tags.
        sqlx::raw_sql("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await?;
        let rows = AT_ONCE.min(lists.jobs - from);
        let insert = sqlx::query(JOBS).bind(created).bind(jobs_step).bind(i64::from(rows)).bind(i64::from(from));
        let insert = insert.bind(Json(TimetableSpec::never()));
        insert.execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    let mut told = Instant::now();
    for from in (0..lists.executions).step_by(AT_ONCE as usize) {
        let rows = AT_ONCE.min(lists.executions - from);
        let insert = sqlx::query(EXECUTIONS).bind(began).bind(step).bind(i64::from(rows)).bind(i64::from(from));
        let insert = insert.bind(created).bind(jobs_step).bind(i64::from(lists.jobs)).bind(i64::from(lists.executions));
        insert.bind(jobs::PAYLOAD).execute(pool).await?;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            progress(&format!("lists: {} of {} executions are written", from + rows, lists.executions));
        }
    }
    let running = "INSERT INTO dispatch_batches (shard, number, term, ids, settled_at)
                   VALUES (0, 1, 1, ARRAY[bench_id($1, $2, 0)], now())";
    sqlx::query(running).bind(began).bind(step).execute(pool).await?;
    let tables =
        "jobs, job_tags, job_revisions, job_timers, job_stats, job_executions, execution_failures, dispatch_batches";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("VACUUM (ANALYZE) {tables}"))).execute(pool).await?;
    // Else whoever reads a page must first write another one, which the filling left.
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    let id = "SELECT bench_id($1, $2, $3)";
    let first = sqlx::query_scalar(id).bind(created).bind(jobs_step).bind(0_i64).fetch_one(pool).await?;
    let second = sqlx::query_scalar(id).bind(created).bind(jobs_step).bind(1_i64).fetch_one(pool).await?;
    Ok(Filled { first, second, day: midnight })
}

impl Filled {
    fn calls(&self) -> Vec<Call> {
        let (first, second) = (self.first, self.second);
        let (from, before) =
            (self.day.format("%Y-%m-%dT%H:%M:%SZ"), (self.day + TimeDelta::days(1)).format("%Y-%m-%dT%H:%M:%SZ"));
        let first_system = [
            "jobs?limit=50".to_owned(),
            "jobs?type=cron&status=active&limit=10".to_owned(),
            "jobs?type=event".to_owned(),
            "jobs?type=event&status=paused".to_owned(),
            "jobs?status=paused&limit=100".to_owned(),
            "jobs?status=active&limit=50&offset=10000".to_owned(),
            format!("jobs/{first}/executions?limit=50"),
            format!("jobs/{first}/executions?status=failed"),
            format!("jobs/{first}/executions?status=timeout"),
            format!("jobs/{first}/executions?status=running"),
            format!("jobs/{first}/executions?status=pending"),
            format!("jobs/{first}/executions?status=cancelled"),
            format!("jobs/{second}/executions?status=failed&limit=10"),
        ];
        let others = [
            "jobs?name=needle".to_owned(),
            "jobs?name_prefix=the%20needle".to_owned(),
            "jobs?tag=nobody".to_owned(),
            "jobs?tag=tag7".to_owned(),
            "jobs?handler_name=nobody:none".to_owned(),
            "jobs?platform_id=platform7&name=needle".to_owned(),
            "jobs?platform_id=platform7&order_by=next_run".to_owned(),
            "jobs?status=paused&order_by=last_run%20desc".to_owned(),
            "jobs?tag=tag7&order_by=next_run".to_owned(),
            "jobs?handler_name=group:rare&order_by=last_run".to_owned(),
            "jobs?name_prefix=the%20needle&order_by=next_run".to_owned(),
            "jobs?tag=all&platform_id=platform7&handler_name=group:verb7&order_by=next_run".to_owned(),
            "jobs?tag=all&order_by=next_run".to_owned(),
            "jobs?name=needle&order_by=next_run".to_owned(),
            "jobs?order_by=created_at&tag=nobody".to_owned(),
            "jobs?tag=all&show_total_size=true".to_owned(),
            "executions?limit=50".to_owned(),
            "executions?status=failed".to_owned(),
            "executions?status=timeout".to_owned(),
            "executions?status=running".to_owned(),
            "executions?status=failed&error=nothing".to_owned(),
            "executions?fingerprint=0123456789abcdef".to_owned(),
            "executions?error=nothing".to_owned(),
            "executions?tag=nobody".to_owned(),
            "executions?handler_name=nobody:none".to_owned(),
            "executions?worker_id=00000000-0000-0000-0000-000000000009".to_owned(),
            "executions?order_by=scheduled_at&queue=nobody".to_owned(),
            "executions?status=failed&show_total_size=true".to_owned(),
            format!("executions?status=failed&order_by=completed_at&scheduled_from={from}&scheduled_before={before}"),
            format!("executions?job_id={second}&order_by=duration_ms%20desc"),
            format!("jobs/{first}/executions?error=nothing&show_total_size=true"),
        ];
        let asked = |asked: Asked| move |path| Call { path, asked };
        first_system.into_iter().map(asked(FIRST_SYSTEM)).chain(others.into_iter().map(asked(OTHERS))).collect()
    }
}

async fn measure(url: &str, call: &Call, calls: u32, gateway: &Process) -> Result<Lateness> {
    progress(&format!("lists: {}", call.path));
    let client = reqwest::Client::builder().timeout(ANSWER_MAX).build()?;
    let url = format!("{url}/api/v1/scheduler/{}", call.path);
    let mut took = Vec::new();
    for n in 0..BEFORE + calls {
        let began = Instant::now();
        let response = client.get(&url).send().await?;
        let (status, answer) = (response.status(), response.bytes().await?);
        if n >= BEFORE {
            took.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        // What cannot be sorted is refused for what it is, and in time, too.
        let is_refused = status == 400 && String::from_utf8_lossy(&answer).contains("ORDER_TOO_WIDE");
        let is_answer = if TOO_WIDE.contains(&call.path.as_str()) { is_refused } else { status == 200 };
        ensure!(is_answer, "{url}: {status}: {}\n{}", String::from_utf8_lossy(&answer), gateway.log_tail());
        if n == 0 && status == 200 {
            let answer: Value = serde_json::from_slice(&answer)?;
            let rows = ["jobs", "executions"].iter().find_map(|field| answer[field].as_array()).map_or(0, Vec::len);
            progress(&format!("lists: {rows} rows, more: {}, total: {}", answer["has_more"], answer["total_size"]));
        }
    }
    Ok(Lateness::of(&took))
}
