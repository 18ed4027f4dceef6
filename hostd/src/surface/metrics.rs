//! Prometheus metrics.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::model::Status;
use crate::doctor::{EndorsementFact, Standing};
use crate::journal::Step;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StandingLabel {
    standing: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CapacityLabel {
    resource: &'static str,
    part: &'static str,
}

fn step_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 10)) // 1 ms … 262 s
}

/// All metrics of this process.
pub struct Metrics {
    /// A `std` mutex: held while a scrape is rendered, never over an `.await`.
    registry: Mutex<Registry>,
    steps: Family<StepLabel, Histogram, fn() -> Histogram>,
    failures: Family<StepLabel, Counter>,
    contracts: Family<PhaseLabel, Gauge>,
    capacity: Family<CapacityLabel, Gauge>,
    ready: Gauge,
    draining: Gauge,
    ledger_silence: Gauge<f64, AtomicU64>,
    quarantine: Gauge,
    endorsements: Family<StandingLabel, Gauge>,
    endorsements_end: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("hostd")),
            steps: Family::new_with_constructor(step_histogram),
            failures: Family::default(),
            contracts: Family::default(),
            capacity: Family::default(),
            ready: Gauge::default(),
            draining: Gauge::default(),
            ledger_silence: Gauge::default(),
            quarantine: Gauge::default(),
            endorsements: Family::default(),
            endorsements_end: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("hostd");
        registry.register(
            "step_seconds",
            "Time of steps that were done",
            metrics.steps.clone(),
        );
        registry.register(
            "step_failures",
            "Steps that failed or had to be tried again",
            metrics.failures.clone(),
        );
        registry.register("contracts", "Contracts on this host", metrics.contracts.clone());
        registry.register("capacity", "Capacity of this host", metrics.capacity.clone());
        registry.register(
            "ready",
            "Whether new contracts can be served",
            metrics.ready.clone(),
        );
        registry.register(
            "draining",
            "Whether an operator drains the host",
            metrics.draining.clone(),
        );
        registry.register(
            "ledger_silence_seconds",
            "Time since the ledger's last answer; -1: never",
            metrics.ledger_silence.clone(),
        );
        registry.register(
            "quarantined",
            "Objects that the journal doesn't know",
            metrics.quarantine.clone(),
        );
        registry.register(
            "endorsements",
            "Documents of the processor's and GPUs' makers that evidence of this host needs",
            metrics.endorsements.clone(),
        );
        registry.register(
            "endorsements_end_timestamp_seconds",
            "When the first of them ends; 0: none ends",
            metrics.endorsements_end.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            ..metrics
        }
    }
}

impl Metrics {
    /// A step was done.
    pub fn step_done(&self, step: Step, seconds: f64) {
        self.steps
            .get_or_create(&StepLabel { step: step.name() })
            .observe(seconds);
    }

    /// A step failed, for good or for now.
    pub fn step_failed(&self, step: Step) {
        self.failures
            .get_or_create(&StepLabel { step: step.name() })
            .inc();
    }

    /// The text of a scrape. `now`: Unix seconds.
    pub fn render(&self, status: &Status, endorsements: &[EndorsementFact], now: u64) -> String {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for (phase, count) in [
            ("provisioning", status.contracts.provisioning),
            ("running", status.contracts.running),
            ("removing", status.contracts.removing),
            ("degraded", status.contracts.degraded),
            ("name-not-routed", status.contracts.names_not_routed),
        ] {
            set(&self.contracts.get_or_create(&PhaseLabel { phase }), count);
        }
        let capacity = &status.capacity;
        for (resource, share) in [
            ("vcpus", capacity.vcpus),
            ("memory_mib", capacity.memory_mib),
            ("storage_gib", capacity.storage_gib),
            ("gpus", capacity.gpus),
            ("ports", capacity.ports),
        ] {
            set(
                &self.capacity.get_or_create(&CapacityLabel {
                    resource,
                    part: "total",
                }),
                share.total,
            );
            set(
                &self.capacity.get_or_create(&CapacityLabel {
                    resource,
                    part: "used",
                }),
                share.used,
            );
        }
        set(&self.ready, status.ready.into());
        set(&self.draining, status.draining.into());
        set(&self.quarantine, status.quarantine.len() as u64);
        for (standing, name) in [
            (Standing::Current, "current"),
            (Standing::Ending, "ending"),
            (Standing::Missing, "missing"),
        ] {
            let count = endorsements
                .iter()
                .filter(|fact| fact.standing(now) == standing)
                .count();
            let label = StandingLabel { standing: name };
            set(&self.endorsements.get_or_create(&label), count as u64);
        }
        let end = endorsements.iter().filter_map(|fact| fact.until).min();
        set(&self.endorsements_end, end.unwrap_or(0));
        self.ledger_silence
            .set(status.ledger.heard_ms_ago.map_or(-1.0, |ms| ms as f64 / 1000.0));
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .expect("no code panics while it holds this lock");
        if encode(&mut text, &registry).is_err() {
            tracing::error!("metrics can't be rendered"); // writing to a String doesn't fail
        }
        text
    }
}
