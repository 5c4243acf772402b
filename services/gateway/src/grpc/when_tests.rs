//! Schedules as the API takes them: which field is blamed for what, and what a preview says beside its instants.

use carillon_proto::v1;
use carillon_proto::v1::schedule_service_server::ScheduleService;
use chrono::{DateTime, Utc};
use tonic::Request;
use uuid::Uuid;

use super::checks::Checks;
use super::job::{self, Rules};
use super::schedules::Schedules;
use super::tests::{alone, cron, read};
use super::when;
use crate::values;

fn instant(text: &str) -> Option<prost_types::Timestamp> {
    Some(values::to_timestamp(text.parse().unwrap()))
}

fn pattern(cron: &str, timezone: &str) -> v1::Exclusion {
    v1::Exclusion { cron: Some(cron.into()), timezone: Some(timezone.into()), ..v1::Exclusion::default() }
}

/// Why a job is refused that is created on 27 November 2026.
fn refused(job: v1::Job) -> String {
    let mut checks = Checks::default();
    let (_, when) = read(job, &mut checks);
    assert!(checks.is_clean(), "{checks:?}");
    let now: DateTime<Utc> = "2026-11-27T12:00:00Z".parse().unwrap();
    let wrong = when.first_fire(Uuid::nil(), now).unwrap_err();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    wrong[0].to_string()
}

#[test]
fn exclusions_that_cannot_be_searched_are_refused_as_such() {
    let request = v1::Job {
        schedule: "* * * * *".into(),
        exclusions: vec![pattern("*/2 * * * *", "UTC"), pattern("1-59/2 * * * *", "Asia/Tokyo")],
        ..cron()
    };
    let rule = refused(request);
    let begin = "exclusions: cannot be searched: a search that began at 2026-11-27T12:00:00Z found nothing up to ";
    assert!(rule.starts_with(begin) && rule.contains("make them fewer and coarser"), "{rule}");
}

#[test]
fn the_field_that_leaves_nothing_is_named_as_the_client_knows_it() {
    let once = v1::Job {
        name: "n".into(),
        handler_name: "a:b".into(),
        execute_at: instant("2020-01-01T00:00:00Z"),
        start_date: instant("2021-01-01T00:00:00Z"),
        ..v1::Job::default()
    };
    let before = "execute_at: 2020-01-01T00:00:00Z is before start_date, 2021-01-01T00:00:00Z";
    assert_eq!(refused(once), before);
    let late = v1::Job { schedule: "0 0 0 1 1 ? 2027".into(), start_date: instant("2028-01-01T00:00:00Z"), ..cron() };
    let rule = "start_date: can never fire: its last instant is before start_date";
    assert_eq!(refused(late), rule);
    let short = v1::Job {
        schedule: "0 0 1 1 *".into(),
        start_date: instant("2026-12-01T00:00:00Z"),
        end_date: instant("2026-12-30T00:00:00Z"),
        exclusions: vec![v1::Exclusion { date: Some("2026-12-25".into()), ..v1::Exclusion::default() }],
        ..cron()
    };
    let rule = "end_date: can never fire: none of its instants lies between start_date and end_date";
    assert_eq!(refused(short), rule);
}

#[test]
fn time_zones_are_shown_as_the_database_spells_them() {
    let request =
        v1::Job { timezone: "europe/berlin".into(), exclusions: vec![pattern("* 0-5 * * *", "ASIA/TOKYO")], ..cron() };
    let (definition, _) = read(request, &mut Checks::default());
    assert_eq!(definition.timezone, "Europe/Berlin");
    let shown: Vec<v1::Exclusion> = definition.exclusions.into_iter().map(when::exclusion_to_wire).collect();
    assert_eq!(shown, [pattern("* 0-5 * * *", "Asia/Tokyo")]);
}

#[test]
fn dates_that_no_instant_can_have_are_refused() {
    let mut checks = Checks::default();
    let far = v1::Exclusion { date: Some("+10000-01-01".into()), ..v1::Exclusion::default() };
    let _ = read(v1::Job { exclusions: vec![far], ..cron() }, &mut checks);
    let rule = "exclusions[0].date: must be a date of the years 1 to 9999, is \"+10000-01-01\"";
    assert_eq!(super::tests::wrong(&checks.finish().unwrap_err()), [rule]);
}

#[tokio::test]
async fn a_preview_says_why_it_is_short_and_whose_h_it_shows() {
    let schedules = Schedules(alone());
    let preview = async |request| schedules.preview_schedule(Request::new(request)).await.unwrap().into_inner();
    let request = v1::PreviewScheduleRequest {
        schedule: "0 0 0 1 1 ? 2020".into(),
        from: instant("2026-01-01T00:00:00Z"),
        ..v1::PreviewScheduleRequest::default()
    };
    let past = preview(request.clone()).await;
    let reason = "no fire from 2026-01-01T00:00:00Z on: its last instant was 2020-01-01T00:00:00Z";
    assert_eq!((past.fires.len(), past.reason.as_str()), (0, reason));
    let hashed = preview(v1::PreviewScheduleRequest { schedule: "H H * * *".into(), ..request.clone() }).await;
    assert!(hashed.description.contains("(no job was named, so these values of H are only an example)"), "{hashed:?}");
    assert_eq!((hashed.fires.len(), hashed.reason.as_str()), (10, ""));
    let last =
        v1::PreviewScheduleRequest { schedule: "@every 10d".into(), from: instant("9999-12-15T00:00:00Z"), ..request };
    let last = preview(last).await;
    assert_eq!(last.fires, [instant("9999-12-25T00:00:00Z").unwrap()]);
    assert_eq!(last.reason, "no further fire: everything ends with the year 9999");
}

/// What `docs/schedules.md` says of an instant, which is decided where there is a clock.
#[test]
fn the_page_about_single_instants_is_true() {
    const PAGE: &str = include_str!("../../../../docs/schedules.md");
    let mut examples = 0;
    for block in PAGE.split("```json created ").skip(1) {
        let (now, rest) = block.split_once('\n').unwrap();
        let (now, allow_past) = now.strip_suffix("?allow_past=true").map_or((now, false), |now| (now, true));
        let (request, rest) = rest.split_once("```\n```json answer\n").unwrap();
        let answer: serde_json::Value = serde_json::from_str(rest.split_once("```").unwrap().0).unwrap();
        let request: serde_json::Value = serde_json::from_str(request).unwrap();
        let mut checks = Checks::default();
        let job = v1::Job {
            name: "n".into(),
            handler_name: "a:b".into(),
            execute_at: instant(request["execute_at"].as_str().unwrap()),
            ..v1::Job::default()
        };
        let rules = Rules { job_type: None, allow_past, payload_bytes_max: 1_024 };
        let (_, when) = job::read(job, rules, &mut checks);
        assert!(checks.is_clean(), "{checks:?}");
        let found = match when.first_fire(Uuid::nil(), now.parse().unwrap()) {
            Ok((_, first)) => serde_json::json!({"next_run": carillon_core::schedule::utc(first.unwrap())}),
            Err(wrong) => wrong.iter().map(|wrong| (wrong.field.clone(), wrong.rule.clone())).collect(),
        };
        assert_eq!(found, answer);
        examples += 1;
    }
    assert_eq!(examples, 2);
}
