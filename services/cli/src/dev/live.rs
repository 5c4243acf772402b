//! The live lines: what ended since the last look. By polling a keyset of the youngest ids, and of older ones that were
//! still open when last seen; nobody else pays for it, and it works with any database.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use carillon_core::ids;
use carillon_store::Store;
use carillon_store::recent::{self, Recent};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::screen::Screen;

/// How far back a new execution may be dated that went out in no batch (one that was skipped), and how long a batch is looked
/// at (some time after it is settled, and nothing of it is open, it is gone).
const LOOK_BACK: TimeDelta = TimeDelta::seconds(60);
/// Under load a person cannot read more, and the database shall not notice that somebody watches.
const ROWS_MAX: i64 = 500;
const OPEN_MAX: usize = 500;

/// What was seen so far.
pub(super) struct Live {
    store: Store,
    /// Attempt and status last seen, and when, of the ids that can come up again.
    seen: BTreeMap<Uuid, (i16, String, DateTime<Utc>)>,
    open: BTreeSet<Uuid>,
    unavailable: bool,
}

impl Live {
    /// Takes what is there already as seen.
    pub(super) async fn from_now(store: Store) -> Result<Self> {
        let mut live = Self { store, seen: BTreeMap::new(), open: BTreeSet::new(), unavailable: false };
        let rows = recent::list(&live.store, from(), newest_batches(), &[], ROWS_MAX).await?;
        live.news(rows);
        Ok(live)
    }

    /// Shows what is new. A Postgres that is away is said once.
    pub(super) async fn show_new(&mut self, screen: Screen) {
        let open: Vec<Uuid> = self.open.iter().copied().take(OPEN_MAX).collect();
        match recent::list(&self.store, from(), newest_batches(), &open, ROWS_MAX).await {
            Ok(rows) => {
                self.unavailable = false;
                for row in self.news(rows) {
                    screen.execution(&row);
                }
            }
            Err(error) if !self.unavailable => {
                self.unavailable = true;
                screen.step(&format!("{:#}; executions are shown again when it is back", anyhow::Error::new(error)));
            }
            Err(_) => {}
        }
    }

    /// Those rows that a person should see, in the order in which they ended.
    fn news(&mut self, rows: Vec<Recent>) -> Vec<Recent> {
        let now = Utc::now();
        let mut news = Vec::new();
        for row in rows {
            if is_final(&row.status) {
                self.open.remove(&row.id);
            } else {
                self.open.insert(row.id);
            }
            let is_new = self
                .seen
                .get(&row.id)
                .is_none_or(|(attempt, status, _)| (*attempt, status) != (row.attempt, &row.status));
            if is_new && (is_final(&row.status) || row.status == "RETRYING") {
                news.push(row.clone());
            }
            self.seen.insert(row.id, (row.attempt, row.status, now));
        }
        // What no look has brought for so long comes up in none, unless it is open.
        self.seen.retain(|id, (_, _, seen)| *seen >= now - LOOK_BACK || self.open.contains(id));
        news.sort_by_key(|row| row.completed_at.or(row.started_at));
        news
    }
}

fn from() -> Uuid {
    ids::first_at(Utc::now() - LOOK_BACK)
}

/// Numbers of batches are milliseconds.
fn newest_batches() -> i64 {
    (Utc::now() - LOOK_BACK).timestamp_millis()
}

fn is_final(status: &str) -> bool {
    matches!(status, "SUCCESS" | "FAILED" | "TIMEOUT" | "CANCELLED" | "SKIPPED")
}
