//! Memory is bounded by bytes: what an executor has in hand, and what waits to be written.

use std::time::Duration;

use carillon_core::execution::Status;
use serde_json::json;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// The least that the setting allows.
const IN_HAND_MAX: f64 = 1_048_576.0;
/// What one fetch may bring beyond it (16 of them, each counted twice).
const ONE_FETCH: f64 = 16.0 * 2.0 * 210_000.0;

/// Payloads too large for their entries are fetched a few at a time, however many executions are held.
#[tokio::test]
async fn the_largest_payloads_are_worked_off_within_the_bound() {
    const FIRES: usize = 120;
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() };
    let plan = plan.set("CARILLON_EXECUTOR_IN_HAND_BYTES_MAX", "1048576").set("CARILLON_EXECUTOR_SLOTS", "256");
    let mut world = World::start("payload_bytes", plan).await;
    let payload = json!({"ms": 20, "ballast": "x".repeat(200_000)});
    let (first, over) = (in_ms(1_500), Duration::from_millis(1));
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    let mut most: f64 = 0.0;
    let node = world.cluster.node("executor-1");
    let mut look = || node.metric("carillon_executor_in_hand_bytes", &[]).map(|bytes| most = most.max(bytes));
    let wanted = i64::try_from(FIRES).expect("few");
    soon("all of them to be final", || {
        // Not there before something was in hand.
        let _ = look();
        let finished = sqlx::query_scalar("SELECT count(*) FROM job_executions WHERE completed_at IS NOT NULL");
        let pool = &world.pool;
        async move {
            let finished: i64 = finished.fetch_one(pool).await?;
            anyhow::ensure!(finished == wanted, "{finished} of {wanted}");
            anyhow::Ok(())
        }
    })
    .await;
    assert!(most > 0.0 && most < IN_HAND_MAX + ONE_FETCH, "{most} bytes were in hand");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
}
