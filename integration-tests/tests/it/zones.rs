//! Time zone data changes (row 38): dispatchers that start with other data fire by it from their first claim on, whatever instants
//! stood there by the old.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_testkit::Role;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Timelike as _, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

const ZONE: &str = "Test/Carillon";

/// Zone data in which that zone is so far ahead of UTC.
fn zone_data(name: &str, ahead: TimeDelta) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("zones").join(name);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("a directory");
    let source = directory.with_extension("zi");
    let seconds = ahead.num_seconds();
    let offset = format!("{}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    std::fs::write(&source, format!("Zone {ZONE} {offset} - TST\n")).expect("it is written");
    let programs = ["zic", "/usr/sbin/zic"].into_iter();
    let made = programs.map(|zic| Command::new(zic).arg("-d").arg(&directory).arg(&source).status());
    let made: Vec<_> = made.collect();
    assert!(made.iter().flatten().any(|status| status.success()), "zic (Debian: libc-bin) makes no zone: {made:?}");
    directory
}

/// Daily, at a time of the zone.
async fn daily(api: &Api, name: &str, local: DateTime<Utc>, zone: &str) -> Uuid {
    let schedule = format!("{} {} {} * * *", local.second(), local.minute(), local.hour());
    let body = json!({"name": name, "schedule": schedule, "timezone": zone, "handler_name": "test:echo"});
    id_of(&api.create("cron", &body).await)
}

async fn noted(world: &World) -> i64 {
    let noted = sqlx::query_scalar("SELECT rules FROM time_zones WHERE name = $1").bind(ZONE);
    noted.fetch_one(&world.pool).await.expect("it is noted")
}

#[tokio::test]
async fn what_is_to_come_fires_by_the_zone_data_of_today_and_never_by_that_of_yesterday() {
    let ahead = TimeDelta::seconds(6 * 3_600 + 1_234);
    let (old, new) = (zone_data("old", TimeDelta::zero()), zone_data("new", ahead));
    let old = old.to_string_lossy().into_owned();
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }.set("TZDIR", old);
    let mut world = World::start("zones", plan).await;
    let api = world.api();
    let now = Utc::now().trunc_subsecs(0);
    let (soon_by_new, soon_by_old) = (now + TimeDelta::seconds(18), now + TimeDelta::seconds(20));
    let earlier = daily(&api, "earlier", soon_by_new + ahead, ZONE).await;
    let later = daily(&api, "later", soon_by_old, ZONE).await;
    let paused = daily(&api, "paused", soon_by_new + ahead, ZONE).await;
    assert_eq!(api.post(&format!("/jobs/{paused}/pause"), &json!({})).await.status, 200);
    let other = daily(&api, "other", now + TimeDelta::seconds(22), "UTC").await;
    let next = |job: Value| instant(&job["next_run"]);
    assert_eq!(next(api.job(earlier).await), soon_by_new + ahead);
    assert_eq!(next(api.job(later).await), soon_by_old);
    let before = noted(&world).await;

    world.cluster.node("dispatcher-1").stop().unwrap_or_else(|error| panic!("{error:#}"));
    let new = new.to_string_lossy().into_owned();
    let restarted = Instant::now();
    world.add(Role::Dispatcher, &[("TZDIR", new.as_str())]).await;
    soon("what is to come to be reckoned anew", || async {
        ensure!(noted(&world).await != before, "it is not");
        anyhow::Ok(())
    })
    .await;
    eprintln!("reckoned anew {:?} after the start", restarted.elapsed());
    let tomorrow = soon_by_old + TimeDelta::days(1) - ahead;
    assert_eq!(next(api.job(later).await), tomorrow);
    let held = sqlx::query_scalar("SELECT held_at FROM jobs WHERE id = $1").bind(paused);
    let held: DateTime<Utc> = held.fetch_one(&world.pool).await.expect("it is paused");
    assert_eq!(held, soon_by_new);

    // The last of them to be due by anybody's data.
    world.expected.extend([(earlier, soon_by_new), (other, now + TimeDelta::seconds(22))]);
    world.judge(LOAD_MAX).await;
    assert_eq!(api.executions(later).await.len(), 0, "nothing fires by the old data");
    assert_eq!(next(api.job(earlier).await), soon_by_new + TimeDelta::days(1));
}

/// Jobs that fall due while the leader is still at it are not claimed by the old data; the others are claimed as ever.
#[tokio::test]
async fn what_falls_due_while_much_is_reckoned_anew_waits_for_its_turn() {
    const JOBS: usize = 20_000;
    let new = zone_data("many", TimeDelta::hours(6)).to_string_lossy().into_owned();
    let mut world = World::start("zones_many", Plan { dispatchers: 0, executors: 1, ..Plan::default() }).await;
    one_time_jobs(&world.pool, JOBS, in_ms(3_000), Duration::from_secs(8), "test:echo", &json!({})).await;
    let at_that_time_of_the_zone =
        "UPDATE jobs j SET timetable = jsonb_build_object('timezone', $1, 'specs', jsonb_build_array(
             jsonb_build_object('cron', to_char(t.fire_at AT TIME ZONE 'UTC', 'FMSS FMMI FMHH24') || ' * * *')))
         FROM job_timers t WHERE t.job_id = j.id";
    for statement in [
        // What is due first comes last by its id.
        "UPDATE job_timers t SET fire_at = b.first + (b.last - t.fire_at)
         FROM (SELECT min(fire_at) AS first, max(fire_at) AS last FROM job_timers WHERE $1 <> '') b",
        "INSERT INTO time_zones VALUES ($1, 1)",
        at_that_time_of_the_zone,
        "UPDATE job_revisions r SET definition = jsonb_set(definition, '{timetable}', j.timetable) FROM jobs j
         WHERE j.id = r.job_id AND j.timetable ->> 'timezone' = $1",
    ] {
        sqlx::query(statement).bind(ZONE).execute(&world.pool).await.expect("postgres answers");
    }
    let name = world.add(Role::Dispatcher, &[("TZDIR", new.as_str())]).await;
    let other = id_of(
        &world
            .api()
            .create(
                "once",
                &json!({
                    "name": "other", "execute_at": in_ms(300).to_rfc3339(), "handler_name": "test:echo",
                }),
            )
            .await,
    );
    soon("all to be reckoned anew", || async {
        ensure!(noted(&world).await != 1, "{}", world.cluster.logs());
        anyhow::Ok(())
    })
    .await;
    let log = world.cluster.node(&name).log();
    let time_of = |text: &str| -> DateTime<Utc> {
        let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text}: {log}"));
        line.split_whitespace().next().and_then(|time| time.parse().ok()).expect("a time")
    };
    let began = time_of("the rules of time zones have changed");
    eprintln!("{JOBS} reckoned anew in {}", time_of("was reckoned by the rules of today") - began);
    world.api().job_in(other, "COMPLETED").await;
    // The line is written a moment before it begins.
    let after = began + TimeDelta::milliseconds(100);
    let old = "SELECT count(*) FROM job_executions WHERE scheduled_at > $1 AND job_id <> $2";
    let fired: i64 = sqlx::query_scalar(old).bind(after).bind(other).fetch_one(&world.pool).await.expect("it counts");
    let stand = "SELECT count(*) FROM job_timers WHERE fire_at BETWEEN $1 AND $1 + interval '1 hour'";
    let stand: i64 = sqlx::query_scalar(stand).bind(after).fetch_one(&world.pool).await.expect("it counts");
    assert_eq!((fired, stand), (0, 0), "since {after} nothing fires by the old data, and nothing stands by it:\n{log}");
}
