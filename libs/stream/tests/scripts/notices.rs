//! Hints over pub/sub: heard by whoever asked for them, and said to be missed when they may have been.

use std::time::Duration;

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_stream::notices::{Notice, Notices, Topic};
use carillon_stream::{Error, Redis, RedisOptions};
use carillon_testkit::{Proxy, wait_until};
use uuid::Uuid;

use crate::bench::{Bench, PATIENCE};

const ALL: [Topic; 5] = [Topic::Wake, Topic::JobChanged, Topic::Cancel, Topic::Ended, Topic::HandedOn];

fn subscribers(bench: &Bench, channel: &str) -> Result<i64> {
    let counts = bench.server.command(&["PUBSUB", "NUMSUB", channel])?;
    Ok(counts.list().get(1).and_then(carillon_testkit::Reply::number).unwrap_or(0))
}

async fn stands(bench: &Bench, channel: &str) -> Result<()> {
    wait_until("the subscription to stand", PATIENCE, || {
        let count = subscribers(bench, channel);
        std::future::ready(count.and_then(|count| {
            anyhow::ensure!(count == 1, "{count} subscribers");
            Ok(())
        }))
    })
    .await
}

async fn next(notices: &mut Notices) -> Result<Notice> {
    Ok(tokio::time::timeout(PATIENCE, notices.next()).await?)
}

/// The next that is not `Missed`.
async fn next_heard(notices: &mut Notices) -> Result<Notice> {
    loop {
        let notice = next(notices).await?;
        if notice != Notice::Missed {
            return Ok(notice);
        }
    }
}

#[tokio::test]
async fn every_topic_is_heard_with_what_it_says() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&ALL)?;
    stands(&bench, &bench.keys.ended_channel()).await?;
    let (job, one, two) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    bench.redis.wake().await?;
    let line = Line::new("mail", Priority::Low);
    bench.redis.wake_for(&line).await?;
    bench.server.command(&["PUBLISH", &bench.keys.wake_channel(), "due soon"])?;
    bench.redis.tell_job_changed(job).await?;
    bench.redis.tell_cancelled(&[one, two]).await?;
    bench.redis.tell_cancelled(&[]).await?;
    bench.server.command(&["PUBLISH", &bench.keys.jobs_channel(), "not an id"])?;
    bench.redis.tell_ended().await?;
    bench.redis.tell_handed_on("pod 7").await?;
    let expected = [
        Notice::Wake,
        Notice::Due(line),
        // What a newer version may say.
        Notice::Wake,
        Notice::JobChanged(job),
        Notice::Cancel(one),
        Notice::Cancel(two),
        Notice::Ended,
        Notice::HandedOn("pod 7".into()),
    ];
    for expected in expected {
        assert_eq!(next_heard(&mut notices).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn only_what_was_asked_for_is_heard() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&[Topic::Cancel])?;
    stands(&bench, &bench.keys.cancel_channel()).await?;
    let other = RedisOptions { namespace: "other".into(), ..RedisOptions::new(bench.server.url()) };
    Redis::connect_lazily(other)?.tell_cancelled(&[Uuid::from_u128(9)]).await?;
    bench.redis.wake().await?;
    bench.redis.tell_job_changed(Uuid::from_u128(1)).await?;
    bench.redis.tell_cancelled(&[Uuid::from_u128(2)]).await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Cancel(Uuid::from_u128(2)));
    Ok(())
}

/// R17: the set is written before anybody is told, so that whoever reads later sees it too.
#[tokio::test]
async fn r17_a_cancel_is_remembered_before_it_is_told() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&[Topic::Cancel])?;
    stands(&bench, &bench.keys.cancel_channel()).await?;
    let execution = Uuid::from_u128(5);
    bench.redis.tell_cancelled(&[execution]).await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Cancel(execution));
    assert!(bench.redis.look().await?.cancelled.contains(&execution));
    Ok(())
}

/// A message for each would overrun whoever listens, which then doubts all it holds; an await for each would take as many
/// round trips.
#[tokio::test]
async fn r17_many_cancels_are_told_at_once_and_overrun_nobody() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&[Topic::Cancel])?;
    assert_eq!(next(&mut notices).await?, Notice::Missed, "it stands");
    let many: Vec<Uuid> = (0..10_000).map(Uuid::from_u128).collect();
    bench.server.command(&["CONFIG", "RESETSTAT"])?;
    bench.redis.tell_cancelled(&many).await?;
    assert_eq!(bench.calls("sadd")?, 10);
    assert!(bench.calls("publish")? < 100, "a message for many");
    assert_eq!(bench.server.command(&["SCARD", &bench.keys.cancelled()])?.number(), Some(10_000));
    for execution in &many {
        assert_eq!(next(&mut notices).await?, Notice::Cancel(*execution));
    }
    bench.redis.forget_cancelled(&many).await?;
    assert_eq!(bench.server.command(&["SCARD", &bench.keys.cancelled()])?.number(), Some(0));
    Ok(())
}

/// A full Redis cannot remember a cancel, but whoever runs the execution can be told to stop it.
#[tokio::test]
async fn r17_a_cancel_is_told_although_a_full_redis_cannot_remember_it() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&[Topic::Cancel])?;
    stands(&bench, &bench.keys.cancel_channel()).await?;
    bench.server.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    let execution = Uuid::from_u128(5);
    let told = bench.redis.tell_cancelled(&[execution]).await;
    assert!(matches!(told, Err(Error::OutOfMemory(_))), "{told:?}");
    let heard = tokio::time::timeout(Duration::from_secs(1), next_heard(&mut notices)).await;
    assert_eq!(heard??, Notice::Cancel(execution));
    Ok(())
}

#[tokio::test]
async fn after_a_reconnect_something_may_have_been_missed_and_the_subscription_stands_again() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&ALL)?;
    stands(&bench, &bench.keys.ended_channel()).await?;
    bench.redis.wake().await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Wake);
    bench.server.kill();
    bench.server.start_again()?;
    assert_eq!(next(&mut notices).await?, Notice::Missed);
    stands(&bench, &bench.keys.ended_channel()).await?;
    bench.back().await?;
    bench.redis.tell_ended().await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Ended);
    Ok(())
}

#[tokio::test]
async fn a_subscription_may_be_asked_for_before_redis_is_there() -> Result<()> {
    let bench = Bench::empty().await?;
    bench.server.stop();
    let mut notices = bench.redis.subscribe(&[Topic::Wake])?;
    bench.server.start_again()?;
    assert_eq!(next(&mut notices).await?, Notice::Missed, "whatever was said before it stood");
    stands(&bench, &bench.keys.wake_channel()).await?;
    bench.back().await?;
    bench.redis.wake().await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Wake);
    Ok(())
}

/// `Missed` means: look now, from here on you hear. Said earlier, what is told between the look and the subscription is
/// missed by a listener that believes itself up to date.
#[tokio::test]
async fn missed_is_not_said_before_the_subscription_stands_again() -> Result<()> {
    let bench = Bench::empty().await?;
    let proxy = Proxy::to(bench.server.port())?;
    let redis = Redis::connect_lazily(RedisOptions::new(bench.server.url_through(proxy.port())))?;
    let mut notices = redis.subscribe(&[Topic::Wake])?;
    let channel = bench.keys.wake_channel();
    stands(&bench, &channel).await?;
    bench.redis.wake().await?;
    assert_eq!(next_heard(&mut notices).await?, Notice::Wake);
    // Each step of the new connection takes long enough to look in between.
    proxy.delay(Duration::from_millis(60));
    proxy.reset_connections();
    assert_eq!(next(&mut notices).await?, Notice::Missed);
    assert_eq!(subscribers(&bench, &channel)?, 1);
    Ok(())
}

#[tokio::test]
async fn a_dropped_subscription_leaves_no_connection_behind() -> Result<()> {
    let bench = Bench::empty().await?;
    let notices = bench.redis.subscribe(&ALL)?;
    let channel = bench.keys.wake_channel();
    stands(&bench, &channel).await?;
    drop(notices);
    wait_until("the subscription to end", PATIENCE, || {
        let count = subscribers(&bench, &channel);
        std::future::ready(count.and_then(|count| {
            anyhow::ensure!(count == 0, "{count} subscribers");
            Ok(())
        }))
    })
    .await
}
