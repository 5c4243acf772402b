//! `make soak`: two gateways, three dispatchers and four executors, each with a wall clock of its own and a spoilable line to
//! each neighbour, work on a mixed load while one fault after the other is done to them; then the history checker judges.
//!
//! What is done, to whom, and in which order follows from the seed alone; the very step it meets does not. So a seed that found
//! something is repeated to find it again, and what it found stays as a test at a fail point (`docs/reliability.md`).
//!
//! - [`faults`] is what can be done, [`inject`] does it, [`servers`] holds what is done to Postgres and Redis;
//! - [`world`] is the cluster, its lines and its supervisor; [`load`] the clients; [`verdict`] the judge.
//!
//! Exit code 0: every promise was kept. 1: one was broken; logs, journal and rows are in `target/soak/<seed>`.

mod faults;
mod inject;
mod load;
mod random;
mod servers;
mod verdict;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tokio::task::JoinSet;

use crate::faults::{Bag, Fault, Kind};
use crate::load::Load;
use crate::random::Random;
use crate::verdict::Verdict;
use crate::world::World;

/// Faults at once: more would only be an outage.
const FAULTS_AT_ONCE: usize = 3;
/// Between two lines that say how it goes.
const PROGRESS_EACH: Duration = Duration::from_secs(15);
/// Undisturbed, so that something is under way when the first fault comes.
const QUIET_START: Duration = Duration::from_secs(3);

/// Random faults of every kind that one machine can have, under a mixed load, judged by the history checker.
#[derive(Debug, Parser)]
#[command(name = "carillon-soak", version, max_term_width = 110)]
struct Options {
    /// How long faults are done.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What is done, to whom, and in which order.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Only these kinds of faults, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Keep logs, journal and rows also if all is well.
    #[arg(long)]
    keep: bool,
    /// Name the kinds of faults and end.
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for (kind, weight) in faults::kinds() {
            println!("{weight:>2} {kind}");
        }
        return ExitCode::SUCCESS;
    }
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Says whether every promise was kept.
async fn run(options: &Options) -> Result<bool> {
    let began = Instant::now();
    let lasts = Duration::from_secs_f64(options.minutes.clamp(0.1, 7.0 * 24.0 * 60.0) * 60.0);
    let world = Arc::new(World::start(options.seed).await?);
    println!("soak: seed {}, {:.1} minutes, up after {:.1?}", options.seed, options.minutes, began.elapsed());
    let load = Load::start(&world, lasts).await?;
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let finished = tokio::select! {
        () = disturb(&world, options, lasts) => true,
        _ = tokio::signal::ctrl_c() => false,
    };
    if !finished {
        anyhow::bail!("interrupted");
    }
    world.say("the last fault is over, everything heals");
    inject::heal_all(&world).await?;
    let requested = load.finish(&world).await;
    let verdict = Verdict::reach(&world, requested).await;
    supervisor.abort();
    let kept = verdict.print(&world, began.elapsed());
    if !kept || options.keep {
        world.keep_evidence().await;
    }
    Ok(kept)
}

/// Does one fault after the other, a few at once, and returns when the last one is healed.
async fn disturb(world: &Arc<World>, options: &Options, lasts: Duration) {
    tokio::time::sleep(QUIET_START).await;
    let until = Instant::now() + lasts;
    let mut random = Random::new(options.seed);
    let mut bag = Bag::new(&options.only);
    let mut running = JoinSet::new();
    let mut next_progress = Instant::now() + PROGRESS_EACH;
    let mut number = 0;
    while Instant::now() < until {
        let fault = Fault::draw(&mut bag, &mut random);
        let pause = Duration::from_millis(random.between(700, 4_000));
        number += 1;
        running.spawn(inject::inject(Arc::clone(world), number, fault));
        tokio::time::sleep(pause).await;
        while running.len() >= FAULTS_AT_ONCE {
            running.join_next().await;
        }
        while running.try_join_next().is_some() {}
        if Instant::now() >= next_progress {
            next_progress = Instant::now() + PROGRESS_EACH;
            world.say(&verdict::progress(world).await);
        }
    }
    while running.join_next().await.is_some() {}
}
