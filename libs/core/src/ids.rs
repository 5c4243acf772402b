//! Execution ids: a pure function of what they stand for, so that the primary key alone refuses a double (promise 2).
//!
//! Shape: UUID version 8. The first 48 bits are the scheduled millisecond since 1970 (clamped to that range), so that ids
//! sort by time and Postgres prunes partitions by them; the other 74 free bits are a SHA-256 of what the fire is.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const DAY_MS: u128 = 24 * 60 * 60 * 1_000;

/// The id of the one execution of `job` for its instant `scheduled`.
pub fn execution_for_fire(job: Uuid, scheduled: DateTime<Utc>) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"fire");
    hash.update(job.as_bytes());
    hash.update(scheduled.timestamp_millis().to_be_bytes());
    time_ordered(scheduled, &hash.finalize())
}

/// The id of the one execution that the trigger `key` of `job`, first seen at `at`, leads to.
pub fn execution_for_trigger(job: Uuid, key: &str, at: DateTime<Utc>) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"trigger");
    hash.update(job.as_bytes());
    hash.update(key.as_bytes());
    time_ordered(at, &hash.finalize())
}

/// The smallest id that an execution scheduled at `at` or later can have: the lower bound of a range in time.
pub fn first_at(at: DateTime<Utc>) -> Uuid {
    Uuid::from_u128(u128::from(clamped_ms(at)) << 80)
}

/// The day (UTC, counted from 1970) of an execution's id: those of one day lie in one partition.
pub fn day(execution: Uuid) -> u64 {
    // 48 bits of milliseconds are far fewer days than fit.
    u64::try_from((execution.as_u128() >> 80) / DAY_MS).unwrap_or(u64::MAX)
}

/// The smallest id of that day.
pub fn first_of_day(day: u64) -> Uuid {
    Uuid::from_u128((u128::from(day) * DAY_MS) << 80)
}

/// A time-ordered id for a job created at `at` (UUID version 7 layout, random tail given by the caller).
pub fn job_created(at: DateTime<Utc>, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(clamped_ms(at), &random).into_uuid()
}

fn time_ordered(at: DateTime<Utc>, hash: &[u8]) -> Uuid {
    let mut bytes = [0_u8; 16];
    bytes[..6].copy_from_slice(&clamped_ms(at).to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&hash[..10]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn clamped_ms(at: DateTime<Utc>) -> u64 {
    const LAST: i64 = (1 << 48) - 1;
    at.timestamp_millis().clamp(0, LAST).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    #[test]
    fn the_same_fire_has_the_same_id_and_another_has_not() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(execution_for_fire(a, at(5_000)), execution_for_fire(a, at(5_000)));
        assert_ne!(execution_for_fire(a, at(5_000)), execution_for_fire(b, at(5_000)));
        assert_ne!(execution_for_fire(a, at(5_000)), execution_for_fire(a, at(5_001)));
        assert_ne!(execution_for_trigger(a, "k", at(5_000)), execution_for_trigger(a, "l", at(5_000)));
    }

    /// Golden: rows of old and new binaries must meet in one primary key, so this may never change.
    #[test]
    fn the_layout_is_fixed() {
        let id = execution_for_fire(Uuid::from_u128(7), at(1_800_000_000_000));
        assert_eq!(id.get_version_num(), 8);
        assert_eq!(&id.to_string()[..13], "01a3185c-5000");
        assert_eq!(id.to_string(), "01a3185c-5000-831e-83d6-8ad6d7cd4720");
    }

    #[test]
    fn a_day_is_what_lies_between_two_midnights() {
        const DAY: i64 = 86_400_000;
        let job = Uuid::from_u128(9);
        for (ms, expected) in [(0, 0), (DAY - 1, 0), (DAY, 1), (20_000 * DAY + 5, 20_000), (-5, 0)] {
            assert_eq!(day(execution_for_fire(job, at(ms))), expected, "{ms}");
        }
        assert_eq!(day(first_at(at(7 * DAY))), 7);
        assert_eq!(first_of_day(7), first_at(at(7 * DAY)));
    }

    #[test]
    fn ids_sort_by_time() {
        let job = Uuid::from_u128(9);
        let ids: Vec<Uuid> = (0..100).map(|i| execution_for_fire(job, at(1_000 + i))).collect();
        assert!(ids.is_sorted());
        assert!(first_at(at(1_050)) <= ids[50] && ids[49] < first_at(at(1_050)));
        assert_eq!(first_at(at(-5)), Uuid::nil(), "before 1970 counts as its first instant");
    }
}
