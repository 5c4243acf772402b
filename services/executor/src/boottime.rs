//! A clock that goes on while the machine sleeps or the process is stopped (R9). The ordinary monotonic clock of Linux stands
//! still while a machine is suspended, and would hide the very gap that is looked for.

use std::time::Duration;

/// Since some fixed instant.
#[cfg(target_os = "linux")]
pub(crate) fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Since some fixed instant. Elsewhere the monotonic clock goes on by itself.
#[cfg(not(target_os = "linux"))]
pub(crate) fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
