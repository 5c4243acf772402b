//! Keys of ours at which somebody has put something else: whoever meets one moves it aside, and goes on as if ours were deleted.

use std::time::Duration;

use anyhow::Result;
use carillon_core::read_plan::Plan;
use carillon_stream::Error;
use carillon_stream::claims::Claimed;
use carillon_stream::keys::GROUP;
use carillon_stream::leader::{Announced, Certified, Published};
use carillon_stream::reader::Reader;
use carillon_stream::streams::Retired;
use uuid::Uuid;

use crate::bench::{Bench, FIRST, TERM, id, ids, lines};

const IDLE: Duration = Duration::from_millis(1);

/// Puts a text at `key`.
fn spoil(bench: &Bench, key: &str) -> Result<()> {
    bench.server.command(&["SET", key, "mine"]).map(|_| ())
}

/// What stood there is aside, and the certificate is gone.
fn assert_displaced(bench: &Bench, key: &str, by: &str) -> Result<()> {
    let kind = bench.server.command(&["TYPE", key])?;
    assert_ne!(kind.text(), Some("string"), "{by}");
    let aside = format!("{key}:displaced");
    assert_eq!(bench.server.command(&["GETDEL", &aside])?.text(), Some("mine"), "{by}");
    assert_eq!(bench.ctl("server")?, None, "{by}");
    Ok(())
}

#[tokio::test]
async fn a_batch_goes_out_though_its_streams_name_is_taken() -> Result<()> {
    let bench = Bench::certified().await?;
    spoil(&bench, &bench.stream(0))?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    assert_displaced(&bench, &bench.stream(0), "publish")?;
    bench.certify(FIRST + 2, TERM).await?;
    assert_eq!(bench.publish(FIRST + 3, 2).await?, Published::Done(vec![2]));
    assert_eq!(ids(&bench.read("one", 9).await?).len(), 2);

    // Of two foreign keys at one name the later is kept.
    bench.server.command(&["SET", &format!("{}:displaced", bench.stream(0)), "older"])?;
    spoil(&bench, &bench.stream(0))?;
    assert!(!bench.redis.state(&lines()).await?.certified);
    assert_displaced(&bench, &bench.stream(0), "state")
}

#[tokio::test]
async fn the_hash_and_the_sets_of_a_shard_are_made_again() -> Result<()> {
    let bench = Bench::certified().await?;
    spoil(&bench, &bench.keys.ctl())?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    assert_displaced(&bench, &bench.keys.ctl(), "publish")?;
    bench.certify(FIRST + 2, TERM).await?;

    spoil(&bench, &bench.keys.streams())?;
    assert_eq!(bench.redis.known_lines().await?.len(), 0);
    assert_displaced(&bench, &bench.keys.streams(), "known lines")?;
    spoil(&bench, &bench.keys.streams())?;
    bench.certify(FIRST + 4, TERM).await?;
    assert_eq!(bench.redis.known_lines().await?.len(), lines().len());
    bench.server.command(&["DEL", &format!("{}:displaced", bench.keys.streams())])?;

    let cancelled = bench.keys.cancelled();
    let ids = [Uuid::from_u128(7)];
    spoil(&bench, &cancelled)?;
    assert!(matches!(bench.redis.tell_cancelled(&ids).await, Err(Error::WrongType(_))), "not remembered, but told");
    assert_displaced(&bench, &cancelled, "tell")?;
    bench.redis.tell_cancelled(&ids).await?;
    assert_eq!(bench.redis.some_cancelled(1).await?, ids);
    spoil(&bench, &cancelled)?;
    assert!(!bench.redis.look_for(&ids).await?.certified, "who says that nothing is cancelled is not trusted");
    assert_displaced(&bench, &cancelled, "look")?;
    for forget in [true, false] {
        spoil(&bench, &cancelled)?;
        let failed = if forget {
            bench.redis.forget_cancelled(&ids).await.err()
        } else {
            bench.redis.some_cancelled(1).await.err()
        };
        assert!(matches!(failed, Some(Error::WrongType(_))), "{failed:?}");
        assert_displaced(&bench, &cancelled, "the set's other commands")?;
    }
    Ok(())
}

/// A stream that nobody serves and no batch touches, with something else at its name, or with an id that no number of ours reaches:
/// a leader that has not heard of its line certifies all the same, again and again.
#[tokio::test]
async fn r4_what_stands_at_the_name_of_a_stream_that_the_leader_does_not_know_refuses_no_certificate() -> Result<()> {
    let bench = Bench::certified().await?;
    for (number, spoiled) in [(FIRST + 10, "a text"), (FIRST + 20, "an id")] {
        let stream = bench.stream(1);
        if spoiled == "a text" {
            spoil(&bench, &stream)?;
        } else {
            bench.server.command(&["XADD", &stream, "18446744073709551614-1", "e", "mine"])?;
        }
        let challenge = format!("challenge of {number}");
        let Announced::Challenged(standing) = bench.redis.announce(TERM, &challenge, true).await? else {
            anyhow::bail!("not challenged");
        };
        let certified = bench.redis.certify(number, TERM, &standing.replid, &challenge, &[]).await?;
        assert_eq!(certified, Certified::Done, "{spoiled}");
        assert_eq!(bench.publish(number + 1, 1).await?, Published::Done(vec![bench.length(0)? as u64]), "{spoiled}");
        assert_eq!(bench.length(1)?, 0, "{spoiled}: it is made again");
        let aside = format!("{stream}:displaced");
        assert_eq!(bench.server.command(&["DEL", &aside])?.number(), Some(1), "{spoiled}: what stood there is kept");
    }
    Ok(())
}

/// Each of a reader's questions, then R22 makes the stream again, and what is published is read.
#[tokio::test]
async fn a_reader_goes_on_though_its_streams_name_is_taken() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = Reader::new(&bench.redis, "one", &lines(), Duration::from_millis(20))?;
    for (round, plan) in [Plan::Wait(1), Plan::Drain(vec![1, 1]), Plan::Watch].iter().enumerate() {
        spoil(&bench, &bench.stream(1))?;
        let refused = reader.read(plan).await;
        assert!(matches!(refused, Err(Error::WrongType(_) | Error::NoGroup(_))), "{plan:?}: {refused:?}");
        assert_displaced(&bench, &bench.stream(1), "read")?;
        assert!(matches!(reader.read(plan).await, Err(Error::NoGroup(_))), "{plan:?}");
        assert_eq!(reader.create_missing().await?, 0);
        let number = FIRST + 10 * (1 + round as i64);
        bench.certify(number, TERM).await?;
        bench.publish(number + 1, 1).await?;
        let read = reader.read(&Plan::Drain(vec![1, 1])).await?;
        assert_eq!(ids(&read), [id(number + 1, 1)]);
    }
    spoil(&bench, &bench.stream(1))?;
    assert!(matches!(reader.own_pending(1, None, 1).await, Err(Error::WrongType(_))));
    assert_displaced(&bench, &bench.stream(1), "own pending")?;
    spoil(&bench, &bench.stream(1))?;
    assert_eq!(reader.create_missing().await?, 0);
    assert_displaced(&bench, &bench.stream(1), "R22")
}

/// One line's name is taken while the other gives entries: they are taken in, and the other is mended all the same.
#[tokio::test]
async fn a_taken_name_beside_a_busy_line_is_moved_aside_too() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    let reader = Reader::new(&bench.redis, "one", &lines(), Duration::from_millis(20))?;
    spoil(&bench, &bench.stream(1))?;
    assert_eq!(ids(&reader.read(&Plan::Drain(vec![1, 1])).await?), [id(FIRST + 1, 1)]);
    assert_displaced(&bench, &bench.stream(1), "read")
}

#[tokio::test]
async fn nothing_that_is_asked_of_a_stream_stops_at_a_taken_name() -> Result<()> {
    let bench = Bench::certified().await?;
    let (redis, all) = (&bench.redis, lines());
    let line = &all[0];
    let one = [id(FIRST + 1, 1)];
    for asked in 0..12 {
        spoil(&bench, &bench.stream(0))?;
        let outcome = match asked {
            0 => redis.pending_idle(line, IDLE, None, 1).await.map(drop),
            1 => redis.pending_of(line, "one", None, 1).await.map(drop),
            2 => redis.holders(line).await.map(drop),
            3 => redis.consumers(line).await.map(drop),
            4 => redis
                .claim(line, 0, "one", IDLE, &one)
                .await
                .map(|claimed: Claimed| assert!(claimed.entries.is_empty())),
            5 => redis.hand_on(line, "one", &one).await,
            6 => redis.acknowledge(line, &one).await,
            7 => redis.renew(line, "one", &one).await.map(drop),
            8 => redis.forget_consumer(line, "one").await.map(drop),
            9 => redis.missing(&all, &[(0, one[0])]).await.map(|missing| assert_eq!(missing, [0])),
            10 => redis.withdraw(line, one[0]).await.map(drop),
            _ => redis.retire(line, TERM, FIRST).await.map(|retired| assert_eq!(retired, Retired::Uncertified)),
        };
        assert!(
            matches!(outcome, Ok(()) | Err(Error::NoGroup(_))),
            "question {asked} is of a deleted stream: {outcome:?}"
        );
        assert_displaced(&bench, &bench.stream(0), &format!("question {asked}"))?;
        bench.certify(FIRST + 100 + asked, TERM).await?;
        bench.server.command(&["XINFO", "CONSUMERS", &bench.stream(0), GROUP])?;
    }
    Ok(())
}
