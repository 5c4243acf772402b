//! A connection that is watched, and the one way to Redis: whatever is asked has an end.
//!
//! The client library makes a connection again that breaks. One that goes silent breaks no more than its host tells: the
//! library's own check is put off by each new command, skips blocked reads, and stands still with its task while a write to a
//! full socket waits. So each connection is asked twice a second whether it still answers; once it has been silent for too long it
//! is thrown away whole, with its task and its socket, and made anew. Whoever waited on it hears [`Error::Unavailable`].

use std::future::Future;
use std::time::Duration;

use fred::error::{Error as ClientError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::prelude::{Builder, Client, FredResult};
use fred::types::config::{Options, Server};
use fred::types::{ConnectHandle, CustomCommand, Value};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::displaced::displace;
use crate::scripts::Script;
use crate::{Error, Result};

/// A connection that owes an answer and has been silent for this long is closed and made anew; a blocking read may be silent for
/// as long as it blocks besides.
pub const SILENT_MAX: Duration = Duration::from_secs(3);
/// How often a connection is asked whether it answers: so much later than [`SILENT_MAX`] its silence is noticed at most.
const ASKED_EVERY: Duration = Duration::from_millis(500);
/// The library connects and finds the servers of a sentinel or a cluster within bounds of its own, one after the other. Where that
/// comes to no end it is begun anew.
const CONNECTING_MAX: Duration = Duration::from_secs(30);
/// New connections that a listener may lag behind before it hears only that there were some.
const ANEW_MAX: usize = 16;

/// A connection of ours.
#[derive(Debug)]
pub(crate) struct Connection {
    current: watch::Receiver<Client>,
    anew: broadcast::Sender<()>,
    keeper: JoinHandle<()>,
    limit: Duration,
}

impl Connection {
    /// Made, and made again, in the background. Each command may take `limit`, and the connection may be silent for `silence`.
    pub(crate) fn open(builder: Builder, limit: Duration, silence: Duration) -> Result<Self> {
        let live = Live::new(builder.build()?);
        let (publish, current) = watch::channel(live.client.clone());
        let (anew, _) = broadcast::channel(ANEW_MAX);
        let keeper = tokio::spawn(keep(builder, silence, live, publish, anew.clone()));
        Ok(Self { current, anew, keeper, limit })
    }

    /// Sends a command, or several, and waits for the end of it no longer than a command may take.
    pub(crate) async fn ask<T, E, Fut>(&self, command: impl FnOnce(Client) -> Fut) -> Result<T>
    where
        E: Into<Error>,
        Fut: Future<Output = Result<T, E>>,
    {
        self.ask_within(self.limit, command).await
    }

    /// [`Connection::ask`] with a time of its own, for what blocks.
    pub(crate) async fn ask_within<T, E, Fut>(&self, limit: Duration, command: impl FnOnce(Client) -> Fut) -> Result<T>
    where
        E: Into<Error>,
        Fut: Future<Output = Result<T, E>>,
    {
        let client = self.current.borrow().clone();
        // Boxed: the client's futures are large, and would make everything large that waits for one.
        match timeout(limit, Box::pin(command(client))).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(timed_out()),
        }
    }

    /// Runs a script, loading it if the server has lost it; once more if what it met at `keys` had to be moved aside.
    pub(crate) async fn run(&self, script: &Script, keys: Vec<String>, args: Vec<Value>) -> Result<Value> {
        let running = |client: Client| async move {
            let outcome = script.run(&client, keys.clone(), args.clone()).await;
            if matches!(outcome, Err(Error::WrongType(_))) && displace(&client, &keys).await? {
                return script.run(&client, keys, args).await;
            }
            outcome
        };
        self.ask(running).await
    }

    /// A command on `key` that the library has no function for, or none that says all; once more if what it met there had to be
    /// moved aside.
    pub(crate) async fn custom(&self, command: CustomCommand, key: String, args: Vec<Value>) -> Result<Value> {
        let asking = |client: Client| async move {
            let outcome: Result<Value> = client.custom(command.clone(), args.clone()).await.map_err(Error::from);
            if matches!(outcome, Err(Error::WrongType(_))) && displace(&client, &[key]).await? {
                return client.custom(command, args).await.map_err(Error::from);
            }
            outcome
        };
        self.ask(asking).await
    }

    /// How long one command may take.
    pub(crate) const fn limit(&self) -> Duration {
        self.limit
    }

    /// A receiver that hears of each new connection.
    pub(crate) fn reconnects(&self) -> broadcast::Receiver<()> {
        self.anew.subscribe()
    }

    /// Says good-bye; nothing can be asked afterwards.
    pub(crate) async fn close(&self) {
        let client = self.current.borrow().clone();
        // The process ends: whether the server heard of it makes no difference.
        let _ = timeout(self.limit, Box::pin(client.quit())).await;
        self.keeper.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// As the library says it.
pub(crate) fn timed_out() -> Error {
    Error::Unavailable(ClientError::new(ErrorKind::Timeout, "redis did not answer in time"))
}

/// The task of a connection, which would live on.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) ConnectHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A client of the library and its task, which end together: the library's task holds the client, and would live on.
#[derive(Debug)]
pub(crate) struct Live<C> {
    pub(crate) client: C,
    task: AbortOnDrop,
    reconnects: broadcast::Receiver<Server>,
}

impl<C: ClientLike + EventInterface> Live<C> {
    pub(crate) fn new(client: C) -> Self {
        let reconnects = client.reconnect_rx();
        Self { task: AbortOnDrop(client.connect()), client, reconnects }
    }

    /// Ends with the connection, if it is one that is not made again.
    pub(crate) async fn ended(&mut self) -> FredResult<()> {
        (&mut self.task.0).await.unwrap_or_else(|_| Err(ClientError::new(ErrorKind::Canceled, "its task has ended")))
    }
}

async fn keep(
    builder: Builder,
    silence: Duration,
    mut live: Live<Client>,
    publish: watch::Sender<Client>,
    anew: broadcast::Sender<()>,
) {
    loop {
        let client = live.client.clone();
        tokio::select! {
            () = pass_on(&mut live.reconnects, &anew) => {}
            () = until_silent(&client, silence) => {}
        }
        warn!(silent_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX), "redis is silent: connecting anew");
        let next = match builder.build() {
            Ok(client) => Live::new(client),
            Err(error) => {
                // It could be built before.
                warn!("cannot connect to redis anew: {error}");
                tokio::time::sleep(SILENT_MAX).await;
                continue;
            }
        };
        // Before the old one goes: whoever is told of its end by that asks the new one.
        let old = std::mem::replace(&mut live, next);
        publish.send_replace(live.client.clone());
        drop(old);
    }
}

/// Tells of each connection. Does not end: the client is held.
async fn pass_on(reconnects: &mut broadcast::Receiver<Server>, anew: &broadcast::Sender<()>) {
    while !matches!(reconnects.recv().await, Err(broadcast::error::RecvError::Closed)) {
        // Fails if nobody listens.
        let _ = anew.send(());
    }
    std::future::pending().await
}

/// Ends once the client is to be replaced: it owes an answer for `silence`, or does not come to a connection.
async fn until_silent(client: &Client, silence: Duration) {
    // Ours is the limit: that of the library looks the same as an answer that failed.
    let asking = client.with_options(&Options { timeout: Some(2 * (silence + CONNECTING_MAX)), ..Options::default() });
    loop {
        let mut answer = Box::pin(asking.ping::<Value>(None));
        let mut connecting = Duration::ZERO;
        // Any answer will do, also that it is loading, or that the connection broke: then a new one is being made.
        loop {
            let was_connected = client.is_connected();
            if timeout(silence, &mut answer).await.is_ok() {
                break;
            }
            connecting += silence;
            if was_connected && client.is_connected() || connecting >= CONNECTING_MAX {
                return;
            }
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}
