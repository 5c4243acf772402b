//! The command line, and what it makes of each part.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::load::{By, Fires};

/// Measures Carillon against the floor: throughput, lateness, how claim and completion grow with the data, and bounds.
///
/// Starts a private PostgreSQL (fsync on) and a private Redis (append-only, everysec), runs the floor and the product in
/// turns on them, prints a table and writes the same as JSON. Takes about five minutes; other work on the machine spoils
/// it, and is therefore measured and reported too. docs/performance.md says what each number means.
#[derive(Debug, Parser)]
#[command(name = "carillon-bench", version, max_term_width = 110)]
pub struct Options {
    /// A look of a minute and a half: fewer and shorter rounds, at most 100,000 timers. Too short to quote. Parts that run only
    /// if they are named are shorter and smaller too.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All of it, longer, with 10,000,000 rows of history and ten minutes of spread fires: half an hour, 10 GB of disk.
    #[arg(long)]
    full: bool,
    /// Only these parts, separated by commas. Without it the first four.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Of bounds, gaps, poison, age, create and lists only the rows whose names contain this, such as "leader" or "triggers".
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    row: String,
    /// Measured rounds of throughput, each once the floor and once the product; one more of each goes before, unmeasured.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Fires in one round of throughput.
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    fires: Option<u32>,
    /// Fires in one transaction of the floor, and in one of the product's (dispatcher.batch_max, executor.flush_max).
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    batch: u32,
    /// Executors of the product. The floor has as many consumers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    executors: u32,
    /// A setting for the processes of the product, such as CARILLON_EXECUTOR_SLOTS=1000. May be given more than once.
    #[arg(long = "set", value_name = "VARIABLE=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Where the JSON goes.
    #[arg(long, value_name = "FILE", default_value = "target/bench/latest.json")]
    pub json: PathBuf,
    /// Where carillon-dispatcher, carillon-executor and carillon-gateway are; otherwise beside this program.
    #[arg(long, value_name = "DIRECTORY")]
    pub bin_dir: Option<PathBuf>,
    /// Also shows the costliest statements of each part (pg_stat_statements, which itself costs a few percent).
    #[arg(long)]
    pub statements: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Floor and product in turns: fires a second, CPU, memory.
    Throughput,
    /// Start minus scheduled instant: 100 a second, 2,000 at once, 200 schedules each second.
    Lateness,
    /// Claim among 10,000 to 1,000,000 timers, completion with 0 to 10,000,000 rows of history.
    Scale,
    /// Spread fires and triggers beside them, recovery from an emptied Redis.
    Bounds,
    /// Only if named: how long no fire starts after one fault after another (four minutes).
    Gaps,
    /// Only if named: how soon others start what an executor held when it was told to stop.
    Drain,
    /// Only if named: an ordinary job beside 10,000 queues, held-back fires, large triggers, dear timetables.
    Poison,
    /// Only if named: how the resident sets of leader and executor grow under load (six minutes).
    Memory,
    /// Only if named: the first claim after a fault with 1,000,000 batches, 10,000,000 executions (10 GB of disk).
    Age,
    /// Only if named: jobs that a gateway creates a second, 1,000 at once and one by one, over gRPC and JSON.
    Create,
    /// Only if named: pages of lists among 1,000,000 jobs and 10,000,000 executions (10 GB of disk).
    Lists,
}

/// How much of each part.
#[derive(Clone, Debug)]
pub struct Plan {
    parts: Vec<Part>,
    row: String,
    /// `default`, `quick` or `full`.
    pub size: &'static str,
    /// Measured rounds of throughput.
    pub rounds: u32,
    /// Fires in each.
    pub fires: u32,
    /// Fires in one transaction.
    pub batch: u32,
    /// Executors.
    pub executors: u32,
    /// Settings of the product.
    pub settings: Vec<(String, String)>,
    /// Seconds of 100 jobs a second.
    pub steady_s: u32,
    /// Rounds of 2,000 jobs at one instant.
    pub instant_rounds: u32,
    /// Seconds of 200 schedules that fire each second.
    pub every_s: u32,
    /// Spread fires.
    pub spread: Vec<Fires>,
    /// Open executions whose entries are lost.
    pub lost: usize,
    /// Executors told to stop, one after another.
    pub drains: u32,
    /// Seconds of an ordinary job beside each poison.
    pub poison_s: u32,
    /// When the resident sets are looked at, in seconds of load.
    pub memory_s: (u32, u32),
    /// Seconds of jobs being created, in each way.
    pub create_s: u32,
    /// How old the installation is.
    pub age: Age,
    /// What lists are asked for among.
    pub lists: Lists,
    /// Jobs in the timetable.
    pub timers: Vec<u64>,
    /// Rows of history.
    pub history: Vec<u64>,
    /// Whether the costliest statements are shown.
    pub statements: bool,
}

/// What an installation has gathered.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// Settled batches.
    pub batches: u32,
    /// Executions that have ended.
    pub executions: u32,
    /// Executions that have not.
    pub open: u32,
}

/// What lists are asked for among, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Lists {
    /// Jobs.
    pub jobs: u32,
    /// Executions, all but one of which have ended.
    pub executions: u32,
    /// Times that each list is asked for.
    pub calls: u32,
}

impl Options {
    /// What is to be done.
    pub fn plan(&self) -> Plan {
        let unnamed = [Part::Throughput, Part::Lateness, Part::Scale, Part::Bounds];
        let base = Plan {
            parts: if self.only.is_empty() { unnamed.to_vec() } else { self.only.clone() },
            row: self.row.clone(),
            size: "default",
            rounds: 11,
            fires: 20_000,
            batch: self.batch,
            executors: self.executors,
            settings: self.settings.clone(),
            steady_s: 20,
            instant_rounds: 5,
            every_s: 15,
            spread: spread(20),
            drains: 5,
            poison_s: 30,
            memory_s: (60, 300),
            create_s: 15,
            age: Age { batches: 1_000_000, executions: 10_000_000, open: 100_000 },
            lists: Lists { jobs: 1_000_000, executions: 10_000_000, calls: 200 },
            lost: 100_000,
            timers: vec![10_000, 100_000, 1_000_000],
            history: vec![0, 1_000_000],
            statements: self.statements,
        };
        let sized = if self.quick {
            Plan {
                size: "quick",
                rounds: 5,
                steady_s: 5,
                instant_rounds: 2,
                every_s: 5,
                spread: spread(8),
                drains: 3,
                poison_s: 15,
                memory_s: (15, 60),
                create_s: 5,
                age: Age { batches: 100_000, executions: 300_000, open: 30_000 },
                lists: Lists { jobs: 100_000, executions: 500_000, calls: 50 },
                lost: 30_000,
                timers: vec![10_000, 100_000],
                history: vec![0, 100_000],
                ..base
            }
        } else if self.full {
            Plan {
                size: "full",
                rounds: 40,
                steady_s: 60,
                instant_rounds: 10,
                every_s: 60,
                spread: [spread(60), vec![Fires { of: By::Schedules, per_s: 1_000, seconds: 600 }]].concat(),
                drains: 10,
                create_s: 60,
                poison_s: 60,
                history: vec![0, 1_000_000, 10_000_000],
                ..base
            }
        } else {
            base
        };
        Plan { rounds: self.rounds.unwrap_or(sized.rounds), fires: self.fires.unwrap_or(sized.fires), ..sized }
    }
}

impl Plan {
    /// Whether `part` is wanted.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Whether the row of that name is wanted, of a part that has many.
    pub fn wants_row(&self, name: &str) -> bool {
        name.contains(&self.row)
    }

    /// The product's programs that its parts run.
    pub fn programs(&self) -> Vec<&'static str> {
        let mut programs = Vec::new();
        if self.has(Part::Create) || self.has(Part::Lists) {
            programs.push("carillon-gateway");
        }
        if self.parts.iter().any(|part| !matches!(part, Part::Scale | Part::Create | Part::Lists)) {
            programs.extend(["carillon-dispatcher", "carillon-executor"]);
        }
        programs
    }
}

/// Both rates, of schedules and of one-time jobs.
fn spread(seconds: u32) -> Vec<Fires> {
    let kinds = [By::Schedules, By::Jobs];
    kinds.into_iter().flat_map(|of| [300, 3_000].map(|per_s| Fires { of, per_s, seconds })).collect()
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if name.starts_with("CARILLON_") => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be CARILLON_…=value".into()),
    }
}
