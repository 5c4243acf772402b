//! R2: what counts as an answer of Redis, for whoever leads or wants to.

use anyhow::Result;
use carillon_stream::{Error, Redis, RedisOptions};
use carillon_testkit::wait_until;

use crate::bench::{Bench, FIRST, PATIENCE, TERM, lines};

async fn published(bench: &Bench) -> Result<Error> {
    let published = bench.publish(FIRST + 1, 1).await;
    let Err(error) = published else { anyhow::bail!("{published:?}") };
    error.downcast::<Error>()
}

#[tokio::test]
async fn r2_a_full_redis_answers() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    let refused = published(&bench).await?;
    assert!(refused.is_answer(), "{refused:?}");
    assert!(bench.redis.state(&lines()).await?.certified, "and is asked as before");
    Ok(())
}

/// The client connects anew when it meets one: so the next question may find the master.
#[tokio::test]
async fn r2_a_replica_that_writes_nothing_has_not_answered() -> Result<()> {
    let bench = Bench::certified().await?;
    let master = carillon_testkit::Redis::start().await?;
    bench.server.command(&["REPLICAOF", "127.0.0.1", &master.port().to_string()])?;
    let refused = bench.redis.announce(TERM + 1, "red", true).await;
    assert!(refused.as_ref().is_err_and(|error| !error.is_answer()), "READONLY: {refused:?}");
    bench.server.command(&["CONFIG", "SET", "replica-serve-stale-data", "no"])?;
    master.kill();
    let error = wait_until("the link to break", PATIENCE, || async {
        match bench.redis.state(&lines()).await {
            Err(error) => Ok(error),
            Ok(state) => Err(format!("{state:?}")),
        }
    })
    .await?;
    assert!(!error.is_answer(), "MASTERDOWN: {error:?}");
    Ok(())
}

#[tokio::test]
async fn r2_a_redis_that_is_gone_or_lets_nobody_in_does_not_answer() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.server.command(&["CONFIG", "SET", "requirepass", "secret"])?;
    let outside = Redis::connect_lazily(RedisOptions::new(bench.server.url()))?;
    for redis in [&outside, &bench.redis] {
        if !std::ptr::eq(redis, &outside) {
            bench.server.kill();
        }
        let state = redis.state(&lines()).await;
        assert!(state.as_ref().is_err_and(|error| !error.is_answer()), "{state:?}");
    }
    Ok(())
}
