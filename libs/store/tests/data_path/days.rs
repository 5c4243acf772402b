//! Statements that name executions lock the partitions of their days alone, of all that there are.

use std::time::Duration;

use anyhow::{Context, Result};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::claim::Decisions;
use carillon_store::leader_session::LeaderSession;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::takes::Release;
use carillon_store::workers::Locked;
use carillon_store::{Scope, cancels, executions, jobs, revisions};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, LEASE, all_lost, finished, incarnation, medium, retry_at, room, started};

/// Makes partitions until there are those of `back` days.
pub(crate) async fn make_days(bench: &Bench, table: &str, back: impl Iterator<Item = i64>) -> Result<()> {
    for back in back {
        let day = midnight(bench, back).await?;
        let made: String = sqlx::query_scalar("SELECT carillon.make_partition($1, $2, $3, $4)")
            .bind(table)
            .bind(format!("{table}_{}", day.format("%Y_%m_%d")))
            .bind(ids::first_at(day))
            .bind(ids::first_at(day + TimeDelta::days(1)))
            .fetch_one(&bench.pool)
            .await?;
        anyhow::ensure!(made == "made", "{made}");
    }
    Ok(())
}

async fn midnight(bench: &Bench, back: i64) -> Result<DateTime<Utc>> {
    let day = bench.now().await?.date_naive() - TimeDelta::days(back);
    Ok(day.and_time(chrono::NaiveTime::MIN).and_utc())
}

/// What is asked for while somebody has taken every partition of other days, the default ones too, from everybody.
struct Taken<'b> {
    bench: &'b Bench,
    days: Vec<String>,
}

impl Taken<'_> {
    /// Runs `work`; fails as soon as any session waits for the lock of a table.
    async fn but_for_its_days<T, E: Into<anyhow::Error>>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        let pool = &self.bench.pool;
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'r'",
        )
        .fetch_all(pool)
        .await?;
        let others: Vec<String> =
            others.into_iter().filter(|name| !self.days.iter().any(|day| name.ends_with(day))).collect();
        assert!(others.len() > 300);
        let mut taken = pool.begin().await?;
        let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", others.join(", "));
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *taken).await?;
        let watching = async {
            loop {
                let waited: Vec<String> = sqlx::query_scalar(
                    "SELECT relation::regclass::text FROM pg_locks JOIN pg_stat_activity USING (pid)
                     WHERE NOT granted AND relation IS NOT NULL AND datname = current_database()",
                )
                .fetch_all(pool)
                .await?;
                anyhow::ensure!(waited.is_empty(), "{what} asks for {waited:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let done: Result<T> = tokio::select! {
            done = work => done.map_err(Into::into).with_context(|| what.to_owned()),
            failed = watching => failed,
        };
        taken.rollback().await?;
        done
    }
}

/// A place where only today and the days named beside it may be touched.
async fn beside<'b>(bench: &'b Bench, back: &[i64]) -> Result<Taken<'b>> {
    let mut days = Vec::new();
    for back in back {
        days.push(midnight(bench, *back).await?.format("%Y_%m_%d").to_string());
    }
    Ok(Taken { bench, days })
}

/// Opens one execution of each job at `at`.
async fn born_at(place: &Taken<'_>, leader: &mut LeaderSession, jobs: &[Uuid], at: DateTime<Utc>) -> Result<Vec<Held>> {
    let now = place.bench.now().await?;
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = ANY ($1)")
        .bind(jobs)
        .bind(at)
        .execute(&place.bench.pool)
        .await?;
    let rooms = [room(Source::Timer, &medium(), 100)];
    let claim = place.but_for_its_days("claim", leader.claim(&rooms, now, &[])).await?;
    let (number, decisions) = (claim.number, crate::bench::one_each(&claim.timers));
    let born = place.but_for_its_days("commit", claim.commit(1, &decisions, &[])).await?.born;
    assert_eq!(born.len(), jobs.len());
    Ok(born.into_iter().map(|execution| Held { execution, claim: number, take: 0 }).collect())
}

/// Retention keeps 90 days and more: whatever names executions locks the partitions of these alone, with 400 of them.
#[tokio::test]
async fn what_names_executions_locks_the_partitions_of_their_days_alone() -> Result<()> {
    let bench = Bench::new().await?;
    // The template has yesterday and today.
    make_days(&bench, "job_executions", 2..400).await?;
    for table in ["job_execution_logs", "execution_attempts", "execution_failures"] {
        make_days(&bench, table, 200..201).await?;
    }
    let (now, then) = (bench.now().await?, midnight(&bench, 200).await?);
    let suffix = |at: DateTime<Utc>| at.format("%Y_%m_%d").to_string();
    let today = Taken { bench: &bench, days: vec![suffix(now)] };
    let both = Taken { bench: &bench, days: vec![suffix(now), suffix(then)] };
    let (worker, successor) = (bench.live_worker().await?, incarnation("live"));
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(6).await?;
    let mut held = born_at(&today, &mut leader, &jobs[..3], now).await?;
    // Dated back: these fires lie 200 days ago.
    held.extend(born_at(&both, &mut leader, &jobs[3..], then).await?);
    let born: Vec<_> = held.iter().map(|held| held.execution).collect();
    let numbers = [held[0].claim, held[3].claim];
    both.but_for_its_days("settle", leader.batches_settle(&numbers)).await?;
    let mut lost = Vec::new();
    for batch in both.but_for_its_days("batches", leader.batches_settled(0, i64::MAX)).await? {
        lost.extend(
            both.but_for_its_days("open", leader.executions_open_of_batches(std::slice::from_ref(&batch), None))
                .await?,
        );
    }
    let lost: Vec<_> = lost.into_iter().map(|(entry, _)| entry).collect();
    let again = leader.draw_number().await?;
    let republished =
        both.but_for_its_days("republish", leader.executions_republish(again, 1, &all_lost(&lost), LEASE)).await?;
    assert_eq!(republished.len(), 6);

    let store = &bench.store;
    let seen = both.but_for_its_days("see", store.executions_see(&born, LEASE)).await?;
    assert_eq!(seen.len(), 6);
    assert_eq!(both.but_for_its_days("payloads", store.executions_payloads(&born)).await?.len(), 6);
    let (new, old) = (held[0], held[3]);
    let starts = [started(new), started(old)];
    let (running, _) = both.but_for_its_days("running", store.executions_record(worker, &starts, &[], &[])).await?;
    assert_eq!(running, [Verdict::Running { cancel_requested: false }; 2]);
    let ends = [finished(new, Status::Retrying), finished(old, Status::Retrying)];
    let (_, recorded) = both.but_for_its_days("finish", store.executions_record(worker, &[], &ends, &[])).await?;
    assert_eq!(recorded, [Verdict::Recorded(Status::Retrying); 2]);
    let (_, over) = both.but_for_its_days("finish again", store.executions_record(worker, &[], &ends, &[])).await?;
    assert_eq!(over, [Verdict::Over { unknown: false }; 2]);
    let unlocked = store.executions_record_unlocked(worker, &starts, &ends, &[]);
    let over = both.but_for_its_days("finish what is not locked", unlocked).await?;
    assert_eq!(over, (vec![Verdict::Over { unknown: false }; 2], vec![Verdict::Over { unknown: false }; 2]));
    let wanted: Vec<_> = [1, 4].map(|at| (born[at], seen[&born[at]].clone(), false)).to_vec();
    assert_eq!(both.but_for_its_days("take", store.executions_take(worker, &wanted)).await?.len(), 2);
    let taken = [1, 4].map(|at| started(Held { take: 1, ..held[at] }));
    let succeeded =
        both.but_for_its_days("succeed", store.worker_succeed(worker, &successor, &taken, Locked::WaitedFor)).await?;
    assert_eq!(succeeded.kept.len(), 2);
    let ends = [finished(held[2], Status::Failed), finished(held[5], Status::Success)];
    both.but_for_its_days("success and failure", store.executions_record(successor.id, &[], &ends, &[])).await?;
    let last = both.but_for_its_days("last success", store.job_last_success(bench.job_of(born[5]).await?)).await?;
    assert_eq!(last.map(|last| last.execution), Some(born[5]));
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;
    for id in [born[0], born[2], born[3]] {
        both.but_for_its_days("get", carillon_store::executions::get(&gateway, &Scope::ALL, id)).await?;
    }
    let retry = [room(Source::Retry, &medium(), 100)];
    let claim = both.but_for_its_days("retries", leader.claim(&retry, retry_at(), &[])).await?;
    let retries: Vec<_> = claim.retries.iter().zip(1..).map(|(retry, seq)| (*retry, seq)).collect();
    assert_eq!(retries.len(), 2);
    let decisions = Decisions { retries, ..Decisions::default() };
    let committed = both.but_for_its_days("retry", claim.commit(1, &decisions, &[])).await?;
    assert_eq!(committed.retried.len(), 2);
    Ok(())
}

/// 400 days; the template has yesterday, today and two days to come of them.
async fn with_days() -> Result<Bench> {
    let bench = Bench::new().await?;
    make_days(&bench, "job_executions", 2..400).await?;
    for table in ["job_execution_logs", "execution_attempts", "execution_failures"] {
        make_days(&bench, table, 200..201).await?;
    }
    Ok(bench)
}

/// What the gateway and the dispatchers ask by ids, likewise.
#[tokio::test]
async fn what_cancels_releases_and_withdraws_locks_the_partitions_of_their_days_alone() -> Result<()> {
    let bench = with_days().await?;
    let (now, then) = (bench.now().await?, midnight(&bench, 200).await?);
    let (today, both) = (beside(&bench, &[0]).await?, beside(&bench, &[0, 200]).await?);
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(8).await?;
    let mut held = born_at(&today, &mut leader, &jobs[..4], now).await?;
    held.extend(born_at(&both, &mut leader, &jobs[4..], then).await?);
    both.but_for_its_days("settle", leader.batches_settle(&[held[0].claim, held[4].claim])).await?;
    let born: Vec<_> = held.iter().map(|held| held.execution).collect();
    let store = &bench.store;
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;

    // One of each day is RETRYING, one released, one merely QUEUED.
    let ends = [finished(held[0], Status::Retrying), finished(held[4], Status::Retrying)];
    both.but_for_its_days("retrying", store.executions_record(Uuid::nil(), &[], &ends, &[])).await?;
    let released = both.but_for_its_days("release", store.executions_release(&[held[1], held[5]])).await?;
    assert_eq!(released, [Release::Done; 2]);
    assert_eq!(
        both.but_for_its_days("release again", store.executions_release(&[held[1], held[5]])).await?,
        [Release::Done; 2]
    );
    assert_eq!(both.but_for_its_days("adopt", store.executions_adopt(&born)).await?.len(), 8);
    for id in [born[0], born[4]] {
        let attempts = both.but_for_its_days("attempts", executions::attempts(&gateway, &Scope::ALL, id)).await?;
        assert_eq!(attempts.len(), 1);
    }
    let trigger = bench.trigger(jobs[0], then).await?;
    for (id, asked) in [(born[0], false), (born[4], false), (born[1], true), (born[5], true), (trigger, false)] {
        let cancelled = both.but_for_its_days("cancel", cancels::cancel(&gateway, &Scope::ALL, id, "")).await?;
        assert_eq!(cancelled.asked, asked);
    }
    let taken = [1, 5].map(|at| Held { take: 1, ..held[at] });
    assert_eq!(both.but_for_its_days("cancels requested", store.executions_cancels(&taken)).await?, taken);
    let withdrawn = both.but_for_its_days("withdrawn", gateway.executions_withdrawn(0, &born)).await?;
    assert_eq!(withdrawn.len(), 2);
    assert_eq!(both.but_for_its_days("end unread", gateway.executions_end_unread(&withdrawn)).await?.len(), 2);

    // Born final: a fire that is skipped.
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(jobs[7])
        .bind(then)
        .execute(&bench.pool)
        .await?;
    let rooms = [room(Source::Timer, &medium(), 100)];
    let claim = both.but_for_its_days("claim", leader.claim(&rooms, now, &[])).await?;
    let mut decisions = crate::bench::one_each(&claim.timers);
    for new in &mut decisions.executions {
        (new.skipped, new.seq, new.id) = (true, 0, ids::execution_for_trigger(new.job, "skipped", then));
    }
    both.but_for_its_days("born final", claim.commit(1, &decisions, &[])).await?;
    assert_eq!(bench.count("job_executions WHERE status = 'SKIPPED'").await?, 1);
    Ok(())
}

/// And by a job.
#[tokio::test]
async fn what_is_asked_of_a_job_locks_the_partitions_of_its_days_alone() -> Result<()> {
    let bench = with_days().await?;
    let now = bench.now().await?;
    let mut leader = bench.leader().await?;
    let job = bench.job().await?;
    let held = born_at(&beside(&bench, &[0]).await?, &mut leader, &[job], now).await?;
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;
    // What was claimed ahead lies today or tomorrow, and a notice of it may be a minute late.
    let ahead = beside(&bench, &[0, -1]).await?;
    let late = beside(&bench, &[1, 0, -1]).await?;
    ahead.but_for_its_days("pause", jobs::pause(&gateway, &Scope::ALL, job)).await?;
    ahead.but_for_its_days("pause again", jobs::pause(&gateway, &Scope::ALL, job)).await?;
    late.but_for_its_days("withdrawn of job", gateway.executions_withdrawn_of_job(job)).await?;
    ahead.but_for_its_days("resume", jobs::resume(&gateway, &Scope::ALL, job)).await?;
    // Of days to come it must look whether something is there.
    let coming = beside(&bench, &[0, -1, -2]).await?;
    sqlx::query(
        "INSERT INTO job_revisions (job_id, revision, definition, superseded_at)
         SELECT job_id, 0, definition, now() - interval '9 days' FROM job_revisions WHERE job_id = $1",
    )
    .bind(job)
    .execute(&bench.pool)
    .await?;
    let age = Duration::from_secs(24 * 60 * 60);
    let forgotten = coming.but_for_its_days("forget revisions", revisions::forget(&gateway, age)).await?;
    assert_eq!(forgotten.gone, 1);
    assert!(coming.but_for_its_days("delete", jobs::delete(&gateway, &Scope::ALL, job)).await?);
    let mut deleting = jobs::Deleting::of(&gateway, job);
    let mut asked = Vec::new();
    while let Some(some) = coming.but_for_its_days("a step of a deletion", deleting.step()).await? {
        asked.extend(some);
    }
    assert_eq!(asked, [held[0].execution]);
    Ok(())
}

/// Executions of every other day of two hundred, as a walk may meet what has been open for long: none of the days between.
#[tokio::test]
async fn ids_of_many_days_apart_lock_none_of_the_days_between() -> Result<()> {
    let bench = with_days().await?;
    let backs: Vec<i64> = (0..200).step_by(2).collect();
    let mut born = Vec::new();
    for back in &backs {
        born.push(ids::execution_for_fire(Uuid::nil(), midnight(&bench, *back).await?));
    }
    let place = beside(&bench, &backs).await?;
    let seen = place.but_for_its_days("see", bench.store.executions_see(&born, LEASE)).await?;
    assert!(seen.is_empty(), "none of them was born");
    Ok(())
}
