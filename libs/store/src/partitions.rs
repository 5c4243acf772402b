//! Partitions of the execution history: one a day, made ahead, so that retention is a DROP. What lies outside of them
//! (a one-time job of last year, one dated 2040) falls into the default partition and is none the worse for it.
//!
//! Nothing here waits for a lock, or holds one, that others queue behind for longer than 100 ms: whoever holds the table
//! (a `pg_dump`, say) is come back to, a minute later at the earliest, whichever process does it. A day that could not be
//! made in time lies in the default partition and leaves it by its age ([`crate::retention`]).

use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_core::ids;
use chrono::{Days, NaiveDate, NaiveTime};
use uuid::Uuid;

use crate::{Result, Store, clock};

/// Days made ahead of today.
const DAYS_AHEAD: u64 = 7;
/// A day that is as near as this is barred from the default partition no more: its own partition may not come in time.
const BARRED_AHEAD: u64 = 2;
/// Of what is refused in one round, so much is told.
const TOLD_MAX: usize = 20;
/// Between two tries for a lock that others queue behind, over all processes.
pub(crate) const TRY_EVERY: Duration = Duration::from_secs(60);

/// A table with a partition for each day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// `job_executions`.
    Executions,
    /// `job_execution_logs`.
    Logs,
    /// `execution_attempts`: of the executions of that day.
    Attempts,
    /// `execution_failures`: likewise.
    Failures,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::Executions, Self::Logs, Self::Attempts, Self::Failures];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Executions => "job_executions",
            Self::Logs => "job_execution_logs",
            Self::Attempts => "execution_attempts",
            Self::Failures => "execution_failures",
        }
    }

    pub(crate) fn partition(self, day: NaiveDate) -> String {
        format!("{}_{}", self.name(), day.format("%Y_%m_%d"))
    }
}

/// What a step of the upkeep came to; the functions that the migration made say so by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Done now.
    Done,
    /// Was so before.
    Before,
    /// Somebody holds what it needs: later.
    Busy,
    /// Somebody uses the day right now: nothing was asked for.
    InUse,
    /// Rows stand against it.
    Refused,
    /// The default partition is too large to be read under a lock.
    Large,
}

impl Step {
    pub(crate) fn read(word: &str) -> Result<Self> {
        Ok(match word {
            "made" | "barred" | "closed" | "proven" | "lifted" | "detached" | "dropped" => Self::Done,
            "there" | "gone" => Self::Before,
            "busy" => Self::Busy,
            "late" | "violated" | "open" => Self::Refused,
            "large" => Self::Large,
            other => return Err(crate::Error::Unreadable { what: "step", why: format!("unknown: {other}") }),
        })
    }
}

/// What making ahead came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Partitions made by this run.
    pub made: u32,
    /// Those that are still missing, by name: somebody holds the table, or the default partition has too many rows of that
    /// day already.
    pub missing: Vec<String>,
    /// Of these, how many have been missing for a day or longer: time to alert.
    pub overdue: u32,
    /// Why some of them cannot be made, each with its name: Postgres refused it.
    pub refused: Vec<String>,
}

/// Makes the missing partitions from yesterday to a week ahead. Any number of processes may do this at once.
///
/// # Errors
/// If Postgres is unavailable. That somebody holds a table, or that one day cannot be made, is none: it is said, and the others go
/// on (see [`Ahead::missing`]).
pub async fn make_ahead(store: &Store) -> Result<Ahead> {
    let today = today(store).await?;
    let mut ahead = Ahead::default();
    for table in Table::ALL {
        let missing = missing(store, table, today).await?;
        if missing.is_empty() {
            continue;
        }
        let lifted = lift_bars(store, table, today).await;
        unless_refused(lifted, &format!("{}_default", table.name()), &mut ahead.refused)?;
        let mut may_try = may_try(store, table.name()).await?;
        for day in missing {
            let made = if may_try { make(store, table, day, today).await } else { Ok(Step::Busy) };
            let step = unless_refused(made, &table.partition(day), &mut ahead.refused)?.unwrap_or(Step::Refused);
            match step {
                Step::Done => ahead.made += 1,
                Step::Before => {}
                Step::Busy | Step::InUse | Step::Refused | Step::Large => {
                    // Whoever holds the table holds it for all its days.
                    may_try &= step != Step::Busy;
                    ahead.missing.push(table.partition(day));
                    // The day at the far end is new today; yesterday is over.
                    let late = day >= today && days_between(today, day) < DAYS_AHEAD;
                    ahead.overdue += u32::from(late);
                }
            }
        }
        if may_try {
            // Nobody was in the way: the next one need not wait.
            give_back(store, table.name()).await?;
        }
    }
    Ok(ahead)
}

/// What Postgres has against one partition, or job, holds up no other: `None`, and why is added to `refused`, as far as that is read.
pub(crate) fn unless_refused<T>(outcome: Result<T>, name: &str, refused: &mut Vec<String>) -> Result<Option<T>> {
    match outcome {
        Err(error) if !error.is_unavailable() => {
            if refused.len() < TOLD_MAX {
                refused.push(format!("{name}: {}", with_causes(&error)));
            }
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

async fn make(store: &Store, table: Table, day: NaiveDate, today: NaiveDate) -> Result<Step> {
    let step = step(store, "SELECT carillon.make_partition($1, $2, $3, $4)", table, day).await?;
    if step != Step::Large || day < today || days_between(today, day) < BARRED_AHEAD {
        return Ok(step);
    }
    // Proven by a CHECK that is read through beside everybody.
    let barred = self::step(store, "SELECT carillon.bar_partition($1, $2, $3, $4)", table, day).await?;
    if !matches!(barred, Step::Done | Step::Before) {
        return Ok(barred);
    }
    let proven = prove(store, &format!("{}_default", table.name()), &bar(&table.partition(day))).await?;
    if proven != Step::Done {
        return Ok(proven);
    }
    self::step(store, "SELECT carillon.make_partition($1, $2, $3, $4)", table, day).await
}

/// A day that is near and whose partition has not come may lie in the default partition after all.
async fn lift_bars(store: &Store, table: Table, today: NaiveDate) -> Result<()> {
    let fallback = format!("{}_default", table.name());
    let bars: Vec<String> = sqlx::query_scalar(
        "SELECT conname::text FROM pg_catalog.pg_constraint
         WHERE conrelid = ('carillon.' || $1::text)::regclass AND conname LIKE 'carillon\\_bar\\_%'",
    )
    .bind(&fallback)
    .fetch_all(&store.pool)
    .await?;
    for name in bars {
        let day = name.strip_prefix("carillon_bar_").and_then(|child| day_of(table, child));
        let far = day.is_some_and(|day| day >= today && days_between(today, day) >= BARRED_AHEAD);
        if !far && may_try(store, &name).await? {
            lift(store, &fallback, &name).await?;
        }
    }
    Ok(())
}

/// The days from yesterday to a week ahead that have no partition.
async fn missing(store: &Store, table: Table, today: NaiveDate) -> Result<Vec<NaiveDate>> {
    let there = days(store, table).await?;
    let first = today.checked_sub_days(Days::new(1)).unwrap_or(today);
    let wanted = (0..=DAYS_AHEAD + 1).filter_map(|ahead| first.checked_add_days(Days::new(ahead)));
    Ok(wanted.filter(|day| !there.contains(day)).collect())
}

/// The days that have a partition, ascending.
pub(crate) async fn days(store: &Store, table: Table) -> Result<Vec<NaiveDate>> {
    days_on(&store.pool, table).await
}

pub(crate) async fn days_on(executor: impl sqlx::PgExecutor<'_>, table: Table) -> Result<Vec<NaiveDate>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = ('carillon.' || $1::text)::regclass",
    )
    .bind(table.name())
    .fetch_all(executor)
    .await?;
    let mut days: Vec<NaiveDate> = names.iter().filter_map(|name| day_of(table, name)).collect();
    days.sort_unstable();
    Ok(days)
}

/// The day of a partition's name; `None` for the default one, and for what was detached.
fn day_of(table: Table, name: &str) -> Option<NaiveDate> {
    let day = name.strip_prefix(table.name())?.strip_prefix('_')?;
    NaiveDate::parse_from_str(day, "%Y_%m_%d").ok()
}

/// Table and day of what was detached.
pub(crate) fn read_gone(name: &str) -> Option<(Table, NaiveDate)> {
    let name = name.strip_suffix("_gone")?;
    Table::ALL.into_iter().find_map(|table| Some((table, day_of(table, name)?)))
}

/// By the database's clock.
async fn today(store: &Store) -> Result<NaiveDate> {
    Ok(clock::now(store).await?.date_naive())
}

/// Whether what needs a lock may be tried: no process has within [`TRY_EVERY`].
pub(crate) async fn may_try(store: &Store, what: &str) -> Result<bool> {
    may_try_every(store, what, TRY_EVERY).await
}

pub(crate) async fn may_try_every(store: &Store, what: &str, every: Duration) -> Result<bool> {
    let may = sqlx::query_scalar("SELECT carillon.may_try($1, $2)").bind(what).bind(every);
    Ok(may.fetch_one(&store.pool).await?)
}

/// Forgets a try: it took no lock.
pub(crate) async fn give_back(store: &Store, what: &str) -> Result<()> {
    let forget = sqlx::query("DELETE FROM carillon.partition_tries WHERE what = $1");
    forget.bind(what).execute(&store.pool).await?;
    Ok(())
}

/// Runs one of the functions that take parent, child and bounds.
pub(crate) async fn step(store: &Store, statement: &'static str, table: Table, day: NaiveDate) -> Result<Step> {
    let (from, to) = bounds(day);
    let word: String = sqlx::query_scalar(statement)
        .bind(table.name())
        .bind(table.partition(day))
        .bind(from)
        .bind(to)
        .fetch_one(&store.pool)
        .await?;
    Step::read(&word)
}

/// Proves a constraint by reading its whole table, which may take long.
pub(crate) async fn prove(store: &Store, table: &str, constraint: &str) -> Result<Step> {
    let word: String =
        sqlx::query_scalar("SELECT carillon.prove($1, $2)").bind(table).bind(constraint).fetch_one(&store.pool).await?;
    Step::read(&word)
}

pub(crate) async fn lift(store: &Store, table: &str, constraint: &str) -> Result<Step> {
    let word: String =
        sqlx::query_scalar("SELECT carillon.lift($1, $2)").bind(table).bind(constraint).fetch_one(&store.pool).await?;
    Step::read(&word)
}

/// The ids of a day: from the first, to the first of the next day.
pub(crate) fn bounds(day: NaiveDate) -> (Uuid, Uuid) {
    let first = |day: NaiveDate| ids::first_at(day.and_time(NaiveTime::MIN).and_utc());
    (first(day), first(day.checked_add_days(Days::new(1)).unwrap_or(day)))
}

/// The CHECK that keeps the rows of `partition` out of the default one.
fn bar(partition: &str) -> String {
    format!("carillon_bar_{partition}")
}

fn days_between(from: NaiveDate, to: NaiveDate) -> u64 {
    u64::try_from(to.signed_duration_since(from).num_days()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_day_and_read_back_from_its_name() {
        let day = NaiveDate::from_ymd_opt(2025, 1, 31).unwrap_or_default();
        for table in Table::ALL {
            let name = table.partition(day);
            assert_eq!(day_of(table, &name), Some(day), "{name}");
            for other in [format!("{}_default", table.name()), format!("{name}_gone"), "jobs".into(), String::new()] {
                assert_eq!(day_of(table, &other), None, "{other}");
            }
            assert_eq!(read_gone(&format!("{name}_gone")), Some((table, day)));
            assert_eq!(read_gone(&name), None);
            assert!(bar(&name).len() <= 63, "cut off by Postgres: {name}");
        }
        let (from, to) = bounds(day);
        assert!(from < to);
        assert_eq!(to, bounds(day + Days::new(1)).0);
    }
}
