//! Statements that name executions by id, each with the days of these ids as constants in its text.
//!
//! A cached plan locks every partition that it knows of, whether it needs it or not; a plan made anew each time knows the
//! ids, and costs more than the statement. With the days as constants the plan is made once a day and connection, for the
//! partitions of those days alone: it locks and reads no other, with 400 of them as with 8.
//!
//! The bounds are written `>= ALL (ARRAY[…])`, by which Postgres prunes partitions and cannot walk an index. Written
//! otherwise they tempt it, while a partition is young and unknown to its statistics, to read all ids between the bounds
//! once for each row of the batch, instead of looking up each id.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;

use carillon_core::ids::{self, day};
use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::partitions::Table;
use crate::{Error, Result};

const DAY_MS: u128 = 24 * 60 * 60 * 1_000;
/// Stretches of days named one by one, each in some 130 bytes: more than there are days in two years that lie apart. Beyond them all
/// days in between are named too, so that a text has an end.
const STRETCHES_MAX: usize = 400;

/// `template` for these ids: what stands there as `{days of e.id}` becomes a condition on `e.id` that holds for all of them.
/// Without ids it holds for nothing.
pub(crate) fn of(template: &str, ids: impl IntoIterator<Item = Uuid>) -> AssertSqlSafe<String> {
    let days: BTreeSet<u128> = ids.into_iter().map(|id| u128::from(day(id))).collect();
    let mut stretches: Vec<(u128, u128)> = Vec::new();
    for day in days {
        match stretches.last_mut() {
            Some((_, last)) if *last + 1 == day => *last = day,
            _ => stretches.push((day, day)),
        }
    }
    if let (Some((first, _)), Some((_, last)), true) =
        (stretches.first(), stretches.last(), stretches.len() > STRETCHES_MAX)
    {
        stretches = vec![(*first, *last)];
    }
    let mut text = String::with_capacity(template.len() + 160);
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{days of ") {
        let Some((column, after)) = behind.split_once('}') else { break };
        text.push_str(before);
        condition(&mut text, column, &stretches);
        rest = after;
    }
    text.push_str(rest);
    // Made of this crate's own texts and of ids.
    AssertSqlSafe(text)
}

fn condition(text: &mut String, column: &str, stretches: &[(u128, u128)]) {
    if stretches.is_empty() {
        return text.push_str("false");
    }
    for (at, (first, last)) in stretches.iter().enumerate() {
        let from = Uuid::from_u128((first * DAY_MS) << 80);
        // The last of them ends with the last id that there is.
        let to = Uuid::from_u128(((last + 1) * DAY_MS).min(1 << 48).wrapping_shl(80).wrapping_sub(1));
        let _ = write!(
            text,
            "{}({column} >= ALL (ARRAY['{from}'::uuid]) AND {column} <= ALL (ARRAY['{to}'::uuid]))",
            if at == 0 { "(" } else { " OR " }
        );
    }
    text.push(')');
}

/// What was asked about executions of several days.
#[derive(Debug)]
pub struct ByDay<T, A> {
    /// Each with those that it is about.
    pub answers: Vec<(Vec<T>, A)>,
    /// About these the server refused to answer: somebody has locked the partition of their day, say.
    pub refused: Vec<T>,
    /// What it said.
    pub why: Option<Error>,
}

/// Asks about all of them together; where the server refuses that, about those of each day by itself, so that what keeps one day keeps
/// no other. `id` tells which execution one is about.
///
/// # Errors
/// If the contact is broken ([`Error::is_away`]).
pub async fn by_days<T, A, F>(items: Vec<T>, id: impl Fn(&T) -> Uuid, ask: impl Fn(Vec<T>) -> F) -> Result<ByDay<T, A>>
where
    T: Clone,
    F: Future<Output = Result<A>>,
{
    let mut asked = ByDay { answers: Vec::new(), refused: Vec::new(), why: None };
    let mut todo = vec![items];
    while let Some(mut some) = todo.pop() {
        match ask(some.clone()).await {
            Ok(answer) => asked.answers.push((some, answer)),
            Err(error) if error.is_away() => return Err(error),
            Err(error) => {
                some.sort_by_key(|item| day(id(item)));
                let days: Vec<Vec<T>> =
                    some.chunk_by(|one, other| day(id(one)) == day(id(other))).map(<[T]>::to_vec).collect();
                if days.len() > 1 {
                    todo.extend(days);
                } else {
                    asked.refused.extend(some);
                    asked.why = Some(error);
                }
            }
        }
    }
    Ok(asked)
}

/// Those among `days` that are over by `now`. The others are not asked about: who has locked today's keeps everybody waiting.
pub(crate) fn over(now: DateTime<Utc>, days: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let today = day(ids::first_at(now));
    days.filter(|day| *day < today).collect()
}

/// Those among `days` that somebody has locked as a whole; the executions of the others may be written by this transaction without
/// waiting for anybody's lock on a table.
pub(crate) async fn locked_on(connection: &mut Connection, days: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
    if days.is_empty() {
        return Ok(BTreeSet::new());
    }
    let partition = |day: &u64| {
        let date = NaiveDate::default().checked_add_days(Days::new(*day))?;
        Some((Table::Executions.partition(date), *day))
    };
    let names: BTreeMap<String, u64> = days.iter().filter_map(partition).collect();
    let locked: Vec<String> = sqlx::query_scalar("SELECT carillon.locked_elsewhere($1)")
        .bind(names.keys().cloned().collect::<Vec<_>>())
        .fetch_one(connection)
        .await?;
    Ok(locked.iter().filter_map(|name| names.get(name).copied()).collect())
}

/// Ids by the day in whose partition they lie, each day's in order.
pub(crate) fn by_day(mut ids: Vec<Uuid>) -> Vec<Vec<Uuid>> {
    ids.sort_unstable();
    ids.chunk_by(|one, other| day(*one) == day(*other)).map(<[Uuid]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    const COLUMN: &str = "{days of e.id}";

    fn at(hours: i64) -> Uuid {
        ids::execution_for_fire(Uuid::nil(), DateTime::<Utc>::UNIX_EPOCH + TimeDelta::hours(hours))
    }

    /// What a condition admits, read from its text.
    fn ranges(text: &str) -> Vec<(Uuid, Uuid)> {
        let ids: Vec<Uuid> = text.split('\'').filter_map(|part| part.parse().ok()).collect();
        ids.chunks(2).map(|pair| (pair[0], pair[1])).collect()
    }

    #[test]
    fn ids_of_a_day_make_one_text_and_ids_of_days_apart_name_each() {
        let text = |hours: &[i64]| of(COLUMN, hours.iter().map(|hours| at(*hours))).0;
        assert_eq!(text(&[1, 2, 23]), text(&[0]));
        assert_ne!(text(&[23]), text(&[24]));
        assert_eq!(ranges(&text(&[1, 30])).len(), 1, "days side by side");
        assert_eq!(ranges(&text(&[1, 50, 1_000])).len(), 3);
        let apart = |days: i64| (0..days).map(|day| day * 48).collect::<Vec<_>>();
        assert_eq!(ranges(&text(&apart(400))).len(), 400);
        assert_eq!(ranges(&text(&apart(401))), [(Uuid::nil(), ranges(&text(&[400 * 48]))[0].1)]);
        assert_eq!(text(&[]), "false");
    }

    #[test]
    fn each_place_is_filled_with_its_column() {
        let text = of("A {days of e.id} B {days of l.execution_id} C", []).0;
        assert_eq!(text, "A false B false C");
    }

    fn sources(folder: &std::path::Path) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => sources(&path),
                false => vec![(path.display().to_string(), std::fs::read_to_string(&path).unwrap())],
            })
            .collect()
    }

    /// Such bounds are what this module is in place of.
    #[test]
    fn no_statement_bounds_ids_by_parameters() {
        let sources = sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        assert!(sources.len() > 20);
        for (name, text) in sources {
            let bounded = text.contains("id BETWEEN $") && !name.ends_with("days.rs");
            assert!(!bounded, "{name}: write {{days of e.id}} and days::of(…) instead of BETWEEN");
        }
    }

    proptest! {
        #[test]
        fn every_id_lies_within_its_days_whatever_it_is(ids in proptest::collection::vec(any::<u128>(), 1..40)) {
            let ids: Vec<Uuid> = ids.into_iter().map(Uuid::from_u128).collect();
            let ranges = ranges(&of(COLUMN, ids.iter().copied()).0);
            for id in &ids {
                prop_assert!(ranges.iter().any(|(from, to)| from <= id && id <= to), "{} {:?}", id, ranges);
            }
            let days = by_day(ids.clone());
            prop_assert_eq!(days.iter().map(Vec::len).sum::<usize>(), ids.len());
        }
    }
}
