//! The private servers of the testkit: databases are apart, servers come back, nothing outlives its test process.

use carillon_testkit::wall_clock::{self, WallClock};
use carillon_testkit::{Database, Home, Postgres, Proxy, StopMode};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Connection as _;

#[tokio::test]
async fn each_test_has_a_migrated_database_of_its_own() {
    let (a, b) = tokio::join!(Database::new(), Database::new());
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.name(), b.name());
    for database in [&a, &b] {
        let pool = database.pool().await.unwrap();
        let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&pool).await.unwrap();
        assert_eq!(jobs, 0);
        let partitions: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_inherits WHERE inhparent = 'job_executions'::regclass")
                .fetch_one(&pool)
                .await
                .unwrap();
        assert!(partitions >= 4, "{partitions}");
    }
    let empty = Database::empty().await.unwrap();
    let pool = empty.pool().await.unwrap();
    let missing: bool = sqlx::query_scalar("SELECT to_regclass('jobs') IS NULL").fetch_one(&pool).await.unwrap();
    assert!(missing);
}

#[tokio::test]
async fn ones_own_server_comes_back_on_its_port_with_its_data() {
    let postgres = Postgres::start(&[]).await.unwrap();
    let pool = postgres.database().pool().await.unwrap();
    sqlx::raw_sql("CREATE TABLE t AS SELECT 42 AS n").execute(&pool).await.unwrap();
    for mode in [StopMode::Fast, StopMode::Immediate] {
        postgres.stop(mode);
        assert!(sqlx::PgConnection::connect(postgres.database().url()).await.is_err(), "it is down");
        postgres.start_again().unwrap();
        let pool = postgres.database().pool().await.unwrap();
        let n: i32 = sqlx::query_scalar("SELECT n FROM t").fetch_one(&pool).await.unwrap();
        assert_eq!(n, 42);
    }
}

#[tokio::test]
async fn sessions_can_be_ended_and_reached_through_a_proxy() {
    let database = Database::new().await.unwrap();
    let proxy = Proxy::to(database.port().unwrap()).unwrap();
    let url = format!("{}?application_name=victim", database.url_through(proxy.port()));
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql("SELECT 1").execute(&pool).await.unwrap();
    assert_eq!(database.terminate_backends("victim%").await.unwrap(), 1);
    assert_eq!(database.terminate_backends("nobody%").await.unwrap(), 0);
}

#[tokio::test]
async fn the_clock_of_a_server_of_ones_own_can_be_set() {
    if !wall_clock::is_available() {
        return;
    }
    let directory = Home::temporary().unwrap();
    let clock = WallClock::in_directory(directory.path()).unwrap();
    let postgres = Postgres::start_by(&clock).await.unwrap();
    let pool = postgres.database().pool().await.unwrap();
    for ahead in [TimeDelta::zero(), TimeDelta::seconds(90), TimeDelta::seconds(-90)] {
        clock.set(ahead).unwrap();
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&pool).await.unwrap();
        let off = now - Utc::now() - ahead;
        assert!(off.abs() < TimeDelta::seconds(5), "{ahead}: {off}");
    }
}
