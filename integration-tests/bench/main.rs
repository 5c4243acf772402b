//! `carillon-bench`: what `make bench` runs. Measures the product through its real binaries against the floor, a loop of its
//! own over the same schema and streams without any logic, in one run on one machine (docs/performance.md).
//!
//! Everything runs on private servers that end with this process. Parts: [`throughput`], [`lateness`], [`scale`], [`bounds`],
//! and those that run only if they are named: [`gaps`], [`drain`], [`poison`], [`memory`], [`age`], [`create`], [`lists`]. The
//! rest is what they stand on: [`servers`], [`product`], [`fleet`], [`floor`], [`jobs`], [`load`], [`usage`], [`quantiles`],
//! [`asked`], [`report`].

#![expect(unreachable_pub, reason = "a program: each module is public to the others only")]

mod age;
mod asked;
mod bounds;
mod create;
mod days;
mod drain;
mod fleet;
mod floor;
mod gaps;
mod jobs;
mod lateness;
mod lists;
mod load;
mod memory;
mod options;
mod poison;
mod product;
mod quantiles;
mod report;
mod scale;
mod servers;
mod throughput;
mod usage;

use std::process::ExitCode;

use clap::Parser;

use crate::options::{Options, Part};
use crate::report::Report;
use crate::servers::Servers;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carillon-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let plan = options.plan();
    // First of all: a missing binary should not be found out after minutes.
    let binaries = product::Binaries::find(options.bin_dir.as_deref(), &plan.programs())?;
    report::progress("starting PostgreSQL and Redis");
    let servers = Servers::start(options.statements).await?;
    let mut report = Report::begin(&servers, &plan).await?;
    if plan.has(Part::Throughput) {
        throughput::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Lateness) {
        lateness::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Scale) {
        scale::run(&servers, &plan, &mut report).await?;
    }
    if plan.has(Part::Bounds) {
        bounds::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Drain) {
        drain::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Poison) {
        poison::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Memory) {
        memory::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Age) {
        age::run(&binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Create) {
        create::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Lists) {
        lists::run(&servers, &binaries, &plan, &mut report).await?;
    }
    if plan.has(Part::Gaps) {
        gaps::run(&binaries, &plan, &mut report).await?;
    }
    print!("{}", report.table());
    report.write(&options.json)?;
    report.judge()
}
