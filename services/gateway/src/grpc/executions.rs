//! `ExecutionService`.

use std::sync::Arc;

use carillon_proto::v1;
use carillon_proto::v1::execution_service_server::ExecutionService;
use carillon_store::executions::{self, Execution};
use tonic::{Request, Response, Status};

use super::checks::Checks;
use super::{slice, words};
use crate::backend::Backend;
use crate::{observe, values};

/// Reads the record of executions.
#[derive(Clone, Debug)]
pub(super) struct Executions(pub(super) Arc<Backend>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ExecutionService for Executions {
    async fn list_job_executions(
        &self,
        request: Request<v1::ListJobExecutionsRequest>,
    ) -> Reply<v1::ListJobExecutionsResponse> {
        observe::call("ListJobExecutions", self.list(request)).await
    }

    async fn get_execution(&self, request: Request<v1::GetExecutionRequest>) -> Reply<v1::Execution> {
        observe::call("GetExecution", async {
            let mut checks = Checks::of(&request);
            let id = checks.id("id", &request.get_ref().id);
            checks.finish()?;
            Ok(to_wire(self.0.ask(executions::get(self.0.store(), id)).await?))
        })
        .await
    }
}

impl Executions {
    async fn list(
        &self,
        request: Request<v1::ListJobExecutionsRequest>,
    ) -> Result<v1::ListJobExecutionsResponse, Status> {
        let mut checks = Checks::of(&request);
        let request = request.into_inner();
        let job = checks.id("job_id", &request.job_id);
        let status = words::read_execution_status(&mut checks, "status", request.status);
        let slice = slice(&mut checks, request.limit, request.offset);
        checks.finish()?;
        let page = self.0.ask(executions::list(self.0.store(), job, status, slice)).await?;
        Ok(v1::ListJobExecutionsResponse {
            executions: page.items.into_iter().map(to_wire).collect(),
            has_more: page.has_more,
        })
    }
}

pub(super) fn to_wire(execution: Execution) -> v1::Execution {
    let attempt = values::to_count(execution.attempt.into());
    v1::Execution {
        id: execution.id.to_string(),
        job_id: execution.job_id.to_string(),
        status: words::execution_status(execution.status).into(),
        scheduled_at: Some(values::to_timestamp(execution.scheduled_at)),
        started_at: execution.started_at.map(values::to_timestamp),
        completed_at: execution.completed_at.map(values::to_timestamp),
        duration_ms: execution.duration_ms.map(values::to_count),
        result: execution.result.map(values::to_value),
        error: execution.error,
        error_stack: execution.error_stack,
        retry_count: attempt.saturating_sub(1),
        max_retries: values::to_count(execution.max_retries.into()),
        next_retry_at: execution.next_retry_at.map(values::to_timestamp),
        worker_id: execution.worker_id.map(|id| id.to_string()),
        metadata: execution.metadata.map(values::to_struct),
        trace_id: execution.trace_id,
        span_id: execution.span_id,
        parent_span_id: execution.parent_span_id,
        attempt,
        reason: execution.reason,
        queue: execution.queue,
        cancel_requested: execution.cancel_requested,
        created_by: execution.created_by,
        revision: values::to_count(execution.revision),
    }
}
