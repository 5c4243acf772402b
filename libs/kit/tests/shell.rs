//! The shell as a real process: exit codes, admin port, signals. `examples/probe.rs` is the service in it.

#![expect(clippy::unwrap_used, reason = "a failure in a test shall panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn probe() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/probe");
    assert!(path.exists(), "{} is built by `cargo test` without --test", path.display());
    let mut command = Command::new(path);
    command.env_clear().env("CARILLON_POSTGRES_URL", "postgres://u:geheim@h/db").env("CARILLON_REDIS_URL", "redis://h");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A probe that serves, with the rest of its log.
struct Running {
    child: Child,
    log: BufReader<ChildStdout>,
    admin: String,
}

impl Running {
    fn start(mode: &str) -> Self {
        let mut command = probe();
        command.env("CARILLON_PROBE_MODE", mode).env("CARILLON_SHUTDOWN_GRACE", "100ms").env("RUST_BACKTRACE", "1");
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, log, admin: String::new() };
        let line = running.log_until("admin.listen=");
        running.admin = line.split("admin.listen=").nth(1).unwrap().trim().to_owned();
        running
    }

    fn log_until(&mut self, wanted: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the log ended without {wanted:?}:\n{all}");
            all.push_str(&line);
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[test]
fn a_wrong_configuration_exits_64_and_says_all_of_it() {
    let output = output(probe().env("CARILLON_REDIS_URL", "x").env("CARILLON_ADMIN_LISTEN", "nowhere"));
    assert_eq!(output.status.code(), Some(64));
    let error = text(&output.stderr);
    assert!(error.contains("redis.url: must be written as") && error.contains("admin.listen: "), "{error}");
    assert!(error.contains("(from variable CARILLON_ADMIN_LISTEN)"), "{error}");
    assert_eq!(text(&output.stdout), "", "nothing started");
}

#[test]
fn wrong_arguments_exit_64() {
    assert_eq!(output(probe().arg("--colour")).status.code(), Some(64));
    assert_eq!(output(probe().args(["--config", "/nonexistent"])).status.code(), Some(64));
}

#[test]
fn the_configuration_can_be_checked_and_shown_without_a_start() {
    let checked = output(probe().arg("--check-config"));
    assert_eq!((checked.status.code(), text(&checked.stdout)), (Some(0), "the configuration is right\n".into()));
    let shown = output(probe().arg("config"));
    assert!(text(&shown.stdout).contains("url = \"postgres://u:***@h/db\""), "{}", text(&shown.stdout));
    let help = output(probe().arg("--help"));
    assert!(text(&help.stdout).contains("CARILLON_PROBE_MODE"), "{}", text(&help.stdout));
}

#[test]
fn it_serves_its_admin_port_and_drains_on_sigterm() {
    let running = Running::start("serve");
    assert!(running.get("/healthz").starts_with("HTTP/1.1 200"));
    while !running.get("/readyz").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    let metrics = running.get("/metrics");
    assert!(metrics.contains("carillon_build_info{service=\"carillon-probe\""), "{metrics}");
    assert!(metrics.contains("# HELP carillon_build_info "), "{metrics}");
    running.signal(Signal::SIGTERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGTERM received") && log.contains("carillon-probe has stopped"), "{log}");
}

#[test]
fn a_stop_while_waiting_for_a_neighbour_is_a_clean_end() {
    let mut running = Running::start("wait");
    running.log_until("waiting for godot: not today");
    let ready = running.get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("probe: starting"), "{ready}");
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_loop_that_ends_or_panics_ends_the_process_loudly() {
    let (code, log) = Running::start("end").end();
    assert_eq!(code, Some(1));
    assert!(log.contains("the task loop: ended although nobody asked it to"), "{log}");
    let (code, log) = Running::start("panic").end();
    assert_eq!(code, Some(1));
    assert!(log.contains("panicked: the probe was told to") && log.contains("examples/probe.rs:"), "{log}");
    assert!(!log.contains("backtrace"), "{log}");
}

#[test]
fn what_hangs_is_dropped_when_the_grace_is_over() {
    let running = Running::start("hang");
    running.signal(Signal::SIGTERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(1));
    assert!(log.contains("loop did not end within 100ms"), "{log}");
}

#[test]
fn a_second_signal_exits_at_once() {
    let mut command = probe();
    command.env("CARILLON_PROBE_MODE", "hang").env("CARILLON_SHUTDOWN_GRACE", "1h");
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stdout.take().unwrap());
    let mut running = Running { child, log, admin: String::new() };
    running.log_until("admin.listen=");
    running.signal(Signal::SIGTERM);
    running.log_until("SIGTERM received, stopping");
    running.signal(Signal::SIGTERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(130), "{log}");
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = output(probe().env("CARILLON_ADMIN_LISTEN", &address));
    assert_eq!(output.status.code(), Some(1));
    let log = text(&output.stdout);
    let wanted = format!("cannot listen on {address} (admin.listen): choose another by CARILLON_ADMIN_LISTEN");
    assert!(log.contains(&wanted), "{log}");
}

#[test]
fn a_line_for_a_collector_is_one_json_object() {
    let output = output(probe().env("CARILLON_LOG_FORMAT", "json").env("CARILLON_PROBE_MODE", "end"));
    for line in text(&output.stdout).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string() && line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}
