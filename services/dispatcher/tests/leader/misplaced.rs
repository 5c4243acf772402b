//! R23a: what waits in another line than its job's queue or priority by now is published to its own.

use anyhow::{Context, Result};
use uuid::Uuid;

use crate::bench::{CTL, Leader, STREAM, in_ms, stream_of};

/// How the row of the execution stands: queue, take, entry, whether it is misplaced.
type Row = (String, i32, i64, bool);

impl Leader {
    /// One that is published, and whose job was given another queue before its instant.
    async fn misplaced(&self, queue: &str) -> Result<(Uuid, i64)> {
        let job = self.jobs(1, in_ms(0)).await?;
        self.wake()?;
        self.until_count("dispatch_batches WHERE settled_at IS NOT NULL", |settled| settled == 1).await?;
        let revised = sqlx::query_as(
            "WITH revised AS (
                 INSERT INTO job_revisions (job_id, revision, definition)
                 SELECT job_id, 2, definition || jsonb_build_object('queue', $2::text) FROM job_revisions WHERE job_id = $1
             )
             UPDATE job_executions SET revision = 2, misplaced = true WHERE job_id = $1 RETURNING id, entry",
        );
        Ok(revised.bind(job).bind(queue).fetch_one(&self.pool).await?)
    }

    fn tell(&self, batch: i64) -> Result<()> {
        self.redis.command(&["PUBLISH", "{carillon:0}:wake", &format!("batches {batch}")]).map(|_| ())
    }

    async fn row(&self, execution: Uuid) -> Result<Row> {
        let row = sqlx::query_as("SELECT queue, take, entry, misplaced FROM job_executions WHERE id = $1");
        Ok(row.bind(execution).fetch_one(&self.pool).await?)
    }

    async fn until_in(&self, queue: &str) -> Result<()> {
        let stream = stream_of(queue);
        let length = || Ok(self.redis.command(&["XLEN", &stream])?.number() == Some(1));
        self.until("its entry in the line that is its own", length).await.map(|_| ())
    }
}

/// H117: the entry in the old line is gone in the step that says that nobody has read it.
#[tokio::test]
async fn what_nobody_has_read_moves_at_once_and_is_released() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let (execution, batch) = leader.misplaced("other").await?;
    leader.tell(batch)?;
    leader.until_in("other").await?;
    assert_eq!(leader.length()?, 0, "the old line holds nothing of it");
    let (queue, take, entry, misplaced) = leader.row(execution).await?;
    assert!(entry > batch);
    assert_eq!((queue.as_str(), take, misplaced), ("other", 1, false));
    leader.end().await
}

/// H118: a Redis that may have forgotten a reader says nothing of who has read it: so whoever reads the new one waits for a RUNNING.
#[tokio::test]
async fn what_is_doubtful_moves_without_being_released_and_leaves_a_superseded_entry() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let (execution, batch) = leader.misplaced("other").await?;
    let certified = || -> Result<Option<i64>> {
        Ok(leader.redis.command(&["HGET", CTL, "doubt"])?.text().and_then(|text| text.parse().ok()))
    };
    let before = certified()?;
    leader.redis.command(&["HDEL", CTL, "server"])?;
    leader.until("another certificate", || Ok(certified()? > before)).await?;
    leader.tell(batch)?;
    leader.until_in("other").await?;
    assert_eq!(leader.length()?, 1, "R13a: whoever reads it finds it superseded");
    let (queue, take, entry, misplaced) = leader.row(execution).await?;
    assert!(entry > batch);
    assert_eq!((queue.as_str(), take, misplaced), ("other", 0, false));
    leader.end().await
}

/// What somebody holds is its holder's: it moves once that one has released it and deleted its entry.
#[tokio::test]
async fn what_is_held_moves_once_its_holder_gives_it_back() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let (execution, batch) = leader.misplaced("other").await?;
    let read = ["XREADGROUP", "GROUP", "executors", "holder", "COUNT", "1", "STREAMS", STREAM, ">"];
    let read = leader.redis.command(&read)?;
    let id = read.list().first().and_then(|stream| stream.list().get(1)?.list().first()?.list().first()?.text());
    let id = id.context("nothing was read")?.to_owned();
    leader.tell(batch)?;
    // Another batch that it is told of afterwards has been looked at.
    let marker = leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until_count("dispatch_batches WHERE settled_at IS NOT NULL", |settled| settled == 2).await?;
    let (queue, take, entry, misplaced) = leader.row(execution).await?;
    assert_eq!((queue.as_str(), take, entry, misplaced), ("default", 0, batch, true), "beside {marker}");
    sqlx::query("UPDATE job_executions SET take = 1 WHERE id = $1").bind(execution).execute(&leader.pool).await?;
    leader.redis.command(&["XACK", STREAM, "executors", &id])?;
    leader.redis.command(&["XDEL", STREAM, &id])?;
    leader.tell(batch)?;
    leader.until_in("other").await?;
    let (queue, take, entry, misplaced) = leader.row(execution).await?;
    assert!(entry > batch);
    assert_eq!((queue.as_str(), take, misplaced), ("other", 1, false), "still released");
    leader.end().await
}

/// The gateway died before it told anybody.
#[tokio::test]
async fn what_nobody_tells_of_is_met_by_the_leaders_walk() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let (execution, batch) = leader.misplaced("other").await?;
    leader.until_in("other").await?;
    let (queue, take, entry, misplaced) = leader.row(execution).await?;
    assert!(entry > batch);
    assert_eq!((queue.as_str(), take, misplaced), ("other", 1, false));
    leader.end().await
}
