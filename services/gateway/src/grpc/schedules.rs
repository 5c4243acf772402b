//! `ScheduleService`.

use std::sync::Arc;

use carillon_core::schedule::{Timetable, preview};
use carillon_proto::v1;
use carillon_proto::v1::preview_schedule_response::Fire;
use carillon_proto::v1::schedule_service_server::ScheduleService;
use carillon_store::idempotency;
use chrono::{DateTime, Utc};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::checks::{Checks, violation_of};
use super::definition::{self, When};
use crate::backend::Backend;
use crate::{observe, values};

const COUNT_DEFAULT: u32 = 10;
const COUNT_MAX: u32 = 1_000;

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
        let request = request.into_inner();
        let when = when(&request, &mut checks);
        let count = checks.number("count", request.count.unwrap_or(COUNT_DEFAULT), 1, COUNT_MAX);
        let start = checks.instant("start_date", request.start_date);
        let end = checks.instant("end_date", request.end_date);
        let from = checks.instant("from", request.from);
        let job = if request.job_id.is_empty() { Uuid::nil() } else { checks.id("job_id", &request.job_id) };
        let timezone = if request.timezone.is_empty() { "UTC" } else { &request.timezone };
        let timetable =
            |from: DateTime<Utc>| Timetable::parse(&definition::spec(&when, timezone, start, end, from), job);
        if let Err(errors) = timetable(from.unwrap_or_default()) {
            checks.schedule(errors.into_iter().map(violation_of));
        }
        checks.finish()?;
        let from = match from {
            Some(from) => from,
            None => self.0.ask(idempotency::begin(self.0.store(), None)).await?.now,
        };
        let timetable = timetable(from).map_err(|errors| {
            let mut checks = Checks::default();
            checks.schedule(errors.into_iter().map(violation_of));
            checks.finish().err().unwrap_or_else(|| Status::invalid_argument("the schedule is wrong"))
        })?;
        Ok(shown(timetable, from, count).await)
    }
}

/// A thousand instants of a sparse schedule take a while: not on a thread that serves others.
async fn shown(timetable: Timetable, from: DateTime<Utc>, count: u32) -> v1::PreviewScheduleResponse {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let work = move || {
        let description = timetable.describe();
        (preview(&timetable, from, count), description)
    };
    let (fires, description) = tokio::task::spawn_blocking(work).await.unwrap_or_default();
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
        description,
    }
}

fn when(request: &v1::PreviewScheduleRequest, checks: &mut Checks) -> When {
    match (request.schedule.is_empty(), request.interval.is_empty()) {
        (false, true) => When::Cron(checks.text("schedule", &request.schedule, 1, 1_024)),
        (true, false) => definition::interval("interval", &request.interval, checks).1,
        (true, true) => {
            checks.refuse("schedule", "must be given, or else interval");
            When::Unreadable
        }
        (false, false) => {
            checks.refuse("interval", "must not be given together with schedule");
            When::Unreadable
        }
    }
}
