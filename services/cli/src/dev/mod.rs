//! `carillon dev`: all of Carillon on one machine, from nothing, for a person who wants to see it work.
//!
//! Everything lives in one home (`.carillon/`, see `carillon-servers`): data of Postgres and Redis, logs, ports. Whatever
//! way this process dies, the home's watcher ends what it started; whatever survives even that is ended by the next start.
//! Order of a start: home, ports, servers, schema, services, samples; the first failure undoes the rest by dropping it.

mod backends;
mod leader;
mod live;
mod samples;
mod screen;
mod services;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carillon_servers::{Home, InUse};
use carillon_store::{Schema, Store, schema};
use carillon_stream::{Redis, RedisOptions};
use tokio_util::sync::CancellationToken;

use crate::migrate;
use backends::Backends;
use leader::Leader;
use live::Live;
use screen::Screen;
use services::Services;

/// Run all of Carillon on this machine: one gateway, two dispatchers, two executors, on private servers.
///
/// Installs PostgreSQL and Redis by apt-get or Homebrew if they are missing (it says so first). Keeps its data under
/// .carillon/ in the current directory, and finds it again at the next start. Adds a few sample jobs to an empty database,
/// then shows a line for each execution. Ctrl-C stops all of it; a second Ctrl-C stops it at once.
///
/// Every setting of the services can be given by its variable, such as CARILLON_DISPATCHER_LEAD or CARILLON_LOG_LEVEL;
/// `carillon-dispatcher --help` lists them.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed, 64 bad arguments.")]
pub(crate) struct Arguments {
    /// Where the API listens (gRPC, gRPC-Web and JSON on one port).
    #[arg(long, value_name = "ADDRESS:PORT", env = "CARILLON_GATEWAY_LISTEN", default_value = LISTEN, value_parser = parse_listen)]
    listen: SocketAddr,
    /// The same on another port of 127.0.0.1.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Use this Postgres instead of a private one: postgres://user:password@host:port/database.
    #[arg(long, value_name = "URL", env = "CARILLON_POSTGRES_URL", hide_env_values = true)]
    postgres_url: Option<String>,
    /// The schema of the database in which all of it lies; made if it is missing.
    #[arg(long, value_name = "NAME", env = "CARILLON_POSTGRES_SCHEMA", default_value = schema::DEFAULT, value_parser = migrate::parse_schema)]
    postgres_schema: Schema,
    /// Use this Redis instead of a private one: redis://user:password@host:port/database.
    #[arg(long, value_name = "URL", env = "CARILLON_REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Where data and logs are kept.
    #[arg(long, value_name = "DIRECTORY", default_value = ".carillon")]
    data: PathBuf,
    /// Dispatchers: one leads, the others stand by.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    dispatchers: u16,
    /// Executors.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    executors: u16,
    /// Leave an empty database empty.
    #[arg(long)]
    no_samples: bool,
    /// Stop when the process that started this one is gone, as `make run` wants it.
    #[arg(long)]
    with_parent: bool,
}

const LISTEN: &str = "127.0.0.1:3051";

/// An empty variable is one that is not set, as for the services.
fn parse_listen(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    if text.is_empty() { LISTEN.parse() } else { text.parse() }
}

impl Arguments {
    fn listen(&self) -> SocketAddr {
        self.port.map_or(self.listen, |port| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

pub(crate) async fn run(mut arguments: Arguments) -> Result<()> {
    arguments.postgres_url = arguments.postgres_url.filter(|url| !url.is_empty());
    arguments.redis_url = arguments.redis_url.filter(|url| !url.is_empty());
    migrate::log_to_stdout();
    let screen = Screen::new();
    let stop = CancellationToken::new();
    listen_to_signals(stop.clone(), screen)?;
    let started = tokio::select! {
        // A stop while starting: what was started is dropped, and so ended.
        () = stop.cancelled() => {
            screen.step("stopped");
            return Ok(());
        }
        started = start(&arguments, screen, &stop) => started,
    };
    match started {
        Ok(mut running) => running.until_stopped(screen, &stop).await,
        Err(error) if error.is::<carillon_kit::Stopped>() => Ok(()),
        Err(error) => Err(error),
    }
}

/// All that runs. Fields are dropped in this order: services before the servers that they use.
struct Running {
    services: Services,
    live: Live,
    leader: Leader,
    backends: Backends,
    parent: Option<u32>,
    /// Last: whoever holds it owns all of the above.
    _home: Home,
}

async fn start(arguments: &Arguments, screen: Screen, stop: &CancellationToken) -> Result<Running> {
    let listen = arguments.listen();
    services::check_settings(arguments.postgres_url.as_deref(), arguments.redis_url.as_deref(), listen)?;
    let home = open_home(&arguments.data)?;
    check_free(listen)?;
    let backends = Backends::start(&home, &arguments.postgres_url, &arguments.redis_url, screen).await?;
    let store = migrate::store(&backends.postgres_url, &arguments.postgres_schema)?;
    let redis = Redis::connect_lazily(RedisOptions::new(&backends.redis_url))?;
    let [(postgres_url, _), (redis_url, _)] = backends.places();
    screen
        .wait_for(&format!("Postgres at {postgres_url}"), || store.reach(), carillon_store::Error::is_refused)
        .await?;
    screen.wait_for(&format!("Redis at {redis_url}"), || redis.reach(), carillon_stream::Error::is_refused).await?;
    migrate_schema(&store, screen).await?;
    let live = Live::from_now(store).await?;
    let counts = (arguments.dispatchers, arguments.executors);
    let mut services = Services::start(&home, &backends, &arguments.postgres_schema, listen, counts)?;
    screen.step(&format!(
        "started 1 gateway, {}, {}; waiting for them",
        counted(counts.0, "dispatcher"),
        counted(counts.1, "executor")
    ));
    services.ready(stop).await?;
    if !arguments.no_samples {
        samples::create_if_empty(listen, screen).await?;
    }
    let leader = first_leader(&services).await;
    screen.step("up");
    show_places(&services, leader.as_deref(), &backends, listen, screen);
    let parent = arguments.with_parent.then(std::os::unix::process::parent_id);
    let leader = Leader::new(leader, Instant::now());
    Ok(Running { services, live, leader, backends, parent, _home: home })
}

impl Running {
    async fn until_stopped(&mut self, screen: Screen, stop: &CancellationToken) -> Result<()> {
        /// Short enough to feel live, long enough to cost nothing.
        const LOOK_EACH: Duration = Duration::from_millis(300);
        let mut ticks = tokio::time::interval(LOOK_EACH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if self.parent.is_some_and(|parent| parent != std::os::unix::process::parent_id()) {
                screen.step("whoever started this is gone: stopping");
                break;
            }
            self.services.report_ended(screen);
            self.backends.report_ended(screen);
            let look = async {
                self.leader.report(&self.services, screen).await;
                self.live.show_new(screen).await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = look => {}
            }
        }
        self.services.stop(screen);
        self.backends.stop(screen);
        screen.step("stopped; the data is kept for the next start");
        Ok(())
    }
}

/// Ctrl-C asks; a second one ends this process, and with it, through the watcher, all that it started.
fn listen_to_signals(stop: CancellationToken, screen: Screen) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {}
            }
            if stop.is_cancelled() {
                screen.step("stopping at once");
                std::process::exit(130);
            }
            screen.step("stopping, a few seconds at most; Ctrl-C again stops at once");
            stop.cancel();
        }
    });
    Ok(())
}

fn open_home(data: &Path) -> Result<Home> {
    Home::at(data).map_err(|error| {
        if error.is::<InUse>() {
            error.context(
                "another `carillon dev` runs here: stop it first, or give this one --data DIRECTORY and --port PORT",
            )
        } else {
            error
        }
    })
}

/// Before anything is started: a taken port is the most common reason for a start to fail.
fn check_free(listen: SocketAddr) -> Result<()> {
    let Err(error) = std::net::TcpListener::bind(listen) else { return Ok(()) };
    if error.kind() == std::io::ErrorKind::AddrInUse {
        bail!(
            "port {} of {} is taken by another program: stop that, or choose another port by --port {port}, \
             `make run PORT={port}` or CARILLON_GATEWAY_LISTEN={ip}:{port}",
            listen.port(),
            listen.ip(),
            port = listen.port().saturating_add(10),
            ip = listen.ip(),
        );
    }
    Err(error).with_context(|| format!("cannot listen on {listen}"))
}

async fn migrate_schema(store: &Store, screen: Screen) -> Result<()> {
    let migrated = store.migrate().await.context(
        "cannot migrate the database; if its data is of another development version, `make clean-data` forgets it",
    )?;
    match migrated.applied.len() {
        0 => screen.step(&format!("the schema is at version {:04}", migrated.newest)),
        count => screen.step(&format!("{count} migrations applied, the schema is at version {:04}", migrated.newest)),
    }
    Ok(())
}

fn counted(count: u16, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Ready is who could lead; which one does is decided a moment later, or when the lock of a start before has run out: that is shown
/// when it happens.
async fn first_leader(services: &Services) -> Option<String> {
    const LOOKS: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    for _ in 0..LOOKS {
        let leader = leader::who_leads(services).await;
        if leader.is_some() {
            return leader;
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

fn show_places(services: &Services, leader: Option<&str>, backends: &Backends, listen: SocketAddr, screen: Screen) {
    screen.line("");
    screen.place("API", &format!("http://{listen}"), "gRPC, gRPC-Web and JSON");
    for service in services.list() {
        screen.place(
            service.name(),
            &service.admin_url(),
            &format!("{}pid {}, log {}", service.role(leader), service.pid(), service.log()),
        );
    }
    let [postgres, redis] = backends.places();
    screen.place("Postgres", &postgres.0, &postgres.1);
    screen.place("Redis", &redis.0, &redis.1);
    screen.line("");
    screen.line(&format!("Try:    curl -s http://{listen}/api/v1/scheduler/jobs"));
    screen.line(&format!("        {} job list{}", own_name(), of_address(listen)));
    screen.line("Ctrl-C stops all of it. Each execution, as it ends:");
    screen.line("");
    screen.headings();
}

/// This program as it was called.
fn own_name() -> String {
    std::env::args().next().unwrap_or_else(|| "carillon".to_owned())
}

/// What the commands need to find the gateway, where it is not at the usual place.
fn of_address(listen: SocketAddr) -> String {
    if listen.to_string() == LISTEN { String::new() } else { format!(" --address http://{listen}") }
}
