//! Creating many jobs at once. Each is read and refused as `CreateJob` would; who stands together is refused together, every wrong
//! field by its path in the request.
//!
//! All are looked at in one piece of work aside, whose schedules have a bound of time together: what a timetable made to cost
//! something takes alone, a thousand of them cannot take. What was answered is kept with the idempotency key, so that a repetition
//! has the same answer whatever happened since.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use carillon_core::error::FieldViolation;
use carillon_core::limits::{JOBS_AT_ONCE_MAX, WORD_CHARS_MAX};
use carillon_proto::v1;
use carillon_proto::v1::batch_create_jobs_result::Result as Outcome;
use carillon_store::idempotency::{self, Beginning, Key};
use carillon_store::jobs::{self, Many, NewJob};
use carillon_store::{Error, Result as Stored, Scope};
use chrono::{DateTime, Utc};
use prost::Message;
use tonic::{Request, Status};
use uuid::Uuid;

use super::checks::{Checks, Wrong};
use super::job::{self, Rules};
use super::jobs::{Jobs, new_id};
use super::{caller, key};
use crate::error_response::{internal, of_elements};

const LIST: &str = "jobs";
/// What looking at the schedules of one request may take, but for the last one's.
pub(super) const LOOKING_MAX: Duration = Duration::from_secs(1);
/// Bytes of all refusals of one answer that have details: the whole stays well below what gRPC clients accept.
const REFUSALS_BYTES_MAX: usize = 1024 * 1024;
/// Characters of the message of one that has none.
const SHORT_CHARS_MAX: usize = 100;

/// How the jobs of one request are to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) rules: Rules,
    pub(super) queues_max: u32,
    /// The database's clock; none if it could not be asked.
    pub(super) now: Option<DateTime<Utc>>,
    /// [`LOOKING_MAX`].
    pub(super) looking_max: Duration,
}

/// A job to be created, or all that is wrong with it, by its paths in the request.
pub(super) type Read = Result<NewJob, Wrong>;

impl Jobs {
    pub(super) async fn create_many(
        &self,
        request: Request<v1::BatchCreateJobsRequest>,
    ) -> Result<v1::BatchCreateJobsResponse, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let mut request = request.into_inner();
        let request_id = checks.text("request_id", &request.request_id, 0, WORD_CHARS_MAX);
        let count = request.jobs.len();
        let mut of_each = checks.split(LIST, count.min(JOBS_AT_ONCE_MAX));
        checks.that(
            (1..=JOBS_AT_ONCE_MAX).contains(&count),
            LIST,
            format!("must be 1 to {JOBS_AT_ONCE_MAX}, are {count}"),
        );
        if checks.is_wrong(LIST) {
            return checks.finish().and(Err(internal()));
        }
        for (job, checks) in request.jobs.iter_mut().zip(&mut of_each) {
            caller::place(&scope, job, checks);
        }
        // As for one: it is the same request.
        let validate_only = std::mem::take(&mut request.validate_only);
        let is_keyed = !request_id.is_empty() && checks.is_clean();
        let key = if is_keyed { key_of(&scope, &request, &of_each, &request_id) } else { None };
        let begun = self.0.ask(idempotency::begin(self.0.store(), &scope, key.as_ref())).await;
        if let Ok(Beginning { known: Some(_), answer, .. }) = &begun {
            return repeated(answer.as_deref().unwrap_or_default());
        }
        let reading = Reading {
            rules: Rules {
                job_type: None,
                allow_past: request.allow_past,
                payload_bytes_max: self.0.payload_bytes_max,
            },
            queues_max: self.0.queues_max,
            now: begun.as_ref().ok().map(|begun| begun.now),
            looking_max: LOOKING_MAX,
        };
        let each = request.allow_partial_success;
        let read = self.0.aside(move || reading.all(request.jobs, of_each)).await?;
        let mut wrong = checks.into_wrong();
        if !each {
            read.iter().filter_map(|read| read.as_ref().err()).for_each(|of_one| wrong.add(of_one.clone()));
        }
        if !wrong.violations.is_empty() {
            return Err(wrong.refusal());
        }
        begun?;
        let refused: Vec<Option<Status>> = read.iter().map(|read| read.as_ref().err().map(Wrong::refusal)).collect();
        let jobs: Vec<NewJob> = read.into_iter().filter_map(Result::ok).collect();
        let answer = Answer { refused, ids: jobs.iter().map(|job| job.id).collect(), validate_only };
        let decided = if validate_only {
            Many::Decided(self.0.ask(jobs::check_many(self.0.store(), &scope, &jobs)).await?)
        } else {
            let answer = |outcomes: &[Stored<()>]| answer.of(outcomes).encode_to_vec();
            self.0.ask(jobs::create_many(self.0.store(), &scope, &jobs, each, key.as_ref(), answer)).await?
        };
        let outcomes = match decided {
            Many::Repeated(answer) => return repeated(&answer),
            Many::Decided(outcomes) => outcomes,
        };
        if !each && let Some(status) = together(&outcomes) {
            return Err(status);
        }
        if !validate_only && outcomes.iter().any(Result::is_ok) {
            self.0.wake().await;
        }
        Ok(answer.of(&outcomes))
    }
}

fn key_of(scope: &Scope, request: &v1::BatchCreateJobsRequest, of_each: &[Checks], request_id: &str) -> Option<Key> {
    let mut bytes = request.encode_to_vec();
    for (place, checks) in of_each.iter().enumerate() {
        let known: Vec<u8> = checks.known_bytes().collect();
        if !known.is_empty() {
            bytes.extend(format!("\0{}\0", path(place)).into_bytes());
            bytes.extend(known);
        }
    }
    key(("jobs".to_owned(), platform(scope, request)), "BatchCreateJobs", request_id, &bytes)
}

/// Of one job the idempotency keys are those of its platform; of many, those of the first one's, or else of the caller's.
fn platform(scope: &Scope, request: &v1::BatchCreateJobsRequest) -> Option<String> {
    let first = request.jobs.first().and_then(|job| job.platform_id.as_deref());
    let mut checks = Checks::default();
    checks.text("platform_id", first.unwrap_or_default(), 0, WORD_CHARS_MAX);
    let first = first.filter(|first| checks.is_clean() && scope.owns(Some(first)));
    first.or_else(|| scope.home()).map(str::to_owned)
}

fn repeated(answer: &[u8]) -> Result<v1::BatchCreateJobsResponse, Status> {
    v1::BatchCreateJobsResponse::decode(answer).map_err(|error| {
        tracing::error!("a kept answer cannot be read: {error}");
        internal()
    })
}

/// `jobs[3]`.
fn path(place: usize) -> String {
    format!("{LIST}[{place}]")
}

/// Who stands together is refused together. `None`: none was refused.
fn together(outcomes: &[Stored<()>]) -> Option<Status> {
    let refused: Vec<(String, &Error)> = outcomes
        .iter()
        .enumerate()
        .filter_map(|(place, outcome)| outcome.as_ref().err().map(|error| (path(place), error)))
        .collect();
    (!refused.is_empty()).then(|| of_elements(&refused))
}

impl Reading {
    /// In order of their ids, so that lists show them in the order that they were given in.
    pub(super) fn all(self, jobs: Vec<v1::Job>, of_each: Vec<Checks>) -> Vec<Read> {
        let now = self.now.unwrap_or(DateTime::UNIX_EPOCH);
        let mut ids: Vec<Uuid> = jobs.iter().map(|_| new_id(now)).collect();
        ids.sort_unstable();
        let mut spent = Duration::ZERO;
        let mut keys = HashMap::new();
        let mut read = Vec::with_capacity(jobs.len());
        for (place, ((job, checks), id)) in jobs.into_iter().zip(of_each).zip(ids).enumerate() {
            let one = self.one(id, job, checks, &mut spent);
            let one = one.and_then(|new| match new.definition.key.clone() {
                Some(key) => match *keys.entry((new.definition.platform_id.clone(), key)).or_insert(place) {
                    first if first == place => Ok(new),
                    first => {
                        let rule = format!("is the key of {} already", path(first));
                        Err(Wrong { violations: vec![FieldViolation::new("key", rule)], unlisted: 0 })
                    }
                },
                None => Ok(new),
            });
            read.push(one.map_err(|wrong| lying_in(&path(place), wrong)));
        }
        read
    }

    fn one(&self, id: Uuid, job: v1::Job, mut checks: Checks, spent: &mut Duration) -> Read {
        let (definition, when) = job::read(job, self.rules, &mut checks);
        let is_light = when.is_light();
        let mut found = None;
        if is_light || *spent < self.looking_max {
            let began = Instant::now();
            let looked = match self.now {
                Some(now) if when.is_readable() => when.first_fire(id, now).map(Some),
                // Without a clock: any instant serves.
                _ => when.parse(id, DateTime::UNIX_EPOCH).map(|_| None),
            };
            if !is_light {
                *spent += began.elapsed();
            }
            match looked {
                Ok(timed) => found = timed,
                Err(violations) => checks.schedule(violations),
            }
        } else {
            let rule = format!(
                "cannot be searched beside the others: those before it took {:?} already, create it in a smaller batch",
                self.looking_max
            );
            checks.refuse(when.schedule_field(), rule);
        }
        let (timetable, fire_at) = found.unwrap_or_else(|| (when.timetable(DateTime::UNIX_EPOCH), None));
        let created_at = self.now.unwrap_or(DateTime::UNIX_EPOCH);
        let wrong = checks.into_wrong();
        if wrong.violations.is_empty() {
            Ok(NewJob { id, definition, timetable, fire_at, created_at, queues_max: self.queues_max })
        } else {
            Err(wrong)
        }
    }
}

/// The violations of an element, by their paths in the request.
fn lying_in(element: &str, wrong: Wrong) -> Wrong {
    let place = |FieldViolation { field, rule }| {
        // What is wrong as a whole has no field of its own.
        let field = if field == super::checks::WHOLE { element.to_owned() } else { format!("{element}.{field}") };
        FieldViolation { field, rule }
    };
    Wrong { violations: wrong.violations.into_iter().map(place).collect(), ..wrong }
}

/// What an answer is made of.
pub(super) struct Answer {
    /// Of each job of the request why it was not even asked for.
    pub(super) refused: Vec<Option<Status>>,
    /// Those that were, in their order.
    pub(super) ids: Vec<Uuid>,
    pub(super) validate_only: bool,
}

impl Answer {
    pub(super) fn of(&self, outcomes: &[Stored<()>]) -> v1::BatchCreateJobsResponse {
        let mut asked = self.ids.iter().zip(outcomes);
        let mut bytes = 0;
        let mut result = |(place, refused): (usize, &Option<Status>)| {
            let status = match refused.as_ref().ok_or_else(|| asked.next()) {
                Ok(status) => status.clone(),
                Err(Some((id, Ok(())))) => {
                    return Outcome::Id(if self.validate_only { String::new() } else { id.to_string() });
                }
                Err(Some((_, Err(error)))) => of_elements(&[(path(place), error)]),
                Err(None) => internal(),
            };
            Outcome::Status(to_wire(&status, &mut bytes))
        };
        let results = self.refused.iter().enumerate().map(|each| Some(result(each)));
        let results = results.map(|result| v1::BatchCreateJobsResult { result }).collect();
        v1::BatchCreateJobsResponse { results }
    }
}

/// A refusal in an answer. `bytes`: of those before it.
fn to_wire(status: &Status, bytes: &mut usize) -> tonic_types::Status {
    *bytes += status.details().len();
    let whole = tonic_types::Status::decode(status.details()).ok().filter(|_| *bytes <= REFUSALS_BYTES_MAX);
    whole.unwrap_or_else(|| tonic_types::Status {
        code: status.code().into(),
        message: carillon_core::error::excerpt(status.message(), SHORT_CHARS_MAX),
        details: Vec::new(),
    })
}
