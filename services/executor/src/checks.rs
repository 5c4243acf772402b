//! R13: the I/O of check-and-take. `carillon_core::take` decides; one SELECT and one UPDATE a group. R8a: the same SELECT for
//! ordinary entries that were named.
//!
//! Postgres away: what is doubtful is asked about again later, and what was named becomes doubtful with the contact (R21).

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_core::execution::Status;
use carillon_core::take::{self, Decider, Seen, Then, Verdict};
use carillon_failpoint as failpoint;
use carillon_store::Error;
use carillon_store::days::{ByDay, by_days};
use carillon_store::recorder::Held;
use carillon_store::takes::{Release, Taken};
use carillon_stream::EntryId;
use metrics::counter;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::in_hand::Key;
use crate::message::{Checked, Message, Reread};
use crate::shared::Shared;

/// Payloads that Postgres refused to read, since somebody has locked their day, are asked for again after this.
const LOCKED_PAUSE: Duration = Duration::from_secs(5);
/// Rows read at once.
const READ_MAX: usize = 1_000;

/// What is asked of a doubtful entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub key: Key,
    /// Number of the entry's batch.
    pub number: i64,
    /// The entry's.
    pub revision: i64,
    /// R13: W is over.
    pub waited: bool,
}

/// Checks a group in a task of its own; the engine hears [`Message::Checked`].
pub(crate) fn check(shared: &Arc<Shared>, asked: Vec<Asked>, engine: UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let contact = shared.incarnation.contact();
        let may_judge = contact.since.elapsed() >= shared.lease;
        let wait = |asked: &Asked| (asked.key, Checked::Wait);
        let all = asked.clone();
        let outcome = by_days(
            asked,
            |asked| asked.key.execution,
            |some| {
                let shared = Arc::clone(&shared);
                async move { check_now(&shared, contact.worker, may_judge, &some).await }
            },
        );
        let checked: Vec<(Key, Checked)> = match outcome.await {
            Ok(ByDay { answers, refused, why }) => {
                if let Some(error) = why {
                    warn!("cannot check what is doubtful of a day, trying again: {}", with_causes(&error));
                }
                answers.into_iter().flat_map(|(_, checked)| checked).chain(refused.iter().map(wait)).collect()
            }
            Err(error) => {
                shared.incarnation.broke(contact.worker);
                warn!("cannot check what is doubtful, trying again: {}", with_causes(&error));
                all.iter().map(wait).collect()
            }
        };
        let _ = engine.send(Message::Checked(checked));
    });
}

async fn check_now(shared: &Shared, me: Uuid, may_judge: bool, asked: &[Asked]) -> Result<Vec<(Key, Checked)>, Error> {
    let executions: Vec<Uuid> = asked.iter().map(|asked| asked.key.execution).collect();
    let mut seen = shared.store.executions_see(&executions, shared.lease).await?;
    failpoint::reach("take:seen").await;
    // Postgres has lost its last commits, or the execution is older than what it keeps.
    let unknown = asked.iter().filter(|asked| !seen.contains_key(&asked.key.execution)).count();
    counter!("carillon_executor_unknown_total").increment(unknown as u64);
    let mut checked = Vec::with_capacity(asked.len());
    let mut wanted: Vec<(Uuid, Seen, bool)> = Vec::new();
    let mut thens: Vec<(Key, Then)> = Vec::new();
    let mut moving: Vec<(Key, Held)> = Vec::new();
    let mut verdicts: Vec<(&Key, Verdict)> = asked
        .iter()
        .map(|Asked { key, number, waited, .. }| {
            let decider = Decider { me, waited: *waited, may_judge, lost_max: shared.lost_max };
            (key, take::decide(seen.get(&key.execution), key.claim, *number, decider))
        })
        .collect();
    leave_unreadable(shared, asked, &seen, &mut verdicts).await?;
    let lost = verdicts.iter().filter_map(|(_, verdict)| match verdict {
        Verdict::Take { then: Then::Start, lost, .. } => Some(*lost),
        _ => None,
    });
    let worst = if shared.trial.is_on(shared.lease) { i16::MAX } else { lost.max().unwrap_or(0) };
    for (key, verdict) in verdicts {
        match verdict {
            Verdict::Over => checked.push((*key, Checked::Over)),
            Verdict::Leave => checked.push((*key, Checked::Leave)),
            Verdict::Wait => checked.push((*key, Checked::Wait)),
            Verdict::Move => {
                let take = seen.get(&key.execution).map_or(0, |row| row.take);
                moving.push((*key, Held { execution: key.execution, claim: key.claim, take }));
            }
            Verdict::Take { then: Then::Start, lost, .. }
                if take::is_suspect(lost, worst, shared.lost_max) && !shared.trial.begin(*key, shared.lease) =>
            {
                checked.push((*key, Checked::Wait));
            }
            Verdict::Take { count_lost, then, .. } => {
                if let Some(row) = seen.remove(&key.execution) {
                    wanted.push((key.execution, row, count_lost));
                    thens.push((*key, then));
                }
            }
        }
    }
    checked.extend(release(shared, &moving).await?);
    let won = shared.store.executions_take(me, &wanted).await?;
    failpoint::reach("take:taken").await;
    let won: HashMap<Uuid, Taken> = won.into_iter().map(|taken| (taken.held.execution, taken)).collect();
    for (key, then) in thens {
        // Not won: it has moved on, or somebody has locked it. The next look tells.
        checked.push((key, won.get(&key.execution).map_or(Checked::Wait, |taken| taken_as(*taken, then))));
    }
    Ok(checked)
}

/// R13a: whoever may take what has changed to a definition that this version cannot read does not take it. Once it is RUNNING
/// it is not released (R18a).
async fn leave_unreadable(
    shared: &Shared,
    asked: &[Asked],
    seen: &HashMap<Uuid, Seen>,
    verdicts: &mut [(&Key, Verdict)],
) -> Result<(), Error> {
    let starts = |verdict| matches!(verdict, Verdict::Take { then: Then::Start, .. });
    let row = |key: &Key| seen.get(&key.execution);
    let changed = asked.iter().zip(verdicts.iter()).filter(|(asked, (key, verdict))| {
        starts(*verdict) && row(key).is_some_and(|row| row.revision != asked.revision)
    });
    let changed: Vec<Uuid> = changed.map(|(asked, _)| asked.key.execution).collect();
    let adopted = shared.store.executions_adopt(&changed).await?;
    for (key, verdict) in verdicts {
        if starts(*verdict) && matches!(adopted.get(&key.execution), Some(None)) {
            let is_queued = row(key).is_some_and(|row| row.status == Status::Queued);
            *verdict = if is_queued { Verdict::Move } else { Verdict::Leave };
        }
    }
    Ok(())
}

/// R18a, by whom R13 lets take.
async fn release(shared: &Shared, moving: &[(Key, Held)]) -> Result<Vec<(Key, Checked)>, Error> {
    let held: Vec<Held> = moving.iter().map(|(_, held)| *held).collect();
    let outcomes = shared.store.executions_release(&held).await?;
    let checked = |outcome| match outcome {
        Release::Done => Checked::Move,
        Release::Over => Checked::Over,
        // Not as it was seen any more, or locked: the next look tells.
        Release::Lost => Checked::Wait,
    };
    Ok(moving.iter().zip(outcomes).map(|((key, _), outcome)| (*key, checked(outcome))).collect())
}

/// What was requested between the look and the take is heard by the take.
fn taken_as(taken: Taken, then: Then) -> Checked {
    let then = match then {
        Then::Start if taken.withdrawn => Then::Skip,
        Then::Start if taken.cancel_requested => Then::Cancel,
        other => other,
    };
    Checked::Taken { take: taken.held.take, revision: taken.revision, then }
}

/// R8a: reads the rows of what was named, in a task of its own; the engine hears [`Message::Reread`] with `question`. `token` lives as
/// long as the task.
pub(crate) fn reread(
    shared: &Arc<Shared>,
    question: u64,
    named: Vec<(Held, i64)>,
    engine: UnboundedSender<Message>,
    token: Arc<()>,
) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _token = token;
        for some in named.chunks(READ_MAX) {
            let reread = |me: Uuid, some: Vec<(Held, i64)>| {
                let shared = Arc::clone(&shared);
                async move { reread_now(&shared, me, &some).await }
            };
            let ByDay { answers, refused, .. } =
                ask_surely(&shared, "what was named", some, |(held, _)| held.execution, reread).await;
            let refused = refused.into_iter().map(|(held, _)| (held, Reread::Refused));
            let answers = answers.into_iter().flat_map(|(_, answers)| answers).chain(refused).collect();
            let _ = engine.send(Message::Reread(question, answers));
        }
    });
}

async fn reread_now(shared: &Shared, me: Uuid, named: &[(Held, i64)]) -> Result<Vec<(Held, Reread)>, Error> {
    let executions: Vec<Uuid> = named.iter().map(|(held, _)| held.execution).collect();
    // Whether a worker lives is not asked for.
    let seen = shared.store.executions_see(&executions, Duration::ZERO).await?;
    let mut answers = Vec::with_capacity(named.len());
    let mut changed = Vec::new();
    for (held, revision) in named {
        let row = seen.get(&held.execution);
        let what = take::reread(row, held.claim, held.take, me);
        if what == take::Reread::Stay && row.is_some_and(|row| row.revision != *revision) {
            changed.push(held.execution);
        }
        answers.push((*held, Reread::Row(what)));
    }
    let mut adopted = shared.store.executions_adopt(&changed).await?;
    for (held, answer) in &mut answers {
        *answer = match adopted.remove(&held.execution) {
            Some(Some(what)) => Reread::Adopt(what),
            // Superseded by what this version cannot read: the leader publishes it anew for who can, if it can read it.
            Some(None) if held.take == 0 => Reread::Row(take::Reread::Move),
            Some(None) => Reread::Row(take::Reread::LetGo),
            // One whose definition is gone runs with what its entry says, and is recorded so.
            None => continue,
        };
    }
    Ok(answers)
}

/// R17: asks of which running handlers a cancel was requested, in a task of its own; the engine hears
/// [`Message::CancelsRequested`].
pub(crate) fn ask_cancels(shared: &Arc<Shared>, running: Vec<Held>, engine: UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut requested = Vec::new();
        for some in running.chunks(READ_MAX) {
            let cancels = |_, some: Vec<Held>| {
                let shared = Arc::clone(&shared);
                async move { shared.store.executions_cancels(&some).await }
            };
            // What is refused is asked for with the next beat again.
            let ByDay { answers, .. } =
                ask_surely(&shared, "whether a cancel was requested", some, |held| held.execution, cancels).await;
            requested.extend(answers.into_iter().flat_map(|(_, requested)| requested));
        }
        let _ = engine.send(Message::CancelsRequested(requested));
    });
}

/// Asks until there is an answer; what Postgres refuses of one day ([`by_days`]) is answered as refused.
async fn ask_surely<T: Clone, A, F: Future<Output = Result<A, Error>>>(
    shared: &Shared,
    what: &str,
    about: &[T],
    id: impl Fn(&T) -> Uuid,
    ask: impl Fn(Uuid, Vec<T>) -> F,
) -> ByDay<T, A> {
    loop {
        let me = shared.incarnation.unbroken().await.worker;
        match by_days(about.to_vec(), &id, |some| ask(me, some)).await {
            Ok(answered) => {
                if let Some(error) = &answered.why {
                    warn!("cannot read {what} of a day: {}", with_causes(error));
                }
                return answered;
            }
            Err(error) => unanswered(shared, me, what, error).await,
        }
    }
}

/// Notes that Postgres did not say `what`, and waits a little before it is asked again.
pub(crate) async fn unanswered(shared: &Shared, worker: Uuid, what: &str, error: Error) {
    if error.is_away() {
        shared.incarnation.broke(worker);
    }
    warn!("cannot read {what}, trying again: {}", with_causes(&error));
    tokio::time::sleep(shared.window / 8).await;
}

/// Fetches payloads in a task of its own; the engine hears [`Message::Payloads`].
pub(crate) fn fetch_payloads(shared: &Arc<Shared>, asked: Vec<Key>, engine: UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let payloads = |_, some: Vec<Key>| {
            let shared = Arc::clone(&shared);
            async move {
                let executions: Vec<Uuid> = some.iter().map(|key| key.execution).collect();
                shared.store.executions_payloads(&executions).await
            }
        };
        let ByDay { answers, refused, .. } =
            ask_surely(&shared, "payloads", &asked, |key| key.execution, payloads).await;
        let (mut read, mut payloads) = (Vec::new(), HashMap::new());
        for (keys, some) in answers {
            read.extend(keys);
            payloads.extend(some);
        }
        let _ = engine.send(Message::Payloads(read, payloads));
        if !refused.is_empty() {
            tokio::time::sleep(LOCKED_PAUSE).await;
            let _ = engine.send(Message::Lacking(refused));
        }
    });
}

/// R8a, R23: looks at Redis in a task of its own, also for those of `held` that the cancelled set names; the engine hears
/// [`Message::Looked`].
pub(crate) fn look(shared: &Arc<Shared>, held: Vec<Uuid>, engine: UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // A Redis that does not answer says nothing of what is held.
        if let Ok(look) = shared.redis.look_for(&held).await {
            let _ = engine.send(Message::Looked(look));
        }
    });
}

/// R12, for what a check found over.
pub(crate) fn acknowledge(shared: &Arc<Shared>, line: usize, id: EntryId) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Err(error) = shared.redis.acknowledge(&shared.lines[line], &[id]).await {
            debug!("not acknowledged, found over again later: {}", with_causes(&error));
        }
    });
}
