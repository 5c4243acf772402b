//! `ExecutionService`.

use std::sync::Arc;

use carillon_core::limits;
use carillon_proto::v1;
use carillon_proto::v1::execution_service_server::ExecutionService;
use carillon_store::Scope;
use carillon_store::cancels::{self, Cancelled};
use carillon_store::executions::{self, Attempt, By, Execution, Filter, Order};
use chrono::TimeDelta;
use prost::Message;
use tonic::{Request, Response, Status};

use super::checks::Checks;
use super::paging::{Asked, Paging};
use super::{caller, order, words};
use crate::backend::Backend;
use crate::{observe, values};

/// What executions may be listed by.
const ORDERS: [(&str, By); 3] =
    [("scheduled_at", By::Scheduled), ("completed_at", By::Completed), ("duration_ms", By::Duration)];

/// Reads the record of executions, and stops them.
#[derive(Clone, Debug)]
pub(super) struct Executions(pub(super) Arc<Backend>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ExecutionService for Executions {
    async fn list_executions(&self, request: Request<v1::ListExecutionsRequest>) -> Reply<v1::ListExecutionsResponse> {
        observe::call("ListExecutions", Box::pin(self.list(request))).await
    }

    async fn get_execution(&self, request: Request<v1::GetExecutionRequest>) -> Reply<v1::Execution> {
        observe::call("GetExecution", async {
            let mut checks = Checks::of(&request);
            let scope = caller::scope(&request, &mut checks);
            let id = checks.id("id", &request.get_ref().id);
            checks.finish()?;
            let execution = self.0.ask(executions::get(self.0.store(), &scope, id)).await?;
            self.with_attempts(&scope, execution).await
        })
        .await
    }

    async fn cancel_execution(&self, request: Request<v1::CancelExecutionRequest>) -> Reply<v1::Execution> {
        observe::call("CancelExecution", async {
            let mut checks = Checks::of(&request);
            let scope = caller::scope(&request, &mut checks);
            let id = checks.id("id", &request.get_ref().id);
            let reason = checks.text("reason", &request.get_ref().reason, 0, limits::REASON_CHARS_MAX);
            checks.finish()?;
            let cancelling = cancels::cancel(self.0.store(), &scope, id, reason.trim());
            let Cancelled { execution, asked } = self.0.ask(cancelling).await?;
            if asked {
                // R17: after COMMIT, before the answer.
                self.0.tell_cancelled(&[id]).await;
            }
            self.with_attempts(&scope, execution).await
        })
        .await
    }
}

impl Executions {
    async fn with_attempts(&self, scope: &Scope, execution: Execution) -> Result<v1::Execution, Status> {
        let id = execution.id;
        let mut shown = to_wire(execution);
        let attempts = self.0.ask(executions::attempts(self.0.store(), scope, id)).await?;
        shown.attempts = attempts.into_iter().map(attempt_to_wire).collect();
        Ok(shown)
    }

    async fn list(&self, request: Request<v1::ListExecutionsRequest>) -> Result<v1::ListExecutionsResponse, Status> {
        let mut checks = Checks::of(&request);
        let scope = caller::scope(&request, &mut checks);
        let mut request = request.into_inner();
        let asked = Asked {
            limit: request.limit.take(),
            offset: std::mem::take(&mut request.offset),
            page_token: std::mem::take(&mut request.page_token),
            show_total_size: std::mem::take(&mut request.show_total_size),
        };
        let plain = v1::ListExecutionsRequest {
            job_id: request.job_id.clone(),
            status: request.status,
            ..v1::ListExecutionsRequest::default()
        };
        let is_plain = request == plain && !request.job_id.is_empty() && !asked.show_total_size && scope.is_all();
        let filter = [request.encode_to_vec(), caller::told_apart(&scope)].concat();
        let paging = Paging::read(&asked, "executions", &filter, is_plain, &mut checks);
        let order = order::read(&mut checks, &request.order_by, &ORDERS);
        let id = |field: &str, given: &str, checks: &mut Checks| (!given.is_empty()).then(|| checks.id(field, given));
        let filter = Filter {
            job: id("job_id", &request.job_id, &mut checks),
            status: words::read_execution_status(&mut checks, "status", request.status),
            platform_id: caller::filter(&scope, &request.platform_id, &mut checks),
            queue: checks.part("queue", &request.queue),
            handler_name: checks.part("handler_name", &request.handler_name),
            tag: checks.part("tag", &request.tag),
            worker_id: id("worker_id", &request.worker_id, &mut checks),
            error: checks.part("error", &request.error),
            fingerprint: checks.fingerprint("fingerprint", &request.fingerprint),
            scheduled_from: checks.instant("scheduled_from", request.scheduled_from),
            scheduled_before: checks.instant("scheduled_before", request.scheduled_before),
            completed_from: checks.instant("completed_from", request.completed_from),
            completed_before: checks.instant("completed_before", request.completed_before),
            order: order.map(|(by, direction)| Order { by, direction }).unwrap_or_default(),
        };
        order::that(&mut checks, filter.order.by == By::Scheduled || is_narrow(filter), NARROW);
        checks.finish()?;
        let page = self.0.ask(executions::list(self.0.store(), &scope, filter, paging.window)).await?;
        let total = match paging.count_for {
            Some(time) => Some(self.0.ask(executions::count(self.0.store(), &scope, filter, time)).await?),
            None => None,
        };
        let next_page_token = paging.next(&page);
        Ok(v1::ListExecutionsResponse {
            executions: page.items.into_iter().map(to_wire).collect(),
            has_more: !next_page_token.is_empty(),
            next_page_token,
            total_size: total.map(|total| total.least),
            total_size_is_lower_bound: total.is_some_and(|total| !total.is_all),
        })
    }
}

/// What an order that has no index asks of the filter.
const NARROW: &str =
    "needs job_id, or scheduled_from and scheduled_before at most a day apart: all that match must be sorted";

fn is_narrow(filter: Filter<'_>) -> bool {
    let span = filter.scheduled_from.zip(filter.scheduled_before).map(|(from, before)| before - from);
    filter.job.is_some() || span.is_some_and(|span| span <= TimeDelta::days(1))
}

fn attempt_to_wire(attempt: Attempt) -> v1::Attempt {
    v1::Attempt {
        attempt: values::to_count(attempt.attempt.into()),
        status: words::execution_status(attempt.status.0).into(),
        started_at: attempt.started_at.map(values::to_timestamp),
        ended_at: Some(values::to_timestamp(attempt.ended_at)),
        worker_id: attempt.worker_id.map(|id| id.to_string()),
        error: attempt.error,
        error_stack: attempt.error_stack,
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
        fingerprint: execution.fingerprint,
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
        platform_id: execution.platform_id,
        cancel_requested: execution.cancel_requested,
        created_by: execution.created_by,
        attempts: Vec::new(),
        revision: values::to_count(execution.revision),
    }
}
