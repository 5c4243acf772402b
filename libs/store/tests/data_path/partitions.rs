//! The history lies in a partition a day, made ahead; what fell into the default one meanwhile moves.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::{Error, Store, StoreOptions, migrate, partitions};
use carillon_testkit::Database;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::bench::{Bench, finished};

struct Calendar {
    today: NaiveDate,
}

impl Calendar {
    fn day(&self, days: i64) -> NaiveDate {
        self.today + TimeDelta::days(days)
    }

    fn partition(&self, table: &str, days: i64) -> String {
        format!("{table}_{}", self.day(days).format("%Y_%m_%d"))
    }

    fn midnight(&self, days: i64) -> DateTime<Utc> {
        self.day(days).and_time(NaiveTime::MIN).and_utc()
    }
}

async fn today(pool: &PgPool) -> Result<Calendar> {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(pool).await?;
    // Midnight in the middle of a test moves all names by one: start behind it.
    let tomorrow = (now.date_naive() + Days::new(1)).and_time(NaiveTime::MIN).and_utc();
    if tomorrow - now < TimeDelta::seconds(30) {
        return Ok(Calendar { today: tomorrow.date_naive() });
    }
    Ok(Calendar { today: now.date_naive() })
}

async fn insert(pool: &PgPool, at: DateTime<Utc>) -> Result<Uuid> {
    let id = ids::execution_for_fire(Uuid::now_v7(), at);
    sqlx::query("INSERT INTO job_executions (id, job_id, claim, entry, status, scheduled_at) VALUES ($1, $2, 1, 1, 'QUEUED', $3)")
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
    let made = tokio::join!(
        partitions::make_ahead(&stores[0]),
        partitions::make_ahead(&stores[1]),
        partitions::make_ahead(&stores[2]),
        partitions::make_ahead(&stores[3])
    );
    made.0?;
    made.1?;
    made.2?;
    made.3?;
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
    let (made, written) = tokio::join!(partitions::make_ahead(&store), writing);
    made?;
    written?;
    let (logged, stray): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM job_execution_logs),
                (SELECT count(*) FROM job_executions_default) + (SELECT count(*) FROM job_execution_logs_default)",
    )
    .fetch_one(&pool)
    .await?;
    assert_eq!((logged, stray), (200, 0));
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
    sqlx::query("INSERT INTO job_executions (id, job_id, claim, entry, status, scheduled_at) VALUES ($1, $2, 1, 1, 'QUEUED', $3)")
        .bind(held.execution)
        .bind(job)
        .bind(at)
        .execute(&bench.pool)
        .await?;
    let mut making = bench.pool.begin().await?;
    sqlx::query("SELECT carillon_make_partition('job_execution_logs', $1, $2, $3)")
        .bind(days.partition("job_execution_logs", 5))
        .bind(ids::first_at(at))
        .bind(ids::first_at(days.midnight(6)))
        .execute(&mut *making)
        .await?;
    let ends = [finished(held, Status::Success)];
    let (recorded, made) = tokio::join!(bench.store.record(Uuid::nil(), &[], &ends, &[]), async {
        bench.executor_waits_for_a_lock().await?;
        making.commit().await?;
        anyhow::Ok(())
    });
    made?;
    assert!(matches!(recorded, Err(Error::Conflict(_))), "{recorded:?}");
    let (_, verdicts) = bench.store.record(Uuid::nil(), &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    assert_eq!(place(&bench.pool, held.execution).await?.1, days.partition("job_execution_logs", 5));
    Ok(())
}
