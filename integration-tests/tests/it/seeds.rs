//! What seeds of the soak found, each at the very step.

use std::time::Duration;

use anyhow::ensure;
use carillon_testkit::journal::Event;
use carillon_testkit::wait_until;
use serde_json::json;
use uuid::Uuid;

use crate::api::id_of;
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Longer than Postgres lets a statement wait for a lock.
const WINDOW: Duration = Duration::from_secs(3);

/// Seed 7, faults 198 and 199. A stranger holds the statistics of a job, so its ends cannot be recorded; Redis loses the entries
/// meanwhile. The rows must say RUNNING before W is over (R10), or whoever reads the copies takes what has run (R13).
#[tokio::test]
async fn what_cannot_be_recorded_for_a_foreign_lock_is_not_run_again_when_redis_forgets() {
    const FIRES: usize = 12;
    let plan = Plan { dispatchers: 1, executors: 3, ..Plan::default() }.protocol(WINDOW, WINDOW * 10);
    let mut world = World::start("locked_statistics", plan).await;
    let api = world.api();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    let mut stranger = world.pool.begin().await.expect("postgres answers");
    let lock = sqlx::query("SELECT 1 FROM job_stats WHERE job_id = $1 FOR UPDATE").bind(job);
    lock.execute(&mut *stranger).await.expect("nobody else has it");
    for _ in 0..FIRES {
        let execution: Uuid = api.trigger(job, &json!({})).await;
        world.triggered.insert(execution);
    }
    let ended = |world: &World| world.journal().iter().filter(|line| line.event == Event::End).count();
    soon("all to have run", || {
        let ended = ended(&world);
        std::future::ready(if ended >= FIRES { Ok(()) } else { Err(format!("{ended} have")) })
    })
    .await;
    world.redis.flush_all().expect("redis answers");
    soon("what is not shown RUNNING to be published again", || async {
        let seen = world.executions_where("entry > claim OR status = 'RUNNING'").await?;
        ensure!(seen >= FIRES as i64, "{seen} are either");
        anyhow::Ok(())
    })
    .await;
    // Once the rows say so nobody takes them; without the rule they run again.
    let seen = wait_until("the rows to say RUNNING, or the handlers to run again", WINDOW * 8, || async {
        let running = world.executions_where("status = 'RUNNING' AND take = 0").await?;
        ensure!(running >= FIRES as i64 || ended(&world) > FIRES, "{running} are");
        anyhow::Ok(())
    });
    seen.await.unwrap_or_else(|error| panic!("{error:#}"));
    stranger.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
}
