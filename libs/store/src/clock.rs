//! The database's clock, read once and then counted on this machine's monotonic one, so that a wrong or jumping wall clock
//! changes nothing.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{Result, Store};

/// An estimate of the database's clock. Copy it freely; measure it anew with each beat.
#[derive(Clone, Copy, Debug)]
pub struct DbClock {
    /// When this machine's monotonic clock showed `at`, the database's showed `database`, give or take `error`.
    at: Instant,
    database: DateTime<Utc>,
    error: Duration,
}

impl DbClock {
    /// From one answered question: sent, answered (both on this machine), and what the database said in between.
    pub fn from_round_trip(sent: Instant, answered: Instant, database: DateTime<Utc>) -> Self {
        let half = answered.duration_since(sent) / 2;
        Self { at: sent + half, database, error: half }
    }

    /// The database's time now, best estimate.
    pub fn now(&self) -> DateTime<Utc> {
        self.at_instant(Instant::now())
    }

    /// The database's time at a local instant, best estimate.
    pub fn at_instant(&self, local: Instant) -> DateTime<Utc> {
        let since = local.saturating_duration_since(self.at);
        let before = self.at.saturating_duration_since(local);
        self.database + delta(since) - delta(before)
    }

    /// The first local instant at which the database's clock surely shows `when` or later ("never early").
    pub fn surely_reached(&self, when: DateTime<Utc>) -> Instant {
        let wait = (when - self.database).to_std().unwrap_or_default();
        self.at + wait + self.error
    }

    /// How far the estimate may be off.
    pub const fn error(&self) -> Duration {
        self.error
    }

    /// Whether both cannot be true: the database's clock was set in between, or another server answers now.
    pub fn contradicts(&self, newer: &Self) -> bool {
        let apart = (newer.database - self.at_instant(newer.at)).abs().as_seconds_f64();
        apart > self.error_at(newer.at) + newer.error.as_secs_f64()
    }

    /// Half of this machine's own uncertainty, which grows with age.
    fn error_at(&self, at: Instant) -> f64 {
        const DRIFT_PER_SECOND: f64 = 50e-6;
        self.error.as_secs_f64() + at.saturating_duration_since(self.at).as_secs_f64() * DRIFT_PER_SECOND
    }

    /// The better of the two to use from now on: a newer estimate replaces an older one unless it is much worse, and always if
    /// it contradicts it.
    pub fn or_better(self, newer: Self) -> Self {
        if newer.error.as_secs_f64() <= self.error_at(newer.at) || self.contradicts(&newer) { newer } else { self }
    }
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

impl Store {
    /// Measures the database's clock: the best of a few questions on one warm connection.
    ///
    /// # Errors
    /// If Postgres is unavailable.
    pub async fn measure_clock(&self) -> Result<DbClock> {
        let mut connection = self.pool.acquire().await?;
        let mut best: Option<DbClock> = None;
        for _ in 0..4 {
            let sent = Instant::now();
            let database: DateTime<Utc> =
                sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut connection).await?;
            let clock = DbClock::from_round_trip(sent, Instant::now(), database);
            best = Some(match best {
                Some(known) if known.error <= clock.error => known,
                _ => clock,
            });
        }
        best.ok_or_else(|| crate::Error::Unavailable(sqlx::Error::PoolClosed.into()))
    }
}

/// The database's time, for what need not be exact: one question, whose way is not measured.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn now(store: &Store) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT now()").fetch_one(&store.pool).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_surely_reached_only_after_the_error_of_the_measurement() {
        let sent = Instant::now();
        let answered = sent + Duration::from_millis(10);
        let database = DateTime::from_timestamp_millis(1_000_000).unwrap();
        let clock = DbClock::from_round_trip(sent, answered, database);
        assert_eq!(clock.error(), Duration::from_millis(5));
        assert_eq!(clock.at_instant(sent + Duration::from_millis(5)), database);
        let when = database + TimeDelta::milliseconds(100);
        assert_eq!(clock.surely_reached(when), sent + Duration::from_millis(5 + 100 + 5));
    }

    #[test]
    fn a_worse_measurement_does_not_replace_a_fresh_better_one() {
        let start = Instant::now();
        let database = DateTime::from_timestamp_millis(1_000_000).unwrap();
        let good = DbClock::from_round_trip(start, start + Duration::from_micros(200), database);
        let slow = start + Duration::from_secs(1);
        let there = |at: Instant| database + TimeDelta::from_std(at - start).unwrap();
        let bad = DbClock::from_round_trip(slow, slow + Duration::from_millis(50), there(slow));
        assert_eq!(good.or_better(bad).error(), good.error());
        let late = start + Duration::from_secs(7_200);
        let fresh = DbClock::from_round_trip(late, late + Duration::from_millis(50), there(late));
        assert_eq!(good.or_better(fresh).error(), fresh.error());
    }

    /// A server whose clock was set, by hand or by a failover.
    #[test]
    fn a_measurement_that_contradicts_replaces_a_better_one() {
        let start = Instant::now();
        let database = DateTime::from_timestamp_millis(1_000_000).unwrap();
        let good = DbClock::from_round_trip(start, start + Duration::from_micros(200), database);
        let later = start + Duration::from_secs(1);
        for jump in [TimeDelta::seconds(61), TimeDelta::seconds(-59), TimeDelta::milliseconds(1_060)] {
            let jumped = DbClock::from_round_trip(later, later + Duration::from_millis(50), database + jump);
            assert_eq!(good.or_better(jumped).error(), jumped.error(), "{jump}");
        }
    }
}
