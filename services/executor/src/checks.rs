//! R13: the I/O of check-and-take. `carillon_core::take` decides; one SELECT and one UPDATE a group.

use std::sync::Arc;
use std::time::Duration;

use carillon_core::take::{Decider, Seen, Then, Verdict, decide};
use carillon_failpoint as failpoint;
use carillon_store::Error;
use carillon_stream::EntryId;
use tokio::sync::mpsc;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::in_hand::Key;
use crate::message::Message;
use crate::shared::Shared;

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Ask again later.
    Wait,
    /// Somebody alive runs it, or was quicker to take it.
    Leave,
    /// Recorded, or unknown: acknowledge.
    Over,
    /// Taken, with the take's number.
    Taken(i32, Then),
}

/// Who offers a handler that this executor does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Another, which has the entry now.
    HandedOn,
    /// No live executor of that queue.
    Nobody,
}

/// Hands an entry whose handler this executor does not offer to one that does, as an old executor must while new ones are
/// rolled out. In a task of its own; the engine hears [`Message::NotOffered`]. There it is among the receiver's own pending
/// entries, and so doubtful (R8): nothing needs to be known here of whether it was ordinary.
pub(crate) fn hand_on(
    shared: &Arc<Shared>,
    key: Key,
    handler: String,
    place: (usize, EntryId),
    engine: mpsc::UnboundedSender<Message>,
) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            let contact = shared.incarnation.unbroken().await;
            match hand_on_now(&shared, &handler, place).await {
                Ok(offer) => {
                    let _ = engine.send(Message::NotOffered(key, offer));
                    return;
                }
                Err(error) => {
                    if error.downcast_ref::<Error>().is_some_and(Error::is_unavailable) {
                        shared.incarnation.broke(contact.worker);
                    }
                    warn!(handler, "cannot hand on what another executor offers, trying again: {error:#}");
                    tokio::time::sleep(shared.window / 8).await;
                }
            }
        }
    });
}

async fn hand_on_now(shared: &Shared, handler: &str, (index, id): (usize, EntryId)) -> anyhow::Result<Offer> {
    let line = &shared.lines[index];
    let Some(other) = shared.store.consumer_offering(handler, &line.queue, shared.lease).await? else {
        return Ok(Offer::Nobody);
    };
    shared.redis.claim(line, index, &other, Duration::ZERO, &[id]).await?;
    Ok(Offer::HandedOn)
}

/// Checks a group in a task of its own; the engine hears [`Message::Checked`].
pub(crate) fn check(shared: &Arc<Shared>, asked: Vec<(Key, bool)>, engine: mpsc::UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let contact = shared.incarnation.contact();
        let checked = match check_now(&shared, contact.worker, contact.since.elapsed() >= shared.lease, &asked).await {
            Ok(checked) => checked,
            Err(error) => {
                if error.is_unavailable() {
                    shared.incarnation.broke(contact.worker);
                }
                warn!("cannot check what is doubtful, trying again: {:#}", anyhow::Error::from(error));
                asked.iter().map(|(key, _)| (*key, Checked::Wait)).collect()
            }
        };
        let _ = engine.send(Message::Checked(checked));
    });
}

async fn check_now(
    shared: &Shared,
    me: Uuid,
    may_judge: bool,
    asked: &[(Key, bool)],
) -> Result<Vec<(Key, Checked)>, Error> {
    let executions: Vec<Uuid> = asked.iter().map(|(key, _)| key.execution).collect();
    let mut seen = shared.store.see(&executions, shared.lease).await?;
    failpoint::reach("take:seen").await;
    let mut checked = Vec::with_capacity(asked.len());
    let mut wanted: Vec<(Uuid, Seen, bool)> = Vec::new();
    let mut thens: Vec<(Key, Then)> = Vec::new();
    for (key, waited) in asked {
        let decider = Decider { me, waited: *waited, may_judge, lost_max: shared.lost_max };
        let row = seen.get(&key.execution);
        match decide(row, key.claim, decider) {
            Verdict::Over => checked.push((*key, Checked::Over)),
            Verdict::Leave => checked.push((*key, Checked::Leave)),
            Verdict::Wait => checked.push((*key, Checked::Wait)),
            Verdict::Take { count_lost, then } => {
                if let Some(row) = seen.remove(&key.execution) {
                    wanted.push((key.execution, row, count_lost));
                    thens.push((*key, then));
                }
            }
        }
    }
    let won = shared.store.take(me, &wanted).await?;
    failpoint::reach("take:taken").await;
    for (key, then) in thens {
        let taken = won.iter().find(|held| held.execution == key.execution);
        checked.push((key, taken.map_or(Checked::Leave, |held| Checked::Taken(held.take, then))));
    }
    Ok(checked)
}

/// Fetches payloads in a task of its own; the engine hears [`Message::Payloads`].
pub(crate) fn fetch_payloads(shared: &Arc<Shared>, asked: Vec<Key>, engine: mpsc::UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let executions: Vec<Uuid> = asked.iter().map(|key| key.execution).collect();
        loop {
            let contact = shared.incarnation.unbroken().await;
            match shared.store.payloads(&executions).await {
                Ok(payloads) => {
                    let _ = engine.send(Message::Payloads(asked, payloads));
                    return;
                }
                Err(error) => {
                    if error.is_unavailable() {
                        shared.incarnation.broke(contact.worker);
                    }
                    warn!("cannot fetch payloads, trying again: {:#}", anyhow::Error::from(error));
                    tokio::time::sleep(shared.window / 8).await;
                }
            }
        }
    });
}

/// R23: looks at Redis in a task of its own; the engine hears [`Message::Looked`].
pub(crate) fn look(shared: &Arc<Shared>, engine: mpsc::UnboundedSender<Message>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // A Redis that does not answer says nothing of what is held.
        if let Ok(look) = shared.redis.look().await {
            let _ = engine.send(Message::Looked(look));
        }
    });
}

/// R12, for what a check found over.
pub(crate) fn acknowledge(shared: &Arc<Shared>, line: usize, id: EntryId) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Err(error) = shared.redis.acknowledge(&shared.lines[line], &[id]).await {
            debug!("not acknowledged, found over again later: {:#}", anyhow::Error::from(error));
        }
    });
}
