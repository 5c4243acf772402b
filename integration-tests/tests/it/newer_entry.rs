//! A stream holds an entry that this version cannot read (row 20), as during an upgrade: it is set aside, kept for whoever can,
//! and said once; all else goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use carillon_testkit::Role;

use crate::load::HUNDREDS;
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

const LEASE: Duration = Duration::from_secs(4);
/// What is pending is listed anew by whoever holds it each quarter of a lease.
const LISTED_EACH: Duration = Duration::from_secs(1);

#[tokio::test]
async fn h10_an_entry_of_a_newer_form_is_set_aside_and_reported_and_all_else_goes_on() {
    let mut world = World::start("newer_entry", Plan::default().protocol(LEASE / 10, LEASE)).await;
    let stream = world.stream("default", "MEDIUM");
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(30).await;
    let began = Instant::now();
    let added = world.redis.command(&["XADD", &stream, "*", "e", r#"{"v":99,"shape":"of tomorrow"}"#]);
    let id = added.expect("redis answers").text().expect("an id").to_owned();
    soon("it to be reported", || {
        let aside: anyhow::Result<f64> = world
            .cluster
            .nodes_of(Role::Executor)
            .map(|node| node.metric("carillon_executor_set_aside_total", &[]))
            .sum();
        std::future::ready(aside.and_then(|aside| {
            ensure!(aside >= 1.0, "{aside} are");
            Ok(())
        }))
    })
    .await;

    world.finish(triggering).await;
    let all = i64::try_from(world.expected.len() + world.triggered.len()).expect("few");
    world.until("completed_at IS NOT NULL", |finished| finished == all).await;
    // It is met again whenever what is pending is listed, and no more often.
    let deliveries = soon("it to be all that is left, and to be met again and again", || async {
        tokio::time::sleep(LOOK_EACH).await;
        let pending = world.redis.command(&["XPENDING", &stream, "executors", "-", "+", "100"])?;
        let [entry] = pending.list() else { anyhow::bail!("{} are pending", pending.list().len()) };
        ensure!(entry.list().first().and_then(|name| name.text()) == Some(id.as_str()), "another one");
        let deliveries = entry.list().get(3).and_then(|count| count.number()).context("a count")?;
        ensure!(deliveries >= 4, "{deliveries} times");
        anyhow::Ok(u128::try_from(deliveries)?)
    })
    .await;
    let lists = began.elapsed().as_millis() / LISTED_EACH.as_millis();
    assert!(deliveries <= 2 * (lists + 2), "met {deliveries} times in {:?}", began.elapsed());
    let kept = world.redis.command(&["XRANGE", &stream, &id, &id]).expect("redis answers");
    assert_eq!(kept.list().len(), 1, "it is kept for whoever can read it");
    let mut said = 0;
    for node in world.cluster.nodes_of(Role::Executor) {
        let log = node.log();
        let lines = log.lines().filter(|line| line.contains("cannot be read and is set aside")).count();
        assert!(lines <= 1, "{} says it again and again: {log}", node.name);
        said += lines;
    }
    assert!(said >= 1, "whoever operates it is told");

    // As an operator does who knows that nobody will read it: nothing else may be left behind.
    for words in [["XACK", &stream, "executors", &id].as_slice(), &["XDEL", &stream, &id]] {
        assert_eq!(world.redis.command(words).expect("redis answers").number(), Some(1));
    }
    world.judge(LOAD_MAX).await;
    world.assert_all_live();
}
