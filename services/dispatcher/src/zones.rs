//! Time zone data that has changed: what is to come is reckoned anew.
//!
//! Zone data is the system's, and a process reads it once. Timers stand at instants that were reckoned by the data of the process
//! that put them there, up to years ago. So whoever begins to lead walks all jobs, if the last walk went by other data than its
//! own, and once a day in any case, since a gateway with other data may have made a job; it goes a page at a time, beside the
//! claims, with no more than half a core. What falls due before the walk has come to it fires as it stands.
//!
//! A timetable that is dear to search keeps its timer where it is, and so does one that nobody can read.

use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::misfire;
use carillon_core::schedule::{Timetable, zone_rules};
use carillon_store::zones::{Reckoned, ZonedPage};
use carillon_store::{Store, zones};
use carillon_stream::Redis;
use metrics::counter;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// Between two walks by the same data.
const EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two looks whether there is a walk to go, and after a step that failed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Beyond this a page is given up, and gone on with at the next look.
const PAGE_MAX: Duration = Duration::from_secs(30);
/// Between two pages: as long as the last one took, at least.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// Looks at exclusions that each search has; some 0.5 ms. A dozen calendars of holidays need a hundredth.
const LOOKS: usize = 16_000;
/// Tries of a page where somebody holds some of it, or Postgres refuses it, [`AGAIN`] apart; then it is left to the next walk.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_millis(200);

/// Walks where this process leads, until it stops.
pub(crate) async fn run(
    store: Store,
    redis: Redis,
    mut leads: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let walking = async {
        let rules = tokio::task::spawn_blocking(zone_rules).await?;
        // Its sender lives as long as the election does.
        while leads.wait_for(|leads| *leads).await.is_ok() {
            tokio::select! {
                _ = leads.wait_for(|leads| !leads) => {}
                () = walk_on(&store, &redis, rules) => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        outcome = walking => outcome,
    }
}

async fn walk_on(store: &Store, redis: &Redis, rules: i64) {
    loop {
        if let Err(error) = walk(store, redis, rules).await {
            warn!("cannot reckon anew by the rules of time zones, going on later: {error:#}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One walk, from where it was left, if there is one to go.
async fn walk(store: &Store, redis: &Redis, rules: i64) -> anyhow::Result<()> {
    let Some(mut after) = zones::walk(store, rules, EVERY).await? else { return Ok(()) };
    let (began, mut moved) = (Instant::now(), 0);
    loop {
        let page_began = Instant::now();
        let Some((reached, some)) = timeout(PAGE_MAX, page(store, rules, after)).await?? else { break };
        // Another leader walks by other data.
        if !zones::reached(store, rules, reached).await? {
            return Ok(());
        }
        after = reached;
        moved += some;
        if some > 0 {
            counter!("carillon_dispatcher_timers_reckoned_total").increment(some as u64);
            // Whether it is heard or not: the leader reads its agenda anew now and then.
            let _ = redis.wake().await;
        }
        tokio::time::sleep(page_began.elapsed().max(PAGE_PAUSE)).await;
    }
    zones::ended(store, rules).await?;
    if moved > 0 {
        info!(moved, took = ?began.elapsed(), "the rules of time zones have changed: what is to come was reckoned anew");
    }
    Ok(())
}

/// One page. Answers where it ends and how many timers moved; `None`: there are no further jobs.
///
/// What somebody holds is tried again. What Postgres refuses, again and again, is passed over: the jobs behind it have their turn.
async fn page(store: &Store, rules: i64, after: Uuid) -> anyhow::Result<Option<(Uuid, usize)>> {
    let (mut tries, mut moved) = (0, 0);
    loop {
        tries += 1;
        match step(store, rules, after).await {
            Ok(Some(step)) => {
                moved += step.moved;
                if step.left == 0 || tries == TRIES {
                    return Ok(Some((step.reached, moved)));
                }
            }
            Ok(None) => return Ok(None),
            Err(error) if error.is_unavailable() => return Err(error.into()),
            Err(error) if tries == TRIES => {
                warn!("jobs are left out that cannot be reckoned anew, behind {after}: {}", with_causes(&error));
                return Ok(zones::page_end(store, after).await?.map(|end| (end, moved)));
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What came of a try.
struct Step {
    reached: Uuid,
    moved: usize,
    /// Timers that somebody held, or had moved.
    left: usize,
}

async fn step(store: &Store, rules: i64, after: Uuid) -> carillon_store::Result<Option<Step>> {
    let Some(page) = zones::page(store, after).await? else { return Ok(None) };
    let reached = page.reached;
    // One that panics has found nothing: its timers stay where they are.
    let reckoned = tokio::task::spawn_blocking(move || reckon(page)).await.unwrap_or_default();
    let moved = if reckoned.is_empty() { 0 } else { zones::reckon(store, rules, &reckoned).await?.len() };
    Ok(Some(Step { reached, moved, left: reckoned.len() - moved }))
}

fn reckon(page: ZonedPage) -> Vec<Reckoned> {
    let mut reckoned = Vec::new();
    for zoned in page.jobs {
        let Some(spec) = zoned.timetable.filter(|spec| spec.follows_zones()) else { continue };
        let Ok(timetable) = Timetable::parse_accepted(&spec, zoned.job, LOOKS) else { continue };
        if let Some(to) = misfire::reckon_anew(&timetable, zoned.stands_at, zoned.since, page.now) {
            reckoned.push(Reckoned {
                job: zoned.job,
                revision: zoned.revision,
                is_paused: zoned.is_paused,
                from: zoned.stands_at,
                to,
            });
        }
    }
    reckoned
}
