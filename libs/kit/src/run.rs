//! From `main` to the exit code, in the order that the crate's front page states.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Admin};
use crate::args::{self, Request};
use crate::config::{self, Loaded, Settings, ShellConfig};
use crate::connect::Stopped;
use crate::process::Process;
use crate::readiness::Readiness;
use crate::{metrics, shutdown, telemetry};

/// Bad arguments or configuration (EX_USAGE of sysexits.h): starting again without a change is pointless.
const EXIT_USAGE: u8 = 64;
/// What a drain may take beyond the grace period, for the parts that end after the loops: last flushes, the log.
const AFTER_GRACE: Duration = Duration::from_secs(2);
/// How long threads that block may hold up the exit, once everything is recorded.
const BLOCKED_THREADS: Duration = Duration::from_millis(200);

/// What a process is called and which settings it has.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Name of the program, `carillon-dispatcher`.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Its version, `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// Documented TOML, later parts over earlier ones; together they hold every setting.
    pub defaults: &'static [&'static str],
}

/// Runs a service from its arguments to its exit code. `serve` gets a checked configuration and returns after the drain.
pub fn run<C, F, Fut>(service: Service, serve: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let request = match args::parse(&service, std::env::args_os()) {
        Ok(request) => request,
        Err(answer) => return answer.print(),
    };
    let loaded: Loaded<C> = match config::load(&service, request.file(), std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{}: cannot start, the configuration is wrong:\n{problems}", service.name);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match request {
        Request::Check(_) => {
            println!("the configuration is right");
            ExitCode::SUCCESS
        }
        Request::Print(_) => {
            print!("{}", loaded.effective);
            ExitCode::SUCCESS
        }
        Request::Run(_) => start(&service, loaded, serve),
    }
}

fn start<C, F, Fut>(service: &Service, loaded: Loaded<C>, serve: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    telemetry::install(&loaded.shell.log);
    telemetry::install_panic_hook();
    info!(version = service.version, pid = std::process::id(), "{} starts", service.name);
    let outcome = runtime().and_then(|runtime| {
        let outcome = runtime.block_on(serve_until_stopped(service, loaded, serve));
        runtime.shutdown_timeout(BLOCKED_THREADS);
        outcome
    });
    match outcome {
        Ok(()) => {
            info!("{} has stopped", service.name);
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<Stopped>() => {
            info!("{} was stopped before it was ready", service.name);
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!("{} ends: {error:#}", service.name);
            ExitCode::FAILURE
        }
    }
}

/// At least two workers even on one core: with one, a handler that blocks would also block whoever notices.
fn runtime() -> anyhow::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(2))
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

async fn serve_until_stopped<C, F, Fut>(service: &Service, loaded: Loaded<C>, serve: F) -> anyhow::Result<()>
where
    C: Settings,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    install_tls_provider();
    let ShellConfig { admin, shutdown: shutdown_config, .. } = loaded.shell;
    let metrics = metrics::install(service.name, service.version)?;
    let stop = CancellationToken::new();
    shutdown::listen(stop.clone())?;
    let readiness = Readiness::new(stop.clone());
    let listener = crate::bind("admin.listen", admin.listen).await?;
    let address = listener.local_addr().context("the admin port has no address")?;
    info!(admin.listen = %address, "serving /healthz, /readyz and /metrics");
    let admin = Admin { readiness: readiness.clone(), metrics };
    tokio::spawn(admin::serve(listener, admin));

    let process = Process::new(service.name, stop.clone(), readiness, shutdown_config.grace, address);
    // Boxed: the future of a whole service is large, and there is one.
    let serving = Box::pin(serve(loaded.config, process));
    within_grace(serving, &stop, shutdown_config.grace + AFTER_GRACE).await
}

/// Runs `serving` to its end; after a stop it gets `limit`, since a part that hangs must not hold up the exit for ever.
async fn within_grace(
    serving: impl Future<Output = anyhow::Result<()>>,
    stop: &CancellationToken,
    limit: Duration,
) -> anyhow::Result<()> {
    let out_of_time = async {
        stop.cancelled().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        outcome = serving => outcome,
        () = out_of_time => anyhow::bail!("not everything ended within {limit:?} of the signal; what was left is dropped"),
    }
}

/// One TLS implementation in the whole process. Set by hand, so that a second one in the dependencies is no panic.
fn install_tls_provider() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        warn!("a TLS provider was already installed");
    }
}
