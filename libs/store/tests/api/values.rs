//! Documents in Postgres: every double reads back with the same bits, and what no client could read costs no page.

use anyhow::Result;
use carillon_core::json;
use carillon_store::jobs::{self, Filter};
use carillon_store::page::PAGE_BYTES_MAX;
use carillon_store::scan::Place;
use carillon_store::{Scope, executions, triggers};
use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bench::{Bench, new_job, window};

/// Bit patterns from everywhere among the finite doubles, the corners and each power of two among them.
fn doubles(count: usize) -> Vec<f64> {
    let mut doubles = vec![0.0, -0.0, f64::MAX, f64::MIN, 5e-324, -5e-324, 0.424_519_189_142_513_96];
    for exponent in 0..=2_046_u64 {
        for mantissa in [0, 1, (1 << 52) - 1] {
            let double = f64::from_bits((exponent << 52) | mantissa);
            doubles.extend([double, -double]);
        }
    }
    let mut runner = TestRunner::deterministic();
    while doubles.len() < count {
        let bits = any::<u64>().new_tree(&mut runner).expect("a number").current();
        doubles.extend(Some(f64::from_bits(bits)).filter(|double| double.is_finite()));
    }
    doubles
}

fn bits(value: &Value) -> Vec<u64> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value}"));
    list.iter().map(|number| number.as_f64().unwrap_or_else(|| panic!("{number}")).to_bits()).collect()
}

/// Some 30,000 of them, in payload, metadata and a trigger's payload, a thousand a document.
#[tokio::test]
async fn every_double_reads_back_with_the_same_bits() -> Result<()> {
    let bench = Bench::new().await?;
    for doubles in doubles(30_000).chunks(1_000) {
        let expected: Vec<u64> = doubles.iter().map(|double| double.to_bits()).collect();
        let mut new = new_job(bench.now().await?);
        new.definition.payload = json!({ "n": doubles });
        new.definition.metadata = json!({ "n": doubles });
        let created = jobs::create(&bench.store, &Scope::ALL, new, None).await?;
        let read = jobs::get(&bench.store, &Scope::ALL, created.id).await?.definition;
        assert_eq!(bits(&read.payload["n"]), expected);
        assert_eq!(bits(&read.metadata["n"]), expected);
        let trigger =
            triggers::NewTrigger { payload: Some(json!({ "n": doubles })), ..crate::trigger::new(created.id) };
        let execution = triggers::create(&bench.store, &Scope::ALL, &trigger, None).await?.execution.id;
        // As a handler gets it, and as its result is written.
        let (payload, result): (String, String) =
            sqlx::query_as("SELECT payload::text, $2::jsonb::text FROM job_triggers WHERE execution_id = $1")
                .bind(execution)
                .bind(json::text(&json!(doubles)))
                .fetch_one(&bench.pool)
                .await?;
        let payload: Value = serde_json::from_str(&payload)?;
        assert_eq!(bits(&payload["n"]), expected);
        assert_eq!(bits(&serde_json::from_str(&result)?), expected);
    }
    Ok(())
}

/// What is counted before it is written is what is kept, but for a space behind each comma and colon.
#[tokio::test]
async fn text_is_counted_as_postgres_keeps_it() -> Result<()> {
    let bench = Bench::new().await?;
    for double in doubles(0) {
        let kept: i32 = sqlx::query_scalar("SELECT octet_length($1::jsonb::text)")
            .bind(json::text(&json!(double)))
            .fetch_one(&bench.pool)
            .await?;
        assert_eq!(usize::try_from(kept)?, json::text_bytes(&json!(double)), "{double:e}");
    }
    Ok(())
}

/// Rows from before there were bounds, or written by hand.
#[tokio::test]
async fn what_cannot_be_read_is_replaced_and_its_page_is_read() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let rows = [
        ("'[1]'", None),
        ("(repeat('[', 50) || repeat(']', 50))", Some("nested 50 levels deep: 30 can be shown")),
        ("(repeat('[', 2000) || repeat(']', 2000))", Some("nested 2000 levels deep: 30 can be shown")),
        ("'1e400'", Some("number out of range")),
        ("('\"' || repeat('x', 5000000) || '\"')", Some("5000005 bytes on the wire: 1572864 can be shown")),
        ("('[' || repeat('0,', 200000) || '0]')", Some("2200016 bytes on the wire: 1572864 can be shown")),
    ];
    for (seconds, (sql, _)) in (1..).zip(&rows) {
        let execution = bench.execution(job.id, now - TimeDelta::seconds(seconds), "SUCCESS").await?;
        let statement =
            format!("UPDATE job_executions SET result = {sql}::jsonb, metadata = {sql}::jsonb WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(statement)).bind(execution).execute(&bench.pool).await?;
    }
    let mut read = Vec::new();
    let filter = executions::Filter { job: Some(job.id), ..executions::Filter::default() };
    let mut from = Some(Place::first(0));
    while let Some(place) = from {
        let page = executions::list(&bench.store, &Scope::ALL, filter, window(100, place)).await?;
        assert!(!page.items.is_empty());
        read.extend(page.items);
        from = page.next;
    }
    assert_eq!(read.len(), rows.len());
    for (execution, (sql, why)) in read.iter().zip(rows) {
        for value in [&execution.result, &execution.metadata] {
            let value = value.as_ref().expect("it is there");
            match why {
                None => assert_eq!(*value, json!([1])),
                Some(why) => assert!(
                    value[json::UNREADABLE].as_str().is_some_and(|said| said.starts_with(why)),
                    "{sql}: {value}"
                ),
            }
        }
        assert_eq!(executions::get(&bench.store, &Scope::ALL, execution.id).await?, *execution);
    }

    sqlx::query("UPDATE jobs SET payload = (repeat('{\"a\":', 50) || '1' || repeat('}', 50))::jsonb WHERE id = $1")
        .bind(job.id)
        .execute(&bench.pool)
        .await?;
    let page = jobs::list(&bench.store, &Scope::ALL, Filter::default(), window(100, Place::first(0))).await?;
    assert_eq!(page.items[0].definition.payload, json!({"@unreadable": "nested 50 levels deep: 30 can be shown"}));
    Ok(())
}

/// A list of zeros has four times as many bytes on the wire as in Postgres: pages are bounded by those on the wire.
#[tokio::test]
async fn a_page_is_bounded_in_bytes_on_the_wire() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut ids: Vec<Uuid> = Vec::new();
    for minutes in 0..5 {
        let mut new = new_job(now + TimeDelta::minutes(minutes));
        new.definition.payload = json!({ "n": vec![0; 80_000] });
        ids.insert(0, jobs::create(&bench.store, &Scope::ALL, new, None).await?.id);
    }
    let mut seen = Vec::new();
    while seen.len() < ids.len() {
        let from = Place::first(u32::try_from(seen.len())?);
        let page = jobs::list(&bench.store, &Scope::ALL, Filter::default(), window(100, from)).await?;
        let bytes: usize = page.items.iter().map(|job| json::wire_bytes(&job.definition.payload)).sum();
        assert!(bytes <= PAGE_BYTES_MAX, "{bytes}");
        assert_eq!(page.next.is_some(), seen.len() + page.items.len() < ids.len());
        seen.extend(page.items.into_iter().map(|job| job.id));
    }
    assert_eq!(seen, ids);
    Ok(())
}
