//! R12, R14, R15: whose an entry is.

use std::time::Duration;

use anyhow::Result;
use carillon_core::read_plan::Plan;
use carillon_stream::Error;
use carillon_stream::keys::GROUP;
use carillon_stream::reader::Received;

use crate::bench::{Bench, FIRST, TERM, id, ids, lines, raw};

const LEASE: Duration = Duration::from_secs(30);

fn found(entries: &[Received]) -> Vec<carillon_stream::EntryId> {
    entries.iter().map(|received| received.id).collect()
}

/// Three entries, of which `one` holds the first two and `two` the third.
async fn held() -> Result<Bench> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 3).await?;
    bench.reader("one")?.read(&Plan::Drain(vec![2, 0])).await?;
    bench.reader("two")?.read(&Plan::Drain(vec![1, 0])).await?;
    assert_eq!(bench.pending(0)?, 3);
    Ok(bench)
}

#[tokio::test]
async fn r12_acknowledging_deletes_in_one_transaction() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    bench.server.command(&["CONFIG", "RESETSTAT"])?;
    bench.redis.acknowledge(line, &[id(FIRST + 1, 1), id(FIRST + 1, 3)]).await?;
    assert_eq!((bench.length(0)?, bench.pending(0)?), (1, 1));
    let stats = bench.server.command(&["INFO", "commandstats"])?;
    let ran_once =
        |command: &str| stats.text().is_some_and(|text| text.contains(&format!("cmdstat_{command}:calls=1,")));
    assert!(ran_once("xack") && ran_once("xdel"), "{stats:?}");
    // H10: in one step, be it a transaction or a script.
    let by_script = stats.text().is_some_and(|text| text.contains("cmdstat_evalsha:calls="));
    assert!(ran_once("exec") || by_script, "{stats:?}");
    bench.redis.acknowledge(line, &[id(FIRST + 1, 1)]).await?;
    bench.redis.acknowledge(line, &[]).await?;
    assert_eq!((bench.length(0)?, bench.pending(0)?), (1, 1), "twice is once, nothing is nothing");
    bench.server.flush_all()?;
    bench.redis.acknowledge(line, &[id(FIRST + 1, 2)]).await?;
    Ok(())
}

/// A Redis over its maxmemory refuses whatever may grow, which is all that is queued in a MULTI: if acknowledging were among
/// it, nothing would ever make room again.
#[tokio::test]
async fn r12_a_full_redis_is_emptied_by_what_is_acknowledged() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    bench.server.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    let refused = bench.publish(FIRST + 2, 1).await.map_err(|error| error.downcast::<Error>());
    assert!(matches!(refused, Err(Ok(Error::OutOfMemory(_)))), "{refused:?}");
    let reader = bench.reader("one")?;
    let read = reader.own_pending(0, None, 10).await?;
    assert_eq!(ids(&read), [id(FIRST + 1, 1), id(FIRST + 1, 2)]);
    assert!(reader.read(&Plan::Drain(vec![1, 1])).await?.look.certified);
    assert_eq!(bench.redis.renew(line, "one", &ids(&read)).await?, 2);
    assert_eq!(bench.redis.claim(line, 0, "one", Duration::ZERO, &[id(FIRST + 1, 3)]).await?.entries.len(), 1);
    bench.redis.acknowledge(line, &[1, 2, 3].map(|seq| id(FIRST + 1, seq))).await?;
    assert_eq!((bench.length(0)?, bench.pending(0)?), (0, 0));
    Ok(())
}

/// The fact behind H9, for which LOST acknowledges nothing.
#[tokio::test]
async fn h9_redis_does_not_ask_whose_an_entry_is_when_it_is_acknowledged() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    let taken = bench.redis.claim(line, 0, "two", Duration::ZERO, &[id(FIRST + 1, 1)]).await?;
    assert_eq!(found(&taken.entries), [id(FIRST + 1, 1)]);
    // "one" is late.
    bench.redis.acknowledge(line, &[id(FIRST + 1, 1)]).await?;
    assert_eq!(bench.redis.pending_of(line, "two", None, 10).await?.len(), 1, "the one that it read itself");
    Ok(())
}

#[tokio::test]
async fn r14_only_what_is_still_pending_under_oneself_is_renewed() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    let all = [1, 2, 3, 4].map(|seq| id(FIRST + 1, seq));
    bench.age("one", &all[..2])?;
    bench.age("two", &all[2..3])?;
    bench.redis.acknowledge(line, &all[1..2]).await?;
    assert_eq!(bench.redis.renew(line, "one", &all).await?, 1);
    let idle = bench.redis.pending_idle(line, LEASE, None, 10).await?;
    assert_eq!(
        idle.iter().map(|pending| (pending.id, pending.consumer.as_str())).collect::<Vec<_>>(),
        [(all[2], "two")]
    );
    assert_eq!(bench.redis.renew(line, "three", &all).await?, 0);
    assert_eq!(bench.redis.holders(line).await?, ["one", "two"], "nothing changed hands");
    Ok(())
}

#[tokio::test]
async fn r14_many_are_renewed_at_once() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2_500).await?;
    let read = bench.read("one", 2_500).await?;
    assert_eq!(read.entries.len(), 2_500);
    assert_eq!(bench.redis.renew(&lines()[0], "one", &ids(&read)).await?, 2_500);
    assert_eq!(bench.redis.renew(&lines()[0], "one", &[]).await?, 0);
    Ok(())
}

#[tokio::test]
async fn r15_idle_entries_are_found_page_by_page_with_their_holders() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    let all = [1, 2, 3].map(|seq| id(FIRST + 1, seq));
    assert!(bench.redis.pending_idle(line, LEASE, None, 10).await?.is_empty());
    bench.age("one", &all[..2])?;
    bench.age("two", &all[2..])?;
    let first = bench.redis.pending_idle(line, LEASE, None, 2).await?;
    assert_eq!(first.iter().map(|pending| pending.id).collect::<Vec<_>>(), all[..2]);
    assert!(first.iter().all(|pending| pending.consumer == "one" && pending.idle >= LEASE));
    let rest = bench.redis.pending_idle(line, LEASE, Some(all[1]), 2).await?;
    assert_eq!(
        rest.iter().map(|pending| (pending.id, pending.consumer.as_str())).collect::<Vec<_>>(),
        [(all[2], "two")]
    );
    let of_one = bench.redis.pending_of(line, "one", None, 10).await?;
    assert_eq!(of_one.iter().map(|pending| pending.id).collect::<Vec<_>>(), all[..2]);
    let behind = bench.redis.pending_of(line, "one", Some(all[0]), 10).await?;
    assert_eq!(behind.iter().map(|pending| pending.id).collect::<Vec<_>>(), all[1..2]);
    assert!(bench.redis.pending_of(line, "nobody", None, 10).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn r15_an_entry_is_taken_over_once_it_is_idle_and_by_one() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    let wanted = [id(FIRST + 1, 1), id(FIRST + 1, 2), id(FIRST + 1, 9)];
    assert!(bench.redis.claim(line, 0, "three", LEASE, &wanted).await?.entries.is_empty(), "H5: it was just read");
    bench.age("one", &wanted[..2])?;
    let (three, four) = tokio::join!(
        bench.redis.claim(line, 0, "three", LEASE, &wanted),
        bench.redis.claim(line, 0, "four", LEASE, &wanted)
    );
    let (three, four) = (found(&three?.entries), found(&four?.entries));
    assert_eq!(three.len() + four.len(), 2, "{three:?} {four:?}: each once, and not what is not pending");
    assert_eq!(bench.redis.pending_of(line, "one", None, 10).await?, []);
    let ended = bench.redis.claim(line, 7, "five", Duration::ZERO, &wanted[..1]).await?;
    assert_eq!(ended.entries[0].line, 7);
    assert_eq!(ended.entries[0].entry.execution, crate::bench::execution(FIRST + 1, 1));
    assert!(bench.redis.claim(line, 0, "five", Duration::ZERO, &[]).await?.entries.is_empty());
    Ok(())
}

#[tokio::test]
async fn r15_what_a_take_over_cannot_read_is_set_aside_and_what_is_deleted_is_passed_over() -> Result<()> {
    let bench = Bench::certified().await?;
    let entries = [raw(0, 1, r#"{"v":9}"#), raw(0, 2, "x")];
    bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?;
    bench.publish(FIRST + 2, 2).await?;
    bench.read("one", 10).await?;
    bench.server.command(&["XDEL", &bench.stream(0), &id(FIRST + 2, 1).to_string()])?;
    let wanted = [id(FIRST + 1, 1), id(FIRST + 1, 2), id(FIRST + 2, 1), id(FIRST + 2, 2)];
    let claimed = bench.redis.claim(&lines()[0], 0, "two", Duration::ZERO, &wanted).await?;
    assert_eq!(found(&claimed.entries), [id(FIRST + 2, 2)]);
    assert_eq!(claimed.set_aside.len(), 2);
    Ok(())
}

#[tokio::test]
async fn r15_a_consumer_is_forgotten_once_it_holds_nothing() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    assert_eq!(bench.redis.holders(&lines()[1]).await?, Vec::<String>::new());
    assert_eq!(bench.redis.holders(line).await?, ["one", "two"]);
    assert!(!bench.redis.forget_consumer(line, "one").await?, "with it what it holds would be lost");
    assert_eq!(bench.pending(0)?, 3);
    bench.redis.acknowledge(line, &[1, 2].map(|seq| id(FIRST + 1, seq))).await?;
    assert_eq!(bench.redis.holders(line).await?, ["two"]);
    assert_eq!(bench.redis.consumers(line).await?, ["one", "two"]);
    assert!(bench.redis.forget_consumer(line, "one").await?);
    assert_eq!(bench.redis.consumers(line).await?, ["two"]);
    assert!(bench.redis.forget_consumer(line, "unknown").await?);
    Ok(())
}

#[tokio::test]
async fn r22_without_a_group_nothing_can_be_said_of_holders() -> Result<()> {
    let bench = held().await?;
    let line = &lines()[0];
    for missing in ["the group", "the stream"] {
        let outcomes = [
            bench.redis.holders(line).await.map(|_| ()),
            bench.redis.pending_idle(line, LEASE, None, 1).await.map(|_| ()),
            bench.redis.pending_of(line, "one", None, 1).await.map(|_| ()),
            bench.redis.claim(line, 0, "one", LEASE, &[id(FIRST + 1, 1)]).await.map(|_| ()),
            bench.redis.renew(line, "one", &[id(FIRST + 1, 1)]).await.map(|_| ()),
            bench.redis.forget_consumer(line, "one").await.map(|_| ()),
        ];
        if missing == "the group" && outcomes.iter().all(Result::is_ok) {
            bench.destroy_group(0)?;
            continue;
        }
        for (at, outcome) in outcomes.iter().enumerate() {
            assert!(matches!(outcome, Err(Error::NoGroup(_))), "{at}: {outcome:?}");
        }
        bench.server.command(&["DEL", &bench.stream(0)])?;
    }
    assert!(bench.server.command(&["XPENDING", &bench.stream(0), GROUP]).is_err());
    Ok(())
}
