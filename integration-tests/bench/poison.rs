//! Whether what one job, queue or tenant holds can stop the others: an ordinary job fires each second, and after five of them
//! something poisonous falls due at once. How late the ordinary fires are, how much memory the leader needs at its peak, and
//! whether it stays in office.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use carillon_core::ids;
use carillon_core::misfire;
use carillon_core::schedule::{Exclusion, LOOKS_MAX, Spec, Timetable, TimetableSpec};
use chrono::{DateTime, Datelike as _, SubsecRound as _, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::asked::{Asked, Figures};
use crate::fleet::{Fleet, Role};
use crate::jobs::{self, Job};
use crate::load::{self, Start};
use crate::options::Plan;
use crate::product::Binaries;
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

const QUEUES: usize = 10_000;
const HELD_BACK: usize = 10_000;
const TRIGGERS: usize = 1_000;
const TIMETABLES: usize = 1_000;
/// Bytes of a trigger's payload, as its text: as much as the gateway takes.
const PAYLOAD_BYTES: i32 = 256 * 1024;
/// What is held back is looked at from half a second before its instant on.
const HELD_BACK_FOR: TimeDelta = TimeDelta::milliseconds(1_500);
/// How long the outage was before the timetables are due.
const OUTAGE: TimeDelta = TimeDelta::hours(1);
/// The dispatcher's default.
const MISFIRE_THRESHOLD: TimeDelta = TimeDelta::seconds(30);
/// From the beginning until all is written and the first ordinary fire is due.
const PREPARE: TimeDelta = TimeDelta::seconds(25);
const PREPARE_TRIGGERS: TimeDelta = TimeDelta::seconds(60);
/// Ordinary fires before the poison.
const BEFORE: TimeDelta = TimeDelta::seconds(5);
/// For the last ordinary fire to start.
const START_MAX: TimeDelta = TimeDelta::seconds(5);

/// What was asked for.
const LATE_S: Asked = Asked::AtMost(1.0);
const LEADER_MIB: Asked = Asked::AtMost(256.0);
const TERMS: Asked = Asked::AtMost(1.0);

/// What falls due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poison {
    Queues,
    HeldBack,
    Triggers,
    /// The same, whose handlers return what they were given.
    ReturnedTriggers,
    Timetables,
}

impl Poison {
    const ALL: [Self; 5] = [Self::Queues, Self::HeldBack, Self::Triggers, Self::ReturnedTriggers, Self::Timetables];

    fn name(self) -> String {
        match self {
            Self::Queues => format!("{QUEUES} due queues"),
            Self::HeldBack => format!("{HELD_BACK} held back by overlap"),
            Self::Triggers => format!("{TRIGGERS} triggers of 256 KiB"),
            Self::ReturnedTriggers => format!("{TRIGGERS} of 256 KiB, and results"),
            Self::Timetables => format!("{TIMETABLES} of the dearest timetables"),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::HeldBack => "held",
            Self::Triggers => "triggers",
            Self::ReturnedTriggers => "results",
            Self::Timetables => "timetables",
        }
    }

    /// Writes it, so that it falls due at `at`, or when [`Poison::release`] says so.
    async fn prepare(self, pool: &PgPool, at: DateTime<Utc>) -> Result<()> {
        let count = match self {
            Self::Queues => QUEUES,
            Self::HeldBack => HELD_BACK,
            Self::Triggers | Self::ReturnedTriggers => TRIGGERS,
            Self::Timetables => TIMETABLES,
        };
        let ids = jobs::new_ids(count, jobs::now(pool).await?);
        let dearest = if self == Self::Timetables { dearest(at)? } else { TimetableSpec::never() };
        let job = |(number, id): (usize, &Uuid)| match self {
            Self::Queues => Job::released_by_hand(*id).of_queue(format!("queue-{number}")),
            Self::HeldBack => Job::released_by_hand(*id).held_back(),
            // Its trigger has the payload.
            Self::Triggers => Job::released_by_hand(*id).sleeping(Duration::ZERO),
            Self::ReturnedTriggers => Job::released_by_hand(*id),
            Self::Timetables => Job::timetabled(*id, dearest.clone()),
        };
        let written: Vec<Job> = ids.iter().enumerate().map(job).collect();
        // Fewer at once where they are large.
        for some in written.chunks(if self == Self::Timetables { 100 } else { count }) {
            jobs::insert(pool, 0, some, |_| {}).await?;
        }
        if self.is_triggers() {
            triggers(pool, &ids, at).await?;
        }
        Ok(())
    }

    const fn is_triggers(self) -> bool {
        matches!(self, Self::Triggers | Self::ReturnedTriggers)
    }

    /// Lets it fall due.
    async fn release(self, pool: &PgPool, ordinary: Uuid) -> Result<()> {
        let now = jobs::now(pool).await?.trunc_subsecs(3);
        let at = match self {
            Self::Queues => now,
            Self::HeldBack => now + HELD_BACK_FOR,
            Self::Timetables => now - OUTAGE,
            // They are due by themselves.
            Self::Triggers | Self::ReturnedTriggers => return Ok(()),
        };
        let release = sqlx::query("UPDATE job_timers SET fire_at = $1 WHERE job_id <> $2").bind(at).bind(ordinary);
        release.execute(pool).await?;
        Ok(())
    }
}

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    for poison in Poison::ALL.into_iter().filter(|poison| plan.wants_row(&poison.name())) {
        progress(&format!("poison: {}", poison.name()));
        let database = servers.database(&format!("poison_{}", poison.word())).await?;
        let mut fleet = Fleet::new(servers, binaries, &database, poison.word(), plan).await?;
        for role in [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Executor] {
            fleet.add(role, &[])?;
        }
        fleet.ready().await?;
        measure(poison, &fleet, &database, plan.poison_s, &mut report.figures).await?;
        fleet.end().await;
        if plan.statements {
            report.note_statements(poison.word(), database.costliest().await?);
        }
        database.pool.close().await;
    }
    Ok(())
}

async fn measure(
    poison: Poison,
    fleet: &Fleet,
    database: &Database,
    seconds: u32,
    figures: &mut Figures,
) -> Result<()> {
    let pool = &database.pool;
    let leader = fleet.leader().await?;
    let prepare = if poison.is_triggers() { PREPARE_TRIGGERS } else { PREPARE };
    let first = (jobs::now(pool).await? + prepare).trunc_subsecs(3);
    poison.prepare(pool, first + BEFORE).await?;
    let ordinary = jobs::new_ids(1, first).first().copied().context("one")?;
    let last = first + TimeDelta::seconds(i64::from(seconds) - 1);
    let job = Job::every(ordinary, Duration::from_secs(1), first, last);
    load::write(pool, &fleet.redis, &[job], first).await?;
    load::until(pool, first + BEFORE).await?;
    poison.release(pool, ordinary).await?;
    fleet.redis.wake().await?;
    load::until(pool, last + START_MAX).await?;
    let starts = load::starts(pool, &[ordinary]).await?;
    let span = (first, seconds, last + START_MAX);
    let late = latest(&starts, span, |start| start.started_at);
    let claimed_late = latest(&starts, span, |start| DateTime::from_timestamp_millis(start.claim?));
    let (peak, _) = fleet.node(&leader)?.resident_mib();
    let leads = f64::from(u8::from(fleet.leader().await? == leader));
    let (met, ended): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(completed_at) FROM job_executions WHERE job_id <> $1")
            .bind(ordinary)
            .fetch_one(pool)
            .await?;
    if late > 1.0 {
        progress(&format!("poison: late by {late:.1} s:\n{}", fleet.logs()));
    }
    let row = poison.name();
    let mut add = |what, value, asked| figures.add("poison", &row, what, value, asked);
    add("latest start of the ordinary job", (late, "s"), LATE_S);
    add("its latest claim", (claimed_late, "s"), Asked::Nothing);
    add("the leader's peak", (peak, "MiB"), LEADER_MIB);
    add("terms begun", (fleet.terms(), ""), TERMS);
    add("the same leads", (leads, ""), Asked::AtLeast(1.0));
    add("poisonous fires claimed by then", (f64::from(u32::try_from(met)?), ""), Asked::Nothing);
    add("poisonous fires ended by then", (f64::from(u32::try_from(ended)?), ""), Asked::Nothing);
    Ok(())
}

/// How late the ordinary job was at worst, in seconds. An instant of which nothing came was waited for until the next one of
/// which something did, or until the end.
fn latest(
    starts: &[Start],
    (first, seconds, end): (DateTime<Utc>, u32, DateTime<Utc>),
    came: impl Fn(&Start) -> Option<DateTime<Utc>>,
) -> f64 {
    let late = (0..i64::from(seconds)).map(|second| {
        let instant = first + TimeDelta::seconds(second);
        let its = starts.iter().filter(|start| start.scheduled_at >= instant).filter_map(&came).min();
        (its.unwrap_or(end) - instant).as_seconds_f64()
    });
    late.fold(0.0, f64::max)
}

/// A trigger for each of `jobs`, due at `at`, with the largest payload that is accepted, which no compression makes smaller.
async fn triggers(pool: &PgPool, jobs: &[Uuid], at: DateTime<Utc>) -> Result<()> {
    const AT_ONCE: usize = 50;
    let statement = "
        WITH noise AS MATERIALIZED (
            SELECT left(string_agg(md5(random()::text || n), ''), $4 - 64) AS text FROM generate_series(1, $4 / 32) n
        )
        INSERT INTO job_triggers (execution_id, job_id, shard, fire_at, queue, priority, payload, created_by)
        SELECT g.execution, g.job, 0, $3, 'default', 1, jsonb_build_object('n', g.job, 'ms', 0, 'noise', noise.text), 'carillon-bench'
        FROM UNNEST($1::uuid[], $2::uuid[]) AS g(execution, job), noise";
    for some in jobs.chunks(AT_ONCE) {
        let executions: Vec<Uuid> = some.iter().map(|job| ids::execution_for_trigger(*job, "poison", at)).collect();
        sqlx::query(statement).bind(executions).bind(some).bind(at).bind(PAYLOAD_BYTES).execute(pool).await?;
    }
    Ok(())
}

/// Of the timetables that are made to cost something (`libs/core/benches/schedule.rs` has more) the one that costs most after
/// the outage, to read and to search, among those that were accepted when they were made: in their one open month, which
/// has just ended.
fn dearest(now: DateTime<Utc>) -> Result<TimetableSpec> {
    let open = (now.with_day(1).context("each month has one")? - TimeDelta::days(1)).month();
    let closed: Vec<String> = (1..=12).filter(|month| *month != open).map(|month| month.to_string()).collect();
    let made = now.with_day(1).context("each month has one")? - TimeDelta::days(10);
    let mut best = (Duration::ZERO, None);
    for (name, spec) in dear_ones(&closed.join(","), made) {
        let accepted = Timetable::parse(&spec, Uuid::nil()).ok();
        if accepted.is_none_or(|timetable| timetable.check_fires_after(made).is_err()) {
            progress(&format!("poison: {name}: refused"));
            continue;
        }
        let began = Instant::now();
        if let Ok(timetable) = Timetable::parse_accepted(&spec, Uuid::nil(), LOOKS_MAX) {
            misfire::resolve(&timetable, now - OUTAGE, now, MISFIRE_THRESHOLD);
        }
        let took = began.elapsed();
        progress(&format!("poison: {name}: {took:.1?}"));
        if took > best.0 {
            best = (took, Some(spec));
        }
    }
    best.1.context("none of the dear timetables is accepted")
}

/// Open in no month that `closed` names.
fn dear_ones(closed: &str, anchor: DateTime<Utc>) -> Vec<(&'static str, TimetableSpec)> {
    const ZONES: [&str; 6] = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo"];
    let minutes = |n: usize| if n.is_multiple_of(2) { "*/2" } else { "1-59/2" };
    // The closed minutes are dealt out over zones, so that no zone closes a day alone, and no leap is long.
    let comb = |zones: &[&str], patterns: usize| -> Vec<Exclusion> {
        let pattern = |n: usize| {
            let is_first = n < zones.len();
            let weekday = if is_first { "*".to_owned() } else { format!("{}#{}", n % 7, n % 5 + 1) };
            let days = if is_first { "*" } else { "*/2" };
            Exclusion::cron(format!("{} * {days} {closed} {weekday}", minutes(n % zones.len())))
                .in_timezone(zones[n % zones.len()])
        };
        (0..patterns).map(pattern).collect()
    };
    // Each of these is asked for its day in vain before the comb is.
    let rare = |zones: usize| -> Vec<Exclusion> {
        let rare = (0..998_usize).map(|n| {
            let (minute, hour) = (n % 57, n / 57);
            let pattern = format!("0-{minute},{}-59 0-{hour},{}-23 28W,L-1 * *", minute + 2, hour + 2);
            Exclusion::cron(pattern).in_timezone(ZONES[n % zones])
        });
        rare.chain(comb(&ZONES[..2], 2)).collect()
    };
    let second = || vec![Spec::Cron("* * * * * *".to_owned())];
    let hundred = || (0..100).map(|n| Spec::Cron(format!("{} * * * * *", n % 60))).collect::<Vec<_>>();
    let tenth = || vec![Spec::Every { interval_ms: 100, anchor }];
    let spec = |specs: Vec<Spec>, exclusions| TimetableSpec { specs, exclusions, ..TimetableSpec::never() };
    vec![
        ("a comb of two for ten fires a second", spec(tenth(), comb(&ZONES[..2], 2))),
        ("a comb of 1,000 in six zones", spec(second(), comb(&ZONES, 1_000))),
        ("a comb behind rare patterns", spec(second(), rare(6))),
        ("a comb behind rare patterns for ten fires a second", spec(tenth(), rare(6))),
        ("a comb of two for 100 schedules", spec(hundred(), comb(&ZONES[..2], 2))),
        ("a comb of 1,000 for 100 schedules", spec(hundred(), comb(&ZONES, 1_000))),
        ("a comb behind rare patterns for 100 schedules", spec(hundred(), rare(6))),
    ]
}
