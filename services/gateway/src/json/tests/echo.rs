//! Services that answer with what they are asked, and remember it.

use std::sync::Mutex;

use carillon_core::error::FieldViolation;
use carillon_proto::v1;
use carillon_proto::v1::execution_service_server::ExecutionService;
use carillon_proto::v1::job_service_server::JobService;
use prost::Message as _;
use tonic::Response as Reply;

use super::super::*;
use crate::error_response::invalid;

/// Answers with what the request says; remembers it.
#[derive(Default)]
pub(super) struct Echo {
    pub created: Mutex<Option<v1::CreateJobRequest>>,
    pub list: Mutex<Option<v1::ListJobsRequest>>,
    pub mistakes: Mutex<Vec<String>>,
    pub traceparent: Mutex<Option<String>>,
}

impl Echo {
    fn open<T>(&self, request: tonic::Request<T>) -> Result<T, Status> {
        let known = request.extensions().get::<KnownMistakes>().cloned();
        *self.traceparent.lock().unwrap() =
            request.metadata().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
        match known {
            Some(known) => {
                let violations: Vec<_> = known.0.iter().map(|mistake| mistake.violation.clone()).collect();
                *self.mistakes.lock().unwrap() = violations.iter().map(ToString::to_string).collect();
                Err(invalid(&violations, known.0.iter().map(|mistake| mistake.unlisted).sum()))
            }
            None => Ok(request.into_inner()),
        }
    }
}

type Answer<T> = Result<Reply<T>, Status>;

#[tonic::async_trait]
impl JobService for Echo {
    async fn create_job(&self, request: tonic::Request<v1::CreateJobRequest>) -> Answer<v1::Job> {
        self.create_cron_job(request).await
    }

    async fn create_cron_job(&self, request: tonic::Request<v1::CreateJobRequest>) -> Answer<v1::Job> {
        let request = self.open(request)?;
        let given = request.job.clone().unwrap_or_default();
        let job = v1::Job { name: given.name, payload: given.payload, ..v1::Job::default() };
        *self.created.lock().unwrap() = Some(request);
        Ok(Reply::new(job))
    }

    async fn create_one_time_job(&self, _: tonic::Request<v1::CreateJobRequest>) -> Answer<v1::Job> {
        Err(later(Reason::PostgresUnavailable, "Postgres is away"))
    }

    async fn create_recurring_job(&self, _: tonic::Request<v1::CreateJobRequest>) -> Answer<v1::Job> {
        Err(Status::already_exists("it is there"))
    }

    async fn batch_create_jobs(
        &self,
        request: tonic::Request<v1::BatchCreateJobsRequest>,
    ) -> Answer<v1::BatchCreateJobsResponse> {
        use v1::batch_create_jobs_result::Result as Outcome;
        let request = self.open(request)?;
        let refused =
            tonic_types::Status::decode(invalid(&[FieldViolation::new("jobs[1]", "is odd")], 0).details()).unwrap();
        let results = [Outcome::Id(request.request_id), Outcome::Status(refused)];
        let results = results.map(|result| v1::BatchCreateJobsResult { result: Some(result) });
        Ok(Reply::new(v1::BatchCreateJobsResponse { results: results.into() }))
    }

    async fn get_job(&self, request: tonic::Request<v1::GetJobRequest>) -> Answer<v1::Job> {
        Ok(Reply::new(v1::Job { id: self.open(request)?.id, ..v1::Job::default() }))
    }

    async fn list_jobs(&self, request: tonic::Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsResponse> {
        *self.list.lock().unwrap() = Some(self.open(request)?);
        Ok(Reply::new(v1::ListJobsResponse::default()))
    }

    /// Answers with the fields that it is to change, as tags.
    async fn update_job(&self, request: tonic::Request<v1::UpdateJobRequest>) -> Answer<v1::Job> {
        let v1::UpdateJobRequest { job, update_mask, .. } = self.open(request)?;
        let v1::Job { id, etag, .. } = job.unwrap_or_default();
        let tags = update_mask.unwrap_or_default().paths;
        Ok(Reply::new(v1::Job { id, etag, tags, ..v1::Job::default() }))
    }

    async fn set_job_schedule(&self, request: tonic::Request<v1::SetJobScheduleRequest>) -> Answer<v1::Job> {
        let v1::SetJobScheduleRequest { id, schedule, etag, .. } = self.open(request)?;
        Ok(Reply::new(v1::Job { id, schedule, etag, ..v1::Job::default() }))
    }

    async fn list_job_revisions(
        &self,
        _: tonic::Request<v1::ListJobRevisionsRequest>,
    ) -> Answer<v1::ListJobRevisionsResponse> {
        Err(Status::not_found("no such job"))
    }

    async fn pause_job(&self, request: tonic::Request<v1::PauseJobRequest>) -> Answer<v1::Job> {
        Ok(Reply::new(v1::Job { id: self.open(request)?.id, ..v1::Job::default() }))
    }

    async fn resume_job(&self, _: tonic::Request<v1::ResumeJobRequest>) -> Answer<v1::Job> {
        Err(Status::failed_precondition("it has ended"))
    }

    async fn delete_job(&self, request: tonic::Request<v1::DeleteJobRequest>) -> Answer<()> {
        self.open(request)?;
        Ok(Reply::new(()))
    }

    async fn trigger_job(&self, _: tonic::Request<v1::TriggerJobRequest>) -> Answer<v1::Execution> {
        Ok(Reply::new(v1::Execution { status: 1, ..v1::Execution::default() }))
    }
}

#[tonic::async_trait]
impl ExecutionService for Echo {
    async fn list_executions(
        &self,
        request: tonic::Request<v1::ListExecutionsRequest>,
    ) -> Answer<v1::ListExecutionsResponse> {
        self.open(request)?;
        Ok(Reply::new(v1::ListExecutionsResponse::default()))
    }

    async fn get_execution(&self, _: tonic::Request<v1::GetExecutionRequest>) -> Answer<v1::Execution> {
        Err(Status::not_found("no such execution"))
    }

    async fn cancel_execution(&self, request: tonic::Request<v1::CancelExecutionRequest>) -> Answer<v1::Execution> {
        let v1::CancelExecutionRequest { id, reason } = self.open(request)?;
        Ok(Reply::new(v1::Execution { id, reason: Some(reason), ..v1::Execution::default() }))
    }
}
