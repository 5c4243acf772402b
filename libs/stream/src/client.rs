//! Connections. Commands share one; each reading loop and the subscription have one of their own, since a blocked read
//! holds up whatever stands behind it.

use std::time::Duration;

use carillon_core::line::Line;
use fred::clients::SubscriberClient;
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Client, Config, ReconnectPolicy, TcpConfig};
use fred::types::config::ReconnectError;
use socket2::TcpKeepalive;

use crate::keys::Keys;
use crate::{Error, Result};

/// How a process connects.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://…`, `rediss://…` (TLS), `redis-cluster://…` or `redis-sentinel://…`.
    pub url: String,
    /// Keeps installations that share a Redis apart.
    pub namespace: String,
    /// The shard whose streams are meant.
    pub shard: i16,
    /// How long one command may take before it counts as unavailable.
    pub command_timeout: Duration,
}

impl RedisOptions {
    /// The defaults for `url`: namespace `carillon`, shard 0, 5 s a command.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), namespace: "carillon".into(), shard: 0, command_timeout: Duration::from_secs(5) }
    }
}

/// A handle on Redis, cheap to clone.
#[derive(Clone, Debug)]
pub struct Redis {
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    options: RedisOptions,
}

impl Redis {
    /// A handle whose connection is made, and made again whenever it breaks, in the background: a Redis that is not there
    /// yet is no error here.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub fn connect_lazily(options: RedisOptions) -> Result<Self> {
        let client = builder(&options, options.command_timeout)?.set_policy(again()).build()?;
        client.connect();
        Ok(Self { client, keys: Keys::new(&options.namespace, options.shard), options })
    }

    /// A second connection whose commands may take `timeout`.
    pub(crate) fn own_connection(&self, timeout: Duration) -> Result<Client> {
        let client = builder(&self.options, timeout)?.set_policy(again()).build()?;
        client.connect();
        Ok(client)
    }

    pub(crate) fn own_subscriber(&self) -> Result<SubscriberClient> {
        let subscriber =
            builder(&self.options, self.options.command_timeout)?.set_policy(again()).build_subscriber_client()?;
        subscriber.connect();
        Ok(subscriber)
    }

    /// Whether Redis answers on the connection of the commands.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<()> {
        let _: String = self.client.ping(None).await?;
        Ok(())
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
        client.init().await?;
        let answer = client.ping::<String>(None).await;
        // Whether the server heard of it makes no difference.
        let _ = client.quit().await;
        answer?;
        Ok(())
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
        // The process ends: whether the server heard of it makes no difference.
        let _ = self.client.quit().await;
    }
}

fn builder(options: &RedisOptions, command_timeout: Duration) -> Result<Builder> {
    let config = Config::from_url(&options.url).map_err(Error::Url)?;
    let mut builder = Builder::from_config(Config { fail_fast: false, ..config });
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = Duration::from_secs(5);
            connection.internal_command_timeout = Duration::from_secs(5);
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

/// A broken connection is made again, without end.
fn again() -> ReconnectPolicy {
    ReconnectPolicy::new_exponential(0, 50, 1_000, 2)
}
