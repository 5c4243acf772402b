//! The numbers: as a table for people, as JSON for programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use sqlx::PgPool;

use crate::asked::Figures;
use crate::bounds::{self, Recovery, Spread};
use crate::options::Plan;
use crate::quantiles::{Lateness, quantile, round};
use crate::servers::{POSTGRES_SETTINGS, Servers, file_system_of};
use crate::usage::{Cpu, Machine, Memory};

/// Says what is being done, with the seconds since the start.
pub fn progress(what: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = BEGAN.get_or_init(Instant::now);
    let mut out = std::io::stderr().lock();
    // Nobody may be listening.
    let _ = writeln!(out, "{:>6.1} s  {what}", began.elapsed().as_secs_f64());
}

/// One round of throughput.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub count: f64,
    pub took_s: f64,
    pub per_s: f64,
    pub cpu: Cpu,
}

impl Round {
    /// `count` fires within `took`.
    pub fn of(count: usize, took: Duration, cpu: Cpu) -> Self {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        Self { count, took_s: took.as_secs_f64(), per_s: count / took.as_secs_f64(), cpu }
    }
}

/// All rounds.
#[derive(Clone, Debug, Default)]
pub struct Throughput {
    floor: Vec<Round>,
    product: Vec<Round>,
    overlapped: Vec<Round>,
    memory: Memory,
    /// Mean number of executions in one flush of an executor.
    pub mean_flush: Option<f64>,
    /// Mean size of an execution's row, of floor and product.
    pub row_bytes: (f64, f64),
}

impl Throughput {
    /// One more of each.
    pub fn add(&mut self, floor: Round, product: Round, overlapped: Round, memory: Memory) {
        self.floor.push(floor);
        self.overlapped.push(overlapped);
        self.product.push(product);
        self.memory = self.memory.or_more(memory);
    }

    fn per_s(&self) -> (f64, f64) {
        (median_per_s(&self.floor), median_per_s(&self.product))
    }

    fn cpu_per_1000(rounds: &[Round]) -> Cpu {
        let all = rounds.iter().fold(Cpu::default(), |sum, round| sum.plus(round.cpu));
        all.per_1000(rounds.iter().map(|round| round.count).sum())
    }

    /// Cores that other programs used meanwhile.
    fn foreign_cores(&self) -> f64 {
        let rounds = || self.floor.iter().chain(&self.product).chain(&self.overlapped);
        let foreign: f64 = rounds().map(|round| round.cpu.foreign()).sum();
        foreign / rounds().map(|round| round.took_s).sum::<f64>().max(1e-9)
    }
}

/// What a batch costs at some size of the data.
#[derive(Clone, Copy, Debug)]
pub struct ScalePoint {
    what: &'static str,
    timers: u64,
    history: u64,
    batch: usize,
    p50_ms: f64,
    max_ms: f64,
}

impl ScalePoint {
    /// Of these samples.
    pub fn of(what: &'static str, timers: u64, history: u64, batch: usize, millis: &[f64]) -> Self {
        Self { what, timers, history, batch, p50_ms: quantile(millis, 0.5), max_ms: quantile(millis, 1.0) }
    }

    fn json(self) -> Value {
        json!({
            "what": self.what, "timers": self.timers, "history": self.history, "batch": self.batch,
            "p50_ms": round(self.p50_ms), "max_ms": round(self.max_ms),
        })
    }
}

/// All that was found.
#[derive(Debug)]
pub struct Report {
    at: DateTime<Utc>,
    machine: Machine,
    conditions: Value,
    plan: Plan,
    pub throughput: Option<Throughput>,
    lateness: Vec<(&'static str, Lateness)>,
    pub witness: Option<Lateness>,
    pub scale: Vec<ScalePoint>,
    pub spread: Vec<Spread>,
    pub recovery: Option<Recovery>,
    pub figures: Figures,
    statements: Vec<(&'static str, Vec<String>)>,
}

impl Report {
    /// An empty one, with what it was measured on.
    ///
    /// # Errors
    /// If a server does not answer.
    pub async fn begin(servers: &Servers, plan: &Plan) -> Result<Self> {
        let database = servers.database("begin").await?;
        let conditions = conditions(&database.pool, servers, plan).await?;
        database.pool.close().await;
        Ok(Self {
            at: Utc::now(),
            machine: Machine::this()?,
            conditions,
            plan: plan.clone(),
            throughput: None,
            lateness: Vec::new(),
            witness: None,
            scale: Vec::new(),
            spread: Vec::new(),
            recovery: None,
            figures: Figures::default(),
            statements: Vec::new(),
        })
    }

    /// One more scenario.
    pub fn add_lateness(&mut self, name: &'static str, lateness: Lateness) {
        self.lateness.push((name, lateness));
    }

    /// The costliest statements of a part; those of its last round stay.
    pub fn note_statements(&mut self, part: &'static str, lines: Vec<String>) {
        self.statements.retain(|(known, _)| *known != part);
        self.statements.push((part, lines));
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::from("\n");
        let machine = &self.machine;
        line(
            &mut text,
            format_args!(
                "{} · {} cores, {} · {:.0} GiB · {}",
                self.at.to_rfc3339_opts(SecondsFormat::Secs, true),
                machine.cores,
                machine.cpu,
                machine.memory_gib,
                machine.system
            ),
        );
        for (name, value) in self.conditions.as_object().into_iter().flatten() {
            line(&mut text, format_args!("{name}: {}", value.to_string().replace('"', "")));
        }
        if let Some(throughput) = &self.throughput {
            throughput_table(&mut text, throughput, &self.plan);
        }
        self.lateness_table(&mut text);
        self.scale_table(&mut text);
        bounds::table(&mut text, &self.spread, self.recovery);
        self.figures.table(&mut text);
        for (part, lines) in &self.statements {
            line(&mut text, format_args!("\nStatements: {part}\n  {}", lines.join("\n  ")));
        }
        text
    }

    fn lateness_table(&self, text: &mut String) {
        if self.lateness.is_empty() {
            return;
        }
        line(
            text,
            format_args!(
                "\n{:<44} {:>9} {:>9} {:>9} {:>9} {:>7}",
                "Lateness", "starts", "p50 ms", "p99 ms", "max ms", "early"
            ),
        );
        let named = self.lateness.iter().map(|(name, lateness)| {
            let what = match *name {
                "steady" => "steady: 100 a second, each at its own ms",
                "instant" => "instant: 2,000 at one instant",
                _ => "every: 200 schedules, each second",
            };
            (what, lateness)
        });
        for (what, late) in named.chain(self.witness.iter().map(|late| ("all three, by the handlers' journal", late))) {
            line(
                text,
                format_args!(
                    "{what:<44} {:>9} {:>9.2} {:>9.2} {:>9.2} {:>7}",
                    late.count, late.p50_ms, late.p99_ms, late.max_ms, late.early
                ),
            );
        }
    }

    fn scale_table(&self, text: &mut String) {
        if self.scale.is_empty() {
            return;
        }
        line(
            text,
            format_args!(
                "\n{:<22} {:>12} {:>16} {:>9} {:>9}",
                "Scale, a batch of 1,000", "timers", "rows of history", "p50 ms", "max ms"
            ),
        );
        let mut points = self.scale.clone();
        points.sort_by_key(|point| point.what);
        for point in points {
            line(
                text,
                format_args!(
                    "{:<22} {:>13} {:>16} {:>9.2} {:>9.2}",
                    point.what, point.timers, point.history, point.p50_ms, point.max_ms
                ),
            );
        }
    }

    fn json(&self) -> Value {
        let machine = &self.machine;
        let mut all = Map::new();
        all.insert("at".into(), json!(self.at.to_rfc3339_opts(SecondsFormat::Secs, true)));
        all.insert("machine".into(), json!({
            "cores": machine.cores, "cpu": machine.cpu, "memory_gib": round(machine.memory_gib), "system": machine.system,
        }));
        all.insert("conditions".into(), self.conditions.clone());
        if let Some(throughput) = &self.throughput {
            let (floor, product) = throughput.per_s();
            all.insert(
                "throughput".into(),
                json!({
                    "product_per_s": round(product), "floor_per_s": round(floor), "ratio": round(product / floor),
                }),
            );
            let rounds = throughput.floor.iter().zip(&throughput.product).zip(&throughput.overlapped);
            all.insert(
                "rounds".into(),
                rounds
                    .map(|((floor, product), overlapped)| {
                        json!({
                            "product_per_s": round(product.per_s), "floor_per_s": round(floor.per_s),
                            "overlapped_floor_per_s": round(overlapped.per_s),
                        })
                    })
                    .collect(),
            );
            all.insert("overlapped_floor_per_s".into(), json!(round(median_per_s(&throughput.overlapped))));
            let cpu = Throughput::cpu_per_1000(&throughput.product);
            all.insert(
                "cpu_s_per_1000".into(),
                json!({
                    "dispatcher": round(cpu.dispatcher), "executor": round(cpu.executor),
                    "postgres": round(cpu.postgres), "redis": round(cpu.redis),
                }),
            );
            let memory = throughput.memory;
            all.insert(
                "peak_memory_mb".into(),
                json!({
                    "dispatcher": round(memory.dispatcher), "executor": round(memory.executor),
                    "postgres": round(memory.postgres), "redis": round(memory.redis),
                }),
            );
            all.insert("foreign_cores".into(), json!(round(throughput.foreign_cores())));
        }
        if !self.lateness.is_empty() {
            let scenarios = self.lateness.iter().map(|(name, late)| ((*name).to_owned(), late.json()));
            all.insert("lateness".into(), Value::Object(scenarios.collect()));
        }
        if let Some(witness) = self.witness {
            all.insert("lateness_by_journal".into(), witness.json());
        }
        if !self.scale.is_empty() {
            all.insert("scale".into(), self.scale.iter().map(|point| point.json()).collect());
        }
        if !self.spread.is_empty() {
            all.insert("spread".into(), self.spread.iter().map(|point| point.json()).collect());
        }
        if let Some(recovery) = self.recovery {
            all.insert("recovery".into(), recovery.json());
        }
        if !self.figures.is_empty() {
            all.insert("asked".into(), self.figures.json());
        }
        Value::Object(all)
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let text = format!("{:#}\n", self.json());
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("\nwritten to {}", file.display());
        Ok(())
    }

    /// Whether what must hold holds: no start is early, no figure is beyond the bound that was asked for. All else is for
    /// people to judge.
    ///
    /// # Errors
    /// If one was, each that was.
    pub fn judge(&self) -> Result<()> {
        let early: usize = self.lateness.iter().map(|(_, late)| late).chain(&self.witness).map(|late| late.early).sum();
        let early =
            early + self.spread.iter().map(Spread::early).sum::<usize>() + self.recovery.map_or(0, |r| r.early());
        let mut broken = self.figures.broken();
        if early > 0 {
            broken.insert(0, format!("{early} starts were early"));
        }
        if !broken.is_empty() {
            bail!("{}", broken.join("\n  "));
        }
        Ok(())
    }
}

fn throughput_table(text: &mut String, throughput: &Throughput, plan: &Plan) {
    let (floor, product) = throughput.per_s();
    let ratios: Vec<f64> = throughput.product.iter().zip(&throughput.floor).map(|(p, f)| p.per_s / f.per_s).collect();
    let spread = |rounds: &[Round]| {
        let all: Vec<f64> = rounds.iter().map(|round| round.per_s).collect();
        format!("{:.0} to {:.0}", quantile(&all, 0.0), quantile(&all, 1.0))
    };
    line(
        text,
        format_args!("\n{:<34} {:>12}   {} rounds of {} fires", "Throughput", "fires/s", plan.rounds, plan.fires),
    );
    line(text, format_args!("{:<34} {floor:>12.0}   {}", "floor", spread(&throughput.floor)));
    line(text, format_args!("{:<34} {product:>12.0}   {}", "product", spread(&throughput.product)));
    line(
        text,
        format_args!(
            "{:<34} {:>12.3}   {:.3} to {:.3} within a round",
            "ratio",
            product / floor,
            quantile(&ratios, 0.0),
            quantile(&ratios, 1.0)
        ),
    );
    let overlapped = median_per_s(&throughput.overlapped);
    line(
        text,
        format_args!(
            "{:<34} {overlapped:>12.0}   {}, product / this {:.3}",
            "floor that publishes while it claims",
            spread(&throughput.overlapped),
            product / overlapped
        ),
    );
    line(
        text,
        format_args!(
            "{:<34} {:>12.2}   of {}",
            "cores used by other programs",
            throughput.foreign_cores(),
            Machine::this().map_or(0, |machine| machine.cores)
        ),
    );
    if let Some(mean) = throughput.mean_flush {
        line(text, format_args!("{:<34} {mean:>12.0}", "executions in a flush, mean"));
    }
    let (floor_row, product_row) = throughput.row_bytes;
    line(text, format_args!("{:<34} {product_row:>12.0}   floor {floor_row:.0}", "bytes in an execution's row"));
    usage_table(text, throughput);
}

fn usage_table(text: &mut String, throughput: &Throughput) {
    let head = format!(
        "{:>11} {:>9} {:>9} {:>7} {:>7} {:>9}",
        "dispatcher", "executor", "postgres", "redis", "floor", "together"
    );
    line(text, format_args!("\n{:<28} {head}", "CPU ms for each execution"));
    let (own, of_floor) = (Throughput::cpu_per_1000(&throughput.product), Throughput::cpu_per_1000(&throughput.floor));
    let together = own.dispatcher + own.executor + own.postgres + own.redis;
    line(
        text,
        format_args!(
            "{:<28} {:>11.4} {:>9.4} {:>9.4} {:>7.4} {:>7} {together:>9.4}",
            "product", own.dispatcher, own.executor, own.postgres, own.redis, "-"
        ),
    );
    let together = of_floor.postgres + of_floor.redis + of_floor.bench;
    line(
        text,
        format_args!(
            "{:<28} {:>11} {:>9} {:>9.4} {:>7.4} {:>7.4} {together:>9.4}",
            "floor", "-", "-", of_floor.postgres, of_floor.redis, of_floor.bench
        ),
    );
    let memory = throughput.memory;
    line(
        text,
        format_args!(
            "{:<28} {:>11.0} {:>9.0} {:>9.0} {:>7.0}",
            "peak memory MiB", memory.dispatcher, memory.executor, memory.postgres, memory.redis
        ),
    );
}

async fn conditions(pool: &PgPool, servers: &Servers, plan: &Plan) -> Result<Value> {
    let postgres: String = sqlx::query_scalar("SHOW server_version").fetch_one(pool).await?;
    let mut redis = servers.redis_client()?;
    let info = redis.command(&["INFO", "server"])?;
    let version = info.text().unwrap_or_default().lines().find_map(|line| line.strip_prefix("redis_version:"));
    let settings: Vec<String> = POSTGRES_SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let changed: Vec<String> = plan.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let own: Vec<(&str, Value)> = vec![
        ("run", json!(plan.size)),
        ("build", json!(if cfg!(debug_assertions) { "debug: not to be quoted" } else { "release" })),
        ("postgres", json!(format!("{postgres}, {}", settings.join(" ")))),
        ("redis", json!(format!("{}, appendonly yes, appendfsync everysec", version.unwrap_or("?").trim()))),
        ("data on", json!(file_system_of(servers.home.path()))),
        (
            "product",
            json!(
                format!("1 dispatcher, {} executors, batches of {} {}", plan.executors, plan.batch, changed.join(" "))
                    .trim()
            ),
        ),
    ];
    Ok(Value::Object(own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{what}");
}

fn median_per_s(rounds: &[Round]) -> f64 {
    quantile(&rounds.iter().map(|round| round.per_s).collect::<Vec<_>>(), 0.5)
}
