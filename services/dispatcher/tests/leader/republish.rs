//! What Redis has lost, or passed over, is published again, what is over is forgotten, and without Redis nobody leads.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_testkit::{Proxy, Redis};
use chrono::{TimeDelta, Utc};

use crate::bench::{CTL, Leader, STREAM, in_ms};

/// R19: at once after a certificate, also when there is nothing else to do.
#[tokio::test]
async fn what_an_emptied_redis_has_lost_is_published_again_at_once() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    leader.redis.flush_all()?;
    let took = leader.back_after(3).await?;
    assert!(took < Duration::from_millis(500), "{took:?} after the certificate");
    leader.end().await
}

/// The pass that a certificate asks for is noted once it is over, so that the next leader need not make it.
#[tokio::test]
async fn the_whole_pass_of_a_certificate_is_noted_once_it_is_over() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let is_noted = || {
        let fields = leader.redis.command(&["HMGET", CTL, "doubt", "passed"])?;
        let [doubt, passed] = fields.list() else { anyhow::bail!("two fields") };
        Ok(doubt.text().is_some() && doubt.text() == passed.text())
    };
    leader.until("the first", is_noted).await?;
    leader.redis.flush_all()?;
    leader.until_certified().await?;
    leader.until("the second", is_noted).await?;
    leader.end().await
}

/// R1: numbers never go back, the database's clock may (52): Redis remembers one of a day ahead. What is over is forgotten all the
/// same, and an entry that a stranger deletes is found.
#[tokio::test]
async fn numbers_far_ahead_of_the_clock_keep_nothing_from_the_walk() -> Result<()> {
    let (redis, day_ahead) = (Redis::start().await?, (Utc::now() + TimeDelta::days(1)).timestamp_millis());
    redis.command(&["HSET", CTL, "last", &day_ahead.to_string()])?;
    let url = redis.url();
    let leader = Leader::start_with(redis, &url, 100, 1_000).await?;
    assert!(leader.term()? > day_ahead);
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    let entries = leader.redis.command(&["XRANGE", STREAM, "-", "+"])?;
    let first = entries.list()[0].list()[0].text().map(str::to_owned);
    leader.redis.command(&["XDEL", STREAM, &first.unwrap_or_default()])?;
    leader.until("what was deleted", || Ok(leader.length()? == 3)).await?;
    leader.work_off("default").await?;
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    // That of the last job.
    leader.until_count("dispatch_batches", |count| count == 1).await?;
    leader.end().await
}

/// S1: forgetting keeps pace with claiming, and what is left behind is caught up with.
#[tokio::test]
async fn settled_batches_of_which_nothing_is_open_are_forgotten() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.old_batches(20_000).await?;
    // The newest row stays for ever.
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until_count("dispatch_batches", |count| count == 1).await?;
    leader.end().await
}

/// R5: what is claimed a second time is refused by its id, and so may be all of a batch: that is no open batch.
#[tokio::test]
async fn a_batch_of_doubles_alone_is_settled() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let due = in_ms(200);
    leader.insert_jobs(1, due, 0, "default", &TimetableSpec::once(due)).await?;
    leader.wake()?;
    leader.until_count("job_executions", |fired| fired == 1).await?;
    for _ in 0..3 {
        // As a change of the job does it that finds the instant still to come.
        let back = "UPDATE job_timers SET fire_at = (SELECT scheduled_at FROM job_executions), exhausted = false";
        sqlx::query(back).execute(&leader.pool).await?;
        leader.wake()?;
        leader.until_count("job_timers WHERE exhausted", |ended| ended == 1).await?;
    }
    leader.until_count("dispatch_batches WHERE settled_at IS NULL", |open| open == 0).await?;
    assert_eq!(leader.count("job_executions").await?, 1);
    leader.end().await
}

/// However much there is to look through, fires go on meanwhile, and what was lost last is back first.
#[tokio::test]
async fn r19_claims_go_on_between_the_pages_of_a_pass() -> Result<()> {
    const OLD: i64 = 60_000;
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    // None of them is forgotten before the pass comes to it.
    sqlx::query("CREATE RULE keep AS ON DELETE TO dispatch_batches DO INSTEAD NOTHING").execute(&leader.pool).await?;
    leader.old_batches(OLD).await?;
    let due = in_ms(1_000);
    leader.jobs(1, due).await?;
    leader.wake()?;
    leader.redis.flush_all()?;
    let took = leader.back_after(4).await?;
    assert!(took < Duration::from_secs(2), "{took:?} after the certificate");
    leader.end().await
}

/// R7: a batch that was overtaken is looked up by itself, without a pass over all others.
#[tokio::test]
async fn what_was_passed_over_is_published_again_at_once() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("an entry", || Ok(leader.length()? == 1)).await?;
    // As if somebody had appended a later batch.
    let ahead = (Utc::now() + TimeDelta::seconds(4)).timestamp_millis();
    sqlx::query("INSERT INTO dispatch_batches (shard, number, term, ids, settled_at) VALUES (0, $1, 1, '{}', now())")
        .bind(ahead)
        .execute(&leader.pool)
        .await?;
    leader.redis.command(&["HSET", CTL, "last", &ahead.to_string(), "doubt", &ahead.to_string()])?;
    // Lost as well, and nobody says so: a pass over all would find it at once, the ordinary walk finds it some ten seconds later.
    leader.redis.command(&["XTRIM", STREAM, "MAXLEN", "0"])?;

    leader.jobs(2, in_ms(0)).await?;
    leader.wake()?;
    leader.until("both", || Ok(leader.length()? >= 2)).await?;
    ensure!(leader.length()? == 2, "more than its own batch was looked up");
    leader.until("the one that was lost too, by the walk", || Ok(leader.length()? == 3)).await?;
    leader.end().await
}

/// S6, R2: who cannot reach Redis gives the lock back, and leads again once it answers.
#[tokio::test]
async fn r2_without_redis_nobody_leads() -> Result<()> {
    const LOCKS: &str = "pg_locks WHERE locktype = 'advisory' AND granted
                         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let redis = Redis::start().await?;
    let proxy = Proxy::to(redis.port())?;
    let url = redis.url_through(proxy.port());
    let leader = Leader::start_with(redis, &url, 100, 1_000).await?;
    leader.until_count(LOCKS, |locks| locks == 1).await?;
    let silent = Instant::now();
    proxy.silence();
    leader.until_count(LOCKS, |locks| locks == 0).await?;
    let took = silent.elapsed();
    assert!(took > Duration::from_secs(2), "after {took:?}: a moment without an answer is no reason");
    leader.jobs(1, in_ms(0)).await?;
    proxy.heal();
    leader.until_count(LOCKS, |locks| locks == 1).await?;
    leader.until("its entry", || Ok(leader.length()? == 1)).await?;
    leader.end().await
}
