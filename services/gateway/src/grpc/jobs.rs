//! `JobService`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::job::{JobStatus, JobType};
use carillon_core::trace::TraceContext;
use carillon_core::{ids, limits};
use carillon_proto::v1;
use carillon_proto::v1::job_service_server::JobService;
use carillon_store::idempotency::{self, Key};
use carillon_store::jobs::{self, By, Definition, Deleting, Filter, Job, NewJob, Order, Paused, Update, Updated};
use carillon_store::revisions::{self, Revision};
use carillon_store::triggers::{self, NewTrigger, Triggered};
use carillon_store::{Scope, clock};
use chrono::{DateTime, Utc};
use prost::Message;
use prost_types::FieldMask;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::info;
use uuid::Uuid;

use super::checks::Checks;
use super::job::{self, Rules};
use super::paging::{Asked, Paging};
use super::when::When;
use super::{caller, executions, key, order, slice, update, words};
use crate::backend::Backend;
use crate::error_response::{internal, invalid, later, of_field};
use crate::observe;
use crate::reason::Reason;
use crate::values;

/// How long a change is made again of what somebody else has changed meanwhile,
const UPDATE_MAX: Duration = Duration::from_secs(5);
/// and up to how long after, uneven pauses, so that of many at once one after the other gets through.
const UPDATE_PAUSE_MAX: Duration = Duration::from_millis(160);

/// What jobs may be listed by.
const ORDERS: [(&str, By); 3] = [("created_at", By::Created), ("last_run", By::LastRun), ("next_run", By::NextRun)];

/// Creates jobs and rules their life.
#[derive(Clone, Debug)]
pub(super) struct Jobs(pub(super) Arc<Backend>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl JobService for Jobs {
    async fn create_job(&self, request: Request<v1::CreateJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateJob", Box::pin(self.create("CreateJob", None, request))).await
    }

    async fn create_cron_job(&self, request: Request<v1::CreateJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateCronJob", Box::pin(self.create("CreateCronJob", Some(JobType::Cron), request))).await
    }

    async fn create_one_time_job(&self, request: Request<v1::CreateJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateOneTimeJob", Box::pin(self.create("CreateOneTimeJob", Some(JobType::OneTime), request)))
            .await
    }

    async fn create_recurring_job(&self, request: Request<v1::CreateJobRequest>) -> Reply<v1::Job> {
        observe::call(
            "CreateRecurringJob",
            Box::pin(self.create("CreateRecurringJob", Some(JobType::Recurring), request)),
        )
        .await
    }

    async fn batch_create_jobs(
        &self,
        request: Request<v1::BatchCreateJobsRequest>,
    ) -> Reply<v1::BatchCreateJobsResponse> {
        observe::call("BatchCreateJobs", Box::pin(self.create_many(request))).await
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::Job> {
        observe::call("GetJob", async {
            let (scope, id) = checked(&request, &request.get_ref().id)?;
            Ok(job::show(self.0.ask(jobs::get(self.0.store(), &scope, id)).await?))
        })
        .await
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Reply<v1::ListJobsResponse> {
        observe::call("ListJobs", self.list(request)).await
    }

    async fn update_job(&self, request: Request<v1::UpdateJobRequest>) -> Reply<v1::Job> {
        let checks = Checks::of(&request);
        observe::call("UpdateJob", Box::pin(self.update(request, checks))).await
    }

    async fn set_job_schedule(&self, request: Request<v1::SetJobScheduleRequest>) -> Reply<v1::Job> {
        let mut checks = Checks::of(&request);
        // As a field that is to be changed it would be one to be taken away.
        checks.that(!request.get_ref().schedule.is_empty(), "schedule", "must be given");
        observe::call("SetJobSchedule", Box::pin(self.update(request.map(of_schedule), checks))).await
    }

    async fn list_job_revisions(
        &self,
        request: Request<v1::ListJobRevisionsRequest>,
    ) -> Reply<v1::ListJobRevisionsResponse> {
        observe::call("ListJobRevisions", Box::pin(self.list_revisions(request))).await
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Reply<v1::Job> {
        observe::call("PauseJob", async {
            let (scope, id) = checked(&request, &request.get_ref().id)?;
            let Paused { job: paused, withdrawn } = self.0.ask(jobs::pause(self.0.store(), &scope, id)).await?;
            // R8a, H113: in the set before anybody is told, and before the answer.
            self.0.tell_cancelled(&withdrawn).await;
            self.0.tell_job_changed(id).await;
            Ok(job::show(paused))
        })
        .await
    }

    async fn resume_job(&self, request: Request<v1::ResumeJobRequest>) -> Reply<v1::Job> {
        observe::call("ResumeJob", async {
            let (scope, id) = checked(&request, &request.get_ref().id)?;
            let resumed = self.0.ask(jobs::resume(self.0.store(), &scope, id)).await?;
            tokio::join!(self.0.tell_job_changed(id), self.0.wake());
            Ok(job::show(resumed))
        })
        .await
    }

    async fn delete_job(&self, request: Request<v1::DeleteJobRequest>) -> Reply<()> {
        observe::call("DeleteJob", async {
            let (scope, id) = checked(&request, &request.get_ref().id)?;
            if self.0.ask(jobs::delete(self.0.store(), &scope, id)).await? {
                self.0.tell_job_changed(id).await;
            }
            self.end_deleted(id).await;
            Ok(())
        })
        .await
    }

    async fn trigger_job(&self, request: Request<v1::TriggerJobRequest>) -> Reply<v1::Execution> {
        observe::call("TriggerJob", self.trigger(request)).await
    }
}

impl Jobs {
    /// R17, step by step, for as long as a request may take. The job is deleted whatever comes of it: a dispatcher ends what is
    /// still open then, so nothing that fails here fails the request.
    async fn end_deleted(&self, id: Uuid) {
        let until = Instant::now() + self.0.statement_timeout();
        let mut deleting = Deleting::of(self.0.store(), id);
        let ending = async {
            while Instant::now() < until {
                match deleting.step().await {
                    Ok(Some(asked)) => self.0.tell_cancelled(&asked).await,
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        if let Ok(Err(error)) = tokio::time::timeout_at(until.into(), ending).await {
            info!(job.id = %id, "a dispatcher ends what is still open of a deleted job: {}", with_causes(&error));
        }
    }

    /// `job_type` is the one that the call wants.
    async fn create(
        &self,
        method: &str,
        job_type: Option<JobType>,
        request: Request<v1::CreateJobRequest>,
    ) -> Result<v1::Job, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let mut request = request.into_inner();
        caller::place(&scope, request.job.get_or_insert_default(), &mut checks);
        // Who only asks what would be answered asks of the same request.
        let validate_only = std::mem::take(&mut request.validate_only);
        let fingerprint_of = request.encode_to_vec();
        let rules = Rules { job_type, allow_past: request.allow_past, payload_bytes_max: self.0.payload_bytes_max };
        let (definition, when) = job::read(request.job.unwrap_or_default(), rules, &mut checks);
        let request_id = checks.text("request_id", &request.request_id, 0, limits::WORD_CHARS_MAX);
        // Without a clock: any instant serves.
        let (when, parsed) = when.look(&self.0, |when| when.parse(Uuid::nil(), DateTime::UNIX_EPOCH)).await?;
        if let Err(violations) = parsed {
            checks.schedule(violations);
        }
        if !checks.is_clean() {
            self.check_against_the_clock(when, &mut checks).await;
            return checks.finish().and(Err(internal()));
        }
        let key = key(("job".to_owned(), definition.platform_id.clone()), method, &request_id, &fingerprint_of);
        Ok(job::show(self.create_checked(&scope, definition, when, key, validate_only).await?))
    }

    /// With `validate_only` it answers with the job as it would be, without an id.
    async fn create_checked(
        &self,
        scope: &Scope,
        definition: Definition,
        when: When,
        key: Option<Key>,
        validate_only: bool,
    ) -> Result<Job, Status> {
        let store = self.0.store();
        let beginning = self.0.ask(idempotency::begin(store, scope, key.as_ref())).await?;
        if let Some(known) = beginning.known {
            return self.0.ask(jobs::get(store, scope, known)).await;
        }
        let new = self.new_job(definition, when, beginning.now).await?;
        if validate_only {
            self.0.ask(jobs::check_new(store, scope, &new)).await?;
            return Ok(Job { id: Uuid::nil(), ..new.into_job() });
        }
        let job = self.0.ask(jobs::create(store, scope, new, key.as_ref())).await?;
        self.0.wake().await;
        Ok(job)
    }

    async fn new_job(&self, definition: Definition, when: When, now: DateTime<Utc>) -> Result<NewJob, Status> {
        let id = new_id(now);
        let (_, first) = when.look(&self.0, move |when| when.first_fire(id, now)).await?;
        let (timetable, fire_at) = first.map_err(|violations| invalid(&violations, 0))?;
        Ok(NewJob { id, definition, timetable, fire_at, created_at: now, queues_max: self.0.queues_max })
    }

    /// `checks` has begun with [`Checks::of`].
    async fn update(&self, request: Request<v1::UpdateJobRequest>, mut checks: Checks) -> Result<v1::Job, Status> {
        let scope = caller::scope(&request, &mut checks);
        let request = request.into_inner();
        let given = request.job.clone().unwrap_or_default();
        let id = checks.id("id", &given.id);
        checks.text("updated_by", &request.updated_by, 0, limits::WORD_CHARS_MAX);
        if checks.is_wrong("id") || checks.is_wrong(carillon_proto::PLATFORM_HEADER) {
            return checks.finish().and(Err(internal()));
        }
        let until = Instant::now() + UPDATE_MAX;
        let mut pause_max = UPDATE_PAUSE_MAX / 16;
        while Instant::now() < until {
            let current = self.0.ask(jobs::get_own(self.0.store(), &scope, id)).await?;
            if !given.etag.is_empty() && given.etag != job::etag(current.revision) {
                let why = format!("the job has the etag {} by now, not {}", job::etag(current.revision), given.etag);
                return Err(of_field(Reason::Superseded, "etag", why));
            }
            if let Some(updated) = self.update_once(&scope, current, &given, &request, checks.clone()).await? {
                return Ok(job::show(updated));
            }
            tokio::time::sleep(pause_max * u32::from(Uuid::new_v4().as_bytes()[0]) / 256).await;
            pause_max = (2 * pause_max).min(UPDATE_PAUSE_MAX);
        }
        Err(later(Reason::ConcurrentChange, "somebody else changed it at the same time: try again"))
    }

    /// `None`: it is not as `current` has it any more.
    async fn update_once(
        &self,
        scope: &Scope,
        current: Job,
        given: &v1::Job,
        request: &v1::UpdateJobRequest,
        mut checks: Checks,
    ) -> Result<Option<Job>, Status> {
        let id = current.id;
        let merged = update::merge(&job::show(current.clone()), given, request.update_mask.as_ref(), &mut checks);
        let job_type = Some(current.definition.job_type);
        let rules = Rules { job_type, allow_past: request.allow_past, payload_bytes_max: self.0.payload_bytes_max };
        let (definition, when) = job::read(merged, rules, &mut checks);
        let fires_alike = update::fires_alike(&current.definition, &definition);
        // What it says of when it fires is known to be right if it is as it was.
        let when = if fires_alike {
            None
        } else {
            let (when, parsed) = when.look(&self.0, |when| when.parse(Uuid::nil(), DateTime::UNIX_EPOCH)).await?;
            if let Err(violations) = parsed {
                checks.schedule(violations);
            }
            Some(when)
        };
        checks.finish()?;
        // A deleted one is refused by the store, whatever is asked.
        if current.status != JobStatus::Cancelled && update::is_unchanged(&current, &definition) {
            return Ok(Some(current));
        }
        let timetable = match when {
            Some(when) => {
                let now = self.0.ask(clock::now(self.0.store())).await?;
                let before = revisions::timetable(self.0.store(), scope, id, current.revision);
                let Some(before) = self.0.ask(before).await? else { return Ok(None) };
                let when = when.instead_of(before);
                let (_, first) = when.look(&self.0, move |when| when.first_fire(id, now)).await?;
                Some(first.map_err(|violations| invalid(&violations, 0))?)
            }
            None => None,
        };
        let update = Update {
            definition,
            revision: current.revision,
            timetable,
            updated_by: request.updated_by.clone(),
            queues_max: self.0.queues_max,
        };
        if request.validate_only {
            let checked = self.0.ask(jobs::check_update(self.0.store(), scope, id, &update)).await?;
            return Ok(checked.map(|updated| updated.job));
        }
        let Some(Updated { job, ahead, misplaced }) =
            self.0.ask(jobs::update(self.0.store(), scope, id, &update)).await?
        else {
            return Ok(None);
        };
        // R8a: in the set before anybody is told, and before the answer.
        self.0.tell_cancelled(&ahead).await;
        self.0.tell_misplaced(&misplaced).await;
        tokio::join!(self.0.tell_job_changed(id), self.0.wake());
        Ok(Some(job))
    }

    /// A request that is wrong anyway should also hear of what only the clock can tell, if Postgres is there to ask.
    async fn check_against_the_clock(&self, when: When, checks: &mut Checks) {
        if when.is_readable()
            && let Ok(now) = self.0.ask(clock::now(self.0.store())).await
            && let Ok((_, Err(violations))) = when.look(&self.0, move |when| when.first_fire(Uuid::nil(), now)).await
        {
            for violation in violations {
                checks.refuse(&violation.field, violation.rule);
            }
        }
    }

    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<v1::ListJobsResponse, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let mut request = request.into_inner();
        let asked = Asked {
            limit: request.limit.take(),
            offset: std::mem::take(&mut request.offset),
            page_token: std::mem::take(&mut request.page_token),
            show_total_size: std::mem::take(&mut request.show_total_size),
        };
        let plain =
            v1::ListJobsRequest { r#type: request.r#type, status: request.status, ..v1::ListJobsRequest::default() };
        let is_plain = request == plain && !asked.show_total_size && scope.is_all();
        let filter = [request.encode_to_vec(), caller::told_apart(&scope)].concat();
        let paging = Paging::read(&asked, "jobs", &filter, is_plain, &mut checks);
        let order = order::read(&mut checks, &request.order_by, &ORDERS);
        let filter = Filter {
            job_type: words::read_job_type(&mut checks, "type", request.r#type),
            status: words::read_job_status(&mut checks, "status", request.status),
            key: checks.part("key", &request.key),
            tag: checks.part("tag", &request.tag),
            platform_id: caller::filter(&scope, &request.platform_id, &mut checks),
            name: checks.part("name", &request.name),
            name_prefix: checks.part("name_prefix", &request.name_prefix),
            handler_name: checks.part("handler_name", &request.handler_name),
            queue: checks.part("queue", &request.queue),
            priority: words::read_priority(&mut checks, "priority", request.priority),
            created_from: checks.instant("created_from", request.created_from),
            created_before: checks.instant("created_before", request.created_before),
            order: order.map(|(by, direction)| Order { by, direction }).unwrap_or_default(),
        };
        checks.finish()?;
        let page = self.0.ask(jobs::list(self.0.store(), &scope, filter, paging.window)).await?;
        let total = match paging.count_for {
            Some(time) => Some(self.0.ask(jobs::count(self.0.store(), &scope, filter, time)).await?),
            None => None,
        };
        let next_page_token = paging.next(&page);
        Ok(v1::ListJobsResponse {
            jobs: page.items.into_iter().map(job::show).collect(),
            has_more: !next_page_token.is_empty(),
            next_page_token,
            total_size: total.map(|total| total.least),
            total_size_is_lower_bound: total.is_some_and(|total| !total.is_all),
        })
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListJobRevisionsRequest>,
    ) -> Result<v1::ListJobRevisionsResponse, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let request = request.into_inner();
        let id = checks.id("id", &request.id);
        let slice = slice(&mut checks, request.limit, request.offset);
        checks.finish()?;
        let page = self.0.ask(revisions::list(self.0.store(), &scope, id, slice)).await?;
        let revisions = page.items.into_iter().map(revision_to_wire).collect();
        Ok(v1::ListJobRevisionsResponse { revisions, has_more: page.has_more })
    }

    async fn trigger(&self, request: Request<v1::TriggerJobRequest>) -> Result<v1::Execution, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let trace = trace(request.metadata());
        let request = request.into_inner();
        let job_id = checks.id("id", &request.id);
        let request_id = checks.text("request_id", &request.request_id, 0, limits::WORD_CHARS_MAX);
        // For whom is known once it is known whose job it is.
        let key = key((format!("trigger/{job_id}"), None), "TriggerJob", &request_id, &request.encode_to_vec());
        let payload =
            request.payload.map(|payload| checks.document("payload", Some(payload), self.0.payload_bytes_max));
        let metadata = request
            .metadata
            .map(|metadata| checks.document("metadata", Some(metadata), limits::EXECUTION_METADATA_BYTES_MAX));
        let created_by = checks.text("created_by", &request.created_by, 0, limits::WORD_CHARS_MAX);
        checks.finish()?;
        let new = NewTrigger { job_id, payload, metadata, trace, created_by };
        let triggering = triggers::create(self.0.store(), &scope, &new, key.as_ref());
        let Triggered { execution, due } = self.0.ask(triggering).await?;
        match due {
            Some(line) => self.0.wake_for(&line).await,
            // Whoever asked first may not have come to say so.
            None => self.0.wake().await,
        }
        Ok(executions::to_wire(execution))
    }
}

/// The id of a job that is created at `now`.
pub(super) fn new_id(now: DateTime<Utc>) -> Uuid {
    let mut random = [0; 10];
    random.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
    ids::job_created(now, random)
}

/// As a change of that field.
fn of_schedule(request: v1::SetJobScheduleRequest) -> v1::UpdateJobRequest {
    let v1::SetJobScheduleRequest { id, schedule, etag, updated_by } = request;
    v1::UpdateJobRequest {
        job: Some(v1::Job { id, schedule, etag, ..v1::Job::default() }),
        update_mask: Some(FieldMask { paths: vec!["schedule".to_owned()] }),
        updated_by,
        ..v1::UpdateJobRequest::default()
    }
}

fn revision_to_wire(revision: Revision) -> v1::JobRevision {
    v1::JobRevision {
        revision: values::to_count(revision.revision),
        created_at: Some(values::to_timestamp(revision.created_at)),
        created_by: revision.created_by,
        superseded_at: revision.superseded_at.map(values::to_timestamp),
        changed: revision.changed,
    }
}

/// Who asks, and for which job.
fn checked<T>(request: &Request<T>, id: &str) -> Result<(Scope, Uuid), Status> {
    let mut checks = Checks::of(request);
    let scope = caller::scope(request, &mut checks);
    let id = checks.id("id", id);
    checks.finish()?;
    Ok((scope, id))
}

/// W3C trace context of the caller; one that is not well-formed is as good as none.
fn trace(metadata: &MetadataMap) -> Option<TraceContext> {
    metadata.get("traceparent")?.to_str().ok()?.parse().ok()
}
