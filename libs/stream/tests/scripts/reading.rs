//! R8 and R22: reading, the look behind it, one's own pending entries, and streams and groups that are missing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use carillon_core::read_plan::{Plan, ReadPlan};
use carillon_stream::entry::UnreadableEntry;
use carillon_stream::keys::GROUP;
use carillon_stream::leader::{Announced, Outgoing, Published};
use carillon_stream::reader::Reader;
use carillon_stream::{Error, Redis, RedisOptions};
use carillon_testkit::{Proxy, wait_until};
use uuid::Uuid;

use crate::bench::{Bench, FIRST, PATIENCE, TERM, entry, execution, id, ids, lines, raw};

#[tokio::test]
async fn r8_a_blocked_read_wakes_at_once_and_the_look_behind_it_sees_what_happened_meanwhile() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = bench.reader("one")?;
    let late = execution(FIRST + 2, 1);
    let (read, meanwhile) = tokio::join!(reader.read(&Plan::Wait(10)), async {
        bench.somebody_waits().await?;
        // After the pipeline was sent: a cancel, a certificate, an entry.
        bench.redis.tell_cancelled(&[late]).await?;
        bench.certify(FIRST + 1, TERM).await?;
        bench.publish(FIRST + 2, 1).await
    });
    meanwhile?;
    let read = read?;
    assert_eq!(ids(&read), [id(FIRST + 2, 1)]);
    assert_eq!((read.look.certified, read.look.doubt), (true, FIRST + 1));
    assert!(read.look.cancelled.contains(&late), "R17: a cancel that was answered before the read is seen");
    assert_eq!(read.counts, [1, 0]);
    Ok(())
}

#[tokio::test]
async fn r8_a_read_that_waits_in_vain_still_looks() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = Reader::new(&bench.redis, "one", &lines(), Duration::from_millis(20))?;
    let read = reader.read(&Plan::Wait(10)).await?;
    assert!(read.entries.is_empty() && read.look.certified);
    assert_eq!((read.counts, read.look.doubt), (vec![0, 0], FIRST));
    Ok(())
}

#[tokio::test]
async fn r8_shares_are_asked_of_each_line_without_waiting() -> Result<()> {
    let bench = Bench::certified().await?;
    let text = |seq| entry(FIRST + 1, seq).encode().unwrap();
    let entries: Vec<_> = (1..=8)
        .map(|seq: i32| Outgoing { line: usize::from(seq > 4), seq, text: text(seq.unsigned_abs().into()) })
        .collect();
    bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?;
    let reader = bench.reader("one")?;
    let read = reader.read(&Plan::Drain(vec![3, 1])).await?;
    assert_eq!(read.counts, [3, 1]);
    let found: Vec<_> = read.entries.iter().map(|received| (received.line, received.id.seq)).collect();
    assert_eq!(found, [(0, 1), (0, 2), (0, 3), (1, 5)]);
    assert!(read.look.certified);
    assert_eq!(reader.read(&Plan::Drain(vec![0, 2])).await?.counts, [0, 2]);
    assert_eq!(reader.read(&Plan::Drain(vec![3, 3])).await?.counts, [1, 1]);
    assert_eq!(reader.read(&Plan::Drain(vec![3, 3])).await?.counts, [0, 0], "it does not wait");
    Ok(())
}

#[tokio::test]
async fn r8_of_a_large_cancelled_set_only_what_was_read_is_asked_for() -> Result<()> {
    let bench = Bench::certified().await?;
    let many: Vec<Uuid> = (0..70).map(Uuid::from_u128).collect();
    bench.redis.tell_cancelled(&many).await?;
    bench.redis.tell_cancelled(&[execution(FIRST + 1, 2)]).await?;
    bench.publish(FIRST + 1, 3).await?;
    let reader = bench.reader("one")?;
    let read = reader.read(&Plan::Wait(10)).await?;
    assert_eq!(read.look.cancelled.into_iter().collect::<Vec<_>>(), [execution(FIRST + 1, 2)]);
    assert!(bench.redis.look().await?.cancelled.is_empty(), "for what is held it is left out");
    assert_eq!(reader.look(&read.entries).await?.cancelled.len(), 1);

    let remembered: BTreeSet<Uuid> = bench.redis.some_cancelled(100).await?.into_iter().collect();
    assert_eq!(remembered, many.iter().copied().chain([execution(FIRST + 1, 2)]).collect());
    assert_eq!(bench.redis.some_cancelled(9).await?.len(), 9);
    bench.redis.forget_cancelled(&many).await?;
    assert_eq!(bench.redis.look().await?.cancelled.into_iter().collect::<Vec<_>>(), [execution(FIRST + 1, 2)]);
    bench.redis.forget_cancelled(&[execution(FIRST + 1, 2)]).await?;
    assert!(bench.redis.look().await?.cancelled.is_empty());
    Ok(())
}

/// One XREADGROUP over several streams brings one entry of each, however small its COUNT.
#[tokio::test]
async fn with_one_slot_one_entry_is_read_though_every_line_holds_some() -> Result<()> {
    let bench = Bench::certified().await?;
    let text = |seq| entry(FIRST + 1, seq).encode().unwrap();
    let entries: Vec<_> = (1..=8)
        .map(|seq: i32| Outgoing { line: usize::from(seq > 4), seq, text: text(seq.unsigned_abs().into()) })
        .collect();
    bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?;
    let reader = bench.reader("one")?;
    let mut plan = ReadPlan::new(&lines().iter().map(|line| line.priority).collect::<Vec<_>>());
    let mut in_turn = Vec::new();
    while in_turn.len() < 8 {
        let next = plan.next(1);
        let read = reader.read(&next).await?;
        assert!(read.entries.len() <= 1, "{next:?} brought {:?} for one slot", ids(&read));
        for (line, got) in read.counts.iter().enumerate() {
            let asked = if let Plan::Drain(shares) = &next { shares[line] } else { 1 };
            plan.learn(line, asked, *got);
        }
        in_turn.extend(read.entries.iter().map(|received| received.line));
    }
    assert!(in_turn[0] == 0 && in_turn.iter().filter(|line| **line == 1).count() == 4, "{in_turn:?}");
    Ok(())
}

#[tokio::test]
async fn a_watch_wakes_at_once_takes_nothing_and_knows_what_was_handed_out() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    let reader = bench.reader("one")?;
    assert_eq!(reader.read(&Plan::Watch).await?.counts, [1, 0], "what waits already");
    assert_eq!(bench.pending(0)?, 0);
    bench.read("two", 1).await?;
    let (watched, published) = tokio::join!(reader.read(&Plan::Watch), async {
        bench.somebody_waits().await?;
        bench.publish(FIRST + 2, 1).await
    });
    published?;
    let watched = watched?;
    assert!(watched.counts == [1, 0] && watched.entries.is_empty(), "{watched:?}");
    assert_eq!(bench.pending(0)?, 1);
    bench.destroy_group(1)?;
    let watched = reader.read(&Plan::Watch).await;
    assert!(matches!(watched, Err(Error::NoGroup(_))), "{watched:?}");
    Ok(())
}

/// H112, at its very step: the set is too large to come with the read, and Redis forgets everything between the read and the
/// second question, which then finds nothing in the set.
#[tokio::test]
async fn h112_a_wipe_before_the_second_question_is_not_a_no() -> Result<()> {
    let bench = Bench::certified().await?;
    let many: Vec<Uuid> = (0..70).map(Uuid::from_u128).collect();
    bench.redis.tell_cancelled(&many).await?;
    let cancelled = execution(FIRST + 1, 1);
    bench.redis.tell_cancelled(&[cancelled]).await?;
    bench.publish(FIRST + 1, 1).await?;
    // On a slow line there is time between the two.
    let proxy = Proxy::to(bench.server.port())?;
    let redis = Redis::connect_lazily(RedisOptions::new(bench.server.url_through(proxy.port())))?;
    let reader = Reader::new(&redis, "one", &lines(), PATIENCE)?;
    reader.look(&[]).await?;
    proxy.delay(Duration::from_millis(500));
    bench.server.command(&["CONFIG", "RESETSTAT"])?;
    let one = Plan::Drain(vec![1, 0]);
    let (read, wiped) = tokio::join!(reader.read(&one), async {
        wait_until("the look behind the entry", PATIENCE, || {
            std::future::ready(bench.calls("evalsha").and_then(|calls| {
                anyhow::ensure!(calls == 1, "{calls} scripts ran");
                Ok(())
            }))
        })
        .await?;
        bench.server.flush_all()
    });
    wiped?;
    let read = read?;
    assert_eq!(ids(&read), [id(FIRST + 1, 1)]);
    let is_ordinary = read.look.certified && FIRST + 1 > read.look.doubt;
    assert!(!is_ordinary || read.look.cancelled.contains(&cancelled), "cancelled, and may start: {:?}", read.look);
    Ok(())
}

#[tokio::test]
async fn r8a_what_is_held_is_found_in_a_large_set_too() -> Result<()> {
    let bench = Bench::certified().await?;
    let many: Vec<Uuid> = (0..12_000).map(Uuid::from_u128).collect();
    bench.redis.tell_cancelled(&many).await?;
    let held: Vec<Uuid> = (10_500..12_500).map(Uuid::from_u128).collect();
    let look = bench.redis.look_for(&held).await?;
    assert_eq!((look.certified, look.doubt, look.cancelled.len()), (true, FIRST, 1_500));
    bench.redis.forget_cancelled(&many[10..]).await?;
    assert_eq!(bench.redis.look_for(&held).await?.cancelled.len(), 10, "a small one comes whole");
    Ok(())
}

#[tokio::test]
async fn r8_what_was_read_but_never_arrived_is_among_one_s_own_pending_entries() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 5).await?;
    let stream = bench.stream(0);
    // The reply of this read is lost.
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "one", "COUNT", "4", "STREAMS", &stream, ">"])?;
    bench.read("two", 1).await?;
    let reader = bench.reader("one")?;
    let first = reader.own_pending(0, None, 3).await?;
    assert_eq!(ids(&first), [1, 2, 3].map(|seq| id(FIRST + 1, seq)));
    assert_eq!(first.counts, [3, 0]);
    let rest = reader.own_pending(0, ids(&first).last().copied(), 3).await?;
    assert_eq!(ids(&rest), [id(FIRST + 1, 4)], "and not what another holds");
    assert!(reader.own_pending(1, None, 3).await?.entries.is_empty());

    bench.redis.acknowledge(&lines()[0], &[id(FIRST + 1, 1), id(FIRST + 1, 3)]).await?;
    bench.server.command(&["XDEL", &stream, &id(FIRST + 1, 2).to_string()])?;
    assert_eq!(ids(&reader.own_pending(0, None, 3).await?), [id(FIRST + 1, 4)], "nor what is gone");
    Ok(())
}

#[tokio::test]
async fn r8_a_reader_hears_of_each_new_connection_and_reads_on() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = bench.reader("one")?;
    let mut reconnects = reader.reconnects();
    let (read, cut) = tokio::join!(reader.read(&Plan::Wait(10)), async {
        bench.somebody_waits().await?;
        bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"])
    });
    cut?;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    tokio::time::timeout(PATIENCE, reconnects.recv()).await??;
    bench.back().await?;
    bench.publish(FIRST + 1, 1).await?;
    assert_eq!(ids(&reader.read(&Plan::Wait(10)).await?), [id(FIRST + 1, 1)]);
    Ok(())
}

#[tokio::test]
async fn r22_a_stream_deleted_under_a_blocked_read_ends_it_and_is_created_again() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = bench.reader("one")?;
    let (read, deleted) = tokio::join!(reader.read(&Plan::Wait(10)), async {
        bench.somebody_waits().await?;
        bench.server.command(&["DEL", &bench.stream(0)])
    });
    deleted?;
    assert!(matches!(read, Err(Error::NoGroup(_))), "{read:?}");
    assert_eq!(reader.create_missing().await?, 0);
    assert!(bench.redis.state(&[]).await?.certified, "nothing old can be in it");
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Done(vec![1]));
    assert_eq!(ids(&reader.read(&Plan::Wait(10)).await?), [id(FIRST + 1, 1)]);
    Ok(())
}

#[tokio::test]
async fn r22_a_missing_group_takes_the_certificate_away_and_only_the_leader_brings_it_back() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    let reader = bench.reader("one")?;
    reader.read(&Plan::Wait(10)).await?;
    let (read, destroyed) = tokio::join!(reader.read(&Plan::Wait(10)), async {
        bench.somebody_waits().await?;
        bench.destroy_group(0)
    });
    destroyed?;
    assert!(matches!(read, Err(Error::NoGroup(_))), "{read:?}");
    for _ in 0..2 {
        assert_eq!(reader.create_missing().await?, 1);
    }
    assert!(!bench.redis.look().await?.certified);
    let read = reader.read(&Plan::Wait(10)).await;
    assert!(matches!(read, Err(Error::NoGroup(_))), "the executor created no group: {read:?}");
    assert_eq!(bench.publish(FIRST + 2, 1).await?, Published::Uncertified);
    assert!(matches!(bench.redis.announce(TERM, "red", false).await?, Announced::Challenged(_)));
    bench.certify(FIRST + 3, TERM).await?;
    let read = reader.read(&Plan::Wait(10)).await?;
    assert_eq!(ids(&read), [id(FIRST + 1, 1)]);
    assert!(read.look.certified && read.look.doubt >= read.entries[0].id.number, "H7: it is doubtful");
    Ok(())
}

#[tokio::test]
async fn h6_after_a_wipe_the_streams_are_created_and_nothing_is_certified() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = bench.reader("one")?;
    let (read, wiped) = tokio::join!(reader.read(&Plan::Wait(10)), async {
        bench.somebody_waits().await?;
        bench.server.flush_all()
    });
    wiped?;
    assert!(matches!(read, Err(Error::NoGroup(_))), "{read:?}");
    assert_eq!(reader.create_missing().await?, 0);
    assert_eq!(bench.redis.lengths(&lines()).await?, [0, 0]);
    assert!(!reader.read(&Plan::Drain(vec![1, 1])).await?.look.certified);
    let standing = bench.challenged(TERM, "red").await?;
    assert_eq!((standing.last, standing.doubt), (0, 0));
    Ok(())
}

/// What was read is ours already: it comes although another line's stream is gone, which the next read says.
#[tokio::test]
async fn r8_a_missing_line_does_not_swallow_what_another_gave() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2).await?;
    bench.server.command(&["DEL", &bench.stream(1)])?;
    let reader = bench.reader("one")?;
    let read = reader.read(&Plan::Drain(vec![5, 5])).await?;
    assert_eq!(ids(&read).len(), 2);
    assert!(read.look.certified);
    let read = reader.read(&Plan::Drain(vec![5, 5])).await;
    assert!(matches!(read, Err(Error::NoGroup(_))), "{read:?}");
    let read = reader.own_pending(1, None, 5).await;
    assert!(matches!(read, Err(Error::NoGroup(_))), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn h10_what_cannot_be_read_is_set_aside_and_stays_pending() -> Result<()> {
    let bench = Bench::certified().await?;
    let newer = r#"{"v":2,"shape":"other"}"#;
    let entries =
        [raw(0, 1, newer), raw(0, 2, "hello"), Outgoing { line: 0, seq: 3, text: entry(FIRST + 1, 3).encode()? }];
    bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?;
    bench.server.command(&["XADD", &bench.stream(0), &format!("{}-9999999999", FIRST + 1), "f", "x"])?;
    let reader = bench.reader("one")?;
    let read = reader.read(&Plan::Wait(10)).await?;
    assert_eq!(ids(&read), [id(FIRST + 1, 3)]);
    assert_eq!(read.counts, [4, 0], "they count as read: the line gave what it was asked for");
    let aside: Vec<_> = read.set_aside.iter().map(|aside| (aside.line, aside.id.as_str())).collect();
    let names = [1, 2, 9_999_999_999_i64].map(|seq| format!("{}-{seq}", FIRST + 1));
    assert_eq!(aside, names.iter().map(|name| (0, name.as_str())).collect::<Vec<_>>());
    assert_eq!(read.set_aside[0].why, UnreadableEntry::Newer(2), "for whoever can read it");
    assert!(matches!(read.set_aside[1].why, UnreadableEntry::Malformed(_)));
    assert_eq!(bench.pending(0)?, 4);
    assert_eq!(reader.own_pending(0, None, 10).await?.set_aside.len(), 3);
    Ok(())
}
