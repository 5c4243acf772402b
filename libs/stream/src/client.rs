//! Connections. Commands share one; each reading loop and the subscription have one of their own, since a blocked read
//! holds up whatever stands behind it.

use std::sync::Arc;
use std::time::Duration;

use carillon_core::line::Line;
use fred::clients::SubscriberClient;
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Config, ReconnectPolicy, TcpConfig};
use fred::types::config::ReconnectError;
use socket2::TcpKeepalive;
use tokio::time::timeout;

use crate::connection::{self, AbortOnDrop, Connection, Live, SILENT_MAX};
use crate::keys::Keys;
use crate::{Error, Result};

/// A command that has no answer for this long has none: no shorter than the silence that ends its connection, since the one that
/// comes after may answer.
pub const COMMAND_MAX: Duration = SILENT_MAX;
/// To connect, greet, log in, and find the server through a sentinel or a cluster: each of it, and all of it.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const REACH_MAX: Duration = Duration::from_secs(10);
/// Between two tries to connect, in milliseconds: at first, and at most. However long Redis was away, it is asked for again
/// within half a second of its accepting connections; a try at a port that is closed costs next to nothing.
const CONNECT_AGAIN_MS: u32 = 50;
const CONNECT_AGAIN_MAX_MS: u32 = 200;

/// How a process connects.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://…`, `rediss://…` (TLS), `redis-cluster://…` or `redis-sentinel://…`.
    pub url: String,
    /// Keeps installations that share a Redis apart.
    pub namespace: String,
    /// The shard whose streams are meant: one of `carillon_core::shard::SHARDS`.
    pub shard: i16,
    /// How long one command may take before it counts as unavailable.
    pub command_timeout: Duration,
}

impl RedisOptions {
    /// The defaults for `url`: namespace `carillon`, shard 0, [`COMMAND_MAX`].
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), namespace: "carillon".into(), shard: 0, command_timeout: COMMAND_MAX }
    }
}

/// A handle on Redis, cheap to clone. Its connection ends with the last one.
#[derive(Clone, Debug)]
pub struct Redis {
    pub(crate) connection: Arc<Connection>,
    pub(crate) keys: Keys,
    options: RedisOptions,
}

impl Redis {
    /// A handle whose connection is made, and made again whenever it breaks or is silent, in the background: a Redis that is not
    /// there yet is no error here.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub fn connect_lazily(options: RedisOptions) -> Result<Self> {
        let limit = options.command_timeout;
        let connection = Arc::new(Connection::open(lasting(&options, limit)?, limit, SILENT_MAX)?);
        Ok(Self { connection, keys: Keys::new(&options.namespace, options.shard), options })
    }

    /// A second connection, on which a command may block for `block`.
    pub(crate) fn own_connection(&self, block: Duration) -> Result<Connection> {
        let limit = self.options.command_timeout;
        Connection::open(lasting(&self.options, limit + block)?, limit, SILENT_MAX + block)
    }

    /// A connection that hears what is published. It is not made again: it ends, and whoever has it makes another.
    pub(crate) fn own_subscriber(&self) -> Result<Live<SubscriberClient>> {
        let mut builder = builder(&self.options, self.options.command_timeout)?;
        builder.with_config(|config| config.fail_fast = true);
        Ok(Live::new(builder.build_subscriber_client()?))
    }

    /// Whether Redis answers on the connection of the commands.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<()> {
        self.connection.ask(|client| async move { client.ping::<()>(None).await }).await
    }

    /// Makes one connection of its own, for whoever waits for Redis: unlike the one that is made again in the background, it
    /// says why there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Refused`] with the cause.
    pub async fn reach(&self) -> Result<()> {
        let mut builder = builder(&self.options, self.options.command_timeout)?;
        builder.with_config(|config| config.fail_fast = true);
        let client = builder.build()?;
        let reaching = async {
            let _live = AbortOnDrop(client.init().await?);
            client.ping::<()>(None).await?;
            // Whether the server heard of it makes no difference.
            let _ = client.quit().await;
            Ok(())
        };
        timeout(REACH_MAX, Box::pin(reaching)).await.unwrap_or_else(|_| Err(connection::timed_out()))
    }

    /// Number of entries in the stream of each line: waiting, held and running.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn lengths(&self, lines: &[Line]) -> Result<Vec<u64>> {
        let state = self.state(lines).await?;
        Ok(state.lengths)
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.connection.close().await;
    }
}

fn builder(options: &RedisOptions, command_timeout: Duration) -> Result<Builder> {
    let config = Config::from_url(&options.url).map_err(Error::Url)?;
    let mut builder = Builder::from_config(Config { fail_fast: false, ..config });
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_MAX;
            connection.internal_command_timeout = CONNECT_MAX;
            // Whoever sent it decides whether to send it again; every command of this crate may be sent twice.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 50_000;
            connection.tcp = TcpConfig {
                nodelay: Some(true),
                keepalive: Some(
                    TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)),
                ),
                #[cfg(target_os = "linux")]
                user_timeout: Some(Duration::from_secs(10)),
                ..TcpConfig::default()
            };
            connection.reconnect_errors = vec![
                ReconnectError::ClusterDown,
                ReconnectError::Loading,
                ReconnectError::MasterDown,
                ReconnectError::ReadOnly,
            ];
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = command_timeout;
            performance.broadcast_channel_capacity = 1_024;
        });
    Ok(builder)
}

/// What makes a connection that is made again when it breaks, without end.
fn lasting(options: &RedisOptions, command_timeout: Duration) -> Result<Builder> {
    let mut builder = builder(options, command_timeout)?;
    builder.set_policy(again());
    Ok(builder)
}

/// Without end, and never with long pauses.
fn again() -> ReconnectPolicy {
    ReconnectPolicy::new_exponential(0, CONNECT_AGAIN_MS, CONNECT_AGAIN_MAX_MS, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Item 2 of what must hold: asked for again within 500 ms of Redis accepting connections, also after an hour.
    #[test]
    fn a_redis_that_was_away_for_long_is_asked_for_again_soon() {
        let mut policy = again();
        for tries in 0..20_000 {
            let pause = policy.next_delay();
            assert!(pause.is_some_and(|ms| ms <= 250), "{pause:?} after {tries} tries");
        }
    }
}
