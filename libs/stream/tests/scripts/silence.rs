//! A line on which nothing gets through any more and nobody is told: every command has an end, and what is silent is made anew.

use std::time::{Duration, Instant};

use anyhow::Result;
use carillon_core::read_plan::Plan;
use carillon_stream::connection::SILENT_MAX;
use carillon_stream::notices::{Notice, Topic};
use carillon_stream::reader::Reader;
use carillon_stream::{Error, Redis, RedisOptions};
use carillon_testkit::{Proxy, wait_until};

use crate::bench::{Bench, FIRST, PATIENCE, TERM, batch, id, ids, lines};

/// A reader's wait, as an executor's.
const BLOCK: Duration = Duration::from_millis(500);
/// What a silence is noticed within, and a connection made, on a machine that does much else.
const NOTICED: Duration = Duration::from_secs(8);

/// A handle that goes through a proxy, and answers.
async fn through(bench: &Bench) -> Result<(Proxy, Redis)> {
    let proxy = Proxy::to(bench.server.port())?;
    let redis = Redis::connect_lazily(RedisOptions::new(bench.server.url_through(proxy.port())))?;
    wait_until("the first answer", PATIENCE, || redis.ping()).await?;
    Ok((proxy, redis))
}

/// Steadily asked, as a leader asks: each command puts off what the client library would notice by itself.
#[tokio::test]
async fn commands_on_a_silent_connection_end_and_go_on_by_another() -> Result<()> {
    let bench = Bench::certified().await?;
    let (proxy, redis) = through(&bench).await?;
    proxy.silence_connections();
    let began = Instant::now();
    let asking = lines();
    let (first, asked) = tokio::join!(redis.state(&asking), async {
        wait_until("a new connection", NOTICED, || async {
            tokio::time::timeout(Duration::from_millis(250), redis.state(&asking))
                .await
                .map_err(anyhow::Error::from)?
                .map_err(anyhow::Error::from)
        })
        .await
    });
    assert!(asked?.certified);
    assert!(matches!(first, Err(Error::Unavailable(_))), "{first:?}");
    assert!(began.elapsed() >= SILENT_MAX, "a slow answer is none that is missing");
    Ok(())
}

/// A command too large for the socket's buffers holds up the very task that would close the connection.
#[tokio::test]
async fn a_write_that_does_not_go_on_keeps_no_connection_alive() -> Result<()> {
    let bench = Bench::certified().await?;
    let (proxy, redis) = through(&bench).await?;
    proxy.silence_connections();
    let text = bytes::Bytes::from(vec![b' '; 16 << 10]);
    let mut large = batch(FIRST + 1, 500);
    large.iter_mut().for_each(|entry| entry.text = text.clone());
    let asking = lines();
    let published = redis.publish(FIRST + 1, TERM, &asking[..1], &large).await;
    assert!(matches!(published, Err(Error::Unavailable(_))), "{published:?}");
    wait_until("a new connection", NOTICED, || redis.state(&asking)).await?;
    Ok(())
}

#[tokio::test]
async fn r8_a_reading_loop_on_a_silent_connection_reads_on_by_another() -> Result<()> {
    let bench = Bench::certified().await?;
    let (proxy, redis) = through(&bench).await?;
    let reader = Reader::new(&redis, "one", &lines(), BLOCK)?;
    reader.look(&[]).await?;
    let mut reconnects = reader.reconnects();
    // In the middle of a read that waits.
    let wait = Plan::Wait(10);
    let (silent, swallowed) = tokio::join!(reader.read(&wait), async {
        bench.somebody_waits().await?;
        proxy.silence_connections();
        bench.publish(FIRST + 1, 1).await
    });
    swallowed?;
    assert!(matches!(silent, Err(Error::Unavailable(_))), "{silent:?}");
    tokio::time::timeout(NOTICED, reconnects.recv()).await??;
    // The reply that was lost is found.
    let own = wait_until("the reader to be back", NOTICED, || reader.own_pending(0, None, 10)).await?;
    assert_eq!(ids(&own), [id(FIRST + 1, 1)]);
    bench.publish(FIRST + 2, 1).await?;
    assert_eq!(ids(&reader.read(&wait).await?), [id(FIRST + 2, 1)]);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_waits_long_is_not_taken_for_silent() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = Reader::new(&bench.redis, "one", &lines(), SILENT_MAX + BLOCK)?;
    reader.look(&[]).await?;
    let mut reconnects = reader.reconnects();
    let read = reader.read(&Plan::Wait(10)).await?;
    assert!(read.entries.is_empty() && read.look.certified);
    assert!(reconnects.try_recv().is_err(), "the connection was made anew");
    Ok(())
}

/// All of a line, old connections and new: within the time of one command after it heals everything answers.
#[tokio::test]
async fn after_a_silence_of_the_whole_line_everything_answers_again() -> Result<()> {
    let bench = Bench::certified().await?;
    let (proxy, redis) = through(&bench).await?;
    let reader = Reader::new(&redis, "one", &lines(), BLOCK)?;
    let mut notices = redis.subscribe(&[Topic::Wake])?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Missed);
    reader.look(&[]).await?;
    proxy.silence();
    let asking = lines();
    let wait = Plan::Wait(10);
    for _ in 0..2 {
        let (state, read) = tokio::join!(redis.state(&asking), reader.read(&wait));
        assert!(matches!(state, Err(Error::Unavailable(_))), "{state:?}");
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    }
    proxy.heal();
    wait_until("the commands", NOTICED, || redis.state(&asking)).await?;
    wait_until("the reader", NOTICED, || reader.read(&wait)).await?;
    assert_eq!(tokio::time::timeout(NOTICED, notices.next()).await?, Notice::Missed);
    bench.redis.wake().await?;
    while tokio::time::timeout(NOTICED, notices.next()).await? != Notice::Wake {}
    Ok(())
}

/// The server holds the subscription for a good one, and tells whoever publishes so.
#[tokio::test]
async fn a_subscription_that_hears_nothing_is_made_anew_and_says_so() -> Result<()> {
    let bench = Bench::empty().await?;
    let proxy = Proxy::to(bench.server.port())?;
    let deaf = Redis::connect_lazily(RedisOptions::new(bench.server.url_through(proxy.port())))?;
    let mut notices = deaf.subscribe(&[Topic::Wake])?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Missed, "it stands");
    bench.redis.wake().await?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Wake);
    proxy.silence_connections();
    bench.redis.wake().await?;
    assert_eq!(tokio::time::timeout(2 * NOTICED, notices.next()).await?, Notice::Missed, "what was told meanwhile");
    bench.redis.wake().await?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Wake);
    Ok(())
}

/// Silence of nothing but what there is to tell is none.
#[tokio::test]
async fn a_subscription_to_which_nothing_is_told_stands() -> Result<()> {
    let bench = Bench::empty().await?;
    let mut notices = bench.redis.subscribe(&[Topic::Wake])?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Missed, "it stands");
    // A machine that stands still for seconds may break it now and then, but not each time.
    let mut broke = 0;
    while let Ok(notice) = tokio::time::timeout(SILENT_MAX + Duration::from_secs(2), notices.next()).await {
        broke += 1;
        anyhow::ensure!(broke < 4, "{notice:?}");
    }
    bench.redis.wake().await?;
    assert_eq!(tokio::time::timeout(PATIENCE, notices.next()).await?, Notice::Wake);
    Ok(())
}
