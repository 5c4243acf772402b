//! Which shard a job belongs to: each has a leader and streams of its own. There is one, so far; whatever writes a row that
//! names a shard asks here.

use uuid::Uuid;

/// How many there are.
pub const SHARDS: u16 = 1;

/// The shard of `job`, and so of its timer, its triggers and its executions.
pub fn shard_of(job: Uuid) -> i16 {
    shard_among(job, SHARDS)
}

/// The last bits of a job's id are random, in either version.
fn shard_among(job: Uuid, shards: u16) -> i16 {
    i16::try_from(job.as_u128() % u128::from(shards.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_spread_over_all_shards() {
        let mut jobs = [0; 8];
        for n in 0..800_u64 {
            let mut random = [7; 10];
            random[2..].copy_from_slice(&n.to_be_bytes());
            let job = crate::ids::job_created(chrono::DateTime::UNIX_EPOCH, random);
            assert_eq!(shard_of(job), 0, "there is one");
            jobs[usize::try_from(shard_among(job, 8)).unwrap()] += 1;
        }
        assert_eq!(jobs, [100; 8]);
    }
}
