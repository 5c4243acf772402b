//! R6: a batch is appended once and whole, in order, by the announced leader of a certified Redis, or not at all.

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_stream::entry::ENTRY_BYTES_MAX;
use carillon_stream::leader::{Outgoing, PUBLISH_BYTES_MAX, PUBLISH_ENTRIES_MAX, Published};
use carillon_stream::{Error, RedisOptions};

use crate::bench::{Bench, FIRST, TERM, batch, entry, id, ids, lines, raw};

#[tokio::test]
async fn r6_a_batch_is_appended_in_place_and_says_how_long_its_streams_are() -> Result<()> {
    let bench = Bench::certified().await?;
    let to = |line, seq: i32| {
        let text = entry(FIRST + 1, seq.unsigned_abs().into()).encode().unwrap();
        Outgoing { line, seq, text }
    };
    let entries = [to(1, 1), to(0, 2), to(1, 3)];
    assert_eq!(bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?, Published::Done(vec![1, 2]));
    assert_eq!(bench.redis.lengths(&lines()).await?, [1, 2]);
    let read = bench.read("one", 10).await?;
    let found: Vec<_> = read.entries.iter().map(|received| (received.line, received.id)).collect();
    assert_eq!(found, [(0, id(FIRST + 1, 2)), (1, id(FIRST + 1, 1)), (1, id(FIRST + 1, 3))]);
    assert_eq!(read.entries[0].entry.encode()?, entry(FIRST + 1, 2).encode()?);
    assert_eq!(bench.redis.state(&[]).await?.last, FIRST + 1);
    Ok(())
}

#[tokio::test]
async fn h1_the_same_batch_sent_many_times_at_once_is_appended_once() -> Result<()> {
    let bench = Bench::certified().await?;
    let send = || bench.publish(FIRST + 1, 3);
    let sent = tokio::join!(send(), send(), send(), send());
    let outcomes = [sent.0?, sent.1?, sent.2?, sent.3?];
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Published::Done(vec![3])).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Published::Passed).count(), 3, "{outcomes:?}");
    assert_eq!(bench.length(0)?, 3);
    Ok(())
}

/// H1, longer: what was finished and deleted meanwhile does not come back.
#[tokio::test]
async fn h1_a_second_sending_after_everything_was_acknowledged_appends_nothing() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2).await?;
    let read = bench.read("one", 10).await?;
    bench.redis.acknowledge(&lines()[0], &ids(&read)).await?;
    assert_eq!(bench.length(0)?, 0);
    assert_eq!(bench.publish(FIRST + 1, 2).await?, Published::Passed, "emptied streams remember");
    assert_eq!(bench.length(0)?, 0);
    Ok(())
}

#[tokio::test]
async fn r6_what_was_overtaken_has_passed_for_ever() -> Result<()> {
    let bench = Bench::certified().await?;
    assert_eq!(bench.publish(FIRST, 1).await?, Published::Passed, "the certificate's own number");
    bench.publish(FIRST + 9, 1).await?;
    assert_eq!(bench.publish(FIRST + 8, 1).await?, Published::Passed);
    assert_eq!(bench.length(0)?, 1);
    Ok(())
}

#[tokio::test]
async fn h2_a_zombie_publishes_nothing_and_a_new_leader_announces_itself_first() -> Result<()> {
    let bench = Bench::certified().await?;
    assert_eq!(bench.publish_as(FIRST + 1, TERM + 1, 1).await?, Published::Unannounced);
    bench.redis.announce(TERM + 1, "red", false).await?;
    assert_eq!(bench.publish_as(FIRST + 1, TERM, 1).await?, Published::Stale);
    assert_eq!(bench.length(0)?, 0);
    assert_eq!(bench.publish_as(FIRST + 1, TERM + 1, 1).await?, Published::Done(vec![1]));
    assert_eq!(bench.publish_as(FIRST + 2, TERM, 1).await?, Published::Stale);
    assert_eq!(bench.publish_as(FIRST + 1, TERM, 1).await?, Published::Stale, "a copy of what the new one has sent");
    Ok(())
}

#[tokio::test]
async fn h6_a_wiped_redis_takes_nothing_before_it_is_certified_anew() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    bench.server.flush_all()?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    assert_eq!(bench.publish(FIRST + 2, 1).await?, Published::Uncertified);
    assert_eq!(bench.server.command(&["DBSIZE"])?.number(), Some(0));
    assert!(!bench.redis.look().await?.certified);
    bench.certify(FIRST + 3, TERM).await?;
    assert_eq!(bench.publish(FIRST + 2, 1).await?, Published::Passed, "R19 looks that batch up");
    assert_eq!(bench.publish(FIRST + 4, 1).await?, Published::Done(vec![1]));
    Ok(())
}

#[tokio::test]
async fn r6_behind_a_foreign_entry_nothing_is_appended_to_any_stream() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["XADD", &bench.stream(1), &format!("{}-0", FIRST + 5), "e", "by hand"])?;
    let third = Line::new("third", Priority::Medium);
    let lines = [lines()[0].clone(), lines()[1].clone(), third.clone()];
    let entries: Vec<_> =
        (0..3).map(|line| Outgoing { line, seq: 1, text: entry(FIRST + 5, 1).encode().unwrap() }).collect();
    assert_eq!(bench.redis.publish(FIRST + 5, TERM, &lines, &entries).await?, Published::Behind);
    assert_eq!(bench.redis.lengths(&lines).await?, [0, 1, 0]);
    assert_eq!(bench.server.command(&["EXISTS", &bench.keys.stream(&third)])?.number(), Some(0));
    assert_eq!(bench.redis.state(&[]).await?.last, FIRST);
    bench.certify(FIRST + 6, TERM).await?;
    assert_eq!(bench.redis.publish(FIRST + 5, TERM, &lines, &entries).await?, Published::Passed);
    assert_eq!(bench.publish(FIRST + 7, 1).await?, Published::Done(vec![1]));
    Ok(())
}

#[tokio::test]
async fn r6_a_touched_stream_that_does_not_exist_is_created_with_its_group() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["DEL", &bench.stream(0)])?;
    assert_eq!(bench.publish(FIRST + 1, 2).await?, Published::Done(vec![2]));
    assert_eq!(ids(&bench.read("one", 10).await?), [id(FIRST + 1, 1), id(FIRST + 1, 2)]);
    let known = bench.server.command(&["SISMEMBER", &bench.keys.streams(), &bench.stream(0)])?;
    assert_eq!(known.number(), Some(1), "R4 asks all streams ever created");
    Ok(())
}

/// A stream deleted by hand may receive an id again that it held before (H11), but never one of an older batch.
#[tokio::test]
async fn h11_a_deleted_stream_is_not_given_an_older_batch_again() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    bench.publish(FIRST + 2, 1).await?;
    bench.server.command(&["DEL", &bench.stream(0)])?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Passed);
    assert_eq!(bench.publish(FIRST + 2, 1).await?, Published::Passed);
    assert_eq!(bench.length(0)?, 0);
    Ok(())
}

#[tokio::test]
async fn r6_a_full_redis_refuses_a_batch_whole_and_takes_it_once_there_is_room() -> Result<()> {
    let bench = Bench::certified().await?;
    let used = bench.server.command(&["INFO", "memory"])?;
    let used = used.text().and_then(|text| text.split("used_memory:").nth(1)).and_then(|rest| rest.lines().next());
    let used: u64 = used.unwrap_or_default().parse()?;
    assert_eq!(
        bench.server.command(&["CONFIG", "GET", "maxmemory-policy"])?.list()[1].text(),
        Some("noeviction"),
        "the default, which Carillon asks for"
    );
    bench.server.command(&["CONFIG", "SET", "maxmemory", &(used + 1_500_000).to_string()])?;
    let mut number = FIRST;
    let refused = loop {
        number += 1;
        match bench.publish(number, 200).await {
            Ok(Published::Done(_)) if number < FIRST + 500 => {}
            other => break other,
        }
    };
    let refused = refused.map_err(|error| error.downcast::<Error>());
    assert!(matches!(refused, Err(Ok(Error::OutOfMemory(_)))), "batch {number}: {refused:?}");
    let appended = number - 1 - FIRST;
    assert!(appended > 0);
    assert_eq!(bench.length(0)?, 200 * appended, "never half of a batch");
    assert_eq!(bench.redis.state(&[]).await?.last, number - 1);

    // A touched stream that would have to be created first makes no difference. (What the batch itself took in passing is
    // free again: the memory is made less.)
    bench.server.command(&["CONFIG", "SET", "maxmemory", &used.to_string()])?;
    let third = Line::new("third", Priority::Medium);
    let elsewhere = bench.redis.publish(number, TERM, std::slice::from_ref(&third), &batch(number, 1)).await;
    assert!(matches!(elsewhere, Err(Error::OutOfMemory(_))), "{elsewhere:?}");
    assert_eq!(bench.server.command(&["EXISTS", &bench.keys.stream(&third)])?.number(), Some(0));

    bench.server.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    let length = u64::try_from(200 * appended + 200)?;
    assert_eq!(bench.publish(number, 200).await?, Published::Done(vec![length]));
    Ok(())
}

#[tokio::test]
async fn a_server_that_has_lost_its_scripts_is_told_them_again() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["SCRIPT", "FLUSH"])?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Done(vec![1]));
    bench.server.command(&["SCRIPT", "FLUSH"])?;
    let read = bench.read("one", 10).await?;
    assert_eq!((read.entries.len(), read.look.certified), (1, true), "also in a pipeline behind a read");
    Ok(())
}

/// R6: as much as a batch may carry is taken in one command, and more is refused before anything is sent.
#[tokio::test]
async fn r6_a_batch_is_bounded_by_entries_and_bytes() -> Result<()> {
    let bench = Bench::certified().await?;
    let lines = &lines()[..1];
    let most = batch(FIRST + 1, PUBLISH_ENTRIES_MAX as u128);
    assert_eq!(bench.redis.publish(FIRST + 1, TERM, lines, &most).await?, Published::Done(vec![5_000]));
    let large = bytes::Bytes::from(vec![b'x'; ENTRY_BYTES_MAX]);
    let mut largest = batch(FIRST + 2, (PUBLISH_BYTES_MAX / ENTRY_BYTES_MAX) as u128);
    largest.iter_mut().for_each(|entry| entry.text = large.clone());
    assert!(largest.len() >= 1_000, "a claim's worth of the largest entries");
    assert_eq!(bench.redis.publish(FIRST + 2, TERM, lines, &largest).await?, Published::Done(vec![6_024]));

    let more_entries = batch(FIRST + 3, 1 + PUBLISH_ENTRIES_MAX as u128);
    largest.push(raw(0, 1, "x"));
    let many_lines: Vec<Line> = (0..5_001).map(|queue| Line::new(queue.to_string(), Priority::Low)).collect();
    for (lines, entries) in [(lines, &more_entries), (lines, &largest), (&many_lines, &batch(FIRST + 3, 1))] {
        let refused = bench.redis.publish(FIRST + 3, TERM, lines, entries).await;
        assert!(matches!(refused, Err(Error::TooMuch { .. })), "{refused:?}");
    }
    assert_eq!(bench.redis.state(&[]).await?.last, FIRST + 2);
    Ok(())
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_unavailable_in_time() -> Result<()> {
    let bench = Bench::certified().await?;
    let command_timeout = std::time::Duration::from_millis(300);
    let options = RedisOptions { command_timeout, ..RedisOptions::new(bench.server.url()) };
    let redis = carillon_stream::Redis::connect_lazily(options)?;
    redis.ping().await?;
    bench.server.kill();
    let (lines, batch) = (lines(), batch(FIRST + 1, 1));
    for _ in 0..2 {
        let sending = redis.publish(FIRST + 1, TERM, &lines[..1], &batch);
        let sent = tokio::time::timeout(crate::bench::PATIENCE, sending).await?;
        assert!(matches!(sent, Err(Error::Unavailable(_))), "{sent:?}");
    }
    bench.server.start_again()?;
    carillon_testkit::wait_until("the connection to be made again", crate::bench::PATIENCE, || redis.ping()).await?;
    Ok(())
}

#[tokio::test]
async fn installations_and_shards_that_share_a_redis_do_not_meet() -> Result<()> {
    let bench = Bench::certified().await?;
    let mine = RedisOptions::new(bench.server.url());
    for options in [RedisOptions { namespace: "other".into(), ..mine.clone() }, RedisOptions { shard: 1, ..mine }] {
        let other = carillon_stream::Redis::connect_lazily(options)?;
        assert!(!other.state(&lines()).await?.certified);
        other.announce(TERM + 7, "red", false).await?;
    }
    assert_eq!(bench.redis.state(&[]).await?.term, TERM);
    Ok(())
}
