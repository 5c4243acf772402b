//! Every statement has an end, at both ends: locks that others hold, hosts that vanish, lines that swallow all bytes.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use carillon_core::agenda::Source;
use carillon_store::leader_session::Candidate;
use carillon_store::{Error, Scope, Store, StoreOptions};
use carillon_testkit::{Proxy, wait_until};
use uuid::Uuid;

use crate::bench::{Bench, medium, room};

/// How long a lock that nobody answers for any more may stay.
const FREED_WITHIN: Duration = Duration::from_secs(5);

fn through(bench: &Bench, proxy: &Proxy, statement_max: Duration) -> Result<Store> {
    let url = bench.database.url_through(proxy.port());
    Ok(Store::connect_lazily(&StoreOptions { statement_max, ..StoreOptions::new(url, "cut") })?)
}

/// Waits for a lock of the job's row, as long as the server lets it.
async fn touches_job(store: &Store, job: Uuid) -> Result<(), Error> {
    carillon_store::jobs::pause(store, &Scope::ALL, job).await.map(|_| ())
}

#[tokio::test]
async fn a_foreign_lock_is_told_from_an_outage() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    let error = touches_job(&bench.store, job).await.unwrap_err();
    assert!(matches!(error, Error::Busy(_)) && !error.is_unavailable(), "{error:?}");
    drop(foreign);
    touches_job(&bench.store, job).await?;
    Ok(())
}

#[tokio::test]
async fn a_pool_whose_line_swallows_all_bytes_is_found_out_once() -> Result<()> {
    let bench = Bench::new().await?;
    let proxy = Proxy::to(bench.database.port()?)?;
    let limit = Duration::from_millis(500);
    let store = through(&bench, &proxy, limit)?;
    let pings = || futures_util::future::join_all((0..8).map(|_| store.ping()));
    for ping in pings().await {
        ping?;
    }
    proxy.silence_connections();
    let began = Instant::now();
    // Eight are dead without knowing it; one is asked, and the others are not.
    for ping in pings().await {
        ping?;
    }
    assert!(began.elapsed() >= limit, "one was waited for");
    assert!(began.elapsed() < 6 * limit, "took {:?}", began.elapsed());
    Ok(())
}

/// S3: a host that is lost between its statements and COMMIT keeps its locks for no longer than the server's patience.
#[tokio::test]
async fn a_host_that_vanishes_in_the_middle_of_a_pause_frees_the_job() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let proxy = Proxy::to(bench.database.port()?)?;
    let store = through(&bench, &proxy, Duration::from_secs(4))?;
    // It stops at the timer, with the job's row in hand; and then its host is gone.
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    let pausing = tokio::spawn(async move { touches_job(&store, job).await });
    wait_until("the pause waits for the timer", Duration::from_secs(10), async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cut' AND wait_event_type = 'Lock'",
        )
        .fetch_one(&bench.pool)
        .await?;
        anyhow::ensure!(waiting == 1, "{waiting} wait");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    proxy.silence();
    drop(foreign);
    let vanished = Instant::now();
    wait_until("the job is free again", Duration::from_secs(20), async || {
        sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE NOWAIT").bind(job).execute(&bench.pool).await
    })
    .await?;
    assert!(vanished.elapsed() < FREED_WITHIN, "after {:?}", vanished.elapsed());
    pausing.abort();
    Ok(())
}

/// A caller that gives up leaves no server behind that waits on, holding what it has locked.
#[tokio::test]
async fn what_nobody_waits_for_any_more_ends_on_the_server() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let options = StoreOptions {
        lock_max: Duration::from_secs(60),
        statement_max: Duration::from_secs(60),
        ..StoreOptions::new(bench.database.url(), "gone")
    };
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    // A process that goes: its sockets are closed, and nothing else is said.
    let process = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let store = Store::connect_lazily(&options)?;
            let gave_up = tokio::time::timeout(Duration::from_secs(1), touches_job(&store, job)).await;
            anyhow::ensure!(gave_up.is_err(), "it waits for the timer");
            Ok(())
        })?;
        runtime.shutdown_background();
        Ok(())
    });
    tokio::task::spawn_blocking(move || process.join()).await?.expect("it does not panic")?;
    wait_until("its session has ended", Duration::from_secs(20), async || {
        let sessions: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gone'")
            .fetch_one(&bench.pool)
            .await?;
        anyhow::ensure!(sessions == 0, "{sessions} are");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    drop(foreign);
    Ok(())
}

/// A transaction that is dropped is rolled back before its connection serves anybody else.
#[tokio::test]
async fn a_refused_change_leaves_no_open_transaction_behind() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    for _ in 0..3 {
        assert!(matches!(touches_job(&bench.store, Uuid::now_v7()).await, Err(Error::NotFound { .. })));
    }
    touches_job(&bench.store, job).await?;
    wait_until("nothing is left open", Duration::from_secs(10), async || {
        let open: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
                .fetch_one(&bench.pool)
                .await?;
        anyhow::ensure!(open == 0, "{open} are");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(())
}

/// Whoever gives up on a single statement has no transaction to roll back, of which the server would warn.
#[tokio::test]
async fn a_statement_that_is_given_up_is_waited_for_and_not_rolled_back() -> Result<()> {
    let bench = Bench::new().await?;
    let store = Store::connect_lazily(&StoreOptions::new(bench.database.url(), "gave-up"))?;
    let last_words = async || -> Result<(String, String)> {
        let statement = "SELECT state, query FROM pg_stat_activity WHERE application_name = 'gave-up'";
        Ok(sqlx::query_as(statement).fetch_one(&bench.pool).await?)
    };
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *foreign).await?;
    let reading = tokio::spawn(async move {
        let reading = carillon_store::jobs::get(&store, &Scope::ALL, Uuid::now_v7());
        assert!(tokio::time::timeout(Duration::from_millis(300), reading).await.is_err(), "it waits for the table");
        store
    });
    let store = reading.await?;
    foreign.rollback().await?;
    wait_until("the statement has ended", Duration::from_secs(10), async || {
        let (state, query) = last_words().await?;
        anyhow::ensure!(state == "idle", "{state}: {query}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let query = last_words().await?.1;
    assert!(query.contains("FROM carillon.jobs"), "{query}");
    store.ping().await?;
    Ok(())
}

/// Given up at any moment, also while it begins: the lock's session is not left in a transaction, and the next claim finds all.
#[tokio::test]
async fn a_claim_that_is_given_up_at_any_moment_leaves_its_session_usable() -> Result<()> {
    let bench = Bench::new().await?;
    let due = bench.now().await?;
    let job = bench.job_at(&medium(), Some(due)).await?;
    // So far off that each answer is waited for: a server that is woken on the same core answers before it is asked about it.
    let proxy = Proxy::to(bench.database.port()?)?;
    let options = StoreOptions::new(bench.database.url_through(proxy.port()), "leader");
    let Ok(mut session) = Candidate::connect(&options, 0).await?.try_lead().await? else { bail!("somebody leads") };
    proxy.delay(Duration::from_millis(3));
    let rooms = [room(Source::Timer, &medium(), 10)];
    let (mut given_up, mut whole) = (0, 0);
    for waits in (0..80).map(|n| n % 8) {
        // Whoever waits for the server once more than that gives up.
        let mut left = waits;
        let mut claiming = pin!(session.claim(&rooms, due, &[]));
        let claimed = poll_fn(|context| match claiming.as_mut().poll(context) {
            Poll::Ready(claimed) => Poll::Ready(Some(claimed)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        });
        if let Some(claim) = claimed.await {
            assert_eq!(claim?.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [job]);
            whole += 1;
        } else {
            given_up += 1;
        }
    }
    assert!(given_up >= 20 && whole >= 10, "{given_up} were given up, {whole} came to their end");
    session.say_something().await?;
    let open: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(&bench.pool)
    .await?;
    assert_eq!(open, 0);
    Ok(())
}

/// What a server says when it lets nobody in has many codes (a full disk's is XX000); whoever asked may ask again.
#[tokio::test]
async fn whatever_ends_a_session_before_it_begins_is_an_outage_and_no_defect() -> Result<()> {
    let bench = Bench::new().await?;
    let url = bench.database.url();
    let divider = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{divider}options=-c%20no_such_setting%3D1");
    let store = Store::connect_lazily(&StoreOptions::new(url, "refused"))?;
    let error = store.reach().await.expect_err("there is no such setting");
    assert!(error.is_unavailable() && !error.is_reported(), "{error:?}");
    Ok(())
}

/// The pool says of both that its time is up.
#[tokio::test]
async fn a_pool_that_is_in_use_is_told_from_a_postgres_that_is_away() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let proxy = Proxy::to(bench.database.port()?)?;
    let store = Store::connect_lazily(&StoreOptions {
        connections_max: 1,
        acquire_timeout: Duration::from_millis(1_750),
        lock_max: Duration::from_millis(500),
        ..StoreOptions::new(bench.database.url_through(proxy.port()), "full")
    })?;
    let touches = || futures_util::future::join_all((0..8).map(|_| touches_job(&store, job)));
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    // One after the other has the connection, and is told that somebody else holds the job.
    let errors: Vec<Error> = touches().await.into_iter().filter_map(Result::err).collect();
    let (busy, in_use): (Vec<&Error>, Vec<&Error>) = errors.iter().partition(|error| matches!(error, Error::Busy(_)));
    assert!(!busy.is_empty() && !in_use.is_empty() && errors.len() == 8, "{errors:?}");
    assert!(in_use.iter().all(|error| matches!(error, Error::AllInUse(_)) && error.is_unavailable()), "{errors:?}");
    drop(foreign);
    touches_job(&store, job).await?;
    proxy.silence();
    let errors: Vec<Error> = touches().await.into_iter().filter_map(Result::err).collect();
    assert!(errors.len() == 8 && errors.iter().all(|error| matches!(error, Error::Unavailable(_))), "{errors:?}");
    Ok(())
}
