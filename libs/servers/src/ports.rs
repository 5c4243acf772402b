//! Free ports that stay ours. Asking the kernel for one and closing it again lets the next connection of anybody take it,
//! which tests that run side by side do meet. So: ports below the range that the kernel gives out, each behind a file that
//! we keep locked for as long as this process lives.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use anyhow::{Result, bail};

/// Below 32768 (Linux) and 49152 (macOS), above what well-known services use.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 on which nothing listens, and which no other process gets from this function meanwhile.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    let directory = std::env::temp_dir().join("carillon-ports");
    if fs::create_dir_all(&directory).is_ok() {
        // Shared with other users of the machine, as the directory for temporary files itself.
        let _ = fs::set_permissions(&directory, Permissions::from_mode(0o1777));
    }
    let count = u32::from(LAST - FIRST) + 1;
    // Start at different places, so that many processes do not try the same ones in turn.
    let start = std::process::id().wrapping_mul(97) % count;
    let mut held = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for step in 0..count {
        let port = FIRST + u16::try_from((start + step) % count).unwrap_or_default();
        let file = File::options().create(true).truncate(false).write(true).open(directory.join(port.to_string()));
        let Ok(file) = file else { continue };
        // Our own locks count too: each opening of a file is a holder of its own.
        if file.try_lock().is_err() || TcpListener::bind(("127.0.0.1", port)).is_err() {
            continue;
        }
        held.push(file);
        return Ok(port);
    }
    bail!("no port between {FIRST} and {LAST} is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
