//! Hints between the services over pub/sub. A hint may be lost, doubled or late: whoever hears one looks at the database,
//! and looks there now and then without one too.

use std::collections::VecDeque;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface, SetsInterface};
use fred::prelude::{Client, Value};
use fred::types::Message;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{Redis, Result};

/// How often, and how far apart, the server is asked whether a new subscription stands, before it is made again.
const LISTENERS_ASKED_MAX: u32 = 50;
const LISTENERS_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// What a report of something missing says on the channel of wakes.
const LOST: &str = "lost";

/// Ids of cancelled executions in one pipeline, in one command, and in one message: a message for each would overrun the
/// listeners, and whoever is overrun must doubt everything.
const CANCELLED_PIPELINE_MAX: usize = 10_000;
const CANCELLED_COMMAND_MAX: usize = 1_000;
const TOLD_AT_ONCE_MAX: usize = 250;

/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

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
    /// R19: an executor met a stream or a group that is missing; look for what was lost with it.
    Lost,
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

/// A subscription: a connection of its own that subscribes again after each reconnect.
#[derive(Debug)]
pub struct Notices {
    subscriber: SubscriberClient,
    messages: broadcast::Receiver<Message>,
    /// Says when the subscription stands anew: only what is said after that is heard.
    standing: mpsc::Receiver<()>,
    /// The rest of a message that named several.
    heard: VecDeque<Notice>,
    subscription: JoinHandle<()>,
    redis: Redis,
}

/// The client's tasks hold it: dropped without this, a subscription would live, and its connection with it, for as long as the
/// process.
impl Drop for Notices {
    fn drop(&mut self) {
        self.subscription.abort();
        let subscriber = self.subscriber.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Whether the server heard of it makes no difference.
                let _ = subscriber.quit().await;
            });
        }
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
                anew = self.standing.recv() => match anew {
                    Some(()) => return Notice::Missed,
                    None => std::future::pending().await,
                },
                message = self.messages.recv() => match message {
                    Ok(message) => self.hear(&message),
                    Err(broadcast::error::RecvError::Lagged(_)) => return Notice::Missed,
                    // The client is gone with the process.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                },
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        let keys = &self.redis.keys;
        let channel: &str = &message.channel;
        let Some(text) = message.value.as_str() else { return };
        if channel == keys.wake_channel() {
            self.heard.push_back(if text == LOST { Notice::Lost } else { Notice::Wake });
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

/// Whether somebody hears what is said on `channel`, soon.
async fn is_heard(client: &Client, channel: &str) -> bool {
    for _ in 0..LISTENERS_ASKED_MAX {
        if client.publish::<i64, _, _>(channel, "heard?").await.is_ok_and(|listeners| listeners > 0) {
            return true;
        }
        tokio::time::sleep(LISTENERS_PAUSE).await;
    }
    false
}

impl Redis {
    /// Subscribes to `topics`. An unreachable Redis is no error: the subscription stands once it is there, and says
    /// [`Notice::Missed`].
    ///
    /// # Errors
    /// If the connection cannot be set up.
    pub fn subscribe(&self, topics: &[Topic]) -> Result<Notices> {
        let subscriber = self.own_subscriber()?;
        let messages = subscriber.message_rx();
        let mut reconnects = subscriber.reconnect_rx();
        let mut channels: Vec<String> = topics.iter().map(|topic| self.channel(*topic)).collect();
        let (stands, standing) = mpsc::channel(1);
        let own_channel = format!("{}:{}", self.keys.wake_channel(), Uuid::new_v4().simple());
        // Last, so that the others stand when it does.
        channels.push(own_channel.clone());
        let (subscribing, asking) = (subscriber.clone(), self.client.clone());
        let subscription = tokio::spawn(async move {
            loop {
                while subscribing.wait_for_connect().await.is_err() {
                    tokio::time::sleep(SUBSCRIBE_PAUSE).await;
                }
                // Connections until here are answered by the subscription that follows; a later one asks for another.
                while matches!(reconnects.try_recv(), Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_))) {}
                // Fails only when Redis is away for longer than the command's time-out.
                while subscribing.subscribe(channels.clone()).await.is_err() {
                    tokio::time::sleep(SUBSCRIBE_PAUSE).await;
                }
                // The client may call a subscription made before the server has it: asked of the server itself.
                if !is_heard(&asking, &own_channel).await {
                    continue;
                }
                // One that was not heard yet says the same.
                let _ = stands.try_send(());
                if let Err(broadcast::error::RecvError::Closed) = reconnects.recv().await {
                    return;
                }
            }
        });
        Ok(Notices { subscriber, messages, standing, heard: VecDeque::new(), subscription, redis: self.clone() })
    }

    /// Tells the leader to look at what is due.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader's slow poll finds it.
    pub async fn wake(&self) -> Result<()> {
        self.tell(Topic::Wake, "look").await
    }

    /// R19: tells the leader that a stream or a group was missing.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: nobody heard it; the leader finds what was lost by its own rounds.
    pub async fn tell_lost(&self) -> Result<()> {
        self.tell(Topic::Wake, LOST).await
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
            let pipeline = self.client.pipeline();
            for some in many.chunks(CANCELLED_COMMAND_MAX) {
                let _: Value = pipeline.sadd(self.keys.cancelled(), texts(some)).await?;
                for told in some.chunks(TOLD_AT_ONCE_MAX) {
                    let _: Value = pipeline.publish(self.keys.cancel_channel(), texts(told).join(" ")).await?;
                }
            }
            // A full Redis cannot remember it, and can still tell it.
            for answer in pipeline.try_all::<Value>().await {
                outcome = outcome.and(answer.map(drop).map_err(crate::Error::from));
            }
        }
        outcome
    }

    /// Forgets cancels that have taken effect.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: they stay, and cost a little memory.
    pub async fn forget_cancelled(&self, executions: &[Uuid]) -> Result<()> {
        for many in executions.chunks(CANCELLED_PIPELINE_MAX) {
            let pipeline = self.client.pipeline();
            for some in many.chunks(CANCELLED_COMMAND_MAX) {
                let _: Value = pipeline.srem(self.keys.cancelled(), texts(some)).await?;
            }
            let _: Vec<i64> = pipeline.all().await?;
        }
        Ok(())
    }

    /// Some of the cancels that are remembered, `max` at most, at random.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn some_cancelled(&self, max: u16) -> Result<Vec<Uuid>> {
        let ids: Vec<String> = self.client.srandmember(self.keys.cancelled(), Some(usize::from(max))).await?;
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
        let _: i64 = self.client.publish(self.channel(topic), what).await?;
        Ok(())
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
