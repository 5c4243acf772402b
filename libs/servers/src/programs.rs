//! Finding the servers' programs, and saying what to install where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The oldest that hold what we use: `MERGE` and the security settings of 15; streams and `XAUTOCLAIM` of 7.
const POSTGRES_MIN: u32 = 15;
const REDIS_MIN: u32 = 7;

/// The programs of one Postgres version.
#[derive(Clone, Debug)]
pub struct PostgresPrograms {
    /// The server.
    pub postgres: PathBuf,
    /// Makes a data directory.
    pub initdb: PathBuf,
    /// Major version.
    pub major: u32,
}

/// The newest Postgres of this machine: Debian keeps versions apart and out of the path, Homebrew too.
///
/// # Errors
/// If there is none new enough; the text says what to install.
pub fn find_postgres() -> Result<PostgresPrograms> {
    let mut directories = Vec::new();
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt", "/usr"] {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let versioned = name.starts_with("postgresql") || name.starts_with("pgsql-");
            if versioned || parent == "/usr/lib/postgresql" {
                directories.push(entry.path().join("bin"));
            }
        }
    }
    directories.extend(path_directories());
    let mut best: Option<PostgresPrograms> = None;
    let mut too_old = None;
    for directory in directories {
        let (postgres, initdb) = (directory.join("postgres"), directory.join("initdb"));
        if !postgres.is_file() || !initdb.is_file() {
            continue;
        }
        let Some(major) = major_version(&postgres, ") ") else { continue };
        if major < POSTGRES_MIN {
            too_old = Some(major);
        } else if best.as_ref().is_none_or(|best| best.major < major) {
            best = Some(PostgresPrograms { postgres, initdb, major });
        }
    }
    match (best, too_old) {
        (Some(best), _) => Ok(best),
        (None, Some(major)) => {
            bail!("PostgreSQL {POSTGRES_MIN} or newer is needed, here is {major}: {}", install_hint("postgresql"))
        }
        (None, None) => bail!("PostgreSQL is not installed: {}", install_hint("postgresql")),
    }
}

/// The Redis (or Valkey) server of this machine.
///
/// # Errors
/// If there is none new enough; the text says what to install.
pub fn find_redis() -> Result<PathBuf> {
    let mut directories = path_directories();
    directories.extend(["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/usr/sbin"].map(PathBuf::from));
    let mut too_old = None;
    for directory in directories {
        for name in ["redis-server", "valkey-server"] {
            let program = directory.join(name);
            let Some(major) = program.is_file().then(|| major_version(&program, "v=")).flatten() else { continue };
            if major >= REDIS_MIN {
                return Ok(program);
            }
            too_old = Some(major);
        }
    }
    if let Some(major) = too_old {
        bail!("Redis {REDIS_MIN} or newer is needed, here is {major}: {}", install_hint("redis-server"));
    }
    bail!("Redis is not installed: {}", install_hint("redis-server"))
}

/// PgBouncer, which tests put before Postgres: Debian keeps it where only root's path leads.
///
/// # Errors
/// If there is none; the text says what to install.
pub fn find_pgbouncer() -> Result<PathBuf> {
    let mut directories = path_directories();
    directories.extend(["/usr/sbin", "/usr/bin", "/opt/homebrew/bin", "/usr/local/bin"].map(PathBuf::from));
    let found = directories.into_iter().map(|directory| directory.join("pgbouncer")).find(|program| program.is_file());
    match found {
        Some(program) => Ok(program),
        None => bail!("PgBouncer is not installed: {}", install_hint("pgbouncer")),
    }
}

fn path_directories() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// `postgres (PostgreSQL) 15.20 (Debian …)`, `Redis server v=7.0.15 sha=…`: the number behind `marker`.
fn major_version(program: &Path, marker: &str) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_once(marker)?.1;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn install_hint(package: &str) -> String {
    if cfg!(target_os = "macos") {
        let formula = match package {
            "postgresql" => "postgresql@17",
            "redis-server" => "redis",
            other => other,
        };
        return format!("brew install {formula}");
    }
    format!("apt-get install {package} (or `make setup`)")
}
