//! Time zone data that has changed: what is to come is reckoned anew, before it fires by the old rules.
//!
//! Zone data is the system's, and a process reads it once. So whoever begins a term compares what is noted of each zone that a
//! timetable names with its own data, before its first claim; and looks again each minute, since a gateway with other data may
//! have created a job. Where they differ it walks all jobs, a page at a time, between claims; a timer that the walk has not come
//! to is not claimed meanwhile if it fires by such a zone. Everything else is claimed as ever.
//!
//! What was due when the walk began fires as it stands: it was due by the rules that were known then. Dies in the middle: nothing
//! is noted, and the next leader walks again. Leaders with other data than each other each reckon by their own, until all have
//! the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use carillon_core::agenda::{Slot, Source};
use carillon_core::misfire;
use carillon_core::schedule::{LOOKS_MAX, Timetable, TimetableSpec, zone_rules};
use carillon_store::claim::Claim;
use carillon_store::zones::{NotedZone, Reckoned, ZonedTimer};
use chrono::{DateTime, TimeDelta, Utc};
use tracing::info;
use uuid::Uuid;

use crate::definitions::Definitions;
use crate::leader::{End, Leader};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After one that was refused: claims go on.
const AGAIN: Duration = Duration::from_secs(1);
/// Searching goes on for so long before what was found is written, and a claim has its turn.
const SEARCH_MAX: Duration = Duration::from_millis(100);
/// Until a timer is looked at again that the walk has not come to.
const HELD_PAUSE: TimeDelta = TimeDelta::milliseconds(100);

/// What is known of zones.
#[derive(Debug)]
pub(crate) struct Zones {
    next: Instant,
    walk: Option<Walk>,
}

/// A walk over all jobs.
#[derive(Debug)]
struct Walk {
    /// The database's time when it began.
    began: DateTime<Utc>,
    /// What was noted of the zones whose rules are others now, and their rules.
    changed: Vec<(NotedZone, i64)>,
    names: Vec<String>,
    /// Up to here jobs were read,
    read: Uuid,
    /// and of those these are still to be reckoned.
    waiting: VecDeque<ZonedTimer>,
    moved: usize,
    /// Somebody had locked one, or moved it: the walk is made again.
    is_whole: bool,
}

impl Default for Zones {
    fn default() -> Self {
        Self { next: Instant::now(), walk: None }
    }
}

impl Zones {
    /// When there is something to do.
    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Leaves out of a claim what the walk has not come to. Answered is where to look again, and when.
    pub(crate) fn hold_back(
        &self,
        definitions: &Definitions,
        left: &mut HashMap<Uuid, DateTime<Utc>>,
        claim: &mut Claim<'_>,
    ) -> (HashSet<Slot>, DateTime<Utc>) {
        let (mut slots, until) = (HashSet::new(), claim.now + HELD_PAUSE);
        let Some(walk) = &self.walk else { return (slots, until) };
        claim.timers.retain(|timer| {
            let known = definitions.get(timer.job, timer.revision);
            let is_held = timer.fire_at > walk.began
                && walk.is_still_to_come_to(timer.job)
                && known.is_none_or(|known| walk.concerns(known.definition.timetable.as_ref()));
            if is_held {
                left.insert(timer.job, until);
                slots.insert((Source::Timer, timer.line.clone()));
            }
            !is_held
        });
        (slots, until)
    }
}

impl Walk {
    fn is_still_to_come_to(&self, job: Uuid) -> bool {
        self.waiting.front().map_or(job > self.read, |first| job >= first.job)
    }

    /// One that is long is not known here.
    fn concerns(&self, timetable: Option<&TimetableSpec>) -> bool {
        timetable
            .is_none_or(|timetable| timetable.zones().iter().any(|zone| self.names.iter().any(|name| name == zone)))
    }
}

impl Leader {
    /// A look, or a step of the walk that one has led to.
    pub(crate) async fn follow_zones(&mut self) -> Result<(), End> {
        self.zones.next = Instant::now() + AGAIN;
        match self.zones.walk.take() {
            None => self.look_at_zones().await,
            Some(mut walk) => {
                let outcome = self.walk_on(&mut walk).await;
                if !matches!(outcome, Ok(true)) {
                    self.zones.walk = Some(walk);
                }
                outcome.map(|_| ())
            }
        }
    }

    async fn look_at_zones(&mut self) -> Result<(), End> {
        let noted = self.session.zones().await?;
        // Each zone is read from a file, once.
        let looking = tokio::task::spawn_blocking(move || changed(noted));
        let changed = self.alive(looking).await?.unwrap_or_default();
        self.zones.next = Instant::now() + LOOK_EVERY;
        if changed.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = changed.iter().map(|(zone, _)| zone.name.clone()).collect();
        info!(zones = names.join(", "), "the rules of time zones have changed: what is to come is reckoned anew");
        self.zones.walk = Some(Walk {
            began: self.session.clock().now(),
            changed,
            names,
            read: Uuid::nil(),
            waiting: VecDeque::new(),
            moved: 0,
            is_whole: true,
        });
        self.zones.next = Instant::now();
        Ok(())
    }

    /// Answers whether it has come to its end.
    async fn walk_on(&mut self, walk: &mut Walk) -> Result<bool, End> {
        if walk.waiting.is_empty() {
            let page = self.session.zoned_timers(walk.read, &walk.names, walk.began).await?;
            let Some(last) = page.last else {
                self.end_walk(walk).await?;
                return Ok(true);
            };
            walk.waiting = page.timers.into();
            walk.read = last;
        }
        let (timers, began) = (walk.waiting.clone(), walk.began);
        let searching = tokio::task::spawn_blocking(move || reckon(timers, began));
        // One that panics has found nothing: its timers stay where they are.
        let (looked_at, reckoned) = self.alive(searching).await?.unwrap_or((walk.waiting.len(), Vec::new()));
        if !reckoned.is_empty() {
            let moved = self.session.timers_reckon(&reckoned).await?;
            walk.moved += moved;
            walk.is_whole &= moved == reckoned.len();
            // The agenda does not know of what moved.
            self.read_soon();
        }
        walk.waiting.drain(..looked_at.min(walk.waiting.len()));
        self.zones.next = Instant::now();
        Ok(false)
    }

    async fn end_walk(&mut self, walk: &Walk) -> Result<(), End> {
        if walk.is_whole {
            for (seen, rules) in &walk.changed {
                self.session.zone_note(seen, *rules).await?;
            }
        }
        info!(moved = walk.moved, whole = walk.is_whole, "what is to come was reckoned by the rules of today");
        self.zones.next = Instant::now() + if walk.is_whole { LOOK_EVERY } else { AGAIN };
        Ok(())
    }
}

/// Those of which this process' data says something else than was noted. A zone that it does not know is left to one that does.
fn changed(noted: Vec<NotedZone>) -> Vec<(NotedZone, i64)> {
    let own = noted.into_iter().filter_map(|zone| zone_rules(&zone.name).map(|rules| (zone, rules)));
    own.filter(|(zone, rules)| zone.rules != *rules).collect()
}

/// How many of `timers` were looked at in the time there is, and which of them move.
fn reckon(timers: VecDeque<ZonedTimer>, now: DateTime<Utc>) -> (usize, Vec<Reckoned>) {
    let (began, mut looked_at, mut reckoned) = (Instant::now(), 0, Vec::new());
    for timer in timers {
        if looked_at > 0 && began.elapsed() >= SEARCH_MAX {
            break;
        }
        looked_at += 1;
        let Some(spec) = &timer.timetable else { continue };
        // One that cannot be read does not fire either.
        let Ok(timetable) = Timetable::parse_accepted(spec, timer.job, LOOKS_MAX) else { continue };
        let to = misfire::reckon_anew(&timetable, timer.stands_at, timer.since, now);
        if to != Some(timer.stands_at) {
            reckoned.push(Reckoned { job: timer.job, is_paused: timer.is_paused, from: timer.stands_at, to });
        }
    }
    (looked_at, reckoned)
}
