//! Listings in an order that has no index: by what executions, statistics and timers say, which the data path writes. All that
//! matches is gathered and sorted for each page, so it may not be more than [`GATHERED_MAX`], nor lie among more rows than can be
//! looked at in the time of a page: else the list is refused, since a page of half of it would be wrong. Whoever asks narrows the
//! filter. Rows are counted, not time, so that what was answered once is answered again.

use uuid::Uuid;

use crate::scan::{COUNTED_MAX, Direction, Place, Scanned, Window};
use crate::{Error, Result};

/// What can be sorted for a page: as many as a total is counted to.
pub(crate) const GATHERED_MAX: usize = COUNTED_MAX as usize;
/// Rows of jobs that are looked at for it; they are few enough to stay in memory.
pub(crate) const JOBS_LOOKED_AT_MAX: usize = 20_000;
/// Of executions, each of which lies on a page of its own among ten million.
pub(crate) const EXECUTIONS_LOOKED_AT_MAX: usize = 7_500;
/// Of executions for each of which another row is looked up.
pub(crate) const DEAR_LOOKED_AT_MAX: usize = 4_000;

/// What an entry is ordered by; `None` comes last, whichever way the list goes.
pub(crate) type Key = Option<i64>;

/// What matches, so far.
pub(crate) struct Gathered {
    entries: Vec<(Key, Uuid)>,
    /// Rows that may still be looked at.
    rows_left: usize,
    /// What can be sorted.
    most: usize,
}

impl Gathered {
    /// Nothing yet; at most so many rows are looked at for it.
    pub(crate) const fn among(rows_max: usize) -> Self {
        let most = if rows_max < GATHERED_MAX { rows_max } else { GATHERED_MAX };
        Self { entries: Vec::new(), rows_left: rows_max, most }
    }

    /// More of it, from among so many rows.
    ///
    /// # Errors
    /// [`Error::TooWide`] if it is too much, or lies among too much.
    pub(crate) fn more(&mut self, entries: impl IntoIterator<Item = (Key, Uuid)>, looked_at: usize) -> Result<()> {
        self.entries.extend(entries);
        match self.rows_left.checked_sub(looked_at) {
            Some(left) if self.entries.len() <= self.most => self.rows_left = left,
            _ => return Err(Error::TooWide { most: self.most }),
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::TooWide`] if so many rows would be too much to look at.
    pub(crate) const fn require_among(&self, rows: usize) -> Result<()> {
        if rows > self.rows_left { Err(Error::TooWide { most: self.most }) } else { Ok(()) }
    }

    /// # Errors
    /// [`Error::TooWide`] if so many would be too much to sort.
    pub(crate) const fn require_few(&self, matching: usize) -> Result<()> {
        if matching > self.most { Err(Error::TooWide { most: self.most }) } else { Ok(()) }
    }

    /// Where what follows this one begins.
    pub(crate) fn place_of(&self, direction: Direction, id: Uuid) -> Place {
        let key = self.entries.iter().find(|(_, other)| *other == id).and_then(|(key, _)| *key);
        Place { key: position(key, direction), ..Place::behind(id) }
    }

    /// The page.
    pub(crate) fn page(&self, direction: Direction, window: Window) -> Scanned<Uuid> {
        let mut entries: Vec<(i64, Uuid)> =
            self.entries.iter().map(|(key, id)| (position(*key, direction), *id)).collect();
        match direction {
            Direction::Ascending => entries.sort_unstable(),
            Direction::Descending => entries.sort_unstable_by(|one, other| other.cmp(one)),
        }
        if let Some(id) = window.from.behind {
            let place = (window.from.key, id);
            entries.retain(|entry| match direction {
                Direction::Ascending => *entry > place,
                Direction::Descending => *entry < place,
            });
        }
        let (skip, limit) = (window.from.skip, window.limit);
        let as_size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let mut rest = entries.into_iter().skip(as_size(skip));
        let items: Vec<(i64, Uuid)> = rest.by_ref().take(as_size(limit)).collect();
        let last = items.last().filter(|_| rest.next().is_some());
        let next = last.map(|(key, id)| Place { key: *key, ..Place::behind(*id) });
        Scanned { items: items.into_iter().map(|(_, id)| id).collect(), next }
    }
}

/// Where a key stands, so that one that is missing is last.
fn position(key: Key, direction: Direction) -> i64 {
    key.unwrap_or(match direction {
        Direction::Ascending => i64::MAX,
        Direction::Descending => i64::MIN,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gathered(keys: &[Key]) -> Gathered {
        let mut gathered = Gathered::among(JOBS_LOOKED_AT_MAX);
        let entries = (1_u128..).zip(keys).map(|(n, key)| (*key, Uuid::from_u128(n)));
        gathered.more(entries, keys.len()).unwrap();
        gathered
    }

    fn all_pages(keys: &[Key], direction: Direction, limit: u32, skip: u32) -> Vec<u128> {
        let (mut all, mut from) = (Vec::new(), Some(Place::first(skip)));
        while let Some(place) = from {
            let page = gathered(keys).page(direction, Window { limit, from: place, budget: Duration::ZERO });
            assert!(page.items.len() <= limit as usize);
            all.extend(page.items.iter().map(Uuid::as_u128));
            if let (Some(next), Some(last)) = (page.next, page.items.last()) {
                assert_eq!(gathered(keys).place_of(direction, *last), next);
            }
            from = page.next;
        }
        all
    }

    #[test]
    fn pages_go_on_behind_key_and_id_and_what_has_no_key_is_last() {
        let keys = [Some(5), None, Some(9), Some(5), Some(-1), None];
        for limit in [1, 2, 3, 6, 50] {
            assert_eq!(all_pages(&keys, Direction::Ascending, limit, 0), [5, 1, 4, 3, 2, 6], "{limit}");
            assert_eq!(all_pages(&keys, Direction::Descending, limit, 0), [3, 4, 1, 5, 6, 2], "{limit}");
            assert_eq!(all_pages(&keys, Direction::Ascending, limit, 4), [2, 6], "{limit}");
        }
        assert!(all_pages(&keys, Direction::Ascending, 2, 6).is_empty());
    }

    #[test]
    fn a_page_begins_where_the_one_before_ended_whatever_has_come_or_gone() {
        let first = gathered(&[Some(1), Some(2), Some(3)])
            .page(Direction::Ascending, Window { limit: 2, from: Place::first(0), budget: Duration::ZERO });
        let window = Window { limit: 9, from: first.next.unwrap(), budget: Duration::ZERO };
        // The one at which it ended has moved to the end, one came before it, one behind.
        let second = gathered(&[Some(1), Some(7), Some(3), Some(0), Some(4)]).page(Direction::Ascending, window);
        assert_eq!(second.items.iter().map(Uuid::as_u128).collect::<Vec<_>>(), [3, 5, 2]);
    }

    #[test]
    fn what_is_too_much_or_lies_among_too_much_is_refused_and_nothing_else() {
        let entries = |count| (0..count).map(|n| (None, Uuid::from_u128(n)));
        let mut many = Gathered::among(JOBS_LOOKED_AT_MAX);
        assert!(many.more(entries(u128::from(COUNTED_MAX)), GATHERED_MAX).is_ok());
        assert!(matches!(many.more(entries(1), 1), Err(Error::TooWide { most: GATHERED_MAX })));
        let mut few = Gathered::among(DEAR_LOOKED_AT_MAX);
        assert!(few.more(entries(5), DEAR_LOOKED_AT_MAX).is_ok());
        assert!(matches!(few.more(entries(0), 1), Err(Error::TooWide { most: DEAR_LOOKED_AT_MAX })));
    }
}
