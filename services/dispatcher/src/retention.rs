//! Makes the days to come and lets the old ones go (`docs/retention.md`).
//!
//! Any number of dispatchers may do this, leader or not: each step reads the truth, is complete in itself, and what needs a
//! lock is tried once a minute by one of them. A step that does not come back is given up after a time of its own, so none
//! holds up the others; what it left half done the next round finds. A Postgres that is away is asked again each minute.

use std::future::Future;
use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_store::retention::{self, Retention, Swept};
use carillon_store::{Store, partitions, revisions};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

/// As often as a lock may be tried for.
const EVERY: Duration = Duration::from_secs(60);
/// Rows are looked through less often.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);
/// Beyond this a step is given up: reading a large day through takes a while.
const STEP_MAX: Duration = Duration::from_secs(15 * 60);
/// Between two alerts about the same.
const ALERT_EVERY: Duration = Duration::from_secs(60 * 60);
/// After so long without a look that came to its end.
const BLIND_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest statement of `store`, which must be one of its own: it reads whole days.
pub(crate) const STATEMENT_MAX: Duration = Duration::from_secs(10 * 60);

/// Runs until the process stops; whatever is left undone then, the next round finds, wherever it runs.
pub(crate) async fn run(store: Store, kept: Retention, shutdown: CancellationToken) -> anyhow::Result<()> {
    let rounds = async {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut making, mut dropping) = (Alert::new("make"), Alert::new("drop"));
        let mut swept = None::<Instant>;
        // Where the last round over jobs was given up, if it was: the next one is due at once, and goes on there.
        let mut after = Uuid::nil();
        loop {
            tick.tick().await;
            match step("make the partitions of the days to come", partitions::make_ahead(&store)).await {
                Some(ahead) => {
                    counter!("carillon_partitions_made_total").increment(u64::from(ahead.made));
                    refused("make", &ahead.refused);
                    making.say(ahead.overdue, &ahead.missing);
                }
                None => making.failed(Instant::now()),
            }
            match step("drop the days that are over", retention::drop_days(&store, &kept)).await {
                Some(round) => {
                    counter!("carillon_partitions_dropped_total").increment(round.dropped.len() as u64);
                    for partition in &round.dropped {
                        info!("{partition} has been kept for long enough and leaves");
                    }
                    refused("drop", &round.refused);
                    dropping.say(round.overdue, &round.waiting);
                }
                None => dropping.failed(Instant::now()),
            }
            if swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
                swept = Some(Instant::now());
                sweep(&store, &kept).await;
                forget_jobs(&store, &kept, &mut after).await;
            } else if !after.is_nil() {
                forget_jobs(&store, &kept, &mut after).await;
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = rounds => Ok(()),
    }
}

async fn sweep(store: &Store, kept: &Retention) {
    if let Some(rows) = step("delete old rows", retention::sweep_default(store, kept)).await {
        counter!("carillon_retention_rows_total").increment(rows.gone);
        refused("delete old rows of", &rows.refused);
    }
    if let Some(revisions) = step("delete superseded definitions", revisions::forget(store, kept.executions)).await {
        counter!("carillon_retention_revisions_total").increment(revisions.gone);
        refused("forget", &revisions.refused);
    }
}

async fn forget_jobs(store: &Store, kept: &Retention, after: &mut Uuid) {
    let Some(jobs_kept) = kept.jobs else { return };
    let mut swept = Swept::default();
    step("delete jobs that are over", retention::forget_jobs_on(store, jobs_kept, after, &mut swept)).await;
    counter!("carillon_retention_jobs_total").increment(swept.gone);
    refused("delete", &swept.refused);
}

fn refused(work: &str, those: &[String]) {
    for why in those {
        warn!("cannot {work} {why}; the others go on, this one is tried again later");
    }
}

async fn step<T>(what: &str, work: impl Future<Output = carillon_store::Result<T>>) -> Option<T> {
    match timeout(STEP_MAX, work).await {
        Ok(Ok(done)) => Some(done),
        Ok(Err(error)) => {
            warn!("cannot {what}, trying again later: {}", with_causes(&error));
            None
        }
        Err(_) => {
            warn!("cannot {what} within {} s, trying again later", STEP_MAX.as_secs());
            None
        }
    }
}

/// Says, in the metrics at once and in the log now and then, that something has been waiting for a day: once two looks running
/// have seen it, since one alone may be that of a dispatcher beside which another is just making them. What no look has come to
/// its end for is not known to be in order: after an hour it counts as one that waits.
struct Alert {
    work: &'static str,
    /// By the last look.
    seen: u32,
    /// Since when no look has come to its end.
    blind: Option<Instant>,
    said: Option<Instant>,
}

impl Alert {
    const fn new(work: &'static str) -> Self {
        Self { work, seen: 0, blind: None, said: None }
    }

    fn say(&mut self, overdue: u32, partitions: &[String]) {
        self.blind = None;
        let overdue = if std::mem::replace(&mut self.seen, overdue) > 0 { overdue } else { 0 };
        let first = partitions.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let work = self.work;
        self.raise(overdue, || {
            format!(
                "{overdue} partitions to {work} have been waiting for a day or longer: somebody holds the table (pg_stat_activity \
                 says who), something of theirs depends on it, or too much stands against it; see docs/retention.md. First of \
                 all that wait: {first}"
            )
        });
    }

    /// A look did not come to its end.
    fn failed(&mut self, now: Instant) {
        let since = *self.blind.get_or_insert(now);
        if now.duration_since(since) >= BLIND_MAX {
            let work = self.work;
            self.raise(self.seen.max(1), || {
                format!("no look for partitions to {work} has come to its end for an hour: the warnings above say why")
            });
        }
    }

    fn raise(&mut self, overdue: u32, text: impl FnOnce() -> String) {
        gauge!("carillon_partitions_overdue", "work" => self.work).set(overdue);
        if overdue == 0 {
            self.said = None;
        } else if self.said.is_none_or(|said| said.elapsed() >= ALERT_EVERY) {
            self.said = Some(Instant::now());
            error!("{}", text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_look_alone_has_seen_is_no_alert() {
        let mut alert = Alert::new("make");
        alert.say(7, &[]);
        assert!(alert.said.is_none(), "another dispatcher may be making them");
        alert.say(0, &[]);
        alert.say(7, &[]);
        assert!(alert.said.is_none());
        alert.say(7, &[]);
        assert!(alert.said.is_some());
        alert.say(0, &[]);
        assert!(alert.said.is_none(), "it is over: the next time is said at once again");
    }

    #[test]
    fn an_hour_in_which_no_look_came_to_its_end_is_an_alert() {
        let mut alert = Alert::new("drop");
        let began = Instant::now();
        alert.failed(began);
        alert.failed(began + BLIND_MAX - EVERY);
        assert!(alert.said.is_none(), "postgres was away for a while");
        alert.failed(began + BLIND_MAX);
        assert!(alert.said.is_some());
        alert.say(0, &[]);
        assert!(alert.said.is_none());
        alert.failed(began + BLIND_MAX * 2);
        assert!(alert.said.is_none(), "the hour begins anew");
    }
}
