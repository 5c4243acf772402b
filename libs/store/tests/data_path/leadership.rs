//! R1 and R2: one leads, its numbers grow, and with its session it loses everything that only a leader may do.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use carillon_core::agenda::Source;
use carillon_store::Error;
use carillon_store::StoreOptions;
use carillon_store::leader_session::{Candidate, LeaderSession};
use carillon_testkit::{Proxy, wait_until};
use chrono::TimeDelta;

use crate::bench::{Bench, medium, one_each, room};

/// Waits until a standby has become the leader.
async fn succeed(standby: Candidate) -> Result<LeaderSession> {
    let mut waiting = Some(standby);
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Some(candidate) = waiting.take() {
        match candidate.try_lead().await? {
            Ok(session) => return Ok(session),
            Err(_) if Instant::now() > deadline => bail!("the lock is still held after five seconds"),
            Err(candidate) => waiting = Some(candidate),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("no candidate")
}

#[tokio::test]
async fn r2_of_two_candidates_one_leads_and_the_other_follows_when_it_resigns() -> Result<()> {
    let bench = Bench::new().await?;
    let leader = bench.leader().await?;
    let standby = bench.candidate("standby").await?.try_lead().await?;
    let standby = standby.expect_err("two lead");
    leader.resign().await;
    let mut leader = succeed(standby).await?;
    leader.say_something().await?;
    assert_eq!(leader.shard(), 0);
    Ok(())
}

#[tokio::test]
async fn r2_dropping_the_session_frees_the_lock() -> Result<()> {
    let bench = Bench::new().await?;
    let leader = bench.leader().await?;
    let standby = bench.candidate("standby").await?.try_lead().await?.expect_err("two lead");
    drop(leader);
    succeed(standby).await?;
    Ok(())
}

#[tokio::test]
async fn r2_a_terminated_session_frees_the_lock_and_says_so_to_its_owner() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let standby = bench.candidate("standby").await?.try_lead().await?.expect_err("two lead");
    assert_eq!(bench.database.terminate_backends("leader").await?, 1);
    succeed(standby).await?;
    let told = leader.draw_number().await;
    assert!(matches!(told, Err(Error::Unavailable(_))), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn r2_each_shard_has_a_leader_of_its_own() -> Result<()> {
    let bench = Bench::new().await?;
    let _leader = bench.leader().await?;
    let other = Candidate::connect(&bench.options("leader of shard 1"), 1).await?.try_lead().await?;
    assert_eq!(other.expect("the lock of shard 0 is not that of shard 1").shard(), 1);
    Ok(())
}

/// The machine of the leader is cut off: nobody is told, its session falls silent, the server ends it.
#[tokio::test]
async fn r2_a_leader_that_is_cut_off_loses_the_lock_within_five_seconds_and_cannot_commit_afterwards() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job_at(&medium(), Some(bench.now().await?)).await?;
    let proxy = Proxy::to(bench.database.port()?)?;
    let options = StoreOptions::new(bench.database.url_through(proxy.port()), "leader");
    let mut leader = Candidate::connect(&options, 0).await?.try_lead().await?.expect("nobody else leads");
    let standby = bench.candidate("standby").await?.try_lead().await?.expect_err("two lead");
    let claim = leader.claim(&[room(Source::Timer, &medium(), 10)], bench.now().await?, &[]).await?;
    assert_eq!(claim.timers.len(), 1);

    proxy.silence();
    let mut successor = succeed(standby).await?;
    proxy.heal();
    let decisions = one_each(&claim.timers);
    assert!(claim.commit(1, &decisions, &[]).await.is_err(), "a claim without the lock was committed");
    assert_eq!(bench.count("job_executions").await?, 0);
    assert_eq!(bench.timer(job).await?.claimed_count, 0);

    let claim = successor.claim(&[room(Source::Timer, &medium(), 10)], bench.now().await?, &[]).await?;
    assert_eq!(claim.timers.len(), 1, "it is still due");
    Ok(())
}

#[tokio::test]
async fn p5_a_claim_does_not_commit_once_its_session_is_lost() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    let triggered = bench.trigger(job, now).await?;
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10), room(Source::Trigger, &medium(), 10)];
    let claim = leader.claim(&rooms, now, &[]).await?;
    let decisions = one_each(&claim.timers);
    assert_eq!(bench.database.terminate_backends("leader").await?, 1);
    let lost = claim.commit(1, &decisions, &[]).await;
    assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");

    let standby = bench.candidate("standby").await?;
    let mut successor = succeed(standby).await?;
    let claim = successor.claim(&rooms, now, &[]).await?;
    assert_eq!((claim.timers.len(), claim.timers[0].open), (1, 0), "the timer is still due");
    assert_eq!(claim.triggers.iter().map(|trigger| trigger.execution).collect::<Vec<_>>(), [triggered]);
    Ok(())
}

#[tokio::test]
async fn r2_the_server_ends_a_silent_session_also_in_a_transaction() -> Result<()> {
    let bench = Bench::new().await?;
    let leader = bench.leader().await?;
    let pid: i32 = sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'leader'",
    )
    .fetch_one(&bench.pool)
    .await?;
    // Nothing is said from here on.
    wait_until("the server to end the silent session", Duration::from_secs(6), || async {
        let lives: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)")
            .bind(pid)
            .fetch_one(&bench.pool)
            .await?;
        anyhow::ensure!(!lives, "it lives");
        Ok(())
    })
    .await?;
    drop(leader);
    Ok(())
}

#[tokio::test]
async fn r1_numbers_grow_and_follow_the_database_s_clock() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let before = bench.now().await?.timestamp_millis();
    let mut numbers = Vec::new();
    for _ in 0..20 {
        numbers.push(leader.draw_number().await?);
        numbers.push(leader.claim(&[], bench.now().await?, &[]).await?.number);
    }
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    assert!(numbers[0] >= before);
    // A claim adds the way from the server to here: never by as much as this.
    let after = bench.now().await?.timestamp_millis();
    assert!(numbers[39] <= after + 100, "{} is far ahead of {after}", numbers[39]);
    Ok(())
}

#[tokio::test]
async fn r1_numbers_count_on_from_what_redis_remembers() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let ahead = (bench.now().await? + TimeDelta::days(1)).timestamp_millis();
    leader.count_on_from(ahead);
    assert_eq!(leader.draw_number().await?, ahead + 1);
    leader.count_on_from(7);
    assert_eq!(leader.draw_number().await?, ahead + 2, "what Redis remembers is behind");
    Ok(())
}

#[tokio::test]
async fn r1_a_new_term_counts_on_from_the_newest_batch_of_its_shard() -> Result<()> {
    let bench = Bench::new().await?;
    let ahead = (bench.now().await? + TimeDelta::days(1)).timestamp_millis();
    sqlx::query(
        "INSERT INTO dispatch_batches (shard, number, term, ids) VALUES (0, $1, 1, '{}'), (1, $1 + 5, 1, '{}')",
    )
    .bind(ahead)
    .execute(&bench.pool)
    .await?;
    assert_eq!(bench.leader().await?.draw_number().await?, ahead + 1);
    Ok(())
}

/// R2: what the server refuses has a known outcome, and ends neither the session nor the lock.
#[tokio::test]
async fn r2_a_refused_statement_ends_no_session() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let jobs = [bench.job_at(&medium(), Some(now)).await?, bench.job_at(&medium(), Some(now)).await?];
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10)];
    // A NUL in a text is refused by the server (class 22), in the middle of the transaction.
    let claim = leader.claim(&rooms, now, &[]).await?;
    let mut decisions = one_each(&claim.timers);
    decisions.executions[0].reason = Some("\0".into());
    let refused = claim.commit(1, &decisions, &[]).await.expect_err("Postgres holds no NUL");
    assert!(refused.is_reported(), "{refused:?}");
    // So is a wait for a table that somebody holds.
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("LOCK TABLE job_executions IN ACCESS EXCLUSIVE MODE").execute(&mut *foreign).await?;
    let claim = leader.claim(&rooms, now, &[]).await?;
    let decisions = one_each(&claim.timers);
    let refused = claim.commit(1, &decisions, &[]).await.expect_err("the table is locked");
    assert!(matches!(refused, Error::Busy(_)) && refused.is_reported(), "{refused:?}");
    foreign.rollback().await?;

    assert_eq!(bench.count("job_executions").await?, 0);
    assert_eq!(bench.timer(jobs[0]).await?.claimed_count, 0);
    let claim = leader.claim(&rooms, now, &[]).await?;
    assert_eq!(claim.timers.len(), 2, "both are still due");
    let decisions = one_each(&claim.timers);
    assert_eq!(claim.commit(1, &decisions, &[]).await?.born.len(), 2);
    assert!(bench.candidate("standby").await?.try_lead().await?.is_err(), "it leads all the same");
    assert_eq!(bench.database.terminate_backends("leader").await?, 1);
    let lost = leader.draw_number().await.expect_err("the session is gone");
    assert!(!lost.is_reported(), "{lost:?}");
    Ok(())
}
