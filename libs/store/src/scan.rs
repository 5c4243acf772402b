//! Listings by fields that have no index: a page looks at rows in the order of the list, a piece at a time, and keeps those that
//! match. It ends when it is full, when nothing is left, or when its time is up, wherever it stands then: with what it has,
//! even nothing, and with the place to go on from. So a rare match among ten million rows costs many pages, and no page much.

use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{Execute, Postgres};
use uuid::Uuid;

use crate::Result;
use crate::bounded::Pool;
use crate::page::{self, Slice};

/// Rows looked at by the first statement of a page; each further one looks at twice as many,
const LOOKED_AT_MIN: i32 = 500;
/// up to this,
pub(crate) const LOOKED_AT_MAX: i32 = 8_000;
/// or this, where to look at one is dear.
pub(crate) const LOOKED_AT_DEAR_MAX: i32 = 1_000;

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

/// A place in a listing, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What follows has smaller ids.
    pub below: Uuid,
    /// Matching rows to skip from there on.
    pub skip: u32,
}

impl Place {
    /// The beginning, and so many rows behind it.
    pub const fn first(skip: u32) -> Self {
        Self { below: Uuid::max(), skip }
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

/// What one statement has seen.
pub(crate) struct Looked {
    /// The ids that match, newest first.
    pub(crate) matching: Vec<Uuid>,
    /// Below which to go on; `None`: nothing is left.
    pub(crate) below: Option<Uuid>,
    /// There was nothing to look at: no page ends there, whatever the time, or it would take many pages to pass what is empty.
    pub(crate) was_empty: bool,
}

impl Scanned<Uuid> {
    /// What was found, read by `query` in the order of the list; one that has left meanwhile is left out.
    pub(crate) async fn read<'q, T>(
        self,
        pool: &Pool,
        query: impl Execute<'q, Postgres> + 'q,
        read: impl Fn(&PgRow) -> Result<(usize, T)>,
        id: impl Fn(&T) -> Uuid,
    ) -> Result<Scanned<T>> {
        let slice = Slice { limit: u32::try_from(self.items.len()).unwrap_or(u32::MAX), offset: 0 };
        // Boxed: a wide row would make every caller's future large.
        let page = Box::pin(page::collect(pool, query, slice, read)).await?;
        // Fewer than were found, since they are large.
        let cut = page.items.last().filter(|_| page.has_more).map(|last| Place { below: id(last), skip: 0 });
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
    below: Uuid,
    rows: i32,
    rows_max: i32,
}

impl Scan {
    /// `rows_max`: how many rows a statement may look at.
    pub(crate) fn new(window: Window, rows_max: i32) -> Self {
        Self {
            limit: usize::try_from(window.limit).unwrap_or(usize::MAX),
            until: Instant::now() + window.budget,
            items: Vec::new(),
            skip: window.from.skip,
            below: window.from.below,
            rows: LOOKED_AT_MIN.min(rows_max),
            rows_max,
        }
    }

    /// What the next statement looks at: what is below this, and how many rows.
    pub(crate) const fn next(&self) -> (Uuid, i32) {
        (self.below, self.rows)
    }

    /// What it has seen. Answers with the page, newest first, if that ends here.
    pub(crate) fn seen(&mut self, looked: Looked) -> Option<Scanned<Uuid>> {
        for id in looked.matching {
            if self.skip > 0 {
                self.skip -= 1;
            } else if self.items.len() < self.limit {
                self.items.push(id);
            } else {
                // One more than it holds is known.
                let next = self.items.last().map(|last| Place { below: *last, skip: 0 });
                return Some(Scanned { items: std::mem::take(&mut self.items), next });
            }
        }
        let is_late = !looked.was_empty && Instant::now() >= self.until;
        match looked.below {
            Some(below) if !is_late => {
                self.below = below;
                self.rows = self.rows.saturating_mul(2).min(self.rows_max);
                None
            }
            below => {
                let next = below.map(|below| Place { below, skip: self.skip });
                Some(Scanned { items: std::mem::take(&mut self.items), next })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids from 100 down to 1, of which every tenth matches.
    fn rows(below: Uuid, most: i32) -> Looked {
        let ids: Vec<u128> = (1..=100).rev().filter(|id| Uuid::from_u128(*id) < below).collect();
        let seen: Vec<u128> = ids.iter().copied().take(usize::try_from(most).unwrap()).collect();
        let matching = seen.iter().filter(|id| *id % 10 == 0).map(|id| Uuid::from_u128(*id)).collect();
        let below = seen.last().filter(|_| seen.len() < ids.len()).map(|id| Uuid::from_u128(*id));
        Looked { matching, below, was_empty: seen.is_empty() }
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
        assert_eq!((items, next), (vec![100, 90, 80, 70], Some(Place { below: Uuid::from_u128(70), skip: 0 })));
        assert_eq!(page(4, next.unwrap(), LONG, 7).0, [60, 50, 40, 30]);
        assert_eq!(page(4, Place::first(8), LONG, 7), (vec![20, 10], None));
        assert_eq!(page(10, Place::first(0), LONG, 7).1, None, "a full page behind which nothing is");
        assert_eq!(page(4, Place::first(20), LONG, 7), (vec![], None));
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
