//! A flush beside a new incarnation of its executor (R21), each step of the two at its fail point.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::seeds::{assert_recorded_by_the_next, cut_off_a_beat, run_one_and_lock_it, until_it_has_run};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Holds the first that comes to a point once it is shut, until it is opened.
struct Gate {
    directory: PathBuf,
}

impl Gate {
    fn at(point: &str) -> (Self, String) {
        let name = point.replace(':', "_");
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("successions").join(name);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        let gate = Self { directory };
        let file = |name| gate.file(name).display().to_string();
        let order = format!("{point}=hold:{},once:{},when:{}", file("shut"), file("once"), file("armed"));
        (gate, order)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn shut(&self) {
        std::fs::write(self.file("shut"), "").expect("a file");
        std::fs::write(self.file("armed"), "").expect("a file");
    }

    fn open(&self) {
        std::fs::remove_file(self.file("shut")).expect("it is there");
    }

    async fn until_reached(&self) {
        soon(&format!("{} to be reached", self.directory.display()), || {
            let reached = self.file("once").exists();
            std::future::ready(if reached { Ok(()) } else { Err("nobody has") })
        })
        .await;
    }
}

/// The only execution: who has it, and the last beat of that incarnation.
async fn holder(world: &World) -> anyhow::Result<(Uuid, DateTime<Utc>)> {
    let statement = "SELECT w.id, w.seen_at FROM job_executions e JOIN workers w ON w.id = e.worker_id";
    Ok(sqlx::query_as(statement).fetch_one(&world.pool).await?)
}

/// What is left with the earlier incarnation is refused to the flush of the new one; it is adopted before that flush hears so.
/// By then it is left no more: judged by what is known then, its result would be let go of as somebody else's, and it would run
/// again.
#[tokio::test]
async fn r21_what_was_left_when_a_flush_began_is_not_let_go_of_though_it_is_adopted_meanwhile() {
    let (adopting, adopt_order) = Gate::at("adopt:begin");
    let (writing, write_order) = Gate::at("record:write");
    let (written, written_order) = Gate::at("record:committed");
    // The next incarnation is begun within a quarter of the lease, behind a lock that is waited for.
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }
        .protocol(Duration::from_secs(3), Duration::from_secs(30))
        .set(carillon_failpoint::VARIABLE, [adopt_order, write_order, written_order].join(";"));
    let mut world = World::start("adopted_beside_a_flush", plan).await;
    let stranger = run_one_and_lock_it(&mut world).await;
    let (first, _) = holder(&world).await.expect("it runs");

    adopting.shut();
    cut_off_a_beat(&world).await;
    // It is left: there is something to adopt.
    adopting.until_reached().await;
    until_it_has_run(&world).await;
    // The first flush of its end, or the next try of it.
    writing.shut();
    writing.until_reached().await;
    written.shut();
    stranger.rollback().await.expect("postgres answers");
    writing.open();
    written.until_reached().await;
    let (still, _) = holder(&world).await.expect("postgres answers");
    assert_eq!(still, first, "the new incarnation was refused it");

    adopting.open();
    let adopted = soon("it to be adopted", || async {
        let (now, _) = holder(&world).await?;
        ensure!(now != first, "the first has it");
        anyhow::Ok(sqlx::query_scalar::<_, DateTime<Utc>>("SELECT clock_timestamp()").fetch_one(&world.pool).await?)
    })
    .await;
    // The loop that adopts beats as well: whatever it does after adopting is done by its next beat.
    soon("a beat after that", || async {
        let (_, beaten) = holder(&world).await?;
        ensure!(beaten > adopted, "the last was at {beaten}");
        anyhow::Ok(())
    })
    .await;
    written.open();
    world.judge(LOAD_MAX).await;
    assert_recorded_by_the_next(&world, first).await;
}
