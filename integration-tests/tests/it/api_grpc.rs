//! The gRPC side of the API: the same calls through the generated client, error details, health and reflection.

use anyhow::ensure;
use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{
    CreateJobRequest, DeleteJobRequest, ExecutionStatus, GetExecutionRequest, GetJobRequest, Job, JobStatus, JobType,
    ListExecutionsRequest, ListJobsRequest, PauseJobRequest, Priority, ResumeJobRequest, TriggerJobRequest,
};
use carillon_testkit::StopMode;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::world::{Plan, SOON, World, soon};

async fn channel(world: &World) -> Channel {
    let url = world.cluster.gateway_url();
    Channel::from_shared(url).expect("a URL").connect().await.expect("the gateway listens")
}

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

fn cron() -> Job {
    Job {
        name: "Daily Cleanup".into(),
        schedule: "0 2 * * *".into(),
        handler_name: "test:echo".into(),
        created_by: "admin".into(),
        ..Job::default()
    }
}

fn wrong_fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let mut fields: Vec<String> = violations.into_iter().map(|violation| violation.field).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn a_job_lives_its_life_over_grpc() {
    let mut world = World::start("grpc_life", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let channel = channel(&world).await;
    let mut jobs = JobServiceClient::new(channel.clone());
    let mut executions = ExecutionServiceClient::new(channel);

    let request = Job {
        priority: Priority::High.into(),
        timezone: "Europe/Berlin".into(),
        tags: vec!["nightly".into()],
        ..cron()
    };
    let job = jobs.create_cron_job(CreateJobRequest::from(request)).await.unwrap().into_inner();
    assert_eq!((job.r#type(), job.status(), job.priority()), (JobType::Cron, JobStatus::Active, Priority::High));
    assert_eq!(
        (job.max_retries, job.timeout_ms, job.tags.as_slice()),
        (Some(3), Some(300_000), ["nightly".to_owned()].as_slice())
    );
    assert!(job.next_run.is_some());
    let id = job.id.clone();
    assert_eq!(jobs.get_job(GetJobRequest { id: id.clone() }).await.unwrap().into_inner(), job);

    let execution = jobs.trigger_job(TriggerJobRequest { id: id.clone(), ..TriggerJobRequest::default() });
    let execution = execution.await.unwrap().into_inner();
    assert_eq!(execution.status(), ExecutionStatus::Queued);
    world.triggered.insert(execution.id.parse().unwrap());
    world.judge(SOON).await;
    let request = GetExecutionRequest { id: execution.id.clone() };
    let execution = executions.get_execution(request).await.unwrap().into_inner();
    assert_eq!((execution.status(), execution.attempt), (ExecutionStatus::Success, 1));
    // A page ends with its time too.
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListExecutionsRequest { job_id: id.clone(), page_token, ..ListExecutionsRequest::default() };
        let page = executions.list_executions(request).await.unwrap().into_inner();
        listed.extend(page.executions);
        page_token = page.next_page_token;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(listed, [execution]);

    let paused = jobs.pause_job(PauseJobRequest { id: id.clone() }).await.unwrap().into_inner();
    assert_eq!((paused.status(), paused.next_run), (JobStatus::Paused, None));
    let resumed = jobs.resume_job(ResumeJobRequest { id: id.clone() }).await.unwrap().into_inner();
    assert_eq!((resumed.status(), resumed.next_run), (JobStatus::Active, job.next_run));
    jobs.delete_job(DeleteJobRequest { id: id.clone() }).await.unwrap();
    let refused =
        jobs.trigger_job(TriggerJobRequest { id: id.clone(), ..TriggerJobRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    let request =
        Job { name: "often".into(), interval: "1h".into(), handler_name: "test:echo".into(), ..Job::default() };
    let recurring = jobs.create_recurring_job(CreateJobRequest::from(request)).await.unwrap().into_inner();
    assert_eq!((recurring.schedule.as_str(), recurring.interval.as_str()), ("", "1h"));
    let request = ListJobsRequest { r#type: JobType::Recurring.into(), ..ListJobsRequest::default() };
    let list = jobs.list_jobs(request).await.unwrap().into_inner();
    assert_eq!(list.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&recurring.id]);
    let request = ListJobsRequest { status: JobStatus::Cancelled.into(), ..ListJobsRequest::default() };
    let list = jobs.list_jobs(request).await.unwrap().into_inner();
    assert_eq!(list.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&id]);
}

#[tokio::test]
async fn errors_carry_their_code_and_details() {
    let world = World::start("grpc_errors", gateway()).await;
    let mut jobs = JobServiceClient::new(channel(&world).await);
    let request = Job {
        name: String::new(),
        schedule: "61 * * * *".into(),
        timezone: "Mars/Olympus".into(),
        max_retries: Some(101),
        priority: 99,
        ..cron()
    };
    let status = jobs.create_cron_job(CreateJobRequest::from(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(wrong_fields(&status), ["max_retries", "name", "priority", "schedule", "timezone"], "{status}");

    let request = Job { name: "n".into(), handler_name: "a:b".into(), ..Default::default() };
    let status = jobs.create_one_time_job(CreateJobRequest::from(request)).await.unwrap_err();
    assert_eq!((status.code(), wrong_fields(&status)), (Code::InvalidArgument, vec!["execute_at".to_owned()]));
    let status = jobs.list_jobs(ListJobsRequest { limit: Some(1_001), ..Default::default() }).await.unwrap_err();
    assert_eq!((status.code(), wrong_fields(&status)), (Code::InvalidArgument, vec!["limit".to_owned()]));
    let status = jobs.get_job(GetJobRequest { id: "42".into() }).await.unwrap_err();
    assert_eq!((status.code(), wrong_fields(&status)), (Code::InvalidArgument, vec!["id".to_owned()]));
    let unknown = Uuid::now_v7().to_string();
    let status = jobs.get_job(GetJobRequest { id: unknown.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains(&unknown), "{status}");

    // The same message over JSON has the same fingerprint: a key knows no encoding.
    let request = CreateJobRequest { request_id: "k".into(), ..cron().into() };
    let job = jobs.create_cron_job(request.clone()).await.unwrap().into_inner();
    let given = cron();
    let body = json!({
        "name": given.name, "schedule": given.schedule, "handler_name": given.handler_name,
        "created_by": given.created_by, "request_id": "k",
    });
    assert_eq!(world.api().create("cron", &body).await["id"], json!(job.id));
    let other = CreateJobRequest { job: Some(Job { name: "other".into(), ..given }), ..request };
    let status = jobs.create_cron_job(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
}

#[tokio::test]
async fn without_postgres_it_is_unavailable_with_a_hint_and_health_says_so() {
    let world = World::start("grpc_unavailable", Plan { own_postgres: true, ..gateway() }).await;
    let channel = channel(&world).await;
    let mut jobs = JobServiceClient::new(channel.clone());
    let postgres = world.postgres.as_ref().expect("its own");
    health_is(&channel, ServingStatus::Serving).await;
    postgres.stop(StopMode::Fast);
    let status = jobs.create_cron_job(CreateJobRequest::from(cron())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let hint = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(hint.is_some_and(|delay| !delay.is_zero()), "{hint:?}");
    health_is(&channel, ServingStatus::NotServing).await;
    postgres.start_again().expect("it starts");
    health_is(&channel, ServingStatus::Serving).await;
    jobs.create_cron_job(CreateJobRequest::from(cron())).await.unwrap();
}

/// Of the server as a whole and of each service.
async fn health_is(channel: &Channel, expected: ServingStatus) {
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "carillon.v1.JobService", "carillon.v1.ExecutionService"] {
        soon(&format!("{service:?} to be {expected:?}"), || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut health = health.clone();
            async move {
                let status = health.check(request).await?.into_inner().status();
                ensure!(status == expected, "{status:?}");
                anyhow::Ok(())
            }
        })
        .await;
    }
    let unknown = HealthCheckRequest { service: "carillon.v1.Nothing".into() };
    let refused = health.check(unknown).await.expect_err("there is no such service");
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_names_the_services_and_their_files() {
    let world = World::start("grpc_reflection", gateway()).await;
    let mut reflection = ServerReflectionClient::new(channel(&world).await);
    let ask = |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let requests = vec![
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("carillon.v1.JobService".into())),
    ];
    let answers = reflection.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let mut services = Vec::new();
    let mut files = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                services.extend(list.service.into_iter().map(|service| service.name));
            }
            Some(MessageResponse::FileDescriptorResponse(found)) => files += found.file_descriptor_proto.len(),
            other => panic!("{other:?}"),
        }
    }
    for service in ["carillon.v1.JobService", "carillon.v1.ExecutionService", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|name| name == service), "{service} is not in {services:?}");
    }
    assert!(files >= 1);
}

/// As Python's client asks.
#[tokio::test]
async fn reflection_answers_in_its_older_form_too() {
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
    let world = World::start("grpc_reflection_alpha", gateway()).await;
    let mut reflection = ServerReflectionClient::new(channel(&world).await);
    let list = MessageRequest::ListServices(String::new());
    let ask =
        tonic_reflection::pb::v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().expect("an answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == "carillon.v1.JobService"), "{list:?}");
}
