//! R23a: an execution that waits in another line than its revision names, since its job's queue or priority was changed while it
//! was claimed ahead, is taken out of the old line and published to its own.
//!
//! Redis says of each entry whether somebody has read it, and deletes it in the same step if nobody has (R6a). What was unread is
//! released with the move (R18a), so that it starts in its own line without a wait; what is doubtful, or gone, moves as R19 moves
//! what was lost. What somebody holds stays: its holder hears of it (R8a), releases it, deletes its entry and lets the leader know,
//! who finds it gone then. Dies before the move is written: the next look finds it gone.

use std::collections::BTreeMap;

use carillon_core::line::Line;
use carillon_store::open_entries::{Missing, OpenEntry};
use carillon_stream::withdraw::{WITHDRAWN_MAX, Withdrawn};
use carillon_stream::{EntryId, Error};
use tracing::warn;

use crate::leader::{End, Leader};

impl Leader {
    /// Those of `misplaced` that nobody holds in their old lines any more.
    ///
    /// # Errors
    /// The session is lost, or Redis is silent.
    pub(crate) async fn take_back(&mut self, misplaced: Vec<OpenEntry>) -> Result<Vec<Missing>, End> {
        if misplaced.is_empty() {
            return Ok(Vec::new());
        }
        self.learn_jobs(misplaced.iter().map(|entry| (entry.job, entry.revision))).await?;
        let mut by_line: BTreeMap<Line, Vec<OpenEntry>> = BTreeMap::new();
        for entry in misplaced {
            by_line.entry(entry.line.clone()).or_default().push(entry);
        }
        let mut free = Vec::new();
        for (line, entries) in by_line {
            for some in entries.chunks(WITHDRAWN_MAX) {
                let answers = self.withdraw(&line, some).await?;
                let free_of = some.iter().zip(answers).filter_map(|(entry, answer)| self.free(entry, &answer));
                free.extend(free_of);
            }
        }
        Ok(free)
    }

    /// R6a. No answers: the stream is gone with all that stood in it, or cannot be asked; the ordinary walk meets them again.
    async fn withdraw(&mut self, line: &Line, entries: &[OpenEntry]) -> Result<Vec<Withdrawn>, End> {
        let redis = self.redis.clone();
        let ids: Vec<EntryId> = entries.iter().map(|entry| EntryId { number: entry.entry, seq: entry.seq }).collect();
        let answers = self
            .patiently(|| async {
                match redis.withdraw_all(line, &ids).await {
                    Err(Error::NoGroup(_)) => Ok(None),
                    Err(why @ (Error::Unexpected(_) | Error::WrongType(_))) => {
                        warn!(%line, "cannot take back what belongs into another line: {why}");
                        Ok(Some(Vec::new()))
                    }
                    answered => answered.map(Some),
                }
            })
            .await?;
        if answers.is_none() {
            // R22 was done.
            self.passes.reported();
        }
        Ok(answers.unwrap_or_default())
    }

    fn free(&self, entry: &OpenEntry, answer: &Withdrawn) -> Option<Missing> {
        let unread = match answer {
            Withdrawn::Unread => true,
            Withdrawn::Doubtful | Withdrawn::Gone => false,
            Withdrawn::Pending { .. } | Withdrawn::Uncertified => return None,
        };
        // What this version cannot read it cannot publish.
        let to = self.definitions.get(entry.job, entry.revision)?.definition.line.clone();
        Some(Missing { entry: entry.clone(), to, unread })
    }
}
