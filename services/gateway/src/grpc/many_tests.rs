//! Many jobs at once, without neighbours: what is refused before anybody is asked, and how large an answer gets.

use std::time::Duration;

use carillon_core::error::FieldViolation;
use carillon_proto::v1;
use carillon_proto::v1::batch_create_jobs_result::Result as Outcome;
use carillon_proto::v1::job_service_server::JobService as _;
use carillon_store::Error;
use carillon_store::jobs::NewJob;
use chrono::DateTime;
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Request};
use uuid::Uuid;

use super::checks::{Checks, Wrong};
use super::job::Rules;
use super::jobs::Jobs;
use super::many::{Answer, LOOKING_MAX, Reading};
use super::tests::{alone, cron, fields, post, wrong};
use crate::error_response::invalid;

fn reading(looking_max: Duration) -> Reading {
    let rules = Rules { job_type: None, allow_past: false, payload_bytes_max: 1_024 };
    Reading { rules, queues_max: 9, now: DateTime::from_timestamp(1_800_000_000, 0), looking_max }
}

fn read(reading: Reading, jobs: Vec<v1::Job>) -> Vec<Result<NewJob, Vec<String>>> {
    let of_each = vec![Checks::default(); jobs.len()];
    let text = |wrong: Wrong| wrong.violations.iter().map(ToString::to_string).collect();
    reading.all(jobs, of_each).into_iter().map(|read| read.map_err(text)).collect()
}

fn keyed(key: &str, platform: Option<&str>) -> v1::Job {
    v1::Job { key: Some(key.to_owned()), platform_id: platform.map(str::to_owned), ..cron() }
}

#[tokio::test]
async fn every_wrong_field_of_every_job_is_named_by_its_path() {
    let odd = v1::Job { schedule: "61 * * * *".into(), tags: vec![String::new()], ..cron() };
    let untimed = v1::Job { schedule: String::new(), max_retries: Some(101), ..cron() };
    for allow_partial_success in [false, true] {
        let request = v1::BatchCreateJobsRequest {
            jobs: vec![cron(), odd.clone(), untimed.clone()],
            request_id: "\0".into(),
            allow_partial_success,
            ..v1::BatchCreateJobsRequest::default()
        };
        let status = Jobs(alone()).batch_create_jobs(Request::new(request)).await.unwrap_err();
        let fields: Vec<String> = wrong(&status).iter().map(|wrong| wrong.split(':').next().unwrap().into()).collect();
        let of_jobs = ["jobs[1].schedule", "jobs[1].tags[0]", "jobs[2].max_retries", "jobs[2].schedule"];
        let of_jobs = if allow_partial_success { &[][..] } else { &of_jobs[..] };
        assert_eq!(
            fields,
            [of_jobs, &["request_id"]].concat(),
            "what is wrong with the request itself refuses it whole"
        );
    }
}

#[tokio::test]
async fn there_are_one_to_a_thousand() {
    for count in [0, 1_001] {
        let jobs = vec![v1::Job::default(); count];
        let request = v1::BatchCreateJobsRequest { jobs, ..v1::BatchCreateJobsRequest::default() };
        let status = Jobs(alone()).batch_create_jobs(Request::new(request)).await.unwrap_err();
        assert_eq!(wrong(&status), [format!("jobs: must be 1 to 1000, are {count}")]);
    }
    let jobs = vec![cron(); 1_000];
    let request = v1::BatchCreateJobsRequest { jobs, ..v1::BatchCreateJobsRequest::default() };
    let status = Jobs(alone()).batch_create_jobs(Request::new(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "nothing is wrong with them: {status}");
}

#[tokio::test]
async fn over_json_what_could_not_be_read_is_named_beside_what_is_wrong() {
    let backend = alone();
    let job = |name: &str| json!({"name": name, "schedule": "0 2 * * *", "handler_name": "a:b"});
    let mut jobs = vec![job("n"), json!(7), job(""), json!({"name": "n", "schedule": 5, "handler_name": "a:b"})];
    let body = json!({"jobs": jobs, "nonsense": 1});
    let (status, answer) = post(&backend, "/jobs/batch-create", body).await;
    let found = fields(&answer);
    assert_eq!(status, 400, "{answer}");
    assert_eq!(
        found,
        [
            "jobs[1]: must be an object, is 7",
            "jobs[2].name: must be given",
            "jobs[3].schedule: must be a string, is 5",
            "nonsense: is not a field of BatchCreateJobsRequest",
        ]
    );
    jobs.clear();
    let (_, answer) = post(&backend, "/jobs/batch-create", json!({ "jobs": jobs })).await;
    assert_eq!(fields(&answer), ["jobs: must be 1 to 1000, are 0"]);
    let (_, answer) = post(&backend, "/jobs/batch-create", json!({"jobs": {}})).await;
    assert_eq!(fields(&answer), ["jobs: must be a list, is an object"]);
}

#[test]
fn a_key_that_is_given_twice_goes_to_the_first_that_is_right() {
    let nameless = v1::Job { name: String::new(), ..keyed("a", None) };
    let jobs = vec![nameless, keyed("a", None), keyed("b", None), keyed("a", Some("p")), keyed("a", None), cron()];
    let read = read(reading(LOOKING_MAX), jobs);
    let refused: Vec<Vec<String>> = read.iter().map(|read| read.as_ref().err().cloned().unwrap_or_default()).collect();
    let none: Vec<String> = Vec::new();
    let twice = vec!["jobs[4].key: is the key of jobs[1] already".to_owned()];
    let nameless = vec!["jobs[0].name: must be given".to_owned()];
    assert_eq!(refused, [nameless, none.clone(), none.clone(), none.clone(), twice, none]);
    let ids: Vec<Uuid> = read.into_iter().filter_map(Result::ok).map(|new| new.id).collect();
    assert!(ids.is_sorted(), "lists show them in the order that they were given in");
}

#[test]
fn schedules_that_are_dear_to_search_have_a_time_together() {
    let dear = v1::Job { schedules: vec!["0 3 * * *".into()], ..cron() };
    let odd = v1::Job { schedules: vec!["0 3 * * *".into()], name: String::new(), ..cron() };
    let jobs = || vec![dear.clone(), cron(), dear.clone(), odd.clone(), cron()];
    let refused = |looking_max| -> Vec<Vec<String>> {
        read(reading(looking_max), jobs()).into_iter().map(|read| read.err().unwrap_or_default()).collect()
    };
    let named = "jobs[3].name: must be given".to_owned();
    assert_eq!(refused(LOOKING_MAX), [vec![], vec![], vec![], vec![named.clone()], vec![]]);
    let rule = "cannot be searched beside the others: those before it took 1ns already, create it in a smaller batch";
    let refused = refused(Duration::from_nanos(1));
    let late = |place: usize| format!("jobs[{place}].schedules: {rule}");
    assert_eq!(refused, [vec![], vec![], vec![late(2)], vec![named, late(3)], vec![]], "light ones go on");
}

#[test]
fn an_answer_is_bounded_whatever_is_wrong() {
    let violations: Vec<FieldViolation> =
        (0..50).map(|_| FieldViolation::new("ä".repeat(300), "ö".repeat(500))).collect();
    let status = invalid(&violations, 0);
    let answer = Answer { refused: vec![Some(status); 1_000], ids: Vec::new(), validate_only: false }.of(&[]);
    assert!(answer.encoded_len() < 2 * 1024 * 1024, "{}", answer.encoded_len());
    let statuses: Vec<&tonic_types::Status> = answer
        .results
        .iter()
        .map(|result| match &result.result {
            Some(Outcome::Status(status)) => status,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(!statuses[0].details.is_empty() && statuses[999].details.is_empty());
    assert!(
        statuses.iter().all(|status| status.code == i32::from(Code::InvalidArgument) && !status.message.is_empty())
    );
}

#[test]
fn results_stand_in_the_order_of_the_jobs() {
    let id = Uuid::from_u128(7);
    let taken = Error::AlreadyExists { what: "job", id };
    let refused = vec![None, Some(invalid(&[FieldViolation::new("jobs[1].name", "must be given")], 0)), None];
    let mut answer = Answer { refused, ids: vec![id, Uuid::nil()], validate_only: false };
    let messages = |answer: &Answer| -> Vec<String> {
        let outcomes = [Ok(()), Err(Error::AlreadyExists { what: "job", id })];
        let of = |result: &v1::BatchCreateJobsResult| match &result.result {
            Some(Outcome::Id(id)) => id.clone(),
            Some(Outcome::Status(status)) => status.message.clone(),
            None => panic!("neither"),
        };
        answer.of(&outcomes).results.iter().map(of).collect()
    };
    let of_key = format!("jobs[2].key: {taken}");
    let expected = [id.to_string(), "jobs[1].name: must be given".to_owned(), of_key.clone()];
    assert_eq!(messages(&answer), expected);
    answer.validate_only = true;
    assert_eq!(messages(&answer), ["".to_owned(), expected[1].clone(), of_key]);
}
