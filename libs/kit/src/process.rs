//! What a running service is given by its shell.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::connect::{self, Stopped};
use crate::readiness::Readiness;
use crate::tasks::Tasks;

/// The process around a service.
#[derive(Clone, Debug)]
pub struct Process {
    name: &'static str,
    shutdown: CancellationToken,
    readiness: Readiness,
    grace: Duration,
    admin: SocketAddr,
}

impl Process {
    pub(crate) const fn new(
        name: &'static str,
        shutdown: CancellationToken,
        readiness: Readiness,
        grace: Duration,
        admin: SocketAddr,
    ) -> Self {
        Self { name, shutdown, readiness, grace, admin }
    }

    /// One without signals, admin port, metrics and log: for tests that run a service inside of themselves.
    pub fn detached(name: &'static str, shutdown: CancellationToken) -> Self {
        let readiness = Readiness::new(shutdown.clone());
        Self { name, shutdown, readiness, grace: Duration::from_secs(5), admin: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    /// Name of the program.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Cancelled when the process shall stop.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Where flags of readiness are made.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// How long a drain may take.
    pub const fn grace(&self) -> Duration {
        self.grace
    }

    /// Where the admin port is.
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// An empty set of long-lived loops that stop with this process.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.shutdown.clone(), self.grace)
    }

    /// Makes a flag of readiness that follows `neighbour` until the stop: up while `probe` succeeds, down with the reason
    /// within a few seconds when it does not, each time with a line in the log. Returns what the flag says, `None` while it
    /// is up, for whoever tells it to others.
    pub fn keep_ready<N, E, F, Fut>(
        &self,
        name: &'static str,
        neighbour: N,
        probe: F,
    ) -> watch::Receiver<Option<String>>
    where
        N: Clone + Send + Sync + 'static,
        E: Into<anyhow::Error>,
        F: Fn(N) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
    {
        crate::watch::keep(name, self.readiness.flag(name), self.shutdown.clone(), move || probe(neighbour.clone()))
    }

    /// Waits for a neighbour as [`connect::wait_for`] does, until this process is stopped.
    ///
    /// # Errors
    /// [`Stopped`] on a stop: hand it on with `?`, the shell takes it for a clean end.
    pub async fn wait_for<T, E, F, Fut>(&self, what: &str, attempt: F) -> Result<T, Stopped>
    where
        E: Into<anyhow::Error>,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        connect::wait_for(what, &self.shutdown, attempt).await
    }
}

/// Opens a listening socket; an error names the setting (`gateway.listen`) and what to do.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let variable = crate::config::variable_of(setting);
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({setting}): choose another by {variable}"))
}
