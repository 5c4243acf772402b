//! When a failed attempt is tried again: a job says how its delays grow, up to a cap, and by how much chance shortens or lengthens
//! each, so that many that failed together do not come back together.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::{UnknownWord, words};
use crate::limits::{RETRY_DELAY_CAP_MS_DEFAULT, RETRY_DELAY_CAP_MS_MAX, RETRY_JITTER_PERCENT_DEFAULT};

words! {
    /// How the delays before the retries of an execution grow.
    Backoff {
        /// Each as long as the first.
        Fixed = "FIXED",
        /// The first, twice it, three times, ….
        Linear = "LINEAR",
        /// The first, twice it, four times, ….
        Exponential = "EXPONENTIAL",
    }
}

/// How the delays before the retries of an execution grow, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// By which rule.
    pub backoff: Backoff,
    /// No delay grows beyond so many milliseconds, unless the first is longer.
    pub cap_ms: u32,
    /// By how much of it chance shortens or lengthens a delay, 0 to 100.
    pub jitter_percent: u32,
}

impl Growth {
    /// Whether it is that of a job which says nothing of it.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Growth {
    fn default() -> Self {
        Self {
            backoff: Backoff::Exponential,
            cap_ms: RETRY_DELAY_CAP_MS_DEFAULT,
            jitter_percent: RETRY_JITTER_PERCENT_DEFAULT,
        }
    }
}

/// What a job says about its retries, but for their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Milliseconds before the first retry.
    pub delay_ms: u32,
    /// How that grows with each further one.
    pub growth: Growth,
}

impl Policy {
    /// The delay before the attempt that follows the failed `attempt` (from 1). `random` lies in 0..1.
    pub fn delay(self, attempt: u32, random: f64) -> Duration {
        let Self { delay_ms, growth: Growth { backoff, cap_ms, jitter_percent } } = self;
        let times = match backoff {
            Backoff::Fixed => 1,
            Backoff::Linear => u64::from(attempt.max(1)),
            Backoff::Exponential => 1 << attempt.saturating_sub(1).min(31),
        };
        let grown = u64::from(delay_ms).saturating_mul(times).min(cap_ms.max(delay_ms).into());
        let jitter = f64::from(jitter_percent.min(100)) / 100.0;
        Duration::from_millis(grown).mul_f64(1.0 + jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0))
    }
}

/// Whether, and when, a failed attempt is followed by another, as far as the handler has a say in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// As the job says.
    #[default]
    ByPolicy,
    /// After that time, at most the longest cap there is, while attempts are left.
    After(Duration),
    /// No further attempt will help.
    Never,
}

impl Again {
    /// The delay before the attempt that follows the failed `attempt`, if one does.
    pub fn delay(self, policy: Policy, attempt: u32, random: f64) -> Duration {
        match self {
            Self::After(delay) => delay.min(Duration::from_millis(RETRY_DELAY_CAP_MS_MAX.into())),
            Self::ByPolicy | Self::Never => policy.delay(attempt, random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Growth = Growth { backoff: Backoff::Exponential, cap_ms: 3_600_000, jitter_percent: 10 };

    const fn ten_seconds(growth: Growth) -> Policy {
        Policy { delay_ms: 10_000, growth }
    }

    fn seconds(policy: Policy) -> [f64; 4] {
        [1, 2, 3, 50].map(|attempt| policy.delay(attempt, 0.5).as_secs_f64())
    }

    #[test]
    fn delays_grow_as_the_job_says_up_to_its_cap() {
        let of = |growth| seconds(ten_seconds(growth));
        assert!(USUAL.is_usual());
        assert_eq!(of(USUAL), [10.0, 20.0, 40.0, 3_600.0]);
        assert_eq!(of(Growth { backoff: Backoff::Fixed, ..USUAL }), [10.0; 4]);
        assert_eq!(of(Growth { backoff: Backoff::Linear, ..USUAL }), [10.0, 20.0, 30.0, 500.0]);
        assert_eq!(of(Growth { cap_ms: 15_000, ..USUAL }), [10.0, 15.0, 15.0, 15.0]);
        assert_eq!(of(Growth { cap_ms: 1, ..USUAL }), [10.0; 4], "the first is longer");
        assert_eq!(seconds(Policy { delay_ms: 0, growth: USUAL }), [0.0; 4]);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let delay =
            |jitter_percent, random| ten_seconds(Growth { jitter_percent, ..USUAL }).delay(1, random).as_secs_f64();
        assert_eq!((delay(10, 0.0), delay(10, 1.0)), (9.0, 11.0));
        assert_eq!((delay(0, 0.0), delay(0, 1.0)), (10.0, 10.0));
        assert_eq!((delay(100, 0.0), delay(100, 1.0)), (0.0, 20.0));
    }

    #[test]
    fn a_handler_may_say_when_within_a_bound() {
        let after = |seconds| Again::After(Duration::from_secs(seconds)).delay(ten_seconds(USUAL), 3, 0.0).as_secs();
        assert_eq!((after(7), after(u64::MAX)), (7, 604_800));
        assert_eq!(Again::ByPolicy.delay(ten_seconds(USUAL), 3, 0.5), Duration::from_secs(40));
    }

    proptest::proptest! {
        #[test]
        fn it_never_overflows(
            delay_ms in 0_u32.., cap_ms in 0_u32.., jitter_percent in 0_u32.., attempt in 0_u32.., random in -1.0..2.0,
            backoff in proptest::sample::select(Backoff::ALL),
        ) {
            let policy = Policy { delay_ms, growth: Growth { backoff, cap_ms, jitter_percent } };
            // But for what a double rounds.
            let most = Duration::from_millis(cap_ms.max(delay_ms).into()) * 2 + Duration::from_millis(1);
            proptest::prop_assert!(policy.delay(attempt, random) <= most);
        }
    }
}
