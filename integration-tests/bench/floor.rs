//! The floor: what the machine can do for any scheduler of this shape. The same tables, the same streams, the same entries
//! and results, the same batch sizes, and no logic: nothing is decided, held, checked, guarded, cancelled or retried.
//!
//! One producer and as many consumers as the product has executors, at once, in this process. The producer moves the due
//! timers, inserts the executions and notes the batch in one transaction, then publishes by one script. A consumer reads,
//! records the outcomes and the statistics by one statement, then acknowledges and deletes in one MULTI. There is one
//! producer, as one session holds a shard's lock.
//!
//! In this simple form, which is the floor that the product is measured by, the producer is the bottleneck and leaves part
//! of two cores idle. [`Pace::Overlapped`] publishes while it claims the next batch, as the product does: what is left to
//! gain by less work, not by a better order of it. It is reported beside.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use carillon_core::ids;
use carillon_core::retry::Growth;
use carillon_stream::Entry;
use carillon_stream::entry::VERSION;
use carillon_stream::keys::{GROUP, Keys};
use chrono::{DateTime, TimeDelta, Utc};
use fred::interfaces::{ClientLike, LuaInterface, StreamsInterface, TransactionInterface};
use fred::prelude::{Builder, Client, Config, Value};
use serde_json::value::RawValue;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::jobs::{HANDLER, PAYLOAD};
use crate::options::Plan;
use crate::product::line;
use crate::servers::{Database, SEARCH_PATH, Servers};

/// Its jobs are in a shard that no dispatcher leads.
pub const SHARD: i16 = 9;
const NAMESPACE: &str = "floor";

/// As the product's hot connections: plans always walk from the batch into the primary keys.
const SESSION: [(&str, &str); 5] = [
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

const CLAIM: &str = "
WITH due AS (
    SELECT job_id FROM job_timers
    WHERE shard = $1 AND queue = 'default' AND priority = 1 AND fire_at <= $2
    ORDER BY fire_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE job_timers t SET fire_at = $4, claimed_count = t.claimed_count + 1 FROM due WHERE t.job_id = due.job_id
RETURNING t.job_id";

const INSERT: &str = "
WITH batch AS (
    INSERT INTO dispatch_batches (shard, number, term, ids) VALUES ($1, $2, 1, $3)
)
INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, status, scheduled_at, max_retries)
SELECT 0, f.id, f.job_id, $2, $2, f.seq, 'QUEUED', $4, 3 FROM UNNEST($3::uuid[], $5::uuid[]) WITH ORDINALITY AS f(id, job_id, seq)";

const PUBLISH: &str = "
for a = 2, #ARGV do redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. (a - 1), 'e', ARGV[a]) end
return redis.call('XLEN', KEYS[1])";

const FINISH: &str = "
WITH finished AS (
    UPDATE job_executions e
    SET status = 'SUCCESS', started_at = i.at, completed_at = i.at, duration_ms = 0, worker_id = $1, result = i.result::jsonb
    FROM UNNEST($2::uuid[], $3::timestamptz[], $4::text[]) AS i(id, at, result)
    WHERE e.id = i.id AND e.id BETWEEN $5 AND $6 AND e.status = 'QUEUED'
    RETURNING e.id, e.job_id, e.completed_at, e.duration_ms
), stats AS (
    UPDATE job_stats s
    SET finished_count = s.finished_count + f.finished, success_count = s.success_count + f.finished,
        total_duration_ms = s.total_duration_ms + f.duration_ms, last_duration_ms = f.duration_ms,
        last_run_at = f.last_run_at, last_success_id = f.last_success_id
    FROM (
        SELECT job_id, count(*) AS finished, sum(duration_ms)::bigint AS duration_ms, max(completed_at) AS last_run_at,
               max(id::text)::uuid AS last_success_id
        FROM finished GROUP BY job_id
    ) f
    WHERE s.job_id = f.job_id
)
SELECT count(*) FROM finished";

/// In which order the producer does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One thing after the other.
    Simple,
    /// The next batch is claimed while one is on its way to Redis.
    Overlapped,
}

/// The floor, connected and idle.
#[derive(Debug)]
pub struct Floor {
    producer: Option<Producer>,
    consumers: Vec<Consumer>,
}

#[derive(Debug)]
struct Producer {
    postgres: PgConnection,
    redis: Client,
    script: String,
    stream: String,
    batch: i64,
    number: i64,
}

#[derive(Debug)]
struct Consumer {
    postgres: PgConnection,
    redis: Client,
    stream: String,
    name: String,
    worker: Uuid,
    batch: u64,
}

impl Floor {
    /// Connects.
    ///
    /// # Errors
    /// If a server does not answer.
    pub async fn connect(servers: &Servers, database: &Database, plan: &Plan) -> Result<Self> {
        let stream = Keys::new(NAMESPACE, SHARD).stream(&line());
        let redis = client(servers).await?;
        let script: String = redis.script_load(PUBLISH).await?;
        let _: Value = redis.xgroup_create(stream.as_str(), GROUP, "0", true).await?;
        let producer = Producer {
            postgres: session(database).await?,
            redis,
            script,
            stream: stream.clone(),
            batch: i64::from(plan.batch),
            number: Utc::now().timestamp_millis(),
        };
        let mut consumers = Vec::new();
        for number in 1..=plan.executors {
            consumers.push(Consumer {
                postgres: session(database).await?,
                redis: client(servers).await?,
                stream: stream.clone(),
                name: format!("floor-{number}"),
                worker: Uuid::from_u128(u128::from(number)),
                batch: u64::from(plan.batch),
            });
        }
        Ok(Self { producer: Some(producer), consumers })
    }

    /// Claims, publishes, reads, records and acknowledges `count` fires that are due at `at`. Answers how long it took.
    ///
    /// # Errors
    /// If a server refuses something, or not each fire was finished.
    pub async fn round(&mut self, at: DateTime<Utc>, count: usize, pace: Pace) -> Result<Duration> {
        let finished = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut producer = self.producer.take().context("the floor broke in an earlier round")?;
        let producing = tokio::spawn(async move {
            let produced = producer.produce(at, count, pace).await;
            (producer, produced)
        });
        let consuming: Vec<_> = std::mem::take(&mut self.consumers)
            .into_iter()
            .map(|mut consumer| {
                let finished = Arc::clone(&finished);
                tokio::spawn(async move {
                    let consumed = consumer.consume(&finished, count).await;
                    (consumer, consumed)
                })
            })
            .collect();
        let (producer, produced) = producing.await?;
        produced?;
        self.producer = Some(producer);
        for consuming in consuming {
            let (consumer, consumed) = consuming.await?;
            consumed?;
            self.consumers.push(consumer);
        }
        let took = began.elapsed();
        ensure!(
            finished.load(Ordering::Relaxed) == count,
            "the floor finished {} of {count}",
            finished.load(Ordering::Relaxed)
        );
        Ok(took)
    }
}

impl Producer {
    async fn produce(&mut self, at: DateTime<Utc>, count: usize, pace: Pace) -> Result<()> {
        let mut produced = 0;
        let mut on_its_way: Option<JoinHandle<Result<()>>> = None;
        while produced < count {
            let batch = self.claim(at).await?;
            ensure!(batch.len() > 1, "{produced} of {count} were due");
            produced += batch.len() - 1;
            if let Some(sending) = on_its_way.take() {
                sending.await??;
            }
            let (redis, script, stream) = (self.redis.clone(), self.script.clone(), self.stream.clone());
            let sending = async move {
                let _: Value = redis.evalsha(script, stream, batch).await?;
                Ok(())
            };
            match pace {
                Pace::Simple => sending.await?,
                Pace::Overlapped => on_its_way = Some(tokio::spawn(sending)),
            }
        }
        match on_its_way {
            Some(sending) => sending.await?,
            None => Ok(()),
        }
    }

    /// One transaction. Answers what the script is given: the batch's number, and its entries.
    async fn claim(&mut self, at: DateTime<Utc>) -> Result<Vec<Value>> {
        self.number += 1;
        let next = at + TimeDelta::days(3_650);
        let mut transaction = self.postgres.begin().await?;
        let rows =
            sqlx::query(CLAIM).bind(SHARD).bind(at).bind(self.batch).bind(next).fetch_all(&mut *transaction).await?;
        let jobs = rows.iter().map(|row| row.try_get("job_id")).collect::<sqlx::Result<Vec<Uuid>>>()?;
        let executions: Vec<Uuid> = jobs.iter().map(|job| ids::execution_for_fire(*job, at)).collect();
        let insert = sqlx::query(INSERT).bind(SHARD).bind(self.number).bind(&executions).bind(at).bind(&jobs);
        insert.execute(&mut *transaction).await?;
        transaction.commit().await?;
        let mut args: Vec<Value> = Vec::with_capacity(jobs.len() + 1);
        args.push(self.number.to_string().into());
        for (execution, job) in executions.iter().zip(&jobs) {
            args.push(Value::Bytes(entry(*execution, *job, self.number, at)?));
        }
        Ok(args)
    }
}

impl Consumer {
    async fn consume(&mut self, finished: &AtomicUsize, count: usize) -> Result<()> {
        while finished.load(Ordering::Relaxed) < count {
            let read: Value = self
                .redis
                .xreadgroup(GROUP, self.name.as_str(), Some(self.batch), Some(10), false, self.stream.as_str(), ">")
                .await?;
            let (entries, executions) = take_apart(read)?;
            if entries.is_empty() {
                continue;
            }
            self.record(&executions).await?;
            let multi = self.redis.multi();
            let _: Value = multi.xack(self.stream.as_str(), GROUP, entries.clone()).await?;
            let _: Value = multi.xdel(self.stream.as_str(), entries).await?;
            let _: Value = multi.exec(true).await?;
            finished.fetch_add(executions.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn record(&mut self, executions: &[Uuid]) -> Result<()> {
        let at = Utc::now();
        let (first, last) = (executions.iter().min(), executions.iter().max());
        let recorded: i64 = sqlx::query_scalar(FINISH)
            .bind(self.worker)
            .bind(executions)
            .bind(vec![at; executions.len()])
            .bind(vec![PAYLOAD; executions.len()])
            .bind(first)
            .bind(last)
            .fetch_one(&mut self.postgres)
            .await?;
        ensure!(
            usize::try_from(recorded)? == executions.len(),
            "the floor recorded {recorded} of {}",
            executions.len()
        );
        Ok(())
    }
}

/// What the product's entry for such a job holds.
fn entry(execution: Uuid, job: Uuid, claim: i64, at: DateTime<Utc>) -> Result<Bytes> {
    let entry = Entry {
        version: VERSION,
        execution,
        claim,
        attempt: 1,
        again: false,
        job,
        revision: 1,
        handler: HANDLER.to_owned(),
        scheduled_at: at,
        not_before: at,
        timeout_ms: 300_000,
        max_retries: 3,
        retry_delay_ms: 60_000,
        retry_growth: Growth::default(),
        last: false,
        payload: Some(RawValue::from_string(PAYLOAD.to_owned())?),
        traceparent: None,
    };
    Ok(entry.encode()?)
}

/// The entry ids, and the execution ids from the place where each entry has it: nothing else is read.
fn take_apart(read: Value) -> Result<(Vec<String>, Vec<Uuid>)> {
    const BEFORE: usize = r#"{"v":1,"x":""#.len();
    let (mut entries, mut executions) = (Vec::new(), Vec::new());
    let Value::Array(streams) = read else { return Ok((entries, executions)) };
    for stream in streams {
        let Value::Array(mut parts) = stream else { continue };
        let Some(Value::Array(items)) = parts.pop() else { continue };
        entries.reserve(items.len());
        executions.reserve(items.len());
        for item in items {
            let Value::Array(mut item) = item else { continue };
            let Some(Value::Array(fields)) = item.pop() else { continue };
            let text = fields.get(1).and_then(Value::as_bytes).context("an entry without a field")?;
            let id = text.get(BEFORE..BEFORE + 36).context("a short entry")?;
            executions.push(Uuid::try_parse_ascii(id)?);
            entries.push(item.pop().and_then(Value::into_string).context("an entry without an id")?);
        }
    }
    Ok((entries, executions))
}

async fn client(servers: &Servers) -> Result<Client> {
    let client = Builder::from_config(Config::from_url(&servers.redis_url())?).build()?;
    client.init().await?;
    Ok(client)
}

async fn session(database: &Database) -> Result<PgConnection> {
    let options: PgConnectOptions = database.url.parse()?;
    Ok(PgConnection::connect_with(&options.application_name("carillon-floor").options(SESSION).options(SEARCH_PATH))
        .await?)
}
