//! An execution's metadata: from its trigger, from its handler, through all attempts.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, FINAL, id_of};
use crate::world::{Plan, SOON, World};

async fn job(api: &Api, handler: &str, payload: &Value) -> Uuid {
    let body = json!({
        "name": handler, "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload, "allow_overlap": true,
        "max_retries": 1, "retry_delay_ms": 50,
    });
    id_of(&api.create("cron", &body).await)
}

#[tokio::test]
async fn an_execution_has_what_its_trigger_gave_and_what_its_handler_set_in_any_attempt() {
    let mut world = World::start("metadata", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let given = json!({"ticket": 7, "by": {"team": "search"}});
    let mut cases = Vec::new();
    for (handler, payload, metadata, expected) in [
        ("test:echo", json!({}), Some(&given), given.clone()),
        ("test:echo", json!({}), None, Value::Null),
        ("test:note", json!({"metadata": {"rows": 12}}), None, json!({"rows": 12, "attempt 1": "was here"})),
        (
            "test:note",
            json!({"metadata": {"rows": 12, "ticket": null}, "times": 1}),
            Some(&given),
            json!({"by": {"team": "search"}, "rows": 12, "attempt 1": "was here", "attempt 2": "was here"}),
        ),
    ] {
        let job = job(&api, handler, &payload).await;
        let body = metadata.map_or(json!({}), |metadata| json!({"metadata": metadata}));
        let asked = api.trigger(job, &body).await;
        world.triggered.insert(asked);
        cases.push((asked, expected));
    }
    for (execution, expected) in cases {
        let row = api.execution_in(execution, &FINAL).await;
        assert_eq!((&row["status"], &row["metadata"]), (&json!("SUCCESS"), &expected), "{row}");
        if row["handler_name"] == "test:note" {
            assert_eq!(row["result"], expected, "the handler read what it had set");
        }
    }

    // Too much, of a trigger and of a handler.
    let large = json!({"text": "x".repeat(16 * 1024)});
    let echo = job(&api, "test:echo", &json!({})).await;
    let refused = api.post(&format!("/jobs/{echo}/trigger"), &json!({"metadata": large})).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert!(refused.body.to_string().contains("must be at most 16384 bytes of JSON, is"), "{}", refused.body);
    let noting = job(&api, "test:note", &json!({"metadata": large})).await;
    let noted = api.trigger(noting, &json!({"metadata": given})).await;
    world.triggered.insert(noted);
    let row = api.execution_in(noted, &FINAL).await;
    assert_eq!((&row["status"], &row["attempt"], &row["metadata"]), (&json!("FAILED"), &json!(1), &given), "{row}");
    assert!(row["error"].as_str().is_some_and(|error| error.ends_with("16384 are allowed")), "{row}");
    world.judge(SOON).await;
}
