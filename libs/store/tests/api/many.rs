//! Creating many jobs at once.

use anyhow::{Result, bail};
use carillon_core::job::JobType;
use carillon_store::idempotency::Key;
use carillon_store::jobs::{self, Many, NewJob};
use carillon_store::{Error, Scope, idempotency};
use serde_json::json;
use uuid::Uuid;

use crate::bench::{Bench, key, new_job};

const TABLES: [&str; 6] = ["jobs", "job_timers", "job_stats", "job_revisions", "queues", "idempotency_keys"];

impl Bench {
    async fn jobs(&self, count: usize) -> Result<Vec<NewJob>> {
        let now = self.now().await?;
        Ok((0..count).map(|_| new_job(now)).collect())
    }

    /// Jobs of these keys; an empty one is none.
    async fn keyed(&self, keys: &[&str]) -> Result<Vec<NewJob>> {
        let mut jobs = self.jobs(keys.len()).await?;
        for (job, key) in jobs.iter_mut().zip(keys) {
            job.definition.key = Some((*key).to_owned()).filter(|key| !key.is_empty());
        }
        Ok(jobs)
    }

    async fn counts(&self) -> Result<Vec<i64>> {
        let mut counts = Vec::new();
        for table in TABLES {
            counts.push(self.count(table).await?);
        }
        Ok(counts)
    }

    async fn create_many(&self, jobs: &[NewJob], each: bool, key: Option<&Key>) -> Result<Many, Error> {
        let answer = |outcomes: &[Result<(), Error>]| words(outcomes).join(",").into_bytes();
        jobs::create_many(&self.store, &Scope::ALL, jobs, each, key, answer).await
    }

    /// What was decided of each.
    async fn decided(&self, jobs: &[NewJob], each: bool, key: Option<&Key>) -> Result<Vec<String>> {
        match self.create_many(jobs, each, key).await? {
            Many::Decided(outcomes) => Ok(words(&outcomes)),
            Many::Repeated(answer) => bail!("repeated: {}", String::from_utf8_lossy(&answer)),
        }
    }
}

fn words(outcomes: &[Result<(), Error>]) -> Vec<String> {
    let word = |outcome: &Result<(), Error>| match outcome {
        Ok(()) => "created".to_owned(),
        Err(Error::AlreadyExists { id, .. }) => format!("taken by {id}"),
        Err(Error::QueuesExhausted { queue, queues_max }) => format!("{queue} beyond {queues_max}"),
        Err(other) => other.to_string(),
    };
    outcomes.iter().map(word).collect()
}

/// In each column, whatever it holds.
#[tokio::test]
async fn each_is_as_if_it_had_been_created_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let mut jobs = bench.jobs(4).await?;
    jobs[1].definition.payload = json!({"big": [1.0e300, -0.0, 0.1], "text": "ä\u{1f514}\\\""});
    jobs[1].definition.platform_id = None;
    jobs[2].definition.job_type = JobType::Event;
    jobs[2].fire_at = None;
    jobs[2].definition.tags = vec!["with, comma".to_owned(), "{brace}".to_owned()];
    jobs[3].fire_at = None;
    jobs[3].definition.queue = "fast".to_owned();
    assert_eq!(bench.decided(&jobs, false, None).await?, ["created"; 4]);
    let exhausted: Vec<Uuid> = sqlx::query_scalar("SELECT job_id FROM job_attention").fetch_all(&bench.pool).await?;
    assert_eq!(exhausted, [jobs[3].id], "one without an instant is looked at, unless it waits for events");
    for job in jobs {
        let twin = NewJob { id: new_job(job.created_at).id, ..job.clone() };
        jobs::create(&bench.store, &Scope::ALL, twin.clone(), None).await?;
        assert_eq!(jobs::get(&bench.store, &Scope::ALL, job.id).await?, job.clone().into_job());
        for table in ["job_timers", "job_stats", "job_revisions"] {
            let statement = format!("SELECT to_jsonb(t) - 'job_id' - 'shard' FROM {table} t WHERE job_id = ANY ($1)");
            let rows: Vec<serde_json::Value> = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
                .bind([job.id, twin.id])
                .fetch_all(&bench.pool)
                .await?;
            assert!(rows.len() == 2 && rows[0] == rows[1], "{table}: {rows:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn all_or_none_and_who_is_refused_is_named() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.keyed(&["a", "b"]).await?;
    assert_eq!(bench.decided(&held, false, None).await?, ["created", "created"]);
    let before = bench.counts().await?;
    let mut more = bench.keyed(&["", "b", "c", "a", "d"]).await?;
    for (queue, index) in [("new", 0), ("newer", 2), ("newest", 4)] {
        queue.clone_into(&mut more[index].definition.queue);
    }
    more[3].definition.platform_id = Some("another".to_owned());
    for job in &mut more {
        job.queues_max = 3;
    }
    let expected = ["created".to_owned(), format!("taken by {}", held[1].id), "created".to_owned()];
    let expected = [&expected[..], &["created".to_owned(), "newest beyond 3".to_owned()]].concat();
    let checked = jobs::check_many(&bench.store, &Scope::ALL, &more).await?;
    assert_eq!(words(&checked), expected, "the key is free on another platform");
    assert_eq!(bench.decided(&more, false, Some(&key("k", "x"))).await?, expected);
    assert_eq!(bench.counts().await?, before, "nothing is left of it, not even its idempotency key");

    assert_eq!(bench.decided(&more, true, Some(&key("k", "x"))).await?, expected);
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM queues ORDER BY name").fetch_all(&bench.pool).await?;
    assert_eq!(names, ["new", "newer", "slow"]);
    for (job, is_there) in more.iter().zip([true, false, true, true, false]) {
        assert_eq!(jobs::get(&bench.store, &Scope::ALL, job.id).await.is_ok(), is_there, "{:?}", job.definition.key);
    }
    Ok(())
}

/// A global job's key is one of its own.
#[tokio::test]
async fn keys_of_global_jobs_and_of_deleted_ones() -> Result<()> {
    let bench = Bench::new().await?;
    let mut global = bench.keyed(&["a", "a"]).await?;
    global[0].definition.platform_id = None;
    assert_eq!(bench.decided(&global, true, None).await?, ["created", "created"]);
    let mut again = bench.keyed(&["a", "a"]).await?;
    again[0].definition.platform_id = None;
    let taken: Vec<String> = global.iter().map(|job| format!("taken by {}", job.id)).collect();
    assert_eq!(bench.decided(&again, true, None).await?, taken);
    jobs::delete(&bench.store, &Scope::ALL, global[1].id).await?;
    assert_eq!(bench.decided(&again, true, None).await?, [taken[0].as_str(), "created"]);
    Ok(())
}

/// A job that was not written leaves no name of a queue behind.
#[tokio::test]
async fn a_queue_that_only_refused_jobs_named_is_not_kept() -> Result<()> {
    let bench = Bench::new().await?;
    bench.decided(&bench.keyed(&["a"]).await?, false, None).await?;
    let mut jobs = bench.keyed(&["a", ""]).await?;
    jobs[0].definition.queue = "never".to_owned();
    let decided = bench.decided(&jobs, true, None).await?;
    assert!(decided[0].starts_with("taken by") && decided[1] == "created", "{decided:?}");
    assert_eq!(bench.count("queues").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_repetition_has_the_same_answer_and_creates_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.keyed(&["a"]).await?;
    bench.decided(&held, false, None).await?;
    let key_x = key("k", "x");
    let answer = format!("created,taken by {}", held[0].id).into_bytes();
    assert!(idempotency::begin(&bench.store, &Scope::ALL, Some(&key_x)).await?.known.is_none());
    bench.decided(&bench.keyed(&["", "a"]).await?, true, Some(&key_x)).await?;
    let before = bench.counts().await?;
    jobs::delete(&bench.store, &Scope::ALL, held[0].id).await?;
    let again = bench.create_many(&bench.keyed(&["", "a"]).await?, true, Some(&key_x)).await?;
    assert!(matches!(again, Many::Repeated(kept) if kept == answer));
    assert_eq!(idempotency::begin(&bench.store, &Scope::ALL, Some(&key_x)).await?.answer, Some(answer));
    let other = bench.create_many(&bench.jobs(1).await?, true, Some(&key("k", "y"))).await;
    assert!(matches!(other, Err(Error::KeyReused { .. })), "{other:?}");
    assert_eq!(bench.counts().await?, before);
    let none = bench.decided(&[], true, Some(&key("n", "x"))).await?;
    assert!(none.is_empty(), "all of its jobs were refused before");
    Ok(())
}

#[tokio::test]
async fn of_many_requests_with_one_key_at_once_one_creates_them() -> Result<()> {
    let bench = Bench::new().await?;
    let (jobs, key) = (bench.jobs(20).await?, key("k", "x"));
    let creating = (0..6).map(|_| bench.create_many(&jobs, false, Some(&key)));
    let mut created = 0;
    for outcome in futures_util::future::join_all(creating).await {
        match outcome? {
            Many::Decided(outcomes) => created += outcomes.len(),
            Many::Repeated(answer) => assert_eq!(answer, ["created"; 20].join(",").into_bytes()),
        }
    }
    assert_eq!((created, bench.count("jobs").await?), (20, 20));
    Ok(())
}

/// None waits for one that waits for it, in whatever order each of them names the keys.
#[tokio::test]
async fn of_many_that_take_the_same_keys_at_once_each_key_goes_to_one() -> Result<()> {
    let bench = Bench::new().await?;
    let keys: Vec<String> = (0..200).map(|number| format!("key {number}")).collect();
    let mut forwards: Vec<&str> = keys.iter().map(String::as_str).collect();
    let first = bench.keyed(&forwards).await?;
    let third = bench.keyed(&forwards).await?;
    forwards.reverse();
    let second = bench.keyed(&forwards).await?;
    let creating = [&first, &second, &third].map(|jobs| bench.create_many(jobs, true, None));
    let mut created = 0;
    for outcome in futures_util::future::join_all(creating).await {
        let Many::Decided(outcomes) = outcome? else { bail!("repeated") };
        created += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert!(words(&outcomes).iter().all(|word| word == "created" || word.starts_with("taken by ")));
    }
    assert_eq!((created, bench.count("jobs").await?), (200, 200));
    Ok(())
}

#[tokio::test]
async fn a_thousand_are_created_within_one_statements_time() -> Result<()> {
    let bench = Bench::new().await?;
    let mut jobs = bench.jobs(1_000).await?;
    for job in &mut jobs {
        job.definition.payload = json!({"text": "x".repeat(7_000)});
    }
    assert!(bench.decided(&jobs, false, None).await?.iter().all(|word| word == "created"));
    for table in ["jobs", "job_timers", "job_stats", "job_revisions"] {
        assert_eq!(bench.count(table).await?, 1_000, "{table}");
    }
    Ok(())
}

/// A failure leaves nothing half-created.
#[tokio::test]
async fn a_refused_row_leaves_nothing_of_all() -> Result<()> {
    let bench = Bench::new().await?;
    let mut jobs = bench.jobs(3).await?;
    jobs[1].definition.timeout_ms = 0;
    assert!(bench.create_many(&jobs, true, Some(&key("k", "x"))).await.is_err());
    assert_eq!(bench.counts().await?, [0; 6]);
    Ok(())
}
