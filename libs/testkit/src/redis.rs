//! Redis for tests: a server for each test that asks, so that it may wipe, stop and kill it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_servers::{Home, RedisServer, free_port};

use crate::resp::{Reply, RespClient};
use crate::wait_until;

/// A master waits five seconds for further replicas before it sends its data.
const FOLLOW_MAX: Duration = Duration::from_secs(30);

/// A Redis of one test.
#[derive(Debug)]
pub struct Redis {
    server: Mutex<RedisServer>,
    port: u16,
}

impl Redis {
    /// Starts one that forgets everything when it ends.
    ///
    /// # Errors
    /// If Redis is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::with(false).await
    }

    /// Starts one that keeps its data over a restart (append-only file, synced each second).
    ///
    /// # Errors
    /// If Redis is not installed or does not start.
    pub async fn start_append_only() -> Result<Self> {
        Self::with(true).await
    }

    async fn with(append_only: bool) -> Result<Self> {
        let started = tokio::task::spawn_blocking(move || {
            let mut server = RedisServer::new(&Home::temporary()?, "redis", free_port()?, append_only)?;
            server.start()?;
            anyhow::Ok(server)
        });
        let server = started.await??;
        Ok(Self { port: server.port(), server: Mutex::new(server) })
    }

    /// Follows a master, reached by `port`, until [`Redis::promote`]; waits until it has all that the master holds now.
    ///
    /// # Errors
    /// If it does not run, or gets nothing of the master.
    pub async fn follow(&self, port: u16) -> Result<()> {
        self.command(&["REPLICAOF", "127.0.0.1", &port.to_string()])?;
        wait_until("a replica to follow", FOLLOW_MAX, || {
            let info = self.command(&["INFO", "replication"]);
            std::future::ready(info.and_then(|info| {
                let text = info.text().unwrap_or_default();
                ensure!(text.contains("master_link_status:up"), "{text}");
                Ok(())
            }))
        })
        .await
    }

    /// Makes a master of a replica, with what it has.
    ///
    /// # Errors
    /// If it does not run.
    pub fn promote(&self) -> Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"]).map(|_| ())
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// Its URL through another port, such as that of a [`crate::Proxy`].
    pub fn url_through(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.server().process().map(|process| process.pid())
    }

    /// A connection to look into it.
    ///
    /// # Errors
    /// If it does not run.
    pub fn client(&self) -> Result<RespClient> {
        RespClient::connect(self.port)
    }

    /// One command on a connection of its own.
    ///
    /// # Errors
    /// If it does not run or refuses the command.
    pub fn command(&self, words: &[&str]) -> Result<Reply> {
        self.client()?.command(words)
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// If it does not run.
    pub fn flush_all(&self) -> Result<()> {
        self.command(&["FLUSHALL"]).map(|_| ())
    }

    /// Stops it in good order and waits for its end.
    pub fn stop(&self) {
        self.server().stop();
    }

    /// Ends it as a crash does.
    pub fn kill(&self) {
        self.server().kill();
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&self) -> Result<()> {
        self.server().start()
    }

    fn server(&self) -> MutexGuard<'_, RedisServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_can_be_looked_into() {
        let redis = Redis::start().await.unwrap();
        let mut client = redis.client().unwrap();
        client.command(&["XADD", "s", "1-1", "k", "ä b"]).unwrap();
        client.command(&["XGROUP", "CREATE", "s", "g", "0"]).unwrap();
        assert_eq!(client.command(&["XLEN", "s"]).unwrap().number(), Some(1));
        let entries = client.command(&["XRANGE", "s", "-", "+"]).unwrap();
        assert_eq!(entries.list()[0].list()[1].list()[1].text(), Some("ä b"));
        client.command(&["XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"]).unwrap();
        assert_eq!(client.command(&["XPENDING", "s", "g"]).unwrap().list()[0].number(), Some(1));
        assert_eq!(client.command(&["GET", "nothing"]).unwrap(), Reply::Nil);
        assert!(client.command(&["NONSENSE"]).unwrap_err().to_string().contains("NONSENSE"));
        redis.flush_all().unwrap();
        redis.kill();
        redis.start_again().unwrap();
        assert_eq!(redis.command(&["DBSIZE"]).unwrap().number(), Some(0));
    }
}
