//! Postgres and Redis for `carillon dev`: those that the environment names, or private ones.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carillon_kit::config::SecretUrl;
use carillon_servers::{Home, Owner, PostgresServer, RedisServer, StopMode, find_postgres, find_redis, free_port};

use super::screen::{Screen, short};

/// The one place that installs; also run by the Makefile.
const SETUP: &str = include_str!("../../../../deploy/setup.sh");
pub(super) const POSTGRES_URL: &str = "CARILLON_POSTGRES_URL";
pub(super) const REDIS_URL: &str = "CARILLON_REDIS_URL";
/// Below `STOP_MAX` of the services: their part of a stop has shown whether the servers answer.
const STOP_MAX: Duration = Duration::from_secs(3);
const DATABASE: &str = "carillon";

/// What the services run on.
pub(super) struct Backends {
    pub(super) postgres_url: String,
    pub(super) redis_url: String,
    postgres: Option<PostgresServer>,
    redis: Option<RedisServer>,
}

impl Backends {
    /// Takes what is given, starts the rest.
    pub(super) async fn start(
        home: &Home,
        postgres_url: &Option<String>,
        redis_url: &Option<String>,
        screen: Screen,
    ) -> Result<Self> {
        let missing =
            (postgres_url.is_none() && find_postgres().is_err()) || (redis_url.is_none() && find_redis().is_err());
        if missing {
            let given = [(POSTGRES_URL, postgres_url.is_some()), (REDIS_URL, redis_url.is_some())];
            tokio::task::spawn_blocking(move || install(given)).await??;
        }
        let (postgres, redis) = tokio::join!(
            start_unless(postgres_url.is_some(), home.clone(), move |home| start_postgres(home, screen)),
            start_unless(redis_url.is_some(), home.clone(), move |home| start_redis(home, screen)),
        );
        let (postgres, redis) = (postgres?, redis?);
        let own_postgres = postgres.as_ref().map(|server| server.url(DATABASE));
        let own_redis = redis.as_ref().map(RedisServer::url);
        Ok(Self {
            postgres_url: postgres_url.clone().or(own_postgres).unwrap_or_default(),
            redis_url: redis_url.clone().or(own_redis).unwrap_or_default(),
            postgres,
            redis,
        })
    }

    /// URL without its password, and a note, for Postgres and Redis.
    pub(super) fn places(&self) -> [(String, String); 2] {
        let given = || "as given".to_owned();
        let postgres = self.postgres.as_ref().map_or_else(given, |server| format!("log {}", short(server.log())));
        let redis = self.redis.as_ref().map_or_else(given, |server| format!("log {}", short(server.log())));
        [
            (SecretUrl::new(&self.postgres_url).to_string(), postgres),
            (SecretUrl::new(&self.redis_url).to_string(), redis),
        ]
    }

    /// Says so once if a private server has ended by itself.
    pub(super) fn report_ended(&mut self, screen: Screen) {
        if let Some(server) = &mut self.postgres
            && let Some(status) = server.process().and_then(|process| process.ended())
        {
            screen.step(&format!(
                "Postgres has ended ({status}), see {}; Ctrl-C and start again",
                server.log().display()
            ));
            self.postgres = None;
        }
        if let Some(server) = &mut self.redis
            && let Some(status) = server.process().and_then(|process| process.ended())
        {
            screen.step(&format!("Redis has ended ({status}), see {}; Ctrl-C and start again", server.log().display()));
            self.redis = None;
        }
    }

    /// In good order: data is flushed. One that hangs is killed, and recovers at the next start.
    pub(super) fn stop(&mut self, screen: Screen) {
        std::thread::scope(|scope| {
            let (redis, postgres) = (&mut self.redis, &mut self.postgres);
            scope.spawn(|| {
                if redis.as_mut().is_some_and(|redis| !redis.stop_within(STOP_MAX)) {
                    screen.step("Redis did not stop and was killed");
                }
            });
            if postgres.as_mut().is_some_and(|postgres| !postgres.stop_within(StopMode::Fast, STOP_MAX)) {
                screen.step("Postgres did not stop and was killed");
            }
        });
    }
}

/// On a thread for blocking work, so that Ctrl-C is heard while a first start makes its data directory.
async fn start_unless<T: Send + 'static>(
    given: bool,
    home: Home,
    start: impl FnOnce(&Home) -> Result<T> + Send + 'static,
) -> Result<Option<T>> {
    if given {
        return Ok(None);
    }
    tokio::task::spawn_blocking(move || start(&home)).await?.map(Some)
}

fn start_postgres(home: &Home, screen: Screen) -> Result<PostgresServer> {
    let home = home_for_postgres(home, screen)?;
    if !home.path().join("postgres").exists() {
        screen.step("making a Postgres for Carillon");
    }
    let mut server = PostgresServer::new(&home, "postgres", port(&home, "postgres")?, &[("max_connections", "200")])?;
    server.start()?;
    server.create_database(DATABASE)?;
    screen.step(&format!("Postgres listens on 127.0.0.1:{}", server.port()));
    Ok(server)
}

fn start_redis(home: &Home, screen: Screen) -> Result<RedisServer> {
    let mut server = RedisServer::new(home, "redis", port(home, "redis")?, true)?;
    server.start()?;
    screen.step(&format!("Redis listens on 127.0.0.1:{}", server.port()));
    Ok(server)
}

/// Where Postgres can live. Run by root it runs as another user, who may not be let through to a checkout under `/root`;
/// then its data goes to a directory of its own, named by the place it stands for.
fn home_for_postgres(home: &Home, screen: Screen) -> Result<Home> {
    let owner = Owner::for_servers()?;
    if owner.can_reach(home.path()) {
        return Ok(home.clone());
    }
    // Not /var/tmp where there is another place: systems clean that by age, file by file.
    let parent = ["/var/lib", "/var/tmp"].into_iter().find(|parent| Path::new(parent).is_dir()).unwrap_or("/tmp");
    let place = PathBuf::from(format!("{parent}/carillon-dev-{:016x}", fingerprint(home.path())));
    if let Ok(metadata) = fs::symlink_metadata(&place)
        && (!metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw())
    {
        bail!("{} is not ours: remove it, or give --data DIRECTORY that user postgres can get to", place.display());
    }
    screen.step(&format!(
        "the user of Postgres cannot get to {}, so its data is in {}",
        home.path().display(),
        place.display()
    ));
    // `make clean-data` reads it.
    let note = home.path().join("postgres.place");
    fs::write(&note, place.to_string_lossy().as_bytes()).with_context(|| format!("cannot write {}", note.display()))?;
    Home::at(&place)
}

/// FNV-1a: the same for the same path in every build, which the standard hasher does not promise.
fn fingerprint(path: &Path) -> u64 {
    path.to_string_lossy()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The port of last time if nobody has taken it since, so that a client's configuration stays right.
fn port(home: &Home, name: &str) -> Result<u16> {
    let file = home.path().join(format!("{name}.port"));
    let known = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u16>().ok());
    if let Some(port) = known
        && TcpListener::bind(("127.0.0.1", port)).is_ok()
    {
        return Ok(port);
    }
    let port = free_port()?;
    fs::write(&file, port.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(port)
}

/// Its own words go to the terminal. Given as an argument: on standard input, apt-get would read the rest of it.
fn install(given: [(&str, bool); 2]) -> Result<()> {
    let mut shell = Command::new("sh");
    // As flags they may have been given, which it does not see.
    for (variable, given) in given {
        shell.env(variable, if given { "given" } else { "" });
    }
    let arguments = ["-c", SETUP, "setup", "servers-unless-given"];
    let status = shell.args(arguments).stdin(Stdio::null()).status().context("cannot start sh")?;
    if !status.success() {
        bail!("what is missing was not installed");
    }
    Ok(())
}
