//! Who may see and change what: every function on the side of the API, asked by callers of platforms.

use std::time::Duration;

use anyhow::Result;
use carillon_store::idempotency::Key;
use carillon_store::jobs::{self, Job, NewJob, Update};
use carillon_store::page::Slice;
use carillon_store::scan::Place;
use carillon_store::triggers::{self, Triggered};
use carillon_store::{Error, Scope, cancels, executions, idempotency, revisions};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::{Bench, new_job, window};

/// What a function came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Done,
    NotOwn,
    NotFound,
}
use Came::{Done, NotFound, NotOwn};

/// What takes an id, and what comes of it for something global.
const CALLS: [(&str, Came); 13] = [
    ("get", Done),
    ("get_own", NotOwn),
    ("pause", NotOwn),
    ("resume", NotOwn),
    ("update", NotOwn),
    ("trigger", Done),
    ("revisions", Done),
    ("timetable", Done),
    ("executions", Done),
    ("execution", Done),
    ("attempts", Done),
    ("cancel", NotOwn),
    ("delete", NotOwn),
];

/// A job, an execution of it and the job's id.
#[derive(Clone)]
struct Target {
    job: Job,
    execution: Uuid,
}

impl Bench {
    async fn new_of(&self, platform: Option<&str>) -> Result<NewJob> {
        let mut new = new_job(self.now().await?);
        new.definition.platform_id = platform.map(str::to_owned);
        Ok(new)
    }

    async fn target(&self, platform: Option<&str>) -> Result<Target> {
        let job = jobs::create(&self.store, &Scope::ALL, self.new_of(platform).await?, None).await?;
        let execution = self.execution(job.id, self.now().await? + TimeDelta::seconds(30), "QUEUED").await?;
        sqlx::query(
            "INSERT INTO execution_attempts (execution_id, attempt, status, ended_at) VALUES ($1, 1, 'FAILED', now())",
        )
        .bind(execution)
        .execute(&self.pool)
        .await?;
        Ok(Target { job, execution })
    }

    /// Every row that a call could change.
    async fn everything(&self) -> Result<Vec<(String, serde_json::Value)>> {
        let mut all = Vec::new();
        for table in [
            "jobs",
            "job_timers",
            "job_stats",
            "job_revisions",
            "job_attention",
            "job_triggers",
            "job_executions",
            "execution_attempts",
            "idempotency_keys",
            "queues",
        ] {
            let statement = format!("SELECT COALESCE(jsonb_agg(to_jsonb(t) ORDER BY t::text), '[]') FROM {table} t");
            let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.pool).await?;
            all.push((table.to_owned(), rows));
        }
        Ok(all)
    }
}

async fn call(bench: &Bench, scope: &Scope, name: &str, target: &Target) -> Result<(), Error> {
    let (store, job, execution) = (&bench.store, target.job.id, target.execution);
    let none = |what| Error::NotFound { what, id: job };
    match name {
        "get" => jobs::get(store, scope, job).await.map(drop),
        "get_own" => jobs::get_own(store, scope, job).await.map(drop),
        "pause" => jobs::pause(store, scope, job).await.map(drop),
        "resume" => jobs::resume(store, scope, job).await.map(drop),
        "delete" => jobs::delete(store, scope, job).await.map(drop),
        "update" => {
            let mut definition = target.job.definition.clone();
            definition.description = "another one".to_owned();
            // The store is not told by it whose the job is.
            definition.platform_id = scope.home().map(str::to_owned).or(definition.platform_id);
            let update =
                Update { definition, revision: 1, timetable: None, updated_by: String::new(), queues_max: 1_000 };
            jobs::update(store, scope, job, &update).await.map(drop)
        }
        "trigger" => triggers::create(store, scope, &crate::trigger::new(job), None).await.map(drop),
        "revisions" => revisions::list(store, scope, job, Slice { limit: 9, offset: 0 }).await.map(drop),
        "timetable" => revisions::timetable(store, scope, job, 1).await?.map(drop).ok_or(none("job")),
        "executions" => {
            let filter = executions::Filter { job: Some(job), ..executions::Filter::default() };
            executions::list(store, scope, filter, window(9, Place::first(0))).await.map(drop)
        }
        "execution" => executions::get(store, scope, execution).await.map(drop),
        "attempts" => {
            let read = executions::attempts(store, scope, execution).await?;
            read.first().map(drop).ok_or(Error::NotFound { what: "execution", id: execution })
        }
        "cancel" => cancels::cancel(store, scope, execution, "").await.map(drop),
        unknown => panic!("{unknown}"),
    }
}

/// What came of a call that may be refused for whose its target is, and for nothing else. What is refused says no more than its
/// id.
async fn came(bench: &Bench, scope: &Scope, name: &str, target: &Target) -> Came {
    match call(bench, scope, name, target).await {
        Ok(()) => Done,
        Err(Error::NotFound { what, id }) => {
            let asked = if what == "job" { target.job.id } else { target.execution };
            assert_eq!((id, ["job", "execution"].contains(&what)), (asked, true), "{name}");
            NotFound
        }
        Err(Error::NotOwn { .. }) => NotOwn,
        Err(other) => panic!("{name}: {other}"),
    }
}

#[tokio::test]
async fn what_is_of_another_platform_is_not_there_and_what_is_global_is_read_and_triggered_only() -> Result<()> {
    let bench = Bench::new().await?;
    let (own, global, other) =
        (bench.target(Some("p")).await?, bench.target(None).await?, bench.target(Some("q")).await?);
    let unknown = Target { job: Job { id: Uuid::from_u128(7), ..own.job.clone() }, execution: Uuid::from_u128(8) };
    let scope = Scope::of(["p"]);
    let before = bench.everything().await?;
    for (name, of_global) in CALLS {
        assert_eq!(came(&bench, &scope, name, &other).await, NotFound, "{name} of another platform's");
        assert_eq!(came(&bench, &scope, name, &unknown).await, NotFound, "{name} of nothing");
        if of_global == NotOwn {
            assert_eq!(came(&bench, &scope, name, &global).await, NotOwn, "{name} of a global one");
        }
    }
    assert_eq!(bench.everything().await?, before, "nothing was changed");
    for (name, of_global) in CALLS {
        assert_eq!(came(&bench, &scope, name, &own).await, Done, "{name} of its own");
        assert_eq!(came(&bench, &Scope::ALL, name, &other).await, Done, "{name} of whatever it is");
        if of_global == Done {
            assert_eq!(came(&bench, &scope, name, &global).await, Done, "{name} of a global one");
        }
    }
    Ok(())
}

/// Callers who are known may be of several, or of none.
#[tokio::test]
async fn a_caller_of_several_platforms_changes_all_of_theirs_and_one_of_none_reads_what_is_global() -> Result<()> {
    let bench = Bench::new().await?;
    let targets = [
        bench.target(Some("p")).await?,
        bench.target(Some("q")).await?,
        bench.target(Some("r")).await?,
        bench.target(None).await?,
    ];
    for (scope, expected) in [
        (Scope::of(["p", "q"]), [Done, Done, NotFound, NotOwn]),
        (Scope::of(Vec::<String>::new()), [NotFound, NotFound, NotFound, NotOwn]),
    ] {
        for (target, expected) in targets.iter().zip(expected) {
            assert_eq!(came(&bench, &scope, "pause", target).await, expected);
            assert_eq!(came(&bench, &scope, "cancel", target).await, expected);
            let read = if expected == NotOwn { Done } else { expected };
            assert_eq!(came(&bench, &scope, "get", target).await, read);
        }
    }
    Ok(())
}

#[tokio::test]
async fn lists_hold_what_is_own_and_what_is_global() -> Result<()> {
    let bench = Bench::new().await?;
    let (own, global, other) =
        (bench.target(Some("p")).await?, bench.target(None).await?, bench.target(Some("q")).await?);
    // One of each that no leader has claimed yet.
    let mut waiting = Vec::new();
    for target in [&own, &global, &other] {
        let trigger = crate::trigger::new(target.job.id);
        waiting.push(triggers::create(&bench.store, &Scope::ALL, &trigger, None).await?.execution.id);
    }
    let (one, first) = (Scope::of(["p"]), || window(9, Place::first(0)));
    let listed = async |scope: &Scope, platform_id: Option<&str>| -> Result<(Vec<Uuid>, Vec<Uuid>)> {
        let filter = jobs::Filter { platform_id, ..jobs::Filter::default() };
        let jobs = jobs::list(&bench.store, scope, filter, first()).await?.items;
        let filter = executions::Filter { platform_id, ..executions::Filter::default() };
        let executions = executions::list(&bench.store, scope, filter, first()).await?.items;
        let mut found = (
            jobs.into_iter().map(|job| job.id).collect::<Vec<_>>(),
            executions.into_iter().map(|execution| execution.id).collect::<Vec<_>>(),
        );
        found.0.sort_unstable();
        found.1.sort_unstable();
        Ok(found)
    };
    let of = |targets: &[(&Target, Uuid)]| {
        let mut jobs: Vec<Uuid> = targets.iter().map(|(target, _)| target.job.id).collect();
        let mut executions: Vec<Uuid> =
            targets.iter().flat_map(|(target, waiting)| [target.execution, *waiting]).collect();
        jobs.sort_unstable();
        executions.sort_unstable();
        (jobs, executions)
    };
    let (own, global, other) = ((&own, waiting[0]), (&global, waiting[1]), (&other, waiting[2]));
    assert_eq!(listed(&one, None).await?, of(&[own, global]));
    assert_eq!(listed(&one, Some("p")).await?, of(&[own]));
    assert_eq!(listed(&one, Some("q")).await?, of(&[]));
    assert_eq!(listed(&Scope::of(["p", "q"]), None).await?, of(&[own, global, other]));
    assert_eq!(listed(&Scope::of(Vec::<String>::new()), None).await?, of(&[global]));
    assert_eq!(listed(&Scope::ALL, None).await?, of(&[own, global, other]));
    Ok(())
}

#[tokio::test]
async fn nothing_is_made_for_a_platform_that_is_not_its_makers() -> Result<()> {
    let bench = Bench::new().await?;
    let (store, scope) = (&bench.store, Scope::of(["p"]));
    let key = |platform: Option<&str>| Key {
        space: "job".to_owned(),
        platform: platform.map(str::to_owned),
        key: "k".to_owned(),
        fingerprint: vec![1],
    };
    let before = bench.everything().await?;
    for platform in [None, Some("q")] {
        let (foreign, own) = (bench.new_of(platform).await?, bench.new_of(Some("p")).await?);
        let both = [own, foreign.clone()];
        let refused = [
            jobs::check_new(store, &scope, &foreign).await.err(),
            jobs::create(store, &scope, foreign.clone(), None).await.err(),
            jobs::check_many(store, &scope, &both).await.err(),
            jobs::create_many(store, &scope, &both, true, None, |_| Vec::new()).await.err(),
            jobs::create_many(store, &scope, &both[..1], true, Some(&key(platform)), |_| Vec::new()).await.err(),
            idempotency::begin(store, &scope, Some(&key(platform))).await.err(),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            assert!(matches!(refused, Some(Error::NotOwn { .. })), "{at}: {refused:?}");
        }
    }
    assert_eq!(bench.everything().await?, before);
    let own = jobs::create(store, &scope, bench.new_of(Some("p")).await?, Some(&key(Some("p")))).await?;
    let again = jobs::create(store, &scope, bench.new_of(Some("p")).await?, Some(&key(Some("p")))).await?;
    assert_eq!(own.id, again.id);

    // Nor is anything given away.
    let mut update =
        Update { definition: own.definition, revision: 1, timetable: None, updated_by: String::new(), queues_max: 9 };
    update.definition.platform_id = Some("q".to_owned());
    let given = jobs::update(store, &scope, own.id, &update).await;
    assert!(matches!(given, Err(Error::NotOwn { .. })), "{given:?}");
    Ok(())
}

/// Neither a job's own key nor that of a request says what other platforms have.
#[tokio::test]
async fn keys_of_different_platforms_do_not_meet() -> Result<()> {
    let bench = Bench::new().await?;
    let mut made = Vec::new();
    for platform in ["p", "q"] {
        let mut new = bench.new_of(Some(platform)).await?;
        new.definition.key = Some("nightly".to_owned());
        let key = Key {
            space: "job".to_owned(),
            platform: Some(platform.to_owned()),
            key: "k".to_owned(),
            fingerprint: platform.as_bytes().to_vec(),
        };
        made.push(jobs::create(&bench.store, &Scope::of([platform]), new, Some(&key)).await?.id);
    }
    assert_ne!(made[0], made[1]);
    Ok(())
}

#[tokio::test]
async fn what_a_trigger_makes_of_a_global_job_is_of_whoever_asked() -> Result<()> {
    let bench = Bench::new().await?;
    let (global, own) = (bench.target(None).await?, bench.target(Some("p")).await?);
    let (p, q) = (Scope::of(["p"]), Scope::of(["q"]));
    let fire = async |scope: &Scope, job: Uuid, content: &str| -> Result<Triggered, Error> {
        let key = Key {
            space: format!("trigger/{job}"),
            platform: None,
            key: "k".to_owned(),
            fingerprint: content.as_bytes().to_vec(),
        };
        triggers::create(&bench.store, scope, &crate::trigger::new(job), Some(&key)).await
    };
    // One request_id, three callers with different requests: none hears of another's.
    let of_p = fire(&p, global.job.id, "p").await?.execution;
    let of_q = fire(&q, global.job.id, "q").await?.execution;
    let of_all = fire(&Scope::ALL, global.job.id, "all").await?.execution;
    let platforms = [&of_p, &of_q, &of_all].map(|execution| execution.platform_id.as_deref());
    assert_eq!(platforms, [Some("p"), Some("q"), None]);
    for (scope, first, content) in [(&p, &of_p, "p"), (&q, &of_q, "q"), (&Scope::ALL, &of_all, "all")] {
        let again = fire(scope, global.job.id, content).await?;
        assert_eq!((again.execution, again.due), (first.clone(), None), "the same request again");
        assert_eq!(executions::get(&bench.store, scope, first.id).await?, *first, "answered as it would be read");
    }
    assert!(matches!(fire(&q, global.job.id, "p").await, Err(Error::KeyReused { .. })));
    // Nor of what came of it.
    let hidden = executions::get(&bench.store, &q, of_p.id).await;
    assert!(matches!(hidden, Err(Error::NotFound { what: "execution", .. })), "{hidden:?}");
    let filter = executions::Filter { job: Some(global.job.id), ..executions::Filter::default() };
    let seen = executions::list(&bench.store, &q, filter, window(9, Place::first(0))).await?.items;
    let mut seen: Vec<Uuid> = seen.into_iter().map(|execution| execution.id).collect();
    let mut expected = vec![of_q.id, of_all.id, global.execution];
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
    // It is theirs to stop.
    assert!(cancels::cancel(&bench.store, &q, of_p.id, "").await.is_err());
    let stopped = cancels::cancel(&bench.store, &p, of_p.id, "").await?.execution;
    assert_eq!(stopped.platform_id.as_deref(), Some("p"));

    // A job of a platform has one space of keys, whoever of those that may see it asks.
    let first = fire(&p, own.job.id, "x").await?.execution;
    assert_eq!(
        (fire(&Scope::ALL, own.job.id, "x").await?.execution, first.platform_id.as_deref()),
        (first.clone(), Some("p"))
    );
    assert!(matches!(fire(&q, own.job.id, "y").await, Err(Error::NotFound { what: "job", .. })));
    Ok(())
}

/// It would tell of itself by the time that an answer takes, and could be held up.
#[tokio::test]
async fn nobody_waits_for_what_another_platform_has_locked() -> Result<()> {
    let bench = Bench::new().await?;
    let other = bench.target(Some("q")).await?;
    let mut holder = bench.pool.begin().await?;
    sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE").bind(other.job.id).execute(&mut *holder).await?;
    sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE")
        .bind(other.execution)
        .execute(&mut *holder)
        .await?;
    for (name, _) in CALLS {
        let scope = Scope::of(["p"]);
        let asked = came(&bench, &scope, name, &other);
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), asked).await?, NotFound, "{name}");
    }
    Ok(())
}
