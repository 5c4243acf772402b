//! Metrics: recorded through the `metrics` macros anywhere, rendered by the admin port.
//!
//! Names are `carillon_<what>_<unit>`, counters end in `_total`. Each service says in one place what its own mean. A
//! histogram gets its buckets from its unit, since without buckets the exporter makes a summary per process, which cannot be
//! added up over replicas.
//!
//! What is said of things that come and go, each under a label of its own ([`PASSING`]), is shown as long as somebody goes on
//! saying it: the label of a stream that has left goes too, and a leader that has lost its office shows no lengths of old.

use anyhow::Context;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
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
/// How the names of gauges begin that are said again and again, of things that come and go;
const PASSING: &str = "carillon_stream_";
/// and how long each is shown after it was said last. A leader of 80,000 streams comes to each once in 80 s.
const PASSING_FOR: Duration = Duration::from_secs(5 * 60);

/// Records in one of two, by the name.
struct Recorders {
    lasting: PrometheusRecorder,
    passing: PrometheusRecorder,
}

/// Renders what was recorded.
#[derive(Clone)]
pub(crate) struct Rendering {
    lasting: PrometheusHandle,
    passing: PrometheusHandle,
}

impl Rendering {
    /// As Prometheus reads it.
    pub(crate) fn render(&self) -> String {
        let mut text = self.lasting.render();
        text.push_str(&self.passing.render());
        text
    }

    fn run_upkeep(&self) {
        self.lasting.run_upkeep();
        self.passing.run_upkeep();
    }
}

/// Makes the recorder of the process and keeps it folded. The handle renders what `/metrics` answers.
pub(crate) fn install(service: &'static str, version: &'static str) -> anyhow::Result<Rendering> {
    let recorder = recorders(PASSING_FOR)?;
    let handle = recorder.rendering();
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

fn recorders(passing_for: Duration) -> anyhow::Result<Recorders> {
    let mut builder = PrometheusBuilder::new();
    let units: [(&str, &[f64]); 3] = [("_seconds", &SECONDS), ("_items", &ITEMS), ("_bytes", &BYTES)];
    for (unit, buckets) in units {
        builder = builder
            .set_buckets_for_metric(Matcher::Suffix(unit.into()), buckets)
            .with_context(|| format!("no buckets for {unit}"))?;
    }
    let passing = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(passing_for)).build_recorder();
    Ok(Recorders { lasting: builder.build_recorder(), passing })
}

impl Recorders {
    fn of(&self, name: &str) -> &PrometheusRecorder {
        if name.starts_with(PASSING) { &self.passing } else { &self.lasting }
    }

    fn rendering(&self) -> Rendering {
        Rendering { lasting: self.lasting.handle(), passing: self.passing.handle() }
    }
}

impl Recorder for Recorders {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.of(key.as_str()).describe_counter(key.clone(), unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.of(key.as_str()).describe_gauge(key.clone(), unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.of(key.as_str()).describe_histogram(key.clone(), unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.of(key.name()).register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.of(key.name()).register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.of(key.name()).register_histogram(key, metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_gets_the_buckets_of_its_unit() {
        let recorder = recorders(PASSING_FOR).unwrap();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("carillon_lateness_seconds").record(0.003);
            metrics::histogram!("carillon_batch_items").record(150.0);
            metrics::counter!("carillon_claims_total").increment(2);
        });
        let text = recorder.rendering().render();
        assert!(text.contains("carillon_lateness_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("carillon_batch_items_bucket{le=\"200\"} 1"), "{text}");
        assert!(text.contains("carillon_claims_total 2"), "{text}");
        assert!(!text.contains("quantile"), "{text}");
    }

    #[test]
    fn the_label_of_a_stream_goes_once_nobody_speaks_of_it_and_the_others_stay() {
        const BRIEF: Duration = Duration::from_millis(20);
        let recorder = recorders(BRIEF).unwrap();
        let text = || recorder.rendering().render();
        let stream = |queue: &'static str| metrics::gauge!("carillon_stream_entries", "queue" => queue).set(3);
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_gauge!("carillon_stream_entries", Unit::Count, "Entries");
            metrics::gauge!("carillon_build_info").set(1);
            let said_last = std::time::Instant::now();
            stream("brief");
            stream("kept");
            let before = text();
            assert!(before.contains("carillon_stream_entries{queue=\"brief\"} 3"), "{before}");
            assert!(before.contains("# HELP carillon_stream_entries Entries"), "{before}");
            while text().contains("brief") {
                stream("kept");
                assert!(said_last.elapsed() < Duration::from_secs(30), "it stays");
            }
            assert!(said_last.elapsed() >= BRIEF);
            let after = text();
            assert!(after.contains("carillon_stream_entries{queue=\"kept\"} 3"), "{after}");
            assert!(after.contains("carillon_build_info 1"), "{after}");
            stream("brief");
            assert!(text().contains("carillon_stream_entries{queue=\"brief\"} 3"), "it comes again");
        });
    }
}
