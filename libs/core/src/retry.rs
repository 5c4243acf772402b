//! When a failed attempt is tried again: `delay · 2^(attempt − 1)`, capped, with jitter so that many that failed together do
//! not come back together.

use std::time::Duration;

/// No delay grows beyond this, unless the job asks for a longer first one.
pub const DELAY_MAX: Duration = Duration::from_secs(60 * 60);

/// The share of the delay by which jitter shortens or lengthens it.
pub const JITTER: f64 = 0.1;

/// The delay before the attempt that follows the failed `attempt` (from 1). `random` lies in 0..1.
pub fn delay(first: Duration, attempt: u32, random: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    let grown = first.saturating_mul(1_u32 << doublings).min(DELAY_MAX.max(first));
    grown.mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(attempt: u32, random: f64) -> f64 {
        delay(Duration::from_secs(10), attempt, random).as_secs_f64()
    }

    #[test]
    fn it_doubles_up_to_the_cap() {
        assert_eq!([1, 2, 3, 4].map(|attempt| seconds(attempt, 0.5)), [10.0, 20.0, 40.0, 80.0]);
        assert_eq!(seconds(50, 0.5), 3_600.0);
        assert_eq!(delay(Duration::from_secs(7_200), 9, 0.5), Duration::from_secs(7_200));
    }

    #[test]
    fn jitter_stays_within_its_share() {
        assert_eq!(seconds(1, 0.0), 9.0);
        assert_eq!(seconds(1, 1.0), 11.0);
    }

    proptest::proptest! {
        #[test]
        fn it_never_overflows(first in 0_u64..u64::MAX / 2_000, attempt in 0_u32.., random in 0.0..1.0) {
            let first = Duration::from_millis(first.min(86_400_000));
            let got = delay(first, attempt, random);
            proptest::prop_assert!(got <= DELAY_MAX.max(first).mul_f64(1.0 + JITTER));
        }
    }
}
