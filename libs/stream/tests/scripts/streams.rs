//! Streams that nobody needs leave, and come again; and many streams are no burden.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::read_plan::Plan;
use carillon_stream::Error;
use carillon_stream::keys::GROUP;
use carillon_stream::leader::{Announced, Certified, Published};
use carillon_stream::reader::Reader;
use carillon_stream::streams::Retired;

use crate::bench::{Bench, FIRST, TERM, batch, id, ids, lines};

/// What is older than this may leave.
const OLD: i64 = FIRST + 100;

/// A line with a stream in which one batch was, which `one` read and acknowledged.
async fn emptied(bench: &Bench, number: i64) -> Result<Line> {
    let line = Line::new("old", Priority::Medium);
    let published = bench.redis.publish(number, TERM, std::slice::from_ref(&line), &batch(number, 1)).await?;
    anyhow::ensure!(published == Published::Done(vec![1]), "{published:?}");
    let reader = Reader::new(&bench.redis, "one", std::slice::from_ref(&line), Duration::from_millis(20))?;
    let read = reader.read(&Plan::Drain(vec![1])).await?;
    bench.redis.acknowledge(&line, &ids(&read)).await?;
    Ok(line)
}

/// As if the consumer had spoken to nobody for two hours: only Redis' own clock of it counts.
fn forget_consumers(bench: &Bench, line: &Line) -> Result<()> {
    bench.server.command(&["XGROUP", "DELCONSUMER", &bench.keys.stream(line), GROUP, "one"]).map(|_| ())
}

#[tokio::test]
async fn an_empty_stream_that_nobody_serves_leaves_and_r6_makes_it_again() -> Result<()> {
    let bench = Bench::certified().await?;
    let line = emptied(&bench, FIRST + 1).await?;
    let all: BTreeSet<Line> = lines().into_iter().chain([line.clone()]).collect();
    assert_eq!(bench.redis.known_lines().await?, all);
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Served, "it was read just now");
    forget_consumers(&bench, &line)?;
    assert_eq!(bench.redis.retire(&line, TERM, FIRST + 1).await?, Retired::Used, "not old enough");
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Gone);
    assert_eq!(bench.redis.known_lines().await?, lines().into_iter().collect());
    assert_eq!(bench.server.command(&["EXISTS", &bench.keys.stream(&line)])?.number(), Some(0));
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Gone, "twice is once");

    // No id comes again: what was published before has passed, also of this stream.
    let send = |number| {
        let (redis, line) = (bench.redis.clone(), [line.clone()]);
        async move { redis.publish(number, TERM, &line, &batch(number, 1)).await }
    };
    assert_eq!(send(FIRST + 1).await?, Published::Passed);
    assert_eq!(send(FIRST + 2).await?, Published::Done(vec![1]));
    assert_eq!(bench.redis.known_lines().await?, all);
    let reader = Reader::new(&bench.redis, "two", &[line], Duration::from_millis(20))?;
    let read = reader.read(&Plan::Drain(vec![1])).await?;
    assert_eq!(ids(&read), [id(FIRST + 2, 1)]);
    assert!(read.look.certified && read.look.doubt < FIRST + 2, "and is ordinary");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_holds_something_stays() -> Result<()> {
    let bench = Bench::certified().await?;
    let line = Line::new("old", Priority::Medium);
    let stream = bench.keys.stream(&line);
    bench.redis.publish(FIRST + 1, TERM, std::slice::from_ref(&line), &batch(FIRST + 1, 1)).await?;
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Used, "unread");
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "one", "STREAMS", &stream, ">"])?;
    bench.server.command(&["XDEL", &stream, &id(FIRST + 1, 1).to_string()])?;
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Used, "pending");
    bench.redis.acknowledge(&line, &[id(FIRST + 1, 1)]).await?;
    bench.server.command(&["XADD", &stream, &id(FIRST + 9, 1).to_string(), "e", "by hand"])?;
    bench.server.command(&["XDEL", &stream, &id(FIRST + 9, 1).to_string()])?;
    forget_consumers(&bench, &line)?;
    assert_eq!(
        bench.redis.retire(&line, TERM, OLD).await?,
        Retired::Used,
        "its last id is above all that was published"
    );
    bench.publish(FIRST + 10, 1).await?;
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Gone);
    Ok(())
}

/// A read that waits in vain leaves no trace in the group; the listing of one's own pending entries does.
#[tokio::test]
async fn a_stream_that_an_executor_serves_stays_though_nothing_comes() -> Result<()> {
    let bench = Bench::certified().await?;
    let reader = bench.reader("one")?;
    reader.own_pending(0, None, 1).await?;
    assert_eq!(bench.redis.retire(&lines()[0], TERM, OLD).await?, Retired::Served);
    assert_eq!(bench.redis.retire(&lines()[1], TERM, OLD).await?, Retired::Gone, "nobody speaks to this one");
    // R22: whoever asks for it after all makes it again.
    assert!(matches!(reader.own_pending(1, None, 1).await, Err(Error::NoGroup(_))));
    assert_eq!(reader.create_missing().await?, 0);
    assert_eq!(bench.redis.known_lines().await?, lines().into_iter().collect());
    assert!(bench.redis.state(&[]).await?.certified);
    Ok(())
}

#[tokio::test]
async fn only_the_leader_of_a_certified_redis_lets_a_stream_leave() -> Result<()> {
    let bench = Bench::certified().await?;
    let line = emptied(&bench, FIRST + 1).await?;
    forget_consumers(&bench, &line)?;
    assert_eq!(bench.redis.retire(&line, TERM - 1, OLD).await?, Retired::Stale);
    assert_eq!(bench.redis.retire(&line, TERM + 1, OLD).await?, Retired::Unannounced);
    bench.server.command(&["HSET", &bench.keys.ctl(), "server", "another"])?;
    assert_eq!(bench.redis.retire(&line, TERM, OLD).await?, Retired::Uncertified);
    assert_eq!(bench.server.command(&["EXISTS", &bench.keys.stream(&line)])?.number(), Some(1));
    Ok(())
}

/// 5,000 queues with four streams each: no script holds up the others for long, and none meets a limit of Redis or Lua.
#[tokio::test]
async fn twenty_thousand_streams_are_certified_asked_and_known() -> Result<()> {
    let bench = Bench::empty().await?;
    let queues: Vec<String> = (0..5_000).map(|queue| format!("queue-{queue}")).collect();
    let many = Line::all_of(&queues);
    let mut took = Vec::new();
    // The second time all of them are there.
    for number in [FIRST, FIRST + 10] {
        let Announced::Challenged(standing) = bench.redis.announce(TERM, "red", true).await? else {
            panic!("not challenged");
        };
        let began = Instant::now();
        let certified = bench.redis.certify(number, TERM, &standing.replid, "red", &many).await?;
        took.push(("certify", began.elapsed()));
        assert_eq!(certified, Certified::Done);
    }
    let began = Instant::now();
    let state = bench.redis.state(&many).await?;
    took.push(("state", began.elapsed()));
    assert!(state.certified && state.lengths == vec![0; 20_000]);
    let began = Instant::now();
    assert_eq!(bench.redis.known_lines().await?.len(), 20_000);
    took.push(("known", began.elapsed()));
    let asked: Vec<_> = (0..20_000).map(|line| (line, id(FIRST + 1, 1))).collect();
    assert_eq!(bench.redis.missing(&many, &asked).await?, (0..20_000).collect::<Vec<_>>());
    println!("{took:?}");
    // What Redis itself counts, in the longest of them.
    let slowest = bench.server.command(&["SLOWLOG", "GET", "10"])?;
    let micros = slowest.list().iter().filter_map(|entry| entry.list().get(2)?.number()).max().unwrap_or(0);
    assert!(micros < 1_000_000, "a script took {micros} µs: {took:?}");
    println!("slowest: {micros} µs");
    Ok(())
}
