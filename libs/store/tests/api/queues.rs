//! Names of queues: how many there may be, under concurrency too, and when one leaves.

use anyhow::Result;
use carillon_store::jobs::{self, Job, NewJob};
use carillon_store::{Error, Scope, idempotency, queues};
use futures_util::future::join_all;

use crate::bench::{Bench, key, new_job};

impl Bench {
    async fn in_queue(&self, queue: &str, queues_max: u32) -> Result<NewJob> {
        let mut new = new_job(self.now().await?);
        new.queues_max = queues_max;
        queue.clone_into(&mut new.definition.queue);
        Ok(new)
    }

    async fn create_in(&self, queue: &str, queues_max: u32) -> Result<Result<Job, Error>> {
        Ok(jobs::create(&self.store, &Scope::ALL, self.in_queue(queue, queues_max).await?, None).await)
    }

    async fn names(&self) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar("SELECT name FROM queues ORDER BY name").fetch_all(&self.pool).await?)
    }
}

#[tokio::test]
async fn one_name_too_many_is_refused_and_known_names_go_on() -> Result<()> {
    let bench = Bench::new().await?;
    for queue in ["a", "b", "a"] {
        bench.create_in(queue, 2).await??;
    }
    let refused = jobs::create(&bench.store, &Scope::ALL, bench.in_queue("c", 2).await?, Some(&key("k", "x"))).await;
    assert!(matches!(&refused, Err(Error::QueuesExhausted { queue, queues_max: 2 }) if queue == "c"), "{refused:?}");
    assert_eq!(bench.names().await?, ["a", "b"]);
    assert_eq!(
        idempotency::begin(&bench.store, &Scope::ALL, Some(&key("k", "x"))).await?.known,
        None,
        "nothing is left of it"
    );
    bench.create_in("b", 2).await??;
    bench.create_in("b", 1).await??;
    bench.create_in("c", 3).await??;
    assert_eq!(bench.count("jobs").await?, 6);
    Ok(())
}

/// Ten gateways, ten new names, three places.
#[tokio::test]
async fn at_once_no_more_get_in_than_there_is_room_for() -> Result<()> {
    let bench = Bench::new().await?;
    bench.create_in("known", 4).await??;
    let names: Vec<String> = (0..10).map(|number| format!("q{number}")).collect();
    let creating = names.iter().chain(&names).map(|queue| bench.create_in(queue, 4));
    let mut made = 0_i64;
    for outcome in join_all(creating).await {
        match outcome? {
            Ok(_) => made += 1,
            Err(Error::QueuesExhausted { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    let names = bench.names().await?;
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(made, 6, "both of each name that got in");
    assert_eq!(bench.count("jobs").await?, 7);
    Ok(())
}

#[tokio::test]
async fn a_name_leaves_once_no_job_has_used_it_for_a_day() -> Result<()> {
    let bench = Bench::new().await?;
    for queue in ["used", "deleted", "long_deleted", "new"] {
        let job = bench.create_in(queue, 9).await??;
        if queue != "used" {
            jobs::delete(&bench.store, &Scope::ALL, job.id).await?;
        }
    }
    sqlx::query("UPDATE queues SET created_at = now() - interval '2 days' WHERE name <> 'new'")
        .execute(&bench.pool)
        .await?;
    sqlx::query("UPDATE jobs SET cancelled_at = now() - interval '25 hours' WHERE queue IN ('long_deleted', 'new')")
        .execute(&bench.pool)
        .await?;
    assert_eq!(queues::forget_unused(&bench.store).await?, 1);
    assert_eq!(bench.names().await?, ["deleted", "new", "used"]);
    assert_eq!(queues::forget_unused(&bench.store).await?, 0);
    Ok(())
}

/// A name that is being forgotten while a job is created in it is there afterwards.
#[tokio::test]
async fn whoever_forgets_and_whoever_names_do_not_miss_each_other() -> Result<()> {
    let bench = Bench::new().await?;
    for _ in 0..20 {
        sqlx::query("INSERT INTO queues VALUES ('q', now() - interval '2 days') ON CONFLICT DO NOTHING")
            .execute(&bench.pool)
            .await?;
        sqlx::query("UPDATE jobs SET cancelled_at = now() - interval '2 days', status = 'CANCELLED'")
            .execute(&bench.pool)
            .await?;
        let (created, forgotten) = tokio::join!(bench.create_in("q", 1), queues::forget_unused(&bench.store));
        forgotten?;
        created??;
        assert_eq!(bench.names().await?, ["q"]);
    }
    Ok(())
}
