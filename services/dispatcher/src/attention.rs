//! Jobs that want looking at (`carillon_store::attention`): one whose timetable has ended becomes COMPLETED once nothing of
//! it is open; of one that was deleted whatever is still open is ended, if whoever deleted it went away in the middle.
//!
//! Any dispatcher does this, leading or not, a page at a time and outside of any claim; several at once pass over what another
//! looks at. What it leaves undone when it dies is found by the next round.
//!
//! Deleted jobs are ended beside the looks, some at once, each for a moment at a time: one with millions of executions delays
//! the others by that moment. One that fails, because somebody has locked what it needs, say, is tried again by itself, later
//! and later. Who has no room here keeps its note, and is met again by that.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_kit::sleep_until;
use carillon_store::jobs::Deleting;
use carillon_store::{Store, attention};
use carillon_stream::Redis;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

/// Between two looks: how late a job is shown COMPLETED.
const EVERY: Duration = Duration::from_millis(500);
/// Between two looks while Postgres does not answer.
const PAUSE: Duration = Duration::from_secs(5);
/// Notes looked at together: so many jobs are locked at once, for one statement.
const PAGE: i64 = 100;
/// Between two of them while there are more: as long as the last one took, at least. It is a chore, and has no more than half
/// of one of Postgres' cores, however many jobs end; what waits for a claim does not wait for it.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// Longer than any of it takes in good order: a look, or a step, that does not come back holds up nobody.
const LOOK_MAX: Duration = Duration::from_secs(20);
/// Deleted jobs in hand, at most.
const DELETED_MAX: usize = 1_000;
/// Deleted jobs that are ended at the same time, each on a connection of the pool.
const AT_ONCE: usize = 2;
/// A job's turn, before another has its.
const TURN: Duration = Duration::from_millis(200);
/// Until one that has failed is tried again; twice as long each time,
const AGAIN: Duration = Duration::from_secs(1);
/// but never longer than this.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Notes of one job that are forgotten with its end; whatever there is beyond is met again.
const NOTES_MAX: usize = 100;

/// Looks until the process stops.
pub(crate) async fn run(store: Store, redis: Redis, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (found, deleted) = mpsc::channel(DELETED_MAX);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = look_on(&store, &found) => {}
        () = end_on(&store, &redis, deleted) => {}
    }
    Ok(())
}

async fn look_on(store: &Store, deleted: &mpsc::Sender<(i64, Uuid)>) {
    let mut complained = false;
    loop {
        let pause = match look_at_all(store, deleted).await {
            Ok(()) => {
                complained = false;
                EVERY
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    warn!("cannot look at jobs that have ended, trying again: {error:#}");
                }
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn look_at_all(store: &Store, deleted: &mpsc::Sender<(i64, Uuid)>) -> anyhow::Result<()> {
    loop {
        let began = Instant::now();
        let looked = match timeout(LOOK_MAX, attention::look(store, PAGE)).await {
            // Nothing was done; the notes are there for the next round.
            Ok(Err(carillon_store::Error::Conflict(_) | carillon_store::Error::Busy(_))) => return Ok(()),
            Ok(looked) => looked?,
            Err(_) => anyhow::bail!("it does not come back"),
        };
        counter!("carillon_dispatcher_completed_total").increment(looked.completed.len() as u64);
        for found in looked.deleted {
            // No room: its note stays.
            let _ = deleted.try_send(found);
        }
        if looked.notes < usize::try_from(PAGE).unwrap_or(usize::MAX) {
            return Ok(());
        }
        tokio::time::sleep(began.elapsed().max(PAGE_PAUSE)).await;
    }
}

/// Deleted jobs in hand, and whose turn it is.
#[derive(Debug)]
struct Turns<T> {
    /// The notes of each.
    notes: HashMap<Uuid, BTreeSet<i64>>,
    ready: VecDeque<(Uuid, T)>,
    /// Those that have failed, how often in a row, and when they are ready again.
    failed: HashMap<Uuid, u32>,
    later: Vec<(Instant, Uuid, T)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { notes: HashMap::new(), ready: VecDeque::new(), failed: HashMap::new(), later: Vec::new() }
    }
}

impl<T> Turns<T> {
    fn add(&mut self, note: i64, job: Uuid, new: impl FnOnce() -> T) {
        if let Some(notes) = self.notes.get_mut(&job) {
            if notes.len() < NOTES_MAX {
                notes.insert(note);
            }
        } else if self.notes.len() < DELETED_MAX {
            self.notes.insert(job, BTreeSet::from([note]));
            self.ready.push_back((job, new()));
        }
    }

    fn next(&mut self, now: Instant) -> Option<(Uuid, T)> {
        if let Some(at) = self.later.iter().position(|(due, ..)| *due <= now) {
            let (_, job, work) = self.later.swap_remove(at);
            self.ready.push_back((job, work));
        }
        self.ready.pop_front()
    }

    /// When one that has failed is ready again.
    fn next_at(&self) -> Option<Instant> {
        self.later.iter().map(|(due, ..)| *due).min()
    }

    /// It has had its turn, and there is more of it.
    fn again(&mut self, job: Uuid, work: T) {
        self.failed.remove(&job);
        self.ready.push_back((job, work));
    }

    /// Answers for how long it is let be.
    fn failed(&mut self, job: Uuid, work: T, now: Instant) -> Duration {
        let times = self.failed.entry(job).or_default();
        let pause = (AGAIN * 2_u32.saturating_pow(*times)).min(AGAIN_MAX);
        *times = times.saturating_add(1).min(16);
        self.later.push((now + pause, job, work));
        pause
    }

    fn over(&mut self, job: Uuid) {
        self.notes.remove(&job);
        self.failed.remove(&job);
    }
}

/// What came of a turn.
enum Outcome {
    More,
    Over,
    Failed(anyhow::Error),
}

async fn end_on(store: &Store, redis: &Redis, mut deleted: mpsc::Receiver<(i64, Uuid)>) {
    let mut turns = Turns::default();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((job, deleting)) = turns.next(Instant::now())
        {
            let notes: Vec<i64> = turns.notes.get(&job).into_iter().flatten().copied().collect();
            running.push(turn(store, redis, job, deleting, notes));
        }
        gauge!("carillon_dispatcher_deletions").set(turns.notes.len() as f64);
        // Whoever is ready and has no place waits for one that runs.
        let due = turns.next_at().filter(|_| running.len() < AT_ONCE);
        tokio::select! {
            found = deleted.recv() => match found {
                Some((note, job)) => turns.add(note, job, || Deleting::of(store, job)),
                None => return,
            },
            Some((job, deleting, outcome)) = running.next() => match outcome {
                Outcome::More => turns.again(job, deleting),
                Outcome::Over => turns.over(job),
                Outcome::Failed(error) => {
                    counter!("carillon_dispatcher_deletions_failed_total").increment(1);
                    let pause = turns.failed(job, deleting, Instant::now());
                    warn!(job.id = %job, "cannot end what is open of a deleted job, trying again in {pause:?}: {error:#}");
                }
            },
            () = sleep_until(due) => {}
        }
    }
}

/// A moment of work for one job.
async fn turn(
    store: &Store,
    redis: &Redis,
    job: Uuid,
    mut deleting: Deleting,
    notes: Vec<i64>,
) -> (Uuid, Deleting, Outcome) {
    let until = Instant::now() + TURN;
    loop {
        let outcome = match timeout(LOOK_MAX, step(store, redis, job, &mut deleting, &notes)).await {
            Ok(Ok(true)) if Instant::now() < until => continue,
            Ok(Ok(true)) => Outcome::More,
            Ok(Ok(false)) => Outcome::Over,
            Ok(Err(error)) => Outcome::Failed(error),
            // It may be done again from where it began.
            Err(_) => Outcome::Failed(anyhow::anyhow!("it does not come back")),
        };
        return (job, deleting, outcome);
    }
}

/// R17. Answers whether there is more. Word to executors is best effort: what they do not hear now, they find by their own
/// rounds.
async fn step(store: &Store, redis: &Redis, job: Uuid, deleting: &mut Deleting, notes: &[i64]) -> anyhow::Result<bool> {
    let Some(asked) = deleting.step().await? else {
        for note in notes {
            attention::forget(store, *note).await?;
        }
        return Ok(false);
    };
    if !asked.is_empty()
        && let Err(error) = redis.tell_cancelled(&asked).await
    {
        warn!(job.id = %job, "cannot tell executors what was cancelled: {}", with_causes(&error));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_and_one_that_fails_waits_alone() {
        let mut turns = Turns::default();
        let now = Instant::now();
        let [large, broken, small] = [1, 2, 3].map(Uuid::from_u128);
        for (note, job) in [(1, large), (2, broken), (3, small), (4, large)] {
            turns.add(note, job, || "work");
        }
        assert_eq!(turns.notes[&large], BTreeSet::from([1, 4]), "its second note begins nothing new");
        let mut seen = Vec::new();
        for _ in 0..6 {
            let (job, work) = turns.next(now).expect("one is ready");
            seen.push(job);
            match job {
                job if job == large => turns.again(job, work),
                job if job == broken => assert_eq!(turns.failed(job, work, now), AGAIN),
                job => turns.over(job),
            }
        }
        assert_eq!(seen, [large, broken, small, large, large, large]);
        assert_eq!(turns.next_at(), Some(now + AGAIN));
        let (job, _) = turns.next(now).expect("one is ready");
        assert_eq!(job, large);
        let (job, work) = turns.next(now + AGAIN).expect("it is ready again");
        assert_eq!(job, broken);
        assert_eq!(turns.failed(job, work, now), 2 * AGAIN);
    }

    #[test]
    fn what_is_in_hand_is_bounded_and_so_is_a_pause() {
        let mut turns = Turns::default();
        let now = Instant::now();
        for n in 0..2 * DELETED_MAX as i64 {
            turns.add(n, Uuid::from_u128(n as u128), || ());
            turns.add(n, Uuid::nil(), || ());
        }
        assert_eq!((turns.notes.len(), turns.ready.len()), (DELETED_MAX, DELETED_MAX));
        assert_eq!(turns.notes[&Uuid::nil()].len(), NOTES_MAX);
        for _ in 0..40 {
            let (job, ()) = turns.ready.pop_front().or_else(|| turns.next(now + AGAIN_MAX)).expect("one is ready");
            assert!(turns.failed(job, (), now) <= AGAIN_MAX);
        }
        let pauses: Vec<Duration> = (0..40).map(|_| turns.failed(Uuid::nil(), (), now)).collect();
        assert!(pauses.is_sorted() && pauses[39] == AGAIN_MAX);
    }
}
