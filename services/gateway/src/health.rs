//! Whether the gateway can do its work, which is whether Postgres answers: shown by the gRPC health service and `/readyz`,
//! and logged when it changes. Redis does not count: without it everything still works, only later.

use carillon_kit::{Process, Stopped};
use carillon_proto::v1::execution_service_server::ExecutionServiceServer;
use carillon_proto::v1::job_service_server::JobServiceServer;
use carillon_proto::v1::schedule_service_server::ScheduleServiceServer;
use carillon_store::Store;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// `""` is the server as a whole.
const SERVICES: [&str; 4] =
    ["", JobServiceServer::<()>::NAME, ExecutionServiceServer::<()>::NAME, ScheduleServiceServer::<()>::NAME];

/// The loop that tells of Postgres.
pub(crate) struct Watch {
    process: Process,
    store: Store,
    postgres: watch::Receiver<Option<String>>,
    reporter: HealthReporter,
}

impl Watch {
    pub(crate) fn new(process: Process, store: Store, reporter: HealthReporter) -> Self {
        let postgres = process.keep_ready("postgres", store.clone(), |store| async move { migrated(&store).await });
        Self { process, store, postgres, reporter }
    }

    /// Runs until the stop, then says NOT_SERVING, so that balancers turn elsewhere during the drain.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let shutdown = self.process.shutdown();
        tokio::select! {
            () = shutdown.cancelled() => {}
            // It ends with the stop.
            () = self.report_changes() => {}
            Err(Stopped) = self.wait() => {}
        }
        self.report(false).await;
        Ok(())
    }

    /// Says in the log why requests are not served yet.
    async fn wait(&self) -> Result<(), Stopped> {
        let store = &self.store;
        let what = "postgres (requests are answered with UNAVAILABLE until then)";
        self.process
            .wait_for(what, || async {
                store.reach().await?;
                migrated(store).await
            })
            .await
    }

    async fn report_changes(&self) {
        let mut postgres = self.postgres.clone();
        loop {
            let serves = postgres.borrow_and_update().is_none();
            self.report(serves).await;
            if postgres.changed().await.is_err() {
                return;
            }
        }
    }

    async fn report(&self, serves: bool) {
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

async fn migrated(store: &Store) -> anyhow::Result<()> {
    anyhow::ensure!(store.is_migrated().await?, "its schema is older than this program: run carillon migrate");
    Ok(())
}
