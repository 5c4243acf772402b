//! The gateway in this process, on a port of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use carillon_gateway::Config;
use carillon_gateway::config::{EnumWords, GatewayConfig, JsonConfig};
use carillon_kit::Process;
use carillon_kit::config::{PostgresConfig, RedisConfig, SecretUrl};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// What a connection to Postgres may take, on a machine that is busy with other tests.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<Result<()>>,
    pub(crate) http: reqwest::Client,
}

impl Gateway {
    pub(crate) async fn start(postgres: &str, redis: &str) -> Result<Self> {
        Self::start_with(postgres, redis, 100).await
    }

    /// One that has so many connections.
    pub(crate) async fn start_with(postgres: &str, redis: &str, connections_max: usize) -> Result<Self> {
        Self::start_as(postgres, redis, connections_max, ACQUIRE_TIMEOUT).await
    }

    /// One that waits so long for a connection to Postgres, of a test that is about what comes of it.
    pub(crate) async fn start_waiting(postgres: &str, redis: &str, acquire_timeout: Duration) -> Result<Self> {
        Self::start_as(postgres, redis, 100, acquire_timeout).await
    }

    async fn start_as(postgres: &str, redis: &str, connections_max: usize, acquire_timeout: Duration) -> Result<Self> {
        // As every binary does first thing: reqwest and sqlx find one TLS provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let config = Config {
            gateway: GatewayConfig {
                listen: address,
                payload_bytes_max: 256 * 1024,
                body_bytes_max: 640 * 1024,
                queues_max: 1_000,
                connections_max,
                cors_origins: vec!["https://console.example".to_owned()],
                requests_max: 100,
                statement_timeout: Duration::from_secs(5),
            },
            json: JsonConfig { enum_words: EnumWords::Upper },
            postgres: PostgresConfig {
                url: SecretUrl::new(postgres),
                schema: "carillon".to_owned(),
                connections_max: 4,
                acquire_timeout,
            },
            redis: RedisConfig { url: SecretUrl::new(redis), namespace: "test".to_owned() },
        };
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-gateway", stop.clone());
        let serving = tokio::spawn(carillon_gateway::run(config, process, listener));
        Ok(Self { address, stop, serving, http: reqwest::Client::new() })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1/scheduler{path}", self.address)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        let response = self.http.post(self.url(path)).json(body).send().await?;
        Ok((response.status(), response.json().await?))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(StatusCode, Value)> {
        let response = self.http.get(self.url(path)).send().await?;
        Ok((response.status(), response.json().await?))
    }

    pub(crate) async fn channel(&self) -> Result<Channel> {
        Ok(Channel::from_shared(format!("http://{}", self.address))?.connect().await?)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.serving).await.context("the gateway does not stop")??
    }
}
