//! Callers share the database: what is ours lies in one schema, and neither what lies elsewhere under the same names nor a
//! `search_path` makes a difference.

use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::leader_session::Candidate;
use carillon_store::recorder::Verdict;
use carillon_store::retention::{Retention, drop_days, forget_jobs, sweep_default};
use carillon_store::{Schema, Scope, Store, StoreOptions, attention, jobs, partitions, queues};
use carillon_testkit::Database;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::bench::{Bench, finished};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEPT: Retention = Retention { executions: DAY.saturating_mul(90), logs: DAY.saturating_mul(14), jobs: Some(DAY) };
/// A word of SQL, so that it must be quoted.
const OTHER: &str = "order";

fn options(database: &Database, schema: &str) -> StoreOptions {
    let schema = Schema::new(schema).unwrap_or_default();
    StoreOptions { schema, ..StoreOptions::new(database.url(), "neighbour") }
}

fn store(database: &Database, schema: &str) -> Result<Store> {
    Ok(Store::connect_lazily(&options(database, schema))?)
}

/// The first instant of a day that is due by [`KEPT`].
fn long_ago() -> DateTime<Utc> {
    DateTime::<Utc>::UNIX_EPOCH + DAY * 18_262
}

/// A day of executions long ago, with one that is over.
async fn make_old_day(pool: &PgPool, schema: &str) -> Result<&'static str> {
    const PARTITION: &str = "job_executions_2020_01_01";
    let at = long_ago();
    let make = format!("SELECT \"{schema}\".make_partition('job_executions', $1, $2, $3)");
    let made: String = sqlx::query_scalar(AssertSqlSafe(make))
        .bind(PARTITION)
        .bind(ids::first_at(at))
        .bind(ids::first_at(at + DAY))
        .fetch_one(pool)
        .await?;
    assert_eq!(made, "made");
    let insert = format!(
        "INSERT INTO \"{schema}\".job_executions (id, job_id, shard, status, scheduled_at, completed_at)
         VALUES ($1, $2, 0, 'SUCCESS', $3, $3)"
    );
    let (job, id) = (Uuid::now_v7(), ids::execution_for_fire(Uuid::nil(), at));
    sqlx::query(AssertSqlSafe(insert)).bind(id).bind(job).bind(at).execute(pool).await?;
    Ok(PARTITION)
}

async fn partitions_of(pool: &PgPool, schema: &str) -> Result<i64> {
    let count = "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r' AND relnamespace::regnamespace::text = $1";
    Ok(sqlx::query_scalar(count).bind(schema).fetch_one(pool).await?)
}

#[tokio::test]
async fn installations_in_two_schemas_of_a_database_migrate_lead_and_keep_house_each_for_itself() -> Result<()> {
    let database = Database::empty().await?;
    let pool = database.pool().await?;
    let (one, other) = (store(&database, "carillon")?, store(&database, OTHER)?);
    let (migrated, again) = tokio::try_join!(one.migrate(), one.migrate())?;
    assert!(migrated.applied.len() + again.applied.len() >= 2, "{migrated:?} {again:?}");
    assert!(!other.is_migrated().await?);
    // One who migrates here, and one who makes partitions or adds a queue here, is in nobody's way there.
    let mut busy = pool.begin().await?;
    for lock in ["migrations", "partitions", "queues"] {
        let take = "SELECT pg_advisory_xact_lock(hashtextextended('carillon.' || $1, 0)),
                           pg_advisory_xact_lock(hashtext('carillon.' || $1))";
        sqlx::query(take).bind(lock).execute(&mut *busy).await?;
    }
    assert_eq!(other.migrate().await?.applied.len(), 2);
    assert_eq!(other.migrate().await?.applied, []);
    busy.rollback().await?;
    for schema in ["carillon", "\"order\""] {
        assert_eq!(partitions_of(&pool, schema).await?, 4 * 10, "{schema}: nine days, and the default");
    }

    let candidate = async |schema: &str| Candidate::connect(&options(&database, schema), 0).await;
    let (first, second) = (candidate("carillon").await?.try_lead().await?, candidate(OTHER).await?.try_lead().await?);
    assert!(first.is_ok() && second.is_ok(), "each has its leader");
    for schema in ["carillon", OTHER] {
        assert!(candidate(schema).await?.try_lead().await?.is_err(), "{schema} has two");
    }

    let partition = make_old_day(&pool, "carillon").await?;
    make_old_day(&pool, OTHER).await?;
    assert_eq!(drop_days(&other, &KEPT).await?.dropped, [partition]);
    let there: Vec<String> = sqlx::query_scalar(
        "SELECT oid::regclass::text FROM pg_class WHERE relname LIKE '%2020_01_01%' AND relkind = 'r'",
    )
    .fetch_all(&pool)
    .await?;
    assert_eq!(there, [partition], "that of the neighbour is as it was, and nothing is left of the other");
    sweep_default(&other, &KEPT).await?;
    Ok(())
}

/// Tables and functions of the same names with nothing else in common, in front of ours for every session to come.
async fn make_namesakes(pool: &PgPool, database: &str) -> Result<()> {
    sqlx::raw_sql(
        "DO $do$
         DECLARE ours record;
         BEGIN
             FOR ours IN SELECT relname FROM pg_class WHERE relnamespace = 'carillon'::regnamespace AND relkind IN ('r', 'p') LOOP
                 EXECUTE format('CREATE TABLE public.%I AS SELECT 1 AS foreign_to_us', ours.relname);
             END LOOP;
             FOR ours IN SELECT proname, oidvectortypes(proargtypes) AS types FROM pg_proc
                         WHERE pronamespace = 'carillon'::regnamespace LOOP
                 EXECUTE format($f$CREATE FUNCTION public.%I(%s) RETURNS text LANGUAGE plpgsql
                                   AS $b$BEGIN RAISE EXCEPTION 'a function of somebody else'; END$b$ $f$, ours.proname, ours.types);
             END LOOP;
         END
         $do$",
    )
    .execute(pool)
    .await?;
    let set = format!("ALTER DATABASE \"{database}\" SET search_path = public");
    sqlx::raw_sql(AssertSqlSafe(set)).execute(pool).await?;
    Ok(())
}

/// How many namesakes there are, and how many are as they were made.
async fn namesakes(pool: &PgPool) -> Result<(usize, usize)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
    )
    .fetch_all(pool)
    .await?;
    let mut untouched = 0;
    for table in &tables {
        let rows = format!("SELECT coalesce(array_agg(to_jsonb(t)::text), '{{}}') FROM public.\"{table}\" t");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(pool).await?;
        untouched += usize::from(rows == ["{\"foreign_to_us\": 1}"]);
    }
    Ok((tables.len(), untouched))
}

#[tokio::test]
async fn foreign_tables_and_functions_of_our_names_are_not_touched_though_the_search_path_has_them_first() -> Result<()>
{
    let bench = Bench::new().await?;
    let before: i64 =
        bench.count("pg_class WHERE relnamespace = 'carillon'::regnamespace AND relkind IN ('r', 'p')").await?;
    make_namesakes(&bench.pool, bench.database.name()).await?;
    let (count, untouched) = namesakes(&bench.pool).await?;
    assert_eq!((i64::try_from(count)?, count), (before, untouched));

    // New sessions, which have the foreign ones in front.
    let store = Store::connect_lazily(&bench.options("neighbour"))?;
    assert!(store.is_migrated().await?);
    assert_eq!(store.migrate().await?.applied, []);
    let mut leader = bench.leader().await?;
    let job = bench.job().await?;
    let held = bench.open(&mut leader, &[job]).await?[0];
    let (_, verdicts) = store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    jobs::delete(&store, &Scope::ALL, job).await?;
    attention::look(&store, 10).await?;
    queues::forget_unused(&store).await?;

    let partition = make_old_day(&bench.pool, "carillon").await?;
    assert_eq!(drop_days(&store, &KEPT).await?.dropped, [partition]);
    partitions::make_ahead(&store).await?;
    sweep_default(&store, &KEPT).await?;
    forget_jobs(&store, Duration::ZERO).await?;
    let left: i64 = bench.count("job_executions").await?;
    assert_eq!(left, 0, "the job and its execution have gone");

    assert_eq!(namesakes(&bench.pool).await?, (count, count));
    Ok(())
}
