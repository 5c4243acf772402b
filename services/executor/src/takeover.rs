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
use carillon_stream::claims::{Claimed, Pending, RELEASED};
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
            if idle.is_empty() {
                return Ok(true);
            }
            let is_left =
                |pending: &Pending| pending.consumer != self.shared.consumer && !live.contains(&pending.consumer);
            let mut ids: Vec<EntryId> = Vec::with_capacity(room);
            for pending in &idle {
                let is_left = is_left(pending);
                if is_left && ids.len() == room {
                    // What there is no room for comes next, should there be some by then.
                    break;
                }
                ids.extend(is_left.then_some(pending.id));
                after = Some(pending.id);
            }
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

#[cfg(test)]
mod tests {
    use carillon_core::job::Priority;
    use carillon_store::{Store, StoreOptions};
    use carillon_stream::entry::{FIELD, VERSION};
    use carillon_stream::keys::{GROUP, Keys};
    use carillon_stream::{Entry, Redis, RedisOptions};
    use carillon_testkit::{Database, wait_until};
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::handler::Registry;
    use crate::incarnation::Incarnation;
    use crate::slots::{Bounds, Slots};
    use crate::threads::HandlerThreads;
    use crate::trial::Trial;

    const DEAD: &str = "dead";

    fn entry(n: usize) -> Entry {
        Entry {
            version: VERSION,
            execution: Uuid::from_u128(n as u128),
            claim: 1,
            attempt: 1,
            again: false,
            job: Uuid::nil(),
            revision: 1,
            handler: "test:echo".into(),
            scheduled_at: DateTime::UNIX_EPOCH,
            not_before: DateTime::UNIX_EPOCH,
            timeout_ms: 1_000,
            max_retries: 0,
            retry_delay_ms: 1,
            retry_growth: carillon_core::retry::Growth::default(),
            last: false,
            payload: None,
            traceparent: None,
        }
    }

    /// A stream of which one that is dead holds `count` entries, renewed by nobody for a minute.
    fn held_by_one_that_is_dead(redis: &carillon_testkit::Redis, stream: &str, count: usize) -> anyhow::Result<()> {
        let mut client = redis.client()?;
        client.command(&["XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM"])?;
        for n in 1..=count {
            let (id, text) = (format!("1-{n}"), entry(n).encode()?);
            client.command(&["XADD", stream, &id, FIELD, std::str::from_utf8(&text)?])?;
        }
        let all = count.to_string();
        client.command(&["XREADGROUP", "GROUP", GROUP, DEAD, "COUNT", &all, "STREAMS", stream, ">"])?;
        for n in 1..=count {
            client.command(&["XCLAIM", stream, GROUP, DEAD, "0", &format!("1-{n}"), "IDLE", "60000", "JUSTID"])?;
        }
        Ok(())
    }

    async fn shared(database: &Database, redis: &carillon_testkit::Redis, slots: usize) -> anyhow::Result<Shared> {
        let store = Store::connect_lazily(&StoreOptions::new(database.url(), "test"))?;
        let many = 1 << 20;
        let bounds = Bounds { slots, unrecorded_max: slots, unrecorded_bytes_max: many, in_hand_bytes_max: many };
        Ok(Shared {
            incarnation: Incarnation::begin(Uuid::nil(), store.measure_clock().await?),
            store,
            redis: Redis::connect_lazily(RedisOptions::new(redis.url()))?,
            registry: Registry::new(),
            lines: vec![Line::new("default", Priority::Medium)],
            consumer: "test".into(),
            slots: Slots::new(bounds),
            threads: HandlerThreads::start(1)?,
            window: Duration::from_secs(2),
            lease: Duration::from_secs(20),
            grace: Duration::from_secs(20),
            lost_max: 5,
            trial: Trial::default(),
            handed_on: Notify::new(),
        })
    }

    /// R15: the first page holds more than there is room for, and by the next one there is room for all.
    #[tokio::test]
    async fn a_round_that_says_it_is_complete_has_left_nothing_behind() -> anyhow::Result<()> {
        const ENTRIES: usize = 2 * PAGE + PAGE / 2;
        const ROOM: usize = 10;
        let (database, server) = (Database::new().await?, carillon_testkit::Redis::start().await?);
        let shared = shared(&database, &server, 2 * ENTRIES).await?;
        let line = &shared.lines[0];
        let stream = Keys::new(&RedisOptions::new(server.url()).namespace, 0).stream(line);
        held_by_one_that_is_dead(&server, &stream, ENTRIES)?;
        shared.slots.fill(2 * ENTRIES - ROOM);
        let ((engine, _messages), wake) = (mpsc::unbounded_channel(), Notify::new());
        let rounds = Rounds { shared: &shared, engine: &engine, wake: &wake };
        // What it has listed it cannot take before what runs has ended.
        server.command(&["CLIENT", "PAUSE", "60000", "WRITE"])?;
        let slots_come_free = async {
            wait_until("the first page to be listed", Duration::from_secs(20), || async {
                let stats = server.command(&["INFO", "commandstats"])?;
                anyhow::ensure!(stats.text().is_some_and(|text| text.contains("cmdstat_xpending")), "{stats:?}");
                anyhow::Ok(())
            })
            .await?;
            shared.slots.release(2 * ENTRIES - ROOM);
            server.command(&["CLIENT", "UNPAUSE"])
        };
        let holders = [DEAD.to_owned()];
        let (complete, _) = tokio::try_join!(rounds.take_idle(0, line, &holders), slots_come_free)?;
        let left = shared.redis.pending_of(line, DEAD, None, ENTRIES).await?.len();
        assert_eq!((complete, left), (true, 0));
        shared.threads.stop();
        Ok(())
    }
}
