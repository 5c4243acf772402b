//! `JobService`.

use std::sync::Arc;
use std::time::Instant;

use carillon_core::trace::TraceContext;
use carillon_core::{ids, limits};
use carillon_proto::v1;
use carillon_proto::v1::job_service_server::JobService;
use carillon_store::idempotency::{self, Beginning, Key};
use carillon_store::jobs::{self, Deleting, Filter, Job, NewJob, Paused};
use carillon_store::triggers::{self, NewTrigger, Triggered};
use chrono::DateTime;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::info;
use uuid::Uuid;

use super::checks::Checks;
use super::definition::{self, Draft};
use super::when::When;
use super::{executions, key, slice, when, words};
use crate::backend::Backend;
use crate::{observe, values};

/// Creates jobs and rules their life.
#[derive(Clone, Debug)]
pub(super) struct Jobs(pub(super) Arc<Backend>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl JobService for Jobs {
    async fn create_cron_job(&self, request: Request<v1::CreateCronJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateCronJob", self.create("CreateCronJob", request, definition::cron)).await
    }

    async fn create_one_time_job(&self, request: Request<v1::CreateOneTimeJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateOneTimeJob", self.create("CreateOneTimeJob", request, definition::one_time)).await
    }

    async fn create_recurring_job(&self, request: Request<v1::CreateRecurringJobRequest>) -> Reply<v1::Job> {
        observe::call("CreateRecurringJob", self.create("CreateRecurringJob", request, definition::recurring)).await
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::Job> {
        observe::call("GetJob", async {
            let id = checked_id(&request, &request.get_ref().id)?;
            Ok(to_wire(self.0.ask(jobs::get(self.0.store(), id)).await?))
        })
        .await
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Reply<v1::ListJobsResponse> {
        observe::call("ListJobs", self.list(request)).await
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Reply<v1::Job> {
        observe::call("PauseJob", async {
            let id = checked_id(&request, &request.get_ref().id)?;
            let Paused { job, withdrawn } = self.0.ask(jobs::pause(self.0.store(), id)).await?;
            // R8a, H113: in the set before anybody is told, and before the answer.
            self.0.tell_cancelled(&withdrawn).await;
            self.0.tell_job_changed(id).await;
            Ok(to_wire(job))
        })
        .await
    }

    async fn resume_job(&self, request: Request<v1::ResumeJobRequest>) -> Reply<v1::Job> {
        observe::call("ResumeJob", async {
            let id = checked_id(&request, &request.get_ref().id)?;
            let job = self.0.ask(jobs::resume(self.0.store(), id)).await?;
            tokio::join!(self.0.tell_job_changed(id), self.0.wake());
            Ok(to_wire(job))
        })
        .await
    }

    async fn delete_job(&self, request: Request<v1::DeleteJobRequest>) -> Reply<()> {
        observe::call("DeleteJob", async {
            let id = checked_id(&request, &request.get_ref().id)?;
            if self.0.ask(jobs::delete(self.0.store(), id)).await? {
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
            info!(job.id = %id, "a dispatcher ends what is still open of a deleted job: {}", anyhow::Error::from(error));
        }
    }

    /// The three ways to create a job differ only in how the request is read.
    async fn create<R: Message>(
        &self,
        method: &str,
        request: Request<R>,
        read: impl Fn(R, usize, &mut Checks) -> Draft,
    ) -> Result<v1::Job, Status> {
        let mut checks = Checks::of(&request);
        let fingerprint_of = request.get_ref().encode_to_vec();
        let Draft { definition, when, request_id } = read(request.into_inner(), self.0.payload_bytes_max, &mut checks);
        // Without a clock: any instant serves.
        let (when, parsed) = when.look(&self.0, |when| when.parse(Uuid::nil(), DateTime::UNIX_EPOCH)).await?;
        if let Err(violations) = parsed {
            checks.schedule(violations);
        }
        if !checks.is_clean() {
            self.check_against_the_clock(when, &mut checks).await;
            return checks.finish().and(Err(Status::internal("a request that is wrong was not refused")));
        }
        let draft = Draft { definition, when, request_id };
        let scope = format!("job/{}", draft.definition.platform_id.as_deref().unwrap_or_default());
        let key = key(scope, method, &draft.request_id, &fingerprint_of);
        let job = self.create_checked(draft, key).await?;
        Ok(to_wire(job))
    }

    async fn create_checked(&self, draft: Draft, key: Option<Key>) -> Result<Job, Status> {
        let store = self.0.store();
        let beginning = self.0.ask(idempotency::begin(store, key.as_ref())).await?;
        if let Some(known) = beginning.known {
            return self.0.ask(jobs::get(store, known)).await;
        }
        let mut random = [0; 10];
        random.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
        let id = ids::job_created(beginning.now, random);
        let now = beginning.now;
        let (_, first) = draft.when.look(&self.0, move |when| when.first_fire(id, now)).await?;
        let (timetable, fire_at) = first.map_err(|violations| crate::error_response::invalid(&violations))?;
        let queues_max = self.0.queues_max;
        let new = NewJob { id, definition: draft.definition, timetable, fire_at, created_at: now, queues_max };
        let job = self.0.ask(jobs::create(store, new, key.as_ref())).await?;
        self.0.wake().await;
        Ok(job)
    }

    /// A request that is wrong anyway should also hear of what only the clock can tell, if Postgres is there to ask.
    async fn check_against_the_clock(&self, when: When, checks: &mut Checks) {
        if when.is_readable()
            && let Ok(Beginning { now, .. }) = self.0.ask(idempotency::begin(self.0.store(), None)).await
            && let Ok((_, Err(violations))) = when.look(&self.0, move |when| when.first_fire(Uuid::nil(), now)).await
        {
            for violation in violations {
                checks.refuse(&violation.field, violation.rule);
            }
        }
    }

    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<v1::ListJobsResponse, Status> {
        let mut checks = Checks::of(&request);
        let request = request.into_inner();
        let filter = Filter {
            job_type: words::read_job_type(&mut checks, "type", request.r#type),
            status: words::read_job_status(&mut checks, "status", request.status),
        };
        let slice = slice(&mut checks, request.limit, request.offset);
        checks.finish()?;
        let page = self.0.ask(jobs::list(self.0.store(), filter, slice)).await?;
        Ok(v1::ListJobsResponse { jobs: page.items.into_iter().map(to_wire).collect(), has_more: page.has_more })
    }

    async fn trigger(&self, request: Request<v1::TriggerJobRequest>) -> Result<v1::Execution, Status> {
        let mut checks = Checks::of(&request);
        let trace = trace(request.metadata());
        let request = request.into_inner();
        let job_id = checks.id("id", &request.id);
        let request_id = checks.text("request_id", &request.request_id, 0, limits::WORD_CHARS_MAX);
        let key = key(format!("trigger/{job_id}"), "TriggerJob", &request_id, &request.encode_to_vec());
        let payload =
            request.payload.map(|payload| checks.document("payload", Some(payload), self.0.payload_bytes_max));
        let created_by = checks.text("created_by", &request.created_by, 0, limits::WORD_CHARS_MAX);
        checks.finish()?;
        let new = NewTrigger { job_id, payload, trace, created_by };
        let Triggered { execution, due } = self.0.ask(triggers::create(self.0.store(), &new, key.as_ref())).await?;
        match due {
            Some(line) => self.0.wake_for(&line).await,
            // Whoever asked first may not have come to say so.
            None => self.0.wake().await,
        }
        Ok(executions::to_wire(execution))
    }
}

fn checked_id<T>(request: &Request<T>, id: &str) -> Result<Uuid, Status> {
    let mut checks = Checks::of(request);
    let id = checks.id("id", id);
    checks.finish()?;
    Ok(id)
}

/// W3C trace context of the caller; one that is not well-formed is as good as none.
fn trace(metadata: &MetadataMap) -> Option<TraceContext> {
    metadata.get("traceparent")?.to_str().ok()?.parse().ok()
}

fn to_wire(job: Job) -> v1::Job {
    let avg_duration_ms = values::to_count(job.avg_duration_ms());
    let definition = job.definition;
    v1::Job {
        id: job.id.to_string(),
        name: definition.name,
        description: definition.description,
        r#type: words::job_type(definition.job_type).into(),
        status: words::job_status(job.status).into(),
        schedule: definition.schedule,
        timezone: definition.timezone,
        next_run: job.next_run.map(values::to_timestamp),
        last_run: job.last_run.map(values::to_timestamp),
        start_date: definition.start_date.map(values::to_timestamp),
        end_date: definition.end_date.map(values::to_timestamp),
        max_executions: definition.max_executions.map(values::to_count),
        handler_name: definition.handler_name,
        handler_type: words::handler_type(definition.handler_type).into(),
        payload: Some(values::to_struct(definition.payload)),
        max_retries: values::to_count(definition.max_retries.into()),
        retry_delay_ms: values::to_count(definition.retry_delay_ms.into()),
        timeout_ms: values::to_count(definition.timeout_ms.into()),
        priority: words::priority(definition.priority).into(),
        concurrency: values::to_count(definition.concurrency.into()),
        allow_overlap: definition.allow_overlap,
        executions_count: values::to_count(job.executions_count),
        success_count: values::to_count(job.success_count),
        failure_count: values::to_count(job.failure_count),
        avg_duration_ms,
        tags: definition.tags,
        metadata: Some(values::to_struct(definition.metadata)),
        platform_id: definition.platform_id,
        created_by: definition.created_by,
        created_at: Some(values::to_timestamp(job.created_at)),
        updated_at: Some(values::to_timestamp(job.updated_at)),
        completed_at: job.completed_at.map(values::to_timestamp),
        cancelled_at: job.cancelled_at.map(values::to_timestamp),
        queue: definition.queue,
        paused_at: job.paused_at.map(values::to_timestamp),
        revision: values::to_count(job.revision),
        schedules: definition.schedules,
        exclusions: definition.exclusions.into_iter().map(when::exclusion_to_wire).collect(),
        dst_gap: definition.dst_gap.map(|gap| words::dst_gap(gap).into()),
        dst_overlap: definition.dst_overlap.map(|overlap| words::dst_overlap(overlap).into()),
    }
}
