//! `carillon dev` and `carillon migrate` as a person runs them. Needs the services beside the program: `make test` builds
//! them first.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use carillon_testkit::{Database, Redis, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A directory that Postgres' user can get to, gone at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("carillon-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn carillon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Dev {
    child: Child,
    output: BufReader<ChildStdout>,
    seen: String,
}

impl Dev {
    fn start(data: &Path, port: u16) -> Self {
        Self::start_by(carillon(), data, port)
    }

    fn start_by(mut command: Command, data: &Path, port: u16) -> Self {
        command.arg("dev").arg("--data").arg(data).args(["--port", &port.to_string()]);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
        let output = child.stdout.take().map(BufReader::new).unwrap_or_else(|| panic!("no output"));
        Self { child, output, seen: String::new() }
    }

    fn until(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).is_ok_and(|bytes| bytes == 0) {
                let mut error = String::new();
                if let Some(stderr) = &mut self.child.stderr {
                    let _ = stderr.read_to_string(&mut error);
                }
                panic!("it ended without {wanted:?}:\n{}{error}", self.seen);
            }
            self.seen.push_str(&line);
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its watcher ends the rest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of the line of a service.
fn pid_in(line: &str) -> i32 {
    let pid = line.split("pid ").nth(1).and_then(|rest| rest.split(',').next());
    pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no pid: {line}"))
}

#[test]
fn it_runs_survives_a_kill_and_stops_cleanly() {
    let place = Place::new("dev");
    let data = place.0.join(".carillon");
    let port = free_port().unwrap();

    let mut first = Dev::start(&data, port);
    let line = first.until("SUCCESS");
    assert!(line.contains(" ms") && !line.contains('\u{1b}'), "{line}");
    assert!(first.seen.contains("five sample jobs"), "{}", first.seen);
    first.until("RETRYING");

    // One leads and one stands by; who comes next is said.
    let of_dispatchers = |role: &str| -> Vec<String> {
        let lines = first.seen.lines().filter(|line| line.contains(role) && line.contains("dispatcher-"));
        lines.map(str::to_owned).collect()
    };
    let (leading, standing) = (of_dispatchers("leads, pid"), of_dispatchers("stands by, pid"));
    assert!(leading.len() == 1 && standing.len() == 1, "{}", first.seen);
    kill(Pid::from_raw(pid_in(&leading[0])), Signal::SIGKILL).unwrap();
    let next = standing[0].split_whitespace().next().unwrap();
    first.until(&format!("{next} leads now"));

    let second = carillon().arg("dev").arg("--data").arg(&data).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && error.contains("another `carillon dev` runs here"), "{error}");

    // Nothing of it hinders the next start, which finds the data.
    first.signal(Signal::SIGKILL);
    first.child.wait().unwrap();
    let mut third = Dev::start(&data, port);
    third.until("SUCCESS");
    assert!(!third.seen.contains("sample jobs") && !third.seen.contains("making a Postgres"), "{}", third.seen);

    // Also if one part hangs.
    let line = third.seen.lines().find(|line| line.contains("executor-1")).unwrap().to_owned();
    kill(Pid::from_raw(pid_in(&line)), Signal::SIGSTOP).unwrap();
    let asked = Instant::now();
    third.signal(Signal::SIGINT);
    third.until("executor-1 does not stop and is killed");
    third.until("stopped; the data is kept");
    assert!(third.child.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    let ports = ["postgres", "redis"].map(|name| std::fs::read_to_string(data.join(format!("{name}.port"))).unwrap());
    for port in ports.iter().map(|port| port.parse().unwrap()).chain([port]) {
        TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|error| panic!("port {port} after the stop: {error}"));
    }
}

/// The servers are somebody else's: they are used, nothing private is made, and they are left alone at the end.
#[tokio::test]
async fn it_uses_the_servers_that_it_is_given() {
    let place = Place::new("given");
    let data = place.0.join(".carillon");
    let (database, redis) = (Database::empty().await.unwrap(), Redis::start().await.unwrap());
    let mut command = carillon();
    command.env("CARILLON_POSTGRES_URL", database.url()).env("CARILLON_REDIS_URL", redis.url());
    let mut dev = Dev::start_by(command, &data, free_port().unwrap());
    // Longer than a watcher takes that believes the home to be given up.
    for _ in 0..3 {
        dev.until("SUCCESS");
    }
    assert!(!dev.seen.contains("has ended"), "{}", dev.seen);
    dev.signal(Signal::SIGINT);
    dev.until("stopped");
    assert!(dev.child.wait().unwrap().success());
    assert!(!data.join("postgres").exists() && !data.join("redis").exists());
    let again = carillon().arg("migrate").env("CARILLON_POSTGRES_URL", database.url()).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to do"), "{again:?}");
}

#[tokio::test]
async fn what_it_cannot_use_is_said_before_anything_is_made() {
    let place = Place::new("wrong");
    let database = Database::empty().await.unwrap();
    let (server, _) = database.url().rsplit_once('/').unwrap();
    for (variable, value, said) in [
        ("CARILLON_POSTGRES_URL", "mysql://u:geheim@127.0.0.1/d", "postgres.url: must be written as postgres://"),
        ("CARILLON_POSTGRES_URL", &format!("{server}/nowhere"), "database \"nowhere\" does not exist"),
        ("CARILLON_DISPATCHER_LEAD", "abc", "dispatcher.lead"),
    ] {
        let mut command = carillon();
        command.arg("dev").arg("--data").arg(place.0.join("d")).args(["--port", &free_port().unwrap().to_string()]);
        let output = command.env("CARILLON_REDIS_URL", "redis://127.0.0.1:1").env(variable, value).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(said) && !error.contains("geheim"), "{error}");
    }
    assert!(!place.0.join("d/postgres").exists());
}

#[test]
fn a_taken_port_is_named_with_what_to_do_before_anything_is_made() {
    let place = Place::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut command = carillon();
    command.arg("dev").arg("--data").arg(place.0.join("d")).env("CARILLON_GATEWAY_LISTEN", listen);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("is taken by another program") && error.contains("CARILLON_GATEWAY_LISTEN="), "{error}");
    assert!(!place.0.join("d/postgres").exists());
}

#[tokio::test]
async fn migrate_says_what_it_applied_and_does_nothing_the_second_time() {
    let database = Database::empty().await.unwrap();
    let migrate = || carillon().arg("migrate").env("CARILLON_POSTGRES_URL", database.url()).output().unwrap();
    let first = migrate();
    let text = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.status.success() && text.contains("applied  0001 create jobs and timers"), "{text}");
    let second = String::from_utf8_lossy(&migrate().stdout).into_owned();
    assert!(second.contains("nothing to do"), "{second}");
}

/// By a user who may make no schema, in one that was made for them; an empty variable is the default.
#[tokio::test]
async fn migrate_makes_all_of_it_in_the_schema_that_it_is_given() {
    let database = Database::empty().await.unwrap();
    let pool = database.pool().await.unwrap();
    let user = format!("user_of_{}", database.name());
    let make = format!("CREATE ROLE {user} LOGIN; CREATE SCHEMA bells AUTHORIZATION {user}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&pool).await.unwrap();
    let url = database.url().replace("carillon@", &format!("{user}@"));
    let migrate = |schema: &str| {
        let mut command = carillon();
        command.arg("migrate").env("CARILLON_POSTGRES_URL", &url).env("CARILLON_POSTGRES_SCHEMA", schema);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for (schema, code, said) in [
        ("bells", 0, "schema bells"),
        ("bells", 0, "nothing to do"),
        ("", 1, "permission denied"),
        ("Bells", 64, "must be 1 to 63 of a-z"),
    ] {
        let (ended, text) = migrate(schema);
        assert!(ended == Some(code) && text.contains(said), "{schema:?}: {ended:?} {text}");
    }
}

#[test]
fn migrate_waits_and_says_so_without_the_password() {
    let port = free_port().unwrap();
    let url = format!("postgres://u:geheim@127.0.0.1:{port}/d");
    let output = carillon().args(["migrate", "--wait", "4", "--postgres-url", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("waiting for Postgres at postgres://u:***@127.0.0.1") && !text.contains("geheim"), "{text}");
    assert!(text.contains("did not answer within 4s"), "{text}");
    assert_eq!(carillon().arg("migrate").output().unwrap().status.code(), Some(64));
    assert_eq!(carillon().args(["migrate", "--bogus"]).output().unwrap().status.code(), Some(64));
}
