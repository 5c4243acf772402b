//! A wall clock of its own for a process, by Debian's libfaketime. Only the wall clock: with `DONT_FAKE_MONOTONIC` version
//! 0.9.10 leaves `CLOCK_MONOTONIC`, `CLOCK_MONOTONIC_RAW` and `CLOCK_BOOTTIME` as they are, so timers, leases and the stall
//! guard (R9) go on in true time (a test of the testkit looks).
//!
//! Where the library is missing (macOS, a machine without Debian's package) processes keep the true clock: ask
//! [`is_available`] and say so.

use std::path::PathBuf;

use chrono::TimeDelta;

/// Whether processes can have wall clocks of their own here.
pub fn is_available() -> bool {
    library().is_some()
}

/// What the environment of a process must hold for its wall clock to be `ahead` (or behind); nothing where that is not
/// possible.
pub fn environment(ahead: TimeDelta) -> Vec<(String, String)> {
    let Some(library) = library() else { return Vec::new() };
    vec![
        ("LD_PRELOAD".into(), library.to_string_lossy().into_owned()),
        ("FAKETIME".into(), format!("{:+}s", ahead.num_seconds())),
        ("DONT_FAKE_MONOTONIC".into(), "1".into()),
    ]
}

/// The variant for programs with several threads.
fn library() -> Option<PathBuf> {
    let directories = std::fs::read_dir("/usr/lib").ok()?;
    let paths = directories.flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    paths.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Each prints seconds: the wall clock, then monotonic and boot time, as a program of its own reads them.
    fn clocks(environment: &[(String, String)]) -> Option<Vec<f64>> {
        let program = "import time; print(*(time.clock_gettime(clock) for clock in
            (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)))";
        let output = Command::new("python3").arg("-c").arg(program).envs(environment.iter().cloned()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.split_whitespace().map(|number| number.parse().ok()).collect()
    }

    #[test]
    fn only_the_wall_clock_is_another() {
        let (true_ones, own) = (clocks(&[]), clocks(&environment(TimeDelta::hours(-7))));
        // Without python3 or the library there is nothing to look at.
        let (Some(true_ones), Some(own)) = (true_ones, own) else { return };
        if !is_available() {
            return;
        }
        let differences: Vec<f64> = own.iter().zip(&true_ones).map(|(own, truly)| own - truly).collect();
        assert!((differences[0] + 7.0 * 3600.0).abs() < 60.0, "{differences:?}");
        assert!(differences[1..].iter().all(|difference| (0.0..60.0).contains(difference)), "{differences:?}");
    }
}
