//! A `pg_dump` that takes its time holds every table from its begin to its end: what is hot goes on beside it and beside the
//! upkeep that tries for its locks, what cannot be done now is done afterwards, and the dump is whole.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::leader_session::LeaderSession;
use carillon_store::partitions::make_ahead;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::retention::{self, drop_days};
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Scope, Store, StoreOptions, cancels, jobs};
use carillon_testkit::wait_until;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::bench::{Bench, finished, started};
use crate::partitions::{Calendar, a_minute_passes, dump, longest_wait, make_all, today};
use crate::retention::{TABLES, history, kept, make_day};
use crate::scans::sessions_end;

const LIMIT: Duration = Duration::from_secs(60);
/// Days that are due.
const OLD: i64 = -100;
/// What nobody may queue for: the promise.
const QUEUED_MAX: Duration = Duration::from_millis(100);
/// What a claim, a record or a call may take meanwhile, on a machine that has other things to do.
const ANSWERED_MAX: Duration = Duration::from_millis(400);

/// The program that came with the server, where that is on this machine; else a session that holds what it would hold.
enum Dump {
    /// It writes to a pipe that nobody reads, until it is asked to end.
    Program(Program),
    Session(sqlx::Transaction<'static, sqlx::Postgres>),
}

impl Dump {
    async fn begin(bench: &Bench) -> Result<Self> {
        let bin: String =
            sqlx::query_scalar("SELECT setting FROM pg_config() WHERE name = 'BINDIR'").fetch_one(&bench.pool).await?;
        let program: PathBuf = Path::new(&bin).join("pg_dump");
        if !program.is_file() {
            return Ok(Self::Session(dump(&bench.pool).await?));
        }
        let mut command = Command::new(program);
        command.args(["--dbname", bench.database.url()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Self::Program(Program(command.spawn().context("pg_dump does not start")?));
        wait_until("pg_dump to hold all tables", LIMIT, || async {
            let free: Vec<String> = sqlx::query_scalar(
                "SELECT c.relname::text FROM pg_class c
                 WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'carillon'::regnamespace AND NOT EXISTS (
                     SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                     WHERE l.granted AND l.relation = c.oid AND a.application_name = 'pg_dump'
                       AND l.mode = 'AccessShareLock' AND a.datname = current_database())",
            )
            .fetch_all(&bench.pool)
            .await?;
            anyhow::ensure!(free.is_empty(), "{free:?} are free");
            Ok(())
        })
        .await?;
        Ok(begun)
    }

    /// Lets it go on to its end; what it wrote, if it wrote anything.
    async fn end(self) -> Result<Option<String>> {
        let mut child = match self {
            Self::Program(child) => child,
            Self::Session(transaction) => {
                transaction.rollback().await?;
                return Ok(None);
            }
        };
        let mut output = child.0.stdout.take().context("its output")?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let text = reading.await??;
        let status = child.0.wait()?;
        anyhow::ensure!(status.success(), "pg_dump failed: {status}");
        Ok(Some(text))
    }
}

/// Ends with the test, however that ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// What goes on beside, three kinds at once, each by a connection of its own: a leader's, an executor's, a gateway's.
struct Traffic<'b> {
    bench: &'b Bench,
    leader: LeaderSession,
    executor: Store,
    gateway: Store,
    worker: Uuid,
    job: Uuid,
    /// Claimed by the last turn.
    open: Vec<Held>,
    /// Recorded as such by the last turn.
    retrying: Option<Uuid>,
    /// By kind, the longest that one of it took.
    longest: [Duration; 3],
    turns: usize,
}

impl<'b> Traffic<'b> {
    async fn begin(bench: &'b Bench) -> Result<Self> {
        let Ok(leader) = bench.candidate("beside").await?.try_lead().await? else { anyhow::bail!("somebody leads") };
        let executor = StoreOptions { nested_loops_only: true, ..bench.options("beside") };
        Ok(Self {
            bench,
            leader,
            executor: Store::connect_lazily(&executor)?,
            gateway: Store::connect_lazily(&bench.options("beside"))?,
            worker: bench.live_worker().await?,
            job: bench.job().await?,
            open: Vec::new(),
            retrying: None,
            longest: Default::default(),
            turns: 0,
        })
    }

    /// Two executions are claimed, those of the turn before run and end, and a gateway is asked for this and that.
    async fn turn(&mut self) -> Result<()> {
        let jobs = self.bench.jobs(2).await?;
        let (open, retrying) = (std::mem::take(&mut self.open), self.retrying.take());
        let claim = timed(self.bench.open(&mut self.leader, &jobs));
        let record = timed(record(&self.executor, self.worker, &open));
        let (claim, record, call) = tokio::try_join!(claim, record, timed(call(&self.gateway, self.job, retrying)))?;
        (self.open, self.retrying) = (claim.0, record.0);
        for (longest, took) in self.longest.iter_mut().zip([claim.1, record.1, call.1]) {
            *longest = took.max(*longest);
        }
        self.turns += 1;
        Ok(())
    }
}

async fn timed<T>(what: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let began = Instant::now();
    let done = what.await?;
    Ok((done, began.elapsed()))
}

/// All begin, and end: one RETRYING, which is answered.
async fn record(executor: &Store, worker: Uuid, open: &[Held]) -> Result<Option<Uuid>> {
    let [one, other] = open[..] else { return Ok(None) };
    executor.executions_record(worker, &[started(one), started(other)], &[], &[]).await?;
    let ends = [finished(one, Status::Retrying), finished(other, Status::Success)];
    let (_, verdicts) = executor.executions_record(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Retrying), Verdict::Recorded(Status::Success)]);
    Ok(Some(one.execution))
}

async fn call(gateway: &Store, job: Uuid, retrying: Option<Uuid>) -> Result<()> {
    jobs::pause(gateway, &Scope::ALL, job).await?;
    let trigger = NewTrigger { job_id: job, payload: None, metadata: None, trace: None, created_by: String::new() };
    let triggered = triggers::create(gateway, &Scope::ALL, &trigger, None).await?.execution.id;
    for execution in retrying.into_iter().chain([triggered]) {
        cancels::cancel(gateway, &Scope::ALL, execution, "").await?;
    }
    jobs::resume(gateway, &Scope::ALL, job).await?;
    Ok(())
}

/// A day that is due, all of it proven to be over, so that nothing is left to do but to take the locks.
async fn make_due(bench: &Bench, days: &Calendar) -> Result<()> {
    make_day(bench, days, OLD).await?;
    let at = days.midnight(OLD);
    history(&bench.pool, bench.job().await?, at, Some(at)).await?;
    let partition = days.partition("job_executions", OLD);
    for step in ["carillon.close_partition($1, '{}')", "carillon.prove($1, 'carillon_closed')"] {
        let statement = AssertSqlSafe(format!("SELECT {step}"));
        let word: String = sqlx::query_scalar(statement).bind(&partition).fetch_one(&bench.pool).await?;
        assert!(["closed", "proven"].contains(&word.as_str()), "{word}");
    }
    Ok(())
}

/// What one of the functions says that take a table's day.
async fn asked_for(pool: &PgPool, days: &Calendar, function: &str, table: &str, day: i64) -> Result<String> {
    let statement = format!("SELECT carillon.{function}_partition($1, $2, $3, $4)");
    let asked = sqlx::query_scalar(AssertSqlSafe(statement)).bind(table).bind(days.partition(table, day));
    let asked = asked.bind(ids::first_at(days.midnight(day))).bind(ids::first_at(days.midnight(day + 1)));
    Ok(asked.fetch_one(pool).await?)
}

/// Days are to be made, days are due, and rows of the default partition are old.
#[tokio::test]
async fn beside_a_pg_dump_claims_records_and_calls_go_on_and_what_was_put_off_is_done_after_it() -> Result<()> {
    const ROUNDS: usize = 5;
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_due(&bench, &days).await?;
    let due = TABLES.map(|table| days.partition(table, OLD));
    let long_ago = days.midnight(-400);
    let job = bench.job().await?;
    for _ in 0..20 {
        history(&bench.pool, job, long_ago, Some(long_ago)).await?;
    }
    // More than fits into a pipe.
    sqlx::query("UPDATE job_executions SET error = repeat('x', 200000)").execute(&bench.pool).await?;
    let mut traffic = Traffic::begin(&bench).await?;
    traffic.turn().await?;
    let dump = Dump::begin(&bench).await?;
    // The reason by name.
    assert_eq!(asked_for(&bench.pool, &days, "make", "job_executions", 4).await?, "busy");
    for table in ["job_executions", "job_execution_logs"] {
        assert_eq!(asked_for(&bench.pool, &days, "detach", table, OLD).await?, "busy");
    }

    let (mut queued, mut answered) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        (traffic.longest, traffic.turns) = Default::default();
        let upkeep = async {
            let ahead = make_ahead(&bench.store).await?;
            a_minute_passes(&bench.pool).await?;
            Ok((ahead, drop_days(&bench.store, &kept()).await?, retention::sweep_default(&bench.store, &kept()).await?))
        };
        let ((ahead, dropped, swept), waited) =
            longest_wait(&bench.pool, upkeep, async || Box::pin(traffic.turn()).await).await?;
        assert_eq!((ahead.made, ahead.missing.len()), (0, 20), "{ahead:?}");
        assert_eq!((dropped.dropped, dropped.waiting, dropped.overdue), (vec![], due.to_vec(), 4));
        // Of each execution itself, its attempt, its failure and its line.
        assert_eq!(swept.gone, if round == 0 { 80 } else { 0 });
        assert!(traffic.turns > 0, "nothing went on beside it");
        queued.push(waited);
        answered.push(traffic.longest);
        a_minute_passes(&bench.pool).await?;
    }
    assert!(queued.iter().any(|waited| *waited > Duration::ZERO), "nobody queued: this shows nothing");
    // The machine may hold up one round or another, what is wrong holds up each.
    assert!(queued.iter().min().is_some_and(|waited| *waited < QUEUED_MAX), "queued for {queued:?}");
    for kind in 0..3 {
        assert!(answered.iter().any(|took| took[kind] < ANSWERED_MAX), "kind {kind} of {answered:?}");
    }
    bench.assert_counters().await?;

    if let Some(text) = dump.end().await? {
        assert!(text.contains(&format!("COPY carillon.{} ", due[0])), "the day that was due is in it");
        assert!(text.contains("-- PostgreSQL database dump complete"), "it is whole");
    }
    make_all(&bench.store, &bench.pool).await?;
    wait_until("the days to leave", LIMIT, || async {
        let round = drop_days(&bench.store, &kept()).await?;
        a_minute_passes(&bench.pool).await?;
        anyhow::ensure!(round.waiting.is_empty(), "{round:?}");
        Ok(())
    })
    .await?;
    for table in &due {
        let there: bool =
            sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL OR to_regclass($1 || '_gone') IS NOT NULL")
                .bind(table)
                .fetch_one(&bench.pool)
                .await?;
        assert!(!there, "{table} is there");
    }
    Ok(())
}

/// How often each of the functions has been called that ask for a lock.
async fn tries(bench: &Bench) -> Result<BTreeMap<String, i64>> {
    sessions_end(bench).await?;
    let calls: Vec<(String, i64)> = sqlx::query_as(
        "SELECT funcname::text, calls FROM pg_stat_user_functions
         WHERE schemaname = 'carillon' AND funcname NOT IN ('upkeep', 'within', 'weigh')",
    )
    .fetch_all(&bench.pool)
    .await?;
    Ok(calls.into_iter().collect())
}

/// Many rounds of several dispatchers at once; all sessions end with them.
async fn many_rounds(bench: &Bench) -> Result<()> {
    let stores: Vec<Store> =
        (0..3).map(|_| Store::connect_lazily(&bench.options("executor"))).collect::<Result<_, _>>()?;
    for _ in 0..4 {
        let rounds = stores.iter().map(|store| async {
            let ahead = make_ahead(store).await?;
            let dropped = drop_days(store, &kept()).await?;
            anyhow::ensure!(ahead.made == 0 && dropped.dropped.is_empty(), "{ahead:?} {dropped:?}");
            Ok(())
        });
        futures_util::future::try_join_all(rounds).await?;
    }
    for store in &stores {
        store.close().await;
    }
    Ok(())
}

/// Postgres counts the calls; what is not tried waits as if it were.
#[tokio::test]
async fn each_table_s_lock_is_tried_for_once_a_minute_by_all_dispatchers_together() -> Result<()> {
    for makes in [true, false] {
        let bench = Bench::new().await?;
        let days = today(&bench.pool).await?;
        make_due(&bench, &days).await?;
        if !makes {
            make_all(&bench.store, &bench.pool).await?;
        }
        bench.store.close().await;
        let count = format!("ALTER DATABASE \"{}\" SET track_functions = 'pl'", bench.database.name());
        sqlx::raw_sql(AssertSqlSafe(count)).execute(&bench.pool).await?;
        let dump = dump(&bench.pool).await?;
        // The days of attempts and failures go after the executions': they are not even tried.
        let (function, tables) = if makes { ("make_partition", 4) } else { ("detach_partition", 2) };
        for minute in 1..=3 {
            many_rounds(&bench).await?;
            assert_eq!(tries(&bench).await?, BTreeMap::from([(function.to_owned(), minute * tables)]), "{minute}");
            a_minute_passes(&bench.pool).await?;
        }
        dump.rollback().await?;
        let after = Store::connect_lazily(&bench.options("executor"))?;
        let ahead = make_ahead(&after).await?;
        assert_eq!((ahead.made, ahead.missing.len()), (if makes { 20 } else { 0 }, 0), "nobody is in the way any more");
        assert_eq!(drop_days(&after, &kept()).await?.dropped.len(), 4);
    }
    Ok(())
}
