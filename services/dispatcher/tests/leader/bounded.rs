//! What a leader publishes, and how much of it at once: streams, batches, bytes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::ids;
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Scope, Store, StoreOptions};
use chrono::Utc;
use serde_json::Value;

use crate::bench::{Leader, STREAM, STREAM_UNUSED, in_ms, stream_of};

/// Timers and triggers of one line, more of each than fit.
#[tokio::test]
async fn a_stream_never_holds_more_than_its_bound() -> Result<()> {
    const BOUND: i64 = 50;
    let leader = Leader::start(50, 50).await?;
    let later = leader.jobs(1, in_ms(1_000_000)).await?;
    let store = Store::connect_lazily(&StoreOptions::new(leader.database.url(), "test"))?;
    // Far enough off that all of it is there by then: what comes due at once is claimed together.
    let due = in_ms(2_000);
    leader.jobs(120, due).await?;
    for _ in 0..80 {
        let trigger = NewTrigger {
            job_id: later,
            payload: Some(Value::Null),
            metadata: None,
            trace: None,
            created_by: String::new(),
        };
        triggers::create(&store, &Scope::ALL, &trigger, None).await?;
    }
    sqlx::query("UPDATE job_triggers SET fire_at = $1").bind(due).execute(&leader.pool).await?;
    leader.wake()?;
    for freed in [0, 7, 30] {
        let trimmed = leader.redis.command(&["XTRIM", STREAM, "MAXLEN", &(BOUND - freed).to_string()])?.number();
        assert!(freed == 0 || trimmed == Some(freed));
        let full = || {
            let length = leader.length()?;
            assert!(length <= BOUND, "{length} entries");
            Ok(length == BOUND)
        };
        leader.until("a full stream", full).await?;
        // What is on its way by now shows itself within a tick.
        let seen = Instant::now();
        leader.until("nothing more", || full().map(|full| full && seen.elapsed() > Duration::from_millis(300))).await?;
    }
    let kinds: i64 =
        sqlx::query_scalar("SELECT count(DISTINCT job_id = $1) FROM job_executions WHERE status = 'QUEUED'")
            .bind(later)
            .fetch_one(&leader.pool)
            .await?;
    assert_eq!(kinds, 2, "timers and triggers");
    leader.end().await
}

/// S1: fires that are spread over time share batches.
#[tokio::test]
async fn spread_fires_are_few_batches() -> Result<()> {
    let leader = Leader::start(1_000, 20_000).await?;
    // 300 a second, for two seconds.
    leader.spread_jobs(600, in_ms(1_500), 3).await?;
    leader.wake()?;
    leader.until_count("job_executions", |count| count == 600).await?;
    let batches = leader.count("dispatch_batches").await?;
    assert!(batches <= 45, "{batches} batches of two seconds");
    let late: i64 = leader
        .count(
            "job_executions e JOIN dispatch_batches b ON b.number = e.claim
                                  WHERE b.claimed_at > e.scheduled_at - interval '50 ms'",
        )
        .await?;
    // A machine that has other things to do may make some late, not most.
    assert!(late < 300, "{late} of 600 were not claimed ahead");
    leader.end().await
}

/// Item 5: a queue's name that was used once does not keep a stream for ever.
#[tokio::test]
async fn a_stream_that_is_empty_for_long_and_served_by_nobody_leaves_and_comes_again() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    for queue in ["brief", "served", "waiting"] {
        leader.beside(queue).await?;
    }
    leader.work_off("brief").await?;
    leader.work_off("served").await?;
    // As if its executor had spoken to nobody for an hour.
    leader.redis.command(&["XGROUP", "DELCONSUMER", &stream_of("brief"), "executors", "one"])?;
    leader.until("its leaving", || Ok(!leader.exists("brief")?)).await?;
    // Those that are kept are asked after as often.
    let seen = Instant::now();
    let kept = || {
        ensure!(leader.exists("served")?, "one that is served has left");
        ensure!(leader.exists("waiting")?, "one that holds something has left");
        Ok(seen.elapsed() > STREAM_UNUSED / 2)
    };
    leader.until("nothing else to leave", kept).await?;
    leader.beside("brief").await?;
    leader.end().await
}

/// Item 5: by construction within what one publish takes, however large the payloads that travel.
#[tokio::test]
async fn batches_fit_into_a_publish_by_their_bytes() -> Result<()> {
    const JOBS: usize = 4_000;
    let leader = Leader::start(5_000, 20_000).await?;
    let term = leader.term()?;
    // Far enough off that all of it is there, and large, by then; 16 MB together, of which a publish takes 8.
    let due = in_ms(12_000);
    leader.jobs(JOBS, due).await?;
    sqlx::query(
        "UPDATE job_revisions SET definition = jsonb_set(definition, '{payload}', jsonb_build_object('of', repeat('x', 4000)))",
    )
    .execute(&leader.pool)
    .await?;
    leader.wake()?;
    leader.until("all entries", || Ok(leader.length()? == i64::try_from(JOBS)?)).await?;
    // Once more, since then it knows them all: what it had to read for a claim bounded the claims before by its time.
    let again = in_ms(3_000);
    sqlx::query("UPDATE job_timers SET fire_at = $1, exhausted = false").bind(again).execute(&leader.pool).await?;
    leader.wake()?;
    leader.until("all entries of both", || Ok(leader.length()? == i64::try_from(2 * JOBS)?)).await?;
    assert_eq!(leader.count("job_executions WHERE entry <> claim").await?, 0, "each was sent with its batch");
    let sizes: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM job_executions WHERE scheduled_at = $1 GROUP BY claim ORDER BY claim")
            .bind(again)
            .fetch_all(&leader.pool)
            .await?;
    let fits = sizes.first().copied().context("none")?;
    assert!((1_000..2_000).contains(&fits), "as many as fit: {sizes:?}");
    assert!(sizes.iter().all(|size| *size <= fits), "{sizes:?}");
    // What is published again fits too.
    leader.redis.flush_all()?;
    leader.until("all entries again", || Ok(leader.length()? == i64::try_from(2 * JOBS)?)).await?;
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: payloads of triggers are copied by the claim; one claim copies so many bytes, whatever falls due at once.
#[tokio::test]
async fn large_triggers_are_claimed_a_few_megabytes_at_a_time() -> Result<()> {
    const TRIGGERS: i64 = 60;
    let leader = Leader::start(1_000, 20_000).await?;
    let later = leader.jobs(1, in_ms(1_000_000)).await?;
    // At once, as none may be claimed before all are there; no compression makes it much smaller.
    let now = Utc::now();
    let triggers = (0..TRIGGERS).map(|n| ids::execution_for_trigger(later, &n.to_string(), now));
    sqlx::query(
        "WITH noise AS MATERIALIZED (SELECT string_agg(md5(n::text), '') AS text FROM generate_series(1, 8000) n)
         INSERT INTO job_triggers (execution_id, job_id, shard, fire_at, queue, priority, payload)
         SELECT e.id, t.job_id, t.shard, now(), t.queue, t.priority, to_jsonb(noise.text)
         FROM noise, job_timers t, UNNEST($2::uuid[]) AS e(id) WHERE t.job_id = $1",
    )
    .bind(later)
    .bind(triggers.collect::<Vec<_>>())
    .execute(&leader.pool)
    .await?;
    leader.wake()?;
    leader.until_count("job_executions", |claimed| claimed == TRIGGERS).await?;
    let (most, together): (i64, i64) = sqlx::query_as(
        "SELECT max(bytes)::bigint, sum(bytes)::bigint
         FROM (SELECT sum(pg_column_size(payload)) AS bytes FROM job_executions GROUP BY claim) claims",
    )
    .fetch_one(&leader.pool)
    .await?;
    assert!(together > 8 << 20, "{together} bytes together");
    assert!(most <= 2 << 20, "{most} bytes by one claim");
    leader.end().await
}
