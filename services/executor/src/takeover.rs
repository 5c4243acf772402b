//! R15: takes over what another executor has left: at once what one has released (R18a) or, as it ended, handed back, after a
//! lease what one holds that
//! neither renews its entries in Redis nor beats in Postgres. Two witnesses: a stale replica spoils the first, an outage of
//! Postgres the second.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::line::Line;
use carillon_store::Error;
use carillon_stream::EntryId;
use carillon_stream::claims::{Claimed, RELEASED};
use carillon_stream::notices::{Notice, Notices};
use metrics::counter;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::boottime;
use crate::in_hand::Origin;
use crate::message::{Arrival, Message};
use crate::shared::Shared;

/// Entries taken over at once.
const PAGE: usize = 200;
/// The next round, where this one was cut short by the slots.
const SOON: Duration = Duration::from_millis(200);
/// How often consumers that are gone are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Whoever was killed says no good-bye. One that comes back after so long is made again with its next read.
const GONE_AFTER: Duration = Duration::from_secs(60 * 60);

/// The loop. It also hands the notices that it hears to the engine.
pub(crate) struct Takeover {
    pub shared: Arc<Shared>,
    pub engine: mpsc::UnboundedSender<Message>,
    pub notices: Notices,
    pub shutdown: CancellationToken,
}

impl Takeover {
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            // Also in the middle of a round: what it has claimed by then is handed back with the rest (R18).
            () = shutdown.cancelled() => {}
            () = self.take_over() => {}
        }
        Ok(())
    }

    async fn take_over(&mut self) {
        let Self { shared, engine, notices, .. } = self;
        // Two loops: a notice (a cancel) does not wait for a round that Redis or Postgres does not answer.
        let wake = Notify::new();
        let hear = async {
            loop {
                let notice = notices.next().await;
                match &notice {
                    Notice::Ended | Notice::Missed => wake.notify_one(),
                    // R18a.
                    Notice::HandedOn(consumer) if consumer == RELEASED => wake.notify_one(),
                    Notice::HandedOn(consumer) if *consumer == shared.consumer => shared.handed_on.notify_one(),
                    _ => {}
                }
                let _ = engine.send(Message::Notice(notice));
            }
        };
        let rounds = Rounds { shared, engine, wake: &wake };
        tokio::join!(hear, rounds.run());
    }
}

/// What it does round after round.
struct Rounds<'a> {
    shared: &'a Shared,
    engine: &'a mpsc::UnboundedSender<Message>,
    /// One more, at once.
    wake: &'a Notify,
}

impl Rounds<'_> {
    async fn run(&self) {
        let quarter = self.shared.lease / 4;
        let mut next_forget = Instant::now() + FORGET_EVERY;
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = quarter;
            let worker = self.shared.incarnation.contact().worker;
            match self.round().await {
                Ok(true) => {}
                Ok(false) => pause = SOON,
                Err(error) => {
                    if error.downcast_ref::<Error>().is_some_and(Error::is_away) {
                        // R21.
                        self.shared.incarnation.broke(worker);
                    }
                    debug!("nothing is taken over this time: {error:#}");
                }
            }
            if Instant::now() >= next_forget {
                next_forget = Instant::now() + FORGET_EVERY;
                if let Err(error) = self.forget_gone().await {
                    debug!("no consumer is forgotten this time: {error:#}");
                }
            }
        }
    }

    /// Answers whether all that could be taken over was.
    async fn round(&self) -> anyhow::Result<bool> {
        let contact = self.shared.incarnation.contact();
        if !self.shared.incarnation.may_start(self.shared.lease) {
            return Ok(true);
        }
        let may_judge = contact.since.elapsed() >= self.shared.lease;
        let mut complete = true;
        for (index, line) in self.shared.lines.iter().enumerate() {
            complete &= but_for_missing(self.round_of(index, line, may_judge).await)?.unwrap_or(true);
        }
        Ok(complete)
    }

    async fn round_of(&self, index: usize, line: &Line, may_judge: bool) -> anyhow::Result<bool> {
        let mut holders = self.shared.redis.holders(line).await?;
        holders.retain(|holder| *holder != self.shared.consumer);
        if holders.is_empty() {
            return Ok(true);
        }
        let all = holders.len();
        holders.retain(|holder| holder != RELEASED);
        let mut free = self.shared.store.consumers_ended(&holders).await?;
        if holders.len() < all {
            // R18a: first, since it waits for nothing.
            free.insert(0, RELEASED.to_owned());
        }
        let mut complete = true;
        for consumer in &free {
            complete &= self.take_handed_back(index, line, consumer).await?;
        }
        if may_judge && free.len() < all {
            complete &= self.take_idle(index, line, &holders).await?;
        }
        Ok(complete)
    }

    async fn take_handed_back(&self, index: usize, line: &Line, consumer: &str) -> anyhow::Result<bool> {
        loop {
            let room = self.shared.slots.free().min(PAGE);
            if room == 0 {
                return Ok(false);
            }
            // Always the first page: what is taken is no longer pending under that consumer.
            let pending = self.shared.redis.pending_of(line, consumer, None, room).await?;
            if pending.is_empty() {
                return Ok(true);
            }
            let ids: Vec<EntryId> = pending.iter().map(|pending| pending.id).collect();
            let claimed = self.claim(index, line, Duration::ZERO, &ids).await?;
            if claimed == 0 {
                return Ok(true);
            }
            info!(stream = %line, entries = claimed, from = consumer, "taken over what was handed back");
        }
    }

    async fn take_idle(&self, index: usize, line: &Line, holders: &[String]) -> anyhow::Result<bool> {
        let live: HashSet<String> =
            self.shared.store.consumers_live(holders, self.shared.lease).await?.into_iter().collect();
        let mut after = None;
        loop {
            let room = self.shared.slots.free().min(PAGE);
            if room == 0 {
                return Ok(false);
            }
            let idle = self.shared.redis.pending_idle(line, self.shared.lease, after, PAGE).await?;
            let Some(last) = idle.last() else { return Ok(true) };
            after = Some(last.id);
            let theirs = idle.iter().filter(|pending| pending.consumer != self.shared.consumer);
            let dead = theirs.filter(|pending| !live.contains(&pending.consumer));
            let ids: Vec<EntryId> = dead.map(|pending| pending.id).take(room).collect();
            let claimed = self.claim(index, line, self.shared.lease, &ids).await?;
            if claimed > 0 {
                info!(stream = %line, entries = claimed, "taken over from executors that are not heard of any more");
            }
        }
    }

    async fn claim(&self, index: usize, line: &Line, min_idle: Duration, ids: &[EntryId]) -> anyhow::Result<usize> {
        let sent_at = boottime::now();
        let Claimed { entries, .. } =
            self.shared.redis.claim(line, index, &self.shared.consumer, min_idle, ids).await?;
        let count = entries.len();
        counter!("carillon_executor_taken_over_total").increment(count as u64);
        if count > 0 {
            self.shared.slots.fill(count);
            let arrival = Arrival { entries, look: None, origin: Origin::Pending, sent_at, read_at: boottime::now() };
            let _ = self.engine.send(Message::Read(arrival));
        }
        Ok(count)
    }

    /// A consumer that holds nothing, and whose incarnations have all ended or were not heard of for long, is of no use to anybody.
    async fn forget_gone(&self) -> anyhow::Result<()> {
        for line in &self.shared.lines {
            but_for_missing(self.forget_gone_of(line).await)?;
        }
        Ok(())
    }

    async fn forget_gone_of(&self, line: &Line) -> anyhow::Result<()> {
        let mut consumers = self.shared.redis.consumers(line).await?;
        consumers.retain(|consumer| *consumer != self.shared.consumer && consumer != RELEASED);
        for consumer in self.shared.store.consumers_gone(&consumers, GONE_AFTER).await? {
            self.shared.redis.forget_consumer(line, &consumer).await?;
        }
        Ok(())
    }
}

/// One stream that is missing keeps nothing of the others from being taken over: the reading loop sees to it (R22).
fn but_for_missing<T>(outcome: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match outcome {
        Err(error) if matches!(error.downcast_ref(), Some(carillon_stream::Error::NoGroup(_))) => Ok(None),
        outcome => outcome.map(Some),
    }
}
