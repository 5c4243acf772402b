//! What jobs mean, kept between claims by (job, revision), so that an execution is dispatched with the definition that its row
//! names (R23a): a fire of a known job reads its narrow timer row only.
//!
//! A timetable that is long, or may be dear to search, is not parsed here but where it is searched ([`crate::foresight`]).

use std::collections::HashMap;
use std::sync::Arc;

use carillon_core::schedule::{Timetable, TimetableSpec};
use carillon_store::definitions::Definition;
use tracing::error;
use uuid::Uuid;

/// Bytes of definitions kept, about; beyond it the cache starts anew, which costs one read a job. 100,000 ordinary ones fit.
const KEPT_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Bytes of one, besides its texts.
const BYTES_EACH: usize = 768;
/// Bytes of one spec of a timetable, as it was read and parsed.
const BYTES_OF_A_SPEC: usize = 192;
/// Specs of a timetable that is searched at once, if it has no exclusions: some 10 µs.
const SPECS_CHEAP: usize = 4;

/// A job's definition and when it fires.
#[derive(Debug)]
pub struct Known {
    /// As Postgres has it.
    pub definition: Definition,
    /// Its timetable, parsed. `None`: it may be dear, and is searched elsewhere.
    pub timetable: Option<Timetable>,
}

impl Known {
    fn bytes(&self) -> usize {
        let Definition { handler, payload, timetable, line, .. } = &self.definition;
        let specs = timetable.as_ref().map_or(0, |spec| spec.specs.len() + spec.exclusions.len());
        let texts = handler.len() + line.queue.len() + payload.as_ref().map_or(0, String::len);
        BYTES_EACH + texts + BYTES_OF_A_SPEC * specs
    }
}

/// Whether instants of it are found at once, whatever it says.
fn is_cheap(spec: &TimetableSpec) -> bool {
    spec.exclusions.is_empty() && spec.specs.len() <= SPECS_CHEAP
}

/// The definitions known so far.
#[derive(Debug, Default)]
pub struct Definitions {
    known: HashMap<(Uuid, i64), Arc<Known>>,
    bytes: usize,
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
        if self.bytes > KEPT_BYTES_MAX {
            self.known.clear();
            self.bytes = 0;
        }
        for definition in definitions {
            let cheap = definition.timetable.as_ref().filter(|spec| is_cheap(spec));
            match cheap.map(|spec| Timetable::parse(spec, definition.job)).transpose() {
                Ok(timetable) => {
                    let known = Known { definition, timetable };
                    self.bytes += known.bytes();
                    self.known.insert((known.definition.job, known.definition.revision), Arc::new(known));
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
