//! What is to come: the first instants of every line, and until when that is all of them.

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::definitions;
use carillon_store::recorder::Finished;
use carillon_store::upcoming::UpcomingMax;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, finished, medium, retry_at};

fn at_most(of_line: i64) -> UpcomingMax {
    UpcomingMax { of_line, of_all: 20_000 }
}

#[tokio::test]
async fn every_line_of_every_source_is_found() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let waiting = Finished { queue: "slow".into(), priority: 0, ..finished(held, Status::Retrying) };
    bench.store.executions_record(Uuid::nil(), &[], &[waiting], &[]).await?;
    let now = bench.now().await?;
    let lines = [
        medium(),
        Line::new("default", Priority::Low),
        Line::new("default", Priority::Critical),
        Line::new("a", Priority::High),
        Line::new("z", Priority::Low),
    ];
    let mut expected = vec![((Source::Retry, Line::new("slow", Priority::Low)), retry_at())];
    for (line, ms) in lines.iter().zip(1..) {
        for further in [0, 100] {
            let at = now + TimeDelta::milliseconds(ms + further);
            bench.job_at(line, Some(at)).await?;
            expected.push(((Source::Timer, line.clone()), at));
        }
    }
    let job = bench.job_at(&lines[3], None).await?;
    bench.trigger(job, now).await?;
    expected.push(((Source::Trigger, lines[3].clone()), now));

    let upcoming = leader.timers_upcoming(retry_at(), at_most(100)).await?;
    let mut found = upcoming.instants;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(upcoming.complete_until, Some(retry_at()));
    Ok(())
}

#[tokio::test]
async fn instants_beyond_the_horizon_are_left_for_later() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let until = now + TimeDelta::seconds(10);
    bench.job_at(&medium(), Some(until)).await?;
    bench.job_at(&medium(), Some(until + TimeDelta::milliseconds(1))).await?;
    bench.job_at(&Line::new("later", Priority::Medium), Some(until + TimeDelta::hours(1))).await?;
    let upcoming = bench.leader().await?.timers_upcoming(until, at_most(100)).await?;
    assert_eq!(upcoming.instants, [((Source::Timer, medium()), until)]);
    assert_eq!(upcoming.complete_until, Some(until));
    Ok(())
}

#[tokio::test]
async fn a_line_that_holds_more_than_the_limit_says_until_when_it_is_complete() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let other = Line::new("other", Priority::Medium);
    for second in 1..=5 {
        bench.job_at(&medium(), Some(now + TimeDelta::seconds(second))).await?;
        bench.job_at(&other, Some(now + TimeDelta::seconds(10 * second))).await?;
    }
    bench.job_at(&Line::new("short", Priority::Medium), Some(now + TimeDelta::seconds(1))).await?;
    let upcoming = bench.leader().await?.timers_upcoming(now + TimeDelta::hours(1), at_most(3)).await?;
    let of = |line: &Line| {
        let mut at: Vec<DateTime<Utc>> = upcoming.instants.iter().filter(|i| i.0.1 == *line).map(|i| i.1).collect();
        at.sort();
        at
    };
    assert_eq!(of(&medium()), [1, 2, 3].map(|second| now + TimeDelta::seconds(second)), "the earliest");
    assert_eq!(of(&other), [10, 20, 30].map(|second| now + TimeDelta::seconds(second)));
    assert_eq!(upcoming.instants.len(), 7);
    assert_eq!(upcoming.complete_until, Some(now + TimeDelta::seconds(3)), "of the fullest line");
    Ok(())
}

#[tokio::test]
async fn nothing_to_come_is_complete() -> Result<()> {
    let bench = Bench::new().await?;
    bench.job().await?;
    let until = bench.now().await?;
    let upcoming = bench.leader().await?.timers_upcoming(until, at_most(10)).await?;
    assert!(upcoming.instants.is_empty());
    assert_eq!(upcoming.complete_until, Some(until));
    Ok(())
}

/// However many lines there are, all together are no more than one reading holds, and each has its first.
#[tokio::test]
async fn the_lines_share_what_is_read_at_once() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    sqlx::query(
        "WITH job AS (
             INSERT INTO jobs (id, name, type, status, timetable, handler_name, queue)
             SELECT gen_random_uuid(), 'job', 'RECURRING', 'ACTIVE', '{}', 'echo', 'q' || lpad(n::text, 3, '0')
             FROM generate_series(1, 100) n, generate_series(1, 5) RETURNING id, queue
         )
         INSERT INTO job_timers (shard, job_id, fire_at, queue, priority)
         SELECT 0, id, $1::timestamptz + row_number() OVER (PARTITION BY queue) * interval '1 second'
                    + right(queue, 3)::int * interval '1 ms', queue, 1 FROM job",
    )
    .bind(now)
    .execute(&bench.pool)
    .await?;
    let mut leader = bench.leader().await?;
    let all = |of_all| UpcomingMax { of_line: 5_000, of_all };
    let upcoming = leader.timers_upcoming(now + TimeDelta::hours(1), all(500)).await?;
    assert_eq!((upcoming.instants.len(), upcoming.complete_until), (500, Some(now + TimeDelta::milliseconds(5_001))));
    let upcoming = leader.timers_upcoming(now + TimeDelta::hours(1), all(250)).await?;
    assert_eq!(upcoming.instants.len(), 200, "two of each");
    assert_eq!(upcoming.complete_until, Some(now + TimeDelta::milliseconds(2_001)));
    let upcoming = leader.timers_upcoming(now + TimeDelta::hours(1), all(40)).await?;
    assert_eq!((upcoming.instants.len(), upcoming.complete_until), (40, Some(now + TimeDelta::milliseconds(1_001))));
    assert!(upcoming.instants.iter().all(|(_, at)| *at <= now + TimeDelta::milliseconds(1_040)), "the earliest");
    Ok(())
}

#[tokio::test]
async fn what_fires_soon_for_the_first_time_is_read_ahead() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let other = Line::new("other", Priority::High);
    let after = |ms: i64| now + TimeDelta::milliseconds(ms);
    let mut soon = vec![
        bench.job_at(&medium(), Some(after(1))).await?,
        bench.job_at(&medium(), Some(after(100))).await?,
        bench.job_at(&other, Some(after(50))).await?,
    ];
    let (due, later) = (bench.job_at(&medium(), Some(now)).await?, bench.job_at(&medium(), Some(after(101))).await?);
    let fired = bench.job_at(&medium(), Some(after(50))).await?;
    sqlx::query("UPDATE job_timers SET claimed_count = 1 WHERE job_id = $1").bind(fired).execute(&bench.pool).await?;
    let unasked = bench.job_at(&Line::new("unasked", Priority::High), Some(after(50))).await?;
    let lines = [medium(), other];
    let read = async |most| -> Result<Vec<Uuid>> {
        let read = definitions::of_first_fires(&bench.store, 0, &lines, now, after(100), most).await?;
        assert!(read.iter().all(|definition| definition.revision == 1 && lines.contains(&definition.line)));
        Ok(read.into_iter().map(|definition| definition.job).collect())
    };
    let mut found = read(10).await?;
    found.sort_unstable();
    soon.sort_unstable();
    assert_eq!(found, soon, "neither of {due}, {later}, {fired}, {unasked}");
    assert_eq!(read(2).await?.len(), 2);
    assert!(definitions::of_first_fires(&bench.store, 1, &lines, now, after(100), 10).await?.is_empty());
    Ok(())
}
