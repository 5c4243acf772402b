//! The directory of a set of servers: locked by its owner, watched by a shell that outlives the owner.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::{Process, command_line_of, end_stranger};

/// Names of temporary homes begin so; the rest is the process and a number.
const TEMPORARY: &str = "carillon-test-";
/// A name is never given twice by one process: the watcher of the first home of that name may be about to remove it.
static NEXT_TEMPORARY: AtomicU32 = AtomicU32::new(0);
const LOCK: &str = "owner.lock";
const PIDS: &str = "pids";

/// What the watcher runs: wait until the owner is gone, then ask each process to stop by the signal that its file names,
/// then make sure. `$1` is the home, `$2` the owner's pid files, `$3` says whether the home shall be removed. `read` is
/// built in, so a full process table cannot keep the watcher from its work. The pid files are those of this owner alone: the
/// next one may have started already, and its processes are none of ours.
const WATCHER: &str = r#"
while read -r line; do :; done
cd "$2" 2>/dev/null || exit 0
for pid in *; do [ -f "$pid" ] && kill -s "$(cat "$pid")" "$pid" 2>/dev/null; done
tries=0
while [ $tries -lt 50 ]; do
  alive=0
  for pid in *; do [ -f "$pid" ] && kill -0 "$pid" 2>/dev/null && alive=1; done
  [ $alive = 0 ] && break
  sleep 0.1
  tries=$((tries + 1))
done
for pid in *; do [ -f "$pid" ] && kill -s KILL "$pid" 2>/dev/null; done
cd /
rm -rf "$2"
[ "$3" = remove ] && rm -rf "$1"
exit 0
"#;

/// A home is owned by a process that lives.
#[derive(Debug)]
pub struct InUse {
    /// Its owner, if it said.
    pub pid: Option<u32>,
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "is in use by process {pid}"),
            None => write!(f, "is in use by another process"),
        }
    }
}

impl std::error::Error for InUse {}

/// A directory for servers, owned by this process. Cheap to clone; servers hold it.
#[derive(Clone, Debug)]
pub struct Home {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// A file for each process that runs, named by its id, holding the signal that ends it.
    pids: PathBuf,
    /// Held for as long as we live: the kernel gives it up when we die, so it cannot be stale.
    _lock: File,
    #[cfg_attr(not(test), expect(dead_code, reason = "held for its end of input"))]
    /// Its end of input tells the watcher that we are gone. Never waited for: it ends after us.
    watcher: Child,
}

impl Home {
    /// One that goes with this process, in the directory for temporary files. What dead owners left is swept first.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn temporary() -> Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        loop {
            let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Self::own(path, "remove"),
                // Of a process that had our number before us.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        }
    }

    /// One that stays at `path`. What an owner that was killed outright has left running is ended first.
    ///
    /// # Errors
    /// [`InUse`] while its owner lives, or if the directory cannot be made.
    pub fn at(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        Self::own(path.canonicalize()?, "keep")
    }

    fn own(path: PathBuf, at_the_end: &str) -> Result<Self> {
        let lock = lock(&path)?;
        end_orphans(&path);
        let since = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let pids = path.join(PIDS).join(format!("{}-{since}", std::process::id()));
        fs::create_dir_all(&pids).with_context(|| format!("cannot make {}", pids.display()))?;
        // Servers may run as another user, who must be able to pass.
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        let watcher = Command::new("sh")
            .args([OsStr::new("-c"), OsStr::new(WATCHER), OsStr::new("carillon-watcher")])
            .args([path.as_os_str(), pids.as_os_str(), OsStr::new(at_the_end)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Out of reach of a Ctrl-C or a kill that is meant for our group.
            .process_group(0)
            .spawn()
            .context("cannot start the watcher (sh)")?;
        Ok(Self { inner: Arc::new(Inner { path, pids, _lock: lock, watcher }) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Starts `command`; its output goes to the end of `log`. It ends by `last_signal` when this process is gone.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, command: &mut Command, log: &Path, last_signal: Signal) -> Result<Process> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        // A Ctrl-C in the terminal is for us alone: we end the others in good order.
        command.process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| match command.get_current_dir() {
            // The one error stands for both.
            Some(directory) => format!("cannot start {name} ({program}) in {}", directory.display()),
            None => format!("cannot start {name} ({program})"),
        })?;
        let file = self.inner.pids.join(child.id().to_string());
        let word = last_signal.as_str().trim_start_matches("SIG");
        fs::write(&file, word).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Process::new(name.to_owned(), child, file, log.to_owned(), self.clone()))
    }
}

fn lock(path: &Path) -> Result<File> {
    let file_path = path.join(LOCK);
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&file_path);
    let mut file = file.with_context(|| format!("cannot write {}", file_path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&file_path).ok().and_then(|text| text.trim().parse().ok());
            return Err(anyhow::Error::new(InUse { pid }).context(format!("{}", path.display())));
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", file_path.display()));
        }
    }
    file.set_len(0)?;
    std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes())?;
    Ok(file)
}

/// Ends what stands in the pid files of dead owners, if the number still means what it meant: a command line that names the
/// home, or one of our programs.
fn end_orphans(home: &Path) {
    let Ok(owners) = fs::read_dir(home.join(PIDS)) else { return };
    for owner in owners.flatten().map(|entry| entry.path()) {
        let Ok(files) = fs::read_dir(&owner) else { continue };
        for file in files.flatten() {
            let pid = file.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let word = fs::read_to_string(file.path()).unwrap_or_default();
            if let Some(pid) = pid
                && let Some(command_line) = command_line_of(pid)
                && (command_line.contains(&*home.to_string_lossy()) || command_line.contains("carillon-"))
            {
                end_stranger(pid, format!("SIG{word}").parse().unwrap_or(Signal::SIGKILL));
            }
        }
        let _ = fs::remove_dir_all(&owner);
    }
}

/// Removes temporary homes whose owners are gone: both owner and watcher must have been killed for one to be left.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
        // A home that is just being made has no lock yet, and is left alone.
        if ours
            && path.join(LOCK).exists()
            && let Ok(_lock) = lock(&path)
        {
            end_orphans(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does nothing, and names the home in its command line, by which an orphan is known as ours.
    fn idle(home: &Path) -> Command {
        let mut command = Command::new("tail");
        command.arg("-f").arg(home.join(LOCK));
        command
    }

    #[test]
    fn a_home_has_one_owner() {
        let home = Home::temporary().unwrap();
        let again = Home::at(home.path()).unwrap_err();
        assert!(again.is::<InUse>(), "{again:#}");
        assert!(format!("{again:#}").contains(&format!("process {}", std::process::id())), "{again:#}");
    }

    #[test]
    fn the_next_owner_ends_orphans_and_the_watcher_of_the_last_one_leaves_its_processes_alone() {
        let place = Home::temporary().unwrap();
        let path = place.path().join("kept");
        let first = Home::at(&path).unwrap();
        let log = path.join("idle.log");
        let orphan = first.spawn("idle", &mut idle(&path), &log, Signal::SIGKILL).unwrap().forget();
        // A process that is just being executed shows an empty command line for a moment after the spawn has returned.
        crate::process::until(std::time::Duration::from_secs(10), || {
            command_line_of(orphan).is_some_and(|line| line.contains(&*path.to_string_lossy()))
        })
        .unwrap();
        // The watcher is killed together with the owner.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.inner.watcher.id().cast_signed()), Signal::SIGKILL)
            .unwrap();
        drop(first);
        // Children of other tests that are just being forked hold the lock for a moment.
        let mut second = None;
        let owned = crate::process::until(std::time::Duration::from_secs(10), || {
            second = Home::at(&path).ok();
            second.is_some()
        });
        owned.unwrap();
        let second = second.unwrap();
        assert_eq!(command_line_of(orphan).unwrap_or_default(), "");
        let mut process = second.spawn("idle", &mut idle(&path), &log, Signal::SIGKILL).unwrap();
        assert!(process.ended().is_none());
    }

    #[test]
    fn the_watcher_ends_what_is_left_and_removes_a_temporary_home() {
        let home = Home::temporary().unwrap();
        let path = home.path().to_owned();
        let log = path.join("idle.log");
        let process = home.spawn("idle", &mut idle(&path), &log, Signal::SIGTERM).unwrap();
        let pid = process.forget();
        drop(home);
        crate::process::until(std::time::Duration::from_secs(20), || !path.exists()).unwrap();
        // A zombie until this process reaps it, so its command line is empty.
        assert_eq!(command_line_of(pid).unwrap_or_default(), "");
    }
}
