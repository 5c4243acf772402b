//! What jobs mean, kept between claims by (job, revision), so that an execution is dispatched with the definition that its row
//! names (R23a): a fire of a known job reads its narrow timer row only.
//!
//! Nothing is searched here. A timetable that is long, or may be dear to search, is not even parsed here but where it is
//! searched ([`crate::foresight`]); what was found there is kept here, for the claim that it is for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carillon_core::misfire::{self, Due};
use carillon_core::schedule::{LOOKS_MAX, Spec, Timetable, TimetableSpec};
use carillon_store::definitions::Definition;
use chrono::{DateTime, TimeDelta, Utc};
use tracing::error;
use uuid::Uuid;

/// Bytes of definitions kept, about; beyond it the cache starts anew, which costs one read a job. 100,000 ordinary ones fit.
const KEPT_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Bytes of one, besides its texts.
const BYTES_EACH: usize = 768;
/// Bytes of one spec of a timetable, as it was read and parsed.
const BYTES_OF_A_SPEC: usize = 192;
/// Revisions of a job that are kept while others are learned.
const REVISIONS_MAX: usize = 8;
/// Specs of an ordinary timetable, which has no exclusions: some 10 µs a search.
const SPECS_CHEAP: usize = 4;

/// A job's definition and when it fires.
#[derive(Debug)]
pub struct Known {
    /// As Postgres has it.
    pub definition: Definition,
    /// Its timetable, parsed, if it is an ordinary one. `None`: it may be dear.
    pub timetable: Option<Timetable>,
    ahead: Mutex<Option<Ahead>>,
}

/// What was found for a timer before it was claimed.
#[derive(Debug)]
struct Ahead {
    /// Where the timer stands.
    fire_at: DateTime<Utc>,
    due: Due,
    /// Until then it holds: for one that is later, something may have been missed.
    until: DateTime<Utc>,
}

impl Known {
    pub(crate) const fn new(definition: Definition, timetable: Option<Timetable>) -> Self {
        Self { definition, timetable, ahead: Mutex::new(None) }
    }

    /// Whether its timetable is a single instant or interval: that is reckoned, and nothing needs to be searched.
    fn is_reckoned(&self) -> bool {
        let spec = self.definition.timetable.as_ref().filter(|spec| spec.exclusions.is_empty());
        spec.is_some_and(|spec| matches!(spec.specs[..], [Spec::Once(_) | Spec::Every { .. }]))
    }

    /// What a timer of it that stands at `fire_at` leads to, if no search is needed for that or it was found ahead.
    pub(crate) fn due(&self, fire_at: DateTime<Utc>, now: DateTime<Utc>, misfire_threshold: TimeDelta) -> Option<Due> {
        if let Some(timetable) = self.timetable.as_ref().filter(|_| self.is_reckoned()) {
            return Some(misfire::resolve(timetable, fire_at, now, misfire_threshold));
        }
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.as_ref().filter(|ahead| ahead.fire_at == fire_at && now <= ahead.until).map(|ahead| ahead.due.clone())
    }

    /// Keeps what was found for a timer that stands at `fire_at` and is claimed by `until`.
    pub fn foresee(&self, fire_at: DateTime<Utc>, due: Due, until: DateTime<Utc>) {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ahead { fire_at, due, until });
    }

    /// Whether what comes next can be found as soon as its timer has moved, before it is asked for.
    pub fn is_foreseeable(&self) -> bool {
        self.timetable.is_some() && !self.is_reckoned()
    }

    fn bytes(&self) -> usize {
        let Definition { handler, payload, timetable, line, .. } = &self.definition;
        let specs = timetable.as_ref().map_or(0, |spec| spec.specs.len() + spec.exclusions.len());
        let texts = handler.len() + line.queue.len() + payload.as_ref().map_or(0, String::len);
        BYTES_EACH + texts + BYTES_OF_A_SPEC * specs
    }
}

/// Whether instants of it are found soon, whatever it says.
fn is_cheap(spec: &TimetableSpec) -> bool {
    spec.exclusions.is_empty() && spec.specs.len() <= SPECS_CHEAP
}

/// The definitions known so far.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Of each job some revisions, as they were learned.
    known: HashMap<Uuid, Vec<Arc<Known>>>,
    bytes: usize,
}

impl Definitions {
    /// Those of `wanted` (job and revision) that are unknown. What is known then stays known until this is asked again: whatever
    /// leaves, for want of room, leaves here.
    pub fn unknown(&mut self, wanted: impl Iterator<Item = (Uuid, i64)>) -> Vec<(Uuid, i64)> {
        if self.bytes > KEPT_BYTES_MAX {
            self.known.clear();
            self.bytes = 0;
        }
        let mut unknown: Vec<(Uuid, i64)> =
            wanted.filter(|(job, revision)| self.get(*job, *revision).is_none()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for (job, _) in &unknown {
            self.leave_some(*job);
        }
        unknown
    }

    /// Keeps what was read before anybody asked for it, as far as it is unknown.
    pub fn learn_new(&mut self, mut definitions: Vec<Definition>) {
        let unknown = self.unknown(definitions.iter().map(|definition| (definition.job, definition.revision)));
        definitions.retain(|definition| unknown.binary_search(&(definition.job, definition.revision)).is_ok());
        self.learn(definitions);
    }

    /// Keeps what was read. A timetable that this version cannot read is left out: its job is left alone, loudly.
    pub fn learn(&mut self, definitions: Vec<Definition>) {
        for definition in definitions {
            let cheap = definition.timetable.as_ref().filter(|spec| is_cheap(spec));
            match cheap.map(|spec| Timetable::parse_accepted(spec, definition.job, LOOKS_MAX)).transpose() {
                Ok(timetable) => {
                    self.keep(Known::new(definition, timetable));
                }
                Err(errors) => {
                    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    error!(job.id = %definition.job, "its timetable cannot be read, it does not fire: {}", why.join("; "));
                }
            }
        }
    }

    fn keep(&mut self, known: Known) {
        self.bytes += known.bytes();
        self.known.entry(known.definition.job).or_default().push(Arc::new(known));
    }

    /// Of a job that is changed often the newest stay.
    fn leave_some(&mut self, job: Uuid) {
        let Some(revisions) = self.known.get_mut(&job) else { return };
        revisions.sort_unstable_by_key(|known| known.definition.revision);
        let superfluous = revisions.len().saturating_sub(REVISIONS_MAX);
        self.bytes -= revisions.drain(..superfluous).map(|known| known.bytes()).sum::<usize>();
    }

    /// What is known of a job in that revision.
    pub fn get(&self, job: Uuid, revision: i64) -> Option<Arc<Known>> {
        self.known.get(&job)?.iter().find(|known| known.definition.revision == revision).cloned()
    }

    /// What a timer of `job` that stands at `fire_at` leads to, if that was found ahead; for another revision of the same timetable
    /// serves as well, or a job that is changed faster than a search is answered would not fire at all.
    pub fn due(
        &self,
        job: &Known,
        fire_at: DateTime<Utc>,
        now: DateTime<Utc>,
        misfire_threshold: TimeDelta,
    ) -> Option<Due> {
        let of_others = || {
            let others = self.known.get(&job.definition.job).filter(|_| job.definition.timetable.is_some())?;
            let alike = others.iter().rev().filter(|other| other.definition.timetable == job.definition.timetable);
            alike.filter_map(|other| other.due(fire_at, now, misfire_threshold)).next()
        };
        job.due(fire_at, now, misfire_threshold).or_else(of_others)
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::gate::Gate;
    use carillon_core::job::Priority;
    use carillon_core::line::Line;
    use carillon_core::retry::{Growth, Policy};

    use super::*;

    fn definition(job: u128, revision: i64) -> Definition {
        Definition {
            job: Uuid::from_u128(job),
            revision,
            line: Line::new("default", Priority::Medium),
            platform_id: None,
            handler: "test:echo".into(),
            payload: None,
            timetable: Some(TimetableSpec::never()),
            max_retries: 0,
            retry: Policy { delay_ms: 1_000, growth: Growth::default() },
            timeout_ms: 1,
            gate: Gate::new(false, 1, None),
        }
    }

    #[test]
    fn what_is_read_ahead_is_kept_once_and_of_a_job_the_newest_revisions() {
        let mut definitions = Definitions::default();
        definitions.learn_new(vec![definition(1, 1), definition(2, 1)]);
        let bytes = definitions.bytes;
        definitions.learn_new(vec![definition(2, 1), definition(1, 1)]);
        assert_eq!((definitions.bytes, definitions.known[&Uuid::from_u128(1)].len()), (bytes, 1));
        for revision in 2..100 {
            definitions.learn_new(vec![definition(1, revision)]);
        }
        assert!(definitions.known[&Uuid::from_u128(1)].len() <= REVISIONS_MAX + 1);
        assert!(definitions.get(Uuid::from_u128(1), 99).is_some() && definitions.get(Uuid::from_u128(1), 1).is_none());
        assert!(
            definitions.unknown([(Uuid::from_u128(2), 1)].into_iter()).is_empty(),
            "nothing to be read by the claim"
        );
    }
}
