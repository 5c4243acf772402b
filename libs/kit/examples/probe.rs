//! The smallest service: what the shell gives without any work. The tests of this crate run it as a real process.

use std::process::ExitCode;

use carillon_kit as kit;
use kit::config::{Checks, PostgresConfig, RedisConfig, Settings};

const DEFAULTS: &str = r#"
[probe]
# What it does: "serve", "end" (a loop ends by itself), "panic", "hang" (ignores the stop), "wait" (for what never comes).
mode = "serve"
# Queues, as a list.
queues = ["default"]
"#;

#[derive(serde::Deserialize)]
struct Config {
    postgres: PostgresConfig,
    redis: RedisConfig,
    probe: Probe,
}

#[derive(serde::Deserialize)]
struct Probe {
    mode: String,
    queues: Vec<String>,
}

impl Settings for Config {
    fn check(&self, checks: &mut Checks) {
        self.postgres.check(checks);
        self.redis.check(checks);
        checks.that(!self.probe.queues.is_empty(), "probe.queues", "must name at least one queue");
    }
}

fn main() -> ExitCode {
    let service = kit::Service {
        name: "carillon-probe",
        about: "A service without a purpose",
        version: env!("CARGO_PKG_VERSION"),
        defaults: &[kit::config::SHELL, kit::config::POSTGRES, kit::config::REDIS, DEFAULTS],
    };
    kit::run(service, serve)
}

async fn serve(config: Config, process: kit::Process) -> anyhow::Result<()> {
    let ready = process.readiness().flag("probe");
    if config.probe.mode == "wait" {
        process.wait_for("godot", || std::future::ready(Err::<(), _>(anyhow::anyhow!("not today")))).await?;
    }
    let shutdown = process.shutdown();
    let mut tasks = process.tasks();
    tasks.spawn("loop", async move {
        ready.up();
        match config.probe.mode.as_str() {
            "end" => return Ok(()),
            "panic" => panic!("the probe was told to"),
            "hang" => std::future::pending().await,
            _ => shutdown.cancelled().await,
        }
        Ok(())
    });
    tasks.run().await
}
