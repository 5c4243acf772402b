//! One running process of a home.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Home;

/// How often a state is looked at that nobody reports.
const LOOK_EACH: Duration = Duration::from_millis(10);
/// What is shown of a log when something goes wrong.
const TAIL_LINES: usize = 30;

/// A child process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    pid: i32,
    pid_file: PathBuf,
    log: PathBuf,
    /// The watcher ends all of a home's processes when nobody holds the home any more: this one does while it lives.
    _home: Home,
}

impl Process {
    pub(crate) fn new(name: String, child: Child, pid_file: PathBuf, log: PathBuf, home: Home) -> Self {
        // Process ids fit: the kernel's type is a signed 32-bit one.
        let pid = child.id().cast_signed();
        Self { name, child: Some(child), pid, pid_file, log, _home: home }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Sends a signal. One that has ended is not missed.
    pub fn signal(&self, signal: Signal) {
        if self.child.is_some() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())?;
        let _ = fs::remove_file(&self.pid_file);
        Some(status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(LOOK_EACH);
        }
    }

    /// Ends it by `signal`, by SIGKILL where that is not heard within `limit`. Says whether it heard.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> bool {
        self.signal(signal);
        let heard = self.wait(limit).is_some();
        if !heard {
            self.kill();
        }
        heard
    }

    /// Ends it on the spot, also if it is frozen.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(10));
    }

    #[cfg(test)]
    pub(crate) fn forget(mut self) -> i32 {
        self.child = None;
        self.pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() && self.ended().is_none() {
            self.kill();
        }
    }
}

/// Looks until `done`.
pub(crate) fn until(limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() >= deadline {
            bail!("not within {limit:?}");
        }
        std::thread::sleep(LOOK_EACH);
    }
    Ok(())
}

/// The command line of any process of this machine; none if there is no such process.
pub(crate) fn command_line_of(pid: i32) -> Option<String> {
    if cfg!(target_os = "linux") {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        return Some(String::from_utf8_lossy(&bytes).replace('\0', " "));
    }
    let output = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends a process that is not our child: asks by `first`, then makes sure.
pub(crate) fn end_stranger(pid: i32, first: Signal) {
    // A zombie has no command line any more, and nothing to end.
    let gone = || command_line_of(pid).is_none_or(|line| line.trim().is_empty());
    let pid = Pid::from_raw(pid);
    for (signal, limit) in [(first, 3), (Signal::SIGKILL, 5)] {
        if kill(pid, signal).is_err() {
            return;
        }
        // A frozen one must be woken to hear anything but SIGKILL.
        let _ = kill(pid, Signal::SIGCONT);
        if until(Duration::from_secs(limit), gone).is_ok() {
            return;
        }
    }
}
