//! The history lies in a partition a day, made ahead, without making anybody wait; what fell into the default one meanwhile
//! moves, as far as it is little.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use carillon_core::error::Kind;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::claim::Decisions;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::{Error, Store, StoreOptions, migrate, partitions};
use carillon_testkit::{Database, wait_until};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use crate::bench::{Bench, finished, fire};
use crate::retention::open_many;

/// The days around today, by the database's clock.
pub(crate) struct Calendar {
    today: NaiveDate,
}

impl Calendar {
    pub(crate) fn day(&self, days: i64) -> NaiveDate {
        self.today + TimeDelta::days(days)
    }

    pub(crate) fn partition(&self, table: &str, days: i64) -> String {
        format!("{table}_{}", self.day(days).format("%Y_%m_%d"))
    }

    pub(crate) fn midnight(&self, days: i64) -> DateTime<Utc> {
        self.day(days).and_time(NaiveTime::MIN).and_utc()
    }
}

/// It stays so: no test begins shortly before midnight ([`Database::new`]).
pub(crate) async fn today(pool: &PgPool) -> Result<Calendar> {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(pool).await?;
    Ok(Calendar { today: now.date_naive() })
}

/// As if the minute between two tries had passed.
pub(crate) async fn a_minute_passes(pool: &PgPool) -> Result<()> {
    sqlx::query("UPDATE partition_tries SET tried_at = tried_at - interval '1 minute'").execute(pool).await?;
    Ok(())
}

/// Makes all days to come, however often somebody is in the way.
pub(crate) async fn make_all(store: &Store, pool: &PgPool) -> Result<()> {
    wait_until("the partitions to be made", Duration::from_secs(60), || async {
        let ahead = partitions::make_ahead(store).await?;
        a_minute_passes(pool).await?;
        anyhow::ensure!(ahead.missing.is_empty(), "{ahead:?}");
        Ok(())
    })
    .await
}

async fn insert(pool: &PgPool, at: DateTime<Utc>) -> Result<Uuid> {
    let id = ids::execution_for_fire(Uuid::now_v7(), at);
    sqlx::query("INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at) VALUES (0, $1, $2, 1, 1, 'QUEUED', $3)")
        .bind(id)
        .bind(Uuid::now_v7())
        .bind(at)
        .execute(pool)
        .await?;
    sqlx::query("INSERT INTO job_execution_logs (execution_id, attempt, line, timestamp, level, message) VALUES ($1, 1, 1, $2, 'INFO', 'x')")
        .bind(id)
        .bind(at)
        .execute(pool)
        .await?;
    Ok(id)
}

/// Where an execution and its log line lie.
async fn place(pool: &PgPool, id: Uuid) -> Result<(String, String)> {
    Ok(sqlx::query_as(
        "SELECT (SELECT tableoid::regclass::text FROM job_executions WHERE id = $1),
                (SELECT DISTINCT tableoid::regclass::text FROM job_execution_logs WHERE execution_id = $1)",
    )
    .bind(id)
    .fetch_one(pool)
    .await?)
}

fn both(days: &Calendar, day: i64) -> (String, String) {
    (days.partition("job_executions", day), days.partition("job_execution_logs", day))
}

#[tokio::test]
async fn an_empty_database_is_migrated_once_by_several_at_once_with_the_partitions_of_the_days_to_come() -> Result<()> {
    let database = Database::empty().await?;
    let store = |name: &str| Store::connect_lazily(&StoreOptions::new(database.url(), name));
    let (one, two) = (store("one")?, store("two")?);
    assert!(!one.is_migrated().await?);
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    let (first, second) = (first?, second?);
    assert_eq!(first.newest, migrate::newest_version());
    assert!(!first.applied.is_empty() || !second.applied.is_empty());
    assert!(one.is_migrated().await? && two.is_migrated().await?);
    assert!(one.migrate().await?.applied.is_empty(), "once");

    let pool = database.pool().await?;
    let days = today(&pool).await?;
    for day in 0..=7 {
        let id = insert(&pool, days.midnight(day) + TimeDelta::hours(12)).await?;
        assert_eq!(place(&pool, id).await?, both(&days, day), "{day} days ahead");
    }
    Ok(())
}

#[tokio::test]
async fn ids_are_routed_by_their_instant_to_the_millisecond() -> Result<()> {
    let database = Database::new().await?;
    let pool = database.pool().await?;
    let days = today(&pool).await?;
    let first = insert(&pool, days.midnight(1)).await?;
    assert_eq!(place(&pool, first).await?, both(&days, 1));
    let last = insert(&pool, days.midnight(1) - TimeDelta::milliseconds(1)).await?;
    assert_eq!(place(&pool, last).await?, both(&days, 0));
    let default = ("job_executions_default".to_owned(), "job_execution_logs_default".to_owned());
    for far in [days.midnight(5_000), days.midnight(-400), DateTime::UNIX_EPOCH] {
        let id = insert(&pool, far).await?;
        assert_eq!(place(&pool, id).await?, default, "{far}");
    }
    Ok(())
}

/// One day's row cannot move, and another day's name is taken: both are said, each round, and keep no other day.
#[tokio::test]
async fn a_day_that_cannot_be_made_is_said_and_keeps_no_other() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    // The template has the days until the one after tomorrow.
    insert(&bench.pool, days.midnight(4)).await?;
    let taken = days.partition("job_execution_logs", 5);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it stays'; END $$;
         CREATE TRIGGER stays BEFORE DELETE ON job_executions_default FOR EACH ROW EXECUTE FUNCTION stay();
         CREATE TABLE carillon.{taken} (note text)"
    )))
    .execute(&bench.pool)
    .await?;
    let stuck = days.partition("job_executions", 4);
    for round in 0..2 {
        let ahead = partitions::make_ahead(&bench.store).await?;
        assert_eq!((ahead.missing, ahead.overdue), (vec![stuck.clone(), taken.clone()], 2));
        assert!(ahead.refused[0].starts_with(&stuck) && ahead.refused[0].contains("it stays"), "{:?}", ahead.refused);
        assert!(
            ahead.refused[1].starts_with(&taken) && ahead.refused[1].contains("already exists"),
            "{:?}",
            ahead.refused
        );
        assert_eq!(ahead.made > 0, round == 0);
        a_minute_passes(&bench.pool).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_of_the_default_partition_move_into_the_one_that_is_made_for_them() -> Result<()> {
    let database = Database::new().await?;
    let pool = database.pool().await?;
    let days = today(&pool).await?;
    // The template has the days until the one after tomorrow.
    let mut early = Vec::new();
    for day in [4, 5] {
        early.push((day, insert(&pool, days.midnight(day)).await?));
        early.push((day, insert(&pool, days.midnight(day + 1) - TimeDelta::milliseconds(1)).await?));
    }
    let far = insert(&pool, days.midnight(300)).await?;
    for (_, id) in &early {
        assert_eq!(place(&pool, *id).await?.0, "job_executions_default");
    }
    let stores: Vec<Store> = (0..4)
        .map(|at| Store::connect_lazily(&StoreOptions::new(database.url(), format!("maker {at}"))))
        .collect::<Result<_, _>>()?;
    tokio::try_join!(
        partitions::make_ahead(&stores[0]),
        partitions::make_ahead(&stores[1]),
        partitions::make_ahead(&stores[2]),
        partitions::make_ahead(&stores[3])
    )?;
    make_all(&stores[0], &pool).await?;
    for (day, id) in early {
        assert_eq!(place(&pool, id).await?, both(&days, day));
    }
    assert_eq!(place(&pool, far).await?.0, "job_executions_default");
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM job_executions").fetch_one(&pool).await?;
    assert_eq!(total, 5, "none is lost, none is doubled");
    let indexes: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_indexes WHERE tablename = $1")
        .bind(days.partition("job_executions", 5))
        .fetch_one(&pool)
        .await?;
    assert_eq!(indexes, 2, "the primary key and the one by job");
    Ok(())
}

/// They move under a lock: more than 1 MiB of them stay where they are, and so does their day.
#[tokio::test]
async fn rows_of_the_default_partition_that_are_too_large_to_move_stay_there() -> Result<()> {
    let database = Database::new().await?;
    let pool = database.pool().await?;
    let days = today(&pool).await?;
    let make = async || -> Result<String> {
        let make = sqlx::query_scalar("SELECT carillon.make_partition('job_executions', $1, $2, $3)");
        let make = make.bind(days.partition("job_executions", -100));
        Ok(make
            .bind(ids::first_at(days.midnight(-100)))
            .bind(ids::first_at(days.midnight(-99)))
            .fetch_one(&pool)
            .await?)
    };
    open_many(&pool, &days, -100, 5, 250_000).await?;
    assert_eq!(make().await?, "late");
    sqlx::query("DELETE FROM job_executions WHERE id IN (SELECT id FROM job_executions LIMIT 2)")
        .execute(&pool)
        .await?;
    assert_eq!(make().await?, "made");
    let moved: i64 = sqlx::query_scalar("SELECT count(*) FROM job_executions_default").fetch_one(&pool).await?;
    assert_eq!(moved, 0);
    Ok(())
}

/// Holds every table as `pg_dump` does: from its begin to its end.
pub(crate) async fn dump(pool: &PgPool) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'carillon'::regnamespace",
    )
    .fetch_all(pool)
    .await?;
    let mut dump = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *dump).await?;
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", tables.join(", "));
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *dump).await?;
    Ok(dump)
}

/// How long a session named `beside` waited at worst for the lock of a table, as the server knows it: a slow machine makes
/// nobody wait for a lock. Begins with `beside` and goes on with it until `work` is done.
pub(crate) async fn longest_wait<T>(
    pool: &PgPool,
    work: impl Future<Output = Result<T>>,
    mut beside: impl AsyncFnMut() -> Result<()>,
) -> Result<(T, Duration)> {
    let longest = Cell::new(0.0_f64);
    let beside = async {
        loop {
            beside().await?;
        }
    };
    let watching = async {
        loop {
            let waits: Option<f64> = sqlx::query_scalar(
                "SELECT max(extract(epoch FROM clock_timestamp() - waitstart))::float8 FROM pg_locks l
                 JOIN pg_stat_activity a USING (pid)
                 WHERE NOT granted AND locktype = 'relation' AND a.application_name = 'beside'
                   AND a.datname = current_database()",
            )
            .fetch_one(pool)
            .await?;
            longest.set(longest.get().max(waits.unwrap_or(0.0)));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        done = work => Ok((done?, Duration::from_secs_f64(longest.get()))),
        failed = beside => failed,
        failed = watching => failed,
    }
}

/// Row 40, and a `pg_dump` that holds everything meanwhile: what is tried is tried once a minute by whichever process, nobody
/// queues behind it for 100 ms, and the day comes once the dump is over.
#[tokio::test]
async fn a_partition_that_cannot_be_made_now_makes_nobody_wait_and_is_made_later() -> Result<()> {
    let database = Database::new().await?;
    let pool = database.pool().await?;
    let days = today(&pool).await?;
    let stores: Vec<Store> = (0..2)
        .map(|at| Store::connect_lazily(&StoreOptions::new(database.url(), format!("maker {at}"))))
        .collect::<Result<_, _>>()?;
    let beside = PgPoolOptions::new().connect_with(database.options()?.application_name("beside"));
    let beside = beside.await?;
    let dump = dump(&pool).await?;
    let far = days.midnight(5_000);
    let mut longest = Duration::MAX;
    for round in 0..5 {
        let making = async { Ok(partitions::make_ahead(&stores[round % 2]).await?) };
        let (ahead, waited) = longest_wait(&pool, making, async || {
            insert(&beside, far + TimeDelta::milliseconds(1)).await.map(drop).or(Ok(()))
        })
        .await?;
        assert_eq!((ahead.made, ahead.missing.len(), ahead.overdue), (0, 20, 16), "{ahead:?}");
        longest = longest.min(waited);
        let tries = "SELECT tried_at FROM partition_tries ORDER BY what";
        let before: Vec<DateTime<Utc>> = sqlx::query_scalar(tries).fetch_all(&pool).await?;
        partitions::make_ahead(&stores[(round + 1) % 2]).await?;
        let after: Vec<DateTime<Utc>> = sqlx::query_scalar(tries).fetch_all(&pool).await?;
        assert_eq!(before, after, "tried again within a minute");
        a_minute_passes(&pool).await?;
    }
    assert!(longest < Duration::from_millis(100), "{longest:?}");
    dump.rollback().await?;
    make_all(&stores[0], &pool).await
}

/// A default partition that would take long to read is proven not to have the day's rows first, beside everybody.
#[tokio::test]
async fn a_large_default_partition_is_not_read_under_the_lock() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    sqlx::query(
        "INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at, error)
         SELECT 0, (substr($1::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, gen_random_uuid(), 'FAILED', now(),
                now(), repeat('x', 1000) FROM generate_series(1, 10000)",
    )
    .bind(ids::first_at(days.midnight(-400)).to_string())
    .execute(&bench.pool)
    .await?;
    let mut connection = bench.pool.acquire().await?;
    let mut call = async |function: &str| -> Result<String> {
        let statement = format!("SELECT carillon.{function}_partition('job_executions', $1, $2, $3)");
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
            .bind(days.partition("job_executions", 5))
            .bind(ids::first_at(days.midnight(5)))
            .bind(ids::first_at(days.midnight(6)))
            .fetch_one(&mut *connection)
            .await?)
    };
    assert_eq!(call("make").await?, "large");
    assert_eq!(call("bar").await?, "barred");
    // A row of that day is refused until its partition is there: a conflict, which passes.
    let job = bench.job().await?;
    let mut leader = bench.leader().await?;
    let now = bench.now().await?;
    let fires = || Decisions { executions: vec![fire(job, days.midnight(5), 1)], ..Decisions::default() };
    let refused = leader.claim(&[], now, &[]).await?.commit(1, &fires(), &[]).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    let proven: String = sqlx::query_scalar("SELECT carillon.prove('job_executions_default', $1)")
        .bind(format!("carillon_bar_{}", days.partition("job_executions", 5)))
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(proven, "proven");
    let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'job_executions_default'";
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&bench.pool).await?;
    let before: i64 = sqlx::query_scalar(scans).fetch_one(&bench.pool).await?;
    assert_eq!(call("make").await?, "made");
    connection.close().await?;
    let after: i64 = sqlx::query_scalar(scans).fetch_one(&bench.pool).await?;
    assert_eq!(before, after, "the default partition was read");
    drop(leader);
    let mut leader = bench.leader().await?;
    let born = leader.claim(&[], now, &[]).await?.commit(1, &fires(), &[]).await?.born;
    let place: String = sqlx::query_scalar("SELECT tableoid::regclass::text FROM job_executions WHERE id = $1")
        .bind(born[0])
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(place, days.partition("job_executions", 5));
    // And all the others, as they are made ordinarily.
    make_all(&bench.store, &bench.pool).await?;
    let bars: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_constraint WHERE conname LIKE 'carillon%'")
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(bars, 0);
    Ok(())
}

/// Making partitions locks the default one against everybody: what is recorded meanwhile waits. Postgres then refuses what had
/// already chosen the default partition for a row that now has another: a conflict, which passes when it is run again.
#[tokio::test]
async fn partitions_are_made_while_executions_come_and_go() -> Result<()> {
    let database = Database::new().await?;
    let pool = database.pool().await?;
    let days = today(&pool).await?;
    let store = Store::connect_lazily(&StoreOptions::new(database.url(), "maker"))?;
    let writing = async {
        for at in 0..200 {
            let day = 3 + at % 5;
            let mut refused = 0;
            while let Err(error) = insert(&pool, days.midnight(day) + TimeDelta::milliseconds(at)).await {
                refused += 1;
                anyhow::ensure!(refused < 3 && format!("{error:#}").contains("partition constraint"), "{error:#}");
            }
            sqlx::query("UPDATE job_executions SET status = 'RUNNING' WHERE id >= $1 AND status = 'QUEUED'")
                .bind(ids::first_at(days.midnight(day)))
                .execute(&pool)
                .await?;
        }
        anyhow::Ok(())
    };
    let (made, written) = tokio::join!(make_all(&store, &pool), writing);
    made?;
    written?;
    let logged: i64 = sqlx::query_scalar("SELECT count(*) FROM job_execution_logs").fetch_one(&pool).await?;
    assert_eq!(logged, 200);
    let strays: Vec<(String, Uuid)> = sqlx::query_as(
        "SELECT 'execution', id FROM job_executions_default UNION ALL SELECT 'log', execution_id FROM job_execution_logs_default",
    )
    .fetch_all(&pool)
    .await?;
    let there: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
         WHERE c.relispartition AND c.relkind = 'r' ORDER BY 1",
    )
    .fetch_all(&pool)
    .await?;
    assert!(strays.is_empty(), "{strays:?} beside {there:?}");
    Ok(())
}

/// The same, step by step, for the recorder: it may not take this for a defect.
#[tokio::test]
async fn r11_a_record_that_meets_a_partition_in_the_making_is_a_conflict_and_passes_when_it_is_run_again() -> Result<()>
{
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let at = days.midnight(5);
    let job = bench.job().await?;
    let held = Held { execution: ids::execution_for_fire(job, at), claim: 1, take: 0 };
    sqlx::query("INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at) VALUES (0, $1, $2, 1, 1, 'QUEUED', $3)")
        .bind(held.execution)
        .bind(job)
        .bind(at)
        .execute(&bench.pool)
        .await?;
    let mut making = bench.pool.begin().await?;
    sqlx::query("SELECT carillon.make_partition('job_execution_logs', $1, $2, $3)")
        .bind(days.partition("job_execution_logs", 5))
        .bind(ids::first_at(at))
        .bind(ids::first_at(days.midnight(6)))
        .execute(&mut *making)
        .await?;
    let ends = [finished(held, Status::Success)];
    let (recorded, made) = tokio::join!(bench.store.executions_record(Uuid::nil(), &[], &ends, &[]), async {
        bench.executor_waits_for_a_lock().await?;
        making.commit().await?;
        anyhow::Ok(())
    });
    made?;
    assert!(matches!(recorded, Err(Error::Conflict(_))), "{recorded:?}");
    let (_, verdicts) = bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    assert_eq!(place(&bench.pool, held.execution).await?.1, days.partition("job_execution_logs", 5));
    Ok(())
}

/// Likewise for what a day that is about to have its partition may not leave in the default one; and for no other CHECK.
#[tokio::test]
async fn r11_lines_that_are_barred_from_the_default_partition_are_a_conflict_and_pass_with_their_partition()
-> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let held = Held { execution: insert(&bench.pool, days.midnight(5)).await?, claim: 1, take: 0 };
    sqlx::query("DELETE FROM job_execution_logs").execute(&bench.pool).await?;
    let before = bench.whole_row(held.execution).await?;
    let call = async |function: &str| -> Result<String> {
        let statement = format!("SELECT carillon.{function}_partition('job_execution_logs', $1, $2, $3)");
        let call = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).bind(days.partition("job_execution_logs", 5));
        let call = call.bind(ids::first_at(days.midnight(5))).bind(ids::first_at(days.midnight(6)));
        Ok(call.fetch_one(&bench.pool).await?)
    };
    assert_eq!(call("bar").await?, "barred");
    let ends = [finished(held, Status::Success)];
    let barred = bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await.expect_err("its day is barred");
    assert!(matches!(&barred, Error::Conflict(_)) && barred.kind() == Kind::Conflict, "{barred:?}");
    assert_eq!(bench.whole_row(held.execution).await?, before, "nothing of it is written");

    let impossible = sqlx::query("UPDATE job_executions SET status = 'BEGUN'").execute(&bench.pool).await;
    let defect = Error::from(impossible.expect_err("there is no such status"));
    assert!(matches!(&defect, Error::Internal(_)) && defect.kind() == Kind::Internal, "{defect:?}");

    assert_eq!(call("make").await?, "made");
    let (_, verdicts) = bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    assert_eq!(place(&bench.pool, held.execution).await?.1, days.partition("job_execution_logs", 5));
    Ok(())
}
