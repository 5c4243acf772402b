//! What is done to Postgres and Redis themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use carillon_testkit::{RespClient, StopMode, wait_until};
use chrono::Utc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection as _, PgConnection};
use tokio::task::block_in_place;

use crate::faults::{Fault, Kind, Lock};
use crate::inject::{Step, delay_all};
use crate::world::{NAMESPACE, World};

/// For a server to come up, beside other load.
const UP_MAX: Duration = Duration::from_secs(60);
/// First half of the key of the leader's advisory lock (R2).
const LOCK_SPACE: i64 = 0x0CA_2111;
/// Some hundred times a second.
const CANCELLED_APART: Duration = Duration::from_millis(10);
/// From the one lock of a stranger to the other: a flush comes in between.
const CROSSED_AFTER: Duration = Duration::from_millis(100);
/// More than the server has.
const CONNECTIONS_MAX: usize = 400;
/// Less than Redis needs for itself: every write is refused.
const TOO_LITTLE_MEMORY: &str = "100kb";

/// Says whether it could be done.
pub(crate) async fn inject(step: &Step<'_>, fault: Fault) -> Result<bool> {
    let server = match fault.kind {
        Kind::LongSnapshot => "snapshot",
        Kind::Locked(_) => "lock",
        Kind::PostgresFastRestart
        | Kind::PostgresImmediateRestart
        | Kind::PostgresAway
        | Kind::PostgresFrozen
        | Kind::PostgresReadOnly
        | Kind::PostgresSlotsUsedUp
        | Kind::PostgresDiskFull => "postgres",
        Kind::LeaderSessionEnded | Kind::SomeSessionsEnded | Kind::StatementsCancelled => "sessions",
        _ => "redis",
    };
    if !step.world.take(server) {
        return Ok(false);
    }
    let outcome = match server {
        "redis" => to_redis(step, fault).await,
        "postgres" => to_postgres(step, fault).await,
        _ => within_postgres(step, fault).await,
    };
    step.world.give_back(server);
    outcome
}

async fn to_postgres(step: &Step<'_>, fault: Fault) -> Result<bool> {
    let (world, lasts) = (step.world, fault.lasts);
    match fault.kind {
        Kind::PostgresDiskFull if !world.disk.can_be_filled() => return Ok(false),
        Kind::PostgresDiskFull => {
            step.says(&format!("the disk is full for {lasts:.1?}"));
            block_in_place(|| world.disk.fill())?;
            tokio::time::sleep(lasts).await;
            world.disk.empty();
            if !world.postgres.lives() {
                step.says("postgres has ended and is started again");
            }
            start_postgres(world).await?;
        }
        Kind::PostgresFrozen => {
            step.says(&format!("the server stands still for {lasts:.1?}"));
            freeze(world.postgres.pid(), lasts).await;
        }
        Kind::PostgresReadOnly => {
            step.says(&format!("read-only for {lasts:.1?}"));
            set_read_only(world, true).await?;
            tokio::time::sleep(lasts).await;
            set_read_only(world, false).await?;
        }
        Kind::PostgresSlotsUsedUp => {
            let mut held = Vec::new();
            while held.len() < CONNECTIONS_MAX
                && let Ok(connection) = PgConnection::connect(world.postgres.database().url()).await
            {
                held.push(connection);
            }
            step.says(&format!("{} connections are taken, for {lasts:.1?}", held.len()));
            tokio::time::sleep(lasts).await;
            for connection in held {
                let _ = connection.close().await;
            }
        }
        kind => {
            let mode = if kind == Kind::PostgresImmediateRestart { StopMode::Immediate } else { StopMode::Fast };
            step.says(&format!("stopped ({mode:?}) for {lasts:.1?}"));
            block_in_place(|| world.postgres.stop(mode));
            tokio::time::sleep(lasts).await;
            start_postgres(world).await?;
        }
    }
    step.says("healed");
    Ok(true)
}

async fn set_read_only(world: &World, on: bool) -> Result<()> {
    let mut admin = admin(world).await?;
    let value = if on { "on" } else { "off" };
    let mut query = sqlx::QueryBuilder::new("ALTER SYSTEM SET default_transaction_read_only = ");
    query.push(value);
    query.build().execute(&mut admin).await?;
    sqlx::query("SELECT pg_reload_conf()").execute(&mut admin).await?;
    admin.close().await?;
    Ok(())
}

/// Locks, sessions, snapshots: an administrator's doings.
async fn within_postgres(step: &Step<'_>, fault: Fault) -> Result<bool> {
    let world = step.world;
    match fault.kind {
        Kind::LeaderSessionEnded => {
            let statement = "SELECT count(*) FILTER (WHERE pg_terminate_backend(l.pid)) FROM pg_locks l
                 WHERE l.locktype = 'advisory' AND l.classid::bigint = $1 AND l.granted";
            let ended: i64 = sqlx::query_scalar(statement).bind(LOCK_SPACE).fetch_one(&world.pool).await?;
            step.says(&format!("{ended} ended"));
        }
        Kind::SomeSessionsEnded => {
            let statement = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'carillon%'
                   AND hashint4(pid) % 3 = $1";
            let part = i32::try_from(fault.pick % 3)?;
            let ended: i64 = sqlx::query_scalar(statement).bind(part).fetch_one(&world.pool).await?;
            step.says(&format!("{ended} ended"));
        }
        Kind::StatementsCancelled => {
            step.says(&format!("for {:.1?}", fault.lasts));
            world.postgres.database().cancel_statements("carillon-%", fault.lasts, CANCELLED_APART).await?;
        }
        Kind::Locked(Lock::Crosswise) => lock_crosswise(step, fault.lasts).await?,
        Kind::Locked(Lock::Day) => return lock_day(step, fault).await,
        Kind::Locked(lock) => {
            let mut session = admin(world).await?;
            let mut transaction = session.begin().await?;
            let statement = match lock {
                Lock::Stats => {
                    "SELECT 1 FROM job_stats s JOIN jobs j ON j.id = s.job_id WHERE j.name LIKE 'cron%'
                                ORDER BY s.job_id OFFSET $1 LIMIT 1 FOR UPDATE OF s"
                }
                Lock::Job => {
                    "SELECT 1 FROM jobs j WHERE j.name LIKE 'c%' ORDER BY j.id OFFSET $1 LIMIT 1 FOR UPDATE OF j"
                }
                Lock::Execution | Lock::Day | Lock::Crosswise => {
                    "SELECT 1 FROM job_executions WHERE completed_at IS NULL ORDER BY id OFFSET $1 LIMIT 3
                                    FOR UPDATE SKIP LOCKED"
                }
            };
            let offset = i64::try_from(fault.pick % 4)?;
            let rows = sqlx::query(statement).bind(offset).fetch_all(&mut *transaction).await?;
            step.says(&format!("{} rows, for {:.1?}", rows.len(), fault.lasts));
            tokio::time::sleep(fault.lasts).await;
            transaction.rollback().await?;
        }
        _ => {
            let mut session = admin(world).await?;
            let mut transaction = session.begin().await?;
            sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *transaction).await?;
            sqlx::query("SELECT count(*) FROM jobs").execute(&mut *transaction).await?;
            step.says(&format!("held for {:.1?}", fault.lasts));
            tokio::time::sleep(fault.lasts).await;
            transaction.rollback().await?;
        }
    }
    Ok(true)
}

/// The partition of what is open, as somebody locks it who makes an index there (no writes), or packs it (no reads either).
async fn lock_day(step: &Step<'_>, fault: Fault) -> Result<bool> {
    let of_open =
        "SELECT tableoid::regclass::text FROM job_executions WHERE completed_at IS NULL ORDER BY id DESC LIMIT 1";
    let mut session = admin(step.world).await?;
    let partition: Option<String> = sqlx::query_scalar(of_open).fetch_optional(&mut session).await?;
    let Some(partition) = partition else { return Ok(false) };
    let mode = if fault.pick.is_multiple_of(2) { "SHARE" } else { "ACCESS EXCLUSIVE" };
    let mut transaction = session.begin().await?;
    let lock = sqlx::AssertSqlSafe(format!("LOCK TABLE ONLY {partition} IN {mode} MODE"));
    sqlx::query(lock).execute(&mut *transaction).await?;
    step.says(&format!("{partition} in {mode} for {:.1?}", fault.lasts));
    tokio::time::sleep(fault.lasts).await;
    transaction.rollback().await?;
    Ok(true)
}

/// A flush locks executions and then the statistics of their jobs. Whoever is taken for the cause of the deadlock, goes on.
async fn lock_crosswise(step: &Step<'_>, lasts: Duration) -> Result<()> {
    let mut session = admin(step.world).await?;
    let (began, mut rounds, mut deadlocks) = (Instant::now(), 0, 0);
    while began.elapsed() < lasts {
        let mut transaction = session.begin().await?;
        sqlx::query("SET LOCAL lock_timeout = '3s'").execute(&mut *transaction).await?;
        sqlx::query("SELECT FROM job_stats ORDER BY random() LIMIT 50 FOR UPDATE").execute(&mut *transaction).await?;
        tokio::time::sleep(CROSSED_AFTER).await;
        let crossing = sqlx::query("SELECT FROM job_executions WHERE completed_at IS NULL LIMIT 50 FOR UPDATE");
        let outcome = crossing.execute(&mut *transaction).await;
        deadlocks += usize::from(outcome.is_err());
        rounds += 1;
        transaction.rollback().await?;
    }
    step.says(&format!("{rounds} times, {deadlocks} of them refused"));
    Ok(())
}

async fn to_redis(step: &Step<'_>, fault: Fault) -> Result<bool> {
    let (world, lasts) = (step.world, fault.lasts);
    match fault.kind {
        Kind::DelayAll => {
            step.says(&format!("300 ms each way for {lasts:.1?}"));
            delay_all(world, lasts).await;
        }
        Kind::RedisKilled | Kind::RedisAway => {
            step.says(&format!("killed for {lasts:.1?}"));
            world.redis_lost();
            block_in_place(|| world.redis.kill());
            tokio::time::sleep(lasts).await;
            block_in_place(|| world.redis.start_again())?;
            world.redis_lost();
        }
        Kind::RedisFrozen => {
            step.says(&format!("the server stands still for {lasts:.1?}"));
            freeze(world.redis.pid(), lasts).await;
        }
        Kind::RedisWiped => {
            world.redis_lost();
            world.redis.command(&["FLUSHALL"])?;
            step.says("wiped");
        }
        Kind::StreamDeleted | Kind::StreamReplaced | Kind::GroupDestroyed => {
            let Some(stream) = some_stream(world, fault.pick)? else { return Ok(false) };
            world.redis_lost();
            let _ = match fault.kind {
                Kind::StreamDeleted => world.redis.command(&["DEL", &stream])?,
                Kind::StreamReplaced => world.redis.command(&["SET", stream.as_str(), "something else"])?,
                _ => world.redis.command(&["XGROUP", "DESTROY", &stream, "executors"])?,
            };
            step.says(&stream);
        }
        Kind::RedisFull => {
            step.says(&format!("no write for {lasts:.1?}"));
            world.redis.command(&["CONFIG", "SET", "maxmemory", TOO_LITTLE_MEMORY])?;
            tokio::time::sleep(lasts).await;
            world.redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
        }
        Kind::RedisPaused => {
            let ms = lasts.as_millis().to_string();
            step.says(&format!("CLIENT PAUSE {ms}"));
            world.redis.command(&["CLIENT", "PAUSE", &ms, "ALL"])?;
            tokio::time::sleep(lasts).await;
        }
        Kind::UnknownEntry => {
            let Some(stream) = some_stream(world, fault.pick)? else { return Ok(false) };
            let entry = world.redis.command(&["XADD", &stream, "*", "e", r#"{"v":99,"shape":"of tomorrow"}"#])?;
            let id = entry.text().context("an id")?.to_owned();
            step.says(&format!("{id} in {stream}"));
            world.past().unknown_entries.push((stream, id, Utc::now()));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// One of the streams that there are.
fn some_stream(world: &World, pick: usize) -> Result<Option<String>> {
    let mut client = RespClient::connect(world.redis.port())?;
    let keys = client.command(&["KEYS", &format!("{{{NAMESPACE}:0}}:v1:*")])?;
    let keys = keys.list().iter().filter_map(|key| key.text());
    let mut keys: Vec<&str> = keys.filter(|key| !key.ends_with(":displaced")).collect();
    keys.sort_unstable();
    Ok(pick.checked_rem(keys.len()).map(|index| keys[index].to_owned()))
}

async fn freeze(pid: Option<i32>, lasts: Duration) {
    let Some(pid) = pid else { return };
    // One that has ended meanwhile is not missed.
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    tokio::time::sleep(lasts).await;
    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
}

/// As often as it takes: after a full disk its recovery may need the room that comes back only now.
async fn start_postgres(world: &Arc<World>) -> Result<()> {
    wait_until("postgres to come up", UP_MAX, || {
        let started = block_in_place(|| world.postgres.start_again());
        async move {
            started?;
            anyhow::Ok(admin(world).await?.close().await?)
        }
    })
    .await
}

/// A session of an administrator, which may write whatever the server's default says.
async fn admin(world: &World) -> Result<PgConnection> {
    let mut session = PgConnection::connect_with(&world.postgres.database().options()?).await?;
    sqlx::raw_sql("SET default_transaction_read_only = off; SET application_name = 'soak'")
        .execute(&mut session)
        .await?;
    Ok(session)
}

/// Whatever a fault has left behind is undone.
pub(crate) async fn heal(world: &Arc<World>) -> Result<()> {
    world.disk.empty();
    start_postgres(world).await?;
    set_read_only(world, false).await?;
    block_in_place(|| world.redis.start_again())?;
    world.redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    Ok(())
}
