//! R18a: what this executor holds and will not start goes to others. What is ordinary is released first, so that whoever
//! takes it need not wait for anybody's RUNNING; what is doubtful goes as it is, and is checked there (R13).
//!
//! What anybody may run goes to the consumer that everybody takes from ([`RELEASED`]), each as far as it has room; what only
//! some offer goes to one of them. Late, doubled or lost: the row decides, not Redis. Postgres away: nothing is released;
//! Redis away: it stays pending here. Both ways the others take it once this executor has ended (R15).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::ids;
use carillon_store::recorder::Held;
use carillon_store::takes::Release;
use carillon_stream::EntryId;
use carillon_stream::claims::RELEASED;
use futures_util::{StreamExt, stream};
use metrics::counter;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::checks::unanswered;
use crate::in_hand::Key;
use crate::message::{Message, Offer};
use crate::shared::Shared;

/// Rows released in one statement, entries moved by one command.
const AT_ONCE_MAX: usize = 1_000;
/// Days that are handed over side by side: somebody may have locked some of them.
const DAYS_AT_ONCE: usize = 4;
/// What Redis may take to move a draining executor's entries.
pub(crate) const MOVE_MAX: Duration = Duration::from_secs(1);

/// An entry on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    pub key: Key,
    /// What its row is released by; `None` for what goes as it is.
    pub ordinary: Option<Held>,
    /// Index of its line.
    pub line: usize,
    pub id: EntryId,
}

/// To whom.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// Whoever has room.
    All,
    /// One that offers its handler.
    Consumer(String),
}

/// Looks for an executor that offers what this one does not, as an old one must while new ones are rolled out; the engine
/// hears [`Message::NotOffered`].
pub(crate) fn find_offer(
    shared: &Arc<Shared>,
    key: Key,
    handler: String,
    line: usize,
    engine: UnboundedSender<Message>,
) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let other = loop {
            let me = shared.incarnation.unbroken().await.worker;
            match shared.store.consumer_offering(&handler, &shared.lines[line].queue, shared.lease).await {
                Ok(other) => break other,
                Err(error) => unanswered(&shared, me, "who offers a handler", error).await,
            }
        };
        let _ = engine.send(Message::NotOffered(key, other.map_or(Offer::Nobody, Offer::By)));
    });
}

/// Hands over in a task of its own, in `limit` where one is given (and Redis' own time), each day by itself, so that what
/// keeps one day keeps no other; the engine hears [`Message::HandedOver`] of each whatever became of it.
pub(crate) fn hand_over(
    shared: &Arc<Shared>,
    leaving: Vec<Leaving>,
    to: To,
    limit: Option<Duration>,
    engine: UnboundedSender<Message>,
) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let until = limit.map(|limit| Instant::now() + limit);
        let hand_over_some = |some: Vec<Leaving>| hand_over_some(&shared, some, &to, until, &engine);
        stream::iter(apart(leaving)).for_each_concurrent(DAYS_AT_ONCE, hand_over_some).await;
    });
}

/// First what goes as it is, which waits for nobody, then each day's, today's first.
fn apart(mut leaving: Vec<Leaving>) -> Vec<Vec<Leaving>> {
    let day_of = |leaving: &Leaving| leaving.ordinary.map(|held| Reverse(ids::day(held.execution)));
    leaving.sort_by_key(day_of);
    let days = leaving.chunk_by(|one, other| day_of(one) == day_of(other));
    days.flat_map(|day| day.chunks(AT_ONCE_MAX)).map(<[Leaving]>::to_vec).collect()
}

async fn hand_over_some(
    shared: &Arc<Shared>,
    some: Vec<Leaving>,
    to: &To,
    until: Option<Instant>,
    engine: &UnboundedSender<Message>,
) {
    let going = release(shared, &some, until).await;
    match tokio::time::timeout(MOVE_MAX, move_to(shared, &going, to)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("what is handed over stays here for now: {}", with_causes(&error)),
        Err(_) => warn!("what is handed over stays here for now: redis does not answer"),
    }
    let _ = engine.send(Message::HandedOver(some.into_iter().map(|leaving| leaving.key).collect()));
}

/// R23a: what belongs into another line goes to the leader: its entry is deleted, so that R19 publishes it there. In a task of its
/// own; the engine hears [`Message::HandedOver`] before the leader does, since the new entry may come back to this executor.
pub(crate) fn give_back(shared: &Arc<Shared>, leaving: Leaving, engine: UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let going = release(&shared, &[leaving], None).await;
        let mut gone = Vec::with_capacity(going.len());
        for Leaving { line, id, .. } in going {
            match shared.redis.acknowledge(&shared.lines[line], &[id]).await {
                Ok(()) => gone.push(id.number),
                Err(error) => debug!("stays in its old line for now: {}", with_causes(&error)),
            }
        }
        let _ = engine.send(Message::HandedOver(vec![leaving.key]));
        if !gone.is_empty() && shared.redis.tell_misplaced(&gone).await.is_err() {
            debug!("the leader finds by its own rounds what left its line");
        }
    });
}

/// R18a. Answers what may go: what is released, and what goes as it is.
async fn release(shared: &Arc<Shared>, leaving: &[Leaving], until: Option<Instant>) -> Vec<Leaving> {
    let held: Vec<Held> = leaving.iter().filter_map(|leaving| leaving.ordinary).collect();
    let releasing = release_surely(shared, &held);
    let outcomes = match until {
        Some(until) => tokio::time::timeout_at(until.into(), releasing).await.unwrap_or_default(),
        None => releasing.await,
    };
    let mut over: BTreeMap<usize, Vec<EntryId>> = BTreeMap::new();
    let mut going = Vec::with_capacity(leaving.len());
    for leaving in leaving {
        // What was not answered in time stays: its holder has ended before anybody takes it.
        match leaving.ordinary.map(|held| outcomes.get(&held.execution)) {
            None | Some(Some(Release::Done)) => going.push(*leaving),
            Some(Some(Release::Over)) => over.entry(leaving.line).or_default().push(leaving.id),
            Some(Some(Release::Lost) | None) => {}
        }
    }
    for (line, ids) in over {
        if let Err(error) = shared.redis.acknowledge(&shared.lines[line], &ids).await {
            debug!("not acknowledged, found over again later: {}", with_causes(&error));
        }
    }
    going
}

/// Until the outcome is known. A contact that broke meanwhile changes nothing: what was taken out of what may start is started
/// by nobody under this take, so the row's guard alone says whether it is still to be released.
async fn release_surely(shared: &Shared, held: &[Held]) -> HashMap<Uuid, Release> {
    if held.is_empty() {
        return HashMap::new();
    }
    loop {
        let me = shared.incarnation.unbroken().await.worker;
        match shared.store.executions_release(held).await {
            Ok(outcomes) => {
                let done = outcomes.iter().filter(|outcome| **outcome == Release::Done).count();
                counter!("carillon_executor_released_total").increment(done as u64);
                return held.iter().map(|held| held.execution).zip(outcomes).collect();
            }
            Err(error) => unanswered(shared, me, "whether what is held was released", error).await,
        }
    }
}

async fn move_to(shared: &Shared, going: &[Leaving], to: &To) -> Result<(), carillon_stream::Error> {
    if going.is_empty() {
        return Ok(());
    }
    let mut by_line: BTreeMap<usize, Vec<EntryId>> = BTreeMap::new();
    for leaving in going {
        by_line.entry(leaving.line).or_default().push(leaving.id);
    }
    let consumer = match to {
        To::All => RELEASED,
        To::Consumer(name) => name,
    };
    for (line, ids) in by_line {
        for some in ids.chunks(AT_ONCE_MAX) {
            shared.redis.hand_on(&shared.lines[line], consumer, some).await?;
        }
    }
    shared.redis.tell_handed_on(consumer).await
}

/// R18a: a draining executor offers nothing any more, so that nobody hands anything on to it. In a task of its own, for a
/// moment at most.
pub(crate) fn offer_nothing(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let worker = shared.incarnation.contact().worker;
        match tokio::time::timeout(MOVE_MAX, shared.store.worker_offers_nothing(worker)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("still said to offer its handlers: {}", with_causes(&error)),
            Err(_) => debug!("still said to offer its handlers: postgres does not answer"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(execution: u128, is_ordinary: bool) -> Leaving {
        let (execution, claim) = (Uuid::from_u128(execution), 1);
        let ordinary = is_ordinary.then_some(Held { execution, claim, take: 0 });
        Leaving { key: Key { execution, claim }, ordinary, line: 0, id: EntryId { number: 1, seq: 1 } }
    }

    #[test]
    fn what_waits_for_nobody_goes_first_then_each_day_by_itself_today_first() {
        const DAY: u128 = 86_400_000 << 80;
        let all = [(1, true), (DAY + 1, true), (2, false), (DAY + 2, true), (3, true), (DAY + 3, false)];
        let groups = apart(all.map(|(execution, is_ordinary)| leaving(execution, is_ordinary)).to_vec());
        let ids = |group: &Vec<Leaving>| group.iter().map(|some| some.key.execution.as_u128()).collect::<Vec<_>>();
        let groups: Vec<Vec<u128>> = groups.iter().map(ids).collect();
        assert_eq!(groups, [vec![2, DAY + 3], vec![DAY + 1, DAY + 2], vec![1, 3]]);
        let many = apart((0..2_500).map(|n| leaving(n, true)).collect());
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    }
}
