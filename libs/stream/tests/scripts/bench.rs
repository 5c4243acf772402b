//! One test's Redis, and what a leader and an executor say to it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::read_plan::Plan;
use carillon_core::retry::Growth;
use carillon_stream::entry::VERSION;
use carillon_stream::keys::{GROUP, Keys};
use carillon_stream::leader::{Announced, Certified, Outgoing, Published, Standing};
use carillon_stream::reader::{Read, Reader};
use carillon_stream::{Entry, EntryId, Redis, RedisOptions};
use carillon_testkit::{RespClient, wait_until};
use chrono::DateTime;
use uuid::Uuid;

/// What a test waits for at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The number of the first certificate.
pub(crate) const FIRST: i64 = 1_000;
/// The first leader's term.
pub(crate) const TERM: i64 = 1;

pub(crate) struct Bench {
    pub(crate) server: carillon_testkit::Redis,
    pub(crate) redis: Redis,
    pub(crate) keys: Keys,
}

impl Bench {
    /// An empty Redis, as after a wipe.
    pub(crate) async fn empty() -> Result<Self> {
        Self::on(carillon_testkit::Redis::start().await?)
    }

    /// One that keeps its data over a restart.
    pub(crate) async fn append_only() -> Result<Self> {
        let bench = Self::on(carillon_testkit::Redis::start_append_only().await?)?;
        // Synced each second, a write waits for a sync that is under way, and a crash loses what was answered.
        bench.server.command(&["CONFIG", "SET", "appendfsync", "always"])?;
        Ok(bench)
    }

    /// One that carries a certificate, with the streams of [`lines`].
    pub(crate) async fn certified() -> Result<Self> {
        let bench = Self::empty().await?;
        bench.certify(FIRST, TERM).await?;
        Ok(bench)
    }

    fn on(server: carillon_testkit::Redis) -> Result<Self> {
        let options = RedisOptions::new(server.url());
        let keys = Keys::new(&options.namespace, options.shard);
        Ok(Self { redis: Redis::connect_lazily(options)?, keys, server })
    }

    /// R3, where a challenge is expected.
    pub(crate) async fn challenged(&self, term: i64, challenge: &str) -> Result<Standing> {
        match self.redis.announce(term, challenge, false).await? {
            Announced::Challenged(standing) => Ok(standing),
            other => bail!("not challenged but {other:?}"),
        }
    }

    /// R3 and R4, also where it is certified already.
    pub(crate) async fn certify(&self, number: i64, term: i64) -> Result<Standing> {
        let challenge = format!("challenge of {number}");
        let Announced::Challenged(standing) = self.redis.announce(term, &challenge, true).await? else {
            bail!("not challenged");
        };
        let certified = self.redis.certify(number, term, &standing.replid, &challenge, &lines()).await?;
        anyhow::ensure!(certified == Certified::Done, "{certified:?}");
        Ok(standing)
    }

    /// R6, of `count` entries in the first line, which carry `number` as their claim.
    pub(crate) async fn publish(&self, number: i64, count: u128) -> Result<Published> {
        self.publish_as(number, TERM, count).await
    }

    pub(crate) async fn publish_as(&self, number: i64, term: i64, count: u128) -> Result<Published> {
        Ok(self.redis.publish(number, term, &lines()[..1], &batch(number, count)).await?)
    }

    pub(crate) fn reader(&self, consumer: &str) -> Result<Reader> {
        Ok(Reader::new(&self.redis, consumer, &lines(), PATIENCE)?)
    }

    /// Reads up to `count` of each line, waiting for the first.
    pub(crate) async fn read(&self, consumer: &str, count: usize) -> Result<Read> {
        Ok(self.reader(consumer)?.read(&Plan::Wait(count)).await?)
    }

    pub(crate) fn stream(&self, line: usize) -> String {
        self.keys.stream(&lines()[line])
    }

    pub(crate) fn length(&self, line: usize) -> Result<i64> {
        self.server.command(&["XLEN", &self.stream(line)])?.number().context("a length")
    }

    pub(crate) fn pending(&self, line: usize) -> Result<i64> {
        let pending = self.server.command(&["XPENDING", &self.stream(line), GROUP])?;
        pending.list()[0].number().context("a count")
    }

    /// One field of the certificate.
    pub(crate) fn ctl(&self, field: &str) -> Result<Option<String>> {
        Ok(self.server.command(&["HGET", &self.keys.ctl(), field])?.text().map(str::to_owned))
    }

    pub(crate) fn destroy_group(&self, line: usize) -> Result<()> {
        self.server.command(&["XGROUP", "DESTROY", &self.stream(line), GROUP]).map(|_| ())
    }

    /// Makes an entry look idle for a minute.
    pub(crate) fn age(&self, consumer: &str, ids: &[EntryId]) -> Result<()> {
        let mut client = self.server.client()?;
        for id in ids {
            let id = id.to_string();
            let stream = self.stream(0);
            client.command(&["XCLAIM", &stream, GROUP, consumer, "0", &id, "IDLE", "60000", "JUSTID"])?;
        }
        Ok(())
    }

    /// How often a command ran since the statistics began.
    pub(crate) fn calls(&self, command: &str) -> Result<u64> {
        let stats = self.server.command(&["INFO", "commandstats"])?;
        let text = stats.text().unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        let count = found.and_then(|rest| rest.split(',').next()).unwrap_or("0");
        Ok(count.parse()?)
    }

    /// Waits until somebody is blocked in a read.
    pub(crate) async fn somebody_waits(&self) -> Result<()> {
        let mut client = self.server.client()?;
        somebody_waits(&mut client).await
    }

    /// Waits until the connection is back.
    pub(crate) async fn back(&self) -> Result<()> {
        wait_until("Redis to answer", PATIENCE, || self.redis.ping()).await
    }
}

async fn somebody_waits(client: &mut RespClient) -> Result<()> {
    wait_until("a blocked read", PATIENCE, || {
        let info = client.command(&["INFO", "clients"]);
        std::future::ready(info.and_then(|info| {
            let text = info.text().unwrap_or_default();
            anyhow::ensure!(text.contains("blocked_clients:1"), "{text}");
            Ok(())
        }))
    })
    .await
}

/// Two lines, the more urgent first.
pub(crate) fn lines() -> Vec<Line> {
    vec![Line::new("default", Priority::High), Line::new("default", Priority::Low)]
}

/// The execution of an entry: a function of its id.
pub(crate) fn execution(number: i64, seq: u128) -> Uuid {
    Uuid::from_u128(u128::from(number.unsigned_abs()) << 64 | seq)
}

pub(crate) fn id(number: i64, seq: i32) -> EntryId {
    EntryId { number, seq }
}

pub(crate) fn entry(number: i64, seq: u128) -> Entry {
    Entry {
        version: VERSION,
        execution: execution(number, seq),
        claim: number,
        attempt: 1,
        again: false,
        job: Uuid::from_u128(1),
        revision: 1,
        handler: "echo".into(),
        scheduled_at: DateTime::UNIX_EPOCH,
        not_before: DateTime::UNIX_EPOCH,
        timeout_ms: 1_000,
        max_retries: 3,
        retry_delay_ms: 1_000,
        retry_growth: Growth::default(),
        last: false,
        payload: None,
        traceparent: None,
    }
}

/// A batch of `count` entries of the first line.
pub(crate) fn batch(number: i64, count: u128) -> Vec<Outgoing> {
    let outgoing = |seq| Outgoing { line: 0, seq: seq as i32, text: entry(number, seq).encode().unwrap_or_default() };
    (1..=count).map(outgoing).collect()
}

pub(crate) fn raw(line: usize, seq: i32, text: &'static str) -> Outgoing {
    Outgoing { line, seq, text: Bytes::from_static(text.as_bytes()) }
}

pub(crate) fn ids(read: &Read) -> Vec<EntryId> {
    read.entries.iter().map(|received| received.id).collect()
}
