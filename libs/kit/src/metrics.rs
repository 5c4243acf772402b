//! Metrics: recorded through the `metrics` macros anywhere, rendered by the admin port.
//!
//! Names are `carillon_<what>_<unit>`, counters end in `_total`. Each service says in one place what its own mean. A
//! histogram gets its buckets from its unit, since without buckets the exporter makes a summary per process, which cannot be
//! added up over replicas.

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// From half a millisecond, the grain of a timer, to ten minutes, longer than the default timeout of a job.
const SECONDS: [f64; 19] = [
    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
/// Batch sizes.
const ITEMS: [f64; 13] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0];
/// Payloads: 64 B to 16 MiB.
const BYTES: [f64; 10] =
    [64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
/// A histogram that nobody scrapes keeps every sample until it is folded into its buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes the recorder of the process and keeps it folded. The handle renders what `/metrics` answers.
pub(crate) fn install(service: &'static str, version: &'static str) -> anyhow::Result<PrometheusHandle> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).context("a metrics recorder was already installed")?;
    metrics::describe_gauge!("carillon_build_info", "1, with the program and its version as labels");
    metrics::gauge!("carillon_build_info", "service" => service, "version" => version).set(1.0);
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn recorder() -> anyhow::Result<PrometheusRecorder> {
    let mut builder = PrometheusBuilder::new();
    let units: [(&str, &[f64]); 3] = [("_seconds", &SECONDS), ("_items", &ITEMS), ("_bytes", &BYTES)];
    for (unit, buckets) in units {
        builder = builder
            .set_buckets_for_metric(Matcher::Suffix(unit.into()), buckets)
            .with_context(|| format!("no buckets for {unit}"))?;
    }
    Ok(builder.build_recorder())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_gets_the_buckets_of_its_unit() {
        let recorder = recorder().unwrap();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("carillon_lateness_seconds").record(0.003);
            metrics::histogram!("carillon_batch_items").record(150.0);
            metrics::counter!("carillon_claims_total").increment(2);
        });
        let text = recorder.handle().render();
        assert!(text.contains("carillon_lateness_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("carillon_batch_items_bucket{le=\"200\"} 1"), "{text}");
        assert!(text.contains("carillon_claims_total 2"), "{text}");
        assert!(!text.contains("quantile"), "{text}");
    }
}
