//! Distributions of times.

use serde_json::{Value, json};

/// A distribution of lateness.
#[derive(Clone, Copy, Debug)]
pub struct Lateness {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub early: usize,
    pub count: usize,
}

impl Lateness {
    /// Of these, in milliseconds; below zero is early.
    pub fn of(millis: &[f64]) -> Self {
        Self {
            p50_ms: quantile(millis, 0.5),
            p99_ms: quantile(millis, 0.99),
            max_ms: quantile(millis, 1.0),
            early: millis.iter().filter(|late| **late < 0.0).count(),
            count: millis.len(),
        }
    }

    pub fn json(self) -> Value {
        json!({ "p50_ms": round(self.p50_ms), "p99_ms": round(self.p99_ms), "max_ms": round(self.max_ms), "early": self.early })
    }
}

/// The smallest value that at least this share of all does not exceed.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Four significant decimals are more than is known.
pub fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
    }

    #[test]
    fn early_starts_are_counted() {
        let late = Lateness::of(&[-0.5, 0.0, 1.0, 2.0]);
        assert_eq!((late.early, late.max_ms, late.p50_ms), (1, 2.0, 0.0));
    }
}
