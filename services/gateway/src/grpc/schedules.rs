//! `ScheduleService`.

use std::sync::Arc;

use carillon_core::schedule::{PREVIEW_MAX, Preview, Timetable, preview};
use carillon_proto::v1;
use carillon_proto::v1::preview_schedule_response::Fire;
use carillon_proto::v1::schedule_service_server::ScheduleService;
use carillon_store::clock;
use chrono::{DateTime, Utc};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::caller;
use super::checks::Checks;
use super::when::{Frame, Given};
use crate::backend::Backend;
use crate::{observe, values};

const COUNT_DEFAULT: u32 = 10;
const CHOICES: &str = "must be given, or else schedules, interval or execute_at";

/// Answers questions about schedules.
#[derive(Clone, Debug)]
pub(super) struct Schedules(pub(super) Arc<Backend>);

#[tonic::async_trait]
impl ScheduleService for Schedules {
    async fn preview_schedule(
        &self,
        request: Request<v1::PreviewScheduleRequest>,
    ) -> Result<Response<v1::PreviewScheduleResponse>, Status> {
        observe::call("PreviewSchedule", self.preview(request)).await
    }
}

impl Schedules {
    async fn preview(
        &self,
        request: Request<v1::PreviewScheduleRequest>,
    ) -> Result<v1::PreviewScheduleResponse, Status> {
        let mut checks = Checks::of(&request);
        // Nothing of anybody's is looked at; a header that is wrong is so everywhere.
        caller::scope(&request, &mut checks);
        let request = request.into_inner();
        let given = Given {
            schedule: &request.schedule,
            schedules: &request.schedules,
            interval: &request.interval,
            execute_at: request.execute_at.as_ref(),
        };
        let (_, source) = given.read(None, CHOICES, true, &mut checks);
        let most = u32::try_from(PREVIEW_MAX).unwrap_or(u32::MAX);
        let count = checks.number("count", request.count.unwrap_or(COUNT_DEFAULT), 1, most);
        let from = checks.instant("from", request.from);
        let job = if request.job_id.is_empty() { Uuid::nil() } else { checks.id("job_id", &request.job_id) };
        let frame = Frame {
            timezone: request.timezone,
            start_date: request.start_date,
            end_date: request.end_date,
            exclusions: request.exclusions,
            dst_gap: request.dst_gap,
            dst_overlap: request.dst_overlap,
        };
        let when = frame.around(source, &mut checks);
        let without_clock = from.unwrap_or_default();
        let (when, parsed) = when.look(&self.0, move |when| when.parse(job, without_clock)).await?;
        if let Err(violations) = parsed {
            checks.schedule(violations);
        }
        checks.finish()?;
        let from = match from {
            Some(from) => from,
            None => self.0.ask(clock::now(self.0.store())).await?,
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let parsed = move || when.parse(job, from).map_err(|violations| crate::error_response::invalid(&violations, 0));
        self.0.aside(move || Ok(shown(&parsed()?, from, count))).await?
    }
}

fn shown(timetable: &Timetable, from: DateTime<Utc>, count: usize) -> v1::PreviewScheduleResponse {
    let Preview { fires, reason } = preview(timetable, from, count);
    v1::PreviewScheduleResponse {
        fires: fires.iter().map(|fire| values::to_timestamp(fire.at)).collect(),
        details: fires
            .into_iter()
            .map(|fire| Fire {
                fire_at: Some(values::to_timestamp(fire.at)),
                local_time: fire.local,
                note: fire.note.unwrap_or_default(),
            })
            .collect(),
        description: timetable.describe(),
        reason: reason.unwrap_or_default(),
    }
}
