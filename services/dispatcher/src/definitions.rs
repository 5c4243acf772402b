//! What jobs mean, kept between claims: a fire of a known job reads its narrow timer row only.

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
    known: HashMap<Uuid, Arc<Known>>,
}

impl Definitions {
    /// Those of `wanted` (job and revision) that are unknown, or known in an older revision.
    pub fn unknown(&self, wanted: impl Iterator<Item = (Uuid, Option<i64>)>) -> Vec<Uuid> {
        let stale = |job: &Uuid, revision: Option<i64>| {
            self.known
                .get(job)
                .is_none_or(|known| revision.is_some_and(|revision| known.definition.revision < revision))
        };
        let mut unknown: Vec<Uuid> =
            wanted.filter(|(job, revision)| stale(job, *revision)).map(|(job, _)| job).collect();
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
                    self.known.insert(definition.job, Arc::new(Known { definition, timetable }));
                }
                Err(errors) => {
                    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    error!(job.id = %definition.job, "its timetable cannot be read, it does not fire: {}", why.join("; "));
                }
            }
        }
    }

    /// What is known of a job.
    pub fn get(&self, job: &Uuid) -> Option<Arc<Known>> {
        self.known.get(job).cloned()
    }
}
