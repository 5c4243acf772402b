//! Listings by fields that have no index: a page looks at rows in the order of the list, a piece at a time, and keeps those that
//! match. It ends when it is full, when nothing is left, or when its time is up, wherever it stands then: with what it has,
//! even nothing, and with the place to go on from. So a rare match among ten million rows costs many pages, and no page much.
//!
//! An order that has no index is another matter ([`crate::sorted`]): all that matches must be known before the first of it is.

use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Result;
use crate::bounded::Pool;
use crate::page::{self, Filling, PAGE_BYTES_MAX};

/// Rows looked at by the first statement of a page, or up to four times as many where many are to be skipped; each further one looks
/// at twice as many, if by the pace of the last one that ends in time, and if by what matched among the last ones so many are
/// needed to fill the page,
const LOOKED_AT_FIRST: i32 = 500;
/// up to this,
pub(crate) const LOOKED_AT_MAX: i32 = 8_000;
/// or this, where to look at one is dear.
pub(crate) const LOOKED_AT_DEAR_MAX: i32 = 1_000;
/// Fewer are not worth a statement: a page that has no time for more has none.
const LOOKED_AT_LEAST: i32 = 200;
/// Rows of a page that are read before it is known what they weigh.
const READ_FIRST: usize = 8;
/// A total is counted up to this.
pub const COUNTED_MAX: u32 = 10_000;

/// Where a page begins, how long it is, and how far it may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows at most.
    pub limit: u32,
    /// Where it begins.
    pub from: Place,
    /// How long it may look; one statement is always made.
    pub budget: Duration,
}

/// A place in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What follows lies behind this id; `None`: the beginning.
    pub behind: Option<Uuid>,
    /// In an order other than that of ids: what that one is ordered by.
    pub key: i64,
    /// Matching rows to skip from there on.
    pub skip: u32,
}

impl Place {
    /// The beginning, and so many rows behind it.
    pub const fn first(skip: u32) -> Self {
        Self { behind: None, key: 0, skip }
    }

    /// Behind `id`, in the order of ids.
    pub const fn behind(id: Uuid) -> Self {
        Self { behind: Some(id), key: 0, skip: 0 }
    }
}

/// What a list is ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order<B> {
    /// What of its rows.
    pub by: B,
    /// Which way.
    pub direction: Direction,
}

/// Which way a listing goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the greatest, the newest, on.
    #[default]
    Descending,
    /// From the least, the oldest, on.
    Ascending,
}

impl Direction {
    /// What lies between `least` and before `below`, and behind `id` in this direction.
    pub(crate) fn rest(self, least: Uuid, below: Uuid, id: Option<Uuid>) -> (Uuid, Uuid) {
        let Some(id) = id else { return (least, below) };
        match self {
            Self::Descending => (least, below.min(id)),
            Self::Ascending => (least.max(Uuid::from_u128(id.as_u128().saturating_add(1))), below),
        }
    }
}

/// A page that was looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Scanned<T> {
    /// In the listing's order.
    pub items: Vec<T>,
    /// Where more may follow; `None`: nothing does.
    pub next: Option<Place>,
}

/// How many match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// So many, at least.
    pub least: u32,
    /// There are no more.
    pub is_all: bool,
}

impl From<&Scanned<Uuid>> for Counted {
    fn from(scanned: &Scanned<Uuid>) -> Self {
        Self { least: u32::try_from(scanned.items.len()).unwrap_or(u32::MAX), is_all: scanned.next.is_none() }
    }
}

/// What one statement has seen.
pub(crate) struct Looked {
    /// The ids that match, in the listing's order.
    pub(crate) matching: Vec<Uuid>,
    /// Behind which to go on; `None`: nothing is left.
    pub(crate) behind: Option<Uuid>,
    /// Rows it has looked at. At none no page ends, whatever the time, or it would take many pages to pass what is empty.
    pub(crate) rows: usize,
}

impl Scanned<Uuid> {
    /// What was found, read by the statement that `statement` makes for some ids (`$1`, in whose order it answers); one that has
    /// left meanwhile is left out. Some are read, then as many as still fit by what those weigh: Postgres makes text of all that it
    /// is asked for, whether it fits or not. `place`: where what follows one begins.
    pub(crate) async fn read<T>(
        self,
        pool: &Pool,
        statement: impl Fn(&[Uuid]) -> AssertSqlSafe<String>,
        read: impl Fn(&PgRow) -> Result<(usize, T)>,
        place: impl Fn(&T) -> Place,
    ) -> Result<Scanned<T>> {
        let mut page = Filling::new();
        let (mut rest, mut at_once) = (self.items.as_slice(), READ_FIRST);
        while !rest.is_empty() && !page.is_full {
            let (some, others) = rest.split_at(at_once.min(rest.len()));
            let query = sqlx::query(statement(some)).bind(some.to_vec());
            // Boxed: a wide row would make every caller's future large.
            Box::pin(page::fill(pool, query, u32::MAX, &mut page, &read)).await?;
            rest = others;
            let each = page.bytes.div_ceil(page.items.len().max(1)).max(1);
            at_once = (PAGE_BYTES_MAX.saturating_sub(page.bytes) / each).max(1);
        }
        let cut = page.items.last().filter(|_| page.is_full).map(place);
        Ok(Scanned { next: cut.or(self.next), items: page.items })
    }
}

/// A page that is being looked for.
#[derive(Debug)]
pub(crate) struct Scan {
    limit: usize,
    until: Instant,
    items: Vec<Uuid>,
    skip: u32,
    behind: Option<Uuid>,
    rows: i32,
    rows_max: i32,
    /// When the statement began that is under way.
    looks_since: Instant,
}

impl Scan {
    /// `rows_max`: how many rows a statement may look at.
    pub(crate) fn new(window: Window, rows_max: i32) -> Self {
        let now = Instant::now();
        let skipped = i32::try_from(window.from.skip).unwrap_or(i32::MAX);
        Self {
            limit: usize::try_from(window.limit).unwrap_or(usize::MAX),
            until: now + window.budget,
            items: Vec::new(),
            skip: window.from.skip,
            behind: window.from.behind,
            rows: skipped.clamp(LOOKED_AT_FIRST, 4 * LOOKED_AT_FIRST).min(rows_max),
            rows_max,
            looks_since: now,
        }
    }

    /// What the next statement looks at: what is behind this, and how many rows.
    pub(crate) const fn next(&self) -> (Option<Uuid>, i32) {
        (self.behind, self.rows)
    }

    /// What it has seen. Answers with the page if that ends here.
    pub(crate) fn seen(&mut self, looked: Looked) -> Option<Scanned<Uuid>> {
        self.seen_at(Instant::now(), looked)
    }

    fn seen_at(&mut self, now: Instant, looked: Looked) -> Option<Scanned<Uuid>> {
        let matched = looked.matching.len();
        for id in looked.matching {
            if self.skip > 0 {
                self.skip -= 1;
            } else if self.items.len() < self.limit {
                self.items.push(id);
            } else {
                // One more than it holds is known.
                let next = self.items.last().map(|last| Place::behind(*last));
                return Some(Scanned { items: std::mem::take(&mut self.items), next });
            }
        }
        let rows = self.rows_in_time(now, looked.rows).map(|rows| rows.min(self.rows_needed(looked.rows, matched)));
        match (looked.behind, rows) {
            (Some(behind), Some(rows)) => {
                self.behind = Some(behind);
                self.rows = rows;
                self.looks_since = now;
                None
            }
            (behind, _) => {
                let next = behind.map(|id| Place { skip: self.skip, ..Place::behind(id) });
                Some(Scanned { items: std::mem::take(&mut self.items), next })
            }
        }
    }

    /// Among how many rows there may be what is still missing, if it lies as dense as among the last ones.
    fn rows_needed(&self, looked_at: usize, matched: usize) -> i32 {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let missing = (self.limit - self.items.len()).saturating_add(skip).saturating_add(1);
        let rows = missing.saturating_mul(looked_at).checked_div(matched);
        let rows = rows.and_then(|rows| i32::try_from(rows.saturating_add(1)).ok()).unwrap_or(i32::MAX);
        rows.max(LOOKED_AT_FIRST.min(self.rows_max))
    }

    /// How many rows the next statement may look at, after one that looked at so many. `None`: there is no time for another.
    fn rows_in_time(&self, now: Instant, looked_at: usize) -> Option<i32> {
        let left = self.until.saturating_duration_since(now);
        if looked_at == 0 {
            return Some(self.rows);
        }
        let rows = self.rows.saturating_mul(2).min(self.rows_max);
        // Of one that found little left to look at the pace says nothing.
        let asked = u32::try_from(self.rows).unwrap_or(u32::MAX);
        let is_full = u32::try_from(looked_at).is_ok_and(|looked_at| looked_at >= asked);
        let pace = now.saturating_duration_since(self.looks_since).checked_div(asked).filter(|_| is_full);
        // Though it be half as fast as the last: those rows may lie on pages that nobody has read for long.
        let in_time = pace.and_then(|each| i32::try_from((left.as_nanos() / 2).checked_div(each.as_nanos())?).ok());
        let rows = rows.min(in_time.unwrap_or(i32::MAX));
        (!left.is_zero() && rows >= LOOKED_AT_LEAST.min(self.rows_max)).then_some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids from 100 down to 1, of which every tenth matches.
    fn rows(behind: Option<Uuid>, most: i32) -> Looked {
        let (_, below) = Direction::Descending.rest(Uuid::nil(), Uuid::max(), behind);
        let ids: Vec<u128> = (1..=100).rev().filter(|id| Uuid::from_u128(*id) < below).collect();
        let seen: Vec<u128> = ids.iter().copied().take(usize::try_from(most).unwrap()).collect();
        let matching = seen.iter().filter(|id| *id % 10 == 0).map(|id| Uuid::from_u128(*id)).collect();
        let behind = seen.last().filter(|_| seen.len() < ids.len()).map(|id| Uuid::from_u128(*id));
        Looked { matching, behind, rows: seen.len() }
    }

    fn page(limit: u32, from: Place, budget: Duration, most: i32) -> (Vec<u128>, Option<Place>) {
        let mut scan = Scan::new(Window { limit, from, budget }, LOOKED_AT_MAX);
        loop {
            if let Some(found) = scan.seen(rows(scan.next().0, most)) {
                return (found.items.iter().map(Uuid::as_u128).collect(), found.next);
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_page_says_where_the_next_one_begins() {
        let (items, next) = page(4, Place::first(0), LONG, 7);
        assert_eq!((items, next), (vec![100, 90, 80, 70], Some(Place::behind(Uuid::from_u128(70)))));
        assert_eq!(page(4, next.unwrap(), LONG, 7).0, [60, 50, 40, 30]);
        assert_eq!(page(4, Place::first(8), LONG, 7), (vec![20, 10], None));
        assert_eq!(page(10, Place::first(0), LONG, 7).1, None, "a full page behind which nothing is");
        assert_eq!(page(4, Place::first(20), LONG, 7), (vec![], None));
    }

    #[test]
    fn what_is_left_lies_behind_a_place_either_way() {
        let id = |n| Uuid::from_u128(n);
        let (down, up) = (Direction::Descending, Direction::Ascending);
        assert_eq!(down.rest(id(1), id(9), Some(id(5))), (id(1), id(5)));
        assert_eq!(up.rest(id(1), id(9), Some(id(5))), (id(6), id(9)));
        assert_eq!((down.rest(id(1), id(9), None), up.rest(id(1), id(9), None)), ((id(1), id(9)), (id(1), id(9))));
        assert_eq!(
            (down.rest(id(1), id(9), Some(id(11))), up.rest(id(1), id(9), Some(id(0)))),
            ((id(1), id(9)), (id(1), id(9)))
        );
        assert_eq!(up.rest(id(1), id(9), Some(Uuid::max())).0, Uuid::max());
    }

    /// How many rows each statement looks at that takes so many microseconds for a row.
    fn looks(budget_ms: u64, micros: u64, rows_max: i32) -> Vec<i32> {
        let budget = Duration::from_millis(budget_ms);
        let mut scan = Scan::new(Window { limit: 1, from: Place::first(0), budget }, rows_max);
        let (mut now, mut looks) = (scan.looks_since, Vec::new());
        loop {
            let rows = scan.next().1;
            looks.push(rows);
            now += Duration::from_micros(micros) * u32::try_from(rows).unwrap();
            let looked = Looked { matching: vec![], behind: Some(Uuid::max()), rows: usize::try_from(rows).unwrap() };
            if scan.seen_at(now, looked).is_some() {
                return looks;
            }
        }
    }

    #[test]
    fn the_last_look_of_a_page_ends_in_time() {
        assert_eq!(looks(40, 10, 8_000), [500, 1_000, 1_250, 625, 312]);
        assert_eq!(looks(40, 1, 8_000), [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000, 4_250, 2_125, 1_062, 531, 266]);
        assert_eq!(looks(40, 10, 1_000), [500, 1_000, 1_000, 750, 375]);
        assert_eq!(looks(40, 79, 8_000), [500], "too little is left to be worth one more");
        assert_eq!(looks(0, 1, 8_000), [500], "one is always made");
        assert_eq!(looks(40, 1_000, 8_000), [500]);
    }

    /// The rows of all looks, where one in `each` matches.
    fn looks_until_full(limit: u32, skip: u32, each: usize) -> Vec<i32> {
        let budget = Duration::from_secs(60);
        let mut scan = Scan::new(Window { limit, from: Place::first(skip), budget }, LOOKED_AT_MAX);
        let mut looks = Vec::new();
        loop {
            let rows = usize::try_from(scan.next().1).unwrap();
            looks.push(scan.next().1);
            let looked = Looked { matching: vec![Uuid::nil(); rows / each], behind: Some(Uuid::max()), rows };
            if scan.seen_at(scan.looks_since, looked).is_some() {
                return looks;
            }
        }
    }

    #[test]
    fn no_more_is_looked_at_than_fills_the_page() {
        assert_eq!(looks_until_full(50, 10_000, 1), [2_000, 4_000, 4_052]);
        assert_eq!(looks_until_full(50, 1_000, 2), [1_000, 1_103]);
        assert_eq!(looks_until_full(50, 0, 20), [500, 521], "as many as the first, and one more that was expected");
        assert_eq!(looks_until_full(50, 1_960, 1), [1_960, 500], "few more are looked at together");
    }

    #[test]
    fn a_look_that_finds_little_says_nothing_of_the_next_ones_pace() {
        let budget = Duration::from_millis(15);
        let mut scan = Scan::new(Window { limit: 9, from: Place::first(0), budget }, LOOKED_AT_MAX);
        let slow = scan.looks_since + Duration::from_millis(8);
        let found = scan.seen_at(slow, Looked { matching: vec![], behind: Some(Uuid::max()), rows: 5 });
        assert_eq!((found, scan.next().1), (None, 2 * LOOKED_AT_FIRST));
        let late = scan.until;
        let found = scan.seen_at(late, Looked { matching: vec![], behind: Some(Uuid::max()), rows: 5 });
        assert!(found.is_some_and(|found| found.next.is_some()));
    }

    #[test]
    fn what_is_empty_ends_no_page() {
        let mut scan = Scan::new(Window { limit: 1, from: Place::first(0), budget: Duration::ZERO }, LOOKED_AT_MAX);
        for n in (0..10).rev() {
            let behind = Some(Uuid::from_u128(n + 1));
            assert_eq!(scan.seen(Looked { matching: vec![], behind, rows: 0 }), None);
            assert_eq!(scan.next(), (behind, LOOKED_AT_FIRST));
        }
    }

    #[test]
    fn a_page_whose_time_is_up_ends_where_it_stands() {
        let (mut at, mut found, mut pages) = (Place::first(3), Vec::new(), 0);
        loop {
            let (items, next) = page(4, at, Duration::ZERO, 7);
            found.extend(items);
            pages += 1;
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        assert_eq!((found, pages), (vec![70, 60, 50, 40, 30, 20, 10], 15), "none is lost, none shown twice");
    }
}
