//! What is dear, broken, held back or comes in thousands of queues holds up no other job.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_core::schedule::{Exclusion, TimetableSpec};
use carillon_testkit::wait_until;
use chrono::{Datelike as _, Timelike as _, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::bench::{DAY, LIMIT, Leader, in_ms};

/// What an ordinary job may have to wait for beside poison; the machine may be slow.
const BESIDE_MAX: Duration = Duration::from_secs(3);

/// Item 5: timetables made to cost something, after an outage of an hour.
#[tokio::test]
async fn dear_timetables_hold_up_no_other_job() -> Result<()> {
    const DEAR: usize = 20;
    let leader = Leader::start(100, 20_000).await?;
    // Ten a second, of which two zones leave none but in the month that is furthest off, the last one.
    let due = in_ms(-3_600_000);
    let last = (Utc::now().month() + 10) % 12 + 1;
    let closed: Vec<String> = (1..=12).filter(|month| *month != last).map(|month| month.to_string()).collect();
    let closed = closed.join(",");
    let mut dear = TimetableSpec::every(Duration::from_millis(100), due);
    dear.exclusions = vec![
        Exclusion::cron(format!("*/2 * * {closed} *")),
        Exclusion::cron(format!("1-59/2 * * {closed} *")).in_timezone("Asia/Tokyo"),
    ];
    leader.timetabled_jobs(DEAR, due, &dear).await?;
    leader.wake()?;
    let term = leader.term()?;
    for queue in ["first", "second", "third"] {
        let took = leader.beside(queue).await?;
        assert!(took < BESIDE_MAX, "{took:?} beside {DEAR} dear timetables");
    }
    // A calendar of the ordinary kind is searched beside the claims too, and fires.
    let soon = in_ms(300);
    let mut calendar = TimetableSpec::every(Duration::from_secs(3_600), soon);
    calendar.exclusions = vec![Exclusion::date("2020-12-25".parse()?)];
    let before = leader.count("job_executions").await?;
    leader.timetabled_jobs(5, soon, &calendar).await?;
    leader.wake()?;
    leader
        .until_count(
            "job_executions e JOIN job_timers t USING (job_id) WHERE t.fire_at > now() + interval '50 minutes'",
            |fired| fired == 5,
        )
        .await?;
    assert!(leader.count("job_executions").await? >= before + 5);
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: whoever exceeds the time that a claim has is set aside where it is seen, and fires all the same.
#[tokio::test]
async fn what_is_set_aside_for_its_timetable_is_seen_and_fires() -> Result<()> {
    const DEAR: i64 = 5;
    // All tasks of this test are on this thread.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 20_000).await?;
    // Daily, but for all days except today's, behind 998 exclusions of other hours: a thousand looks for each day of a month.
    let due = in_ms(0);
    let mut dear = TimetableSpec::every(DAY + Duration::from_secs(1), due);
    let other = |n: u32| format!("{} {} * * *", n % 60, (due.hour() + 2 + n / 60) % 24);
    let days: Vec<String> = (1..=31).filter(|day| *day != due.day()).map(|day| day.to_string()).collect();
    dear.exclusions = (0..998).map(|n| Exclusion::cron(other(n))).collect();
    dear.exclusions.push(Exclusion::cron(format!("* * {} * *", days.join(","))));
    leader.timetabled_jobs(usize::try_from(DEAR)?, due, &dear).await?;
    leader.wake()?;
    leader.until_count("job_executions", |fired| fired == DEAR).await?;
    leader.until_count("job_timers WHERE fire_at > now() + interval '27 days'", |moved| moved == DEAR).await?;
    let text = recorder.handle().render();
    assert!(text.contains("carillon_dispatcher_set_aside_total 5"), "{text}");
    leader
        .until("nothing to wait any more", || {
            Ok(recorder.handle().render().contains("carillon_dispatcher_searches_waiting 0"))
        })
        .await?;
    leader.end().await
}

/// A job is dated into a day that is closed, since it is about to leave, and that cannot leave: somebody reads it. Claims are not
/// halved each second for its sake.
#[tokio::test]
async fn what_is_dated_into_a_closed_day_is_asked_for_once_a_minute() -> Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 20_000).await?;
    let day = Utc::now().date_naive() - chrono::Days::new(200);
    let at = day.and_hms_opt(12, 0, 0).context("noon")?.and_utc();
    let partition = format!("job_executions_{}", day.format("%Y_%m_%d"));
    let bounds = [day, day + chrono::Days::new(1)]
        .map(|day| carillon_core::ids::first_at(day.and_time(chrono::NaiveTime::MIN).and_utc()));
    sqlx::query("SELECT carillon.make_partition('job_executions', $1, $2, $3)")
        .bind(&partition)
        .bind(bounds[0])
        .bind(bounds[1])
        .execute(&leader.pool)
        .await?;
    sqlx::query("SELECT carillon.close_partition($1, '{}')").bind(&partition).execute(&leader.pool).await?;
    let mut reads = leader.pool.begin().await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("SELECT FROM carillon.{partition}"))).execute(&mut *reads).await?;
    leader.jobs(1, at).await?;
    leader.wake()?;
    let set_aside = || {
        let text = recorder.handle().render();
        let count = text.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_set_aside_total "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    let refused = leader.until("it to be set aside", || Ok(set_aside() > 0)).await?;
    let mut queues = 0;
    while refused.elapsed() < Duration::from_secs(4) {
        queues += 1;
        let took = leader.beside(&format!("beside-{queues}")).await?;
        assert!(took < BESIDE_MAX, "{took:?} beside it");
    }
    // Once, or once more where the machine was slow; it was each second.
    assert!(set_aside() <= 2, "{} times", set_aside());
    drop(reads);
    leader.end().await
}

/// Item 12: nothing fires by a definition that was superseded, though the leader knows it well and cannot read the new one.
#[tokio::test]
async fn an_unreadable_new_revision_stops_the_old_one() -> Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 20_000).await?;
    let due = in_ms(300);
    let often = TimetableSpec::every(Duration::from_millis(200), due);
    let job = leader.insert_jobs(1, due, 0, "default", &often).await?;
    leader.wake()?;
    leader.until_count("job_executions WHERE revision = 1", |fired| fired >= 3).await?;
    let term = leader.term()?;
    let set_aside = || {
        let text = recorder.handle().render();
        let count = text.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_set_aside_total "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    for broken in [r#"{"timetable": {"specs": [{"moon": "full"}]}}"#, r#"{"handler_name": null}"#, "[]"] {
        let before = set_aside();
        leader.revise(job, broken).await?;
        leader.until("it to be set aside", || Ok(set_aside() > before)).await?;
        let fired = leader.count("job_executions WHERE queue = 'default'").await?;
        let took = leader.beside("beside").await?;
        assert!(took < BESIDE_MAX, "{took:?} beside a job that cannot be read");
        leader.work_off("beside").await?;
        // Five instants pass.
        leader.until_count("job_timers WHERE fire_at < now() - interval '1 s'", |stands| stands == 1).await?;
        assert_eq!(leader.count("job_executions WHERE queue = 'default'").await?, fired, "by {broken}");
        // `jobs` has the good one still.
        let revision = leader.revise(job, "{}").await?;
        wait_until("it to fire again", LIMIT, || async {
            let by = "SELECT count(*) FROM job_executions WHERE job_id = $1 AND revision = $2";
            let by: i64 = sqlx::query_scalar(by).bind(job).bind(revision).fetch_one(&leader.pool).await?;
            ensure!(by > 0, "it does not");
            anyhow::Ok(())
        })
        .await?;
    }
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: more due lines than a batch has rows.
#[tokio::test]
async fn many_due_queues_share_the_batches() -> Result<()> {
    const QUEUES: i64 = 2_000;
    let leader = Leader::start(100, 20_000).await?;
    leader.jobs(usize::try_from(2 * QUEUES)?, in_ms(1_000)).await?;
    leader.change_timers("queue = 'q' || abs(hashtext(job_id::text)) % 2000").await?;
    leader.wake()?;
    leader.until_count("job_executions", |claimed| claimed > 300).await?;
    let took = leader.beside("beside").await?;
    assert!(took < BESIDE_MAX, "{took:?} beside {QUEUES} due queues");
    leader.until_count("job_executions", |claimed| claimed == 2 * QUEUES + 1).await?;
    let largest: i32 =
        sqlx::query_scalar("SELECT max(cardinality(ids)) FROM dispatch_batches").fetch_one(&leader.pool).await?;
    assert!(largest <= 100, "{largest} in one batch");
    leader.end().await
}

/// Item 5: fires that their predecessors hold back until their instant, and are skipped then.
#[tokio::test]
async fn executions_held_back_by_overlap_hold_up_no_other_job() -> Result<()> {
    const HELD: usize = 5_000;
    let leader = Leader::start(1_000, 20_000).await?;
    let due = in_ms(2_500);
    leader.jobs(HELD, due).await?;
    sqlx::query("UPDATE job_revisions SET definition = definition || '{\"allow_overlap\": false, \"concurrency\": 1}'")
        .execute(&leader.pool)
        .await?;
    leader.change_timers("claimed_count = 1").await?;
    leader.wake()?;
    // They are looked at from 500 ms before their instant on.
    for queue in ["first", "second", "third"] {
        let took = leader.beside(queue).await?;
        assert!(took < BESIDE_MAX, "{took:?} beside {HELD} that are held back");
    }
    leader.until_count("job_executions WHERE status = 'SKIPPED'", |skipped| skipped == 5_000).await?;
    let took = leader.beside("after").await?;
    assert!(took < BESIDE_MAX, "{took:?}");
    leader.end().await
}
