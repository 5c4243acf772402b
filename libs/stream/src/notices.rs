//! Hints between the services over pub/sub. A hint may be lost, doubled or late: whoever hears one looks at the database,
//! and looks there now and then without one too.

use std::collections::VecDeque;
use std::time::Duration;

use carillon_core::job::Priority;
use carillon_core::line::Line;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface, SetsInterface};
use fred::prelude::{Client, Value};
use fred::types::Message;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use crate::connection::{self, SILENT_MAX};
use crate::keys::Keys;
use crate::{Error, Redis, Result};

/// Messages that a process has not looked at yet; beyond it they are missed.
const UNHEARD_MAX: usize = 1_024;
/// A subscription speaks to itself this often, and is made anew if it does not hear that for [`SILENT_MAX`].
const BEAT: Duration = Duration::from_secs(1);
/// To connect and subscribe.
const STANDING_MAX: Duration = Duration::from_secs(10);

/// What a report of something missing says on the channel of wakes.
const LOST: &str = "lost";
/// What begins the word for the leader that batches are to be looked at: their numbers follow.
const BATCHES: &str = "batches ";
/// What begins the word for the leader that a line has something due: its priority's rank and its queue follow.
const DUE: &str = "due ";

/// Ids of cancelled executions in one pipeline, in one command, and in one message: a message for each would overrun the
/// listeners, and whoever is overrun must doubt everything.
const CANCELLED_PIPELINE_MAX: usize = 10_000;
const CANCELLED_COMMAND_MAX: usize = 1_000;
const TOLD_AT_ONCE_MAX: usize = 250;

/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

/// What a process wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// For the leader: something may be due earlier than it knows, or is to be looked at.
    Wake,
    /// For executors: a job was paused, changed or deleted (R23).
    JobChanged,
    /// For executors: a cancel was requested (R17).
    Cancel,
    /// For executors and the leader: an executor has ended (R18), so there is something to take.
    Ended,
    /// For executors: something was handed on to one of them (R18a).
    HandedOn,
}

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Look at what is due.
    Wake,
    /// Something is due in this line now: claim there.
    Due(Line),
    /// R19: an executor met a stream or a group that is missing; look for what was lost with it.
    Lost,
    /// R23a: entries of these batches stand in a line that is not theirs any more, or were taken out of it.
    Misplaced(Vec<i64>),
    /// This job was paused, changed or deleted.
    JobChanged(Uuid),
    /// The cancel of this execution was requested.
    Cancel(Uuid),
    /// An executor has ended: there is something to take.
    Ended,
    /// R18a: an entry was put into the hands of this consumer, which lists its own pending entries; for others it is nothing.
    HandedOn(String),
    /// The connection was gone, or too slow: anything may have been missed.
    Missed,
}

/// A subscription: a connection of its own, made anew when it breaks, or when it no longer hears what is told.
#[derive(Debug)]
pub struct Notices {
    messages: mpsc::Receiver<Message>,
    /// Says when the subscription stands anew, or was overrun: only what is said after that is heard.
    missed: mpsc::Receiver<()>,
    /// The rest of a message that named several.
    heard: VecDeque<Notice>,
    keys: Keys,
    subscription: JoinHandle<()>,
}

/// Its task holds the connection, which ends with it.
impl Drop for Notices {
    fn drop(&mut self) {
        self.subscription.abort();
    }
}

impl Notices {
    /// Hears the next notice.
    pub async fn next(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.heard.pop_front() {
                return notice;
            }
            tokio::select! {
                // First, since what was said before the subscription stood anew is of the past.
                biased;
                Some(()) = self.missed.recv() => return Notice::Missed,
                Some(message) = self.messages.recv() => self.hear(&message),
                // The task is gone with the process.
                else => std::future::pending().await,
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        let keys = &self.keys;
        let channel: &str = &message.channel;
        let Some(text) = message.value.as_str() else { return };
        if channel == keys.wake_channel() {
            self.heard.push_back(read_wake(&text));
        } else if channel == keys.ended_channel() {
            self.heard.push_back(Notice::Ended);
        } else if channel == keys.jobs_channel() {
            self.heard.extend(text.parse().ok().map(Notice::JobChanged));
        } else if channel == keys.cancel_channel() {
            let ids = text.split(' ').filter_map(|id| id.parse().ok());
            self.heard.extend(ids.take(TOLD_AT_ONCE_MAX).map(Notice::Cancel));
        } else if channel == keys.handed_on_channel() {
            self.heard.push_back(Notice::HandedOn(text.into_owned()));
        }
    }
}

/// Whatever cannot be read asks for a look at all.
fn read_wake(text: &str) -> Notice {
    if text == LOST {
        return Notice::Lost;
    }
    if let Some(numbers) = text.strip_prefix(BATCHES) {
        let numbers = numbers.split(' ').filter_map(|number| number.parse().ok());
        return Notice::Misplaced(numbers.take(TOLD_AT_ONCE_MAX).collect());
    }
    let due = text.strip_prefix(DUE).and_then(|line| line.split_once(' '));
    let line = due.and_then(|(rank, queue)| Some(Line::new(queue, Priority::from_rank(rank.parse().ok()?))));
    line.map_or(Notice::Wake, Notice::Due)
}

/// What keeps a subscription.
struct Subscription {
    redis: Redis,
    channels: Vec<String>,
    /// Nobody but us speaks and listens here: that we hear ourselves shows that we hear the others.
    own_channel: String,
    messages: mpsc::Sender<Message>,
    missed: mpsc::Sender<()>,
}

impl Subscription {
    async fn run(self) {
        loop {
            // Whatever ended it, what is said until the next one stands is missed, and said to be.
            let _ = self.live().await;
            tokio::time::sleep(SUBSCRIBE_PAUSE).await;
        }
    }

    /// One connection, to its end.
    async fn live(&self) -> Result<()> {
        let mut line = self.redis.own_subscriber()?;
        let mut messages = line.client.message_rx();
        let subscribing = async {
            Box::pin(line.client.wait_for_connect()).await?;
            Box::pin(line.client.subscribe(self.channels.clone())).await
        };
        timeout(STANDING_MAX, subscribing).await.map_err(|_| connection::timed_out())??;
        let (heard, hears) = watch::channel(());
        tokio::select! {
            ended = line.ended() => ended?,
            () = self.pass_on(&mut messages, &heard) => {}
            () = self.speak(hears.clone()) => {}
            () = self.stand(hears) => debug!("a subscription hears nothing and is made anew"),
        }
        Ok(())
    }

    /// Passes on what is heard, and says when we heard ourselves.
    async fn pass_on(&self, messages: &mut broadcast::Receiver<Message>, heard: &watch::Sender<()>) {
        loop {
            match messages.recv().await {
                Ok(message) if *message.channel == *self.own_channel => {
                    heard.send_replace(());
                }
                Ok(message) => {
                    if self.messages.try_send(message).is_err() {
                        self.miss();
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.miss(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Speaks to itself, on the connection of the commands.
    async fn speak(&self, hears: watch::Receiver<()>) {
        loop {
            // What cannot be said is not heard.
            let _ = self.redis.say(self.own_channel.clone(), "heard?").await;
            // More often until it stands: what is said before is missed.
            let stands = hears.has_changed().unwrap_or(false);
            tokio::time::sleep(if stands { BEAT } else { SUBSCRIBE_PAUSE }).await;
        }
    }

    /// Ends when it has not heard itself for too long.
    async fn stand(&self, mut hears: watch::Receiver<()>) {
        let mut stands = false;
        while matches!(timeout(SILENT_MAX, hears.changed()).await, Ok(Ok(()))) {
            // The own channel is the last of them: the others stand too.
            if !std::mem::replace(&mut stands, true) {
                self.miss();
            }
        }
    }

    fn miss(&self) {
        // One that was not heard yet says the same.
        let _ = self.missed.try_send(());
    }
}

impl Redis {
    /// Subscribes to `topics`. An unreachable Redis is no error: the subscription stands once it is there, and says
    /// [`Notice::Missed`].
    ///
    /// # Errors
    /// If the connection cannot be set up.
    pub fn subscribe(&self, topics: &[Topic]) -> Result<Notices> {
        // Built here once, so that what is wrong with it is said here.
        drop(self.own_subscriber()?);
        let (messages, heard) = mpsc::channel(UNHEARD_MAX);
        let (missed, is_missed) = mpsc::channel(1);
        let own_channel = format!("{}:{}", self.keys.wake_channel(), Uuid::new_v4().simple());
        let mut channels: Vec<String> = topics.iter().map(|topic| self.channel(*topic)).collect();
        channels.push(own_channel.clone());
        let subscription = Subscription { redis: self.clone(), channels, own_channel, messages, missed };
        Ok(Notices {
            messages: heard,
            missed: is_missed,
            heard: VecDeque::new(),
            keys: self.keys.clone(),
            subscription: tokio::spawn(subscription.run()),
        })
    }

    /// Tells the leader to look at what is due.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader's slow poll finds it.
    pub async fn wake(&self) -> Result<()> {
        self.tell(Topic::Wake, "look").await
    }

    /// Tells the leader that something is due in `line` now, so that it need not read what is due.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader's poll finds what was waited for.
    pub async fn wake_for(&self, line: &Line) -> Result<()> {
        self.tell(Topic::Wake, &format!("{DUE}{} {}", line.priority.rank(), line.queue)).await
    }

    /// R19: tells the leader that a stream or a group was missing.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader finds what was lost by its own rounds.
    pub async fn tell_lost(&self) -> Result<()> {
        self.tell(Topic::Wake, LOST).await
    }

    /// R23a: tells the leader that entries of these batches stand in a line that is not theirs any more, or were taken out of it.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader meets them by its own rounds.
    pub async fn tell_misplaced(&self, batches: &[i64]) -> Result<()> {
        for some in batches.chunks(TOLD_AT_ONCE_MAX) {
            let numbers: Vec<String> = some.iter().map(i64::to_string).collect();
            self.tell(Topic::Wake, &format!("{BATCHES}{}", numbers.join(" "))).await?;
        }
        Ok(())
    }

    /// R23: tells executors that `job` was paused, changed or deleted.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn tell_job_changed(&self, job: Uuid) -> Result<()> {
        self.tell(Topic::JobChanged, &job.to_string()).await
    }

    /// R17: remembers that the cancel of `executions` was requested (after COMMIT), and tells executors: so many in one pipeline,
    /// of which each is remembered before it is told.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`], [`crate::Error::OutOfMemory`]: the first that some of it met; the rest was done all the
    /// same.
    pub async fn tell_cancelled(&self, executions: &[Uuid]) -> Result<()> {
        let mut outcome = Ok(());
        for many in executions.chunks(CANCELLED_PIPELINE_MAX) {
            let telling = |client: Client| async move {
                let pipeline = client.pipeline();
                for some in many.chunks(CANCELLED_COMMAND_MAX) {
                    let _: Value = pipeline.sadd(self.keys.cancelled(), texts(some)).await?;
                    for told in some.chunks(TOLD_AT_ONCE_MAX) {
                        let _: Value = pipeline.publish(self.keys.cancel_channel(), texts(told).join(" ")).await?;
                    }
                }
                // A full Redis cannot remember it, and can still tell it.
                Ok::<_, Error>(pipeline.try_all::<Value>().await)
            };
            for answer in self.connection.ask(telling).await? {
                outcome = outcome.and(answer.map(drop).map_err(Error::from));
            }
            outcome = self.connection.displace_after(outcome, &[self.keys.cancelled()]).await;
        }
        outcome
    }

    /// Forgets cancels that have taken effect.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: they stay, and cost a little memory.
    pub async fn forget_cancelled(&self, executions: &[Uuid]) -> Result<()> {
        for many in executions.chunks(CANCELLED_PIPELINE_MAX) {
            let forgetting = |client: Client| async move {
                let pipeline = client.pipeline();
                for some in many.chunks(CANCELLED_COMMAND_MAX) {
                    let _: Value = pipeline.srem(self.keys.cancelled(), texts(some)).await?;
                }
                pipeline.all::<Value>().await
            };
            let outcome = self.connection.ask(forgetting).await;
            self.connection.displace_after(outcome, &[self.keys.cancelled()]).await?;
        }
        Ok(())
    }

    /// Some of the cancels that are remembered, `max` at most, at random.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn some_cancelled(&self, max: u16) -> Result<Vec<Uuid>> {
        let asking = |client: Client| async move { client.srandmember(self.keys.cancelled(), Some(max.into())).await };
        let outcome: Result<Vec<String>> = self.connection.ask(asking).await;
        let ids = self.connection.displace_after(outcome, &[self.keys.cancelled()]).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// R18: tells the others that an executor has ended.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn tell_ended(&self) -> Result<()> {
        self.tell(Topic::Ended, "ended").await
    }

    /// R18a: tells `consumer` that entries were put into its hands.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: it finds them when it next lists its own pending entries.
    pub async fn tell_handed_on(&self, consumer: &str) -> Result<()> {
        self.tell(Topic::HandedOn, consumer).await
    }

    async fn tell(&self, topic: Topic, what: &str) -> Result<()> {
        self.say(self.channel(topic), what).await
    }

    async fn say(&self, channel: String, what: &str) -> Result<()> {
        let saying = |client: Client| async move { client.publish::<i64, _, _>(channel, what).await };
        self.connection.ask(saying).await.map(drop)
    }

    fn channel(&self, topic: Topic) -> String {
        match topic {
            Topic::Wake => self.keys.wake_channel(),
            Topic::JobChanged => self.keys.jobs_channel(),
            Topic::Cancel => self.keys.cancel_channel(),
            Topic::Ended => self.keys.ended_channel(),
            Topic::HandedOn => self.keys.handed_on_channel(),
        }
    }
}

fn texts(ids: &[Uuid]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}
