//! R19: the very entry is asked for.

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_stream::leader::Outgoing;

use crate::bench::{Bench, FIRST, TERM, entry, id, ids, lines};

#[tokio::test]
async fn r19_missing_is_what_the_streams_do_not_hold() -> Result<()> {
    let bench = Bench::certified().await?;
    let entries: Vec<_> = (1..=4)
        .map(|seq: i32| Outgoing {
            line: usize::from(seq > 2),
            seq,
            text: entry(FIRST + 1, seq.unsigned_abs().into()).encode().unwrap(),
        })
        .collect();
    bench.redis.publish(FIRST + 1, TERM, &lines(), &entries).await?;
    let nowhere = Line::new("nowhere", Priority::Medium);
    let asked_lines = [lines()[0].clone(), lines()[1].clone(), nowhere];
    let asked = [
        (0, id(FIRST + 1, 1)),
        (0, id(FIRST + 1, 3)),
        (1, id(FIRST + 1, 3)),
        (0, id(FIRST + 2, 1)),
        (2, id(FIRST + 1, 1)),
        (1, id(FIRST + 1, 4)),
    ];
    assert_eq!(bench.redis.missing(&asked_lines, &asked).await?, [1, 3, 4]);
    assert_eq!(bench.redis.missing(&asked_lines, &[]).await?, Vec::<usize>::new());

    // Read, it is still held; acknowledged, it is gone.
    let read = bench.read("one", 1).await?;
    assert_eq!(bench.redis.missing(&asked_lines, &asked).await?, [1, 3, 4]);
    bench.redis.acknowledge(&lines()[0], &ids(&read)[..1]).await?;
    assert_eq!(bench.redis.missing(&asked_lines, &asked).await?, [0, 1, 3, 4]);
    Ok(())
}

/// An older entry that stays for ever, acknowledged but not deleted, hides nothing.
#[tokio::test]
async fn h10_an_older_entry_that_stays_does_not_hide_that_a_newer_one_is_lost() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    bench.read("one", 1).await?;
    let group = carillon_stream::keys::GROUP;
    bench.server.command(&["XACK", &bench.stream(0), group, &id(FIRST + 1, 1).to_string()])?;
    bench.publish(FIRST + 2, 1).await?;
    bench.server.command(&["XDEL", &bench.stream(0), &id(FIRST + 2, 1).to_string()])?;
    let asked = [(0, id(FIRST + 1, 1)), (0, id(FIRST + 2, 1))];
    assert_eq!(bench.redis.missing(&lines()[..1], &asked).await?, [1]);
    Ok(())
}

#[tokio::test]
async fn r19_a_page_of_many_is_asked_at_once() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2_000).await?;
    bench.server.command(&["XDEL", &bench.stream(0), &id(FIRST + 1, 1_500).to_string()])?;
    let asked: Vec<_> = (1..=2_000).map(|seq| (0, id(FIRST + 1, seq))).collect();
    assert_eq!(bench.redis.missing(&lines()[..1], &asked).await?, [1_499]);
    Ok(())
}
