//! Whether the gateway can do its work, which is whether Postgres answers: shown by the gRPC health service and `/readyz`,
//! and logged when it changes. Redis does not count: without it everything still works, only later.

use std::time::Duration;

use carillon_kit::Flag;
use carillon_proto::v1::execution_service_server::ExecutionServiceServer;
use carillon_proto::v1::job_service_server::JobServiceServer;
use carillon_proto::v1::schedule_service_server::ScheduleServiceServer;
use carillon_store::Store;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(3);

/// `""` is the server as a whole.
const SERVICES: [&str; 4] =
    ["", JobServiceServer::<()>::NAME, ExecutionServiceServer::<()>::NAME, ScheduleServiceServer::<()>::NAME];

/// The loop that looks after Postgres.
pub(crate) struct Watch {
    store: Store,
    flag: Flag,
    reporter: HealthReporter,
}

impl Watch {
    pub(crate) fn new(store: Store, flag: Flag, reporter: HealthReporter) -> Self {
        Self { store, flag, reporter }
    }

    /// Runs until `shutdown`, then says NOT_SERVING, so that balancers turn elsewhere during the drain.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut known: Option<bool> = None;
        loop {
            let failure = match tokio::time::timeout(TIMEOUT, self.look()).await {
                Ok(failure) => failure,
                Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
            };
            let serves = failure.is_none();
            match &failure {
                None => self.flag.up(),
                Some(why) => self.flag.down(why.as_str()),
            }
            if known != Some(serves) {
                match &failure {
                    None => info!("postgres is there, requests are served"),
                    Some(why) => warn!("waiting for postgres, requests are answered with UNAVAILABLE: {why}"),
                }
                self.report(serves).await;
                known = Some(serves);
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        self.report(false).await;
        Ok(())
    }

    /// What is wrong, if anything is.
    async fn look(&self) -> Option<String> {
        match self.store.is_migrated().await {
            Ok(true) => None,
            Ok(false) => Some("its schema is older than this program: run carillon migrate".to_owned()),
            Err(error) => Some(describe(&error)),
        }
    }

    async fn report(&self, serves: bool) {
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// An error with its causes.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
