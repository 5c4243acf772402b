//! What jobs mean, kept between claims by (job, revision), so that an execution is dispatched with the definition that its row
//! names (R23a): a fire of a known job reads its narrow timer row only.

use std::collections::HashMap;
use std::sync::Arc;

use carillon_core::schedule::Timetable;
use carillon_store::definitions::Definition;
use tracing::error;
use uuid::Uuid;

/// Definitions kept at once. About 1 KiB each; beyond it the cache starts anew, which costs one read a job.
const KEPT_MAX: usize = 200_000;

/// A job's definition and when it fires.
#[derive(Debug)]
pub struct Known {
    /// As Postgres has it.
    pub definition: Definition,
    /// Its timetable, parsed.
    pub timetable: Timetable,
}

/// The definitions known so far.
#[derive(Debug, Default)]
pub struct Definitions {
    known: HashMap<(Uuid, i64), Arc<Known>>,
}

impl Definitions {
    /// Those of `wanted` (job and revision) that are unknown.
    pub fn unknown(&self, wanted: impl Iterator<Item = (Uuid, i64)>) -> Vec<(Uuid, i64)> {
        let mut unknown: Vec<(Uuid, i64)> = wanted.filter(|wanted| !self.known.contains_key(wanted)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// Keeps what was read. A timetable that this version cannot read is left out: its job is left alone, loudly.
    pub fn learn(&mut self, definitions: Vec<Definition>) {
        if self.known.len() + definitions.len() > KEPT_MAX {
            self.known.clear();
        }
        for definition in definitions {
            match Timetable::parse(&definition.timetable, definition.job) {
                Ok(timetable) => {
                    self.known.insert((definition.job, definition.revision), Arc::new(Known { definition, timetable }));
                }
                Err(errors) => {
                    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    error!(job.id = %definition.job, "its timetable cannot be read, it does not fire: {}", why.join("; "));
                }
            }
        }
    }

    /// What is known of a job in that revision.
    pub fn get(&self, job: Uuid, revision: i64) -> Option<Arc<Known>> {
        self.known.get(&(job, revision)).cloned()
    }
}
