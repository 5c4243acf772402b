//! R6a: an entry is taken back only if nobody has read it, in whatever history this Redis has.

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::read_plan::Plan;
use carillon_stream::leader::Published;
use carillon_stream::withdraw::{WITHDRAWN_MAX, Withdrawn};
use carillon_stream::{Entry, EntryId, Error};

use crate::bench::{Bench, FIRST, TERM, entry, id, ids, lines, raw};

fn holder(withdrawn: &Withdrawn) -> Option<&str> {
    if let Withdrawn::Pending { consumer, .. } = withdrawn { Some(consumer) } else { None }
}

#[tokio::test]
async fn r6a_what_nobody_has_read_is_deleted_and_the_rest_is_left() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 4).await?;
    bench.reader("one")?.read(&Plan::Drain(vec![2, 0])).await?;
    let line = &lines()[0];
    bench.redis.acknowledge(line, &[id(FIRST + 1, 1)]).await?;
    let asked = [1, 2, 3, 4, 5].map(|seq| id(FIRST + 1, seq));
    let said = bench.redis.withdraw_all(line, &asked[..3]).await?;
    assert_eq!((&said[0], holder(&said[1]), &said[2]), (&Withdrawn::Gone, Some("one"), &Withdrawn::Unread), "{said:?}");
    assert_eq!(bench.redis.withdraw(line, asked[2]).await?, Withdrawn::Gone, "a second time");
    assert_eq!(bench.redis.withdraw(line, asked[4]).await?, Withdrawn::Gone, "never there");
    assert_eq!((bench.length(0)?, bench.pending(0)?), (2, 1));
    assert_eq!(ids(&bench.read("two", 10).await?), [asked[3]], "nobody reads what was taken back");
    bench.age("one", &[asked[1]])?;
    let Withdrawn::Pending { consumer, idle } = bench.redis.withdraw(line, asked[1]).await? else { panic!("not held") };
    assert!(consumer == "one" && idle.as_secs() >= 60, "{consumer} {idle:?}");
    Ok(())
}

/// H110: before a certificate somebody else's history may have delivered it.
#[tokio::test]
async fn h110_up_to_the_doubt_of_the_certificate_an_unread_entry_is_doubtful_and_stays() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2).await?;
    bench.certify(FIRST + 2, TERM).await?;
    bench.publish(FIRST + 3, 1).await?;
    let said = bench.redis.withdraw_all(&lines()[0], &[id(FIRST + 1, 2), id(FIRST + 3, 1)]).await?;
    assert_eq!(said, [Withdrawn::Doubtful, Withdrawn::Unread]);
    assert_eq!(bench.length(0)?, 2);
    Ok(())
}

/// H118: an entry published again stands for one that somebody may run.
#[tokio::test]
async fn h118_an_entry_published_again_is_doubtful_and_stays() -> Result<()> {
    let bench = Bench::certified().await?;
    let line = lines()[0].clone();
    let again = Entry { again: true, ..entry(FIRST + 1, 1) };
    let newer = raw(0, 2, r#"{"v":99,"x":"00000000-0000-0000-0000-000000000001"}"#);
    let rubbish = [raw(0, 3, "rubbish"), raw(0, 4, "[1]"), raw(0, 5, r#""text""#)];
    let mut entries = vec![raw(0, 1, String::from_utf8(again.encode()?.to_vec())?.leak()), newer];
    entries.extend(rubbish);
    let published = bench.redis.publish(FIRST + 1, TERM, std::slice::from_ref(&line), &entries).await?;
    assert_eq!(published, Published::Done(vec![5]));
    let asked: Vec<EntryId> = (1..=5).map(|seq| id(FIRST + 1, seq)).collect();
    assert_eq!(bench.redis.withdraw_all(&line, &asked).await?, vec![Withdrawn::Doubtful; 5]);
    assert_eq!(bench.length(0)?, 5);
    Ok(())
}

#[tokio::test]
async fn r6a_without_a_certificate_it_says_nothing() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    bench.server.command(&["HSET", &bench.keys.ctl(), "server", "another"])?;
    let said = bench.redis.withdraw_all(&lines()[0], &[id(FIRST + 1, 1), id(FIRST + 1, 2)]).await?;
    assert_eq!(said, vec![Withdrawn::Uncertified; 2]);
    assert_eq!(bench.length(0)?, 1);
    bench.server.flush_all()?;
    assert_eq!(bench.redis.withdraw(&lines()[0], id(FIRST + 1, 1)).await?, Withdrawn::Uncertified);
    Ok(())
}

#[tokio::test]
async fn r6a_a_missing_group_is_treated_as_everywhere() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    // R22: a missing stream is created,
    let nowhere = Line::new("nowhere", Priority::Low);
    let said = bench.redis.withdraw(&nowhere, id(FIRST + 1, 1)).await;
    assert!(matches!(said, Err(Error::NoGroup(_))), "{said:?}");
    assert_eq!(bench.redis.withdraw(&nowhere, id(FIRST + 1, 1)).await?, Withdrawn::Gone);
    // a missing group takes the certificate away.
    bench.destroy_group(0)?;
    let said = bench.redis.withdraw(&lines()[0], id(FIRST + 1, 1)).await;
    assert!(matches!(said, Err(Error::NoGroup(_))), "{said:?}");
    assert!(!bench.redis.state(&[]).await?.certified);
    assert_eq!(bench.length(0)?, 1);
    assert_eq!(bench.redis.withdraw(&lines()[0], id(FIRST + 1, 1)).await?, Withdrawn::Uncertified);
    Ok(())
}

/// What is full is emptied by it, as by what is acknowledged.
#[tokio::test]
async fn r6a_takes_back_from_a_full_redis() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 1).await?;
    bench.server.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    assert_eq!(bench.redis.withdraw(&lines()[0], id(FIRST + 1, 1)).await?, Withdrawn::Unread);
    Ok(())
}

#[tokio::test]
async fn r6a_one_call_is_bounded() -> Result<()> {
    let bench = Bench::certified().await?;
    let max = i32::try_from(WITHDRAWN_MAX)?;
    bench.publish(FIRST + 1, 1_001).await?;
    let asked: Vec<EntryId> = (1..=max + 1).map(|seq| id(FIRST + 1, seq)).collect();
    let said = bench.redis.withdraw_all(&lines()[0], &asked).await;
    assert!(matches!(said, Err(Error::TooMuch { .. })), "{said:?}");
    assert_eq!(bench.length(0)?, 1_001);
    let said = bench.redis.withdraw_all(&lines()[0], &asked[..WITHDRAWN_MAX]).await?;
    assert!(said.iter().all(|said| *said == Withdrawn::Unread));
    assert_eq!(bench.length(0)?, 1);
    assert!(bench.redis.withdraw_all(&lines()[0], &[]).await?.is_empty());
    Ok(())
}
