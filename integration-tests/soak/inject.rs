//! Does a fault to a process or its lines, and undoes it. Each fault has what it touches for itself until it is undone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_testkit::{Role, Towards, wait_until};
use tokio::io::AsyncWriteExt as _;
use tokio::task::block_in_place;

use crate::faults::{Fault, Kind, To, Who};
use crate::servers;
use crate::world::{Stands, World};

/// A connection is slow for a while.
const DELAY: Duration = Duration::from_millis(300);
/// Connections of a client who means harm.
const HOSTILE: usize = 400;
/// What a SIGTERM may take: the grace and the flush after it.
const STOP_MAX: Duration = Duration::from_secs(40);
/// For all to be ready once everything is healed.
const READY_MAX: Duration = Duration::from_secs(60);

/// Does one fault, waits as long as it lasts, and undoes it.
pub(crate) async fn inject(world: Arc<World>, number: usize, fault: Fault) {
    let name = fault.kind.to_string();
    let outcome = match who(fault.kind) {
        Some(who) => {
            let Some(node) = world.take_node(who, fault.pick).await else {
                world.past().passed_over += 1;
                return;
            };
            let step = Step { world: &world, number, fault: &name };
            let outcome = to_node(&step, fault, &node).await;
            world.give_back(&node);
            outcome
        }
        None => servers::inject(&Step { world: &world, number, fault: &name }, fault).await,
    };
    match outcome {
        Ok(true) => *world.past().faults.entry(name).or_default() += 1,
        Ok(false) => world.past().passed_over += 1,
        Err(error) => world.record(number, &name, &format!("could not be done: {error:#}")),
    }
}

/// A fault under way, as it is reported.
pub(crate) struct Step<'a> {
    pub(crate) world: &'a Arc<World>,
    number: usize,
    fault: &'a str,
}

impl Step<'_> {
    pub(crate) fn says(&self, what: &str) {
        self.world.record(self.number, self.fault, what);
    }
}

const fn who(kind: Kind) -> Option<Who> {
    match kind {
        Kind::Kill(who)
        | Kind::Freeze(who)
        | Kind::FreezeLong(who)
        | Kind::Stop(who)
        | Kind::Cut(who, _)
        | Kind::Swallow(who, ..)
        | Kind::SwallowLong(who, _)
        | Kind::HostLost(who)
        | Kind::Hostile(who)
        | Kind::Delay(who, _) => Some(who),
        _ => None,
    }
}

async fn to_node(step: &Step<'_>, fault: Fault, node: &str) -> Result<bool> {
    let world = step.world;
    step.says(&format!("{node} for {:.1?}", fault.lasts));
    match fault.kind {
        Kind::Kill(_) => {
            kill(world, node);
            tokio::time::sleep(fault.lasts).await;
            world.start_again(node)?;
        }
        Kind::Freeze(_) | Kind::FreezeLong(_) => {
            world.stands(node, Stands::Frozen);
            world.is_lost(node);
            world.cluster().node(node).freeze();
            tokio::time::sleep(fault.lasts).await;
            world.cluster().node(node).thaw();
            world.is_back(node);
            world.stands(node, Stands::Up);
        }
        Kind::Stop(_) => stop(step, node).await?,
        Kind::HostLost(_) => {
            let lines = world.lines(node).context("it has lines")?;
            lines.to(To::Postgres).silence();
            lines.to(To::Redis).silence();
            kill(world, node);
            tokio::time::sleep(fault.lasts).await;
            lines.to(To::Postgres).heal();
            lines.to(To::Redis).heal();
            world.start_again(node)?;
        }
        Kind::Cut(_, to) => spoil(step, fault, node, to, |line| line.cut()).await?,
        Kind::Swallow(_, to, way) => spoil(step, fault, node, to, |line| line.silence_towards(way)).await?,
        Kind::SwallowLong(_, to) => spoil(step, fault, node, to, |line| line.silence_towards(Towards::Both)).await?,
        Kind::Hostile(_) => be_hostile(step, fault, node).await?,
        Kind::Delay(_, to) => spoil(step, fault, node, to, |line| line.delay(DELAY)).await?,
        _ => return Ok(false),
    }
    step.says(&format!("{node} healed"));
    Ok(true)
}

fn kill(world: &World, node: &str) {
    world.stands(node, Stands::Down);
    world.is_lost(node);
    block_in_place(|| world.cluster().node(node).kill());
}

/// SIGTERM, then a start. Whoever was started a moment ago does not hear signals yet: it would end by this one.
async fn stop(step: &Step<'_>, node: &str) -> Result<()> {
    let world = step.world;
    let listens = wait_until("it to listen", STOP_MAX, || {
        std::future::ready(world.cluster().node(node).get("/healthz").map(|_| ()))
    });
    listens.await?;
    world.stands(node, Stands::Down);
    world.is_lost(node);
    world.cluster().node(node).ask_to_stop();
    let what = format!("{node} to end");
    let ended = wait_until(&what, STOP_MAX, || {
        let ended = world.cluster().node(node).ended();
        std::future::ready(ended.ok_or("it lives"))
    });
    match ended.await {
        Ok(how) if how == "exit status: 0" => step.says(&format!("{node} stopped")),
        Ok(how) => world.past().ended.push(format!("{node} told to stop: {how}")),
        Err(error) => {
            world.past().ended.push(format!("{node} told to stop: {error:#}"));
            block_in_place(|| world.cluster().node(node).kill());
        }
    }
    world.start_again(node)
}

/// Spoils one line for a while. Cut off from Postgres an executor may lose its work; from Redis alone never.
async fn spoil(
    step: &Step<'_>,
    fault: Fault,
    node: &str,
    to: To,
    how: impl FnOnce(&carillon_testkit::Proxy),
) -> Result<()> {
    let world = step.world;
    let line = world.lines(node).context("it has lines")?.to(to);
    let is_cut = to == To::Postgres && !matches!(fault.kind, Kind::Delay(..));
    if is_cut {
        world.is_lost(node);
    }
    how(line);
    tokio::time::sleep(fault.lasts).await;
    line.heal();
    if is_cut {
        world.is_back(node);
    }
    Ok(())
}

/// Clients who take connections and give nothing, or floods. Whatever becomes of theirs, the others are served.
async fn be_hostile(step: &Step<'_>, fault: Fault, node: &str) -> Result<()> {
    let port = step.world.cluster().node(node).port;
    let mut held = Vec::new();
    for number in 0..HOSTILE {
        let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { break };
        let says: &[u8] = match number % 4 {
            0 => b"",
            1 => b"PRI * HTTP/2.0\r\n",
            2 => b"GET /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\nx-flood: ",
            _ => b"POST /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{",
        };
        // It may be thrown out at once.
        let _ = stream.write_all(says).await;
        held.push(stream);
    }
    step.says(&format!("{node} has {} connections of strangers", held.len()));
    tokio::time::sleep(fault.lasts).await;
    Ok(())
}

/// Every line slow towards Redis.
pub(crate) async fn delay_all(world: &World, lasts: Duration) {
    for (_, lines) in world.all_lines() {
        lines.to(To::Redis).delay(DELAY);
    }
    tokio::time::sleep(lasts).await;
    for (_, lines) in world.all_lines() {
        lines.to(To::Redis).heal();
    }
}

/// Whatever a fault has left behind is undone; all processes must be ready after it.
pub(crate) async fn heal_all(world: &Arc<World>) -> Result<()> {
    for (_, lines) in world.all_lines() {
        lines.to(To::Postgres).heal();
        lines.to(To::Redis).heal();
    }
    servers::heal(world).await?;
    let waited = wait_until("all processes to be ready", READY_MAX, || async {
        let nodes: Vec<(String, u16)> =
            world.cluster().nodes().iter().map(|node| (node.name.clone(), node.admin_port)).collect();
        let mut missing = Vec::new();
        for (name, port) in nodes {
            match world.admin(port, "/readyz").await {
                Some((200, _)) => {}
                Some((code, body)) => missing.push(format!("{name} {code} {}", body.trim().replace('\n', ", "))),
                None => missing.push(format!("{name} does not answer")),
            }
        }
        ensure!(missing.is_empty(), "{}", missing.join("; "));
        anyhow::Ok(())
    });
    if let Err(error) = waited.await {
        world.say(&format!("{error:#}"));
        world.past().ended.push(format!("not ready: {error:#}"));
    }
    debug_assert!(world.cluster().nodes_of(Role::Executor).next().is_some());
    Ok(())
}
