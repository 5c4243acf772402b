//! What Postgres plans for statements that name executions by id, by its own account (`auto_explain`, as notices to whoever
//! runs the statement): with 400 partitions the same as with 8, and never any partition but those of the ids.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_store::claim::Decisions;
use carillon_store::open_entries::Batch;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::workers::Locked;
use carillon_store::{Store, cancels, executions};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::bench::{Bench, LEASE, finished, incarnation, medium, one_each, retry_at, room, started};
use crate::days::make_days;
use crate::partitions::{Calendar, today};

const TABLES: [&str; 3] = ["job_executions", "execution_attempts", "job_execution_logs"];

/// Notices, as the driver tells of them.
#[derive(Clone, Default)]
struct Notices(Arc<Mutex<Vec<String>>>);

impl Subscriber for Notices {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.target() == "sqlx::postgres::notice"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Visit for Notices {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.record_text(format!("{value:?}"));
    }

    fn record_str(&mut self, _: &Field, value: &str) {
        self.record_text(value.to_owned());
    }
}

impl Notices {
    fn record_text(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// The plans of what has run since.
    fn take(&self) -> Result<Vec<Value>> {
        let texts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let plans = texts.iter().filter_map(|text| text.split_once("plan:\n"));
        plans.map(|(_, plan)| serde_json::from_str(plan).context("a plan")).collect()
    }
}

/// What is said of `key` anywhere in a plan.
fn all_of<'p>(plan: &'p Value, key: &str, found: &mut Vec<&'p Value>) {
    match plan {
        Value::Object(fields) => {
            found.extend(fields.get(key));
            fields.values().for_each(|value| all_of(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|item| all_of(item, key, found)),
        _ => {}
    }
}

/// What each step's plans name of the three tables, however often.
#[derive(Debug, Default, PartialEq)]
struct Planned(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Planned {
    fn add(&mut self, step: &'static str, plans: &[Value]) {
        let (mut names, mut removed) = (Vec::new(), Vec::new());
        for plan in plans {
            all_of(plan, "Relation Name", &mut names);
            all_of(plan, "Subplans Removed", &mut removed);
        }
        assert!(removed.iter().all(|removed| **removed == 0), "{step} plans for what it does not need: {plans:?}");
        let named = self.0.entry(step).or_default();
        let names = names.iter().filter_map(|name| name.as_str());
        for name in names.filter(|name| TABLES.iter().any(|table| name.starts_with(table))) {
            *named.entry(name.to_owned()).or_default() += 1;
        }
    }
}

/// A database with so many partitions of executions beside the default one, where each session tells of its plans.
async fn explained(partitions: i64) -> Result<Bench> {
    let bench = Bench::new().await?;
    // The template has four, of yesterday until the day after tomorrow.
    make_days(&bench, "job_executions", 2..partitions - 2).await?;
    let there: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_inherits WHERE inhparent = 'job_executions'::regclass")
            .fetch_one(&bench.pool)
            .await?;
    assert_eq!(there, partitions + 1);
    for setting in [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_level = 'notice'",
        "auto_explain.log_format = 'json'",
    ] {
        let set = format!("ALTER DATABASE \"{}\" SET {setting}", bench.database.name());
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&bench.pool).await?;
    }
    Ok(bench)
}

/// Runs every statement that names executions by id.
async fn planned(partitions: i64) -> Result<(Planned, Calendar)> {
    let bench = explained(partitions).await?;
    // All tasks of this test are on this thread.
    let notices = Notices::default();
    let _listening = tracing::subscriber::set_default(notices.clone());
    let mut planned = Planned::default();
    let (store, gateway) = (&bench.store, Store::connect_lazily(&bench.options("gateway"))?);
    let (worker, successor) = (bench.live_worker().await?, incarnation("live"));
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(6).await?;
    let due = bench.now().await?;
    sqlx::query("UPDATE job_timers SET fire_at = $1").bind(due).execute(&bench.pool).await?;
    let mut step = |name| notices.take().map(|plans| planned.add(name, &plans));
    step("before")?;

    let claim = leader.claim(&[room(Source::Timer, &medium(), 100)], due, &[]).await?;
    let (number, decisions) = (claim.number, one_each(&claim.timers));
    let born = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(born.len(), jobs.len());
    step("born")?;
    leader.settle(&[number]).await?;
    let batch = Batch { number, ids: born.clone() };
    let open = leader.open_of_batches(&[batch], None).await?;
    step("open")?;
    let again = leader.draw_number().await?;
    let open: Vec<_> = open.into_iter().map(|(entry, _)| entry).collect();
    assert_eq!(leader.republish(again, 1, &open, LEASE).await?.len(), 6);
    step("republish")?;

    let held: Vec<_> = born.iter().map(|id| Held { execution: *id, claim: number, take: 0 }).collect();
    let seen = store.see(&born, LEASE).await?;
    assert_eq!(seen.len(), 6);
    step("see")?;
    assert_eq!(store.payloads(&born).await?.len(), 6);
    step("payloads")?;
    let wanted = [5].map(|at: usize| (born[at], seen[&born[at]].clone(), false));
    assert_eq!(store.take(worker, &wanted).await?.len(), 1);
    step("take")?;
    store.record(worker, &[started(held[0]), started(held[1])], &[], &[]).await?;
    step("running")?;
    let ends = [finished(held[0], Status::Success), finished(held[1], Status::Retrying)];
    let (_, verdicts) = store.record(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success), Verdict::Recorded(Status::Retrying)]);
    step("finish")?;
    let ends = [finished(held[2], Status::Success), finished(held[3], Status::Failed)];
    let (_, verdicts) = store.record_unlocked(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success), Verdict::Recorded(Status::Failed)]);
    step("finish what is not locked")?;
    assert!(store.last_success(bench.job_of(born[0]).await?).await?.is_some());
    step("last success")?;
    let taken = [started(Held { take: 1, ..held[5] })];
    assert_eq!(store.worker_succeed(worker, &successor, &taken, Locked::WaitedFor).await?.kept, [born[5]]);
    step("succeed")?;
    store.release(&held[4..5]).await?;
    step("release")?;

    let claim = leader.claim(&[room(Source::Retry, &medium(), 100)], retry_at(), &[]).await?;
    let retries: Vec<_> = claim.retries.iter().zip(1..).map(|(retry, seq)| (*retry, seq)).collect();
    assert_eq!(claim.commit(1, &Decisions { retries, ..Decisions::default() }, &[]).await?.retried.len(), 1);
    step("retry")?;

    executions::get(&gateway, born[1]).await?;
    step("get")?;
    executions::attempts(&gateway, born[1]).await?;
    step("attempts")?;
    assert!(cancels::cancel(&gateway, born[1], "").await?.asked);
    step("cancel")?;
    Ok((planned, today(&bench.pool).await?))
}

#[tokio::test]
async fn what_names_executions_is_planned_with_400_partitions_as_with_8_for_those_of_its_days_alone() -> Result<()> {
    let (few, days) = planned(8).await?;
    let (many, _) = planned(400).await?;
    assert_eq!(few, many);
    for (step, named) in &few.0 {
        assert_eq!(named.is_empty(), *step == "before", "{step}: {named:?}");
        for name in named.keys() {
            let is_of_today = TABLES.iter().any(|table| *name == days.partition(table, 0));
            // What is born is routed to its partition.
            assert!(is_of_today || TABLES.contains(&name.as_str()), "{step} is planned for {name}");
        }
    }
    Ok(())
}
