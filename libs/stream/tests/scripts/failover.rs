//! The certificate fits one history of one server: a restart, a crash and a promotion end it, and following does not.

use anyhow::Result;
use carillon_core::read_plan::Plan;
use carillon_stream::leader::{Announced, Published};
use carillon_stream::{Error, Redis, RedisOptions};
use carillon_testkit::{RespClient, wait_until};

use crate::bench::{Bench, FIRST, PATIENCE, TERM, id, ids, lines};

#[tokio::test]
async fn h4_after_a_crash_the_data_is_back_and_the_certificate_does_not_fit() -> Result<()> {
    let bench = Bench::append_only().await?;
    let before = bench.certify(FIRST, TERM).await?;
    bench.publish(FIRST + 1, 3).await?;
    let reader = bench.reader("one")?;
    reader.read(&Plan::Drain(vec![1, 0])).await?;
    bench.server.kill();
    bench.server.start_again()?;
    bench.back().await?;

    let state = bench.redis.state(&lines()).await?;
    assert_eq!((state.certified, state.term, state.last, state.lengths), (false, TERM, FIRST + 1, vec![3, 0]));
    assert_eq!(bench.publish(FIRST + 2, 1).await?, Published::Uncertified);
    let all = Plan::Drain(vec![9, 9]);
    let read = wait_until("the reader to be back", PATIENCE, || reader.read(&all)).await?;
    assert!(!read.look.certified, "all of it is doubtful");
    assert_eq!(ids(&read), [id(FIRST + 1, 2), id(FIRST + 1, 3)]);

    let standing = bench.challenged(TERM, "red").await?;
    assert_ne!(standing.replid, before.replid);
    assert_eq!((standing.last, standing.doubt), (FIRST + 1, FIRST));
    bench.certify(FIRST + 3, TERM).await?;
    assert_eq!(bench.redis.look().await?.doubt, FIRST + 3);
    assert_eq!(bench.publish(FIRST + 4, 1).await?, Published::Done(vec![4]));
    Ok(())
}

#[tokio::test]
async fn h4_a_restart_in_good_order_ends_the_certificate_too() -> Result<()> {
    let bench = Bench::append_only().await?;
    bench.certify(FIRST, TERM).await?;
    bench.server.stop();
    bench.server.start_again()?;
    bench.back().await?;
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    assert!(matches!(bench.redis.announce(TERM, "red", false).await?, Announced::Challenged(_)));
    Ok(())
}

async fn follow(replica: &mut RespClient, port: u16) -> Result<()> {
    replica.command(&["REPLICAOF", "127.0.0.1", &port.to_string()])?;
    wait_until("the replica to follow", PATIENCE, || {
        let info = replica.command(&["INFO", "replication"]);
        std::future::ready(info.and_then(|info| {
            let text = info.text().unwrap_or_default();
            anyhow::ensure!(text.contains("master_link_status:up"), "{text}");
            Ok(())
        }))
    })
    .await
}

#[tokio::test]
async fn h4_a_promoted_replica_is_uncertified_and_so_is_the_old_master_when_it_comes_back() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])?;
    let server = carillon_testkit::Redis::start().await?;
    server.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])?;
    follow(&mut server.client()?, bench.server.port()).await?;
    // Its first replica gives a master a new history, and so a new id: one certificate more than needed, no harm.
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    bench.certify(FIRST + 2, TERM).await?;
    assert_eq!(bench.publish(FIRST + 3, 1).await?, Published::Done(vec![1]));

    let replica = Redis::connect_lazily(RedisOptions::new(server.url()))?;
    let state = wait_until("the stream to arrive", PATIENCE, || async {
        let state = replica.state(&lines()).await?;
        anyhow::ensure!(state.lengths == [1, 0], "{state:?}");
        Ok(state)
    });
    assert!(state.await?.certified, "while it follows it carries its master's id and certificate");
    let batch = crate::bench::batch(FIRST + 4, 1);
    let refused = replica.publish(FIRST + 4, TERM, &lines()[..1], &batch).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "it is read-only: {refused:?}");

    server.command(&["REPLICAOF", "NO", "ONE"])?;
    wait_until("the promotion", PATIENCE, || async {
        let state = replica.state(&lines()).await?;
        anyhow::ensure!(!state.certified, "{state:?}");
        Ok(())
    })
    .await?;
    assert_eq!(replica.publish(FIRST + 4, TERM, &lines()[..1], &batch).await?, Published::Uncertified);

    // Back again: a third id, so that a certificate of the first reign does not fit the second (run_id would).
    let mut old = bench.server.client()?;
    follow(&mut old, server.port()).await?;
    old.command(&["REPLICAOF", "NO", "ONE"])?;
    bench.back().await?;
    assert_eq!(bench.publish(FIRST + 4, 1).await?, Published::Uncertified);
    assert!(!bench.redis.look().await?.certified);
    Ok(())
}
