//! Time zone data changes (row 38): a dispatcher that leads with other data than the last one moves what is to come.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use carillon_testkit::Role;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Timelike as _, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
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
    let made = ["zic", "/usr/sbin/zic"].map(|zic| Command::new(zic).arg("-d").arg(&directory).arg(&source).status());
    assert!(made.iter().flatten().any(|status| status.success()), "zic (Debian: libc-bin) makes no zone: {made:?}");
    directory
}

/// Daily, at a time of the zone.
async fn daily(api: &Api, name: &str, local: DateTime<Utc>, zone: &str) -> Uuid {
    let schedule = format!("{} {} {} * * *", local.second(), local.minute(), local.hour());
    let body = json!({"name": name, "schedule": schedule, "timezone": zone, "handler_name": "test:echo"});
    id_of(&api.create("cron", &body).await)
}

fn next(job: &Value) -> DateTime<Utc> {
    instant(&job["next_run"])
}

async fn walk_ended(world: &World) -> Option<(i64, DateTime<Utc>)> {
    let ended = "SELECT rules, ended_at FROM zone_walk WHERE ended_at IS NOT NULL";
    sqlx::query_as(ended).fetch_optional(&world.pool).await.expect("postgres answers")
}

#[tokio::test]
async fn what_is_to_come_fires_by_the_zone_data_of_today_and_not_by_that_of_yesterday() {
    let ahead = TimeDelta::seconds(6 * 3_600 + 1_234);
    let [old, new] = [("old", TimeDelta::zero()), ("new", ahead)]
        .map(|(name, ahead)| zone_data(name, ahead).to_string_lossy().into_owned());
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
    assert_eq!(next(&api.job(earlier).await), soon_by_new + ahead);
    assert_eq!(next(&api.job(later).await), soon_by_old);
    let before = soon("the walk by the old data to have ended", || async {
        walk_ended(&world).await.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await;

    world.cluster.node("dispatcher-1").stop().unwrap_or_else(|error| panic!("{error:#}"));
    world.add(Role::Dispatcher, &[("TZDIR", new.as_str())]).await;
    soon("the walk by the new data to have ended", || async {
        ensure!(walk_ended(&world).await.is_some_and(|(rules, _)| rules != before.0), "not yet");
        anyhow::Ok(())
    })
    .await;
    assert!(Utc::now() < soon_by_new, "it came in time");
    assert_eq!(next(&api.job(earlier).await), soon_by_new);
    assert_eq!(next(&api.job(later).await), soon_by_old + TimeDelta::days(1) - ahead);
    let held = sqlx::query_scalar("SELECT held_at FROM jobs WHERE id = $1").bind(paused);
    let held: DateTime<Utc> = held.fetch_one(&world.pool).await.expect("it is paused");
    assert_eq!(held, soon_by_new);

    // The last of them to be due by anybody's data.
    world.expected.extend([(earlier, soon_by_new), (other, now + TimeDelta::seconds(22))]);
    world.judge(LOAD_MAX).await;
    assert_eq!(api.executions(later).await.len(), 0, "nothing fires by the old data");
    assert_eq!(next(&api.job(earlier).await), soon_by_new + TimeDelta::days(1));
}
